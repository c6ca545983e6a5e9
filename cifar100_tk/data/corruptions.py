"""Corrupted test images: CIFAR-100-C from a local copy, and eight of its corruptions generated without a download."""

from __future__ import annotations

import dataclasses
import functools
import io
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Final, final

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from cifar100_tk import draws
from cifar100_tk.data import Fingerprint, Split
from cifar100_tk.data.fingerprint import image_digests
from cifar100_tk.data.rows import HostImages, Numbers
from cifar100_tk.errors import ConfigError, DataError

SEVERITIES: Final = (1, 2, 3, 4, 5)

PUBLISHED: Final = (
    *("gaussian_noise", "shot_noise", "impulse_noise"),
    *("defocus_blur", "glass_blur", "motion_blur", "zoom_blur"),
    *("snow", "frost", "fog", "brightness"),
    *("contrast", "elastic_transform", "pixelate", "jpeg_compression"),
    *("speckle_noise", "gaussian_blur", "spatter", "saturate"),
)
"""The corruptions of CIFAR-100-C: the 15 that its mean is usually taken over, then the 4 kept for validation."""

Floats = NDArray[np.float32]
"""(n, 3, 32, 32) float32, 0..255."""

_BLOCK: Final = 200  # images whose float32 copies (2.5 MB each) stay near a core
_SIDE: Final = 32
_LEVELS: Final = 1 << 16


def corrupt(split: Split, name: str, severity: int, seed: int = 0) -> Split:
    """Corrupt a split's images; everything else, including the rows, stays the same.

    name: one of `MADE`. severity: 1..5. Random draws depend on (seed, name, severity, row) alone, so neither the batches
    nor the number of processes change them.

    The strengths are those of the program that made CIFAR-10-C and CIFAR-100-C (Hendrycks and Dietterich,
    arXiv:1903.12261; `make_cifar_c.py`), which also truncates fractional levels. The published files are not
    reproduced: they have other random numbers, were written by other versions of the JPEG and resizing code, and
    the rounding differs in places. A result on these images is not a CIFAR-100-C result.
    """
    if name not in _MAKERS:
        where = "only in the published files (open_cifar100_c)" if name in PUBLISHED else "not a corruption"
        raise ConfigError(f"{name!r} is {where}; the generated corruptions are {', '.join(MADE)}.")
    _check_severity(severity)

    def made(rows: Numbers) -> HostImages:
        return _MAKERS[name](split.images[rows], severity, rows, seed)

    return _with(split, made, f"{name} of severity {severity}, generated from: {split.identity.sentence}")


@final
@dataclass(frozen=True)
class Cifar100C:
    """A local copy of CIFAR-100-C, checked against the corresponding test images."""

    folder: Path
    clean: Split
    """The test split, or a part of it."""
    names: tuple[str, ...]
    """The corruptions in the folder, in the published order."""

    def corrupt(self, name: str, severity: int) -> Split:
        """Return the split with corrupted images. Takes 31 MB for 10,000 of them; the file itself is only mapped."""
        if name not in self.names:
            raise ConfigError(f"{self.folder} has no {name}.npy; it contains {', '.join(self.names)}.")
        _check_severity(severity)
        count = len(self.clean.labels)
        mapped = _mapped(self.folder / f"{name}.npy", (len(SEVERITIES) * count, _SIDE, _SIDE, 3))

        def read(rows: Numbers) -> HostImages:
            return np.asarray(mapped[(severity - 1) * count + rows], np.uint8).transpose(0, 3, 1, 2)

        return _with(self.clean, read, f"{name} of severity {severity} from {self.folder}")


def open_cifar100_c(folder: str | Path, split: Split) -> Cifar100C:
    """Open a folder of the published layout: NAME.npy, (50000, 32, 32, 3) uint8, and labels.npy, (50000,).

    The images of severity s are rows (s-1)*10000 to s*10000-1. split: the test split, or a part of it; the labels of all
    test images must be those in labels.npy, row for row. Every file's header and size are checked before an image is
    read; nothing is unpickled.
    """
    folder = Path(folder)
    if split.name != "test":
        raise ConfigError(
            f"CIFAR-100-C is made from the test images, not from {split.name}; evaluate on the test split."
        )
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder; give the folder that CIFAR-100-C.tar unpacks to.")
    names = tuple(name for name in PUBLISHED if (folder / f"{name}.npy").is_file())
    if not names:
        raise DataError(f"{folder} contains none of the 19 files of CIFAR-100-C, such as {PUBLISHED[0]}.npy.")
    count = len(split.labels)
    for name in names:
        _mapped(folder / f"{name}.npy", (len(SEVERITIES) * count, _SIDE, _SIDE, 3))
    labels = _mapped(folder / "labels.npy", (len(SEVERITIES) * count,))
    wrong = np.flatnonzero(labels.reshape(len(SEVERITIES), -1) != split.labels)
    if len(wrong):
        row = int(wrong[0])
        expected = int(split.labels[row % count])
        raise DataError(
            f"{folder / 'labels.npy'}, row {row}: the label is {int(labels[row])}, but that test image has class "
            f"{expected}; {len(wrong):,} labels differ. Give the test images of CIFAR-100 in their published order."
        )
    return Cifar100C(folder, split, names)


def _check_severity(severity: int) -> None:
    if severity not in SEVERITIES:
        raise ConfigError(f"severity={severity} is out of range; use 1 (weak) to 5 (strong).")


def _with(split: Split, corrupted: Callable[[Numbers], HostImages], sentence: str) -> Split:
    """Return the split with other images and an identity that says so.

    corrupted: maps some rows of the store, (n,), to their images, (n, 3, 32, 32) uint8; called for the split's rows only.
    """
    # Untouched pages of zeros take no memory, and rows keep their indices. A plain array in memory: a view of a mapped file
    # would be mistaken for the whole file where splits are cached or sent.
    images: HostImages = np.zeros(split.images.shape, np.uint8)
    digests, coarse_of_fine = [], np.array(split.coarse_of_fine)
    for start in range(0, len(split), _BLOCK):
        rows = split.index[start : start + _BLOCK]
        images[rows] = corrupted(rows)
        coarse = coarse_of_fine[split.labels[rows]] if len(coarse_of_fine) else None
        digests += image_digests(images[rows], split.labels[rows], coarse)
    identity = dataclasses.replace(Fingerprint.of(digests, builtin=False), sentence=sentence)
    return dataclasses.replace(split, images=images, identity=identity)


def _mapped(path: Path, shape: tuple[int, ...]) -> NDArray[np.generic]:
    """Map a .npy file read-only after checking its header and its size against the expected shape and dtype."""
    if not path.is_file():
        raise DataError(f"{path} is missing; unpack CIFAR-100-C.tar again.")
    try:
        # This rejects arrays of Python objects, the only pickled ones, before reading beyond the header.
        array = np.lib.format.open_memmap(path, mode="r")
        size = path.stat().st_size
    except Exception as error:  # A header is a Python literal, and a broken header can raise any exception.
        raise DataError(f"{path} is not a valid .npy file of numbers ({error}); unpack it again.") from error
    # Published labels come as uint8 or as int64; images are uint8.
    kind, allowed = ("uint8", array.dtype == np.uint8) if len(shape) > 1 else ("integer", array.dtype.kind in "iu")
    if array.shape != shape or not allowed:
        raise DataError(f"{path} contains {array.shape} {array.dtype}; expected {shape} {kind}. Unpack it again.")
    if size != array.offset + array.nbytes:
        raise DataError(f"{path} has {size:,} bytes; its header says {array.offset + array.nbytes:,}. Unpack it again.")
    return array


# Makers: (images (n, 3, 32, 32) uint8, severity, rows (n,), seed) -> (n, 3, 32, 32) uint8.


def _gaussian_noise(images: HostImages, severity: int, rows: Numbers, seed: int) -> HostImages:
    sigma = (0.04, 0.06, 0.08, 0.09, 0.10)[severity - 1]
    noise = (255 * sigma * _normal_quantiles()).astype(np.float32)[_drawn("gaussian_noise", severity, rows, seed)]
    return _levels(noise + images)


def _shot_noise(images: HostImages, severity: int, rows: Numbers, seed: int) -> HostImages:
    photons = (500, 250, 100, 75, 50)[severity - 1]
    # One flat index is twice as fast as a pair.
    place = (images.astype(np.int64) << 16) | _drawn("shot_noise", severity, rows, seed)
    counted: HostImages = _photon_quantiles(photons).reshape(-1)[place]
    return counted


def _gaussian_blur(images: HostImages, severity: int, rows: Numbers, seed: int) -> HostImages:
    sigma = (0.4, 0.6, 0.7, 0.8, 1.0)[severity - 1]
    radius = int(4 * sigma + 0.5)
    weights = _bell(sigma, radius)
    across = _correlate(images.astype(np.float32), weights[None, :], "edge")
    return _levels(_correlate(across, weights[:, None], "edge"))


def _defocus_blur(images: HostImages, severity: int, rows: Numbers, seed: int) -> HostImages:
    radius, softness = ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1.0, 0.2), (1.5, 0.1))[severity - 1]
    return _levels(_correlate(images.astype(np.float32), _disk(radius, softness), "reflect"))


def _brightness(images: HostImages, severity: int, rows: Numbers, seed: int) -> HostImages:
    more = np.float32(255 * (0.05, 0.1, 0.15, 0.2, 0.3)[severity - 1])
    # Hue and saturation are kept and value V, the largest channel, becomes V': all channels are multiplied by V' / V.
    value = images.max(axis=1, keepdims=True).astype(np.float32)
    raised = np.minimum(value + more, np.float32(255))
    scaled = images * (raised / np.maximum(value, 1))
    return _levels(np.where(value == 0, raised, scaled))  # Black has no hue and becomes gray.


def _contrast(images: HostImages, severity: int, rows: Numbers, seed: int) -> HostImages:
    kept = np.float32((0.75, 0.5, 0.4, 0.3, 0.15)[severity - 1])
    # A sum of integers is the same in any order.
    mean = (images.sum(axis=(2, 3), keepdims=True, dtype=np.int64) / (_SIDE * _SIDE)).astype(np.float32)
    return _levels((images - mean) * kept + mean)


def _pixelate(images: HostImages, severity: int, rows: Numbers, seed: int) -> HostImages:
    side = int(_SIDE * (0.95, 0.9, 0.85, 0.75, 0.65)[severity - 1])
    box = PIL.Image.Resampling.BOX

    def change(image: PIL.Image.Image) -> PIL.Image.Image:
        return image.resize((side, side), box).resize((_SIDE, _SIDE), box)

    return _one_by_one(images, change)


def _jpeg_compression(images: HostImages, severity: int, rows: Numbers, seed: int) -> HostImages:
    quality = (80, 65, 58, 50, 40)[severity - 1]

    def change(image: PIL.Image.Image) -> PIL.Image.Image:
        file = io.BytesIO()
        image.save(file, "JPEG", quality=quality)
        return PIL.Image.open(file, formats=("JPEG",))

    return _one_by_one(images, change)


_MAKERS: Final[dict[str, Callable[[HostImages, int, Numbers, int], HostImages]]] = {
    "gaussian_noise": _gaussian_noise,
    "shot_noise": _shot_noise,
    "defocus_blur": _defocus_blur,
    "brightness": _brightness,
    "contrast": _contrast,
    "pixelate": _pixelate,
    "jpeg_compression": _jpeg_compression,
    "gaussian_blur": _gaussian_blur,
}

MADE: Final = tuple(_MAKERS)
"""The corruptions that `corrupt` generates."""


def _drawn(name: str, severity: int, rows: Numbers, seed: int) -> NDArray[np.uint16]:
    """Draw 16 bits for every value of every image. Returns (n, 3, 32, 32) uint16."""
    words = draws.bits(seed, f"corruption/{name}", severity, rows, 3 * _SIDE * _SIDE // 2)
    return np.ascontiguousarray(words).view(np.uint16).reshape(-1, 3, _SIDE, _SIDE)


@functools.lru_cache(maxsize=1)
def _normal_quantiles() -> NDArray[np.float64]:
    """Return 65,536 equally likely values of a standard normal number, up to 4.3 on either side. Returns (65536,) float64."""
    normal = NormalDist()
    return np.array([normal.inv_cdf((number + 0.5) / _LEVELS) for number in range(_LEVELS)])


@functools.lru_cache(maxsize=1)
def _photon_quantiles(photons: int) -> NDArray[np.uint8]:
    """Return 65,536 equally likely outcomes for each level v: a Poisson number of mean v/255 * photons, as a level.

    Returns (256, 65536) uint8.
    """
    counts = np.arange(photons + int(8 * math.sqrt(photons)) + 20)
    log_factorial = np.array([math.lgamma(count + 1) for count in counts.tolist()])
    levels = np.minimum(counts / photons * 255 + 1e-9, 255).astype(np.uint8)
    table = np.zeros((256, _LEVELS), np.uint8)  # Without light there are no photons.
    for value in range(1, 256):
        mean = value / 255 * photons
        cumulated = np.cumsum(np.exp(counts * math.log(mean) - mean - log_factorial))
        ends = np.clip(np.ceil(cumulated * _LEVELS - 0.5), 0, _LEVELS).astype(np.int64)
        ends[-1] = _LEVELS
        table[value] = np.repeat(levels, np.diff(ends, prepend=0))
    return table


def _bell(sigma: float, radius: int) -> NDArray[np.float64]:
    """Return Gaussian weights at integer distances, which sum to 1. Returns (2 * radius + 1,)."""
    weights: NDArray[np.float64] = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    weights /= weights.sum()
    return weights


def _disk(radius: float, softness: float) -> NDArray[np.float64]:
    """Return the weights of a disk of pixels, blurred by a 3x3 Gaussian of sigma `softness`; they sum to 1. Returns (5, 5)."""
    y, x = np.mgrid[-2:3, -2:3]
    disk = np.pad((x**2 + y**2 <= radius**2).astype(np.float64), 1)
    bell = _bell(softness, 1)
    soft = sum(
        bell[down] * bell[right] * disk[down : down + 5, right : right + 5] for down in range(3) for right in range(3)
    )
    return np.asarray(soft / disk.sum())


def _correlate(images: Floats, weights: NDArray[np.float64], border: str) -> Floats:
    """Filter with a kernel. weights: (2a + 1, 2b + 1). border: NumPy's padding mode."""
    down, right = weights.shape[0] // 2, weights.shape[1] // 2
    padded = np.pad(images, ((0, 0), (0, 0), (down, down), (right, right)), mode=border)  # type: ignore[call-overload]
    total = np.zeros_like(images)
    for (row, column), weight in np.ndenumerate(weights):
        if weight > 1e-8:
            total += np.float32(weight) * padded[:, :, row : row + _SIDE, column : column + _SIDE]
    return total


def _levels(values: Floats) -> HostImages:
    """Clip to 0..255 and truncate, as the published files do; 0.001 protects integers from float32 rounding."""
    levels: HostImages = np.clip(values + np.float32(0.001), 0, 255).astype(np.uint8)
    return levels


def _one_by_one(images: HostImages, change: Callable[[PIL.Image.Image], PIL.Image.Image]) -> HostImages:
    rows = np.ascontiguousarray(images.transpose(0, 2, 3, 1))
    changed: HostImages = np.empty_like(rows)
    for number, row in enumerate(rows):
        changed[number] = np.asarray(change(PIL.Image.fromarray(row)))
    return changed.transpose(0, 3, 1, 2)
