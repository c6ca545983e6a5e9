"""Class activation maps: the contribution of each location of the last feature map to the logit of a class."""

from __future__ import annotations

from typing import Any, cast

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from cifar100_tk.tensors import Images, Logits

Maps = Float[Tensor, "batch height width"]
"""Contributions of the last map's locations to a logit: (B, H, W) float32, in logits; 4x4 for this package's
networks on 32x32 images."""


def activation_map(model: nn.Module, images: Images, classes: Int64[Tensor, " batch"]) -> tuple[Maps, Logits] | None:
    """Compute the contribution of each location of the last feature map to the logit of a class, and the logits.

    model: any timm model, in evaluation mode. images: (B, 3, S, S) float32, normalized. classes: (B,) int64, the class
    whose logit is explained. Returns (maps, logits), or None if the head's input is not a feature map, as in a vision
    transformer with a class token.

    With features f (K, H, W) and logit y of the class, the map at each location is the sum over k of dy/df_k * f_k (HiResCAM,
    arXiv:2011.08891). If the head is global average pooling and one linear layer, as in a ResNet, that is the class
    activation map of Zhou et al. (arXiv:1512.04150 eq. 2) divided by H * W, and its sum is the logit minus the bias.
    """
    network = cast(Any, model)  # timm's models share these methods, but no base class that declares them.
    with torch.no_grad():
        features = network.forward_features(images)
    if features.ndim != 4:
        return None
    features = features.detach().requires_grad_()
    with torch.enable_grad():
        logits = network.forward_head(features)
        asked = logits.gather(
            1, classes[:, None]
        ).sum()  # No image affects another's logits, so one gradient of the sum serves all.
        (gradient,) = torch.autograd.grad(asked, features)
    channels = 1 if features.shape[1] == network.num_features else 3  # Some timm networks put channels last.
    return (gradient * features).detach().sum(channels), logits.detach()
