"""Batched tensor programs that give Pillow's bytes: gathers in its fixed point, 256-entry tables, blends, resizing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, Int32, UInt8
from numpy.typing import NDArray
from torch import Tensor

from cifar100_tk.augment.base import SIDE
from cifar100_tk.tensors import Pictures

Tables = UInt8[Tensor, "batch channels 256"]
"""What each pixel value becomes: (B, 1 or 3, 256) uint8, one table a picture, or one a picture and channel."""

Grey = UInt8[Tensor, "batch 1 32 32"]
"""Brightness: (B, 1, 32, 32) uint8."""

Factors = Float32[Tensor, " batch"]
"""One number a picture: (B,) float32."""

_PIXELS = SIDE * SIDE
_CPU_CHUNK = 128  # pictures whose int16 working copies (0.8 MB each) stay in a core's cache


def to_device(array: NDArray[Any], device: torch.device) -> Tensor:
    """Send a small control array to where the pictures are, without waiting for the device."""
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def chunks(count: int, device: torch.device) -> Iterator[slice]:
    """Split a batch where small working sets are quicker (CPU caches) and leave it whole where few launches are."""
    step = _CPU_CHUNK if device.type == "cpu" else max(count, 1)
    for start in range(0, count, step):
        yield slice(start, min(start + step, count))


def change_rows(pictures: Pictures, chosen: NDArray[np.bool_], change: Callable[[Pictures], Pictures]) -> Pictures:
    """Change the chosen pictures only. chosen: (B,) bool, on the host. Returns a new batch."""
    rows = np.flatnonzero(chosen)
    changed = pictures.clone(memory_format=torch.contiguous_format)
    if len(rows):
        on_device = to_device(rows, pictures.device)
        put_rows(changed, on_device, change(pictures.index_select(0, on_device)))
    return changed


def put_rows(batch: Tensor, rows: Tensor, changed: Tensor) -> None:
    """Write some pictures back, in place. batch: (B, ...), contiguous. rows: (n,) int64. changed: (n, ...)."""
    # Eight bytes at a time: on a CPU, index_copy_ goes element by element.
    words = batch.view(len(batch), -1).view(torch.int64)
    words.index_copy_(0, rows, changed.contiguous().view(len(rows), -1).view(torch.int64))


# --- Moving pixels.


def gather_pixels(pictures: Pictures, x: Int32[Tensor, "batch _ 32"], y: Int32[Tensor, "batch 32 _"]) -> Pictures:
    """Take each output pixel (row, column) from column x, row y of its picture; black where that is outside.

    x, y: int32, (B, 32, 32), or with 1 for the axis on which they do not depend.
    """
    inside = ((x | y) & -SIDE) == 0  # a negative number has its high bits set
    source = (y * SIDE + x).bitwise_and_(_PIXELS - 1).view(-1, 1, _PIXELS).long().expand(-1, 3, -1)
    return pictures.flatten(2).gather(2, source).view(-1, 3, SIDE, SIDE) * inside[:, None]


def affine_nearest(pictures: Pictures, matrices: NDArray[np.float64]) -> Pictures:
    """Map pictures by Pillow's AFFINE transform with nearest pixels and black outside, in its 16.16 fixed point.

    matrices: (B, 6) float64, on the host: output pixel (x, y) comes from (a x + b y + c, d x + e y + f).
    """
    a, b, c, d, e, f = matrices.T
    starts = np.stack([c + 0.5 * a + 0.5 * b, a, b, f + 0.5 * d + 0.5 * e, d, e])
    fixed = np.floor(starts * 65536 + 0.5).astype(np.int32)
    x0, xx, xy, y0, yx, yy = to_device(fixed, pictures.device)[:, :, None, None]
    steps = torch.arange(SIDE, dtype=torch.int32, device=pictures.device)
    column, row = steps[None, None, :], steps[None, :, None]
    return gather_pixels(pictures, (x0 + xx * column + xy * row) >> 16, (y0 + yx * column + yy * row) >> 16)


def resize_boxes(pictures: Pictures, boxes: NDArray[np.int64]) -> Pictures:
    """Cut each picture's box and resize it to 32x32 as Pillow's BILINEAR does: along x, then along y, uint8 between.

    boxes: (B, 4) int64, on the host: left, top, width, height. Enlarging takes two neighbours with weights that are
    whole 64ths, so int16 holds the sums, and Pillow's 22-bit fixed point rounds to the same bytes.
    """
    resized = torch.empty_like(pictures)
    left, top, width, height = to_device(boxes, pictures.device).T
    for part in chunks(len(pictures), pictures.device):
        by_column = pictures[part].permute(0, 3, 1, 2).contiguous()  # (b, x, channel, y): a column is 96 bytes in a row
        wide = _resize_lines(by_column, left[part], width[part])
        by_row = wide.permute(0, 3, 2, 1).contiguous()  # (b, y, channel, x)
        resized[part] = _resize_lines(by_row, top[part], height[part]).permute(0, 2, 1, 3)
    return resized


def _resize_lines(lines: Tensor, start: Tensor, length: Tensor) -> Tensor:
    """Resize the second axis. lines: (b, 32, 3, 32) uint8, contiguous. start, length: (b,) int64. Returns the same."""
    tables = _taps(lines.device)
    first, second, weight = tables.index_select(0, length).unbind(1)  # each (b, 32)
    base = (torch.arange(len(lines), device=lines.device) * SIDE + start)[:, None]
    flat = lines.view(-1, 3 * SIDE)
    low = flat.index_select(0, (base + first).view(-1)).to(torch.int16)
    mixed = flat.index_select(0, (base + second).view(-1)).to(torch.int16)
    # low * (64 - weight) + high * weight, rounded half up, in place
    mixed.sub_(low).mul_(weight.reshape(-1, 1).to(torch.int16)).add_(low.mul_(64)).add_(32).bitwise_right_shift_(6)
    return mixed.to(torch.uint8).view_as(lines)


@lru_cache(maxsize=8)
def _taps(device: torch.device) -> Tensor:
    """Tabulate, for every length, which two pixels make each output pixel and the second's weight in 64ths.

    Output pixel o of a line of s pixels lies at (o + 1/2) s / 32; the two pixels whose centres lie around it make it.
    Returns (33, 3, 32) int64: for length 0..32: the first pixel, the second, the weight.
    """
    length, output = np.arange(SIDE + 1)[:, None], np.arange(SIDE)
    place = (2 * output + 1) * length - SIDE  # of the centre, from the first pixel's centre, in 64ths
    first = np.clip(place // 64, 0, None)
    weight = np.clip(place - 64 * first, 0, None)
    last = np.maximum(length - 1, 0)
    first, second = np.minimum(first, last), np.minimum(first + 1, last)
    return torch.from_numpy(np.stack([first, second, weight], axis=1)).to(device)


# --- Changing values.


def look_up(pictures: Pictures, tables: Tables) -> Pictures:
    """Replace every value v of a channel by entry v of its table."""
    changed = torch.empty_like(pictures)
    for part in chunks(len(pictures), pictures.device):
        values = pictures[part].flatten(2).long()
        table = tables[part].expand(-1, 3, -1)
        changed[part] = table.gather(2, values).view(-1, 3, SIDE, SIDE)
    return changed


def blend(plain: Tensor, pictures: Tensor, factors: Factors) -> Tensor:
    """Move from plain (factor 0) to the pictures (factor 1) and beyond: Pillow's float32 blend, clipped and truncated.

    plain, pictures: uint8, shapes that broadcast. Returns uint8.
    """
    start = plain.float()
    factor = factors.view(-1, *[1] * (pictures.ndim - 1))
    return ((pictures.float() - start) * factor).add_(start).clamp_(0, 255).to(torch.uint8)


def grey(pictures: Pictures) -> Grey:
    """Weigh the channels as Pillow's convert("L") does: ITU-R 601-2 luma in 16-bit fixed point."""
    red, green, blue = pictures.int().unbind(1)
    luma = red.mul_(19595).add_(green.mul_(38470)).add_(blue.mul_(7471)).add_(32768).bitwise_right_shift_(16)
    return luma.to(torch.uint8)[:, None]


def smooth(pictures: Pictures) -> Pictures:
    """Filter with (1 1 1, 1 5 1, 1 1 1) / 13 as Pillow's SMOOTH does: rounded, the outermost pixels copied."""
    smoothed = pictures.clone()
    wide = pictures.to(torch.int16)
    rows = wide[:, :, :-2] + wide[:, :, 1:-1] + wide[:, :, 2:]
    total = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:] + 4 * wide[:, :, 1:-1, 1:-1]
    # A 13th is never within 1/26 of a half, so float32 rounds as exact arithmetic would.
    smoothed[:, :, 1:-1, 1:-1] = total.float().mul_(1 / 13).add_(0.5).to(torch.uint8)
    return smoothed


def values(device: torch.device) -> UInt8[Tensor, "1 1 256"]:
    """List every value that a pixel can have: the table that changes nothing."""
    return torch.arange(256, dtype=torch.uint8, device=device).view(1, 1, 256)


def stretch_tables(pictures: Pictures) -> Tables:
    """Make the tables of ImageOps.autocontrast: each channel's darkest value to 0 and its brightest to 255.

    In double precision and truncated, as Pillow does; a flat channel stays as it is.
    """
    low, high = (side.double() for side in torch.aminmax(pictures.flatten(2), dim=2, keepdim=True))
    scale = torch.full_like(high, 255.0) / (high - low)  # `255.0 / tensor` would round twice: reciprocal, then product
    value = values(pictures.device)
    stretched = (value * scale + -low * scale).clamp_(0, 255)
    return torch.where(high > low, stretched, value.double()).to(torch.uint8)


def equalize_tables(pictures: Pictures) -> Tables:
    """Make the tables of ImageOps.equalize: each channel's values spread by rank."""
    counts = torch.zeros(len(pictures), 3, 256, dtype=torch.int32, device=pictures.device)
    one = torch.ones((), dtype=torch.int32, device=pictures.device)
    counts.scatter_add_(2, pictures.flatten(2).long(), one.expand(len(pictures), 3, _PIXELS))
    brightest = pictures.flatten(2).amax(2, keepdim=True).long()
    step = (_PIXELS - counts.gather(2, brightest)) // 255
    below = counts.cumsum(2, dtype=torch.int32) - counts
    spread = (below + step // 2) // step.clamp(min=1)
    return torch.where(step > 0, spread.clamp_(max=255).to(torch.uint8), values(pictures.device))


def contrast_tables(pictures: Pictures, factors: Factors) -> Tables:
    """Make the tables of ImageEnhance.Contrast: values blended with the picture's mean grey, a whole value."""
    total = grey(pictures).flatten(1).sum(1, dtype=torch.int32)
    mean = (total * 2 + _PIXELS) // (2 * _PIXELS)
    return blend(mean.to(torch.uint8).view(-1, 1, 1), values(pictures.device), factors)
