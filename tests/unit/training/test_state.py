"""One training step and the state between steps: what plain torch does, and all of it back after a restart."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import EMA, SHAPES, same_bits, tiny
from timm.utils.model_ema import ModelEmaV3

from cifar100_tk.distributed.launch import start_accelerator
from cifar100_tk.errors import ResumeError
from cifar100_tk.models import TimmModel
from cifar100_tk.optim import AdamW
from cifar100_tk.recipe import Recipe
from cifar100_tk.train import train_step
from cifar100_tk.training.loader import Batch
from cifar100_tk.training.plan import Plan, RunOptions
from cifar100_tk.training.state import TrainState

pytestmark = pytest.mark.usefixtures("on_cpu")


class Prepared:
    """A recipe's training state with its first batches."""

    def __init__(self, recipe: Recipe, path: Path) -> None:
        accelerator, split = start_accelerator(path), SHAPES.open("train")
        self.plan = Plan.of(recipe, RunOptions(), accelerator, split)
        self.state = TrainState.build(recipe, accelerator, 100, compile_model=False)
        self.batches: list[Batch] = list(self.plan.pipeline.batches(0, 3))

    def train(self, start: int, stop: int, micro_batch: int = 20) -> list[float]:
        """Train from one step to another. Returns the losses."""
        steps = [train_step(self.state, batch, 0.3, micro_batch) for batch in self.batches[start:stop]]
        assert all(finite for _, finite in steps)
        return [loss.item() for loss, _ in steps]

    def saved(self) -> tuple[dict[str, dict[str, torch.Tensor]], dict[str, Any]]:
        """What a checkpoint of now holds."""
        tensors = self.state.tensors().items()
        return {file: {name: value.clone() for name, value in of.items()} for file, of in tensors}, self.state.facts()


def test_a_step_is_what_plain_torch_does(tmp_path: Path) -> None:
    # The whole step by hand: forward, loss, backward, clip, update.
    recipe = tiny(clip_grad_norm=0.5, model=TimmModel(name="resnet10_cifar_w16"))
    ours = Prepared(recipe, tmp_path)
    net = recipe.model.build(100).to(memory_format=torch.channels_last)
    net.load_state_dict(ours.state.net.state_dict())
    optimizer = torch.optim.SGD(net.parameters(), lr=0.3, momentum=0.9, nesterov=True, weight_decay=5e-4)
    for batch in ours.batches[:2]:
        loss, finite = train_step(ours.state, batch, 0.3, 20)
        optimizer.zero_grad()
        expected = -(batch.targets * net(batch.images).log_softmax(1)).sum(1).mean()
        expected.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 0.5)
        optimizer.step()
        assert finite.item() and loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert ours.state.step == 2
    torch.testing.assert_close(ours.state.net.state_dict(), net.state_dict(), rtol=1e-4, atol=1e-6)


def test_smaller_pieces_give_the_weights_of_the_whole_batch(tmp_path: Path) -> None:
    recipe = tiny(clip_grad_norm=0.5)
    whole, pieces = Prepared(recipe, tmp_path), Prepared(recipe, tmp_path)
    assert whole.train(0, 3) == pytest.approx(pieces.train(0, 3, micro_batch=7), rel=1e-6)  # 20 images as 7, 7 and 6.
    torch.testing.assert_close(pieces.state.net.state_dict(), whole.state.net.state_dict(), rtol=1e-4, atol=1e-6)


def test_dropout_is_another_at_each_step_and_nothing_else_changes_it(tmp_path: Path) -> None:
    ours = Prepared(EMA, tmp_path)
    first = ours.batches[0]
    # Without a learning rate the weights stay as they are.
    losses = [train_step(ours.state, dataclasses.replace(first, step=step), 0.0, 20)[0].item() for step in (0, 0, 1)]
    assert losses[0] == losses[1] != losses[2]


def test_weights_start_from_the_seed_whatever_was_drawn_before(tmp_path: Path) -> None:
    first = Prepared(EMA, tmp_path).state.net.state_dict()
    torch.rand(5)
    again = Prepared(EMA, tmp_path).state.net.state_dict()
    assert all(same_bits(again[name], tensor) for name, tensor in first.items())
    other = Prepared(dataclasses.replace(EMA, seed=1), tmp_path).state.net.state_dict()
    assert not torch.equal(other["fc.weight"], first["fc.weight"])


def test_the_average_is_timm_s_with_steps_counted_from_one(tmp_path: Path) -> None:
    ours = Prepared(EMA, tmp_path)
    theirs = ModelEmaV3(EMA.model.build(100), decay=0.999, use_warmup=True)
    theirs.module.load_state_dict(ours.state.net.state_dict())
    for step in range(3):
        ours.train(step, step + 1)
        theirs.update(ours.state.net, step + 1)
    torch.testing.assert_close(ours.state.measured.state_dict(), theirs.module.state_dict(), rtol=1e-6, atol=1e-8)
    assert not torch.equal(ours.state.measured.get_parameter("fc.weight"), ours.state.net.get_parameter("fc.weight"))


@pytest.mark.parametrize("recipe", [EMA, tiny(optimizer=AdamW(lr=0.01, lr_batch_size=0))], ids=["SGD and EMA", "AdamW"])
def test_a_restored_state_goes_on_bit_for_bit(recipe: Recipe, tmp_path: Path) -> None:
    whole, after = Prepared(recipe, tmp_path), Prepared(recipe, tmp_path)
    whole.train(0, 2)
    tensors, facts = whole.saved()
    after.train(2, 3)  # Something that has to go.
    after.state.restore(2, tensors, facts)
    assert after.state.step == 2 and after.train(2, 3) == whole.train(2, 3)
    for file, ours in after.state.tensors().items():
        theirs = whole.state.tensors()[file]
        assert ours.keys() == theirs.keys() and all(same_bits(ours[name], theirs[name]) for name in theirs), file


@pytest.mark.parametrize(
    ("file", "changes", "facts", "message"),
    [
        (
            "model",
            {"fc.bias": torch.zeros(99)},
            {},
            "checkpoint's model.safetensors belongs to a different network; choose",
        ),
        (
            "ema",
            {"fc.bias": torch.zeros(100).double()},
            {},
            "checkpoint's ema.safetensors belongs to a different network",
        ),
        (
            "optimizer",
            {"momentum_buffer/head.bias": torch.zeros(100)},
            {},
            r"holds momentum_buffer/head.bias of shape \(100,\)",
        ),
        (
            "optimizer",
            {"momentum_buffer/fc.bias": torch.zeros(99)},
            {},
            r"holds momentum_buffer/fc.bias of shape \(99,\)",
        ),
        (
            "optimizer",
            {},
            {"epoch_loss": None},
            "the checkpoint was not written by a training run; choose another --output",
        ),
    ],
)
def test_a_checkpoint_of_another_network_is_refused_and_changes_nothing(
    tmp_path: Path, file: str, changes: dict[str, Any], facts: dict[str, Any], message: str
) -> None:
    state, trained = Prepared(EMA, tmp_path).state, Prepared(EMA, tmp_path)
    trained.train(0, 1)
    found, found_facts = trained.saved()
    before = {name: tensor.clone() for name, tensor in state.net.state_dict().items()}
    tensors = {name: {**value, **changes} if name == file else value for name, value in found.items()}
    with pytest.raises(ResumeError, match=message):
        state.restore(1, tensors, {**found_facts, **facts})
    assert state.step == 0 and all(same_bits(state.net.state_dict()[name], old) for name, old in before.items())
    state.restore(1, found, found_facts)
    assert state.step == 1 and same_bits(state.net.state_dict()["fc.bias"], found["model"]["fc.bias"])
