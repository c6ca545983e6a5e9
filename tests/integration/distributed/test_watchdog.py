"""A process that raises, exits, is killed or hangs ends the other one soon, with a message, and none is left behind."""

from __future__ import annotations

import datetime
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import timm
import torch
from processes import PROGRAMS, patient, torchrun
from runs import SHAPES

from cifar100_tk.augment import Normalize
from cifar100_tk.distributed.watchdog import Peer, meet_peers
from cifar100_tk.errors import PeerError
from cifar100_tk.models import folder as model_folder

pytestmark = pytest.mark.distributed


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


# Each starts torchrun and two processes, which takes most of its time.
SLOW = [pytest.param(how, marks=pytest.mark.slow) for how in ("raises", "exits", "hangs")]


@pytest.mark.parametrize("how", ["is killed", *SLOW])
def test_one_process_that_fails_ends_the_other_within_ten_seconds(tmp_path: Path, how: str) -> None:
    timeout_seconds = 12.0 if how == "hangs" else 600.0
    finished = torchrun(PROGRAMS / "fail_in_step.py", tmp_path, how, timeout_seconds / 60, ACCELERATE_USE_CPU="true")
    said = finished.stderr
    # Not the time until torchrun has ended too, which says more of how busy the machine is.
    ended = float((tmp_path / "ended0").read_text()) - float((tmp_path / "failed").read_text())
    assert finished.returncode != 0
    pids = [int((tmp_path / f"pid{rank}").read_text()) for rank in (0, 1)]
    assert all(Peer(rank, pid).is_gone() for rank, pid in enumerate(pids))
    assert ended < patient(10) + (timeout_seconds if how == "hangs" else 0), said[-3000:]
    if how == "hangs":
        sentence = r"fail_in_step\.py: rank 0 ends because another process stopped responding: .* --timeout-minutes 0\.2; its own"
    else:
        sentence = (
            rf"fail_in_step\.py: rank 0 ends because rank 1 \(process {pids[1]}\) ended; its own message is above; "
            "run the same"
        )
    assert re.search(sentence, said), said[-3000:]
    if how == "raises":
        assert "a bug in one process" in said


def test_an_evaluation_that_loses_a_process_says_so(tmp_path: Path) -> None:
    network = timm.create_model("test_convnext2", num_classes=100)
    model_folder.write(tmp_path / "model", network, SHAPES.open("test").class_names, Normalize(), "")
    data = ["--data.source", "shapes100", "--data.shapes100-rows", "100", "100"]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    # Not by torchrun, which would end the other one before it can speak.
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    both = [
        subprocess.Popen(
            [sys.executable, str(PROGRAMS / "fail_in_evaluation.py"), str(tmp_path / "model"), *data],
            env={**os.environ, **shared, "RANK": rank, "LOCAL_RANK": rank, "ACCELERATE_USE_CPU": "true"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in ("0", "1")
    ]
    said = [process.communicate(timeout=patient(100))[1] for process in both]
    assert [process.returncode for process in both] == [PeerError.exit_code, -9], said
    sentence = (
        f"python -m cifar100_tk.eval: rank 0 ends because rank 1 (process {both[1].pid}) ended; its own message is above; "
        "run the same command again."
    )
    assert said[0].splitlines()[-1] == sentence and "Traceback" not in said[0]


def test_a_start_that_another_process_does_not_come_to_ends_at_the_timeout(tmp_path: Path) -> None:
    finished = torchrun(PROGRAMS / "start_half.py", tmp_path, ACCELERATE_USE_CPU="true")
    assert finished.returncode != 0
    assert 3 <= time.time() - float((tmp_path / "began").read_text()) < patient(30), finished.stderr[-3000:]
    assert all(Peer(rank, int((tmp_path / f"pid{rank}").read_text())).is_gone() for rank in (0, 1))
    waits = r"^rank 0 is waiting for the other process of its run at localhost:\d+, up to --timeout-minutes 0\.05$"
    ends = r"^(start_half\.py: )?rank 0 (has not met|could not join) the other process of its run at localhost:\d+.* GLOO_SOCKET_"
    for sentence in (waits, ends):
        assert re.search(sentence, finished.stderr, re.MULTILINE), finished.stderr[-3000:]


def test_a_process_that_finds_nobody_where_the_run_meets_says_so_and_what_to_look_at(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # And does not listen.
        port = str(taken.getsockname()[1])
        for name, value in {"RANK": "2", "WORLD_SIZE": "3", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}.items():
            monkeypatch.setenv(name, value)
        message = (
            rf"^rank 2 could not join the other 2 processes of its run at 127\.0\.0\.1:{port}: .*; start all of them"
        )
        with pytest.raises(PeerError, match=message), meet_peers(1.0):
            torch.distributed.init_process_group("gloo", timeout=datetime.timedelta(seconds=0.5))
    with pytest.raises(ValueError, match="a bug"), meet_peers(1.0):
        raise ValueError("a bug of another kind")
