"""A contact sheet: enlarged 32x32 images in rows, each with captions below it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont

SCALE: Final = 4
COLUMNS: Final = 8
TILE: Final = 32 * SCALE
CAPTION: Final = 34
MARGIN: Final = 8


def draw(
    images: Sequence[PIL.Image.Image], captions: Sequence[Sequence[str]], *, columns: int = COLUMNS, scale: int = SCALE
) -> PIL.Image.Image:
    """Draw 32x32 images, each with up to two lines below it; a line that is too long ends in an ellipsis.

    scale: the width and height of an image's pixel.
    """
    tile, rows = 32 * scale, -(-len(images) // columns)
    size = (MARGIN + min(columns, len(images)) * (tile + MARGIN), MARGIN + rows * (tile + CAPTION + MARGIN))
    sheet = PIL.Image.new("RGB", size, "white")
    pen, font = PIL.ImageDraw.Draw(sheet), PIL.ImageFont.load_default(size=12)
    for place, (image, lines) in enumerate(zip(images, captions, strict=True)):
        left = MARGIN + place % columns * (tile + MARGIN)
        top = MARGIN + place // columns * (tile + CAPTION + MARGIN)
        sheet.paste(image.resize((tile, tile), PIL.Image.Resampling.NEAREST), (left, top))
        for number, text in enumerate(lines):
            while pen.textlength(text, font=font) > tile:
                text = f"{text.removesuffix('…')[:-1]}…"
            pen.text((left, top + tile + 2 + 15 * number), text, fill="black", font=font)
    return sheet
