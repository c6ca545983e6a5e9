"""The recipes that come with the package, found by name and opened as Python objects."""

from __future__ import annotations

import runpy
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from cifar100_tk.errors import ConfigError

if TYPE_CHECKING:
    from cifar100_tk.recipe import Recipe


def recipes() -> dict[str, Path]:
    """Return the files of the recipes by name: beside the package in a clone, else where pip has installed them."""
    folder = Path(__file__).parents[2] / "recipes"
    if (folder / "quickstart.py").is_file():
        return {path.stem: path for path in sorted(folder.glob("*.py"))}
    try:
        installed = metadata.files("cifar100_tk") or []
    except metadata.PackageNotFoundError:
        installed = []
    files = (file for file in installed if file.suffix == ".py" and file.parts[-3:-1] == ("cifar100_tk", "recipes"))
    return {file.stem: Path(str(file.locate())).resolve() for file in sorted(files)}


def path_of(name: str | Path, found: dict[str, Path]) -> Path:
    """Return the path of a recipe: a file of this name with `.py`, else one of the recipes found, else the name itself."""
    path = Path(name)
    if path.suffix == ".py" and path.is_file():
        return path
    return found.get(str(name).removesuffix(".py")) or path


def load_recipe(name: str | Path) -> Recipe:
    """Return the recipe of a file: one that comes with the package, such as "resnet50", or the path of your own.

    The file is run without training, so networks that it registers are known to timm. Raises ConfigError if there is none.
    """
    found = recipes()
    path = path_of(name, found)
    if not path.is_file():
        raise ConfigError(f"there is no recipe {name}; give {', '.join(found)}, or the path of a recipe file.")
    names = runpy.run_path(str(path))
    if "recipe" not in names:
        raise ConfigError(f"{path} does not define a recipe; expected recipe = Recipe(...) in it.")
    recipe: Recipe = names["recipe"]
    return recipe
