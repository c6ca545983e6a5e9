"""A disk that is full for TensorBoard's thread: the trainer's own sentence is the only one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

CODE = """
import resource, signal
from torch.utils.tensorboard import SummaryWriter
import cifar100_tk.training.tensorboard
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, resource.RLIM_INFINITY))
writer = SummaryWriter("board")
try:
    for step in range(100):
        writer.add_text("text", "x" * 1000, step)
        writer.flush()
except OSError as error:
    print(f"caught {error.strerror}", flush=True)
"""


def test_the_thread_of_tensorboard_prints_no_traceback(tmp_path: Path) -> None:
    ended = subprocess.run([sys.executable, "-c", CODE], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert ended.stdout == "caught File too large\n"
    assert "Exception in thread" not in ended.stderr and "_AsyncWriterThread" not in ended.stderr, ended.stderr
