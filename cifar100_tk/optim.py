"""Optimizers with their parameter groups, learning-rate schedules as pure functions of the step, and weight averaging."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, final

import torch
from timm.utils.model_ema import ModelEmaV3
from torch import nn

from cifar100_tk.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Optimizer(ABC):
    """What updates the weights; `build` gives the plain torch optimizer."""

    lr: float
    """The peak learning rate for a global batch of `lr_batch_size` images; the run scales it to its own batch size."""

    lr_batch_size: int = 256
    """Images the `lr` is meant for (linear scaling, arXiv:1706.02677 section 2.1); 0 takes `lr` as it is."""

    weight_decay: float = 0.0
    """The decay added to the gradient (SGD, per unit of weight) or taken from the weight (AdamW); 0 turns it off."""

    decay_norm_and_bias: bool = True
    """Whether normalization weights and biases are decayed too."""

    def __post_init__(self) -> None:
        if not self.lr > 0 or not math.isfinite(self.lr):
            raise ConfigError(
                f"optimizer.lr={self.lr} is not a positive number; the reference recipe uses 0.1 per 256 images."
            )
        if self.lr_batch_size < 0:
            raise ConfigError(
                f"optimizer.lr_batch_size={self.lr_batch_size} is negative; use 256, or 0 for no scaling."
            )
        if not self.weight_decay >= 0:
            raise ConfigError(f"optimizer.weight_decay={self.weight_decay} is negative; use 5e-4, or 0 for none.")

    @abstractmethod
    def build(self, model: nn.Module) -> torch.optim.Optimizer:
        """Return the torch optimizer over the model's trainable parameters; its learning rate is set step by step."""

    def peak_lr(self, batch_size: int) -> float:
        """Return the learning rate at the top of the schedule for a global batch.

        >>> SGD(lr=0.1).peak_lr(2048), SGD(lr=0.1, lr_batch_size=0).peak_lr(2048)
        (0.8, 0.1)
        """
        return self.lr * batch_size / self.lr_batch_size if self.lr_batch_size else self.lr

    def parameter_groups(self, model: nn.Module) -> list[dict[str, Any]]:
        """Return torch's parameter groups: one, or a decayed one (matrices and kernels) and an undecayed one (the rest)."""
        named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        if self.decay_norm_and_bias:
            return [{"params": [p for _, p in named], "weight_decay": self.weight_decay}]
        return [
            {"params": [p for _, p in named if p.ndim > 1], "weight_decay": self.weight_decay},
            {"params": [p for _, p in named if p.ndim <= 1], "weight_decay": 0.0},
        ]


@final
@dataclass(frozen=True, kw_only=True)
class SGD(Optimizer):
    """Stochastic gradient descent with momentum, weight decay added to the gradient."""

    momentum: float = 0.9
    """The share of the last update that is kept; 0 turns momentum off."""

    nesterov: bool = True
    """Whether the gradient is taken a step ahead (Sutskever et al. 2013); needs momentum."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 <= self.momentum < 1.0:
            raise ConfigError(f"optimizer.momentum={self.momentum} is not in [0, 1); use 0.9, or 0 for none.")
        if self.nesterov and self.momentum == 0:
            raise ConfigError(
                "optimizer.nesterov needs momentum; give --optimizer.momentum 0.9 or --optimizer.no-nesterov."
            )

    def build(self, model: nn.Module) -> torch.optim.Optimizer:
        """Return `torch.optim.SGD`."""
        return torch.optim.SGD(self.parameter_groups(model), lr=self.lr, momentum=self.momentum, nesterov=self.nesterov)


@final
@dataclass(frozen=True, kw_only=True)
class AdamW(Optimizer):
    """Adam with decoupled weight decay (arXiv:1711.05101)."""

    betas: tuple[float, float] = (0.9, 0.999)
    """The decay of the running mean of the gradient and of its square, each in [0, 1)."""

    eps: float = 1e-8
    """Added to the root of the second moment, against division by zero."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not all(0.0 <= beta < 1.0 for beta in self.betas):
            raise ConfigError(f"optimizer.betas={self.betas} are not both in [0, 1); use 0.9 0.999.")

    def build(self, model: nn.Module) -> torch.optim.Optimizer:
        """Return `torch.optim.AdamW`."""
        return torch.optim.AdamW(self.parameter_groups(model), lr=self.lr, betas=self.betas, eps=self.eps)


@final
@dataclass(frozen=True, kw_only=True)
class Muon(Optimizer):
    """Momentum orthogonalized by Newton-Schulz iterations for the convolutions, AdamW for everything else.

    timm's Muon (https://kellerjordan.github.io/posts/muon/) with a convolution seen as the matrix (out, in * kh * kw) and
    updates scaled to the size of AdamW's (arXiv:2502.16982, section 2.2), so learning rates are of AdamW's order.
    The classifier, biases and normalization weights are updated by AdamW.
    """

    momentum: float = 0.95
    """The share of the running mean of the gradient that is kept each step."""

    nesterov: bool = True
    """Whether the gradient of the step counts once more on top of the running mean; in the AdamW part too (NAdamW)."""

    fallback_lr_scale: float = 0.3
    """The learning rate of the AdamW part as a multiple of `lr`."""

    fallback_weight_decay: float = 0.0
    """The decay of the AdamW part; 0 turns it off. `weight_decay` is that of the convolutions."""

    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's decay of the running mean of the gradient and of its square, each in [0, 1)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 <= self.momentum < 1.0:
            raise ConfigError(f"optimizer.momentum={self.momentum} is not in [0, 1); use 0.95.")
        if not 0 < self.fallback_lr_scale < math.inf:
            raise ConfigError(
                f"optimizer.fallback_lr_scale={self.fallback_lr_scale} is not a positive number; use 0.3."
            )
        if not 0 <= self.fallback_weight_decay < math.inf:
            raise ConfigError(
                f"optimizer.fallback_weight_decay={self.fallback_weight_decay} is not a number from 0 up; use 0."
            )
        if not all(0.0 <= beta < 1.0 for beta in self.betas):
            raise ConfigError(f"optimizer.betas={self.betas} are not both in [0, 1); use 0.9 0.95.")
        if not self.decay_norm_and_bias:
            raise ConfigError("optimizer.decay_norm_and_bias has no effect on Muon; use fallback_weight_decay.")

    def build(self, model: nn.Module) -> torch.optim.Optimizer:
        """Return `timm.optim.Muon`. Raises ConfigError if the model has no convolution to train."""
        from timm.optim import Muon as TimmMuon  # Late, since importing timm takes seconds.

        trained = [p for p in model.parameters() if p.requires_grad]
        kernels, others = [p for p in trained if p.ndim == 4], [p for p in trained if p.ndim != 4]
        if not kernels:
            raise ConfigError("Muon needs convolutions, and the model has none; use AdamW.")
        groups = [
            {"params": kernels, "weight_decay": self.weight_decay, "use_fallback": False},
            {"params": others, "weight_decay": self.fallback_weight_decay, "use_fallback": True},
        ]
        return TimmMuon(
            [group for group in groups if group["params"]],
            lr=self.lr,
            momentum=self.momentum,
            nesterov=self.nesterov,
            betas=self.betas,
            fallback_lr_scale=self.fallback_lr_scale,
        )


@dataclass(frozen=True, kw_only=True)
class Schedule(ABC):
    """The learning rate of a step as a pure function of the step, after a linear warm-up from nearly zero."""

    final_lr: float = 1e-6
    """The learning rate of the last step, absolute."""

    def __post_init__(self) -> None:
        if not 0 <= self.final_lr < math.inf:
            raise ConfigError(f"schedule.final_lr={self.final_lr} is not a number from 0 up; use 1e-6.")

    def lr(self, step: int, *, peak_lr: float, steps_per_epoch: int, num_steps: int) -> float:
        """Return the learning rate of one step. step: 0..num_steps-1."""
        done, warmup = step + 1, self.warmup_steps(steps_per_epoch, num_steps)
        if done <= warmup:
            return peak_lr * done / warmup
        return self.final_lr + (peak_lr - self.final_lr) * self.decay((done - warmup) / (num_steps - warmup))

    @abstractmethod
    def warmup_steps(self, steps_per_epoch: int, num_steps: int) -> int:
        """Return the number of steps over which the rate rises to its peak; 0 starts at the peak."""

    @abstractmethod
    def decay(self, progress: float) -> float:
        """Return the share of the peak that is left. progress: in (0, 1], the part of the decay that is done."""


@final
@dataclass(frozen=True, kw_only=True)
class OneCycle(Schedule):
    """Up in a straight line over a share of the run, then down to the end (arXiv:1708.07120)."""

    pct_start: float = 0.2
    """The share of the run over which the rate rises, in [0, 1); named as in `torch.optim.lr_scheduler.OneCycleLR`."""

    anneal: Literal["linear", "cosine"] = "linear"
    """The way down: a straight line or half a cosine."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.pct_start < 1:
            raise ConfigError(f"schedule.pct_start={self.pct_start} is not in [0, 1); use 0.2.")
        if self.anneal not in ("linear", "cosine"):
            raise ConfigError(f"schedule.anneal={self.anneal!r} is not supported; use 'linear' or 'cosine'.")

    def warmup_steps(self, steps_per_epoch: int, num_steps: int) -> int:
        """Return `pct_start` of all steps, rounded."""
        return round(self.pct_start * num_steps)

    def decay(self, progress: float) -> float:
        """Return 1 - progress, or (1 + cos(pi * progress)) / 2."""
        return 1.0 - progress if self.anneal == "linear" else (1.0 + math.cos(math.pi * progress)) / 2.0


@dataclass(frozen=True, kw_only=True)
class Warmup(Schedule):
    """A schedule whose warm-up is given in epochs."""

    warmup_epochs: float = 10.0
    """Epochs, or parts of one, over which the rate rises to its peak in equal steps; 0 starts at the peak."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.warmup_epochs < math.inf:
            raise ConfigError(
                f"schedule.warmup_epochs={self.warmup_epochs} is not a number from 0 up; use 10, or 0 for none."
            )

    def warmup_steps(self, steps_per_epoch: int, num_steps: int) -> int:
        """Return the warm-up in steps."""
        return round(self.warmup_epochs * steps_per_epoch)


@final
@dataclass(frozen=True, kw_only=True)
class WarmupCosine(Warmup):
    """Linear warm-up, then half a cosine (SGDR, arXiv:1608.03983 eq. 5)."""

    def decay(self, progress: float) -> float:
        """Return (1 + cos(pi * progress)) / 2."""
        return (1.0 + math.cos(math.pi * progress)) / 2.0


@final
@dataclass(frozen=True, kw_only=True)
class WarmupLinear(Warmup):
    """Linear warm-up, then a straight line down."""

    def decay(self, progress: float) -> float:
        """Return 1 - progress."""
        return 1.0 - progress


@final
@dataclass(frozen=True, kw_only=True)
class Ema:
    """An exponential moving average of weights and running statistics, evaluated beside the raw ones and saved as the model."""

    decay: float = 0.999
    """The share of the average that is kept each step: it remembers about 1 / (1 - decay) steps."""

    warmup: bool = True
    """Whether the decay starts at 0 and grows as 1 - (1 + step)**(-2/3), so that the random start is forgotten."""

    def __post_init__(self) -> None:
        if not 0.0 < self.decay < 1.0:
            raise ConfigError(f"ema.decay={self.decay} is not in (0, 1); use 0.999.")

    def build(self, model: nn.Module) -> ModelEmaV3:
        """Return timm's averager with a copy of the model; call `update(model, step)` with the step counted from 1."""
        return ModelEmaV3(model, decay=self.decay, use_warmup=self.warmup)


def named_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the optimizer's tensors as ("momentum_buffer/conv1.weight", tensor): by name, so that no order matters."""
    for name, parameter in model.named_parameters():
        for key, value in sorted(optimizer.state.get(parameter, {}).items()):
            if isinstance(value, torch.Tensor):
                yield f"{key}/{name}", value


def load_named_state(model: nn.Module, optimizer: torch.optim.Optimizer, state: Mapping[str, torch.Tensor]) -> None:
    """Put back what `named_state` gave, on the parameters' devices."""
    parameters = dict(model.named_parameters())
    for full_name, value in state.items():
        key, name = full_name.split("/", 1)
        parameter = parameters[name]
        # A buffer shaped as its weight takes the weight's device and layout; AdamW's step counters stay on the host.
        like = torch.empty_like(parameter) if value.shape == parameter.shape else torch.empty_like(value)
        optimizer.state[parameter][key] = like.copy_(value)
