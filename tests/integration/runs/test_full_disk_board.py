"""A disk that is full for TensorBoard's thread: the trainer's own sentence is the only one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from processes import PROGRAMS


def test_the_thread_of_tensorboard_prints_no_traceback(tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, str(PROGRAMS / "write_board.py")], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert ended.stdout == "caught File too large\n"
    assert "Exception in thread" not in ended.stderr and "_AsyncWriterThread" not in ended.stderr, ended.stderr
