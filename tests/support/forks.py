"""Trainers to kill: forked from a process that has imported everything, so that one takes half a second and not ten."""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any

import patches
import pytest
import runs

import cifar100_tk
from cifar100_tk.errors import CifarError
from cifar100_tk.models import TimmModel
from cifar100_tk.optim import Ema
from cifar100_tk.recipe import Recipe
from cifar100_tk.storage import failpoint
from cifar100_tk.train import train
from cifar100_tk.training.plan import RunOptions
from cifar100_tk.training.seeds import train_seeds

STEPS, EPOCHS = 2, 2
TIMED_OUT = 1000
LITTLE = runs.tiny(
    ema=Ema(),
    model=TimmModel(name="resnet10_cifar_w16", drop_rate=0.2),
    augment=(*runs.TINY.augment, runs.Bell()),
    loss=runs.Spoilable(),
    batch_size=8,
    epochs=EPOCHS,
)
"""Four steps in two epochs, with all that a checkpoint can hold: BatchNorm, momentum, an average; and with dropout."""


@contextmanager
def server() -> Iterator[ForkServerContext]:
    """Serve processes that have imported the tests' recipes and started no thread."""
    context = multiprocessing.get_context("forkserver")
    # With what a run imports only at its end, which is most of its time.
    context.set_forkserver_preload(
        ["forks", "torchmetrics", "datasets.io.parquet", "tensorboard.plugins.hparams.api_pb2"]
    )
    paths = [str(Path(__file__).parent), str(Path(cifar100_tk.__file__).parent.parent)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(paths))
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("JE_ARROW_MALLOC_CONF", "background_thread:false")
        patch.setenv("ACCELERATE_USE_CPU", "true")
        process = context.Process(target=time.time)
        process.start()  # The server starts with the first process.
        process.join()
    yield context


class Trainer:
    """One or more processes of a run, as a launcher starts them: when one dies, the others are ended."""

    def __init__(
        self,
        server: ForkServerContext,
        path: Path,
        *,
        processes: int = 1,
        fail_at: str | None = None,
        patch: tuple[Any, ...] = (),
        recipe: Recipe = LITTLE,
        **options: Any,
    ) -> None:
        self.path = path
        self.log = path.with_suffix(".log")
        options = {"limit_train_batches": STEPS, "eval_every": 1, "checkpoint_every": 1, "log_every": 1} | options
        self.processes: list[ForkServerProcess] = []
        port = free_port()
        for rank in range(processes):
            # What torchrun sets.
            environment = (
                {}
                if processes == 1
                else {
                    "RANK": str(rank),
                    "LOCAL_RANK": str(rank),
                    "WORLD_SIZE": str(processes),
                    "LOCAL_WORLD_SIZE": str(processes),
                    "MASTER_ADDR": "127.0.0.1",
                    "MASTER_PORT": str(port),
                }
            )
            if fail_at is not None:
                environment[failpoint.VARIABLE] = fail_at
            arguments = (recipe, path, environment, options, patch, self.log)
            self.processes.append(server.Process(target=_train, args=arguments))
            self.processes[-1].start()

    @property
    def pids(self) -> list[int]:
        """The processes' ids, by rank."""
        return [process.pid or 0 for process in self.processes]

    def wait(self, timeout: float = 300.0) -> int:
        """Wait for the end of all. Returns the exit code of the first process that failed, negative for a signal, or 0."""
        until, code = time.monotonic() + timeout, 0
        while any(process.is_alive() for process in self.processes):
            if not code and (code := self._code()):
                # A launcher ends the rest; one that was killed takes the others with it at once.
                until = time.monotonic() + (0.0 if code < 0 else 10.0)
            if time.monotonic() > until:
                code = code or TIMED_OUT
                for process in self.processes:
                    process.kill()
            time.sleep(0.01)
        return code or self._code()

    def _code(self) -> int:
        return next((process.exitcode for process in self.processes if process.exitcode), 0)

    def said(self) -> str:
        """What the processes printed so far, all of the folder's."""
        return self.log.read_text() if self.log.exists() else ""


def _train(
    recipe: Recipe,
    path: Path,
    environment: Mapping[str, str],
    options: Mapping[str, Any],
    patch: tuple[Any, ...],
    log: Path,
) -> None:
    os.setpgid(0, 0)  # So that a signal can go to the process with its workers, and to nobody else.
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.environ.update(environment)
    multiprocessing.set_start_method("fork", force=True)  # For the loader's workers, as in a plain process.
    if patch:
        name, *arguments = patch
        getattr(patches, name)(*arguments)
    try:
        if "seeds" in options:
            train_seeds(train, recipe, RunOptions(output_dir=path, **options), path.name)
        else:
            runs.run(path, recipe, **options)
    except CifarError as error:
        print(error, flush=True)
        raise SystemExit(error.exit_code) from error
    finally:
        if failpoint.VARIABLE in os.environ:
            path.with_suffix(".reached.json").write_text(json.dumps(failpoint.reached))


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port
