"""Report sections about runs: results, curves, recipes and environments, with statistics over seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from markupsafe import escape

from cifar100_tk.errors import CifarError
from cifar100_tk.progress import duration, percent
from cifar100_tk.recipe import flatten, published
from cifar100_tk.report import figures
from cifar100_tk.report.contents import Report, percent_of
from cifar100_tk.report.curves import History, panels
from cifar100_tk.report.figures import NUM_COLOURS, PRINTED
from cifar100_tk.runs import summary as run_summary
from cifar100_tk.runs.differences import as_written, comparable_recipe, differences
from cifar100_tk.runs.lengths import describe_earlier
from cifar100_tk.runs.summary import MARKDOWN_HEAD, Run, Summary
from cifar100_tk.storage.json_files import Json


@final
@dataclass(frozen=True)
class Group:
    """Runs that differ only in their seed."""

    name: str
    runs: tuple[Run, ...]
    summary: Summary | None
    why_not: str | None
    """The reason, if there is no summary."""


def grouped(runs: Sequence[Run]) -> list[Group]:
    """Group runs by recipe, and summarize the finished runs of each group."""
    found: list[list[Run]] = []
    for run in runs:
        same = (members for members in found if run_summary.recipe_of(members[0]) == run_summary.recipe_of(run))
        if (members := next(same, None)) is None:
            found.append([run])
        else:
            members.append(run)
    names = [run_summary.common_name([run.path for run in members]) for members in found]
    groups = []
    for number, (name, members) in enumerate(zip(names, found, strict=True)):
        name = name if names.count(name) == 1 else f"{name} ({number + 1})"
        finished = [run for run in members if run.finished]
        summary, why_not = None, None if finished else "no finished run"
        try:
            summary = run_summary.summary(finished, name) if finished else None
        except CifarError as error:
            why_not = str(error)
        groups.append(Group(name, tuple(members), summary, why_not))
    return groups


def add_runs(report: Report, runs: list[Run], groups: list[Group]) -> None:
    """Add the results, recipes and environments."""
    alone = runs[0] if len(runs) == 1 else None
    # Reports get shared; the path of a local copy stays private.
    different = differences([comparable_recipe(published(group.runs[0].recipe)) for group in groups])
    rows = [group.summary.markdown_row for group in groups if group.summary]
    report.facts |= {
        "title": alone.name if alone else " and ".join(group.name for group in groups),
        "alone": alone is not None,
        "kind": _kind(alone) if alone else f"{len(runs)} training runs",
        "lead": _lead(alone) if alone else _lead_of_several(runs, groups),
        "tiles": _tiles(alone) if alone else [],
        "runs": [_run_row(run, _colour(run, groups)) for run in runs],
        "groups": [_group_row(group) for group in groups],
        "repeated": any(len(group.runs) > 1 for group in groups),
        "averaged": any(group.summary and len(group.summary.runs) > 1 for group in groups),
        "group_names": [group.name for group in groups],
        "different": different,
        "markdown": escape("\n".join([MARKDOWN_HEAD, *rows])) if rows else None,  # To copy, so with plain spaces.
        "recipes": [(group.name, _recipe_rows(group)) for group in groups],
        "environments": _environments(runs),
    }


def add_curves(report: Report, runs: list[Run], groups: list[Group]) -> None:
    """Add the plots of the logged epochs and steps."""
    histories = []
    for run in runs:
        complaints: list[str] = []
        histories.append(History.of(run, _colour(run, groups), complaints))
        report.notes += [(f"{run.name}: " if len(runs) > 1 else "") + complaint for complaint in complaints]
    axes = panels(histories)
    if axes and not any("seconds" in line for run in runs for line in run.epochs):
        report.notes.append("metrics.jsonl contains no times, so there are no curves against time.")
    if len(runs) > 1:
        of_recipes = [(group.name, number) for number, group in enumerate(groups)]
        legend = of_recipes if len(groups) > 1 else [(run.name, _colour(run, groups)) for run in runs]
    else:
        legend = []
    report.facts["legend"] = [(name, colour % NUM_COLOURS) for name, colour in legend]
    report.facts["logged_steps"] = any(history.steps for history in histories)
    report.facts["axes"] = [
        {
            "name": "epochs" if axis == "epoch" else axis,
            "plots": [figures.web(panel, f"curve-{number}-{place}") for place, panel in enumerate(plots)],
        }
        for number, (axis, plots) in enumerate(axes.items())
    ]
    if axes:
        report.files["curves.png"] = figures.png(figures.row(next(iter(axes.values())), legend, PRINTED))


def _kind(run: Run) -> str:
    name = flatten(run.recipe).get("model.name")
    return f"Training run of {name}" if isinstance(name, str) else "Training run"


def _lead(run: Run) -> str:
    """Describe in one sentence the state of the run and the conditions of its figures."""
    measured, epochs = run.measured, run.recipe.get("epochs")
    if run.finished and measured is not None:
        return run_summary.summary([run]).conditions
    where = run_summary.hardware_of([run])
    if run.finished:
        return "; ".join(filter(None, [f"finished, seed {run.seed}", f"no {run.split}/top1 in metrics.jsonl", where]))
    done = int(run.epochs[-1]["epoch"]) if run.epochs else 0
    state = str(run.status.get("status", "of unknown state"))
    reason = f" ({run.status['reason']})" if "reason" in run.status else ""
    so_far = f"{state}{reason}: {done} of {epochs} epochs so far"
    so_far = ", ".join(filter(None, [so_far, describe_earlier(run.recipe), f"seed {run.seed}"]))
    evaluated = (
        f"measured after epoch {measured.epoch} on {run_summary.describe_images(run)}"
        if measured
        else "not evaluated yet"
    )
    return "; ".join(filter(None, [so_far, evaluated, where]))


def _lead_of_several(runs: list[Run], groups: list[Group]) -> str:
    if len(groups) == 1:
        return f"{len(runs)} runs of one recipe, with seeds {', '.join(str(run.seed) for run in runs)}"
    repeated = len(runs) > len(groups)
    over = "; means are over the seeds of one recipe, never across recipes" if repeated else ""
    return f"{len(runs)} runs of {len(groups)} recipes{over}"


def _tiles(run: Run) -> list[tuple[str, str]]:
    """Return names and values of the headline figures."""
    measured = run.measured
    if measured is None:
        loss = run.epochs[-1].get("train/loss") if run.epochs else None
        return [("train loss", f"{loss:.4f}")] if loss is not None else []
    return [
        ("top-1", percent(measured.top1)),
        ("top-5", percent(measured.top5)),
        ("loss, nats", f"{measured.loss:.4f}"),
    ]


def _run_row(run: Run, colour: int) -> Json:
    measured, evaluation = run.measured, run.evaluations.get(run.split, {})
    seconds = run.seconds
    done = int(run.epochs[-1]["epoch"]) if run.epochs else 0
    return {
        "name": run.name,
        "colour": colour,
        "seed": run.seed,
        "status": run.status.get("status", "unknown"),
        "epochs": f"{done} of {run.recipe.get('epochs')}",
        "measured": f"{run.split}, epoch {measured.epoch}" if measured else "-",
        "top1": percent(measured.top1) if measured else "-",
        "top5": percent(measured.top5) if measured else "-",
        "loss": f"{measured.loss:.4f}" if measured else "-",
        "superclass": percent_of(evaluation.get("superclass_top1")),
        "ece": percent_of(evaluation.get("ece")),
        "time": duration(seconds) if seconds is not None else "-",
    }


def _group_row(group: Group) -> Json:
    if group.summary is None:
        return {"name": group.name, "why_not": group.why_not}
    count = len(group.summary.runs)
    left_out = len(group.runs) - count
    return {
        "name": group.name,
        "why_not": None,
        "seeds": f"{count}" + (f" ({left_out} not finished)" if left_out else ""),
        "top1": group.summary.top1.percent,
        "top5": group.summary.top5.percent,
        "loss": group.summary.loss.plain,
        "conditions": group.summary.conditions,
    }


def _colour(run: Run, groups: list[Group]) -> int:
    """Return the colour number of a run: that of its recipe if there are several recipes, else its own."""
    if len(groups) == 1:
        return groups[0].runs.index(run) % NUM_COLOURS
    return next(number for number, group in enumerate(groups) if run in group.runs) % NUM_COLOURS


def _recipe_rows(group: Group) -> list[tuple[str, str]]:
    recipe = published(group.runs[0].recipe) | {"seed": ", ".join(str(run.seed) for run in group.runs)}
    return [(name, as_written(value)) for name, value in recipe.items() if name not in ("type", "images")]


def _environments(runs: Sequence[Run]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Return each distinct environment with the names of its runs."""
    found: dict[str, list[Run]] = {}
    for run in runs:
        found.setdefault(repr(run.environment), []).append(run)
    return [
        (
            ", ".join(run.name for run in members),
            [
                (name.removeprefix("versions."), as_written(value))
                for name, value in flatten(members[0].environment).items()
            ],
        )
        for members in found.values()
        if members[0].environment
    ]
