"""Description of the model on the page: its name, its size, and its accuracy if known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cifar100_tk.data.fingerprint import PUBLISHED
from cifar100_tk.data.published import CIFAR10
from cifar100_tk.errors import DataError
from cifar100_tk.models.classifier import Classifier
from cifar100_tk.models.folder import find
from cifar100_tk.progress import percent

MAX_CARD_BYTES = 1_000_000
LONGEST = 200
"""Maximum number of characters shown of untrusted text."""


def name(classifier: Classifier) -> str:
    """Return the timm name of the network."""
    return str(getattr(classifier.model, "pretrained_cfg", {}).get("architecture") or type(classifier.model).__name__)


def sentence(classifier: Classifier) -> str:
    """Describe the model in one sentence."""
    side = classifier.image_size
    count = sum(parameter.numel() for parameter in classifier.model.parameters())
    return (
        f"{name(classifier)} is a network with {count:,} parameters that classifies {side}x{side} images into "
        f"{len(classifier.class_names)} classes."
    )


def measured(model: str, *, revision: str | None = None) -> str | None:
    """Return a sentence with the accuracy on images not used for training, or None if it is unknown.

    model: a run folder, a model folder or a Hub id. Reads the run's evaluation, else the model card.
    """
    for split in ("test", "holdout"):
        if (path := Path(model) / "evaluation" / f"{split}.json").is_file():
            from cifar100_tk.evaluation.files import read_result  # Imports Accelerate, which a Space does not install.

            try:
                result = read_result(path)
            except DataError:
                continue  # The page is useful without an accuracy.
            kind = "test" if split == "test" else "held-out"
            where = f"{result['num_images']:,} {kind} images of {_images(result)}"
            return _figures(result["top1"], result["top5"], where)
    return _of_card(model, revision)


def _images(result: dict[str, Any]) -> str:
    """Name the data set if the images are known, else the folder they came from."""
    split = "test" if result["split"] == "test" else "train"
    names = {PUBLISHED[split]: "CIFAR-100", CIFAR10.sentences[split]: "CIFAR-10"}
    return names.get(result["images"], Path(result["source"]).name)


def _of_card(model: str, revision: str | None) -> str | None:
    """Read the accuracy from the front matter of README.md, as the Hub does."""
    from huggingface_hub import ModelCard, hf_hub_download

    path = find(model, revision=revision) / "README.md"
    try:
        if not path.is_file() and not Path(model).exists():
            path = Path(hf_hub_download(model, "README.md", revision=revision))
        if path.stat().st_size > MAX_CARD_BYTES:
            return None
        text = path.read_text()
        if not text.startswith("---"):
            return None  # No front matter; ModelCard would log that.
        data: Any = ModelCard(text, ignore_metadata_errors=True).data
        results = data.eval_results or []
    except Exception:  # A card is untrusted text, and parsing it may fail in any way.
        return None
    for found in results:
        if (top1 := _fraction(found, "top-1 accuracy")) is not None:
            same = [
                r for r in results if (r.dataset_name, r.dataset_split) == (found.dataset_name, found.dataset_split)
            ]
            top5 = [value for r in same if (value := _fraction(r, "top-5 accuracy")) is not None]
            return _figures(top1, top5[0] if top5 else None, _where(found))
    return None


def _fraction(result: Any, metric_name: str) -> float | None:
    value = result.metric_value
    known = result.metric_name == metric_name and isinstance(value, int | float) and 0 <= value <= 1
    return float(value) if known else None


def _where(found: Any) -> str:
    count = (found.metric_args or {}).get("num_images") if isinstance(found.metric_args, dict) else None
    images = f"{count:,} images of " if isinstance(count, int) else ""
    return f"{images}{str(found.dataset_name)[:LONGEST]} ({found.dataset_split})"


def _figures(top1: float, top5: float | None, where: str) -> str:
    rest = "" if top5 is None else f", top-5 accuracy {percent(top5)}"
    return f"Measured on {where}: top-1 accuracy {percent(top1)}{rest}."
