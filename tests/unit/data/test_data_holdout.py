"""The held-out part of train: stratified, disjoint, the same every time and in every copy of the data."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from data_fixtures import Copy

from cifar100_tk.data import Cifar100
from cifar100_tk.errors import ConfigError

pytestmark = pytest.mark.usefixtures("cache")
ROWS = (500, 100)


def test_holdout_is_stratified_and_train_is_the_rest() -> None:
    data = Cifar100(source="shapes100", shapes100_rows=ROWS, holdout=200)
    train, holdout, test = data.open("train"), data.open("holdout"), data.open("test")
    assert (len(train), len(holdout), len(test)) == (300, 200, 100)
    np.testing.assert_array_equal(np.bincount(holdout.labels[holdout.index]), np.full(100, 2))
    np.testing.assert_array_equal(np.sort(np.concatenate([train.index, holdout.index])), np.arange(500))
    assert (np.diff(train.index) > 0).all() and (np.diff(holdout.index) > 0).all()


def test_holdout_is_the_same_every_time_and_another_for_another_seed() -> None:
    first, again, other = (
        Cifar100(source="shapes100", shapes100_rows=ROWS, holdout=200, holdout_seed=seed).open("holdout").index
        for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_holdout_is_the_same_images_in_a_copy_with_another_order(tmp_path: Path, train_copy: Copy) -> None:
    shuffled = Copy(300, seed=1)
    order = np.random.default_rng(5).permutation(300)
    shuffled.images, shuffled.fine, shuffled.coarse = (
        rows[order] for rows in (shuffled.images, shuffled.fine, shuffled.coarse)
    )
    held = []
    for name, copy in (("a", train_copy), ("b", shuffled)):
        copy.write_parquet(tmp_path / name / "train.parquet")
        split = Cifar100(source=str(tmp_path / name), holdout=100).open("holdout")
        held.append({split.images[row].tobytes() for row in split.index})
    assert held[0] == held[1] and len(held[0]) == 100


@pytest.mark.parametrize(
    ("holdout", "message"),
    [
        (250, r"holdout=250 does not hold out the same .* use a multiple of 100 from 0 up, such as 200 or 300"),
        (-100, r"holdout=-100 is out of range; .* use a multiple of 100"),
        (500, r"holdout=500 takes 5 images of every class, but class 0 has 5 in train; use at most 400"),
        (0, r"holdout=0 holds out no images.*--data\.holdout 5000"),
    ],
)
def test_a_wrong_holdout_says_what_would_be_right(holdout: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Cifar100(source="shapes100", shapes100_rows=ROWS, holdout=holdout).open("holdout")


def test_a_pickled_split_maps_the_same_file_and_carries_no_images() -> None:
    split = Cifar100(source="shapes100", shapes100_rows=ROWS).open("train")
    pickled = pickle.dumps(split)
    assert len(pickled) < 50_000 < split.images.nbytes
    again = pickle.loads(pickled)
    assert isinstance(again.images, np.memmap)
    np.testing.assert_array_equal(again.images, split.images)
    assert again.identity == split.identity
