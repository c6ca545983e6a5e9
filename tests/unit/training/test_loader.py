"""One batch, any number of processes; the same one from either executor, with any workers, from any step on."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pipelines import AUGMENT, EPOCHS, STEPS_PER_EPOCH, batches, pipeline
from runs import same_bits

from cifar100_tk.augment import (
    AutoAugment,
    Cutout,
    Flip,
    Mix,
    Normalize,
    ProgressiveResize,
    RandomResizedCrop,
    TimmPolicy,
)
from cifar100_tk.data import Split
from cifar100_tk.errors import ConfigError
from cifar100_tk.training.length import RunLength
from cifar100_tk.training.loader import Batch, BatchOrder, choose_executor

BOTH = Mix(mixup_alpha=0.4, cutmix_alpha=1.0, p=0.8, mode="elem")
PER_IMAGE: dict[str, Any] = {
    "resize": ProgressiveResize(sides=(20, 32), starts=(0.0, 0.5)),
    "length": RunLength(EPOCHS * STEPS_PER_EPOCH),
}
STAGES: dict[str, Any] = {
    "resize": ProgressiveResize(sides=(20, 24, 32), starts=(0.0, 0.34, 0.67)),
    "length": RunLength(EPOCHS * STEPS_PER_EPOCH),
}
EVERYTHING: dict[str, Any] = {
    "augment": (RandomResizedCrop(), Flip(), AutoAugment(p=1.0)),  # Few images see few ops, so each draws some.
    "cutout": Cutout(p=1.0),
}
COMPONENTS: dict[str, dict[str, Any]] = {
    "nothing": {"augment": (), "cutout": None},
    "augmentation": {},
    "an odd share": {"batch_size": 24},
    "Mixup": {"mix": Mix(mixup_alpha=0.2)},
    "CutMix": {"mix": Mix(mixup_alpha=0.0, cutmix_alpha=1.0)},
    "both, sometimes": {"mix": Mix(mixup_alpha=0.2, cutmix_alpha=1.0, p=0.7)},
    "CutMix by image": PER_IMAGE | {"mix": replace(BOTH, mixup_alpha=0.0, p=0.5, start=0.3, stop=0.9)},
    "Mixup by image": PER_IMAGE | {"mix": replace(BOTH, cutmix_alpha=0.0, start=0.3, stop=0.9)},
    "both by image": PER_IMAGE | {"mix": replace(BOTH, start=0.3, stop=0.9)},
    "stages": STAGES,
    "stages, mixed": STAGES | {"mix": Mix(mixup_alpha=0.2, cutmix_alpha=1.0)},
    "enlarged": {"image_size": 48, "stop": 2},
    "enlarged, mixed": {"image_size": 48, "stop": 2, "mix": Mix(mixup_alpha=0.2, cutmix_alpha=1.0)},
    "every op": EVERYTHING | {"mix": Mix(mixup_alpha=0.2)},
}
"""What the batches of a run depend on, a component at a time."""


def assert_same(ours: list[Batch], theirs: list[Batch]) -> None:
    assert [batch.step for batch in ours] == [batch.step for batch in theirs] and theirs
    for our, their in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(our.index, their.index)
        assert same_bits(our.images, their.images) and same_bits(our.targets, their.targets)


def joined(shares: list[list[Batch]]) -> list[Batch]:
    """The batches that processes see together, each in the order of its rows."""
    return [in_order(*parts) for parts in zip(*shares, strict=True)]


def in_order(*parts: Batch) -> Batch:
    index = np.concatenate([part.index for part in parts])
    order = torch.from_numpy(np.argsort(index))
    assert len({len(part.index) for part in parts}) == 1 and len(set(index.tolist())) == len(index)
    images, targets = torch.cat([part.images for part in parts]), torch.cat([part.targets for part in parts])
    return Batch(parts[0].step, index[order], images[order], targets[order])


def mixes(batch: Batch) -> bool:
    """Whether images of a batch are of two classes; the smoothed target of another has one value for all other classes."""
    return bool((batch.targets.sort(dim=1).values[:, -2] > 0.01).any())


@pytest.mark.parametrize("given", COMPONENTS.values(), ids=COMPONENTS.keys())
def test_a_batch_is_the_same_bits_from_either_executor_on_any_number_of_processes_and_from_any_step_on(
    split: Split, given: dict[str, Any]
) -> None:
    alone = batches(split, **given)
    assert_same(batches(split, executor="host", **given), alone)
    for world in (2, 4, 8):
        shares = [batches(split, rank=rank, world=world, **given) for rank in range(world)]
        assert_same(joined(shares), joined([alone]))
    for executor in ("device", "host"):
        assert_same(batches(split, executor=executor, start=len(alone) - 1, **given), alone[-1:])


def test_each_component_leaves_its_mark_on_the_batches(split: Split) -> None:
    # Without that, their being the same would say nothing.
    mixed = {name: [mixes(batch) for batch in batches(split, **given)] for name, given in COMPONENTS.items()}
    assert {name: any(found) for name, found in mixed.items()} == {
        name: "mix" in COMPONENTS[name] for name in COMPONENTS
    }
    phase = [False, False, True, True, True, False]
    assert [found for name, found in mixed.items() if "by image" in name] == [phase] * 3
    sides = {name: [batch.images.shape[-1] for batch in batches(split, **given)] for name, given in COMPONENTS.items()}
    assert sides.pop("stages") == sides.pop("stages, mixed") == [20, 20, 24, 24, 32, 32]
    assert sides.pop("enlarged") == sides.pop("enlarged, mixed") == [48, 48]
    assert {tuple(found) for name, found in sides.items() if "by image" in name} == {(20, 20, 20, 32, 32, 32)}
    whole = COMPONENTS["every op"]
    others: list[dict[str, Any]] = [{"augment": whole["augment"][:2]}, {"cutout": None}, {"mix": None}]
    for changes in others:
        pairs = zip(batches(split, **whole), batches(split, **whole | changes), strict=True)
        assert not any(torch.equal(ours.images, theirs.images) for ours, theirs in pairs), changes


@given(st.integers(1, 12), st.integers(1, 6))
def test_ranks_divide_the_batch_and_partners_stay_together(world: int, half: int) -> None:
    batch_size = 2 * half * world
    orders = [BatchOrder(0, np.arange(batch_size), batch_size, 1, rank, world) for rank in range(world)]
    together = np.concatenate([order.positions for order in orders])
    assert sorted(together.tolist()) == list(range(batch_size))
    for order in orders:
        # Mixup pairs the local places i and b-1-i; they must be partners in the global batch too.
        np.testing.assert_array_equal(order.positions + order.positions[::-1], batch_size - 1)


def test_an_odd_share_with_mixing_is_refused(split: Split) -> None:
    with pytest.raises(ConfigError, match="batch_size=24 gives each of 8 processes 3, an odd number; use 32"):
        pipeline(split, Mix(), 0, 8, batch_size=24)


@pytest.mark.parametrize(
    ("batch_size", "world", "remedy"), [(100, 8, "use 96 or 104"), (5, 8, "use 8"), (2047, 2, "use 2046 or 2048")]
)
def test_a_batch_that_does_not_divide_is_refused_with_sizes_that_do(batch_size: int, world: int, remedy: str) -> None:
    with pytest.raises(
        ConfigError, match=rf"batch_size={batch_size} does not split over {world} processes; {remedy}\."
    ):
        BatchOrder(0, np.arange(5000), batch_size, 1, 0, world)


def test_an_epoch_shows_no_image_twice_and_the_next_epoch_shows_them_in_another_order(split: Split) -> None:
    seen = [batch.index for batch in batches(split)]
    epochs = [np.concatenate(seen[first : first + STEPS_PER_EPOCH]).tolist() for first in (0, STEPS_PER_EPOCH)]
    for epoch in epochs:
        assert len(epoch) == len(set(epoch)) == 96
        assert set(epoch) <= set(split.index.tolist())
    assert epochs[0] != epochs[1] and set(epochs[0]) != set(epochs[1])


def test_an_image_looks_another_way_in_another_epoch_and_is_the_store_s_without_augmentation(split: Split) -> None:
    plain = batches(split, augment=(), cutout=None)
    scale, shift = Normalize().factors(torch.device("cpu"))
    for batch in plain:
        expected = torch.from_numpy(split.images[batch.index]).float() * scale - shift
        torch.testing.assert_close(batch.images, expected)
        hit = batch.targets.argmax(dim=1).numpy()
        np.testing.assert_array_equal(hit, split.labels[batch.index])
    row = next(iter(set(plain[0].index.tolist()) & {r for b in plain[STEPS_PER_EPOCH:] for r in b.index.tolist()}))
    looks = [b.images[b.index.tolist().index(row)] for b in batches(split) if row in b.index]
    assert len(looks) == 2 and not torch.equal(*looks)


def test_a_hole_is_elsewhere_in_another_epoch(split: Split) -> None:
    holes: list[dict[int, torch.Tensor]] = [{}, {}]
    for batch in batches(split, augment=(), cutout=Cutout(p=1.0)):
        blank = (batch.images == 0).all(dim=1)
        holes[batch.step // STEPS_PER_EPOCH] |= dict(zip(batch.index.tolist(), blank, strict=True))
    both = holes[0].keys() & holes[1].keys()
    # One in 1,024 is where it was.
    assert len(both) > 80 and sum(torch.equal(holes[0][row], holes[1][row]) for row in both) < 5


def test_lambda_is_another_at_each_step(split: Split) -> None:
    shares = {round(batch.targets.amax(dim=1).min().item(), 6) for batch in batches(split, Mix(mixup_alpha=1.0))}
    assert len(shares) == EPOCHS * STEPS_PER_EPOCH


def test_targets_are_smoothed_as_timm_does(split: Split) -> None:
    (batch,) = batches(split, stop=1)
    # eps / C = 0.001 on every class, and 1 - eps more on the true one.
    assert batch.targets.shape == (32, 100)
    torch.testing.assert_close(batch.targets.max(dim=1).values, torch.full((32,), 0.901))
    torch.testing.assert_close(batch.targets.min(dim=1).values, torch.full((32,), 0.001))


def test_the_number_of_workers_changes_nothing(split: Split) -> None:
    alone = batches(split, Mix(), executor="host", workers=0)
    assert_same(batches(split, Mix(), executor="host", workers=2), alone)


def test_after_the_last_step_there_is_no_batch(split: Split) -> None:
    assert batches(split, start=EPOCHS * STEPS_PER_EPOCH) == []


def test_images_are_float32_in_channels_last(split: Split) -> None:
    (batch,) = batches(split, Mix(), stop=1)
    assert batch.images.dtype == torch.float32 and batch.images.shape == (32, 3, 32, 32)
    assert batch.images.is_contiguous(memory_format=torch.channels_last)


def test_auto_takes_the_device_unless_something_needs_pillow() -> None:
    policy = TimmPolicy()
    cpu = torch.device("cpu")
    assert choose_executor("auto", AUGMENT, cpu, 10**9) == ("device", "every augmentation is batched")
    assert choose_executor("auto", (Flip(), policy), cpu, 0) == ("host", "TimmPolicy on Pillow images only")
    assert choose_executor("auto", AUGMENT, torch.device("mps"), 0) == ("host", "mps has no float64")
    assert choose_executor("host", AUGMENT, cpu, 0) == ("host", "as asked")
    with pytest.raises(ConfigError, match=r"--pipeline device cannot run TimmPolicy, .*; use --pipeline auto"):
        choose_executor("device", (policy,), cpu, 0)
