"""Re-evaluates a built folder from its files, loaded through timm as any user would."""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path

import timm
import torch
from accelerate import Accelerator
from safetensors import safe_open

from cifar100_tk.data import Split, SplitName
from cifar100_tk.distributed.launch import check_launch, check_started, precision, use_threads
from cifar100_tk.errors import CifarError, DataError, HubError
from cifar100_tk.evaluation.measure import measure
from cifar100_tk.evaluation.predictions import Predictions
from cifar100_tk.evaluation.scores import Scaled
from cifar100_tk.hub.card_data import SPLITS, data_of, environment_of, evaluations_of, recipe_of
from cifar100_tk.hub.folder import is_built
from cifar100_tk.hub.verify import compare
from cifar100_tk.models import folder as model_folder
from cifar100_tk.models.classifier import Classifier
from cifar100_tk.storage.json_files import Json


def check(folder: Path, source: str | None = None) -> str:
    """Load a built folder through timm's `local-dir:`, and re-evaluate every figure it claims.

    source: current location of the images, if it differs from the recipe's. Returns a sentence for the card about the
    re-evaluation. Raises DataError with both numbers if they differ.
    """
    if not is_built(folder):
        raise DataError(
            f"{folder} was not written by build; build it from a run: python -m cifar100_tk.hub build RUN --to FOLDER."
        )
    claims = evaluations_of(folder)
    classifier = _load(folder)
    accelerator = _start(next(iter(claims.values())))
    classifier.model.to(accelerator.device)
    lines = [
        _check_split(folder, _open(folder, split, claims[split], source), claims[split], classifier, accelerator)
        for split in SPLITS
        if split in claims
    ]
    return (
        f"Re-evaluated before publishing, in a fresh process through timm from exactly these files: {'; '.join(lines)}."
    )


def _load(folder: Path) -> Classifier:
    """Load a folder through timm. Raises DataError if the weights differ from model.safetensors."""
    classifier = model_folder.load(folder)  # Validates config.json before timm reads it.
    model = timm.create_model(f"local-dir:{folder.resolve()}", pretrained=True)
    loaded, expected = model.state_dict(), classifier.model.state_dict()
    if loaded.keys() != expected.keys() or not all(torch.equal(loaded[name], expected[name]) for name in expected):
        raise DataError(
            f"{folder}: the weights loaded by timm differ from model.safetensors; build the folder again from its run."
        )
    weights = folder / "model.safetensors"
    with safe_open(weights, framework="pt") as file:
        if file.metadata() != {"format": "pt"}:
            raise DataError(f"{weights} has metadata {file.metadata()}; expected {{'format': 'pt'}}.")
    return dataclasses.replace(classifier, model=model)


def _start(claim: Json) -> Accelerator:
    """Return an Accelerator with the precision of a figure, if this machine supports it."""
    words = {"float32": "no", "bf16": "bf16"} | ({"fp16": "fp16"} if torch.cuda.is_available() else {})
    check_launch()
    accelerator = Accelerator(mixed_precision=words.get(claim["precision"].split(" ")[0]))
    check_started(accelerator)
    use_threads(accelerator.device, None)
    return accelerator


def _open(folder: Path, split: SplitName, claim: Json, source: str | None) -> Split:
    """Open the images of a figure. Raises DataError if they are not available or differ."""
    data = data_of(folder)
    if source is not None:
        data = dataclasses.replace(data, source=source)
    try:
        images = data.open(split)
    except CifarError as error:
        kind = HubError if isinstance(error, HubError) else DataError
        raise kind(
            f"the figures of {folder} cannot be checked, because the images are not available ({error}) Pass "
            "--data.source PATH, or --no-check to publish with a card that says the figures were not re-evaluated."
        ) from error
    recorded = recipe_of(folder).get("images", {}).get("test" if split == "test" else "train", {}).get("sha256")
    if recorded not in (None, images.identity.sha256) or images.identity.sentence != claim["images"]:
        raise DataError(
            f"{data.source} has different images from those {folder} was evaluated on ({images.identity.sentence}, not "
            f"{claim['images']}); pass the --data.source with the original images."
        )
    if claim["num_images"] != len(images):
        raise DataError(
            f"{folder} was evaluated on {claim['num_images']:,} of the {len(images):,} images of {split}, as with "
            f"--limit-eval-batches; evaluate all of them, then run the same command again: {_measuring(folder, split)}"
        )
    return images


def _measuring(folder: Path, split: SplitName) -> str:
    """Return the command that evaluates all of a split and replaces the evaluation in the run folder."""
    files = [
        word
        for option, suffix in (("--output", "json"), ("--predictions", "parquet"))
        for word in (option, str(folder / "evaluation" / f"{split}.{suffix}"))
    ]
    return shlex.join(["python", "-m", "cifar100_tk.eval", str(folder), "--split", split, *files])


def _check_split(folder: Path, images: Split, claim: Json, classifier: Classifier, accelerator: Accelerator) -> str:
    """Evaluate one split and compare. Returns the outcome as text."""
    found = _measure(images, claim, classifier, accelerator)
    if (size := sum(each.numel() for each in classifier.model.parameters())) != claim["num_parameters"]:
        raise DataError(
            f"{folder} claims {claim['num_parameters']:,} parameters but has {size:,}; build the folder again from its run."
        )
    exact = _same_conditions(claim, environment_of(folder), accelerator)
    compare(claim, found, exact=exact, where=str(folder))
    right, count = round(found["top1"] * found["num_images"]), found["num_images"]
    claimed = round(claim["top1"] * count)
    outcome = "as claimed" if right == claimed else f"{claimed:,} claimed, within tolerance"
    where = f"on {accelerator.device.type} in {precision(accelerator)}"
    return f"{right:,} of {count:,} {images.name} images right ({outcome}), {where}"


def _measure(images: Split, claim: Json, classifier: Classifier, accelerator: Accelerator) -> Json:
    """Return the figures of a split, evaluated with the settings of the claim."""

    def scale(predictions: Predictions) -> Scaled | None:
        if claim["temperature"] is None:
            return None
        fitted = (float(claim["temperature"]), str(claim["temperature_fitted_on"]))
        return Scaled.of(predictions.logits, predictions.labels, *fitted)

    return measure(
        classifier.model,
        dataclasses.replace(images, class_names=classifier.class_names),
        classifier.normalize,
        image_size=classifier.image_size,
        accelerator=accelerator,
        **{name: claim[name] for name in ("source", "weights", "flip")},
        name=claim["model"],
        scale=scale,
    ).result


def _same_conditions(claim: Json, environment: Json, accelerator: Accelerator) -> bool:
    """Return True if the run was evaluated as here: same device type, same precision, and not compiled.

    environment: content of environment.json. Compiled models round differently.
    """
    kind = accelerator.device.type
    device = str(environment.get("device", kind))
    return precision(accelerator) == claim["precision"] and device.startswith(kind) and not environment.get("compiled")
