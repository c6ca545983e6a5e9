"""The body of a card: what was measured and how it was trained, in words a reader wants."""

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
    """Return the generated part of the card, Markdown. repo_id: what the usage names."""
    sections = {
        "": _introduction(facts),
        "Results": _results_section(facts),
        "Use": _use(facts, repo_id),
        "How it was trained": _training(facts),
        "Images": _images(facts),
        "Limits": _limits(facts),
        "Environment": _environment(facts),
        "Citation": CITATION if trained_on(facts.recipe) == "cifar100" else "",
    }
    return "\n".join(f"## {name}\n\n{text}" if name else text for name, text in sections.items() if text)


def _introduction(facts: CardData) -> str:
    where = {
        "cifar100": "the 100 classes of [CIFAR-100](https://huggingface.co/datasets/uoft-cs/cifar100)",
        "shapes100": "the 100 classes of shapes100, images drawn by a program to try things out with, not CIFAR-100",
        "other": "100 classes, learned from images that are not the published CIFAR-100",
    }[trained_on(facts.recipe)]
    size = next((r["num_parameters"] for r in facts.evaluations.values() if r.get("num_parameters")), None)
    parameters = f" It has {size:,} parameters." if size else ""
    title = {"cifar100": "CIFAR-100", "shapes100": "shapes100"}.get(trained_on(facts.recipe), "other images")
    return (
        f"# {facts.architecture} on {title}\n\n`{facts.architecture}` sorts colour images of 32x32 pixels into {where}."
        f"{parameters} It was trained{_start(facts.architecture)} with cifar100_tk and is a "
        "[timm](https://huggingface.co/docs/timm) model.\n"
    )


def _start(architecture: str) -> str:
    """Say that training began at random weights where that is known: a network of the user's own may load some."""
    from timm.models import is_model

    from cifar100_tk.models import registered_by

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
    "confusion": "How often each class was taken for which",
    "reliability": "How often the network is right when it is so sure",
    "mistakes": "Images that it gets most wrong, with what they are and what it takes them for",
}
"""What the images of a report show, for those who cannot see them; in the order in which a card shows them."""


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
            "Nothing was measured on test: the figure is of training images that were held out, "
            "and choices may have been made by it."
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
    mirrored = "mean of each image and its mirror image" if result.get("flip") else "each image once as it is"
    return f"{weights}, {result.get('precision', 'float32')}, {mirrored}"


def _on_hardware(environment: Json) -> str:
    if not environment:
        return ""
    processes = environment.get("num_processes", 1)
    many = f", {processes} processes" if processes > 1 else ""
    return f" on {environment.get('device')}{many}, {environment.get('precision')}"


def _mistakes(result: Json) -> list[str]:
    """Name the weakest classes and the commonest mistakes."""
    classes = [each for each in result.get("classes", []) if each.get("accuracy") is not None]
    worst = sorted(classes, key=lambda each: each["accuracy"])[:5]
    sentences = []
    if worst:
        sentences += [
            "Weakest classes: " + ", ".join(f"{_plain(c['name'])} {percent(c['accuracy'])}" for c in worst) + "."
        ]
    if pairs := result.get("most_confused", [])[:3]:
        sentences += [
            "Commonest mistakes: "
            + ", ".join(
                f"{_plain(p['true'])} taken for {_plain(p['predicted'])} ({p['num_images']} images)" for p in pairs
            )
            + "."
        ]
    return sentences


def _plain(text: str) -> str:
    """Write a name that comes with the data so that it is neither Markdown nor HTML, and ends no table and no mark.

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
image = PIL.Image.open("image.png")  # of any size; the network sees 32x32
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

The figures above, measured again:

```sh
{again}
```
"""


def _arguments(recipe: Json, split: str, result: Json) -> str:
    """Return what to add to the command that measures, so that it takes the images of the figure, wherever it is run."""
    data = recipe["data"]
    # Whoever reads the card has the published data from the Hub, and not the folder that the publisher had it in.
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
        if part not in ("type", "images") and value is not None
    ]
    return "\n".join(
        [
            "The recipe, in its own words (`recipe.json` holds the same):\n",
            "| part | value |",
            "| --- | --- |",
            *rows,
            "",
        ]
    )


def _cell(value: Any) -> str:
    """Write a part of a recipe as a recipe file writes it, for a cell of a table.

    >>> _cell([{"type": "Flip", "p": 0.5}, {"type": "RandomResizedCrop", "scale": [0.8, 1.0]}])
    '`Flip(p=0.5)`, `RandomResizedCrop(scale=(0.8, 1.0))`'
    """
    if isinstance(value, list):
        return ", ".join(map(_cell, value)) or "nothing"
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
        "It sees 32x32 pixels: a larger image is shrunk to that, and what is small in it is lost.",
        "It always answers with one of its 100 classes, also for an image that shows none of them.",
    ]
    if trained_on(facts.recipe) == "cifar100":
        sentences += [
            "CIFAR-100 was collected from the web and labelled by people. Some labels are wrong, some images fit several "
            "classes, and some occur in train and test nearly alike, so a figure on test flatters a little.",
            "Photographs that were taken otherwise, drawings, or images with noise or blur are answered worse than test is.",
        ]
    else:
        sentences += ["Its figures say nothing about photographs or about CIFAR-100."]
    sentences += ["One run has one seed, and the figures of another seed differ."]
    return "\n".join(f"- {line}" for line in sentences) + "\n"


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
