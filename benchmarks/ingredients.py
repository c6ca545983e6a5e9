"""Ranking of a recipe's ingredients: each is switched off once, everything else stays as it is.

    python benchmarks/ingredients.py recipes/speedrun.py --epochs 4 --seeds 2 --output-dir runs/ingredients

Trains the whole recipe and the recipe without each of its ingredients, all with the same seeds and held-out training images,
and prints the table of docs/experiments.md. Every run is an ordinary run in a folder of its own, so the same command resumes
after an interruption. results.jsonl in the output folder has one object per run. A difference is compared seed by seed.
"""

import argparse
import dataclasses
import gc
import json
import runpy
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cifar100_tk.augment import Flip, PadCrop
from cifar100_tk.errors import ConfigError, exit_on_error
from cifar100_tk.optim import SGD, AdamW, Muon, OneCycle, Warmup
from cifar100_tk.recipe import Recipe
from cifar100_tk.runs.files import read_status
from cifar100_tk.runs.run_config import run_config
from cifar100_tk.runs.run_folder import is_finished
from cifar100_tk.storage import atomic
from cifar100_tk.train import train
from cifar100_tk.training.plan import RunOptions

WHOLE = "whole recipe"


@dataclass(frozen=True)
class Variant:
    """A recipe with one ingredient switched off."""

    name: str
    off: str
    """Short description of what takes its place, for the table."""
    recipe: Recipe


def variants(recipe: Recipe) -> list[Variant]:
    """Return the recipe itself and the recipe without each ingredient that it has."""
    return [Variant(WHOLE, "nothing", recipe), *_optional(recipe), *_augmentations(recipe), *_optimization(recipe)]


def _optional(recipe: Recipe) -> Iterator[Variant]:
    absent = {
        "whitening": "random first layer",
        "cutout": "no holes",
        "resize": "full size throughout",
        "mix": "images unmixed",
        "distillation": "labels alone",
        "sam": "plain gradient",
        "lookahead": "no averaging",
        "ema": "raw weights",
    }
    for field, off in absent.items():
        if (component := getattr(recipe, field)) is not None:
            yield Variant(type(component).__name__, off, dataclasses.replace(recipe, **{field: None}))
    for name in ("drop_rate", "drop_path_rate"):
        if getattr(recipe.model, name):
            yield Variant(name, "0", _replaced(recipe, "model", **{name: 0.0}))
    if recipe.loss.smoothing:
        yield Variant("label smoothing", "0", _replaced(recipe, "loss", smoothing=0.0))
    if recipe.clip_grad_norm:
        yield Variant("gradient clipping", "none", dataclasses.replace(recipe, clip_grad_norm=0.0))


def _augmentations(recipe: Recipe) -> Iterator[Variant]:
    def with_chain(*chain: Any) -> Recipe:
        return dataclasses.replace(recipe, augment=tuple(chain))

    for place, component in enumerate(recipe.augment):
        before, after = recipe.augment[:place], recipe.augment[place + 1 :]
        yield Variant(type(component).__name__, "left out", with_chain(*before, *after))
        if isinstance(component, Flip) and component.alternate:
            drawn = dataclasses.replace(component, alternate=False)
            yield Variant("alternating flip", "random flip", with_chain(*before, drawn, *after))
        if isinstance(component, PadCrop) and component.mode == "reflect":
            black = dataclasses.replace(component, mode="zero")
            yield Variant("reflected border", "black border", with_chain(*before, black, *after))


def _optimization(recipe: Recipe) -> Iterator[Variant]:
    optimizer, schedule = recipe.optimizer, recipe.schedule
    if isinstance(optimizer, Muon):
        adamw = AdamW(
            lr=optimizer.lr * optimizer.fallback_lr_scale,
            lr_batch_size=optimizer.lr_batch_size,
            weight_decay=optimizer.fallback_weight_decay,
            betas=optimizer.betas,
        )
        yield Variant("Muon", "its AdamW for all weights", dataclasses.replace(recipe, optimizer=adamw))
    if isinstance(optimizer, SGD) and optimizer.nesterov:
        yield Variant("Nesterov momentum", "plain momentum", _replaced(recipe, "optimizer", nesterov=False))
    if optimizer.weight_decay:
        yield Variant("weight decay", "0", _replaced(recipe, "optimizer", weight_decay=0.0))
    if not optimizer.decay_norm_and_bias:
        changed = _replaced(recipe, "optimizer", decay_norm_and_bias=True)
        yield Variant("no decay of norms and biases", "decayed too", changed)
    if isinstance(schedule, OneCycle) and schedule.pct_start:
        yield Variant("warm-up", "none", _replaced(recipe, "schedule", pct_start=0.0))
    if isinstance(schedule, Warmup) and schedule.warmup_epochs:
        yield Variant("warm-up", "none", _replaced(recipe, "schedule", warmup_epochs=0.0))


def _replaced(recipe: Recipe, field: str, **changes: Any) -> Recipe:
    return dataclasses.replace(recipe, **{field: dataclasses.replace(getattr(recipe, field), **changes)})


def measure(
    chosen: list[Variant], seeds: int, folder: Path, options: RunOptions, show: Callable[[str], None] = print
) -> list[dict[str, Any]]:
    """Train every variant with every seed, a seed after the other, and return one result per run.

    Finished runs are read, unfinished ones resumed. Raises ConfigError for a folder with runs of other numbers.
    """
    results: list[dict[str, Any]] = []
    for number in range(seeds):
        for variant in chosen:
            seed = variant.recipe.seed + number
            recipe = dataclasses.replace(variant.recipe, seed=seed, reference=())
            path = folder / variant.name.replace(" ", "-") / f"seed-{seed}"
            of_run = dataclasses.replace(options, output_dir=path)
            if not is_finished(path, run_config(recipe, of_run)):
                show(f"\n{variant.name}: {variant.off}; seed {seed}")
                train(recipe, of_run, path.name)
                gc.collect()
                torch.compiler.reset()  # torch stops compiling a network that it has seen with too many sets of weights.
            status = read_status(path)
            figures = {key: status[key] for key in ("top1", "top5", "loss", "seconds")}
            results.append({"ingredient": variant.name, "off": variant.off, "seed": seed} | figures)
            lines = "".join(json.dumps(result) + "\n" for result in results)
            atomic.write_file(folder / "results.jsonl", lines.encode())
    return results


def table(results: list[dict[str, Any]]) -> str:
    """Return the results as Markdown, the most valuable ingredient first. Differences are from the same seed's whole recipe."""
    found: dict[str, dict[int, dict[str, Any]]] = {}
    for result in results:
        found.setdefault(result["ingredient"], {})[result["seed"]] = result
    whole = found.pop(WHOLE)
    rows = []
    for name, by_seed in found.items():
        differences = [result["top1"] - whole[seed]["top1"] for seed, result in by_seed.items()]
        off = next(iter(by_seed.values()))["off"]
        rows.append((statistics.mean(differences), f"| {name} | {off} | {_points(differences)} |"))
    top1 = [100 * result["top1"] for result in whole.values()]
    spread = f" ± {statistics.stdev(top1):.2f}" if len(top1) > 1 else ""
    seconds = statistics.mean(result["seconds"] for result in results)
    seeds = f"{len(whole)} seed{'s' * (len(whole) > 1)}"
    return "\n".join(
        [
            "| ingredient | off | difference |",
            "| --- | --- | --: |",
            *(row for _, row in sorted(rows)),
            "",
            f"Whole recipe: {statistics.mean(top1):.2f}{spread} % top-1 ({seeds}); differences in points of top-1, "
            f"of the same seeds. {seconds:,.0f} s a run on average.",
        ]
    )


def _points(differences: list[float]) -> str:
    points = [100 * difference for difference in differences]
    spread = f" ± {statistics.stdev(points):.2f}" if len(points) > 1 else ""
    return f"{statistics.mean(points):+.2f}{spread}"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path, help="the recipe file")
    parser.add_argument("--epochs", type=int, help="epochs of every run; those of the recipe by default")
    parser.add_argument("--seeds", type=int, default=2, help="seeds per ingredient, 1 or more")
    parser.add_argument("--batch-size", type=int, help="images per step; those of the recipe by default")
    parser.add_argument("--source", help="the data, as --data.source of a recipe")
    parser.add_argument("--holdout", type=int, default=5_000, help="training images to measure on")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="names of ingredients, such as Mix; all by default")
    parser.add_argument("--output-dir", type=Path, default=Path("runs/ingredients"))
    parser.add_argument("--compile", choices=["auto", "on", "off"], default="auto")
    parser.add_argument("--precision", choices=["auto", "bf16", "fp16", "no"], default="auto")
    parser.add_argument("--limit-train-batches", type=int)
    parser.add_argument("--limit-eval-batches", type=int)
    given = parser.parse_args()
    with exit_on_error(parser.prog):
        print(table(measure(_chosen(given), given.seeds, given.output_dir, _options(given))))


def _chosen(given: argparse.Namespace) -> list[Variant]:
    if not given.recipe.is_file():
        raise ConfigError(f"{given.recipe} is not a file; give a recipe file, such as recipes/speedrun.py.")
    if given.seeds < 1:
        raise ConfigError(f"--seeds {given.seeds} trains nothing; give 1 or more.")
    recipe = runpy.run_path(str(given.recipe)).get("recipe")
    if not isinstance(recipe, Recipe):
        raise ConfigError(
            f"{given.recipe} has no `recipe = Recipe(...)`; give a recipe file, such as recipes/speedrun.py."
        )
    numbers = {"epochs": given.epochs, "batch_size": given.batch_size}
    recipe = dataclasses.replace(recipe, **{name: number for name, number in numbers.items() if number is not None})
    source = {} if given.source is None else {"source": given.source}
    found = variants(_replaced(recipe, "data", holdout=given.holdout, **source))
    wanted = {WHOLE, *given.only} if given.only else {variant.name for variant in found}
    if strangers := sorted(wanted - {variant.name for variant in found}):
        names = ", ".join(repr(variant.name) for variant in found[1:])
        raise ConfigError(f"--only {strangers[0]!r} is not an ingredient of {given.recipe}; use {names}.")
    return [variant for variant in found if variant.name in wanted]


def _options(given: argparse.Namespace) -> RunOptions:
    names = ("compile", "precision", "limit_train_batches", "limit_eval_batches")
    return RunOptions(**{name: getattr(given, name) for name in names})


if __name__ == "__main__":
    main()
