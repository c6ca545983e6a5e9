"""What the processes agree on at each step, and when the host of a GPU hears of it."""

from __future__ import annotations

import contextlib
import math
import os
import signal
from pathlib import Path

import pytest
import torch
from torch import Tensor

from cifar100_tk.distributed.launch import start_accelerator
from cifar100_tk.distributed.signals import LAG, RankSync, StepStatus, catch_signals
from cifar100_tk.errors import StoppedError

pytestmark = pytest.mark.usefixtures("on_cpu")

GOOD, BAD = torch.tensor(1.5), torch.tensor(float("nan"))
YES, NO = torch.tensor(True), torch.tensor(False)


def told(sync: RankSync, step: int, stop: bool, loss: Tensor, finite: Tensor, *, wait: bool) -> list[StepStatus]:
    """What can be read after a step, with the loss of a bad one, which is NaN and equals nothing, as -1."""
    found = sync.all_reduce(step, stop, loss, finite, wait=wait)
    return [status._replace(loss=-1.0) if math.isnan(status.loss) else status for status in found]


@pytest.fixture
def lagging(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RankSync:
    """As on a GPU, with the tensors on the CPU: read two steps late."""
    monkeypatch.setitem(LAG, "cpu", 2)
    return RankSync(start_accelerator(tmp_path))


def test_on_a_cpu_a_status_is_read_in_its_own_step(tmp_path: Path) -> None:
    sync = RankSync(start_accelerator(tmp_path))
    assert told(sync, 0, False, GOOD, YES, wait=False) == [StepStatus(0, 1.5, False, ())]
    assert told(sync, 1, True, GOOD, YES, wait=False) == [StepStatus(1, 1.5, True, ())]
    assert told(sync, 2, False, BAD, NO, wait=False) == [StepStatus(2, -1.0, False, (0,))]


def test_on_a_gpu_a_status_is_read_a_few_steps_late(lagging: RankSync) -> None:
    assert told(lagging, 0, False, BAD, NO, wait=False) == told(lagging, 1, False, GOOD, YES, wait=False) == []
    assert told(lagging, 2, False, GOOD, YES, wait=False) == [StepStatus(0, -1.0, False, (0,))]
    assert told(lagging, 3, False, GOOD, YES, wait=False) == [StepStatus(1, 1.5, False, ())]


def test_before_an_evaluation_or_a_checkpoint_all_are_read(lagging: RankSync) -> None:
    assert told(lagging, 0, False, GOOD, YES, wait=False) == []
    # The step itself is what is saved next.
    assert told(lagging, 1, False, GOOD, NO, wait=True) == [
        StepStatus(0, 1.5, False, ()),
        StepStatus(1, 1.5, False, (0,)),
    ]


def test_a_stop_is_heard_of_late_and_then_all_are_read(lagging: RankSync) -> None:
    assert told(lagging, 0, True, GOOD, YES, wait=False) == told(lagging, 1, True, GOOD, YES, wait=False) == []
    # By then a later step may have gone wrong, and must not be saved; the first bad one is the one that is told.
    assert told(lagging, 2, True, BAD, NO, wait=False) == [
        StepStatus(0, 1.5, True, ()),
        StepStatus(1, 1.5, True, ()),
        StepStatus(2, -1.0, True, (0,)),
    ]
    assert not lagging.pending


def test_what_the_main_process_asks_for_is_read_at_the_same_late_step_by_all(lagging: RankSync) -> None:
    sent = [lagging.all_reduce(0, False, GOOD, YES, wait=False, failed=True)]
    sent += [lagging.all_reduce(step, False, GOOD, YES, wait=False, save=step == 1) for step in (1, 2, 3)]
    # An error does not hurry; before a checkpoint all are read.
    assert sent[:3] == [[], [], [StepStatus(0, 1.5, False, (), failed=True)]]
    assert sent[3] == [
        StepStatus(1, 1.5, False, (), save=True),
        StepStatus(2, 1.5, False, ()),
        StepStatus(3, 1.5, False, ()),
    ]


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
        pytest.raises(
            StoppedError, match="stopped by SIGTERM before training began; run the same command again to start"
        ),
        catch_signals(),
    ):
        os.kill(os.getpid(), signal.SIGTERM)
    assert StoppedError.exit_code == 75


def test_no_library_takes_that_signal_for_trouble_of_its_own() -> None:
    with pytest.raises(StoppedError, match="stopped by SIGINT"), catch_signals(), contextlib.suppress(Exception):
        os.kill(os.getpid(), signal.SIGINT)
