"""A run notes what it is computed with, anew at each start."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import platform
import sys
from pathlib import Path

import pytest
import torch
from runs import Bell, evaluation, ring_at, run, tiny

from cifar100_tk import __version__
from cifar100_tk.data import hub
from cifar100_tk.data.published import CIFAR100
from cifar100_tk.distributed.environment import environment
from cifar100_tk.distributed.launch import start_accelerator
from cifar100_tk.errors import DataError, StoppedError

pytestmark = pytest.mark.usefixtures("on_cpu")


def test_a_run_notes_what_it_is_computed_with_each_time_it_starts(tmp_path: Path) -> None:
    recipe, threads = tiny(augment=(Bell(),), epochs=1), torch.get_num_threads()
    recorded = []
    ring_at[:] = [2]
    try:
        for given in (1, 2):
            with pytest.raises(StoppedError) if given == 1 else contextlib.nullcontext():
                run(tmp_path, recipe, threads=given, compile="off")
            recorded.append(json.loads((tmp_path / "environment.json").read_text()))
    finally:
        torch.set_num_threads(threads)
    versions = recorded[0].pop("versions")
    assert versions == recorded[1].pop("versions")
    packages = ("torch", "torchvision", "accelerate", "timm", "datasets")
    assert versions == {name: importlib.metadata.version(name) for name in packages} | {
        "python": platform.python_version(),
        "cifar100_tk": __version__,
    }
    for facts, given in zip(recorded, (1, 2), strict=True):
        assert facts == {
            "device": f"cpu ({given} thread{'s' * (given > 1)})",
            "num_processes": 1,
            "precision": "float32",
            "compiled": False,
            "threads": given,
            "platform": platform.platform(terse=True),
        }


def test_a_compiled_network_is_noted(tmp_path: Path) -> None:
    assert environment(start_accelerator(tmp_path), compiled=True)["compiled"] is True


@pytest.fixture
def without_datasets(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine on which the package datasets is not installed."""
    version = importlib.metadata.version

    def installed(package: str) -> str:
        if package == "datasets":
            raise importlib.metadata.PackageNotFoundError(package)
        return version(package)

    monkeypatch.setattr(importlib.metadata, "version", installed)
    monkeypatch.setitem(sys.modules, "datasets", None)


@pytest.mark.usefixtures("without_datasets")
def test_a_run_needs_no_datasets_where_its_images_do_not_come_from_the_hub(tmp_path: Path) -> None:
    run(tmp_path, tiny(epochs=1), compile="off")
    assert "datasets" not in json.loads((tmp_path / "environment.json").read_text())["versions"]
    assert len(evaluation(tmp_path)[1].logits) == 100


@pytest.mark.usefixtures("without_datasets")
def test_the_hub_without_datasets_is_a_sentence() -> None:
    with pytest.raises(
        DataError, match=r"requires the package datasets, which .* pip install datasets, or use a local"
    ):
        hub.load("train", CIFAR100)
