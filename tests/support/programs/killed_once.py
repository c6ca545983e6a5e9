"""One of two processes of a run; the one of KILLED is killed before its eighth step, at the first attempt."""

import os
import signal
import sys
from pathlib import Path
from typing import Any

from runs import TINY, run

from cifar100_tk.training.state import TrainState

attempt = os.environ["TORCHELASTIC_RESTART_COUNT"]
(Path(sys.argv[1]).parent / f"attempt-{attempt}-{os.environ['RANK']}").touch()
if os.environ["RANK"] == os.environ.get("KILLED") and attempt == "0":
    set_lr = TrainState.set_lr  # Called once a step.

    def last(state: TrainState, *arguments: Any) -> None:
        if state.step == 7:
            os.kill(os.getpid(), signal.SIGKILL)
        set_lr(state, *arguments)

    TrainState.set_lr = last  # type: ignore[method-assign, assignment]
run(Path(sys.argv[1]), TINY, threads=1, checkpoint_every=1)
