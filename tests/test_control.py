"""What the processes agree on at each step, and when the host of a GPU hears of it."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

import pytest
import torch
from runs import on_cpu

from cifar100_tk.control import Agreement, Flags, NotFinite, catch_signals
from cifar100_tk.errors import StoppedError
from cifar100_tk.launch import start_accelerator

__all__ = ["on_cpu"]
pytestmark = pytest.mark.usefixtures("on_cpu")

GOOD, BAD = torch.tensor(1.0), torch.tensor(float("nan"))
YES, NO = torch.tensor(True), torch.tensor(False)


class Immediately:
    """A CUDA event that has happened."""

    def record(self) -> None: ...

    def synchronize(self) -> None: ...


@pytest.fixture
def lagging(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Agreement:
    """As on a GPU, with the tensors on the CPU."""
    empty = torch.empty
    monkeypatch.setattr("torch.empty", lambda size, pin_memory: empty(size))
    monkeypatch.setattr("torch.cuda.Event", Immediately)
    agreement = Agreement(start_accelerator(tmp_path))
    agreement.lagging = True
    return agreement


def test_on_a_cpu_the_flags_are_those_of_the_step(tmp_path: Path) -> None:
    agreement = Agreement(start_accelerator(tmp_path))
    assert agreement.exchange(0, False, GOOD, YES, now=False) == Flags()
    assert agreement.exchange(1, True, GOOD, YES, now=False) == Flags(stop=True)
    assert agreement.exchange(2, False, BAD, NO, now=False) == Flags(not_finite=NotFinite(2, (0,)))


def test_on_a_gpu_the_flags_are_those_of_the_step_before(lagging: Agreement) -> None:
    assert lagging.exchange(0, False, BAD, NO, now=False) == Flags()
    assert lagging.exchange(1, False, GOOD, YES, now=False) == Flags(not_finite=NotFinite(0, (0,)))
    assert lagging.exchange(2, False, GOOD, YES, now=False) == Flags()


def test_before_a_checkpoint_they_are_those_of_the_step_itself(lagging: Agreement) -> None:
    # At an epoch's end, which may be followed by a checkpoint.
    assert lagging.exchange(0, False, GOOD, NO, now=True) == Flags(not_finite=NotFinite(0, (0,)))
    # A stop is heard of one step late; by then that step may have gone wrong, and must not be saved.
    assert lagging.exchange(1, True, GOOD, YES, now=False).stop is False
    assert lagging.exchange(2, True, BAD, NO, now=False) == Flags(stop=True, not_finite=NotFinite(2, (0,)))
    # The first bad step is the one that is told.
    assert lagging.exchange(3, True, BAD, NO, now=False) == Flags(stop=True, not_finite=NotFinite(2, (0,)))


def test_signals_are_noted_the_first_one_counts_and_the_old_handlers_come_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with catch_signals() as signals:
        signals.at_once = False
        for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT):
            os.kill(os.getpid(), number)
        assert signals.received == signal.SIGUSR1
    assert signal.getsignal(signal.SIGTERM) is before


def test_before_there_is_something_to_save_a_signal_ends_the_run_at_once() -> None:
    with (
        pytest.raises(StoppedError, match="stopped by SIGTERM before training began; the same command starts again"),
        catch_signals(),
    ):
        os.kill(os.getpid(), signal.SIGTERM)
    assert StoppedError.exit_code == 75


def test_no_library_takes_that_signal_for_trouble_of_its_own() -> None:
    with pytest.raises(StoppedError, match="stopped by SIGINT"), catch_signals(), contextlib.suppress(Exception):
        os.kill(os.getpid(), signal.SIGINT)
