"""Example images of the page: built-in images, simple drawings, or images from a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
import PIL.Image

from cifar100_tk.data.image_files import SUFFIXES, open_image
from cifar100_tk.data.labels import FINE_NAMES, display_name
from cifar100_tk.data.shapes100 import NAMES as SHAPES
from cifar100_tk.data.shapes100 import Shapes100
from cifar100_tk.errors import ConfigError, DataError

NUM_EXAMPLES: Final = 10
DRAWINGS: Final = Path(__file__).parent / "images"
"""Ten drawings of CIFAR-100 classes; the package ships no photographs."""


def examples(class_names: tuple[str, ...], folder: Path | None) -> list[tuple[PIL.Image.Image, str]]:
    """Return at most ten captioned images: from the folder, else built-in images that match the classes.

    Custom classes have no built-in images. Raises ConfigError if the folder holds no images.
    """
    if folder is not None:
        return _of_folder(folder)
    if class_names == SHAPES.fine:
        rows = next(Shapes100("test", 100).blocks())
        chosen = [int(np.flatnonzero(rows.fine == number)[0]) for number in range(0, 100, 100 // NUM_EXAMPLES + 1)]
        images = [PIL.Image.fromarray(rows.images[row].transpose(1, 2, 0).copy()) for row in chosen]
        return [(p, display_name(SHAPES.fine[rows.fine[row]])) for p, row in zip(images, chosen, strict=True)]
    return _of_folder(DRAWINGS) if class_names == FINE_NAMES else []


def _of_folder(folder: Path) -> list[tuple[PIL.Image.Image, str]]:
    images = []
    for path in images_in(folder):
        try:
            images.append((open_image(path), display_name(path.stem)))
        except DataError as error:
            raise ConfigError(f"--examples {folder}: {error}") from error
    return images


def images_in(folder: Path) -> list[Path]:
    """Return the first ten image files of a folder by name. Raises ConfigError if there are none."""
    if not folder.is_dir():
        raise ConfigError(f"--examples {folder} is not a folder; pass an existing folder of images.")
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and path.is_file())
    if not found:
        raise ConfigError(f"--examples {folder} contains no images; add files such as apple.png or sea.jpg.")
    return found[:NUM_EXAMPLES]
