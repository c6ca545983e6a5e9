"""Both smoothing conventions, against targets written out by hand and against torch's own loss."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
import torch

from cifar100_tk.augment import soft_targets
from cifar100_tk.errors import ConfigError
from cifar100_tk.optim import CrossEntropy

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
