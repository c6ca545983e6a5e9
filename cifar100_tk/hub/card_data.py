"""Data for a model card, read from the published folder."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Final, Literal

from cifar100_tk.data import Data
from cifar100_tk.data.fingerprint import TEST_IMAGES, TRAINING_IMAGES
from cifar100_tk.data.published import CIFAR10, CIFAR100
from cifar100_tk.errors import DataError
from cifar100_tk.storage.json_files import Json, read_object

# evaluation.files imports torch, which takes seconds, so it is imported when there are figures to read.

DataKind = Literal["cifar100", "cifar10", "shapes100", "other"]
"""Data set of some images; other: not known to be one of these."""
REPOSITORIES: Final = {"cifar100": CIFAR100.repository, "cifar10": CIFAR10.repository}
"""The published data sets on the Hub."""

SPLITS: Final[tuple[Literal["test", "holdout"], ...]] = ("test", "holdout")
"""The splits whose figures are published; accuracy on training images says nothing."""
REMEDY: Final = "build the folder again from its run."
"""Remedy if a part of a built folder cannot be read."""
_SENTENCES: Final[dict[str, dict[str, DataKind]]] = {
    "train": {TRAINING_IMAGES: "cifar100", CIFAR10.sentences["train"]: "cifar10"},
    "test": {TEST_IMAGES: "cifar100", CIFAR10.sentences["test"]: "cifar10"},
}
"""Recorded descriptions of a split's images if they are published ones."""
_BY_SOURCE: Final[dict[tuple[str, str], DataKind]] = {
    ("Cifar100", "hub"): "cifar100",
    ("Cifar10", "hub"): "cifar10",
    ("Cifar100", "shapes100"): "shapes100",
}


@dataclass(frozen=True, kw_only=True)
class CardData:
    """Data for a card, all of it published next to the card."""

    architecture: str
    """Name of the network in timm."""
    recipe: Json
    """Content of recipe.json."""
    evaluations: Mapping[str, Json]
    """Evaluation results by split."""
    environment: Json
    """Content of environment.json; {} if the run has none."""
    seconds: float | None
    """Wall time of the whole training, if recorded."""
    images: tuple[str, ...]
    """Paths of the images to show, relative to the card."""
    pretrained: Json | None = None
    """The origin of the weights that training started from, as recipe.json records it; None for random ones."""
    checked: str
    """Sentence about the re-evaluation, or that it was skipped."""
    project: str | None = None
    """Public address of this package; None if it was not installed from one."""
    commit: str | None = None
    """Commit of the package at that address, if known."""


def of_folder(folder: Path, checked: str) -> CardData:
    """Read the card data of a built folder. checked: sentence about its re-evaluation.

    Raises DataError if a part is missing or invalid.
    """
    environment = environment_of(folder)
    config = read_object(folder / "config.json", REMEDY)
    _expect(folder / "config.json", config, "architecture", str)
    project, commit = installed_from()
    return CardData(
        architecture=config["architecture"],
        recipe=recipe_of(folder),
        evaluations=evaluations_of(folder),
        environment=environment,
        seconds=environment.pop("seconds", None),
        images=tuple(sorted(f"report/{path.name}" for path in folder.glob("report/*.png"))),
        pretrained=_pretrained_of(folder),
        checked=checked,
        project=project,
        commit=commit,
    )


def installed_from() -> tuple[str | None, str | None]:
    """Return the public address and the commit that pip installed the package from, or the project URL of its metadata.

    pip records them in direct_url.json (PEP 610). Only a plain https address counts, without a user or token in it.
    """
    try:
        package = metadata.distribution("cifar100_tk")
    except metadata.PackageNotFoundError:  # It runs from a clone.
        return None, None
    direct = json.loads(package.read_text("direct_url.json") or "{}")
    commit = direct.get("vcs_info", {}).get("commit_id")
    urls = [direct["url"]] if commit else [line.split(", ")[-1] for line in package.metadata.get_all("Project-URL", [])]
    public = [url for url in urls if re.fullmatch(r"https://[\w.-]+(/[\w.-]+)+/?", url)]
    return (public[0], commit) if public else (None, None)


def evaluations_of(folder: Path) -> dict[str, Json]:
    """Return the evaluation results of a built folder by split. Raises DataError if there are none, or if they are damaged."""
    from cifar100_tk.evaluation.files import read_result

    paths: dict[str, Path] = {split: folder / "evaluation" / f"{split}.json" for split in SPLITS}
    claims = {split: read_result(path) for split, path in paths.items() if path.is_file()}
    if not claims:
        raise DataError(f"{folder} has no evaluation/test.json; {REMEDY}")
    return claims


def environment_of(folder: Path) -> Json:
    """Return environment.json of a built folder, or {} if there is none. Raises DataError if it is invalid."""
    path = folder / "environment.json"
    if not path.is_file():
        return {}
    environment = read_object(path, REMEDY)
    for key, kinds in {"seconds": (int, float), "num_processes": (int,), "versions": (dict,)}.items():
        if key in environment:
            _expect(path, environment, key, *kinds)
    # Python's JSON parser accepts infinity, NaN and integers beyond the float range.
    if not 0 <= environment.get("seconds", 0) < 1e300:
        shown = repr(environment["seconds"])[:60]
        raise DataError(f"{path}: seconds is {shown}, expected a time from 0 to less than 1e300; {REMEDY}")
    return environment


def recipe_of(folder: Path) -> Json:
    """Return recipe.json of a built folder. Raises DataError if a field needed by the card is missing."""
    path = folder / "recipe.json"
    recipe = read_object(path, REMEDY)
    Data.of_recipe(recipe, path, REMEDY)
    for key in ("epochs", "seed"):
        _expect(path, recipe, key, int)
    _expect(path, {"image_size": 32} | recipe, "image_size", int)
    images = _expect(path, {"images": {}} | recipe, "images", dict)
    for split in images:
        recorded = _expect(path, images, split, dict)
        _expect(path, {"sentence": ""} | recorded, "sentence", str)
    return recipe


def _pretrained_of(folder: Path) -> Json | None:
    """Return the record of the pretrained weights in recipe.json, or None. Raises DataError if it is not what training wrote.

    It is text of a stranger when a folder is published again, so that nothing but ids and digests may pass.
    """
    path = folder / "recipe.json"
    found = read_object(path, REMEDY).get("pretrained")
    if found is None:
        return None
    patterns = {"sha256": r"[0-9a-f]{64}", "base_model": r"\w[\w.-]*/\w[\w.-]*", "license": r"[\w.+-]{1,60}"}
    right = isinstance(found, dict) and type(found.get("taken")) is int and isinstance(found.get("new"), list)
    for key, pattern in patterns.items() if right else ():
        value = found.get(key)
        known = isinstance(value, str) and re.fullmatch(pattern, value)
        right = right and bool(known or (value is None and key != "sha256"))
    if not right:
        raise DataError(f"{path}: pretrained is {str(found)[:100]}, which training does not write; {REMEDY}")
    return dict(found)


def _expect(path: Path, held: Json, key: str, *kinds: type) -> Any:
    """Return a value of a JSON object. Raises DataError if it has the wrong type."""
    value = held.get(key)
    if type(value) not in kinds:
        expected = " or ".join(kind.__name__ for kind in kinds)
        raise DataError(f"{path}: {key} is {value!r}, expected {expected}; {REMEDY}")
    return value


def data_of(folder: Path) -> Data:
    """Return the data of a run's or a built folder's recipe. Raises DataError if it has none."""
    path = folder / "recipe.json"
    return Data.of_recipe(read_object(path, REMEDY), path, REMEDY)


def data_kind(split: str, result: Json) -> DataKind:
    """Return the data set of an evaluation, by the digest of the images and not by their source."""
    return _known(split, str(result.get("images")))


def trained_on(recipe: Json) -> DataKind:
    """Return the training data set, by digest if recorded, else by source."""
    recorded = recipe.get("images", {}).get("train", {}).get("sentence")
    data = recipe["data"]
    return _known("train", recorded) if recorded else _BY_SOURCE.get((data["type"], data["source"]), "other")


def _known(split: str, sentence: str) -> DataKind:
    if sentence.startswith("shapes100"):
        return "shapes100"
    return _SENTENCES["test" if split == "test" else "train"].get(sentence, "other")


def unlike(recipe: Json) -> str:
    """Describe images that are not known."""
    if recipe.get("data", {}).get("type") == "Cifar10":
        return "images not verified to be the published CIFAR-10"
    return "images that are not the published CIFAR-100"


def name_of(split: str, result: Json, recipe: Json) -> str:
    """Describe the images of a figure, so that it cannot be mistaken for another data set or split.

    >>> name_of("holdout", {"images": "these are the CIFAR-100 training images", "num_images": 5000}, {})
    'CIFAR-100, 5,000 training images held out (not test)'
    """
    kind = data_kind(split, result)
    whole = {
        "cifar100": "CIFAR-100",
        "cifar10": "CIFAR-10",
        "shapes100": "shapes100, drawn images (not CIFAR-100)",
        "other": f"{recipe.get('data', {}).get('source', 'local')}, {unlike(recipe)}",
    }[kind]
    if split == "holdout":
        return f"{whole}, {result['num_images']:,} training images held out (not test)"
    return whole
