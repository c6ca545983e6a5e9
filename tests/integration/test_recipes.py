"""Every recipe file loads, builds and steps; the reference recipe holds the published numbers."""

from __future__ import annotations

import dataclasses
import re
import runpy
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from runs import SHAPES

from cifar100_tk.augment import AutoAugment, Cutout, Flip, Mix, Normalize, RandomResizedCrop, TrivialAugmentWide
from cifar100_tk.distributed.launch import start_accelerator
from cifar100_tk.models import TimmModel
from cifar100_tk.optim import SAM, SGD, CrossEntropy, Ema, WarmupCosine
from cifar100_tk.recipe import Recipe, flatten, to_json
from cifar100_tk.train import train_step
from cifar100_tk.training.plan import Plan, RunOptions
from cifar100_tk.training.state import TrainState

FOLDER = Path(__file__).parents[2] / "recipes"
FILES = sorted(FOLDER.glob("*.py"))


def load(file: Path) -> dict[str, Any]:
    """Run a recipe file as an import does: it must not start to train."""
    return runpy.run_path(str(file))


def test_there_are_recipes() -> None:
    assert {"resnet50.py", "resnet50_fast.py", "resnet50_best.py", "quickstart.py"} <= {file.name for file in FILES}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
@pytest.mark.usefixtures("on_cpu")
def test_a_recipe_builds_and_steps_twice(file: Path, tmp_path: Path) -> None:
    recipe = dataclasses.replace(load(file)["recipe"], data=SHAPES, batch_size=4)
    if recipe.model.pretrained is not None:
        # At the learning rate of the whole batch: a smaller one would not move a weight near 1 in float32.
        changes = {
            "model": with_weights(recipe.model, tmp_path / "weights.safetensors"),
            "optimizer": dataclasses.replace(recipe.optimizer, lr_batch_size=4),
        }
        recipe = dataclasses.replace(recipe, **changes)
    accelerator, split = start_accelerator(tmp_path), SHAPES.open("train")
    plan = Plan.of(recipe, RunOptions(), accelerator, split)
    images = plan.whitening_images()
    state = TrainState.build(recipe, accelerator, 100, compile_model=False, whitening_images=images)
    before = [parameter.clone() for parameter in state.net.parameters()]
    for batch in plan.pipeline.batches(0, 2):
        state.set_epoch(batch.step)  # What is frozen in the first epoch moves in the second.
        loss, finite = train_step(state, batch, plan.lr(batch.step), plan.micro_batch)
        assert finite.item() and 2 < loss.item() < 8  # log(100) is 4.6.
    assert state.step == 2
    moved = [not torch.equal(old, new) for old, new in zip(before, state.net.parameters(), strict=True)]
    assert sum(moved) > len(moved) / 2


def with_weights(model: TimmModel, file: Path) -> TimmModel:
    """Make weights of the network for 1,000 classes on the spot, in place of those on the Hub."""
    torch.manual_seed(5)
    weights = dataclasses.replace(model, pretrained=None).build(1000).state_dict()
    safetensors.torch.save_file(weights, file)
    return dataclasses.replace(model, pretrained=str(file))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_recipe_says_how_to_run_it_and_what_to_expect(file: Path) -> None:
    docstring = load(file)["__doc__"]
    assert re.search(rf"^    accelerate launch (--\S+ \S+ )*recipes/{re.escape(file.name)}", docstring, re.MULTILINE)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_reference_curve_is_of_epochs_that_the_recipe_has_and_of_what_it_measures(file: Path) -> None:
    recipe: Recipe = load(file)["recipe"]
    epochs = [band.epoch for band in recipe.reference]
    assert epochs == sorted(set(epochs)) and all(epoch <= recipe.epochs for epoch in epochs)
    assert {band.split for band in recipe.reference} <= {"holdout" if recipe.data.holdout else "test"}
    # It would warn of nothing if it held for a network that knows nothing.
    assert all(band.top1[0] > 2 / 100 and band.top1[1] < 1 for band in recipe.reference)


def test_the_reference_recipe_holds_the_published_numbers() -> None:
    recipe: Recipe = load(FOLDER / "resnet50.py")["recipe"]
    assert recipe.data.source == "hub" and recipe.data.holdout == 0
    assert recipe.model == TimmModel(name="resnet50_cifar", drop_rate=0.0, drop_path_rate=0.0)
    assert recipe.augment == (
        RandomResizedCrop(scale=(0.8, 1.0), ratio=(0.9, 1.1)),
        Flip(p=0.5),
        AutoAugment(policy="cifar10", p=0.7),
    )
    assert recipe.normalize == Normalize(mean=(0.5071, 0.4867, 0.4408), std=(0.2675, 0.2565, 0.2761))
    assert recipe.cutout == Cutout(num_holes=1, size=16, p=0.5)
    assert recipe.mix == Mix(mixup_alpha=0.2, cutmix_alpha=0.0, p=1.0)
    assert recipe.loss == CrossEntropy(smoothing=0.1, smooth_over="others")
    assert recipe.optimizer == SGD(
        lr=0.1, lr_batch_size=256, momentum=0.9, nesterov=True, weight_decay=5e-4, decay_norm_and_bias=True
    )
    assert recipe.schedule == WarmupCosine(warmup_epochs=10, final_lr=1e-6)
    assert (recipe.batch_size, recipe.epochs, recipe.clip_grad_norm, recipe.ema) == (2048, 200, 0.0, None)
    assert recipe.peak_lr == pytest.approx(0.8, rel=1e-12)
    with torch.device("meta"):
        assert sum(p.numel() for p in recipe.model.build(100).parameters()) == 23_705_252


@pytest.mark.parametrize("name", ["resnet50_fast.py", "resnet50_best.py"])
def test_a_recipe_that_nobody_has_trained_gives_its_aim_and_says_so(name: str) -> None:
    first = next(part for part in load(FOLDER / name)["__doc__"].split("\n\n") if part.startswith("Aim: "))
    assert re.search(r"^Aim: \d\d\.\d+ % top-1 on test.* Not yet measured\.$", first)
    (row,) = [
        line for line in (FOLDER.parent / "README.md").read_text().splitlines() if line.startswith(f"| [`{name}`]")
    ]
    assert row.count("not yet measured") == 2 and "aim: " in row


def test_the_fast_recipe_holds_what_it_is_described_by() -> None:
    fast: Recipe = load(FOLDER / "resnet50_fast.py")["recipe"]
    assert (fast.batch_size, fast.epochs, fast.peak_lr) == (512, 78, 0.35)
    assert fast.mix == Mix(mixup_alpha=0.0, cutmix_alpha=1.0, p=0.5, mode="elem", start=0.3, stop=0.95)
    assert [fast.resize and fast.resize.side(step, 100) for step in (0, 34, 35, 99)] == [24, 24, 32, 32]
    assert not fast.optimizer.decay_norm_and_bias and fast.optimizer.weight_decay == 5e-4
    assert fast.ema and fast.loss.smoothing == 0.1


def test_the_best_recipe_uses_sam_on_128_images_in_the_last_two_fifths() -> None:
    best: Recipe = load(FOLDER / "resnet50_best.py")["recipe"]
    assert (best.batch_size, best.epochs, best.peak_lr) == (512, 200, 0.2)
    assert best.sam == SAM(rho=0.1, num_images=128, start=0.6)
    assert [best.sam.is_on(step, 5, 1000) for step in (599, 600, 999)] == [False, True, True]
    assert best.schedule == WarmupCosine(warmup_epochs=5, final_lr=0.0)
    assert best.schedule.lr(999, peak_lr=0.2, steps_per_epoch=5, num_steps=1000) == 0
    assert best.ema == Ema(decay=0.999) and isinstance(best.augment[-1], TrivialAugmentWide)


def test_the_quickstart_has_the_parts_of_the_reference_recipe() -> None:
    quickstart, reference = (
        flatten(to_json(load(FOLDER / name)["recipe"])) for name in ("quickstart.py", "resnet50.py")
    )
    assert quickstart.keys() == reference.keys()
    kinds = {name for name in quickstart if name.endswith("type")}
    assert len(kinds) == 12 and all(quickstart[name] == reference[name] for name in kinds)
    for same in ("loss.smoothing", "loss.smooth_over", "augment.2.policy", "mix.mixup_alpha", "optimizer.nesterov"):
        assert quickstart[same] == reference[same]
    assert quickstart["data.source"] == "shapes100"
