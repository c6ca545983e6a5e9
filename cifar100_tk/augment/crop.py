"""The two crops: a random box resized back to 32x32, and a 32x32 window of the padded image."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, final

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from cifar100_tk.augment.base import SIDE, AugmentPlan, PackedAugmentation, Row
from cifar100_tk.augment.kernels import gather_pixels, line_code, resize_boxes
from cifar100_tk.draws import Float64s, ImageDraws
from cifar100_tk.errors import ConfigError
from cifar100_tk.ranges import Within, check_ranges
from cifar100_tk.tensors import RawImages

_TRIES = 10


@final
@dataclass(frozen=True, kw_only=True)
class RandomResizedCrop(PackedAugmentation):
    """Cut a random box and resize it to 32x32, bilinear (arXiv:1409.4842; torchvision's RandomResizedCrop).

    Ten attempts at an integer box; if none fits in the image, the largest centered box of an allowed ratio.
    """

    scale: tuple[float, float] = (0.8, 1.0)
    """Area of the box as a fraction of the image, uniform between the two; (1.0, 1.0) with ratio (1.0, 1.0) is off."""
    ratio: tuple[float, float] = (0.9, 1.1)
    """Width over height of the box, log-uniform between the two; (1.0, 1.0) cuts squares only."""

    @property
    def stream(self) -> str:
        return "Crop"

    def __post_init__(self) -> None:
        if not 1 / SIDE**2 <= self.scale[0] <= self.scale[1] <= 1.0:
            raise ConfigError(
                f"crop.scale={self.scale} is not a range of areas; expected 1/1024 <= low <= high <= 1, such as (0.8, 1.0)."
            )
        if not 1 / SIDE <= self.ratio[0] <= self.ratio[1] <= SIDE:
            raise ConfigError(
                f"crop.ratio={self.ratio} is not a range of ratios; expected 1/32 <= low <= high <= 32, such as (0.9, 1.1)."
            )

    def draw(self, draws: ImageDraws) -> AugmentPlan:
        """Draw each image's box. Returns `box`: (B, 4) int64, left, top, width, height in pixels."""
        boxes = self._try(draws.uniform(4))
        failed = np.flatnonzero(boxes[:, 2] == 0)
        if len(failed):
            # Few images need a second attempt, so only those draw the other nine.
            others = replace(draws, images=draws.images[failed]).uniform(4 * _TRIES)
            tries = np.stack([self._try(others[:, 4 * i : 4 * i + 4]) for i in range(1, _TRIES)])
            first = np.argmax(tries[:, :, 2] > 0, axis=0)
            found = tries[first, np.arange(len(failed))]
            boxes[failed] = np.where(found[:, 2:3] > 0, found, np.array(self._fallback()))
        return {"box": boxes}

    def _try(self, drawn: Float64s) -> NDArray[np.int64]:
        """Turn (N, 4) draws (area, ratio, left, top) into boxes. Returns (N, 4) int64, all 0 where the box does not fit."""
        area = SIDE * SIDE * (self.scale[0] + drawn[:, 0] * (self.scale[1] - self.scale[0]))
        low, high = math.log(self.ratio[0]), math.log(self.ratio[1])
        ratio = np.exp(low + drawn[:, 1] * (high - low))
        width, height = np.rint(np.sqrt(area * ratio)), np.rint(np.sqrt(area / ratio))
        left, top = np.floor(drawn[:, 2] * (SIDE + 1 - width)), np.floor(drawn[:, 3] * (SIDE + 1 - height))
        fits = (width > 0) & (width <= SIDE) & (height > 0) & (height <= SIDE)
        return np.where(fits[:, None], np.stack([left, top, width, height], axis=1), 0).astype(np.int64)

    def _fallback(self) -> tuple[int, int, int, int]:
        width = min(SIDE, max(1, round(SIDE * self.ratio[1])))
        height = min(SIDE, max(1, round(SIDE / self.ratio[0])))
        return (SIDE - width) // 2, (SIDE - height) // 2, width, height

    def apply(self, image: PIL.Image.Image, row: Row) -> PIL.Image.Image:
        left, top, width, height = row["box"]
        cut = image.crop((left, top, left + width, top + height))
        return cut.resize((SIDE, SIDE), PIL.Image.Resampling.BILINEAR)

    def controls(self, plan: AugmentPlan) -> dict[str, Any]:
        left, top, width, height = plan["box"].T
        return {"column": line_code(left, width), "row": line_code(top, height)}

    def run(self, images: RawImages, controls: dict[str, Any]) -> RawImages:
        return resize_boxes(images, controls["column"], controls["row"])


@final
@dataclass(frozen=True, kw_only=True)
class PadCrop(PackedAugmentation):
    """Pad the image on all four sides and cut a random 32x32 window (arXiv:1512.03385, section 4.2)."""

    padding: Annotated[int, Within(low=0, high=SIDE - 1, use="use 4, or 0 for none")] = 4
    """Pixels added on each side, the largest possible shift; 0 is off."""
    mode: Literal["zero", "reflect"] = "zero"
    """Content of the padding: black, or the image mirrored about its outermost row or column."""

    def __post_init__(self) -> None:
        check_ranges(self, "pad_crop.")
        if self.mode not in ("zero", "reflect"):
            raise ConfigError(f"pad_crop.mode={self.mode!r} is not a padding mode; use 'zero' or 'reflect'.")

    def draw(self, draws: ImageDraws) -> AugmentPlan:
        """Draw each image's window. Returns `corner`: (B, 2) int64, left and top in the padded image."""
        return {"corner": np.floor(draws.uniform(2) * (2 * self.padding + 1)).astype(np.int64)}

    def apply(self, image: PIL.Image.Image, row: Row) -> PIL.Image.Image:
        left, top = row["corner"]
        around = ((self.padding, self.padding), (self.padding, self.padding), (0, 0))
        padded = (
            np.pad(np.asarray(image), around)
            if self.mode == "zero"
            else np.pad(np.asarray(image), around, mode="reflect")
        )
        return PIL.Image.fromarray(np.ascontiguousarray(padded[top : top + SIDE, left : left + SIDE]))

    def controls(self, plan: AugmentPlan) -> dict[str, Any]:
        source = plan["corner"][:, :, None] - self.padding + np.arange(SIDE)  # (B, 2, 32): columns, rows
        if self.mode == "reflect":
            source = SIDE - 1 - np.abs(SIDE - 1 - np.abs(source))
        return {"source": source.astype(np.int32)}

    def run(self, images: RawImages, controls: dict[str, Any]) -> RawImages:
        x, y = controls["source"].unbind(1)
        return gather_pixels(images, x[:, None, :], y[:, :, None])
