"""Start Accelerate, and nothing else."""

from pathlib import Path

from cifar100_tk.distributed.launch import start_accelerator

start_accelerator(Path("unused"))
