"""The whitening initialization: first-layer filters, computed before training, that whiten the training images' patches."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, final

import torch
from torch import Tensor, nn
from torch.nn.functional import unfold

from cifar100_tk.errors import ConfigError
from cifar100_tk.ranges import Within, check_ranges
from cifar100_tk.tensors import Images


@final
@dataclass(frozen=True, kw_only=True)
class Whitening:
    """Sets the first convolution to the eigenvectors of its input patches, each divided by its standard deviation, and to
    their negatives, and freezes it (airbench, arXiv:2404.00498, section 3.2). Its bias is still trained."""

    num_images: Annotated[int, Within(low=1, high=1_000_000, use="use 5000")] = 5_000
    """Number of training images that the patches are taken from, the first of the split."""

    eps: Annotated[float, Within(low=0, above=True, high=1000, use="use 0.01")] = 0.01
    """Added to each variance of the normalized images' patches, so that the weakest directions are not amplified too much."""

    def __post_init__(self) -> None:
        check_ranges(self, "whitening.")

    @torch.no_grad()
    def apply(self, model: nn.Module, images: Images) -> None:
        """Whiten a model in place. images: (N, 3, 32, 32) float32, normalized, on the host.

        Raises ConfigError if the first convolution does not have 2 * 3 * kernel area filters, one per direction and sign.
        """
        name, conv = next(((name, m) for name, m in model.named_modules() if isinstance(m, nn.Conv2d)), ("", None))
        wanted = 0 if conv is None else 2 * conv.in_channels * math.prod(conv.kernel_size)
        if conv is None or conv.groups != 1 or conv.out_channels != wanted:
            found = (
                "the model has none" if conv is None else f"{name} has {conv.out_channels} filters instead of {wanted}"
            )
            raise ConfigError(
                "whitening needs a first convolution with two filters per input value of its window, but "
                f"{found}; use model.name='speednet_w512' or whitening=None."
            )
        weight = whitening_filters(images, conv.kernel_size, self.eps)
        conv.weight.copy_(torch.cat([weight, -weight]))
        conv.weight.requires_grad_(False)
        if conv.bias is not None:
            conv.bias.zero_()


def whitening_filters(images: Images, kernel_size: tuple[int, ...], eps: float) -> Tensor:
    """Return the whitening filters of a set of images, (C * kh * kw, C, kh, kw) float32, by descending variance.

    Computed in float64, with each filter's sign fixed by its largest entry, because LAPACK does not define it.
    """
    height, width = kernel_size
    # (C * kh * kw, patches)
    patches = unfold(images, (height, width)).double().transpose(0, 1).flatten(1)
    variance, vectors = torch.linalg.eigh(patches @ patches.T / patches.shape[1])
    filters = (vectors / torch.sqrt(variance + eps)).T.flip(0)
    largest = filters.gather(1, filters.abs().argmax(1, keepdim=True))
    signed: Tensor = filters * largest.sign()
    return signed.float().view(-1, images.shape[1], height, width)
