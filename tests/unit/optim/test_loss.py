"""Both smoothing conventions, against targets written out by hand and against torch's own loss."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from cifar100_tk.augment import soft_targets
from cifar100_tk.errors import ConfigError
from cifar100_tk.optim import BinaryCrossEntropy, CrossEntropy, Distillation

LABELS = torch.tensor([2, 0])


def logits() -> torch.Tensor:
    return torch.randn(2, 4, generator=torch.Generator().manual_seed(0)) * 3


@pytest.mark.parametrize(
    ("smooth_over", "smoothing", "true", "other"),
    [
        ("others", 0.1, 0.9, 0.1 / 3),  # 1 - eps on the class, eps / (C - 1) on each other
        ("all", 0.1, 0.925, 0.025),  # 1 - eps + eps / C on the class, eps / C on each other
        ("others", 0.0, 1.0, 0.0),
        ("all", 0.0, 1.0, 0.0),
    ],
)
def test_smoothed_targets(smooth_over: Literal["others", "all"], smoothing: float, true: float, other: float) -> None:
    loss = CrossEntropy(smoothing=smoothing, smooth_over=smooth_over)
    targets = soft_targets(LABELS, 4, loss.smoothing_over_all(4))
    by_hand = torch.tensor([[other, other, true, other], [true, other, other, other]])
    torch.testing.assert_close(targets, by_hand, rtol=0, atol=1e-7)
    scores = logits().double().numpy()
    log_p = scores - np.log(np.exp(scores).sum(1, keepdims=True))
    assert loss(logits(), targets).item() == pytest.approx(-(by_hand.numpy() * log_p).sum(1).mean(), rel=1e-6)


def test_smoothing_over_all_is_torchs() -> None:
    loss = CrossEntropy(smoothing=0.3, smooth_over="all")
    expected = torch.nn.CrossEntropyLoss(label_smoothing=0.3)(logits(), LABELS)
    torch.testing.assert_close(loss(logits(), soft_targets(LABELS, 4, loss.smoothing_over_all(4))), expected)


def test_two_equal_logits_cost_log_2_nats() -> None:
    loss = CrossEntropy(smoothing=0.0)(torch.zeros(3, 2), torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]]))
    assert loss.item() == pytest.approx(0.69314718)


def test_half_precision_logits_are_summed_in_float32() -> None:
    # In bfloat16 the logarithm of a sum of 100 exponentials would be off by up to 1/64.
    targets = soft_targets(torch.tensor([7]), 100, 0.0)
    loss = CrossEntropy(smoothing=0.0)(torch.zeros(1, 100, dtype=torch.bfloat16), targets)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(4.605170186, abs=1e-6)


@pytest.mark.parametrize("smoothing", [-0.1, 1.0, float("nan")])
def test_smoothing_that_is_no_share_is_refused(smoothing: float) -> None:
    with pytest.raises(
        ConfigError,
        match=rf"loss.smoothing={smoothing} is out of range; expected from 0 to 0\.9; use 0.1, or 0 for none",
    ):
        CrossEntropy(smoothing=smoothing)


def test_an_unknown_convention_is_refused() -> None:
    loss = CrossEntropy()
    # Past the type checks of the test run, which users do not have.
    object.__setattr__(loss, "smooth_over", "other")
    with pytest.raises(ConfigError, match=r"loss\.smooth_over='other' is not supported; use 'others' or 'all'"):
        loss.__post_init__()


SOFT = torch.tensor([[0.0, 0.3, 0.7, 0.0], [0.925, 0.025, 0.025, 0.025]])
"""A mixed image, and one with smoothing."""


@pytest.mark.parametrize(
    ("loss", "targets"),
    [
        (BinaryCrossEntropy(), SOFT),
        (BinaryCrossEntropy(sum_classes=True), SOFT),
        (BinaryCrossEntropy(target_threshold=0.2), torch.tensor([[0.0, 1.0, 1.0, 0.0], [1.0, 0.0, 0.0, 0.0]])),
    ],
    ids=["soft", "summed", "thresholded"],
)
def test_binary_cross_entropy_is_that_of_each_class_alone(loss: BinaryCrossEntropy, targets: torch.Tensor) -> None:
    # -t log p - (1 - t) log (1 - p) with p = 1 / (1 + exp(-x)), for each class, then the mean or the sum over the classes.
    p, t = 1 / (1 + np.exp(-logits().double().numpy())), targets.double().numpy()
    each = -(t * np.log(p) + (1 - t) * np.log(1 - p))
    by_hand = each.sum(1).mean() if loss.sum_classes else each.mean()
    assert loss(logits(), SOFT).item() == pytest.approx(by_hand, rel=1e-6)


def test_a_threshold_of_binary_cross_entropy_is_a_share() -> None:
    with pytest.raises(ConfigError, match=r"loss.target_threshold=1.5 is out of range; .* use 0.2, or None for none"):
        BinaryCrossEntropy(target_threshold=1.5)


def test_distillation_is_the_divergence_at_the_temperature_with_hintons_factor() -> None:
    distillation = Distillation(teacher="any", temperature=3.0, weight=0.75)
    teacher = torch.randn(2, 4, generator=torch.Generator().manual_seed(1)) * 3

    def softmax(x: torch.Tensor) -> NDArray[np.float64]:
        e = np.exp(x.double().numpy() / 3.0)
        shares: NDArray[np.float64] = e / e.sum(1, keepdims=True)
        return shares

    p, q = softmax(teacher), softmax(logits())
    by_hand = 0.25 * 1.5 + 0.75 * 9.0 * (p * np.log(p / q)).sum(1).mean()
    assert distillation(torch.tensor(1.5), logits(), teacher).item() == pytest.approx(by_hand, rel=1e-6)


def test_a_network_that_agrees_with_its_teacher_has_only_its_own_share_of_the_loss() -> None:
    loss = Distillation(teacher="any", weight=0.9)(torch.tensor(2.0), logits(), logits())
    assert loss.item() == pytest.approx(0.2, abs=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"temperature": 0.0}, r"distillation.temperature=0.0 is out of range; .* use 4"),
        ({"weight": 0.0}, r"distillation.weight=0.0 is out of range; .* distillation=None for none"),
        ({"teacher": ""}, r"distillation.teacher is empty; give a run folder, a model folder or a Hub id"),
    ],
)
def test_numbers_of_a_distillation_that_mean_nothing_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Distillation(**({"teacher": "any"} | changes))
