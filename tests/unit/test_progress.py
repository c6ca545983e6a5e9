"""What is printed where there is no terminal for a bar."""

from __future__ import annotations

import time

import pytest

from cifar100_tk.progress import Progress


def test_a_long_epoch_speaks_up_once_a_minute_with_the_time_left(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    shown = Progress(1000, 100, silent=False)
    for _ in range(4):
        now[0] += 31
        shown.step(45.4)
    # 898 and 896 steps of 31 seconds.
    assert capsys.readouterr().out.splitlines() == [
        "step 102/1,000  45 images/s  7 h 43 min left",
        "step 104/1,000  45 images/s  7 h 42 min left",
    ]


def test_other_processes_say_nothing(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    hidden = Progress(10, 0, silent=True)
    now[0] = 61
    hidden.step(1.0)
    assert capsys.readouterr().out == ""
