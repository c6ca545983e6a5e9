"""One of two processes of a run; the second fails in its third step, in the way asked for."""

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from runs import TINY

from cifar100_tk import errors
from cifar100_tk import train as module
from cifar100_tk.train import train
from cifar100_tk.training.loader import Batch
from cifar100_tk.training.plan import RunOptions
from cifar100_tk.training.state import TrainState

folder, how, minutes = Path(sys.argv[1]), sys.argv[2], float(sys.argv[3])
rank = os.environ["RANK"]
(folder / f"pid{rank}").write_text(str(os.getpid()))
step = module.train_step


def failing(state: TrainState, batch: Batch, *options: Any) -> Any:
    if batch.step == 2 and rank == "1":
        (folder / "failed").write_text(str(time.time()))
        if how == "raises":
            raise KeyError("a bug in one process")
        if how == "exits":
            os._exit(3)
        if how == "is killed":
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(600)
    return step(state, batch, *options)


vars(module)["train_step"] = failing
try:
    with errors.exit_on_error("fail_in_step.py"):
        train(TINY, RunOptions(output_dir=folder / "run", timeout_minutes=minutes))
finally:
    (folder / f"ended{rank}").write_text(str(time.time()))
