"""SAM: the step worked out by hand, what it leaves alone, and that every way of computing it gives the same."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import SHAPES, forget, same_bits, tiny
from torch import Tensor, nn

from cifar100_tk.distributed.launch import Precision, start_accelerator
from cifar100_tk.errors import ConfigError
from cifar100_tk.models import TimmModel
from cifar100_tk.optim import SAM, SGD, AdamW, Ema
from cifar100_tk.recipe import Recipe
from cifar100_tk.train import train_step
from cifar100_tk.training.loader import Batch
from cifar100_tk.training.plan import Plan, RunOptions
from cifar100_tk.training.state import TrainState

pytestmark = pytest.mark.usefixtures("on_cpu")
PLAIN = tiny(optimizer=SGD(lr=0.2, momentum=0.0, nesterov=False))
SHARP = dataclasses.replace(PLAIN, sam=SAM(rho=0.05, num_images=7))
BATCH_NORM = TimmModel(name="resnet10_cifar_w16")


def made(
    recipe: Recipe, path: Path, scaler: bool = False, compiled: bool = False, precision: Precision = "auto"
) -> tuple[TrainState, Plan, Batch]:
    forget()
    accelerator = start_accelerator(path, precision=precision)
    if scaler:
        accelerator.scaler = torch.amp.GradScaler("cpu")
    plan = Plan.of(recipe, RunOptions(), accelerator, SHAPES.open("train"))
    state = TrainState.build(recipe, accelerator, 100, compile_model=compiled)
    return state, plan, next(iter(plan.pipeline.batches(0, 1)))


def weights(state: TrainState) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in state.net.parameters()]


def step(recipe: Recipe, path: Path, micro_batch: int = 20, **options: Any) -> list[Tensor]:
    state, plan, batch = made(recipe, path, **options)
    loss, finite = train_step(state, batch, 0.2, micro_batch, sam_images=plan.sam_images(0))
    assert finite.item() and loss.item() > 0 and state.step == 1
    return weights(state)


def test_a_step_takes_the_gradient_of_the_whole_batch_where_the_first_images_point(tmp_path: Path) -> None:
    state, _, batch = made(PLAIN, tmp_path)
    parameters, before = list(state.net.parameters()), weights(state)
    loss = PLAIN.loss(state.net(batch.images[:7]), batch.targets[:7])
    gradient = torch.autograd.grad(loss, parameters)
    norm = torch.cat([part.flatten() for part in gradient]).norm()
    with torch.no_grad():
        for parameter, part in zip(parameters, gradient, strict=True):
            parameter.add_(0.05 * part / norm)
    there = torch.autograd.grad(PLAIN.loss(state.net(batch.images), batch.targets), parameters)
    expected = [old - 0.2 * part for old, part in zip(before, there, strict=True)]
    ours = step(SHARP, tmp_path)
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-7)
    # Else the comparison would say nothing about SAM.
    plain = step(PLAIN, tmp_path)
    assert max((a - b).abs().max().item() for a, b in zip(ours, plain, strict=True)) > 1e-5


@pytest.mark.parametrize(
    "changes", [{"micro_batch": 3}, {"scaler": True}], ids=["in micro-batches", "with a loss scale"]
)
def test_other_ways_of_computing_a_step_give_the_same(tmp_path: Path, changes: dict[str, Any]) -> None:
    torch.testing.assert_close(step(SHARP, tmp_path, **changes), step(SHARP, tmp_path), rtol=1e-5, atol=2e-7)


def test_a_compiled_network_is_moved_and_moved_back_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The same graphs as those that Inductor gets, run as they are.
    compiler = functools.partialmethod(nn.Module.compile, backend="eager")
    monkeypatch.setattr(nn.Module, "compile", compiler)
    torch.testing.assert_close(step(SHARP, tmp_path, compiled=True), step(SHARP, tmp_path), rtol=1e-5, atol=2e-7)
    torch.compiler.reset()


def test_bf16_moves_the_weights_as_far_as_float32(tmp_path: Path) -> None:
    # At a learning rate of 0.2, what SAM changes of a step is far above bf16's rounding of it.
    plain, ours, exact = step(PLAIN, tmp_path), step(SHARP, tmp_path, precision="bf16"), step(SHARP, tmp_path)
    apart, moved = (
        torch.cat([(a - b).flatten() for a, b in zip(one, exact, strict=True)]).norm() for one in (ours, plain)
    )
    assert all(weight.dtype == torch.float32 for weight in ours)
    assert 0 < apart < 0.5 * moved


def test_batchnorm_sees_a_step_once_at_the_weights_that_the_network_keeps(tmp_path: Path) -> None:
    recipe = dataclasses.replace(SHARP, model=BATCH_NORM, optimizer=AdamW(lr=0.01), ema=Ema())
    state, plan, batch = made(recipe, tmp_path)
    reference, _, _ = made(recipe, tmp_path)
    reference.net(batch.images[:7])
    train_step(state, batch, 0.01, 20, sam_images=plan.sam_images(0))
    buffers = dict(state.net.named_buffers())
    assert buffers["bn1.num_batches_tracked"] == 1
    assert all(same_bits(buffers[name], expected) for name, expected in reference.net.named_buffers())
    assert state.ema is not None and state.ema.module.get_buffer("bn1.num_batches_tracked") == 1


def test_the_weights_come_back_bit_for_bit(tmp_path: Path) -> None:
    state, plan, batch = made(SHARP, tmp_path)
    before = weights(state)
    train_step(state, batch, 0.0, 20, sam_images=plan.sam_images(0))
    assert all(same_bits(new, old) for new, old in zip(weights(state), before, strict=True))


def test_a_gradient_that_is_not_finite_is_found_and_leaves_the_weights(tmp_path: Path) -> None:
    state, plan, batch = made(SHARP, tmp_path, scaler=True)
    before = weights(state)
    batch.images[0] = float("inf")  # Among the images of the first gradient.
    _, finite = train_step(state, batch, 0.2, 20, sam_images=plan.sam_images(0))
    assert not finite.item() and state.step == 0
    assert all(same_bits(new, old) for new, old in zip(weights(state), before, strict=True))


def test_it_is_on_in_its_part_of_the_run_and_the_plan_says_so(tmp_path: Path) -> None:
    _, plan, _ = made(dataclasses.replace(SHARP, sam=SAM(num_images=7, start=0.6)), tmp_path)
    assert [plan.sam_images(step) for step in range(10)] == [0] * 6 + [7] * 4
    assert "SAM            rho 0.1 on 7 images, from step 6 to the end" in plan.describe(
        1, SHAPES.open("test"), tmp_path, ""
    )
    _, whole, _ = made(dataclasses.replace(SHARP, sam=SAM()), tmp_path)
    assert whole.sam_images(0) == 20


@pytest.mark.parametrize("world", [2, 5])
def test_processes_share_the_images_of_the_first_gradient(tmp_path: Path, world: int) -> None:
    _, plan, batch = made(SHARP, tmp_path)
    seen = []
    for rank in range(world):
        order = dataclasses.replace(plan.pipeline.order, rank=rank, world_size=world)
        share = dataclasses.replace(plan, pipeline=dataclasses.replace(plan.pipeline, order=order))
        assert share.sam_images(0) > 0
        seen += order.batch(0)[: share.sam_images(0)].tolist()
    assert sorted(seen) == sorted(batch.index[:7].tolist())


def test_fewer_images_than_processes_are_refused(tmp_path: Path) -> None:
    accelerator = start_accelerator(tmp_path)
    accelerator.state.num_processes = 4
    recipe = dataclasses.replace(SHARP, sam=SAM(num_images=3), mix=None)
    with pytest.raises(
        ConfigError, match=r"sam\.num_images=3 leaves some of 4 processes without an image; use 4 or more\."
    ):
        Plan.of(recipe, RunOptions(), accelerator, SHAPES.open("train"))
