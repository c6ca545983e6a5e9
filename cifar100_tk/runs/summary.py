"""Reading run folders, and the mean and standard deviation over runs that differ only in their seed."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from os.path import commonprefix
from pathlib import Path
from typing import Any, Final, final

from cifar100_tk.data import SplitName, eval_split
from cifar100_tk.errors import ConfigError, DataError
from cifar100_tk.models.folder import run_within
from cifar100_tk.progress import duration, percent
from cifar100_tk.recipe import flatten
from cifar100_tk.runs.best import describe_best
from cifar100_tk.runs.differences import ABSENT, comparable_recipe, differences
from cifar100_tk.runs.files import read_status
from cifar100_tk.runs.lengths import describe_earlier
from cifar100_tk.runs.metrics_files import is_figure, read_lines
from cifar100_tk.storage.json_files import Json, read_object

MARKDOWN_HEAD: Final = "| recipe | top-1 | top-5 | conditions |\n| --- | --- | --- | --- |"


@final
@dataclass(frozen=True)
class Measured:
    """The measurement of the saved weights after the last epoch."""

    split: str
    """test or holdout."""
    epoch: int
    """The epoch of the measurement, counted from 1."""
    top1: float
    """Fraction in 0..1."""
    top5: float
    """Fraction in 0..1."""
    loss: float
    """Mean cross-entropy in nats, without smoothing."""


@final
@dataclass(frozen=True)
class Run:
    """The files of a run folder, as read; only recipe.json is certain to be an object."""

    path: Path
    recipe: Json
    status: Json
    """run_status.json, or {}."""
    environment: Json
    """environment.json, or {}."""
    epochs: tuple[dict[str, float], ...]
    """The figures in each line of metrics.jsonl."""
    evaluations: dict[str, Json]
    """evaluation/SPLIT.json by split; the figures of the saved model."""
    complaints: tuple[str, ...]
    """A sentence for each part that could not be read."""

    @property
    def name(self) -> str:
        return self.path.resolve().name

    @property
    def seed(self) -> Any:
        return self.recipe.get("seed", ABSENT)

    @property
    def finished(self) -> bool:
        return self.status.get("status") == "finished"

    @property
    def weights(self) -> str:
        """The weights that are saved as the model: ema or raw."""
        return "ema" if self.recipe.get("ema") else "raw"

    @property
    def split(self) -> SplitName:
        """The split that training evaluates."""
        data = self.recipe.get("data")
        return eval_split(isinstance(data, dict) and data.get("holdout"))

    @property
    def measured(self) -> Measured | None:
        """The figures of the newest evaluated epoch; for a finished run the last one."""
        key = f"{self.split}/{'ema_' if self.weights == 'ema' else ''}"
        for line in reversed(self.epochs):
            if {f"{key}top1", f"{key}top5", f"{key}loss"} <= line.keys():
                return Measured(
                    self.split, int(line["epoch"]), line[f"{key}top1"], line[f"{key}top5"], line[f"{key}loss"]
                )
        return None

    @property
    def cut_to(self) -> int | None:
        """The steps per epoch if limit_train_batches cut them, else None."""
        limit, last = self.recipe.get("limit_train_batches"), self.epochs[-1] if self.epochs else {}
        if not is_figure(limit) or not 1 <= limit < 1e300:
            return None
        return None if "step" in last and last["step"] / last["epoch"] < limit else int(limit)

    @property
    def seconds(self) -> float | None:
        """Wall time of the whole run over all its resumes; of training so far if it is unfinished."""
        found = [self.status.get("seconds"), *(line.get("seconds") for line in reversed(self.epochs[-1:]))]
        return next((float(value) for value in found if is_figure(value) and 0 <= value < 1e300), None)


@final
@dataclass(frozen=True)
class Spread:
    """The mean and spread of a figure over runs."""

    mean: float
    std: float | None
    """The sample standard deviation (divided by n - 1); None for one run."""

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Return mean and sample standard deviation.

        >>> Spread.of([0.25, 0.5, 0.75])
        Spread(mean=0.5, std=0.25)
        """
        if not all(map(math.isfinite, values)):
            return cls(math.nan, math.nan if len(values) > 1 else None)
        return cls(statistics.mean(values), statistics.stdev(values) if len(values) > 1 else None)

    @property
    def percent(self) -> str:
        """The figure as a percentage.

        >>> Spread(0.8145, None).percent, Spread(0.8145, 0.0021).percent
        ('81.45 %', '81.45 ± 0.21 %')
        """
        return percent(self.mean) if self.std is None else f"{100 * self.mean:.2f} ± {100 * self.std:.2f} %"

    @property
    def plain(self) -> str:
        """The figure as a plain number."""
        return f"{self.mean:.4f}" + ("" if self.std is None else f" ± {self.std:.4f}")


@final
@dataclass(frozen=True)
class Summary:
    """One recipe's result over finished runs that differ only in the seed."""

    name: str
    runs: tuple[Run, ...]
    results: tuple[Measured, ...]
    """The last measurement of each run, in the order of `runs`."""
    top1: Spread
    top5: Spread
    loss: Spread

    @property
    def conditions(self) -> str:
        """The conditions of the figures in one line: images, epoch, number of seeds, time and hardware."""
        first, count = self.runs[0], len(self.runs)
        seeds = f"seed {first.seed}" if count == 1 else f"{count} seeds, mean and sample standard deviation"
        weights = ", EMA weights" if first.weights == "ema" else ""
        steps = first.cut_to
        cut = f", each cut to {steps:,} step{'s' * (steps > 1)}" if steps else ""
        epoch = describe_best(first.recipe, several=count > 1) or f"last epoch of {self.results[0].epoch:,}"
        of = ", ".join(filter(None, [epoch, describe_earlier(first.recipe)]))
        parts = [describe_images(first), f"{of}{cut}{weights}, {seeds}"]
        return "; ".join([*parts, *filter(None, [hardware_of(self.runs)])])

    @property
    def markdown_row(self) -> str:
        """The row of a results table whose head is MARKDOWN_HEAD."""
        cells = (f"`{self.name}`", self.top1.percent, self.top5.percent, self.conditions)
        return "| " + " | ".join(" ".join(cell.replace("|", "\\|").split()) for cell in cells) + " |"

    def describe(self) -> str:
        """Return the result for display: a line per run, and the mean if there are several."""
        rows = [
            (f"seed {run.seed}", percent(measured.top1), percent(measured.top5), f"{measured.loss:.4f}")
            for run, measured in zip(self.runs, self.results, strict=True)
        ]
        if len(rows) > 1:
            rows.append((f"{len(rows)} seeds", self.top1.percent, self.top5.percent, self.loss.plain))
        width = max(len(row[0]) for row in rows)
        return "\n".join(f"{head:<{width}}  top-1 {top1}  top-5 {top5}  loss {loss}" for head, top1, top5, loss in rows)


def read(path: Path) -> Run:
    """Read a run folder. Raises ConfigError if it is not a run folder, DataError if its recipe cannot be read."""
    if not (path / "recipe.json").is_file():
        problem = "does not exist" if not path.exists() else "is not a run folder: it holds no recipe.json"
        remedy = run_within(path) or "; give a folder that training wrote, such as runs/quickstart"
        raise ConfigError(f"{path} {problem}{remedy}.")
    recipe = read_object(path / "recipe.json", "it must be as training wrote it.")
    complaints: list[str] = []
    status = read_status(path)
    absent = (
        "though the run has finished: what its epochs measured is lost."
        if status.get("status") == "finished"
        else "for no epoch has been reported yet."
    )
    return Run(
        path=path,
        recipe=recipe,
        status=status,
        environment=_read_object(path / "environment.json", complaints),
        epochs=tuple(read_lines(path / "metrics.jsonl", "epoch", complaints, absent)),
        evaluations={
            file.stem: found
            for file in sorted(
                (path / "evaluation").glob("[!.]*.json")
            )  # Hidden files are left over from a killed writer.
            if (found := _read_object(file, complaints))
        },
        complaints=tuple(complaints),
    )


def summary(runs: Sequence[Run | Path], name: str | None = None) -> Summary:
    """Summarize finished runs of one recipe, each with a different seed.

    name: the name in the row; defaults to the common part of the folders' names. Raises ConfigError if the recipes differ
    in more than the seed, if two seeds are the same, or if a run is not finished.
    """
    found = [read(run) if isinstance(run, Path) else run for run in runs]
    if not found:
        raise ConfigError("there are no runs to summarize; give at least one run folder.")
    for run in found:
        if not run.finished:
            how = run.status.get("status", "of unknown state")
            raise ConfigError(
                f"{run.path} is not finished ({how}); only finished runs have a result; run the same command again."
            )
    if different := differences([recipe_of(run) for run in found]):
        shown = "; ".join(f"{field} is {', '.join(values)}" for field, values in list(different.items())[:5])
        raise ConfigError(f"the runs use different recipes, so they have no common mean: {shown}.")
    if len(seeds := {repr(run.seed) for run in found}) < len(found):
        raise ConfigError(f"{len(found)} runs have only {len(seeds)} different seeds; give each seed once.")
    results = []
    for run in found:
        if (measured := run.measured) is None:
            raise DataError(f"{run.path / 'metrics.jsonl'} contains no {run.split}/top1; that run was never evaluated.")
        results.append(measured)
    spreads = (Spread.of([getattr(f, field) for f in results]) for field in ("top1", "top5", "loss"))
    return Summary(name or common_name([run.path for run in found]), tuple(found), tuple(results), *spreads)


def recipe_of(run: Run) -> Json:
    """Return the recipe without the seed and the other fields in which runs of one recipe may differ."""
    return comparable_recipe(run.recipe)


def common_name(paths: Sequence[Path]) -> str:
    """Return the common part of the names of run folders, or their parent's name if there is none.

    >>> common_name([Path("runs/resnet50")]), common_name([Path("runs/resnet50-seed1"), Path("runs/resnet50-seed2")])
    ('resnet50', 'resnet50')
    >>> common_name([Path("runs/resnet50/seed-0"), Path("runs/resnet50/seed-1")])
    'resnet50'
    """
    # A prefix of characters, not of path components: the names differ at their ends.
    shared = commonprefix([path.resolve().name for path in paths])  # noqa: RUF071
    return re.sub(r"[-_. ]*(seed[-_. ]*\d*)?$", "", shared) or paths[0].resolve().parent.name


def describe_images(run: Run) -> str:
    """Return a description of the images that the run was measured on."""
    evaluation, flat = run.evaluations.get(run.split, {}), flatten(run.recipe)
    count = evaluation.get("num_images")
    head = f"{count:,} {run.split} images" if isinstance(count, int) else f"{run.split} images"
    stored = "train" if run.split == "holdout" else run.split
    which = evaluation.get("images") or flat.get(f"images.{stored}.sentence") or flat.get("data.source")
    return f"{head} ({which})" if which else head


def hardware_of(runs: Sequence[Run]) -> str:
    """Return a description of the runs' time and hardware, as far as they are known, or ""."""
    seconds = [run.seconds for run in runs if run.seconds is not None]
    elapsed = f"{duration(statistics.mean(seconds))}{' each' * (len(runs) > 1)}" if len(seconds) == len(runs) else ""
    places = dict.fromkeys(_place_of(run.environment) for run in runs)
    place = ", or ".join(filter(None, places))
    return f"{elapsed} on {place}" if elapsed and place else elapsed or place


def _place_of(environment: Json) -> str:
    device, processes = environment.get("device"), environment.get("num_processes")
    where = f"{processes} x {device}" if isinstance(processes, int) and processes > 1 else device
    versions = environment.get("versions", environment)
    torch = versions.get("torch") if isinstance(versions, dict) else None
    parts = [where, environment.get("precision"), f"torch {torch}" if torch else None]
    return ", ".join(str(part) for part in parts if part)


def _read_object(path: Path, complaints: list[str]) -> Json:
    """Read a JSON object; {} with a complaint if it is damaged, and without one if the file is missing."""
    if not path.exists():
        return {}
    try:
        return read_object(path, "")
    except DataError:
        complaints.append(f"{path.name} is damaged and left out.")
        return {}
