"""Extending a run: what its new length must be, and what is set aside before it trains further."""

from __future__ import annotations

from pathlib import Path

from cifar100_tk.errors import ConfigError, ResumeError
from cifar100_tk.runs import checkpoint
from cifar100_tk.runs.files import read_recipe, read_status, write_status
from cifar100_tk.runs.lengths import Earlier, read_earlier
from cifar100_tk.storage import atomic
from cifar100_tk.storage.json_files import Json


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


def make_way_for_more(path: Path, recipe: Json) -> None:
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
        with atomic.writing(kept), atomic.new_folder(kept) as temporary:
            atomic.copy_files(filter(Path.is_file, files), path, temporary)
    write_status(path, "running", step=earlier.step)
    for folder in (path / "model", path / "evaluation"):
        if folder.is_dir():
            atomic.remove_folder(folder)
