"""One of two processes of a run; the second fails in its third step, in the way asked for."""

import os
import signal
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

from runs import TINY
from torch import Tensor

from cifar100_tk import errors
from cifar100_tk.optim import CrossEntropy, Loss
from cifar100_tk.tensors import Logits, Targets
from cifar100_tk.train import train
from cifar100_tk.training.plan import RunOptions

folder, how, minutes = Path(sys.argv[1]), sys.argv[2], float(sys.argv[3])
rank = os.environ["RANK"]
(folder / f"pid{rank}").write_text(str(os.getpid()))
steps: list[int] = []


@dataclass(frozen=True, kw_only=True)
class Failing(Loss):
    """Cross-entropy, which one process does not compute in its third step."""

    def __call__(self, logits: Logits, targets: Targets) -> Tensor:
        steps.append(len(steps))
        if steps[-1] == 2 and rank == "1":
            (folder / "failed").write_text(str(time.time()))
            if how == "raises":
                raise KeyError("a bug in one process")
            if how == "exits":
                os._exit(3)
            if how == "is killed":
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(600)
        return CrossEntropy()(logits, targets)


try:
    with errors.exit_on_error("fail_in_step.py"):
        train(replace(TINY, loss=Failing()), RunOptions(output_dir=folder / "run", timeout_minutes=minutes))
finally:
    (folder / f"ended{rank}").write_text(str(time.time()))
