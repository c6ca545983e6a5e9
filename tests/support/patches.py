"""What a trainer under test does out of the ordinary: get a signal at an exact moment, or break a promise on purpose."""

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
import torch
from accelerate import Accelerator

from cifar100_tk import draws, train
from cifar100_tk.evaluation import predictions
from cifar100_tk.runs import checkpoint_manager
from cifar100_tk.storage import atomic, failpoint
from cifar100_tk.training import context, epoch_report, finalize, seeds
from cifar100_tk.training.loader import Batch
from cifar100_tk.training.plan import Plan
from cifar100_tk.training.state import TrainState


def signal_at(points: Mapping[str, int], rank: int | None = 0) -> None:
    """Send this process a signal at each named moment, the first time that it comes. rank: None for all processes."""
    left = dict(points)

    def reach(name: str) -> None:
        if number := left.pop(name, None):
            _signal_myself(number, rank)

    failpoint.reach = reach


def signal_in_evaluation(number: int, rank: int = 0) -> None:
    """Send this process a signal when it is about to evaluate for the second time: the average of the first epoch."""
    evaluate = predictions.evaluate
    calls = []

    def signalled(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            _signal_myself(number, rank)
        return evaluate(*arguments, **options)

    vars(finalize)["evaluate"] = signalled


def signal_in_setup(number: int, rank: int | None = 0) -> None:
    """Send this process a signal while it makes its plan. rank: None for all processes."""
    plan_of = Plan.of

    def signalled(*arguments: Any) -> Any:
        _signal_myself(number, rank)
        return plan_of(*arguments)

    Plan.of = signalled  # type: ignore[assignment, method-assign]


def signal_in_setup_of_seeds(number: int, rank: int) -> None:
    """Send this process a signal while the images of several seeds are opened."""
    opened = vars(seeds)["open_splits"]

    def signalled(*arguments: Any) -> Any:
        _signal_myself(number, rank)
        return opened(*arguments)

    vars(seeds)["open_splits"] = signalled


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


def say_nothing() -> None:
    """Log nothing to the screen, to metrics.jsonl or to TensorBoard."""
    epoch_report.EpochReport.write = lambda *_: {}  # type: ignore[method-assign]
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def scale_the_loss(name: str, *arguments: Any) -> None:
    """Scale the loss as fp16 needs it, with numbers of float32, and do another thing of this module besides."""
    start = vars(context)["start_accelerator"]

    def scaled(*options: Any, **more: Any) -> Accelerator:
        accelerator: Accelerator = start(*options, **more)
        accelerator.scaler = torch.amp.GradScaler("cpu")
        return accelerator

    vars(context)["start_accelerator"] = scaled
    globals()[name](*arguments)


def spoil_images(step: int, rank: int) -> None:
    """Put a NaN into one process's images of a step."""
    train_step = train.train_step

    def spoiled(state: TrainState, batch: Batch, *options: Any) -> Any:
        if batch.step == step and state.accelerator.process_index == rank:
            batch.images[0, 0, 0, 0] = float("nan")
        return train_step(state, batch, *options)

    vars(train)["train_step"] = spoiled


def spoil_gradient(step: int, rank: int) -> None:
    """Make one number of one process's gradient infinite at a step, and leave its loss as it is."""
    train_step = train.train_step

    def spoiled(state: TrainState, batch: Batch, *options: Any) -> Any:
        if batch.step == step and state.accelerator.process_index == rank:
            state.net.get_parameter("fc.bias").register_hook(lambda gradient: gradient * float("inf"))
        return train_step(state, batch, *options)

    vars(train)["train_step"] = spoiled


def _signal_myself(number: int, rank: int | None) -> None:
    if rank in (None, int(os.environ.get("RANK", "0"))):
        print(f"signalled at {time.monotonic()}", flush=True)
        os.kill(os.getpid(), signal.Signals(number))


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
            _signal_myself(number, None)

    failpoint.reach = reach
