"""Write to TensorBoard until a file may not grow, and say how that ended."""

import resource
import signal

from torch.utils.tensorboard import SummaryWriter

import cifar100_tk.training.tensorboard  # noqa: F401  # For what it does to TensorBoard's thread.

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, resource.RLIM_INFINITY))
writer = SummaryWriter("board")
try:
    for step in range(100):
        writer.add_text("text", "x" * 1000, step)
        writer.flush()
except OSError as error:
    print(f"caught {error.strerror}", flush=True)
