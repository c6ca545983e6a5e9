"""--keep-best: the best model by a held-out metric, kept as a run folder of its own."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from runs import SHAPES, contents, lines, run, status, tiny

from cifar100_tk.errors import ConfigError
from cifar100_tk.evaluation.targets import load
from cifar100_tk.runs import summary
from cifar100_tk.runs.best import Best, best_of
from cifar100_tk.runs.files import read_recipe
from cifar100_tk.storage import atomic
from cifar100_tk.training.plan import RunOptions

HELD_OUT = tiny(data=replace(SHAPES, shapes100_rows=(200, 100), holdout=100), epochs=3)


def test_the_best_of_several_epochs_is_the_first_of_the_best() -> None:
    first, equal, better = (Best("holdout/top1", value, 1) for value in (0.5, 0.5, 0.6))
    assert first.beats(None) and not equal.beats(first) and better.beats(first) and not first.beats(better)
    assert Best("holdout/loss", 1.0, 2).beats(Best("holdout/loss", 2.0, 1))
    assert Best("holdout/loss", 9.0, 2).beats(first)  # By another metric, it starts again.


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        ("test/top1", r"--keep-best test/top1 would choose the model by the test images, .* --data.holdout 5000, and"),
        ("top1", r"--keep-best top1 is not a held-out metric; use holdout/top1, holdout/top5 or holdout/loss\."),
    ],
)
def test_a_metric_that_must_not_choose_is_refused(metric: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        RunOptions(keep_best=metric)


@pytest.mark.usefixtures("on_cpu")
def test_nothing_is_chosen_without_held_out_images(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"--keep-best holdout/top1 needs held-out training images; give --data.holdou"
    ):
        run(tmp_path / "run", keep_best="holdout/top1")
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("on_cpu")
def test_the_best_model_is_a_run_folder_that_eval_reads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "run"
    run(path, HELD_OUT, keep_best="holdout/loss", eval_every=1)
    losses = [line["holdout/loss"] for line in lines(path)]
    best, kept = min(range(3), key=losses.__getitem__), path / "best"
    assert best_of(path) == Best("holdout/loss", losses[best], best + 1)
    assert f"best by holdout/loss: {losses[best]:.4f} after epoch {best + 1}, in {kept}" in capsys.readouterr().out
    # Its figures are those of that epoch everywhere.
    assert len(lines(kept)) == best + 1 and status(kept)["loss"] == losses[best]
    result = json.loads((kept / "evaluation" / "holdout.json").read_text())
    assert result["loss"] == losses[best] and read_recipe(kept) == read_recipe(path) | {
        "best": {"metric": "holdout/loss", "value": losses[best], "epoch": best + 1}
    }
    loaded = load(str(kept), "holdout", {})
    assert loaded.data.holdout == 100 and loaded.weights == "raw"
    assert f"; epoch {best + 1} of 3, chosen by holdout/loss, seed 0; " in summary.summary([kept]).conditions


def test_a_folder_is_replaced_whole_even_by_a_process_that_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "best"

    def write(text: str) -> None:
        with atomic.replaced_folder(folder) as temporary:
            (temporary / "file").write_text(text)

    write("first")
    write("second")
    assert contents(tmp_path) == {"best/file": b"second"}

    def killed(name: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(atomic, "finish_replacing", killed)
        with pytest.raises(KeyboardInterrupt):
            write("third")
    assert contents(folder) == {"file": b"second"}
    atomic.finish_replacing(folder)
    assert contents(tmp_path) == {"best/file": b"third"}
    atomic.finish_replacing(folder)
    assert contents(tmp_path) == {"best/file": b"third"}
