"""Watching the other processes of a run: when one is gone, the rest end with a sentence rather than wait for it."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from cifar100_tk.errors import CifarError, PeerError

GRACE_SECONDS = 4.0
"""How long a process may take to notice by itself that another one is gone, before it is ended."""
PATIENCE_SECONDS = 20.0
"""How long a process waits for the others to start before it says that it does."""


@dataclass(frozen=True)
class Peer:
    """Another process of the run on this machine."""

    rank: int
    pid: int

    def __str__(self) -> str:
        return f"rank {self.rank} (process {self.pid})"

    def is_gone(self) -> bool:
        """Whether it has ended; one that its parent has not yet taken leave of has ended too."""
        try:
            os.kill(self.pid, 0)
            stat = Path(f"/proc/{self.pid}/stat")
            return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] in "ZX"
        except (ProcessLookupError, FileNotFoundError):
            return True
        except PermissionError:
            return False


@contextmanager
def meet_peers(timeout_minutes: float) -> Iterator[None]:
    """Bound the block in which this process and the others of its run find each other; failing that is a PeerError.

    gloo would wait for a connection five times as long as it is told, deaf to signals; a thread ends the process.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    met = threading.Event()
    threading.Thread(target=_end_unless, args=(met, timeout_minutes), daemon=True).start()
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, CifarError) or not _from_communication(error):
            raise
        raise PeerError(_alone(f"could not join {_others()}: {str(error).splitlines()[0]}")) from error
    finally:
        met.set()


def _end_unless(met: threading.Event, timeout_minutes: float) -> None:
    seconds = timeout_minutes * 60
    limit = f"--timeout-minutes {timeout_minutes:g}"
    if seconds > PATIENCE_SECONDS and not met.wait(PATIENCE_SECONDS):
        seconds -= PATIENCE_SECONDS
        print(f"rank {os.environ.get('RANK')} waits for {_others()}, for {limit} at most", file=sys.stderr, flush=True)
    if not met.wait(seconds):
        print(_alone(f"has not met {_others()} within {limit}"), file=sys.stderr, flush=True)
        os._exit(PeerError.exit_code)


def _others() -> str:
    count = int(os.environ["WORLD_SIZE"]) - 1
    place = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
    return f"the other {f'{count} processes' if count > 1 else 'process'} of its run at {place}"


def _alone(what: str) -> str:
    return (
        f"rank {os.environ.get('RANK')} {what}; start all of them, each machine with its own rank, see that the machines reach "
        "each other on every port, and name the network interface in GLOO_SOCKET_IFNAME (NCCL_SOCKET_IFNAME for GPUs) where "
        "the host name does not lead to it."
    )


@dataclass
class Watch:
    """The watch over the other processes of this machine."""

    then: str
    """What to do when one is gone, the end of the sentence; it may change while the watch lasts."""


@contextmanager
def watch_peers(accelerator: Accelerator, timeout_minutes: float, then: str) -> Iterator[Watch]:
    """End this process within seconds when another one of this machine ends inside the block. Every rank takes part.

    then: what to do about it, the end of the sentence.

    Over gloo a lost peer is an error at once, which becomes a PeerError that names it. Over NCCL the host would wait in
    the driver until the timeout, deaf to signals; there a thread ends the process. Peers on other machines are noticed
    by the connections that break, or at the timeout.
    """
    watch = Watch(then)
    if accelerator.num_processes == 1:
        yield watch
        return
    mine = (accelerator.process_index, _machine(), os.getpid())
    everyone = gather_object([mine])
    peers = [Peer(rank, pid) for rank, machine, pid in everyone if machine == mine[1] and rank != mine[0]]
    left = threading.Event()
    threading.Thread(target=_end_with, args=(peers, mine[0], left, watch), daemon=True).start()
    try:
        yield watch
    except RuntimeError as error:
        if isinstance(error, CifarError) or not _from_communication(error):
            raise
        left.set()  # This process ends by itself.
        raise PeerError(_sentence(mine[0], _wait_for_gone(peers), timeout_minutes, watch.then)) from error
    finally:
        left.set()


def _end_with(peers: list[Peer], rank: int, left: threading.Event, watch: Watch) -> None:
    while not left.wait(0.5):
        gone = [peer for peer in peers if peer.is_gone()]
        if gone and not left.wait(GRACE_SECONDS):
            print(_sentence(rank, gone, 0.0, watch.then), file=sys.stderr, flush=True)
            os._exit(PeerError.exit_code)


def _sentence(rank: int, gone: list[Peer], timeout_minutes: float, then: str) -> str:
    after = f"its own message is above; {then}."
    if gone:
        return f"rank {rank} ends because {' and '.join(map(str, gone))} ended; {after}"
    return (
        f"rank {rank} ends because another process no longer answers: one on another machine ended, or one hangs for longer "
        f"than --timeout-minutes {timeout_minutes:g}; {after}"
    )


def _wait_for_gone(peers: list[Peer]) -> list[Peer]:
    """Return the peers that are gone, waiting a moment for one that is just going: its sockets close before it ends."""
    until = time.monotonic() + 2.0
    while not (gone := [peer for peer in peers if peer.is_gone()]) and time.monotonic() < until:
        time.sleep(0.1)
    return gone


def _from_communication(error: RuntimeError) -> bool:
    # gloo raises plain RuntimeErrors that begin with the line of its source.
    return isinstance(error, torch.distributed.DistError) or "gloo" in str(error).lower()


def _machine() -> str:
    """Return what is the same for all processes that can see each other's process ids, and for no others."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return f"{os.uname().nodename}"
