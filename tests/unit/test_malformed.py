"""Files that are not what they claim to be, on purpose or by accident: an error that names the file, in little memory."""

from __future__ import annotations

import json
import os
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cifar100_tk.augment import Normalize
from cifar100_tk.errors import CifarError, DataError
from cifar100_tk.models import TimmModel
from cifar100_tk.models import folder as model_folder
from cifar100_tk.runs import checkpoint

MEGABYTES, SECONDS = 64, 10
"""Memory and CPU time that refusing a file may take; the smallest bomb below claims a thousand times more."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder and a checkpoint."""
    path = tmp_path_factory.mktemp("whole")
    torch.manual_seed(0)
    net = TimmModel(name="resnet10_cifar_w16").build(10)
    model_folder.write(path / "model", net, tuple("abcdefghij"), Normalize(), "# card\n")
    tensors = {"model": net.state_dict(), "optimizer": {"momentum_buffer/fc.bias": torch.ones(10)}}
    checkpoint.save(path / "checkpoints", 7, tensors, {"epoch_loss": 1.0}, keep=1)
    return path


def header(value: Any, data: bytes = b"") -> bytes:
    """A safetensors file with this header."""
    text = value if isinstance(value, bytes) else json.dumps(value).encode()
    return struct.pack("<Q", len(text)) + text + data


def tensor(dtype: str = "F32", shape: Any = (1,), offsets: Any = (0, 4)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


HUGE = 2**62
WEIGHTS: dict[str, bytes] = {
    "empty": b"",
    "seven bytes": b"1234567",
    "text": b"this is not a safetensors file, but a sentence",
    "zip, as torch.save writes": b"PK\x03\x04" + bytes(500),
    "header of 8 EiB": struct.pack("<Q", 2**63) + b"{}",
    "header of 1 GiB": struct.pack("<Q", 2**30) + b"{}",
    "header longer than the file": struct.pack("<Q", 100) + b"{}",
    "header is no JSON": header(b"{'a': 1}"),
    "header is a list": header([1, 2]),
    "header is deep": header(b'{"a":' * 50_000),
    "header is not UTF-8": header(b"\xff\xfe{}"),
    "no tensors": header({}),
    "shape of 4 EiB": header({"conv1.weight": tensor(shape=[HUGE], offsets=[0, HUGE * 4 % 2**64])}),
    "shape that overflows": header({"conv1.weight": tensor(shape=[2**40, 2**40], offsets=[0, 4])}, bytes(4)),
    "negative shape": header({"conv1.weight": tensor(shape=[-1])}, bytes(4)),
    "fractional shape": header({"conv1.weight": tensor(shape=[1.5])}, bytes(4)),
    "offsets beyond the end": header({"conv1.weight": tensor(offsets=[0, 400], shape=[100])}, bytes(4)),
    "offsets backwards": header({"conv1.weight": tensor(offsets=[4, 0])}, bytes(4)),
    "offsets that overlap": header({"a": tensor(), "b": tensor()}, bytes(4)),
    "unknown dtype": header({"conv1.weight": tensor(dtype="PICKLE")}, bytes(4)),
    "tensors of another network": header({"conv1.weight": tensor()}, bytes(4)),
    "bytes after the end": header({"conv1.weight": tensor()}, bytes(400)),
}

CONFIGS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "empty": lambda _: b"",
    "no JSON": lambda _: b"architecture: resnet",
    "not UTF-8": lambda _: b"\xff\xfe\x00{}",
    "deep": lambda _: b"[" * 100_000,
    "number of 5,000 digits": lambda _: b'{"architecture": 1' + b"0" * 5000 + b"}",
    "list": lambda _: [],
    "null": lambda _: None,
    "no architecture": lambda config: {k: v for k, v in config.items() if k != "architecture"},
    "architecture is a number": lambda config: config | {"architecture": 7},
    "unknown architecture": lambda config: config | {"architecture": "resnet_from_elsewhere"},
    "two million classes": lambda config: config | {"num_classes": 2_000_000},
    "no classes": lambda config: config | {"num_classes": 0},
    "fractional classes": lambda config: config | {"num_classes": 10.5},
    "classes are true": lambda config: config | {"num_classes": True},
    "names of other classes": lambda config: config | {"label_names": ["a"]},
    "names are numbers": lambda config: config | {"label_names": list(range(10))},
    "arguments are a list": lambda config: config | {"model_args": []},
    "reads another file": lambda config: config | {"model_args": {"checkpoint_path": "/etc/passwd"}},
    "unknown argument": lambda config: config | {"model_args": {"colour": "red"}},
    "enormous network": lambda config: config | {"architecture": "vgg11", "model_args": {"channels": 1e9}},
    "mean of infinity": lambda config: with_preprocessing(config, mean=[float("inf")] * 3),
    "std of zero": lambda config: with_preprocessing(config, std=[0, 1, 1]),
    "std of not a number": lambda config: with_preprocessing(config, std=[float("nan"), 1, 1]),
    "image of a gigapixel": lambda config: with_preprocessing(config, input_size=[3, 32768, 32768]),
    "unknown interpolation": lambda config: with_preprocessing(config, interpolation="magic"),
}


def with_preprocessing(config: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return config | {"pretrained_cfg": config["pretrained_cfg"] | changes}


def copied(whole: Path, path: Path) -> Path:
    """A model folder of its own."""
    path.mkdir()
    for file in (whole / "model").iterdir():
        (path / file.name).write_bytes(file.read_bytes())
    return path


def resident(key: str) -> float:
    """Megabytes that this process holds, VmRSS, or held at most since that was reset, VmHWM."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) / 1000


@contextmanager
def in_little() -> Iterator[None]:
    """Assert that the block takes little memory, whoever allocates it, and little time."""
    Path("/proc/self/clear_refs").write_text("5")  # Resets VmHWM.
    before, started = resident("VmRSS"), time.process_time()
    yield
    assert resident("VmHWM") - before < MEGABYTES and time.process_time() - started < SECONDS


def test_little_memory_is_measured() -> None:
    with pytest.raises(AssertionError), in_little():
        torch.ones(MEGABYTES * 250_000 * 2)


def refused(folder: Path, name: str) -> None:
    """Assert that a model folder is refused with the file's name, in little memory and time."""
    with in_little(), pytest.raises(DataError) as caught:
        model_folder.load(folder)
    assert str(folder / name) in str(caught.value) and "\n" not in str(caught.value)
    assert DataError.exit_code == 3


@pytest.mark.parametrize("content", WEIGHTS.values(), ids=WEIGHTS)
def test_weights_that_are_none_are_refused(content: bytes, whole: Path, tmp_path: Path) -> None:
    folder = copied(whole, tmp_path / "model")
    (folder / "model.safetensors").write_bytes(content)
    refused(folder, "model.safetensors")


@pytest.mark.parametrize("change", CONFIGS.values(), ids=CONFIGS)
def test_a_config_that_is_none_is_refused(change: Callable[[dict[str, Any]], Any], whole: Path, tmp_path: Path) -> None:
    folder = copied(whole, tmp_path / "model")
    content = change(json.loads((folder / "config.json").read_text()))
    (folder / "config.json").write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    refused(folder, "config.json")


def sparse(file: Path) -> None:
    os.truncate(file, 10**12)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_file_of_a_terabyte_is_refused(name: str, whole: Path, tmp_path: Path) -> None:
    folder = copied(whole, tmp_path / "model")
    sparse(folder / name)
    refused(folder, name)


@pytest.mark.parametrize("name", ["manifest.json", "model.safetensors"])
def test_a_checkpoint_with_a_file_of_a_terabyte_is_not_valid(name: str, tmp_path: Path) -> None:
    path = checkpoint.save(tmp_path, 7, {"model": {"w": torch.ones(3)}}, {}, keep=1)
    sparse(path / name)
    with in_little(), pytest.raises(DataError, match=rf"step-00000007/{name} is .*; the checkpoint is not valid"):
        checkpoint.read(path)


ANYTHING = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@ANYTHING
@given(data=st.data())
def test_no_change_of_a_manifest_goes_unnoticed_or_ends_in_another_error(data: st.DataObject, whole: Path) -> None:
    path = whole / "checkpoints" / "step-00000007"
    good = (path / "manifest.json").read_bytes()
    manifest = json.loads(good)
    key = data.draw(st.sampled_from(sorted(manifest)))
    changed = json.dumps(manifest | {key: data.draw(json_values)}).encode()
    cut = data.draw(st.integers(0, len(good)))
    content = data.draw(st.sampled_from([changed, good[:cut], good[:cut] + data.draw(st.binary()) + good[cut:]]))
    try:
        (path / "manifest.json").write_bytes(content)
        if content == good:
            checkpoint.verify(path)
        else:
            with pytest.raises(DataError, match=r"manifest.json is .*; the checkpoint is not valid"):
                checkpoint.verify(path)
    finally:
        (path / "manifest.json").write_bytes(good)


@ANYTHING
@given(data=st.data())
def test_any_config_is_loaded_or_refused_by_name(data: st.DataObject, whole: Path) -> None:
    file = whole / "model" / "config.json"
    good = file.read_bytes()
    config = json.loads(good)
    key = data.draw(st.sampled_from(sorted(config)))
    if key == "pretrained_cfg":
        inner = data.draw(st.sampled_from(["mean", "std", "input_size", "crop_pct", "interpolation"]))
        config[key][inner] = data.draw(json_values)
    else:
        config[key] = data.draw(json_values)
    content = json.dumps(config).encode()
    loads_or_names(file, content if data.draw(st.booleans()) else content[: data.draw(st.integers(0, 99))], good)


@ANYTHING
@given(data=st.data())
def test_any_weights_are_loaded_or_refused_by_name(data: st.DataObject, whole: Path) -> None:
    file = whole / "model" / "model.safetensors"
    good = file.read_bytes()
    length = 8 + struct.unpack("<Q", good[:8])[0]
    at = data.draw(st.integers(0, length))  # In the header: whatever the numbers behind it are, they are numbers.
    some = data.draw(st.binary(min_size=1, max_size=8))
    loads_or_names(file, good[:at] + some + good[at + data.draw(st.sampled_from([0, len(some)])) :], good)


def loads_or_names(file: Path, content: bytes, good: bytes) -> None:
    """Load a model folder with a changed file; the only way to fail is an error that names it."""
    try:
        file.write_bytes(content)
        model_folder.load(file.parent)
    except CifarError as error:
        assert isinstance(error, DataError) and str(file) in str(error)
    finally:
        file.write_bytes(good)
