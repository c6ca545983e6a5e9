"""`prepare` writes a copy that needs no network, and `verify` says what a copy holds."""

from __future__ import annotations

import dataclasses
import os
import re
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pytest
from commands import exit_code
from data_fixtures import Copy

from cifar100_tk.data import FINE_NAMES, Cifar100, SplitName
from cifar100_tk.data.__main__ import main
from cifar100_tk.data.copies import SplitCheck, prepare
from cifar100_tk.data.fingerprint import Fingerprint

pytestmark = pytest.mark.usefixtures("cache")


def test_prepared_built_in_images_verify_and_read_back_equal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    to = tmp_path / "copy"
    assert exit_code(main, "prepare", "--to", to, "--source", "shapes100", "--shapes100-rows", 200, 100) == 0
    assert sorted(path.name for path in (to / "cifar100").iterdir()) == [
        "test-00000-of-00001.parquet",
        "train-00000-of-00001.parquet",
    ]
    assert f"Use it with --data.source {to}" in capsys.readouterr().out
    assert exit_code(main, "verify", to, "--custom") == 0
    out = capsys.readouterr().out
    assert "train: 200 images, 2 of each of the 100 classes; not the published CIFAR-100 images" in out
    assert "test: 100 images, 1 of each of the 100 classes; not the published CIFAR-100 images" in out
    splits: tuple[SplitName, ...] = ("train", "test")
    for split in splits:
        original = Cifar100(source="shapes100", shapes100_rows=(200, 100)).open(split)
        again = Cifar100(source=str(to)).open(split)
        np.testing.assert_array_equal(again.images, original.images)
        np.testing.assert_array_equal(again.labels, original.labels)
        assert again.class_names == original.class_names and again.coarse_names == original.coarse_names
        assert again.coarse_of_fine == original.coarse_of_fine
        assert again.identity.sha256 == original.identity.sha256
        assert f"sha256 {original.identity.sha256}" in out


def test_a_prepared_copy_is_on_the_disk_before_and_after_it_gets_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[tuple[Path, bool]] = []
    fsync = os.fsync

    def recorded(descriptor: int) -> None:
        synced.append((Path(os.readlink(f"/proc/self/fd/{descriptor}")), (tmp_path / "copy").exists()))
        fsync(descriptor)

    data = Cifar100(source="shapes100", shapes100_rows=(100, 100))
    data.open("train"), data.open("test")  # the cache's own writes are not meant here
    monkeypatch.setattr(os, "fsync", recorded)
    prepare(data, tmp_path / "copy")
    assert synced.pop() == (tmp_path, True)
    assert not any(named for _, named in synced)
    (temporary,) = {path.relative_to(tmp_path).parts[0] for path, _ in synced}
    assert {str(path.relative_to(tmp_path / temporary)) for path, _ in synced} == {
        ".",
        "cifar100",
        "cifar100/train-00000-of-00001.parquet",
        "cifar100/test-00000-of-00001.parquet",
    }
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".tmp-")] == []


def test_a_prepared_copy_is_what_datasets_reads(tmp_path: Path, train_copy: Copy) -> None:
    (tmp_path / "official").mkdir()
    (tmp_path / "official" / "train.bin").write_bytes(train_copy.binary())
    assert exit_code(main, "prepare", "--to", tmp_path / "copy", "--source", tmp_path / "official") == 0
    datasets: Any = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    loaded = datasets.load_dataset(str(tmp_path / "copy"), split="train", cache_dir=str(tmp_path / "hf"))
    assert loaded.features["fine_label"].names == list(FINE_NAMES)
    assert list(loaded.features) == ["img", "fine_label", "coarse_label"]
    np.testing.assert_array_equal(np.asarray(loaded[17]["img"]), train_copy.images[17])
    assert loaded["fine_label"][:] == train_copy.fine.tolist()
    assert loaded["coarse_label"][:] == train_copy.coarse.tolist()


def test_prepare_never_overwrites(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    assert exit_code(main, "prepare", "--to", tmp_path, "--source", "shapes100", "--shapes100-rows", 100, 100) == 2
    assert "already exists and is not overwritten; give a new folder" in capsys.readouterr().err
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_prepare_that_cannot_write_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    to = tmp_path / "file" / "copy"
    assert exit_code(main, "prepare", "--to", to, "--source", "shapes100", "--shapes100-rows", 100, 100) == 5
    assert "(File exists): give --to another folder." in capsys.readouterr().err


def test_verify_reads_every_row_past_the_cache(
    tmp_path: Path, train_copy: Copy, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = train_copy.fine.copy()
    labels[250] = 100
    train_copy.write_parquet(tmp_path / "train.parquet", fine_label=pa.array(labels))
    assert exit_code(main, "verify", tmp_path) == 3
    assert "train.parquet, row 250: fine_label=100 is out of range; expected 0 to 99" in capsys.readouterr().err


def test_verify_says_when_classes_are_not_balanced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Copy(250, seed=4).write_parquet(tmp_path / "train.parquet")
    assert exit_code(main, "verify", tmp_path, "--custom") == 0
    assert "train: 250 images, 2 to 3 of each of the 100 classes" in capsys.readouterr().out


def test_verify_of_data_that_is_not_the_published_exits_with_3_and_says_what_differs(
    tmp_path: Path, train_copy: Copy, capsys: pytest.CaptureFixture[str]
) -> None:
    train_copy.write_parquet(tmp_path / "train.parquet")
    assert exit_code(main, "verify", tmp_path) == 3
    assert re.search(
        r"is not the published CIFAR-100: train has \d+ images, 50,000 expected\. Download it again, or give --custom",
        capsys.readouterr().err,
    )


@pytest.mark.parametrize(
    ("count", "fewest", "most", "difference"),
    [
        (9_999, 99, 100, "test has 9,999 images, 10,000 expected"),
        (10_001, 100, 101, "test has 10,001 images, 10,000 expected"),
        (10_000, 99, 101, "labels of test differ: its classes have 99 to 101 images, 100 expected"),
        (10_000, 100, 100, "images or labels of test differ, although each class has the right number of images"),
    ],
)
def test_what_differs_from_the_published_split_is_said(count: int, fewest: int, most: int, difference: str) -> None:
    identity = Fingerprint(sha256="", rows_sha256="", count=count, sentence="not the published CIFAR-100 images")
    assert SplitCheck(split="test", identity=identity, fewest=fewest, most=most).difference == difference
    published = dataclasses.replace(identity, sentence="these are the CIFAR-100 test images")
    assert SplitCheck(split="test", identity=published, fewest=fewest, most=most).difference is None


def test_an_unreachable_hub_exits_with_8(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CIFAR100_TK_CACHE", str(tmp_path))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "none")
    assert exit_code(main, "verify", "hub") == 8
    assert "(HF_HUB_OFFLINE is set)" in capsys.readouterr().err


def test_wrong_usage_exits_with_2_and_says_what_there_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(main, "prepare", "--to", tmp_path / "x", "--sourse", "shapes100") == 2
    assert "--source" in capsys.readouterr().err
    assert exit_code(main, "verfy") == 2
    assert "unrecognized options: verfy; --help lists every option" in capsys.readouterr().err
