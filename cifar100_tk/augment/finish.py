"""The final steps, the same on both executors: uint8 images to normalized float32 images, with holes cut out."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Any, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cifar100_tk.augment.base import SIDE, AugmentPlan
from cifar100_tk.augment.kernels import chunks, put_rows
from cifar100_tk.draws import ImageDraws, Int64s
from cifar100_tk.errors import ConfigError
from cifar100_tk.ranges import SHARE, Within, check_ranges
from cifar100_tk.tensors import Images, RawImages, send


@final
@dataclass(frozen=True, kw_only=True)
class Normalize:
    """Shift and scale each channel: (value / 255 - mean) / std."""

    mean: tuple[float, float, float] = (0.5071, 0.4867, 0.4408)
    """Mean of red, green, blue over the training images, in 0..1."""
    std: tuple[float, float, float] = (0.2675, 0.2565, 0.2761)
    """Standard deviation of red, green, blue over the training images, in units of 0..1."""

    def __post_init__(self) -> None:
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != 3:
                raise ConfigError(
                    f"normalize.{name}={values} has {len(values)} values; give three, for red, green and blue."
                )
        if not all(0.0 <= mean <= 1.0 for mean in self.mean):
            raise ConfigError(f"normalize.mean={self.mean} is out of range; use values from 0 to 1, in units of 255.")
        if not all(0.001 <= std <= 1.0 for std in self.std):
            raise ConfigError(f"normalize.std={self.std} is out of range; use values from 0.001 to 1, in units of 255.")

    def factors(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return scale and shift, each (1, 3, 1, 1) float32; a normalized image is image * scale - shift."""
        return _factors(self, device)


@lru_cache(maxsize=16)
def _factors(normalize: Normalize, device: torch.device) -> tuple[Tensor, Tensor]:
    mean, std = np.array(normalize.mean), np.array(normalize.std)
    scale, shift = np.stack([1 / (255 * std), mean / std]).astype(np.float32).reshape(2, 1, 3, 1, 1)
    return torch.from_numpy(scale).to(device), torch.from_numpy(shift).to(device)


@final
@dataclass(frozen=True, kw_only=True)
class Cutout:
    """Mask out square holes (arXiv:1708.04552): centers uniform over the image, holes clipped at the border.

    Images that CutMix takes part in get none, so that no hole covers or moves into a pasted box.
    """

    num_holes: Annotated[int, Within(low=0, high=64, use="use 1, or 0 for none")] = 1
    """Holes per image; 0 is off."""
    size: Annotated[int, Within(low=0, high=2 * SIDE, use="use 16, or 0 for none")] = 16
    """Side of a hole in pixels; 0 is off."""
    p: Annotated[float, SHARE] = 0.5
    """Fraction of the images that get holes; 0 is off."""

    def __post_init__(self) -> None:
        check_ranges(self, "cutout.")

    def draw(self, draws: ImageDraws) -> AugmentPlan:
        """Draw the holes. Returns `cut`: (B,) bool; `corner`: (B, num_holes, 2) int64, left and top."""
        drawn = draws.uniform(1 + 2 * self.num_holes)
        centre = (drawn[:, 1:] * SIDE).astype(np.int64).reshape(len(drawn), self.num_holes, 2)
        cut = (drawn[:, 0] < self.p) & (self.num_holes > 0) & (self.size > 0)
        return {"cut": cut, "corner": centre - self.size // 2}

    def controls(self, plan: AugmentPlan) -> dict[str, Any]:
        """Compute the arrays that `blank` reads.

        Returns `rows`: (n,), the images with holes; `down`: (n, num_holes, 32) and `along`: (n, num_holes, 96) bool, the
        rows that a hole covers, and the covered values among a row's 32 pixels of 3 channels.
        """
        rows, covered = np.flatnonzero(plan["cut"]), _covered(self.size)
        column, line = np.moveaxis(plan["corner"][rows] + self.size // 2, 2, 0)
        return {"rows": rows, "down": covered[line], "along": covered.repeat(3, axis=1)[column]}

    def blank(self, images: Images, controls: dict[str, Any]) -> None:
        """Set the holes to 0, in place. images: channels_last. controls: the arrays as tensors on their device."""
        rows = controls["rows"]
        if not len(rows):
            return
        holes = controls["down"][:, :, :, None] & controls["along"][:, :, None, :]
        lines = images.permute(0, 2, 3, 1).flatten(2)
        put_rows(lines, rows, lines.index_select(0, rows).masked_fill_(holes.any(1), 0.0))


@lru_cache(maxsize=16)
def _covered(size: int) -> NDArray[np.bool_]:
    """Tabulate the pixels of a line that a hole covers. Returns (32, 32) bool, row i for center i."""
    place = np.arange(SIDE) - np.arange(SIDE)[:, None] + size // 2
    return (place >= 0) & (place < size)


def finish(
    images: RawImages, normalize: Normalize, cutout: Cutout | None, seed: int, epoch: int, index: Int64s
) -> Images:
    """Make the network's input, on the images' device.

    index: (B,) the images' indices, on the host.
    Returns (B, 3, 32, 32) float32 in channels_last; holes are 0, the mean.
    """
    controls = cutout_controls(cutout, seed, epoch, index)
    return finish_drawn(images, normalize, cutout, send(controls, images.device) if controls else {})


def cutout_controls(
    cutout: Cutout | None, seed: int, epoch: int, index: Int64s, without: NDArray[np.bool_] | None = None
) -> dict[str, Any]:
    """Draw a batch's holes. Returns the arrays to send to the device; none without Cutout.

    without: (B,) the images that get none, whatever is drawn; None for no such image.
    """
    if cutout is None:
        return {}
    plan = cutout.draw(ImageDraws(seed, "augment.Cutout", epoch, index))
    return cutout.controls(plan if without is None else plan | {"cut": plan["cut"] & ~without})


def finish_drawn(
    raw_images: RawImages, normalize: Normalize, cutout: Cutout | None, controls: dict[str, Any]
) -> Images:
    """Do the same as `finish` with holes already drawn. controls: the result of `cutout_controls`, as tensors."""
    scale, shift = normalize.factors(raw_images.device)
    images = torch.empty(raw_images.shape, device=raw_images.device, memory_format=torch.channels_last)
    for part in chunks(len(raw_images), raw_images.device):
        images[part] = raw_images[part].contiguous().float().mul_(scale).sub_(shift)
    if cutout is not None:
        cutout.blank(images, controls)
    return images
