"""Files and folders that are either whole or not there, whatever moment the process dies at."""

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

from cifar100_tk.errors import DiskError, LockedError
from cifar100_tk.storage import failpoint

TEMPORARY = ".tmp-"
"""What the names of unfinished files and folders begin with; whoever opens the folder next may remove them."""


class Written(NamedTuple):
    """What a file holds that was just written."""

    sha256: str
    size: int
    """Bytes."""


def write_folder(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write a new folder of files in the given order, so that it appears at once and only when all of it is on the disk.

    Names may lead into folders of the new one. Every file is read back and compared before the folder gets its name.
    Raises DiskError, leaving nothing behind, when there is no space or no permission.
    """
    try:
        with new_folder(folder) as temporary:
            for name, content in files.items():
                (temporary / name).parent.mkdir(parents=True, exist_ok=True)
                write_synced(temporary / name, [content])
    except OSError as error:
        raise disk_error(error, folder, sum(map(len, files.values()))) from error


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Give a temporary folder to fill with synced files, which gets its name after the block, or is removed after an error.

    What a killed writer left of it is removed first. Raises LockedError if another process is filling it just now.
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


def write_file(path: Path, content: bytes) -> None:
    """Write or replace one file at once. Raises DiskError, leaving the old one in place."""
    temporary = path.with_name(f"{TEMPORARY}{path.name}")
    try:
        write_synced(temporary, [content])
        temporary.replace(path)
        failpoint.reach(f"{path.name}.replaced")
        _sync_folder(path.parent)
    except OSError as error:
        with suppress(OSError):  # What went wrong first is what the user must read.
            temporary.unlink(missing_ok=True)
        raise disk_error(error, path, len(content)) from error


def write_synced(path: Path, parts: Iterable[bytes | memoryview]) -> Written:
    """Write a file of the given parts, one after the other, and read it back. Raises OSError.

    Other threads run meanwhile: whatever takes long here does so without holding the interpreter.
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
        raise OSError(errno.EIO, "what was read back is not what was written")
    failpoint.reach(f"{name}.synced")
    return written


def append_line(path: Path, line: str) -> None:
    """Add a line to a file. Raises DiskError, leaving the file as it was."""
    content = f"{line}\n".encode()
    size = None
    try:
        with path.open("ab", buffering=0) as file:
            size = file.tell()
            failpoint.reach(f"{path.name}.opened")
            if (written := file.write(content)) < len(content):
                file.write(content[written:])  # What is left fails with the reason.
            failpoint.reach(f"{path.name}.written")
            os.fsync(file.fileno())
            failpoint.reach(f"{path.name}.synced")
    except OSError as error:
        if size is not None:
            with suppress(OSError):
                os.truncate(path, size)
        raise disk_error(error, path, len(content)) from error


def remove_folder(folder: Path) -> None:
    """Remove a folder so that no half of it is ever taken for the whole: rename it first."""
    doomed = folder.with_name(f"{TEMPORARY}del-{folder.name}")
    try:
        shutil.rmtree(doomed, ignore_errors=True)
        failpoint.reach(f"{folder.name}.retiring")
        folder.rename(doomed)
        failpoint.reach(f"{folder.name}.retired")
    except OSError as error:
        raise disk_error(error, folder, 0) from error
    shutil.rmtree(doomed, ignore_errors=True)
    failpoint.reach(f"{folder.name}.removed")


def remove_unfinished(folder: Path) -> None:
    """Remove what killed writers left in a folder."""
    for path in folder.glob(f"{TEMPORARY}*"):
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def make_folder(folder: Path) -> None:
    """Make a folder and its parents. Raises DiskError when that is not allowed."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise disk_error(error, folder, 0) from error


def disk_error(error: OSError, path: Path, needed: int) -> DiskError:
    """Return the sentence for a failed write. needed: bytes that had to be written."""
    existing = next((parent for parent in (path, *path.parents) if os.path.exists(parent)), Path("/"))
    free = shutil.disk_usage(existing).free
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        asked = f"{needed:,} bytes are needed and {free:,} are free" if needed else f"{free:,} bytes are free"
        remedy = f"{asked}; make room or choose another folder."
    elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        remedy = "it may not be written to; choose a folder that you own."
    else:
        remedy = "choose another folder."
    return DiskError(f"cannot write {path} ({error.strerror or error}): {remedy}")


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _alone_in(temporary: Path) -> Iterator[None]:
    """Hold a folder, never through a link, until the block or the process ends."""
    descriptor = os.open(temporary, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        if _is_taken(descriptor) or not os.path.samestat(os.fstat(descriptor), os.stat(temporary)):
            folder = temporary.with_name(temporary.name.removeprefix(TEMPORARY))
            raise LockedError(f"another process is writing {folder}; wait for it, or choose another folder.")
        yield
    finally:
        os.close(descriptor)


def _is_taken(descriptor: int) -> bool:
    """Lock what is open, and say whether another process has. Where the file system knows no locks nobody has."""
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
