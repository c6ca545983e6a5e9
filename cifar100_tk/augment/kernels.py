"""Batched tensor programs that reproduce Pillow's bytes: fixed-point gathers, 256-entry tables, blends, resizing."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float32, Float64, Int32, UInt8
from numpy.typing import NDArray
from torch import Tensor

from cifar100_tk.augment.base import SIDE
from cifar100_tk.tensors import RawImages

Tables = UInt8[Tensor, "batch channels 256"]
"""Lookup tables of pixel values: (B, 1 or 3, 256) uint8, one table per image, or per image and channel."""

Factors = Float32[Tensor, " batch"]
"""One number per image: (B,) float32."""

_PIXELS = SIDE * SIDE
_CPU_CHUNK = 128  # images whose int16 working copies (0.8 MB each) stay in a core's cache


def chunks(count: int, device: torch.device) -> Iterator[slice]:
    """Split a batch where small working sets are faster (CPU caches); keep it whole where fewer launches are (GPUs)."""
    step = _CPU_CHUNK if device.type == "cpu" else max(count, 1)
    for start in range(0, count, step):
        yield slice(start, min(start + step, count))


def put_rows(batch: Tensor, rows: Tensor, changed: Tensor) -> None:
    """Write some images back in place. batch: (B, ...), contiguous. rows: (n,) int64. changed: (n, ...)."""
    # Eight bytes at a time: on a CPU, index_copy_ copies element by element.
    words = batch.view(len(batch), -1).view(torch.int64)
    words.index_copy_(0, rows, changed.contiguous().view(len(rows), -1).view(torch.int64))


# --- Moving pixels.


def gather_pixels(images: RawImages, x: Int32[Tensor, "batch _ 32"], y: Int32[Tensor, "batch 32 _"]) -> RawImages:
    """Take each output pixel (row, column) from column x, row y of its image; black outside the image.

    x, y: int32, (B, 32, 32), or 1 on an axis that they do not depend on.
    """
    inside = ((x | y) & -SIDE) == 0  # a negative number has its high bits set
    source = (y * SIDE + x).bitwise_and_(_PIXELS - 1).view(-1, 1, _PIXELS).long().expand(-1, 3, -1)
    return images.flatten(2).gather(2, source).view(-1, 3, SIDE, SIDE) * inside[:, None]


def affine_source(matrix: tuple[float, ...]) -> NDArray[np.int16]:
    """Tabulate where Pillow's AFFINE transform takes each pixel from: nearest, in its 16.16 fixed point.

    matrix: a, b, c, d, e, f: output pixel (x, y) comes from (a x + b y + c, d x + e y + f).
    Returns (1024,), row * 32 + column of the source pixel, or -1 outside the image.
    """
    a, b, c, d, e, f = matrix
    starts = np.array([c + 0.5 * a + 0.5 * b, a, b, f + 0.5 * d + 0.5 * e, d, e])
    x0, xx, xy, y0, yx, yy = np.floor(starts * 65536 + 0.5).astype(np.int32)
    column, row = np.arange(SIDE, dtype=np.int32), np.arange(SIDE, dtype=np.int32)[:, None]
    x, y = (x0 + xx * column + xy * row) >> 16, (y0 + yx * column + yy * row) >> 16
    inside = (x >= 0) & (x < SIDE) & (y >= 0) & (y < SIDE)
    return np.where(inside, y * SIDE + x, -1).reshape(-1).astype(np.int16)


def move_pixels(images: RawImages, source: Tensor, which: Tensor) -> RawImages:
    """Take each pixel from the source that a table gives, black outside the image.

    source: (tables, 1024) int16, as `affine_source` returns it. which: (B,) int64, the table of each image.
    """
    places, inside = source.clamp(min=0).long(), (source >= 0).to(torch.uint8)
    moved = images.flatten(2).gather(2, places.index_select(0, which)[:, None].expand(-1, 3, -1))
    return moved.mul_(inside.index_select(0, which)[:, None]).view_as(images)


def resize_boxes(images: RawImages, column: Tensor, row: Tensor) -> RawImages:
    """Cut each image's box and resize it to 32x32 as Pillow's BILINEAR does: along x, then along y, uint8 between.

    column, row: (B,) int64, left and width, top and height, each pair as `line_code` writes it. Upscaling takes two
    neighbors with weights in whole 64ths, so int16 holds the sums, and Pillow's 22-bit fixed point rounds to the
    same bytes.
    """
    resized = torch.empty_like(images)
    for part in chunks(len(images), images.device):
        by_column = images[part].permute(0, 3, 1, 2).contiguous()  # (b, x, channel, y): a column is 96 bytes in a row
        wide = _resize_lines(by_column, column[part])
        by_row = wide.permute(0, 3, 2, 1).contiguous()  # (b, y, channel, x)
        resized[part] = _resize_lines(by_row, row[part]).permute(0, 2, 1, 3)
    return resized


def line_code(start: NDArray[np.int64], length: NDArray[np.int64]) -> NDArray[np.int64]:
    """Encode a start in 0..31 and a length in 1..32 as one number."""
    return start * SIDE + length - 1


def _resize_lines(lines: Tensor, code: Tensor) -> Tensor:
    """Resize the second axis. lines: (b, 32, 3, 32) uint8, contiguous. code: (b,) int64. Returns the same."""
    places, weights = _taps(lines.device)
    first_line = torch.arange(0, len(lines) * SIDE, SIDE, device=lines.device).view(-1, 1)
    both = places.index_select(0, code).add_(first_line)
    pixels = lines.view(-1, 3 * SIDE).index_select(0, both.view(-1)).view(-1, 2, SIDE, 3 * SIDE).to(torch.int16)
    low, high = pixels.unbind(1)
    weight = weights.index_select(0, code)[:, :, None]
    # low * (64 - weight) + high * weight, rounded half up, in place
    high.sub_(low).mul_(weight).add_(low, alpha=64).add_(32).bitwise_right_shift_(6)
    return high.to(torch.uint8).view_as(lines)


@lru_cache(maxsize=8)
def _taps(device: torch.device) -> tuple[Tensor, Tensor]:
    """Tabulate, for every start and length, the two source pixels of each output pixel and the second's weight in 64ths.

    Output pixel o of a line of s pixels lies at (o + 1/2) s / 32 and interpolates the pixels on either side of it.
    Returns, one row per `line_code`, the first and the second pixels, (1024, 64) int64, and the weights,
    (1024, 32) int16.
    """
    start, length, output = np.ogrid[:SIDE, 1 : SIDE + 1, :SIDE]
    place = (2 * output + 1) * length - SIDE  # offset of the center from the first pixel's center, in 64ths
    first = np.clip(place // 64, 0, None)
    weight = np.clip(place - 64 * first, 0, None)
    first, second = np.minimum(first, length - 1), np.minimum(first + 1, length - 1)
    places = np.concatenate([start + first, start + second], axis=2).reshape(_PIXELS, 2 * SIDE)
    weights = np.broadcast_to(weight, (SIDE, SIDE, SIDE)).reshape(_PIXELS, SIDE).astype(np.int16)
    return torch.from_numpy(places).to(device), torch.from_numpy(weights).to(device)


# --- Changing values.


def look_up(images: RawImages, tables: Tables) -> RawImages:
    """Replace every value v of a channel by entry v of its table."""
    changed = torch.empty_like(images)
    for part in chunks(len(images), images.device):
        values = images[part].flatten(2).long()
        table = tables[part].expand(-1, 3, -1)
        changed[part] = table.gather(2, values).view(-1, 3, SIDE, SIDE)
    return changed


def blend(plain: Tensor, images: Tensor, factors: Factors) -> Tensor:
    """Move from plain (factor 0) to the images (factor 1) and beyond: Pillow's float32 blend, clipped and truncated.

    plain, images: integers in 0..255; plain broadcasts to the images. Returns uint8.
    """
    factor = factors.view(-1, *[1] * (images.ndim - 1))
    return images.float().sub_(plain).mul_(factor).add_(plain).clamp_(0, 255).to(torch.uint8)


def grey(images: RawImages) -> Int32[Tensor, "batch 1 32 32"]:
    """Convert to grayscale as Pillow's convert("L") does: ITU-R 601-2 luma in 16-bit fixed point, in 0..255."""
    red, green, blue = images.int().unbind(1)
    luma = red.mul_(19595).add_(green, alpha=38470).add_(blue, alpha=7471).add_(32768).bitwise_right_shift_(16)
    return luma[:, None]


def mean_grey(images: RawImages) -> Int32[Tensor, "batch 1 1 1"]:
    """Return the mean brightness, rounded half up, which ImageEnhance.Contrast blends with."""
    total = grey(images).sum((2, 3), keepdim=True, dtype=torch.int32)
    return total.add_(_PIXELS // 2).bitwise_right_shift_(10)


def smooth(images: RawImages) -> RawImages:
    """Filter with (1 1 1, 1 5 1, 1 1 1) / 13 as Pillow's SMOOTH does: rounded, the outermost pixels copied."""
    smoothed = images.clone()
    wide = images.to(torch.int16)
    rows = wide[:, :, :-2] + wide[:, :, 1:-1]
    rows += wide[:, :, 2:]
    total = rows[..., :-2] + rows[..., 1:-1]
    total.add_(rows[..., 2:]).add_(wide[:, :, 1:-1, 1:-1], alpha=4)
    # A 13th is never within 1/26 of a half, so float32 rounds as exact arithmetic would.
    smoothed[:, :, 1:-1, 1:-1] = total.float().mul_(1 / 13).add_(0.5)
    return smoothed


def stretch_tables(images: RawImages) -> Tables:
    """Make the tables of ImageOps.autocontrast: each channel's darkest value to 0 and its brightest to 255.

    In double precision and truncated, as Pillow does; a constant channel is left unchanged.
    """
    low, high = torch.aminmax(images.flatten(2), dim=2, keepdim=True)
    # `255.0 / tensor` would round twice: reciprocal, then product.
    scale = _constants(images.device).brightest / high.double().sub_(low)
    value = _constants(images.device).values
    stretched = (value * scale).sub_(low * scale).clamp_(0, 255).to(torch.uint8)
    return torch.where(high > low, stretched, value)


def equalize_tables(images: RawImages) -> Tables:
    """Make the tables of ImageOps.equalize, which spread each channel's values by rank."""
    constants, flat = _constants(images.device), images.flatten(2)
    counts = torch.zeros(len(images), 3, 256, dtype=torch.int32, device=images.device)
    counts.scatter_add_(2, flat.long(), constants.one.expand(len(images), 3, _PIXELS))
    below = counts.cumsum(2, dtype=torch.int32).sub_(counts)
    # The brightest value's own pixels do not count.
    step = below.gather(2, flat.amax(2, keepdim=True).long()).floor_divide_(255)
    spread = below.add_(step >> 1).floor_divide_(step.clamp(min=1)).clamp_(max=255).to(torch.uint8)
    return torch.where(step > 0, spread, constants.values)


class _Constants(NamedTuple):
    values: UInt8[Tensor, "1 1 256"]
    """The identity table: every value that a pixel can have."""
    brightest: Float64[Tensor, ""]
    one: Int32[Tensor, ""]


@lru_cache(maxsize=8)
def _constants(device: torch.device) -> _Constants:
    """Send a constant that every batch needs to a device, once."""
    values = torch.arange(256, dtype=torch.uint8).view(1, 1, 256).to(device)
    brightest, one = torch.tensor(255.0, dtype=torch.float64), torch.tensor(1, dtype=torch.int32)
    return _Constants(values, brightest.to(device), one.to(device))
