"""A run that is stopped and started again, in one process: every step, tensor and figure as without the stop."""

from __future__ import annotations

import dataclasses
import functools
import statistics
from collections.abc import Callable
from pathlib import Path

import pytest
from components import COMPONENTS
from runs import EMA, assert_same_tensors, contents, lines, newest, ring_at, run, status
from torch import Tensor

from cifar100_tk.errors import StoppedError
from cifar100_tk.optim import CrossEntropy, Loss
from cifar100_tk.tensors import Logits, Targets

pytestmark = pytest.mark.usefixtures("on_cpu")


@pytest.fixture(scope="module")
def uninterrupted_runs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Gives the uninterrupted run of a component, trained when first asked for."""

    @functools.cache
    def trained(name: str) -> Path:
        folder, component = tmp_path_factory.mktemp("whole"), COMPONENTS[name]
        run(folder / "run", component.build(folder), eval_every=1, **component.options)
        return folder / "run"

    return trained


@pytest.mark.parametrize(
    ("name", "step"), [(name, step) for name, component in COMPONENTS.items() for step in component.stops]
)
def test_resume_gives_the_same_weights_as_no_interruption(
    name: str, step: int, uninterrupted_runs: Callable[[str], Path], tmp_path: Path
) -> None:
    whole, path, component = uninterrupted_runs(name), tmp_path / "run", COMPONENTS[name]
    ring_at[:] = [step]  # The first batch is drawn with the first ring.
    with pytest.raises(
        StoppedError, match=rf"stopped by SIGTERM after step {step}, everything is saved; run the same comm"
    ):
        run(path, component.build(tmp_path), eval_every=1, **component.options)
    assert StoppedError.exit_code == 75
    assert {"status": "stopped", "step": step}.items() <= status(path).items()
    assert newest(path).step == step and not (path / "model").exists()
    # What it starts from has moved, and the other executor makes the batches.
    (moved := tmp_path / "moved").mkdir()
    run(path, component.build(moved), eval_every=1, pipeline="host", workers=0, **component.options)
    assert_same_tensors(newest(path), newest(whole))
    assert lines(path) == lines(whole)
    assert contents(path / "model") == contents(whole / "model")


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


losses: list[float] = []


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recorded(Loss):
    """Cross-entropy that notes each of its values."""

    def __call__(self, logits: Logits, targets: Targets) -> Tensor:
        losses.append((loss := CrossEntropy()(logits, targets)).item())
        return loss


def test_the_loss_of_an_epoch_is_the_mean_of_its_steps_also_across_a_stop(tmp_path: Path) -> None:
    recipe = dataclasses.replace(EMA, loss=Recorded())
    ring_at[:] = [7]
    with pytest.raises(StoppedError):
        run(tmp_path, recipe)
    run(tmp_path, recipe)
    means = [statistics.mean(losses[:5]), statistics.mean(losses[5:])]
    assert len(losses) == 10 and [line["train/loss"] for line in lines(tmp_path)] == pytest.approx(means)
