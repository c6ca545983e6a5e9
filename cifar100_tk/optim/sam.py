"""Sharpness-aware minimization: the gradient of a step is taken where the loss nearby is highest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, final

import torch
from torch import Tensor

from cifar100_tk.phases import Phased
from cifar100_tk.ranges import Within


@final
@dataclass(frozen=True, kw_only=True)
class SAM(Phased):
    """Sharpness-aware minimization (arXiv:2010.01412) around any optimizer.

    Each step first computes the gradient on a few images of the batch, moves the weights by `rho` along it, computes the
    gradient of the whole batch there, moves them back exactly, and takes the optimizer's step with that gradient. BatchNorm's
    running statistics are updated by the first pass only, at the weights that the network keeps. The reported training
    loss is that of the second pass.
    """

    rho: Annotated[float, Within(low=0, above=True, high=100, use="use 0.1, or sam=None for none")] = 0.1
    """The distance that the weights are moved, the L2 norm over all trainable parameters together."""

    num_images: Annotated[int, Within(low=1, high=2**20, use="use 128")] = 128
    """Images of the global batch that the first gradient is computed on, its first ones; fewer take less time, and the batch
    size or more uses the whole batch."""

    def __post_init__(self) -> None:
        self.check("sam.")

    @torch.no_grad()
    def perturb(self, parameters: Sequence[Tensor], gradient: Sequence[Tensor]) -> None:
        """Move the parameters by rho along the gradient, in place (eq. 2 for p = 2).

        A gradient that is not finite makes the parameters not finite, so that the step is detected as such.
        """
        norm = torch.nn.utils.get_total_norm(gradient)
        torch._foreach_add_(list(parameters), torch._foreach_mul(list(gradient), self.rho / (norm + 1e-12)))
