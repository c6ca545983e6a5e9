"""A process that raises, exits, is killed or hangs ends the other one soon, with a message, and none is left behind."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

import cifar100_tk
from cifar100_tk.peers import Peer

pytestmark = pytest.mark.distributed

SCRIPT = """
import faulthandler, os, signal, sys, time
from pathlib import Path
from runs import BATCH_NORM, TINY
from cifar100_tk import errors, state
from cifar100_tk.plan import RunOptions
from cifar100_tk.train import train

folder, how, minutes = Path(sys.argv[1]), sys.argv[2], float(sys.argv[3])
rank = os.environ["RANK"]
(folder / f"pid{rank}").write_text(str(os.getpid()))
step = state.TrainState.train_step


def failing(self, batch, lr, micro_batch):
    if batch.step == 2 and rank == "1":
        (folder / "failed").write_text(str(time.time()))
        if how == "raises":
            raise KeyError("a bug in one process")
        if how == "exits":
            os._exit(3)
        if how == "is killed":
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(600)
    return step(self, batch, lr, micro_batch)


state.TrainState.train_step = failing
with errors.exit_with_sentence("script.py"):
    train(TINY, RunOptions(output_dir=folder / "run", timeout_minutes=minutes))
"""


def test_a_process_that_has_ended_is_gone_before_its_parent_knows() -> None:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    peer = Peer(1, process.pid)
    assert not peer.is_gone() and str(peer) == f"rank 1 (process {process.pid})"
    process.kill()
    until = time.monotonic() + 10
    while not peer.is_gone() and time.monotonic() < until:
        time.sleep(0.01)
    assert peer.is_gone()  # A zombie: nobody has waited for it.
    process.communicate()
    assert peer.is_gone() and not Peer(0, os.getpid()).is_gone()


# Each starts two processes; the two ways that differ most are always tested.
SLOW = [pytest.param(how, marks=pytest.mark.slow) for how in ("raises", "exits")]


@pytest.mark.parametrize("how", ["is killed", "hangs", *SLOW])
def test_one_process_that_fails_ends_the_other_within_ten_seconds(tmp_path: Path, how: str) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    timeout_seconds = 12.0 if how == "hangs" else 600.0
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    paths = [str(Path(__file__).parent), str(Path(cifar100_tk.__file__).parent.parent)]
    settings = {"ACCELERATE_USE_CPU": "true", "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [*command, str(tmp_path / "script.py"), str(tmp_path), how, str(timeout_seconds / 60)],
        env=os.environ | settings,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        _, said = process.communicate(timeout=110)
    finally:
        process.terminate()
        process.wait(timeout=60)
    ended = time.time() - float((tmp_path / "failed").read_text())
    assert process.returncode != 0
    pids = [int((tmp_path / f"pid{rank}").read_text()) for rank in (0, 1)]
    # torchrun waits for both, so the time until it ended is the time until both had.
    assert all(Peer(rank, pid).is_gone() for rank, pid in enumerate(pids))
    # One that hangs is ended by the other one's end, some seconds after the timeout.
    assert ended < (timeout_seconds + 20 if how == "hangs" else 10), said[-3000:]
    if how == "hangs":
        sentence = (
            r"script\.py: rank 0 ends because another process no longer answers: .* --timeout-minutes 0\.2; its own"
        )
    else:
        sentence = (
            rf"script\.py: rank 0 ends because rank 1 \(process {pids[1]}\) ended; its own message is above; the same"
        )
    assert re.search(sentence, said), said[-3000:]
    if how == "raises":
        assert "a bug in one process" in said
