"""A signal at any moment: all processes stop at the same step with a checkpoint and exit code 75, and nothing is lost."""

from __future__ import annotations

import os
import random
import re
import signal
import time
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import pytest
from forks import Trainer
from interrupted import HOST, INT, ONE, TERM, TWO, USR1, Whole, assert_same_run, goes_on, stops
from runs import newest, status

AVERAGE = {"step-00000002.polled:2": TERM}
"""After the raw weights of the first epoch and before their average."""
SETUP = "splits.opening"


@pytest.mark.parametrize("number", [INT, USR1])
def test_while_training(number: int, forkserver: ForkServerContext, tmp_path: Path, uninterrupted: Whole) -> None:
    patch = ("signal_at", {"step-00000001.done": number})
    said = stops(forkserver, tmp_path / "run", uninterrupted(ONE), 1, patch, **ONE)
    assert f"stopped by {signal.Signals(number).name} after step 1," in said


def test_while_evaluating(forkserver: ForkServerContext, tmp_path: Path, uninterrupted: Whole) -> None:
    path = tmp_path / "run"
    said = stops(forkserver, path, uninterrupted(ONE), 2, ("signal_at", AVERAGE), **ONE)
    assert "epoch 1/2" not in said  # The epoch is reported after the resume, once.


def test_while_evaluating_again_and_again(forkserver: ForkServerContext, tmp_path: Path, uninterrupted: Whole) -> None:
    path = tmp_path / "run"
    for _ in range(2):
        trainer = Trainer(forkserver, path, patch=("signal_at", AVERAGE), **ONE)
        assert trainer.wait() == 75 and newest(path).step == 2, trainer.said()
        assert not (path / "metrics.jsonl").exists() or not (path / "metrics.jsonl").read_text()
    # Killed between the report and the next checkpoint, it reports once more, and not twice.
    trainer = Trainer(forkserver, path, fail_at="step-00000003.done:1", **ONE)
    assert trainer.wait() == -signal.SIGKILL
    goes_on(forkserver, path, uninterrupted(ONE), **ONE)


def test_while_saving_twice(forkserver: ForkServerContext, tmp_path: Path, uninterrupted: Whole) -> None:
    patch = ("signal_at", {"optimizer.safetensors.written": TERM, "ema.safetensors.opened": INT})
    stops(forkserver, tmp_path / "run", uninterrupted(ONE), 3, patch, **ONE)


def test_a_second_signal_while_the_first_one_is_obeyed(
    forkserver: ForkServerContext, tmp_path: Path, uninterrupted: Whole
) -> None:
    points = {"step-00000001.done": USR1, "model.safetensors.written": TERM, "step-00000001.complete": INT}
    said = stops(forkserver, tmp_path / "run", uninterrupted(ONE), 1, ("signal_at", points), **ONE)
    assert "stopped by SIGUSR1 after step 1," in said


def test_while_a_save_is_pending_in_the_background(
    forkserver: ForkServerContext, tmp_path: Path, uninterrupted: Whole
) -> None:
    path = tmp_path / "run"
    points = {"step-00000003.done": TERM, "step-00000003.complete": INT}
    stops(forkserver, path, uninterrupted(ONE), 3, ("save_in_background", "signal_at", points), **ONE)


def test_while_the_folder_is_opened(forkserver: ForkServerContext, tmp_path: Path, uninterrupted: Whole) -> None:
    stops(forkserver, tmp_path / "run", uninterrupted(ONE), 0, ("signal_at", {"run_status.json.written": TERM}), **ONE)


def test_while_the_plan_is_made(forkserver: ForkServerContext, tmp_path: Path, uninterrupted: Whole) -> None:
    path = tmp_path / "run"
    trainer = Trainer(forkserver, path, patch=("signal_at", {SETUP: INT}), **ONE)
    assert trainer.wait() == 75 and not path.exists()
    assert "stopped by SIGINT before training began; run the same command again to start" in trainer.said()
    goes_on(forkserver, path, uninterrupted(ONE), **ONE)


def test_while_the_model_is_written(forkserver: ForkServerContext, tmp_path: Path, uninterrupted: Whole) -> None:
    path = tmp_path / "run"
    trainer = Trainer(forkserver, path, patch=("signal_at", {"model.complete": TERM}), **ONE)
    assert trainer.wait() == 0, trainer.said()
    assert_same_run(path, uninterrupted(ONE))


@pytest.mark.parametrize("number", [INT, TERM])
def test_the_whole_group_with_its_workers(
    number: int, forkserver: ForkServerContext, tmp_path: Path, uninterrupted: Whole
) -> None:
    path = tmp_path / "run"
    trainer = Trainer(forkserver, path, **HOST)
    while "epoch 1/2" not in trainer.said() and trainer.processes[0].is_alive():
        time.sleep(0.005)
    os.killpg(trainer.pids[0], number)
    code = trainer.wait()
    assert code in (0, 75), trainer.said()
    assert status(path)["status"] == {0: "finished", 75: "stopped"}[code] and "Traceback" not in trainer.said()
    if code == 75:
        goes_on(forkserver, path, uninterrupted(HOST), **HOST)


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("step", "patch"),
    [
        (1, ("signal_at", {"step-00000001.done": USR1}, 1)),
        (3, ("signal_at", {"step-00000003.done": TERM}, 0)),
        (2, ("signal_at", AVERAGE, 1)),
        (3, ("signal_at", {"manifest.json.written": TERM}, 0)),
    ],
    ids=["training, rank 1", "training, rank 0", "evaluating, rank 1", "saving, rank 0"],
)
def test_one_of_two_processes(
    step: int, patch: tuple[Any, ...], forkserver: ForkServerContext, tmp_path: Path, uninterrupted: Whole
) -> None:
    said = stops(forkserver, tmp_path / "run", uninterrupted(TWO), step, patch, **TWO)
    assert f"stopped by a signal to another process after step {step}," in said


@pytest.mark.distributed
def test_one_of_two_processes_while_the_plan_is_made(
    forkserver: ForkServerContext, tmp_path: Path, uninterrupted: Whole
) -> None:
    # There is no step yet that they could agree on: one stops, and the other sees that it is gone.
    path = tmp_path / "run"
    trainer = Trainer(forkserver, path, patch=("signal_at", {SETUP: TERM}, 1), **TWO)
    assert trainer.wait() in (1, 75), trainer.said()
    assert [process.exitcode for process in trainer.processes] == [1, 75] and not path.exists()
    assert "stopped by SIGTERM before training began; run the same command again to start" in trainer.said()
    gone = (
        rf"rank 0 ends because rank 1 \(process {trainer.pids[1]}\) ended; .* run the same command again to start over"
    )
    assert re.search(gone, trainer.said()) and "Traceback" not in trainer.said(), trainer.said()
    goes_on(forkserver, path, uninterrupted(TWO), **TWO)


@pytest.mark.distributed
def test_one_of_two_processes_while_the_seeds_are_looked_at(forkserver: ForkServerContext, tmp_path: Path) -> None:
    trainer = Trainer(forkserver, tmp_path / "run", patch=("signal_at", {SETUP: TERM}, 1), seeds=2, **TWO)
    assert trainer.wait() in (1, 75), trainer.said()
    assert [process.exitcode for process in trainer.processes] == [1, 75] and not (tmp_path / "run").exists()
    gone = (
        rf"rank 0 ends because rank 1 \(process {trainer.pids[1]}\) ended; .* run the same command again to start over"
    )
    assert re.search(gone, trainer.said()) and "Traceback" not in trainer.said(), trainer.said()


@pytest.mark.distributed
def test_both_of_two_processes(forkserver: ForkServerContext, tmp_path: Path, uninterrupted: Whole) -> None:
    patch = ("signal_at", {"step-00000001.done": TERM}, None)
    said = stops(forkserver, tmp_path / "run", uninterrupted(TWO), 1, patch, **TWO)
    assert said.count("signalled at") == 2 and said.count("stopped by SIGTERM after step 1,") == 2


@pytest.mark.parametrize("seed", [pytest.param(n, marks=[pytest.mark.slow] if n else []) for n in range(8)])
def test_at_random_times_until_it_is_done(
    seed: int, forkserver: ForkServerContext, tmp_path: Path, uninterrupted: Whole
) -> None:
    path, chance = tmp_path / "run", random.Random(seed)
    codes: list[int] = []
    while not codes or codes[-1] != 0:
        trainer = Trainer(forkserver, path, **ONE)
        time.sleep(chance.uniform(0.2, 1.0) + 0.1 * len(codes))
        if trainer.processes[0].is_alive():
            number = chance.choice((signal.SIGTERM, signal.SIGUSR1))
            trainer.processes[0].terminate() if number == signal.SIGTERM else os.kill(trainer.pids[0], number)
        codes.append(trainer.wait())
        # Negative before the program has begun, as a signal during its imports would be.
        assert codes[-1] in (0, 75, -signal.SIGTERM, -signal.SIGUSR1), trainer.said()
        assert len(codes) < 40
    assert_same_run(path, uninterrupted(ONE))
