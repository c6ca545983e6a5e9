"""The parts of the short recipe together: Muon, an average, growing images and a whitened layer resume bit for bit."""

from __future__ import annotations

from pathlib import Path

import pytest
from runs import Bell, lines, newest, ring_at, run, tiny

from cifar100_tk.augment import Flip, PadCrop, ProgressiveResize
from cifar100_tk.errors import ConfigError, StoppedError
from cifar100_tk.models import TimmModel, Whitening
from cifar100_tk.optim import Ema, Muon, OneCycle

RECIPE = tiny(
    model=TimmModel(name="speednet_w256"),
    whitening=Whitening(num_images=50),
    augment=(PadCrop(padding=2, mode="reflect"), Flip(alternate=True), Bell()),
    cutout=None,
    mix=None,
    resize=ProgressiveResize(sides=(20, 24, 32), starts=(0.0, 0.35, 0.7)),
    optimizer=Muon(lr=0.01, weight_decay=0.01),
    schedule=OneCycle(pct_start=0.2),
    ema=Ema(decay=0.9),
)


@pytest.mark.usefixtures("on_cpu")
@pytest.mark.parametrize("stop_at", [3, 7], ids=["at 20 pixels", "at 24 pixels"])
def test_a_stopped_run_ends_with_the_bytes_of_an_uninterrupted_one(tmp_path: Path, stop_at: int) -> None:
    run(tmp_path / "whole", RECIPE)
    ring_at[:] = [stop_at]
    with pytest.raises(StoppedError):
        run(tmp_path / "parts", RECIPE)
    assert 0 < newest(tmp_path / "parts").step <= stop_at
    run(tmp_path / "parts", RECIPE)
    whole, parts = (tmp_path / name / "model" / "model.safetensors" for name in ("whole", "parts"))
    assert whole.read_bytes() == parts.read_bytes()
    assert lines(tmp_path / "whole") == lines(tmp_path / "parts")


@pytest.mark.usefixtures("on_cpu")
def test_the_plan_shows_the_image_sizes_and_the_whitened_layer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_dry(tmp_path) is None
    plan = capsys.readouterr().out
    assert "image size     20 px to step 4, 24 px to step 7, 32 px to step 10\n" in plan
    assert "first layer    whitened with 50 training images, and frozen\n" in plan


def run_dry(path: Path) -> object:
    from cifar100_tk.train import train
    from cifar100_tk.training.plan import RunOptions

    return train(RECIPE, RunOptions(output_dir=path / "run", dry_run=True))


@pytest.mark.usefixtures("on_cpu")
def test_another_image_size_is_another_recipe(tmp_path: Path) -> None:
    ring_at[:] = [3]
    with pytest.raises(StoppedError):
        run(tmp_path / "run", RECIPE)
    with pytest.raises(ConfigError, match=r"resize\.sides\.1 was 24 and is 'absent'"):
        run(tmp_path / "run", tiny(**{**vars(RECIPE), "resize": None}))
