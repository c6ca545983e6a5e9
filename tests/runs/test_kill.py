"""`kill -9` at any moment, the same command again: the same weights, average, momentum and logs as without."""

from __future__ import annotations

import json
import random
import signal
import time
from collections.abc import Callable
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import pytest
from forks import Trainer, forkserver
from runs import SHAPES, assert_same_tensors, contents, evaluation, lines, newest, same_bits, status
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]

from cifar100_tk.runs import checkpoint

__all__ = ["forkserver"]

WRITES = ("opened", "written", "synced")
FOLDER = ("complete", "renamed", "committed")
POINTS = [
    *(f"{file}.json.{moment}:1" for file in ("recipe", "environment") for moment in (*WRITES, "replaced")),
    *(f"run_status.json.{moment}:{n}" for n in (1, 2) for moment in (*WRITES, "replaced")),
    *(f"step-0000000{step}.done:1" for step in (1, 2, 3, 4)),
    *(f"metrics.jsonl.{moment}:{n}" for n in (1, 2) for moment in WRITES),
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

QUICK = [
    *("recipe.json.written:1", "step-00000001.done:1", "metrics.jsonl.written:2", "optimizer.safetensors.written:2"),
    *("manifest.json.opened:1", "manifest.json.synced:2", "step-00000004.renamed:1", "step-00000002.retired:1"),
    *(
        "test.parquet.replaced:1",
        "test.json.replaced:1",
        "model.complete:1",
        "model.committed:1",
        "run_status.json.synced:2",
    ),
]
"""What continuous integration has time for; `make soak` takes them all."""

ONE: dict[str, Any] = {"keep": 1}
HOST: dict[str, Any] = {"keep": 1, "pipeline": "host", "workers": 1}
TWO: dict[str, Any] = {"keep": 1, "processes": 2}

Whole = Callable[[dict[str, Any]], Path]


@pytest.fixture(scope="module", autouse=True)
def images() -> None:
    """Images in the cache: writing them is no moment of a run, and they are drawn with keyed draws, never broken ones."""
    for split in ("train", "test"):
        SHAPES.open(split)


trained: dict[str, Path] = {}
"""The uninterrupted runs by their options, for the tests of all modules."""


@pytest.fixture(scope="module")
def whole(forkserver: ForkServerContext, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """Gives the uninterrupted run of some options, trained when first asked for."""

    def run(options: dict[str, Any]) -> Path:
        if str(options) not in trained:
            path = trained[str(options)] = tmp_path_factory.mktemp("whole") / "run"
            trainer = Trainer(forkserver, path, fail_at="never:0", **options)
            assert trainer.wait() == 0, trainer.said()
        return trained[str(options)]

    return run


def events(path: Path) -> dict[str, list[tuple[int, float]]]:
    """Every step and value in TensorBoard, by name, but for the speed."""
    read = EventAccumulator(str(path / "tensorboard")).Reload()
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


def test_the_list_of_moments_is_complete(whole: Whole) -> None:
    reached = json.loads(whole(ONE).with_suffix(".reached.json").read_text())
    assert sorted(POINTS) == sorted(f"{name}:{n + 1}" for name, times in reached.items() for n in range(times))
    assert set(QUICK) <= set(POINTS) and len(POINTS) == 79


@pytest.mark.parametrize("point", [p if p in QUICK else pytest.param(p, marks=pytest.mark.slow) for p in POINTS])
def test_a_run_survives_kill_9_at(point: str, forkserver: ForkServerContext, tmp_path: Path, whole: Whole) -> None:
    survives(forkserver, tmp_path / "run", whole(ONE), point, **ONE)


@pytest.mark.parametrize("point", ["step-00000001.done:1", "ema.safetensors.written:2"])
def test_a_run_with_the_host_pipeline_survives(
    point: str, forkserver: ForkServerContext, tmp_path: Path, whole: Whole
) -> None:
    survives(forkserver, tmp_path / "run", whole(HOST), point, **HOST)


@pytest.mark.parametrize("point", ["manifest.json.written:1", "ema.safetensors.opened:2", "step-00000002.retired:1"])
def test_a_run_that_saves_in_the_background_survives(
    point: str, forkserver: ForkServerContext, tmp_path: Path, whole: Whole
) -> None:
    survives(forkserver, tmp_path / "run", whole(ONE), point, patch=("save_in_background",), **ONE)


@pytest.mark.parametrize("every", [None, 2], ids=["by time", "every second epoch"])
@pytest.mark.parametrize("point", ["step-00000003.done:1", "manifest.json.written:1"])
def test_a_run_that_has_no_checkpoint_yet_survives(
    point: str, every: int | None, forkserver: ForkServerContext, tmp_path: Path, whole: Whole
) -> None:
    # An epoch has been reported by then, and is trained and reported again.
    survives(forkserver, tmp_path / "run", whole(ONE), point, **ONE | {"checkpoint_every": every})


def test_host_and_device_pipelines_train_the_same(whole: Whole) -> None:
    assert_same_tensors(newest(whole(HOST)), newest(whole(ONE)))


@pytest.mark.distributed
@pytest.mark.parametrize("point", ["step-00000003.done:1", "manifest.json.written:2", "step-00000002.retiring:1"])
def test_a_run_of_two_processes_survives(
    point: str, forkserver: ForkServerContext, tmp_path: Path, whole: Whole
) -> None:
    survives(forkserver, tmp_path / "run", whole(TWO), point, **TWO)


def at_random_times(
    server: ForkServerContext, path: Path, whole: Path, seed: int, *, kills: int = 3, **options: Any
) -> int:
    """Kill a run up to so many times after random spans, then let it finish. Returns how many kills met it alive."""
    chance, met = random.Random(seed), 0
    # The longest part of a run's life is its beginning, and the machine is never equally quick: measured anew.
    started = time.monotonic()
    assert Trainer(server, path.with_name("measure"), **options).wait() == 0
    span = time.monotonic() - started
    for _ in range(kills):
        trainer = Trainer(server, path, **options)
        time.sleep(chance.uniform(0.2, 0.9) * span)
        for process in trainer.processes[:: chance.choice((1, -1))]:
            process.kill()
        code = trainer.wait()
        if code == 0:  # It was done.
            break
        met += 1
        assert code == -signal.SIGKILL, trainer.said()
        assert_killed_whole(path)
    if not status_says_finished(path):
        trainer = Trainer(server, path, **options)
        assert trainer.wait() == 0, trainer.said()
    assert_same_run(path, whole)
    return met


@pytest.mark.parametrize("seed", [pytest.param(n, marks=[pytest.mark.slow] if n > 1 else []) for n in range(15)])
def test_a_run_survives_kills_at_random_times(
    seed: int, forkserver: ForkServerContext, tmp_path: Path, whole: Whole
) -> None:
    met = at_random_times(forkserver, tmp_path / "run", whole(ONE), seed, **ONE)
    print(f"{met} kills met the run alive")


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("seed", range(6))
def test_a_run_of_two_processes_survives_kills_at_random_times(
    seed: int, forkserver: ForkServerContext, tmp_path: Path, whole: Whole
) -> None:
    met = at_random_times(forkserver, tmp_path / "run", whole(TWO), seed, **TWO)
    print(f"{met} kills met the run alive")


# What the tests above would say if the promises were broken.


def test_without_the_rename_a_kill_leaves_half_a_checkpoint(forkserver: ForkServerContext, tmp_path: Path) -> None:
    path = tmp_path / "run"
    killed = Trainer(forkserver, path, fail_at="ema.safetensors.written:2", patch=("write_in_place",), **ONE)
    assert killed.wait() == -signal.SIGKILL, killed.said()
    with pytest.raises(AssertionError, match=r"step-00000004/manifest.json is missing"):
        assert_killed_whole(path)


def test_without_keyed_draws_a_killed_run_ends_with_other_weights(
    forkserver: ForkServerContext, tmp_path: Path
) -> None:
    broken = ONE | {"patch": ("draw_from_one_generator",)}
    for name in ("one", "other"):
        assert Trainer(forkserver, tmp_path / name, **broken).wait() == 0
    assert_same_run(tmp_path / "one", tmp_path / "other")
    with pytest.raises(AssertionError, match=r"^(ema|model|optimizer): "):  # Another tensor, and nothing else.
        survives(forkserver, tmp_path / "killed", tmp_path / "one", "step-00000003.done:1", **broken)
    assert status_says_finished(tmp_path / "killed")
