"""The cost of an image size: multiply-adds and activations as other counts have them."""

import pytest

from cifar100_tk.models import TimmModel
from cifar100_tk.models.cost import Cost, describe_size


def test_multiply_adds_are_those_that_are_published() -> None:
    # He et al. (arXiv:1512.03385, table 1): 1.8e9 for ResNet-18 at 224x224.
    assert Cost.of(TimmModel(name="resnet18"), 1000, 224).macs == pytest.approx(1.8e9, rel=0.02)
    large, small = (Cost.of(TimmModel(name="resnet18"), 1000, side) for side in (128, 64))
    assert large.macs / small.macs == pytest.approx(4, rel=0.02)
    assert large.activation_bytes / small.activation_bytes == pytest.approx(4, rel=0.02)


def test_activations_are_what_the_backward_pass_reads() -> None:
    # The stem alone: its output of 64 x 112 x 112 floats is stored once for BatchNorm and once after it, as is the input.
    stem = 4 * (3 * 224**2 + 2 * 64 * 112**2)
    assert stem < Cost.of(TimmModel(name="resnet18"), 1000, 224).activation_bytes < 6 * stem


def test_the_plan_compares_with_32_pixels_where_the_network_takes_them() -> None:
    said = describe_size(TimmModel(name="resnet10_cifar_w16"), 100, 64, 256)
    assert said.startswith("64 px, resized from 32 on the device; ") and ", 4 times those at 32 px; activations" in said
    assert "times" not in describe_size(TimmModel(name="inception_v3"), 100, 96, 2)
