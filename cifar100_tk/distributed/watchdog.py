"""A watchdog over the other processes of a run: when one dies, the rest exit with an error instead of waiting for it."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from cifar100_tk.errors import CifarError, PeerError

GRACE_SECONDS = 4.0
"""Time for a process to notice by itself that another one died, before the watchdog ends it."""
PATIENCE_SECONDS = 20.0
"""Time that a process waits for the others to start before it prints that it is waiting."""


@dataclass(frozen=True)
class Peer:
    """Another process of the run on this machine."""

    rank: int
    pid: int

    def __str__(self) -> str:
        return f"rank {self.rank} (process {self.pid})"

    def is_gone(self) -> bool:
        """Return whether it has exited; a zombie counts as exited."""
        try:
            return psutil.Process(self.pid).status() in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
        except psutil.NoSuchProcess:
            return True


@contextmanager
def meet_peers(timeout_minutes: float) -> Iterator[None]:
    """Limit the time in which the processes of a run find each other inside the block; a failure is a PeerError.

    gloo would wait for a connection five times as long as its timeout, ignoring signals; a thread ends the process.
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
        print(f"rank {os.environ.get('RANK')} is waiting for {_others()}, up to {limit}", file=sys.stderr, flush=True)
    if not met.wait(seconds):
        print(_alone(f"has not met {_others()} within {limit}"), file=sys.stderr, flush=True)
        os._exit(PeerError.exit_code)


def _others() -> str:
    count = int(os.environ["WORLD_SIZE"]) - 1
    place = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
    return f"the other {f'{count} processes' if count > 1 else 'process'} of its run at {place}"


def _alone(event: str) -> str:
    return (
        f"rank {os.environ.get('RANK')} {event}; start all of them, give each machine its own rank, make sure that the machines "
        "can reach each other on every port, and set GLOO_SOCKET_IFNAME (NCCL_SOCKET_IFNAME for GPUs) to the network "
        "interface if the host name does not resolve to it."
    )


@dataclass
class Watch:
    """The watch over the other processes on this machine."""

    then: str
    """The remedy that ends the error message; it may change during the watch."""


@contextmanager
def watch_peers(accelerator: Accelerator, timeout_minutes: float, then: str) -> Iterator[Watch]:
    """End this process within seconds when another one on this machine exits inside the block. Every rank takes part.

    then: the remedy that ends the error message.

    torchrun sends the others SIGTERM, which asks a run to stop and save, and SIGKILL after 30 seconds; it does not name the
    process that failed, and other launchers do less. With gloo a lost peer raises an error at once, which becomes a
    PeerError that names it. With NCCL the host would wait in the driver until the timeout, ignoring signals; there a
    thread ends the process. Peers on other machines are noticed by their broken connections, or at the timeout.
    """
    watch = Watch(then)
    if accelerator.num_processes == 1:
        yield watch
        return
    rank, machine = accelerator.process_index, _machine()
    everyone = gather_object([(rank, machine, os.getpid())])
    peers = [Peer(other, pid) for other, place, pid in everyone if place == machine and other != rank]
    left = threading.Event()
    threading.Thread(target=_end_with, args=(peers, rank, left, watch), daemon=True).start()
    try:
        yield watch
    except RuntimeError as error:
        if isinstance(error, CifarError) or not _from_communication(error):
            raise
        left.set()  # This process exits by itself.
        raise PeerError(_sentence(rank, _wait_for_gone(peers), timeout_minutes, watch.then)) from error
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
        f"rank {rank} ends because another process stopped responding: one on another machine exited, or one hung for longer "
        f"than --timeout-minutes {timeout_minutes:g}; {after}"
    )


def _wait_for_gone(peers: list[Peer]) -> list[Peer]:
    """Return the peers that are gone, waiting a moment for one that is exiting: its sockets close before it exits."""
    until = time.monotonic() + 2.0
    while not (gone := [peer for peer in peers if peer.is_gone()]) and time.monotonic() < until:
        time.sleep(0.1)
    return gone


def _from_communication(error: RuntimeError) -> bool:
    # gloo raises plain RuntimeErrors that start with its source file and line.
    return isinstance(error, torch.distributed.DistError) or "gloo" in str(error).lower()


def _machine() -> str:
    """Return an identifier shared by exactly the processes that can see each other's process ids."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return f"{os.uname().nodename}"
