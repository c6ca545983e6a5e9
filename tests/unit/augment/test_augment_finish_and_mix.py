"""What the network sees: normalized images with holes, mixed by timm's Mixup from keyed draws, and their targets."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from augment_images import photo_like, unchecked
from timm.data.mixup import Mixup

from cifar100_tk.augment import Cutout, Mix, Normalize, finish, soft_targets
from cifar100_tk.draws import ImageDraws, word
from cifar100_tk.errors import ConfigError
from cifar100_tk.tensors import Images, Labels

MEAN, STD = np.array([0.5071, 0.4867, 0.4408]), np.array([0.2675, 0.2565, 0.2761])


def test_images_are_normalized_float32_in_channels_last() -> None:
    raw_images = photo_like(200)
    images = finish(torch.from_numpy(raw_images), Normalize(), None, 0, 0, np.arange(200))
    assert images.dtype == torch.float32
    assert images.is_contiguous(memory_format=torch.channels_last)
    expected = (raw_images / 255 - MEAN[:, None, None]) / STD[:, None, None]
    np.testing.assert_allclose(images.numpy(), expected, rtol=0, atol=1e-6)


def test_cutout_sets_a_clipped_square_to_the_mean_and_nothing_else() -> None:
    images, index, cutout = photo_like(300), np.arange(300), Cutout(size=16, p=0.5)
    plain = finish(torch.from_numpy(images), Normalize(), None, 4, 1, index).numpy()
    holed = finish(torch.from_numpy(images), Normalize(), cutout, 4, 1, index).numpy()
    plan = cutout.draw(ImageDraws(4, "augment.Cutout", 1, index))
    expected = plain.copy()
    for i, ((left, top),) in enumerate(plan["corner"].tolist()):
        if plan["cut"][i]:
            expected[i, :, max(top, 0) : top + 16, max(left, 0) : left + 16] = 0.0
    np.testing.assert_array_equal(holed, expected)
    assert not np.signbit(holed[holed == 0]).any()
    assert 110 < (holed != plain).any((1, 2, 3)).sum() < 190


def test_cutout_centres_are_even_over_the_image() -> None:
    cutout = Cutout(size=16, p=1.0)
    corner = cutout.draw(ImageDraws(0, "test", 0, np.arange(20_000)))["corner"][:, 0]
    assert np.bincount(corner[:, 0] + 8, minlength=32) / 20_000 == pytest.approx(1 / 32, abs=0.006)
    # A side is 16 for the 17 centres 8..24, and 8..15 and 15..9 nearer the borders: 14 of 32 pixels on average.
    white = torch.full((4_000, 3, 32, 32), 255, dtype=torch.uint8)
    images = finish(white, Normalize(), cutout, 0, 0, np.arange(4_000))
    assert float((images == 0).float().mean()) * 1024 == pytest.approx(14 * 14, abs=3)


@pytest.mark.parametrize("cutout", [Cutout(p=0.0), Cutout(num_holes=0, p=1.0), Cutout(size=0, p=1.0)], ids=str)
def test_cutout_can_be_turned_off(cutout: Cutout) -> None:
    raw_images, index = torch.from_numpy(photo_like(20)), np.arange(20)
    images = finish(raw_images, Normalize(), cutout, 0, 0, index)
    torch.testing.assert_close(images, finish(raw_images, Normalize(), None, 0, 0, index), rtol=0, atol=0)


def test_several_holes_are_cut_each_at_its_place() -> None:
    white = torch.full((500, 3, 32, 32), 255, dtype=torch.uint8)
    cutout = Cutout(num_holes=3, size=5, p=1.0)
    cut = finish(white, Normalize(), cutout, 0, 0, np.arange(500))[:, 0] == 0
    assert cut.flatten(1).sum(1).max() == 75
    assert cut.flatten(1).sum(1).min() >= 9  # three holes in one corner: 3 x 3 pixels of a 5 x 5 hole remain


def test_finish_does_not_depend_on_the_batch() -> None:
    images, index = torch.from_numpy(photo_like(200)), np.arange(200)
    together = finish(images, Normalize(), Cutout(), 8, 5, index)
    rows = np.random.default_rng(0).permutation(200)[:31]
    assert torch.equal(finish(images[rows], Normalize(), Cutout(), 8, 5, index[rows]), together[rows])


def batch(size: int) -> tuple[Images, Labels]:
    generator = torch.Generator().manual_seed(size)
    images = torch.randn(size, 3, 32, 32, generator=generator).contiguous(memory_format=torch.channels_last)
    return images, torch.randint(0, 100, (size,), generator=generator)


@pytest.mark.parametrize(
    "mix", [Mix(), Mix(cutmix_alpha=1.0, switch_p=0.9), Mix(mixup_alpha=0.0, cutmix_alpha=1.0), Mix(p=0.5)], ids=str
)
def test_a_batch_is_mixed_as_timm_mixes_it_from_the_same_seed(mix: Mix) -> None:
    mixer = mix.build(100, 0.1)
    mixed_steps = 0
    for step in range(12):
        images, labels = batch(16)
        reference = Mixup(
            mix.mixup_alpha, mix.cutmix_alpha, None, mix.p, mix.switch_p, label_smoothing=0.1, num_classes=100
        )
        np.random.seed(word(21, "mix", step))
        expected_images, expected_targets = reference(images.clone(), labels)
        mixed, targets = mixer(images.clone(), labels, 21, step)
        assert torch.equal(mixed, expected_images) and torch.equal(targets, expected_targets)
        assert targets.shape == (16, 100)
        torch.testing.assert_close(targets.sum(1), torch.ones(16))
        mixed_steps += not torch.equal(mixed, images)
    assert mixed_steps >= 3


def test_mixup_weighs_image_i_with_image_b_minus_1_minus_i() -> None:
    images, labels = batch(8)
    mixed, targets = Mix(mixup_alpha=1.0).build(100, 0.0)(images.clone(), labels, 0, 0)
    np.random.seed(word(0, "mix", 0))
    np.random.rand()
    lam = np.random.beta(1.0, 1.0)
    torch.testing.assert_close(mixed, lam * images + (1 - lam) * images.flip(0))
    for row, (own, other) in enumerate(zip(labels.tolist(), labels.flip(0).tolist(), strict=True)):
        assert targets[row, own] == pytest.approx(lam if own != other else 1.0, abs=1e-6)
        assert targets[row, other] == pytest.approx(1 - lam if own != other else 1.0, abs=1e-6)


@pytest.mark.parametrize("mix", [Mix(), Mix(mixup_alpha=0.0, cutmix_alpha=1.0)], ids=["mixup", "cutmix"])
@pytest.mark.parametrize("world", [2, 4])
def test_ranks_that_hold_both_partners_mix_as_one_process_does(mix: Mix, world: int) -> None:
    images, labels = batch(16)
    mixer = mix.build(100, 0.1)
    whole_images, whole_targets = mixer(images.clone(), labels, 5, 1)
    for rank in range(world):
        first = torch.arange(rank, 8, world)
        rows = torch.cat([first, (15 - first).flip(0)])
        own_images, own_targets = mixer(images[rows], labels[rows], 5, 1)
        assert torch.equal(own_images, whole_images[rows])
        assert torch.equal(own_targets, whole_targets[rows])


def test_mixing_leaves_numpys_global_generator_alone() -> None:
    np.random.seed(1)
    expected = np.random.rand()
    np.random.seed(1)
    Mix().build(100, 0.0)(*batch(4), 0, 0)
    assert np.random.rand() == expected


def test_an_odd_batch_is_fine_where_mixing_is_off() -> None:
    images, labels = batch(7)
    same, targets = Mix(mixup_alpha=0.0).build(100, 0.1)(images, labels, 0, 0)
    assert torch.equal(same, images)
    assert torch.equal(targets, soft_targets(labels, 100, 0.1))


def test_soft_targets_give_every_class_its_share_of_the_smoothing() -> None:
    targets = soft_targets(torch.tensor([2, 0]), 4, 0.1)
    expected = [[0.025, 0.025, 0.925, 0.025], [0.925, 0.025, 0.025, 0.025]]
    torch.testing.assert_close(targets, torch.tensor(expected))
    assert torch.equal(soft_targets(torch.tensor([1]), 3, 0.0), torch.tensor([[0.0, 1.0, 0.0]]))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: Normalize(mean=(129.0, 124.0, 112.0)),
            r"normalize\.mean=\(129\.0, .* out of range; use values from 0 to 1, in units of 255",
        ),
        (
            lambda: Normalize(std=(0.2, 0.0, 0.2)),
            r"normalize\.std=\(0\.2, 0\.0, 0\.2\) is out of range; use values from 0.001 to 1, in units of 255",
        ),
        (lambda: Cutout(size=-1), r"cutout\.size=-1 is out of range; expected from 0 to 64; use 16, or 0 for none"),
        (lambda: Cutout(num_holes=-1), r"cutout\.num_holes=-1 is out of range"),
        (lambda: Cutout(p=2.0), r"cutout\.p=2\.0 is out of range; expected from 0 to 1; use 0 for never"),
        (
            lambda: Mix(mixup_alpha=-0.2),
            r"mix\.mixup_alpha=-0\.2 is out of range; expected 0, or from 0.001 to 1000; use 0.2, or 0 to turn it off",
        ),
        (lambda: Mix(cutmix_alpha=float("nan")), r"mix\.cutmix_alpha=nan is out of range"),
        (lambda: Mix(p=1.1), r"mix\.p=1\.1 is out of range"),
        (lambda: Mix(switch_p=-1.0), r"mix\.switch_p=-1\.0 is out of range"),
    ],
)
def test_a_wrong_number_is_refused_with_the_remedy(build: Callable[[], object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build()


@pytest.mark.parametrize("field", ["mean", "std"])
@pytest.mark.parametrize("values", [(0.5,), (0.5,) * 4, ()], ids=str)
def test_normalize_wants_three_channels(field: str, values: tuple[float, ...]) -> None:
    message = rf"normalize\.{field}=\(.*\) has {len(values)} values; give three, for red, green and blue"
    with pytest.raises(ConfigError, match=message):
        unchecked(Normalize(), **{field: values})
