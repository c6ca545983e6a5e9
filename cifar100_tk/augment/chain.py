"""The chain of a recipe's augmentations and its two executors, which give the same bytes from the same draws."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

import numpy as np
import PIL.Image
from jaxtyping import UInt8

from cifar100_tk.augment.base import SIDE, Augmentation, BatchedAugmentation, PackedAugmentation, Plan, Row
from cifar100_tk.augment.transfer import send
from cifar100_tk.draws import Int64s, PictureDraws
from cifar100_tk.errors import ConfigError
from cifar100_tk.tensors import Pictures

HostPictures = UInt8[np.ndarray, "batch 3 32 32"]
"""Raw pictures on the host: (B, 3, 32, 32) uint8."""


@final
@dataclass(frozen=True)
class Chain:
    """Augmentations in the order in which a picture meets them."""

    augment: tuple[Augmentation, ...]
    seed: int
    """The run's seed; with the epoch and the picture's number it decides everything drawn."""

    @property
    def host_only(self) -> tuple[str, ...]:
        """Names of what only runs on the host; empty where the device executor can be used."""
        return tuple(one.host_only for one in self.augment if one.host_only)

    def host(self, pictures: HostPictures, epoch: int, index: Int64s) -> HostPictures:
        """Augment with Pillow, one picture at a time: the reference. index: (B,) the pictures' numbers."""
        rows = [_rows(plan, len(index)) for plan in self._plans(epoch, index)]
        changed = np.empty((len(pictures), SIDE, SIDE, 3), np.uint8)
        for i, pixels in enumerate(np.ascontiguousarray(pictures.transpose(0, 2, 3, 1))):
            picture = PIL.Image.fromarray(pixels)
            for one, drawn in zip(self.augment, rows, strict=True):
                picture = one.apply(picture, drawn[i])
                if not isinstance(picture, PIL.Image.Image) or picture.size != (SIDE, SIDE) or picture.mode != "RGB":
                    raise ConfigError(_not_an_image(one, picture))
            changed[i] = np.asarray(picture)
        return np.ascontiguousarray(changed.transpose(0, 3, 1, 2))

    def device(self, pictures: Pictures, epoch: int, index: Int64s) -> Pictures:
        """Augment where the pictures are, as a batch, without waiting for the device. index: (B,), on the host."""
        if self.host_only:
            raise ConfigError(
                f"{', '.join(self.host_only)} works on the host only; use --pipeline host, or leave it out."
            )
        return self.run(pictures, send(self.controls(epoch, index), pictures.device))

    def controls(self, epoch: int, index: Int64s) -> dict[str, Any]:
        """Draw for a batch. Returns, by place in the chain, the arrays that are to be sent to the device."""
        drawn = enumerate(zip(self.augment, self._plans(epoch, index), strict=True))
        return {
            str(place): one.controls(plan) if isinstance(one, PackedAugmentation) else _OnHost(plan)
            for place, (one, plan) in drawn
        }

    def run(self, pictures: Pictures, controls: dict[str, Any]) -> Pictures:
        """Augment a batch. controls: what `controls` gave, sent to the device of the pictures."""
        for one, drawn in zip(self.augment, controls.values(), strict=True):
            if isinstance(one, PackedAugmentation):
                pictures = one.run(pictures, drawn)
            else:
                assert isinstance(one, BatchedAugmentation)
                pictures = one.apply_batch(pictures, drawn.plan)
        return pictures

    def _plans(self, epoch: int, index: Int64s) -> list[Plan]:
        """Draw for the whole batch at once."""
        plans = []
        for position, one in enumerate(self.augment):
            plan = one.draw(PictureDraws(self.seed, f"augment.{position}.{type(one).__name__}", epoch, index))
            if problem := _problem(plan, len(index)):
                raise ConfigError(
                    f"{type(one).__name__}.draw returned {problem}; return a dict of named numpy arrays, each with one row "
                    f"for each of the {len(index)} images, or an empty dict for no draws."
                )
            plans.append(plan)
        return plans


@dataclass(frozen=True)
class _OnHost:
    """The plan of an augmentation that sends by itself what it needs."""

    plan: Plan


def _rows(plan: Plan, count: int) -> list[Row]:
    """Turn a plan's arrays into one row of plain numbers for each picture, which Python reads far quicker."""
    if not plan:  # An augmentation that does the same to every picture draws nothing.
        return [{}] * count
    names = list(plan)
    return [dict(zip(names, row, strict=True)) for row in zip(*(plan[name].tolist() for name in names), strict=True)]


def _problem(plan: object, count: int) -> str | None:
    """Return what is wrong with a plan for `count` images, in a few words, or None."""
    if not isinstance(plan, dict):
        return _kind(plan)
    for name, drawn in plan.items():
        if not isinstance(drawn, np.ndarray) or drawn.shape[:1] != (count,):
            return f"{{{name!r}: {_kind(drawn)}}}"
    return None


def _not_an_image(one: Augmentation, given: object) -> str:
    found = f"a {given.width}x{given.height} {given.mode} image" if isinstance(given, PIL.Image.Image) else _kind(given)
    return f"{type(one).__name__}.apply returned {found}; return a {SIDE}x{SIDE} RGB Pillow image."


def _kind(value: object) -> str:
    if isinstance(value, np.ndarray):
        return f"an array of shape {value.shape}"
    return "None" if value is None else f"{type(value).__name__} {str(value)[:40]}"
