"""Differences between the same 20 steps in one process, in micro-batches and in two processes.

    python benchmarks/agreement.py [--output FILE.json] [--only-torchrun-part FOLDER]

Trains two small networks on built-in images on the CPU in float32, one without and one with BatchNorm, three ways
each, and prints the table of docs/agreement.md: whether every global batch is the same bit for bit, whether the learning
rates are, and the largest difference of any weight, of any loss and of the final accuracy.
"""

import argparse
import dataclasses
import hashlib
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState, PartialState

from cifar100_tk.augment import Cutout, Flip, Mix, Normalize, RandomResizedCrop
from cifar100_tk.data import Cifar100
from cifar100_tk.distributed.launch import start_accelerator
from cifar100_tk.models import TimmModel
from cifar100_tk.optim import SGD, CrossEntropy, Ema, WarmupCosine
from cifar100_tk.recipe import Recipe
from cifar100_tk.runs import checkpoint
from cifar100_tk.train import train
from cifar100_tk.training.plan import Plan, RunOptions

STEPS = 20
MICRO_BATCH = 7
"""Splits a batch of 20 into micro-batches of 7, 7 and 6."""
PLAIN = Recipe(
    data=Cifar100(source="shapes100", shapes100_rows=(400, 200)),
    model=TimmModel(name="test_convnext2"),
    augment=(RandomResizedCrop(), Flip()),
    normalize=Normalize(),
    cutout=Cutout(),
    mix=Mix(mixup_alpha=0.2),
    loss=CrossEntropy(),
    optimizer=SGD(lr=0.5, weight_decay=5e-4),
    schedule=WarmupCosine(warmup_epochs=1),
    batch_size=20,
    epochs=4,
    ema=Ema(),
)
RECIPES = {
    "without BatchNorm": PLAIN,
    "with BatchNorm": dataclasses.replace(PLAIN, model=TimmModel(name="resnet10_cifar_w16")),
}


def run(recipe: Recipe, folder: Path, micro_batch: int | None = None) -> None:
    """Train into a folder, and record the batches of this process."""
    options = RunOptions(output_dir=folder / "run", micro_batch=micro_batch, limit_train_batches=5, eval_every=1)
    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = start_accelerator(folder / "unused")
    plan = Plan.of(recipe, options, accelerator, recipe.data.open("train"))
    seen = [
        {
            # The normalized image and its target. Row numbers are unique within a step.
            str(row): hashlib.sha256(image.numpy().tobytes() + target.numpy().tobytes()).hexdigest()
            for row, image, target in zip(batch.index.tolist(), batch.images, batch.targets, strict=True)
        }
        for batch in plan.pipeline.batches(0, plan.num_steps)
    ]
    note = {"num_processes": accelerator.num_processes, "batches": seen}
    (folder / f"rank{accelerator.process_index}.json").write_text(json.dumps(note))
    train(recipe, options)


def run_on_two(folder: Path) -> None:
    """Train every recipe in two processes that torchrun starts on this machine."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    process = subprocess.Popen(
        [*command, __file__, "--only-torchrun-part", str(folder)],
        env=os.environ | {"ACCELERATE_USE_CPU": "true"},
        stdout=subprocess.DEVNULL,
    )
    try:
        code = process.wait(timeout=600)
    finally:
        process.terminate()  # SIGKILL would leave its two processes behind.
        process.wait(timeout=60)
    if code:
        sys.exit("the two processes failed; their output is above.")


def part_of_two(folder: Path) -> None:
    """Run the part of one of the two processes."""
    for name, recipe in RECIPES.items():
        (folder / name).mkdir(exist_ok=True)
        run(recipe, folder / name)
    PartialState().destroy_process_group()


def compare(ours: Path, theirs: Path) -> dict[str, Any]:
    """Return the maximum absolute differences between two runs, by kind."""
    ranks = [json.loads(file.read_text()) for file in sorted(ours.glob("rank*.json"))]
    assert all(rank["num_processes"] == len(ranks) for rank in ranks)
    (alone,) = [json.loads(file.read_text())["batches"] for file in theirs.glob("rank*.json")]
    together = [dict(pair for rank in ranks for pair in rank["batches"][step].items()) for step in range(len(alone))]
    our, their = (checkpoint.newest(place / "run" / "checkpoints")[0] for place in (ours, theirs))
    assert our is not None and their is not None and our.step == their.step == STEPS
    lines, others = (_lines(place) for place in (ours, theirs))
    start = RECIPES[theirs.name].model
    return {
        "processes": len(ranks),
        "steps": our.step,
        "same_batches": together == alone and all(len(batch) == PLAIN.batch_size for batch in together),
        "same_lr": [line["train/lr"] for line in lines] == [line["train/lr"] for line in others],
        "weights": _largest(our.tensors["model"], their.tensors["model"]),
        "ema": _largest(our.tensors["ema"], their.tensors["ema"]),
        "moved": _moved(start, their.tensors["model"]),
        "loss": max(abs(a["train/loss"] - b["train/loss"]) for a, b in zip(lines, others, strict=True)),
        "test_loss": max(abs(a["test/loss"] - b["test/loss"]) for a, b in zip(lines, others, strict=True)),
        "top5": max(abs(a["test/top5"] - b["test/top5"]) for a, b in zip(lines, others, strict=True)),
    }


def _lines(place: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (place / "run" / "metrics.jsonl").read_text().splitlines()]


def _largest(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> float:
    assert ours.keys() == theirs.keys()
    # Weights and biases only; BatchNorm's buffers also count micro-batches, and show in the test figures.
    weights = [name for name in ours if "running_" not in name and ours[name].is_floating_point()]
    return max((ours[name].double() - theirs[name].double()).abs().max().item() for name in weights)


def _moved(model: TimmModel, trained: dict[str, torch.Tensor]) -> float:
    """Return the largest change of any weight during training, as a scale for the differences."""
    from cifar100_tk import draws

    torch.manual_seed(draws.word(PLAIN.seed, "weights", 0))
    initial = {name: value for name, value in model.build(100).named_parameters()}
    return max((trained[name] - value.detach()).abs().max().item() for name, value in initial.items())


def measure(folder: Path, on_two: Callable[[Path], None] = run_on_two) -> dict[str, dict[str, dict[str, Any]]]:
    """Run everything below a folder. Returns the differences from one process, by network and by way."""
    os.environ["ACCELERATE_USE_CPU"] = "true"
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for way, micro_batch in (("one process", None), ("one process again", None), ("pieces", MICRO_BATCH)):
        for name, recipe in RECIPES.items():
            (folder / way / name).mkdir(parents=True)
            run(recipe, folder / way / name, micro_batch)
    (folder / "two processes").mkdir()
    on_two(folder / "two processes")
    for name in RECIPES:
        found[name] = {
            way: compare(folder / way / name, folder / "one process" / name)
            for way in ("one process again", "pieces", "two processes")
        }
    return found


def table(found: dict[str, dict[str, dict[str, Any]]]) -> str:
    """Return the result as Markdown."""
    rows = [
        "| network | way | batches | learning rates | weights | EMA | train loss | test loss | top-5 |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    labels = {"pieces": f"`--micro-batch {MICRO_BATCH}` (7 + 7 + 6)"}
    for name, ways in found.items():
        for way, differences in ways.items():
            same = ["same bits" if differences[key] else "DIFFERENT" for key in ("same_batches", "same_lr")]
            apart = [
                f"{differences[key]:.1e}" if differences[key] else "0"
                for key in ("weights", "ema", "loss", "test_loss", "top5")
            ]
            rows.append(f"| {name} | {labels.get(way, way)} | {' | '.join(same + apart)} |")
    moved = ", ".join(f"{next(iter(ways.values()))['moved']:.2f} {name}" for name, ways in found.items())
    conditions = (
        f"{STEPS} steps of {PLAIN.batch_size} images, float32, torch {torch.__version__}, "
        f"{platform.machine()}. The weight that moved most moved by {moved}."
    )
    return "\n".join([*rows, "", conditions])


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="also write the figures to this JSON file")
    parser.add_argument(
        "--only-torchrun-part", type=Path, metavar="FOLDER", help="run the part of one of the two processes"
    )
    options = parser.parse_args()
    if options.only_torchrun_part:
        part_of_two(options.only_torchrun_part)
        return
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder))
    print(table(found))
    if options.output:
        options.output.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
