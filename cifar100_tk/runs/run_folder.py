"""The run folder, new or to be resumed: its lock, recipe, status and metrics."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import filelock

from cifar100_tk.data import Split
from cifar100_tk.errors import ConfigError, DataError, LockedError, ResumeError
from cifar100_tk.models.pretrained import Pretrained
from cifar100_tk.recipe import Recipe, flatten, to_json
from cifar100_tk.runs import best, checkpoint
from cifar100_tk.runs.checkpoint import Checkpoint
from cifar100_tk.runs.extension import Earlier, extends, read_earlier, record
from cifar100_tk.storage import atomic
from cifar100_tk.storage.json_files import Json, read_object, read_or_nothing, to_bytes

Status = Literal["running", "stopped", "failed", "finished"]
ABSENT = "absent"

RESUME_KEYS = frozenset(
    {
        *("type", "data", "model", "augment", "normalize", "cutout", "mix", "loss", "optimizer", "schedule"),
        *("resize", "whitening", "sam", "lookahead", "image_size", "finetune", "pretrained"),
        *("distillation", "teacher", "extended"),
        *("batch_size", "epochs", "clip_grad_norm", "ema", "seed", "limit_train_batches", "images"),
    }
)
"""Recipe fields and run options in recipe.json, including nested ones, that must be unchanged for a run to resume.

`images` is the identity of the images by split, `teacher` that of the network learned from and `pretrained` that of the weights
that training starts from, each independent of where they are. `extended` lists the lengths that
the run had before --extend-to.
"""
_ADDED = {"image_size": 32}
"""Values in runs of versions that did not have these fields."""
RUNTIME_KEYS = frozenset(
    {
        *("output_dir", "resume", "dry_run", "contact_sheet", "limit_eval_batches", "pipeline", "workers", "threads"),
        *("micro_batch", "compile", "sync_batchnorm", "timeout_minutes", "eval_every", "checkpoint_every", "keep"),
        *("log_every", "quiet"),
        *("deterministic", "precision", "data.source", "seeds", "reference"),
        *("distillation.teacher", "distillation.revision", "extend_to", "keep_best"),
        "model.pretrained",
    }
)
"""Fields that may change when a run resumes, because they do not affect what is learned."""


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


def write_status(path: Path, status: Status, **facts: Any) -> None:
    """Write run_status.json of a run folder."""
    holder = {"status": status, "host": socket.gethostname(), "pid": os.getpid()}
    atomic.write_file(path / "run_status.json", to_bytes(holder | facts))


def image_fingerprints(*splits: Split) -> Json:
    """Return the `images` of recipe.json: the identity of each split; a held-out part counts as train."""
    return {"train" if split.name == "holdout" else split.name: vars(split.identity) for split in splits}


def run_config(
    recipe: Recipe,
    options: Any,
    *splits: Split,
    teacher: Json | None = None,
    pretrained: Pretrained | None = None,
    earlier: tuple[Earlier, ...] = (),
) -> Json:
    """Return the content of recipe.json for a run.

    options: the run options. splits: the splits, if they are open. teacher: the identity of the network that is learned
    from, and pretrained: the weights that training starts from, if they are loaded. earlier: the lengths that the run had before
    it was extended.
    """
    written: Json = to_json(recipe) | {name: value for name, value in vars(options).items() if name in RESUME_KEYS}
    opened = {"images": image_fingerprints(*splits)} if splits else {}
    opened |= {} if pretrained is None else {"pretrained": pretrained.record}
    return written | opened | ({"teacher": teacher} if teacher else {}) | record(earlier)


def earlier_lengths(path: Path, epochs: int, extend_to: int | None) -> tuple[Earlier, ...]:
    """Return the lengths of a run before it was, or is about to be, extended; () for a run that keeps its length.

    epochs: those of the command's recipe. extend_to: the new length, which takes their place; None for a run that is not
    extended now. Changes nothing. Raises ConfigError unless the new length adds epochs to the run in the folder, ResumeError
    if there is no checkpoint to continue from.
    """
    if not (path / "recipe.json").is_file():
        if extend_to is None:
            return ()
        raise ConfigError(f"{path} holds no run that --extend-to {extend_to} could continue; start one with --epochs.")
    recorded = read_recipe(path)
    now, earlier = recorded.get("epochs"), read_earlier(recorded)
    if extend_to is None or not isinstance(now, int):
        return earlier if now == epochs else ()
    finished = read_status(path).get("status") == "finished"
    if extend_to < now or (extend_to == now and finished):
        done = f"a finished run of {now:,} epochs" if finished else f"a run of {now:,} epochs"
        raise ConfigError(f"{path} holds {done}, and --extend-to {extend_to:,} adds none; give more than {now:,}.")
    if extend_to == now:
        return earlier
    step = _newest_step(path)
    if step is None and (finished or (path / "model").exists()):
        raise ResumeError(
            f"no valid checkpoint in {path / 'checkpoints'} to extend the run from; its model is left unchanged."
        )
    return (*earlier, Earlier(now, step or 0))


def is_extended(path: Path, epochs: int | None) -> bool:
    """Return whether a folder holds a finished run of this many epochs."""
    finished = read_status(path).get("status") == "finished" and (path / "recipe.json").is_file()
    return finished and epochs is not None and read_recipe(path).get("epochs") == epochs


def _newest_step(path: Path) -> int | None:
    valid = [folder for folder, error in checkpoint.survey(path / "checkpoints").items() if error is None]
    return int(valid[-1].name.removeprefix(checkpoint.PREFIX)) if valid else None


def is_finished(path: Path, recipe: Json) -> bool:
    """Return whether a folder holds a finished run. Raises ConfigError if it is a run of another recipe."""
    if read_status(path).get("status") != "finished" or not (path / "recipe.json").is_file():
        return False
    if extends(recipe, read_recipe(path)):
        return False
    _refuse_other_recipe(path, recipe)
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
        _refuse_other_recipe(path, recipe)
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
        _make_way_for_more(path, recipe)
    # A run that resumes with images from another source records the new source.
    if is_new or read_recipe(path) != recipe:
        atomic.write_file(path / "recipe.json", to_bytes(recipe))
    found, complaints = checkpoint.newest(path / "checkpoints")
    if found is None and complaints:
        raise ResumeError(
            f"no valid checkpoint in {path / 'checkpoints'}: {' '.join(complaints)} Start again with another --output-dir."
        )
    return RunFolder(path, found, complaints, lock)


def _make_way_for_more(path: Path, recipe: Json) -> None:
    """Set aside the model of a run that is about to be extended.

    recipe: the longer run's, which is recorded afterwards: until then the folder is a run of the old length, complete or
    complete but for what its last checkpoint makes again; from then on it is an unfinished one of the new length.
    """
    earlier = read_earlier(recipe)[-1]
    if (_newest_step(path) or 0) != earlier.step:
        raise ConfigError(f"{path} was trained further in the meantime; run the same command again.")
    kept = path / f"epoch-{earlier.epochs}"
    if (path / "model").is_dir() and not kept.exists():
        names = ("recipe.json", "environment.json", "metrics.jsonl", "steps.jsonl", "run_status.json")
        files = [*(path / name for name in names), *(path / "evaluation").glob("*"), *(path / "model").glob("*")]
        try:
            with atomic.new_folder(kept) as temporary:
                atomic.copy_files(filter(Path.is_file, files), path, temporary)
        except OSError as error:
            raise atomic.disk_error(error, kept, 0) from error
    write_status(path, "running", step=earlier.step)
    for folder in (path / "model", path / "evaluation"):
        if folder.is_dir():
            atomic.remove_folder(folder)


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


def read_recipe(path: Path) -> Json:
    """Return the recipe in a run folder, as nested JSON. Raises ResumeError if it cannot be read."""
    try:
        return read_object(path / "recipe.json", "start again with another --output-dir.")
    except DataError as error:
        raise ResumeError(str(error)) from error


def read_status(path: Path) -> Json:
    """Return the content of run_status.json, or {} if it is missing or damaged."""
    return read_or_nothing(path / "run_status.json")


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
        raise atomic.disk_error(error, path / ".lock", 0) from error
    return lock


def _refuse_other_recipe(path: Path, recipe: Json) -> None:
    recorded = read_recipe(path)
    length = {name: recipe[name] for name in ("epochs", "extended")} if extends(recipe, recorded) else {}
    old, new = flatten(recorded | length), flatten(recipe)
    old = {name: value for name, value in _ADDED.items() if name in new} | old
    if "pictures.train.count" in old:
        raise ConfigError(
            f"{path} holds a run of an earlier version of cifar100_tk, whose recipe.json has other names; finish it with "
            "that version, or choose another --output-dir."
        )
    unread = new.get("model.pretrained") is not None and "pretrained" not in recipe
    different = [
        f"{name} was {old.get(name, ABSENT)!r} and is {new.get(name, ABSENT)!r}"
        for name in sorted(old.keys() | new.keys())
        if old.get(name)
        != new.get(name)  # A disabled part is None, and absent from runs of versions that did not have it.
        and name not in RUNTIME_KEYS
        and not name.startswith(("images.", "teacher.", "extended."))
        and not (name.startswith("pretrained.") and (unread or name != "pretrained.sha256"))
    ]
    if different:
        more = _more_epochs(recorded, recipe) if len(different) == 1 else ""
        raise ConfigError(
            f"{path} holds a run of another recipe: {'; '.join(different)}. {more}Choose another --output-dir."
        )
    for split in recipe.get("images", {}):
        _refuse_other_images(path, split, old, new)
    if "teacher" in recipe:
        _refuse_other_teacher(path, old, new)


def _more_epochs(recorded: Json, recipe: Json) -> str:
    """Return the sentence on --extend-to for a run of another length, or ""."""
    was, now = recorded.get("epochs"), recipe.get("epochs")
    if not isinstance(was, int) or not isinstance(now, int) or was == now:
        return ""
    if now > was:
        return f"--extend-to {now} continues it to {now} epochs. "
    return f"--extend-to {was} resumes it at its length of {was} epochs. " if read_earlier(recorded) else ""


def _refuse_other_images(path: Path, split: str, old: Json, new: Json) -> None:
    """Raise ConfigError for other images. old, new: flattened recipes. The order counts: a run batches and draws by row."""
    count, sha256, rows_sha256 = (f"images.{split}.{name}" for name in ("count", "sha256", "rows_sha256"))
    if old.get(rows_sha256) != new[rows_sha256]:
        was, now = (
            f"{flat.get(count, ABSENT)} of {flat.get('data.source', ABSENT)} (sha256 {str(flat.get(sha256, ABSENT))[:16]})"
            for flat in (old, new)
        )
        order = ", the same in another order" * (old.get(sha256) == new[sha256])
        raise ConfigError(
            f"{path} holds a run with other {split} images: they were {was} and are {now}{order}. "
            "Give the --data.source with the original images, or choose another --output-dir."
        )


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


def _refuse_other_teacher(path: Path, old: Json, new: Json) -> None:
    """Raise ConfigError for another teacher, by its weights, architecture and preprocessing. old, new: flattened recipes."""
    names = [name for name in new if name.startswith("teacher.") and name != "teacher.name"]
    if any(old.get(name) != new[name] for name in names):
        was, now = (
            f"{flat.get('distillation.teacher')} ({flat.get('teacher.architecture', ABSENT)}, sha256 "
            f"{str(flat.get('teacher.sha256', ABSENT))[:16]})"
            for flat in (old, new)
        )
        raise ConfigError(
            f"{path} holds a run with another teacher: it was {was} and is {now}. Give the --distillation.teacher with the "
            "original weights, or choose another --output-dir."
        )


def _step_of(line: bytes) -> float | None:
    """Return the step of a line of metrics.jsonl, or None if it is damaged or was cut short by a kill."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None
