"""More epochs: the record of a run's lengths, what is set aside, and the extensions that are refused; without training."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from accelerate import Accelerator
from runs import SHAPES, TINY, contents
from test_run_folder import RECIPE, opened, unfinished

from cifar100_tk.errors import ConfigError, ResumeError
from cifar100_tk.runs.extension import earlier_lengths
from cifar100_tk.runs.files import read_recipe, read_status, write_status
from cifar100_tk.runs.lengths import Earlier, read_earlier, record
from cifar100_tk.runs.run_folder import validate_run_dir
from cifar100_tk.training.length import RunLength
from cifar100_tk.training.plan import Plan, RunOptions


def finished(path: Path) -> Path:
    """A finished run of two epochs and ten steps, with a model and an evaluation."""
    unfinished(path)
    for name in ("model/config.json", "evaluation/test.json"):
        (path / name).parent.mkdir(exist_ok=True)
        (path / name).write_text(f'{{"of": "{name}"}}')
    write_status(path, "finished", step=10)
    return path


def longer(path: Path, epochs: int) -> dict[str, Any]:
    """The recipe.json of a longer run."""
    return RECIPE | {"epochs": epochs} | record(earlier_lengths(path, 2, epochs))


def test_a_finished_run_is_set_aside_whole_and_becomes_an_unfinished_one_of_the_new_length(tmp_path: Path) -> None:
    path = finished(tmp_path / "run")
    before = {
        name: content for name, content in contents(path).items() if "checkpoints" not in name and name != ".lock"
    }
    run = opened(path, longer(path, 3))
    assert run.checkpoint is not None and run.checkpoint.step == 10
    assert contents(path / "epoch-2") == before and read_status(path / "epoch-2")["status"] == "finished"
    assert not (path / "model").exists() and not (path / "evaluation").exists()
    assert read_status(path)["status"] == "running"
    assert read_recipe(path) == RECIPE | {"epochs": 3, "extended": [{"epochs": 2, "step": 10}]}
    # The command that extended it resumes it, and so does one of a run of that length.
    assert earlier_lengths(path, 2, 3) == earlier_lengths(path, 3, None) == (Earlier(2, 10),)
    run.lock.release()
    opened(path, longer(path, 3)).lock.release()
    # And further: each length is recorded.
    assert earlier_lengths(path, 2, 7) == (Earlier(2, 10), Earlier(3, 10))


def test_a_stopped_run_is_extended_from_its_newest_valid_checkpoint(tmp_path: Path) -> None:
    path = unfinished(tmp_path / "run")
    (path / "checkpoints" / "step-00000010" / "model.safetensors").write_bytes(b"")
    run = opened(path, longer(path, 3))
    assert run.checkpoint is not None and run.checkpoint.step == 5
    assert read_recipe(path)["extended"] == [{"epochs": 2, "step": 5}] and not (path / "epoch-2").exists()


def test_a_run_that_was_trained_further_in_the_meantime_is_left_as_it_is(tmp_path: Path) -> None:
    path = finished(tmp_path / "run")
    stale = RECIPE | {"epochs": 3, "extended": [{"epochs": 2, "step": 5}]}
    before = contents(path)
    with pytest.raises(ConfigError, match=r"was trained further in the meantime; run the same command again"):
        opened(path, stale)
    assert contents(path) == before


@pytest.mark.parametrize(
    ("extend_to", "message"),
    [
        (2, r"holds a finished run of 2 epochs, and --extend-to 2 adds none; give more than 2\."),
        (1, r"holds a finished run of 2 epochs, and --extend-to 1 adds none; give more than 2\."),
    ],
)
def test_an_extension_that_adds_nothing_is_refused(tmp_path: Path, extend_to: int, message: str) -> None:
    path = finished(tmp_path / "run")
    before = contents(path)
    with pytest.raises(ConfigError, match=message):
        earlier_lengths(path, 2, extend_to)
    write_status(path, "stopped")
    with pytest.raises(ConfigError, match=r"holds a run of 2 epochs, and --extend-to 1 adds none"):
        earlier_lengths(path, 2, 1)
    assert contents(path) | {"run_status.json": b""} == before | {"run_status.json": b""}


def test_an_extension_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"holds no run that --extend-to 3 could continue; start one with --epochs"):
        earlier_lengths(tmp_path / "none", 2, 3)
    path = finished(tmp_path / "run")
    for manifest in path.glob("checkpoints/*/manifest.json"):
        manifest.unlink()
    with pytest.raises(ResumeError, match=r"no valid checkpoint in .* to extend the run from; its model is left"):
        earlier_lengths(path, 2, 3)


def test_the_refusals_of_a_longer_run_name_the_way_out(tmp_path: Path) -> None:
    path = finished(tmp_path / "run")
    with pytest.raises(
        ConfigError, match=r"a finished run, which is never overwritten; give --extend-to for more epoc"
    ):
        validate_run_dir(path, RECIPE, "auto")
    write_status(path, "stopped")
    with pytest.raises(ConfigError, match=r"epochs was 2 and is 3\. --extend-to 3 continues it to 3 epochs\. Choose"):
        validate_run_dir(path, RECIPE | {"epochs": 3}, "auto")
    opened(path, longer(path, 3)).lock.release()
    with pytest.raises(
        ConfigError, match=r"epochs was 3 and is 2\. --extend-to 3 resumes it at its length of 3 epochs"
    ):
        validate_run_dir(path, RECIPE, "auto")
    with pytest.raises(ConfigError, match=r"--extend-to 3 continues a run, but --resume=never starts a new one"):
        RunOptions(extend_to=3, resume="never")


@pytest.mark.parametrize("extended", [[{"epochs": 2}], [{"epochs": -1, "step": 2}], [{"epochs": 2, "step": "x"}], 7])
def test_a_damaged_record_of_lengths_is_none(extended: Any) -> None:
    assert read_earlier({"epochs": 3, "extended": extended}) == ()


@pytest.mark.usefixtures("on_cpu")
def test_learning_rates_are_those_of_the_length_that_was_in_force(tmp_path: Path) -> None:
    # Ten steps planned, extended after the 7th to 15, and after the 12th to 20.
    accelerator, split = Accelerator(cpu=True), SHAPES.open("train")
    plan = Plan.of(replace(TINY, epochs=4), RunOptions(), accelerator, split, (Earlier(2, 7), Earlier(3, 12)))
    assert plan.pipeline.length == RunLength(20, ((7, 10), (12, 15))) and plan.num_steps == 20
    alone = {epochs: Plan.of(replace(TINY, epochs=epochs), RunOptions(), accelerator, split) for epochs in (2, 3, 4)}
    expected = [alone[2 if step < 7 else 3 if step < 12 else 4].lr(step) for step in range(20)]
    assert [plan.lr(step) for step in range(20)] == expected and expected[-1] == pytest.approx(1e-6)
    shown = plan.describe(7, SHAPES.open("test"), tmp_path, "name")
    spoken = (
        "from 2 epochs after step 7, extended from 3 epochs after step 12; from there on the schedule is that of the"
    )
    assert f"  extended       {spoken} longer run\n" in f"{shown}\n"
