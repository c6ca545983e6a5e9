"""Reads parquet and Arrow files with the Hub's columns, and decodes the images in them."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Final, final

import numpy as np
from numpy.typing import NDArray

from cifar100_tk.data.digests import content_digest
from cifar100_tk.data.published import Published
from cifar100_tk.data.rows import (
    MAX_ROWS,
    HostImages,
    Names,
    Numbers,
    RawBatch,
    Source,
    few_enough,
)
from cifar100_tk.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

# Lossless or common formats only: each further decoder is another attack surface for malformed files.
_FORMATS: Final = ("PNG", "JPEG", "WEBP", "BMP")
_BLOCK: Final = 1000
_MAX_CELL: Final = 1 << 16
"""The most bytes of an encoded image: twenty times its pixels'. A malicious file can have a cell of gigabytes."""
_SLACK: Final = 1 << 24
"""Bytes allowed in a file or a row group beside the images."""
_BYTES: Final = "img.bytes"


@final
class TableFiles(Source):
    """One split in parquet files, or in the Arrow files of `save_to_disk`."""

    def __init__(self, where: Path, files: list[Path], published: Published) -> None:
        self.where = str(files[0] if len(files) == 1 else where)
        self._files, self._published = files, published

    def key(self) -> str:
        for file in self._files:  # A file of an absurd size is not read to the end.
            _refuse_bloat(file.stat().st_size, MAX_ROWS, str(file))
        # A file has the columns of one data set, so its content says which.
        return f"table-{hashlib.sha256(''.join(self._digests()).encode()).hexdigest()[:40]}"

    def num_rows(self) -> int:
        return few_enough(sum(_num_rows(file) for file in self._files), self.where)

    def names(self) -> Names:
        with _whole(self._files[0]):
            return names_in(_schema(self._files[0]), str(self._files[0]), self._published)

    def unknown(self) -> str:
        return self._published.sentence(self._digests())

    def blocks(self) -> Iterator[RawBatch]:
        columns = self._published.columns
        for file in self._files:
            with _whole(file):
                yield from decoded(_batches(file, columns), str(file), columns)

    def _digests(self) -> tuple[str, ...]:
        return tuple(content_digest(file) for file in self._files)


@contextmanager
def _whole(file: Path | str) -> Iterator[None]:
    """Raise pyarrow's errors about a damaged file as DataError."""
    import pyarrow as pa

    try:
        yield
    except PermissionError as error:
        raise DataError(
            f"{file} cannot be read (Permission denied); make it readable, or give another copy."
        ) from error
    except (pa.ArrowException, OSError, UnicodeError) as error:  # UnicodeDecodeError comes from a column's name.
        reason = (str(error).splitlines() or ["unreadable"])[0].rstrip(".")
        raise DataError(f"{file} is not a valid data file ({reason}); copy it again.") from error


def _num_rows(file: Path) -> int:
    import pyarrow.parquet as pq

    with _whole(file):
        # A stream has no row count at its end; walking the memory map reads the headers only.
        parquet = file.suffix == ".parquet"
        num_rows = int(pq.read_metadata(file).num_rows) if parquet else sum(batch.num_rows for batch in _stream(file))
        _refuse_bloat(file.stat().st_size, num_rows, str(file))
    return num_rows


def _refuse_bloat(size: int, num_rows: int, where: str) -> None:
    """Raise DataError for more bytes than this many rows of images can have."""
    if size > num_rows * _MAX_CELL + _SLACK:
        raise DataError(
            f"{where} has {size:,} bytes for {num_rows:,} rows; expected at most {_MAX_CELL:,} per image. Fetch it again."
        )


def _schema(file: Path) -> pa.Schema:
    import pyarrow as pa
    import pyarrow.parquet as pq

    if file.suffix == ".parquet":
        return pq.read_schema(file)
    with pa.memory_map(str(file)) as source, pa.ipc.open_stream(source) as stream:
        return stream.schema


def _stream(file: Path) -> Iterator[pa.RecordBatch]:
    import pyarrow as pa

    with pa.memory_map(str(file)) as source, pa.ipc.open_stream(source) as stream:
        yield from stream


def _batches(file: Path, columns: tuple[str, ...]) -> Iterator[pa.RecordBatch]:
    import pyarrow.parquet as pq

    check_columns(_schema(file), str(file), columns)
    if file.suffix == ".parquet":
        metadata = pq.read_metadata(file)
        groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
        chunks = [(group.column(number), group.num_rows) for group in groups for number in range(group.num_columns)]
        for column, num_rows in chunks:
            _refuse_bloat(column.total_uncompressed_size, num_rows, f"{file}, unpacked,")
        # Dictionary encoding stores an image repeated in a million rows once; for other files it is ten times slower.
        repeats = [_BYTES] if any(column.has_dictionary_page for column, _ in chunks) else []
        with pq.ParquetFile(file, read_dictionary=repeats) as parquet:
            yield from parquet.iter_batches(batch_size=_BLOCK, columns=[_BYTES, *columns[1:]])
    else:
        yield from (batch.select(list(columns)) for batch in _stream(file))


def check_columns(schema: pa.Schema, file: str, columns: tuple[str, ...]) -> None:
    """Check that the columns exist and have the right types."""
    import pyarrow.types as kind

    if missing := [name for name in columns if name not in schema.names]:
        found = ", ".join(schema.names) or "none"
        raise DataError(f"{file} has no column {missing[0]}; its columns are {found}. Expected {', '.join(columns)}.")
    if twice := [name for name in columns if schema.names.count(name) > 1]:
        raise DataError(f"{file} has several columns named {twice[0]}; expected one. Write it again.")
    for name in columns[1:]:
        if not kind.is_integer(schema.field(name).type):
            raise DataError(f"{file}: {name} has type {schema.field(name).type}; expected integers.")
    image = schema.field("img").type
    parts = [field.type for field in image.fields if field.name == "bytes"] if kind.is_struct(image) else []
    if not (len(parts) == 1 and (kind.is_binary(parts[0]) or kind.is_large_binary(parts[0]))):
        raise DataError(f"{file}: img has type {image}; expected the Hub's struct of bytes and path.")


def names_in(schema: pa.Schema, file: str, published: Published) -> Names:
    """Return the class names that `datasets` stored with the data, or the published names if there are none."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        found = [tuple(features[column]["names"]) for column in published.columns[1:]]
    except (KeyError, TypeError, ValueError, RecursionError):
        return published.names
    expected = (published.names.fine, published.names.coarse)
    for names, count, column in zip(found, map(len, expected), published.columns[1:], strict=False):
        if not all(isinstance(name, str) for name in names) or not len(names) == len(set(names)) == count:
            raise DataError(
                f"{file} names {len(names)} classes in {column}; expected {count} different names. Is it {published.name}?"
            )
    return Names(fine=found[0], coarse=found[1] if len(found) > 1 else ())


def decoded(batches: Iterator[pa.RecordBatch], file: str, columns: tuple[str, ...]) -> Iterator[RawBatch]:
    """Decode batches of rows, of any length, in blocks."""
    first = 0
    for batch in batches:
        with _whole(file):
            batch.validate(full=True)  # a damaged offset in any row would point outside the file and crash the process.
        for start in range(0, batch.num_rows, _BLOCK):
            part = batch.slice(start, _BLOCK)
            fine, *coarse = (_labels(part, name, file, first) for name in columns[1:])
            images = _images(part, file, first)
            yield RawBatch(file=file, first=first, images=images, fine=fine, coarse=coarse[0] if coarse else None)
            first += part.num_rows


def _labels(batch: pa.RecordBatch, name: str, file: str, first: int) -> Numbers:
    column = batch.column(name)
    if column.null_count:
        row = first + column.is_null().to_pylist().index(True)
        raise DataError(f"{file}, row {row}: {name} is empty; expected a number. Fetch the data again.")
    return np.asarray(column.to_numpy(zero_copy_only=False)).astype(np.int64)


def _images(batch: pa.RecordBatch, file: str, first: int) -> HostImages:
    """Decode the image bytes of a batch, ignoring the paths. Returns (n, 3, 32, 32) uint8."""
    cells = _cells(batch, file, first)
    images = np.empty((len(cells), 32, 32, 3), np.uint8)
    for row, content in enumerate(cells, first):
        if content is None:
            raise DataError(
                f"{file}, row {row}: the image has no bytes; they are required, because paths and URLs in a data file "
                "are never opened. Embed the bytes."
            )
        images[row - first] = _image(content, file, row)
    return images.transpose(0, 3, 1, 2)


def _cells(batch: pa.RecordBatch, file: str, first: int) -> Sequence[bytes | None]:
    """Return the bytes of each image after checking their lengths."""
    import pyarrow as pa
    import pyarrow.compute as pc

    image = batch.column("img")
    column = image.flatten()[image.type.get_field_index("bytes")]  # Null where the whole cell is null.
    repeats = isinstance(column, pa.DictionaryArray)
    length = pc.max(pc.binary_length(column.dictionary if repeats else column)).as_py() or 0
    if length > _MAX_CELL:
        raise DataError(
            f"{file}, near row {first}: an image has {length:,} bytes; expected at most {_MAX_CELL:,}, and 32x32 pixels."
        )
    cells: Sequence[bytes | None] = (column.dictionary_decode() if repeats else column).to_pylist()
    return cells


def _image(content: bytes, file: str, row: int) -> NDArray[np.uint8]:
    """Decode one image after checking its size. Returns (32, 32, 3) uint8."""
    from PIL import Image

    if not content:
        raise DataError(f"{file}, row {row}: the image is empty (0 bytes). Fetch the data again.")
    try:
        image = Image.open(BytesIO(content), formats=_FORMATS)
        if image.size == (32, 32) and image.mode == "RGB":
            return np.asarray(image)
    except Exception as error:  # on broken bytes a decoder can raise anything, including SyntaxError.
        raise DataError(
            f"{file}, row {row}: the image cannot be decoded ({_reason(error)}). Fetch the data again."
        ) from error
    width, height = image.size
    raise DataError(
        f"{file}, row {row}: the image is {width}x{height} {image.mode}; expected 32x32 RGB. Convert the images first."
    )


def _reason(error: Exception) -> str:
    """Return a decoder's message without the name that Pillow gives to bytes in memory."""
    return re.sub(r"<_io\.BytesIO object at \w+>", "these bytes", str(error))
