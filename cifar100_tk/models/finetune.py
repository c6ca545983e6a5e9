"""Fine-tuning: which parameters of a pretrained network are frozen, and the learning rates of the others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Annotated, final

import torch
from timm.optim import param_groups_layer_decay
from torch import nn

from cifar100_tk.errors import ConfigError
from cifar100_tk.models.pretrained import Pretrained, head_names
from cifar100_tk.ranges import Within, check_ranges


@final
@dataclass(frozen=True, kw_only=True)
class FineTune:
    """Frozen parameters and lower learning rates for the pretrained part of a network, its backbone.

    The backbone is every pretrained tensor outside the classifier. A BatchNorm layer whose parameters are all frozen keeps its
    running statistics and normalizes with them.
    """

    freeze: tuple[str, ...] = ()
    """Patterns of the names of parameters that are never trained, such as `conv1.*`, with `*`, `?` and `[...]` as in a shell;
    () for none."""

    freeze_epochs: Annotated[int, Within(low=0, high=100_000, use="use 1, or 0 for none")] = 0
    """Epochs at the start of the run in which the backbone is frozen; 0 trains it from the start."""

    backbone_lr_scale: Annotated[float, Within(low=0, above=True, high=1, use="use 0.1, or 1 for no difference")] = 1.0
    """The backbone's learning rate as a fraction of the others'; 1 for no difference."""

    layer_decay: Annotated[float, Within(low=0, above=True, high=1, use="use 0.75, or 1 for no decay")] = 1.0
    """The factor by which the learning rate falls from each layer, as timm counts them, to the one before it
    (arXiv:2106.08254); 1 for no decay."""

    def __post_init__(self) -> None:
        check_ranges(self, "finetune.")
        if type(self.freeze) is not tuple or not all(isinstance(pattern, str) for pattern in self.freeze):
            raise ConfigError(f"finetune.freeze={self.freeze!r} must be a tuple of patterns; use ('conv1.*',).")

    def apply(self, net: nn.Module) -> frozenset[str]:
        """Freeze the parameters that a pattern matches, for the whole run, and return their names.

        Raises ConfigError for a pattern that matches none, and if no parameter is left to train.
        """
        named = dict(net.named_parameters())
        for pattern in self.freeze:
            if not any(fnmatchcase(name, pattern) for name in named):
                raise ConfigError(
                    f"finetune.freeze: {pattern!r} matches no parameter; the names are {', '.join(list(named)[:3])} and so "
                    "on, and `layer1.*` matches all that begin with `layer1.`."
                )
        frozen = frozenset(name for name in named if any(fnmatchcase(name, pattern) for pattern in self.freeze))
        if frozen == named.keys():
            raise ConfigError(
                f"finetune.freeze={self.freeze} freezes every parameter; leave the classifier out of the patterns."
            )
        for name in frozen:
            named[name].requires_grad_(False)
        return frozen

    def describe(self) -> str:
        """Return the learning rates as the plan shows them; "" if all are the same.

        >>> FineTune(backbone_lr_scale=0.1, layer_decay=0.75).describe()
        '0.1 times the learning rate for the backbone; 0.75 times for each layer further from the classifier'
        """
        parts = []
        if self.backbone_lr_scale != 1:
            parts.append(f"{self.backbone_lr_scale:g} times the learning rate for the backbone")
        if self.layer_decay != 1:
            parts.append(f"{self.layer_decay:g} times for each layer further from the classifier")
        return "; ".join(parts)

    def lr_scales(self, net: nn.Module, backbone: frozenset[str]) -> dict[nn.Parameter, float]:
        """Return the learning rate of each trained parameter as a fraction of the schedule's. backbone: names."""
        # Built for their learning rates; the optimizer's own groups have the weight decay.
        groups = param_groups_layer_decay(net, weight_decay=0.0, layer_decay=self.layer_decay)
        by_layer = {parameter: float(group["lr_scale"]) for group in groups for parameter in group["params"]}
        return {
            parameter: by_layer[parameter] * (self.backbone_lr_scale if name in backbone else 1.0)
            for name, parameter in net.named_parameters()
            if parameter.requires_grad
        }


def backbone_of(net: nn.Module, pretrained: Pretrained) -> frozenset[str]:
    """Return the names of the pretrained parameters outside the classifier."""
    heads = tuple(f"{name}." for name in head_names(net))
    taken = set(pretrained.taken)
    return frozenset(name for name, _ in net.named_parameters() if name in taken and not name.startswith(heads))


def scale_lr(optimizer: torch.optim.Optimizer, scales: Mapping[nn.Parameter, float]) -> None:
    """Split the groups of a new optimizer by learning rate: each gets an `lr_scale`, timm's name for the fraction."""
    groups = []
    for group in optimizer.param_groups:
        parts: dict[float, list[nn.Parameter]] = {}
        for parameter in group["params"]:
            parts.setdefault(scales.get(parameter, 1.0), []).append(parameter)
        groups += [group | {"params": parameters, "lr_scale": scale} for scale, parameters in parts.items()]
    optimizer.param_groups[:] = groups


class Freezer:
    """Keeps parameters and BatchNorm layers of a network frozen, some of them for the first epochs only."""

    def __init__(
        self, net: nn.Module, always: frozenset[str], backbone: frozenset[str], freeze_epochs: int, *, in_graph: bool
    ) -> None:
        """always, backbone: names of the parameters that are frozen always, and in the first `freeze_epochs`.

        in_graph: compute the gradients of the backbone even while it is frozen, and drop them, as several processes need,
        which all must reduce the same gradients at every step.
        """
        self.net, self.always, self.backbone, self.freeze_epochs = net, always, backbone - always, freeze_epochs
        self.in_graph = in_graph
        self.frozen: frozenset[str] | None = None
        """Names of the parameters that are frozen now; None before the first epoch is set."""
        self._dropped: list[nn.Parameter] = []

    def describe(self) -> str:
        """Return the frozen parameters as the plan shows them."""
        count = sum(p.numel() for name, p in self.net.named_parameters() if name in self.always)
        parts = [f"{len(self.always)} tensors, {count:,} parameters, for the whole run"] if self.always else []
        if self.freeze_epochs and self.backbone:
            epochs = "the first epoch" if self.freeze_epochs == 1 else f"the first {self.freeze_epochs} epochs"
            parts.append(f"the backbone, {len(self.backbone)}{' more' * bool(self.always)} tensors, for {epochs}")
        return "; ".join(parts) or "nothing"

    def set_epoch(self, epoch: int) -> bool:
        """Freeze what is frozen in an epoch, counted from 0. Returns whether that is a change."""
        frozen = self.always | self.backbone if epoch < self.freeze_epochs else self.always
        if frozen == self.frozen:
            return False
        self.frozen = frozen
        parameters = dict(self.net.named_parameters())
        self._dropped = [parameters[name] for name in sorted(frozen & self.backbone)]
        if not self.in_graph:
            for name in self.backbone:
                parameters[name].requires_grad_(name not in frozen)
        for name, module in self._norms():
            module.train(self.net.training and not self._holds(name, module))
        return True

    def drop_gradients(self) -> None:
        """Drop the gradients of parameters that are frozen for now: optimizers skip a parameter without one."""
        for parameter in self._dropped:
            parameter.grad = None

    def statistics(self) -> list[torch.Tensor]:
        """Return the running statistics that training moves."""
        still = {
            id(buffer) for name, module in self._norms() if self._holds(name, module) for buffer in module.buffers()
        }
        return [buffer for buffer in self.net.buffers() if buffer.is_floating_point() and id(buffer) not in still]

    def _norms(self) -> list[tuple[str, nn.Module]]:
        return [(name, module) for name, module in self.net.named_modules() if isinstance(module, _BATCH_NORMS)]

    def _holds(self, name: str, module: nn.Module) -> bool:
        """Return whether a BatchNorm layer is frozen: all of its parameters are, and it has some."""
        own = [f"{name}.{key}" for key, _ in module.named_parameters(recurse=False)]
        return bool(own) and self.frozen is not None and self.frozen.issuperset(own)


_BATCH_NORMS = (nn.modules.batchnorm._BatchNorm,)
