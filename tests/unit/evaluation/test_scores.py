"""Scores against scikit-learn, against numpy written here, and against examples worked out by hand."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import sklearn.metrics
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from cifar100_tk.errors import DataError
from cifar100_tk.evaluation.metrics import Metrics, batch_sums
from cifar100_tk.evaluation.scores import Scaled, Scores, calibration_error, fit_temperature

NAMES, COARSE, COARSE_OF_FINE = ("ant", "bee", "cat", "dog"), ("insect", "pet"), (0, 0, 1, 1)


def scored(logits: Tensor, labels: Tensor) -> Scores:
    return Scores.of(logits, labels, NAMES, COARSE, COARSE_OF_FINE)


def guesses(*numbers: int, sure: float = 3.0) -> Tensor:
    """Logits over four classes that say these, each with the same lead."""
    return sure * torch.nn.functional.one_hot(torch.tensor(numbers), 4).float()


def drawn(seed: int, count: int, classes: int, distinct: int) -> tuple[Tensor, Tensor]:
    """Random logits, of few distinct values where many shall tie, and random labels."""
    rng = np.random.default_rng(seed)
    logits = rng.integers(-distinct, distinct + 1, (count, classes)).astype(np.float32) / 2
    return torch.from_numpy(logits), torch.from_numpy(rng.integers(0, classes, count))


def first_of_a_ranking(logits: Tensor) -> NDArray[np.int64]:
    """The first guesses: a stable sort leaves tied classes in the order of their numbers."""
    return np.argsort(-logits.double().numpy(), axis=1, kind="stable")[:, 0]


def ece_by_loop(logits: Tensor, labels: Tensor) -> float:
    """The definition, bin by bin."""
    shifted = logits.double().numpy()
    # A tie of all classes is then exactly 1 / C, which may be the edge of two bins.
    values = np.exp(shifted - shifted.max(1, keepdims=True))
    confidence = (values / values.sum(1, keepdims=True)).max(1)
    right = first_of_a_ranking(logits) == labels.numpy()
    total = 0.0
    for low in range(15):
        inside = (confidence >= low / 15) & ((confidence < (low + 1) / 15) | (low == 14))
        if inside.any():
            total += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    return total


@given(st.integers(0, 2**31), st.integers(1, 60), st.integers(2, 9), st.integers(0, 6))
@settings(max_examples=40, deadline=None)
def test_every_figure_is_that_of_scikit_learn(seed: int, count: int, classes: int, distinct: int) -> None:
    logits, labels = drawn(seed, count, classes, distinct)
    names = tuple(f"class {number}" for number in range(classes))
    coarse = [number % 2 for number in range(classes)]
    scores = Scores.of(logits, labels, names, ("even", "odd"), coarse)
    truth, said, every = labels.numpy(), first_of_a_ranking(logits), list(range(classes))
    assert scores.num_images == count
    assert scores.top1 == sklearn.metrics.accuracy_score(truth, said)
    assert scores.superclass_top1 == sklearn.metrics.accuracy_score(truth % 2, said % 2)
    assert scores.confusion.tolist() == sklearn.metrics.confusion_matrix(truth, said, labels=every).tolist()
    probabilities = logits.double().softmax(1).numpy()
    assert scores.loss == pytest.approx(sklearn.metrics.log_loss(truth, probabilities, labels=every))
    assert scores.ece == pytest.approx(ece_by_loop(logits, labels), abs=1e-9)
    options: dict[str, Any] = {"labels": every, "zero_division": np.nan}
    precision, recall, f1, images = sklearn.metrics.precision_recall_fscore_support(truth, said, **options)
    for one, *expected in zip(scores.classes, precision, recall, f1, images, strict=True):
        figures = [one.precision, one.accuracy, one.f1, one.num_images]
        assert [math.nan if value is None else value for value in figures] == pytest.approx(expected, nan_ok=True)
    macro = sklearn.metrics.precision_recall_fscore_support(truth, said, average="macro", zero_division=0)[:3]
    assert (scores.macro_precision, scores.macro_recall, scores.macro_f1) == pytest.approx(macro)


@given(st.integers(0, 2**31), st.integers(1, 60), st.integers(5, 9), st.integers(0, 6))
@settings(max_examples=40, deadline=None)
def test_accuracies_and_loss_are_those_of_training(seed: int, count: int, classes: int, distinct: int) -> None:
    logits, labels = drawn(seed, count, classes, distinct)
    scores = Scores.of(logits, labels, [""] * classes, ["all"], [0] * classes)
    metrics = Metrics.from_sums(batch_sums(logits, labels).double())
    assert (scores.num_images, scores.top1, scores.top5) == (metrics.num_images, metrics.top1, metrics.top5)
    assert scores.loss == pytest.approx(metrics.loss, rel=1e-5)


def test_by_hand() -> None:
    # ant, ant, bee, cat, dog, dog are taken for ant, bee, bee, dog, dog, ant.
    scores = scored(guesses(0, 1, 1, 3, 3, 0), torch.tensor([0, 0, 1, 2, 3, 3]))
    assert scores.confusion.tolist() == [[1, 1, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1], [1, 0, 0, 1]]
    assert (scores.num_images, scores.top1, scores.top5) == (6, 3 / 6, 1.0)
    # ant for bee and cat for dog are in the right super-class, dog for ant is not.
    assert (scores.superclass_top1, scores.errors_in_superclass) == (5 / 6, 2 / 3)
    assert [one.accuracy for one in scores.classes] == [1 / 2, 1.0, 0.0, 1 / 2]
    assert [one.precision for one in scores.classes] == [1 / 2, 1 / 2, None, 1 / 2]
    assert [one.f1 for one in scores.classes] == [1 / 2, 2 / 3, 0.0, 1 / 2]
    assert [(one.superclass, one.num_images) for one in scores.classes] == [
        *(("insect", 2), ("insect", 1)),
        *(("pet", 1), ("pet", 2)),
    ]
    assert (scores.macro_precision, scores.macro_recall) == ((0.5 + 0.5 + 0 + 0.5) / 4, (0.5 + 1 + 0 + 0.5) / 4)
    assert list(scores.to_json()["confusion"][3]) == [1, 0, 0, 1]
    assert scores.macro_f1 == pytest.approx((1 / 2 + 2 / 3 + 0 + 1 / 2) / 4)
    pairs = [(one.true, one.predicted, one.num_images) for one in scores.most_confused]
    assert pairs == [("ant", "bee", 1), ("cat", "dog", 1), ("dog", "ant", 1)]
    # Each says its class with p = e^3 / (e^3 + 3); half are right.
    p = math.exp(3) / (math.exp(3) + 3)
    assert scores.ece == pytest.approx(p - 1 / 2)
    assert scores.loss == pytest.approx(-(3 * math.log(p) + 3 * math.log((1 - p) / 3)) / 6)


def test_the_most_confused_pairs_are_sorted_and_at_most_20() -> None:
    # 30 classes; class k is taken for the next one k % 25 times, so that some are equal.
    labels = torch.cat([torch.full((number % 25 + 1,), number) for number in range(30)])
    first = torch.arange(len(labels)) == torch.searchsorted(labels, labels)
    said = torch.where(first, labels, (labels + 1) % 30)
    logits = torch.nn.functional.one_hot(said, 30).float()
    scores = Scores.of(logits, labels, [str(number) for number in range(30)], ["all"], [0] * 30)
    counts = {number: number % 25 for number in range(30) if number % 25}
    expected = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))[:20]
    assert [(one.true, one.num_images) for one in scores.most_confused] == [(str(k), n) for k, n in expected]
    assert all(int(one.predicted) == (int(one.true) + 1) % 30 for one in scores.most_confused)


def test_a_class_that_is_never_guessed_and_one_that_is_absent() -> None:
    # No ant is there, though one image is taken for it; nothing is taken for a cat; no dog in either.
    scores = scored(guesses(0, 1, 1), torch.tensor([1, 1, 2]))
    ant, bee, cat, dog = scores.classes
    assert (ant.num_images, ant.accuracy, ant.precision, ant.f1) == (0, None, 0.0, 0.0)
    assert (bee.num_images, bee.accuracy, bee.precision, bee.f1) == (2, 0.5, 0.5, 0.5)
    assert (cat.num_images, cat.accuracy, cat.precision, cat.f1) == (1, 0.0, None, 0.0)
    assert (dog.num_images, dog.accuracy, dog.precision, dog.f1) == (0, None, None, None)
    assert scores.macro_f1 == pytest.approx(0.5 / 3)  # The mean over ant, bee and cat.


def test_where_all_logits_tie_the_first_class_is_guessed() -> None:
    scores = scored(torch.zeros(8, 4), torch.tensor([0, 1, 2, 3] * 2))
    assert scores.top1 == 1 / 4 and scores.confusion[:, 0].tolist() == [2, 2, 2, 2]
    assert scores.ece == pytest.approx(0.0) and scores.loss == pytest.approx(math.log(4))
    assert scores.errors_in_superclass == 2 / 6  # The bees are taken for ants.


def test_probabilities_that_tie_only_after_rounding_do_not_change_the_guess() -> None:
    # In float32 both probabilities are 1 / 2; the second class is the first guess all the same.
    logits = torch.tensor([[0.0, 1e-9]])
    assert calibration_error(logits, torch.tensor([1])) == pytest.approx(0.5)
    assert calibration_error(logits, torch.tensor([0])) == pytest.approx(0.5)
    assert Scores.of(logits, torch.tensor([1]), "ab", ["all"], [0, 0]).top1 == 1.0


@pytest.mark.parametrize(("said", "top1"), [(2, 1.0), (3, 0.0)])
def test_one_image(said: int, top1: float) -> None:
    scores = scored(guesses(said), torch.tensor([2]))
    assert (scores.num_images, scores.top1, scores.superclass_top1) == (1, top1, 1.0)
    assert scores.errors_in_superclass == (None if top1 else 1.0)


def test_all_right() -> None:
    scores = scored(guesses(0, 1, 2, 3), torch.arange(4))
    assert (
        scores.top1 == scores.superclass_top1 == scores.macro_precision == scores.macro_recall == scores.macro_f1 == 1
    )
    assert scores.errors_in_superclass is None and scores.most_confused == ()


def test_all_wrong() -> None:
    scores = scored(guesses(2, 3, 0, 1), torch.arange(4))
    assert scores.top1 == scores.superclass_top1 == scores.macro_precision == scores.macro_f1 == 0
    assert scores.errors_in_superclass == 0.0
    assert scores.ece == pytest.approx(math.exp(3) / (math.exp(3) + 3))


def test_an_image_whose_logits_are_not_numbers_is_a_miss_without_a_guess() -> None:
    logits = guesses(0, 1, 2)
    logits[2, 1] = math.nan
    scores = scored(logits, torch.tensor([0, 0, 2]))
    assert (scores.num_images, scores.top1, scores.errors_in_superclass) == (3, 1 / 3, 1 / 2)
    assert scores.confusion.sum() == 2
    assert scores.classes[2].accuracy == 0.0 and scores.classes[2].precision is None
    assert math.isnan(scores.loss) and math.isnan(scores.ece)
    held = json.loads(json.dumps(scores.to_json(), allow_nan=False))
    assert held["loss"] is None and held["ece"] is None


def test_an_endless_loss_is_null_in_the_json() -> None:
    logits = torch.tensor([[0.0, -math.inf, 0.0, 0.0]])
    scores = scored(logits, torch.tensor([1]))
    assert scores.loss == math.inf and scores.ece == pytest.approx(1 / 3)
    assert json.loads(json.dumps(scores.to_json(), allow_nan=False))["loss"] is None


def test_the_bins_of_the_calibration_error() -> None:
    # Sure to the last bit, right in one of two: |1 / 2 - 1|, and it shares the last bin with what is nearly as sure.
    logits = torch.tensor([[900.0, 0.0], [900.0, 0.0], [5.0, 0.0], [5.0, 0.0]])
    p = 1 / (1 + math.exp(-5))
    assert calibration_error(logits[:2], torch.tensor([0, 1])) == pytest.approx(1 / 2)
    assert p > 14 / 15
    assert calibration_error(logits, torch.tensor([0, 1, 1, 1])) == pytest.approx((1 + p) / 2 - 1 / 4)
    # In two bins it would be 1 / 2 + (1 - p) / 2.
    assert calibration_error(logits, torch.tensor([1, 1, 0, 0])) == pytest.approx((1 + p) / 2 - 1 / 2)
    # 0.55 is in another bin: (2 of 4) * |1/2 - 1| + (2 of 4) * |1 - 0.55|.
    logits[2:, 0] = math.log(0.55 / 0.45)
    assert calibration_error(logits, torch.tensor([0, 1, 0, 0])) == pytest.approx(0.25 + 0.225, abs=1e-6)


def test_the_json_has_every_field_in_its_place() -> None:
    scores = scored(guesses(0, 1, 1), torch.tensor([0, 0, 1]))
    held = scores.to_json(Scaled(temperature=1.5, fitted_on="holdout", ece=0.25, loss=0.5))
    assert list(held) == [
        *("num_images", "top1", "top5", "loss", "superclass_top1", "errors_in_superclass", "ece"),
        *("temperature", "temperature_fitted_on", "ece_scaled", "loss_scaled"),
        *("macro_precision", "macro_recall", "macro_f1", "classes", "most_confused", "confusion"),
    ]
    assert (held["temperature"], held["temperature_fitted_on"]) == (1.5, "holdout")
    assert (held["ece_scaled"], held["loss_scaled"]) == (0.25, 0.5)
    assert held["classes"][0] == {
        **{"name": "ant", "superclass": "insect", "num_images": 2},
        **{"accuracy": 0.5, "precision": 1.0, "f1": 2 / 3},
    }
    assert held["most_confused"] == [{"true": "ant", "predicted": "bee", "num_images": 1}]
    without = scores.to_json()
    assert [without[name] for name in ("temperature", "temperature_fitted_on", "ece_scaled", "loss_scaled")] == [
        None
    ] * 4
    assert list(without) == list(held)


def test_the_temperature_by_hand() -> None:
    # Right in 3 of 4 at a lead of 2: the best probability is 3/4, so 2 / T = log 3.
    logits = torch.tensor([[2.0, 0.0]]).expand(4, 2)
    temperature = fit_temperature(logits, torch.tensor([0, 0, 0, 1]))
    assert temperature == pytest.approx(2 / math.log(3))
    scaled = Scaled.of(logits, torch.tensor([0, 0, 0, 1]), temperature, "holdout")
    assert scaled.ece == pytest.approx(0.0, abs=1e-9)
    assert scaled.loss == pytest.approx(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)))
    assert scaled.fitted_on == "holdout"


@pytest.mark.parametrize("seed", range(5))
def test_the_temperature_is_that_of_a_search_over_all(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = 5 * torch.randn(80, 6, generator=generator)
    labels = (logits + 6 * torch.randn(80, 6, generator=generator)).argmax(1)
    candidates = np.geomspace(0.01, 100, 1500)
    scaled = logits.double().numpy() / candidates[:, None, None]
    losses = (np.log(np.exp(scaled - scaled.max(2, keepdims=True)).sum(2)) + scaled.max(2)).mean(1)
    losses -= scaled[:, np.arange(80), labels].mean(1)
    assert fit_temperature(logits, labels) == pytest.approx(candidates[losses.argmin()], rel=0.007)


def test_the_temperature_keeps_to_its_range() -> None:
    logits, labels = guesses(0, 1, 2, 3), torch.arange(4)
    coldest = fit_temperature(logits, labels)  # What is all right wants 0; the loss is 0 long before.
    assert 0.01 <= coldest < 0.1 and Scaled.of(logits, labels, coldest, "holdout").loss < 1e-12
    assert fit_temperature(logits, (labels + 1) % 4) == pytest.approx(100.0)


def test_logits_that_are_not_finite_are_left_out_of_the_fit() -> None:
    logits = torch.tensor([[2.0, 0.0]] * 6)
    logits[4, 0], logits[5, 1] = math.nan, math.inf
    labels = torch.tensor([0, 0, 0, 1, 1, 1])
    assert fit_temperature(logits, labels) == pytest.approx(2 / math.log(3))
    with pytest.raises(DataError, match="none of the 2 held-out images has finite logits"):
        fit_temperature(logits[4:], labels[4:])


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        (torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), "no predictions to score; expected at least one"),
        (torch.zeros(2, 10), torch.zeros(2, dtype=torch.int64), "10 classes cannot be scored with 4 class names"),
        (torch.zeros(2, 4), torch.tensor([0, 4]), "labels run from 0 to 4; expected class numbers from 0 to 3"),
        (torch.zeros(2, 4), torch.tensor([-1, 2]), "labels run from -1 to 2"),
    ],
    ids=["nothing", "other classes", "label too large", "label too small"],
)
def test_what_cannot_be_scored_is_said(logits: Tensor, labels: Tensor, message: str) -> None:
    with pytest.raises(DataError, match=message):
        scored(logits, labels)


def test_torchmetrics_is_imported_only_when_there_is_something_to_measure() -> None:
    program = "import sys, cifar100_tk.train, cifar100_tk.evaluation.files; print('torchmetrics' in sys.modules)"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300)
    assert (ended.returncode, ended.stdout.strip()) == (0, "False"), ended.stderr
