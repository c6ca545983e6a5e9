"""A local copy of CIFAR-100-C is checked, and read one severity at a time."""

from __future__ import annotations

import dataclasses
import pickle
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from canary import Canary, unpickled
from numpy.typing import NDArray

from cifar100_tk.data import Cifar100, Split
from cifar100_tk.data.cifar100_c import PUBLISHED, SEVERITIES, open_cifar100_c
from cifar100_tk.errors import ConfigError, DataError

ROWS = 120


@pytest.fixture(scope="module")
def split() -> Split:
    """A test split of built-in images."""
    return Cifar100(source="shapes100", shapes100_rows=(100, ROWS)).open("test")


@pytest.fixture
def folder(tmp_path: Path, split: Split) -> Path:
    """Two corruptions of a small test split, in which row r of severity s is filled with r + s."""
    rows = (np.arange(ROWS)[None] + np.array(SEVERITIES)[:, None]).reshape(-1).astype(np.uint8)
    images = np.zeros((5 * ROWS, 32, 32, 3), np.uint8) + rows[:, None, None, None]
    images[..., 2] = 7
    for name in ("snow", "fog"):
        np.save(tmp_path / f"{name}.npy", images)
    np.save(tmp_path / "labels.npy", np.tile(split.labels, 5))
    return tmp_path


def test_there_are_nineteen_published_corruptions() -> None:
    assert len(set(PUBLISHED)) == 19


def test_the_published_layout_is_read_by_severity(folder: Path, split: Split) -> None:
    published = open_cifar100_c(folder, split)
    assert published.names == ("snow", "fog")
    for severity in SEVERITIES:
        made = published.corrupted("fog", severity)
        assert made.images.shape == (ROWS, 3, 32, 32) and made.images.dtype == np.uint8
        assert made.images[10].reshape(3, -1).tolist() == [[10 + severity] * 1024] * 2 + [[7] * 1024]
        assert np.array_equal(made.labels, split.labels)
        assert made.identity.sentence == f"fog of severity {severity} from {folder}"


def test_of_a_part_of_the_test_split_only_its_rows_are_read(folder: Path, split: Split) -> None:
    part = dataclasses.replace(split, index=split.index[2:7])
    made, whole = (open_cifar100_c(folder, one).corrupted("snow", 2) for one in (part, split))
    assert made.index is part.index and np.array_equal(made.images[2:7], whole.images[2:7])
    assert not made.images[:2].any() and not made.images[7:].any() and made.identity.count == 5
    # The labels of all test images are compared, not those of the part alone.
    labels = np.tile(split.labels, 5)
    labels[ROWS + 50] += 1
    np.save(folder / "labels.npy", labels)
    with pytest.raises(DataError, match=f"row {ROWS + 50}: the label is .*; 1 labels differ"):
        open_cifar100_c(folder, part)


def test_a_corrupted_split_is_never_taken_for_the_file_that_it_is_a_part_of(folder: Path, split: Split) -> None:
    # Splits are cached on a device by the file that their images are mapped from, and sent to workers by its name.
    made = open_cifar100_c(folder, split).corrupted("fog", 4)
    assert not isinstance(made.images, np.memmap) and made.images.base is None
    assert np.array_equal(pickle.loads(pickle.dumps(made)).images, made.images)


def test_labels_may_be_bytes_as_some_copies_have_them(folder: Path, split: Split) -> None:
    np.save(folder / "labels.npy", np.tile(split.labels, 5).astype(np.uint8))
    assert open_cifar100_c(folder, split).names == ("snow", "fog")


def objects(path: Path) -> None:
    np.save(path, np.array([Canary(path.parent / "trace")], object), allow_pickle=True)


def header(text: str) -> Callable[[Path], object]:
    """Write a .npy file of version 1.0 with any text as its header."""
    content = text.encode()
    return lambda path: path.write_bytes(b"\x93NUMPY\x01\x00" + len(content).to_bytes(2, "little") + content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def lengthen(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"x")


@pytest.mark.parametrize("name", ["snow", "labels"])
@pytest.mark.parametrize(
    "damage",
    [
        objects,
        lambda path: path.write_bytes(pickle.dumps(Canary(path.parent / "trace"))),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"PK\x03\x04 zipped"),
        cut,
        lengthen,
        header("{'descr': '|u1', 'fortran_order': False, 'shape': (600, 32, 32, 3)"),
        header("__import__('os').mkdir('trace')"),
        header("(" * 5000),
        header("{'descr': '|u1', 'fortran_order': False, 'shape': (-600, 32, 32, 3), }"),
        header("{'descr': '|u1', 'fortran_order': False, 'shape': (10**12,), }"),
        header("{'descr': '|u1', 'fortran_order': False, 'shape': (1000000000000,), }"),
        header("{'descr': [('a', '|O')], 'fortran_order': False, 'shape': (600,), }"),
        lambda path: np.save(path, np.zeros((600, 3, 32, 32), np.uint8)),
        lambda path: np.save(path, np.zeros((600, 32, 32, 3), np.float32)),
        lambda path: np.save(path, np.zeros(600, np.float64)),
        lambda path: np.save(path, np.zeros(599, np.uint8)),
    ],
)
def test_malformed_files_are_refused_by_name_and_nothing_runs(
    folder: Path, split: Split, damage: Callable[[Path], object], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    damage(folder / f"{name}.npy")
    match = rf"{name}.npy (is not a valid|contains|has .* bytes)"
    with unpickled() as heard, pytest.raises(DataError, match=match):
        open_cifar100_c(folder, split)
    assert not heard and not (folder / "trace").exists()


def other_label(folder: Path) -> None:
    labels: NDArray[np.int64] = np.load(folder / "labels.npy", allow_pickle=False)
    labels[ROWS + 3] += 1
    np.save(folder / "labels.npy", labels)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (other_label, r"labels.npy, row 123: the label is \d+, but that test image has class \d+; 1 labels differ"),
        (lambda folder: (folder / "labels.npy").unlink(), "labels.npy is missing; unpack CIFAR-100-C.tar again"),
        (
            lambda folder: [(folder / f"{name}.npy").unlink() for name in ("snow", "fog")],
            "contains none of the 19 files of CIFAR-100-C, such as gaussian_noise.npy",
        ),
    ],
)
def test_a_folder_of_other_images_is_refused(
    folder: Path, split: Split, damage: Callable[[Path], object], message: str
) -> None:
    damage(folder)
    with pytest.raises(DataError, match=message):
        open_cifar100_c(folder, split)


def test_what_is_not_there_is_refused(folder: Path, split: Split) -> None:
    with pytest.raises(DataError, match=r"nowhere is not a folder; give the folder that CIFAR-100-C.tar unpacks to"):
        open_cifar100_c(folder / "nowhere", split)
    with pytest.raises(ConfigError, match="made from the test images, not from train"):
        open_cifar100_c(folder, Cifar100(source="shapes100", shapes100_rows=(100, ROWS)).open("train"))
    published = open_cifar100_c(folder, split)
    with pytest.raises(ConfigError, match=r"has no frost.npy; it contains snow, fog"):
        published.corrupted("frost", 1)
    with pytest.raises(ConfigError, match="severity=9 is out of range"):
        published.corrupted("snow", 9)


def test_opening_and_reading_hold_one_severity_in_memory(folder: Path, split: Split) -> None:
    tracemalloc.start()
    try:
        published = open_cifar100_c(folder, split)
        opened = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        made = published.corrupted("fog", 1)
        read = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert opened < 100_000  # Ten times as much lies on the disk in one of the files.
    # The images and a block of them being digested; with the whole file it would be nine times the images.
    assert made.images.nbytes < read < 5 * made.images.nbytes
