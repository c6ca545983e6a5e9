"""Lookahead: every few steps the weights return to their own running average."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, final

import torch
from torch import Tensor, nn

from cifar100_tk.ranges import Within, check_ranges


@final
@dataclass(frozen=True, kw_only=True)
class Lookahead:
    """Every k steps, average the weights into slow weights and continue from those (arXiv:1907.08610).

    As in airbench (arXiv:2404.00498, section 3.4), running statistics are averaged too, the fraction of the slow weights that
    is kept rises over the run, and the run ends on them.
    """

    k: Annotated[int, Within(low=1, high=1_000_000, use="use 5")] = 5
    """Steps between averages."""

    decay: Annotated[float, Within(low=0, high=1, below=True, use="use 0.77")] = 0.77
    """The fraction of the slow weights that is kept at the end of the run; it rises as decay * (step / steps of the run)**3."""

    def __post_init__(self) -> None:
        check_ranges(self, "lookahead.")

    def build(self, model: nn.Module) -> dict[str, Tensor]:
        """Return the slow weights, a copy of the model's floating-point weights and buffers, by name."""
        return {name: value.clone() for name, value in model.state_dict().items() if value.is_floating_point()}

    def weight(self, steps_done: int, num_steps: int) -> float | None:
        """Return the fraction of the slow weights to keep after a step, or None if they are not averaged then.

        steps_done: 1..num_steps. The last step returns 1: the run ends on the slow weights.

        >>> [Lookahead(k=5, decay=0.8).weight(step, 20) for step in (1, 5, 10, 19)]
        [None, 0.0125, 0.1, None]
        """
        if steps_done == num_steps:
            return 1.0
        return self.decay * (steps_done / num_steps) ** 3 if steps_done % self.k == 0 else None

    @torch.no_grad()
    def update(self, slow: dict[str, Tensor], model: nn.Module, steps_done: int, num_steps: int) -> None:
        """Average the slow weights with the model's and copy them back, if it is time; both in place."""
        weight = self.weight(steps_done, num_steps)
        if weight is None:
            return
        current = model.state_dict()
        averages, values = list(slow.values()), [current[name] for name in slow]
        torch._foreach_lerp_(averages, values, weight=1.0 - weight)
        torch._foreach_copy_(values, averages)
