"""Whole runs: what they write, that stopping and how they are computed change nothing, and how they end when they must."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import Refusal, exit_code, refusals
from runs import (
    EMA,
    SHAPES,
    TINY,
    Bell,
    assert_same_tensors,
    contents,
    lines,
    newest,
    ring_at,
    run,
    same_bits,
    status,
    tiny,
)
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]

import cifar100_tk
from cifar100_tk.augment import Mix, TimmPolicy
from cifar100_tk.distributed.signals import LAG
from cifar100_tk.errors import ConfigError, DiskError, NotFiniteError, StoppedError
from cifar100_tk.evaluation.predictions import evaluate
from cifar100_tk.optim import SGD, Ema, Warmup, WarmupCosine
from cifar100_tk.recipe import Recipe, to_json
from cifar100_tk.runs import checkpoint_manager
from cifar100_tk.runs.run_config import image_fingerprints
from cifar100_tk.storage import failpoint
from cifar100_tk.train import main, train
from cifar100_tk.training.plan import RunOptions

pytestmark = pytest.mark.usefixtures("on_cpu")

NOTED = {"limit_train_batches": None, "images": image_fingerprints(SHAPES.open("train"), SHAPES.open("test"))}
"""What recipe.json holds besides the recipe."""


def test_a_run_writes_the_documented_files(ema_run: Path) -> None:
    assert sorted(path.name for path in ema_run.iterdir()) == [
        ".lock",
        "checkpoints",
        "environment.json",
        "evaluation",
        "metrics.jsonl",
        "model",
        "recipe.json",
        "run_status.json",
        "tensorboard",
    ]
    assert sorted(path.name for path in (ema_run / "checkpoints").iterdir()) == ["step-00000005", "step-00000010"]
    assert sorted(path.name for path in (ema_run / "model").iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]
    assert json.loads((ema_run / "recipe.json").read_text()) == to_json(EMA) | NOTED


def test_metrics_have_the_documented_names(ema_run: Path) -> None:
    first, last = lines(ema_run)
    scores = {f"test/{average}{name}" for average in ("", "ema_") for name in ("top1", "top5", "loss")}
    assert first.keys() == last.keys() == {"epoch", "step", "train/loss", "train/lr"} | scores
    assert [(line["epoch"], line["step"]) for line in (first, last)] == [(1, 5), (2, 10)]
    # Peak 0.2 * 20 / 256 at the end of the warm-up epoch.
    assert first["train/lr"] == pytest.approx(0.015625) and last["train/lr"] == pytest.approx(1e-6)
    # 100 classes and few steps: about the logarithm of 100.
    assert first["train/loss"] == pytest.approx(4.605, abs=0.3)


def test_the_time_of_a_run_that_stood_still_is_that_of_its_parts(tmp_path: Path) -> None:
    def seconds() -> list[float]:
        return [json.loads(line)["seconds"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]

    ring_at[:] = [7]
    with pytest.raises(StoppedError):
        run(tmp_path, EMA)
    (before,), recorded = seconds(), newest(tmp_path).facts["seconds"]
    assert 0 < before < recorded
    started = time.perf_counter()
    run(tmp_path, EMA)
    spent = time.perf_counter() - started
    first, last = seconds()
    # Not the time between the two processes, and each second once.
    assert first == before and recorded < last < status(tmp_path)["seconds"] < recorded + spent


def test_tensorboard_has_the_names_and_steps_of_the_metrics(ema_run: Path) -> None:
    events = EventAccumulator(str(ema_run / "tensorboard")).Reload()
    first, last = lines(ema_run)
    assert set(events.Tags()["scalars"]) == first.keys() - {"epoch", "step"} | {
        "images_per_second",
        "images_per_second_overall",
        *(f"result/{name}" for name in ("top1", "top5", "loss")),
    }
    for name in ("train/loss", "test/ema_top5"):
        logged = [(event.step, event.value) for event in events.Scalars(name)]
        assert logged == [(5, pytest.approx(first[name])), (10, pytest.approx(last[name]))]


def test_the_model_that_is_saved_is_the_average_and_scores_what_the_run_said(ema_run: Path) -> None:
    classifier = cifar100_tk.load(ema_run)
    average = newest(ema_run).tensors["ema"]
    state = classifier.model.state_dict()
    assert state.keys() == average.keys() and all(same_bits(state[name], average[name]) for name in average)
    measured = vars(evaluate(classifier.model, SHAPES.open("test"), classifier.normalize))
    assert measured.pop("num_images") == 100
    last = lines(ema_run)[-1]
    assert measured == pytest.approx({name: last[f"test/ema_{name}"] for name in measured})
    finished = status(ema_run)
    assert {"status": "finished", "step": 10}.items() <= finished.items()
    assert {name: finished[name] for name in measured} == pytest.approx(measured)


def test_a_stopped_run_can_go_on_in_the_same_process(tmp_path: Path) -> None:
    ring_at[:] = [2]
    with pytest.raises(StoppedError) as kept:  # With all its frames, as a notebook keeps the last error.
        run(tmp_path, EMA)
    run(tmp_path, EMA)
    assert kept.traceback and status(tmp_path)["status"] == "finished"


def test_a_run_killed_between_its_last_checkpoint_and_its_model_writes_the_model(ema_run: Path, tmp_path: Path) -> None:
    path = tmp_path / "run"
    run(path, EMA, eval_every=1)
    before = contents(path / "model")
    for file in (path / "model").iterdir():
        file.unlink()
    (path / "model").rmdir()
    (path / "run_status.json").write_text('{"status": "running"}')
    run(path, EMA, eval_every=1)
    assert contents(path / "model") == before and status(path)["status"] == "finished"
    assert lines(path) == lines(ema_run)


def test_another_seed_gives_other_weights(ema_run: Path, tmp_path: Path) -> None:
    run(tmp_path / "run", dataclasses.replace(EMA, seed=1))
    ours, theirs = (newest(path).tensors["model"]["fc.weight"] for path in (tmp_path / "run", ema_run))
    assert not torch.equal(ours, theirs)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Explode(Warmup):
    """Goes well during the warm-up."""

    def decay_factor(self, progress: float) -> float:
        return 1e38


def test_a_loss_that_is_not_finite_stops_the_run_before_it_is_saved(tmp_path: Path) -> None:
    path = tmp_path / "run"
    recipe = tiny(schedule=Explode(warmup_epochs=1))
    message = (
        r"not finite at step \d on rank 0 \(learning rate 1.562e\+36, training images (\d+, ){7}\d+ and 12 more\); "
        r"checkpoints before it are untouched\. A lower --optimizer"
    )
    with pytest.raises(NotFiniteError, match=message):
        run(path, recipe, checkpoint_every=1)
    assert NotFiniteError.exit_code == 6
    found = newest(path)
    assert found.step == 5 and len(list((path / "checkpoints").iterdir())) == 1
    assert all(tensor.isfinite().all() for tensor in found.tensors["model"].values())
    assert status(path)["status"] == "failed" and "not finite" in status(path)["reason"]
    assert len(set(status(path)["images"])) == 20
    assert not (path / "model").exists() and [line["epoch"] for line in lines(path)] == [1]


def test_a_finished_run_is_never_overwritten(ema_run: Path) -> None:
    before = contents(ema_run)
    with pytest.raises(ConfigError, match="holds a finished run, which is never overwritten"):
        run(ema_run, EMA)
    assert contents(ema_run) == before


def test_a_dry_run_prints_the_plan_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(EMA, RunOptions(output_dir=tmp_path / "run", dry_run=True)) is None
    assert list(tmp_path.iterdir()) == []
    plan = capsys.readouterr().out
    for words in (
        "resnet10_cifar_w16, 320,436 parameters",
        "shapes100: 100 train, 100 test",
        "20 = 1 x 20",
        "5 per epoch, 10 in 2 epochs",
        # Rising by 0.015625 / 5 a step.
        "0.00313 at the first step, 0.0156 at the peak, 1e-06 at the last; 0.2 per 256 images",
        "RandomResizedCrop, Flip, Bell; device pipeline, every augmentation is batched",
        f"{tmp_path}/run",
    ):
        assert words in plan


def test_limits_cut_the_epochs_the_schedule_and_the_evaluation(tmp_path: Path) -> None:
    metrics = run(tmp_path / "run", TINY, limit_train_batches=2, limit_eval_batches=1)
    assert [(line["epoch"], line["step"]) for line in lines(tmp_path / "run")] == [(1, 2), (2, 4)]
    assert lines(tmp_path / "run")[-1]["train/lr"] == pytest.approx(1e-6)
    assert metrics.num_images == 100  # One batch of 500 is more than all.


def test_a_run_with_a_holdout_is_measured_on_it(tmp_path: Path) -> None:
    data = dataclasses.replace(SHAPES, shapes100_rows=(200, 100), holdout=100)
    metrics = run(tmp_path / "run", tiny(data=data, epochs=1))
    (line,) = lines(tmp_path / "run")
    assert line["holdout/top5"] == metrics.top5 and not [name for name in line if name.startswith("test/")]
    assert "100 holdout images" in (tmp_path / "run" / "model" / "README.md").read_text()


def test_statuses_read_late_as_on_a_gpu_give_the_same_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = tiny(epochs=3, ema=Ema(), augment=(Bell(),), batch_size=4)
    options = {"eval_every": 3, "checkpoint_every": 3, "limit_train_batches": 5, "limit_eval_batches": 1}
    run(tmp_path / "whole", recipe, **options)
    monkeypatch.setitem(LAG, "cpu", 3)
    moments: list[str] = []
    monkeypatch.setattr(failpoint, "reach", moments.append)
    ring_at[:] = [9]
    with pytest.raises(StoppedError, match="after step 12"):
        run(tmp_path / "parts", recipe, **options)
    # The first epoch's last loss is read three steps later, the second's when the stop is agreed on.
    assert steps_before_reports(moments) == [8, 12]
    moments.clear()
    run(tmp_path / "parts", recipe, **options)
    assert steps_before_reports(moments) == [15]
    assert lines(tmp_path / "parts") == lines(tmp_path / "whole")
    assert_same_tensors(newest(tmp_path / "parts"), newest(tmp_path / "whole"))


def steps_before_reports(moments: list[str]) -> list[int]:
    """The steps that were done when each line of metrics.jsonl was written."""
    done: list[int] = []
    found = []
    for moment in moments:
        if moment.endswith(".done"):
            done.append(int(moment[len("step-") : -len(".done")]))
        elif moment == "metrics.jsonl.written" and done:  # Before the first step a resume removes lines.
            found.append(done[-1])
    return found


def test_epochs_shorter_than_the_lag_are_reported_one_by_one_and_saved_when_due(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, options = tiny(epochs=5, batch_size=4), {"limit_train_batches": 2, "limit_eval_batches": 1, "eval_every": 5}
    run(tmp_path / "whole", recipe, **options)
    monkeypatch.setitem(LAG, "cpu", 3)
    monkeypatch.setattr(checkpoint_manager, "SECONDS_BETWEEN_SAVES", 0.0)
    run(tmp_path / "late", recipe, **options, keep=9)
    assert lines(tmp_path / "late") == lines(tmp_path / "whole") and len(lines(tmp_path / "late")) == 5
    assert_same_tensors(newest(tmp_path / "late"), newest(tmp_path / "whole"))
    # Each is asked for three steps before, since the last time that all statuses were read.
    saved = [path.name for path in sorted((tmp_path / "late" / "checkpoints").iterdir())]
    assert saved == [f"step-{step:08d}" for step in (4, 8, 10)]


def test_a_report_that_cannot_be_written_late_ends_the_run_a_few_steps_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(LAG, "cpu", 3)

    def full(moment: str) -> None:
        if moment == "metrics.jsonl.opened":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(failpoint, "reach", full)
    with pytest.raises(DiskError, match="make room or choose another folder"):
        run(tmp_path / "run", tiny(batch_size=4), limit_train_batches=20, eval_every=2)
    # Known after step 20, read at step 23, told to all from then on and read three steps later.
    assert (status(tmp_path / "run")["status"], status(tmp_path / "run")["step"]) == ("failed", 27)


def test_the_overall_speed_counts_what_the_speed_of_training_leaves_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(moment: str) -> None:
        if moment.endswith(".polled"):
            time.sleep(1.0)

    monkeypatch.setattr(failpoint, "reach", slow)  # Before each batch of an evaluation.
    run(tmp_path / "run", tiny(epochs=2, batch_size=4), eval_every=1, limit_train_batches=2)
    first, last = (json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    seconds = {key: 8 / first[key] for key in ("images_per_second", "images_per_second_overall")}
    assert seconds["images_per_second_overall"] > seconds["images_per_second"] + 1.0
    assert 8 / first["images_per_second_overall"] == pytest.approx(first["seconds"])
    assert 8 / last["images_per_second_overall"] == pytest.approx(last["seconds"] - first["seconds"])


@pytest.mark.parametrize(
    ("recipe", "options", "message"),
    [
        (tiny(batch_size=200), {}, "batch_size=200 is more than the 100 training images; use at most 100"),
        (tiny(batch_size=25), {}, "batch_size=25 gives each of 1 processes 25, an odd number; use 26"),
        (
            TINY,
            {"micro_batch": 0},
            "--micro-batch 0 is out of range; expected from 1 to 1048576; use a power of two",
        ),
        (
            tiny(augment=(TimmPolicy(),)),
            {"pipeline": "device"},
            "--pipeline device cannot run TimmPolicy.*; use --pipeline auto",
        ),
    ],
)
def test_numbers_that_do_not_fit_together_are_refused_before_anything_is_written(
    tmp_path: Path, recipe: Recipe, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        run(tmp_path / "run", recipe, **options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["eval_every", "checkpoint_every", "keep", "limit_train_batches", "threads"])
def test_options_that_count_begin_at_one(name: str) -> None:
    options: dict[str, Any] = {name: 0}
    flag = "--" + name.replace("_", "-")
    with pytest.raises(ConfigError, match=f"{flag} 0 is out of range; expected from 1 to"):
        RunOptions(**options)


def test_a_place_that_cannot_be_written_to_is_a_disk_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DiskError, match=r"cannot write .*/file/run \(Not a directory\): choose another folder\.$"):
        run(tmp_path / "file" / "run")


# The command line.


@refusals(
    (["--epoch", "3"], 2, "unrecognized options: --epoch.*--epochs"),
    (["--batch-size", "many"], 2, "--batch-size.*many"),
    (["--pipeline", "gpu"], 2, "--pipeline.*auto.*device.*host"),
    (["--model.name", "resnet5"], 2, "'resnet5' is not a timm model; did you mean"),
    (["--model.name", "resnet50.a1_in1k"], 2, "names pretrained weights; use .resnet50., and model.pretrained="),
    (
        ["--optimizer.lr", "-0.1"],
        2,
        "optimizer.lr=-0.1 is out of range; expected more than 0 and at most 1000",
    ),
    (["--seed", "-1"], 2, r"seed=-1 is out of range; expected from 0 to 2\*\*64 - 1"),
    (["--epochs", "0"], 2, "epochs=0 is out of range; expected from 1 to 100000"),
    (
        ["--log-with", "wandbb"],
        2,
        r"--log-with wandbb is not a tracker; give tensorboard, .*, or none \(installed: .*tensorb",
    ),
    (
        ["--log-with", "none", "tensorboard"],
        2,
        "--log-with none tensorboard: none excludes other trackers; leave it out, or the others",
    ),
    (["--workers", "-1"], 2, "--workers -1 is out of range; expected from 0 to 256; give one for each core"),
    (["--data.holdout", "7"], 2, "use a multiple of 100 from 0 up, such as 0 or 100"),
    (["--data.source", "no/such/folder"], 3, "no/such/folder"),
)
def test_wrong_usage_ends_with_a_sentence_and_its_code(
    refusal: Refusal, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    refusal.check(capsys, partial(main, TINY), "--output-dir", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_numbers_on_the_command_line_reach_the_recipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    numbers = ["--epochs=1", "--optimizer.lr=0.4", "--mix.mixup-alpha=1", "--cutout.p=0", "--seed=7", "--batch-size=50"]
    path = tmp_path / "run"
    assert exit_code(partial(main, TINY), *numbers, "--output-dir", path, program="recipes/tiny.py") == 0
    written = json.loads((path / "recipe.json").read_text())
    expected = dataclasses.replace(
        TINY,
        epochs=1,
        seed=7,
        batch_size=50,
        optimizer=SGD(lr=0.4, weight_decay=5e-4),
        schedule=WarmupCosine(warmup_epochs=1),
        mix=Mix(mixup_alpha=1.0),
        cutout=dataclasses.replace(TINY.cutout, p=0) if TINY.cutout else None,
    )
    assert written == to_json(expected) | NOTED
    assert "tiny, seed 7" in (out := capsys.readouterr().out) and f"cifar100_tk.eval {path}" in out


@pytest.mark.parametrize(
    ("recipe", "code"),
    [(tiny(schedule=Explode(warmup_epochs=0)), 6), (tiny(augment=(Bell(),)), 75)],
    ids=["not finite", "stopped"],
)
def test_a_run_that_must_stop_says_so_by_its_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], recipe: Recipe, code: int
) -> None:
    ring_at[:] = [2]
    assert exit_code(partial(main, recipe), "--output-dir", tmp_path / "run", program="recipes/tiny.py") == code
    ring_at.clear()
    said = capsys.readouterr().err
    assert said.startswith("tiny.py: ") and said.count("\n") == 1
