"""Real processes, such as torchrun's; a run that does not end in time is ended, and says where it stood."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

import cifar100_tk

PROGRAMS = Path(__file__).with_name("programs")
"""Programs that tests run in processes of their own."""
TWO = ("--standalone", "--nproc_per_node=2")


def patient(seconds: float) -> float:
    """Return a span for a machine with as many running processes as cores, stretched where it has more."""
    return seconds * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


def torchrun(
    script: Path, *arguments: object, limit_seconds: float = 100, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run a script in two processes."""
    return wait(start(TWO, script, *arguments, **environment), limit_seconds)


def start(
    words: Sequence[str], script: Path, *arguments: object, inside: Sequence[str] = (), **environment: str
) -> subprocess.Popen[str]:
    """Start torchrun with words of its own. inside: a command that runs it, such as one that enters another host."""
    paths = [str(Path(__file__).parent), str(Path(cifar100_tk.__file__).parent.parent)]
    inherited = {name: value for name, value in os.environ.items() if name != "ACCELERATE_USE_CPU"}
    settings = {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1", "PYTHONFAULTHANDLER": "1"}
    return subprocess.Popen(
        [*inside, sys.executable, "-m", "torch.distributed.run", *words, str(script), *map(str, arguments)],
        env=inherited | settings | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait(process: subprocess.Popen[str], limit_seconds: float) -> subprocess.CompletedProcess[str]:
    """Wait for torchrun and all that it started, and leave none of it behind. Fails the test at the limit of a quiet machine."""
    try:
        out, err = process.communicate(timeout=patient(limit_seconds))
    except subprocess.TimeoutExpired:
        # Aborted, each prints the stack of its threads; torchrun ends with them.
        for child in psutil.Process(process.pid).children(recursive=True):
            child.send_signal(signal.SIGABRT)
        _, err = process.communicate(timeout=60)
        pytest.fail(
            f"not done in {limit_seconds:g} s or more, and ended; what they said, and where they were:\n{err[-8000:]}"
        )
    finally:
        process.terminate()  # Killed at once, it would leave its processes behind.
        process.wait(timeout=60)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def other_writer(path: Path) -> subprocess.Popen[str]:
    """Start another program that takes the lock of a run folder."""
    command = [sys.executable, str(PROGRAMS / "take_lock.py"), str(path / ".lock")]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


@contextmanager
def file_limit(size: int) -> Iterator[None]:
    """Let no file of this process grow beyond so many bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
