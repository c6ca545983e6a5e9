"""What is printed where there is no terminal for a bar."""

from __future__ import annotations

import pytest

from cifar100_tk import progress
from cifar100_tk.progress import Progress


def test_a_long_epoch_speaks_up_once_in_a_while(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = Progress(1200, 100, silent=False)
    shown.step(45.0)
    assert capsys.readouterr().out == ""
    monkeypatch.setattr(progress, "QUIET_SECONDS", 0.0)
    shown.step(45.4)
    out = capsys.readouterr().out
    assert out.startswith("step 102/1,200  45 images/s  ") and out.endswith(" left\n")


def test_other_processes_say_nothing(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "QUIET_SECONDS", 0.0)
    Progress(10, 0, silent=True).step(1.0)
    assert capsys.readouterr().out == ""
