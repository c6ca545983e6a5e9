"""Recipes of components that a resume must restore, and what they start from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import safetensors.torch
import timm
import torch
from runs import EMA, SHAPES, Bell, tiny

from cifar100_tk.augment import Cutout, Flip, Mix, Normalize, PadCrop, ProgressiveResize, RandomResizedCrop
from cifar100_tk.models import FineTune, TimmModel, Whitening
from cifar100_tk.models import folder as model_folder
from cifar100_tk.optim import SAM, AdamW, BinaryCrossEntropy, Distillation, Ema, Lookahead, Muon, OneCycle
from cifar100_tk.recipe import Recipe

NAMES = SHAPES.open("test").class_names


def donor(path: Path, seed: int = 5) -> Path:
    """Write weights of a network with a stem and a head that do not fit."""
    torch.manual_seed(seed)
    state = timm.create_model("test_resnet", num_classes=10).state_dict()
    safetensors.torch.save_file(state, path)
    return path


def fine_tuned(weights: Path) -> Recipe:
    return tiny(
        model=TimmModel(name="test_resnet", pretrained=str(weights)),
        finetune=FineTune(freeze=("layer1.*",), freeze_epochs=1, backbone_lr_scale=0.5, layer_decay=0.9),
        optimizer=Muon(lr=0.01),
        ema=Ema(),
        augment=(*tiny().augment, Bell()),
        image_size=40,
        batch_size=8,
    )


def teacher_in(
    folder: Path, *, seed: int = 0, names: tuple[str, ...] = NAMES, normalize: Normalize | None = None
) -> Path:
    """Write a model folder of random weights."""
    torch.manual_seed(seed)
    net = timm.create_model("test_convnext2", num_classes=len(names))
    model_folder.write(folder, net, names, normalize or Normalize(), "# A teacher\n")
    return folder


def distilled(model: Path) -> Recipe:
    return tiny(
        distillation=Distillation(teacher=str(model)), loss=BinaryCrossEntropy(), augment=(RandomResizedCrop(), Bell())
    )


SPEEDRUN = tiny(
    model=TimmModel(name="speednet_w256"),
    whitening=Whitening(num_images=50),
    augment=(PadCrop(padding=2, mode="reflect"), Flip(alternate=True), Bell()),
    cutout=Cutout(p=1.0),
    mix=Mix(mixup_alpha=0.2, cutmix_alpha=1.0, p=0.7, mode="elem", start=0.3, stop=0.9),
    resize=ProgressiveResize(sides=(20, 24, 32), starts=(0.0, 0.35, 0.7)),
    optimizer=Muon(lr=0.01, weight_decay=0.01),
    schedule=OneCycle(pct_start=0.2),
    sam=SAM(rho=0.1, num_images=6, start=0.5),
    lookahead=Lookahead(k=2),
    ema=Ema(decay=0.9),
)
"""Ten steps: mixed from 3 to 8, with SAM from 5 on, at 20 pixels before 4 and 24 before 7."""
ADAMW = tiny(optimizer=AdamW(lr=0.01, lr_batch_size=0), mix=None, augment=(Bell(),), batch_size=25)


class Component(NamedTuple):
    """A recipe with the component, and where its runs are stopped."""

    build: Callable[[Path], Recipe]
    """Makes the recipe, with its weights or its teacher in a new folder."""
    stops: tuple[int, ...]
    """Steps."""
    options: Mapping[str, Any] = MappingProxyType({})


COMPONENTS = {
    "BatchNorm, dropout, EMA": Component(lambda _: EMA, (1, 5, 8)),
    "AdamW, no mixing": Component(lambda _: ADAMW, (3,)),
    # In the frozen epoch, at its end, and in the next one.
    "pretrained and frozen weights": Component(
        lambda folder: fine_tuned(donor(folder / "weights.safetensors")), (2, 3, 5), {"limit_train_batches": 3}
    ),
    "a teacher": Component(lambda folder: distilled(teacher_in(folder / "teacher")), (7,)),
    "whitening, SAM, Lookahead, growing images": Component(lambda _: SPEEDRUN, (3, 7)),
}
