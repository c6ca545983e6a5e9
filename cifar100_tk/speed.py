"""How fast this process augments pictures and trains a network on them, each measured for a few seconds."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final, Literal

import numpy as np
import torch
from accelerate import Accelerator

from cifar100_tk.augment import AutoAugment, Crop, Cutout, Flip, Mix, Normalize
from cifar100_tk.compiling import allow_compiling, compile_network
from cifar100_tk.data import Cifar100
from cifar100_tk.errors import ConfigError
from cifar100_tk.launch import cores_per_process, launcher_compiles
from cifar100_tk.memory import is_oom
from cifar100_tk.models import TimmModel
from cifar100_tk.pipeline import BatchOrder, Pipeline

Executor = Literal["device", "host"]
EXECUTORS: Final[tuple[Executor, ...]] = ("device", "host")


def of_augmentation(accelerator: Accelerator, share: int, executor: Executor, seconds: float) -> tuple[float, int]:
    """Return the pictures/s of the reference recipe's augmentation, and the worker processes it took.

    share: pictures a batch; one more where that is odd, for Mixup takes pairs. It is measured on built-in pictures: what
    they show does not change it.
    """
    split = Cifar100(source="shapes100", shapes100_rows=(2000, 100)).open("train")
    workers = max(1, min(16, cores_per_process() - 1)) if executor == "host" else 0
    share += share % 2
    index = np.resize(split.index, max(len(split), share))  # A batch may be larger than all of it.
    pipeline = Pipeline(
        split,
        BatchOrder(0, index, share, len(index) // share),
        (Crop(scale=(0.8, 1.0), ratio=(0.9, 1.1)), Flip(), AutoAugment(policy="cifar10", p=0.7)),
        Normalize(),
        Cutout(),
        Mix(mixup_alpha=0.2),
        0.1,
        accelerator.device,
        executor,
        workers,
    )
    batches = pipeline.batches(0, 1_000_000)
    for _ in range(1 + workers):  # Workers start, and tables are made.
        next(batches)
    return _rate(accelerator.device, lambda: next(batches), share, seconds), workers


def of_network(
    accelerator: Accelerator, name: str, share: int, seconds: float, *, compile_model: bool
) -> tuple[float, float]:
    """Return the images/s of forward, backward and update under the launch's precision, and the seconds of the first step.

    name: the network's timm name. share: images a step. compile_model: compile it as a run does, unless the launcher's
    own settings do; the first step then includes it. Raises ConfigError where the images do not fit in the memory.
    """
    device = accelerator.device
    net = TimmModel(name=name).build(100).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    allow_compiling()
    if launcher_compiles(accelerator):
        net.compile(**accelerator.state.dynamo_plugin.to_kwargs())
    elif compile_model:
        compile_network(net)
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-4, momentum=0.9)
    images = torch.randn(share, 3, 32, 32, device=device).to(memory_format=torch.channels_last)
    labels = torch.zeros(share, dtype=torch.int64, device=device)

    def step() -> None:
        with accelerator.autocast():
            loss = torch.nn.functional.cross_entropy(net(images).float(), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    try:
        start_time = time.perf_counter()
        step()  # The first one compiles, allocates and chooses kernels.
        _wait(device)
        first = time.perf_counter() - start_time
        return _rate(device, step, share, seconds), first
    except RuntimeError as error:
        if not is_oom(error):
            raise
        raise ConfigError(
            f"{share} pictures of {name} do not fit in the memory of {device}; give a smaller --batch-size here, and "
            "--micro-batch auto when training."
        ) from None


def hours(pictures: int, augmented: float, trained: float, *, at_once: bool) -> float:
    """Return how long a process takes to train on so many pictures.

    augmented, trained: pictures/s of either alone. at_once: whether the next batch is made beside the step, as on a GPU; on a
    CPU the two take turns.
    """
    together = min(augmented, trained) if at_once else 1 / (1 / augmented + 1 / trained)
    return pictures / together / 3600


def _rate(device: torch.device, once: Callable[[], object], pictures: int, seconds: float) -> float:
    _wait(device)
    begun, done = time.perf_counter(), 0
    while time.perf_counter() - begun < seconds or done == 0:
        once()
        _wait(device)
        done += pictures
    return done / (time.perf_counter() - begun)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
