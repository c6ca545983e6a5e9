"""The model card: what a run measured and how it was trained, in words a reader wants, with room for what people write."""

from __future__ import annotations

import html
import json
import re
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cifar100_tk.errors import DataError
from cifar100_tk.progress import duration, percent

Json = dict[str, Any]

BEGIN = "<!-- cifar100_tk: written from the run; the next push writes it anew up to the end mark, all else stays -->"
END = "<!-- cifar100_tk: end -->"
PLACEHOLDER = "USER/NAME"
"""Stands for the repository's id where that is not known yet."""
SPLITS = ("test", "holdout")
"""The splits whose figures are published; pictures that were trained on say nothing."""
PUBLISHED = {
    "train": "these are the CIFAR-100 training pictures",
    "holdout": "these are the CIFAR-100 training pictures",
    "test": "these are the CIFAR-100 test pictures",
}
"""What the digest of a split's pictures is called where they are those of CIFAR-100 for that split, and for no other."""

_OURS = ("library_name", "pipeline_tag", "model-index")
"""Front matter that is written anew each time: figures of other weights must not stay."""
_LISTS = ("tags", "datasets", "metrics")
"""Front matter to which people add, and which we add to."""
_NOT_THEIRS = {"tags": ["cifar100"], "datasets": ["uoft-cs/cifar100"]}
"""Entries that say what we trained on, so that an older card's do not stay where the new one does not have them."""
_MARK = re.compile(rf"{re.escape(BEGIN)}.*?{re.escape(END)}", re.DOTALL)
_FRONT = re.compile(r"\A---[ \t]*\n(.*?\n)?---[ \t]*(?:\n|\Z)", re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a card is written from, all of it published beside the card."""

    architecture: str
    """The timm name of the network."""
    recipe: Json
    """As recipe.json holds it."""
    evaluations: Mapping[str, Json]
    """By split what was measured on it."""
    environment: Json
    """As environment.json holds it; {} where the run did not note it."""
    seconds: float | None
    """Wall time of the whole training, where the run noted it."""
    pictures: tuple[str, ...]
    """Names of the pictures to show, relative to the card."""
    checked: str
    """A sentence that says how the figures were measured again, or that they were not."""


def of_folder(folder: Path, checked: str) -> Facts:
    """Collect what a built folder says. checked: how its figures were measured again. Raises DataError for a missing part."""
    environment = environment_of(folder)
    return Facts(
        architecture=read_json(folder / "config.json")["architecture"],
        recipe=read_json(folder / "recipe.json"),
        evaluations={
            split: read_json(path) for split in SPLITS if (path := folder / "evaluation" / f"{split}.json").is_file()
        },
        environment=environment,
        seconds=environment.pop("seconds", None),
        pictures=tuple(sorted(f"report/{path.name}" for path in folder.glob("report/*.png"))),
        checked=checked,
    )


def environment_of(folder: Path) -> Json:
    """Return environment.json of a built folder, {} where there is none."""
    path = folder / "environment.json"
    return read_json(path) if path.is_file() else {}


def read_json(path: Path) -> Json:
    """Read an object. Raises DataError naming the file."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path} cannot be read as JSON ({error}); build the folder again from its run.") from error
    if not isinstance(content, dict):
        raise DataError(f"{path} holds no JSON object; build the folder again from its run.")
    return content


def write(facts: Facts, repo_id: str = PLACEHOLDER, *, license: str | None = None, existing: Iterable[str] = ()) -> str:
    """Return README.md: front matter, the generated part between its marks, and everything that people wrote around it.

    license: as the Hub names it; None keeps an existing one, else apache-2.0. existing: cards whose hand-written text,
    front matter keys and license stay; of two that disagree the first counts. Raises DataError for front matter that is
    no YAML.
    """
    import yaml

    generated = front_matter(facts)
    kept: Json = {}
    before = after = ""
    for card in existing:
        theirs, body = _split(card)
        kept = _united(kept, theirs)
        their_before, their_after = _around(body)
        before, after = _joined(before, their_before), _joined(after, their_after)
    kept |= {key: [one for one in _listed(kept.get(key)) if one not in ours] for key, ours in _NOT_THEIRS.items()}
    data = _united(generated, {key: value for key, value in kept.items() if key not in _OURS and value != []})
    data["license"] = license or kept.get("license") or "apache-2.0"
    order = sorted(data, key=lambda key: key == "model-index")  # Long, so last.
    front = yaml.safe_dump({key: data[key] for key in order}, sort_keys=False, allow_unicode=True, width=1000).strip()
    parts = [before, f"{BEGIN}\n\n{body_of(facts, repo_id)}\n{END}", after]
    return f"---\n{front}\n---\n\n" + "\n\n".join(part for part in parts if part) + "\n"


def front_matter(facts: Facts) -> Json:
    """Return what the Hub files the model under. model-index holds every published figure with its conditions."""
    from huggingface_hub import ModelCardData

    cifar100 = trained_on(facts.recipe) == "cifar100"
    data = ModelCardData(
        license="apache-2.0",
        library_name="timm",
        pipeline_tag="image-classification",
        tags=["image-classification", "timm", "cifar100_tk", *(["cifar100"] if cifar100 else [])],
        datasets=["uoft-cs/cifar100"] if cifar100 else None,
        metrics=["accuracy"],
        model_name=facts.architecture,
        eval_results=_results(facts),
    )
    return dict(data.to_dict())  # type: ignore[no-untyped-call]


def _results(facts: Facts) -> list[Any]:
    from huggingface_hub import EvalResult

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
            dataset_type="uoft-cs/cifar100" if pictures_of(split, result) == "cifar100" else pictures_of(split, result),
            dataset_name=name_of(split, result, facts.recipe),
            # A held-out part is one of train; saying so keeps it apart from a figure on test.
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


def _conditions(facts: Facts, result: Json) -> Json:
    """What a figure is of, so that nobody takes it for another."""
    return {
        "num_images": result["num_images"],
        "epoch": facts.recipe["epochs"],
        "seed": facts.recipe["seed"],
        "weights": result.get("weights", "raw"),
        "precision": result.get("precision"),
        "flip": bool(result.get("flip")),
    }


def _holdout(recipe: Json) -> Json:
    return {"holdout": recipe["data"]["holdout"], "holdout_seed": recipe["data"]["holdout_seed"]}


Pictures = Literal["cifar100", "shapes100", "other"]


def pictures_of(split: str, result: Json) -> Pictures:
    """Say which data set was measured on, by the digest of the pictures, not by where they came from."""
    return _known(split, str(result.get("pictures")))


def trained_on(recipe: Json) -> Pictures:
    """Say which data set was trained on, by digest where the run noted it, else by source."""
    noted = recipe.get("pictures", {}).get("train", {}).get("sentence")
    source = recipe["data"]["source"]
    return _known("train", noted) if noted else {"hub": "cifar100", "shapes100": "shapes100"}.get(source, "other")  # type: ignore[return-value]


def _known(split: str, sentence: str) -> Pictures:
    if sentence == PUBLISHED[split]:
        return "cifar100"
    return "shapes100" if sentence.startswith("shapes100") else "other"


def name_of(split: str, result: Json, recipe: Json) -> str:
    """Name the pictures of a figure so that it cannot pass for one of other pictures.

    >>> name_of("holdout", {"pictures": "these are the CIFAR-100 training pictures", "num_images": 5000}, {})
    'CIFAR-100, 5,000 training pictures held out (not test)'
    """
    kind = pictures_of(split, result)
    whole = {
        "cifar100": "CIFAR-100",
        "shapes100": "shapes100, drawn pictures (not CIFAR-100)",
        "other": f"{recipe.get('data', {}).get('source', 'local')}, pictures that are not the published CIFAR-100",
    }[kind]
    if split == "holdout":
        return f"{whole}, {result['num_images']:,} training pictures held out (not test)"
    return whole


# The body


def body_of(facts: Facts, repo_id: str) -> str:
    """Return the generated part of the card, Markdown. repo_id: what the usage names."""
    sections = {
        "": _introduction(facts),
        "Results": _results_section(facts),
        "Use": _use(facts, repo_id),
        "How it was trained": _training(facts),
        "Pictures": _pictures(facts),
        "Limits": _limits(facts),
        "Environment": _environment(facts),
        "Citation": CITATION if trained_on(facts.recipe) == "cifar100" else "",
    }
    return "\n".join(f"## {name}\n\n{text}" if name else text for name, text in sections.items() if text)


def _introduction(facts: Facts) -> str:
    where = {
        "cifar100": "the 100 classes of [CIFAR-100](https://huggingface.co/datasets/uoft-cs/cifar100)",
        "shapes100": "the 100 classes of shapes100, pictures drawn by a program to try things out with, not CIFAR-100",
        "other": "100 classes, learned from pictures that are not the published CIFAR-100",
    }[trained_on(facts.recipe)]
    size = next((r["num_parameters"] for r in facts.evaluations.values() if r.get("num_parameters")), None)
    parameters = f" It has {size:,} parameters." if size else ""
    title = {"cifar100": "CIFAR-100", "shapes100": "shapes100"}.get(trained_on(facts.recipe), "other pictures")
    return (
        f"# {facts.architecture} on {title}\n\n`{facts.architecture}` sorts colour pictures of 32x32 pixels into {where}."
        f"{parameters} It was trained from random weights with cifar100_tk and is a [timm](https://huggingface.co/docs/timm) "
        "model.\n"
    )


def _results_section(facts: Facts) -> str:
    rows = {
        "top-1": ("top1", percent),
        "top-5": ("top5", percent),
        "super-class top-1": ("superclass_top1", percent),
        "loss, nats": ("loss", "{:.4f}".format),
        "calibration error (ECE, 15 bins)": ("ece", percent),
        "calibration error after temperature scaling": ("ece_scaled", percent),
        "pictures": ("num_images", "{:,}".format),
    }
    columns = facts.evaluations
    lines = [f"| | {' | '.join(_plain(name_of(split, r, facts.recipe)) for split, r in columns.items())} |"]
    lines += ["| --- |" + " --: |" * len(columns)]
    for label, (key, shown) in rows.items():
        cells = [shown(r[key]) if isinstance(r.get(key), int | float) else "" for r in columns.values()]
        if any(cells):
            lines.append(f"| {label} | {' | '.join(cells)} |")
    text = "\n".join(lines) + "\n\n" + "\n".join(f"- {line}" for line in _said_of_results(facts)) + "\n"
    return text


def _pictures(facts: Facts) -> str:
    names = [(name, ALT.get(Path(name).stem, Path(name).stem)) for name in _ordered(facts.pictures)]
    return "\n".join(f"{alt}:\n\n![{alt}]({name})\n" for name, alt in names)


ALT = {
    "curves": "Loss, accuracy and learning rate by epoch and by time",
    "confusion": "How often each class was taken for which",
    "reliability": "How often the network is right when it is so sure",
    "mistakes": "Pictures that it gets most wrong, with what they are and what it takes them for",
}
"""What the pictures of a report show, for those who cannot see them; in the order in which a card shows them."""


def _ordered(names: Iterable[str]) -> list[str]:
    known = list(ALT)
    return sorted(
        names, key=lambda name: (known.index(stem) if (stem := Path(name).stem) in known else len(known), name)
    )


def _said_of_results(facts: Facts) -> list[str]:
    recipe = facts.recipe
    said = [f"One run, seed {recipe['seed']}; after the last epoch, {recipe['epochs']} of {recipe['epochs']}."]
    said += [f"Measured on {split}: {_how(each)}." for split, each in facts.evaluations.items()]
    if facts.seconds is not None or facts.environment:
        took = f" in {duration(facts.seconds)}" if facts.seconds is not None else ""
        said += [f"Trained{took}{_on_hardware(facts.environment)}."]
    if "test" not in facts.evaluations:
        said += [
            "Nothing was measured on test: the figure is of training pictures that were held out, "
            "and choices may have been made by it."
        ]
    for split, each in facts.evaluations.items():
        if each.get("temperature") is not None:
            said += [
                f"The temperature {each['temperature']:.3f} was fitted on {each.get('temperature_fitted_on')} "
                f"and scales the logits of {split}."
            ]
    said += [facts.checked]
    return said + _mistakes(next(iter(facts.evaluations.values())))


def _how(result: Json) -> str:
    weights = "averaged (EMA) weights" if result.get("weights") == "ema" else "raw weights"
    mirrored = "mean of each picture and its mirror image" if result.get("flip") else "each picture once as it is"
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
    said = []
    if worst:
        said += ["Weakest classes: " + ", ".join(f"{_plain(c['name'])} {percent(c['accuracy'])}" for c in worst) + "."]
    if pairs := result.get("most_confused", [])[:3]:
        said += [
            "Commonest mistakes: "
            + ", ".join(
                f"{_plain(p['true'])} taken for {_plain(p['predicted'])} ({p['num_images']} pictures)" for p in pairs
            )
            + "."
        ]
    return said


def _plain(text: str) -> str:
    """Write a name that comes with the data so that it is neither Markdown nor HTML, and ends no table and no mark.

    >>> _plain("<!-- a|b* -->")
    '&lt;!-- a\\\\|b\\\\* --&gt;'
    """
    return re.sub(r"([\\`*\[\]|])", r"\\\1", html.escape(" ".join(text.split()), quote=False))


def _use(facts: Facts, repo_id: str) -> str:
    again = "\n".join(f"python -m cifar100_tk.eval {repo_id}{_arguments(facts.recipe, s)}" for s in facts.evaluations)
    return f"""\
```python
import cifar100_tk  # knows the network; timm alone does not
import PIL.Image

classifier = cifar100_tk.load("{repo_id}")
picture = PIL.Image.open("picture.png")  # of any size; the network sees 32x32
image = classifier.transform(picture)[None]
probabilities = classifier.model(image).softmax(dim=1)[0]
for p, number in zip(*probabilities.topk(5)):
    print(f"{{p:.1%}} {{classifier.class_names[number]}}")
```

Or with timm, after the same import:

```python
model = timm.create_model("hf-hub:{repo_id}", pretrained=True).eval()
```

The figures above, measured again:

```sh
{again}
```
"""


def _arguments(recipe: Json, split: str) -> str:
    """Return what to add to the command that measures, so that it takes the pictures of the figure."""
    data = recipe["data"]
    arguments = "" if data["source"] == "hub" else f" --data.source {shlex.quote(data['source'])}"
    if data["source"] == "shapes100":
        arguments += " --data.shapes100-rows {} {}".format(*data["shapes100_rows"])
    if split == "holdout":
        arguments += f" --split holdout --data.holdout {data['holdout']} --data.holdout-seed {data['holdout_seed']}"
    return arguments


def _training(facts: Facts) -> str:
    rows = [
        f"| {part} | {_cell(value)} |"
        for part, value in facts.recipe.items()
        if part not in ("type", "pictures") and value is not None
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

    >>> _cell([{"type": "Flip", "p": 0.5}, {"type": "Crop", "scale": [0.8, 1.0]}])
    '`Flip(p=0.5)`, `Crop(scale=(0.8, 1.0))`'
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


def _limits(facts: Facts) -> str:
    said = [
        "It sees 32x32 pixels: a larger picture is shrunk to that, and what is small in it is lost.",
        "It always answers with one of its 100 classes, also for a picture that shows none of them.",
    ]
    if trained_on(facts.recipe) == "cifar100":
        said += [
            "CIFAR-100 was collected from the web and labelled by people. Some labels are wrong, some pictures fit several "
            "classes, and some occur in train and test nearly alike, so a figure on test flatters a little.",
            "Photographs that were taken otherwise, drawings, or pictures with noise or blur are answered worse than test is.",
        ]
    else:
        said += ["Its figures say nothing about photographs or about CIFAR-100."]
    said += ["One run has one seed, and the figures of another seed differ."]
    return "\n".join(f"- {line}" for line in said) + "\n"


def _environment(facts: Facts) -> str:
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


# What people wrote


def _split(card: str) -> tuple[Json, str]:
    """Return the front matter and the body of a card."""
    import yaml

    card = card.removeprefix("\ufeff").replace("\r\n", "\n")
    found = _FRONT.match(card)
    if not found:
        return {}, card
    try:
        data = yaml.safe_load(found[1] or "") or {}
    except yaml.YAMLError as error:
        where = " ".join(str(error).split())
        raise DataError(f"the front matter of the existing README.md is no YAML ({where}); mend it first.") from error
    if not isinstance(data, dict):
        raise DataError(f"the front matter of the existing README.md is {data!r}, no keys and values; mend it first.")
    return data, card[found.end() :]


def _around(body: str) -> tuple[str, str]:
    """Return what stands before and after the generated part; all of a card without one stands after."""
    before, *rest = _MARK.split(body, maxsplit=1)
    if not rest:
        before, rest = "", [before]
    # A mark whose partner was deleted, or a second part, must not be taken for a part next time.
    return tuple(_MARK.sub("", text).replace(BEGIN, "").replace(END, "").strip() for text in (before, rest[0]))  # type: ignore[return-value]


def _joined(first: str, second: str) -> str:
    """Return two hand-written texts as one; of a text that holds the other, only the longer."""
    if first in second or second in first:
        return max(first, second, key=len)
    return f"{first}\n\n{second}"


def _united(first: Json, second: Json) -> Json:
    """Return both: of a key that is in both the first's value, and of the lists that people add to all entries once."""
    united = first | {key: value for key, value in second.items() if key not in first}
    for key in _LISTS:
        if isinstance(first.get(key), list) and second.get(key):
            united[key] = [*first[key], *(entry for entry in _listed(second[key]) if entry not in first[key])]
    return united


def _listed(value: Any) -> list[Any]:
    """Return a value that may be one entry, several or none as a list."""
    return value if isinstance(value, list) else [] if value is None else [value]
