"""Front matter of a model card: Hub metadata, with every figure in model-index."""

from __future__ import annotations

from huggingface_hub import EvalResult, ModelCardData

from cifar100_tk.hub.card_data import REPOSITORIES, CardData, data_kind, name_of, trained_on
from cifar100_tk.runs.best import read_best
from cifar100_tk.storage.json_files import Json


def front_matter(facts: CardData) -> Json:
    """Return the Hub metadata of the model. model-index has every published figure with its conditions."""
    kind = trained_on(facts.recipe)
    repository = REPOSITORIES.get(kind)
    data = ModelCardData(
        license=_license(facts),
        base_model=facts.pretrained.get("base_model") if facts.pretrained else None,
        library_name="timm",
        pipeline_tag="image-classification",
        tags=["image-classification", "timm", "cifar100_tk", *([kind] if repository else [])],
        datasets=[repository] if repository else None,
        metrics=["accuracy"],
        model_name=facts.architecture,
        eval_results=_results(facts),
    )
    return dict(data.to_dict())  # type: ignore[no-untyped-call]


def _license(facts: CardData) -> str:
    """Return the license of the weights that training started from, which binds the result too; ours for random ones."""
    if facts.pretrained is None:
        return "apache-2.0"
    return facts.pretrained.get("license") or "unknown"


def _results(facts: CardData) -> list[EvalResult]:
    named = {
        "top1": ("accuracy", "top-1 accuracy"),
        "top5": ("accuracy", "top-5 accuracy"),
        "superclass_top1": ("accuracy", "top-1 accuracy of the 20 super-classes"),
        "ece": ("expected_calibration_error", "expected calibration error, 15 bins"),
        "loss": ("cross_entropy", "cross-entropy in nats"),
    }
    return [
        EvalResult(
            task_type="image-classification",
            dataset_type=REPOSITORIES.get(data_kind(split, result), data_kind(split, result)),
            dataset_name=name_of(split, result, facts.recipe),
            # Held-out images are part of train; the split keeps them apart from figures on test.
            dataset_split="test" if split == "test" else "train",
            dataset_args=_holdout(facts.recipe) if split == "holdout" else None,
            metric_type=kind,
            metric_name=name,
            metric_value=round(result[key], 6),
            metric_args=_conditions(facts, result),
        )
        for split, result in facts.evaluations.items()
        for key, (kind, name) in named.items()
        if isinstance(result.get(key), int | float)
    ]


def _conditions(facts: CardData, result: Json) -> Json:
    """Return the conditions of a figure."""
    return {
        "num_images": result["num_images"],
        "epoch": best.epoch if (best := read_best(facts.recipe)) else facts.recipe["epochs"],
        "seed": facts.recipe["seed"],
        "weights": result.get("weights", "raw"),
        "precision": result.get("precision"),
        "flip": bool(result.get("flip")),
    }


def _holdout(recipe: Json) -> Json:
    return {"holdout": recipe["data"]["holdout"], "holdout_seed": recipe["data"]["holdout_seed"]}
