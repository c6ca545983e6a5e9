"""Progressive resizing: the stages as a table, and images scaled as Pillow scales them."""

from __future__ import annotations

import numpy as np
import PIL.Image
import pytest
import torch
from runs import tiny

from cifar100_tk.augment import ProgressiveResize, resize_images
from cifar100_tk.errors import ConfigError


def test_stages_as_a_table() -> None:
    sides = [ProgressiveResize().side(step, 20) for step in range(20)]
    assert sides == [20] * 7 + [24] * 7 + [32] * 6


def test_images_are_scaled_as_pillow_scales_them() -> None:
    # Pillow's bilinear filter is antialiased too. It rounds to bytes, so an image in 0..255 agrees to within one.
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    theirs = np.asarray(PIL.Image.fromarray(pixels).resize((20, 20), PIL.Image.Resampling.BILINEAR))
    ours = resize_images(torch.from_numpy(pixels).permute(2, 0, 1)[None].float(), 20)[0].permute(1, 2, 0).numpy()
    assert np.abs(ours - theirs).max() <= 1.0


def test_full_size_leaves_images_as_they_are() -> None:
    images = torch.rand(2, 3, 32, 32)
    assert resize_images(images, 32) is images


@pytest.mark.parametrize(
    ("sides", "starts", "sentence"),
    [
        ((20, 32), (0.0,), "differ in length; give each stage a side and a start"),
        ((20, 513), (0.0, 0.5), r"resize\.sides=\(20, 513\) is out of range; expected from 1 to 512; use 20 24 32"),
        ((20, 32), (0.1, 0.5), "start at 0 and increase to below 1"),
        ((20, 24, 32), (0.0, 0.5, 0.5), "start at 0 and increase to below 1"),
        ((20, 32), (0.0, 1.0), "out of range; expected from 0 to below 1; use 0.0 0.35 0.7"),
    ],
)
def test_stages_that_are_none_are_refused(sides: tuple[int, ...], starts: tuple[float, ...], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        ProgressiveResize(sides=sides, starts=starts)


def test_images_are_enlarged_as_pillow_and_so_timm_enlarges_them() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    theirs = np.asarray(PIL.Image.fromarray(pixels).resize((224, 224), PIL.Image.Resampling.BILINEAR))
    ours = resize_images(torch.from_numpy(pixels).permute(2, 0, 1)[None].float(), 224)[0].permute(1, 2, 0).numpy()
    assert np.abs(ours - theirs).max() <= 1.0


def test_the_last_stage_is_the_size_of_the_recipe() -> None:
    tiny(image_size=64, resize=ProgressiveResize(sides=(32, 64), starts=(0.0, 0.5)))
    with pytest.raises(
        ConfigError, match=r"resize.sides=\(20, 24, 32\) end at 32 pixels, but image_size=64; .* make them equal"
    ):
        tiny(image_size=64, resize=ProgressiveResize())
    with pytest.raises(ConfigError, match=r"image_size=7 is out of range; expected from 8 to 512; use 32, or 224"):
        tiny(image_size=7)
