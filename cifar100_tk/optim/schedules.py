"""Learning-rate schedules as pure functions of the step."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Annotated, Literal, final

from cifar100_tk.errors import ConfigError
from cifar100_tk.ranges import Within, check_ranges


@dataclass(frozen=True, kw_only=True)
class Schedule(ABC):
    """The learning rate of a step as a pure function of the step, after a linear warm-up from nearly zero."""

    final_lr: Annotated[float, Within(low=0, high=1000, use="use 1e-6")] = 1e-6
    """The learning rate of the last step (absolute, not a multiple of the peak)."""

    def __post_init__(self) -> None:
        check_ranges(self, "schedule.")

    def lr(self, step: int, *, peak_lr: float, steps_per_epoch: int, num_steps: int) -> float:
        """Return the learning rate of one step. step: 0..num_steps-1."""
        done, warmup = step + 1, self.warmup_steps(steps_per_epoch, num_steps)
        if done <= warmup:
            return peak_lr * done / warmup
        return self.final_lr + (peak_lr - self.final_lr) * self.decay_factor((done - warmup) / (num_steps - warmup))

    @abstractmethod
    def warmup_steps(self, steps_per_epoch: int, num_steps: int) -> int:
        """Return the number of steps over which the rate rises to its peak; 0 starts at the peak."""

    @abstractmethod
    def decay_factor(self, progress: float) -> float:
        """Return the remaining fraction of the peak. progress: the completed fraction of the decay, in (0, 1]."""


@final
@dataclass(frozen=True, kw_only=True)
class OneCycle(Schedule):
    """Linear warm-up over a fraction of the run, then a decay to its end (arXiv:1708.07120)."""

    pct_start: Annotated[float, Within(low=0, high=1, below=True, use="use 0.2")] = 0.2
    """The fraction of the run over which the rate rises, in [0, 1); named as in `torch.optim.lr_scheduler.OneCycleLR`."""

    anneal: Literal["linear", "cosine"] = "linear"
    """The shape of the decay: linear or half a cosine."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.anneal not in ("linear", "cosine"):
            raise ConfigError(f"schedule.anneal={self.anneal!r} is not supported; use 'linear' or 'cosine'.")

    def warmup_steps(self, steps_per_epoch: int, num_steps: int) -> int:
        """Return `pct_start` of all steps, rounded."""
        return round(self.pct_start * num_steps)

    def decay_factor(self, progress: float) -> float:
        """Return 1 - progress, or (1 + cos(pi * progress)) / 2."""
        return 1.0 - progress if self.anneal == "linear" else (1.0 + math.cos(math.pi * progress)) / 2.0


@dataclass(frozen=True, kw_only=True)
class Warmup(Schedule):
    """A schedule whose warm-up is given in epochs."""

    warmup_epochs: Annotated[float, Within(low=0, high=100_000, use="use 10, or 0 for none")] = 10.0
    """Epochs, whole or fractional, over which the rate rises linearly to its peak; 0 starts at the peak."""

    def warmup_steps(self, steps_per_epoch: int, num_steps: int) -> int:
        """Return the warm-up in steps."""
        return round(self.warmup_epochs * steps_per_epoch)


@final
@dataclass(frozen=True, kw_only=True)
class WarmupCosine(Warmup):
    """Linear warm-up, then half a cosine (SGDR, arXiv:1608.03983 eq. 5)."""

    def decay_factor(self, progress: float) -> float:
        """Return (1 + cos(pi * progress)) / 2."""
        return (1.0 + math.cos(math.pi * progress)) / 2.0


@final
@dataclass(frozen=True, kw_only=True)
class WarmupLinear(Warmup):
    """Linear warm-up, then linear decay."""

    def decay_factor(self, progress: float) -> float:
        """Return 1 - progress."""
        return 1.0 - progress
