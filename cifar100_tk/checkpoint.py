"""Checkpoints: what a run needs to go on, written whole or not at all, verified before use, without pickle."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import safetensors.torch
import tyro
from safetensors import SafetensorError
from torch import Tensor

from cifar100_tk import atomic, failpoint, tensor_file
from cifar100_tk.arguments import parse
from cifar100_tk.errors import ConfigError, DataError, ResumeError, exit_with_sentence
from cifar100_tk.json_files import read_or_nothing
from cifar100_tk.tensor_file import Tensors

MANIFEST = "manifest.json"
PREFIX = "step-"
BAD = ".bad-"
MAX_MANIFEST_BYTES = 1_000_000


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
    """Commit FOLDER/step-NNNNNNNN and then retire all but the newest `keep`. Returns its path.

    It is on the disk, and was read back and compared, before it gets its name and any older one goes. Raises
    DiskError and leaves the older checkpoints as they were when it cannot be written.
    """
    path = folder / f"{PREFIX}{step:08d}"
    try:
        with atomic.new_folder(path) as temporary:
            files = {}
            for name, values in tensors.items():
                file = f"{name}.safetensors"
                written = atomic.write_synced(temporary / file, tensor_file.parts(values))
                files[file] = {"sha256": written.sha256, "bytes": written.size}
            manifest = {"format": 1, "step": step, "files": files, "facts": dict(facts)}
            # The manifest comes last: a folder that has it has everything it lists.
            atomic.write_synced(temporary / MANIFEST, [_sealed(manifest)])
    except OSError as error:
        raise atomic.disk_error(error, path, sum(map(tensor_file.size, tensors.values()))) from error
    for old in sorted(folder.glob(f"{PREFIX}*"))[:-keep]:
        atomic.remove_folder(old)
    return path


def newest(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """Return the newest valid checkpoint, or None, and a sentence for each newer one that is not valid.

    Those are then set aside as `.bad-*`, so that the run can reach their steps again. Where none is valid nothing is
    moved, and whatever was set aside before is named too: such a run must not start again as if it were new.
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
    """Verify every checkpoint of a run, which another process may be writing, and change nothing.

    Returns them from the oldest to the newest, each with what is wrong with it, or None.
    """
    while True:
        found: dict[Path, DataError | None] = {}
        for path in sorted(folder.glob(f"{PREFIX}*")):
            try:
                verify(path)
                found[path] = None
            except DataError as error:
                if not path.exists():
                    break  # It was retired meanwhile, and a newer one has come: look again.
                found[path] = error
        else:
            return found


def read(path: Path) -> Checkpoint:
    """Verify a checkpoint and read it. Raises DataError naming the first file that is not as it was written."""
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

    Raises DataError naming the first file that is not as it was written.
    """
    manifest = _manifest(path / MANIFEST)
    if path.name != f"{PREFIX}{manifest['step']:08d}":
        raise DataError(
            f"{path / MANIFEST} is of step {manifest['step']}, not of this folder; the checkpoint is not valid."
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
    """Read a manifest, checking the type of every value that is used."""
    try:
        with path.open("rb") as file:
            text = file.read(MAX_MANIFEST_BYTES)  # A longer one is cut off, and no JSON.
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
    """Return a manifest as JSON, with the SHA-256 of the JSON without it: whatever bit is changed, it is noticed."""
    digest = hashlib.sha256(_json_bytes(manifest)).hexdigest()
    return _json_bytes(dict(manifest) | {"sha256": digest})


def _json_bytes(value: Any) -> bytes:
    return (json.dumps(value, indent=2, sort_keys=True) + "\n").encode()


def main() -> None:
    """Run `python -m cifar100_tk.checkpoint` and end the process with the exit code that fits."""
    program = "python -m cifar100_tk.checkpoint"
    with exit_with_sentence(program):
        commands: Any = {"verify": verify_run, "verify-resume": verify_resume}
        as_calls = {name: _as_call(command) for name, command in commands.items()}
        parse(lambda: tyro.extras.subcommand_cli_from_dict(as_calls, prog=program, description=__doc__))()


def _as_call(command: Callable[..., None]) -> Callable[..., Callable[[], None]]:
    """Return a function of the same arguments that only binds them: the command runs when they are known to be good."""

    @functools.wraps(command)
    def bind(*given: Any, **named: Any) -> Callable[[], None]:
        return functools.partial(command, *given, **named)

    return bind


def verify_run(run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]) -> None:
    """Say of every checkpoint of a run folder whether it is as it was written. Changes nothing; the run may be under way.

    Args:
        run: A run folder.
    """
    folder = run / "checkpoints"
    if not (run / "recipe.json").is_file():
        raise DataError(f"{run} is no run folder (it holds no recipe.json); give the --output-dir of a run.")
    found = survey(folder)
    for path, error in found.items():
        print(f"{path.name}: {error or 'valid'}")
    if read_or_nothing(run / "run_status.json").get("status") == "finished":
        print(f"the run is finished, and its model is in {run / 'model'}.")
    elif not found and not any(folder.glob(f"{BAD}*")):
        print(f"{folder} holds no checkpoint yet; the run starts at the beginning.")
    elif all(found.values()):
        raise ResumeError(f"no valid checkpoint in {folder}; start again with another --output-dir.")
    else:
        print(f"the same command goes on from {max(path.name for path, error in found.items() if error is None)}.")


def verify_resume(
    recipe: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RECIPE")], steps: int = 4, more: str = ""
) -> None:
    """Prove on this machine that a run which is killed and goes on ends with the bits of one that is not.

    Trains two short epochs of a recipe in a temporary folder, and once more with a `kill -9` in the middle.

    Args:
        recipe: A recipe file.
        steps: Steps of each of the two epochs.
        more: Further arguments of the recipe, in one string: --more="--data.source shapes100 --deterministic".
    """
    if not recipe.is_file():
        raise ConfigError(f"{recipe} is no file; give a recipe such as recipes/quickstart.py.")
    if steps < 2:
        raise ConfigError(f"--steps {steps} leaves no middle of an epoch to be killed in; give 2 or more.")
    limits = [
        "--epochs",
        "2",
        "--limit-train-batches",
        str(steps),
        "--limit-eval-batches",
        "1",
        "--checkpoint-every",
        "1",
    ]
    killed_at = f"step-{steps + steps // 2:08d}.done:1"
    with tempfile.TemporaryDirectory() as scratch:
        whole, parts = Path(scratch) / "whole", Path(scratch) / "parts"
        for path, fail_at in ((whole, ""), (parts, killed_at), (parts, "")):
            print(f"{path.name}: training{', to be killed' * bool(fail_at)} ...", flush=True)
            command = [sys.executable, str(recipe), *limits, "--output-dir", str(path), *shlex.split(more)]
            environment = os.environ | {failpoint.VARIABLE: fail_at}
            ended = subprocess.run(command, env=environment, capture_output=True, text=True)
            if ended.returncode != (-signal.SIGKILL if fail_at else 0):
                raise ResumeError(
                    f"{shlex.join(command)} ended with {ended.returncode}: {ended.stderr.strip()[-2000:]}"
                )
        ours, theirs = (read(path / "checkpoints" / f"{PREFIX}{2 * steps:08d}").tensors for path in (parts, whole))
    different = {
        f"{file}: {name}": (ours[file][name].double() - tensor.double()).abs().max().item()
        for file, tensors in theirs.items()
        for name, tensor in tensors.items()
        if not ours[file][name].equal(tensor)
    }
    count = sum(map(len, theirs.values()))
    if different:
        worst = max(different, key=lambda name: different[name])
        raise ResumeError(
            f"{len(different)} of {count} tensors are not bit for bit the same, {worst} by up to {different[worst]:.3g}; on a "
            'GPU add --more="--deterministic" for kernels that give the same bits each time.'
        )
    print(
        f"killed after step {steps + steps // 2} of {2 * steps} and gone on: all {count} tensors are the same, bit for bit."
    )


if __name__ == "__main__":
    main()
