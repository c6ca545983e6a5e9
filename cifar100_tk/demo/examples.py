"""Example images of the page: built-in images, simple drawings, or images from a folder."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Final

import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFilter

from cifar100_tk.data.image_files import SUFFIXES, open_image
from cifar100_tk.data.labels import FINE_NAMES
from cifar100_tk.data.shapes100 import NAMES as SHAPES
from cifar100_tk.data.shapes100 import Shapes100
from cifar100_tk.errors import ConfigError, DataError

NUM_EXAMPLES: Final = 10
SIZE: Final = 256
"""Width of a drawing in pixels."""

Colour = tuple[int, int, int]
Pen = PIL.ImageDraw.ImageDraw


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
        return [(p, SHAPES.fine[rows.fine[row]].replace("_", " ")) for p, row in zip(images, chosen, strict=True)]
    return [(drawing(name), name.replace("_", " ")) for name in DRAWINGS] if class_names == FINE_NAMES else []


def _of_folder(folder: Path) -> list[tuple[PIL.Image.Image, str]]:
    images = []
    for path in images_in(folder):
        try:
            images.append((open_image(path), path.stem.replace("_", " ")))
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


def drawing(name: str) -> PIL.Image.Image:
    """Draw a simple image of a CIFAR-100 class, 256x256 RGB, slightly blurred like a photograph."""
    image = PIL.Image.new("RGB", (SIZE, SIZE), "white")
    DRAWINGS[name](PIL.ImageDraw.Draw(image))
    return image.filter(PIL.ImageFilter.GaussianBlur(1.5))


def _sky(pen: Pen, top: Colour, bottom: Colour, first: int = 0, last: int = SIZE) -> None:
    """Fill the rows from first to last with a gradient between two colours."""
    for row in range(first, last):
        share = (row - first) / max(last - first - 1, 1)
        pen.line([(0, row), (SIZE, row)], fill=_between(top, bottom, share))


def _between(one: Colour, other: Colour, share: float) -> Colour:
    red, green, blue = (round(a + share * (b - a)) for a, b in zip(one, other, strict=True))
    return red, green, blue


def _ball(pen: Pen, x: int, y: int, radius: int, edge: Colour, light: Colour) -> None:
    """Draw a ball lit from the upper left."""
    for step in range(radius):
        share = step / radius
        r, shift = radius - step, round(0.35 * step)
        pen.ellipse((x - r - shift, y - r - shift, x + r - shift, y + r - shift), fill=_between(edge, light, share))


def _petals(pen: Pen, x: int, y: int, count: int, near: int, far: int, width: float, fill: Colour) -> None:
    """Draw petals around a point. width: of one petal, in radians."""
    for k in range(count):
        angle = 2 * math.pi * k / count
        spread = [(far, 0.0), (0.7 * far, width), (near, 0.0), (0.7 * far, -width)]
        pen.polygon([(x + r * math.cos(angle + a), y + r * math.sin(angle + a)) for r, a in spread], fill=fill)


def _apple(pen: Pen) -> None:
    _ball(pen, 128, 142, 88, (140, 8, 18), (250, 90, 80))
    pen.ellipse((100, 44, 156, 70), fill=(120, 10, 16))
    pen.line([(128, 62), (138, 24)], fill=(84, 52, 20), width=8)
    pen.ellipse((138, 22, 190, 46), fill=(70, 140, 40))


def _orange(pen: Pen) -> None:
    _ball(pen, 128, 130, 96, (205, 92, 0), (255, 190, 70))
    pen.ellipse((118, 44, 138, 56), fill=(90, 120, 40))


def _sunflower(pen: Pen) -> None:
    _sky(pen, (60, 130, 210), (150, 200, 240))
    _sky(pen, (60, 110, 40), (30, 70, 20), 200)
    pen.rectangle((120, 150, 136, 256), fill=(60, 120, 40))
    _petals(pen, 128, 116, 18, 30, 108, 0.16, (250, 190, 10))
    _petals(pen, 128, 116, 17, 30, 92, 0.14, (255, 214, 40))
    _ball(pen, 128, 116, 44, (60, 34, 12), (110, 66, 24))


def _sea(pen: Pen) -> None:
    _sky(pen, (120, 170, 225), (215, 230, 242), 0, 110)
    _sky(pen, (60, 120, 170), (10, 56, 104), 110)
    for row in range(122, 256, 14):
        start = (row * 37) % 90
        pen.line([(start, row), (start + 90 + row // 3, row + 3)], fill=(150, 190, 215), width=2 + row // 90)


def _plain(pen: Pen) -> None:
    _sky(pen, (80, 145, 225), (200, 222, 240), 0, 130)
    _sky(pen, (150, 170, 80), (84, 124, 34), 130)


def _mountain(pen: Pen) -> None:
    _sky(pen, (70, 130, 205), (190, 215, 238), 0, 200)
    pen.polygon([(-20, 220), (70, 90), (130, 170), (180, 60), (290, 220)], fill=(92, 96, 112))
    pen.polygon([(180, 60), (150, 112), (176, 100), (190, 118), (210, 102)], fill=(244, 246, 250))
    pen.polygon([(70, 90), (46, 126), (70, 116), (92, 122)], fill=(238, 241, 247))
    _sky(pen, (58, 92, 52), (34, 62, 30), 208)


def _road(pen: Pen) -> None:
    _sky(pen, (110, 165, 225), (215, 228, 240), 0, 110)
    _sky(pen, (120, 140, 70), (90, 112, 46), 110)
    pen.polygon([(122, 110), (134, 110), (240, 256), (16, 256)], fill=(92, 92, 96))
    for near, far in ((256, 214), (196, 172), (160, 146), (138, 130)):
        half = [(row - 110) / 30 + 0.5 for row in (near, far)]
        pen.polygon([(128 - half[1], far), (128 + half[1], far), (128 + half[0], near), (128 - half[0], near)], "white")


def _skyscraper(pen: Pen) -> None:
    _sky(pen, (70, 140, 220), (200, 225, 245))
    pen.polygon([(92, 36), (128, 12), (164, 36), (164, 256), (92, 256)], fill=(110, 124, 146))
    for row in range(48, 256, 14):
        for column in range(98, 160, 12):
            pen.rectangle(
                (column, row, column + 7, row + 8), fill=(200, 220, 238) if (row + column) % 5 else (52, 66, 92)
            )
    pen.rectangle((20, 150, 80, 256), fill=(150, 136, 124))
    pen.rectangle((176, 120, 240, 256), fill=(128, 120, 122))


def _plate(pen: Pen) -> None:
    pen.rectangle((0, 0, SIZE, SIZE), fill=(112, 74, 46))
    pen.ellipse((22, 26, 236, 240), fill=(60, 40, 26))
    pen.ellipse((18, 18, 232, 232), fill=(238, 238, 242))
    pen.ellipse((58, 58, 192, 192), fill=(206, 208, 216))
    pen.ellipse((62, 62, 192, 192), fill=(248, 248, 250))


def _clock(pen: Pen) -> None:
    pen.ellipse((20, 20, 236, 236), fill=(40, 42, 48))
    pen.ellipse((36, 36, 220, 220), fill=(246, 244, 236))
    for hour in range(12):
        x, y = math.sin(math.pi * hour / 6), -math.cos(math.pi * hour / 6)
        pen.line([(128 + 74 * x, 128 + 74 * y), (128 + 86 * x, 128 + 86 * y)], fill=(30, 30, 34), width=7)
    pen.line([(128, 128), (84, 102)], fill=(24, 24, 28), width=10)
    pen.line([(128, 128), (176, 84)], fill=(24, 24, 28), width=7)


DRAWINGS: Final[dict[str, Callable[[Pen], None]]] = {
    "apple": _apple,
    "orange": _orange,
    "sunflower": _sunflower,
    "sea": _sea,
    "mountain": _mountain,
    "road": _road,
    "skyscraper": _skyscraper,
    "plate": _plate,
    "clock": _clock,
    "plain": _plain,
}
"""Drawings by class, offered for CIFAR-100 networks; the package ships no photographs."""
