"""The end of a run: what its model says of every image is kept, and is what the last epoch said."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
from runs import SHAPES, contents, evaluation, lines, newest, run, run_once, same_bits, status, tiny

import cifar100_tk
from cifar100_tk.evaluation.predictions import predict
from cifar100_tk.models import TimmModel
from cifar100_tk.optim import Ema
from cifar100_tk.recipe import Recipe

pytestmark = pytest.mark.usefixtures("on_cpu")

AVERAGED = tiny(ema=Ema(), model=TimmModel(name="resnet10_cifar_w16"), epochs=1)
FIGURES = ("top1", "top5", "loss")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run of AVERAGED."""
    return run_once(tmp_path_factory, AVERAGED)


def test_the_files_hold_what_the_saved_model_says_of_every_image(whole: Path) -> None:
    result, predictions = evaluation(whole)
    classifier = cifar100_tk.load(whole)
    said = predict(classifier.model, SHAPES.open("test"), classifier.normalize)
    assert same_bits(predictions.logits, said.logits) and same_bits(predictions.labels, said.labels)
    assert predictions.rows.tolist() == list(range(100))
    right = (said.logits.argmax(1) == said.labels).float().mean().item()
    assert result["top1"] == pytest.approx(right) and result["num_images"] == 100
    assert (result["weights"], result["split"], result["source"], result["flip"]) == ("ema", "test", "shapes100", False)
    assert result["num_parameters"] == 320_436 and result["precision"] == "float32"
    # The raw weights say something else, so it is clear whose predictions these are.
    raw = AVERAGED.model.build(100)
    raw.load_state_dict(newest(whole).tensors["model"])
    assert not torch.equal(predict(raw, SHAPES.open("test"), classifier.normalize).logits, said.logits)


@pytest.mark.parametrize("recipe", [AVERAGED, tiny(epochs=1)], ids=["ema", "raw"])
def test_the_figures_are_those_of_the_last_epoch_to_the_digit(recipe: Recipe, tmp_path: Path) -> None:
    metrics = vars(run(tmp_path, recipe))
    (last,), (result, _) = lines(tmp_path), evaluation(tmp_path)
    average = "ema_" if recipe.ema else ""
    for name in FIGURES:
        assert last[f"test/{average}{name}"] == result[name] == status(tmp_path)[name] == metrics[name]


def test_a_run_that_is_evaluated_in_part_keeps_that_part(tmp_path: Path) -> None:
    data = dataclasses.replace(SHAPES, shapes100_rows=(700, 100), holdout=600)
    run(tmp_path, tiny(data=data, epochs=1), limit_eval_batches=1)
    result, predictions = evaluation(tmp_path, "holdout")
    assert result["num_images"] == len(predictions.rows) == 500 and not (tmp_path / "evaluation" / "test.json").exists()
    assert predictions.rows.tolist() == data.open("holdout").index[:500].tolist()
    assert lines(tmp_path)[-1]["holdout/loss"] == result["loss"]


def undone(whole: Path, path: Path) -> dict[str, bytes]:
    """A run that was killed after its last checkpoint, before its model. Returns its evaluation."""
    shutil.copytree(whole, path)
    shutil.rmtree(path / "model")
    (path / "run_status.json").write_text('{"status": "running"}')
    return contents(path / "evaluation")


def test_a_run_killed_before_its_model_does_not_measure_again(whole: Path, tmp_path: Path) -> None:
    before = undone(whole, tmp_path / "run")
    metrics = vars(run(tmp_path / "run", AVERAGED))
    # With the speed of the time before and all.
    assert contents(tmp_path / "run" / "evaluation") == before and before
    assert contents(tmp_path / "run" / "model") == contents(whole / "model")
    result = json.loads(before["test.json"])
    finished = status(tmp_path / "run")
    assert finished["status"] == "finished" and {name: finished[name] for name in FIGURES} == {
        name: result[name] for name in FIGURES
    } == {name: metrics[name] for name in FIGURES}


@pytest.mark.parametrize("lost", ["test.json", "test.parquet", "both"])
def test_what_is_missing_or_damaged_is_measured_again(
    lost: str, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, (result, predictions) = tmp_path / "run", evaluation(whole)
    undone(whole, path)
    if lost == "both":
        shutil.rmtree(path / "evaluation")
    else:
        (path / "evaluation" / lost).write_bytes(b"{")
    run(path, AVERAGED)
    assert f"note           {path}/evaluation/test." in capsys.readouterr().out
    found = evaluation(path)
    assert found[0] == result and same_bits(found[1].logits, predictions.logits)
    assert status(path)["status"] == "finished"
