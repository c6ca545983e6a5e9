"""Mixing with draws for each image, the phase of mixing, and Cutout beside CutMix."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from augment_images import unchecked
from pipelines import batches
from runs import same_bits

from cifar100_tk.augment import Cutout, Mix, soft_targets
from cifar100_tk.data import Split
from cifar100_tk.errors import ConfigError
from cifar100_tk.tensors import Images, Targets

CUTMIX = Mix(mixup_alpha=0.0, cutmix_alpha=1.0, p=0.5, mode="elem")
BOTH = Mix(mixup_alpha=0.4, cutmix_alpha=1.0, p=0.8, mode="elem")
MIXES = {"CutMix": CUTMIX, "Mixup": dataclasses.replace(BOTH, cutmix_alpha=0.0), "both": BOTH}


def mixed(mix: Mix, size: int = 64, side: int = 32, step: int = 0) -> tuple[Images, Targets, dict[str, Any]]:
    """A batch in which image i is white noise around i, of class i. Returns what becomes of it, and the draws."""
    images = (torch.rand(size, 3, side, side) + 2 * torch.arange(size).view(-1, 1, 1, 1)).contiguous(
        memory_format=torch.channels_last
    )
    mixer = mix.build(size, 0.0)
    drawn = mixer.draw(7, step, np.arange(size), size, side)
    controls = {name: torch.from_numpy(array) for name, array in drawn.controls.items()}
    result, targets = mixer(images.clone(), torch.arange(size), 7, step, controls)
    return result, targets, drawn.controls | {"images": images, "cut": drawn.cut}


@pytest.mark.parametrize("mix", MIXES.values(), ids=MIXES.keys())
@pytest.mark.parametrize("side", [20, 32])
def test_each_image_is_mixed_by_its_own_draws(mix: Mix, side: int) -> None:
    result, targets, drawn = mixed(mix, side=side)
    for i, original in enumerate(drawn["images"]):
        partner, blend = drawn["images"][63 - i], float(drawn["blend"][i])
        expected = original * blend + partner * (1 - blend)
        (top, left), (bottom, right) = drawn["first"][i], drawn["last"][i]
        expected[:, top:bottom, left:right] = partner[:, top:bottom, left:right]
        torch.testing.assert_close(result[i], expected)
        lam = blend - (bottom - top) * (right - left) / side**2
        assert targets[i, i] == pytest.approx(lam, abs=1e-6) and targets[i].sum() == pytest.approx(1)
        assert targets[i, 63 - i] == pytest.approx(1 - lam, abs=1e-6)
    assert result.is_contiguous(memory_format=torch.channels_last)


def test_draws_have_the_distributions_that_the_fields_say() -> None:
    size = 20_000
    drawn = dataclasses.replace(BOTH, mixup_alpha=1.0, switch_p=0.25).build(100, 0.0).draw(0, 0, np.arange(size), size)
    blend, first, last = (drawn.controls[name] for name in ("blend", "first", "last"))
    boxed, blended = (last > first).all(1), blend < 1
    # 0.8 are mixed, a quarter of those by CutMix. A box of 1 pixel is lost when its lambda is above 1 - 1/32**2.
    assert boxed.mean() == pytest.approx(0.2, abs=0.01) and blended.mean() == pytest.approx(0.6, abs=0.01)
    assert not (boxed & blended).any()
    assert blend[blended].mean() == pytest.approx(0.5, abs=0.01)  # Beta(1, 1), uniform.
    # A partner of an image with a box is cut too: 1 - 0.8**2.
    assert drawn.cut.mean() == pytest.approx(0.36, abs=0.01) and (drawn.cut == drawn.cut[::-1]).all()
    # The box has sides 32 * sqrt(1 - lambda) before clipping, and its center is uniform.
    inside = boxed & (first > 0).all(1) & (last < 32).all(1)
    assert len(np.unique((last - first)[inside])) > 20 and (np.ptp((last - first)[inside], axis=1) == 0).all()


def test_another_step_draws_other_boxes() -> None:
    assert not torch.equal(mixed(CUTMIX)[1], mixed(CUTMIX, step=1)[1])
    assert torch.equal(mixed(CUTMIX)[1], mixed(CUTMIX)[1])


@pytest.mark.parametrize("mode", ["batch", "elem"])
def test_cutout_leaves_out_images_that_cutmix_takes_part_in(split: Split, mode: Any) -> None:
    mix = Mix(mixup_alpha=0.0, cutmix_alpha=1.0, p=0.5, mode=mode)
    cutout = Cutout(size=8, p=1.0)
    plain, holed = (batches(split, mix, cutout=given) for given in (None, cutout))
    seen = set()
    for step, (without, with_holes) in enumerate(zip(plain, holed, strict=True)):
        cut = mix.build(100, 0.1).draw(3, step, np.arange(32), 32).cut
        same = (without.images == with_holes.images).all(dim=3).all(dim=2).all(dim=1).numpy()
        np.testing.assert_array_equal(same, cut)
        seen |= set(cut.tolist())
        assert same_bits(without.targets, with_holes.targets)
    assert seen == {True, False}


def test_outside_its_phase_nothing_is_mixed(split: Split) -> None:
    mix = dataclasses.replace(CUTMIX, start=1, in_epochs=True)
    first, second = batches(split, mix)[:3], batches(split, mix)[3:]
    for batch in first:
        labels = torch.from_numpy(split.labels[batch.index])
        assert torch.equal(batch.targets, soft_targets(labels, 100, 0.1))
    assert any((batch.targets.sort(dim=1).values[:, -2] > 0.01).any() for batch in second)


def test_a_mode_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"mix\.mode='pair' is not supported; use 'batch' or 'elem'"):
        unchecked(Mix(), mode="pair")
