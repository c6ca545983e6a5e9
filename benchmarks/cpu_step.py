"""Speed of recipes/speedrun.py's training step on a CPU, and what each of its choices is worth.

Each row changes one thing of the recipe. Every row runs in a process of its own, because the number of threads and their
binding are fixed at its start, and all rows take turns, so that a machine that slows down slows all of them.

    python benchmarks/cpu_step.py [--rounds 3] [--steps 4] [--sides 20 24 32]
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import runpy
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from timm.models import get_pretrained_cfg_value
from torch import nn

from cifar100_tk.models.speednet import TapConv2d
from cifar100_tk.optim import SGD
from cifar100_tk.recipe import Recipe

RECIPE = Path(__file__).parents[1] / "recipes" / "speedrun.py"


@dataclasses.dataclass(frozen=True)
class Row:
    """The recipe's step with one thing changed."""

    name: str
    batch_size: int | None = None
    precision: torch.dtype = torch.bfloat16
    memory_format: torch.memory_format = torch.channels_last
    compile: bool = False
    threads: int | None = None
    bind: bool = False
    change_model: Callable[[nn.Module], None] = lambda model: None
    change_recipe: Callable[[Recipe], Recipe] = lambda recipe: recipe


def with_activation(kind: type[nn.Module]) -> Callable[[nn.Module], None]:
    """Return a function that replaces the activations of a network."""

    def change(model: nn.Module) -> None:
        for module in list(model.modules()):
            if hasattr(module, "act"):
                module.act = kind()

    return change


def plain_convolutions(model: nn.Module) -> None:
    """Give every convolution torch's own forward pass."""
    for module in model.modules():
        if isinstance(module, TapConv2d):
            module.__class__ = nn.Conv2d  # type: ignore[assignment]


def with_optimizer(**changes: Any) -> Callable[[Recipe], Recipe]:
    """Return a function that changes numbers of a recipe's optimizer."""
    return lambda recipe: dataclasses.replace(recipe, optimizer=dataclasses.replace(recipe.optimizer, **changes))


def plain_sgd(recipe: Recipe) -> Recipe:
    """Return the recipe with SGD instead of Muon."""
    return dataclasses.replace(recipe, optimizer=SGD(lr=0.1))


ROWS = [
    Row("as in the recipe"),
    Row("float32", precision=torch.float32),
    Row("NCHW instead of channels_last", memory_format=torch.contiguous_format),
    Row("torch.compile", compile=True),
    Row("oneDNN for maps up to 3x3 too", change_model=plain_convolutions),
    Row("ReLU instead of SiLU", change_model=with_activation(nn.ReLU)),
    Row("GELU instead of SiLU", change_model=with_activation(nn.GELU)),
    Row("batch 256", batch_size=256),
    Row("batch 1024", batch_size=1024),
    Row("Muon with 5 iterations", change_recipe=with_optimizer(ns_steps=5)),
    Row("SGD instead of Muon", change_recipe=plain_sgd),
    Row("one thread", threads=1),
    Row("threads bound to cores", bind=True),
]


def measure(row: Row, side: int, steps: int) -> float:
    """Return a row's images per second at one image side: forward, backward and update, without the input pipeline."""
    torch.manual_seed(0)
    recipe = row.change_recipe(runpy.run_path(str(RECIPE))["recipe"])
    model = recipe.model.build(100).to(memory_format=row.memory_format).train()  # type: ignore[call-overload]
    row.change_model(model)
    model.stem.weight.requires_grad_(False)  # As the whitening does.
    optimizer = recipe.optimizer.build(model)
    batch_size = row.batch_size or recipe.batch_size
    images = torch.randn(batch_size, 3, side, side).to(memory_format=row.memory_format)
    targets = torch.eye(100)[torch.arange(batch_size) % 100]
    network = torch.compile(model, dynamic=False) if row.compile else model

    def step() -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=row.precision == torch.bfloat16):
            logits = network(images)
        recipe.loss(logits.float(), targets).backward()
        optimizer.step()
        optimizer.zero_grad()

    for _ in range(2):
        step()
    durations = []
    for _ in range(steps):
        started = time.perf_counter()
        step()
        durations.append(time.perf_counter() - started)
    return batch_size / statistics.median(durations)


def in_process(number: int, sides: list[int], steps: int) -> dict[int, float]:
    """Measure a row in a new process. Returns images per second by side."""
    row = ROWS[number]
    binding = {"OMP_PROC_BIND": "close", "OMP_PLACES": "cores"} if row.bind else {}
    command = [sys.executable, __file__, "--row", str(number), "--steps", str(steps), "--sides", *map(str, sides)]
    done = subprocess.run(command, env=os.environ | binding, check=True, capture_output=True, text=True)
    return {int(side): speed for side, speed in json.loads(done.stdout.splitlines()[-1]).items()}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="times that all rows are measured; the table has medians")
    parser.add_argument("--steps", type=int, default=4, help="timed steps of a row in a round")
    parser.add_argument("--sides", type=int, nargs="+", default=[20, 24, 32], help="image sides in pixels")
    parser.add_argument("--row", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    smallest = get_pretrained_cfg_value(runpy.run_path(str(RECIPE))["recipe"].model.name, "min_input_size")[-1]
    if min(given.sides) < smallest:
        parser.error(f"--sides {min(given.sides)} is too small for the recipe's network; give {smallest} or more.")
    if min(given.rounds, given.steps) < 1:
        parser.error("--rounds and --steps must be 1 or more.")
    if given.row is not None:
        if ROWS[given.row].threads:
            torch.set_num_threads(ROWS[given.row].threads)
        print(json.dumps({side: measure(ROWS[given.row], side, given.steps) for side in given.sides}))
        return
    found: list[list[dict[int, float]]] = [[] for _ in ROWS]
    for _ in range(given.rounds):
        for number, speeds in enumerate(found):
            speeds.append(in_process(number, given.sides, given.steps))
            shown = ", ".join(f"{speed:,.0f} images/s at {side} px" for side, speed in speeds[-1].items())
            print(f"{ROWS[number].name}: {shown}", file=sys.stderr)
    print(
        f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}; {given.rounds} rounds\n"
    )
    print("| | " + " | ".join(f"{side} px" for side in given.sides) + " |")
    print("| --- |" + " --: |" * len(given.sides))
    base = [statistics.median(speeds[side] for speeds in found[0]) for side in given.sides]
    for row, speeds in zip(ROWS, found, strict=True):
        medians = [statistics.median(each[side] for each in speeds) for side in given.sides]
        cells = [f"{median:,.0f} ({median / first:.2f})" for median, first in zip(medians, base, strict=True)]
        print(f"| {row.name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
