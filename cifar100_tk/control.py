"""What every step has to know from outside: was any process told to stop, did any process meet a number that is not finite."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor


class Flags(NamedTuple):
    """What all processes agree on."""

    stop: bool = False
    not_finite: bool = False


class Signals:
    """Remembers the first signal that asks the run to stop. The handler does nothing else: it may run at any moment."""

    received: signal.Signals | None = None

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Note the signal; a second one changes nothing, so that it cannot harm a save."""
        self.received = self.received or signal.Signals(number)


@contextmanager
def catch_signals() -> Iterator[Signals]:
    """Turn SIGTERM, SIGINT and SIGUSR1 into a note inside the block, and put the old handlers back after it."""
    signals = Signals()
    caught = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
    old = {number: signal.signal(number, signals.handle) for number in caught}
    try:
        yield signals
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
        self.before: tuple[Tensor, torch.cuda.Event] | None = None

    def exchange(self, stop: bool, finite: Tensor, *, now: bool) -> Flags:
        """Send this step's flags and return the agreed ones. Every rank takes part.

        finite: () bool, on the device. now: return this step's flags even where that means waiting.
        """
        flags = torch.zeros(2, device=self.accelerator.device)
        if stop:
            flags[0].fill_(1.0)
        flags[1] = ~finite
        if self.accelerator.num_processes > 1:
            flags = self.accelerator.reduce(flags, reduction="sum")
        if not self.lagging:
            return _flags(flags)
        # Only pinned memory is written to without the host waiting.
        host = torch.empty(2, pin_memory=True).copy_(flags, non_blocking=True)
        event = torch.cuda.Event()
        event.record()
        readable, self.before = (host, event) if now else self.before, (host, event)
        if readable is None:
            return Flags()
        readable[1].synchronize()
        return _flags(readable[0])


def _flags(summed: Tensor) -> Flags:
    stop, not_finite = summed.tolist()
    return Flags(stop=stop > 0, not_finite=not_finite > 0)
