"""The chain: both executors give the same bytes, which depend on (seed, epoch, image) and on nothing else."""

import pickle
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageFilter
import pytest
import torch
import tyro
from augment_images import CHAINS, REFERENCE, awkward, from_pil, photo_like, to_pil
from hypothesis import given, settings
from hypothesis import strategies as st

from cifar100_tk.augment import (
    OPS,
    Augmentation,
    AugmentPlan,
    AutoAugment,
    BatchedAugmentation,
    Chain,
    Cutout,
    Flip,
    Mix,
    Normalize,
    Op,
    PadCrop,
    RandAugment,
    RandomResizedCrop,
    Row,
    TimmPolicy,
    TrivialAugmentWide,
)
from cifar100_tk.augment.chain import HostImages
from cifar100_tk.draws import ImageDraws, Int64s
from cifar100_tk.errors import ConfigError
from cifar100_tk.tensors import RawImages


def both(chain: Chain, images: HostImages, epoch: int, index: Int64s) -> tuple[HostImages, HostImages]:
    return chain.host(images, epoch, index), chain.device(torch.from_numpy(images), epoch, index).numpy()


@pytest.mark.parametrize("augment", CHAINS, ids=lambda chain: "-".join(type(one).__name__ for one in chain) or "none")
def test_the_device_gives_the_bytes_of_the_host_and_leaves_its_input_alone(augment: tuple[Augmentation, ...]) -> None:
    # More images than the device executor takes at a time on a CPU.
    images = np.concatenate([photo_like(300), awkward()])
    before = images.copy()
    index = np.random.default_rng(0).permutation(50_000)[: len(images)]
    host, device = both(Chain(augment, 2**63), images, 3, index)
    np.testing.assert_array_equal(device, host)
    np.testing.assert_array_equal(images, before)
    unchanged = (host == before).all((1, 2, 3)).mean()
    assert unchanged == 1.0 if augment == () else unchanged < 0.5


share = st.floats(0, 1)
# Classes with their arguments, built in the test: the type checks of the test run draw from `random`, which hypothesis
# forbids while it makes an example.
ANY = st.one_of(
    st.tuples(st.just(Flip), st.fixed_dictionaries({"p": share})),
    st.tuples(
        st.just(PadCrop),
        st.fixed_dictionaries({"padding": st.integers(0, 31), "mode": st.sampled_from(["zero", "reflect"])}),
    ),
    st.tuples(st.just(AutoAugment), st.fixed_dictionaries({"p": share})),
    st.tuples(
        st.just(RandAugment), st.fixed_dictionaries({"num_ops": st.integers(0, 4), "magnitude": st.integers(0, 30)})
    ),
    st.tuples(st.just(TrivialAugmentWide), st.fixed_dictionaries({"num_magnitude_bins": st.integers(2, 50)})),
    st.tuples(
        st.just(RandomResizedCrop),
        st.fixed_dictionaries(
            {
                "scale": st.tuples(st.floats(0.01, 0.5), st.floats(0.5, 1)),
                "ratio": st.tuples(st.floats(1 / 32, 1), st.floats(1, 2)),
            }
        ),
    ),
)


@settings(max_examples=100, deadline=None)
@given(
    count=st.integers(1, 5),
    levels=st.lists(st.integers(0, 255), min_size=1, max_size=300),
    seed=st.integers(0, 2**64 - 1),
    epoch=st.integers(0, 2000),
    first=st.integers(0, 2**32 - 8),
    chain=st.lists(ANY, max_size=4),
)
def test_any_chain_gives_the_same_bytes_on_both_executors(
    count: int, levels: list[int], seed: int, epoch: int, first: int, chain: list[tuple[Any, dict[str, Any]]]
) -> None:
    images = np.random.default_rng(seed).choice(np.array(levels, np.uint8), (count, 3, 32, 32))
    augment = tuple(kind(**arguments) for kind, arguments in chain)
    host, device = both(Chain(augment, seed), images, epoch, np.arange(first, first + count))
    np.testing.assert_array_equal(device, host)


@pytest.mark.parametrize("augment", [REFERENCE, (TimmPolicy(),)], ids=["reference", "timm"])
def test_an_images_augmentation_does_not_depend_on_its_batch(augment: tuple[Augmentation, ...]) -> None:
    images, index = photo_like(60), np.arange(100, 160)
    chain = Chain(augment, 9)
    together = chain.host(images, 4, index)
    order = np.random.default_rng(0).permutation(60)
    for rows in (order[:1], order[:7], order[7:]):
        np.testing.assert_array_equal(chain.host(images[rows], 4, index[rows]), together[rows])
        if not chain.host_only:
            apart = chain.device(torch.from_numpy(images[rows]), 4, index[rows])
            np.testing.assert_array_equal(apart.numpy(), together[rows])


def test_seed_epoch_image_and_place_in_the_chain_each_change_the_draws() -> None:
    images, index = photo_like(100), np.arange(100)

    def flips(seed: int, epoch: int, index: Int64s, before: tuple[Augmentation, ...] = ()) -> HostImages:
        return Chain((*before, Flip()), seed).host(images, epoch, index)

    base = flips(0, 0, index)
    np.testing.assert_array_equal(flips(0, 0, index), base)
    nothing = (PadCrop(padding=0),)
    for other in (flips(1, 0, index), flips(0, 1, index), flips(0, 0, index + 100), flips(0, 0, index, nothing)):
        assert 20 < (other != base).any((1, 2, 3)).sum() < 80


def test_a_chain_travels_to_a_spawned_worker() -> None:
    chain = Chain((*REFERENCE, TimmPolicy()), 1)
    assert pickle.loads(pickle.dumps(chain)) == chain


def test_an_augmentation_of_ones_own_runs_on_the_host_and_if_batched_on_the_device() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Transpose(BatchedAugmentation):
        def draw(self, draws: ImageDraws) -> AugmentPlan:
            return {"turn": draws.uniform(1)[:, 0] < 0.5}

        def apply(self, image: PIL.Image.Image, row: Row) -> PIL.Image.Image:
            return image.transpose(PIL.Image.Transpose.TRANSPOSE) if row["turn"] else image

        def apply_batch(self, images: RawImages, plan: AugmentPlan) -> RawImages:
            return torch.where(torch.from_numpy(plan["turn"])[:, None, None, None], images.mT, images)

    images, index = photo_like(50), np.arange(50)
    host, device = both(Chain((Transpose(),), 0), images, 0, index)
    np.testing.assert_array_equal(device, host)
    turned = (host == images.transpose(0, 1, 3, 2)).all((1, 2, 3))
    np.testing.assert_array_equal(host[~turned], images[~turned])
    assert 10 < turned.sum() < 40


def test_a_host_only_augmentation_is_named_and_refused_on_the_device() -> None:
    assert Chain(REFERENCE, 0).host_only == ()
    chain = Chain((Flip(), TimmPolicy()), 0)
    assert chain.host_only == ("TimmPolicy",)
    with pytest.raises(
        ConfigError, match="TimmPolicy runs on the host only; use --pipeline host, or remove it from the recipe"
    ):
        chain.device(torch.from_numpy(photo_like(2)), 0, np.arange(2))


def test_an_op_without_a_batched_form_takes_its_policy_to_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    # The example of CONTRIBUTING.md.
    monkeypatch.setitem(OPS, "Emboss", Op(name="Emboss", host=lambda image, _: image.filter(PIL.ImageFilter.EMBOSS)))
    policies = (RandAugment(num_ops=1, ops=("Emboss", "Identity")), TrivialAugmentWide(ops=("Emboss", "Identity")))
    for policy in policies:
        chain = Chain((Flip(), policy, AutoAugment()), 0)
        named = f"{type(policy).__name__} with Emboss"
        assert chain.host_only == (named,)
        with pytest.raises(
            ConfigError, match=f"{named} runs on the host only; use --pipeline host, or remove it from the recipe"
        ):
            chain.device(torch.from_numpy(photo_like(2)), 0, np.arange(2))
        images, index = photo_like(40), np.arange(40)
        changed = Chain((policy,), 0).host(images, 0, index)
        embossed = np.stack([from_pil(to_pil(image).filter(PIL.ImageFilter.EMBOSS)) for image in images])
        drawn = (changed == embossed).all((1, 2, 3))
        np.testing.assert_array_equal(changed[~drawn], images[~drawn])
        assert 10 < drawn.sum() < 30
        # Without it the same policies run anywhere.
        assert Chain((replace(policy, ops=("Identity", "Rotate")),), 0).host_only == ()


@pytest.mark.parametrize(
    "component",
    [
        RandomResizedCrop,
        PadCrop,
        Flip,
        AutoAugment,
        RandAugment,
        TrivialAugmentWide,
        TimmPolicy,
        Normalize,
        Cutout,
        Mix,
    ],
)
def test_every_number_can_be_set_on_the_command_line(component: Callable[..., object]) -> None:
    assert tyro.cli(component, args=[]) == component()
    if component is RandomResizedCrop:
        assert tyro.cli(component, args=["--scale", "0.5", "0.9"]) == RandomResizedCrop(scale=(0.5, 0.9))


def test_draws_are_those_of_earlier_releases() -> None:
    # Recorded when the class was called Crop: another stream would give every recipe other crops.
    chain = Chain((RandomResizedCrop(),), 0)
    (plan,) = chain._plans(0, np.arange(4))
    assert plan["box"].tolist() == [[0, 0, 30, 32], [1, 0, 31, 31], [0, 0, 31, 32], [1, 2, 31, 30]]
