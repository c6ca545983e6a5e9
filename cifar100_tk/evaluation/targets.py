"""The protocol of an evaluation: the weights of a model, the images to evaluate them on, and the combinations rejected."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import nn

from cifar100_tk.data import Data, Split, SplitName, data_of_classes
from cifar100_tk.data.cifar100_c import Cifar100C, open_cifar100_c
from cifar100_tk.errors import ConfigError, DataError
from cifar100_tk.evaluation.predictions import first_batches
from cifar100_tk.models import folder as model_folder
from cifar100_tk.models.classifier import Classifier
from cifar100_tk.runs import checkpoint
from cifar100_tk.runs.files import read_recipe
from cifar100_tk.storage.json_files import read_object

Weights = Literal["ema", "raw"]
FitOn = Literal["auto", "holdout", "none"]


@dataclass(frozen=True)
class LoadedModel:
    """A model to evaluate, loaded and checked."""

    name: str
    """As it was given."""
    classifier: Classifier
    weights: Weights | None
    """The kind of its weights, `ema` or `raw`; None if unknown."""
    data: Data
    why_no_temperature: str | None
    """None if one is fitted, on the holdout split."""


@dataclass(frozen=True)
class EvalTarget:
    """A model with the opened images that it is evaluated on."""

    loaded: LoadedModel
    split: Split
    held_out: Split | None
    """The split that its temperature is fitted on; None if none is fitted."""
    cifar100_c: Cifar100C | None
    """The corrupted images of the split; None if it is measured on the clean ones only."""


def load(
    model: str,
    split: SplitName,
    given: Mapping[str, Any],
    *,
    revision: str | None = None,
    weights: Weights | None = None,
    fit_temperature_on: FitOn = "auto",
) -> LoadedModel:
    """Load a model and determine the images to evaluate it on, without opening them.

    given: arguments of the data set; the others are those of the run's recipe, or the defaults. weights: None takes those
    that are saved as the model. Raises ConfigError if training has used the images, or may have.
    """
    classifier = model_folder.load(model, revision=revision)
    used = _data_of_run(model)
    data = _changed(used or data_of_classes(classifier.class_names), given)
    found = _use_weights(model, classifier.model, weights)
    if split == "holdout" and not data.holdout:
        raise ConfigError(
            f"{model} does not record which images were held out; --split holdout needs the --data.holdout and "
            "--data.holdout-seed that it was trained with, or it would be evaluated on images that it was trained on."
        )
    why = _why_no_temperature(model, data, split, fit_temperature_on)
    if why is None or split == "holdout":
        _refuse_seen_images(model, data, used)
    return LoadedModel(model, classifier, found, data, why)


def open_images(
    loaded: LoadedModel,
    split: SplitName,
    *,
    batch_size: int,
    limit_batches: int | None = None,
    cifar100_c: Path | None = None,
) -> EvalTarget:
    """Open a model's images, the first batches of each split or all; DataError refuses those of other classes.

    cifar100_c: the folder of CIFAR-100-C, to evaluate its images too.
    """

    def opened(name: SplitName) -> Split:
        return first_batches(loaded.data.open(name), batch_size, limit_batches)

    names, images = loaded.classifier.class_names, opened(split)
    if names != images.class_names:
        raise DataError(
            f"{loaded.name} has {len(names)} classes ({names[0]}, ...), but {loaded.data.source} has "
            f"{len(images.class_names)} ({images.class_names[0]}, ...); give the --data.source that it was trained on."
        )
    held_out = opened("holdout") if loaded.why_no_temperature is None else None
    corrupted = None if cifar100_c is None else open_cifar100_c(cifar100_c, images)
    return EvalTarget(loaded, images, held_out, corrupted)


def _changed(data: Data, given: Mapping[str, Any]) -> Data:
    if unknown := [name for name in given if not hasattr(data, name)]:
        options = ", ".join(f"--data.{name.replace('_', '-')}" for name in unknown)
        raise ConfigError(f"{data.published.name} has no {options}; leave it out.")
    return dataclasses.replace(data, **given)


def _use_weights(model: str, network: nn.Module, wanted: Weights | None) -> Weights | None:
    """Put the wanted weights into a network that has the saved ones. Returns the kind that it then has, None if unknown."""
    run = Path(model)
    if not (run / "recipe.json").is_file():
        if wanted is None:
            return None
        raise ConfigError(
            f"--weights {wanted} needs a run folder with its checkpoints, which {model} is not; omit --weights."
        )
    saved: Weights = "ema" if read_recipe(run).get("ema") else "raw"
    if wanted in (None, saved):
        return saved
    if wanted == "ema":
        raise ConfigError(f"{model} was trained without EMA; omit --weights ema.")
    found = [path for path, error in checkpoint.survey(run / "checkpoints").items() if error is None]
    if not found:
        raise DataError(f"{run / 'checkpoints'} contains no valid checkpoint with the raw weights; omit --weights raw.")
    weights = checkpoint.read(found[-1]).tensors.get("model", {})
    if {name: value.shape for name, value in weights.items()} != {n: v.shape for n, v in network.state_dict().items()}:
        raise DataError(f"{found[-1]} belongs to a different network from {run / 'model'}; omit --weights raw.")
    network.load_state_dict(weights)
    return wanted


def _why_no_temperature(model: str, data: Data, split: SplitName, fit_on: FitOn) -> str | None:
    """Return why no temperature is fitted, or None if one is."""
    if fit_on == "none":
        return "as asked"
    if data.holdout:
        return "the held-out images are reported" if split == "holdout" else None
    if fit_on == "holdout":
        raise ConfigError(
            f"{model} does not record which images were held out; --fit-temperature-on holdout needs the --data.holdout "
            "and --data.holdout-seed that it was trained with."
        )
    return "no images were held out to fit it on"


def _refuse_seen_images(model: str, data: Data, used: Data | None) -> None:
    """Reject a holdout that differs from the training's."""
    for name in ("holdout", "holdout_seed"):
        if used is not None and getattr(data, name) != getattr(used, name):
            raise ConfigError(
                f"{model} was trained with {name}={getattr(used, name)}; with {name}={getattr(data, name)} the held-out images "
                f"would include some that it was trained on, so omit --data.{name.replace('_', '-')}."
            )


def _data_of_run(model: str) -> Data | None:
    """Return the data of a run folder's recipe, also where MODEL is the `model` in one; None where nothing says."""
    run, remedy = Path(model), f"measure {model}/model instead."
    if (run / "recipe.json").is_file():
        return Data.of_recipe(read_object(run / "recipe.json", remedy), run / "recipe.json", remedy)
    beside = run.resolve().parent / "recipe.json"
    if run.is_dir() and run.resolve().name == "model" and beside.is_file():
        with contextlib.suppress(DataError):
            return Data.of_recipe(read_object(beside, remedy), beside, remedy)
    return None
