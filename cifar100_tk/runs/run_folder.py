"""The run folder, new or to be resumed: its lock, checkpoints and metrics."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import filelock

from cifar100_tk.errors import ConfigError, LockedError, ResumeError
from cifar100_tk.runs import best, checkpoint
from cifar100_tk.runs.checkpoint import Checkpoint
from cifar100_tk.runs.extension import make_way_for_more
from cifar100_tk.runs.files import Status, read_recipe, read_status, write_status
from cifar100_tk.runs.lengths import extends
from cifar100_tk.runs.run_config import refuse_other_recipe
from cifar100_tk.storage import atomic
from cifar100_tk.storage.json_files import Json, to_bytes


@dataclass
class RunFolder:
    """An open, locked run folder. Only the main process holds one: no other process touches the folder."""

    path: Path
    checkpoint: Checkpoint | None
    """The checkpoint to resume from; None to start at the first step."""
    complaints: list[str]
    """A sentence for each checkpoint that was skipped because it is not valid."""
    lock: filelock.BaseFileLock

    @property
    def checkpoints(self) -> Path:
        """The folder of checkpoints."""
        return self.path / "checkpoints"

    @property
    def model(self) -> Path:
        """The folder of the finished model."""
        return self.path / "model"

    @property
    def evaluation(self) -> Path:
        """The folder of the finished model's predictions."""
        return self.path / "evaluation"

    def set_status(self, status: Status, **facts: Any) -> None:
        """Write the state of the run to run_status.json, for schedulers and people."""
        write_status(self.path, status, **facts)

    def set_environment(self, environment: Json) -> None:
        """Write the environment of the run from here on to environment.json."""
        atomic.write_file(self.path / "environment.json", to_bytes(environment))

    def log(self, record: Json) -> None:
        """Append one epoch's line to metrics.jsonl."""
        atomic.append_line(self.path / "metrics.jsonl", json.dumps(record))

    def log_steps(self, records: Sequence[Json]) -> None:
        """Append lines to steps.jsonl, one for each logged step."""
        if records:
            atomic.append_line(self.path / "steps.jsonl", "\n".join(map(json.dumps, records)))

    def forget_after(self, step: int) -> int:
        """Drop the lines of metrics.jsonl and steps.jsonl that the run will write again.

        Returns the number of damaged lines that were dropped as well.
        """
        return sum(_keep_until(self.path / name, step) for name in ("metrics.jsonl", "steps.jsonl"))

    def begin(self) -> None:
        """Remove the TensorBoard files of a run that died without a checkpoint and starts over."""
        if (self.path / "tensorboard").is_dir():
            atomic.remove_folder(self.path / "tensorboard")


def is_finished(path: Path, recipe: Json) -> bool:
    """Return whether a folder holds a finished run. Raises ConfigError if it is a run of another recipe."""
    if read_status(path).get("status") != "finished" or not (path / "recipe.json").is_file():
        return False
    if extends(recipe, read_recipe(path)):
        return False
    refuse_other_recipe(path, recipe)
    return True


def validate_run_dir(path: Path, recipe: Json, resume: Literal["auto", "never"]) -> None:
    """Raise ConfigError for a folder that a run of this recipe may not write to; change nothing.

    A new or empty folder starts a run; an unfinished run of the same recipe is resumed. Anything else is rejected.
    recipe: the content for recipe.json; without `images` those are not compared.
    """
    if path.exists() and not path.is_dir():
        raise ConfigError(f"{path} is a file; give --output-dir a folder.")
    known = path / "recipe.json"
    if known.is_file():
        if resume == "never":
            raise ConfigError(
                f"{path} holds a run already; choose another --output-dir, or --resume auto to resume it."
            )
        if read_status(path).get("status") == "finished" and not extends(recipe, read_recipe(path)):
            raise ConfigError(
                f"{path} holds a finished run, which is never overwritten; give --extend-to for more epochs, or choose another "
                "--output-dir to train again."
            )
        refuse_other_recipe(path, recipe)
    elif path.is_dir():
        own_prefixes = (".lock", atomic.TEMPORARY)
        if strangers := sorted(p.name for p in path.iterdir() if not p.name.startswith(own_prefixes)):
            raise ConfigError(
                f"{path} is not a run folder (it holds {strangers[0]}), and is left unchanged; choose another --output-dir."
            )


def open_run(path: Path, recipe: Json, resume: Literal["auto", "never"]) -> RunFolder:
    """Lock a run folder that passes `validate_run_dir`, and find the checkpoint to resume from.

    Raises LockedError if another process is writing it, ResumeError if every checkpoint is bad, DiskError if it cannot be
    written.
    """
    validate_run_dir(path, recipe, resume)
    atomic.make_folder(path)
    lock = _locked(path)
    validate_run_dir(path, recipe, resume)  # Again: the previous holder of the lock may have changed it.
    for folder in (path, path / "checkpoints", path / "evaluation"):
        atomic.remove_unfinished(folder)
    atomic.finish_replacing(path / best.FOLDER)
    is_new = not (path / "recipe.json").is_file()
    if not is_new and extends(recipe, read_recipe(path)):
        make_way_for_more(path, recipe)
    # A run that resumes with images from another source records the new source.
    if is_new or read_recipe(path) != recipe:
        atomic.write_file(path / "recipe.json", to_bytes(recipe))
    found, complaints = checkpoint.newest(path / "checkpoints")
    if found is None and complaints:
        raise ResumeError(
            f"no valid checkpoint in {path / 'checkpoints'}: {' '.join(complaints)} Start again with another --output-dir."
        )
    return RunFolder(path, found, complaints, lock)


def describe_resume(path: Path, recipe: Json, resume: Literal["auto", "never"]) -> str:
    """Return a line of the plan on what `open_run` would do with a folder, or raise its error; change nothing."""
    validate_run_dir(path, recipe, resume)
    found = checkpoint.survey(path / "checkpoints")
    valid = [folder for folder, error in found.items() if error is None]
    if valid:
        return f"  resumes from   step {int(valid[-1].name.removeprefix(checkpoint.PREFIX)):,}, {valid[-1]}"
    if found or any((path / "checkpoints").glob(f"{checkpoint.BAD}*")):
        raise ResumeError(f"no valid checkpoint in {path / 'checkpoints'}; choose another --output-dir.")
    return "  starts         at the first step"


def _locked(path: Path) -> filelock.BaseFileLock:
    # The kernel releases the lock with the process, so a dead one never holds it.
    lock = filelock.FileLock(path / ".lock", blocking=False)
    try:
        lock.acquire()
    except filelock.Timeout as error:
        holder = read_status(path)
        writer = (
            f"process {holder['pid']} on {holder['host']}" if {"pid", "host"} <= holder.keys() else "another process"
        )
        raise LockedError(f"{writer} is writing {path}; wait for it, or choose another --output-dir.") from error
    except OSError as error:
        raise atomic.disk_error(error, path / ".lock") from error
    return lock


def _keep_until(path: Path, step: int) -> int:
    """Drop a file's lines of later steps, and damaged ones; returns the number of these."""
    if not path.is_file():
        return 0
    *lines, last = path.read_bytes().split(b"\n")
    damaged = sum(_step_of(line) is None for line in lines)
    # Text after the last line feed is a line cut short by a kill, or a complete one that lacks its line feed.
    kept = [line for line in (*lines, last) if (at := _step_of(line)) is not None and at <= step]
    atomic.write_file(path, b"".join(line + b"\n" for line in kept))
    return damaged


def _step_of(line: bytes) -> float | None:
    """Return the step of a line of metrics.jsonl or steps.jsonl, or None if it is damaged or was cut short by a kill."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None
