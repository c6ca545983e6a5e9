"""Curves of loss, accuracy and learning rate, against epochs and against time, from the logged epochs and steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, final

import numpy as np

from cifar100_tk.report.figures import Line, Numbers, Panel
from cifar100_tk.runs.metrics_files import read_lines
from cifar100_tk.runs.summary import Run

UNITS: Final = ((3 * 3600.0, 3600.0, "hours"), (180.0, 60.0, "minutes"), (0.0, 1.0, "seconds"))
"""Units of a time axis: (from this many seconds, seconds per unit, name)."""
MOST_POINTS: Final = 300
"""Points of a curve of steps; more are averaged in groups of equal size."""


@final
@dataclass(frozen=True)
class History:
    """The logged figures of a run."""

    run: Run
    colour: int
    """Its colour beside other runs."""
    steps: tuple[dict[str, float], ...]
    """The lines of steps.jsonl, each with its `epoch` (a fraction) and `seconds`, as far as these are known."""

    @classmethod
    def of(cls, run: Run, colour: int, complaints: list[str]) -> History:
        """Read the steps of a run. complaints: gets a sentence for each damaged line."""
        steps = read_lines(run.path / "steps.jsonl", "step", complaints)
        epochs = [line for line in run.epochs if line.get("step", 0) > 0]
        if not epochs:
            return cls(run, colour, ())
        per_epoch = epochs[-1]["step"] / epochs[-1]["epoch"]
        timed = [(0.0, 0.0), *((line["step"], line["seconds"]) for line in epochs if "seconds" in line)]
        known, seconds = (np.array(values) for values in zip(*timed, strict=True))
        for line in steps:
            line["epoch"] = line["step"] / per_epoch
            if line["step"] <= known[-1]:  # Time is logged once an epoch, and runs evenly in between.
                line["seconds"] = float(np.interp(line["step"], known, seconds))
        return cls(run, colour, tuple(steps))

    def of_epochs(self, axis: str, key: str) -> tuple[Numbers, Numbers]:
        """Return x and y of a figure that is logged once an epoch."""
        return _points(self.run.epochs, axis, key)

    def of_steps(self, axis: str, key: str) -> tuple[Numbers, Numbers]:
        """Return x and y of a figure that is logged every few steps."""
        x, y = _points(self.steps, axis, key)
        group = -(-len(x) // MOST_POINTS) or 1
        whole = len(x) // group * group
        return x[:whole].reshape(-1, group).mean(axis=1), y[:whole].reshape(-1, group).mean(axis=1)

    def key(self, name: str) -> str:
        """Return the name in metrics.jsonl of a figure of the saved weights."""
        return f"{self.run.split}/{'ema_' if self.run.weights == 'ema' else ''}{name}"


def panels(histories: Sequence[History]) -> dict[str, list[Panel]]:
    """Return the plots of loss, accuracy and learning rate by the name of their x-axis: epoch, and a unit of time.

    The plots of one axis have the same range. A single run has a colour for each line, several have one each.
    """
    found = {}
    for axis in ("epoch", "seconds"):
        lines = [line for each in histories for line in each.run.epochs]
        longest = max((line[axis] for line in lines if math.isfinite(line.get(axis, math.nan))), default=0.0)
        if longest <= 0:
            continue
        unit, name = (1.0, axis) if axis == "epoch" else _unit(longest)
        against = "epochs" if axis == "epoch" else "time"
        drawn = [
            Panel(title, against, name, label, tuple(curves), (0.0, longest / unit))
            for title, label, curves in (
                ("Loss", "loss, nats", _losses(histories, axis, unit)),
                ("Accuracy", "accuracy, %", _accuracies(histories, axis, unit)),
                ("Learning rate", "learning rate", _rates(histories, axis, unit)),
            )
            if curves
        ]
        if drawn:
            found[name] = drawn
    return found


def _losses(histories: Sequence[History], axis: str, unit: float) -> list[Line]:
    splits = {each.run.split for each in histories}
    split = splits.pop() if len(splits) == 1 else "measured"
    curves = _Curves(unit)
    for each in histories:
        steps = each.of_steps(axis, "train/step_loss")
        if len(histories) == 1:
            curves.add(steps, 0, faint=True)
            curves.add(each.of_epochs(axis, "train/loss"), 0, "train")
            curves.add(each.of_epochs(axis, each.key("loss")), 1, split, style="--")
        else:
            train = steps if len(steps[0]) else each.of_epochs(axis, "train/loss")
            curves.add(train, each.colour, "train", faint=True)
            curves.add(each.of_epochs(axis, each.key("loss")), each.colour, split)
    return curves.lines


def _accuracies(histories: Sequence[History], axis: str, unit: float) -> list[Line]:
    """Return the accuracies of the saved weights; only top-1 when comparing several runs."""
    curves = _Curves(unit, 100.0)
    for each in histories:
        if len(histories) > 1:
            curves.add(each.of_epochs(axis, each.key("top1")), each.colour)
            continue
        curves.add(each.of_epochs(axis, each.key("top1")), 0, "top-1")
        curves.add(each.of_epochs(axis, each.key("top5")), 1, "top-5", style="--")
        if each.run.weights == "ema":
            curves.add(each.of_epochs(axis, f"{each.run.split}/top1"), 2, "top-1, raw weights", style=":")
    return curves.lines


def _rates(histories: Sequence[History], axis: str, unit: float) -> list[Line]:
    curves = _Curves(unit)
    for each in histories:
        pairs = zip(each.of_epochs(axis, "train/lr"), each.of_steps(axis, "train/step_lr"), strict=True)
        x, y = (np.concatenate(pair) for pair in pairs)
        order = x.argsort(kind="stable")
        curves.add((x[order], y[order]), each.colour if len(histories) > 1 else 0)
    return curves.lines


@final
@dataclass(frozen=True)
class _Curves:
    """The lines of one plot."""

    unit: float
    """Of x."""
    scale: float = 1.0
    """Factor of y."""
    lines: list[Line] = field(default_factory=list)

    def add(
        self,
        points: tuple[Numbers, Numbers],
        colour: int,
        label: str | None = None,
        style: Literal["-", "--", ":"] = "-",
        *,
        faint: bool = False,
    ) -> None:
        """Add a line if it has a point. A label is used once: it stands for a style."""
        x, y = points
        if (np.isfinite(x) & np.isfinite(y)).any():
            known = any(line.label == label for line in self.lines)
            self.lines.append(Line(x / self.unit, y * self.scale, colour, style, None if known else label, faint))


def _unit(longest: float) -> tuple[float, str]:
    """Return the seconds per unit of a time axis, and the name of the unit."""
    return next(((unit, name) for least, unit, name in UNITS if longest >= least), UNITS[-1][1:])


def _points(lines: Sequence[dict[str, float]], axis: str, key: str) -> tuple[Numbers, Numbers]:
    points = [(line[axis], line[key]) for line in lines if axis in line and key in line]
    x, y = np.array(points, dtype=np.float64).reshape(-1, 2).T
    return x, y
