"""Runs of a few steps that are killed, stopped or refused a write, and what must be the same after they resume."""

from __future__ import annotations

import re
import shutil
import signal
import tempfile
import time
from collections.abc import Callable
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import pytest
import torch
from forks import Trainer
from runs import Bell, assert_same_tensors, contents, evaluation, lines, newest, same_bits, status, tiny
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]

from cifar100_tk.augment import Flip, RandomResizedCrop
from cifar100_tk.optim import Ema
from cifar100_tk.runs import checkpoint

WRITES = ("opened", "written", "synced")
FOLDER = ("complete", "renamed", "committed")
POINTS = [
    *("splits.opening:1", "step-00000000.polled:1"),
    *(f"step-0000000{step}.polled:{n}" for step in (2, 4) for n in (1, 2)),
    *(f"{file}.json.{moment}:1" for file in ("recipe", "environment") for moment in (*WRITES, "replaced")),
    *(f"run_status.json.{moment}:{n}" for n in (1, 2) for moment in (*WRITES, "replaced")),
    *(f"step-0000000{step}.done:1" for step in (1, 2, 3, 4)),
    *(f"{name}.jsonl.{moment}:{n}" for name in ("metrics", "steps") for n in (1, 2) for moment in WRITES),
    *(
        f"{file}.safetensors.{moment}:{n}"
        for n in (1, 2)
        for file in ("model", "optimizer", "ema")
        for moment in WRITES
    ),
    *(f"manifest.json.{moment}:{n}" for n in (1, 2) for moment in WRITES),
    *(f"step-0000000{step}.{moment}:1" for step in (2, 4) for moment in FOLDER),
    *(f"step-00000002.{moment}:1" for moment in ("retiring", "retired", "removed")),
    *(f"test.{kind}.{moment}:1" for kind in ("json", "parquet") for moment in (*WRITES, "replaced")),
    *(f"model.safetensors.{moment}:3" for moment in WRITES),
    *(f"{file}.{moment}:1" for file in ("README.md", "config.json") for moment in WRITES),
    *(f"model.{moment}:1" for moment in FOLDER),
]
"""Every moment of a run of four steps, two checkpoints and one to keep; NAME:N is the N-th time."""


ONE: dict[str, Any] = {"keep": 1}
HOST: dict[str, Any] = {"keep": 1, "pipeline": "host", "workers": 1}
TWO: dict[str, Any] = {"keep": 1, "processes": 2}

Whole = Callable[[dict[str, Any]], Path]
ALIKE = tiny(ema=Ema(), augment=(RandomResizedCrop(), Flip(), Bell()), batch_size=8)
"""Without BatchNorm, whose statistics are of what a process sees."""

TERM, INT, USR1 = int(signal.SIGTERM), int(signal.SIGINT), int(signal.SIGUSR1)


def events(path: Path) -> dict[str, list[tuple[int, float]]]:
    """Every step and value in TensorBoard, by name, but for the speed."""
    # TensorBoard reads the files in the order of their names, of which the process id is a part: 10000 before 9999, and within
    # a second nothing else tells two processes apart.
    files = sorted(path.glob("tensorboard/events.out.tfevents.*"), key=lambda file: file.stat().st_mtime_ns)
    with tempfile.TemporaryDirectory() as folder:
        for number, file in enumerate(files):
            shutil.copy(file, f"{folder}/events.out.tfevents.{number:010}")
        read = EventAccumulator(folder).Reload()
    names = set(read.Tags()["scalars"]) - {"images_per_second", "images_per_second_overall"}
    return {name: [(event.step, event.value) for event in read.Scalars(name)] for name in names}


def assert_killed_whole(path: Path) -> None:
    """Assert that a killed run left no checkpoint but good ones under a checkpoint's name."""
    found = checkpoint.survey(path / "checkpoints")
    assert not any(found.values()), found


def assert_same_run(path: Path, whole: Path) -> None:
    assert_same_tensors(newest(path), newest(whole))
    assert contents(path / "model") == contents(whole / "model")
    assert lines(path) == lines(whole) and [line["epoch"] for line in lines(path)] == [1, 2]
    assert (path / "steps.jsonl").read_bytes() == (whole / "steps.jsonl").read_bytes()
    assert events(path) == events(whole)
    (ours, said), (theirs, wanted) = evaluation(path), evaluation(whole)
    assert ours == theirs and same_bits(said.logits, wanted.logits) and same_bits(said.rows, wanted.rows)
    assert status(path)["status"] == "finished"
    assert not list(path.rglob(".tmp-*")) and not list(path.rglob(".bad-*"))


def survives(server: ForkServerContext, path: Path, whole: Path, fail_at: str, **options: Any) -> None:
    """Kill a run at a named moment, run the same again, and assert that nothing is different."""
    killed = Trainer(server, path, fail_at=fail_at, **options)
    assert killed.wait() == -signal.SIGKILL, killed.said()
    assert_killed_whole(path)
    if status_says_finished(path):
        return
    again = Trainer(server, path, **options)
    assert again.wait() == 0, again.said()
    assert "skipped" not in again.said()
    assert_same_run(path, whole)


def status_says_finished(path: Path) -> bool:
    return (path / "run_status.json").exists() and status(path)["status"] == "finished"


def goes_on(server: ForkServerContext, path: Path, whole: Path, **options: Any) -> None:
    """Run the same command again and assert that nothing is different."""
    again = Trainer(server, path, **options)
    assert again.wait() == 0, again.said()
    assert_same_run(path, whole)


def stops(server: ForkServerContext, path: Path, whole: Path, step: int, patch: tuple[Any, ...], **options: Any) -> str:
    """Assert that a run which gets a signal stops after a step with all that the promises say, and goes on.

    Returns what it said.
    """
    trainer = Trainer(server, path, patch=patch, **options)
    assert trainer.wait() == 75, trainer.said()
    # All processes of the machine read one clock.
    assert time.monotonic() - float(re.findall(r"signalled at ([\d.]+)", trainer.said())[0]) < 15
    assert [process.exitcode for process in trainer.processes] == [75] * len(trainer.processes)
    assert {"status": "stopped", "step": step}.items() <= status(path).items()
    assert newest(path).step == step if step else not (path / "checkpoints").exists()
    said = trainer.said()
    assert said.count(f"after step {step}, everything is saved; run the same command") == len(trainer.processes)
    goes_on(server, path, whole, **options)
    return said


def resumes_on(server: ForkServerContext, tmp_path: Path, *, before: int, after: int) -> None:
    """Assert that a run which is stopped goes on with another number of processes, with the same batches and rates."""
    path, reference = tmp_path / "run", tmp_path / "reference"
    assert Trainer(server, reference, recipe=ALIKE).wait() == 0
    patch = ("signal_at", {"step-00000003.done": int(signal.SIGTERM)})
    assert Trainer(server, path, recipe=ALIKE, processes=before, patch=patch).wait() == 75
    trainer = Trainer(server, path, recipe=ALIKE, processes=after)
    assert trainer.wait() == 0, trainer.said()
    spoken = f"note           num_processes was {before} and is {after}: batches and learning rates stay the same"
    assert spoken in trainer.said() and "will not match those of an unchanged run" in trainer.said()
    # The same batches and rates: what is left is the rounding.
    for ours, theirs in zip(lines(path), lines(reference), strict=True):
        assert ours["train/lr"] == theirs["train/lr"] and ours == pytest.approx(theirs, rel=1e-4)
    for file in ("model", "ema", "optimizer"):
        torch.testing.assert_close(newest(path).tensors[file], newest(reference).tensors[file], rtol=1e-4, atol=1e-6)
