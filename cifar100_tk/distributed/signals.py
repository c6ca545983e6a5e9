"""What every step has to know from outside: was any process told to stop, did any process meet a number that is not finite."""

from __future__ import annotations

import signal
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor

from cifar100_tk.errors import StoppedError


class Interrupted(Exception):
    """The processes agreed to stop now."""


class _AtOnce(BaseException):
    """A signal before there is anything to save. No library on the way may take it for a problem of its own."""


class StepStatus(NamedTuple):
    """What all processes agree on about one step."""

    step: int
    loss: float
    """The mean of the processes' losses, in nats."""
    stop: bool
    """Whether any process was told to stop."""
    not_finite: tuple[int, ...]
    """The ranks whose own loss was not finite; all of them where only the gradient, which they share, was not; else none."""


class Signals:
    """Remembers the first signal that asks the run to stop."""

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self.at_once = True
        """Whether there is nothing to save yet, so that a signal may end the process wherever it is."""

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Note the signal and do nothing else once there is something to save; a second one cannot harm the saving."""
        self.received = self.received or signal.Signals(number)
        if self.at_once:
            raise _AtOnce


@contextmanager
def catch_signals() -> Iterator[Signals]:
    """Take SIGTERM, SIGINT and SIGUSR1 as requests to stop inside the block, and put the old handlers back after it.

    Raises StoppedError at once while there is nothing to save yet.
    """
    signals = Signals()
    caught = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
    # Python lets only the main thread handle signals; a run in another one is stopped by whoever started it.
    mine = threading.current_thread() is threading.main_thread()
    old = {number: signal.signal(number, signals.handle) for number in caught} if mine else {}
    try:
        yield signals
    except _AtOnce:
        assert signals.received is not None
        raise StoppedError(
            f"stopped by {signals.received.name} before training began; the same command starts again."
        ) from None
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


GPU_LAG = 4
"""Steps that the host of a GPU runs ahead of what it reads, so that neither waits for the other."""


class RankSync:
    """Reduces each step's loss and flags over all processes, and brings them to the host.

    On a GPU the host reads them a few steps late, which costs it no waiting: the answer is there already, and all processes
    read the same one at the same step. Elsewhere it reads the step's own.
    """

    def __init__(self, accelerator: Accelerator, lag: int | None = None) -> None:
        """lag: steps from sending to reading; if not given what fits the device."""
        self.accelerator = accelerator
        on_gpu = accelerator.device.type == "cuda"
        self.lag = (GPU_LAG if on_gpu else 0) if lag is None else lag
        self.pending: deque[_Message] = deque()
        # Only pinned memory is written to without the host waiting. Each is used again when its message has been read.
        size = 3 + accelerator.num_processes
        self._pinned = [torch.empty(size, pin_memory=True) for _ in range(self.lag + 1)] if on_gpu else []

    def all_reduce(self, step: int, stop: bool, loss: Tensor, finite: Tensor, *, wait: bool) -> list[StepStatus]:
        """Send this step's status and return those that can be read now, the oldest first. Every rank takes part.

        loss: (), this process's, on the device. finite: () bool, whether loss and gradient are. wait: return all that were
        sent, this step's too. Where a stop is agreed on, all are returned in any case, because what is saved next must be
        good; the list ends with the first step that was not finite.
        """
        values = torch.zeros(3 + self.accelerator.num_processes, device=self.accelerator.device)
        if stop:
            values[0].fill_(1.0)
        values[1] = ~finite
        values[2] = loss
        values[3 + self.accelerator.process_index] = ~loss.isfinite()
        if self.accelerator.num_processes > 1:
            values = self.accelerator.reduce(values, reduction="sum")
        self.pending.append(self._sent(step, values))
        found: list[StepStatus] = []
        while len(self.pending) > (0 if wait else self.lag):
            found.append(_read(self.pending.popleft(), self.accelerator.num_processes))
            if found[-1].not_finite:
                break
            wait = wait or found[-1].stop
        return found

    def any_rank(self, mine: bool) -> bool:
        """Return whether it is so for any process, now. Every rank takes part."""
        if self.accelerator.num_processes == 1:
            return mine
        flag = torch.tensor(float(mine), device=self.accelerator.device)
        return bool(self.accelerator.reduce(flag, reduction="sum").item() > 0)

    def _sent(self, step: int, values: Tensor) -> _Message:
        if not self._pinned:
            return _Message(step, values, None)
        host = self._pinned[step % len(self._pinned)].copy_(values, non_blocking=True)
        event = torch.cuda.Event()
        event.record()
        return _Message(step, host, event)


class _Message(NamedTuple):
    step: int
    values: Tensor
    """(3 + processes,) float32: stop, loss or gradient not finite, sum of the losses, and each rank's loss not finite."""
    event: torch.cuda.Event | None
    """When it has happened, the values can be read."""


def _read(message: _Message, num_processes: int) -> StepStatus:
    if message.event is not None:
        message.event.synchronize()
    stop, bad, loss, *by_rank = message.values.tolist()
    ranks = tuple(rank for rank, count in enumerate(by_rank) if count > 0) or tuple(range(num_processes))
    return StepStatus(message.step, loss / num_processes, stop > 0, ranks if bad > 0 else ())
