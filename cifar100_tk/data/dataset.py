"""The data section of a recipe, and the splits that training reads."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final, Literal, final

import numpy as np

from cifar100_tk import draws
from cifar100_tk.data.fingerprint import Fingerprint
from cifar100_tk.data.published import CIFAR10, CIFAR100, Published
from cifar100_tk.data.rows import MAX_ROWS, SPLITS, HostImages, Numbers, Source
from cifar100_tk.data.store import DecodedSplit, open_store
from cifar100_tk.errors import ConfigError, DataError
from cifar100_tk.ranges import SEED, Within, check_ranges
from cifar100_tk.storage.json_files import Json

SplitName = Literal["train", "holdout", "test"]
_PURPOSE: Final = "holdout"


@final
@dataclass(frozen=True, kw_only=True)
class Split:
    """Some images and their labels. Processes on one machine share the images' memory, even after pickling."""

    name: SplitName
    """The split's name: train, holdout or test."""
    images: HostImages
    """(N, 3, 32, 32) uint8, RGB, mapped read-only: the whole store, which may be larger than the split."""
    labels: Numbers
    """(N,) int64: the class of every image of the store."""
    index: Numbers
    """(n,) int64, ascending: the rows of the store that belong to the split."""
    class_names: tuple[str, ...]
    """The names of the classes."""
    coarse_names: tuple[str, ...]
    """The names of the super-classes; () where there are none."""
    coarse_of_fine: tuple[int, ...]
    """For each class its super-class; () where there are none."""
    identity: Fingerprint
    """The identity of the images of the whole store."""

    def __repr__(self) -> str:
        return f"Split({self.name}: {len(self):,} of {len(self.labels):,} images, {self.identity.sentence})"

    def __len__(self) -> int:
        return len(self.index)

    def __getstate__(self) -> dict[str, Any]:
        # A memory map pickles as a copy of all its bytes; DataLoader workers map the file instead.
        state = dict(vars(self))
        if isinstance(self.images, np.memmap) and self.images.filename is not None:
            state["images"] = str(self.images.filename)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        if isinstance(state["images"], str):
            state["images"] = np.lib.format.open_memmap(state["images"], mode="r")
        vars(self).update(state)


def eval_split(holdout: object) -> SplitName:
    """Return the split that training measures: holdout where images are set aside, else test."""
    return "holdout" if holdout else "test"


@dataclass(frozen=True, kw_only=True)
class Data(ABC):
    """A data set of 32x32 images: its source, and the training images that are held out."""

    published: ClassVar[Published]
    """The data set as it is published."""

    source: str
    holdout: int
    holdout_seed: int

    @staticmethod
    def of_recipe(recipe: Json, where: Path, remedy: str) -> Data:
        """Return the data section of a recipe read from the file `where`.

        remedy: the end of the error message if there is none. Raises DataError.
        """
        try:
            kinds = {kind.__name__: kind for kind in (Cifar100, Cifar10)}
            data = {name: tuple(value) if isinstance(value, list) else value for name, value in recipe["data"].items()}
            kind = kinds[str(data["type"])]
            named: dict[str, Any] = {field.name: data[field.name] for field in fields(kind)}
            for field in fields(kind):
                if _kind(named[field.name]) != _kind(field.default):
                    raise TypeError(f"{field.name}={named[field.name]!r}")
            return kind(**named)
        except (AttributeError, KeyError, TypeError, ConfigError) as error:
            reason = str(error).removesuffix(".")
            raise DataError(f"{where} does not say which data the run used ({reason}); {remedy}") from error

    @abstractmethod
    def origins(self) -> dict[str, Source]:
        """Find the splits of the source, at least one of train and test, without reading an image."""

    def open(self, split: SplitName) -> Split:
        """Open a split, decoding it into the cache the first time.

        Raises ConfigError for a wrong `holdout` or split, DataError for bad or missing data, DiskError for the cache.
        """
        self._check(split)
        stored = open_store(self._origin("test" if split == "test" else "train"))
        index = np.arange(len(stored.labels))
        if split != "test" and self.holdout:
            aside = self._set_aside(stored)
            index = aside if split == "holdout" else np.setdiff1d(index, aside, assume_unique=True)
        return Split(
            name=split,
            images=stored.images,
            labels=stored.labels,
            index=index,
            class_names=stored.names.fine,
            coarse_names=stored.names.coarse,
            coarse_of_fine=stored.coarse_of_fine,
            identity=stored.identity,
        )

    def _check(self, split: str) -> None:
        if split not in ("train", "holdout", "test"):
            raise ConfigError(f"split={split!r} is not a split; use train, holdout or test.")
        classes = len(self.published.names.fine)
        if self.holdout < 0 or self.holdout % classes:
            below = max(self.holdout // classes, 0) * classes
            raise ConfigError(
                f"holdout={self.holdout} does not hold out the same number of images from {classes} classes; "
                f"use a multiple of {classes} from 0 up, such as {below} or {below + classes}."
            )
        if split == "holdout" and not self.holdout:
            raise ConfigError("holdout=0 holds out no images, so there is no holdout split; use --data.holdout 5000.")

    def _copies(self) -> dict[str, Source]:
        """Find the splits on the Hub or in a local copy."""
        # Each import takes time, and a run needs only one of them.
        if self.source == "hub":
            from cifar100_tk.data.hub import Hub

            return {split: Hub(split, self.published) for split in SPLITS}
        from cifar100_tk.data.local import local_origins

        return local_origins(self.source, self.published)

    def _origin(self, split: str) -> Source:
        origins = self.origins()
        if split not in origins:
            remedy = (
                "add it, or train with --data.holdout 5000 and evaluate on the images held out (--split holdout)"
                if split == "test"
                else "training needs it; add it"
            )
            raise DataError(
                f"{self.source} has no {split} split, only {' and '.join(origins)}; expected train and test: {remedy}."
            )
        return origins[split]

    def _set_aside(self, stored: DecodedSplit) -> Numbers:
        """Choose the same number of rows of every class. Returns (holdout,) int64, ascending."""
        classes = len(stored.names.fine)
        per_class = self.holdout // classes
        counts = np.bincount(stored.labels, minlength=classes)
        if per_class >= counts.min():
            most = (int(counts.min()) - 1) * classes
            raise ConfigError(
                f"holdout={self.holdout} takes {per_class} images of every class, but class {int(counts.argmin())} "
                f"has {int(counts.min())} in train; use at most {most}, so that train keeps at least one image per class."
            )
        shuffled = stored.by_content[draws.order(self.holdout_seed, 0, len(stored.labels), _PURPOSE)]
        by_class = shuffled[np.argsort(stored.labels[shuffled], kind="stable")]
        starts = np.cumsum(counts) - counts
        return np.sort(np.concatenate([by_class[start : start + per_class] for start in starts]))


@final
@dataclass(frozen=True, kw_only=True)
class Cifar100(Data):
    """CIFAR-100, or the built-in images: the source of the images, and the number of training images to hold out."""

    published: ClassVar[Published] = CIFAR100

    source: str = "hub"
    """`hub` (uoft-cs/cifar100 through `datasets`), `shapes100` (built-in images), or the path of a local copy:
    parquet in the Hub's layout, a `save_to_disk` folder, or the official cifar-100-binary folder or tar.gz."""
    holdout: Annotated[int, Within(low=0, high=MAX_ROWS, use="use a multiple of 100, such as 5000, or 0")] = 0
    """Training images to hold out, the same number from every class, so a multiple of 100; 0 holds out none."""
    holdout_seed: Annotated[int, SEED] = 0
    """The seed that selects them. The selection depends on the images' content, so it is the same in every copy."""
    shapes100_rows: Annotated[tuple[int, int], Within(low=0, high=MAX_ROWS, use="use 50000 10000")] = (50_000, 10_000)
    """Number of train and test images that shapes100 draws; other sources ignore it."""

    def __post_init__(self) -> None:
        check_ranges(self, "data.")

    def origins(self) -> dict[str, Source]:
        """Find the splits of the source, at least one of train and test, without reading an image."""
        if self.source != "shapes100":
            return self._copies()
        from cifar100_tk.data.shapes100 import Shapes100

        return {split: Shapes100(split, rows) for split, rows in zip(SPLITS, self.shapes100_rows, strict=True)}


@final
@dataclass(frozen=True, kw_only=True)
class Cifar10(Data):
    """CIFAR-10: the source of the images, and the number of training images to hold out. It has no super-classes."""

    published: ClassVar[Published] = CIFAR10

    source: str = "hub"
    """`hub` (uoft-cs/cifar10 through `datasets`), or the path of a local copy: parquet in the Hub's layout, a `save_to_disk`
    folder, or the official cifar-10-batches-bin folder or cifar-10-binary.tar.gz."""
    holdout: Annotated[int, Within(low=0, high=MAX_ROWS, use="use a multiple of 10, such as 5000, or 0")] = 0
    """Training images to hold out, the same number from every class, so a multiple of 10; 0 holds out none."""
    holdout_seed: Annotated[int, SEED] = 0
    """The seed that selects them. The selection depends on the images' content, so it is the same in every copy."""

    def __post_init__(self) -> None:
        check_ranges(self, "data.")

    def origins(self) -> dict[str, Source]:
        """Find the splits of the source, at least one of train and test, without reading an image."""
        return self._copies()


def data_of_classes(class_names: tuple[str, ...]) -> Data:
    """Return the data set that has these classes: Cifar10 if it is that one's, else Cifar100, which names what differs."""
    return Cifar10() if class_names == CIFAR10.names.fine else Cifar100()


def source_name(source: str) -> str:
    """Return the name of a source for publication: the last part of a local copy's path.

    >>> source_name("hub"), source_name("/home/somebody/images/")
    ('hub', 'images')
    """
    # Not resolved: a link's target must not be published either, and a name that no file can have is not an error here.
    return source if source in ("hub", "shapes100") else Path(os.path.abspath(source)).name


def _kind(value: object) -> object:
    """Return the type of a value, or the types of a tuple's elements."""
    return tuple(map(type, value)) if isinstance(value, tuple) else type(value)
