"""The status that all ranks share at each step: a request to stop, the loss, and numbers that are not finite."""

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
    """A signal before there is anything to save. A BaseException, so that no library on the way handles it."""


class StepStatus(NamedTuple):
    """The status of one step that all processes agree on."""

    step: int
    loss: float
    """The mean of the processes' losses, in nats."""
    stop: bool
    """True if any process was told to stop."""
    not_finite: tuple[int, ...]
    """The ranks whose own loss was not finite; all ranks if only the shared gradient was not; else ()."""
    save: bool = False
    """True if the main process asks for a checkpoint at the end of the epoch that ends when this can be read."""
    failed: bool = False
    """True if the main process has an error to raise on every process."""


class Signals:
    """Remembers the first signal that asks the run to stop."""

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self.at_once = True
        """True while there is nothing to save yet, so that a signal may end the process at any point."""

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Record the signal; once there is something to save, do nothing else, so that a second signal cannot harm the save."""
        self.received = self.received or signal.Signals(number)
        if self.at_once:
            raise _AtOnce


@contextmanager
def catch_signals() -> Iterator[Signals]:
    """Take SIGTERM, SIGINT and SIGUSR1 as requests to stop inside the block, and restore the old handlers after it.

    Raises StoppedError at once while there is nothing to save yet.
    """
    signals = Signals()
    caught = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
    # Python handles signals in the main thread only; a run in another thread is stopped by the code that started it.
    in_main_thread = threading.current_thread() is threading.main_thread()
    old = {number: signal.signal(number, signals.handle) for number in caught} if in_main_thread else {}
    try:
        yield signals
    except _AtOnce:
        assert signals.received is not None
        raise StoppedError(
            f"stopped by {signals.received.name} before training began; run the same command again to start."
        ) from None
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


LAG = {"cuda": 4}
"""Steps that the host runs ahead of the status that it reads, by device type, so that neither waits for the other; else 0."""
_FLAGS = 5
"""Values of a message before those of each rank."""


class RankSync:
    """Reduces each step's loss and flags over all processes, and copies them to the host.

    On a GPU the host reads them a few steps late and so never waits: the result has already arrived, and all processes read
    the same one at the same step. Elsewhere it reads those of the current step.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        on_gpu = accelerator.device.type == "cuda"
        self.lag = LAG.get(accelerator.device.type, 0)
        self.pending: deque[_Message] = deque()
        # Only copies to pinned memory are asynchronous. Each buffer is reused once its message has been read.
        size = _FLAGS + accelerator.num_processes
        self._pinned = [torch.empty(size, pin_memory=True) for _ in range(self.lag + 1)] if on_gpu else []

    def all_reduce(
        self,
        step: int,
        stop: bool,
        loss: Tensor,
        finite: Tensor,
        *,
        wait: bool,
        save: bool = False,
        failed: bool = False,
    ) -> list[StepStatus]:
        """Send this step's status and return those that can be read now, the oldest first. Every rank takes part.

        loss: (), this process's, on the device. finite: () bool, whether loss and gradient are. wait: return all
        pending ones, including this step's. save, failed: told by the main process, as in StepStatus. After a request to
        stop or to save all are returned in any case, because what is saved next must be good; the list ends with the first
        step that was not finite.
        """
        values = torch.zeros(_FLAGS + self.accelerator.num_processes, device=self.accelerator.device)
        for place, flag in enumerate((stop, save, failed)):
            if flag:
                values[place].fill_(1.0)
        values[3] = ~finite
        values[4] = loss
        values[_FLAGS + self.accelerator.process_index] = ~loss.isfinite()
        if self.accelerator.num_processes > 1:
            values = self.accelerator.reduce(values, reduction="sum")
        self.pending.append(self._sent(step, values))
        found: list[StepStatus] = []
        while len(self.pending) > (0 if wait else self.lag):
            found.append(_read(self.pending.popleft(), self.accelerator.num_processes))
            if found[-1].not_finite:
                break
            wait = wait or found[-1].stop or found[-1].save
        return found

    def any_rank(self, local: bool) -> bool:
        """Return whether `local` is true on any process, now. Every rank takes part."""
        if self.accelerator.num_processes == 1:
            return local
        flag = torch.tensor(float(local), device=self.accelerator.device)
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
    """(5 + processes,) float32: stop, save, failed, loss or gradient not finite, sum of the losses, and each rank's loss not
    finite."""
    event: torch.cuda.Event | None
    """Once it has completed, the values can be read."""


def _read(message: _Message, num_processes: int) -> StepStatus:
    if message.event is not None:
        message.event.synchronize()
    stop, save, failed, bad, loss, *by_rank = message.values.tolist()
    ranks = tuple(rank for rank, count in enumerate(by_rank) if count > 0) or tuple(range(num_processes))
    return StepStatus(
        message.step, loss / num_processes, stop > 0, ranks if bad > 0 else (), save=save > 0, failed=failed > 0
    )
