"""The ops and the policies made of them: every bin and sign against torchvision's, on Pillow and as tensor programs."""

from collections.abc import Callable

import numpy as np
import PIL.ImageOps
import pytest
import torch
from augment_images import awkward, from_pil, photo_like, to_pil, unchecked
from torchvision.transforms import InterpolationMode, autoaugment

from cifar100_tk.augment import OPS, AutoAugment, Chain, Filter, LookupTable, Op, RandAugment, TrivialAugmentWide
from cifar100_tk.augment.policies import CIFAR10
from cifar100_tk.draws import ImageDraws, uniform
from cifar100_tk.errors import ConfigError

IMAGES = np.concatenate([photo_like(8), awkward()])
FEW = IMAGES[[0, 1, 2, 10, 14]]  # where there are many magnitudes
SPACES = {
    ("standard", 10): autoaugment.AutoAugment()._augmentation_space(10, (32, 32)),
    ("standard", 31): autoaugment.RandAugment()._augmentation_space(31, (32, 32)),
    ("wide", 31): autoaugment.TrivialAugmentWide()._augmentation_space(31),
}
CASES = [(kind, bins, name) for (kind, bins), space in SPACES.items() for name in space]


def test_the_cases_hold_every_op_of_every_space() -> None:
    assert len(CASES) == 14 + 14 + 14
    assert {name for _, _, name in CASES} == set(OPS)


@pytest.mark.parametrize(("kind", "bins", "name"), CASES)
def test_every_bin_and_sign_gives_torchvisions_bytes_on_both_executors(kind: str, bins: int, name: str) -> None:
    magnitudes, signed = SPACES[kind, bins][name]
    expected_range = magnitudes.double().reshape(-1).tolist()
    op, place = OPS[name], list(OPS).index(name)
    of_kind = op.wide if kind == "wide" else op.standard
    assert ([0.0] if of_kind is None else of_kind(bins).tolist()) == expected_range
    assert op.signed == signed
    images = FEW if len(expected_range) > 1 else IMAGES
    on_pil = [to_pil(image) for image in images]
    for magnitude in [sign * m for m in expected_range for sign in ((1, -1) if signed else (1,))]:
        reference = [
            from_pil(autoaugment._apply_op(image, name, magnitude, InterpolationMode.NEAREST, None)) for image in on_pil
        ]
        np.testing.assert_array_equal([from_pil(op.host(image, magnitude)) for image in on_pil], reference)
        plan = {"op": np.full((len(on_pil), 1), place), "magnitude": np.full((len(on_pil), 1), magnitude)}
        batched = RandAugment().apply_batch(torch.from_numpy(images), plan)
        np.testing.assert_array_equal(batched.numpy(), reference)


def test_the_policy_table_is_torchvisions() -> None:
    policy = autoaugment.AutoAugmentPolicy.CIFAR10
    assert list(CIFAR10) == autoaugment.AutoAugment(policy)._get_policies(policy)


def test_autoaugment_gives_what_torchvision_gives_for_the_same_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    count, seed, epoch = 600, 5, 2
    images, index = photo_like(count), np.arange(count)
    drawn = uniform(seed, "augment.0.AutoAugment", epoch, index, 6)
    reference = autoaugment.AutoAugment(autoaugment.AutoAugmentPolicy.CIFAR10)
    seen = np.zeros((25, 2), int)

    def params(row: int) -> Callable[[int], tuple[int, torch.Tensor, torch.Tensor]]:
        _, which, first, second, *signs = drawn[row]
        policy = int(which * 25)
        seen[policy] += [first <= CIFAR10[policy][0][1], second <= CIFAR10[policy][1][1]]
        sign = torch.tensor([int(one >= 0.5) for one in signs])
        return lambda _: (policy, torch.tensor([first, second], dtype=torch.float64), sign)

    expected = []
    for row in range(count):
        monkeypatch.setattr(reference, "get_params", params(row))
        expected.append(from_pil(reference(to_pil(images[row]))))
    never = [[p == 0.0 for _, p, _ in pair] for pair in CIFAR10]
    assert ((seen > 0) | never).all(), "600 images drew every op of all 25 sub-policies"
    chain = Chain((AutoAugment(p=1.0),), seed)
    np.testing.assert_array_equal(chain.host(images, epoch, index), expected)
    np.testing.assert_array_equal(chain.device(torch.from_numpy(images), epoch, index).numpy(), expected)


def test_autoaugment_leaves_its_share_of_the_images_alone() -> None:
    def touched(p: float) -> float:
        plan = AutoAugment(p=p).draw(_draws(20_000))
        return float((plan["op"] >= 0).any(1).mean())

    assert touched(0.0) == 0.0
    # Chance that at least one op of the pair is applied, averaged over the pairs.
    some_op = np.mean([1 - (1 - a[1]) * (1 - b[1]) for a, b in CIFAR10])
    assert touched(1.0) == pytest.approx(some_op, abs=0.01)
    assert touched(0.7) == pytest.approx(0.7 * some_op, abs=0.01)


def test_randaugment_draws_all_ops_evenly_at_one_magnitude_and_both_signs() -> None:
    plan = RandAugment(num_ops=3, magnitude=20).draw(_draws(7_000))
    assert plan["op"].shape == plan["magnitude"].shape == (7_000, 3)
    counts = np.bincount(plan["op"].ravel(), minlength=len(OPS))
    names = list(OPS)
    assert counts[names.index("Invert")] == 0
    assert np.delete(counts, names.index("Invert")) / 21_000 == pytest.approx(1 / 14, abs=0.01)
    rotations = plan["magnitude"][plan["op"] == names.index("Rotate")]
    assert set(np.unique(rotations)) == {-20.0, 20.0}
    assert (rotations > 0).mean() == pytest.approx(0.5, abs=0.05)


def test_trivialaugment_draws_one_op_at_any_magnitude_of_the_wide_range() -> None:
    plan = TrivialAugmentWide().draw(_draws(20_000))
    assert plan["op"].shape == (20_000, 1)
    rotations = plan["magnitude"][plan["op"] == list(OPS).index("Rotate")]
    assert np.unique(np.abs(rotations)) == pytest.approx(np.arange(31) * 4.5, abs=1e-4)


def test_an_op_of_ones_own_runs_on_both_executors(monkeypatch: pytest.MonkeyPatch) -> None:
    mirror = Op(
        name="Mirror",
        host=lambda image, _: PIL.ImageOps.mirror(image),
        batched=Filter(lambda images, _: images.flip(3)),
    )
    darken = Op(
        name="Darken",
        host=lambda image, magnitude: image.point(lambda value: max(0, value - int(magnitude))),
        batched=LookupTable(lambda images, magnitude: (torch.arange(256) - magnitude[:, None, None]).clamp(0).byte()),
        standard=lambda bins: np.arange(bins, dtype=np.float64),
    )
    monkeypatch.setitem(OPS, "Mirror", mirror)
    monkeypatch.setitem(OPS, "Darken", darken)
    images, index = photo_like(16), np.arange(16)
    chain = Chain((RandAugment(num_ops=1, magnitude=9, ops=("Mirror", "Darken")),), 0)
    augmented = chain.host(images, 0, index)
    mirrored = (augmented == images[..., ::-1]).all((1, 2, 3))
    assert 0 < mirrored.sum() < 16
    np.testing.assert_array_equal(augmented[~mirrored], np.maximum(images[~mirrored].astype(int) - 9, 0))
    np.testing.assert_array_equal(chain.device(torch.from_numpy(images), 0, index).numpy(), augmented)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: AutoAugment(p=1.5),
            r"auto_augment\.p=1\.5 is out of range; expected from 0 to 1; use 0 for never, 1 for always",
        ),
        (
            lambda: unchecked(AutoAugment(), policy="svhn"),
            r"auto_augment\.policy='svhn' is not a policy; use 'cifar10'",
        ),
        (lambda: RandAugment(magnitude=31), r"rand_augment\.magnitude=31 is out of range; .* from 0 to 30"),
        (lambda: RandAugment(num_ops=-1), r"rand_augment\.num_ops=-1 is out of range"),
        (
            lambda: RandAugment(ops=("Blur",)),
            r"rand_augment\.ops=\('Blur',\) .* contains an unknown op; use names from Id",
        ),
        (lambda: TrivialAugmentWide(num_magnitude_bins=1), r"num_magnitude_bins=1 is out of range; .* from 2"),
    ],
)
def test_a_wrong_number_is_refused_with_the_remedy(build: Callable[[], object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build()


def _draws(count: int) -> ImageDraws:
    return ImageDraws(3, "test", 1, np.arange(count))
