"""The last steps, the same on both executors: from uint8 pictures to normalized float32 images, with holes cut out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from torch import Tensor

from cifar100_tk.augment.base import SIDE, Plan
from cifar100_tk.augment.checks import check_share, check_whole
from cifar100_tk.augment.kernels import chunks, put_rows, to_device
from cifar100_tk.draws import Int64s, PictureDraws
from cifar100_tk.errors import ConfigError
from cifar100_tk.tensors import Images, Pictures


@final
@dataclass(frozen=True, kw_only=True)
class Normalize:
    """Shift and scale each channel: (value / 255 - mean) / std."""

    mean: tuple[float, float, float] = (0.5071, 0.4867, 0.4408)
    """Mean of red, green, blue over the training pictures, in 0..1."""
    std: tuple[float, float, float] = (0.2675, 0.2565, 0.2761)
    """Standard deviation of red, green, blue over the training pictures, in units of 0..1."""

    def __post_init__(self) -> None:
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != 3:
                raise ConfigError(
                    f"normalize.{name}={values} is of {len(values)} channels; use three numbers: red, green, blue."
                )
        if not all(0.0 <= mean <= 1.0 for mean in self.mean):
            raise ConfigError(f"normalize.mean={self.mean} is out of range; use shares of 255, each from 0 to 1.")
        if not all(0.001 <= std <= 1.0 for std in self.std):
            raise ConfigError(f"normalize.std={self.std} is out of range; use shares of 255, each from 0.001 to 1.")

    def factors(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Give scale and shift, each (1, 3, 1, 1) float32, so that an image is picture * scale - shift."""
        mean, std = np.array(self.mean), np.array(self.std)
        both = np.stack([1 / (255 * std), mean / std]).astype(np.float32)
        scale, shift = to_device(both, device).view(2, 1, 3, 1, 1)
        return scale, shift


@final
@dataclass(frozen=True, kw_only=True)
class Cutout:
    """Blank square holes out (arXiv:1708.04552): centres drawn evenly over the picture, holes clipped at the border."""

    num_holes: int = 1
    """Holes a picture that is cut; 0 is off."""
    size: int = 16
    """Side of a hole in pixels; 0 is off."""
    p: float = 0.5
    """Share of the pictures that are cut; 0 is off."""

    def __post_init__(self) -> None:
        check_whole("cutout.num_holes", self.num_holes, 0, 64)
        check_whole("cutout.size", self.size, 0, 2 * SIDE)
        check_share("cutout.p", self.p)

    def draw(self, draws: PictureDraws) -> Plan:
        """Draw who is cut, and where. Returns `cut`: (B,) bool; `corner`: (B, num_holes, 2) int64, left and top."""
        drawn = draws.uniform(1 + 2 * self.num_holes)
        centre = (drawn[:, 1:] * SIDE).astype(np.int64).reshape(len(drawn), self.num_holes, 2)
        cut = (drawn[:, 0] < self.p) & (self.num_holes > 0) & (self.size > 0)
        return {"cut": cut, "corner": centre - self.size // 2}

    def blank(self, images: Images, plan: Plan) -> None:
        """Set the holes to 0, in place. images: contiguous. plan: as `draw` returned it, on the host."""
        rows = np.flatnonzero(plan["cut"])
        if not len(rows):
            return
        on_device = to_device(rows, images.device)
        holes = self._holes(to_device(plan["corner"][rows], images.device))
        put_rows(images, on_device, images.index_select(0, on_device).masked_fill_(holes, 0.0))

    def _holes(self, corner: Tensor) -> Tensor:
        """Mark the blanked pixels. corner: (n, num_holes, 2) int64. Returns (n, 1, 32, 32) bool."""
        place = torch.arange(SIDE, device=corner.device) - corner[..., None]  # (n, num_holes, 2, 32)
        within = (place >= 0) & (place < self.size)
        column, row = within[:, :, 0, None, :], within[:, :, 1, :, None]
        return (column & row).any(1, keepdim=True)


def finish(
    pictures: Pictures, normalize: Normalize, cutout: Cutout | None, seed: int, epoch: int, index: Int64s
) -> Images:
    """Make what the network sees, on the device where the pictures are.

    index: (B,) the pictures' numbers, on the host.
    Returns (B, 3, 32, 32) float32 in channels_last; holes are 0, the mean.
    """
    scale, shift = normalize.factors(pictures.device)
    plan = {} if cutout is None else cutout.draw(PictureDraws(seed, "augment.Cutout", epoch, index))
    images = torch.empty(pictures.shape, device=pictures.device, memory_format=torch.channels_last)
    for part in chunks(len(pictures), pictures.device):
        normal = pictures[part].contiguous().float().mul_(scale).sub_(shift)
        if cutout is not None:
            cutout.blank(normal, {name: drawn[part] for name, drawn in plan.items()})
        images[part] = normal
    return images
