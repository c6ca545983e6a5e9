"""What a card knows of a model: read from the folder that is published, where every figure lies beside the card."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from cifar100_tk.data import Cifar100
from cifar100_tk.data.fingerprint import TEST_IMAGES, TRAINING_IMAGES
from cifar100_tk.errors import DataError
from cifar100_tk.storage.json_files import Json, read_object

# torch takes seconds to import, and evaluation_files needs it; it is imported when there are figures to read.

DataKind = Literal["cifar100", "shapes100", "other"]
"""The data set that images are of; other: none of the two that we know."""

SPLITS: Final[tuple[Literal["test", "holdout"], ...]] = ("test", "holdout")
"""The splits whose figures are published; images that were trained on say nothing."""
REMEDY: Final = "build the folder again from its run."
"""What helps where a part of a built folder cannot be read."""
_CIFAR100: Final = {
    "train": TRAINING_IMAGES,
    "holdout": TRAINING_IMAGES,
    "test": TEST_IMAGES,
}
"""What the digest of a split's images is called where they are those of CIFAR-100 for that split, and for no other."""
_BY_SOURCE: Final[dict[str, DataKind]] = {"hub": "cifar100", "shapes100": "shapes100"}


@dataclass(frozen=True, kw_only=True)
class CardData:
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
    images: tuple[str, ...]
    """Names of the images to show, relative to the card."""
    checked: str
    """A sentence that says how the figures were measured again, or that they were not."""


def of_folder(folder: Path, checked: str) -> CardData:
    """Collect what a built folder says. checked: how its figures were measured again.

    Raises DataError for a part that is missing, or not as a card needs it.
    """
    environment = environment_of(folder)
    config = read_object(folder / "config.json", REMEDY)
    _expect(folder / "config.json", config, "architecture", str)
    return CardData(
        architecture=config["architecture"],
        recipe=recipe_of(folder),
        evaluations=evaluations_of(folder),
        environment=environment,
        seconds=environment.pop("seconds", None),
        images=tuple(sorted(f"report/{path.name}" for path in folder.glob("report/*.png"))),
        checked=checked,
    )


def evaluations_of(folder: Path) -> dict[str, Json]:
    """Return by split what a built folder claims to have measured. Raises DataError where that is nothing, or damaged."""
    from cifar100_tk.evaluation.files import read_result

    paths: dict[str, Path] = {split: folder / "evaluation" / f"{split}.json" for split in SPLITS}
    claims = {split: read_result(path) for split, path in paths.items() if path.is_file()}
    if not claims:
        raise DataError(f"{folder} claims nothing: it has no evaluation/test.json; {REMEDY}")
    return claims


def environment_of(folder: Path) -> Json:
    """Return environment.json of a built folder, {} where there is none. Raises DataError."""
    path = folder / "environment.json"
    if not path.is_file():
        return {}
    environment = read_object(path, REMEDY)
    for key, kinds in {"seconds": (int, float), "num_processes": (int,), "versions": (dict,)}.items():
        if key in environment:
            _expect(path, environment, key, *kinds)
    # JSON in Python has infinity, NaN and whole numbers that no float holds.
    if not 0 <= environment.get("seconds", 0) < 1e300:
        shown = repr(environment["seconds"])[:60]
        raise DataError(f"{path}: seconds is {shown}, expected a time from 0 to less than 1e300; {REMEDY}")
    return environment


def recipe_of(folder: Path) -> Json:
    """Return recipe.json of a built folder. Raises DataError where it lacks what a card says of it."""
    path = folder / "recipe.json"
    recipe = read_object(path, REMEDY)
    Cifar100.of_recipe(recipe, path, REMEDY)
    for key in ("epochs", "seed"):
        _expect(path, recipe, key, int)
    images = _expect(path, {"images": {}} | recipe, "images", dict)
    for split in images:
        recorded = _expect(path, images, split, dict)
        _expect(path, {"sentence": ""} | recorded, "sentence", str)
    return recipe


def _expect(path: Path, held: Json, key: str, *kinds: type) -> Any:
    """Return what an object of a file holds under a key. Raises DataError where it is not of one of the kinds."""
    value = held.get(key)
    if type(value) not in kinds:
        expected = " or ".join(kind.__name__ for kind in kinds)
        raise DataError(f"{path}: {key} is {value!r}, expected {expected}; {REMEDY}")
    return value


def data_of(folder: Path) -> Cifar100:
    """Return the data of a run's or a built folder's recipe. Raises DataError where it names none."""
    path = folder / "recipe.json"
    return Cifar100.of_recipe(read_object(path, REMEDY), path, REMEDY)


def data_kind(split: str, result: Json) -> DataKind:
    """Say which data set was measured on, by the digest of the images, not by where they came from."""
    return _known(split, str(result.get("images")))


def trained_on(recipe: Json) -> DataKind:
    """Say which data set was trained on, by digest where the run noted it, else by source."""
    recorded = recipe.get("images", {}).get("train", {}).get("sentence")
    return _known("train", recorded) if recorded else _BY_SOURCE.get(recipe["data"]["source"], "other")


def _known(split: str, sentence: str) -> DataKind:
    if sentence == _CIFAR100[split]:
        return "cifar100"
    return "shapes100" if sentence.startswith("shapes100") else "other"


def name_of(split: str, result: Json, recipe: Json) -> str:
    """Name the images of a figure so that it cannot pass for one of other images.

    >>> name_of("holdout", {"images": "these are the CIFAR-100 training images", "num_images": 5000}, {})
    'CIFAR-100, 5,000 training images held out (not test)'
    """
    kind = data_kind(split, result)
    whole = {
        "cifar100": "CIFAR-100",
        "shapes100": "shapes100, drawn images (not CIFAR-100)",
        "other": f"{recipe.get('data', {}).get('source', 'local')}, images that are not the published CIFAR-100",
    }[kind]
    if split == "holdout":
        return f"{whole}, {result['num_images']:,} training images held out (not test)"
    return whole
