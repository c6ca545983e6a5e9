"""Atomic files and folders: each is either complete or absent, whenever the process dies."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from cifar100_tk.errors import CifarError, DiskError, LockedError
from cifar100_tk.storage import failpoint

TEMPORARY = ".tmp-"
"""Prefix of the names of unfinished files and folders; the next process to open the folder may remove them."""
NEXT = ".next-"
"""Prefix of the name of a complete folder that is about to replace another."""


class Written(NamedTuple):
    """The digest and size of a file that was just written."""

    sha256: str
    size: int
    """Bytes."""


def write_folder(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write a new folder of files in the given order, which appears atomically once all of it is on the disk.

    Names may contain subfolders. Every file is read back and compared before the folder gets its name.
    Raises DiskError, leaving nothing behind, if space or permission is missing.
    """
    with writing(folder, sum(map(len, files.values()))), new_folder(folder) as temporary:
        for name, content in files.items():
            (temporary / name).parent.mkdir(parents=True, exist_ok=True)
            write_synced(temporary / name, [content])


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder to fill with synced files; it is renamed after the block, or removed after an error.

    The leftovers of a killed writer are removed first. Raises LockedError if another process is filling it.
    """
    temporary = folder.with_name(f"{TEMPORARY}{folder.name}")
    temporary.mkdir(parents=True, exist_ok=True)
    with _alone_in(temporary):
        try:
            for path in temporary.iterdir():
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
            yield temporary
            for name, _, _ in os.walk(temporary, topdown=False):
                _sync_folder(Path(name))
            failpoint.reach(f"{folder.name}.complete")
            temporary.rename(folder)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        failpoint.reach(f"{folder.name}.renamed")
        _sync_folder(folder.parent)
        failpoint.reach(f"{folder.name}.committed")


@contextmanager
def replaced_folder(folder: Path) -> Iterator[Path]:
    """Do the same as `new_folder`, and replace an older folder. A kill in between leaves it to `finish_replacing`."""
    following = folder.with_name(f"{NEXT}{folder.name}")
    if following.is_dir():
        remove_folder(following)
    with new_folder(following) as temporary:
        yield temporary
    finish_replacing(folder)


def finish_replacing(folder: Path) -> None:
    """Put the new folder of a `replaced_folder` that was killed in its place, if there is one. Raises DiskError."""
    following = folder.with_name(f"{NEXT}{folder.name}")
    if not following.is_dir():
        return
    if folder.is_dir():
        remove_folder(folder)
    with writing(folder):
        following.rename(folder)
        failpoint.reach(f"{folder.name}.replaced")
        _sync_folder(folder.parent)


def copy_files(sources: Iterable[Path], within: Path, folder: Path) -> None:
    """Copy files from below `within` to the same places below `folder`, a folder of `new_folder`. Raises OSError."""
    for source in sources:
        copy = folder / source.relative_to(within)
        copy.parent.mkdir(parents=True, exist_ok=True)
        write_synced(copy, [source.read_bytes()])


def write_file(path: Path, content: bytes) -> None:
    """Write or replace one file atomically. Raises DiskError, leaving the old one in place."""
    temporary = path.with_name(f"{TEMPORARY}{path.name}")
    try:
        write_synced(temporary, [content])
        temporary.replace(path)
        failpoint.reach(f"{path.name}.replaced")
        _sync_folder(path.parent)
    except OSError as error:
        with suppress(OSError):  # The first error is the one that the user must read.
            temporary.unlink(missing_ok=True)
        raise disk_error(error, path, len(content)) from error


def write_synced(path: Path, parts: Iterable[bytes | memoryview]) -> Written:
    """Write a file of the given parts, one after the other, and read it back. Raises OSError.

    Other threads run meanwhile: everything slow here releases the GIL.
    """
    name, digest = path.name.removeprefix(TEMPORARY), hashlib.sha256()
    with path.open("wb", buffering=0) as file:
        failpoint.reach(f"{name}.opened")
        for part in parts:
            digest.update(part)
            left = memoryview(part)
            while left:
                left = left[file.write(left) :]
        size = file.tell()
        failpoint.reach(f"{name}.written")
        os.fsync(file.fileno())
    written = Written(digest.hexdigest(), size)
    if sha256(path) != written.sha256:
        raise OSError(errno.EIO, "the data read back differs from the data written")
    failpoint.reach(f"{name}.synced")
    return written


def append_line(path: Path, line: str) -> None:
    """Append a line to a file. Raises DiskError, leaving the file unchanged."""
    content = f"{line}\n".encode()
    size = None
    try:
        with path.open("ab", buffering=0) as file:
            size = file.tell()
            failpoint.reach(f"{path.name}.opened")
            if (written := file.write(content)) < len(content):
                file.write(content[written:])  # The rest fails with the reason.
            failpoint.reach(f"{path.name}.written")
            os.fsync(file.fileno())
            failpoint.reach(f"{path.name}.synced")
    except OSError as error:
        if size is not None:
            with suppress(OSError):
                os.truncate(path, size)
        raise disk_error(error, path, len(content)) from error


def remove_folder(folder: Path) -> None:
    """Remove a folder, renaming it first so that a half-removed one is never mistaken for a complete one."""
    doomed = folder.with_name(f"{TEMPORARY}del-{folder.name}")
    with writing(folder):
        shutil.rmtree(doomed, ignore_errors=True)
        failpoint.reach(f"{folder.name}.retiring")
        folder.rename(doomed)
        failpoint.reach(f"{folder.name}.retired")
    shutil.rmtree(doomed, ignore_errors=True)
    failpoint.reach(f"{folder.name}.removed")


def remove_unfinished(folder: Path) -> None:
    """Remove the leftovers of killed writers from a folder."""
    for path in folder.glob(f"{TEMPORARY}*"):
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def make_folder(folder: Path) -> None:
    """Create a folder and its parents. Raises DiskError if that fails."""
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)


@contextmanager
def writing(path: Path, needed: int = 0, remedy: str = "choose another folder") -> Iterator[None]:
    """Raise a failure to write inside the block as a DiskError. The other arguments are those of `disk_error`."""
    try:
        yield
    except OSError as error:
        if isinstance(error, CifarError) or error.errno is None:  # A library's error about the content has no number.
            raise
        raise disk_error(error, path, needed, remedy) from error


def disk_error(error: OSError, path: Path, needed: int = 0, remedy: str = "choose another folder") -> DiskError:
    """Return the error for a failed write. needed: bytes to be written, 0 if unknown. remedy: where to write instead."""
    existing = next((parent for parent in (path, *path.parents) if os.path.exists(parent)), Path("/"))
    free = shutil.disk_usage(existing).free
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        asked = f"{needed:,} bytes are needed and {free:,} are free" if needed else f"{free:,} bytes are free"
        remedy = f"{asked}; make room or {remedy}"
    elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        remedy = f"it is not writable; {remedy} that you own"
    return DiskError(f"cannot write {path} ({error.strerror or error}): {remedy}.")


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _alone_in(temporary: Path) -> Iterator[None]:
    """Lock a folder, never by way of a symlink, until the block or the process ends."""
    descriptor = os.open(temporary, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        if _is_taken(descriptor) or not os.path.samestat(os.fstat(descriptor), os.stat(temporary)):
            folder = temporary.with_name(temporary.name.removeprefix(TEMPORARY))
            raise LockedError(f"another process is writing {folder}; wait for it, or choose another folder.")
        yield
    finally:
        os.close(descriptor)


def _is_taken(descriptor: int) -> bool:
    """Try to lock an open folder; return whether another process holds the lock. False on file systems without locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP):
            raise
    return False


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
