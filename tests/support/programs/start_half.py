"""One of two processes; only the first comes to the start."""

import os
import sys
import time
from pathlib import Path

from cifar100_tk import errors
from cifar100_tk.distributed import watchdog
from cifar100_tk.distributed.launch import start_accelerator

folder = Path(sys.argv[1])
(folder / f"pid{os.environ['RANK']}").write_text(str(os.getpid()))
watchdog.PATIENCE_SECONDS = 1.0
if os.environ["RANK"] == "1":
    time.sleep(600)
with errors.exit_on_error("start_half.py"):
    (folder / "began").write_text(str(time.time()))
    start_accelerator(folder, timeout_minutes=0.05)
