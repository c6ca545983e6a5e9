"""The size of the network's input: images resized after augmentation, and smaller ones early in a run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, final

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import interpolate

from cifar100_tk.augment.base import MAX_SIDE
from cifar100_tk.errors import ConfigError
from cifar100_tk.ranges import Within, check_ranges
from cifar100_tk.tensors import Images


@final
@dataclass(frozen=True, kw_only=True)
class ProgressiveResize:
    """Uses smaller training images early in a run, when they teach as much in less time (arXiv:2104.00298).

    Images are scaled after normalizing and Cutout and before mixing; evaluation is always at the recipe's `image_size`.
    """

    sides: Annotated[tuple[int, ...], Within(low=1, high=MAX_SIDE, use="use 20 24 32")] = (20, 24, 32)
    """Width and height in pixels of each stage; the last is the recipe's `image_size`."""

    starts: Annotated[tuple[float, ...], Within(low=0, high=1, below=True, use="use 0.0 0.35 0.7")] = (0.0, 0.35, 0.7)
    """The fraction of the run completed when each stage starts; the first is 0."""

    def __post_init__(self) -> None:
        check_ranges(self, "resize.")
        if not self.sides or len(self.sides) != len(self.starts):
            raise ConfigError(
                f"resize.sides={self.sides} and resize.starts={self.starts} differ in length; give each stage a side and a start."
            )
        rising = all(low < high for low, high in zip(self.starts, self.starts[1:], strict=False))
        if self.starts[0] != 0 or not rising:
            raise ConfigError(
                f"resize.starts={self.starts} do not define stages; start at 0 and increase to below 1, as in (0.0, 0.35, 0.7)."
            )

    def side(self, step: int, num_steps: int) -> int:
        """Return the image side at a step, in pixels. step: 0..num_steps-1."""
        started = [
            side for side, start in zip(self.sides, self.starts, strict=True) if step >= round(start * num_steps)
        ]
        return started[-1]

    def describe(self, num_steps: int) -> str:
        """Return the stages as the plan shows them.

        >>> ProgressiveResize().describe(1000)
        '20 px to step 350, 24 px to step 700, 32 px to step 1,000'
        """
        ends = [round(start * num_steps) for start in (*self.starts[1:], 1.0)]
        return ", ".join(f"{side} px to step {end:,}" for side, end in zip(self.sides, ends, strict=True))


def resize_images(images: Images, side: int) -> Float[Tensor, "batch 3 new new"]:
    """Resize each image bilinearly with antialiasing: (B, 3, H, W) to (B, 3, side, side), in channels_last."""
    if images.shape[-1] == side:
        return images
    resized = interpolate(images, size=(side, side), mode="bilinear", antialias=True, align_corners=False)
    return resized.contiguous(memory_format=torch.channels_last)
