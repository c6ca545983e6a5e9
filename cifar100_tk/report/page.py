"""Assembles the report page."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

import jinja2
from markupsafe import Markup

from cifar100_tk import __version__
from cifar100_tk.data.labels import display_name
from cifar100_tk.errors import ConfigError
from cifar100_tk.report import folder
from cifar100_tk.report.comparison import add_class_comparison
from cifar100_tk.report.contents import Report, percent_of, unbroken
from cifar100_tk.report.evaluation import add_evaluation
from cifar100_tk.report.folder import MARK, PAGE
from cifar100_tk.report.runs import add_curves, add_runs, grouped
from cifar100_tk.runs import summary as run_summary
from cifar100_tk.runs.summary import Run


def write(paths: list[Path], to: Path) -> Path:
    """Write the report of run folders into a folder. See `cifar100_tk.report.build`."""
    if len({path.resolve() for path in paths}) < len(paths):
        raise ConfigError("the same run folder is given twice; pass each run once.")
    runs = [run_summary.read(path) for path in paths]
    folder.check(to)
    report = Report(notes=[_of(run, runs) + complaint for run in runs for complaint in run.complaints])
    groups = grouped(runs)
    report.facts |= {"mark": Markup(MARK), "version": __version__, "notes": report.notes, **_script()}
    add_runs(report, runs, groups)
    add_curves(report, runs, groups)
    if len(runs) == 1:
        add_evaluation(report, runs[0])
    elif len(runs) == 2:
        add_class_comparison(
            report, runs, [group.name for group in groups] if len(groups) > 1 else [run.name for run in runs]
        )
    page = _template().render(report.facts)
    folder.write(to, {PAGE: page.encode(), **report.files})
    return to / PAGE


def _script() -> dict[str, Markup]:
    """Return the page's script and its digest, by which the page allows this one and no other."""
    code = (resources.files("cifar100_tk.report") / "templates" / "report.js").read_text()
    digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
    return {"script": Markup(code), "script_digest": Markup(f"sha256-{digest}")}


def _of(run: Run, runs: Sequence[Run]) -> str:
    return f"{run.name}: " if len(runs) > 1 else ""


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("cifar100_tk.report", "templates"),
        autoescape=True,  # Names and values come from files that may be untrusted.
        undefined=jinja2.StrictUndefined,
        finalize=unbroken,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"spaced": display_name, "share": percent_of, "thousands": "{:,}".format}
    return environment.get_template(PAGE)
