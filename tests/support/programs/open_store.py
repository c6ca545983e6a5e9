"""Open the train split of a source (shapes100 with 1,000 images), in the way asked for: `open_store.py HOW SOURCE`."""

import os
import resource
import signal
import sys
import time
from collections.abc import Iterator

from cifar100_tk.data import Cifar100
from cifar100_tk.data.rows import RawBatch
from cifar100_tk.errors import exit_on_error


def kill_in_the_third_block() -> None:
    from cifar100_tk.data.shapes100 import Shapes100

    blocks = Shapes100.blocks

    def half(self: Shapes100) -> Iterator[RawBatch]:
        made = blocks(self)
        yield next(made)
        yield next(made)
        os.kill(os.getpid(), signal.SIGKILL)

    Shapes100.blocks = half  # type: ignore[method-assign]


def become_nobody() -> None:
    from cifar100_tk.data import local, shapes100  # noqa: F401  # While they can be read.

    if os.geteuid() == 0:  # Nothing is closed to root.
        os.setuid(65534)


how, source = sys.argv[1:]
if how == "killed":
    kill_in_the_third_block()
elif how == "small-files":
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
elif how == "nobody":
    become_nobody()
start = time.process_time()
with exit_on_error("train"):
    split = Cifar100(source=source, shapes100_rows=(1000, 100)).open("train")
    print(len(split), time.process_time() - start, split.identity.sha256)
    print([name for name in ("datasets", "pyarrow", "torch", "PIL") if name in sys.modules])
