"""Reads the official cifar-100-binary files, from their folder or straight from the tar.gz."""

from __future__ import annotations

import gzip
import io
import re
import tarfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, final

import numpy as np

from cifar100_tk.data.digests import content_digest, reading
from cifar100_tk.data.rows import SPLITS, Names, RawBatch, Source, few_enough
from cifar100_tk.errors import DataError

_RECORD: Final = 2 + 3 * 32 * 32
"""Bytes per image: coarse label, fine label, then 32x32 red, green and blue."""
_BLOCK: Final = 1000
_CHUNK: Final = 1 << 20
_MAX_READ: Final = 1 << 24
"""The largest single read, in bytes: more than a block of records. A damaged tar header can ask for any number."""


@final
class BinaryFile(Source):
    """train.bin or test.bin in a folder."""

    def __init__(self, path: Path) -> None:
        self.where = str(path)
        self._path = path

    def key(self) -> str:
        self.num_rows()  # A file of an absurd size is not read to the end.
        return f"binary-{content_digest(self._path)[:40]}"

    def num_rows(self) -> int:
        return _records(self._path.stat().st_size, self.where)

    def names(self) -> Names:
        return Names()

    def blocks(self) -> Iterator[RawBatch]:
        with reading(self._path), open(self._path, "rb") as file:
            yield from _blocks(file.read, self.num_rows(), self.where)


@final
class TarMember(Source):
    """One split in the official tar.gz, which is read as a stream and never unpacked."""

    def __init__(self, archive: Path, split: str) -> None:
        self.where = f"{archive} ({split}.bin)"
        self._archive = archive
        self._split = split

    def key(self) -> str:
        return f"tar-{self._split}-{content_digest(self._archive)[:40]}"

    def num_rows(self) -> int:
        return _records(tar_members(self._archive)[self._split], self.where)

    def names(self) -> Names:
        return Names()

    def blocks(self) -> Iterator[RawBatch]:
        with _opened(self._archive) as archive:
            for member in archive:
                if _split(member) == self._split:
                    file = archive.extractfile(member)
                    assert file is not None  # _split takes plain files only.
                    yield from _blocks(file.read, _records(member.size, self.where), self.where)
                    break
            # The checksum is at the end of a tar.gz and is verified once everything has been read.
            assert archive.fileobj is not None  # it is open.
            while archive.fileobj.read(_CHUNK):
                pass


def tar_members(path: Path) -> dict[str, int]:
    """List the splits of the official archive and their sizes in bytes."""
    found: dict[str, int] = {}
    with _opened(path) as archive:
        for member in archive:
            if re.search(r"(^|/)cifar-100-python/", member.name):
                raise DataError(
                    f"{path} contains pickles, and loading a pickle can run any code. "
                    "Use https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz, which contains the same images."
                )
            if split := _split(member):
                found[split] = member.size
                if len(found) == len(SPLITS):  # the rest of the stream need not be unpacked.
                    break
    if not found:
        raise DataError(
            f"{path} contains neither train.bin nor test.bin; expected the official cifar-100-binary.tar.gz."
        )
    return found


def _split(member: tarfile.TarInfo) -> str | None:
    """Return the split that a tar member holds, if any: a regular file, in any folder."""
    stem, _, suffix = member.name.rsplit("/", 1)[-1].partition(".")
    return stem if member.isreg() and suffix == "bin" and stem in SPLITS else None


@contextmanager
def _opened(path: Path) -> Iterator[tarfile.TarFile]:
    """Open a tar.gz or plain tar. Raises DataError with one sentence for any failure, including those while it is read."""
    try:
        with reading(path), open(path, "rb") as packed:
            gzipped = packed.read(2) == b"\x1f\x8b"  # no other compression: each decoder raises its own errors.
            packed.seek(0)
            plain = gzip.GzipFile(fileobj=packed) if gzipped else packed
            with tarfile.open(fileobj=_InPieces(plain), mode="r:") as archive:
                yield archive
    except (tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise DataError(f"{path} is not a complete tar.gz ({error}); download it again.") from error


@final
class _InPieces(io.BufferedIOBase):
    """A file that is only read in small chunks."""

    def __init__(self, file: io.BufferedIOBase) -> None:
        self._file = file

    def read(self, size: int | None = -1) -> bytes:
        if size is None or not 0 <= size <= _MAX_READ:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return self._file.read(size)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if not 0 <= offset < 2**63:
            raise tarfile.ReadError(f"a member that ends at byte {offset}")
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()


def _records(size: int, where: str) -> int:
    if size % _RECORD:
        raise DataError(
            f"{where} has {size:,} bytes; expected a multiple of {_RECORD}, one record per image. Copy the file again."
        )
    return few_enough(size // _RECORD, where)


def _blocks(read: Callable[[int], bytes], num_rows: int, where: str) -> Iterator[RawBatch]:
    for first in range(0, num_rows, _BLOCK):
        content = read(min(_BLOCK, num_rows - first) * _RECORD)
        records = np.frombuffer(content[: len(content) // _RECORD * _RECORD], np.uint8).reshape(-1, _RECORD)
        yield RawBatch(
            file=where,
            first=first,
            images=records[:, 2:].reshape(-1, 3, 32, 32),
            fine=records[:, 1].astype(np.int64),
            coarse=records[:, 0].astype(np.int64),
        )
