"""Crop, padded crop and flip: their boxes against torchvision's, their bytes against Pillow's."""

from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
import torch
from augment_images import awkward, from_pil, photo_like, to_pil, unchecked
from torchvision.transforms import RandomResizedCrop as TorchvisionCrop
from torchvision.transforms import functional as F

from cifar100_tk.augment import Chain, Flip, PadCrop, RandomResizedCrop
from cifar100_tk.draws import ImageDraws
from cifar100_tk.errors import ConfigError

COUNT = 20_000


def draws(count: int = COUNT, epoch: int = 1) -> ImageDraws:
    return ImageDraws(3, "test", epoch, np.arange(count))


@pytest.mark.parametrize(
    "crop",
    [
        RandomResizedCrop(),
        RandomResizedCrop(scale=(0.3, 1.0), ratio=(0.5, 1.5)),
        RandomResizedCrop(scale=(0.9, 1.0), ratio=(0.5, 0.6)),
    ],
    ids=str,
)
def test_boxes_are_distributed_as_torchvisions(crop: RandomResizedCrop) -> None:
    boxes = crop.draw(draws())["box"]
    left, top, width, height = boxes.T
    assert (boxes[:, :2] >= 0).all() and (boxes[:, 2:] > 0).all()
    assert (left + width <= 32).all() and (top + height <= 32).all()
    torch.manual_seed(0)
    image = to_pil(photo_like(1)[0])
    reference = [TorchvisionCrop.get_params(image, list(crop.scale), list(crop.ratio)) for _ in range(COUNT // 4)]
    expected = Counter((w, h) for _, _, h, w in reference)
    ours = Counter(zip(width.tolist(), height.tolist(), strict=True))
    for size in expected | ours:
        assert ours[size] / COUNT == pytest.approx(expected[size] / len(reference), abs=0.015)
    assert left.mean() == pytest.approx(np.mean([box[1] for box in reference]), abs=0.15)
    assert top.mean() == pytest.approx(np.mean([box[0] for box in reference]), abs=0.15)


@pytest.mark.parametrize(("ratio", "box"), [((2.0, 3.0), [0, 8, 32, 16]), ((0.25, 0.5), [8, 0, 16, 32])])
def test_a_box_that_never_fits_falls_back_to_the_centre(ratio: tuple[float, float], box: list[int]) -> None:
    boxes = RandomResizedCrop(scale=(1.0, 1.0), ratio=ratio).draw(draws(50))["box"]
    np.testing.assert_array_equal(boxes, np.tile(box, (50, 1)))


def test_a_crop_is_torchvisions_resized_crop_to_the_byte() -> None:
    images = np.concatenate([photo_like(300), awkward()])
    crop = RandomResizedCrop(scale=(0.05, 1.0), ratio=(0.4, 2.5))
    boxes = crop.draw(draws(len(images)))["box"]
    expected = [
        from_pil(F.resized_crop(to_pil(image), top, left, height, width, [32, 32]))
        for image, (left, top, width, height) in zip(images, boxes.tolist(), strict=True)
    ]
    on_host = [from_pil(crop.apply(to_pil(p), {"box": box})) for p, box in zip(images, boxes.tolist(), strict=True)]
    np.testing.assert_array_equal(on_host, expected)
    np.testing.assert_array_equal(crop.apply_batch(torch.from_numpy(images), {"box": boxes}).numpy(), expected)


def test_boxes_of_all_1024_sizes_resize_as_pillow_does() -> None:
    sizes = np.stack(np.meshgrid(np.arange(1, 33), np.arange(1, 33)), -1).reshape(-1, 2)
    boxes = np.concatenate([(32 - sizes) // 2, sizes], 1)
    images = np.random.default_rng(0).integers(0, 256, (1024, 3, 32, 32), np.uint8)
    host = [
        from_pil(RandomResizedCrop().apply(to_pil(p), {"box": b})) for p, b in zip(images, boxes.tolist(), strict=True)
    ]
    np.testing.assert_array_equal(
        RandomResizedCrop().apply_batch(torch.from_numpy(images), {"box": boxes}).numpy(), host
    )


@pytest.mark.parametrize(("mode", "torchvisions"), [("zero", "constant"), ("reflect", "reflect")])
@pytest.mark.parametrize("padding", [0, 4, 31])
def test_a_padded_crop_is_torchvisions_pad_and_crop(mode: str, torchvisions: str, padding: int) -> None:
    images = photo_like(64)
    augment = PadCrop(padding=padding, mode=mode)  # type: ignore[arg-type]
    plan = augment.draw(draws(len(images)))
    assert plan["corner"].min() >= 0 and plan["corner"].max() <= 2 * padding
    expected = [
        from_pil(F.crop(F.pad(to_pil(image), [padding], padding_mode=torchvisions), top, left, 32, 32))
        for image, (left, top) in zip(images, plan["corner"].tolist(), strict=True)
    ]
    rows = [{"corner": corner} for corner in plan["corner"].tolist()]
    host = [from_pil(augment.apply(to_pil(p), row)) for p, row in zip(images, rows, strict=True)]
    np.testing.assert_array_equal(host, expected)
    np.testing.assert_array_equal(augment.apply_batch(torch.from_numpy(images), plan).numpy(), expected)


def test_a_padded_crop_draws_every_corner_equally_often() -> None:
    corner = PadCrop(padding=4).draw(draws())["corner"]
    counts = np.bincount(corner[:, 0] * 9 + corner[:, 1], minlength=81)
    assert counts / COUNT == pytest.approx(1 / 81, abs=0.004)


def test_flips_mirror_their_share_of_the_images() -> None:
    images, index = photo_like(200), np.arange(200)
    chain = Chain((Flip(p=0.5),), 1)
    flipped = chain.host(images, 0, index)
    same = (flipped == images).all((1, 2, 3))
    assert 70 < same.sum() < 130
    np.testing.assert_array_equal(flipped[~same], images[~same][..., ::-1])
    np.testing.assert_array_equal(chain.device(torch.from_numpy(images), 0, index).numpy(), flipped)
    for p in (0.0, 0.3, 1.0):
        assert Flip(p=p).draw(draws())["flip"].mean() == pytest.approx(p, abs=0.01)


def test_alternating_flips_show_each_side_every_second_epoch() -> None:
    flips = [Flip(alternate=True).draw(draws(epoch=epoch))["flip"] for epoch in range(4)]
    np.testing.assert_array_equal(flips[1], ~flips[0])
    np.testing.assert_array_equal(flips[2], flips[0])
    np.testing.assert_array_equal(flips[3], ~flips[0])
    assert flips[0].mean() == pytest.approx(0.5, abs=0.01)
    by_chance = [Flip().draw(draws(epoch=epoch))["flip"] for epoch in range(2)]
    assert (by_chance[0] == by_chance[1]).mean() == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: RandomResizedCrop(scale=(1.0, 0.8)),
            r"crop\.scale=\(1\.0, 0\.8\) is not a range of areas; expected 1/1024 <= low <= high <= 1",
        ),
        (lambda: RandomResizedCrop(scale=(0.0, 0.8)), r"crop\.scale=\(0\.0, 0\.8\) is not a range of areas"),
        (
            lambda: RandomResizedCrop(ratio=(1.1, 0.9)),
            r"crop\.ratio=\(1\.1, 0\.9\) is not a range .*, such as \(0\.9, 1\.1\)",
        ),
        (lambda: RandomResizedCrop(ratio=(0.9, float("nan"))), r"crop\.ratio=\(0\.9, nan\) is not a range"),
        (
            lambda: PadCrop(padding=32),
            r"pad_crop\.padding=32 is out of range; expected from 0 to 31; use 4, or 0 for none",
        ),
        (
            lambda: unchecked(PadCrop(), mode="wrap"),
            r"pad_crop\.mode='wrap' is not a padding mode; use 'zero' or 'refl",
        ),
        (lambda: Flip(p=-0.1), r"flip\.p=-0\.1 is out of range; expected from 0 to 1"),
        (
            lambda: Flip(p=0.3, alternate=True),
            r"flip\.p=0\.3 cannot be combined with .*; use p=0\.5, or alternate=False",
        ),
    ],
)
def test_a_wrong_number_is_refused_with_the_remedy(build: Callable[[], object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build()
