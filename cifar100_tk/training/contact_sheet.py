"""A contact sheet: the first batch of a run as the network sees it, to check the augmentation by eye."""

from __future__ import annotations

import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont
import torch

from cifar100_tk.augment import Normalize
from cifar100_tk.training.loader import Batch

SCALE = 4
COLUMNS = 8
TILE = 32 * SCALE
CAPTION = 34
MARGIN = 8


def contact_sheet(batch: Batch, normalize: Normalize, class_names: tuple[str, ...], most: int = 48) -> PIL.Image.Image:
    """Draw the first images of a batch, 128 pixels wide, each with its classes and their weights in the target.

    normalize: is inverted to show the original colours; a Cutout hole shows as the mean.
    """
    count = min(most, len(batch.images))
    scale, shift = normalize.factors(torch.device("cpu"))
    images = ((batch.images[:count].float().cpu() + shift) / scale).round().clamp(0, 255).byte()
    rows = -(-count // COLUMNS)
    size = (MARGIN + COLUMNS * (TILE + MARGIN), MARGIN + rows * (TILE + CAPTION + MARGIN))
    sheet = PIL.Image.new("RGB", size, "white")
    pen, font = PIL.ImageDraw.Draw(sheet), PIL.ImageFont.load_default(size=12)
    for place, (image, target) in enumerate(zip(images, batch.targets[:count].float().cpu(), strict=True)):
        left = MARGIN + place % COLUMNS * (TILE + MARGIN)
        top = MARGIN + place // COLUMNS * (TILE + CAPTION + MARGIN)
        pixels = np.ascontiguousarray(image.permute(1, 2, 0).numpy())
        sheet.paste(PIL.Image.fromarray(pixels).resize((TILE, TILE), PIL.Image.Resampling.NEAREST), (left, top))
        for line, text in enumerate(_captions(target, class_names)):
            pen.text((left, top + TILE + 2 + 15 * line), _fitted(text, pen, font), fill="black", font=font)
    return sheet


def _captions(target: torch.Tensor, class_names: tuple[str, ...]) -> list[str]:
    """Return a line for each class whose target weight is above that of label smoothing, at most two."""
    weights, classes = target.topk(2)
    floor = target.min().item() + 0.005
    found = zip(weights.tolist(), classes.tolist(), strict=True)
    return [f"{weight:.2f} {class_names[number]}" for weight, number in found if weight > floor]


def _fitted(text: str, pen: PIL.ImageDraw.ImageDraw, font: PIL.ImageFont.FreeTypeFont | PIL.ImageFont.ImageFont) -> str:
    """Return the text, truncated with an ellipsis if it is wider than a tile."""
    if pen.textlength(text, font=font) <= TILE:
        return text
    while pen.textlength(f"{text}…", font=font) > TILE:
        text = text[:-1]
    return f"{text}…"
