"""Generated Markdown body of a model card, from its template: results, usage, training and limitations."""

from __future__ import annotations

import html
import re
import shlex
from pathlib import Path
from typing import Any

import jinja2

from cifar100_tk.data.labels import display_name
from cifar100_tk.hub.card_data import REPOSITORIES, CardData, data_kind, name_of, trained_on, unlike
from cifar100_tk.progress import duration, percent
from cifar100_tk.runs.best import describe_best
from cifar100_tk.runs.lengths import describe_earlier
from cifar100_tk.storage.json_files import Json

FIGURES = {
    "top-1": ("top1", percent),
    "top-5": ("top5", percent),
    "super-class top-1": ("superclass_top1", percent),
    "loss, nats": ("loss", "{:.4f}".format),
    "calibration error (ECE, 15 bins)": ("ece", percent),
    "calibration error after temperature scaling": ("ece_scaled", percent),
    "images": ("num_images", "{:,}".format),
}
"""Rows of the results table: label, key of an evaluation, and format."""
ALT = {
    "curves": "Loss, accuracy and learning rate by epoch",
    "confusion": "Confusion matrix",
    "reliability": "Reliability diagram: accuracy against confidence",
    "mistakes": "Most confident mistakes, with true and predicted class",
}
"""Alternative text of the report's images, in the order in which a card shows them."""


def render_card(facts: CardData, repo_id: str) -> str:
    """Return the generated part of the card, in Markdown. repo_id: id shown in the usage examples."""
    templates = jinja2.Environment(
        loader=jinja2.PackageLoader("cifar100_tk.hub", "templates"),
        autoescape=False,  # It is Markdown: names that come with the data pass through the filter `plain`.
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters |= {
        "plain": _plain,
        "cell": _cell,
        "percent": percent,
        "duration": duration,
        "spaced": display_name,
    }
    results = list(facts.evaluations.values())
    classes = [each for each in results[0].get("classes", []) if each.get("accuracy") is not None]
    rows = {
        label: [shown(r[key]) if isinstance(r.get(key), int | float) else "" for r in results]
        for label, (key, shown) in FIGURES.items()
    }
    order = [f"report/{name}.png" for name in ALT]
    images = sorted(facts.images, key=lambda name: (order.index(name) if name in order else len(order), name))
    return templates.get_template(
        "card.md"
    ).render(
        facts=facts,
        repo_id=repo_id,
        kind=trained_on(facts.recipe),
        num_classes=len(results[0].get("classes", [])) or 100,
        unlike=unlike(facts.recipe),
        num_parameters=next((r["num_parameters"] for r in results if r.get("num_parameters")), None),
        best=describe_best(facts.recipe),
        extended=describe_earlier(facts.recipe),
        size="{0}x{0}".format(facts.recipe.get("image_size", 32)),  # Absent from runs of versions that did not have it.
        random_weights=_is_ours(facts.architecture),
        columns=[name_of(split, result, facts.recipe) for split, result in facts.evaluations.items()],
        figures=[(label, cells) for label, cells in rows.items() if any(cells)],
        weakest=sorted(classes, key=lambda each: each["accuracy"])[:5],
        mistakes=results[0].get("most_confused", [])[:3],
        eval_arguments=[_arguments(facts.recipe, split, result) for split, result in facts.evaluations.items()],
        images=[(ALT.get(Path(name).stem, Path(name).stem), name) for name in images],
    )


def _is_ours(architecture: str) -> bool:
    """Return whether the network is the package's or timm's: a custom one may load pretrained weights."""
    from timm.models import is_model

    from cifar100_tk.models import registered_by

    return is_model(architecture) and registered_by(architecture) is None


def _plain(text: str) -> str:
    """Escape a name from the data, so that it cannot act as Markdown or HTML, end a table cell or imitate a mark.

    >>> _plain("<!-- a|b* -->")
    '&lt;!-- a\\\\|b\\\\* --&gt;'
    """
    return re.sub(r"([\\`*\[\]|])", r"\\\1", html.escape(" ".join(text.split()), quote=False))


def _arguments(recipe: Json, split: str, result: Json) -> str:
    """Return the arguments that make `eval` use the same images on any machine."""
    data = recipe["data"]
    # Readers of the card get the published data from the Hub, not from the publisher's folder.
    published = data["source"] == "hub" or data_kind(split, result) in REPOSITORIES
    arguments = "" if published else f" --data.source {shlex.quote(data['source'])}"
    if data["source"] == "shapes100":
        arguments += " --data.shapes100-rows {} {}".format(*data["shapes100_rows"])
    if split == "holdout":
        arguments += f" --split holdout --data.holdout {data['holdout']} --data.holdout-seed {data['holdout_seed']}"
    return arguments


def _cell(value: Any) -> str:
    """Format a recipe value in the syntax of a recipe file, for a table cell.

    >>> _cell([{"type": "Flip", "p": 0.5}, {"type": "RandomResizedCrop", "scale": [0.8, 1.0]}])
    '`Flip(p=0.5)`, `RandomResizedCrop(scale=(0.8, 1.0))`'
    """
    if isinstance(value, list):
        return ", ".join(map(_cell, value)) or "none"
    text = _written(value).replace("|", "\\|")
    return f"`` {text} ``" if "`" in text else f"`{text}`"


def _written(value: Any) -> str:
    if isinstance(value, dict):
        inside = ", ".join(f"{key}={_written(held)}" for key, held in value.items() if key != "type")
        return f"{value.get('type', 'dict')}({inside})"
    if isinstance(value, list):
        return f"({', '.join(map(_written, value))})"
    return repr(value)
