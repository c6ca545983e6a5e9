"""CIFAR-100-C (Hendrycks and Dietterich, arXiv:1903.12261): corrupted test images, from a local copy."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Final, final

import numpy as np
from numpy.typing import NDArray

from cifar100_tk.data import Fingerprint, Split
from cifar100_tk.data.fingerprint import image_digests
from cifar100_tk.data.rows import HostImages
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


@final
@dataclass(frozen=True)
class Cifar100C:
    """A local copy of CIFAR-100-C, checked against the corresponding test images."""

    folder: Path
    clean: Split
    """The test split, or a part of it."""
    names: tuple[str, ...]
    """The corruptions in the folder, in the published order."""

    def corrupted(self, name: str, severity: int) -> Split:
        """Return the split with corrupted images. Takes 31 MB for 10,000 of them; the file itself is only mapped."""
        if name not in self.names:
            raise ConfigError(f"{self.folder} has no {name}.npy; it contains {', '.join(self.names)}.")
        if severity not in SEVERITIES:
            raise ConfigError(f"severity={severity} is out of range; use 1 (weak) to 5 (strong).")
        split, count = self.clean, len(self.clean.labels)
        mapped = _mapped(self.folder / f"{name}.npy", (len(SEVERITIES) * count, 32, 32, 3))
        # Untouched pages of zeros take no memory, and rows keep their indices. A plain array in memory: a view of a mapped
        # file would be mistaken for the whole file where splits are cached or sent.
        images: HostImages = np.zeros(split.images.shape, np.uint8)
        images[split.index] = mapped[(severity - 1) * count + split.index].transpose(0, 3, 1, 2)
        fine = split.labels[split.index]
        digests = image_digests(images[split.index], fine, np.array(split.coarse_of_fine)[fine])
        sentence = f"{name} of severity {severity} from {self.folder}"
        identity = dataclasses.replace(Fingerprint.of(digests, builtin=False), sentence=sentence)
        return dataclasses.replace(split, images=images, identity=identity)


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
    if not split.coarse_names:
        raise ConfigError(
            f"CIFAR-100-C is made from the test images of CIFAR-100, but these have {len(split.class_names)} classes; leave "
            "--cifar100-c out."
        )
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder; give the folder that CIFAR-100-C.tar unpacks to.")
    names = tuple(name for name in PUBLISHED if (folder / f"{name}.npy").is_file())
    if not names:
        raise DataError(f"{folder} contains none of the 19 files of CIFAR-100-C, such as {PUBLISHED[0]}.npy.")
    count = len(split.labels)
    for name in names:
        _mapped(folder / f"{name}.npy", (len(SEVERITIES) * count, 32, 32, 3))
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
