"""Corruptions made here have the published strengths and hang on nothing but row and seed; CIFAR-100-C is checked."""

from __future__ import annotations

import dataclasses
import itertools
import pickle
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from canary import Canary, unpickled
from numpy.typing import NDArray
from scipy.ndimage import correlate, gaussian_filter
from scipy.stats import poisson

from cifar100_tk.data import Cifar100, Split
from cifar100_tk.data.corruptions import MADE, PUBLISHED, SEVERITIES, corrupt, open_cifar100_c
from cifar100_tk.errors import ConfigError, DataError

ROWS = 120


@pytest.fixture(scope="module")
def split() -> Split:
    """A test split of built-in images."""
    return Cifar100(source="shapes100", shapes100_rows=(100, ROWS)).open("test")


def filled(split: Split, *colour: int) -> Split:
    """The split with images of one colour."""
    images = np.zeros_like(split.images) + np.array(colour, np.uint8)[:, None, None]
    return dataclasses.replace(split, images=images)


def distance(split: Split, name: str, severity: int) -> float:
    """Mean absolute change of a value."""
    return float(np.abs(corrupt(split, name, severity).images.astype(int) - split.images).mean())


def test_there_are_nineteen_published_corruptions_and_eight_are_made_here() -> None:
    assert len(set(PUBLISHED)) == 19 and len(MADE) == 8 and set(MADE) < set(PUBLISHED)


@pytest.mark.parametrize("name", MADE)
def test_more_severe_is_further_from_the_clean_images(split: Split, name: str) -> None:
    changes = [distance(split, name, severity) for severity in SEVERITIES]
    if name == "defocus_blur":
        # As published: the disk of severity 3 is one pixel softened by 0.6, that of 4 a cross; 5 is the widest.
        assert changes[0] < changes[1] < changes[2] < changes[4] and changes[3] < changes[4]
    elif name == "jpeg_compression":
        assert all(after > before - 0.05 for before, after in itertools.pairwise(changes))
        assert changes[4] > changes[0]
    else:
        assert changes == sorted(changes) and changes[0] > 0.5


@pytest.mark.parametrize("name", MADE)
def test_an_image_is_corrupted_the_same_in_any_company(split: Split, name: str) -> None:
    whole = corrupt(split, name, 3, seed=7)
    assert whole.images.shape == split.images.shape and whole.images.dtype == np.uint8
    # Every third row, as one of three processes or a part of the store would have it.
    part = corrupt(dataclasses.replace(split, index=split.index[1::3]), name, 3, seed=7)
    assert np.array_equal(part.images[1::3], whole.images[1::3])
    assert not part.images[0::3].any()
    assert np.array_equal(corrupt(split, name, 3, seed=7).images, whole.images)
    random = name in ("gaussian_noise", "shot_noise")
    assert np.array_equal(corrupt(split, name, 3, seed=8).images, whole.images) != random


def test_all_but_the_images_stays_and_the_identity_says_what_they_are(split: Split) -> None:
    before = split.images.copy()
    made = corrupt(split, "contrast", 2)
    assert np.array_equal(split.images, before)
    assert made.labels is split.labels and made.index is split.index and made.name == "test"
    assert made.identity.sentence == "contrast of severity 2, generated from: shapes100, built in"
    assert made.identity.sha256 != split.identity.sha256 and made.identity.count == ROWS


@pytest.mark.parametrize(("severity", "sigma"), [(1, 0.04), (5, 0.10)])
def test_gaussian_noise_has_the_published_deviation(split: Split, severity: int, sigma: float) -> None:
    noise = corrupt(filled(split, 128, 128, 128), "gaussian_noise", severity).images.astype(float) - 128
    # 368,640 values, so the mean is known to 0.05 and the deviation to 0.3 %; a dropped fraction costs half a level.
    assert noise.mean() == pytest.approx(-0.5, abs=0.15)
    assert noise.std() == pytest.approx(255 * sigma, rel=0.01)
    assert np.abs(np.corrcoef(noise.reshape(ROWS, -1)[:2])[0, 1]) < 0.08


@pytest.mark.parametrize(("severity", "photons", "level"), [(1, 500, 128), (5, 50, 40), (5, 50, 255)])
def test_shot_noise_counts_photons_as_scipys_poisson_does(
    split: Split, severity: int, photons: int, level: int
) -> None:
    values = corrupt(filled(split, level, level, level), "shot_noise", severity).images
    counts = np.arange(3 * photons)
    levels = np.minimum(counts * 255 // photons, 255)
    mass = np.bincount(levels, poisson.pmf(counts, level / 255 * photons), minlength=256)
    share = np.bincount(values.reshape(-1), minlength=256) / values.size
    assert np.abs(share - mass).max() < 0.004  # Four deviations of a share of 0.5 among 368,640.
    assert not corrupt(filled(split, 0, 0, 0), "shot_noise", severity).images.any()


def test_gaussian_blur_is_scipys(split: Split) -> None:
    for severity, sigma in zip(SEVERITIES, (0.4, 0.6, 0.7, 0.8, 1.0), strict=True):
        theirs = gaussian_filter(split.images.astype(float), (0, 0, sigma, sigma), mode="nearest", truncate=4)
        ours = corrupt(split, "gaussian_blur", severity).images
        assert np.abs(ours - (theirs - 0.5)).max() < 0.51


def test_defocus_blur_is_a_disk() -> None:
    dot = np.zeros((100, 3, 32, 32), np.uint8)
    dot[:, :, 16, 16] = 255
    split = dataclasses.replace(
        Cifar100(source="shapes100", shapes100_rows=(100, 100)).open("test"), images=dot, index=np.arange(1)
    )
    # Severity 5 by hand: a 3x3 square of 1/9, softened with exp(-1 / (2 * 0.1**2)), which is nothing.
    square = corrupt(split, "defocus_blur", 5).images[0, 0]
    assert square[15:18, 15:18].tolist() == [[28] * 3] * 3 and square.sum() == 9 * 28
    # Severity 1: one pixel softened by sigma 0.4: weights 0.9192 and 0.0404, so 255 * 0.9192**2 = 215 in the middle.
    soft = corrupt(split, "defocus_blur", 1).images[0, 0]
    assert soft[15:18, 15:18].tolist() == [[0, 9, 0], [9, 215, 9], [0, 9, 0]]
    # Severity 4: a cross of 1/5, softened with exp(-1 / (2 * 0.2**2)) = 4e-6, which rounds away.
    cross = corrupt(split, "defocus_blur", 4).images[0, 0]
    assert cross[15:18, 15:18].tolist() == [[0, 51, 0], [51, 51, 51], [0, 51, 0]]


def test_defocus_blur_mirrors_what_lies_outside(split: Split) -> None:
    plus = np.array([[0, 0.2, 0], [0.2, 0.2, 0.2], [0, 0.2, 0]])
    theirs = correlate(split.images.astype(float), plus[None, None], mode="mirror")
    assert np.abs(corrupt(split, "defocus_blur", 4).images - (theirs - 0.5)).max() < 0.52


@pytest.mark.parametrize(
    ("name", "severity", "colour", "expected"),
    [
        # V = 100 becomes 100 + 0.05 * 255 = 112.75; the others keep their share of V.
        ("brightness", 1, (100, 50, 0), (112, 56, 0)),
        ("brightness", 5, (0, 0, 0), (76, 76, 76)),  # 0.3 * 255 = 76.5
        ("brightness", 5, (250, 125, 0), (255, 127, 0)),  # V stops at 255.
        # An image of one colour has no contrast to lose.
        ("contrast", 5, (10, 20, 30), (10, 20, 30)),
        ("pixelate", 5, (10, 20, 30), (10, 20, 30)),
        ("gaussian_blur", 5, (10, 20, 255), (10, 20, 255)),
        ("defocus_blur", 3, (10, 20, 255), (10, 20, 255)),
    ],
)
def test_one_colour_becomes_what_the_formula_says(
    split: Split, name: str, severity: int, colour: tuple[int, ...], expected: tuple[int, ...]
) -> None:
    made = corrupt(filled(split, *colour), name, severity).images
    assert np.array_equal(made, filled(split, *expected).images)


def test_contrast_draws_towards_the_mean_of_each_channel(split: Split) -> None:
    halves = filled(split, 0, 0, 0)
    halves.images[:, 0, :16] = 200
    made = corrupt(halves, "contrast", 5).images
    assert set(made[:, 0, :16].reshape(-1)) == {115} and set(made[:, 0, 16:].reshape(-1)) == {85}  # 100 +- 15
    assert not made[:, 1:].any()


def test_pixelate_and_jpeg_are_pillows(split: Split, tmp_path: Path) -> None:
    image = PIL.Image.fromarray(np.ascontiguousarray(split.images[5].transpose(1, 2, 0)))
    pixelated = image.resize((20, 20), PIL.Image.Resampling.BOX).resize((32, 32), PIL.Image.Resampling.BOX)
    assert np.array_equal(corrupt(split, "pixelate", 5).images[5].transpose(1, 2, 0), np.asarray(pixelated))
    image.save(tmp_path / "image.jpg", quality=40)
    with PIL.Image.open(tmp_path / "image.jpg") as compressed:
        made = corrupt(split, "jpeg_compression", 5).images[5].transpose(1, 2, 0)
        assert np.array_equal(made, np.asarray(compressed))


@pytest.mark.parametrize(
    ("name", "severity", "message"),
    [
        ("fog", 1, "'fog' is only in the published files .*; the generated corruptions are gaussian_noise, shot_noise"),
        ("rain", 1, "'rain' is not a corruption; the generated corruptions are"),
        ("contrast", 0, r"severity=0 is out of range; use 1 \(weak\) to 5 \(strong\)"),
        ("contrast", 6, "severity=6 is out of range"),
    ],
)
def test_what_cannot_be_made_is_refused(split: Split, name: str, severity: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        corrupt(split, name, severity)


# The published layout.


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


def test_the_published_layout_is_read_by_severity(folder: Path, split: Split) -> None:
    published = open_cifar100_c(folder, split)
    assert published.names == ("snow", "fog")
    for severity in SEVERITIES:
        made = published.corrupt("fog", severity)
        assert made.images.shape == (ROWS, 3, 32, 32) and made.images.dtype == np.uint8
        assert made.images[10].reshape(3, -1).tolist() == [[10 + severity] * 1024] * 2 + [[7] * 1024]
        assert np.array_equal(made.labels, split.labels)
        assert made.identity.sentence == f"fog of severity {severity} from {folder}"


def test_of_a_part_of_the_test_split_only_its_rows_are_read(folder: Path, split: Split) -> None:
    part = dataclasses.replace(split, index=split.index[2:7])
    made, whole = (open_cifar100_c(folder, one).corrupt("snow", 2) for one in (part, split))
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
    made = open_cifar100_c(folder, split).corrupt("fog", 4)
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
        published.corrupt("frost", 1)
    with pytest.raises(ConfigError, match="severity=9 is out of range"):
        published.corrupt("snow", 9)


def test_opening_and_reading_hold_one_severity_in_memory(folder: Path, split: Split) -> None:
    tracemalloc.start()
    try:
        published = open_cifar100_c(folder, split)
        opened = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        made = published.corrupt("fog", 1)
        read = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert opened < 100_000  # Ten times as much lies on the disk in one of the files.
    # The images and a block of them being digested; with the whole file it would be nine times the images.
    assert made.images.nbytes < read < 5 * made.images.nbytes
