"""Report sections about an evaluation: confusions, calibration, per-class accuracy and the most confident mistakes."""

from __future__ import annotations

import base64
import io

import PIL.Image
from markupsafe import Markup

from cifar100_tk.data import contact_sheet
from cifar100_tk.errors import CifarError
from cifar100_tk.evaluation.predictions import Predictions
from cifar100_tk.progress import duration, percent
from cifar100_tk.report import figures, numbers
from cifar100_tk.report.contents import Report, percent_of
from cifar100_tk.report.figures import PRINTED, WEB, spaced
from cifar100_tk.runs.summary import Run
from cifar100_tk.storage.json_files import Json


def add_evaluation(report: Report, run: Run) -> None:
    """Add the evaluation of the saved model if it is available."""
    try:
        if any((run.path / "evaluation").glob("[!.]*.json")):
            result, predictions = numbers.evaluated(run)
        elif run.finished:
            print(f"{run.path} has no evaluation yet; evaluating its model now", flush=True)
            result, predictions = numbers.measure_run(run)
            report.notes.append(
                f"The run folder had no evaluation; the model was evaluated for this report ({result['precision']})."
            )
        else:
            report.notes.append("The run is not finished, so there is no evaluation yet.")
            return
    except CifarError as error:
        report.notes.append(f"No evaluation is shown: {error}")
        return
    if result["split"] != run.split:
        report.notes.append(
            f"Training evaluated on {run.split}; the figures here are from evaluation/{result['split']}.json."
        )
    report.facts["tiles"] = _tiles(run, result)
    report.facts["evaluation"] = result | {"names": [spaced(row["name"]) for row in result["classes"]]}
    _add_confusion(report, result)
    _add_reliability(report, result, predictions)
    _add_classes(report, result)
    _add_mistakes(report, run, result, predictions)


def _tiles(run: Run, result: Json) -> list[tuple[str, str]]:
    scaled = result["ece_scaled"]
    last = (
        ("parameters", f"{result['num_parameters']:,}")
        if scaled is None
        else ("ECE after temperature", percent(scaled))
    )
    superclasses = [
        ("super-class top-1", percent_of(result["superclass_top1"])),
        ("errors within the super-class", percent_of(result["errors_in_superclass"])),
    ]
    return [
        ("top-1", percent(result["top1"])),
        ("top-5", percent(result["top5"])),
        ("loss, nats", "-" if result["loss"] is None else f"{result['loss']:.4f}"),
        ("trained in", "-" if run.seconds is None else duration(run.seconds)),
        *(superclasses if result["superclass_top1"] is not None else []),
        ("calibration error (ECE)", percent_of(result["ece"])),
        last,
    ]


def _add_confusion(report: Report, result: Json) -> None:
    shares, blocks = numbers.by_superclass(result)
    grouped = result["superclass_top1"] is not None
    groups = f", grouped by their {len(blocks)} super-classes" if grouped else ""
    about = f"Confusion matrix of {len(shares)} classes{groups}; the most confused pairs are listed below"
    report.facts["confusion"] = {
        "wide": figures.svg(figures.confusion(shares, blocks, WEB, named=True), "confusion-wide", about),
        "narrow": figures.svg(figures.confusion(shares, blocks, WEB, named=False), "confusion-narrow", about),
        "blocks": [spaced(name) for name, _ in blocks],
        "grouped": grouped,
        "pairs": _pairs(result),
    }
    report.files["confusion.png"] = figures.png(figures.confusion(shares, blocks, PRINTED, named=True))


def _pairs(result: Json) -> list[Json]:
    """Return the most confused pairs, with the image count of the true class and a flag for the same super-class."""
    classes = {row["name"]: row for row in result["classes"]}
    pairs = []
    for pair in result["most_confused"]:
        true, guess = classes.get(pair["true"], {}), classes.get(pair["predicted"], {})
        same = true.get("superclass") is not None and true["superclass"] == guess.get("superclass")
        pairs.append(pair | {"of": true.get("num_images", "?"), "superclass": same})
    return pairs


def _add_reliability(report: Report, result: Json, predictions: Predictions) -> None:
    temperature = result["temperature"]
    before = numbers.reliability_bins(predictions.logits, predictions.labels)
    after = numbers.reliability_bins(predictions.logits, predictions.labels, temperature) if temperature else None
    about = "Reliability diagram: accuracy against the confidence of the prediction"
    report.facts["reliability"] = figures.svg(figures.reliability(before, after, WEB), "reliability", about)
    report.files["reliability.png"] = figures.png(figures.reliability(before, after, PRINTED))


def _add_classes(report: Report, result: Json) -> None:
    known = [row for row in result["classes"] if row["accuracy"] is not None]
    report.facts["classes"] = [
        {
            "name": spaced(row["name"]),
            "superclass": row["superclass"] and spaced(row["superclass"]),
            "accuracy": f"{100 * row['accuracy']:.0f} %",
            "width": f"{100 * row['accuracy']:.1f}",
            "precision": percent_of(row["precision"]),
        }
        for row in sorted(known, key=lambda row: (row["accuracy"], row["name"]))
    ]
    if left_out := len(result["classes"]) - len(known):
        report.notes.append(f"{left_out} classes have no image in the evaluated split, so they have no accuracy.")


def _add_mistakes(report: Report, run: Run, result: Json, predictions: Predictions) -> None:
    found = numbers.most_confident_mistakes(predictions)
    names = [spaced(row["name"]) for row in result["classes"]]
    try:
        shown: list[PIL.Image.Image] | list[None] = list(numbers.images(run, result["split"], found))
    except CifarError as error:
        report.notes.append(f"The images of the mistakes are not shown: {error}")
        shown = [None] * len(found)
    report.facts["mistakes"] = [
        {
            "image": None if image is None else _data_uri(image),
            "row": mistake.row,
            "true": names[mistake.true],
            "guess": names[mistake.guess],
            "p_true": _probability(mistake.p_true),
            "p_guess": _probability(mistake.p_guess),
        }
        for mistake, image in zip(found, shown, strict=True)
    ]
    captions = [
        (
            f"{names[mistake.guess]} ({_probability(mistake.p_guess)})",
            f"true: {names[mistake.true]} ({_probability(mistake.p_true)})",
        )
        for mistake in found
    ]
    drawn = [image for image in shown if image is not None]
    if drawn:
        # 256 colours take a quarter of the bytes and still look right.
        report.files["mistakes.png"] = _png(contact_sheet.draw(drawn, captions, columns=6, scale=5).quantize(256))


def _probability(p: float) -> str:
    """Return a probability in percent, never rounded to 0 or 100 %.

    >>> _probability(0.98765), _probability(0.99999), _probability(0.00001)
    ('98.8 %', '> 99.9 %', '< 0.1 %')
    """
    return "> 99.9 %" if 0.9995 <= p < 1 else "< 0.1 %" if 0 < p < 0.0005 else f"{100 * p:.1f} %"


def _data_uri(image: PIL.Image.Image) -> Markup:
    return Markup(f"data:image/png;base64,{base64.b64encode(_png(image)).decode()}")


def _png(image: PIL.Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
