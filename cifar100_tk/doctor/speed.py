"""Measurements of this process's speed of augmenting images and training a network on them, a few seconds each."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final, Literal

import numpy as np
import torch
from accelerate import Accelerator

from cifar100_tk.augment import AutoAugment, Cutout, Flip, Mix, Normalize, RandomResizedCrop
from cifar100_tk.data import Cifar100
from cifar100_tk.distributed.launch import cores_per_process, launcher_compiles
from cifar100_tk.distributed.memory import is_oom
from cifar100_tk.errors import ConfigError
from cifar100_tk.models import TimmModel
from cifar100_tk.training.compiling import allow_compiling, compile_network
from cifar100_tk.training.loader import BatchOrder, Pipeline

Executor = Literal["device", "host"]
EXECUTORS: Final[tuple[Executor, ...]] = ("device", "host")


def of_augmentation(
    accelerator: Accelerator, local_batch_size: int, executor: Executor, seconds: float
) -> tuple[float, int]:
    """Return the images/s of the reference recipe's augmentation, and the number of worker processes used.

    local_batch_size: images per batch, plus one if odd, since Mixup needs pairs. Measured on built-in images, because the content
    does not affect the speed.
    """
    split = Cifar100(source="shapes100", shapes100_rows=(2000, 100)).open("train")
    workers = max(1, min(16, cores_per_process() - 1)) if executor == "host" else 0
    local_batch_size += local_batch_size % 2
    index = np.resize(split.index, max(len(split), local_batch_size))  # A batch may be larger than the whole set.
    pipeline = Pipeline(
        split,
        BatchOrder(0, index, local_batch_size, len(index) // local_batch_size),
        (RandomResizedCrop(scale=(0.8, 1.0), ratio=(0.9, 1.1)), Flip(), AutoAugment(policy="cifar10", p=0.7)),
        Normalize(),
        Cutout(),
        Mix(mixup_alpha=0.2),
        0.1,
        accelerator.device,
        executor,
        workers,
    )
    batches = pipeline.batches(0, 1_000_000)
    for _ in range(1 + workers):  # Start the workers and make the tables.
        next(batches)
    return _rate(accelerator.device, lambda: next(batches), local_batch_size, seconds), workers


def of_network(
    accelerator: Accelerator, name: str, local_batch_size: int, seconds: float, *, compile_model: bool
) -> tuple[float, float]:
    """Return the images/s of forward, backward and update under the launch's precision, and the seconds of the first step.

    name: the network's timm name. local_batch_size: images per step. compile_model: compile as a run does, unless the launcher's
    settings do; the first step then includes it. Raises ConfigError if the images do not fit in memory.
    """
    device = accelerator.device
    net = TimmModel(name=name).build(100).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    allow_compiling()
    if launcher_compiles(accelerator):
        net.compile(**accelerator.state.dynamo_plugin.to_kwargs())
    elif compile_model:
        compile_network(net)
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-4, momentum=0.9)
    images = torch.randn(local_batch_size, 3, 32, 32, device=device).to(memory_format=torch.channels_last)
    labels = torch.zeros(local_batch_size, dtype=torch.int64, device=device)

    def step() -> None:
        with accelerator.autocast():
            loss = torch.nn.functional.cross_entropy(net(images).float(), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    try:
        start_time = time.perf_counter()
        step()  # The first step compiles, allocates memory and selects kernels.
        _wait(device)
        first = time.perf_counter() - start_time
        return _rate(device, step, local_batch_size, seconds), first
    except RuntimeError as error:
        if not is_oom(error):
            raise
        raise ConfigError(
            f"{local_batch_size} images of {name} do not fit in the memory of {device}; use a smaller --batch-size here, and "
            "--micro-batch auto when training."
        ) from None


def hours(images: int, augmented: float, trained: float, *, at_once: bool) -> float:
    """Return the hours that a process takes to train on this many images.

    augmented, trained: images/s of either alone. at_once: True if the next batch is made during the step, as on a GPU; on a
    CPU the two alternate.
    """
    together = min(augmented, trained) if at_once else 1 / (1 / augmented + 1 / trained)
    return images / together / 3600


def _rate(device: torch.device, once: Callable[[], object], images: int, seconds: float) -> float:
    _wait(device)
    start, done = time.perf_counter(), 0
    while time.perf_counter() - start < seconds or done == 0:
        once()
        _wait(device)
        done += images
    return done / (time.perf_counter() - start)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
