"""`kill -9` at any moment, the same command again: the same weights, average, momentum and logs as without."""

from __future__ import annotations

import json
import random
import signal
import time
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import pytest
from forks import Trainer
from interrupted import (
    HOST,
    ONE,
    POINTS,
    TWO,
    Whole,
    assert_killed_whole,
    assert_same_run,
    status_says_finished,
    survives,
)

QUICK = [
    *("recipe.json.written:1", "step-00000001.done:1", "metrics.jsonl.written:2"),
    *("manifest.json.opened:1", "manifest.json.synced:2", "step-00000004.renamed:1", "step-00000002.retired:1"),
    *(
        "test.parquet.replaced:1",
        "test.json.replaced:1",
        "model.complete:1",
        "model.committed:1",
        "run_status.json.synced:2",
    ),
]
"""What continuous integration has time for, besides the one of tests/smoke; `make soak` takes the others."""


def test_the_list_of_moments_is_complete(uninterrupted: Whole) -> None:
    reached = json.loads(uninterrupted(ONE).with_suffix(".reached.json").read_text())
    assert sorted(POINTS) == sorted(f"{name}:{n + 1}" for name, times in reached.items() for n in range(times))
    assert set(QUICK) <= set(POINTS) and len(POINTS) == 91


@pytest.mark.parametrize("point", [p if p in QUICK else pytest.param(p, marks=pytest.mark.slow) for p in POINTS])
def test_a_run_survives_kill_9_at(
    point: str, forkserver: ForkServerContext, tmp_path: Path, uninterrupted: Whole
) -> None:
    survives(forkserver, tmp_path / "run", uninterrupted(ONE), point, **ONE)


@pytest.mark.parametrize("point", ["step-00000001.done:1", "ema.safetensors.written:2"])
def test_a_run_with_the_host_pipeline_survives(
    point: str, forkserver: ForkServerContext, tmp_path: Path, uninterrupted: Whole
) -> None:
    survives(forkserver, tmp_path / "run", uninterrupted(HOST), point, **HOST)


@pytest.mark.parametrize("point", ["manifest.json.written:1", "ema.safetensors.opened:2", "step-00000002.retired:1"])
def test_a_run_that_saves_in_the_background_survives(
    point: str, forkserver: ForkServerContext, tmp_path: Path, uninterrupted: Whole
) -> None:
    survives(forkserver, tmp_path / "run", uninterrupted(ONE), point, patch=("save_in_background",), **ONE)


@pytest.mark.parametrize("every", [None, 2], ids=["by time", "every second epoch"])
@pytest.mark.parametrize("point", ["step-00000003.done:1", "manifest.json.written:1"])
def test_a_run_that_has_no_checkpoint_yet_survives(
    point: str, every: int | None, forkserver: ForkServerContext, tmp_path: Path, uninterrupted: Whole
) -> None:
    # An epoch has been reported by then, and is trained and reported again.
    survives(forkserver, tmp_path / "run", uninterrupted(ONE), point, **ONE | {"checkpoint_every": every})


@pytest.mark.distributed
@pytest.mark.parametrize("point", ["step-00000003.done:1", "manifest.json.written:2", "step-00000002.retiring:1"])
def test_a_run_of_two_processes_survives(
    point: str, forkserver: ForkServerContext, tmp_path: Path, uninterrupted: Whole
) -> None:
    survives(forkserver, tmp_path / "run", uninterrupted(TWO), point, **TWO)


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
        if status_says_finished(path):  # It was killed on its way out.
            break
    if not status_says_finished(path):
        trainer = Trainer(server, path, **options)
        assert trainer.wait() == 0, trainer.said()
    assert_same_run(path, whole)
    return met


@pytest.mark.parametrize("seed", [pytest.param(n, marks=[pytest.mark.slow] if n > 1 else []) for n in range(15)])
def test_a_run_survives_kills_at_random_times(
    seed: int, forkserver: ForkServerContext, tmp_path: Path, uninterrupted: Whole
) -> None:
    met = at_random_times(forkserver, tmp_path / "run", uninterrupted(ONE), seed, **ONE)
    print(f"{met} kills met the run alive")


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("seed", range(6))
def test_a_run_of_two_processes_survives_kills_at_random_times(
    seed: int, forkserver: ForkServerContext, tmp_path: Path, uninterrupted: Whole
) -> None:
    met = at_random_times(forkserver, tmp_path / "run", uninterrupted(TWO), seed, **TWO)
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
