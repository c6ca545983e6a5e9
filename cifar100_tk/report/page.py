"""The report's page: what it says in which order, and the folder it is written to."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, final

import jinja2
import PIL.Image
from markupsafe import Markup

from cifar100_tk import __version__, atomic, results
from cifar100_tk.errors import CifarError, ConfigError, DiskError
from cifar100_tk.evaluation import Predictions
from cifar100_tk.json_files import Json
from cifar100_tk.progress import duration, percent
from cifar100_tk.recipe import flatten
from cifar100_tk.report import figures, numbers
from cifar100_tk.report.figures import NUM_COLOURS, PRINTED, WEB, Panel, spaced
from cifar100_tk.report.sheet import mistakes_sheet
from cifar100_tk.results import MARKDOWN_HEAD, Run, Summary

PAGE: Final = "report.html"
PICTURES: Final = ("curves.png", "confusion.png", "reliability.png", "mistakes.png")
MARK: Final = '<meta name="generator" content="cifar100_tk.report">'
"""Stands in every report, and tells a report from a folder that is somebody else's."""


@final
@dataclass
class Report:
    """What goes into the page and beside it."""

    facts: dict[str, Any] = field(default_factory=dict)
    """What the template reads."""
    files: dict[str, bytes] = field(default_factory=dict)
    """The pictures beside the page."""
    notes: list[str] = field(default_factory=list)
    """A sentence for each thing that the page does without."""


@final
@dataclass(frozen=True)
class Group:
    """Runs that differ in their seed alone."""

    name: str
    runs: tuple[Run, ...]
    summary: Summary | None
    why_not: str | None
    """Why there is no summary."""


def write(paths: list[Path], to: Path) -> Path:
    """Write the report of run folders into a folder. See `cifar100_tk.report.build`."""
    if len({path.resolve() for path in paths}) < len(paths):
        raise ConfigError("the same run folder is given twice; name each run once.")
    runs = [results.read(path) for path in paths]
    _check_target(to)
    report = Report(notes=[_of(run, runs) + complaint for run in runs for complaint in run.complaints])
    groups = grouped(runs)
    report.facts |= {"mark": Markup(MARK), "version": __version__, "notes": report.notes}
    _add_runs(report, runs, groups)
    _add_curves(report, runs, groups)
    if len(runs) == 1:
        _add_evaluation(report, runs[0])
    page = _template().render(report.facts)
    _write_files(to, {PAGE: page.encode(), **report.files})
    return to / PAGE


def grouped(runs: Sequence[Run]) -> list[Group]:
    """Sort runs into those of one recipe, and sum up the finished ones of each."""
    found: dict[str, list[Run]] = {}
    for run in runs:
        found.setdefault(repr(sorted(results.recipe_of(run).items())), []).append(run)
    names = [results.common_name([run.path for run in members]) for members in found.values()]
    groups = []
    for number, (name, members) in enumerate(zip(names, found.values(), strict=True)):
        name = name if names.count(name) == 1 else f"{name} ({number + 1})"
        finished = [run for run in members if run.finished]
        summary, why_not = None, None if finished else "no run of it is finished"
        try:
            summary = results.summary(finished, name) if finished else None
        except CifarError as error:
            why_not = str(error)
        groups.append(Group(name, tuple(members), summary, why_not))
    return groups


def _add_runs(report: Report, runs: list[Run], groups: list[Group]) -> None:
    """Add the results, recipes and environments."""
    alone = runs[0] if len(runs) == 1 else None
    different = results.differences([group.runs[0] for group in groups])
    rows = [group.summary.markdown_row for group in groups if group.summary]
    report.facts |= {
        "title": alone.name if alone else " and ".join(dict.fromkeys(group.name for group in groups)),
        "alone": alone is not None,
        "kind": _kind(alone) if alone else f"{len(runs)} training runs",
        "lead": _lead(alone) if alone else _lead_of_several(runs, groups),
        "tiles": _tiles(alone) if alone else [],
        "runs": [_run_row(run, _colour(run, groups)) for run in runs],
        "groups": [_group_row(group) for group in groups],
        "group_names": [group.name for group in groups],
        "different": {name: [_spoken(value) for value in values] for name, values in different.items()},
        "markdown": "\n".join([MARKDOWN_HEAD, *rows]) if rows else None,
        "recipes": [(group.name, _recipe_rows(group)) for group in groups],
        "environments": _environments(runs),
    }


def _kind(run: Run) -> str:
    name = flatten(run.recipe).get("model.name")
    return f"Training run of {name}" if isinstance(name, str) else "Training run"


def _lead(run: Run) -> str:
    """Say in one sentence how the run stands and what its figures are of."""
    measured, epochs = run.measured, run.recipe.get("epochs")
    if run.finished and measured is not None:
        return results.summary([run]).conditions
    done = int(run.epochs[-1]["epoch"]) if run.epochs else 0
    state = str(run.status.get("status", "of unknown state"))
    reason = f" ({run.status['reason']})" if "reason" in run.status else ""
    so_far = f"{state}{reason}: {done} of {epochs} epochs so far, seed {run.seed}"
    where = results.hardware_of([run])
    what = (
        f"measured after epoch {measured.epoch} on {results.pictures_of(run)}" if measured else "nothing measured yet"
    )
    return "; ".join(filter(None, [so_far, what, where]))


def _lead_of_several(runs: list[Run], groups: list[Group]) -> str:
    if len(groups) == 1:
        return f"{len(runs)} runs of one recipe, with seeds {', '.join(str(run.seed) for run in runs)}"
    return (
        f"{len(runs)} runs of {len(groups)} recipes; a mean is taken over the seeds of one recipe, never over recipes"
    )


def _tiles(run: Run) -> list[tuple[str, str]]:
    """Return names and values of the figures at the top."""
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
        "superclass": _percent(evaluation.get("superclass_top1")),
        "ece": _percent(evaluation.get("ece")),
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
    """Return the number of a run's colour: its recipe's where there are several, else its own."""
    if len(groups) == 1:
        return groups[0].runs.index(run) % NUM_COLOURS
    return next(number for number, group in enumerate(groups) if run in group.runs) % NUM_COLOURS


def _recipe_rows(group: Group) -> list[tuple[str, str]]:
    recipe = group.runs[0].recipe | {"seed": ", ".join(str(run.seed) for run in group.runs)}
    return [(name, _spoken(value)) for name, value in recipe.items() if name not in ("type", "pictures")]


def _spoken(value: Any) -> str:
    """Return a part of a recipe as a recipe file writes it.

    >>> _spoken({"type": "SGD", "lr": 0.1, "nesterov": True})
    'SGD(lr=0.1, nesterov=True)'
    >>> _spoken([{"type": "Flip", "p": 0.5}, None])
    'Flip(p=0.5), None'
    """
    if isinstance(value, dict):
        inner = ", ".join(f"{name}={_spoken(held)}" for name, held in value.items() if name != "type")
        return f"{value.get('type', '')}({inner})"
    if isinstance(value, list):
        text = ", ".join(map(_spoken, value))
        return text if any(isinstance(held, dict) for held in value) else f"({text})"
    return value if isinstance(value, str) else repr(value)


def _environments(runs: Sequence[Run]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Return each environment once, with the names of the runs that it is of."""
    found: dict[str, list[Run]] = {}
    for run in runs:
        found.setdefault(repr(run.environment), []).append(run)
    return [
        (
            ", ".join(run.name for run in members),
            [
                (name.removeprefix("versions."), _spoken(value))
                for name, value in flatten(members[0].environment).items()
            ],
        )
        for members in found.values()
        if members[0].environment
    ]


def _add_curves(report: Report, runs: list[Run], groups: list[Group]) -> None:
    """Add the plots of what was noted each epoch."""
    panels = numbers.panels(runs, [_colour(run, groups) for run in runs])
    if runs and not any("seconds" in line for run in runs for line in run.epochs) and panels:
        report.notes.append("metrics.jsonl notes no times, so there are no curves against time.")
    if len(runs) > 1:
        of_recipes = [(group.name, number) for number, group in enumerate(groups)]
        legend = of_recipes if len(groups) > 1 else [(run.name, _colour(run, groups)) for run in runs]
    else:
        legend = []
    report.facts["legend"] = [(name, colour % NUM_COLOURS) for name, colour in legend]
    report.facts["curves"] = [
        {"title": _title(panel), "svg": _svg(figures.curves(panel, WEB), f"curve{number}", _title(panel))}
        for number, panel in enumerate(panels)
    ]
    if panels:
        report.files["curves.png"] = figures.png(figures.all_curves(panels, legend, PRINTED))


def _title(panel: Panel) -> str:
    name = panel.y_label.split(",")[0].capitalize()
    return f"{name} against {'epochs' if panel.x_label == 'epoch' else 'time'}"


def _add_evaluation(report: Report, run: Run) -> None:
    """Add what the saved model says of each picture, as far as that can be had."""
    try:
        if any((run.path / "evaluation").glob("[!.]*.json")):
            result, predictions = numbers.evaluated(run)
        elif run.finished:
            print(f"{run.path} holds no evaluation; its model is measured now", flush=True)
            result, predictions = numbers.measure(run)
            report.notes.append(
                f"The run folder held no evaluation; the model was measured for this report ({result['precision']})."
            )
        else:
            report.notes.append("The run has not ended, so its mistakes are not known yet.")
            return
    except CifarError as error:
        report.notes.append(f"There is no evaluation to show: {error}")
        return
    if result["split"] != run.split:
        report.notes.append(f"Training watched {run.split}; the figures here are of evaluation/{result['split']}.json.")
    report.facts["tiles"] = _evaluation_tiles(run, result)
    report.facts["evaluation"] = result | {"names": [spaced(one["name"]) for one in result["classes"]]}
    _add_confusion(report, result)
    _add_reliability(report, result, predictions)
    _add_classes(report, result)
    _add_mistakes(report, run, result, predictions)


def _evaluation_tiles(run: Run, result: Json) -> list[tuple[str, str]]:
    scaled = result["ece_scaled"]
    last = (
        ("parameters", f"{result['num_parameters']:,}")
        if scaled is None
        else ("ECE after temperature", percent(scaled))
    )
    return [
        ("top-1", percent(result["top1"])),
        ("top-5", percent(result["top5"])),
        ("loss, nats", "-" if result["loss"] is None else f"{result['loss']:.4f}"),
        ("trained in", "-" if run.seconds is None else duration(run.seconds)),
        ("super-class top-1", percent(result["superclass_top1"])),
        ("errors inside the super-class", _percent(result["errors_in_superclass"])),
        ("calibration error (ECE)", _percent(result["ece"])),
        last,
    ]


def _add_confusion(report: Report, result: Json) -> None:
    shares, blocks = numbers.by_superclass(result)
    about = (
        f"Confusion matrix of {len(shares)} classes in the order of their {len(blocks)} super-classes; the pairs confused most "
        "are listed below"
    )
    report.facts["confusion"] = {
        "wide": _svg(figures.confusion(shares, blocks, WEB, named=True), "confusion-wide", about),
        "narrow": _svg(figures.confusion(shares, blocks, WEB, named=False), "confusion-narrow", about),
        "superclasses": [spaced(name) for name, _ in blocks],
        "pairs": _pairs(result),
    }
    report.files["confusion.png"] = figures.png(figures.confusion(shares, blocks, PRINTED, named=True))


def _pairs(result: Json) -> list[Json]:
    """Return the pairs confused most, with the pictures of the true class and whether both are of one super-class."""
    classes = {one["name"]: one for one in result["classes"]}
    pairs = []
    for pair in result["most_confused"]:
        true, guess = classes.get(pair["true"], {}), classes.get(pair["predicted"], {})
        same = true.get("superclass") == guess.get("superclass")
        pairs.append(pair | {"of": true.get("num_images", "?"), "superclass": same})
    return pairs


def _add_reliability(report: Report, result: Json, predictions: Predictions) -> None:
    temperature = result["temperature"]
    before = numbers.reliability_bins(predictions.logits, predictions.labels)
    after = numbers.reliability_bins(predictions.logits, predictions.labels, temperature) if temperature else None
    about = "Reliability diagram: how often guesses are right against how probable the network says they are"
    report.facts["reliability"] = _svg(figures.reliability(before, after, WEB), "reliability", about)
    report.files["reliability.png"] = figures.png(figures.reliability(before, after, PRINTED))


def _add_classes(report: Report, result: Json) -> None:
    known = [one for one in result["classes"] if one["accuracy"] is not None]
    report.facts["classes"] = [
        {
            "name": spaced(one["name"]),
            "superclass": spaced(one["superclass"]),
            "accuracy": f"{100 * one['accuracy']:.0f} %",
            "width": f"{100 * one['accuracy']:.1f}",
            "precision": _percent(one["precision"]),
        }
        for one in sorted(known, key=lambda one: (one["accuracy"], one["name"]))
    ]
    if left_out := len(result["classes"]) - len(known):
        report.notes.append(f"{left_out} classes have no picture in what was measured, and so no accuracy.")


def _add_mistakes(report: Report, run: Run, result: Json, predictions: Predictions) -> None:
    found = numbers.most_confident_mistakes(predictions)
    names = [spaced(one["name"]) for one in result["classes"]]
    try:
        shown: list[PIL.Image.Image] | list[None] = list(numbers.pictures(run, result["split"], found))
    except CifarError as error:
        report.notes.append(f"The pictures of the mistakes cannot be shown: {error}")
        shown = [None] * len(found)
    report.facts["mistakes"] = [
        {
            "picture": None if picture is None else Markup(_data_uri(picture)),
            "row": one.row,
            "true": names[one.true],
            "guess": names[one.guess],
            "p_true": _probability(one.p_true),
            "p_guess": _probability(one.p_guess),
        }
        for one, picture in zip(found, shown, strict=True)
    ]
    captions = [
        (f"{_probability(one.p_guess)} {names[one.guess]}", f"{_probability(one.p_true)} is {names[one.true]}")
        for one in found
    ]
    drawn = [picture for picture in shown if picture is not None]
    if drawn:
        report.files["mistakes.png"] = mistakes_sheet(drawn, captions)


def _probability(p: float) -> str:
    """Return a probability in percent; what would be rounded to all or nothing says so.

    >>> _probability(0.98765), _probability(0.99999), _probability(0.00001)
    ('98.8 %', '> 99.9 %', '< 0.1 %')
    """
    return "> 99.9 %" if 0.9995 <= p < 1 else "< 0.1 %" if 0 < p < 0.0005 else f"{100 * p:.1f} %"


def _percent(fraction: Any) -> str:
    return percent(fraction) if isinstance(fraction, int | float) else "-"


def _of(run: Run, runs: Sequence[Run]) -> str:
    return f"{run.name}: " if len(runs) > 1 else ""


def _svg(figure: Any, name: str, about: str) -> Markup:
    return Markup(figures.svg(figure, name, about))


def _data_uri(picture: PIL.Image.Image) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("cifar100_tk.report", "templates"),
        autoescape=True,  # Names and values come from files that a stranger may have written.
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "spaced": spaced,
        "share": lambda part: _percent(part).replace(" ", "\u00a0"),
        "thousands": "{:,}".format,
    }
    return environment.get_template(PAGE)


def _check_target(to: Path) -> None:
    """Refuse a folder that holds anything but an older report."""
    if to.exists() and not to.is_dir():
        raise ConfigError(f"{to} is a file; give --to a folder.")
    if not to.is_dir() or _is_report(to / PAGE):
        return
    strangers = sorted(path.name for path in to.iterdir() if not path.name.startswith(atomic.TEMPORARY))
    if strangers:
        raise ConfigError(f"{to} holds no report but {strangers[0]}, and is left as it is; give --to another folder.")


def _is_report(page: Path) -> bool:
    try:
        with page.open("rb") as file:
            return MARK.encode() in file.read(1000)
    except OSError:
        return False


def _write_files(to: Path, files: dict[str, bytes]) -> None:
    try:
        atomic.make_folder(to)
        for name in PICTURES:
            if name not in files:  # A picture of the report before would not be this one's.
                (to / name).unlink(missing_ok=True)
        for name, content in files.items():
            atomic.write_file(to / name, content)
    except DiskError as error:
        raise DiskError(str(error).replace("--output-dir", "--to")) from error
    except OSError as error:
        raise atomic.disk_error(error, to, 0) from error
