"""What a card knows of a model: read from the folder that is published, where every figure lies beside the card."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from cifar100_tk.data import Cifar100
from cifar100_tk.data.identity import TEST_PICTURES, TRAINING_PICTURES
from cifar100_tk.json_files import Json, read_object

Pictures = Literal["cifar100", "shapes100", "other"]
"""The data set that pictures are of; other: none of the two that we know."""

SPLITS: Final[tuple[Literal["test", "holdout"], ...]] = ("test", "holdout")
"""The splits whose figures are published; pictures that were trained on say nothing."""
REMEDY: Final = "build the folder again from its run."
"""What helps where a part of a built folder cannot be read."""
_CIFAR100: Final = {
    "train": TRAINING_PICTURES,
    "holdout": TRAINING_PICTURES,
    "test": TEST_PICTURES,
}
"""What the digest of a split's pictures is called where they are those of CIFAR-100 for that split, and for no other."""
_BY_SOURCE: Final[dict[str, Pictures]] = {"hub": "cifar100", "shapes100": "shapes100"}


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
        architecture=read_object(folder / "config.json", REMEDY)["architecture"],
        recipe=read_object(folder / "recipe.json", REMEDY),
        evaluations={
            split: read_object(path, REMEDY)
            for split in SPLITS
            if (path := folder / "evaluation" / f"{split}.json").is_file()
        },
        environment=environment,
        seconds=environment.pop("seconds", None),
        pictures=tuple(sorted(f"report/{path.name}" for path in folder.glob("report/*.png"))),
        checked=checked,
    )


def environment_of(folder: Path) -> Json:
    """Return environment.json of a built folder, {} where there is none."""
    path = folder / "environment.json"
    return read_object(path, REMEDY) if path.is_file() else {}


def data_of(folder: Path) -> Cifar100:
    """Return the data of a run's or a built folder's recipe. Raises DataError where it names none."""
    path = folder / "recipe.json"
    return Cifar100.of_recipe(read_object(path, REMEDY), path, REMEDY)


def pictures_of(split: str, result: Json) -> Pictures:
    """Say which data set was measured on, by the digest of the pictures, not by where they came from."""
    return _known(split, str(result.get("pictures")))


def trained_on(recipe: Json) -> Pictures:
    """Say which data set was trained on, by digest where the run noted it, else by source."""
    noted = recipe.get("pictures", {}).get("train", {}).get("sentence")
    return _known("train", noted) if noted else _BY_SOURCE.get(recipe["data"]["source"], "other")


def _known(split: str, sentence: str) -> Pictures:
    if sentence == _CIFAR100[split]:
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
