"""Overhead of the training loop: one epoch of `train` against a bare forward-backward-step loop on tensors in memory.

    python benchmarks/overhead.py [--model NAME] [--batch-size N] [--steps N] [--rounds N]

Both train the same network, optimizer and precision on the same device; ours also reads, augments, mixes, logs and
checkpoints. They alternate in one process, and the ratio of images/s is that of each round.
"""

import argparse
import dataclasses
import json
import runpy
import statistics
import tempfile
import time
from pathlib import Path

import torch
from accelerate import Accelerator

from cifar100_tk.data import Cifar100
from cifar100_tk.optim import CrossEntropy
from cifar100_tk.recipe import Recipe
from cifar100_tk.train import train
from cifar100_tk.training.plan import RunOptions


def bare(recipe: Recipe, steps: int) -> float:
    """Return the images/s of forward, backward and step on one batch in memory."""
    accelerator = Accelerator()
    net = recipe.model.build(100).to(memory_format=torch.channels_last)
    model, optimizer = accelerator.prepare(net, recipe.optimizer.build(net))
    shape = (recipe.batch_size, 3, 32, 32)
    images = torch.randn(shape, device=accelerator.device).to(memory_format=torch.channels_last)
    targets = torch.full((recipe.batch_size, 100), 0.01, device=accelerator.device)
    loss_function = CrossEntropy(smoothing=0.0)
    model.train()

    def step() -> None:
        accelerator.backward(loss_function(model(images), targets))
        optimizer.step()
        optimizer.zero_grad()

    step()  # Warm-up: the first step allocates.
    _wait(accelerator)
    start_time = time.perf_counter()
    for _ in range(steps):
        step()
    _wait(accelerator)
    return steps * recipe.batch_size / (time.perf_counter() - start_time)


def ours(recipe: Recipe, steps: int) -> float:
    """Return the images/s of the second epoch of a real run, from its metrics.jsonl."""
    with tempfile.TemporaryDirectory() as folder:
        options = RunOptions(
            output_dir=Path(folder) / "run", limit_train_batches=steps, limit_eval_batches=1, compile="off"
        )
        train(dataclasses.replace(recipe, epochs=2), options)
        lines = (Path(folder) / "run" / "metrics.jsonl").read_text().splitlines()
        speed: float = json.loads(lines[-1])["images_per_second"]
        return speed


def _wait(accelerator: Accelerator) -> None:
    if accelerator.device.type == "cuda":
        torch.cuda.synchronize()


def main() -> None:
    """Run the rounds and print a line for each, then the median ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet50_cifar", help="timm name of the network")
    parser.add_argument("--batch-size", type=int, default=32, help="images per step")
    parser.add_argument("--steps", type=int, default=20, help="number of timed steps")
    parser.add_argument("--rounds", type=int, default=2, help="number of rounds, each measuring both loops")
    options = parser.parse_args()
    reference: Recipe = runpy.run_path(str(Path(__file__).parent.parent / "recipes" / "resnet50.py"))["recipe"]
    recipe = dataclasses.replace(
        reference,
        data=Cifar100(source="shapes100", shapes100_rows=(max(2000, options.steps * options.batch_size), 500)),
        model=dataclasses.replace(reference.model, name=options.model),
        batch_size=options.batch_size,
    )
    ratios = []
    for number in range(options.rounds):
        plain, full = bare(recipe, options.steps), ours(recipe, options.steps)
        ratios.append(full / plain)
        print(
            f"round {number + 1}: bare {plain:,.1f} images/s, train {full:,.1f}, ratio {full / plain:.3f}", flush=True
        )
    print(
        f"{options.model}, batch {options.batch_size}, {options.steps} steps, torch {torch.__version__}, "
        f"{torch.get_num_threads()} CPU threads: median ratio {statistics.median(ratios):.3f}"
    )


if __name__ == "__main__":
    main()
