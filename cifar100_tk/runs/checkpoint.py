"""Checkpoints: everything that a run needs to resume, written atomically, verified before use, without pickle."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from cifar100_tk.errors import DataError
from cifar100_tk.storage import atomic, tensor_file
from cifar100_tk.storage.tensor_file import Tensors

MANIFEST = "manifest.json"
PREFIX = "step-"
BAD = ".bad-"
MAX_MANIFEST_BYTES = 1_000_000


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint, read into memory."""

    path: Path
    step: int
    """Optimizer steps done when it was written, and so the number of the next step."""
    tensors: dict[str, dict[str, Tensor]]
    """By file: "model", "optimizer" and optionally "ema" and "lookahead", each a mapping of names to tensors on the host."""
    facts: dict[str, Any]
    """Further values of the writer, as JSON."""


def save(folder: Path, step: int, tensors: Mapping[str, Tensors], facts: Mapping[str, Any], *, keep: int) -> Path:
    """Commit FOLDER/step-NNNNNNNN and then remove all but the newest `keep`. Returns its path.

    It is synced to disk, read back and compared before it gets its name and any older one is removed. Raises DiskError
    and leaves the older checkpoints unchanged if it cannot be written.
    """
    path = folder / f"{PREFIX}{step:08d}"
    with atomic.writing(path, sum(map(tensor_file.size, tensors.values()))), atomic.new_folder(path) as temporary:
        files = {}
        for name, values in tensors.items():
            file = f"{name}.safetensors"
            written = atomic.write_synced(temporary / file, tensor_file.parts(values))
            files[file] = {"sha256": written.sha256, "bytes": written.size}
        manifest = {"format": 1, "step": step, "files": files, "facts": dict(facts)}
        # The manifest is written last: a folder that has it has everything it lists.
        atomic.write_synced(temporary / MANIFEST, [_sealed(manifest)])
    for old in sorted(folder.glob(f"{PREFIX}*"))[:-keep]:
        atomic.remove_folder(old)
    return path


def newest(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """Return the newest valid checkpoint, or None, and a sentence for each newer one that is not valid.

    The invalid ones are then renamed to `.bad-*`, so that the run can reach their steps again. If none is valid nothing is
    renamed, and those renamed earlier are named too: such a run must not start over as if it were new.
    """
    bad: list[tuple[Path, str]] = []
    for path in sorted(folder.glob(f"{PREFIX}*"), reverse=True):
        try:
            found = read(path)
        except DataError as error:
            bad.append((path, str(error)))
            continue
        for other, _ in bad:
            aside = other.with_name(f"{BAD}{other.name}")
            shutil.rmtree(aside, ignore_errors=True)
            other.rename(aside)
        return found, [complaint for _, complaint in bad]
    set_aside = [f"{path} is not valid." for path in sorted(folder.glob(f"{BAD}*"), reverse=True)]
    return None, [complaint for _, complaint in bad] + set_aside


def survey(folder: Path) -> dict[Path, DataError | None]:
    """Verify every checkpoint of a run, which another process may be writing, without changing anything.

    Returns them from the oldest to the newest, each with its error, or None.
    """
    while True:
        found: dict[Path, DataError | None] = {}
        for path in sorted(folder.glob(f"{PREFIX}*")):
            try:
                verify(path)
                found[path] = None
            except DataError as error:
                if not path.exists():
                    break  # It was removed meanwhile, after a newer one was written: look again.
                found[path] = error
        else:
            return found


def read(path: Path) -> Checkpoint:
    """Verify a checkpoint and read it. Raises DataError naming the first damaged file."""
    manifest = verify(path)
    tensors = {}
    for name in manifest["files"]:
        try:
            tensors[name.removesuffix(".safetensors")] = safetensors.torch.load_file(path / name)
        except (SafetensorError, OSError, ValueError, KeyError) as error:
            raise DataError(f"{path / name} cannot be read as safetensors: {error}.") from error
    return Checkpoint(path, manifest["step"], tensors, manifest["facts"])


def verify(path: Path) -> dict[str, Any]:
    """Check every file's size and SHA-256 against the manifest, and return the manifest.

    Raises DataError naming the first damaged file.
    """
    manifest = _manifest(path / MANIFEST)
    if path.name != f"{PREFIX}{manifest['step']:08d}":
        raise DataError(
            f"{path / MANIFEST} belongs to step {manifest['step']}, not to this folder; the checkpoint is not valid."
        )
    for name, entry in manifest["files"].items():
        file = path / name
        if not file.is_file():
            raise DataError(f"{file} is missing; the checkpoint is not valid.")
        try:
            size = file.stat().st_size
            intact = size == entry["bytes"] and atomic.sha256(file) == entry["sha256"]
        except OSError as error:
            raise DataError(f"{file} cannot be read ({error.strerror}); the checkpoint is not valid.") from error
        if not intact:
            raise DataError(
                f"{file} is not as it was written ({size} bytes, {entry['bytes']} expected); the checkpoint is not valid."
            )
    return manifest


def _manifest(path: Path) -> dict[str, Any]:
    """Read a manifest and check the type of every value in use."""
    try:
        with path.open("rb") as file:
            text = file.read(MAX_MANIFEST_BYTES)  # A longer one is truncated, and so not JSON.
        manifest: dict[str, Any] = json.loads(text)
        step, facts, files = manifest["step"], manifest["facts"], manifest["files"]
        if type(step) is not int or not 0 <= step < 10**12 or not isinstance(facts, dict):
            raise TypeError("step or facts")
        for name, entry in files.items():
            if Path(name).name != name or not name.endswith(".safetensors") or "\0" in name:
                raise ValueError("a file's name")
            if type(entry["bytes"]) is not int or not isinstance(entry["sha256"], str):
                raise TypeError("a file's size or digest")
        manifest.pop("sha256")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(
            f"{path} is missing or not a manifest ({type(error).__name__}); the checkpoint is not valid."
        ) from error
    if text != _sealed(manifest):
        raise DataError(f"{path} is not as it was written; the checkpoint is not valid.")
    return manifest


def _sealed(manifest: Mapping[str, Any]) -> bytes:
    """Return a manifest as JSON, with the SHA-256 of the rest of the JSON, so that any changed bit is detected."""
    digest = hashlib.sha256(_json_bytes(manifest)).hexdigest()
    return _json_bytes(dict(manifest) | {"sha256": digest})


def _json_bytes(value: Any) -> bytes:
    return (json.dumps(value, indent=2, sort_keys=True) + "\n").encode()
