"""One of two processes: trains, is stopped, trains again, and writes what it found."""

import errno
import functools
import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import patches
import torch
from runs import BATCH_NORM, SHAPES, TWICE, ring_at, run, tiny
from torch._dynamo.utils import counters

from cifar100_tk.distributed.collectives import raise_on_all_ranks
from cifar100_tk.distributed.launch import start_accelerator
from cifar100_tk.distributed.signals import LAG
from cifar100_tk.errors import DiskError, ResumeError, StoppedError
from cifar100_tk.models import TimmModel
from cifar100_tk.runs import checkpoint_manager
from cifar100_tk.train import train_step
from cifar100_tk.training.plan import Plan, RunOptions
from cifar100_tk.training.state import TrainState

folder = Path(sys.argv[1])
accelerator = start_accelerator(folder / "unused")
rank = accelerator.process_index
found: dict[str, Any] = {"num_processes": accelerator.num_processes}

# Only the main process fails, and every process hears of it.
try:
    raise_on_all_ranks(accelerator, ResumeError("nothing there") if rank == 0 else None)
except ResumeError as error:
    found["told"] = str(error)

# BatchNorm's statistics are averaged over the processes at each step.
state = TrainState.build(BATCH_NORM, accelerator, 100, compile_model=False)
plan = Plan.of(BATCH_NORM, RunOptions(), accelerator, SHAPES.open("train"))
for batch in plan.pipeline.batches(0, 2):
    train_step(state, batch, 0.01, plan.micro_batch)
found["statistics"] = state.net.get_buffer("bn1.running_mean").double().tolist()
found["weight"] = state.net.get_parameter("conv1.weight").double().sum().item()

# Compiled, with a backend that takes the same graphs as Inductor and writes no C++.
torch.nn.Module.compile = functools.partialmethod(torch.nn.Module.compile, backend="eager")  # type: ignore[method-assign, assignment]
state = TrainState.build(BATCH_NORM, accelerator, 100, compile_model=True)
for batch in plan.pipeline.batches(0, 2):
    train_step(state, batch, 0.01, plan.micro_batch)
found["compiled_weight"] = state.net.get_parameter("conv1.weight").double().sum().item()
found["graphs"] = counters["stats"]["unique_graphs"], len(counters["graph_break"])

# Dropout on the same images.
state = TrainState.build(
    tiny(model=TimmModel(name="resnet10_cifar_w16", drop_rate=0.5)), accelerator, 100, compile_model=False
)
(batch,) = replace(plan.pipeline, order=replace(plan.pipeline.order, rank=0)).batches(0, 1)
found["dropped"] = train_step(state, batch, 0.01, plan.micro_batch)[0].item()

# The second process alone is told to stop, in the middle of an epoch; both stop and save, and go on in the same folder.
if rank == 1:
    ring_at[:] = [3]
try:
    run(folder / "run", TWICE)
except StoppedError as error:
    found["stopped"] = str(error)
found["metrics"] = vars(run(folder / "run", TWICE))

# The group outlives a run: a second one in its processes starts at once, however far apart they come to it.
time.sleep(0.3 * rank)
found["again"] = [vars(run(folder / f"again{n}", TWICE)) for n in range(2)]

# As on GPUs: statuses are read late, the main process alone knows when to save, and its late error is raised in both.
LAG["cpu"] = 2
checkpoint_manager.SECONDS_BETWEEN_SAVES = 0.0
run(folder / "late", TWICE, eval_every=2)
checkpoint_manager.SECONDS_BETWEEN_SAVES = 60.0
patches.fail_at("metrics.jsonl.opened:1", errno.ENOSPC)
try:
    run(folder / "failed", TWICE, eval_every=2)
except DiskError as error:
    found["failed"] = str(error)
(folder / f"rank{rank}.json").write_text(json.dumps(found))
