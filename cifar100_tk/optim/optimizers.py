"""Optimizers with their parameter groups, and their state by parameter name."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, final

import torch
from torch import nn

from cifar100_tk.errors import ConfigError
from cifar100_tk.ranges import Within, check_ranges


@dataclass(frozen=True, kw_only=True)
class Optimizer(ABC):
    """The settings of an optimizer; `build` returns the plain torch optimizer."""

    lr: Annotated[float, Within(low=0, above=True, high=1000, use="the reference recipe uses 0.1 per 256 images")]
    """The peak learning rate for a global batch of `lr_batch_size` images; the run scales it to its own batch size."""

    lr_batch_size: Annotated[int, Within(low=0, high=2**20, use="use 256, or 0 for no scaling")] = 256
    """Global batch size that `lr` is meant for (linear scaling, arXiv:1706.02677 section 2.1); 0 uses `lr` unscaled."""

    weight_decay: Annotated[float, Within(low=0, high=1000, use="use 5e-4, or 0 for none")] = 0.0
    """Weight decay: added to the gradient per unit of weight (SGD) or subtracted from the weight (AdamW); 0 turns it off."""

    decay_norm_and_bias: bool = True
    """Apply weight decay to normalization weights and biases too."""

    def __post_init__(self) -> None:
        check_ranges(self, "optimizer.")

    @abstractmethod
    def build(self, model: nn.Module, *, fused: bool = False) -> torch.optim.Optimizer:
        """Return the torch optimizer over the model's trainable parameters; its learning rate is set step by step.

        fused: update all parameters in a few kernels, by the same formula but with different rounding.
        """

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

    momentum: Annotated[float, Within(low=0, high=1, below=True, use="use 0.9, or 0 for none")] = 0.9
    """The fraction of the last update that is kept; 0 turns momentum off."""

    nesterov: bool = True
    """Use Nesterov momentum, with the gradient taken a step ahead (Sutskever et al. 2013); needs momentum."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.nesterov and self.momentum == 0:
            raise ConfigError(
                "optimizer.nesterov needs momentum; use --optimizer.momentum 0.9 or --optimizer.no-nesterov."
            )

    def build(self, model: nn.Module, *, fused: bool = False) -> torch.optim.Optimizer:
        """Return `torch.optim.SGD`."""
        groups = self.parameter_groups(model)
        return torch.optim.SGD(groups, lr=self.lr, momentum=self.momentum, nesterov=self.nesterov, fused=fused or None)


@final
@dataclass(frozen=True, kw_only=True)
class AdamW(Optimizer):
    """Adam with decoupled weight decay (arXiv:1711.05101)."""

    betas: Annotated[tuple[float, float], Within(low=0, high=1, below=True, use="use 0.9 0.999")] = (0.9, 0.999)
    """The decay rates of the running means of the gradient and of its square, each in [0, 1)."""

    eps: Annotated[float, Within(low=0, above=True, high=1, use="use 1e-8")] = 1e-8
    """Added to the root of the second moment to avoid division by zero."""

    def build(self, model: nn.Module, *, fused: bool = False) -> torch.optim.Optimizer:
        """Return `torch.optim.AdamW`."""
        groups = self.parameter_groups(model)
        return torch.optim.AdamW(groups, lr=self.lr, betas=self.betas, eps=self.eps, fused=fused or None)


@final
@dataclass(frozen=True, kw_only=True)
class Muon(Optimizer):
    """Momentum orthogonalized by Newton-Schulz iterations for the convolutions, AdamW for everything else.

    timm's Muon (https://kellerjordan.github.io/posts/muon/) with each convolution treated as a matrix (out, in * kh * kw) and
    updates scaled to the size of AdamW's (arXiv:2502.16982, section 2.2), so learning rates are of AdamW's order.
    The classifier, biases and normalization weights are updated by AdamW.
    """

    momentum: Annotated[float, Within(low=0, high=1, below=True, use="use 0.95")] = 0.95
    """The fraction of the gradient's running mean that is kept at each step."""

    nesterov: bool = True
    """Use Nesterov momentum, which adds the current gradient to the running mean again; the AdamW part becomes NAdamW."""

    ns_steps: Annotated[int, Within(low=1, high=20, use="use 5, or 3 to save time")] = 5
    """Newton-Schulz iterations; fewer orthogonalize less exactly and take less time."""

    fallback_lr_scale: Annotated[float, Within(low=0, above=True, high=1000, use="use 0.3")] = 0.3
    """The learning rate of the AdamW part as a multiple of `lr`."""

    fallback_weight_decay: Annotated[float, Within(low=0, high=1000, use="use 0.01, or 0 for none")] = 0.0
    """The weight decay of the AdamW part; 0 turns it off. `weight_decay` applies to the convolutions."""

    betas: Annotated[tuple[float, float], Within(low=0, high=1, below=True, use="use 0.9 0.95")] = (0.9, 0.95)
    """AdamW's decay rates of the running means of the gradient and of its square, each in [0, 1)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.decay_norm_and_bias:
            raise ConfigError("optimizer.decay_norm_and_bias has no effect on Muon; use fallback_weight_decay.")

    def build(self, model: nn.Module, *, fused: bool = False) -> torch.optim.Optimizer:
        """Return `timm.optim.Muon`, which has no fused form. Raises ConfigError if the model has no trainable convolution."""
        from timm.optim import Muon as TimmMuon  # Imported late, since timm takes seconds.

        trained = [p for p in model.parameters() if p.requires_grad]
        kernels, others = [p for p in trained if p.ndim == 4], [p for p in trained if p.ndim != 4]
        if not kernels:
            raise ConfigError("Muon needs convolutions and the model has none; use AdamW.")
        groups = [
            {"params": kernels, "weight_decay": self.weight_decay, "use_fallback": False},
            {"params": others, "weight_decay": self.fallback_weight_decay, "use_fallback": True},
        ]
        return TimmMuon(
            [group for group in groups if group["params"]],
            lr=self.lr,
            momentum=self.momentum,
            nesterov=self.nesterov,
            ns_steps=self.ns_steps,
            betas=self.betas,
            fallback_lr_scale=self.fallback_lr_scale,
        )


def named_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the optimizer's tensors as ("momentum_buffer/conv1.weight", tensor): by name, so that the order does not matter."""
    for name, parameter in model.named_parameters():
        for key, value in sorted(optimizer.state.get(parameter, {}).items()):
            if isinstance(value, torch.Tensor):
                yield f"{key}/{name}", value


def load_named_state(model: nn.Module, optimizer: torch.optim.Optimizer, state: Mapping[str, torch.Tensor]) -> None:
    """Restore the result of `named_state` where the optimizer expects it."""
    parameters = dict(model.named_parameters())
    fused = {parameter for group in optimizer.param_groups if group.get("fused") for parameter in group["params"]}
    for full_name, value in state.items():
        key, name = full_name.split("/", 1)
        parameter = parameters[name]
        # A buffer of its weight's shape takes the weight's device and layout. AdamW's step counters are on the host, but a
        # fused update reads them on the device.
        if value.shape == parameter.shape:
            like = torch.empty_like(parameter)
        else:
            like = torch.empty_like(value, device=parameter.device if parameter in fused else "cpu")
        optimizer.state[parameter][key] = like.copy_(value)
