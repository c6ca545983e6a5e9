"""Host time of making a batch: time of the training thread in Python, numpy and torch's dispatcher, by part.

    python benchmarks/host_time.py [--batch-sizes 256 512 2048] [--rounds 30]

On a GPU a kernel runs after its launch has returned, so what the training thread pays for a batch is the launches, the
copies and the numpy work, whatever the kernels cost. This measures it without a GPU:

- **Launches and copies** are counted on torch's `meta` device, where every tensor operation is dispatched as on a GPU and
  none is computed (one that waited for an answer of the device would fail). Views and allocations are no launches. A copy
  is an array that goes from the host to the device.
- **Host time** is that of one CPU thread, least of the rounds, with the kernels' own time taken out: from the batch, as few
  images as draw each op that the batch draws are made into batches of that many images (N) and of each twice (2N), which
  launch the same operations. Kernels take time in proportion to the images, so 2 t(N) - t(2N) is what is left at no image
  at all. What numpy does for the whole batch -- draws and the arrays that are sent -- is measured as it is, and
  replaces numpy's part of that. CUDA's driver takes some microseconds more than a CPU for each launch: that is
  not in the milliseconds, and is why the launches stand beside them.

The reference recipe: crop, flip, AutoAugment on 70 %, normalize, Cutout on half, Mixup, smoothed targets.
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from cifar100_tk.augment import (
    AutoAugment,
    BatchedAugmentation,
    Chain,
    Cutout,
    Flip,
    Mix,
    Normalize,
    RandomResizedCrop,
    finish,
    soft_targets,
)
from cifar100_tk.draws import ImageDraws, Int64s

NO_LAUNCH = {"view", "expand", "slice", "select", "unsqueeze", "permute", "transpose", "unbind", "t", "alias", "detach"}
NO_LAUNCH |= {"_unsafe_view", "squeeze", "as_strided", "split", "empty", "empty_like", "new_empty", "_reshape_alias"}
NO_LAUNCH |= {"numpy_T", "lift_fresh"}
CHAIN: tuple[BatchedAugmentation, ...] = (RandomResizedCrop(), Flip(), AutoAugment(p=0.7))
NORMALIZE, CUTOUT, MIX = Normalize(), Cutout(), Mix(mixup_alpha=0.2)
Part = Callable[[torch.Tensor, torch.Tensor, Int64s], object]
"""One part of the work. Takes (B, 3, 32, 32) uint8 images, (B,) labels and (B,) indices that key the random draws."""


class Launches(TorchDispatchMode):
    """Counter of GPU kernel launches and copies to the GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.launches = self.copies = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, func.__name__.split(".")[0]
        result = func(*args, **kwargs)
        if name not in NO_LAUNCH and isinstance(result, torch.Tensor | tuple):
            first = result if isinstance(result, torch.Tensor) else result[0]
            sent = name in ("_to_copy", "copy_") and first.is_meta and any(_on_host(value) for value in args)
            self.copies += sent
            self.launches += first.is_meta and not sent
        return result


def _on_host(value: object) -> bool:
    return isinstance(value, torch.Tensor) and not value.is_meta


def chain_of(*augment: BatchedAugmentation) -> Part:
    """Run one augmentation at its position in the chain, which keys its draws."""

    def run(images: torch.Tensor, labels: torch.Tensor, index: Int64s) -> object:
        for augmentation in augment:
            images = augmentation.apply_batch(images, _plan(augmentation, index))
        return images

    return run


def whole(images: torch.Tensor, labels: torch.Tensor, index: Int64s) -> object:
    """Run the pipeline on a batch of images."""
    finished = finish(Chain(CHAIN, 0).device(images, 0, index), NORMALIZE, CUTOUT, 0, 0, index)
    return MIX.build(100, 0.1)(finished, labels, 0, 0)


PARTS: dict[str, Part] = {
    "crop": chain_of(CHAIN[0]),
    "flip": chain_of(CHAIN[1]),
    "AutoAugment": chain_of(CHAIN[2]),
    "normalize, Cutout": lambda images, labels, index: finish(images, NORMALIZE, CUTOUT, 0, 0, index),
    "Mixup, targets": lambda images, labels, index: MIX.build(100, 0.1)(images.float(), labels, 0, 0),
    "targets without Mixup": lambda images, labels, index: soft_targets(labels, 100, 0.1),
}


def _plan(augmentation: BatchedAugmentation | Cutout, index: Int64s) -> dict[str, Any]:
    place = CHAIN.index(augmentation) if isinstance(augmentation, BatchedAugmentation) else None
    name = type(augmentation).__name__ if place is None else f"{place}.{type(augmentation).__name__}"
    return augmentation.draw(ImageDraws(0, f"augment.{name}", 0, index))


def on_numpy(images: torch.Tensor, labels: torch.Tensor, index: Int64s) -> None:
    """Draw for a batch and prepare the data to send, without processing any image."""
    for augmentation in (*CHAIN, CUTOUT):
        plan = _plan(augmentation, index)
        if hasattr(augmentation, "controls"):
            augmentation.controls(plan)


def few(count: int) -> Int64s:
    """Pick the smallest set of indices in 0..count-1 that draws every op at both positions that the full set draws."""
    ops = _plan(CHAIN[2], np.arange(count))["op"]
    chosen = [np.flatnonzero(ops[:, place] == op)[0] for place in (0, 1) for op in np.unique(ops[:, place])]
    found = np.unique(chosen)
    return (
        found if len(found) % 2 == 0 else np.append(found, np.setdiff1d(np.arange(count), found)[0])
    )  # Mixup needs pairs.


def milliseconds(part: Part, index: Int64s, rounds: int) -> float:
    """Return the minimum CPU time of this thread for a batch of the given indices."""
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (len(index), 3, 32, 32), np.uint8))
    labels = torch.zeros(len(index), dtype=torch.int64)
    times = []
    for _ in range(rounds):
        start = time.thread_time()
        part(images, labels, index)
        times.append(1000 * (time.thread_time() - start))
    return min(times)


def fixed(part: Part, index: Int64s, rounds: int) -> float:
    """Return the milliseconds of a part that do not depend on the number of images."""
    return 2 * milliseconds(part, index, rounds) - milliseconds(part, np.repeat(index, 2), rounds)


def launches(part: Part, index: Int64s) -> tuple[int, int]:
    """Return the launches and copies of a part for a batch of the given indices."""
    images = torch.empty(len(index), 3, 32, 32, dtype=torch.uint8, device="meta")
    labels = torch.zeros(len(index), dtype=torch.int64, device="meta")
    part(images, labels, index)  # Constant tables are sent once.
    with Launches() as counted:
        part(images, labels, index)
    return counted.launches, counted.copies


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[256, 512, 2048], metavar="B")
    parser.add_argument("--rounds", type=int, default=30, help="number of timings of each part; the minimum counts")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(
        f"{platform.processor() or platform.machine()}, 1 thread; torch {torch.__version__}, numpy {np.__version__}\n"
    )
    print("| part | batch | launches | copies | host ms |\n| --- | --: | --: | --: | --: |")
    for count in arguments.batch_sizes:
        index, everyone = few(count), np.arange(count)
        numpy_ms = milliseconds(on_numpy, everyone, arguments.rounds)
        numpy_fixed = fixed(on_numpy, index, arguments.rounds)
        print(f"| draws and arrays to send | {count} | 0 | 0 | {numpy_ms:.2f} |", flush=True)
        for name, part in PARTS.items():
            number, copies = launches(part, everyone)
            print(
                f"| {name} | {count} | {number} | {copies} | {fixed(part, index, arguments.rounds):.2f} |", flush=True
            )
        number, copies = launches(whole, everyone)
        assert launches(whole, index) == (number, copies), "the few images stand for the batch"
        total = fixed(whole, index, arguments.rounds) - numpy_fixed + numpy_ms
        print(f"| **whole batch** | {count} | {number} | {copies} | **{total:.2f}** |", flush=True)


if __name__ == "__main__":
    main()
