"""Lookahead: its weights worked out by hand, and the run that ends on them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from cifar100_tk.optim import Lookahead


def test_the_weights_return_to_an_average_that_gets_slower() -> None:
    model, lookahead = nn.Linear(1, 1, bias=False), Lookahead(k=2, decay=0.8)
    with torch.no_grad():
        model.weight.fill_(8.0)
        slow = lookahead.build(model)
        seen = []
        for steps_done in range(1, 6):
            model.weight -= 1.0
            lookahead.update(slow, model, steps_done, 5)
            seen.append(model.weight.item())
    first = 8 * 0.8 * 0.4**3 + 6 * (1 - 0.8 * 0.4**3)  # After two steps: 8 is kept in part, 6 is new.
    decay = 0.8 * 0.8**3
    second = first * decay + (first - 2) * (1 - decay)
    # The last step is not of the average: the run ends on the slow weights.
    assert seen == pytest.approx([7, first, first - 1, second, second], rel=1e-6)


def test_running_statistics_are_averaged_and_counters_are_not() -> None:
    model = nn.BatchNorm2d(1)
    slow = Lookahead().build(model)
    assert set(slow) == {"weight", "bias", "running_mean", "running_var"}
    with torch.no_grad():
        model.get_buffer("running_mean").add_(1.0)
        model.get_buffer("num_batches_tracked").add_(5)
    Lookahead(k=5, decay=0.8).update(slow, model, 5, 10)
    assert slow["running_mean"].item() == pytest.approx(0.9)  # 0.8 * 0.5**3 is kept of 0.
    assert model.running_mean is not None and model.running_mean.item() == slow["running_mean"].item()
    assert model.num_batches_tracked == 5
