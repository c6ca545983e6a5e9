"""Two real processes train what one trains, agree on signals, and hold the same weights and statistics."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import PROGRAMS, torchrun
from runs import TWICE, assert_same_tensors, lines, newest, run_once, status

pytestmark = [pytest.mark.distributed, pytest.mark.usefixtures("on_cpu")]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """What two processes left: their folder, and what each of them found."""
    folder = tmp_path_factory.mktemp("two")
    finished = torchrun(
        PROGRAMS / "train_on_two.py", folder, ACCELERATE_USE_CPU="true", PYTHONWARNINGS="error::UserWarning"
    )
    assert finished.returncode == 0, finished.stderr[-4000:]
    found = [json.loads((folder / f"rank{rank}.json").read_text()) for rank in (0, 1)]
    assert [one["num_processes"] for one in found] == [2, 2]
    return folder, found


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run in one process, uninterrupted."""
    return run_once(tmp_path_factory, TWICE)


def test_two_processes_end_with_the_weights_of_one(two: tuple[Path, list[dict[str, Any]]], one: Path) -> None:
    ours, theirs = newest(two[0] / "run"), newest(one)
    assert ours.step == theirs.step == 10
    for file in ("model", "ema", "optimizer"):
        torch.testing.assert_close(ours.tensors[file], theirs.tensors[file], rtol=1e-4, atol=1e-6)
    # Else the comparison would say nothing: training has moved the weights by far more than that.
    moved = ours.tensors["model"]["head.fc.weight"] - newest(one).tensors["ema"]["head.fc.weight"]
    assert moved.abs().max() > 1e-5


def test_two_processes_log_the_rates_and_losses_of_one(two: tuple[Path, list[dict[str, Any]]], one: Path) -> None:
    ours, theirs = lines(two[0] / "run"), lines(one)
    assert len(ours) == len(theirs) == 2
    for our, their in zip(ours, theirs, strict=True):
        assert our.keys() == their.keys() and our["train/lr"] == their["train/lr"]
        assert our == pytest.approx(their, rel=1e-4)


def test_both_processes_get_the_same_metrics(two: tuple[Path, list[dict[str, Any]]]) -> None:
    first, second = two[1]
    assert first["metrics"] == second["metrics"] and first["metrics"]["num_images"] == 100


def test_runs_one_after_the_other_in_the_same_processes_give_the_same(two: tuple[Path, list[dict[str, Any]]]) -> None:
    folder, (first, second) = two
    assert first["again"] == second["again"] == [first["metrics"]] * 2
    # To the bit, though the first one was interrupted and went on.
    for n in range(2):
        assert_same_tensors(newest(folder / f"again{n}"), newest(folder / "run"))


def test_a_signal_to_one_process_stops_both_at_the_same_step(two: tuple[Path, list[dict[str, Any]]]) -> None:
    first, second = (found["stopped"] for found in two[1])
    assert first.startswith("stopped by a signal to another process after step 3,")
    assert second.startswith("stopped by SIGTERM after step 3,")


def test_an_error_of_the_main_process_is_raised_in_both(two: tuple[Path, list[dict[str, Any]]]) -> None:
    assert [found["told"] for found in two[1]] == ["nothing there"] * 2


def test_two_processes_that_read_late_as_on_gpus_train_the_same(two: tuple[Path, list[dict[str, Any]]]) -> None:
    folder = two[0]
    for late, known in zip(lines(folder / "late"), lines(folder / "run"), strict=True):
        assert late.keys() <= known.keys() and late == {name: known[name] for name in late}
    # Else the first epoch's end would wait for its evaluation.
    assert not any(name.startswith("test/") for name in lines(folder / "late")[0])
    assert_same_tensors(newest(folder / "late"), newest(folder / "run"))
    saved = sorted(path.name for path in (folder / "late" / "checkpoints").iterdir())
    assert saved == ["step-00000005", "step-00000010"]


def test_an_error_while_reporting_late_is_raised_in_both(two: tuple[Path, list[dict[str, Any]]]) -> None:
    first, second = (found["failed"] for found in two[1])
    assert first == second and "cannot write" in first
    # The first epoch's report is written at step 7 and fails, which both read at step 10.
    assert status(two[0] / "failed")["step"] == 10


def test_running_statistics_and_weights_are_the_same_in_both(two: tuple[Path, list[dict[str, Any]]]) -> None:
    first, second = two[1]
    assert first["statistics"] == second["statistics"] and any(first["statistics"])
    assert first["weight"] == second["weight"]


def test_two_processes_compile_one_graph_and_train_the_same(two: tuple[Path, list[dict[str, Any]]]) -> None:
    first, second = two[1]
    assert first["graphs"] == second["graphs"] == [1, 0]
    assert first["compiled_weight"] == second["compiled_weight"] == pytest.approx(first["weight"], rel=1e-6)


def test_each_process_drops_others_of_the_same_images(two: tuple[Path, list[dict[str, Any]]]) -> None:
    first, second = two[1]
    assert first["dropped"] != second["dropped"] == pytest.approx(first["dropped"], rel=0.2)


def test_processes_that_do_not_know_of_each_other_are_stopped() -> None:
    finished = torchrun(PROGRAMS / "start_only.py", CUDA_VISIBLE_DEVICES="")
    assert finished.returncode != 0
    message = (
        "the launcher started 2 processes, but no process group was initialized, so each would repeat the whole run"
    )
    assert message in finished.stderr and "set ACCELERATE_USE_CPU=true for torchrun" in finished.stderr
