"""What a trainer under test does out of the ordinary: get a signal at an exact moment, or break a promise on purpose.

Most act at the package's failpoints, or by a component of the recipe. The others replace a method or a function, because no
option should lead there: saving in the background and a loss scale belong to GPUs, and `write_in_place` and
`draw_from_one_generator` are faults of the package that the tests of a kill must notice.
"""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import runs
import torch
from accelerate import Accelerator

from cifar100_tk import draws
from cifar100_tk.runs import checkpoint_manager
from cifar100_tk.storage import atomic, failpoint


def signal_at(points: Mapping[str, int], rank: int | None = 0) -> None:
    """Send this process a signal at each moment, NAME for the first time or NAME:N. rank: None for all processes."""
    times: Counter[str] = Counter()

    def reach(name: str) -> None:
        times[name] += 1
        moments = (name, f"{name}:1") if times[name] == 1 else (f"{name}:{times[name]}",)
        for number in (points[moment] for moment in moments if moment in points):
            if rank in (None, int(os.environ.get("RANK", "0"))):
                print(f"signalled at {time.monotonic()}", flush=True)
                os.kill(os.getpid(), signal.Signals(number))

    failpoint.reach = reach


def save_in_background(*then: Any) -> None:
    """Save in the background on a CPU too, and do another thing of this module besides."""
    init = checkpoint_manager.CheckpointManager.__init__

    def in_background(self: checkpoint_manager.CheckpointManager, folder: Path, **options: Any) -> None:
        init(self, folder, **options | {"async_save": True})

    checkpoint_manager.CheckpointManager.__init__ = in_background  # type: ignore[method-assign]
    if then:
        name, *arguments = then
        globals()[name](*arguments)


def wait_at(point: str, file: str) -> None:
    """Wait at a named moment until a file is there."""

    def reach(name: str) -> None:
        while name == point and not Path(file).exists():
            time.sleep(0.01)

    failpoint.reach = reach


def fail_at(point: str, number: int) -> None:
    """Let the operating system refuse a write at a moment, NAME:N, with an error of this number."""
    times: Counter[str] = Counter()

    def reach(name: str) -> None:
        times[name] += 1
        if point == f"{name}:{times[name]}":
            raise OSError(number, os.strerror(number))

    failpoint.reach = reach


def limit_files_from(point: str, size: int) -> None:
    """Let no file grow beyond so many bytes once a named moment has come, as a quota or a full disk does."""
    # What is printed goes through another process, which has no limit.
    cat = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
    assert cat.stdin is not None
    os.dup2(cat.stdin.fileno(), 1)
    os.dup2(cat.stdin.fileno(), 2)
    cat.stdin.close()

    def reach(name: str) -> None:
        if name == point:
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

    failpoint.reach = reach


def spoil(kind: str, step: int, rank: int) -> None:
    """Make one process's loss NaN, or only its gradient infinite, from a step on. kind: "loss" or "gradient"."""
    if os.environ["RANK"] == str(rank):
        runs.spoil_at[kind] = step + 1


def scale_the_loss(name: str, *arguments: Any) -> None:
    """Scale the loss as fp16 needs it, with numbers of float32, and do another thing of this module besides."""
    init = Accelerator.__init__

    def scaled(self: Accelerator, *words: Any, **options: Any) -> None:
        init(self, *words, **options)
        self.scaler = torch.amp.GradScaler("cpu")

    Accelerator.__init__ = scaled
    globals()[name](*arguments)


def write_in_place() -> None:
    """Write folders where they will stay, without a temporary name and a rename."""

    @contextmanager
    def new_folder(folder: Path) -> Iterator[Path]:
        folder.mkdir(parents=True)
        yield folder

    atomic.new_folder = new_folder


def draw_from_one_generator() -> None:
    """Take all draws from one generator that starts with the process, as most training programs do."""
    generator = np.random.default_rng(0)

    def bits(seed: int, purpose: str, when: int, index: draws.Int64s, count: int) -> draws.UInt32s:
        return generator.integers(0, 2**32, (len(index), count), dtype=np.uint32)

    draws.bits = bits


def with_environment(variables: Mapping[str, str], point: str = "never", number: int = 0) -> None:
    """Set environment variables, as a user does before the command, and send this process a signal at a named moment.

    With a pause before it, because some trackers write in the background.
    """
    os.environ.update(variables)

    def reach(name: str) -> None:
        if name == point:
            time.sleep(2)
            os.kill(os.getpid(), number)

    failpoint.reach = reach
