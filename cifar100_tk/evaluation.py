"""evaluate(): what a model scores on a split, every picture exactly once, over any number of processes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from accelerate import Accelerator
from torch import nn

from cifar100_tk.augment import Normalize, finish
from cifar100_tk.data import Split
from cifar100_tk.metrics import Metrics, batch_sums
from cifar100_tk.pipeline import PictureStore


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    split: Split,
    normalize: Normalize,
    *,
    accelerator: Accelerator | None = None,
    batch_size: int = 500,
    limit_batches: int | None = None,
    between_batches: Callable[[], None] = lambda: None,
) -> Metrics:
    """Measure a model without augmentation.

    model: maps Images (B, 3, 32, 32) to Logits (B, C); it is run in evaluation mode, under the accelerator's autocast,
    and left in the mode it was in. batch_size: pictures a process at a time. limit_batches: measure only the first
    that many batches of the split. between_batches: called before each batch, as often on every process; it may raise.
    All processes must call it; all get the same figures.
    """
    accelerator = accelerator or Accelerator()
    index = split.index if limit_batches is None else split.index[: limit_batches * batch_size]
    mine = index[accelerator.process_index :: accelerator.num_processes]
    store = PictureStore(split, accelerator.device)
    was_training = model.training
    model.eval()
    sums = []
    largest_share = -(-len(index) // accelerator.num_processes)
    for start in range(0, largest_share, batch_size):
        between_batches()
        rows = mine[start : start + batch_size]
        if not len(rows):
            break  # The last batch of a process may be nobody's.
        pictures, labels = store.gather(rows)
        images = finish(pictures, normalize, None, 0, 0, rows)
        with accelerator.autocast():
            # Not model(...): a compiled model would be compiled once more for this mode and for the last, smaller batch.
            logits = model.forward(images)
        sums.append(batch_sums(logits, labels))
    model.train(was_training)
    # Each batch's counts fit float32 exactly; they are added in float64. Every rank takes part in the reduction.
    local = torch.stack(sums).cpu().double().sum(dim=0) if sums else torch.zeros(4, dtype=torch.float64)
    metrics = Metrics.from_sums(reduce_sum(accelerator, local))
    assert metrics.num_images == len(index), f"{metrics.num_images} pictures counted of {len(index)}"
    return metrics


def reduce_sum(accelerator: Accelerator, local: torch.Tensor) -> torch.Tensor:
    """Return the sum of a host tensor over all processes, on the host. Every rank takes part."""
    if accelerator.num_processes == 1:
        return local
    reduced: torch.Tensor = accelerator.reduce(local.to(accelerator.device), reduction="sum")
    return reduced.cpu()
