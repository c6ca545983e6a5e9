"""A ResNet-50 training step the plain way, in channels_last bf16, compiled, and as the whole program that a user runs.

    python benchmarks/step.py [--batch-sizes 256 512 1024 2048] [--ways plain channels_last compiled program]

All ways run on the device there is, one after the other in one process; the ratio is to the plain way of the same run.
Prints a table, and with --output writes JSON. The first three work on one batch that is on the device already, so they
are the bare step; the last one is `train` on shapes100 with the reference recipe, data, augmentation and logging included.
Its share of augmentation is the time that its batches take without a model, of the time of a step: on a GPU both go on
at once, and the share says how much of the step they overlap.
"""

import argparse
import contextlib
import dataclasses
import datetime
import gc
import json
import os
import platform
import runpy
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor, nn

from cifar100_tk.data import Cifar100
from cifar100_tk.launch import use_kernels
from cifar100_tk.plan import Plan, RunOptions
from cifar100_tk.recipe import Recipe
from cifar100_tk.train import train

WAYS = ("plain", "channels_last", "compiled", "program")
# Bytes that one picture's training step moves, for networks of this shape in 16 bits: each convolution's, BN's and
# activation's inputs and outputs, forward and backward. Eager kernels pass over a map for each operation, Inductor fuses.
TRAFFIC = {"plain": 145e6, "channels_last": 145e6, "compiled": 116e6, "program": 116e6}


def copy_bandwidth(device: torch.device) -> float:
    """Return the bytes/s, read and written, of the device's own copy of a tensor that no cache holds."""
    source = torch.empty(2**28 if device.type == "cpu" else 2**31, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    seconds = min(timed(device, lambda: target.copy_(source)) for _ in range(5))
    return 2 * source.numel() / seconds


def bare_step(way: str, network: str, batch_size: int, device: torch.device) -> Callable[[], None]:
    """Return a function that does one training step on a batch that is on the device already."""
    import timm

    use_kernels(deterministic=False)  # As `train` does, so that no way is the slower for it.
    on_cuda = device.type == "cuda"
    model: nn.Module = timm.create_model(network).to(device)
    images = torch.randn(batch_size, 3, 32, 32, device=device)
    targets = torch.full((batch_size, 100), 0.01, device=device)
    if way != "plain":
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        images = images.to(memory_format=torch.channels_last)
    if way == "compiled":
        model.compile(dynamic=False)
    # The plain way is fp16 with a loss scale on a GPU, as the published run was; a CPU has no fp16 autocast worth it.
    dtype = torch.bfloat16 if way != "plain" else torch.float16
    autocast = torch.autocast(device.type, dtype, enabled=on_cuda or way != "plain")
    scaler = torch.amp.GradScaler(device.type, enabled=on_cuda and way == "plain")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)

    def step() -> None:
        with autocast:
            logits: Tensor = model(images)
        scaler.scale(nn.functional.cross_entropy(logits.float(), targets)).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()

    return step


def program(recipe: Recipe, steps: int, device: torch.device) -> tuple[float, float]:
    """Return the pictures/s of the last of three epochs of `train`, as its metrics.jsonl says, and of its batches alone."""
    AcceleratorState._reset_state(reset_partial_state=True)
    Accelerator(mixed_precision="bf16")
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        options = RunOptions(
            output_dir=Path(folder) / "run",
            limit_train_batches=steps,
            limit_eval_batches=1,
            compile="on" if device.type == "cuda" else "off",
        )
        train(dataclasses.replace(recipe, epochs=3), options)
        speed: float = json.loads((Path(folder) / "run" / "metrics.jsonl").read_text().splitlines()[-1])[
            "images_per_second"
        ]
        return speed, batches_alone(recipe, options, steps, device)


def batches_alone(recipe: Recipe, options: RunOptions, steps: int, device: torch.device) -> float:
    """Return the pictures/s of a run's batches as its pipeline makes them, with nothing done with them."""
    plan = Plan.of(recipe, options, Accelerator(), recipe.data.open("train"))
    batches = plan.pipeline.batches(0, 3 + steps)
    for _ in range(3):
        next(batches)  # The store is on the device already; memory is not.
    return steps * recipe.batch_size / timed(device, lambda: [None for _ in batches])


def measure(way: str, network: str, batch_size: int, steps: int, device: torch.device) -> dict[str, Any]:
    """Return pictures/s and peak memory of one way at one batch size."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    if way == "program":
        reference: Recipe = runpy.run_path(str(Path(__file__).parent.parent / "recipes" / "resnet50.py"))["recipe"]
        rows = (max(1000, steps * batch_size), 500)
        recipe = dataclasses.replace(
            reference,
            data=Cifar100(source="shapes100", shapes100_rows=rows),
            model=dataclasses.replace(reference.model, name=network),
            batch_size=batch_size,
        )
        (pictures_per_second, batches), first = program(recipe, steps, device), None
        augmentation = pictures_per_second / batches
    else:
        augmentation = None
        step = bare_step(way, network, batch_size, device)
        first = timed(device, step)
        for _ in range(2):
            step()
        pictures_per_second = steps * batch_size / timed(device, lambda: [step() for _ in range(steps)])
    peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else None
    return {
        "way": way,
        "batch_size": batch_size,
        "pictures_per_second": pictures_per_second,
        "first_step_seconds": first,
        "share_of_augmentation": augmentation,
        "peak_memory_bytes": peak,
    }


def timed(device: torch.device, work: Callable[[], Any]) -> float:
    _wait(device)
    begun = time.perf_counter()
    work()
    _wait(device)
    return time.perf_counter() - begun


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def conditions(device: torch.device, bandwidth: float) -> dict[str, Any]:
    """Return what the figures depend on."""
    return {
        "date": datetime.date.today().isoformat(),
        "device": torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads",
        "driver": _driver() if device.type == "cuda" else None,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "torch": torch.__version__,
        "copy_bandwidth_bytes_per_second": bandwidth,
        "command": " ".join(["python", *sys.argv]),
    }


def _driver() -> str:
    asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.splitlines()[0]


def main() -> None:
    """Measure all ways at all batch sizes and print a row for each as it is done."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=None, help="pictures a step")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS, help="what to measure, the plain way first")
    parser.add_argument("--model", default="resnet50_cifar", help="timm name of the network")
    parser.add_argument("--steps", type=int, default=None, help="steps that are timed")
    parser.add_argument("--output", type=Path, default=None, help="JSON file")
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    sizes = options.batch_sizes or ([256, 512, 1024, 2048] if device.type == "cuda" else [16])
    steps = options.steps or (20 if device.type == "cuda" else 3)
    facts = conditions(device, copy_bandwidth(device))
    gigabytes = facts["copy_bandwidth_bytes_per_second"] / 1e9
    print(f"{options.model} on {facts['device']}, torch {facts['torch']}, copies at {gigabytes:,.0f} GB/s")
    heads = ("ratio", "of bandwidth", "peak memory", "first step", "augmentation")
    print(
        f"{'batch':>6}  {'way':14} {'pictures/s':>11} {heads[0]:>6} {heads[1]:>13} {heads[2]:>12} {heads[3]:>11} {heads[4]:>13}"
    )
    results = []
    for batch_size in sizes:
        baseline = None
        for way in options.ways:
            result = measure(way, options.model, batch_size, steps, device)
            baseline = baseline or result["pictures_per_second"]
            result["ratio"] = result["pictures_per_second"] / baseline
            result["share_of_bandwidth"] = (
                result["pictures_per_second"] * TRAFFIC[way] / facts["copy_bandwidth_bytes_per_second"]
                if options.model == "resnet50_cifar" and device.type == "cuda"
                else None
            )
            results.append(result)
            _print(result)
    if options.output is not None:
        options.output.write_text(json.dumps({"conditions": facts, "results": results}, indent=2) + "\n")


def _print(result: dict[str, Any]) -> None:
    share, peak, first = result["share_of_bandwidth"], result["peak_memory_bytes"], result["first_step_seconds"]
    augmentation = result["share_of_augmentation"]
    print(
        f"{result['batch_size']:>6}  {result['way']:14} {result['pictures_per_second']:>11,.1f} {result['ratio']:>5.2f}x "
        f"{'-' if share is None else f'{share:.0%}':>13} {'-' if peak is None else f'{peak / 1e9:.1f} GB':>12} "
        f"{'-' if first is None else f'{first:.1f} s':>11} {'-' if augmentation is None else f'{augmentation:.1%}':>13}",
        flush=True,
    )


if __name__ == "__main__":
    main()
