"""`python -m cifar100_tk.eval` measures what training measured, and refuses what it cannot measure."""

from __future__ import annotations

import json
import os
import re
import runpy
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import PIL.Image
import pytest
import timm
import torch
from commands import Refusal, exit_code, own_network, refusals
from processes import file_limit, patient, torchrun
from runs import contents, lines, run_once, tiny
from torch import Tensor, nn

from cifar100_tk import eval as command
from cifar100_tk import report
from cifar100_tk.augment import Normalize, finish
from cifar100_tk.data import Cifar100, SplitName
from cifar100_tk.data.cifar100_c import PUBLISHED
from cifar100_tk.data.labels import display_name
from cifar100_tk.evaluation import console
from cifar100_tk.evaluation import files as evaluation_files
from cifar100_tk.evaluation.predictions import Predictions, predict
from cifar100_tk.evaluation.scores import Scaled, Scores, fit_temperature
from cifar100_tk.models import folder as model_folder
from cifar100_tk.optim import Ema

pytestmark = pytest.mark.usefixtures("on_cpu")
DATA = Cifar100(source="shapes100", shapes100_rows=(300, 130), holdout=100, holdout_seed=3)
SHAPES = ("--data.source", "shapes100", "--data.shapes100-rows", "300", "130")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a holdout and an average of the weights."""
    DATA.open("test")  # Decoded here, whichever test of this file comes first: `eval` says when it decodes.
    return run_once(tmp_path_factory, tiny(data=DATA, epochs=1, ema=Ema()))


@pytest.fixture(scope="module")
def knowing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder that is right about many test images: random features, and the head that least squares gives them."""
    torch.manual_seed(0)
    net: Any = timm.create_model("resnet10_cifar_w16", num_classes=100).eval()
    normalize, parts = Normalize(), []
    for split in (DATA.open("test"), DATA.open("holdout")):
        images, labels = torch.from_numpy(split.images[split.index]), torch.from_numpy(split.labels[split.index])
        with torch.no_grad():
            maps = net.forward_features(finish(images, normalize, None, 0, 0, split.index))
            parts.append((net.forward_head(maps, pre_logits=True).double(), labels))
    features, labels = torch.cat([part for part, _ in parts]), torch.cat([part for _, part in parts])
    labels[::4] = (labels[::4] + 1) % 100  # A quarter is learned wrong.
    penalty = 1e-3 * features.square().mean() * torch.eye(features.shape[1], dtype=torch.float64)
    targets = torch.nn.functional.one_hot(labels, 100).double()
    head = torch.linalg.solve(features.T @ features + penalty, features.T @ targets)
    with torch.no_grad():
        net.get_classifier().weight.copy_(8 * head.T)
        net.get_classifier().bias.zero_()
    folder = tmp_path_factory.mktemp("knowing") / "model"
    model_folder.write(folder, net, split.class_names, normalize, "")
    return folder


def collected(model: Path, split: SplitName, **options: Any) -> Predictions:
    """What a model says, without the command."""
    classifier = model_folder.load(model)
    return predict(classifier.model, DATA.open(split), classifier.normalize, **options)


def scores_of(predictions: Predictions) -> Scores:
    split = DATA.open("test")
    return Scores.of(
        predictions.logits, predictions.labels, split.class_names, split.coarse_names, split.coarse_of_fine
    )


@pytest.mark.parametrize(("weights", "named"), [(None, "ema_"), ("ema", "ema_"), ("raw", "")])
def test_a_run_folder_is_measured_on_its_own_data(
    trained: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    weights: str | None,
    named: str,
) -> None:
    chosen = [] if weights is None else ["--weights", weights]
    assert exit_code(command.main, trained, "--split", "holdout", *chosen, "--output", tmp_path / "scores.json") == 0
    scores = evaluation_files.read_result(tmp_path / "scores.json")
    (line,) = lines(trained)
    # The same weights in another memory layout: float32 rounding apart.
    for name in ("top1", "top5"):
        assert scores[name] == line[f"holdout/{named}{name}"]
    assert scores["loss"] == pytest.approx(line[f"holdout/{named}loss"], rel=1e-5)
    assert line["holdout/loss"] != pytest.approx(line["holdout/ema_loss"], rel=1e-4)
    assert (scores["num_images"], scores["split"], scores["source"]) == (100, "holdout", "shapes100")
    assert scores["model"] == str(trained) and scores["images_per_second"] > 0
    assert (scores["weights"], scores["flip"]) == (weights or "ema", False)
    assert scores["num_parameters"] == sum(p.numel() for p in model_folder.load(trained).model.parameters())
    assert (scores["temperature"], scores["temperature_fitted_on"]) == (None, None)
    said = capsys.readouterr().out
    assert f"top-5 {100 * scores['top5']:.2f} %, loss {scores['loss']:.4f} on 100 holdout" in said
    assert "after temperature scaling" in said and "the held-out images are reported" in said


def test_a_model_folder_is_measured_on_the_data_that_is_named(
    trained: Path,
    tmp_path: Path,
) -> None:
    output, alone = tmp_path / "scores.json", shutil.copytree(trained / "model", tmp_path / "alone")
    assert exit_code(command.main, alone, *SHAPES, "--output", output) == 0
    first = json.loads(output.read_text())
    assert first["num_images"] == 130
    # The size of a batch changes speed and memory only.
    assert exit_code(command.main, trained, "--batch-size", "17", "--output", output) == 0
    second = json.loads(output.read_text())
    assert (second["top1"], second["top5"]) == (first["top1"], first["top5"])
    assert second["loss"] == pytest.approx(first["loss"], rel=1e-5)


@refusals(
    (["no/such/run"], 3, "no/such/run does not exist; give a run folder, a model folder or a Hub id"),
    (["weights.pth"], 3, "weights.pth is a pickle, and loading a pickle runs any code in it"),
    (["RUN", "--batch-size", "0"], 2, "--batch-size 0 is out of range; expected from 1 to 1048576; use a power"),
    (
        ["RUN", "--limit-batches", "-2"],
        2,
        "--limit-batches -2 is out of range; expected from 1 to 1000000; give 1 or more",
    ),
    (
        ["RUN", "--timeout-minutes", "nan"],
        2,
        "--timeout-minutes nan is out of range; expected more than 0 and at most 525600",
    ),
    (["RUN", "--output", "no/such/folder/x.json"], 2, "the folder .*no/such/folder does not exist; create it first"),
    # /proc is a folder that takes no files, from anybody. The model is not looked at before.
    (["no/such/run", "--output", "/proc/x.json"], 5, "--output /proc/x.json cannot be written .*; choose a folder"),
    (["no/such/run", "--predictions", "/proc/x.parquet"], 5, "--predictions /proc/x.parquet cannot be written"),
    (["no/such/run", "--output", "."], 2, "--output . is a folder; give the name of a file in it"),
    (
        ["RUN", "--output", "x", "--predictions", "./x"],
        2,
        "--output and --predictions are both x; give two different files",
    ),
    (["RUN", "RUN", "--predictions", "x.parquet"], 2, "--predictions works with one model, not with 2; run it"),
    (["RUN", "no/such/run"], 3, "no/such/run does not exist"),
    (
        ["RUN/model", "--weights", "raw"],
        2,
        "--weights raw needs a run folder with its checkpoints, which .* is not; omit",
    ),
    (["RUN", "--data.holdout", "0", "--fit-temperature-on", "holdout"], 2, "--fit-temperature-on holdout needs the"),
    (
        ["RUN", "--split", "holdout", "--fit-temperature-on", "holdout"],
        2,
        "would report on the images it was fitted on; use --split test",
    ),
    (
        ["RUN", "--data.holdout-seed", "4"],
        2,
        "was trained with holdout_seed=3; with holdout_seed=4 the held-out images would include some that it was trained "
        "on, so omit --data.holdout-seed",
    ),
    (["RUN", "--cifar100-c", "no/such/folder"], 3, "no/such/folder is not a folder; give the folder that CIFAR-100-C"),
    (["RUN", "--data.shapes100-rows", "300", "0"], 2, "asks for 0 test rows; use at least 100"),
    (["RUN", "--data.source", "no/such/copy"], 3, "no/such/copy"),
    (["RUN", "--data.holdout", "0", "--split", "holdout"], 2, "does not record which images were held out"),
    (["RUN", "--split", "validation"], 2, "--split.*train"),
    ([], 2, "MODEL"),
)
def test_what_cannot_be_measured_ends_with_a_sentence_and_its_code(
    refusal: Refusal, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    refusal.check(capsys, command.main, RUN=trained)


def test_a_model_of_other_classes_is_refused(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = shutil.copytree(trained / "model", tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    config["label_names"][0] = "apple"
    (folder / "config.json").write_text(json.dumps(config))
    assert exit_code(command.main, folder, *SHAPES) == 3
    assert "has 100 classes (apple, ...), but shapes100 has 100 (" in capsys.readouterr().err


def test_the_command_runs_as_a_module(
    trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["eval", str(trained)])
    monkeypatch.delitem(sys.modules, "cifar100_tk.eval")
    # runpy would leave the code that jaxtyping has rewritten where the next process looks for the module's own.
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    runpy.run_module("cifar100_tk.eval", run_name="__main__", alter_sys=True)
    assert "on 130 test images of shapes100" in capsys.readouterr().out


def test_a_network_of_ones_own_is_measured_after_registering_it(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = shutil.copytree(trained / "model", tmp_path / "model")
    file = own_network(mine, "net_of_my_own")
    assert exit_code(command.main, mine, *SHAPES) == 3
    assert "has no architecture 'net_of_my_own'; if it is your own, import the file that" in capsys.readouterr().err
    assert exit_code(command.main, mine, *SHAPES, "--register", file) == 0
    assert "on 130 test images" in capsys.readouterr().out


def test_every_figure_is_in_the_json_and_on_the_page(
    knowing: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    held_out_in_training = ("--data.holdout", 100, "--data.holdout-seed", 3)
    assert exit_code(command.main, knowing, *SHAPES, *held_out_in_training, "--output", tmp_path / "scores.json") == 0
    held = evaluation_files.read_result(tmp_path / "scores.json")
    reported, held_out = collected(knowing, "test"), collected(knowing, "holdout")
    temperature = fit_temperature(held_out.logits, held_out.labels)
    scaled = Scaled.of(reported.logits, reported.labels, temperature, "holdout")
    expected = scores_of(reported).to_json(scaled)
    assert {name: held[name] for name in expected} == expected
    assert held["top1"] > 0.2 and len(held["most_confused"]) == 20
    assert 0.01 < held["temperature"] < 100 and held["temperature_fitted_on"] == "holdout"
    said = capsys.readouterr().out
    for name in ("superclass_top1", "errors_in_superclass", "macro_precision", "macro_f1", "ece", "ece_scaled"):
        assert f" {100 * held[name]:.2f} %" in said
    assert re.search(rf"after temperature scaling +\d.* %  T = {temperature:.3f} fitted on holdout\n", said)
    assert re.search(rf"loss after it +{held['loss_scaled']:.4f}\n", said)
    best, worst = (choose(held["classes"], key=lambda one: one["accuracy"]) for choose in (max, min))
    first, last = (f"{display_name(one['name'])} +{100 * one['accuracy']:.2f} %" for one in (best, worst))
    assert re.search(rf"{first}.* {last}", said)
    pair = held["most_confused"][0]
    true, predicted = display_name(pair["true"]), display_name(pair["predicted"])
    assert re.search(rf"{true} +{predicted} +{pair['num_images']} of \d", said)


def test_a_temperature_is_fitted_on_held_out_images_only(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, alone = ("--output", tmp_path / "scores.json"), shutil.copytree(trained / "model", tmp_path / "alone")
    assert exit_code(command.main, alone, *SHAPES, *output) == 0
    assert evaluation_files.read_result(tmp_path / "scores.json")["temperature"] is None
    assert "no images were held out to fit it on" in capsys.readouterr().out
    assert exit_code(command.main, trained, "--fit-temperature-on", "none", *output) == 0
    assert evaluation_files.read_result(tmp_path / "scores.json")["temperature"] is None
    assert re.search("after temperature scaling +-  as asked", capsys.readouterr().out)


def test_the_predictions_of_each_image_are_written(
    knowing: Path,
    tmp_path: Path,
) -> None:
    files = ("--output", tmp_path / "scores.json", "--predictions", tmp_path / "said.parquet")
    assert exit_code(command.main, knowing, *SHAPES, "--flip", *files) == 0
    held = evaluation_files.read_result(tmp_path / "scores.json")
    found = evaluation_files.read_predictions(tmp_path / "said.parquet")
    assert found.logits.equal(collected(knowing, "test", flip=True).logits) and found.rows.tolist() == list(range(130))
    assert held["flip"] and held["loss"] == scores_of(found).loss
    assert held["loss"] != pytest.approx(scores_of(collected(knowing, "test")).loss, rel=1e-5)


def test_what_is_measured_into_the_run_folder_is_in_its_report(
    trained: Path,
    tmp_path: Path,
) -> None:
    ran = shutil.copytree(trained, tmp_path / "run")
    test = ran / "evaluation" / "test.json"
    files = ("--output", test, "--predictions", test.with_suffix(".parquet"))
    assert exit_code(command.main, ran, *files) == 0
    result, predictions = evaluation_files.read(ran / "evaluation", "test")
    assert predictions.logits.equal(collected(trained, "test").logits)
    shown = report.build([ran], tmp_path / "report").read_text()
    assert "Training evaluated on holdout; the figures here are from evaluation/test.json." in shown
    assert "130 test images (shapes100, built in),\nEMA weights, float32." in shown
    assert f"Temperature {result['temperature']:.3f}, fitted on holdout." in shown
    assert re.search(rf"<dt>ECE after temperature</dt><dd>{100 * result['ece_scaled']:.2f}\s%</dd>", shown)
    # Nothing says what the weights of a model folder are, nor, where it is alone, what was held out.
    alone = shutil.copytree(trained / "model", tmp_path / "alone")
    assert exit_code(command.main, alone, *SHAPES, *files) == 0
    shown = report.build([ran], tmp_path / "report").read_text()
    assert "130 test images (shapes100, built in),\nfloat32." in shown and "no temperature was fitted" in shown


def test_several_models_give_a_table_and_a_list(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "500")  # The folders have long names.
    shutil.copytree(trained, tmp_path / "twin")
    (tmp_path / "twin" / "recipe.json").write_text(
        (trained / "recipe.json").read_text().replace('"holdout": 100', '"holdout": 0')
    )
    models = [tmp_path / "twin", trained]
    assert exit_code(command.main, *models, "--output", tmp_path / "scores.json") == 0
    held = json.loads((tmp_path / "scores.json").read_text())
    assert [one["model"] for one in held] == list(map(str, models))
    assert held[0]["top1"] == held[1]["top1"] and held[0]["confusion"] == held[1]["confusion"]
    said = capsys.readouterr().out
    assert said.startswith("130 test images of shapes100 (shapes100, built in); float32")
    _, _, head, *rows = said.splitlines()
    figures = ["top-1", "top-5", "loss", "super-class", "ECE", "ECE", "scaled", "images/s"]
    assert head.split() == ["model", "weights", "parameters", *figures]
    assert len({len(line) for line in (head, *rows)}) == 1  # Aligned.
    # Only one of them was trained with a holdout.
    assert [row.split()[0] for row in rows] == list(map(str, models)) and " -  " in rows[0] and " -  " not in rows[1]


def test_on_a_narrow_terminal_no_line_is_cut_and_every_figure_is_under_its_name(
    trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = json.loads((trained / "evaluation" / "holdout.json").read_text())
    many = {name: [0.9] * 5 for name in PUBLISHED}
    worse = {"source": "made here", "severities": [1, 2, 3, 4, 5], "top1": many, "mean_top1": 0.5, "mean_top1_of_15": 1}
    scaled = {"temperature": 100.0, "temperature_fitted_on": "holdout", "ece_scaled": 1.0, "loss_scaled": 12.5}
    one, two = held | {"model": "runs/one", "top1": 0.25, "corruptions": worse}, held | scaled | {"model": "runs/two"}
    two |= {"top1": 0.5, "num_parameters": 23_705_252, "images_per_second": 12_345.0}
    for columns, others in ((80, {}), (80, {"source": "another/copy/of/the/images"}), (200, {})):
        monkeypatch.setenv("COLUMNS", str(columns))
        alone, table = (
            console.page(two | others | {"corruptions": worse}, None),
            console.comparison([one, two | others]),
        )
        assert max(map(len, f"{alone}\n{table}".splitlines())) <= columns
        head, *rows = table.partition("\n\n")[2].splitlines()
        places = [next(number for number, row in enumerate(rows) if name in row) for name in ("runs/two", "runs/one")]
        assert places == sorted(places)  # The better one first.
        if columns == 80:
            assert "runs/two, ema weights, 23,705,252 parameters, 12,345 images/s" in rows[0] and "model" not in head
            places = [places[1] - 1, len(rows) - 1]
        for place, top1, mean in zip(places, ("50.00 %", "25.00 %"), (" -", "50.00 %"), strict=True):
            ends = {name: head.index(name) + len(name) for name in ("top-1", "corrupted")}
            assert rows[place][: ends["top-1"]].endswith(top1) and rows[place][: ends["corrupted"]].endswith(mean)


def test_models_measured_on_different_images_are_said_to_be(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = shutil.copytree(trained, tmp_path / "other")
    text = (other / "recipe.json").read_text()
    recipe = json.loads(text)
    recipe["data"]["shapes100_rows"] = [300, 140]
    (other / "recipe.json").write_text(json.dumps(recipe))
    assert exit_code(command.main, trained, other, "--fit-temperature-on", "none") == 0
    said = capsys.readouterr().out
    assert said.startswith("the models were evaluated on different images, so the figures do not show")
    assert "130 test, shapes100" in said and "140 test, shapes100" in said


def test_a_local_copy_of_cifar_100_c_is_measured(
    knowing: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "500")  # The folders have long names.
    clean = DATA.open("test")
    folder = tmp_path / "CIFAR-100-C"
    folder.mkdir()
    np.save(folder / "labels.npy", np.tile(clean.labels, 5))
    same, black = np.tile(clean.images.transpose(0, 2, 3, 1), (5, 1, 1, 1)), np.zeros((650, 32, 32, 3), np.uint8)
    names = PUBLISHED[:15]
    for name in (*names, "saturate"):
        np.save(folder / f"{name}.npy", black if name == "fog" else same)
    output, few = tmp_path / "scores.json", ("--batch-size", 20, "--limit-batches", 1)
    assert exit_code(command.main, knowing, *SHAPES, "--cifar100-c", folder, *few, "--output", output) == 0
    whole = json.loads(output.read_text())
    held, top1 = whole["corruptions"], whole["top1"]
    assert held["source"] == f"CIFAR-100-C in {folder}" and list(held["top1"]) == [*names, "saturate"]
    # Images that are all alike get one class, and the first 20 are of 20 classes.
    (fog,) = set(held["top1"]["fog"])
    assert fog in (0, 1 / 20) and held["top1"]["saturate"] == [top1] * 5 and top1 > fog
    assert held["mean_top1"] == pytest.approx((15 * top1 + fog) / 16)
    assert held["mean_top1_of_15"] == pytest.approx((14 * top1 + fog) / 15)
    (folder / "fog.npy").unlink()
    assert exit_code(command.main, knowing, *SHAPES, "--cifar100-c", folder, *few, "--output", output) == 0
    assert json.loads(output.read_text())["corruptions"]["mean_top1_of_15"] is None  # Only 14 of them are there.
    _, _, head, row = console.comparison([whole]).splitlines()
    assert row[: head.index("corrupted") + len("corrupted")].endswith(f" {100 * held['mean_top1']:.2f} %")
    said = capsys.readouterr().out
    assert f"corrupted images: CIFAR-100-C in {folder}" in said
    assert re.search(rf"mean +{100 * held['mean_top1']:.2f} %", said)
    assert re.search(rf"mean of the usual 15 +{100 * held['mean_top1_of_15']:.2f} %", said)


def test_a_model_of_ten_classes_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ten = timm.create_model("resnet10_cifar_w16", num_classes=10)
    model_folder.write(tmp_path / "ten", ten, tuple("abcdefghij"), Normalize(), "")
    assert exit_code(command.main, tmp_path / "ten", *SHAPES) == 3
    assert "ten has 10 classes (a, ...), but shapes100 has 100 (" in capsys.readouterr().err


def test_weights_that_are_not_there_are_said(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = shutil.copytree(trained, tmp_path / "run")
    for file in (path / "checkpoints").glob("*/model.safetensors"):
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(bytes(content))
    before = contents(path)
    assert exit_code(command.main, path, "--weights", "raw") == 3
    assert (
        "checkpoints contains no valid checkpoint with the raw weights; omit --weights raw" in capsys.readouterr().err
    )
    assert contents(path) == before  # Another process may be looking at it.
    recipe = json.loads((path / "recipe.json").read_text())
    (path / "recipe.json").write_text(json.dumps(recipe | {"ema": None}))
    assert exit_code(command.main, path, "--weights", "ema") == 2
    assert "was trained without EMA; omit --weights ema" in capsys.readouterr().err


def test_a_recipe_that_cannot_be_read_is_said(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = shutil.copytree(trained, tmp_path / "run")
    recipe = json.loads((path / "recipe.json").read_text())
    for content, message in (
        ("{", "cannot be read as JSON"),
        ([], "must hold a JSON object, not a list"),
        ({"data": 7}, "does not say which data the run used"),
        ({"data": {"source": "hub"}}, r"does not say which data the run used \('type'\)"),
        (
            {"data": {"type": "Cifar100", "source": "hub", "holdout": 0, "holdout_seed": 0}},
            r"does not say which data the run used \('shapes100_rows'\)",
        ),
        ({"data": recipe["data"] | {"holdout": "100"}}, r"does not say which data the run used \(holdout='100'\)"),
        (
            {"data": recipe["data"] | {"shapes100_rows": [100]}},
            r"does not say which data .* \(shapes100_rows=\(100,\)\)",
        ),
    ):
        (path / "recipe.json").write_text(content if isinstance(content, str) else json.dumps(content))
        assert exit_code(command.main, path) == 3
        assert re.search(rf"recipe.json {message}.*; measure {path}/model instead", capsys.readouterr().err)


def test_a_failure_leaves_the_files_of_an_earlier_evaluation_and_a_success_replaces_them(
    trained: Path, tmp_path: Path
) -> None:
    files = ("--output", tmp_path / "scores.json", "--predictions", tmp_path / "said.parquet")
    for name in ("scores.json", "said.parquet"):
        (tmp_path / name).touch()  # As mktemp does: nothing to lose.
    assert exit_code(command.main, trained, *files, "--batch-size", 10, "--limit-batches", 2) == 0
    before = contents(tmp_path)
    assert exit_code(command.main, trained, *files, "--data.source", "no/such/copy") == 3
    assert contents(tmp_path) == before
    assert evaluation_files.read_result(tmp_path / "scores.json")["num_images"] == 20
    # A list of several is of an earlier evaluation too.
    assert exit_code(command.main, trained, trained, *files[:2], "--limit-batches", 1) == 0
    assert exit_code(command.main, trained, *files, "--limit-batches", 1) == 0
    assert evaluation_files.read_result(tmp_path / "scores.json")["num_images"] == 130
    assert len(evaluation_files.read_predictions(tmp_path / "said.parquet").labels) == 130


@pytest.mark.parametrize(("option", "what"), [("--output", "figures"), ("--predictions", "predictions")])
def test_a_file_of_somebody_else_is_left_as_it_is(
    option: str, what: str, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    PIL.Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
    shutil.copy(trained / "recipe.json", tmp_path)
    shutil.copy(trained / "model" / "model.safetensors", tmp_path)
    datasets.Dataset.from_dict({"row": [1, 2]}).to_parquet(tmp_path / "other.parquet")
    (tmp_path / "list.json").write_text("[]")
    (tmp_path / "cut.json").write_text('{"model": ')
    os.mkfifo(tmp_path / "pipe")
    before = contents(tmp_path)
    assert len(before) == 6
    capsys.readouterr()
    for name in before:
        # The model is not looked at before.
        assert exit_code(command.main, "no/such/run", option, tmp_path / name) == 2
        assert capsys.readouterr().err == (
            f"python -m cifar100_tk.eval: {option} {tmp_path / name} already exists and does not hold the {what} of an earlier "
            "evaluation, so it is not overwritten; give another name, or remove it first.\n"
        )
    pipe = Refusal(["no/such/run", option, "PIPE"], 2, "is a device or a pipe, not a regular file; give another")
    pipe.check(capsys, command.main, PIPE=tmp_path / "pipe")
    assert contents(tmp_path) == before and (tmp_path / "pipe").is_fifo()


def test_the_page_is_shown_though_the_file_cannot_be_written(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with file_limit(1000):
        assert exit_code(command.main, trained, "--output", tmp_path / "scores.json") == 5
    said = capsys.readouterr()
    assert f"cannot write {tmp_path}/scores.json (File too large)" in said.err
    assert said.out.startswith("top-1 ") and not contents(tmp_path)


def test_the_files_are_written_though_nobody_reads_the_page(trained: Path, tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)  # As `| head` does.
    ended = subprocess.run(
        [sys.executable, "-m", "cifar100_tk.eval", trained, "--output", tmp_path / "scores.json"],
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        timeout=patient(100),
    )
    os.close(writer)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert evaluation_files.read_result(tmp_path / "scores.json")["num_images"] == 130


def test_a_batch_that_does_not_fit_is_said(
    knowing: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    forward = nn.Linear.forward

    def greedy(self: nn.Linear, images: Tensor) -> Tensor:
        return forward(self, images) if len(images) <= 65 else torch.empty(10**15)

    monkeypatch.setattr(nn.Linear, "forward", greedy)
    assert exit_code(command.main, knowing, *SHAPES) == 2
    said = "--batch-size 500 does not fit in the memory of the device; use half of it."
    assert capsys.readouterr().err == f"python -m cifar100_tk.eval: {said}\n"
    assert exit_code(command.main, knowing, *SHAPES, "--batch-size", 65) == 0


@pytest.mark.distributed
def test_two_processes_measure_what_one_does(
    trained: Path,
    tmp_path: Path,
) -> None:
    script = tmp_path / "script.py"
    script.write_text("from cifar100_tk.eval import main\nmain()\n")
    ended = torchrun(script, trained, "--flip", "--output", tmp_path / "two.json", ACCELERATE_USE_CPU="true")
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert exit_code(command.main, trained, "--flip", "--output", tmp_path / "one.json") == 0
    one, two = (evaluation_files.read_result(tmp_path / f"{name}.json") for name in ("one", "two"))
    for name in ("num_images", "top1", "top5", "superclass_top1", "classes", "confusion", "most_confused"):
        assert two[name] == one[name]
    for name in ("loss", "ece", "temperature", "ece_scaled", "loss_scaled"):
        assert two[name] == pytest.approx(one[name], rel=1e-4)


@pytest.mark.distributed
def test_a_process_that_is_alone_ends_at_the_timeout_with_a_sentence(trained: Path) -> None:
    with socket.socket() as chosen:
        chosen.bind(("127.0.0.1", 0))
        port = str(chosen.getsockname()[1])
    place = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    ended = subprocess.run(
        [sys.executable, "-m", "cifar100_tk.eval", str(trained), "--timeout-minutes", "0.05"],
        env=os.environ | place,
        capture_output=True,
        text=True,
        timeout=patient(100),
    )
    assert ended.returncode == 1, ended.stderr[-3000:]
    said = r"rank 0 (has not met|could not join) the other process of its run at 127\.0\.0\.1:\d+"
    assert re.search(said, ended.stderr), ended.stderr[-3000:]
