"""The cost of training a network at an image size, counted without computing anything."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from cifar100_tk.augment import SIDE
from cifar100_tk.errors import ConfigError
from cifar100_tk.models.timm_model import TimmModel

_COUNTED = 2
"""Images counted, because BatchNorm may need more than one."""


@dataclass(frozen=True)
class Cost:
    """Cost of one image in a training step."""

    macs: int
    """Multiply-adds of the forward pass; the backward pass takes about twice as many."""
    activation_bytes: int
    """Memory for what the forward pass stores for the backward pass, in float32."""

    @classmethod
    def of(cls, model: TimmModel, num_classes: int, image_size: int) -> Cost:
        """Count the cost on the meta device. image_size: in pixels."""
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            net = model.build(num_classes, image_size)
            images = torch.zeros(_COUNTED, 3, image_size, image_size)
            own = {tensor.untyped_storage()._cdata for tensor in (*net.parameters(), *net.buffers())}
            stored: dict[int, int] = {}

            def keep(tensor: Tensor) -> Tensor:
                storage = tensor.untyped_storage()
                if storage._cdata not in own:
                    stored[storage._cdata] = storage.nbytes()
                return tensor

            with (
                torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
                FlopCounterMode(display=False) as flops,
            ):
                logits = net(images)
        del logits  # Held until here, so that no storage is counted under the number of another.
        return cls(flops.get_total_flops() // 2 // _COUNTED, sum(stored.values()) // _COUNTED)


def describe_size(model: TimmModel, num_classes: int, image_size: int, micro_batch: int) -> str:
    """Return the line of the plan on an image size other than 32. micro_batch: images per forward pass."""
    resized = f"{image_size} px, resized from {SIDE} on the device"
    try:
        cost = Cost.of(model, num_classes, image_size)
    except Exception:  # A network of somebody's own may need real tensors; it trains all the same.
        return resized
    times = ""
    with contextlib.suppress(ConfigError):  # Not every network takes the smaller images.
        times = f", {cost.macs / Cost.of(model, num_classes, SIDE).macs:.3g} times those at {SIDE} px"
    return (
        f"{resized}; {cost.macs / 1e9:.3g} GMACs per image{times}; activations take {_size(cost.activation_bytes)} per image, "
        f"{_size(cost.activation_bytes * micro_batch)} per {micro_batch:,} in float32"
    )


def _size(count: int) -> str:
    return f"{count / 1e9:.3g} GB" if count >= 1e9 else f"{count / 1e6:.3g} MB"
