"""A run that is stopped and started again, in one process: every step, tensor and figure as without the stop."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import pytest
from runs import EMA, assert_same_tensors, contents, lines, newest, ring_at, run, status

from cifar100_tk.errors import StoppedError
from cifar100_tk.train import train_step

pytestmark = pytest.mark.usefixtures("on_cpu")


@pytest.mark.parametrize("batch", [1, 5, 8])
def test_resume_gives_the_same_weights_as_no_interruption(ema_run: Path, tmp_path: Path, batch: int) -> None:
    path = tmp_path / "run"
    ring_at[:] = [batch]
    with pytest.raises(
        StoppedError, match=rf"stopped by SIGTERM after step {batch}, everything is saved; run the same comm"
    ):
        run(path, EMA, eval_every=1)
    assert StoppedError.exit_code == 75
    assert {"status": "stopped", "step": batch}.items() <= status(path).items()
    assert newest(path).step == batch and not (path / "model").exists()
    run(path, EMA, eval_every=1)
    assert_same_tensors(newest(path), newest(ema_run))
    assert lines(path) == lines(ema_run)
    assert contents(path / "model") == contents(ema_run / "model")


def test_a_signal_in_the_last_step_stops_before_the_evaluation_which_comes_after_the_resume(
    ema_run: Path, tmp_path: Path
) -> None:
    path = tmp_path / "run"
    ring_at[:] = [10]
    with pytest.raises(StoppedError, match="stopped by SIGTERM after step 10, everything is saved"):
        run(path, EMA, eval_every=1)
    assert [line["step"] for line in lines(path)] == [5]
    run(path, EMA, eval_every=1)
    assert status(path)["status"] == "finished" and lines(path) == lines(ema_run)
    assert_same_tensors(newest(path), newest(ema_run))


def test_a_quiet_run_prints_only_its_result_also_when_it_resumes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ring_at[:] = [5]
    with pytest.raises(StoppedError):
        run(tmp_path / "run", EMA, quiet=True)
    assert capsys.readouterr().out == ""
    run(tmp_path / "run", EMA, quiet=True)
    result, model = capsys.readouterr().out.splitlines()
    assert result.startswith("top-1 ") and model.startswith(f"model in {tmp_path / 'run' / 'model'}")


def test_a_damaged_checkpoint_costs_the_steps_since_the_one_before(
    ema_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "run"
    ring_at[:] = [7]
    with pytest.raises(StoppedError):
        run(path, EMA, eval_every=1, checkpoint_every=1)
    (path / "checkpoints" / "step-00000007" / "optimizer.safetensors").write_bytes(b"")
    run(path, EMA, eval_every=1)
    assert "skipped" in (out := capsys.readouterr().out) and "resumes from   step 5" in out
    assert_same_tensors(newest(path), newest(ema_run))
    assert lines(path) == lines(ema_run)


def test_the_loss_of_an_epoch_is_the_mean_of_its_steps_also_across_a_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses: list[float] = []

    def recorded(*arguments: Any) -> Any:
        loss, finite = train_step(*arguments)
        losses.append(loss.item())
        return loss, finite

    monkeypatch.setattr("cifar100_tk.train.train_step", recorded)
    ring_at[:] = [7]
    with pytest.raises(StoppedError):
        run(tmp_path, EMA)
    run(tmp_path, EMA)
    means = [statistics.mean(losses[:5]), statistics.mean(losses[5:])]
    assert len(losses) == 10 and [line["train/loss"] for line in lines(tmp_path)] == pytest.approx(means)
