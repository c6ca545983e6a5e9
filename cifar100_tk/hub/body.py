"""Generated Markdown body of a model card: results, usage, training and limitations."""

from __future__ import annotations

import html
import re
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from cifar100_tk.hub.card_data import CardData, data_kind, name_of, trained_on
from cifar100_tk.progress import duration, percent
from cifar100_tk.storage.json_files import Json


def render_card(facts: CardData, repo_id: str) -> str:
    """Return the generated part of the card, in Markdown. repo_id: id shown in the usage examples."""
    sections = {
        "": _introduction(facts),
        "Results": _results_section(facts),
        "Use": _use(facts, repo_id),
        "Training": _training(facts),
        "Images": _images(facts),
        "Limitations": _limits(facts),
        "Environment": _environment(facts),
        "Citation": CITATION if trained_on(facts.recipe) == "cifar100" else "",
    }
    return "\n".join(f"## {name}\n\n{text}" if name else text for name, text in sections.items() if text)


def _introduction(facts: CardData) -> str:
    where = {
        "cifar100": "the 100 classes of [CIFAR-100](https://huggingface.co/datasets/uoft-cs/cifar100)",
        "shapes100": "the 100 classes of shapes100, a synthetic data set for trying things out, not CIFAR-100",
        "other": "100 classes; it was trained on images that are not the published CIFAR-100",
    }[trained_on(facts.recipe)]
    size = next((r["num_parameters"] for r in facts.evaluations.values() if r.get("num_parameters")), None)
    parameters = f" It has {size:,} parameters." if size else ""
    title = {"cifar100": "CIFAR-100", "shapes100": "shapes100"}.get(trained_on(facts.recipe), "other images")
    return (
        f"# {facts.architecture} on {title}\n\n`{facts.architecture}` classifies {_size(facts)} colour images into {where}."
        f"{parameters} It was trained{_start(facts)} with cifar100_tk and is a "
        "[timm](https://huggingface.co/docs/timm) model.\n"
    )


def _start(facts: CardData) -> str:
    """Return the weights that training started from, if that is certain: a custom network may load some of its own."""
    from timm.models import is_model

    from cifar100_tk.models import registered_by

    if (pretrained := facts.pretrained) is not None:
        name, license = pretrained.get("base_model"), pretrained.get("license")
        origin = f"[{name}](https://huggingface.co/{name})" if name else "weights that are not on the Hub"
        digest = f"sha256 `{pretrained['sha256'][:16]}`, license {license or 'not stated'}"
        return f" from {origin} ({digest}; {pretrained['taken']} tensors taken, {len(pretrained['new'])} new)"
    architecture = facts.architecture
    ours = is_model(architecture) and registered_by(architecture) is None
    return " from random weights" if ours else ""


def _results_section(facts: CardData) -> str:
    rows = {
        "top-1": ("top1", percent),
        "top-5": ("top5", percent),
        "super-class top-1": ("superclass_top1", percent),
        "loss, nats": ("loss", "{:.4f}".format),
        "calibration error (ECE, 15 bins)": ("ece", percent),
        "calibration error after temperature scaling": ("ece_scaled", percent),
        "images": ("num_images", "{:,}".format),
    }
    columns = facts.evaluations
    lines = [f"| | {' | '.join(_plain(name_of(split, r, facts.recipe)) for split, r in columns.items())} |"]
    lines += ["| --- |" + " --: |" * len(columns)]
    for label, (key, shown) in rows.items():
        cells = [shown(r[key]) if isinstance(r.get(key), int | float) else "" for r in columns.values()]
        if any(cells):
            lines.append(f"| {label} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n\n" + "\n".join(f"- {line}" for line in _said_of_results(facts)) + "\n"


def _images(facts: CardData) -> str:
    names = [(name, ALT.get(Path(name).stem, Path(name).stem)) for name in _ordered(facts.images)]
    return "\n".join(f"{alt}:\n\n![{alt}]({name})\n" for name, alt in names)


ALT = {
    "curves": "Loss, accuracy and learning rate by epoch and by time",
    "confusion": "Confusion matrix",
    "reliability": "Reliability diagram: accuracy against confidence",
    "mistakes": "Most confident mistakes, with true and predicted class",
}
"""Alternative text of the report's images, in the order in which a card shows them."""


def _ordered(names: Iterable[str]) -> list[str]:
    known = list(ALT)
    return sorted(
        names, key=lambda name: (known.index(stem) if (stem := Path(name).stem) in known else len(known), name)
    )


def _said_of_results(facts: CardData) -> list[str]:
    recipe = facts.recipe
    sentences = [f"One run, seed {recipe['seed']}; after the last epoch, {recipe['epochs']} of {recipe['epochs']}."]
    sentences += [f"Measured on {split}: {_how(each)}." for split, each in facts.evaluations.items()]
    if facts.seconds is not None or facts.environment:
        took = f" in {duration(facts.seconds)}" if facts.seconds is not None else ""
        sentences += [f"Trained{took}{_on_hardware(facts.environment)}."]
    if "test" not in facts.evaluations:
        sentences += [
            "Not evaluated on test: the figures are on held-out training images, which may have been used for model "
            "selection."
        ]
    for split, each in facts.evaluations.items():
        if each.get("temperature") is not None:
            sentences += [
                f"The temperature {each['temperature']:.3f} was fitted on {each.get('temperature_fitted_on')} "
                f"and scales the logits of {split}."
            ]
    sentences += [facts.checked]
    return sentences + _mistakes(next(iter(facts.evaluations.values())))


def _how(result: Json) -> str:
    weights = "averaged (EMA) weights" if result.get("weights") == "ema" else "raw weights"
    mirrored = "averaged over each image and its mirror image" if result.get("flip") else "single view"
    return f"{weights}, {result.get('precision', 'float32')}, {mirrored}"


def _on_hardware(environment: Json) -> str:
    if not environment:
        return ""
    processes = environment.get("num_processes", 1)
    many = f", {processes} processes" if processes > 1 else ""
    return f" on {environment.get('device')}{many}, {environment.get('precision')}"


def _mistakes(result: Json) -> list[str]:
    """List the weakest classes and the most common mistakes."""
    classes = [each for each in result.get("classes", []) if each.get("accuracy") is not None]
    worst = sorted(classes, key=lambda each: each["accuracy"])[:5]
    sentences = []
    if worst:
        sentences += [
            "Weakest classes: " + ", ".join(f"{_plain(c['name'])} {percent(c['accuracy'])}" for c in worst) + "."
        ]
    if pairs := result.get("most_confused", [])[:3]:
        sentences += [
            "Most common mistakes: "
            + ", ".join(
                f"{_plain(p['true'])} mistaken for {_plain(p['predicted'])} ({p['num_images']} images)" for p in pairs
            )
            + "."
        ]
    return sentences


def _plain(text: str) -> str:
    """Escape a name from the data, so that it cannot act as Markdown or HTML, end a table cell or imitate a mark.

    >>> _plain("<!-- a|b* -->")
    '&lt;!-- a\\\\|b\\\\* --&gt;'
    """
    return re.sub(r"([\\`*\[\]|])", r"\\\1", html.escape(" ".join(text.split()), quote=False))


def _use(facts: CardData, repo_id: str) -> str:
    again = "\n".join(
        f"python -m cifar100_tk.eval {repo_id}{_arguments(facts.recipe, s, r)}" for s, r in facts.evaluations.items()
    )
    return f"""\
```python
import cifar100_tk  # knows the network; timm alone does not
import PIL.Image

classifier = cifar100_tk.load("{repo_id}")
image = PIL.Image.open("image.png")  # any size; resized to {_size(facts)}
image = classifier.transform(image)[None]
probabilities = classifier.model(image).softmax(dim=1)[0]
for p, number in zip(*probabilities.topk(5)):
    print(f"{{p:.1%}} {{classifier.class_names[number]}}")
```

Or with timm:

```python
import cifar100_tk  # before timm is asked for the network
import timm

model = timm.create_model("hf-hub:{repo_id}", pretrained=True).eval()
```

To reproduce the figures above:

```sh
{again}
```
"""


def _arguments(recipe: Json, split: str, result: Json) -> str:
    """Return the arguments that make `eval` use the same images on any machine."""
    data = recipe["data"]
    # Readers of the card get the published data from the Hub, not from the publisher's folder.
    published = data["source"] == "hub" or data_kind(split, result) == "cifar100"
    arguments = "" if published else f" --data.source {shlex.quote(data['source'])}"
    if data["source"] == "shapes100":
        arguments += " --data.shapes100-rows {} {}".format(*data["shapes100_rows"])
    if split == "holdout":
        arguments += f" --split holdout --data.holdout {data['holdout']} --data.holdout-seed {data['holdout_seed']}"
    return arguments


def _training(facts: CardData) -> str:
    rows = [
        f"| {part} | {_cell(value)} |"
        for part, value in facts.recipe.items()
        if part not in ("type", "images", "pretrained") and value is not None
    ]
    return "\n".join(
        [
            "The recipe (also in `recipe.json`):\n",
            "| field | value |",
            "| --- | --- |",
            *rows,
            "",
        ]
    )


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


def _limits(facts: CardData) -> str:
    sentences = [
        _resolution(facts),
        "It always predicts one of its 100 classes, even if the image shows none of them.",
    ]
    if trained_on(facts.recipe) == "cifar100":
        sentences += [
            "CIFAR-100 was collected from the web and labelled by people. Some labels are wrong, some images fit several "
            "classes, and some test images have near-duplicates in train, so test accuracy is slightly optimistic.",
            "Expect lower accuracy on other kinds of photographs, on drawings, and on noisy or blurred images.",
        ]
    else:
        sentences += ["Its figures do not transfer to photographs or to CIFAR-100."]
    sentences += ["The figures are from a single seed and vary between seeds."]
    return "\n".join(f"- {line}" for line in sentences) + "\n"


def _size(facts: CardData) -> str:
    side = facts.recipe.get("image_size", 32)  # Absent from runs of versions that did not have it.
    return f"{side}x{side}"


def _resolution(facts: CardData) -> str:
    if _size(facts) == "32x32":
        return f"The input is {_size(facts)} pixels: larger images are scaled down, and small details are lost."
    return (
        f"The input is {_size(facts)} pixels, but it was trained and measured on 32x32 images enlarged to that size: "
        "photographs look sharper than its training images, so scale them down to 32x32 first for the same conditions."
    )


def _environment(facts: CardData) -> str:
    if not facts.environment:
        return ""
    versions = facts.environment.get("versions", {})
    rows = {key: value for key, value in facts.environment.items() if key != "versions"} | versions
    return "\n".join(["| | |", "| --- | --- |", *(f"| {key} | {value} |" for key, value in rows.items()), ""])


CITATION = """\
```bibtex
@techreport{krizhevsky2009learning,
  author = {Krizhevsky, Alex},
  title = {Learning Multiple Layers of Features from Tiny Images},
  institution = {University of Toronto},
  year = {2009}
}
```
"""
