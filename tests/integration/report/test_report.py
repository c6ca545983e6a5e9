"""The report shows what the files of runs say, in one page that needs nothing else, whatever state the runs are in."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import html.parser
import io
import itertools
import json
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import matplotlib.axis
import matplotlib.text
import numpy as np
import PIL.Image
import pytest
import torch
from commands import Refusal, exit_code, refusals
from matplotlib.figure import Figure
from runs import SHAPES
from written_runs import folder

from cifar100_tk import report
from cifar100_tk.errors import ConfigError, DataError
from cifar100_tk.evaluation import files as evaluation_files
from cifar100_tk.evaluation.predictions import Predictions
from cifar100_tk.evaluation.scores import Scores, calibration_error
from cifar100_tk.report import figures, numbers
from cifar100_tk.report.__main__ import main
from cifar100_tk.runs import summary as run_summary

pytestmark = pytest.mark.usefixtures("on_cpu")

SCRIPT = "<script>alert('x')</script>"


class Page(html.parser.HTMLParser):
    """A page, taken apart."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self.feed(content)
        self.text = " ".join(self.text.split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_data(self, data: str) -> None:
        self.text += data + " "

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.tags if name == tag]


def page(path: Path) -> Page:
    return Page(path.read_text())


@pytest.fixture
def copied(finished_run: Path, tmp_path: Path) -> Path:
    """The same run, to be damaged."""
    return shutil.copytree(finished_run, tmp_path / "net")


def change(file: Path, **changes: Any) -> None:
    """Replace values of a JSON object."""
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_the_report_of_a_finished_run_is_one_page_that_needs_nothing_else(
    finished_run: Path, built_report: Path
) -> None:
    shown, result = page(built_report), json.loads((finished_run / "evaluation" / "test.json").read_text())
    for name in ("top1", "top5", "superclass_top1", "ece"):
        assert f"{100 * result[name]:.2f} %" in shown.text, name
    assert all(one["name"].replace("_", " ") in shown.text for one in result["classes"])
    for title in ("Curves", "Confusions", "Calibration", "Accuracy by class", "Most confident mistakes", "Recipe"):
        assert title in shown.text
    assert "SGD(lr=0.2, lr_batch_size=256, weight_decay=0.0005" in shown.text and "float32" in shown.text
    # Nothing from elsewhere, and something to read for who does not see.
    assert shown.all("html")[0]["lang"] == "en"
    links = [
        attributes.get("href") or attributes.get("src") or attributes.get("xlink:href", "#")
        for _, attributes in shown.tags
    ]
    assert len(links) > 50 and all(link.startswith(("#", "data:")) for link in links)
    cells, *mistakes = shown.all("img")
    assert cells["alt"] == "" and mistakes and all(image["alt"].startswith("Image ") for image in mistakes)
    plots = [plot for plot in shown.all("svg") if "aria-hidden" not in plot]
    assert all(plot["role"] == "img" for plot in plots) and [plot["aria-label"] for plot in plots] == [
        *(f"{name} against {axis}" for axis in ("epochs", "time") for name in ("Loss", "Accuracy", "Learning rate")),
        *("Accuracy against confidence", "Images against confidence"),
    ]
    ids = [attributes["id"] for _, attributes in shown.tags if "id" in attributes]
    assert len(set(ids)) == len(ids) > 50
    assert built_report.stat().st_size < 3_000_000
    for name in ("curves.png", "confusion.png", "reliability.png", "mistakes.png"):
        with PIL.Image.open(built_report.with_name(name)) as raw_image:
            assert min(raw_image.size) > 300


def test_the_page_allows_its_own_script_and_no_other(built_report: Path) -> None:
    shown, content = page(built_report), built_report.read_text()
    [code] = re.findall(r"<script>(.*?)</script>", content, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
    [policy] = [meta["content"] for meta in shown.all("meta") if meta.get("http-equiv") == "Content-Security-Policy"]
    assert f"script-src 'sha256-{digest}'" in policy and shown.all("script") == [{}]


def test_the_confusion_matrix_holds_every_name_and_count(finished_run: Path, built_report: Path) -> None:
    result = json.loads((finished_run / "evaluation" / "test.json").read_text())
    [cells] = [attributes for attributes in page(built_report).all("div") if "data-counts" in attributes]
    names, rows = json.loads(cells["data-names"]), json.loads(cells["data-counts"])
    first = min(row["superclass"] for row in result["classes"])
    assert names[:5] == [row["name"].replace("_", " ") for row in result["classes"] if row["superclass"] == first]
    place = [row["name"].replace("_", " ") for row in result["classes"]]
    filled = {(place.index(names[r]), place.index(names[c])): n for r, row in enumerate(rows) for c, n in row}
    assert filled == {(r, c): n for r, row in enumerate(result["confusion"]) for c, n in enumerate(row) if n}


def test_numbers_stay_with_their_units(built_report: Path) -> None:
    content = re.sub(
        r"<pre.*?</pre>", "", built_report.read_text(), flags=re.DOTALL
    )  # Markdown to copy has plain spaces.
    assert re.search("\\d\N{NO-BREAK SPACE}%", content) and not re.search(r">[^<]*\d (%|s|min|h)[^\w<][^<]*<", content)


def test_the_same_run_gives_the_same_bytes(
    copied: Path, built_report: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code(main, copied) == 0
    again = copied / "report"
    assert capsys.readouterr().out == f"report written to {again / 'report.html'}\n"
    names = sorted(path.name for path in again.iterdir())
    assert names == ["confusion.png", "curves.png", "mistakes.png", "reliability.png", "report.html"]
    assert all((again / name).read_bytes() == built_report.with_name(name).read_bytes() for name in names)


def test_the_mistakes_are_the_images_of_the_data(built_report: Path) -> None:
    shown, test = page(built_report), SHAPES.open("test")
    images = [image for image in shown.all("img") if image["alt"]]
    assert len(images) == 24
    for image in images:
        row = int(image["alt"].split()[1].rstrip(","))
        content = base64.b64decode(image["src"].removeprefix("data:image/png;base64,"))
        assert np.array_equal(np.asarray(PIL.Image.open(io.BytesIO(content))), test.images[row].transpose(1, 2, 0))
        assert f"a {test.class_names[test.labels[row]].replace('_', ' ')} mistaken for" in image["alt"]


def test_mistakes_leave_out_what_is_right_and_what_is_no_number() -> None:
    logits = torch.tensor([[9.0, 0.0], [math.nan, 9.0], [3.0, 0.0], [5.0, 0.0], [0.0, 4.0]])
    found = numbers.most_confident_mistakes(Predictions(logits, torch.tensor([0, 1, 1, 1, 0]), torch.arange(5)))
    assert [(one.row, one.true, one.guess) for one in found] == [(3, 1, 0), (4, 0, 1), (2, 1, 0)]
    assert found[0].p_guess == pytest.approx(1 / (1 + math.exp(-5))) and found[0].p_true == pytest.approx(
        1 - found[0].p_guess
    )


@pytest.mark.parametrize("temperature", [1.0, 1.7])
def test_the_reliability_diagram_adds_up_to_the_calibration_error(temperature: float) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 4 * torch.randn(500, 10, generator=generator)
    labels = torch.where(
        torch.rand(500, generator=generator) < 0.6, logits.argmax(1), torch.zeros(500, dtype=torch.int64)
    )
    logits[0] = torch.tensor([200.0, *[0.0] * 9])  # A probability of 1 is in the last bin.
    bins = numbers.reliability_bins(logits, labels, temperature)
    error = np.nansum(bins.shares * np.abs(bins.accuracy - bins.confidence))
    assert error == pytest.approx(calibration_error(logits.double() / temperature, labels), abs=1e-6)
    assert bins.shares.sum() == pytest.approx(1) and np.isfinite(bins.accuracy).any()


def test_text_of_files_is_text(copied: Path, tmp_path: Path) -> None:
    recipe = json.loads((copied / "recipe.json").read_text())
    changes = {"data": recipe["data"] | {"source": SCRIPT}, "model": recipe["model"] | {"name": SCRIPT, SCRIPT: 1}}
    change(copied / "recipe.json", **changes, **{SCRIPT: SCRIPT})
    change(copied / "environment.json", device=SCRIPT, **{SCRIPT: [SCRIPT]})
    result = json.loads((copied / "evaluation" / "test.json").read_text())
    renamed, groups = {}, sorted({one["superclass"] for one in result["classes"]})
    for number, one in enumerate(result["classes"]):
        renamed[one["name"]] = f'{SCRIPT}" onload="x{number}'
        one["name"], one["superclass"] = renamed[one["name"]], f"$\\frac{SCRIPT}{groups.index(one['superclass']):02}"
    pairs = [pair | {key: renamed[pair[key]] for key in ("true", "predicted")} for pair in result["most_confused"]]
    scaled = {"temperature": 0.5, "temperature_fitted_on": SCRIPT, "ece_scaled": 0.0123, "loss_scaled": 4.0}
    hostile = {"classes": result["classes"], "most_confused": pairs, "images": SCRIPT}
    change(copied / "evaluation" / "test.json", **scaled, **hostile)
    moved = copied.rename(tmp_path / "a<script>b")
    shown = page(report.build([moved], tmp_path / "to"))
    assert shown.all("script") == [{}] and not any("onload" in attributes for _, attributes in shown.tags)
    assert shown.text.count(SCRIPT) > 100 and "a<script>b" in shown.text
    # A temperature is shown where one was fitted.
    assert (
        "ECE after temperature 1.23 %" in shown.text
        and f"Dividing the logits by 0.500, fitted on {SCRIPT}" in shown.text
    )
    # What cannot be had is said, and the rest is shown.
    assert "The images of the mistakes are not shown: " in shown.text
    assert len(shown.all("img")) == 1 and "Most confident mistakes" in shown.text and "Accuracy by class" in shown.text
    # Beside another run, names are in tables and in the legends of plots.
    other = folder(tmp_path / "$x^$<script>")
    beside = page(report.build([moved, other], tmp_path / "both"))
    assert beside.all("script") == [{}] and beside.text.count("$x^$<script>") > 2


def test_a_run_that_has_not_ended_shows_what_there_is(tmp_path: Path) -> None:
    path = folder(tmp_path / "net", status="failed", epochs=30)
    change(path / "run_status.json", reason="the loss is not finite")
    shown = page(report.build([path], tmp_path / "to"))
    assert "failed (the loss is not finite): 2 of 30 epochs so far, seed 0; measured after epoch 2" in shown.text
    assert "The run is not finished, so there is no evaluation yet." in shown.text
    assert "no curves against time" in shown.text and len(shown.all("svg")) == 2
    assert sorted(file.name for file in (tmp_path / "to").iterdir()) == ["curves.png", "report.html"]


@pytest.mark.parametrize(
    ("lines", "plots", "said"),
    [
        ([], 0, "No epoch has finished yet."),
        (['{"epoch": 1, "step": 5, "seconds": 2.5, "train/loss": 4.25}'], 2, "4.2500"),
        (
            ['{"epoch": 1, "step": 5, "seconds": NaN, "train/loss": NaN, "test/top1": Infinity}', "{"],
            0,
            "Line 2 of metrics.jsonl is damaged",
        ),
        (None, 0, "There is no metrics.jsonl, for no epoch has been reported yet."),
    ],
    ids=["nothing", "loss alone", "not a number", "no file"],
)
def test_curves_are_of_what_was_noted(tmp_path: Path, lines: list[str] | None, plots: int, said: str) -> None:
    path = folder(tmp_path / "net", status="running")
    (path / "metrics.jsonl").unlink()
    if lines is not None:
        (path / "metrics.jsonl").write_text("".join(f"{line}\n" for line in lines))
    shown = page(report.build([path], tmp_path / "to"))
    assert said in shown.text
    assert len(shown.all("svg")) == plots


def test_a_finished_run_without_its_metrics_is_not_said_to_go_on(copied: Path, tmp_path: Path) -> None:
    result = json.loads((copied / "evaluation" / "test.json").read_text())
    (copied / "metrics.jsonl").unlink()
    shown = page(report.build([copied], tmp_path / "to"))
    assert "finished, seed 0; no test/top1 in metrics.jsonl; " in shown.text and "so far" not in shown.text
    assert "There is no metrics.jsonl, though the run has finished: what its epochs measured is lost." in shown.text
    assert f"top-1 {100 * result['top1']:.2f} %" in shown.text and "Curves" not in shown.text


def test_a_finished_run_without_an_evaluation_is_measured(finished_run: Path, copied: Path, tmp_path: Path) -> None:
    shutil.rmtree(copied / "evaluation")
    before = sorted(copied.rglob("*"))
    shown = page(report.build([copied], tmp_path / "to"))
    result = json.loads((finished_run / "evaluation" / "test.json").read_text())
    assert "The run folder had no evaluation; the model was evaluated for this report (float32)." in shown.text
    assert f"top-1 {100 * result['top1']:.2f} %" in shown.text and f"{100 * result['ece']:.2f} %" in shown.text
    assert sorted(copied.rglob("*")) == before  # The report went elsewhere, and nothing is written into the run.


def test_images_that_are_not_those_that_were_measured_are_refused(finished_run: Path) -> None:
    test = SHAPES.open("test")
    mistakes = [numbers.Mistake(row, int(label), 0, 0.1, 0.9) for row, label in enumerate(test.labels)]
    ran = run_summary.read(finished_run)
    assert len(numbers.images(ran, "test", mistakes)) == 100
    for other in (dataclasses.replace(mistakes[5], row=100), dataclasses.replace(mistakes[5], row=6)):
        with pytest.raises(DataError, match=f"row {other.row} of test is not the image that was evaluated"):
            numbers.images(ran, "test", [*mistakes, other])


def test_an_evaluation_that_cannot_be_had_is_left_out(copied: Path, tmp_path: Path) -> None:
    (copied / "evaluation" / "test.parquet").unlink()
    shown = page(report.build([copied], tmp_path / "c"))
    assert "No evaluation is shown: " in shown.text and "test.parquet" in shown.text
    shutil.rmtree(copied / "evaluation")
    shutil.rmtree(copied / "model")
    assert "No evaluation is shown: " in page(report.build([copied], tmp_path / "d")).text


def test_seeds_are_averaged_and_recipes_are_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seeds = [folder(tmp_path / f"net-seed{seed}", top1, seed=seed) for seed, top1 in enumerate((0.40, 0.42, 0.47))]
    folder(tmp_path / "net-seed3", 0.9, seed=3, status="running")
    other = folder(tmp_path / "wide", 0.6, optimizer={"type": "SGD", "lr": 0.2})
    assert exit_code(main, *seeds, tmp_path / "net-seed3") == 0
    path = tmp_path / "report" / "report.html"
    assert capsys.readouterr().out == f"report written to {path}\n"
    shown = page(path)
    assert "43.00 ± 3.61 % 75.00 ± 0.00 %" in shown.text and "3 (1 not finished)" in shown.text
    assert "| `net` | 43.00 ± 3.61 % | 75.00 ± 0.00 % | test images (shapes100); last epoch of 2, 3 seeds" in shown.text
    assert "Differences between the recipes" not in shown.text
    shown = page(report.build([*seeds, other], tmp_path / "both"))
    assert "4 runs of 2 recipes" in shown.text and "60.00 %" in shown.text
    assert "Differences between the recipes component net wide optimizer.lr 0.1 0.2" in shown.text
    # A line that stands for a style is of no run's colour.
    loss = (tmp_path / "both" / "report.html").read_text().partition('"Loss against epochs"')[2].partition("</svg>")[0]
    legend = loss.partition('id="curve-0-0-legend_1"')[2]
    assert loss.count("var(--series-0)") > 1 and "var(--muted)" in legend and "--series" not in legend


def test_one_seed_has_no_deviation_and_curves_come_first(tmp_path: Path) -> None:
    runs = [folder(tmp_path / "a"), folder(tmp_path / "b", 0.6, optimizer={"type": "SGD", "lr": 0.2})]
    shown = page(report.build(runs, tmp_path / "to"))
    assert "standard deviation" not in shown.text and "±" not in shown.text
    sections = [attributes["id"] for attributes in shown.all("section") if "id" in attributes]
    assert sections == ["curves", "result", "differences", "recipe", "environment"]
    assert "The classes are not compared: " in shown.text  # There is no evaluation/test.json.


def test_more_than_eight_differences_are_folded(tmp_path: Path) -> None:
    one: dict[str, Any] = {f"number{place}": 1 for place in range(10)}
    two: dict[str, Any] = dict.fromkeys(one, 2)
    runs = [folder(tmp_path / "a", **one), folder(tmp_path / "b", **two)]
    content = report.build(runs, tmp_path / "to").read_text()
    shown, folded = content[content.index('id="differences"') :].split("<summary>2 more</summary>")
    assert "number7" in shown and "number8" not in shown and "number9" in folded


def test_two_runs_are_compared_class_by_class(finished_run: Path, copied: Path, tmp_path: Path) -> None:
    # The other run is right on the first image of the first class that the one is wrong about; nothing else differs.
    result, predictions = evaluation_files.read(copied / "evaluation", "test")
    wrong = int((predictions.logits.argmax(1) != predictions.labels).nonzero()[0])
    label = int(predictions.labels[wrong])
    logits = predictions.logits.clone()
    logits[wrong, label] = logits.max() + 1
    predictions = dataclasses.replace(predictions, logits=logits)
    names = [row["name"] for row in result["classes"]]
    scores = Scores.of(logits, predictions.labels, names, (), ()).to_json()
    evaluation_files.write(copied / "evaluation", "test", result | scores, predictions)
    shown = page(report.build([finished_run, copied.rename(tmp_path / "other")], tmp_path / "to"))
    assert "on test: better in 1 of 100 classes, worse in 0. Of the 100 images, 0 are right only in net" in shown.text
    assert "and 1 only in other." in shown.text
    change = f"{names[label].replace('_', ' ')} 0 → 100 % +100"  # Each class has one image.
    assert shown.text.index(change) < shown.text.index("The other 88 classes")


@pytest.mark.parametrize("source", ["/home/somebody/images", "."])
def test_of_a_local_copy_the_folders_it_lay_in_are_not_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    (tmp_path / "somebody" / "images").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "somebody" / "images")
    data = {"type": "Cifar100", "source": source, "holdout": 0}
    images = {"test": {"sha256": "ab", "sentence": "these are the CIFAR-100 test images"}}
    runs = [folder(tmp_path / name, data=data, images=images, seed=seed) for seed, name in enumerate("ab")]
    for given in (runs[:1], runs):
        shown = report.build(given, tmp_path / "to").read_text()
        assert "Cifar100(source=images, holdout=0)" in shown and "somebody" not in shown


def test_the_same_seed_twice_is_overlaid_and_not_averaged(tmp_path: Path) -> None:
    shown = page(report.build([folder(tmp_path / "a"), folder(tmp_path / "b")], tmp_path / "to"))
    assert "2 runs have only 1 different seeds" in shown.text and "±" not in shown.text


def test_many_runs_share_one_legend(tmp_path: Path) -> None:
    paths = [folder(tmp_path / f"net-seed{seed}", seed=seed) for seed in range(11)]
    shown = page(report.build(paths, tmp_path / "to"))
    swatches = [
        attributes["class"] for attributes in shown.all("span") if attributes.get("class", "").startswith("swatch")
    ]
    assert len(swatches) == 22 and set(swatches) == {f"swatch s{number}" for number in range(8)}


@refusals(
    ([], 2, "RUN"),
    (["no/such/run"], 2, "no/such/run does not exist; give a folder that training wrote"),
    (["EMPTY"], 2, "is not a run folder: it holds no recipe.json; give a folder that training wrote"),
    (
        ["SEEDS"],
        2,
        "deep is not a run folder: it holds no recipe.json; give a run inside it, such as .*/deep/run\\.",
    ),
    (["RUN", "RUN"], 2, "the same run folder is given twice"),
    (
        ["RUN", "--to", "RUN"],
        2,
        "is not a report folder: it contains environment.json; pass another folder to --to",
    ),
    (["RUN", "--to", "RUN/recipe.json"], 2, "recipe.json is a file; pass a folder to --to"),
    (["RUN", "DEEP"], 2, "the 2 runs are in 2 different folders; choose the output folder with --to"),
    (["RUN", "--to", "/proc/report"], 5, "cannot write /proc/report"),
)
def test_what_cannot_be_done_ends_with_a_sentence_and_its_code(
    refusal: Refusal, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {"RUN": folder(tmp_path / "run"), "DEEP": folder(tmp_path / "deep" / "run"), "EMPTY": tmp_path / "empty"}
    places |= {"SEEDS": tmp_path / "deep"}
    places["EMPTY"].mkdir()
    before = sorted(tmp_path.rglob("*"))
    refusal.check(capsys, main, **places)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_report_is_replaced_and_its_stale_images_go(tmp_path: Path) -> None:
    to = tmp_path / "to"
    report.build([folder(tmp_path / "net")], to)
    (to / "mistakes.png").write_bytes(b"of the report before")
    (to / "notes.txt").write_text("mine")
    report.build([folder(tmp_path / "other")], to)
    assert sorted(path.name for path in to.iterdir()) == ["curves.png", "notes.txt", "report.html"]
    (to / "report.html").write_text("my own page")
    with pytest.raises(ConfigError, match="is not a report folder: it contains"):
        report.build([tmp_path / "other"], to)
    assert (to / "report.html").read_text() == "my own page"


def test_without_matplotlib_the_report_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("page", "comparison", "curves", "evaluation", "figures", "numbers", "runs"):
        monkeypatch.delitem(sys.modules, f"cifar100_tk.report.{name}")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert exit_code(main, folder(tmp_path / "net")) == 2
    assert 'the report needs matplotlib; install it with: pip install -e ".[report]"' in capsys.readouterr().err


def test_help_loads_nothing_heavy() -> None:
    heavy = "{'torch', 'matplotlib', 'datasets', 'jinja2', 'numpy', 'PIL'}"
    program = f"import sys, cifar100_tk.report.__main__; print(sorted({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout == "[]\n"


def texts(figure: Figure) -> list[tuple[str, Any]]:
    """Return every text that a figure shows, with its box in pixels."""
    figure.draw_without_rendering()
    axes = figure.findobj(matplotlib.axis.Axis)
    ticks = [(tick, sorted(axis.get_view_interval())) for axis in axes for tick in axis.get_major_ticks()]
    # Ticks beyond the ends of an axis exist and are not drawn.
    beyond = {
        label
        for tick, (low, high) in ticks
        if not low <= tick.get_loc() <= high
        for label in (tick.label1, tick.label2)
    }
    shown = [text for text in figure.findobj(matplotlib.text.Text) if text.get_visible() and text not in beyond]
    return [(text.get_text(), text.get_window_extent()) for text in dict.fromkeys(shown) if text.get_text().strip()]


def sample_panel(points: int) -> figures.Panel:
    x = np.arange(1.0, points + 1)
    lines = [
        figures.Line(x, 4.6 / x, number, "-", label)
        for number, label in enumerate(("top-1", "top-5", "top-1, raw weights"))
    ]
    return figures.Panel("Accuracy", "epochs", "epoch", "accuracy, %", tuple(lines), (0, points))


LEGEND = [(f"resnet50_cifar-seed{number}" * 4, number) for number in range(7)]
RATE = figures.Line(np.arange(5.0), np.arange(5.0) / 10_000, 0)
RATES = figures.Panel("Learning rate", "epochs", "epoch", "learning rate", (RATE,), (0, 4))
BINS = numbers.Bins(np.full(15, 1 / 15), np.linspace(0.03, 0.97, 15), np.linspace(0.1, 0.9, 15))


@pytest.mark.parametrize(
    ("figure", "least"),
    [
        (lambda: figures.plot(sample_panel(1), figures.WEB), 6),
        (lambda: figures.plot(sample_panel(200), figures.WEB), 12),
        (lambda: figures.plot(RATES, figures.WEB), 12),
        (lambda: figures.row([sample_panel(200)] * 3, LEGEND, figures.PRINTED), 40),
        (lambda: figures.plot(numbers.reliability_panels(BINS, BINS)[0], figures.WEB), 15),
        (lambda: figures.row(numbers.reliability_panels(BINS, BINS), [], figures.PRINTED), 25),
    ],
    ids=["one epoch", "200 epochs", "small numbers", "all curves", "reliability", "reliability, printed"],
)  # fmt: skip
def test_no_labels_overlap(figure: Any, least: int) -> None:
    drawn = figure()
    found, figure_box = texts(drawn), drawn.bbox
    assert len(found) >= least
    for text, box in found:
        assert figure_box.padded(1).fully_contains(*box.min) and figure_box.padded(1).fully_contains(*box.max), (
            f"{text!r} is cut"
        )
    for (one, box), (other, other_box) in itertools.combinations(found, 2):
        assert not box.padded(-0.5).overlaps(other_box.padded(-0.5)), f"{one!r} and {other!r} overlap"
