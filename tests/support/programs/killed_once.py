"""One of two processes of a run; the one of KILLED is killed after its seventh step, at the first attempt."""

import os
import sys
from pathlib import Path

from runs import TINY, run

from cifar100_tk.storage import failpoint

attempt = os.environ["TORCHELASTIC_RESTART_COUNT"]
(Path(sys.argv[1]).parent / f"attempt-{attempt}-{os.environ['RANK']}").touch()
if os.environ["RANK"] == os.environ.get("KILLED") and attempt == "0":
    os.environ[failpoint.VARIABLE] = "step-00000007.done:1"
run(Path(sys.argv[1]), TINY, threads=1, checkpoint_every=1)
