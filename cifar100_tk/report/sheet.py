"""Contact sheet of mistakes: enlarged images with predicted and true class."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Final

import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont

TILE: Final = 160
COLUMNS: Final = 6
CAPTION: Final = 40
MARGIN: Final = 12


def mistakes_sheet(images: Sequence[PIL.Image.Image], captions: Sequence[tuple[str, str]]) -> bytes:
    """Draw 32x32 images enlarged five times, each with a caption of two lines. Returns a PNG."""
    rows = -(-len(images) // COLUMNS)
    columns = min(COLUMNS, len(images))
    size = (MARGIN + columns * (TILE + MARGIN), MARGIN + rows * (TILE + CAPTION + MARGIN))
    sheet = PIL.Image.new("RGB", size, "white")
    pen, font = PIL.ImageDraw.Draw(sheet), PIL.ImageFont.load_default(size=14)
    for place, (image, lines) in enumerate(zip(images, captions, strict=True)):
        left = MARGIN + place % COLUMNS * (TILE + MARGIN)
        top = MARGIN + place // COLUMNS * (TILE + CAPTION + MARGIN)
        sheet.paste(image.resize((TILE, TILE), PIL.Image.Resampling.NEAREST), (left, top))
        for number, (line, ink) in enumerate(zip(lines, ("#1b1f24", "#5a626c"), strict=True)):
            text = line
            while pen.textlength(text, font=font) > TILE:
                text = f"{text.removesuffix('…')[:-1]}…"
            pen.text((left, top + TILE + 3 + 18 * number), text, fill=ink, font=font)
    buffer = io.BytesIO()
    # 256 colours take a quarter of the bytes and still look right.
    sheet.quantize(256).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
