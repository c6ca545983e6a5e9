"""Fine-tuning: frozen weights and statistics do not move, learning rates are scaled by layer, with every optimizer."""

from __future__ import annotations

from pathlib import Path

import pytest
import safetensors.torch
import torch
from runs import SHAPES, tiny

from cifar100_tk.distributed.launch import start_accelerator
from cifar100_tk.errors import ConfigError
from cifar100_tk.evaluation.predictions import evaluate
from cifar100_tk.models import FineTune, TimmModel, Whitening
from cifar100_tk.optim import SGD, AdamW, Ema, Muon, Optimizer
from cifar100_tk.recipe import Recipe
from cifar100_tk.train import train_step
from cifar100_tk.training.plan import Plan, RunOptions
from cifar100_tk.training.state import TrainState

pytestmark = pytest.mark.usefixtures("on_cpu")
OPTIMIZERS = {
    "SGD": SGD(lr=0.5, lr_batch_size=0, weight_decay=0.1),
    "AdamW": AdamW(lr=0.01, lr_batch_size=0, weight_decay=0.1),
    "Muon": Muon(lr=0.01, lr_batch_size=0, weight_decay=0.1),
}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Weights of test_resnet with other classes, every tensor with values of its own."""
    torch.manual_seed(5)
    state = TimmModel(name="test_resnet").build(10).state_dict()
    for tensor in state.values():
        tensor.copy_(torch.rand(tensor.shape) + 0.5 if tensor.ndim < 2 else tensor)
    path = tmp_path_factory.mktemp("weights") / "weights.safetensors"
    safetensors.torch.save_file(state, path)
    return str(path)


def recipe_of(
    weights: str, finetune: FineTune, optimizer: Optimizer = OPTIMIZERS["SGD"], ema: Ema | None = None
) -> Recipe:
    model = TimmModel(name="test_resnet", pretrained=weights)
    return tiny(model=model, finetune=finetune, optimizer=optimizer, ema=ema, batch_size=4)


def trained(recipe: Recipe, epochs: tuple[int, ...], path: Path) -> tuple[TrainState, dict[str, list[torch.Tensor]]]:
    """Do a step in each of these epochs. Returns every tensor of the network at the start and after each step."""
    accelerator = start_accelerator(path)
    plan = Plan.of(recipe, RunOptions(), accelerator, SHAPES.open("train"))
    state = TrainState.build(recipe, accelerator, 100, compile_model=False)
    history = {name: [tensor.clone()] for name, tensor in state.net.state_dict().items()}
    for batch, epoch in zip(plan.pipeline.batches(0, len(epochs)), epochs, strict=True):
        state.set_epoch(epoch)
        train_step(state, batch, recipe.peak_lr, 100)
        for name, tensor in state.net.state_dict().items():
            history[name].append(tensor.clone())
    return state, history


def moved(values: list[torch.Tensor], step: int) -> bool:
    return not torch.equal(values[step], values[step + 1])


@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())
def test_frozen_weights_and_statistics_do_not_move(weights: str, optimizer: Optimizer, tmp_path: Path) -> None:
    finetune = FineTune(freeze=("conv1.*", "bn1.*", "layer1.*"))
    state, history = trained(recipe_of(weights, finetune, optimizer, Ema()), (0, 0), tmp_path)
    frozen = {name for name in history if name.startswith(("conv1.", "bn1.", "layer1."))}
    assert any("running_mean" in name for name in frozen) and any("num_batches" in name for name in frozen)
    still = {name for name, values in history.items() if not moved(values, 0) and not moved(values, 1)}
    assert still == frozen
    assert state.ema is not None
    for name in frozen:
        torch.testing.assert_close(state.ema.module.state_dict()[name], history[name][0])


@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())
def test_the_first_epochs_train_the_classifier_alone(weights: str, optimizer: Optimizer, tmp_path: Path) -> None:
    _, history = trained(recipe_of(weights, FineTune(freeze_epochs=1), optimizer), (0, 1), tmp_path)
    first = {name for name, values in history.items() if moved(values, 0)}
    assert first == {"fc.weight", "fc.bias"}
    assert all(moved(values, 1) for values in history.values())


def test_dropping_gradients_trains_the_same_weights_as_not_computing_them(weights: str, tmp_path: Path) -> None:
    recipe = recipe_of(weights, FineTune(freeze_epochs=1))
    accelerator = start_accelerator(tmp_path)
    plan = Plan.of(recipe, RunOptions(), accelerator, SHAPES.open("train"))
    found = []
    for in_graph in (False, True):
        state = TrainState.build(recipe, accelerator, 100, compile_model=False)
        assert state.freezer is not None
        state.freezer.in_graph = in_graph
        for batch in plan.pipeline.batches(0, 2):
            state.set_epoch(batch.step)
            train_step(state, batch, 0.1, 100)
        found.append(state.net.state_dict())
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_evaluating_leaves_frozen_statistics_frozen(weights: str, tmp_path: Path) -> None:
    state, _ = trained(recipe_of(weights, FineTune(freeze=("bn1.*",))), (0,), tmp_path)
    evaluate(state.net, SHAPES.open("test"), state.recipe.normalize, accelerator=state.accelerator, limit_batches=1)
    assert not state.net.bn1.training and state.net.layer1[0].bn1.training  # type: ignore[union-attr,index]


def test_learning_rates_are_scaled_by_layer(weights: str, tmp_path: Path) -> None:
    # Without momentum and weight decay, a step is the learning rate times the gradient, which is the same for both.
    plain = SGD(lr=0.1, lr_batch_size=0, momentum=0.0, nesterov=False)
    finetune = FineTune(backbone_lr_scale=0.25, layer_decay=0.5)
    _, scaled = trained(recipe_of(weights, finetune, plain), (0,), tmp_path)
    _, usual = trained(recipe_of(weights, FineTune(), plain), (0,), tmp_path)

    def factor(name: str) -> float:
        (before, after), (_, other) = scaled[name], usual[name]
        return float((after - before).norm() / (other - before).norm())

    # timm counts the classifier as the last layer, and the last stage as the one before it.
    assert factor("fc.weight") == pytest.approx(1, rel=1e-3)
    assert factor("layer4.0.conv1.weight") == pytest.approx(0.25 * 0.5, rel=1e-2)
    assert factor("layer3.0.conv1.weight") == pytest.approx(0.25 * 0.25, rel=1e-2)


@pytest.mark.parametrize(
    ("freeze", "message"),
    [
        (("layer9.*",), r"finetune.freeze: 'layer9.\*' matches no parameter; the names are conv1.0.weight, .*layer1"),
        (("layer1",), "'layer1' matches no parameter"),
        (("*",), "freezes every parameter; leave the classifier out"),
    ],
)
def test_patterns_that_freeze_nothing_or_everything_are_refused(
    weights: str, freeze: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        TrainState.build(
            recipe_of(weights, FineTune(freeze=freeze)), start_accelerator(tmp_path), 100, compile_model=False
        )


def test_what_needs_pretrained_weights_or_forbids_them_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"model.pretrained is None; name the weights, or leave finetune out"):
        tiny(finetune=FineTune())
    with pytest.raises(ConfigError, match=r"whitening would replace the first layer of model.pretrained='a'; use one"):
        tiny(model=TimmModel(pretrained="a"), whitening=Whitening())
    with pytest.raises(
        ConfigError, match=r"finetune.layer_decay=0.0 is out of range; expected more than 0 and at most 1"
    ):
        FineTune(layer_decay=0.0)
