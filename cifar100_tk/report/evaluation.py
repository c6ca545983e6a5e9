"""Report sections about an evaluation: confusions, calibration, per-class accuracy and the most confident mistakes."""

from __future__ import annotations

import base64
import io
from typing import Final

import numpy as np
import PIL.Image
from markupsafe import Markup

from cifar100_tk.data import contact_sheet
from cifar100_tk.data.labels import display_name
from cifar100_tk.errors import CifarError
from cifar100_tk.evaluation.confusion_image import RIGHT, WRONG, Confusion, draw, strength
from cifar100_tk.evaluation.predictions import Predictions
from cifar100_tk.progress import duration, percent
from cifar100_tk.report import figures, numbers
from cifar100_tk.report.contents import Report, percent_of
from cifar100_tk.report.figures import PRINTED
from cifar100_tk.runs.summary import Run
from cifar100_tk.storage.json_files import Json

FEW_CLASSES: Final = 20
"""At most this many classes are all shown."""
HARDEST: Final = 9
"""Of more, this many are shown and the others are folded."""


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
    report.facts["evaluation"] = result
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
    confusion = Confusion.of(result)
    steps = np.linspace(0, 1, 5)
    keys = (("right", 1.0, RIGHT, steps), ("mistaken", confusion.worst, WRONG, strength(steps)))
    report.facts["confusion"] = {
        "cells": _data_uri(confusion.cells()),
        "size": len(confusion.names),
        "names": confusion.names,
        "counts": [[[int(place), int(row[place])] for place in row.nonzero()[0]] for row in confusion.counts],
        "blocks": confusion.blocks,
        "keys": [
            {
                "stops": Markup(", ".join(f"rgb({' '.join(map(str, rgb))} / {alpha:.2f})" for alpha in alphas)),
                "top": f"{100 * top:.3g} % {label}",
            }
            for label, top, rgb, alphas in keys
        ],
        "grouped": result["superclass_top1"] is not None,
        "pairs": _pairs(result),
    }
    report.files["confusion.png"] = _png(draw(confusion))


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
    panels = numbers.reliability_panels(before, after)
    report.facts["reliability"] = [figures.web(panel, f"reliability-{place}") for place, panel in enumerate(panels)]
    report.files["reliability.png"] = figures.png(figures.row(panels, [], PRINTED))


def _add_classes(report: Report, result: Json) -> None:
    known = [row for row in result["classes"] if row["accuracy"] is not None]
    rows = [
        {
            "name": display_name(row["name"]),
            "superclass": row["superclass"] and display_name(row["superclass"]),
            "accuracy": f"{100 * row['accuracy']:.0f} %",
            "width": f"{100 * row['accuracy']:.1f}",
            "precision": percent_of(row["precision"]),
        }
        for row in sorted(known, key=lambda row: (row["accuracy"], row["name"]))
    ]
    shown = len(rows) if len(rows) <= FEW_CLASSES else HARDEST
    report.facts["classes"] = {"count": len(rows), "shown": rows[:shown], "folded": rows[shown:]}
    if left_out := len(result["classes"]) - len(known):
        report.notes.append(f"{left_out} classes have no image in the evaluated split, so they have no accuracy.")


def _add_mistakes(report: Report, run: Run, result: Json, predictions: Predictions) -> None:
    found = numbers.most_confident_mistakes(predictions)
    names = [display_name(row["name"]) for row in result["classes"]]
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
