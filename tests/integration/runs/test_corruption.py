"""No half checkpoint is ever seen, and every damage to one is named, costs the steps since the one before, and nothing else."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import pytest
import torch
from damage import empty, flip_a_bit, truncate
from forks import Trainer
from interrupted import Whole, assert_same_run

from cifar100_tk.runs import checkpoint

SAVES = 200


def save_often(folder: Path, seen_one: Any) -> None:
    """Save again and again, keeping one."""
    kernel = torch.arange(4096.0)
    checkpoint.save(folder, 1, {"model": {"w": kernel}, "optimizer": {"m": kernel}}, {}, keep=1)
    seen_one.wait()
    for step in range(2, SAVES + 1):
        checkpoint.save(folder, step, {"model": {"w": kernel + step}, "optimizer": {"m": kernel - step}}, {}, keep=1)


def test_a_reader_of_a_run_under_way_never_sees_none_and_never_a_bad_one(
    forkserver: ForkServerContext, tmp_path: Path
) -> None:
    seen_one = forkserver.Event()
    writer = forkserver.Process(target=save_often, args=(tmp_path, seen_one))
    writer.start()
    while not list(tmp_path.glob("step-*")):
        assert writer.is_alive()
    seen_one.set()
    looks, newest_seen = 0, set()
    while writer.is_alive():
        found = checkpoint.survey(tmp_path)
        assert found and not any(found.values()), found
        newest_seen.add(max(found))
        looks += 1
    writer.join()
    assert writer.exitcode == 0
    assert [path.name for path in checkpoint.survey(tmp_path)] == [f"step-{SAVES:08d}"]
    # Else the reader was too slow for the test to say anything.
    assert looks > 20 and len(newest_seen) > 10


def swap_from_another_step(file: Path) -> None:
    shutil.copy(file.parent.parent / "step-00000002" / file.name, file)


DAMAGES: list[Callable[[Path], None]] = [flip_a_bit, truncate, empty, Path.unlink, swap_from_another_step]
FILES = ["model.safetensors", "optimizer.safetensors", "ema.safetensors", "manifest.json"]
QUICK = {
    ("manifest.json", truncate),
    ("optimizer.safetensors", flip_a_bit),
    ("ema.safetensors", swap_from_another_step),
}


@pytest.fixture(scope="module")
def stopped(forkserver: ForkServerContext, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was killed in its fourth step, with the checkpoints of steps 2 and 3."""
    path = tmp_path_factory.mktemp("stopped") / "run"
    for patch, fail_at in ((("signal_at", {"step-00000003.done": 15}), None), ((), "step-00000004.done:1")):
        trainer = Trainer(forkserver, path, patch=patch, fail_at=fail_at)
        assert trainer.wait() in (75, -9), trainer.said()
    assert [p.name for p in sorted((path / "checkpoints").iterdir())] == ["step-00000002", "step-00000003"]
    return path


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_named_and_the_one_before_is_used(
    name: str, damage: Callable[[Path], None], stopped: Path, tmp_path: Path
) -> None:
    path = tmp_path / "run"
    shutil.copytree(stopped, path)
    damage(path / "checkpoints" / "step-00000003" / name)
    (good, error), (bad, complaint) = checkpoint.survey(path / "checkpoints").items()
    assert (good.name, error, bad.name) == ("step-00000002", None, "step-00000003")
    assert f"step-00000003/{name}" in str(complaint) and str(complaint).count("\n") == 0
    found, complaints = checkpoint.newest(path / "checkpoints")
    assert found is not None and found.step == 2 and complaints == [str(complaint)]


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        pytest.param(n, d, marks=[] if (n, d) in QUICK else [pytest.mark.slow], id=f"{n}-{d.__name__}")
        for n in FILES
        for d in DAMAGES
    ],
)
def test_a_run_with_a_damaged_checkpoint_ends_as_one_without(
    name: str,
    damage: Callable[[Path], None],
    forkserver: ForkServerContext,
    stopped: Path,
    tmp_path: Path,
    uninterrupted: Whole,
) -> None:
    path = tmp_path / "run"
    shutil.copytree(stopped, path)
    damage(path / "checkpoints" / "step-00000003" / name)
    trainer = Trainer(forkserver, path)
    assert trainer.wait() == 0, trainer.said()
    (line,) = (line for line in trainer.said().splitlines() if "skipped" in line)
    assert f"step-00000003/{name}" in line
    assert "resumes from   step 2," in trainer.said()
    # The damaged one stays for whoever wants to know, and is in nobody's way.
    shutil.rmtree(path / "checkpoints" / ".bad-step-00000003")
    assert_same_run(path, uninterrupted({}))


def test_without_any_valid_checkpoint_the_run_ends_with_its_own_code(
    forkserver: ForkServerContext, stopped: Path, tmp_path: Path
) -> None:
    path = tmp_path / "run"
    shutil.copytree(stopped, path)
    for step, name in ((2, "model.safetensors"), (3, "ema.safetensors")):
        flip_a_bit(path / "checkpoints" / f"step-0000000{step}" / name)
    for _ in range(2):  # And the second time too: never a silent fresh start.
        trainer = Trainer(forkserver, path)
        assert trainer.wait() == 4, trainer.said()
    assert trainer.said().count("no valid checkpoint in") == 2
    assert "step-00000002/model.safetensors is not as it was written" in trainer.said()
