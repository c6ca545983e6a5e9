"""Numbers and images behind a report: confidences and the most confident mistakes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, final

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
from cifar100_tk.report.figures import Line, Numbers, Panel
from cifar100_tk.runs.summary import Run
from cifar100_tk.storage.json_files import Json
from cifar100_tk.tensors import Labels, Logits

MOST_MISTAKES: Final = 24


@final
@dataclass(frozen=True)
class Bins:
    """Images binned by the confidence of the prediction, in bins of equal width from 0 to 1."""

    shares: Numbers
    """(B,): fraction of all images in each bin."""
    confidence: Numbers
    """(B,): mean confidence in each bin; NaN if the bin is empty."""
    accuracy: Numbers
    """(B,): fraction of correct predictions in each bin; NaN if the bin is empty."""


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


def reliability_panels(before: Bins, after: Bins | None) -> list[Panel]:
    """Return the plots of accuracy and of the number of images against confidence. after: with temperature scaling."""
    diagonal = np.array([0.0, 100.0])
    upper, lower = [Line(diagonal, diagonal, -1, ":", "perfect", markers=False)], []
    edges = np.repeat(np.linspace(0, 100, len(before.shares) + 1), 2)[1:-1]
    for colour, (label, bins) in enumerate([("uncalibrated", before)] + ([("scaled", after)] if after else [])):
        style: Literal["-", "--"] = "--" if colour else "-"
        upper.append(Line(100 * bins.confidence, 100 * bins.accuracy, colour, style, label, markers=True))
        lower.append(Line(edges, 100 * np.repeat(bins.shares, 2), colour, style, label, markers=False))
    ends = (0.0, 100.0)
    return [
        Panel("Accuracy", "confidence", "confidence, %", "accuracy, %", tuple(upper), ends, (-3, 103)),
        Panel("Images", "confidence", "confidence, %", "images, %", tuple(lower), ends, (0, None)),
    ]


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


def _data_of(run: Run) -> Data:
    return Data.of_recipe(run.recipe, run.path / "recipe.json", "it must be unchanged since training wrote it.")
