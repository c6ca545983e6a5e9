"""ResNets for 32x32 images, registered with timm: a 3x3 stride-1 stem, no max-pool, a last map of 4x4."""

from __future__ import annotations

from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from torch import nn

from cifar100_tk.models.cfg import cifar_cfg


class ResNetCifar(ResNet):
    """timm's ResNet after He et al. (arXiv:1512.03385) with its 224x224 stem replaced by a stem for 32x32 images.

    The original's 7x7 stride-2 convolution and max-pool would reduce a 32x32 image to 1x1 after the last stage; with a
    3x3 stride-1 convolution and no pool the maps are 32, 32, 16, 8 and 4 wide.
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        layers: tuple[int, int, int, int],
        *,
        stem_width: int = 64,
        output_stride: int = 8,
        **kwargs: Any,
    ) -> None:
        """stem_width: filters of the first convolution, even. output_stride: 8, 4 or 2; less than 8 dilates instead.

        The other arguments are those of timm's ResNet, with the same meaning (class count, drop rates, widths `channels`).
        """
        assert stem_width % 2 == 0, stem_width
        # timm's deep stem has a free width, twice its stem_width; its plain stem does not. timm counts strides from 4, we
        # from 1.
        super().__init__(
            block,  # type: ignore[arg-type]  # Annotated there as an instance of the class.
            layers,
            stem_type="deep",
            stem_width=stem_width // 2,
            output_stride=4 * output_stride,
            **kwargs,
        )
        like = next(self.parameters())
        conv1 = nn.Conv2d(self.in_chans, stem_width, 3, padding=1, bias=False, device=like.device, dtype=like.dtype)
        nn.init.kaiming_normal_(conv1.weight, mode="fan_out", nonlinearity="relu")
        self.conv1 = conv1  # type: ignore[assignment]  # The deep stem is a Sequential.
        self.maxpool = nn.Identity()  # type: ignore[assignment]
        for stage in self.feature_info:
            stage["reduction"] = max(1, stage["reduction"] // 4)  # type: ignore[operator]  # An int among strings.


# timm looks these up by this name when it registers the functions below.
default_cfgs = generate_default_cfgs(
    {
        "resnet10_cifar_w16": cifar_cfg(
            "ResNet-10 for 32x32 images, a quarter of the usual width, small enough to train on a laptop's CPU"
        ),
        "resnet18_cifar": cifar_cfg("ResNet-18 for 32x32 images"),
        "resnet34_cifar": cifar_cfg("ResNet-34 for 32x32 images"),
        "resnet50_cifar": cifar_cfg("ResNet-50 for 32x32 images"),
        "resnet101_cifar": cifar_cfg("ResNet-101 for 32x32 images"),
    }
)


# A ResNetCifar or, with features_only=True, timm's wrapper around one.
def _create(name: str, pretrained: bool, **kwargs: Any) -> nn.Module:
    return build_model_with_cfg(ResNetCifar, name, pretrained, **kwargs)


@register_model
def resnet10_cifar_w16(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-10 with widths of 16, 32, 64, 128, a quarter of the usual: 320,436 parameters with 100 classes."""
    widths = {"stem_width": 16, "channels": (16, 32, 64, 128)}
    return _create("resnet10_cifar_w16", pretrained, block=BasicBlock, layers=(1, 1, 1, 1), **widths, **kwargs)


@register_model
def resnet18_cifar(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-18, 11,220,132 parameters with 100 classes."""
    return _create("resnet18_cifar", pretrained, block=BasicBlock, layers=(2, 2, 2, 2), **kwargs)


@register_model
def resnet34_cifar(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-34, 21,328,292 parameters with 100 classes."""
    return _create("resnet34_cifar", pretrained, block=BasicBlock, layers=(3, 4, 6, 3), **kwargs)


@register_model
def resnet50_cifar(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-50, 23,705,252 parameters with 100 classes: the network of the reference recipe."""
    return _create("resnet50_cifar", pretrained, block=Bottleneck, layers=(3, 4, 6, 3), **kwargs)


@register_model
def resnet101_cifar(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-101, 42,697,380 parameters with 100 classes."""
    return _create("resnet101_cifar", pretrained, block=Bottleneck, layers=(3, 4, 23, 3), **kwargs)
