"""One of two processes of a run, with one thread."""

import sys
from pathlib import Path

from runs import TINY, run

from cifar100_tk.distributed.launch import start_accelerator

accelerator = start_accelerator(Path("unused"))
assert accelerator.num_processes == 2
run(Path(sys.argv[1]), TINY, threads=1)  # Else each host has more cores for its one process.
