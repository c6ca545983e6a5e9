"""Runs side by side on the console: a table of what they are and what they reached, and where their recipes differ."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from cifar100_tk.cli.table import aligned
from cifar100_tk.errors import ConfigError
from cifar100_tk.progress import duration, percent
from cifar100_tk.runs import summary
from cifar100_tk.runs.differences import comparable_recipe, differences
from cifar100_tk.runs.summary import Run
from cifar100_tk.storage.json_files import Json


def find(folders: Sequence[Path]) -> list[Run]:
    """Read every run at or below some folders, in the order of their paths. Raises ConfigError if there is none."""
    if not folders:
        raise ConfigError("no run is given; give run folders, or a folder that holds some, such as runs.")
    for folder in folders:
        if not folder.is_dir():
            raise ConfigError(f"{folder} is not a folder; give run folders, or a folder that holds some.")
    paths = sorted({path for folder in folders for path in _run_folders(folder)})
    if not paths:
        raise ConfigError(f"there is no run in {', '.join(map(str, folders))}; a run folder holds a recipe.json.")
    return [summary.read(path) for path in paths]


def _run_folders(folder: Path) -> Iterator[Path]:
    for path, folders, files in os.walk(folder):  # Skips what it may not read.
        if "recipe.json" in files:
            folders.clear()
            yield Path(path)


def table(runs: Sequence[Run]) -> str:
    """Return a table with a line for each run: folder, status, epochs, the newest figures, time, and the recipe in brief."""
    head = ("run", "status", "epochs", "top-1", "top-5", "measured on", "time", "recipe")
    return aligned([head, *(_row(run) for run in runs)], left=(0, 1, 5, 7))


def comparison(runs: Sequence[Run]) -> str:
    """Return the parts of the recipes that differ, a line for each with a column for each run; "" if none does."""
    found = differences([comparable_recipe(run.recipe, seed=True) for run in runs])
    rows = [(name, *values) for name, values in found.items()]
    return aligned([("differs", *(run.name for run in runs)), *rows], left=range(len(runs) + 1)) if rows else ""


def _row(run: Run) -> tuple[str, ...]:
    measured, seconds = run.measured, run.seconds
    done = int(run.epochs[-1]["epoch"]) if run.epochs else 0
    return (
        str(run.path),
        str(run.status.get("status", "unknown")),
        f"{done}/{run.recipe.get('epochs', '?')}",
        percent(measured.top1) if measured else "-",
        percent(measured.top5) if measured else "-",
        f"{measured.split}, epoch {measured.epoch}" if measured else "-",
        duration(seconds) if seconds is not None else "-",
        _in_brief(run.recipe),
    )


def _in_brief(recipe: Json) -> str:
    """Return a recipe in one line.

    >>> _in_brief({"model": {"name": "resnet50_cifar"}, "batch_size": 2048, "optimizer": {"type": "SGD", "lr": 0.1}, "seed": 0})
    'resnet50_cifar, batch 2048, SGD lr 0.1, seed 0'
    """
    optimizer, model = recipe.get("optimizer"), recipe.get("model")
    parts: list[Any] = [
        model.get("name") if isinstance(model, dict) else None,
        f"batch {recipe['batch_size']}" if "batch_size" in recipe else None,
        f"{optimizer.get('type')} lr {optimizer.get('lr')}" if isinstance(optimizer, dict) else None,
        f"seed {recipe['seed']}" if "seed" in recipe else None,
    ]
    return ", ".join(str(part) for part in parts if part)
