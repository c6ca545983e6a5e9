"""The batches of a small run, as any of its processes sees them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from cifar100_tk.augment import AutoAugment, Cutout, Flip, Mix, Normalize, RandomResizedCrop
from cifar100_tk.data import Split
from cifar100_tk.training.loader import Batch, BatchOrder, Pipeline

AUGMENT = (RandomResizedCrop(), Flip(), AutoAugment())
EPOCHS, STEPS_PER_EPOCH = 2, 3


def pipeline(split: Split, mix: Mix | None = None, rank: int = 0, world: int = 1, **changes: Any) -> Pipeline:
    order = BatchOrder(3, split.index, changes.pop("batch_size", 32), STEPS_PER_EPOCH, rank, world)
    made = Pipeline(
        split, order, AUGMENT, Normalize(), Cutout(), mix, smoothing=0.1, device=torch.device("cpu"), executor="device"
    )
    return replace(made, **changes)


def batches(*args: Any, start: int = 0, stop: int = EPOCHS * STEPS_PER_EPOCH, **kwargs: Any) -> list[Batch]:
    return list(pipeline(*args, **kwargs).batches(start, stop))
