"""A recipe that trains in a second, and what the tests of whole runs read from a run folder."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from torch import Tensor

from cifar100_tk.augment import AugmentPlan, BatchedAugmentation, Cutout, Flip, Mix, Normalize, RandomResizedCrop, Row
from cifar100_tk.data import Cifar100
from cifar100_tk.draws import ImageDraws
from cifar100_tk.evaluation import files as evaluation_files
from cifar100_tk.evaluation.metrics import Metrics
from cifar100_tk.evaluation.predictions import Predictions
from cifar100_tk.models import TimmModel
from cifar100_tk.optim import SGD, CrossEntropy, Ema, Loss, WarmupCosine
from cifar100_tk.recipe import Recipe
from cifar100_tk.runs import checkpoint
from cifar100_tk.tensors import Logits, RawImages, Targets
from cifar100_tk.train import train
from cifar100_tk.training.plan import RunOptions

THREADS = int(os.environ["OMP_NUM_THREADS"])
"""Those of conftest.py: sums are rounded differently with another number."""
SHAPES = Cifar100(source="shapes100", shapes100_rows=(100, 100))
TINY = Recipe(
    data=SHAPES,
    model=TimmModel(name="test_convnext2"),  # One of timm's smallest, and without BatchNorm.
    augment=(RandomResizedCrop(), Flip()),
    normalize=Normalize(),
    cutout=Cutout(),
    mix=Mix(mixup_alpha=0.2),
    loss=CrossEntropy(),
    optimizer=SGD(lr=0.2, weight_decay=5e-4),
    schedule=WarmupCosine(warmup_epochs=1),
    batch_size=20,
    epochs=2,
)
"""Ten steps, five an epoch."""


@contextmanager
def cpu() -> Iterator[None]:
    """Forget what Accelerate remembers of earlier tests, and let it compute where results are the same every time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCELERATE_USE_CPU", "true")
        torch.set_num_threads(THREADS)  # An earlier test may have run with --threads.
        forget()
        yield
        forget()


def forget() -> None:
    """Make the next Accelerator read its environment again."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def tiny(**changes: Any) -> Recipe:
    return dataclasses.replace(TINY, **changes)


def run(path: Path, recipe: Recipe = TINY, **options: Any) -> Metrics:
    """Train into a folder."""
    metrics = train(recipe, RunOptions(output_dir=path, **options))
    assert metrics is not None
    return metrics


def run_once(folders: pytest.TempPathFactory, recipe: Recipe = TINY, *, name: str = "run", **options: Any) -> Path:
    """Train for all tests of a module. Returns the run folder."""
    path = folders.mktemp("once") / name
    with cpu():
        run(path, recipe, **options)
    return path


def newest(path: Path) -> checkpoint.Checkpoint:
    """The newest checkpoint of a run folder, which must all be valid."""
    found, complaints = checkpoint.newest(path / "checkpoints")
    assert found is not None and not complaints
    return found


def lines(path: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without the speed and the time, which are others each time."""
    records = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    seconds = [record.pop("seconds") for record in records]
    assert seconds == sorted(seconds) and all(second > 0 for second in seconds)
    for record in records:
        assert record.pop("images_per_second") > 0 and record.pop("images_per_second_overall") > 0
    return records


def evaluation(path: Path, split: str = "test") -> tuple[dict[str, Any], Predictions]:
    """What the run says of its model, without where it is and the speed."""
    result, predictions = evaluation_files.read(path / "evaluation", split)
    assert result.pop("model") == str(path) and result.pop("images_per_second") > 0
    return result, predictions


def status(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((path / "run_status.json").read_text())
    return content


def contents(folder: Path) -> dict[str, bytes]:
    """Every file beneath a folder."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def assert_same_tensors(ours: checkpoint.Checkpoint, theirs: checkpoint.Checkpoint) -> None:
    """Assert that two checkpoints hold the same bits."""
    assert ours.step == theirs.step and ours.tensors.keys() == theirs.tensors.keys()
    for name, tensors in theirs.tensors.items():
        assert ours.tensors[name].keys() == tensors.keys() and tensors
        for key, tensor in tensors.items():
            assert same_bits(ours.tensors[name][key], tensor), f"{name}: {key}"


def same_bits(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and torch.equal(a, b)


@dataclass(frozen=True, kw_only=True)
class Bell(BatchedAugmentation):
    """Leaves images as they are; sends this process SIGTERM while it makes the batch that `ring_at` counts down to."""

    def draw(self, draws: ImageDraws) -> AugmentPlan:
        if ring_at:
            ring_at[0] -= 1
            if ring_at[0] == 0:
                ring_at.clear()
                os.kill(os.getpid(), signal.SIGTERM)
        return {}

    def apply(self, image: PIL.Image.Image, row: Row) -> PIL.Image.Image:
        return image

    def apply_batch(self, images: RawImages, plan: AugmentPlan) -> RawImages:
        return images


ring_at: list[int] = []
"""[n]: the n-th batch from now, counted from 1, rings the bell. Empty: silence."""


@dataclass(frozen=True, kw_only=True)
class Spoilable(Loss):
    """Cross-entropy, whose value or gradient is spoiled in this process from the call on that `spoil_at` counts down to."""

    def __call__(self, logits: Logits, targets: Targets) -> Tensor:
        loss = CrossEntropy()(logits, targets)
        for kind in spoil_at:
            spoil_at[kind] -= 1
            if spoil_at[kind] <= 0 and kind == "loss":
                loss = loss * float("nan")
            elif spoil_at[kind] <= 0:
                logits.register_hook(lambda gradient: gradient * float("inf"))
        return loss


spoil_at: dict[str, int] = {}
"""{"loss": n}: the n-th loss from now, counted from 1, and all after it are NaN; "gradient": their gradients are infinite."""


TWICE = tiny(ema=Ema(), augment=(RandomResizedCrop(), Flip(), Bell()))
"""What one and two processes train alike."""

BATCH_NORM = tiny(model=TimmModel(name="resnet10_cifar_w16"))
"""A network with running statistics."""

EMA = tiny(
    ema=Ema(), augment=(RandomResizedCrop(), Flip(), Bell()), model=TimmModel(name="resnet10_cifar_w16", drop_rate=0.2)
)
"""With BatchNorm, dropout and an average of the weights."""
