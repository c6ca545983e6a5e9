"""The shapes that flow through a training step, as jaxtyping aliases that signatures use and the test run checks."""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from numpy.typing import NDArray
from torch import Tensor

RawImages = UInt8[Tensor, "batch 3 32 32"]
"""Raw images: (B, 3, 32, 32) uint8, RGB, 0..255."""

RawInputs = UInt8[Tensor, "batch 3 side side"]
"""Images of the network's input size, not normalized: (B, 3, S, S) uint8, RGB, 0..255."""

Images = Float[Tensor, "batch 3 side side"]
"""The network's input: (B, 3, S, S) floating point, normalized; S is the recipe's `image_size`, 32 unless it says otherwise,
and smaller in the early stages of progressive resizing."""

Labels = Int64[Tensor, " batch"]
"""Class numbers: (B,) int64 in 0..C-1."""

Targets = Float[Tensor, "batch classes"]
"""The targets of the loss: (B, C) probabilities; each row sums to 1."""

Logits = Float[Tensor, "batch classes"]
"""The network's output: (B, C) unnormalized log-probabilities."""

_ALIGNMENT = 16
"""Bytes; a view of another dtype must start at a multiple of its item size."""


def send(arrays: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """Send arrays, in arbitrarily nested dictionaries, to a device in one asynchronous copy.

    Returns the same dictionaries with the arrays replaced by tensors, views of one buffer; other values are unchanged.
    """
    leaves = list(_leaves(arrays))
    ends = np.cumsum([0, *(-(-leaf.nbytes // _ALIGNMENT) * _ALIGNMENT for leaf in leaves)]).tolist()
    # Pinned memory is taken from a pool, to which it returns when the copy is done.
    buffer = torch.empty(ends[-1], dtype=torch.uint8, pin_memory=device.type == "cuda")
    packed = buffer.numpy()
    for leaf, start in zip(leaves, ends, strict=False):
        packed[start : start + leaf.nbytes] = leaf.reshape(-1).view(np.uint8)
    sent = buffer.to(device, non_blocking=True)
    views = iter(
        [
            sent[start : start + leaf.nbytes].view(_TORCH_TYPES[leaf.dtype]).view(leaf.shape)
            for leaf, start in zip(leaves, ends, strict=False)
        ]
    )

    def filled(node: Any) -> Any:
        if isinstance(node, dict):
            return {name: filled(child) for name, child in node.items()}
        return next(views) if isinstance(node, np.ndarray) else node

    result: dict[str, Any] = filled(arrays)
    return result


def to_device(array: NDArray[Any], device: torch.device) -> Tensor:
    """Send one array to a device asynchronously."""
    tensor: Tensor = send({"array": array}, device)["array"]
    return tensor


def _leaves(node: Any) -> list[NDArray[Any]]:
    if isinstance(node, dict):
        return [leaf for child in node.values() for leaf in _leaves(child)]
    return [np.ascontiguousarray(node)] if isinstance(node, np.ndarray) else []


_TORCH_TYPES: dict[np.dtype[Any], torch.dtype] = {
    np.dtype(name): getattr(torch, name) for name in ("bool", "uint8", "int16", "int32", "int64", "float32", "float64")
}
