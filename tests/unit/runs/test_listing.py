"""Runs side by side: one line a run, and only what differs between their recipes."""

from __future__ import annotations

from pathlib import Path

import pytest
from commands import exit_code, said
from written_runs import folder

from cifar100_tk.runs.__main__ import main


def test_every_run_below_a_folder_gets_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder(tmp_path / "net" / "seed-0", 0.5)
    folder(
        tmp_path / "net" / "seed-1", 0.625, status="running", seed=1, batch_size=64, model={"name": "resnet18_cifar"}
    )
    assert exit_code(main, "list", tmp_path) == 0
    head, first, second = capsys.readouterr().out.splitlines()
    assert head.split() == ["run", "status", "epochs", "top-1", "top-5", "measured", "on", "time", "recipe"]
    assert "seed-0  finished     2/?  50.00 %  75.00 %  test, epoch 2  1 min 39 s  SGD lr 0.1, seed 0" in first
    assert second.endswith("resnet18_cifar, batch 64, SGD lr 0.1, seed 1") and "62.50 %" in second


def test_what_differs_is_named_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder(tmp_path / "a", augment=[{"type": "PadCrop", "padding": 4, "mode": "zero"}])
    folder(tmp_path / "b", seed=1, augment=[], optimizer={"type": "SGD", "lr": 0.2})
    assert exit_code(main, "compare", tmp_path) == 0
    assert capsys.readouterr().out.splitlines()[4:] == [
        "differs       a           b",
        "optimizer.lr  0.1         0.2",
        "seed          0           1",
        "augment       PadCrop(4)  none",
    ]


def test_runs_of_one_recipe_differ_in_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder(tmp_path / "a")
    folder(tmp_path / "b")
    assert exit_code(main, "compare", tmp_path) == 0
    assert "the recipes are the same, seeds included." in said(capsys)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["list", "nowhere"], "nowhere is not a folder; give run folders"),
        (["list", "empty"], "there is no run in empty; a run folder holds a recipe.json"),
        (["compare", "one"], "one is one run; give two or more to compare"),
        (["compare"], "no run is given; give run folders"),
    ],
)
def test_what_cannot_be_listed_is_refused(
    arguments: list[str],
    sentence: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "empty").mkdir()
    folder(tmp_path / "one")
    monkeypatch.chdir(tmp_path)
    assert exit_code(main, *arguments) == 2
    assert sentence in said(capsys)
