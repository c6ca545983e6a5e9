"""--keep-best: the model that is best by a held-out metric, kept beside the last in a run folder of its own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cifar100_tk.errors import ConfigError
from cifar100_tk.storage.json_files import Json, read_or_nothing

FOLDER: Final = "best"
"""The folder in a run folder."""
METRICS: Final = ("holdout/top1", "holdout/top5", "holdout/loss")
"""The metrics to choose by; the lowest loss is the best, and the highest accuracy."""


def check_metric(metric: str | None) -> None:
    """Raise ConfigError for a metric that a model must not be chosen by."""
    if metric is None or metric in METRICS:
        return
    if metric.startswith("test/"):
        raise ConfigError(
            f"--keep-best {metric} would choose the model by the test images, and its figures on them would then be too high; "
            "hold out training images with --data.holdout 5000, and choose by holdout/top1."
        )
    raise ConfigError(f"--keep-best {metric} is not a held-out metric; use {', '.join(METRICS[:-1])} or {METRICS[-1]}.")


@dataclass(frozen=True)
class Best:
    """The epoch whose model is kept."""

    metric: str
    """One of METRICS."""
    value: float
    """Its value for the saved weights."""
    epoch: int
    """Counted from 1."""

    def beats(self, other: Best | None) -> bool:
        """Return whether it replaces another one: of several equal epochs the first is kept."""
        if other is None or other.metric != self.metric:
            return True
        return self.value < other.value if self.metric.endswith("loss") else self.value > other.value


def read_best(recipe: Json) -> Best | None:
    """Return the `best` of the recipe.json in a kept run folder; None for any other recipe.

    >>> read_best({"best": {"metric": "holdout/top1", "value": 0.5, "epoch": 3}})
    Best(metric='holdout/top1', value=0.5, epoch=3)
    """
    found = recipe.get("best")
    if not isinstance(found, dict) or found.keys() != {"metric", "value", "epoch"}:
        return None
    best = Best(**found)
    return best if best.metric in METRICS and type(best.value) is float and type(best.epoch) is int else None


def best_of(run: Path) -> Best | None:
    """Return the best epoch of a run so far, or None."""
    return read_best(read_or_nothing(run / FOLDER / "recipe.json"))


def describe_best(recipe: Json, *, several: bool = False) -> str:
    """Return the choice in words, or "" for a recipe.json that is not of a kept run folder. several: of several runs.

    >>> describe_best({"best": {"metric": "holdout/top1", "value": 0.5, "epoch": 3}, "epochs": 9})
    'epoch 3 of 9, chosen by holdout/top1'
    """
    best = read_best(recipe)
    if best is None:
        return ""
    return f"{'an epoch' if several else f'epoch {best.epoch}'} of {recipe.get('epochs')}, chosen by {best.metric}"
