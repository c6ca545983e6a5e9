"""Scores of predictions: accuracies, super-classes, confusions, calibration and temperature scaling."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor
from torch.nn.functional import cross_entropy

from cifar100_tk.errors import DataError
from cifar100_tk.evaluation.metrics import first_guesses, true_ranks
from cifar100_tk.tensors import Labels, Logits

# torchmetrics takes up to two seconds to import; it is imported when predictions are scored.

ECE_BINS = 15
"""Bins of the calibration error, as in Guo et al."""
MAX_PAIRS = 20
"""Number of most confused pairs of classes reported."""
TEMPERATURES = (0.01, 100.0)
"""The range of fitted temperatures; predictions that are all correct would drive the temperature to 0."""


@dataclass(frozen=True)
class ClassScore:
    """The scores of one class. A fraction is None if its denominator is zero."""

    name: str
    superclass: str | None
    """None if the data set has no super-classes."""
    num_images: int
    """Images of the class."""
    accuracy: float | None
    """Recall: the fraction of its images predicted as it. None if it has no images."""
    precision: float | None
    """Fraction of the images predicted as it that belong to it. None if no image was."""
    f1: float | None
    """Harmonic mean of the two, 2 TP / (2 TP + FP + FN). None if it has no images and no predictions."""


@dataclass(frozen=True)
class Confused:
    """Images of one class that were predicted as another."""

    true: str
    predicted: str
    num_images: int


@dataclass(frozen=True)
class Scores:
    """The scores of a set of predictions. Accuracies are fractions in 0..1."""

    num_images: int
    """Images measured, each once."""
    top1: float
    """Fraction of images whose class is the top-1 prediction; where logits tie, the smaller class index ranks first."""
    top5: float
    """Fraction of images whose class is among the top-5 predictions."""
    loss: float
    """Mean negative log-likelihood in nats, which is the cross-entropy without smoothing."""
    superclass_top1: float | None
    """Fraction of images whose super-class is that of the top-1 prediction. None if there are no super-classes."""
    errors_in_superclass: float | None
    """Fraction of the wrong top-1 predictions with the right super-class. None if none is wrong, or without super-classes."""
    ece: float
    """Expected calibration error of the top-1 prediction, 15 bins of equal width (Guo et al., arXiv:1706.04599 eq. 3)."""
    macro_precision: float
    """Mean over the classes that occur as label or prediction; an undefined precision counts as 0."""
    macro_recall: float
    """Mean over the same classes; an undefined recall counts as 0."""
    macro_f1: float
    """Mean over the same classes."""
    classes: tuple[ClassScore, ...]
    """The scores of each class, in class order."""
    most_confused: tuple[Confused, ...]
    """The pairs of classes with the most images, most first, at most 20."""
    confusion: Int64[Tensor, "classes classes"]
    """(C, C): number of images of the row's class predicted as the column's class, without images with NaN logits."""

    @classmethod
    def of(
        cls,
        logits: Logits,
        labels: Labels,
        class_names: Sequence[str],
        coarse_names: Sequence[str],
        coarse_of_fine: Sequence[int],
    ) -> Scores:
        """Score logits (N, C) of images whose classes are labels (N,); N is at least 1.

        class_names: C of them. coarse_names: the super-classes'. coarse_of_fine: for each class its super-class; both are
        empty for a data set without super-classes.
        Raises DataError if their sizes are inconsistent.
        """
        _check(logits, labels, class_names, coarse_of_fine)
        ranks = true_ranks(logits, labels)
        superclasses: list[str | None] = [coarse_names[number] for number in coarse_of_fine]
        superclasses = superclasses or [None] * len(class_names)
        counts = confusion(first_guesses(logits), labels, len(class_names))
        # Not the row sums, which lack the images without a prediction.
        num_images = labels.bincount(minlength=len(class_names)).tolist()
        assert int(counts.trace()) == int((ranks == 0).sum())
        return cls(
            **counted(counts, num_images, class_names, superclasses),
            top5=int((ranks < 5).sum()) / len(labels),
            loss=negative_log_likelihood(logits, labels),
            ece=calibration_error(logits, labels),
            confusion=counts,
        )

    def to_json(self, scaled: Scaled | None = None) -> dict[str, Any]:
        """Return the figures as JSON values, null where undefined. scaled: the results after temperature scaling."""
        fields = {name: plain(value) for name, value in vars(self).items() if name != "confusion"}
        after = {
            "temperature": scaled and scaled.temperature,
            "temperature_fitted_on": scaled and scaled.fitted_on,
            "ece_scaled": scaled and plain(scaled.ece),
            "loss_scaled": scaled and plain(scaled.loss),
        }
        head = list(fields)[: list(fields).index("ece") + 1]
        return (
            {name: fields[name] for name in head}
            | after
            | {name: value for name, value in fields.items() if name not in head}
            | {"confusion": self.confusion.tolist()}
        )


@dataclass(frozen=True)
class Scaled:
    """The calibration of the same predictions after temperature scaling, which does not change the predicted classes."""

    temperature: float
    """The divisor of the logits: above 1 for an overconfident network."""
    fitted_on: str
    """The split it was fitted on, never the evaluated split."""
    ece: float
    """Expected calibration error after it."""
    loss: float
    """Mean negative log-likelihood in nats after it."""

    @classmethod
    def of(cls, logits: Logits, labels: Labels, temperature: float, fitted_on: str) -> Scaled:
        """Score logits (N, C) divided by a temperature that `fit_temperature` found on other images."""
        scaled = logits.double() / temperature
        return cls(temperature, fitted_on, calibration_error(scaled, labels), negative_log_likelihood(scaled, labels))


def negative_log_likelihood(logits: Logits, labels: Labels) -> float:
    """Return the mean cross-entropy in nats, computed in float64; NaN or infinite where the logits make it so."""
    return cross_entropy(logits.double(), labels).item()


def calibration_error(logits: Logits, labels: Labels) -> float:
    """Return the expected calibration error of the top-1 prediction, in 0..1; NaN if a probability is NaN.

    sum over 15 bins of equal width, [0, 1/15), ..., [14/15, 1], of (images in the bin / N) * |accuracy - mean probability|
    (Guo et al., arXiv:1706.04599 eq. 3).
    """
    from torchmetrics.functional.classification import binary_calibration_error

    confidence = logits.double().softmax(dim=1).amax(dim=1)
    if not confidence.isfinite().all():
        return math.nan
    # Correctness by our own ranking, because torchmetrics breaks ties of the rounded probabilities differently.
    # It would also put a probability of exactly 1 in a bin of its own.
    right = (first_guesses(logits) == labels).long()
    below_one = math.nextafter(1.0, 0.0)
    return binary_calibration_error(confidence.clamp(max=below_one), right, n_bins=ECE_BINS, validate_args=False).item()


def fit_temperature(logits: Logits, labels: Labels) -> float:
    """Return the temperature T in 0.01..100 for which logits / T have the smallest mean negative log-likelihood.

    logits, labels: (N, C) and (N,) of held-out images, never of those whose calibration is reported (Guo et al.,
    arXiv:1706.04599 section 4.2). Images with a logit that is not finite are left out; raises DataError if all are.
    """
    whole = logits.isfinite().all(dim=1)
    if not whole.any():
        raise DataError(
            f"none of the {len(labels)} held-out images has finite logits, so there is nothing to fit a temperature on; "
            "the model's weights are damaged or its training diverged."
        )
    logits, labels = logits[whole].double(), labels[whole]
    true = logits.gather(1, labels[:, None]).squeeze(1)

    def slope(log_temperature: float) -> float:
        """The derivative of the loss by 1 / T, which grows with 1 / T: the loss is convex in it."""
        probabilities = (logits / math.exp(log_temperature)).softmax(dim=1)
        return ((probabilities * logits).sum(dim=1) - true).mean().item()

    low, high = map(math.log, TEMPERATURES)
    for _ in range(30):  # Halves the bracket of 9.2 to 1e-8.
        middle = (low + high) / 2
        # A loss that still falls with 1 / T wants a smaller temperature.
        low, high = (low, middle) if slope(middle) < 0 else (middle, high)
    return math.exp((low + high) / 2)


def _check(logits: Logits, labels: Labels, class_names: Sequence[str], coarse_of_fine: Sequence[int]) -> None:
    classes = logits.shape[1]
    if not len(labels):
        raise DataError("there are no predictions to score; expected at least one image.")
    if len(class_names) != classes or len(coarse_of_fine) not in (0, classes):
        raise DataError(
            f"predictions for {classes} classes cannot be scored with {len(class_names)} class names and "
            f"{len(coarse_of_fine)} super-classes; they come from different data."
        )
    if not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise DataError(
            f"labels run from {int(labels.min())} to {int(labels.max())}; expected class numbers from 0 to {classes - 1}."
        )


def confusion(guesses: Labels, labels: Labels, classes: int) -> Int64[Tensor, "classes classes"]:
    """Count the predictions of each class's images, one row per class; predictions of -1 are not counted."""
    from torchmetrics.functional.classification import multiclass_confusion_matrix

    valid = guesses >= 0
    counted: Tensor = multiclass_confusion_matrix(guesses[valid], labels[valid], classes, validate_args=False)
    return counted


def counted(
    confusion: Int64[Tensor, "classes classes"],
    num_images: Sequence[int],
    names: Sequence[str],
    superclasses: Sequence[str | None],
) -> dict[str, Any]:
    """Return the fields of `Scores` that follow from a confusion matrix, by name.

    num_images: of each class, at least as many as its row counts. superclasses: of each class, all None without them.
    """
    count, hits = sum(num_images), int(confusion.trace())
    in_superclass = None
    if None not in superclasses:
        coarse = torch.tensor([superclasses.index(superclass) for superclass in superclasses])
        in_superclass = int(confusion[coarse[:, None] == coarse].sum())
    right, predicted = confusion.diagonal().tolist(), confusion.sum(dim=0).tolist()
    classes = tuple(
        ClassScore(name, superclass, n, _share(hits, n), _share(hits, guessed), _share(2 * hits, n + guessed))
        for name, superclass, n, hits, guessed in zip(names, superclasses, num_images, right, predicted, strict=True)
    )
    occurring = [score for score in classes if score.f1 is not None]
    macro = {
        f"macro_{name}": math.fsum(getattr(score, field) or 0.0 for score in occurring) / len(occurring)
        for name, field in (("precision", "precision"), ("recall", "accuracy"), ("f1", "f1"))
    }
    return {
        "num_images": count,
        "top1": _share(hits, count),
        "superclass_top1": None if in_superclass is None else _share(in_superclass, count),
        "errors_in_superclass": None if in_superclass is None else _share(in_superclass - hits, count - hits),
        "classes": classes,
        "most_confused": _most_confused(confusion, names),
    } | macro


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _most_confused(confusion: Int64[Tensor, "classes classes"], names: Sequence[str]) -> tuple[Confused, ...]:
    """Return the largest off-diagonal counts; ties are ordered by class index."""
    wrong = confusion.clone().fill_diagonal_(0)
    order = wrong.flatten().argsort(descending=True, stable=True)[:MAX_PAIRS].tolist()
    pairs = [divmod(place, len(names)) for place in order]
    return tuple(
        Confused(names[true], names[guess], int(wrong[true, guess])) for true, guess in pairs if wrong[true, guess]
    )


def plain(value: Any) -> Any:
    """Return a value of `Scores` as JSON has it."""
    if isinstance(value, tuple):
        return [{name: plain(inner) for name, inner in vars(row).items()} for row in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
