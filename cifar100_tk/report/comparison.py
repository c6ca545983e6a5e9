"""Report section that compares two runs class by class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from cifar100_tk.data.labels import display_name
from cifar100_tk.errors import CifarError
from cifar100_tk.evaluation.metrics import first_guesses
from cifar100_tk.evaluation.predictions import Predictions
from cifar100_tk.report import numbers
from cifar100_tk.report.contents import Report
from cifar100_tk.runs.summary import Run
from cifar100_tk.storage.json_files import Json

MOST_SHOWN: Final = 12
"""Classes that are shown, those of the largest difference; the others are folded."""


def add_class_comparison(report: Report, runs: Sequence[Run], labels: Sequence[str]) -> None:
    """Add the accuracy of every class in two runs, if both are evaluated on the same split. labels: a name for each run."""
    if unfinished := [label for run, label in zip(runs, labels, strict=True) if not run.finished]:
        report.notes.append(f"The classes are not compared, because {unfinished[0]} is not finished.")
        return
    try:
        (one, of_one), (two, of_two) = map(numbers.evaluated, runs)
    except CifarError as error:
        report.notes.append(f"The classes are not compared: {error}")
        return
    names = [row["name"] for row in one["classes"]]
    if one["split"] != two["split"] or names != [row["name"] for row in two["classes"]]:
        report.notes.append(
            f"The classes are not compared: {labels[0]} was evaluated on {len(names)} classes of {one['split']}, "
            f"{labels[1]} on {len(two['classes'])} classes of {two['split']}."
        )
        return
    pairs = [
        (new["accuracy"] - old["accuracy"], old, new)
        for old, new in zip(one["classes"], two["classes"], strict=True)
        if old["accuracy"] is not None and new["accuracy"] is not None
    ]
    widest = max((abs(change) for change, _, _ in pairs), default=0.0) or 1.0
    pairs.sort(key=lambda pair: (-abs(pair[0]), pair[1]["name"]))
    rows = [_row(change, widest, old, new) for change, old, new in pairs]
    report.facts["compared"] = {
        "runs": labels,
        "split": one["split"],
        "shown": rows[:MOST_SHOWN],
        "folded": rows[MOST_SHOWN:],
        "better": sum(change > 0 for change, _, _ in pairs),
        "worse": sum(change < 0 for change, _, _ in pairs),
        "paired": _paired(of_one, of_two),
    }


def _row(change: float, widest: float, old: Json, new: Json) -> Json:
    return {
        "name": display_name(old["name"]),
        "old": f"{100 * old['accuracy']:.0f}",
        "new": f"{100 * new['accuracy']:.0f} %",
        "change": f"{100 * change:+.0f}".replace("-", "\N{MINUS SIGN}") if change else "0",
        "width": f"{50 * abs(change) / widest:.1f}",
        "gain": change > 0,
    }


def _paired(one: Predictions, two: Predictions) -> Json | None:
    """Return on how many images only one of the runs is right; None if their images are not the same."""
    if not (one.rows.equal(two.rows) and one.labels.equal(two.labels)):
        return None
    right = [first_guesses(each.logits) == each.labels for each in (one, two)]
    return {
        "images": len(one.labels),
        "first": int((right[0] & ~right[1]).sum()),
        "second": int((right[1] & ~right[0]).sum()),
    }
