"""What is printed where there is no terminal for a bar."""

from __future__ import annotations

import time

import pytest

from cifar100_tk import progress
from cifar100_tk.progress import Progress


def test_a_long_epoch_speaks_up_once_a_minute_with_the_time_left(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    shown = Progress(1000, 100, silent=False)
    for _ in range(4):
        now[0] += 31
        shown.step(45.4, 4.6051, 0.125)
    # 898 and 896 steps of 31 seconds.
    assert capsys.readouterr().out.splitlines() == [
        "step 102/1,000  loss 4.605  lr 0.125  45 images/s  7 h 43 min left",
        "step 104/1,000  loss 4.605  lr 0.125  45 images/s  7 h 42 min left",
    ]


def test_other_processes_say_nothing(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    hidden = Progress(10, 0, silent=True)
    now[0] = 61
    hidden.step(1.0, 4.6, 0.1)
    assert capsys.readouterr().out == ""


def test_a_quiet_run_prints_only_warnings(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    shown = Progress(10, 0, silent=False, quiet=True)
    now[0] = 61
    shown.step(1.0, 4.6, 0.1)
    shown.note("compiled")
    shown.warn("below the expected range")
    assert capsys.readouterr().out == "below the expected range\n"


@pytest.mark.parametrize(
    ("terminal", "environment", "styled"),
    [
        (True, {}, True),
        (False, {}, False),
        (True, {"NO_COLOR": "1"}, False),
        (True, {"NO_COLOR": ""}, True),
        (True, {"TERM": "dumb"}, False),
    ],
)
def test_only_a_terminal_gets_colour(
    terminal: bool, environment: dict[str, str], styled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"NO_COLOR": "", "TERM": "xterm"}.items():
        monkeypatch.setenv(name, environment.get(name, value))
    monkeypatch.setattr("sys.stdout.isatty", lambda: terminal)
    assert progress.style("epoch", progress.BOLD) == ("\x1b[1mepoch\x1b[0m" if styled else "epoch")
