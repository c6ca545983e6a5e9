"""What every step has to know from outside: was any process told to stop, did any process meet a number that is not finite."""

from __future__ import annotations

import signal
import threading
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


class NotFinite(NamedTuple):
    """Where a number that is not finite came up."""

    step: int
    ranks: tuple[int, ...]
    """The processes whose own loss it was; all of them where only the gradient, which they share, was not finite."""


class Flags(NamedTuple):
    """What all processes agree on."""

    stop: bool = False
    not_finite: NotFinite | None = None


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


class Agreement:
    """Carries the flags of a step to all processes and to the host.

    On a GPU the host reads the flags of the step before, which costs it no waiting: the answer is there already, and all
    processes read the same one at the same step. Elsewhere it reads the step's own.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self.lagging = accelerator.device.type == "cuda"
        self.before: _Sent | None = None

    def exchange(self, step: int, stop: bool, loss: Tensor, finite: Tensor, *, now: bool) -> Flags:
        """Send this step's flags and return the agreed ones. Every rank takes part.

        loss: (), this process's, on the device. finite: () bool, whether loss and gradient are. now: return this step's
        flags even where that means waiting. Where a stop is agreed on, the flags are this step's in any case, because
        what is saved next must be good.
        """
        flags = torch.zeros(2 + self.accelerator.num_processes, device=self.accelerator.device)
        if stop:
            flags[0].fill_(1.0)
        flags[1] = ~finite
        flags[2 + self.accelerator.process_index] = ~loss.isfinite()
        sent = self._sent(step, flags)
        readable, self.before = sent if now or not self.lagging else self.before, sent
        agreed = Flags() if readable is None else _read(readable)
        return _read(sent) if agreed.stop and readable is not sent and not agreed.not_finite else agreed

    def anyone(self, mine: bool) -> bool:
        """Return whether it is so for any process, now. Every rank takes part."""
        if self.accelerator.num_processes == 1:
            return mine
        flag = torch.tensor(float(mine), device=self.accelerator.device)
        return bool(self.accelerator.reduce(flag, reduction="sum").item() > 0)

    def _sent(self, step: int, flags: Tensor) -> _Sent:
        if self.accelerator.num_processes > 1:
            flags = self.accelerator.reduce(flags, reduction="sum")
        if not self.lagging:
            return _Sent(step, flags, None)
        # Only pinned memory is written to without the host waiting.
        host = torch.empty(len(flags), pin_memory=True).copy_(flags, non_blocking=True)
        event = torch.cuda.Event()
        event.record()
        return _Sent(step, host, event)


class _Sent(NamedTuple):
    step: int
    flags: Tensor
    """(2 + processes,): stop, loss or gradient not finite, and for each process, own loss not finite."""
    event: torch.cuda.Event | None
    """When it has happened, the flags can be read."""


def _read(sent: _Sent) -> Flags:
    if sent.event is not None:
        sent.event.synchronize()
    stop, bad, *by_rank = sent.flags.tolist()
    ranks = tuple(rank for rank, count in enumerate(by_rank) if count > 0) or tuple(range(len(by_rank)))
    return Flags(stop > 0, NotFinite(sent.step, ranks) if bad > 0 else None)
