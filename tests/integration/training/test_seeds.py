"""--seeds: the same recipe from several seeds, as if each were run alone, resumed as a whole, and summed up."""

from __future__ import annotations

import dataclasses
import gc
import re
import shutil
import statistics
import weakref
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from commands import exit_code, said
from processes import PROGRAMS, other_writer, torchrun
from runs import SHAPES, TWICE, Bell, assert_same_tensors, contents, cpu, lines, newest, ring_at, run, status, tiny
from torch import nn

from cifar100_tk.errors import ConfigError, LockedError, StoppedError
from cifar100_tk.models import TimmModel
from cifar100_tk.recipe import Recipe
from cifar100_tk.train import main, train
from cifar100_tk.training.plan import RunOptions
from cifar100_tk.training.seeds import train_seeds

pytestmark = pytest.mark.usefixtures("on_cpu")

SHORT = tiny(epochs=1, augment=(Bell(),), seed=3)


def seeds(folder: Path, count: int = 2, recipe: Recipe = SHORT, **options: Any) -> None:
    train_seeds(train, recipe, RunOptions(output_dir=folder, seeds=count, **options), "short")


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SHORT with seeds 3 and 4."""
    folder = tmp_path_factory.mktemp("both") / "short"
    with cpu():
        seeds(folder)
    return folder


def test_each_seed_is_trained_as_if_alone(both: Path, tmp_path: Path) -> None:
    assert sorted(path.name for path in both.iterdir()) == ["seed-3", "seed-4"]
    for seed in (3, 4):
        run(tmp_path / f"alone-{seed}", dataclasses.replace(SHORT, seed=seed))
        assert_same_tensors(newest(both / f"seed-{seed}"), newest(tmp_path / f"alone-{seed}"))
        assert lines(both / f"seed-{seed}") == lines(tmp_path / f"alone-{seed}")
    assert lines(both / "seed-3") != lines(both / "seed-4")


def test_again_it_trains_nothing_and_says_mean_and_standard_deviation(
    both: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(both)
    seeds(both)
    said = capsys.readouterr().out
    assert contents(both) == before and f"2 seeds into {both}/seed-N: 2 finished" in said
    top1 = [100 * status(both / f"seed-{seed}")["top1"] for seed in (3, 4)]
    mean, deviation = statistics.mean(top1), statistics.stdev(top1)
    assert re.search(rf"2 seeds +top-1 {mean:.2f} ± {deviation:.2f} %", said)
    head, rule, row = said.splitlines()[-3:]
    assert head.startswith("| recipe | top-1") and set(rule) <= set("| -")
    assert (
        row.startswith(f"| `short` | {mean:.2f} ± {deviation:.2f} % |") and "2 seeds, mean and sample standard" in row
    )


def test_all_seeds_are_extended_each_once(both: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "short"
    shutil.copytree(both, folder)
    seeds(folder, extend_to=2)
    said = capsys.readouterr().out
    assert f"2 seeds into {folder}/seed-N: 2 unfinished" in said
    assert "last epoch of 2, extended from 1 epoch after step 5, 2 seeds, mean" in said.splitlines()[-1]
    before = contents(folder)
    seeds(folder, extend_to=2)
    assert contents(folder) == before and ": 2 finished" in capsys.readouterr().out
    with pytest.raises(ConfigError, match=r"seed-3 holds a finished run of 2 epochs, and --extend-to 1 adds none"):
        seeds(folder, extend_to=1)


def test_stopped_in_the_second_it_goes_on_there(both: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "short"
    ring_at[:] = [5 + 2]
    with pytest.raises(
        StoppedError, match="stopped by SIGTERM after step 2, everything is saved; run the same command"
    ):
        seeds(folder, 3)
    first = contents(folder / "seed-3")
    assert [status(folder / f"seed-{seed}")["status"] for seed in (3, 4)] == ["finished", "stopped"]
    assert not (folder / "seed-5").exists()
    capsys.readouterr()
    seeds(folder, 2)
    said = capsys.readouterr().out
    assert f"2 seeds into {folder}/seed-N: 1 finished, 1 unfinished" in said and "resumes from   step 2" in said
    assert contents(folder / "seed-3") == first
    assert_same_tensors(newest(folder / "seed-4"), newest(both / "seed-4"))


def test_a_seed_that_fails_stops_the_rest_and_spoils_nothing(tmp_path: Path) -> None:
    other = tmp_path / "seed-4"
    other.mkdir()
    with other_writer(other) as process:
        assert process.stdout is not None and process.stdout.readline() == "writing\n"
        with pytest.raises(LockedError, match="seed-4; wait for it"):
            seeds(tmp_path, 3)
        process.kill()
    assert status(tmp_path / "seed-3")["status"] == "finished" and not (tmp_path / "seed-5").exists()
    assert [path.name for path in other.iterdir()] == [".lock"]


def test_what_must_not_be_written_to_is_known_before_the_first_is_trained(both: Path, tmp_path: Path) -> None:
    before = contents(both)
    for changes, options, message in (
        ({"clip_grad_norm": 1.0}, {}, r"seed-3 holds a run of another recipe: clip_grad_norm was 0\.0 and is 1\.0"),
        ({}, {"resume": "never"}, "seed-3 holds a run already"),
        (
            {"data": dataclasses.replace(SHAPES, shapes100_rows=(100, 200))},
            {},
            "another recipe: data.shapes100_rows.1 was 100 and is 200",
        ),
    ):
        with pytest.raises(ConfigError, match=message):
            seeds(both, 3, dataclasses.replace(SHORT, **changes), **options)
    assert contents(both) == before
    # A later seed counts as much as the first.
    (tmp_path / "seed-4").mkdir()
    (tmp_path / "seed-4" / "thesis.tex").touch()
    with pytest.raises(ConfigError, match="seed-4 is not a run folder"):
        seeds(tmp_path)
    with pytest.raises(ConfigError, match="seed-3 holds a run of one seed, but --seeds 2 writes a folder per seed"):
        seeds(both / "seed-3")
    assert not (tmp_path / "seed-3").exists()


def test_a_dry_run_shows_one_plan_and_writes_nothing(
    both: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seeds(tmp_path / "new", 5, dry_run=True)
    said = capsys.readouterr().out
    assert f"5 seeds into {tmp_path}/new/seed-N: 5 new" in said and said.count("short, seed") == 1
    assert list(tmp_path.iterdir()) == []
    seeds(both, 3, dry_run=True)
    assert "2 finished, 1 new" in (said := capsys.readouterr().out) and "short, seed 5" in said


def test_a_run_leaves_no_network_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build, alive = TimmModel.build, []
    nets: list[weakref.ref[nn.Module]] = []

    def counted(model: TimmModel, num_classes: int, image_size: int) -> nn.Module:
        alive.append(sum(net() is not None for net in nets))
        net = build(model, num_classes, image_size)
        nets.append(weakref.ref(net))
        return net

    monkeypatch.setattr(TimmModel, "build", counted)
    gc.collect()
    seeds(tmp_path, 2)
    assert alive == [0, 0]


@pytest.mark.parametrize(
    ("count", "ring", "code", "message"),
    [
        ("2", 0, 0, "| `short` |"),
        ("2", 7, 75, "short.py: stopped by SIGTERM"),
        ("0", 0, 2, "--seeds 0 is out of range"),
    ],
)
def test_seeds_on_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], count: str, ring: int, code: int, message: str
) -> None:
    ring_at[:] = [ring] if ring else []
    arguments = ("--seeds", count, "--output-dir", tmp_path / "short")
    assert exit_code(partial(main, SHORT), *arguments, program="recipes/short.py") == code
    assert message in said(capsys)


@pytest.mark.distributed
def test_two_processes_train_the_seeds_in_the_same_order(tmp_path: Path) -> None:
    done = torchrun(PROGRAMS / "twice.py", tmp_path / "runs", ACCELERATE_USE_CPU="true")
    assert done.returncode == 0, done.stderr[-4000:]
    for seed in (0, 1):
        alone = run(tmp_path / f"alone-{seed}", dataclasses.replace(TWICE, seed=seed, epochs=1))
        (ours,), (theirs,) = lines(tmp_path / "runs" / f"seed-{seed}"), lines(tmp_path / f"alone-{seed}")
        assert ours == pytest.approx(theirs, rel=1e-4) and ours["test/ema_top1"] == pytest.approx(alone.top1)
    assert done.stdout.count("2 seeds into") == 1 and "| `twice` |" in done.stdout
    again = torchrun(PROGRAMS / "twice.py", tmp_path / "runs", ACCELERATE_USE_CPU="true")
    assert again.returncode == 0 and "seed-N: 2 finished" in again.stdout
