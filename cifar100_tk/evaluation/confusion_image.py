"""Confusion matrix as an image, with the classes of each super-class next to each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, final

import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont
from numpy.typing import NDArray

from cifar100_tk.data.labels import display_name
from cifar100_tk.storage.json_files import Json

Counts = NDArray[np.int64]
Shares = NDArray[np.float64]

RIGHT: Final = (47, 125, 225)
WRONG: Final = (240, 112, 30)
"""RGB of correct and of wrong predictions; their transparency suits light and dark backgrounds."""
SIDE: Final = 800
"""Height and width of the matrix in pixels."""
LABELS: Final = 250
TOP: Final = 74
MARGIN: Final = 16


@final
@dataclass(frozen=True)
class Confusion:
    """The confusion matrix of an evaluation, in the order in which it is drawn."""

    counts: Counts
    """(C, C): images by true class (rows) and predicted class."""
    names: tuple[str, ...]
    """Class names in the same order, for display."""
    blocks: tuple[tuple[str, int, int], ...]
    """Each super-class: name, first row, number of rows; without super-classes each class is its own."""

    @classmethod
    def of(cls, result: Json) -> Confusion:
        """Return the matrix of an evaluation. Super-classes are in alphabetical order, classes keep theirs within."""
        names = [_in_a_line(row["name"]) for row in result["classes"]]
        groups = [row["superclass"] for row in result["classes"]]
        counts = np.array(result["confusion"], dtype=np.int64)
        if None in groups:
            return cls(counts, tuple(names), tuple((name, row, 1) for row, name in enumerate(names)))
        order = sorted(range(len(groups)), key=lambda number: (groups[number], number))
        grouped = [groups[number] for number in order]
        blocks = tuple((_in_a_line(name), grouped.index(name), grouped.count(name)) for name in dict.fromkeys(grouped))
        return cls(counts[np.ix_(order, order)], tuple(names[number] for number in order), blocks)

    @property
    def shares(self) -> Shares:
        """(C, C): counts as fractions of the row's images; 0 for a class without images."""
        shares: Shares = self.counts / np.maximum(self.counts.sum(axis=1, keepdims=True), 1)
        return shares

    @property
    def worst(self) -> float:
        """The largest fraction of a class that was mistaken for one other class."""
        return float((self.shares * (1 - np.eye(len(self.names)))).max())

    def cells(self) -> PIL.Image.Image:
        """Return the matrix alone, one pixel a cell: RGBA, the more transparent the rarer."""
        hits = np.eye(len(self.names), dtype=bool)
        image = np.empty((*self.shares.shape, 4))
        image[..., :3] = np.where(hits[..., None], RIGHT, WRONG)
        image[..., 3] = 255 * np.where(hits, self.shares, strength(self.shares / (self.worst or 1.0)))
        return PIL.Image.fromarray(image.round().astype(np.uint8))


def strength(part: Shares) -> Shares:
    """Return the opacity of a wrong prediction. part: its fraction of the most frequent one.

    The square root makes rare mistakes visible; the floor separates them from none.
    """
    opacity: Shares = np.where(part > 0, 0.12 + 0.88 * np.sqrt(part), 0.0)
    return opacity


def draw(confusion: Confusion) -> PIL.Image.Image:
    """Draw the matrix on white: super-classes named on the left and numbered on top, with a key of the colours."""
    scale = max(1, SIDE // len(confusion.names))
    side = scale * len(confusion.names)
    image = PIL.Image.new("RGB", (LABELS + side + MARGIN, TOP + side + MARGIN), "white")
    cells = confusion.cells().resize((side, side), PIL.Image.Resampling.NEAREST)
    image.paste(cells, (LABELS, TOP), cells)
    pen, font = PIL.ImageDraw.Draw(image), PIL.ImageFont.load_default(size=15)
    for number, (name, start, size) in enumerate(confusion.blocks, start=1):
        near, far, middle = scale * start, scale * (start + size), scale * (start + size / 2)
        pen.rectangle((LABELS + near, TOP + near, LABELS + far, TOP + far), outline="#5a626c")
        while pen.textlength(label := f"{name}  {number}", font=font) > LABELS - MARGIN:
            name = f"{name.removesuffix('…')[:-1]}…"
        pen.text((LABELS - 8, TOP + middle), label, "#1b1f24", font, anchor="rm")
        pen.text((LABELS + middle, TOP - 6), str(number), "#1b1f24", font, anchor="ms")
    pen.rectangle((LABELS, TOP, LABELS + side, TOP + side), outline="#d9dde2")
    pen.text((LABELS - 8, TOP - 6), "true \\ predicted", "#5a626c", font, anchor="rs")
    for left, colour, text in (
        (LABELS, RIGHT, "right"),
        (LABELS + side // 2, WRONG, f"mistaken, up to {100 * confusion.worst:.3g} % of a class"),
    ):
        pen.rectangle((left, 16, left + 14, 30), fill=colour)
        pen.text((left + 22, 23), text, "#1b1f24", font, anchor="lm")
    return image


def _in_a_line(name: str) -> str:
    return " ".join(display_name(name).split())
