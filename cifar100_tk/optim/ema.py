"""The exponential moving average of the weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, final

import torch
from timm.utils.model_ema import ModelEmaV3
from torch import nn

from cifar100_tk.ranges import Within, check_ranges


@final
@dataclass(frozen=True, kw_only=True)
class Ema:
    """An exponential moving average of weights and running statistics, evaluated with the raw weights and saved as the model."""

    decay: Annotated[float, Within(low=0, above=True, high=1, below=True, use="use 0.999")] = 0.999
    """The fraction of the average kept at each step; it averages over about 1 / (1 - decay) steps."""

    warmup: bool = True
    """Start the decay at 0 and let it grow as 1 - (1 + step)**(-2/3), so that the initial random weights are forgotten."""

    def __post_init__(self) -> None:
        check_ranges(self, "ema.")

    def build(self, model: nn.Module) -> ModelEmaV3:
        """Return timm's averager with a copy of the model; call `update(model, step)` with steps counted from 1."""
        return _CachedEma(model, decay=self.decay, use_warmup=self.warmup)


class _CachedEma(ModelEmaV3):
    """timm's averager, except that it looks up the model's tensors once instead of at each step."""

    _pairs: tuple[list[torch.Tensor], list[torch.Tensor], list[torch.Tensor], list[torch.Tensor]] | None = None

    def apply_update_(self, model: nn.Module, decay: float) -> None:
        """Average the weights and the running statistics, and copy the counters."""
        if self._pairs is None:
            averaged, trained = list(self.module.state_dict().values()), list(model.state_dict().values())
            self._pairs = (
                [tensor for tensor in averaged if tensor.is_floating_point()],
                [tensor for tensor in trained if tensor.is_floating_point()],
                [tensor for tensor in averaged if not tensor.is_floating_point()],
                [tensor for tensor in trained if not tensor.is_floating_point()],
            )
        averages, values, counters, counts = self._pairs
        torch._foreach_lerp_(averages, values, weight=1.0 - decay)
        if counters:
            torch._foreach_copy_(counters, counts)
