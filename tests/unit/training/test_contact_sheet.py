"""The contact sheet: it shows the images that the network sees, with their classes and weights."""

import dataclasses
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from runs import TINY

from cifar100_tk.augment import Normalize
from cifar100_tk.data.contact_sheet import CAPTION, COLUMNS, MARGIN, SCALE, TILE
from cifar100_tk.train import train
from cifar100_tk.training.contact_sheet import draw_batch
from cifar100_tk.training.loader import Batch
from cifar100_tk.training.plan import RunOptions

NAMES = tuple(f"class_{number}" for number in range(100))


def batch_of(raw_images: np.ndarray, targets: torch.Tensor) -> Batch:
    normalize = Normalize()
    scale, shift = normalize.factors(torch.device("cpu"))
    images = torch.from_numpy(raw_images).float() * scale - shift
    return Batch(0, np.arange(len(raw_images)), images, targets)


def test_every_tile_is_its_image_enlarged() -> None:
    images = np.random.default_rng(0).integers(0, 256, (COLUMNS + 1, 3, 32, 32), np.uint8)
    sheet = np.asarray(draw_batch(batch_of(images, torch.eye(100)[: len(images)]), Normalize(), NAMES))
    assert sheet.shape == (MARGIN + 2 * (TILE + CAPTION + MARGIN), MARGIN + COLUMNS * (TILE + MARGIN), 3)
    for place, image in enumerate(images):
        top = MARGIN + place // COLUMNS * (TILE + CAPTION + MARGIN)
        left = MARGIN + place % COLUMNS * (TILE + MARGIN)
        tile = sheet[top : top + TILE, left : left + TILE]
        assert (tile[::SCALE, ::SCALE] == image.transpose(1, 2, 0)).all()


def test_a_caption_is_drawn_for_each_class_and_not_for_smoothing() -> None:
    plain = torch.full((1, 100), 0.001)
    plain[0, 3] = 1 - 0.099
    mixed = plain.clone()
    mixed[0, 3], mixed[0, 4] = 0.6, 0.302
    images = np.zeros((1, 3, 32, 32), np.uint8)

    def inked_rows(targets: torch.Tensor) -> int:
        caption = np.asarray(draw_batch(batch_of(images, targets), Normalize(), NAMES))[MARGIN + TILE :]
        return int((caption < 128).any(axis=(1, 2)).sum())

    one, two = inked_rows(plain), inked_rows(mixed)
    assert 6 <= one <= 15 and one + 6 <= two


def test_a_name_too_long_for_its_tile_does_not_run_into_the_next() -> None:
    images = np.zeros((2, 3, 32, 32), np.uint8)
    names = ("x" * 200, *NAMES[1:])
    sheet = np.asarray(draw_batch(batch_of(images, torch.eye(100)[[0, 1]]), Normalize(), names))
    gap = sheet[MARGIN + TILE :, MARGIN + TILE : MARGIN + TILE + MARGIN]
    assert (gap == 255).all()


@pytest.mark.usefixtures("on_cpu")
def test_the_option_draws_the_first_batch_and_trains_nothing(tmp_path: Path) -> None:
    drawn = tmp_path / "sheet.png"
    options = RunOptions(output_dir=tmp_path / "run", contact_sheet=drawn)
    assert train(dataclasses.replace(TINY), options) is None
    with PIL.Image.open(drawn) as sheet:
        assert sheet.format == "PNG" and sheet.size[0] == MARGIN + COLUMNS * (TILE + MARGIN)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["sheet.png"]
