"""Checkpoints: what a run needs to go on, written whole or not at all, verified before use, without pickle."""

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

from cifar100_tk import atomic
from cifar100_tk.errors import DataError

MANIFEST = "manifest.json"
PREFIX = "step-"

Tensors = Mapping[str, Tensor]


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint, read into memory."""

    path: Path
    step: int
    """Optimizer steps that were done when it was written: the next one to do."""
    tensors: dict[str, dict[str, Tensor]]
    """By file: "model", "optimizer" and perhaps "ema", each a mapping of names to tensors on the host."""
    facts: dict[str, Any]
    """Whatever else the writer noted, as JSON values."""


def save(folder: Path, step: int, tensors: Mapping[str, Tensors], facts: Mapping[str, Any], *, keep: int) -> Path:
    """Commit FOLDER/step-NNNNNNNN and retire all but the newest `keep`. Returns its path.

    Raises DiskError and leaves the older checkpoints as they were when it cannot be written.
    """
    files = {f"{name}.safetensors": serialized(values) for name, values in tensors.items()}
    manifest = {
        "format": 1,
        "step": step,
        "files": {
            name: {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
            for name, content in files.items()
        },
        "facts": dict(facts),
    }
    path = folder / f"{PREFIX}{step:08d}"
    # The manifest comes last: a folder that has it has everything it lists.
    atomic.write_folder(path, files | {MANIFEST: _json_bytes(manifest)})
    verify(path)
    for old in sorted(folder.glob(f"{PREFIX}*"))[:-keep]:
        atomic.remove_folder(old)
    return path


def newest(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """Return the newest valid checkpoint, or None, and a sentence for each newer one that is not valid.

    Those are set aside as `.bad-*`, so that the run can reach their steps again.
    """
    complaints: list[str] = []
    for path in sorted(folder.glob(f"{PREFIX}*"), reverse=True):
        try:
            return read(path), complaints
        except DataError as error:
            complaints.append(str(error))
            aside = path.with_name(f".bad-{path.name}")
            shutil.rmtree(aside, ignore_errors=True)
            path.rename(aside)
    return None, complaints


def read(path: Path) -> Checkpoint:
    """Verify a checkpoint and read it. Raises DataError naming the first file that is not as it was written."""
    manifest = verify(path)
    tensors = {}
    for name in manifest["files"]:
        try:
            tensors[name.removesuffix(".safetensors")] = safetensors.torch.load_file(path / name)
        except (SafetensorError, OSError) as error:
            raise DataError(f"{path / name} cannot be read as safetensors: {error}.") from error
    return Checkpoint(path, manifest["step"], tensors, manifest["facts"])


def verify(path: Path) -> dict[str, Any]:
    """Check every file's size and SHA-256 against the manifest, and return the manifest.

    Raises DataError naming the first file that is not as it was written.
    """
    try:
        manifest: dict[str, Any] = json.loads((path / MANIFEST).read_text())
        step, files = manifest["step"], manifest["files"]
        expected = {name: (entry["bytes"], entry["sha256"]) for name, entry in files.items()}
        manifest["facts"]
        own_name = f"{PREFIX}{step:08d}"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path / MANIFEST} is missing or not a manifest ({type(error).__name__}); the checkpoint is not valid."
        ) from error
    if path.name != own_name:
        raise DataError(f"{path / MANIFEST} is of step {step}, not of this folder; the checkpoint is not valid.")
    for name, (size, digest) in expected.items():
        file = path / name
        if Path(name).name != name or not file.is_file():
            raise DataError(f"{file} is missing; the checkpoint is not valid.")
        if file.stat().st_size != size or atomic.sha256(file) != digest:
            raise DataError(
                f"{file} is not as it was written ({file.stat().st_size} bytes, {size} expected); the checkpoint is not valid."
            )
    return manifest


def serialized(tensors: Tensors) -> bytes:
    """Return tensors as the bytes of a safetensors file."""
    # safetensors wants every tensor contiguous, and channels_last weights are not.
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    return safetensors.torch.save(plain, metadata={"format": "pt"})


def _json_bytes(value: Any) -> bytes:
    return (json.dumps(value, indent=2, sort_keys=True) + "\n").encode()
