"""The curves of a report are drawn from the logged epochs and steps."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from written_runs import folder

from cifar100_tk.report import curves
from cifar100_tk.report.figures import Panel
from cifar100_tk.runs import summary


def stepped(path: Path, count: int = 4, every: int = 2) -> Path:
    """A run of two epochs of five steps that took 10 and 30 seconds, with logged steps."""
    folder(path)
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    timed = [line | {"seconds": seconds, "train/lr": 0.1} for line, seconds in zip(lines, (10, 40), strict=True)]
    (path / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in timed))
    steps = [{"step": every * n, "train/step_loss": float(n), "train/step_lr": n / 10} for n in range(1, count + 1)]
    (path / "steps.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in steps))
    return path


def panels(*paths: Path) -> dict[str, list[Panel]]:
    complaints: list[str] = []
    histories = [curves.History.of(summary.read(path), colour, complaints) for colour, path in enumerate(paths)]
    assert not complaints
    return curves.panels(histories)


def test_steps_lie_between_the_epochs(tmp_path: Path) -> None:
    found = panels(stepped(tmp_path / "a"))
    assert list(found) == ["epoch", "seconds"] and [len(plots) for plots in found.values()] == [3, 3]
    steps, train, _ = found["epoch"][0].lines
    assert steps.faint and steps.x.tolist() == pytest.approx([0.4, 0.8, 1.2, 1.6]) and steps.y.tolist() == [1, 2, 3, 4]
    assert train.x.tolist() == [1, 2] and train.y.tolist() == [4, 3]
    # Five steps in 10 seconds, then five in 30.
    assert found["seconds"][0].lines[0].x.tolist() == pytest.approx([4, 8, 16, 28])


def test_the_learning_rate_is_that_of_steps_and_epochs_in_order(tmp_path: Path) -> None:
    [line] = panels(stepped(tmp_path / "a"))["epoch"][2].lines
    assert line.x.tolist() == pytest.approx([0.4, 0.8, 1, 1.2, 1.6, 2]) and line.y.tolist() == [
        0.1,
        0.2,
        0.1,
        0.3,
        0.4,
        0.1,
    ]


def test_the_plots_of_a_row_share_their_x_axis(tmp_path: Path) -> None:
    found = panels(stepped(tmp_path / "a"), folder(tmp_path / "b"))
    assert {plot.x_range for plot in found["epoch"]} == {(0.0, 2.0)}
    assert {plot.x_range for plot in found["seconds"]} == {(0.0, 40.0)}
    # A run without steps.jsonl shows its epochs instead.
    assert [(line.colour, line.faint, len(line.x)) for line in found["epoch"][0].lines] == [
        (0, True, 4),
        (0, False, 1),
        (1, True, 2),
        (1, False, 1),
    ]


def test_many_steps_are_averaged_in_groups(tmp_path: Path) -> None:
    path = stepped(tmp_path / "a", count=10 * curves.MOST_POINTS, every=1)
    steps = panels(path)["epoch"][0].lines[0]
    assert len(steps.x) == curves.MOST_POINTS and steps.y[:2].tolist() == [5.5, 15.5]
    assert np.isfinite(steps.x).all()


def test_damaged_steps_are_left_out_and_told(tmp_path: Path) -> None:
    path = stepped(tmp_path / "a")
    with (path / "steps.jsonl").open("a") as file:
        file.write('{"step": 9, "tr\n{"step": 0}\n')
    complaints: list[str] = []
    assert len(curves.History.of(summary.read(path), 0, complaints).steps) == 4
    assert complaints == [f"Line {number} of steps.jsonl is damaged and left out." for number in (5, 6)]
