"""The horizontal flip, random or alternating from epoch to epoch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Any, final

import numpy as np
import PIL.Image
import torch

from cifar100_tk.augment.base import AugmentPlan, PackedAugmentation, Row
from cifar100_tk.augment.kernels import put_rows
from cifar100_tk.draws import ImageDraws
from cifar100_tk.errors import ConfigError
from cifar100_tk.ranges import SHARE, check_ranges
from cifar100_tk.tensors import RawImages


@final
@dataclass(frozen=True, kw_only=True)
class Flip(PackedAugmentation):
    """Flip images left to right."""

    p: Annotated[float, SHARE] = 0.5
    """Fraction of the images that are flipped; 0 is off."""
    alternate: bool = False
    """Draw once whether an image is flipped in even or in odd epochs (airbench, arXiv:2404.00498, section 3.6),
    so that any two consecutive epochs show both orientations; False draws again in every epoch."""

    def __post_init__(self) -> None:
        check_ranges(self, "flip.")
        if self.alternate and self.p != 0.5:
            raise ConfigError(
                f"flip.p={self.p} cannot be combined with flip.alternate=True, which flips every image in every second epoch; "
                "use p=0.5, or alternate=False."
            )

    def draw(self, draws: ImageDraws) -> AugmentPlan:
        """Draw the images to flip. Returns `flip`: (B,) bool."""
        if not self.alternate:
            return {"flip": draws.uniform(1)[:, 0] < self.p}
        in_even_epochs = replace(draws, epoch=0).uniform(1)[:, 0] < self.p
        return {"flip": in_even_epochs ^ bool(draws.epoch % 2)}

    def apply(self, image: PIL.Image.Image, row: Row) -> PIL.Image.Image:
        return image.transpose(PIL.Image.Transpose.FLIP_LEFT_RIGHT) if row["flip"] else image

    def controls(self, plan: AugmentPlan) -> dict[str, Any]:
        return {"rows": np.flatnonzero(plan["flip"])}

    def run(self, images: RawImages, controls: dict[str, Any]) -> RawImages:
        rows, changed = controls["rows"], images.clone(memory_format=torch.contiguous_format)
        if len(rows):
            put_rows(changed, rows, images.index_select(0, rows).flip(3))
        return changed
