"""A small, shallow network for short runs on 32x32 images, registered with timm."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn
from torch.nn.functional import max_pool2d

from cifar100_tk.models.cfg import cifar_cfg


class TapConv2d(nn.Conv2d):
    """A 3x3 convolution with padding 1 that trains small maps on a CPU as nine matrix products, one for each kernel position.

    oneDNN's bfloat16 convolution also multiplies the padding, which is more than half of a 2x2 map's work; up to 3x3 the
    products are quicker (docs/experiments.md). Elsewhere this is `torch.nn.Conv2d`, and in compiled networks too: Inductor
    expands the overlapping writes of nine products into expressions that it does not finish.
    """

    def __init__(self, in_chans: int, out_chans: int) -> None:
        super().__init__(in_chans, out_chans, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_chans, H, W) to (B, out_chans, H, W)."""
        small = x.shape[2] * x.shape[3] <= 9
        if self.training and x.device.type == "cpu" and small and not torch.compiler.is_compiling():
            return tap_conv(x, self.weight.to(x.dtype))
        return super().forward(x)


def tap_conv(x: Tensor, weight: Tensor) -> Tensor:
    """Convolve (B, C, H, W) with a (D, C, 3, 3) kernel and padding 1. Returns (B, D, H, W) in channels_last."""
    x, taps = x.permute(0, 2, 3, 1), weight.permute(2, 3, 1, 0)
    batch, height, width, chans = x.shape
    y = (x.reshape(-1, chans) @ taps[1, 1]).view(batch, height, width, -1)
    for row, column in itertools.product((-1, 0, 1), repeat=2):
        if row or column:
            # The part of the map where this kernel position meets the image and not the padding.
            source = x[:, max(row, 0) : height + min(row, 0), max(column, 0) : width + min(column, 0)]
            target = y[:, max(-row, 0) : height + min(-row, 0), max(-column, 0) : width + min(-column, 0)]
            target += (source.reshape(-1, chans) @ taps[row + 1, column + 1]).view_as(target)
    return y.permute(0, 3, 1, 2)


class Block(nn.Module):
    """Two or three 3x3 convolutions with BatchNorm and SiLU; pooling after the first halves the map, the others are residual."""

    def __init__(self, in_chans: int, out_chans: int, depth: int = 2) -> None:
        """depth: 2 or 3 convolutions."""
        if depth not in (2, 3):
            raise ValueError(f"depths has {depth}, but a block of SpeedNet has 2 or 3 convolutions.")
        super().__init__()
        self.conv1 = TapConv2d(in_chans, out_chans)
        self.bn1 = nn.BatchNorm2d(out_chans)
        self.conv2 = TapConv2d(out_chans, out_chans)
        self.bn2 = nn.BatchNorm2d(out_chans)
        self.conv3 = TapConv2d(out_chans, out_chans) if depth == 3 else None
        self.bn3 = nn.BatchNorm2d(out_chans) if depth == 3 else None
        self.act = nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_chans, H, W) to (B, out_chans, H // 2, W // 2)."""
        x = self.act(self.bn1(max_pool2d(self.conv1(x), 2)))
        x = x + self.act(self.bn2(self.conv2(x)))
        if self.conv3 is not None and self.bn3 is not None:
            x = x + self.act(self.bn3(self.conv3(x)))
        return x


class SpeedNet(nn.Module):
    """A 2x2 stem of 24 filters, three blocks of two or three 3x3 convolutions, global max-pooling, and a scaled linear head.

    The layout follows the networks of airbench (arXiv:2404.00498, section 3), whose stem can be whitened
    (`cifar100_tk.models.Whitening`); widths, activation and the residual connection are ours.
    """

    def __init__(
        self,
        num_classes: int = 100,
        in_chans: int = 3,
        widths: tuple[int, int, int] = (64, 256, 512),
        depths: tuple[int, int, int] = (2, 2, 2),
        drop_rate: float = 0.0,
    ) -> None:
        """widths: channels of the three blocks. depths: their convolutions, 2 or 3. drop_rate: dropout before the head."""
        super().__init__()
        self.num_classes, self.in_chans = num_classes, in_chans
        self.num_features = self.head_hidden_size = widths[-1]
        self.stem = nn.Conv2d(in_chans, 24, 2)
        self.act = nn.SiLU()
        self.blocks = nn.Sequential(*map(Block, (24, *widths[:2]), widths, depths))
        self.drop = nn.Dropout(drop_rate)
        self.head = nn.Linear(widths[-1], num_classes) if num_classes else nn.Identity()
        self.feature_info = [
            {"num_chs": width, "reduction": 2 ** (i + 1), "module": f"blocks.{i}"} for i, width in enumerate(widths)
        ]

    def get_classifier(self) -> nn.Module:
        """Return the head."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the head with a new head for `num_classes` classes; 0 removes it. The pooling is fixed."""
        if global_pool not in (None, "max"):
            raise ValueError(f"global_pool={global_pool!r} is not supported by SpeedNet; use 'max'.")
        like = next(self.parameters())
        self.num_classes = num_classes
        head = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()
        self.head = head.to(device=like.device, dtype=like.dtype)

    def forward_features(self, x: Tensor) -> Tensor:
        """Map (B, in_chans, H, W), H and W at least 17, to (B, num_features, H // 8, W // 8) or one less per side."""
        features: Tensor = self.blocks(self.act(self.stem(x)))
        return features

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Map a feature map to logits (B, num_classes), or to pooled features (B, num_features)."""
        x = self.drop(x.amax((2, 3)))
        # Maxima are large; without scaling, the initial predictions would be far from uniform.
        return x if pre_logits or not self.num_classes else self.head(x) * (2 / self.num_features**0.5)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (B, 3, H, W) to logits (B, num_classes)."""
        return self.forward_head(self.forward_features(x))


# timm looks these up by this name when it registers the functions below.
default_cfgs = generate_default_cfgs(
    {
        name: cifar_cfg(
            description,
            **{"min_input_size": (3, 17, 17), "pool_size": (3, 3), "first_conv": "stem", "classifier": "head"},
        )
        for name, description in {
            "speednet_w256": "Three blocks 64-256-256 wide, for a few minutes of training",
            "speednet_w512": "Three blocks 64-256-512 wide, for a few minutes of training",
            "speednet_w768": "Three blocks 64-256-768 wide, for a few minutes of training",
            "speednet_d8": "Three blocks 80-320-640 wide, eight 3x3 convolutions, for half an hour of training on a CPU",
        }.items()
    }
)


def _create(name: str, pretrained: bool, **kwargs: Any) -> nn.Module:
    return build_model_with_cfg(
        SpeedNet, name, pretrained, feature_cfg={"flatten_sequential": True, "out_indices": (0, 1, 2)}, **kwargs
    )


@register_model
def speednet_w256(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """SpeedNet with widths of 64, 256, 256."""
    return _create("speednet_w256", pretrained, widths=(64, 256, 256), **kwargs)


@register_model
def speednet_w512(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """SpeedNet with widths of 64, 256, 512."""
    return _create("speednet_w512", pretrained, widths=(64, 256, 512), **kwargs)


@register_model
def speednet_w768(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """SpeedNet with widths of 64, 256, 768."""
    return _create("speednet_w768", pretrained, widths=(64, 256, 768), **kwargs)


@register_model
def speednet_d8(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """SpeedNet with widths of 80, 320, 640 and eight 3x3 convolutions: two, three, and three."""
    return _create("speednet_d8", pretrained, widths=(80, 320, 640), depths=(2, 3, 3), **kwargs)
