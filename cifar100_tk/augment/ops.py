"""The ops that policies draw from: the name, ranges, Pillow implementation and batched kernel of each."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from types import ModuleType
from typing import final

import numpy as np
import PIL.Image
import torch
from numpy.typing import NDArray
from torch import Tensor

from cifar100_tk.augment import kernels
from cifar100_tk.augment.base import SIDE
from cifar100_tk.augment.kernels import Factors, Tables
from cifar100_tk.draws import Float64s
from cifar100_tk.tensors import RawImages

Range = Callable[[int], Float64s]
"""Maps a number of bins to the magnitude of each bin."""

Uint8s = NDArray[np.uint8]

Matrix = tuple[float, float, float, float, float, float]
"""a, b, c, d, e, f: output pixel (x, y) comes from (a x + b y + c, d x + e y + f)."""


@final
@dataclass(frozen=True)
class Affine:
    """A kernel that moves pixels by an affine map."""

    matrix: Callable[[float], Matrix]
    """Maps the magnitude to the affine map, as Pillow's AFFINE takes it."""


@final
@dataclass(frozen=True)
class FixedTable:
    """A kernel that looks each value up in a table that depends on the magnitude alone."""

    table: Callable[[float], Uint8s]
    """Maps the magnitude to the table, (256,) uint8, made on the host once for each magnitude."""


@final
@dataclass(frozen=True)
class LookupTable:
    """A kernel that looks each value up in a table that depends on the image too."""

    tables: Callable[[RawImages, Factors], Tables]
    """Maps the images and their magnitudes to their tables."""


@final
@dataclass(frozen=True)
class Blend:
    """A kernel that interpolates or extrapolates between a plain image and the image by the magnitude: an ImageEnhance."""

    plain: Callable[[RawImages], Tensor]
    """Maps the images to the result of factor 0: integers in 0..255, of a shape that broadcasts to the images'."""


@final
@dataclass(frozen=True)
class Filter:
    """Any other kernel."""

    run: Callable[[RawImages, Factors], RawImages]
    """Maps the images and their magnitudes to the transformed images."""


Kernel = Affine | FixedTable | LookupTable | Blend | Filter


@final
@dataclass(frozen=True, kw_only=True)
class Op:
    """One op of a policy. The magnitude means the same as in torchvision; an op without a magnitude gets 0."""

    name: str
    """The name in the papers."""
    host: Callable[[PIL.Image.Image, float], PIL.Image.Image]
    """Transform one image."""
    batched: Kernel | None = None
    """The same for a batch, byte for byte; None: a policy that draws this op runs on the host only. Magnitudes that are
    blend factors arrive as 1 + magnitude, in float32."""
    standard: Range | None = None
    """Magnitudes of AutoAugment and RandAugment on 32x32 images; None: the op has no magnitude."""
    wide: Range | None = None
    """Magnitudes of TrivialAugment's wide space; None: the op has no magnitude."""
    signed: bool = False
    """True negates the magnitude half of the time."""
    factor_offset: float = 0.0
    """Added to the magnitude in float64 before the batched kernel gets it in float32."""


_HOW = {"fillcolor": (0, 0, 0), "resample": PIL.Image.Resampling.NEAREST}
"""Fill and resampling of the affine ops; passed with `**`, because timm's ops modify the dictionary they get."""


def _timm() -> ModuleType:
    """Return timm's op functions; imported late, since timm takes seconds and the batched kernels do not need it."""
    from timm.data import auto_augment

    return auto_augment


def even(low: float, high: float) -> Range:
    """Space the bins evenly from low to high, in float32 like torchvision, so that blends get the same factor."""
    return lambda bins: torch.linspace(low, high, bins).double().numpy()


def bits_kept(dropped: int) -> Range:
    """Keep 8 bits in the first bin and `dropped` fewer in the last."""
    return lambda bins: (8 - (torch.arange(bins) / ((bins - 1) / dropped)).round()).double().numpy()


# --- Affine maps.


@lru_cache(maxsize=1024)
def _rotate(magnitude: float) -> Matrix:
    """Rotate counter-clockwise by degrees about the center, rounded to 15 decimals like Pillow."""
    angle = -math.radians(magnitude % 360.0)
    cos, sin = round(math.cos(angle), 15), round(math.sin(angle), 15)
    centre = SIDE / 2
    return cos, sin, centre - cos * centre - sin * centre, -sin, cos, centre + sin * centre - cos * centre


# --- Lookup tables.

_VALUES = np.arange(256)


def _invert(_: float) -> Uint8s:
    return (255 - _VALUES).astype(np.uint8)


def _solarize(threshold: float) -> Uint8s:
    return np.where(np.float32(threshold) <= _VALUES, 255 - _VALUES, _VALUES).astype(np.uint8)


def _posterize(bits: float) -> Uint8s:
    dropped = 8 - int(bits)
    return (_VALUES >> dropped << dropped).astype(np.uint8)


def _brightness(factor: float) -> Uint8s:
    """Blend with black, in float32 as Pillow does."""
    blended = _VALUES.astype(np.float32) * np.float32(factor)
    return blended.clip(0, 255).astype(np.uint8)


# The ranges: AutoAugment (arXiv:1805.09501, table 6) and TrivialAugment (arXiv:2103.10158, table 1), a translation of
# 150 of 331 pixels scaled to 32.
_SHEAR, _SHEAR_WIDE = even(0.0, 0.3), even(0.0, 0.99)
_MOVE, _MOVE_WIDE = even(0.0, 150.0 / 331.0 * 32), even(0.0, 32.0)
_BLEND, _BLEND_WIDE = even(0.0, 0.9), even(0.0, 0.99)


def _enhancer(name: str, batched: FixedTable | Blend) -> Op:
    """Make the op of an ImageEnhance: a factor of 1 leaves the image unchanged."""
    return Op(
        name=name,
        host=lambda image, magnitude: getattr(_timm(), name.lower())(image, 1.0 + magnitude),
        batched=batched,
        standard=_BLEND,
        wide=_BLEND_WIDE,
        signed=True,
        factor_offset=1.0,
    )


def _affine(
    name: str,
    host: Callable[[PIL.Image.Image, float], PIL.Image.Image],
    matrix: Callable[[float], Matrix],
    standard: Range,
    wide: Range,
) -> Op:
    return Op(name=name, host=host, batched=Affine(matrix), standard=standard, wide=wide, signed=True)


_ALL = (
    Op(name="Identity", host=lambda image, _: image, batched=Filter(lambda images, _: images)),
    _affine(
        "ShearX", lambda image, m: _timm().shear_x(image, m, **_HOW), lambda m: (1, m, 0, 0, 1, 0), _SHEAR, _SHEAR_WIDE
    ),
    _affine(
        "ShearY", lambda image, m: _timm().shear_y(image, m, **_HOW), lambda m: (1, 0, 0, m, 1, 0), _SHEAR, _SHEAR_WIDE
    ),
    _affine(
        "TranslateX",
        lambda image, m: _timm().translate_x_abs(image, -int(m), **_HOW),
        lambda m: (1, 0, -int(m), 0, 1, 0),
        *(_MOVE, _MOVE_WIDE),
    ),
    _affine(
        "TranslateY",
        lambda image, m: _timm().translate_y_abs(image, -int(m), **_HOW),
        lambda m: (1, 0, 0, 0, 1, -int(m)),
        *(_MOVE, _MOVE_WIDE),
    ),
    _affine("Rotate", lambda image, m: _timm().rotate(image, m, **_HOW), _rotate, even(0.0, 30.0), even(0.0, 135.0)),
    _enhancer("Brightness", FixedTable(_brightness)),
    _enhancer("Color", Blend(kernels.grey)),
    _enhancer("Contrast", Blend(kernels.mean_grey)),
    _enhancer("Sharpness", Blend(kernels.smooth)),
    Op(
        name="Posterize",
        host=lambda image, magnitude: _timm().posterize(image, int(magnitude)),
        batched=FixedTable(_posterize),
        standard=bits_kept(4),
        wide=bits_kept(6),
    ),
    Op(
        name="Solarize",
        host=lambda image, threshold: _timm().solarize(image, threshold),
        batched=FixedTable(_solarize),
        standard=even(255.0, 0.0),
        wide=even(255.0, 0.0),
    ),
    Op(
        name="AutoContrast",
        host=lambda image, _: _timm().auto_contrast(image),
        batched=LookupTable(lambda images, _: kernels.stretch_tables(images)),
    ),
    Op(
        name="Equalize",
        host=lambda image, _: _timm().equalize(image),
        batched=LookupTable(lambda images, _: kernels.equalize_tables(images)),
    ),
    Op(name="Invert", host=lambda image, _: _timm().invert(image), batched=FixedTable(_invert)),
)

OPS: dict[str, Op] = {op.name: op for op in _ALL}
"""Every op by name. To add your own: `OPS["Name"] = Op(...)`, then name it in `RandAugment(ops=...)`; see CONTRIBUTING."""
