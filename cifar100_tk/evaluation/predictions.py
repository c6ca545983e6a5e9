"""Predictions for every image of a split, each exactly once, over any number of processes."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from jaxtyping import Int64
from torch import Tensor, nn
from torch.nn.functional import log_softmax

from cifar100_tk.augment import SIDE, Normalize, finish, resize_images
from cifar100_tk.data import Split
from cifar100_tk.data.image_store import ImageStore
from cifar100_tk.distributed.collectives import reduce_sum
from cifar100_tk.errors import DataError
from cifar100_tk.evaluation.metrics import Metrics, batch_sums
from cifar100_tk.tensors import Labels, Logits

LIMIT_UNIT = 500
"""Images per batch as `--limit-eval-batches` counts them, whatever the device's batch size."""


def forward_batch(device: torch.device, image_size: int = SIDE) -> int:
    """Return the number of images that a process evaluates at a time: 500, or 2,000 on a GPU with 32 GB or more.

    Inputs larger than 32x32 pixels get fewer, in proportion to their area, so that they take the same memory.
    """
    large = device.type == "cuda" and torch.cuda.get_device_properties(device).total_memory >= 32e9
    return max(1, (2000 if large else 500) * SIDE**2 // max(SIDE, image_size) ** 2)


def evaluate(
    model: nn.Module,
    split: Split,
    normalize: Normalize,
    *,
    accelerator: Accelerator | None = None,
    batch_size: int | None = None,
    limit_batches: int | None = None,
    image_size: int = SIDE,
    between_batches: Callable[[], None] = lambda: None,
) -> Metrics:
    """Measure a model without augmentation: top-1, top-5 and loss, from sums.

    model: maps Images (B, 3, S, S) to Logits (B, C), with S = image_size, to which images are resized on the device; it is run
    in evaluation mode, under the accelerator's autocast, and left in the mode it was in. batch_size: images a process at a
    time, `forward_batch` of the device if not given; sums may round differently with it. limit_batches: measure only the first
    that many batches of the split, of 500 images where batch_size is not given. between_batches: called before each batch, as
    often on every process; it may raise.
    All processes must call it; all get the same figures.
    """
    accelerator = accelerator or Accelerator()
    split = first_batches(split, batch_size or LIMIT_UNIT, limit_batches)
    batch_size = batch_size or forward_batch(accelerator.device, image_size)
    with _evaluation_mode(model):
        outputs = _batch_logits(model, split, normalize, image_size, accelerator, batch_size, between_batches)
        sums = [batch_sums(logits, labels) for logits, labels in outputs]
    # Each batch's counts fit float32 exactly; they are added in float64. Every rank takes part in the reduction.
    local = torch.stack(sums).cpu().double().sum(dim=0) if sums else torch.zeros(4, dtype=torch.float64)
    metrics = Metrics.from_sums(reduce_sum(accelerator, local))
    assert metrics.num_images == len(split), f"{metrics.num_images} images counted of {len(split)}"
    return metrics


@dataclass(frozen=True)
class Predictions:
    """The logits of a set of images, on the host."""

    logits: Logits
    """(N, C) float32."""
    labels: Labels
    """(N,) int64: the classes of the images."""
    rows: Int64[Tensor, " batch"]
    """(N,) int64, ascending: the row of each image in the store of its split."""


def predict(
    model: nn.Module,
    split: Split,
    normalize: Normalize,
    *,
    accelerator: Accelerator | None = None,
    batch_size: int | None = None,
    limit_batches: int | None = None,
    image_size: int = SIDE,
    flip: bool = False,
    between_batches: Callable[[], None] = lambda: None,
) -> Predictions:
    """Return a model's logits for every image of a split, in the order of its rows.

    flip: evaluate the mirrored images too, and return the logarithm of the mean of the two softmaxes as logits. The other
    arguments are those of `evaluate`. All processes must call it; all get the same predictions.
    """
    accelerator = accelerator or Accelerator()
    split = first_batches(split, batch_size or LIMIT_UNIT, limit_batches)
    batch_size = batch_size or forward_batch(accelerator.device, image_size)
    with _evaluation_mode(model):
        outputs = _batch_logits(
            model, split, normalize, image_size, accelerator, batch_size, between_batches, flip=flip
        )
        parts = [logits.float() for logits, _ in outputs]
    labels, rows = torch.from_numpy(split.labels[split.index]), torch.from_numpy(split.index)
    return Predictions(_gathered(parts, len(split), accelerator).cpu(), labels, rows)


def first_batches(split: Split, batch_size: int, limit_batches: int | None) -> Split:
    """Return the part of a split to evaluate: its first batches, or all of it. Raises DataError if it is empty."""
    if not len(split):
        raise DataError(
            f"the {split.name} split contains no images, so there is nothing to evaluate; choose another split."
        )
    if limit_batches is None:
        return split
    return dataclasses.replace(split, index=split.index[: limit_batches * batch_size])


@contextlib.contextmanager
def _evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode without gradients; the mode of each module is restored even after an exception."""
    training = [module for module in model.modules() if module.training]  # Frozen BatchNorm layers are not.
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        for module in training:
            module.training = True


def _batch_logits(
    model: nn.Module,
    split: Split,
    normalize: Normalize,
    image_size: int,
    accelerator: Accelerator,
    batch_size: int,
    between_batches: Callable[[], None],
    *,
    flip: bool = False,
) -> Iterator[tuple[Logits, Labels]]:
    """Yield logits and labels of this process's part of the split, batch by batch, on the device."""
    local_rows = split.index[accelerator.process_index :: accelerator.num_processes]
    store = ImageStore(split, accelerator.device)
    largest_share = -(-len(split) // accelerator.num_processes)
    for start in range(0, largest_share, batch_size):
        between_batches()
        rows = local_rows[start : start + batch_size]
        if not len(rows):
            break  # The last batch of a process may be empty.
        raw_images, labels = store.gather(rows)
        images = resize_images(finish(raw_images, normalize, None, 0, 0, rows), image_size)
        with accelerator.autocast():
            # Not model(...): a compiled model would be compiled once more for this mode and for the last, smaller batch.
            logits = model.forward(images)
            if flip:
                both = log_softmax(logits.float(), 1), log_softmax(model.forward(images.flip(3)).float(), 1)
                logits = torch.logaddexp(*both) - math.log(2)
        yield logits, labels


def _gathered(parts: list[Tensor], count: int, accelerator: Accelerator) -> Logits:
    """Return the logits of all processes, (count, C), in the order of the rows. Every rank takes part."""
    num_local = sum(map(len, parts))
    if accelerator.num_processes == 1:
        assert num_local == count, f"{num_local} images counted of {count}"
        return torch.cat(parts)
    # A process without images does not know the number of classes.
    known = torch.tensor([[parts[0].shape[1] if parts else 0, num_local]], device=accelerator.device)
    everyones = accelerator.gather(known)
    classes, counted = int(everyones[:, 0].max()), int(everyones[:, 1].sum())
    assert counted == count, f"{counted} images counted of {count}"
    # Rank r holds the rows r, r + world, ...; all send as many as the first, padded at the end if necessary.
    share = -(-count // accelerator.num_processes)
    local = torch.zeros(share, classes, device=accelerator.device)
    if parts:
        local[:num_local] = torch.cat(parts)
    everyone: Tensor = accelerator.gather(local)
    return everyone.view(accelerator.num_processes, share, classes).transpose(0, 1).flatten(0, 1)[:count]
