"""The bytes of a safetensors file, in parts that are written and hashed without holding the GIL."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

Tensors = Mapping[str, Tensor]

DTYPES = {
    **{torch.bool: "BOOL", torch.uint8: "U8", torch.int8: "I8"},
    **{torch.float8_e5m2: "F8_E5M2", torch.float8_e4m3fn: "F8_E4M3"},
    **{torch.int16: "I16", torch.uint16: "U16", torch.float16: "F16", torch.bfloat16: "BF16"},
    **{torch.int32: "I32", torch.uint32: "U32", torch.float32: "F32"},
    **{torch.float64: "F64", torch.int64: "I64", torch.uint64: "U64"},
}
"""safetensors' names of torch's dtypes, in its own order; a file stores the last of them first, so that each tensor is
aligned."""


def serialize(tensors: Tensors) -> bytes:
    """Return tensors as the bytes of a safetensors file."""
    return b"".join(parts(tensors))


def size(tensors: Tensors) -> int:
    """Return the number of bytes of a safetensors file."""
    return len(_header(tensors)) + sum(tensor.nbytes for tensor in tensors.values())


def parts(tensors: Tensors) -> Iterator[bytes | memoryview]:
    """Yield a safetensors file in parts: its header, then each tensor, most of them without a copy.

    The bytes are those of `safetensors.torch.save`, which would copy all of them twice, once while holding the GIL.
    """
    yield _header(tensors)
    for name in _in_file_order(tensors):
        # The format requires contiguous tensors, and channels_last weights are not.
        plain = tensors[name].detach().cpu().contiguous()
        yield plain.reshape(-1).view(torch.uint8).numpy().data


def _in_file_order(tensors: Tensors) -> list[str]:
    order = list(DTYPES)
    return sorted(tensors, key=lambda name: (-order.index(tensors[name].dtype), name))


def _header(tensors: Tensors) -> bytes:
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in _in_file_order(tensors):
        tensor = tensors[name]
        start, end = end, end + tensor.nbytes
        entries[name] = {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
