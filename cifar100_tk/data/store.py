"""The cache of decoded images: each split is written once, atomically, and mapped by every process."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final, final

import numpy as np
from filelock import FileLock

from cifar100_tk.data.fingerprint import Digests, Fingerprint, image_digests
from cifar100_tk.data.rows import Checker, HostImages, Names, Numbers, Source
from cifar100_tk.errors import DataError, DiskError
from cifar100_tk.storage.atomic import new_folder, writing

CACHE_VARIABLE: Final = "CIFAR100_TK_CACHE"
# Increment it when the files of a store change their meaning: stores of another format are then ignored.
_FORMAT: Final = 3
_REMEDY: Final = f"set {CACHE_VARIABLE} to another folder"


@final
@dataclass(frozen=True, kw_only=True)
class DecodedSplit:
    """One split in the cache, opened."""

    images: HostImages
    """(N, 3, 32, 32) uint8, mapped read-only."""
    labels: Numbers
    """(N,) int64, the classes."""
    by_content: Numbers
    """(N,) int64: the rows in an order that depends on the images and labels alone, not on their order in the source."""
    coarse_of_fine: tuple[int, ...]
    """The super-class of each class; () where there are none."""
    names: Names
    """The class names behind the labels."""
    identity: Fingerprint
    """The identity of the images."""


def cache_folder() -> Path:
    """Return the folder of the decoded images: $CIFAR100_TK_CACHE, else the platform's cache folder."""
    if chosen := os.environ.get(CACHE_VARIABLE):
        return Path(chosen).expanduser().absolute()
    base = "~/Library/Caches" if sys.platform == "darwin" else os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser().absolute() / "cifar100_tk"


def open_store(origin: Source) -> DecodedSplit:
    """Open the store of a split, writing it first if it is missing or damaged.

    One process of this machine writes; the others wait for it. A complete store is opened without a lock, so a
    cache filled by somebody else may be read-only.
    """
    folder = _folder(origin)
    if (stored := read(folder)) is not None:
        return stored
    with writing(folder.parent, remedy=_REMEDY):
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder.with_suffix(".lock"))
        lock.acquire()
    try:
        if (stored := read(folder)) is not None:  # another process wrote it while this process waited.
            return stored
        _write(origin, folder)
    finally:
        lock.release()
    if (stored := read(folder)) is None:
        raise DiskError(
            f"{folder} was written but cannot be read back; set {CACHE_VARIABLE} to a folder on another disk."
        )
    return stored


def is_stored(origin: Source) -> bool:
    """Return whether a complete store of the split exists, without writing or downloading it."""
    return read(_folder(origin)) is not None


def _folder(origin: Source) -> Path:
    return cache_folder() / "stores" / f"v{_FORMAT}-{origin.key()}"


def read(folder: Path) -> DecodedSplit | None:
    """Open a store, or return None if it is missing or damaged. Sizes, headers and the small files are checked."""
    try:
        meta = json.loads((folder / "meta.json").read_text())
        names = Names(fine=tuple(meta["fine_names"]), coarse=tuple(meta["coarse_names"]))
        identity = Fingerprint(**meta["identity"])
        small = {}
        for name in ("labels", "by_content"):
            content = (folder / f"{name}.npy").read_bytes()
            if hashlib.sha256(content).hexdigest() != meta["sha256"][name]:
                return None
            small[name] = np.load(folder / f"{name}.npy", allow_pickle=False)
        # A truncated file is noticed by its size; NumPy maps only as much as the header says.
        if (folder / "images.npy").stat().st_size != meta["images_bytes"]:
            return None
        images = np.lib.format.open_memmap(folder / "images.npy", mode="r")
        if images.shape != (identity.count, 3, 32, 32) or images.dtype != np.uint8:
            return None
        coarse_of_fine = tuple(int(coarse) for coarse in meta["coarse_of_fine"])
    except (OSError, ValueError, KeyError, TypeError, EOFError):
        return None
    return DecodedSplit(
        images=images,
        labels=small["labels"],
        by_content=small["by_content"],
        coarse_of_fine=coarse_of_fine,
        names=names,
        identity=identity,
    )


def _write(origin: Source, folder: Path) -> None:
    """Decode a split into a temporary folder beside `folder`, then rename. The caller holds the lock."""
    num_rows = origin.num_rows()
    needed = num_rows * (3 * 32 * 32 + 16) + 100_000
    with writing(folder.parent, needed, _REMEDY):
        if shutil.disk_usage(folder.parent).free < needed:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        print(f"Decoding {num_rows:,} images of {origin.where} into {folder} (once) ...", file=sys.stderr, flush=True)
        with new_folder(folder) as temporary:
            _write_files(origin, num_rows, temporary)
            if folder.exists():  # damaged, or `read` would have opened it. Processes that map it keep their pages.
                shutil.rmtree(folder)


def _write_files(origin: Source, num_rows: int, folder: Path) -> None:
    """Write the four files of a store. `meta.json` comes last and marks it as complete."""
    names = origin.names()
    checker = Checker(names)
    digests: Digests = []
    labels: list[Numbers] = []
    done = 0
    # Written as a stream, not through a memory map, so that a full disk raises OSError instead of a bus error.
    with open(folder / "images.npy", "xb") as file:
        header = {"descr": "|u1", "fortran_order": False, "shape": (num_rows, 3, 32, 32)}
        np.lib.format.write_array_header_1_0(file, header)
        for rows in origin.blocks():
            checker.block(rows)
            file.write(np.ascontiguousarray(rows.images).data)
            digests.extend(image_digests(rows.images, rows.fine, rows.coarse))
            labels.append(rows.fine)
            done += len(rows.fine)
        _sync(file)
        images_bytes = file.tell()
    if done != num_rows:
        raise DataError(f"{origin.where} declares {num_rows} rows but contains {done}. Fetch the data again.")
    checker.whole(origin.where)
    sha256 = {
        "labels": _write_array(folder / "labels.npy", np.concatenate(labels)),
        "by_content": _write_array(folder / "by_content.npy", _order(digests)),
    }
    meta = {
        "identity": vars(Fingerprint.of(digests, builtin=origin.builtin, unknown=origin.unknown())),
        "images_bytes": images_bytes,
        "sha256": sha256,
        "coarse_of_fine": checker.coarse_of_fine.tolist(),
        "fine_names": names.fine,
        "coarse_names": names.coarse,
    }
    with open(folder / "meta.json", "x") as text:
        json.dump(meta, text, indent=1)
        _sync(text)


def _order(digests: Digests) -> Numbers:
    """Sort rows by digest. Identical images with identical labels keep their order, which does not matter."""
    return np.array(sorted(range(len(digests)), key=digests.__getitem__), np.int64)


def _write_array(path: Path, array: Numbers) -> str:
    """Write a small array. Returns the sha256 of the file."""
    with open(path, "xb") as file:
        np.save(file, array, allow_pickle=False)
        _sync(file)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _sync(file: IO[Any]) -> None:
    file.flush()
    os.fsync(file.fileno())
