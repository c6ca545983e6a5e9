"""The teacher of a distillation: what it computes, and which teachers are refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from components import NAMES, distilled, teacher_in
from runs import contents, newest, ring_at, run

import cifar100_tk
from cifar100_tk.augment import Normalize, resize_images
from cifar100_tk.errors import ConfigError, DataError, StoppedError
from cifar100_tk.optim import Distillation
from cifar100_tk.runs.files import read_recipe
from cifar100_tk.storage.atomic import sha256
from cifar100_tk.training.teacher import Teacher, teacher_source

pytestmark = pytest.mark.usefixtures("on_cpu")


def opened(model: Path | str, **given: Any) -> Teacher:
    return Teacher.open(Distillation(teacher=str(model), **given), NAMES, Normalize(), Accelerator(cpu=True))


def images(side: int = 32) -> torch.Tensor:
    return torch.randn(3, 3, side, side, generator=torch.Generator().manual_seed(3))


def test_a_teacher_gives_the_logits_of_its_model_and_no_gradient(tmp_path: Path) -> None:
    teacher = opened(teacher_in(tmp_path / "model"))
    expected = cifar100_tk.load(tmp_path / "model").model(images())
    assert torch.equal(teacher(images()), expected) and not teacher(images()).requires_grad
    assert not teacher.net.training and not any(p.requires_grad for p in teacher.net.parameters())
    assert teacher.identity["sha256"] == sha256(tmp_path / "model/model.safetensors")


def test_a_teacher_with_another_normalization_sees_the_same_pixels(tmp_path: Path) -> None:
    theirs = Normalize(mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))
    teacher = opened(teacher_in(tmp_path / "model", normalize=theirs))
    pixels = images() * torch.tensor(Normalize().std).view(3, 1, 1) + torch.tensor(Normalize().mean).view(3, 1, 1)
    as_theirs = (pixels - torch.tensor(theirs.mean).view(3, 1, 1)) / torch.tensor(theirs.std).view(3, 1, 1)
    torch.testing.assert_close(teacher(images()), cifar100_tk.load(tmp_path / "model").model(as_theirs))


def test_a_teacher_of_another_input_size_gets_resized_images(tmp_path: Path) -> None:
    teacher = dataclasses.replace(opened(teacher_in(tmp_path / "model")), side=48)
    assert torch.equal(teacher(images()), teacher.net(resize_images(images(), 48)))
    # As in a run whose images grow.
    assert torch.equal(opened(tmp_path / "model")(images(20)), teacher.net(resize_images(images(20), 32)))


@pytest.mark.parametrize("names", [NAMES[:10], NAMES[::-1]], ids=["fewer", "another order"])
def test_a_teacher_of_other_classes_is_refused(tmp_path: Path, names: tuple[str, ...]) -> None:
    teacher_in(tmp_path / "model", names=names)
    message = rf"the teacher .*model knows {len(names)} classes \({names[0]}, ...\), but the training images have 100 "
    with pytest.raises(ConfigError, match=message):
        opened(tmp_path / "model")


def test_a_teacher_that_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"does not exist; give a run folder, a model folder or a Hub id"):
        opened(tmp_path / "nothing")
    with pytest.raises(DataError, match=r"teacher.pth is a pickle, and loading a pickle runs any code in it"):
        opened(tmp_path / "teacher.pth")


def test_a_run_learns_from_its_teacher_records_it_and_refuses_another(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = teacher_in(tmp_path / "teacher")
    recipe = distilled(model)
    run(tmp_path / "whole", recipe)
    shown = capsys.readouterr().out
    digest = sha256(model / "model.safetensors")
    assert "  loss           BinaryCrossEntropy(smoothing=0.0, " in shown
    assert f"  teacher        {model}, test_convnext2, sha256 {digest[:16]}; weight 0.9, temperature 4\n" in shown
    recorded = read_recipe(tmp_path / "whole")
    assert recorded["teacher"]["sha256"] == digest and recorded["teacher"]["name"] == "teacher"

    ring_at[:] = [7]
    with pytest.raises(StoppedError):
        run(tmp_path / "parts", recipe)
    before = contents(tmp_path / "parts")
    teacher_in(tmp_path / "other", seed=1)
    other = dataclasses.replace(recipe, distillation=Distillation(teacher=str(tmp_path / "other")))
    with pytest.raises(ConfigError, match=r"with another teacher: it was .*teacher \(test_convnext2, sha256 .* and is"):
        run(tmp_path / "parts", other)
    assert contents(tmp_path / "parts") == before

    run(tmp_path / "alone", dataclasses.replace(recipe, distillation=None))
    ours, alone = (newest(tmp_path / name).tensors["model"] for name in ("whole", "alone"))
    assert not all(torch.equal(ours[name], value) for name, value in alone.items())


@pytest.mark.parametrize(
    ("teacher", "source"),
    [
        ("resnet18.a1_in1k", "timm/resnet18.a1_in1k"),
        ("hf-hub:somebody/net", "somebody/net"),
        ("local-dir:runs/net/model", "runs/net/model"),
        ("runs/resnet50", "runs/resnet50"),
    ],
)
def test_a_teacher_is_found_by_the_names_that_timm_uses(teacher: str, source: str) -> None:
    assert teacher_source(teacher) == source
