"""A run that is made longer: `kill -9` at every moment of the change, and the same bits as without it."""

from __future__ import annotations

import json
import shutil
import signal
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest
from forks import Trainer
from interrupted import ONE, Whole
from runs import assert_same_tensors, contents, lines, newest, status

from cifar100_tk.runs.files import read_recipe

POINTS = [
    *("test.json.synced:1", "epoch-2.complete:1", "epoch-2.renamed:1", "run_status.json.replaced:1"),
    *("model.retiring:1", "model.retired:1", "evaluation.retired:1", "recipe.json.written:2", "recipe.json.replaced:1"),
    *("environment.json.replaced:1", "step-00000005.done:1", "test.json.replaced:1", "model.renamed:1"),
]
"""Moments between the command and the end of the longer run; the first of a name may be in the copy of the shorter one."""


@pytest.fixture(scope="module")
def extended(forkserver: ForkServerContext, uninterrupted: Whole, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of two epochs, four steps, extended to three without an interruption."""
    path = tmp_path_factory.mktemp("extended") / "run"
    shutil.copytree(uninterrupted(ONE), path)
    trainer = Trainer(forkserver, path, fail_at="never:0", extend_to=3, **ONE)
    assert trainer.wait() == 0, trainer.said()
    assert (
        "  extended       from 2 epochs after step 4; from there on the schedule is that of the longer run"
        in trainer.said()
    )
    return path


def test_an_extended_run_continues_the_shorter_one_and_says_so(extended: Path, uninterrupted: Whole) -> None:
    shorter, found = lines(uninterrupted(ONE)), lines(extended)
    assert found[:2] == shorter and [line["epoch"] for line in found] == [1, 2, 3]
    assert found[2]["train/lr"] == pytest.approx(1e-6) and status(extended)["status"] == "finished"
    assert read_recipe(extended) == read_recipe(uninterrupted(ONE)) | {
        "epochs": 3,
        "extended": [{"epochs": 2, "step": 4}],
    }
    kept = contents(extended / "epoch-2")
    assert kept == {name: content for name, content in contents(uninterrupted(ONE)).items() if name in kept}
    assert {"model/model.safetensors", "evaluation/test.json", "recipe.json", "run_status.json"} <= kept.keys()
    assert set(POINTS) <= {
        f"{name}:{n + 1}"
        for name, times in json.loads(extended.with_suffix(".reached.json").read_text()).items()
        for n in range(times)
    }


@pytest.mark.parametrize("point", POINTS)
def test_an_extension_survives_kill_9_at(
    point: str, forkserver: ForkServerContext, tmp_path: Path, uninterrupted: Whole, extended: Path
) -> None:
    path = tmp_path / "run"
    shutil.copytree(uninterrupted(ONE), path)
    assert Trainer(forkserver, path, fail_at=point, extend_to=3, **ONE).wait() == -signal.SIGKILL
    again = Trainer(forkserver, path, extend_to=3, **ONE)
    assert again.wait() == 0, again.said()
    assert_same_tensors(newest(path), newest(extended))
    assert lines(path) == lines(extended) and read_recipe(path) == read_recipe(extended)
    for folder in ("model", "epoch-2/model"):
        assert contents(path / folder) == contents(extended / folder)
    refused = Trainer(forkserver, path, extend_to=3, **ONE)
    assert refused.wait() == 2 and "a finished run of 3 epochs, and --extend-to 3 adds none" in refused.said()
