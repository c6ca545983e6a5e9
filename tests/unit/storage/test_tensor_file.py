"""Our safetensors files are those of the library, byte for byte."""

from __future__ import annotations

import pytest
import safetensors.torch
import torch
from torch import Tensor

from cifar100_tk.storage import tensor_file
from cifar100_tk.storage.tensor_file import DTYPES

TENSORS = {
    "": {},
    "one": {"w": torch.arange(3.0)},
    "all types": {f"{name}.{n}": torch.tensor([0, 1, n]).to(dtype) for dtype, name in DTYPES.items() for n in (3, 2)},
    "shapes": {
        "scalar": torch.tensor(7),
        "none": torch.zeros(0, 3),
        "channels_last": torch.randn(4, 3, 3, 3).to(memory_format=torch.channels_last),
        "transposed": torch.randn(4, 5).T,
        "part": torch.randn(10)[2:5],
        "expanded": torch.ones(1).expand(4),
        "trained": torch.randn(3, requires_grad=True),
    },
    "names": {
        name: torch.tensor([n]) for n, name in enumerate(["é/\u4e2d", 'quo"te', "back\\slash", "tab\t", "b", "a", "B"])
    },
}


@pytest.mark.parametrize("tensors", TENSORS.values(), ids=TENSORS.keys())
def test_the_bytes_are_those_of_the_library(tensors: dict[str, Tensor]) -> None:
    content = tensor_file.serialize(tensors)
    plain = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    assert content == safetensors.torch.save(plain, metadata={"format": "pt"})
    assert tensor_file.size(tensors) == len(content)
    found = safetensors.torch.load(content)
    assert found.keys() == tensors.keys() and all(torch.equal(found[name], tensors[name]) for name in tensors)


def test_contiguous_tensors_are_given_from_where_they_lie() -> None:
    weight = torch.zeros(3)
    _, content = tensor_file.parts({"w": weight})
    weight.fill_(1.0)
    assert bytes(content) == torch.ones(3).numpy().tobytes()
