"""Numbers and images behind a report: curves, confidences and the most confident mistakes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, final

import numpy as np
import PIL.Image
import torch

from cifar100_tk.data import Data, SplitName
from cifar100_tk.errors import DataError
from cifar100_tk.evaluation import files as evaluation_files
from cifar100_tk.evaluation.measure import measure
from cifar100_tk.evaluation.metrics import first_guesses
from cifar100_tk.evaluation.predictions import Predictions
from cifar100_tk.evaluation.scores import ECE_BINS
from cifar100_tk.models import folder as model_folder
from cifar100_tk.report.figures import Bins, Line, Numbers, Panel
from cifar100_tk.runs.summary import Run
from cifar100_tk.storage.json_files import Json
from cifar100_tk.tensors import Labels, Logits

MOST_MISTAKES: Final = 24
UNITS: Final = ((3 * 3600.0, 3600.0, "hours"), (180.0, 60.0, "minutes"), (0.0, 1.0, "seconds"))
"""Units of a time axis: (from this many seconds, seconds per unit, name)."""

STYLES: Final = ("-", "--", ":")


@final
@dataclass(frozen=True)
class Mistake:
    """A misclassified image."""

    row: int
    """Row of the image in its split."""
    true: int
    """Label."""
    guess: int
    """Predicted class."""
    p_true: float
    """Predicted probability of the true class, 0..1."""
    p_guess: float
    """Predicted probability of the predicted class, 0..1."""


def most_confident_mistakes(predictions: Predictions, most: int = MOST_MISTAKES) -> list[Mistake]:
    """Return the wrong top-1 predictions with the largest probabilities, most confident first.

    >>> logits = torch.tensor([[0.0, 3.0], [0.0, 1.0], [2.0, 0.0]])
    >>> found = most_confident_mistakes(Predictions(logits, torch.tensor([0, 0, 0]), torch.tensor([5, 6, 8])))
    >>> [(m.row, m.true, m.guess, round(m.p_guess, 3)) for m in found]
    [(5, 0, 1, 0.953), (6, 0, 1, 0.731)]
    """
    probabilities = predictions.logits.double().softmax(dim=1)
    guesses = first_guesses(predictions.logits)
    sure = probabilities.amax(dim=1)
    wrong = ((guesses != predictions.labels) & (guesses >= 0) & sure.isfinite()).nonzero().squeeze(1)
    order = wrong[sure[wrong].argsort(descending=True, stable=True)][:most].tolist()
    return [
        Mistake(
            row=int(predictions.rows[place]),
            true=(true := int(predictions.labels[place])),
            guess=int(guesses[place]),
            p_true=float(probabilities[place, true]),
            p_guess=float(sure[place]),
        )
        for place in order
    ]


def reliability_bins(logits: Logits, labels: Labels, temperature: float = 1.0) -> Bins:
    """Sort images into the bins of the calibration error. logits: (N, C); rows with a non-finite logit are dropped."""
    sure = (logits.double() / temperature).softmax(dim=1).amax(dim=1)
    right = (first_guesses(logits) == labels).double()
    place = (sure.nan_to_num(-1) * ECE_BINS).long().clamp(max=ECE_BINS - 1)
    counts, confidence, hits = (
        torch.zeros(ECE_BINS, dtype=torch.float64).index_add(0, place[sure.isfinite()], values[sure.isfinite()])
        for values in (torch.ones_like(sure), sure, right)
    )
    # 0 / 0 is NaN: an empty bin has no mean.
    return Bins((counts / len(labels)).numpy(), (confidence / counts).numpy(), (hits / counts).numpy())


def by_superclass(result: Json) -> tuple[Numbers, list[tuple[str, int]]]:
    """Return the confusion matrix of an evaluation, with the classes of each super-class next to each other.

    Returns (C, C) fractions of the row's images, and the name and number of classes of each super-class. Super-classes
    are in alphabetical order; within a super-class the classes keep their order. Without super-classes each class is a
    block of its own.
    """
    superclasses = [row["superclass"] for row in result["classes"]]
    if None in superclasses:
        counts = np.array(result["confusion"], dtype=np.float64)
        return counts / np.maximum(counts.sum(axis=1, keepdims=True), 1), [
            (row["name"], 1) for row in result["classes"]
        ]
    order = sorted(range(len(superclasses)), key=lambda number: (superclasses[number], number))
    counts = np.array(result["confusion"], dtype=np.float64)[np.ix_(order, order)]
    blocks = [(name, superclasses.count(name)) for name in sorted(set(superclasses))]
    return counts / np.maximum(counts.sum(axis=1, keepdims=True), 1), blocks


def images(run: Run, split: SplitName, mistakes: Sequence[Mistake]) -> list[PIL.Image.Image]:
    """Return the 32x32 images of mistakes from the data of the run's recipe.

    Raises CifarError if the data is not available, DataError if it is not the data that was evaluated.
    """
    opened = _data_of(run).open(split)
    for mistake in mistakes:
        if mistake.row >= len(opened.labels) or opened.labels[mistake.row] != mistake.true:
            raise DataError(
                f"row {mistake.row} of {split} is not the image that was evaluated; the data has changed since."
            )
    return [
        PIL.Image.fromarray(np.ascontiguousarray(opened.images[mistake.row].transpose(1, 2, 0))) for mistake in mistakes
    ]


def evaluated(run: Run) -> tuple[Json, Predictions]:
    """Return the evaluation in a run folder, preferring the test split.

    Raises DataError if it is invalid.
    """
    return evaluation_files.read(run.path / "evaluation", "test" if "test" in run.evaluations else run.split)


def measure_run(run: Run) -> tuple[Json, Predictions]:
    """Evaluate the model of a run that has no evaluation. Raises CifarError if that is not possible."""
    from accelerate import Accelerator

    classifier, split = model_folder.load(run.path), _data_of(run).open(run.split)
    accelerator = Accelerator()
    measured = measure(
        classifier.model.to(accelerator.device),
        split,
        classifier.normalize,
        image_size=classifier.image_size,
        accelerator=accelerator,
        name=str(run.path),
        source=_data_of(run).source,
        weights="ema" if run.weights == "ema" else "raw",
    )
    return measured.result, measured.predictions


def panels(runs: Sequence[Run], colours: Sequence[int]) -> list[Panel]:
    """Return the plots of loss, accuracy and learning rate against epochs, and against time if it was logged.

    colours: the colour number of each run; a single run has one colour per line instead.
    """
    measured = {run.split for run in runs}
    split = measured.pop() if len(measured) == 1 else "measured"
    found = []
    for axis in ("epoch", "seconds"):
        places = [line[axis] for run in runs for line in run.epochs if axis in line and math.isfinite(line[axis])]
        unit, name = (1.0, axis) if axis == "epoch" else _unit(max(places, default=0.0))
        for y_label, choose, scale in (
            ("loss, nats", _losses, 1.0),
            ("accuracy, %", _accuracies, 100.0),
            ("learning rate", _rates, 1.0),
        ):
            lines: list[Line] = []
            for number, run in enumerate(runs):
                for kind, (key, label) in enumerate(choose(run, split, alone=len(runs) == 1)):
                    x, y = _series(run, axis, key)
                    colour = kind if len(runs) == 1 else colours[number]
                    if (np.isfinite(x) & np.isfinite(y)).any():
                        # One legend entry per line style.
                        known = any(line.label == label for line in lines)
                        lines.append(Line(x / unit, y * scale, colour, STYLES[kind], None if known else label))
            if lines:
                found.append(Panel(name, y_label, tuple(lines), whole_x=axis == "epoch"))
    return found


def _unit(longest: float) -> tuple[float, str]:
    """Return the seconds per unit of a time axis, and the name of the unit."""
    return next(((unit, name) for least, unit, name in UNITS if longest >= least), UNITS[-1][1:])


def _losses(run: Run, split: str, alone: bool) -> list[tuple[str, str | None]]:
    return [("train/loss", "train"), (f"{_key(run)}loss", split)]


def _accuracies(run: Run, split: str, alone: bool) -> list[tuple[str, str | None]]:
    """Return the accuracies to plot: of the EMA weights if saved; only top-1 when comparing several runs."""
    if not alone:
        return [(f"{_key(run)}top1", None)]
    raw = [(f"{run.split}/top1", "top-1, raw weights")] if run.weights == "ema" else []
    return [(f"{_key(run)}top1", "top-1"), (f"{_key(run)}top5", "top-5"), *raw]


def _rates(run: Run, split: str, alone: bool) -> list[tuple[str, str | None]]:
    return [("train/lr", None)]


def _key(run: Run) -> str:
    return f"{run.split}/{'ema_' if run.weights == 'ema' else ''}"


def _series(run: Run, axis: str, key: str) -> tuple[Numbers, Numbers]:
    points = [(line[axis], line[key]) for line in run.epochs if axis in line and key in line]
    x, y = np.array(points, dtype=np.float64).reshape(-1, 2).T
    return x, y


def _data_of(run: Run) -> Data:
    return Data.of_recipe(run.recipe, run.path / "recipe.json", "it must be unchanged since training wrote it.")
