"""Fingerprints of splits: a digest of the images, compared with the published data set's, and a digest of their order."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Final, final

import numpy as np

from cifar100_tk.data.rows import HostImages, Numbers

TRAINING_IMAGES: Final = "these are the CIFAR-100 training images"
TEST_IMAGES: Final = "these are the CIFAR-100 test images"
_PUBLISHED: Final = {
    "776014bcbe2fb28f9a27795522fbb0730c0cea69aa583046f5c875ba644b6f40": TRAINING_IMAGES,
    "1c374d85cfee838e6e1fccfb9b0cc5fc79cba530552dd67c928bf665f787466e": TEST_IMAGES,
}

PUBLISHED: Final = {"train": TRAINING_IMAGES, "test": TEST_IMAGES}
"""The identity's sentence for each published split."""
PUBLISHED_COUNT: Final = {"train": 50_000, "test": 10_000}
"""Images of each published split."""

Digests = list[bytes]
"""One sha256 of 32 bytes per image."""


@final
@dataclass(frozen=True, kw_only=True)
class Fingerprint:
    """The identity of a split's images and labels."""

    sha256: str
    """64 hexadecimal digits: the sha256 of the sorted digests of its images, independent of the order of the rows."""
    rows_sha256: str
    """The same over the digests in row order: a run draws and batches by row number, so it resumes with the same order only."""
    count: int
    """Number of images."""
    sentence: str
    """A description of the images for people."""

    @classmethod
    def of(cls, digests: Digests, *, builtin: bool, unknown: str = "not the published CIFAR-100 images") -> Fingerprint:
        """Compute the identity from the images' digests, row by row.

        builtin: True if this package drew the images. unknown: the sentence for images whose digest is not a published one.
        """
        sha256, rows_sha256 = (hashlib.sha256(b"".join(each)).hexdigest() for each in (sorted(digests), digests))
        other = "shapes100, built in" if builtin else unknown
        sentence = _PUBLISHED.get(sha256, other)
        return cls(sha256=sha256, rows_sha256=rows_sha256, count=len(digests), sentence=sentence)


def image_digests(images: HostImages, fine: Numbers, coarse: Numbers | None) -> Digests:
    """Digest each image: sha256(3,072 bytes of HWC RGB + byte(fine) + byte(coarse)), the last if there are super-classes.

    images: (n, 3, 32, 32) uint8. fine, coarse: (n,) in 0..255. Returns n digests.
    """
    n = len(images)
    records = np.empty((n, 3073 if coarse is None else 3074), np.uint8)
    records[:, :3072] = images.transpose(0, 2, 3, 1).reshape(n, 3072)
    records[:, 3072] = fine
    if coarse is not None:
        records[:, 3073] = coarse
    return [hashlib.sha256(record.data).digest() for record in records]
