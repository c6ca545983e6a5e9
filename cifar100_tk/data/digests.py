"""Content digests of files, cached so that files are not read again at every start."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cifar100_tk.data.store import cache_folder
from cifar100_tk.errors import DataError


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Raise a failure to read a file or folder as DataError."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        raise DataError(f"{path} cannot be read ({error.strerror}); make it readable, or give another copy.") from error


def content_digest(path: Path) -> str:
    """Return the sha256 of a file, hexadecimal, cached while its path, size and times stay the same."""
    path = path.resolve()
    status = path.stat()
    # ctime too: unlike mtime, no program can set it back.
    stamp = [str(path), status.st_size, status.st_mtime_ns, status.st_ctime_ns]
    memo = cache_folder() / "digests" / f"{hashlib.sha256(str(path).encode()).hexdigest()[:40]}.json"
    with suppress(OSError, ValueError, KeyError, TypeError):
        known = json.loads(memo.read_text())
        if known["stamp"] == stamp:
            return str(known["sha256"])
    with reading(path), open(path, "rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    # A file changed again within the clock's resolution would keep its timestamp, so a very new file is not cached.
    if time.time_ns() - max(status.st_mtime_ns, status.st_ctime_ns) > 2_000_000_000:
        with suppress(OSError):  # an unwritable cache only costs time here.
            memo.parent.mkdir(parents=True, exist_ok=True)
            temporary = memo.with_suffix(f".{os.getpid()}")
            temporary.write_text(json.dumps({"stamp": stamp, "sha256": sha256}))
            temporary.replace(memo)
    return sha256
