"""The chain of a recipe's augmentations and its two executors, which give the same bytes from the same draws."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

import numpy as np
import PIL.Image
from jaxtyping import UInt8

from cifar100_tk.augment.base import SIDE, Augmentation, AugmentPlan, BatchedAugmentation, PackedAugmentation, Row
from cifar100_tk.draws import ImageDraws, Int64s
from cifar100_tk.errors import ConfigError
from cifar100_tk.tensors import RawImages, send

HostImages = UInt8[np.ndarray, "batch 3 32 32"]
"""Raw images on the host: (B, 3, 32, 32) uint8."""


@final
@dataclass(frozen=True)
class Chain:
    """Augmentations in the order in which they are applied."""

    augment: tuple[Augmentation, ...]
    seed: int
    """The run's seed; with the epoch and the image's index it determines every draw."""

    @property
    def host_only(self) -> tuple[str, ...]:
        """Names of the augmentations that run on the host only; empty if the device executor can be used."""
        return tuple(augmentation.host_only for augmentation in self.augment if augmentation.host_only)

    def host(self, images: HostImages, epoch: int, index: Int64s) -> HostImages:
        """Augment with Pillow, one image at a time: the reference. index: (B,) the images' indices."""
        rows = [_rows(plan, len(index)) for plan in self._plans(epoch, index)]
        changed = np.empty((len(images), SIDE, SIDE, 3), np.uint8)
        for i, pixels in enumerate(np.ascontiguousarray(images.transpose(0, 2, 3, 1))):
            image = PIL.Image.fromarray(pixels)
            for augmentation, drawn in zip(self.augment, rows, strict=True):
                image = augmentation.apply(image, drawn[i])
                if not isinstance(image, PIL.Image.Image) or image.size != (SIDE, SIDE) or image.mode != "RGB":
                    raise ConfigError(_not_an_image(augmentation, image))
            changed[i] = np.asarray(image)
        return np.ascontiguousarray(changed.transpose(0, 3, 1, 2))

    def device(self, images: RawImages, epoch: int, index: Int64s) -> RawImages:
        """Augment on the images' device, as a batch, without waiting for the device. index: (B,), on the host."""
        if self.host_only:
            raise ConfigError(
                f"{', '.join(self.host_only)} runs on the host only; use --pipeline host, or remove it from the recipe."
            )
        return self.run(images, send(self.controls(epoch, index), images.device))

    def controls(self, epoch: int, index: Int64s) -> dict[str, Any]:
        """Draw for a batch. Returns, by position in the chain, the arrays to send to the device."""
        drawn = enumerate(zip(self.augment, self._plans(epoch, index), strict=True))
        return {
            str(place): augmentation.controls(plan) if isinstance(augmentation, PackedAugmentation) else _OnHost(plan)
            for place, (augmentation, plan) in drawn
        }

    def run(self, images: RawImages, controls: dict[str, Any]) -> RawImages:
        """Augment a batch. controls: the result of `controls`, sent to the images' device."""
        for augmentation, drawn in zip(self.augment, controls.values(), strict=True):
            if isinstance(augmentation, PackedAugmentation):
                images = augmentation.run(images, drawn)
            else:
                assert isinstance(augmentation, BatchedAugmentation)
                images = augmentation.apply_batch(images, drawn.plan)
        return images

    def _plans(self, epoch: int, index: Int64s) -> list[AugmentPlan]:
        """Draw for the whole batch at once."""
        plans = []
        for position, augmentation in enumerate(self.augment):
            plan = augmentation.draw(ImageDraws(self.seed, f"augment.{position}.{augmentation.stream}", epoch, index))
            if problem := _problem(plan, len(index)):
                raise ConfigError(
                    f"{type(augmentation).__name__}.draw returned {problem}; return a dict of named numpy arrays, each with "
                    f"one row for each of the {len(index)} images, or an empty dict for no draws."
                )
            plans.append(plan)
        return plans


@dataclass(frozen=True)
class _OnHost:
    """The plan of an augmentation that moves its own arrays to the device."""

    plan: AugmentPlan


def _rows(plan: AugmentPlan, count: int) -> list[Row]:
    """Turn a plan's arrays into one row of plain numbers per image, which Python reads much faster."""
    if not plan:  # An augmentation that treats every image the same draws nothing.
        return [{}] * count
    names = list(plan)
    return [dict(zip(names, row, strict=True)) for row in zip(*(plan[name].tolist() for name in names), strict=True)]


def _problem(plan: object, count: int) -> str | None:
    """Return a short description of the problem with a plan for `count` images, or None."""
    if not isinstance(plan, dict):
        return _kind(plan)
    for name, drawn in plan.items():
        if not isinstance(drawn, np.ndarray) or drawn.shape[:1] != (count,):
            return f"{{{name!r}: {_kind(drawn)}}}"
    return None


def _not_an_image(augmentation: Augmentation, given: object) -> str:
    found = f"a {given.width}x{given.height} {given.mode} image" if isinstance(given, PIL.Image.Image) else _kind(given)
    return f"{type(augmentation).__name__}.apply returned {found}; return a {SIDE}x{SIDE} RGB Pillow image."


def _kind(value: object) -> str:
    if isinstance(value, np.ndarray):
        return f"an array of shape {value.shape}"
    return "None" if value is None else f"{type(value).__name__} {str(value)[:40]}"
