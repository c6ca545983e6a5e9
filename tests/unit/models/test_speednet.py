"""The small fast network: its size, its behaviour under timm, and the whitening of its first layer."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn.functional import batch_norm, conv2d, max_pool2d, silu, unfold

from cifar100_tk.augment import Normalize, finish
from cifar100_tk.data import Cifar100
from cifar100_tk.errors import ConfigError
from cifar100_tk.models import SpeedNet, TimmModel, Whitening
from cifar100_tk.models.speednet import TapConv2d, tap_conv


def build(name: str, **kwargs: Any) -> Any:
    torch.manual_seed(0)
    return timm.create_model(name, **kwargs)


def images(count: int, side: int = 32) -> Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(1))


def real_images(count: int) -> Tensor:
    split = Cifar100(source="shapes100", shapes100_rows=(200, 100)).open("train")
    rows = np.arange(count)
    return finish(torch.from_numpy(split.images[rows]), Normalize(), None, 0, 0, rows)


@pytest.mark.parametrize(
    ("name", "widths", "depths"),
    [
        ("speednet_w256", (64, 256, 256), (2, 2, 2)),
        ("speednet_w512", (64, 256, 512), (2, 2, 2)),
        ("speednet_w768", (64, 256, 768), (2, 2, 2)),
        ("speednet_d8", (80, 320, 640), (2, 3, 3)),
    ],
)
def test_parameter_count(name: str, widths: tuple[int, ...], depths: tuple[int, ...]) -> None:
    count, before = 24 * 3 * 2 * 2 + 24, 24
    for width, depth in zip(widths, depths, strict=True):
        # Kernels, and the weights and biases of the norms.
        count += 9 * (before * width + (depth - 1) * width**2) + 2 * depth * width
        before = width
    with torch.device("meta"):
        model = timm.create_model(name)
    assert sum(p.numel() for p in model.parameters()) == count + 100 * before + 100


def test_a_block_of_another_depth_is_refused() -> None:
    with pytest.raises(ValueError, match="depths has 4, but a block of SpeedNet has 2 or 3 convolutions"):
        SpeedNet(depths=(2, 3, 4))


@pytest.mark.parametrize("depths", [(2, 2, 2), (2, 3, 3)])
def test_computes_its_layers_written_out_by_hand(depths: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    model: Any = SpeedNet(num_classes=10, widths=(4, 6, 8), depths=depths).train()
    x = silu(conv2d(images(5), model.stem.weight, model.stem.bias))
    for place, depth in enumerate(depths):
        first, *others = (model.get_parameter(f"blocks.{place}.conv{i + 1}.weight") for i in range(depth))
        x = silu(batch_norm(max_pool2d(conv2d(x, first, padding=1), 2), None, None, training=True))
        for weight in others:
            x = x + silu(batch_norm(conv2d(x, weight, padding=1), None, None, training=True))
    expected = (x.flatten(2).max(2).values @ model.head.weight.T) * 2 / math.sqrt(8)
    torch.testing.assert_close(model(images(5)), expected + model.head.bias * 2 / math.sqrt(8))


@pytest.mark.parametrize("size", [(1, 1), (2, 2), (3, 3), (2, 5), (5, 1)])
def test_tap_conv_and_its_gradients_are_those_of_the_convolution(size: tuple[int, int]) -> None:
    draw = torch.Generator().manual_seed(2)
    x, weight, grad = (
        torch.randn(shape, generator=draw).double() for shape in ((3, 4, *size), (6, 4, 3, 3), (3, 6, *size))
    )
    found: list[tuple[Tensor, ...]] = []
    for conv in (tap_conv, partial(conv2d, padding=1)):
        inputs = x.clone().requires_grad_(), weight.clone().requires_grad_()
        y = conv(*inputs)
        found.append((y, *torch.autograd.grad(y, inputs, grad)))
    torch.testing.assert_close(found[0], found[1])


def test_a_compiled_network_has_only_plain_convolutions() -> None:
    called: list[Any] = []

    def backend(graph: torch.fx.GraphModule, _: Any) -> Any:
        called.extend(node.target for node in graph.graph.nodes)
        return graph

    conv = TapConv2d(4, 6)
    torch.compile(conv, backend=backend)(torch.randn(2, 4, 2, 2))
    assert torch.conv2d in called


@pytest.mark.parametrize("side", [20, 24, 32])
def test_takes_every_size_of_progressive_resizing(side: int) -> None:
    assert build("speednet_w256")(images(2, side)).shape == (2, 100)


def test_reloads_through_timm_bit_for_bit(tmp_path: Path) -> None:
    model = build("speednet_w256", num_classes=7).eval()
    timm.models.save_for_hf(model, str(tmp_path), safe_serialization=True)
    again = build(f"local-dir:{tmp_path}", pretrained=True).eval()
    assert torch.equal(again(images(2)), model(images(2)))


def test_features_only_gives_the_three_maps() -> None:
    model = build("speednet_w512", features_only=True)
    assert (model.feature_info.channels(), model.feature_info.reduction()) == ([64, 256, 512], [2, 4, 8])
    assert [tuple(f.shape) for f in model(images(1))] == [(1, 64, 15, 15), (1, 256, 7, 7), (1, 512, 3, 3)]


def test_head_can_be_replaced_and_removed() -> None:
    model = build("speednet_w256")
    model.reset_classifier(10)
    assert model(images(1)).shape == (1, 10)
    model.reset_classifier(0)
    assert model(images(1)).shape == (1, 256)
    with pytest.raises(ValueError, match="global_pool='avg' is not supported by SpeedNet; use 'max'"):
        model.reset_classifier(10, "avg")


def test_whitened_patches_have_unit_variance_and_no_correlation() -> None:
    model = SpeedNet()
    Whitening(num_images=200, eps=1e-9).apply(model, real_images(200))
    # (12, patches): the first half of the filters; the second half is its negative.
    weight = model.stem.weight.detach()
    assert torch.equal(weight[12:], -weight[:12])
    patches = unfold(real_images(200), 2).double().transpose(0, 1).flatten(1)
    white = weight[:12].double().flatten(1) @ patches
    covariance = white @ white.T / patches.shape[1]
    torch.testing.assert_close(covariance, torch.eye(12, dtype=torch.float64), atol=2e-3, rtol=0)
    assert not model.stem.weight.requires_grad and model.stem.bias is not None and model.stem.bias.requires_grad


def test_whitening_damps_faint_directions() -> None:
    model, damped = SpeedNet(), SpeedNet()
    Whitening(eps=1e-9).apply(model, real_images(100))
    Whitening(eps=1.0).apply(damped, real_images(100))
    ratio = damped.stem.weight[:12].flatten(1).norm(dim=1) / model.stem.weight[:12].flatten(1).norm(dim=1)
    # A filter is vector / sqrt(variance + eps), so the ratio is sqrt(variance / (variance + 1)), and variances fall.
    assert (ratio[:-1] > ratio[1:]).all() and ratio[0] > 0.9 and ratio[-1] < 0.25


def test_whitening_refuses_a_network_without_such_a_layer() -> None:
    with pytest.raises(ConfigError, match=r"conv1 has 16 filters instead of 54; use model.name='speednet_w512'"):
        Whitening().apply(TimmModel(name="resnet10_cifar_w16").build(100), real_images(10))
    with pytest.raises(ConfigError, match="the model has none; use"):
        Whitening().apply(nn.Linear(2, 2), real_images(10))


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"num_images": 0}, r"whitening\.num_images=0 is out of range; expected from 1 to 1000000; use 5000\."),
        ({"eps": 0.0}, r"whitening\.eps=0\.0 is out of range; expected more than 0 and at most 1000; use 0\.01\."),
        ({"eps": math.inf}, r"whitening\.eps=inf is out of range"),
    ],
)
def test_whitening_refuses_numbers_that_make_no_sense(given: dict[str, float], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        Whitening(**given)  # type: ignore[arg-type]
