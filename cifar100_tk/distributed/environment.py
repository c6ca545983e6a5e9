"""The environment of a run, as recorded in environment.json: versions, device, processes and precision."""

from __future__ import annotations

import contextlib
import importlib.metadata
import platform
from typing import Any

import torch
from accelerate import Accelerator

from cifar100_tk import __version__
from cifar100_tk.distributed.launch import device_name, precision

PACKAGES = ("torch", "torchvision", "accelerate", "timm", "datasets")


def environment(accelerator: Accelerator, *, compiled: bool) -> dict[str, Any]:
    """Return the environment of a run as JSON values. compiled: whether the network is compiled."""
    versions = {"python": platform.python_version(), "cifar100_tk": __version__}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):  # Only `--data.source hub` needs datasets.
            versions[package] = importlib.metadata.version(package)
    if accelerator.device.type == "cuda":
        versions |= {"cuda": str(torch.version.cuda), "cudnn": str(torch.backends.cudnn.version())}
    return {
        "versions": versions,
        "device": device_name(accelerator),
        "num_processes": accelerator.num_processes,
        "precision": precision(accelerator),
        "compiled": compiled,
        "threads": torch.get_num_threads(),
        "platform": platform.platform(terse=True),
    }
