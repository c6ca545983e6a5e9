"""Tells files apart by their bytes, without reading them again at every start."""

from __future__ import annotations

import hashlib
import json
import os
import time
from contextlib import suppress
from pathlib import Path

from cifar100_tk.data.store import cache_folder


def content_digest(path: Path) -> str:
    """The sha256 of a file, remembered in the cache while its path, size and times stay the same. Returns hex digits."""
    path = path.resolve()
    status = path.stat()
    # ctime too: unlike mtime, no program can set it back.
    stamp = [str(path), status.st_size, status.st_mtime_ns, status.st_ctime_ns]
    memo = cache_folder() / "digests" / f"{hashlib.sha256(str(path).encode()).hexdigest()[:40]}.json"
    with suppress(OSError, ValueError, KeyError, TypeError):
        known = json.loads(memo.read_text())
        if known["stamp"] == stamp:
            return str(known["sha256"])
    with open(path, "rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    # A file changed again within the clock's grain would keep its stamp, so a very young one is not remembered.
    if time.time_ns() - max(status.st_mtime_ns, status.st_ctime_ns) > 2_000_000_000:
        with suppress(OSError):  # an unwritable cache costs time here and nothing else.
            memo.parent.mkdir(parents=True, exist_ok=True)
            temporary = memo.with_suffix(f".{os.getpid()}")
            temporary.write_text(json.dumps({"stamp": stamp, "sha256": sha256}))
            temporary.replace(memo)
    return sha256
