"""Says which images a split holds: a digest, compared with those of the published data set, and one of their order."""

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
"""The sentence of each split's identity where it is the published one."""
PUBLISHED_COUNT: Final = {"train": 50_000, "test": 10_000}
"""Images of each published split."""

Digests = list[bytes]
"""One sha256, 32 bytes, an image."""


@final
@dataclass(frozen=True, kw_only=True)
class Fingerprint:
    """Which images and labels a split of a source holds."""

    sha256: str
    """64 hexadecimal digits: the sha256 of the sorted digests of its images, whatever the order of its rows."""
    rows_sha256: str
    """The same of the digests in the order of the rows: a run draws and batches by row number, so it goes on with these only."""
    count: int
    """How many images it holds."""
    sentence: str
    """What that means, for people."""

    @classmethod
    def of(cls, digests: Digests, *, builtin: bool) -> Fingerprint:
        """Work it out from the images' digests, row by row. builtin: whether this package drew the images."""
        sha256, rows_sha256 = (hashlib.sha256(b"".join(each)).hexdigest() for each in (sorted(digests), digests))
        other = "shapes100, built in" if builtin else "not the published CIFAR-100 images"
        sentence = _PUBLISHED.get(sha256, other)
        return cls(sha256=sha256, rows_sha256=rows_sha256, count=len(digests), sentence=sentence)


def image_digests(images: HostImages, fine: Numbers, coarse: Numbers) -> Digests:
    """Digest each image: sha256(3,072 bytes of HWC RGB + byte(fine) + byte(coarse)).

    images: (n, 3, 32, 32) uint8. fine, coarse: (n,) in 0..255. Returns n digests.
    """
    n = len(images)
    records = np.empty((n, 3074), np.uint8)
    records[:, :3072] = images.transpose(0, 2, 3, 1).reshape(n, 3072)
    records[:, 3072] = fine
    records[:, 3073] = coarse
    return [hashlib.sha256(record.data).digest() for record in records]
