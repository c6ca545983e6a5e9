"""`python -m cifar100_tk.eval` measures what training measured, and refuses what it cannot measure."""

from __future__ import annotations

import json
import re
import runpy
import shutil
import sys
from pathlib import Path

import pytest
from runs import lines, on_cpu, run, tiny

from cifar100_tk import eval as command
from cifar100_tk.data import Cifar100

__all__ = ["on_cpu"]
pytestmark = pytest.mark.usefixtures("on_cpu")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a holdout."""
    path = tmp_path_factory.mktemp("eval") / "run"
    data = Cifar100(source="shapes100", shapes100_rows=(200, 130), holdout=100, holdout_seed=3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCELERATE_USE_CPU", "true")
        run(path, tiny(data=data, epochs=1))
    return path


def evaluate(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """Run the command in this process. Returns its exit code."""
    monkeypatch.setattr(sys, "argv", ["eval", *map(str, arguments)])
    try:
        command.main()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0
    return 0


def test_a_run_folder_is_measured_on_its_own_data(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate(monkeypatch, trained, "--split", "holdout", "--output", tmp_path / "scores.json") == 0
    scores = json.loads((tmp_path / "scores.json").read_text())
    (line,) = lines(trained)
    # The same weights in another memory layout: float32 rounding apart.
    for name in ("top1", "top5"):
        assert scores[name] == line[f"holdout/{name}"]
    assert scores["loss"] == pytest.approx(line["holdout/loss"], rel=1e-5)
    assert (scores["num_images"], scores["split"], scores["source"]) == (100, "holdout", "shapes100")
    assert scores["model"] == str(trained) and scores["images_per_second"] > 0
    assert f"top-5 {100 * scores['top5']:.2f} %, loss {scores['loss']:.4f} on 100 holdout" in capsys.readouterr().out


def test_a_model_folder_is_measured_on_the_data_that_is_named(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "scores.json"
    data = ["--data.source", "shapes100", "--data.shapes100-rows", "200", "130"]
    assert evaluate(monkeypatch, trained / "model", *data, "--output", output) == 0
    first = json.loads(output.read_text())
    assert first["num_images"] == 130
    # The size of a batch changes speed and memory only.
    assert evaluate(monkeypatch, trained, "--batch-size", "17", "--output", output) == 0
    second = json.loads(output.read_text())
    assert (second["top1"], second["top5"]) == (first["top1"], first["top5"])
    assert second["loss"] == pytest.approx(first["loss"], rel=1e-5)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["no/such/run"], 3, "no/such/run does not exist; give a run folder, a model folder or a Hub id"),
        (["weights.pth"], 3, "weights.pth is a pickle, and loading one runs whatever code is in it"),
        (["RUN", "--batch-size", "0"], 2, "--batch-size 0 is not positive; give 1 or more"),
        (["RUN", "--limit-batches", "-2"], 2, "--limit-batches -2 is not positive; give 1 or more"),
        (["RUN", "--output", "no/such/folder/x.json"], 2, "there is no folder .*no/such/folder; make it first"),
        (["RUN", "--data.source", "no/such/copy"], 3, "no/such/copy"),
        (
            ["RUN", "--data.holdout", "0", "--split", "holdout"],
            2,
            "does not say that pictures of train were set aside",
        ),
        (["RUN", "--split", "validation"], 2, "(?s)--split.*train"),
        ([], 2, "MODEL"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_measured_ends_with_a_sentence_and_its_code(
    trained: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    code: int,
    message: str,
) -> None:
    assert evaluate(monkeypatch, *(trained if word == "RUN" else word for word in arguments)) == code
    said = capsys.readouterr()
    plain = " ".join((said.err + said.out).replace("│", " ").split())
    assert re.search(message, plain), plain
    assert "Traceback" not in plain


def test_a_model_of_other_classes_is_refused(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(trained / "model", tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    config["label_names"][0] = "apple"
    (folder / "config.json").write_text(json.dumps(config))
    data = ["--data.source", "shapes100", "--data.shapes100-rows", "200", "130"]
    assert evaluate(monkeypatch, folder, *data) == 3
    assert "knows 100 classes (apple, ...), but shapes100 has 100 (" in capsys.readouterr().err


def test_the_command_runs_as_a_module(
    trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["eval", str(trained)])
    monkeypatch.delitem(sys.modules, "cifar100_tk.eval")
    runpy.run_module("cifar100_tk.eval", run_name="__main__", alter_sys=True)
    assert "on 130 test pictures of shapes100" in capsys.readouterr().out


def test_a_network_of_ones_own_is_measured_after_registering_it(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = tmp_path / "model"
    shutil.copytree(trained / "model", mine)
    config = json.loads((mine / "config.json").read_text())
    (mine / "config.json").write_text(json.dumps(config | {"architecture": "net_of_my_own"}))
    source = ["--data.source", "shapes100", "--data.shapes100-rows", "200", "130"]
    assert evaluate(monkeypatch, mine, *source) == 3
    assert "knows no architecture 'net_of_my_own'; if it is one of your own, import what" in capsys.readouterr().err
    file = tmp_path / "register.py"
    file.write_text(
        "import timm\nfrom timm.models import register_model\n"
        "@register_model\n"
        "def net_of_my_own(pretrained=False, **kwargs):\n"
        f"    return timm.create_model({config['architecture']!r}, **kwargs)\n"
    )
    assert evaluate(monkeypatch, mine, *source, "--register", file) == 0
    assert "on 130 test pictures" in capsys.readouterr().out
