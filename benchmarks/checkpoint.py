"""Time and bytes of a checkpoint of the reference recipe with an average of its weights: saving, verifying, reading.

python benchmarks/checkpoint.py [FOLDER]      # a folder on the disk that runs are written to; . if not given
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from cifar100_tk import checkpoint
from cifar100_tk.models import TimmModel

REPEATS = 5


def main() -> None:
    """Print a line for each of the three."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else ".")
    net = TimmModel(name="resnet50_cifar").build(100).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    weights = net.state_dict()
    momentum = {f"momentum_buffer/{name}": torch.randn_like(p) for name, p in net.named_parameters()}
    tensors = {"model": weights, "optimizer": momentum, "ema": {name: t.clone() for name, t in weights.items()}}
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        steps = iter(range(1, REPEATS + 1))
        path = Path(scratch) / f"step-{REPEATS:08d}"
        rows = {
            "save (serialize, hash, write, fsync, read back, retire)": lambda: checkpoint.save(
                Path(scratch), next(steps), tensors, {}, keep=1
            ),
            "verify": lambda: checkpoint.verify(path),
            "read, which verifies": lambda: checkpoint.read(path),
        }
        for name, work in rows.items():
            seconds = [timed(work) for _ in range(REPEATS)]
            print(
                f"{name}: {statistics.median(seconds):.2f} s (median of {REPEATS}; {min(seconds):.2f} to {max(seconds):.2f})"
            )
        print(f"{sum(file.stat().st_size for file in path.iterdir()):,} bytes in {len(list(path.iterdir()))} files")


def timed(work: Callable[[], object]) -> float:
    """Return the seconds that a call takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
