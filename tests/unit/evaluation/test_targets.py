"""Which images of a model are measured, and that only those are corrupted."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from runs import run_once, tiny

from cifar100_tk.data import Cifar100
from cifar100_tk.data.cifar100_c import SEVERITIES
from cifar100_tk.errors import ConfigError
from cifar100_tk.evaluation import targets as eval_targets

pytestmark = pytest.mark.usefixtures("on_cpu")
DATA = Cifar100(source="shapes100", shapes100_rows=(300, 130), holdout=100)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a holdout."""
    return run_once(tmp_path_factory, tiny(data=DATA, epochs=1))


def test_only_what_is_measured_is_corrupted(trained: Path, tmp_path: Path) -> None:
    loaded = eval_targets.load(str(trained), "test", {})
    test = DATA.open("test")
    np.save(tmp_path / "labels.npy", np.tile(test.labels, len(SEVERITIES)))
    np.save(tmp_path / "fog.npy", np.full((len(SEVERITIES) * 130, 32, 32, 3), 9, np.uint8))
    for limit, count in ((1, 20), (3, 60), (None, 130)):
        target = eval_targets.open_images(loaded, "test", batch_size=20, limit_batches=limit, cifar100_c=tmp_path)
        assert target.cifar100_c is not None and target.cifar100_c.names == ("fog",)
        worse = target.cifar100_c.corrupted("fog", 3)
        assert len(target.split) == len(worse) == worse.identity.count == count
        assert (worse.images[:count] == 9).all() and not worse.images[count:].any()
        # The temperature is fitted on as many batches of the held-out images.
        assert target.held_out is not None and len(target.held_out) == min(count, 100)


def test_the_data_of_a_run_is_used_where_no_other_is_given(trained: Path) -> None:
    assert eval_targets.load(str(trained), "test", {}).data == DATA
    other = eval_targets.load(str(trained), "test", {"holdout": 0})
    assert (other.data.holdout, other.why_no_temperature) == (0, "no images were held out to fit it on")
    with pytest.raises(ConfigError, match="was trained with holdout=100; with holdout=200 the held-out images"):
        eval_targets.load(str(trained), "test", {"holdout": 200})


def test_a_model_folder_in_a_run_is_measured_on_the_data_of_the_run(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert eval_targets.load(str(trained / "model"), "test", {}).data == DATA
    monkeypatch.chdir(trained / "model")
    assert eval_targets.load(".", "test", {}).data == DATA
    moved = shutil.copytree(trained / "model", tmp_path / "elsewhere" / "model")
    assert eval_targets.load(str(moved), "test", {}).data == Cifar100()
    (moved.parent / "recipe.json").write_text("of something else")
    assert eval_targets.load(str(moved), "test", {}).data == Cifar100()
