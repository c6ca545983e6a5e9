"""What run folders say is read whatever state they are in, and summed up only where that means something."""

from __future__ import annotations

import json
import math
import statistics
from pathlib import Path
from typing import Any

import pytest
from written_runs import RECIPE, folder

from cifar100_tk.errors import ConfigError, DataError
from cifar100_tk.runs import summary as run_summary
from cifar100_tk.runs.summary import Spread


def test_mean_and_sample_standard_deviation_over_seeds(tmp_path: Path) -> None:
    runs = [folder(tmp_path / f"net-seed{seed}", top1, seed=seed) for seed, top1 in enumerate((0.40, 0.42, 0.47))]
    found = run_summary.summary(runs)
    # Worked out by hand: 0.43, and sqrt((0.03^2 + 0.01^2 + 0.04^2) / 2).
    assert found.top1.mean == pytest.approx(0.43) and found.top1.std == pytest.approx(math.sqrt(0.0026 / 2))
    assert found.top5 == Spread(0.75, 0.0)
    assert found.markdown_row == (
        "| `net` | 43.00 ± 3.61 % | 75.00 ± 0.00 % | test images (shapes100); last epoch of 2, 3 seeds, mean and "
        "sample standard deviation; 1 min 39 s each on cpu (2 threads), float32, torch 2.15.0 |"
    )
    assert found.describe().splitlines()[-1] == (
        "3 seeds  top-1 43.00 ± 3.61 %  top-5 75.00 ± 0.00 %  loss 2.0000 ± 0.0000"
    )
    assert len(found.describe().splitlines()) == 4


def test_the_newest_measured_epoch_is_the_result(tmp_path: Path) -> None:
    path = folder(tmp_path / "net", status="running")
    newest = json.loads((path / "metrics.jsonl").read_text().splitlines()[1])
    older, later = newest | {"epoch": 1, "test/top1": 0.9}, {"epoch": 3, "step": 15, "train/loss": 1.0}
    (path / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in (older, newest, later)))
    measured = run_summary.read(path).measured
    assert measured is not None and (measured.epoch, measured.top1) == (2, 0.5)


def test_one_run_has_no_standard_deviation(tmp_path: Path) -> None:
    found = run_summary.summary([folder(tmp_path / "net", seed=7)], name="a|b")
    assert found.top1 == Spread(0.5, None) and found.describe() == "seed 7  top-1 50.00 %  top-5 75.00 %  loss 2.0000"
    assert found.markdown_row.startswith(
        "| `a\\|b` | 50.00 % | 75.00 % | test images (shapes100); last epoch of 2, seed 7;"
    )


def test_a_run_whose_epochs_were_cut_says_so_in_its_conditions(tmp_path: Path) -> None:
    for number, (limit, last_step, said) in enumerate(
        (
            (5, 10, "last epoch of 2, each cut to 5 steps, seed 0;"),
            (1, 2, "last epoch of 2, each cut to 1 step, seed 0;"),
            (1200, 2400, "last epoch of 2, each cut to 1,200 steps, seed 0;"),
            (6, 10, "last epoch of 2, seed 0;"),  # Its epochs have 5 steps in any case.
            (None, 10, "last epoch of 2, seed 0;"),
            ("six", 10, "last epoch of 2, seed 0;"),
        )
    ):
        path = folder(tmp_path / str(number), limit_train_batches=limit)
        metrics = path / "metrics.jsonl"
        metrics.write_text(metrics.read_text().replace('"step": 10', f'"step": {last_step}'))
        assert said in run_summary.summary([path]).markdown_row


def test_the_averaged_weights_and_the_holdout_are_what_such_a_run_reports(tmp_path: Path) -> None:
    path = folder(tmp_path / "net", ema={"type": "Ema"}, data={"source": "hub", "holdout": 100})
    line = {"epoch": 3, "step": 15, "holdout/top1": 0.1, "holdout/top5": 0.2, "holdout/loss": 3.0}
    line |= {"holdout/ema_top1": 0.3, "holdout/ema_top5": 0.4, "holdout/ema_loss": 1.0}
    (path / "metrics.jsonl").write_text(json.dumps(line))
    (path / "evaluation").mkdir()
    (path / "evaluation" / "holdout.json").write_text(json.dumps({"num_images": 1000, "images": "some images"}))
    found = run_summary.summary([path])
    assert (found.top1.mean, found.top5.mean, found.loss.mean) == (0.3, 0.4, 1.0)
    assert found.conditions.startswith("1,000 holdout images (some images); last epoch of 3, EMA weights, seed 0;")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizer": {"type": "SGD", "lr": 0.2}, "seed": 1}, r"different recipes.*optimizer\.lr is 0\.1, 0\.2\.$"),
        ({"seed": 0}, "2 runs have only 1 different seeds; give each seed once"),
        ({"seed": 1, "status": "stopped"}, r"b is not finished \(stopped\).*only finished runs have a result"),
    ],
)
def test_runs_over_which_no_mean_is_meant_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    runs = [folder(tmp_path / "a"), folder(tmp_path / "b", **changes)]
    with pytest.raises(ConfigError, match=message):
        run_summary.summary(runs)


def test_the_same_images_are_one_recipe_wherever_they_came_from(tmp_path: Path) -> None:
    images = {"test": {"sha256": "ab", "sentence": "these are the CIFAR-100 test images"}}
    one = folder(tmp_path / "a", images=images)
    two = folder(tmp_path / "b", images=images, seed=1, data=RECIPE["data"] | {"source": "/copy"})
    assert run_summary.summary([one, two]).top1.mean == 0.5
    assert run_summary.describe_images(run_summary.read(two)) == "test images (these are the CIFAR-100 test images)"
    other = folder(tmp_path / "c", images={"test": images["test"] | {"sha256": "cd"}}, seed=1)
    with pytest.raises(ConfigError, match=r"different recipes.*: images\.test\.sha256 is ab, cd\.$"):
        run_summary.summary([one, other])
    # Where it is not known which they were, where they came from is all that tells.
    unknown = [folder(tmp_path / name, data=RECIPE["data"] | {"source": name}) for name in ("d", "e")]
    with pytest.raises(ConfigError, match=r"different recipes.*: data\.source is d, e\.$"):
        run_summary.summary(unknown)


def test_a_whole_number_and_the_same_fraction_are_one_recipe(tmp_path: Path) -> None:
    runs = [folder(tmp_path / f"{lr}", seed=str(lr), optimizer={"type": "SGD", "lr": lr}) for lr in (1, 1.0)]
    assert len(run_summary.summary(runs).runs) == 2


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no runs to summarize"):
        run_summary.summary([])
    with pytest.raises(ConfigError, match="nowhere does not exist; give a folder that training wrote"):
        run_summary.read(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match=r"is not a run folder: it holds no recipe\.json"):
        run_summary.read(tmp_path)
    for content in ("[1]", "{", "[" * 100_000):
        (tmp_path / "recipe.json").write_text(content)
        with pytest.raises(
            DataError, match=r"recipe\.json (must hold a JSON object|cannot be read).*it must be as training wrote it"
        ):
            run_summary.read(tmp_path)


def test_damaged_parts_are_left_out_and_said(tmp_path: Path) -> None:
    path = folder(tmp_path / "net")
    good = (path / "metrics.jsonl").read_text()
    bad = [
        '{"epoch": 3, "st',
        "[]",
        '{"step": 3}',
        '{"epoch": NaN}',
        '{"epoch": Infinity}',
        '{"epoch": 1' + "0" * 400 + "}",
        "\x00\xff",
    ]
    (path / "metrics.jsonl").write_bytes((good + "\n".join(bad) + "\n").encode("latin-1"))
    (path / "environment.json").write_text("{")
    (path / "run_status.json").write_text("[" * 100_000)
    (path / "evaluation").mkdir(exist_ok=True)
    (path / "evaluation" / ".tmp-test.json").write_text("{")  # What a killed writer leaves.
    run = run_summary.read(path)
    assert [line["epoch"] for line in run.epochs] == [1, 2] and run.environment == {} and run.status == {}
    assert run.complaints == (
        *(["environment.json is damaged and left out."]),
        *(f"Line {number} of metrics.jsonl is damaged and left out." for number in range(3, 10)),
    )
    assert run.measured is not None and not run.finished and run.seconds is None and not run.evaluations
    (path / "run_status.json").write_text(json.dumps({"seconds": 10**400}))  # More than a float holds.
    assert run_summary.read(path).seconds is None


def test_a_run_that_has_just_begun_has_no_result(tmp_path: Path) -> None:
    path = folder(tmp_path / "net")
    (path / "metrics.jsonl").unlink()
    assert run_summary.read(path).measured is None
    with pytest.raises(DataError, match=r"metrics\.jsonl contains no test/top1"):
        run_summary.summary([path])


def test_figures_that_are_not_numbers_stay_so() -> None:
    assert Spread.of([0.5, math.nan]).percent == "nan ± nan %"
    values = [0.3, 0.31, 0.38]
    assert Spread.of(values).std == statistics.stdev(values)
