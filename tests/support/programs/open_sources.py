"""Open data sources, one in each line of the input, each in a process forked from here; everything is imported once."""

import json
import os
import resource
import signal
import sys

import PIL.Image
import pyarrow.compute
import pyarrow.parquet

from cifar100_tk.data import Cifar100, copies, local  # noqa: F401
from cifar100_tk.errors import CifarError


def opened(how: str, source: str) -> tuple[int, str]:
    data = Cifar100(source=source)
    try:
        copies.verify(data) if how == "verify" else data.open("train")
    except CifarError as error:
        return error.exit_code, str(error)
    except BaseException as error:
        return 1, repr(error)
    return 0, ""


PIL.Image.preinit()
pyarrow.array([1]).to_numpy()  # Imports pandas.
for line in sys.stdin:
    read, write = os.pipe()
    child = os.fork()
    if not child:
        begun = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        signal.alarm(int(sys.argv[1]))
        # Address space, of which allocators take more than they use: a guard for this machine. What counts is measured.
        resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))
        said = opened(*json.loads(line))
        megabytes = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - begun) / 1024
        os.write(write, json.dumps([*said, megabytes]).encode())
        os._exit(0)
    os.close(write)
    with open(read, "rb") as pipe:
        answer = pipe.read()
    status = os.waitpid(child, 0)[1]
    print(json.dumps([1, f"ended with status {status}", 0]) if status else answer.decode(), flush=True)
