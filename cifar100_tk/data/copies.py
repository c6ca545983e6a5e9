"""Writes local copies of the data for use without a network, and verifies them."""

from __future__ import annotations

import dataclasses
import json
import os
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from cifar100_tk.data.dataset import Data, Split
from cifar100_tk.data.fingerprint import PUBLISHED, PUBLISHED_COUNT, Digests, Fingerprint, image_digests
from cifar100_tk.data.published import CIFAR10, Published
from cifar100_tk.data.rows import Checker, Numbers, Source
from cifar100_tk.errors import ConfigError, DataError
from cifar100_tk.storage.atomic import new_folder, writing

_BLOCK = 1000


@final
@dataclass(frozen=True, kw_only=True)
class SplitCheck:
    """The contents of one split of a source, all of it read and checked."""

    split: str
    """`train` or `test`."""
    identity: Fingerprint
    """The identity of its images."""
    fewest: int
    """Images of the rarest class."""
    most: int
    """Images of the most common class."""
    classes: int = 100
    """Number of classes."""

    @property
    def difference(self) -> str | None:
        """The split's difference from the published split, in words; None if there is none."""
        if self.identity.sentence in (PUBLISHED[self.split], CIFAR10.sentences[self.split]):
            return None
        expected, count = PUBLISHED_COUNT[self.split], self.identity.count
        if count != expected:
            return f"{self.split} has {count:,} images, {expected:,} expected"
        each = expected // self.classes
        if (self.fewest, self.most) != (each, each):
            return (
                f"labels of {self.split} differ: its classes have {self.fewest} to {self.most} images, {each} expected"
            )
        return f"images or labels of {self.split} differ, although each class has the right number of images"

    def __str__(self) -> str:
        each = f"{self.fewest} of" if self.fewest == self.most else f"{self.fewest} to {self.most} of"
        return (
            f"{self.split}: {self.identity.count:,} images, {each} each of the {self.classes} classes; "
            f"{self.identity.sentence}\n  sha256 {self.identity.sha256}"
        )


def verify(data: Data) -> list[SplitCheck]:
    """Read and check every row of every split, bypassing the cache. Raises DataError at the first invalid row."""
    return [_examine(split, origin) for split, origin in data.origins().items()]


def prepare(data: Data, to: Path) -> list[Path]:
    """Write every split of the source as parquet in the Hub's layout, atomically. Returns the files.

    to: a folder that does not exist yet, or is empty.
    """
    to = to.expanduser().absolute()
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise ConfigError(f"--to {to} already exists and is not overwritten; give a new folder.")
    splits = [_opened(data, split) for split in data.origins()]
    needed = sum(len(split) for split in splits) * 3500
    with writing(to, needed, "give --to another folder"):
        to.parent.mkdir(parents=True, exist_ok=True)
        with new_folder(to) as temporary:
            published = data.published
            (temporary / published.folder).mkdir()
            names = [_write_parquet(split, temporary / published.folder, published) for split in splits]
            if to.exists():
                to.rmdir()  # fails unless it is empty.
    return [to / published.folder / name for name in names]


def _opened(data: Data, split: str) -> Split:
    assert split in ("train", "test")
    return dataclasses.replace(data, holdout=0).open("test" if split == "test" else "train")


def _examine(split: str, origin: Source) -> SplitCheck:
    announced = origin.num_rows()
    checker = Checker(origin.names())
    digests: Digests = []
    for rows in origin.blocks():
        checker.block(rows)
        digests.extend(image_digests(rows.images, rows.fine, rows.coarse))
    checker.whole(origin.where)
    identity = Fingerprint.of(digests, builtin=origin.builtin, unknown=origin.unknown())
    if identity.count != announced:
        raise DataError(
            f"{origin.where} declares {announced} rows but contains {identity.count}. Fetch the data again."
        )
    fewest, most = int(checker.counts.min()), int(checker.counts.max())
    return SplitCheck(split=split, identity=identity, fewest=fewest, most=most, classes=len(checker.counts))


def _write_parquet(split: Split, folder: Path, published: Published) -> str:
    """Write a split in the Hub's format, a thousand rows at a time. Returns the file's name."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    labels = [pa.int64()] * (len(published.columns) - 1)
    schema = pa.schema(zip(published.columns, (image, *labels), strict=True), metadata=_metadata(split, published))
    coarse_of_fine = np.array(split.coarse_of_fine, np.int64)
    name = f"{split.name}-00000-of-00001.parquet"
    with open(folder / name, "xb") as file:
        with pq.ParquetWriter(file, schema) as writer:
            for first in range(0, len(split), _BLOCK):
                index = split.index[first : first + _BLOCK]
                cells = [{"bytes": _png(raw_image), "path": None} for raw_image in split.images[index]]
                fine: Numbers = split.labels[index]
                coarse = [pa.array(coarse_of_fine[fine])] if len(coarse_of_fine) else []
                columns = [pa.array(cells, image), pa.array(fine), *coarse]
                writer.write_batch(pa.record_batch(columns, schema=schema), row_group_size=_BLOCK)
        file.flush()
        os.fsync(file.fileno())
    return name


def _metadata(split: Split, published: Published) -> dict[str, str]:
    """Return the features, as `datasets` stores them in a parquet file."""
    image, *labels = published.columns
    features: dict[str, Any] = {image: {"_type": "Image"}}
    # Classes without super-classes have one column.
    for column, names in zip(labels, (split.class_names, split.coarse_names), strict=False):
        features[column] = {"names": names, "_type": "ClassLabel"}
    return {"huggingface": json.dumps({"info": {"features": features}})}


def _png(image: NDArray[np.uint8]) -> bytes:
    """Encode (3, 32, 32) uint8 losslessly."""
    from PIL import Image

    buffer = BytesIO()
    Image.fromarray(image.transpose(1, 2, 0)).save(buffer, "PNG")
    return buffer.getvalue()
