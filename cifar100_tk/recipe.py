"""Recipe: everything that changes what the model learns, in one frozen dataclass that reads like the paper's table."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, final, get_origin, get_type_hints

import tyro

from cifar100_tk.augment import Augmentation, Cutout, Mix, Normalize, ProgressiveResize
from cifar100_tk.data import Cifar100
from cifar100_tk.errors import ConfigError
from cifar100_tk.models import TimmModel, Whitening
from cifar100_tk.optim import CrossEntropy, Ema, Optimizer, Schedule
from cifar100_tk.progress import percent
from cifar100_tk.ranges import SEED, Within, check_ranges
from cifar100_tk.storage.json_files import Json


@final
@dataclass(frozen=True, kw_only=True)
class Band:
    """The top-1 that measured runs of a recipe had after an epoch, of the weights that are saved."""

    epoch: int
    """The epoch, counted from 1; it is evaluated whatever --eval-every says."""
    top1: tuple[float, float]
    """The lowest and the highest that is no surprise, as fractions."""
    split: Literal["test", "holdout"] = "test"
    """What it was measured on."""

    def __post_init__(self) -> None:
        low, high = self.top1
        if self.epoch < 1:
            raise ConfigError(f"epoch={self.epoch} of a Band is no epoch; the first is 1.")
        if not 0 <= low <= high <= 1:
            raise ConfigError(
                f"top1={self.top1} of a Band is no band; give low and high as fractions, such as (0.38, 0.46)."
            )

    def remark(self, top1: float) -> str | None:
        """Return what to say of a run's top-1, a fraction, or None where it is as expected."""
        low, high = self.top1
        found = f"epoch {self.epoch}: {self.split} top-1 {percent(top1)} is"
        known = f"{percent(low)} to {percent(high)}, where measured runs of this recipe were"
        if top1 < low:
            return (
                f"  note           {found} below {known}: look for what differs in the set-up (the data, the learning rate, "
                "--contact-sheet) before you train on."
            )
        if top1 > high:
            return (
                f"  note           {found} above {known}: if that was not the aim, see that no {self.split} image is among "
                "those that are trained on."
            )
        return None


@final
@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What to train. Numbers may be changed on the command line; structure is changed in a recipe file."""

    data: Cifar100
    """The images."""

    model: TimmModel
    """The network, by its timm name."""

    whitening: Whitening | None = None
    """A first layer computed from the training images; None for random weights."""

    augment: tuple[Augmentation, ...]
    """What happens to each training image as uint8, in this order; () for nothing."""

    normalize: Normalize
    """Mean and standard deviation of the channels."""

    cutout: Cutout | None = None
    """Holes filled with the mean, after normalizing; None for none."""

    resize: ProgressiveResize | None = None
    """Smaller images early in the run; None for full size throughout."""

    mix: Mix | None = None
    """Mixup or CutMix of the batch; None for neither."""

    loss: CrossEntropy
    """What is minimized."""

    optimizer: Optimizer
    """What updates the weights."""

    schedule: Schedule
    """The learning rate as a function of the step."""

    batch_size: Annotated[int, Within(low=1, high=2**20, use="the reference recipe uses 2048")]
    """Images a step, over all processes together."""

    epochs: Annotated[int, Within(low=1, high=100_000, use="the reference recipe uses 200")]
    """Times that the training images are gone through; what does not fill a last batch is left out, another part each time."""

    clip_grad_norm: Annotated[float, Within(low=0, high=10**6, use="use 1.0, or 0 for no clipping")] = 0.0
    """The largest L2 norm of the whole gradient; 0 turns clipping off."""

    ema: Ema | None = None
    """An average of the weights, saved as the model; None for the raw weights."""

    seed: Annotated[int, SEED] = 0
    """The one number from which every draw of the run follows."""

    reference: Annotated[tuple[Band, ...], tyro.conf.Fixed, tyro.conf.Suppress] = field(default=(), compare=False)
    """Where measured runs of these numbers were after some epochs, for an early warning; () for none. It changes nothing that
    is learned, is no part of recipe.json, and holds only while no number but the seed is changed."""

    def __post_init__(self) -> None:
        for name, hint in get_type_hints(Recipe).items():
            kind = int | float if hint is float else tuple if get_origin(hint) is tuple else hint
            if not isinstance(value := getattr(self, name), kind):
                expected = getattr(kind, "__name__", kind)
                raise ConfigError(f"{name}={value!r} in the recipe is {type(value).__name__}; expected {expected}.")
        if not all(isinstance(band, Band) for band in self.reference):
            raise ConfigError(
                f"reference={self.reference!r} in the recipe holds what is no Band; use (Band(...), Band(...))."
            )
        if strangers := [one for one in self.augment if not isinstance(one, Augmentation)]:
            raise ConfigError(
                f"augment holds {strangers[0]!r}, which is no Augmentation; Normalize, Cutout and Mix are fields of their own."
            )
        check_ranges(self, "")

    @property
    def peak_lr(self) -> float:
        """The learning rate at the top of the schedule, for this batch size."""
        return self.optimizer.peak_lr(self.batch_size)


def to_json(component: Any) -> Any:
    """Return a component, or a whole recipe, as plain JSON values; each component says its type.

    A field that is declared with compare=False is left out: it is none of what is learned.

    >>> to_json(CrossEntropy(smoothing=0.0))
    {'type': 'CrossEntropy', 'smoothing': 0.0, 'smooth_over': 'others'}
    """
    if dataclasses.is_dataclass(component):
        compared = [one.name for one in dataclasses.fields(component) if one.compare]
        return {"type": type(component).__name__} | {name: to_json(getattr(component, name)) for name in compared}
    if isinstance(component, list | tuple):
        return [to_json(item) for item in component]
    return component


def flatten(tree: Any, prefix: str = "") -> Json:
    """Return nested JSON as one level of dotted names.

    >>> flatten({"optimizer": {"type": "SGD", "lr": 0.1}, "augment": [{"p": 0.5}]})
    {'optimizer.type': 'SGD', 'optimizer.lr': 0.1, 'augment.0.p': 0.5}
    """
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else None
    if items is None:
        return {prefix: tree}
    return {
        name: leaf
        for key, value in items
        for name, leaf in flatten(value, f"{prefix}.{key}" if prefix else str(key)).items()
    }


def comparable(recipe: Recipe, file: Recipe) -> bool:
    """Return whether the reference curve of a recipe file holds for a recipe made of it on the command line.

    It does for every seed, and for the same data set from another place; every other number may change the curve.
    """
    ours, theirs = (flatten(to_json(one)) for one in (recipe, file))
    different = {name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name)}
    builtin = "shapes100" in (recipe.data.source, file.data.source)
    return different <= ({"seed"} if builtin else {"seed", "data.source"})
