"""Reads the official binary files of CIFAR-100 and CIFAR-10, from their folder or straight from the tar.gz."""

from __future__ import annotations

import gzip
import hashlib
import io
import tarfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, final

import numpy as np

from cifar100_tk.data.digests import content_digest, reading
from cifar100_tk.data.published import CIFAR100, Published
from cifar100_tk.data.rows import Names, RawBatch, Source, few_enough
from cifar100_tk.errors import DataError

_BLOCK: Final = 1000
_CHUNK: Final = 1 << 20
_MAX_READ: Final = 1 << 24
"""The largest single read, in bytes: more than a block of records. A damaged tar header can ask for any number."""


@final
class BinaryFiles(Source):
    """The .bin files of one split in a folder."""

    def __init__(self, paths: list[Path], published: Published) -> None:
        self.where = str(paths[0] if len(paths) == 1 else paths[0].parent)
        self._paths, self._published = paths, published

    def key(self) -> str:
        self.num_rows()  # A file of an absurd size is not read to the end.
        return f"{_prefix(self._published)}binary-{_joined(self._digests())}"

    def num_rows(self) -> int:
        sizes = (_records(path.stat().st_size, str(path), self._published) for path in self._paths)
        return few_enough(sum(sizes), self.where)

    def names(self) -> Names:
        return self._published.names

    def unknown(self) -> str:
        return self._published.sentence(self._digests())

    def blocks(self) -> Iterator[RawBatch]:
        for path in self._paths:
            with reading(path), open(path, "rb") as file:
                num_rows = _records(path.stat().st_size, str(path), self._published)
                yield from _blocks(file.read, num_rows, str(path), self._published)

    def _digests(self) -> tuple[str, ...]:
        return tuple(content_digest(path) for path in self._paths)


@final
class TarMembers(Source):
    """One split in the official tar.gz, which is read as a stream, once for each of its files, and never unpacked."""

    def __init__(self, archive: Path, split: str, published: Published) -> None:
        self.where = f"{archive} ({', '.join(f'{name}.bin' for name in published.binary[split])})"
        self._archive, self._split, self._published = archive, split, published

    def key(self) -> str:
        return f"{_prefix(self._published)}tar-{self._split}-{content_digest(self._archive)[:40]}"

    def num_rows(self) -> int:
        sizes = tar_members(self._archive, self._published)
        records = (_records(sizes[name], self.where, self._published) for name in self._published.binary[self._split])
        return few_enough(sum(records), self.where)

    def names(self) -> Names:
        return self._published.names

    def unknown(self) -> str:
        published = self._published
        known = content_digest(self._archive) == published.archive_sha256
        return published.sentences[self._split] if known else published.unknown

    def blocks(self) -> Iterator[RawBatch]:
        for name in self._published.binary[self._split]:
            yield from self._member(name)

    def _member(self, name: str) -> Iterator[RawBatch]:
        with _opened(self._archive) as archive:
            for member in archive:
                if _file_name(member) == name:
                    file = archive.extractfile(member)
                    assert file is not None  # _file_name takes plain files only.
                    num_rows = _records(member.size, self.where, self._published)
                    yield from _blocks(file.read, num_rows, self.where, self._published)
                    break
            # The checksum is at the end of a tar.gz and is verified once everything has been read.
            assert archive.fileobj is not None  # it is open.
            while archive.fileobj.read(_CHUNK):
                pass


def tar_splits(path: Path, published: Published) -> list[str]:
    """List the splits of which the official archive holds every file."""
    found = tar_members(path, published)
    return [split for split, names in published.binary.items() if found.keys() >= set(names)]


def tar_members(path: Path, published: Published) -> dict[str, int]:
    """List the binary files of the official archive, without their extension, and their sizes in bytes."""
    wanted = {name for names in published.binary.values() for name in names}
    found: dict[str, int] = {}
    with _opened(path) as archive:
        for member in archive:
            if published.python_folder in member.name.split("/")[:-1] or member.name == published.python_folder:
                raise DataError(
                    f"{path} contains pickles, and loading a pickle can run any code. "
                    f"Use https://www.cs.toronto.edu/~kriz/{published.archive}.tar.gz, which contains the same images."
                )
            if (name := _file_name(member)) in wanted:
                found[name] = member.size
                if len(found) == len(wanted):  # the rest of the stream need not be unpacked.
                    break
    if not any(found.keys() >= set(names) for names in published.binary.values()):
        files = " nor ".join(f"{names[0]}.bin" for names in published.binary.values())
        raise DataError(f"{path} contains neither {files}; expected the official {published.archive}.tar.gz.")
    return found


def _prefix(published: Published) -> str:
    """Return the beginning of a key: the same bytes are other images in another data set."""
    return "" if published is CIFAR100 else f"{published.name.lower()}-"


def _joined(digests: tuple[str, ...]) -> str:
    whole = digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()
    return whole[:40]


def _file_name(member: tarfile.TarInfo) -> str:
    """Return the name of a binary file among the members, without its extension, in any folder; else an empty string."""
    stem, _, suffix = member.name.rsplit("/", 1)[-1].partition(".")
    return stem if member.isreg() and suffix == "bin" else ""


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


def _records(size: int, where: str, published: Published) -> int:
    if size % published.record:
        raise DataError(
            f"{where} has {size:,} bytes; expected a multiple of {published.record}, one record per image. Copy the file again."
        )
    return few_enough(size // published.record, where)


def _blocks(read: Callable[[int], bytes], num_rows: int, where: str, published: Published) -> Iterator[RawBatch]:
    """Yield the records of a file: the super-class if there are any, the class, then 32x32 red, green and blue."""
    size, num_labels = published.record, len(published.columns) - 1
    for first in range(0, num_rows, _BLOCK):
        content = read(min(_BLOCK, num_rows - first) * size)
        records = np.frombuffer(content[: len(content) // size * size], np.uint8).reshape(-1, size)
        yield RawBatch(
            file=where,
            first=first,
            images=records[:, num_labels:].reshape(-1, 3, 32, 32),
            fine=records[:, num_labels - 1].astype(np.int64),
            coarse=records[:, 0].astype(np.int64) if published.names.coarse else None,
        )
