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


def draw(images: Sequence[PIL.Image.Image], captions: Sequence[Sequence[str]]) -> PIL.Image.Image:
    """Draw 32x32 images, enlarged four times, each with up to two lines; a line that is too long ends in an ellipsis."""
    rows = -(-len(images) // COLUMNS)
    size = (MARGIN + min(COLUMNS, len(images)) * (TILE + MARGIN), MARGIN + rows * (TILE + CAPTION + MARGIN))
    sheet = PIL.Image.new("RGB", size, "white")
    pen, font = PIL.ImageDraw.Draw(sheet), PIL.ImageFont.load_default(size=12)
    for place, (image, lines) in enumerate(zip(images, captions, strict=True)):
        left = MARGIN + place % COLUMNS * (TILE + MARGIN)
        top = MARGIN + place // COLUMNS * (TILE + CAPTION + MARGIN)
        sheet.paste(image.resize((TILE, TILE), PIL.Image.Resampling.NEAREST), (left, top))
        for number, text in enumerate(lines):
            while pen.textlength(text, font=font) > TILE:
                text = f"{text.removesuffix('…')[:-1]}…"
            pen.text((left, top + TILE + 2 + 15 * number), text, fill="black", font=font)
    return sheet
