"""Rows of images on their way into the store: their sources, and the checks that every row must pass."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, final

import numpy as np
from numpy.typing import NDArray

from cifar100_tk.data.labels import COARSE_NAMES, COARSE_OF_FINE, FINE_NAMES
from cifar100_tk.errors import DataError

NUM_FINE: Final = 100
MAX_ROWS: Final = 1_000_000
"""The most rows of a split: twenty times the published train. A larger count is damage, or an attempt to fill the disk."""
SPLITS: Final = ("train", "test")
"""The splits that a source may contain; `holdout` is taken out of train."""

HostImages = NDArray[np.uint8]
"""(N, 3, 32, 32) uint8, RGB."""

Numbers = NDArray[np.int64]


@final
@dataclass(frozen=True, kw_only=True)
class Names:
    """The class names behind the labels."""

    fine: tuple[str, ...] = FINE_NAMES
    """The class names."""
    coarse: tuple[str, ...] = COARSE_NAMES
    """The super-class names; () where there are none."""


@final
@dataclass(frozen=True, kw_only=True)
class RawBatch:
    """Some consecutive rows of one file."""

    file: str
    """The file they were read from, for messages."""
    first: int
    """The number, in that file, of the first of them."""
    images: HostImages
    """(n, 3, 32, 32) uint8."""
    fine: Numbers
    """(n,) int64, the classes as read: not yet known to be in range."""
    coarse: Numbers | None
    """(n,) int64, the super-classes as read: not yet known to be in range. None where there are none."""


def few_enough(num_rows: int, where: str) -> int:
    """Return the number of rows that a source declares. Raises DataError if it exceeds the limit."""
    if num_rows > MAX_ROWS:
        raise DataError(f"{where} declares {num_rows:,} rows; expected at most {MAX_ROWS:,}. Fetch the data again.")
    return num_rows


class Source(ABC):
    """The rows of one split as some file, download or generator gives them."""

    where: str
    """The file or folder, for messages."""
    builtin: bool = False
    """True for images that this package generates."""

    @abstractmethod
    def key(self) -> str:
        """A name for the content, usable as a folder name: equal keys mean equal rows."""

    @abstractmethod
    def num_rows(self) -> int:
        """The number of rows that `blocks` yields."""

    @abstractmethod
    def names(self) -> Names:
        """The class names behind the labels."""

    def unknown(self) -> str:
        """Describe the images in case their digest is not that of published images."""
        return "not the published CIFAR-100 images"

    @abstractmethod
    def blocks(self) -> Iterator[RawBatch]:
        """Yield all rows in order, hundreds or thousands at a time."""


@final
class Checker:
    """Checks every block of one split, and finally the split as a whole.

    names: the class names. With the published names, classes must also belong to the published super-classes.
    """

    def __init__(self, names: Names) -> None:
        self._names = names
        self.counts = np.zeros(len(names.fine), np.int64)
        published = names == Names()
        known = COARSE_OF_FINE if published else [-1] * len(names.fine) if names.coarse else ()
        self.coarse_of_fine = np.array(known, np.int64)
        """(classes,) the super-class of each class; (0,) where there are none."""

    def block(self, rows: RawBatch) -> None:
        """Check the label ranges of a block, and that each class has one super-class."""
        self._range(rows, "label" if rows.coarse is None else "fine_label", rows.fine, len(self.counts))
        self.counts += np.bincount(rows.fine, minlength=len(self.counts))
        if rows.coarse is not None:
            self._superclasses(rows, rows.coarse)

    def _superclasses(self, rows: RawBatch, coarse: Numbers) -> None:
        self._range(rows, "coarse_label", coarse, len(self._names.coarse))
        fine, first = np.unique(rows.fine, return_index=True)
        unseen = self.coarse_of_fine[fine] < 0
        self.coarse_of_fine[fine[unseen]] = coarse[first[unseen]]
        wrong = np.flatnonzero(self.coarse_of_fine[rows.fine] != coarse)
        if len(wrong):
            row, fine_label = int(wrong[0]), int(rows.fine[wrong[0]])
            expected = int(self.coarse_of_fine[fine_label])
            raise DataError(
                f"{rows.file}, row {rows.first + row}: coarse_label={int(coarse[row])} does not match "
                f"fine_label={fine_label} ({self._names.fine[fine_label]}); expected coarse_label={expected} "
                f"({self._names.coarse[expected]}). Fetch the data again."
            )

    def whole(self, where: str) -> None:
        """Check, after the last block, that every class is present."""
        missing = np.flatnonzero(self.counts == 0)
        if len(missing):
            some = ", ".join(f"{number} ({self._names.fine[number]})" for number in missing[:3].tolist())
            raise DataError(
                f"{where}: {len(missing)} of {len(self.counts)} classes have no images, such as {some}; expected at least "
                f"one image of every class among the {int(self.counts.sum())} rows. Fetch or cut the data again."
            )

    def _range(self, rows: RawBatch, column: str, labels: Numbers, count: int) -> None:
        wrong = np.flatnonzero((labels < 0) | (labels >= count))
        if len(wrong):
            row = int(wrong[0])
            raise DataError(
                f"{rows.file}, row {rows.first + row}: {column}={int(labels[row])} is out of range; "
                f"expected 0 to {count - 1}. Fetch the data again."
            )
