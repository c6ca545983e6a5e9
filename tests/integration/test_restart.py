"""torchrun --max-restarts: one process killed costs one restart, and the weights are those of a run that nothing interrupts."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from processes import PROGRAMS, TWO, start, torchrun, wait
from runs import assert_same_tensors, lines, newest, status

pytestmark = pytest.mark.distributed


@pytest.mark.parametrize("killed", [0, 1])
def test_a_killed_process_costs_one_restart(tmp_path: Path, killed: int) -> None:
    script = PROGRAMS / "killed_once.py"
    words = [*TWO, "--max-restarts=3"]
    ended = wait(start(words, script, tmp_path / "run", ACCELERATE_USE_CPU="true", KILLED=str(killed)), 100)
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert f"exitcode: {-signal.SIGKILL}" in ended.stderr and "step-00000005" in ended.stdout
    # The first start and one restart, of both processes.
    assert sorted(path.name for path in tmp_path.glob("attempt-*")) == [
        f"attempt-{attempt}-{rank}" for attempt in (0, 1) for rank in (0, 1)
    ]
    whole = torchrun(script, tmp_path / "whole", ACCELERATE_USE_CPU="true")
    assert whole.returncode == 0, whole.stderr[-3000:]
    assert newest(tmp_path / "run").step == 10 and status(tmp_path / "run")["status"] == "finished"
    assert_same_tensors(newest(tmp_path / "run"), newest(tmp_path / "whole"))
    assert lines(tmp_path / "run") == lines(tmp_path / "whole")
