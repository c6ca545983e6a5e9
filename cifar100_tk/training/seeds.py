"""--seeds N: the same recipe with N seeds, one after the other, each in its own folder, and the summary of all."""

from __future__ import annotations

import dataclasses
import gc
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from cifar100_tk.data import Split
from cifar100_tk.distributed.collectives import from_main
from cifar100_tk.distributed.launch import start_accelerator
from cifar100_tk.distributed.signals import catch_signals
from cifar100_tk.distributed.watchdog import watch_peers
from cifar100_tk.errors import ConfigError
from cifar100_tk.recipe import Recipe
from cifar100_tk.runs import summary as run_summary
from cifar100_tk.runs.extension import earlier_lengths, is_extended
from cifar100_tk.runs.files import read_recipe
from cifar100_tk.runs.lengths import read_earlier
from cifar100_tk.runs.run_config import run_config
from cifar100_tk.runs.run_folder import is_finished, validate_run_dir
from cifar100_tk.training.plan import RunOptions, open_splits

Train = Callable[[Recipe, RunOptions, str], object]
"""Trains one recipe with one seed, under a name."""


@dataclass(frozen=True)
class Seed:
    """One run of several."""

    recipe: Recipe
    options: RunOptions

    @property
    def path(self) -> Path:
        """Its run folder."""
        assert self.options.output_dir is not None
        return self.options.output_dir


def train_seeds(train: Train, recipe: Recipe, options: RunOptions, name: str) -> None:
    """Train a recipe with `options.seeds` seeds, starting at recipe.seed, into OUTPUT_DIR/seed-N, and print the summary.

    Running the same command again skips finished seeds and resumes the rest. Every rank takes part.
    """
    folder = options.output_dir or Path("runs") / name
    if (folder / "recipe.json").is_file():
        raise ConfigError(
            f"{folder} holds a run of one seed, but --seeds {options.seeds} writes a folder per seed; choose another "
            "--output-dir."
        )
    seeds = [
        Seed(
            dataclasses.replace(recipe, seed=seed),
            dataclasses.replace(options, seeds=1, output_dir=folder / f"seed-{seed}"),
        )
        for seed in range(recipe.seed, recipe.seed + options.seeds)
    ]
    with catch_signals():
        accelerator = start_accelerator(folder, timeout_minutes=options.timeout_minutes, precision=options.precision)
        with watch_peers(accelerator, options.timeout_minutes, "run the same command again to start over"):
            splits = open_splits(recipe.data, accelerator)
            states = from_main(accelerator, lambda: [_state(seed, splits) for seed in seeds])
        if accelerator.is_main_process:
            counts = ", ".join(f"{count} {state}" for state, count in Counter(states).items())
            print(f"{len(seeds)} seeds into {folder}/seed-N: {counts}", flush=True)
        left = [seed for seed, state in zip(seeds, states, strict=True) if state != "finished"]
        if options.dry_run or options.contact_sheet is not None:
            left = left[:1]  # The others look the same.
        for seed in left:
            train(seed.recipe, seed.options, name)
            _forget()
    if accelerator.is_main_process and not options.dry_run and options.contact_sheet is None:
        print(_summary(seeds, name), flush=True)


def _state(seed: Seed, splits: Sequence[Split]) -> str:
    """Return a seed's state: finished, unfinished or new. Raises ConfigError if its folder must not be written to."""
    recipe, extend_to = seed.recipe, seed.options.extend_to
    if is_extended(seed.path, extend_to):
        earlier = read_earlier(read_recipe(seed.path))
    else:
        earlier = earlier_lengths(seed.path, recipe.epochs, extend_to)
    recipe = dataclasses.replace(recipe, epochs=extend_to or recipe.epochs)
    written = run_config(recipe, seed.options, *splits, earlier=earlier)
    if seed.options.resume == "auto" and is_finished(seed.path, written):
        return "finished"
    validate_run_dir(seed.path, written, seed.options.resume)
    return "unfinished" if (seed.path / "recipe.json").is_file() else "new"


def _forget() -> None:
    """Release a run's network, optimizer and compiled code before the next run."""
    gc.collect()
    # A compiled network is traced again; torch stops compiling one that it has seen with too many sets of weights.
    torch.compiler.reset()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _summary(seeds: Sequence[Seed], name: str) -> str:
    found = run_summary.summary([seed.path for seed in seeds], name)
    return f"\n{found.describe()}\n\n{run_summary.MARKDOWN_HEAD}\n{found.markdown_row}"
