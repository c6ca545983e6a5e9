"""Built-in images: 20 silhouettes in 5 fillings, drawn from their row number alone, with nothing to download."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Final, final

import numpy as np
from numpy.typing import NDArray

from cifar100_tk import draws
from cifar100_tk.data.rows import NUM_FINE, HostImages, Names, Numbers, RawBatch, Source
from cifar100_tk.data.silhouettes import SILHOUETTES, distances
from cifar100_tk.data.waves import cosine, sine
from cifar100_tk.errors import ConfigError

# Increment it when any image changes: the cache and every result measured on the images depend on it.
VERSION: Final = 2
FILLINGS: Final = ("solid", "hollow", "striped", "checkered", "halved")
NAMES: Final = Names(
    fine=tuple(f"{filling}_{silhouette}" for silhouette in SILHOUETTES for filling in FILLINGS),
    coarse=tuple(SILHOUETTES),
)

Floats = NDArray[np.float32]

_SEED: Final = 100
# Small enough that a block's arrays stay in the processor's cache.
_BLOCK: Final = 200
_OUTLINE: Final = 2.2
"""Width of a hollow shape's line, pixels."""


@final
class Shapes100(Source):
    """One split of the built-in images. Row i is the same image for any number of rows."""

    builtin = True

    def __init__(self, split: str, num_rows: int) -> None:
        if num_rows < NUM_FINE:
            raise ConfigError(
                f"shapes100_rows asks for {num_rows} {split} rows; use at least {NUM_FINE}, one per class."
            )
        self.where = f"shapes100 ({split})"
        self._purpose = f"shapes100/{split}"
        self._num_rows = num_rows
        self._split = split

    def key(self) -> str:
        return f"shapes100-{VERSION}-{self._split}-{self._num_rows}"

    def num_rows(self) -> int:
        return self._num_rows

    def names(self) -> Names:
        return NAMES

    def blocks(self) -> Iterator[RawBatch]:
        for first in range(0, self._num_rows, _BLOCK):
            rows = np.arange(first, min(first + _BLOCK, self._num_rows))
            fine = _labels(self._purpose, rows)
            images = _draw(self._purpose, rows, fine)
            yield RawBatch(file=self.where, first=first, images=images, fine=fine, coarse=fine // len(FILLINGS))


def _labels(purpose: str, rows: Numbers) -> Numbers:
    """Label rows so that each hundred, starting at a multiple of 100, holds every class once. Returns (n,) int64."""
    hundreds = np.unique(rows // NUM_FINE)
    members = (hundreds[:, None] * NUM_FINE + np.arange(NUM_FINE)).reshape(-1)
    keys = draws.bits(_SEED, f"{purpose}/labels", 0, members, 1).reshape(len(hundreds), NUM_FINE)
    shuffled = np.argsort(keys, axis=1, kind="stable")
    return shuffled[np.searchsorted(hundreds, rows // NUM_FINE), rows % NUM_FINE].astype(np.int64)


def _draw(purpose: str, rows: Numbers, fine: Numbers) -> HostImages:
    """Draw images from their row numbers and classes. Returns (n, 3, 32, 32) uint8."""
    uniform = draws.uniform(_SEED, purpose, 0, rows, 40).astype(np.float32)
    place, colour, texture = uniform[:, 0:12], uniform[:, 12:22], uniform[:, 22:40]
    coverage, ink = _shape(fine // len(FILLINGS), fine % len(FILLINGS), place)
    background, first, second = _colours(colour)
    scene = background[:, :, None, None] + _texture(texture)
    paint = first[:, :, None, None] + ink[:, None] * (second - first)[:, :, None, None]
    scene += coverage[:, None] * (paint - scene)
    strength = 4 + 14 * colour[:, 9]
    scene = scene * 255 + _noise(purpose, rows) * strength[:, None, None, None]
    images: HostImages = np.clip(np.rint(scene), 0, 255).astype(np.uint8)
    return images


def _shape(silhouette: Numbers, filling: Numbers, u: Floats) -> tuple[Floats, Floats]:
    """Place the shapes and fill them.

    silhouette, filling: (n,). u: (n, 12) uniform. Returns (coverage, ink), both (n, 32, 32) in 0..1: where the
    shape hides the background, and where its second colour hides the first.
    """
    radius = 9 + 4 * u[:, 0]
    centre_x, centre_y = 15.5 + 8 * (u[:, 1] - 0.5), 15.5 + 8 * (u[:, 2] - 0.5)
    turn, stretch = 50 / 360 * (u[:, 3] - 0.5), 0.85 + 0.3 * u[:, 4]
    x, y = _turned(centre_x, centre_y, turn)
    x /= (radius * stretch)[:, None, None]
    y *= (stretch / radius)[:, None, None]
    edge = distances(silhouette, x, y) * radius[:, None, None]  # pixels to the edge, negative inside
    coverage = np.clip(0.5 - edge, 0, 1)

    ink = np.zeros_like(coverage)
    hollow = filling == FILLINGS.index("hollow")
    coverage[hollow] = np.clip(0.5 + _OUTLINE / 2 - np.abs(edge[hollow] + _OUTLINE / 2), 0, 1)

    # The pattern is rotated and shifted independently, so that none of its pixels depends on the shape.
    period = 4.5 + 2 * u[:, 5]
    p, q = _turned(centre_x, centre_y, 0.5 * u[:, 6])
    striped, checkered = filling == FILLINGS.index("striped"), filling == FILLINGS.index("checkered")
    p_waves, q_waves = p / period[:, None, None] + u[:, 7, None, None], q / period[:, None, None] + u[:, 8, None, None]
    ink[striped] = np.clip(0.5 + 1.5 * sine(p_waves[striped]), 0, 1)
    ink[checkered] = np.clip(0.5 + 2.5 * sine(p_waves[checkered]) * sine(q_waves[checkered]), 0, 1)
    halved = filling == FILLINGS.index("halved")
    ink[halved] = np.clip(0.5 + (p + 3 * (u[:, 9, None, None] - 0.5))[halved], 0, 1)
    return coverage.astype(np.float32), ink.astype(np.float32)


def _turned(centre_x: Floats, centre_y: Floats, turns: Floats) -> tuple[Floats, Floats]:
    """Return the rotated coordinates of every pixel about a center. All (n,). Returns x and y, (n, 32, 32), in pixels."""
    column = np.arange(32, dtype=np.float32)[None, None, :] - centre_x[:, None, None]
    row = np.arange(32, dtype=np.float32)[None, :, None] - centre_y[:, None, None]
    cos, sin = cosine(turns)[:, None, None], sine(turns)[:, None, None]
    return column * cos + row * sin, row * cos - column * sin


def _colours(u: Floats) -> tuple[Floats, Floats, Floats]:
    """Choose the background and two colors, a third of a turn apart in every channel: no color is tied to a class.

    u: (n, 10) uniform. Returns three (n, 3) arrays in 0..1.
    """
    background = u[:, 0:3]
    direction = np.where(u[:, 3:6] < 0.5, -1, 1).astype(np.float32)
    first = (background + direction * (1 / 3 + 0.2 * (u[:, 6:7] - 0.5))) % 1
    second = (background + direction * (2 / 3 + 0.2 * (u[:, 7:8] - 0.5))) % 1
    return background, first.astype(np.float32), second.astype(np.float32)


def _texture(u: Floats) -> Floats:
    """Draw two slow waves across the background, each in its own direction and tint. u: (n, 18). Returns (n, 3, 32, 32)."""
    axis = np.arange(32, dtype=np.float32)
    total = np.zeros((len(u), 3, 32, 32), np.float32)
    for part in (u[:, 0:9], u[:, 9:18]):
        along, across, phase = ((part[:, k] - 0.5)[:, None, None] for k in range(3))
        wave = sine(0.14 * (along * axis[None, None, :] + across * axis[None, :, None]) + phase)
        tint = 0.3 * (part[:, 3:6] - 0.5)
        total += tint[:, :, None, None] * wave[:, None]
    return total


def _noise(purpose: str, rows: Numbers) -> Floats:
    """Draw noise with mean 0 and standard deviation 1 (a sum of four bytes). Returns (n, 3, 32, 32) float32."""
    grain = _grain()
    start = draws.bits(_SEED, f"{purpose}/noise", 0, rows, 1).astype(np.int64) % (len(grain) - 3072)
    windows: Floats = grain[start + np.arange(3072)]
    return windows.reshape(-1, 3, 32, 32)


@lru_cache(maxsize=1)
def _grain() -> Floats:
    """Return a million nearly normal numbers that all images slice their noise from. Returns (2**20,) float32."""
    words = draws.bits(_SEED, "shapes100/grain", 0, np.arange(2**18), 4)
    four_bytes = words.reshape(-1, 1).view(np.uint8).reshape(-1, 4).sum(axis=1, dtype=np.float32)
    grain: Floats = (four_bytes - 510) / np.float32(np.sqrt(4 * (256**2 - 1) / 12))
    return grain
