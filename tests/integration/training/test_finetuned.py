"""Whole runs from pretrained weights at another image size: measured again, and never resumed from other weights."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import PIL.Image
import pytest
import safetensors.torch
import torch
from commands import exit_code
from components import donor, fine_tuned
from processes import PROGRAMS, torchrun
from runs import assert_same_tensors, evaluation, newest, ring_at, run, tiny

import cifar100_tk
from cifar100_tk import eval as evaluate
from cifar100_tk.demo import answer
from cifar100_tk.errors import ConfigError, StoppedError
from cifar100_tk.export.formats import compare, export
from cifar100_tk.hub import card, card_data
from cifar100_tk.models import TimmModel

OPTIONS = {"limit_train_batches": 3, "eval_every": 1, "checkpoint_every": 1}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return donor(tmp_path_factory.mktemp("weights") / "weights.safetensors")


@pytest.fixture(scope="module")
def whole(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from runs import cpu

    path = tmp_path_factory.mktemp("whole") / "run"
    with cpu():
        run(path, fine_tuned(weights), **OPTIONS)
    return path


@pytest.mark.usefixtures("on_cpu")
def test_a_run_never_resumes_with_other_weights(weights: Path, tmp_path: Path) -> None:
    ring_at[:] = [2]
    with pytest.raises(StoppedError):
        run(tmp_path / "run", fine_tuned(weights), **OPTIONS)
    before = newest(tmp_path / "run")
    with pytest.raises(
        ConfigError, match=r"holds a run of another recipe: pretrained.sha256 was '\w+' and is '\w+'. Choose"
    ):
        run(tmp_path / "run", fine_tuned(donor(tmp_path / "other.safetensors", seed=6)), **OPTIONS)
    plain = dataclasses.replace(fine_tuned(weights), model=TimmModel(name="test_resnet"), finetune=None)
    with pytest.raises(ConfigError, match="holds a run of another recipe: finetune"):
        run(tmp_path / "run", plain, **OPTIONS)
    assert_same_tensors(newest(tmp_path / "run"), before)


def test_frozen_weights_are_those_of_the_donor(whole: Path, weights: Path) -> None:
    theirs = safetensors.torch.load_file(weights)
    ours = safetensors.torch.load_file(whole / "model" / "model.safetensors")
    same = {name for name in ours if ours[name].shape == theirs[name].shape and torch.equal(ours[name], theirs[name])}
    assert {name for name in ours if name.startswith("layer1.") and "num_batches" not in name} <= same
    assert not any(name.startswith(("layer4.", "fc.")) for name in same if "num_batches" not in name)
    record = json.loads((whole / "recipe.json").read_text())["pretrained"]
    assert record["new"] == ["fc.weight", "fc.bias"] and record["base_model"] is None


@pytest.mark.usefixtures("on_cpu")
def test_every_command_sees_images_of_that_size(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code(evaluate.main, whole, "--output", tmp_path / "again.json") == 0
    again, (result, _) = json.loads((tmp_path / "again.json").read_text()), evaluation(whole)
    assert again["top1"] == result["top1"] and again["loss"] == pytest.approx(result["loss"], rel=1e-6)
    classifier, split = cifar100_tk.load(whole), tiny().data.open("test")
    photo = PIL.Image.fromarray(split.images[0].transpose(1, 2, 0))
    for resize in ("crop", "squash"):
        assert classifier.prepare(photo, resize).shape == (3, 40, 40)
    assert answer.answer(classifier, photo).seen.size == (384, 384)
    exported = export(classifier, "torch-export")
    assert compare(classifier, exported, split, "inside", 20).holds


def test_the_card_states_the_origin_and_the_license(whole: Path, tmp_path: Path) -> None:
    for name in ("recipe.json", "environment.json"):
        (tmp_path / name).write_bytes((whole / name).read_bytes())
    (tmp_path / "config.json").write_bytes((whole / "model" / "config.json").read_bytes())
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "evaluation" / "test.json").write_bytes((whole / "evaluation" / "test.json").read_bytes())
    recipe = json.loads((tmp_path / "recipe.json").read_text())
    recipe["pretrained"] |= {"base_model": "timm/test_resnet.r160_in1k", "license": "cc-by-nc-4.0"}
    (tmp_path / "recipe.json").write_text(json.dumps(recipe))
    text = card.write(card_data.of_folder(tmp_path, "checked"))
    assert "license: cc-by-nc-4.0\n" in text and "base_model: timm/test_resnet.r160_in1k\n" in text
    assert (
        "trained from [timm/test_resnet.r160_in1k](https://huggingface.co/timm/test_resnet.r160_in1k) (sha256 `" in text
    )
    assert "classifies 40x40 colour images" in text and "resized to that" in text


@pytest.mark.distributed
def test_two_processes_train_the_frozen_epoch_together(weights: Path, tmp_path: Path) -> None:
    words = ("--output-dir", tmp_path / "run", "--limit-train-batches", 2, "--checkpoint-every", 1, "--keep", 2)
    done = torchrun(PROGRAMS / "fine_tune.py", weights, *words, ACCELERATE_USE_CPU="true")
    assert done.returncode == 0, done.stderr[-3000:]
    theirs, ours = safetensors.torch.load_file(weights), newest(tmp_path / "run").tensors["model"]
    still = {name for name in ours if name in theirs and torch.equal(ours[name], theirs[name])}
    assert {"layer1.0.conv1.weight", "layer1.0.bn1.running_var"} <= still and "layer2.0.conv1.weight" not in still
