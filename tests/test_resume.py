"""Going on elsewhere: with another number of processes, in another way, or not at all; and what the verify command says."""

from __future__ import annotations

import dataclasses
import re
import shutil
import signal
import subprocess
import sys
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from forks import LITTLE, STEPS, Trainer, forkserver
from runs import SHAPES, Bell, assert_same_tensors, contents, lines, newest, on_cpu, status, tiny
from test_kill import ONE, Whole, whole

from cifar100_tk import failpoint
from cifar100_tk.augment import Crop, Flip
from cifar100_tk.checkpoint import save, verify_resume, verify_run
from cifar100_tk.data.copies import prepare
from cifar100_tk.errors import ConfigError, DataError, ResumeError
from cifar100_tk.optim import Ema
from cifar100_tk.plan import RunOptions
from cifar100_tk.run_folder import read_recipe
from cifar100_tk.train import train

__all__ = ["forkserver", "on_cpu", "whole"]

ALIKE = tiny(ema=Ema(), augment=(Crop(), Flip(), Bell()), batch_size=8)
"""Without BatchNorm, whose statistics are of what a process sees."""


@pytest.mark.distributed
@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_a_run_goes_on_with_another_number_of_processes(
    before: int, after: int, forkserver: ForkServerContext, tmp_path: Path
) -> None:
    path, reference = tmp_path / "run", tmp_path / "reference"
    assert Trainer(forkserver, reference, recipe=ALIKE).wait() == 0
    patch = ("signal_at", {"step-00000003.done": int(signal.SIGTERM)})
    assert Trainer(forkserver, path, recipe=ALIKE, processes=before, patch=patch).wait() == 75
    trainer = Trainer(forkserver, path, recipe=ALIKE, processes=after)
    assert trainer.wait() == 0, trainer.said()
    spoken = f"{before} process{'es' * (before > 1)} before, {after} now: the same batches and learning rates go on"
    assert spoken in trainer.said() and "not bit for bit" in trainer.said()
    # The same batches and rates: what is left is the rounding.
    for ours, theirs in zip(lines(path), lines(reference), strict=True):
        assert ours["train/lr"] == theirs["train/lr"] and ours == pytest.approx(theirs, rel=1e-4)
    for file in ("model", "ema", "optimizer"):
        torch.testing.assert_close(newest(path).tensors[file], newest(reference).tensors[file], rtol=1e-4, atol=1e-6)


def test_a_run_goes_on_with_the_same_pictures_from_elsewhere_and_with_no_others(
    forkserver: ForkServerContext, tmp_path: Path, whole: Whole
) -> None:
    path, copy = tmp_path / "run", tmp_path / "copy"
    prepare(SHAPES, copy)
    (file,) = copy.glob("cifar100/train-*.parquet")
    as_it_was = file.read_bytes()
    elsewhere = dataclasses.replace(LITTLE, data=dataclasses.replace(SHAPES, source=str(copy)))
    patch = ("signal_at", {"step-00000001.done": int(signal.SIGTERM)})
    assert Trainer(forkserver, path, patch=patch, **ONE).wait() == 75
    before = contents(path)

    rows = pq.read_table(file)
    pq.write_table(rows.take([*range(1, 100), 0]), file)
    refused = Trainer(forkserver, path, recipe=elsewhere, **ONE)
    assert refused.wait() == 2 and contents(path) == before
    sentence = (
        rf"other train pictures: they were 100 of shapes100 \(sha256 (\w+)\) and are 100 of {copy} \(sha256 \1\), "
    )
    assert re.search(sentence + "the same in another order", refused.said()), refused.said()

    file.write_bytes(as_it_was)
    again = Trainer(forkserver, path, recipe=elsewhere, **ONE)
    assert again.wait() == 0 and "goes on from   step 1," in again.said(), again.said()
    assert_same_tensors(newest(path), newest(whole(ONE)))
    assert lines(path) == lines(whole(ONE))
    # What measures the run later looks where the pictures are now.
    assert read_recipe(path)["data"]["source"] == str(copy)


@pytest.mark.usefixtures("on_cpu")
def test_a_dry_run_says_where_the_run_would_go_on_from(
    forkserver: ForkServerContext, tmp_path: Path, whole: Whole, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "run"
    patch = ("signal_at", {"step-00000003.done": int(signal.SIGTERM)})
    assert Trainer(forkserver, path, patch=patch, **ONE).wait() == 75
    for folder, sentence in (
        (path, f"goes on from   step 3, {path / 'checkpoints' / 'step-00000003'}\n"),
        (whole(ONE), f"refused        {whole(ONE)} holds a finished run, which is never overwritten; choose another"),
        (tmp_path / "new", "begins         at the first step\n"),
    ):
        before = contents(folder)
        assert train(LITTLE, RunOptions(output_dir=folder, dry_run=True, limit_train_batches=STEPS)) is None
        plan, last = capsys.readouterr().out.rsplit("\n  ", 1)
        assert last.startswith(sentence) and f"writes to      {folder}" in plan
        assert contents(folder) == before


def test_two_runs_into_one_folder_the_second_one_ends_with_its_own_code(
    forkserver: ForkServerContext, tmp_path: Path
) -> None:
    path = tmp_path / "run"
    first = Trainer(forkserver, path, patch=("wait_at", "step-00000001.done", str(tmp_path / "go on")), **ONE)
    while not (path / "run_status.json").exists():
        assert first.processes[0].is_alive()
    second = Trainer(forkserver, path, **ONE)
    assert second.wait() == 7, second.said()
    assert f"process {first.pids[0]} on " in second.said() and f"is writing {path}; wait for it" in second.said()
    first.processes[0].kill()  # Its lock goes with it.
    assert first.wait() == -signal.SIGKILL
    third = Trainer(forkserver, path, **ONE)
    assert third.wait() == 0 and status(path)["status"] == "finished", third.said()


def test_verify_tells_what_is_valid(whole: Whole, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "run"
    shutil.copytree(whole({}), path)
    newer = path / "checkpoints" / "step-00000004"
    verify_run(path)
    said = capsys.readouterr().out.splitlines()
    assert said == ["step-00000002: valid", "step-00000004: valid", "the same command goes on from step-00000004."]
    (newer / "optimizer.safetensors").unlink()
    verify_run(path)
    said = capsys.readouterr().out.splitlines()
    assert said[1].startswith("step-00000004: ") and "optimizer.safetensors is missing" in said[1]
    assert said[2] == "the same command goes on from step-00000002."
    (newer.with_name("step-00000002") / "manifest.json").unlink()
    with pytest.raises(ResumeError, match=r"no valid checkpoint in .*; start again with another --output-dir"):
        verify_run(path)
    shutil.rmtree(path / "checkpoints")
    capsys.readouterr()
    verify_run(path)
    assert "holds no checkpoint yet; the run starts at the beginning" in capsys.readouterr().out
    with pytest.raises(
        DataError, match=r"is no run folder \(it holds no recipe.json\); give the --output-dir of a run"
    ):
        verify_run(tmp_path)


def test_verify_is_a_command_with_an_exit_code(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "cifar100_tk.checkpoint", "verify", str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 3 and ended.stderr.startswith("python -m cifar100_tk.checkpoint: ")
    assert "is no run folder" in ended.stderr


@pytest.mark.slow
def test_verify_resume_proves_it_for_a_recipe(tmp_path: Path) -> None:
    # As a user calls it; eight steps of the smallest network.
    more = "--data.source shapes100 --data.shapes100-rows 100 100 --batch-size 10 --threads 1"
    recipe = Path(__file__).parent.parent / "recipes" / "quickstart.py"
    command = [sys.executable, "-m", "cifar100_tk.checkpoint", "verify-resume", str(recipe), f"--more={more}"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert ended.returncode == 0, ended.stderr
    assert re.search(r"killed after step 6 of 8 and gone on: all \d\d+ tensors are the same, bit for bit", ended.stdout)


def test_verify_resume_says_what_a_recipe_stumbled_over(tmp_path: Path) -> None:
    (tmp_path / "recipe.py").write_text("raise SystemExit('no such thing')")
    with pytest.raises(ResumeError, match=r"recipe.py .* ended with 1: no such thing"):
        verify_resume(tmp_path / "recipe.py")
    with pytest.raises(ConfigError, match="--steps 1 leaves no middle of an epoch to be killed in; give 2 or more"):
        verify_resume(tmp_path / "recipe.py", steps=1)


def test_verify_resume_says_what_differs_and_by_how_much(monkeypatch: pytest.MonkeyPatch) -> None:
    killed: list[str] = []

    def other_weights_each_time(
        command: list[str], *, env: dict[str, str], **_: object
    ) -> subprocess.CompletedProcess[str]:
        if env[failpoint.VARIABLE]:
            killed.append(env[failpoint.VARIABLE])
            return subprocess.CompletedProcess(command, -signal.SIGKILL)
        path = Path(command[command.index("--output-dir") + 1])
        weights = {"w": torch.ones(2) * (1.5 if path.name == "parts" else 1.0), "same": torch.ones(1)}
        save(path / "checkpoints", 8, {"model": weights}, {}, keep=1)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr("subprocess.run", other_weights_each_time)
    with pytest.raises(
        ResumeError, match=r"1 of 2 tensors are not bit for bit the same, model: w by up to 0\.5; on a GPU"
    ):
        verify_resume(Path("recipe.py"))
    assert killed == ["step-00000006.done:1"]
