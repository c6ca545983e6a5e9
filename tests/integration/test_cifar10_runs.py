"""CIFAR-10 from its files to a measured model: ten classes without super-classes, in the same commands."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from commands import exit_code
from data_fixtures import cifar10_batches, write_files
from runs import assert_same_tensors, newest, run, tiny

from cifar100_tk import eval as evaluation
from cifar100_tk import report
from cifar100_tk.data import Cifar10
from cifar100_tk.data.published import CIFAR10
from cifar100_tk.evaluation import files
from cifar100_tk.hub import folder
from cifar100_tk.models import folder as model_folder

pytestmark = pytest.mark.usefixtures("on_cpu", "cache")


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    """A run on 40 images, with 10 held out."""
    source = str(write_files(tmp_path / "cifar-10-batches-bin", cifar10_batches()[0]))
    run(tmp_path / "run", tiny(data=Cifar10(source=source, holdout=10), batch_size=8))
    return tmp_path / "run"


def test_a_run_trains_resumes_and_is_measured(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert json.loads((trained / "recipe.json").read_text())["data"]["type"] == "Cifar10"
    classifier = model_folder.load(str(trained))
    assert classifier.class_names[0] == "airplane" and len(classifier.class_names) == 10
    result, predictions = files.read(trained / "evaluation", "holdout")
    assert predictions.logits.shape == (10, 10) and result["superclass_top1"] is None
    capsys.readouterr()
    # By its class names a model folder is known to be of CIFAR-10, wherever it is.
    (trained / "model").rename(tmp_path / "alone")
    source = ["--data.source", tmp_path / "cifar-10-batches-bin", "--fit-temperature-on", "none"]
    assert exit_code(evaluation.main, tmp_path / "alone", *source, "--output", tmp_path / "figures.json") == 0
    page = capsys.readouterr().out
    assert "30 test images" in page and "super-class" not in page
    measured = files.read_result(tmp_path / "figures.json")
    assert [one["superclass"] for one in measured["classes"]] == [None] * 10
    assert exit_code(evaluation.main, tmp_path / "alone", "--data.shapes100-rows", 100, 100) == 2
    assert "CIFAR-10 has no --data.shapes100-rows; leave it out." in capsys.readouterr().err


def test_report_and_card_name_cifar10_and_no_super_classes(trained: Path, tmp_path: Path) -> None:
    result, predictions = files.read(trained / "evaluation", "holdout")
    files.write(trained / "evaluation", "holdout", result | {"images": CIFAR10.sentences["train"]}, predictions)
    recipe = json.loads((trained / "recipe.json").read_text())
    recipe["images"]["train"]["sentence"] = CIFAR10.sentences["train"]
    (trained / "recipe.json").write_text(json.dumps(recipe))
    page = report.build([trained], tmp_path / "report").read_text()
    assert "Confusion matrix of 10 classes; the most confused pairs" in page
    assert "super-class" not in page and 'title="None' not in page
    folder.build(trained, tmp_path / "built", check=False)
    card = (tmp_path / "built" / "README.md").read_text()
    assert "test_convnext2 on CIFAR-10\n" in card and "the 10 classes of [CIFAR-10]" in card
    assert "- uoft-cs/cifar10\n" in card and "super-class" not in card and "uoft-cs/cifar100" not in card


def test_a_run_from_another_copy_is_the_same_run(trained: Path, tmp_path: Path) -> None:
    copy = str((tmp_path / "cifar-10-batches-bin").rename(tmp_path / "moved"))
    run(tmp_path / "again", tiny(data=Cifar10(source=copy, holdout=10), batch_size=8))
    assert_same_tensors(newest(tmp_path / "again"), newest(trained))
