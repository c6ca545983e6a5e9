"""The components of all recipes together, from Muon and SAM to growing images: killed runs, the plan, two processes."""

from __future__ import annotations

import signal
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest
import torch
from components import SPEEDRUN
from forks import Trainer
from runs import assert_same_tensors, contents, lines, newest, ring_at, run, tiny

from cifar100_tk.errors import ConfigError, StoppedError
from cifar100_tk.optim import SAM, AdamW, Lookahead


@pytest.mark.usefixtures("on_cpu")
def test_the_plan_shows_the_components_and_when_they_are_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_dry(tmp_path) is None
    plan = capsys.readouterr().out
    assert "image size     20 px to step 4, 24 px to step 7, 32 px to step 10\n" in plan
    assert "first layer    whitened with 50 training images, and frozen\n" in plan
    assert "mixing         from step 3 to step 9\n" in plan
    assert "SAM            rho 0.1 on 6 images, from step 5 to the end\n" in plan
    assert "lookahead      every 2 steps, decay up to 0.77\n" in plan


def run_dry(path: Path) -> object:
    from cifar100_tk.train import train
    from cifar100_tk.training.plan import RunOptions

    return train(SPEEDRUN, RunOptions(output_dir=path / "run", dry_run=True))


@pytest.mark.parametrize(
    "point", ["step-00000004.done:1", "lookahead.safetensors.written:2", "manifest.json.written:2"]
)
def test_a_killed_run_ends_with_the_bytes_of_an_uninterrupted_one(
    point: str, forkserver: ForkServerContext, tmp_path: Path, whole: Path
) -> None:
    killed = Trainer(forkserver, tmp_path / "run", fail_at=point, recipe=SPEEDRUN, limit_train_batches=None)
    assert killed.wait() == -signal.SIGKILL, killed.said()
    again = Trainer(forkserver, tmp_path / "run", recipe=SPEEDRUN, limit_train_batches=None)
    assert again.wait() == 0, again.said()
    assert_same_tensors(newest(tmp_path / "run"), newest(whole))
    assert contents(tmp_path / "run" / "model") == contents(whole / "model")
    assert lines(tmp_path / "run") == lines(whole)


@pytest.fixture(scope="module")
def whole(forkserver: ForkServerContext, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("whole") / "run"
    trainer = Trainer(forkserver, path, recipe=SPEEDRUN, limit_train_batches=None)
    assert trainer.wait() == 0, trainer.said()
    assert set(newest(path).tensors) == {"model", "optimizer", "ema", "lookahead"}
    return path


@pytest.mark.distributed
def test_two_processes_train_as_one_does(forkserver: ForkServerContext, tmp_path: Path) -> None:
    # Without BatchNorm, and with SAM on 7 images: 4 and 3 of the processes, in 2 micro-batches and 1.
    recipe = tiny(
        mix=SPEEDRUN.mix, sam=SAM(num_images=7, start=0.3), lookahead=Lookahead(k=2), optimizer=AdamW(lr=0.001)
    )
    for processes in (1, 2):
        path = tmp_path / f"of{processes}"
        trainer = Trainer(forkserver, path, processes=processes, recipe=recipe, limit_train_batches=None, micro_batch=3)
        assert trainer.wait() == 0, trainer.said()
    one, two = (newest(tmp_path / f"of{processes}").tensors for processes in (1, 2))
    assert {"model", "lookahead"} <= one.keys()
    for name in ("model", "lookahead"):
        torch.testing.assert_close(two[name], one[name], rtol=0, atol=2e-5)


@pytest.mark.usefixtures("on_cpu")
def test_another_image_size_is_another_recipe(tmp_path: Path) -> None:
    ring_at[:] = [3]
    with pytest.raises(StoppedError):
        run(tmp_path / "run", SPEEDRUN)
    with pytest.raises(ConfigError, match=r"resize\.sides\.1 was 24 and is 'absent'"):
        run(tmp_path / "run", tiny(**{**vars(SPEEDRUN), "resize": None}))
