"""Recipe: everything that changes what the model learns, in one frozen dataclass that reads like the paper's table."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Annotated, Any, Literal, final, get_origin, get_type_hints

import tyro

from cifar100_tk.augment import MAX_SIDE, SIDE, Augmentation, Cutout, Mix, Normalize, ProgressiveResize
from cifar100_tk.data import Data, source_name
from cifar100_tk.errors import ConfigError
from cifar100_tk.models import FineTune, TimmModel, Whitening
from cifar100_tk.optim import SAM, Distillation, Ema, Lookahead, Loss, Optimizer, Schedule
from cifar100_tk.progress import percent
from cifar100_tk.ranges import EPOCHS, SEED, Within, check_ranges
from cifar100_tk.storage.json_files import Json


@final
@dataclass(frozen=True, kw_only=True)
class Band:
    """The expected top-1 of the saved weights after an epoch, taken from measured runs of a recipe."""

    epoch: int
    """The epoch, counted from 1; it is always evaluated, whatever --eval-every is."""
    top1: tuple[float, float]
    """The lowest and the highest expected value, as fractions."""
    split: Literal["test", "holdout"] = "test"
    """The split that the reference runs were measured on."""

    def __post_init__(self) -> None:
        low, high = self.top1
        if self.epoch < 1:
            raise ConfigError(f"Band.epoch must be at least 1, got {self.epoch}.")
        if not 0 <= low <= high <= 1:
            raise ConfigError(f"Band.top1 must be two fractions, low and high, such as (0.38, 0.46); got {self.top1}.")

    def remark(self, top1: float) -> str | None:
        """Return a warning if a run's top-1, a fraction, is outside the expected range, else None."""
        low, high = self.top1
        found = f"epoch {self.epoch}: {self.split} top-1 {percent(top1)} is"
        known = f"the {percent(low)} to {percent(high)} of measured runs of this recipe"
        if top1 < low:
            return (
                f"  note           {found} below {known}; check the setup (the data, the learning rate, "
                "--contact-sheet) before training further."
            )
        if top1 > high:
            return (
                f"  note           {found} above {known}; unless that was the aim, check that no {self.split} image "
                "is in the training set."
            )
        return None


@final
@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A training recipe. Numbers can be changed on the command line, structure only in a recipe file."""

    data: Data
    """The images."""

    model: TimmModel
    """The network, by its timm name."""

    finetune: FineTune | None = None
    """Frozen parameters and lower learning rates of pretrained weights; None trains all alike."""

    whitening: Whitening | None = None
    """A first layer computed from the training images; None for random weights."""

    augment: tuple[Augmentation, ...]
    """The augmentations of each training image as uint8, in this order; () for none."""

    normalize: Normalize
    """Mean and standard deviation of the channels."""

    cutout: Cutout | None = None
    """Holes filled with the mean, after normalizing; None for none."""

    image_size: Annotated[int, Within(low=8, high=MAX_SIDE, use="use 32, or 224 for an ImageNet backbone")] = SIDE
    """Height and width of the network's input in pixels; the images are 32x32, and resized on the device after augmentation."""

    resize: ProgressiveResize | None = None
    """Smaller images early in the run; None for `image_size` throughout."""

    mix: Mix | None = None
    """Mixup or CutMix of the batch, in the whole run or a part of it; None for neither."""

    loss: Loss
    """The loss function."""

    distillation: Distillation | None = None
    """A trained network to learn from beside the labels; None for the labels alone."""

    optimizer: Optimizer
    """The optimizer."""

    schedule: Schedule
    """The learning rate as a function of the step."""

    batch_size: Annotated[int, Within(low=1, high=2**20, use="the reference recipe uses 2048")]
    """Images per step, over all processes together."""

    epochs: Annotated[int, EPOCHS]
    """Passes over the training set; an incomplete last batch is dropped, other images each epoch."""

    clip_grad_norm: Annotated[float, Within(low=0, high=10**6, use="use 1.0, or 0 for no clipping")] = 0.0
    """The maximum L2 norm of the whole gradient; 0 turns clipping off."""

    sam: SAM | None = None
    """Sharpness-aware minimization, in a part of the run or all of it; None for the plain gradient."""

    lookahead: Lookahead | None = None
    """Return to an average of the weights every few steps; None for never."""

    ema: Ema | None = None
    """A moving average of the weights, saved as the model; None for the raw weights."""

    seed: Annotated[int, SEED] = 0
    """The seed of every random draw of the run."""

    reference: Annotated[tuple[Band, ...], tyro.conf.Fixed, tyro.conf.Suppress] = field(default=(), compare=False)
    """The expected top-1 after some epochs, from measured runs with these numbers, for an early warning; () for none. It does
    not affect training, is not saved in recipe.json, and applies only while no number but the seed is changed."""

    def __post_init__(self) -> None:
        for name, hint in get_type_hints(Recipe).items():
            kind = int | float if hint is float else tuple if get_origin(hint) is tuple else hint
            if not isinstance(value := getattr(self, name), kind):
                expected = getattr(kind, "__name__", kind)
                raise ConfigError(f"{name}={value!r} in the recipe is {type(value).__name__}; expected {expected}.")
        if not all(isinstance(band, Band) for band in self.reference):
            raise ConfigError(
                f"reference={self.reference!r} in the recipe must contain only Bands; use (Band(...), Band(...))."
            )
        if strangers := [item for item in self.augment if not isinstance(item, Augmentation)]:
            raise ConfigError(
                f"augment contains {strangers[0]!r}, which is not an Augmentation; Normalize, Cutout and Mix "
                "have their own fields."
            )
        check_ranges(self, "")
        if self.finetune is not None and self.model.pretrained is None:
            raise ConfigError(
                "finetune is for pretrained weights, but model.pretrained is None; name the weights, or leave finetune out."
            )
        if self.whitening is not None and self.model.pretrained is not None:
            raise ConfigError(
                f"whitening would replace the first layer of model.pretrained={self.model.pretrained!r}; use one of the two."
            )
        if self.resize is not None and self.resize.sides[-1] != self.image_size:
            raise ConfigError(
                f"resize.sides={self.resize.sides} end at {self.resize.sides[-1]} pixels, but image_size={self.image_size}; "
                "the last side is the size that the model is evaluated at, so make them equal."
            )

    @property
    def peak_lr(self) -> float:
        """The learning rate at the top of the schedule, for this batch size."""
        return self.optimizer.peak_lr(self.batch_size)


def to_json(component: Any) -> Any:
    """Return a component, or a whole recipe, as plain JSON values; each component includes its type.

    Fields declared with compare=False are left out, because they do not affect training.

    >>> to_json(Ema(decay=0.99))
    {'type': 'Ema', 'decay': 0.99, 'warmup': True}
    """
    if dataclasses.is_dataclass(component):
        compared = [field.name for field in dataclasses.fields(component) if field.compare]
        return {"type": type(component).__name__} | {name: to_json(getattr(component, name)) for name in compared}
    if isinstance(component, list | tuple):
        return [to_json(item) for item in component]
    return component


def published(recipe: Json) -> Json:
    """Return the content of a recipe.json without folders of this machine: images, teachers and weights by name alone.

    >>> published({"data": {"source": "/home/somebody/images"}, "epochs": 2})
    {'data': {'source': 'images'}, 'epochs': 2}
    """
    shown = dict(recipe)
    data, distillation, teacher = (recipe.get(name) for name in ("data", "distillation", "teacher"))
    if isinstance(data, dict) and isinstance(data.get("source"), str):
        shown["data"] = data | {"source": source_name(data["source"])}
    if isinstance(distillation, dict) and isinstance(distillation.get("teacher"), str):
        recorded = teacher.get("name") if isinstance(teacher, dict) else None
        shown["distillation"] = distillation | {
            "teacher": recorded or Distillation(teacher=distillation["teacher"]).name
        }
    model, pretrained = recipe.get("model"), recipe.get("pretrained")
    if isinstance(model, dict) and isinstance(pretrained, dict) and not pretrained.get("base_model"):
        shown["model"] = model | {"pretrained": PurePath(str(model.get("pretrained"))).name}
    return shown


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
    """Return whether a recipe file's reference bands apply to the recipe that the command line made of it.

    They apply to every seed and to another copy of the same data set; any other number may change the curve.
    """
    varied, original = (flatten(to_json(each)) for each in (recipe, file))
    different = {name for name in varied.keys() | original.keys() if varied.get(name) != original.get(name)}
    builtin = "shapes100" in (recipe.data.source, file.data.source)
    return different <= ({"seed"} if builtin else {"seed", "data.source"})
