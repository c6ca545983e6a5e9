"""The outlines of shapes100, as polygons, and the distance from any point to them."""

from __future__ import annotations

from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from cifar100_tk.data.waves import cosine, sine

Floats = NDArray[np.float32]
Numbers = NDArray[np.int64]
Points = NDArray[np.float64]
"""(V, 2): vertices x, y in order; x to the right, y down; the shape roughly fills the disk of radius 1."""

# The distance is tabulated on a grid of this many steps over -_REACH.._REACH: 60 steps per radius, a fifth of a pixel.
_STEPS: Final = 240
_REACH: Final = 2.0


def _corners(text: str) -> Points:
    """Parse vertices written as x y, x y, ..."""
    return np.array([[float(number) for number in pair.split()] for pair in text.split(",")])


def _polar(radii: float | Points, turns: list[float] | Points) -> Points:
    """Return vertices given by radius, a number or (V,), and angle: 0 is up, in turns, clockwise."""
    angles = np.asarray(turns, np.float64)
    corners: Points = np.stack([sine(angles), -cosine(angles)], axis=1) * np.reshape(radii, (-1, 1))
    return corners


def _arc(count: int, start: float, stop: float) -> Points:
    """Return `count` angles in turns, both ends included."""
    return np.linspace(start, stop, count)


def _fourfold(*turns: float) -> Points:
    """Repeat the angles in each quarter, in turns."""
    return np.add.outer(np.arange(4) / 4, turns).reshape(-1)


def _heart() -> Points:
    t = np.arange(48) / 48
    x = 16 * sine(t) * sine(t) * sine(t)
    y = 13 * cosine(t) - 5 * cosine(2 * t) - 2 * cosine(3 * t) - cosine(4 * t)
    return np.stack([x, -y], axis=1) / 16


def _crescent() -> Points:
    outer = _polar(1.0, _arc(32, 0.1, 0.9))
    inner = _polar(0.8, _arc(24, 0.86, 0.14)) + np.array([0.0, -0.35])
    return np.concatenate([outer, inner])


def _horseshoe() -> Points:
    return np.concatenate([_polar(1.05, _arc(24, 0.12, 0.88)), _polar(0.5, _arc(16, 0.86, 0.14))])


def _dumbbell() -> Points:
    right = _polar(0.48, _arc(20, -0.2, 0.7)) + np.array([0.75, 0.0])
    return np.concatenate([right, -right])


def _drop() -> Points:
    return np.concatenate([_corners("0 -1.25"), _polar(0.75, _arc(28, 0.16, 0.84)) + np.array([0.0, 0.35])])


_TURN60: Final = np.arange(60) / 60

SILHOUETTES: Final[dict[str, Points]] = {
    "disc": _polar(0.95, np.arange(40) / 40),
    "triangle": _polar(1.2, [0, 1 / 3, 2 / 3]),
    "square": _corners("-.85 -.85, .85 -.85, .85 .85, -.85 .85"),
    "rhombus": _corners("0 -1.3, .65 0, 0 1.3, -.65 0"),
    "bar": _corners("-1.3 -.45, 1.3 -.45, 1.3 .45, -1.3 .45"),
    "star": _polar(np.where(np.arange(10) % 2, 0.48, 1.2), np.arange(10) / 10),
    "cross": _polar(np.tile([0.51, 1.16, 1.16], 4), _fourfold(-0.125, -0.05, 0.05)),
    "saltire": _polar(np.tile([0.51, 1.16, 1.16], 4), _fourfold(0, 0.075, 0.175)),
    "heart": _heart(),
    "crescent": _crescent(),
    "drop": _drop(),
    "flower": _polar(0.85 + 0.3 * cosine(5 * _TURN60), _TURN60),
    "arrow": _corners("0 -1.2, .95 -.15, .38 -.15, .38 1.1, -.38 1.1, -.38 -.15, -.95 -.15"),
    "hourglass": _corners("-.9 -1.05, .9 -1.05, .22 0, .9 1.05, -.9 1.05, -.22 0"),
    "dome": np.concatenate([_polar(1.1, _arc(24, -0.25, 0.25)), _corners("1.1 .1, -1.1 .1")]) + np.array([0.0, 0.5]),
    "horseshoe": _horseshoe(),
    "corner": _corners("-.9 -1.1, -.15 -1.1, -.15 .4, .95 .4, .95 1.1, -.9 1.1"),
    "tee": _corners("-1.1 -1.05, 1.1 -1.05, 1.1 -.4, .36 -.4, .36 1.1, -.36 1.1, -.36 -.4, -1.1 -.4"),
    "bolt": _corners("-.9 -1.05, .95 -1.05, .95 -.75, -.05 .5, .9 .5, .9 1.05, -.95 1.05, -.95 .75, .05 -.5, -.9 -.5"),
    "dumbbell": _dumbbell(),
}
"""Twenty outlines that stay distinguishable when rotated by 25 degrees, stretched by 15 %, or mirrored."""


def distances(which: Numbers, x: Floats, y: Floats) -> Floats:
    """Look up the distance from points to outlines, negative inside.

    which: (n,) numbers in the order of SILHOUETTES. x, y: (n, ...) in radii. Returns (n, ...) in radii, to 1/60.
    """
    table = _table()
    scale = _STEPS / (2 * _REACH)
    column = np.clip((x + _REACH) * scale, 0, _STEPS - 1).astype(np.int32)
    row = np.clip((y + _REACH) * scale, 0, _STEPS - 1).astype(np.int32)
    first = (which * _STEPS * _STEPS).astype(np.int32).reshape(-1, *[1] * (x.ndim - 1))
    found: Floats = table.take(first + row * _STEPS + column)
    return found


@lru_cache(maxsize=1)
def _table() -> Floats:
    """Compute the distances from all grid cell centers to all outlines. Returns (20 * _STEPS * _STEPS,) float32."""
    axis = (np.arange(_STEPS) + 0.5) * (2 * _REACH / _STEPS) - _REACH
    x, y = np.meshgrid(axis, axis)
    return np.concatenate([_distance(x, y, points).reshape(-1) for points in SILHOUETTES.values()])


def _distance(x: Points, y: Points, corners: Points) -> Floats:
    """Compute the distance from points to a polygon: to the nearest edge, negative where a ray crosses an odd number of edges."""
    nearest = np.full(x.shape, np.inf)
    inside = np.zeros(x.shape, bool)
    for (ax, ay), (bx, by) in zip(corners.tolist(), np.roll(corners, -1, axis=0).tolist(), strict=True):
        ex, ey = bx - ax, by - ay
        along = np.clip(((x - ax) * ex + (y - ay) * ey) / (ex * ex + ey * ey), 0, 1)
        nearest = np.minimum(nearest, (x - ax - along * ex) ** 2 + (y - ay - along * ey) ** 2)
        if ay != by:
            inside ^= ((ay > y) != (by > y)) & (x < ax + (y - ay) * ex / ey)
    signed: Points = np.sqrt(nearest) * np.where(inside, -1, 1)
    return signed.astype(np.float32)
