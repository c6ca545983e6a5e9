"""The output of `python -m cifar100_tk.eval`: a page about one model, or a table of several."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Sequence
from typing import Any

from cifar100_tk.cli.table import aligned
from cifar100_tk.data.labels import display_name
from cifar100_tk.progress import percent
from cifar100_tk.storage.json_files import Json

SHOWN = 5
"""Best classes, worst classes and confused pairs that a page names."""


def headline(result: Json) -> str:
    """Return the accuracies of one evaluation with their conditions, in a line."""
    weights = {"ema": ", EMA weights", "raw": ", raw weights", None: ""}[result["weights"]]
    mirrored = ", with mirror images" if result["flip"] else ""
    return (
        f"top-1 {percent(result['top1'])}, top-5 {percent(result['top5'])}, loss {_decimal(result['loss'])} on "
        f"{result['num_images']:,} {result['split']} images of {result['source']} ({result['images']}); "
        f"{result['precision']}{weights}{mirrored}, {result['images_per_second']:,.0f} images/s"
    )


def page(result: Json, why_no_temperature: str | None) -> str:
    """Return the summary page of one evaluation."""
    sections = [_wrapped(headline(result)), _figures(result, why_no_temperature), _classes(result), _pairs(result)]
    if "corruptions" in result:
        sections.append(_corruptions(result["corruptions"]))
    return "\n\n".join(section for section in sections if section)


def comparison(results: Sequence[Json]) -> str:
    """Return a table of several evaluations, the highest top-1 first, in a layout that fits the terminal."""
    same = len({(result["source"], result["split"], result["images"], result["num_images"]) for result in results}) == 1
    corrupted = any("corruptions" in result for result in results)
    figures = [["top-1", "top-5", "loss", "super-class", "ECE", "ECE scaled", *["corrupted"] * corrupted]]
    conditions = [["model", "weights", "parameters", "images/s", "images"]]
    for result in sorted(results, key=lambda result: -result["top1"]):
        mean = result.get("corruptions", {}).get("mean_top1")
        figures.append(
            [
                *(
                    percent(result["top1"]),
                    percent(result["top5"]),
                    _decimal(result["loss"]),
                    _percent(result["superclass_top1"]),
                ),
                *(_percent(result["ece"]), _percent(result["ece_scaled"]), *[_percent(mean)] * corrupted),
            ]
        )
        conditions.append(
            [
                *(result["model"], result["weights"] or "", f"{result['num_parameters']:,}"),
                *(
                    f"{result['images_per_second']:,.0f}",
                    f"{result['num_images']:,} {result['split']}, {result['source']}",
                ),
            ]
        )
    first = results[0]
    images = (
        f"{first['num_images']:,} {first['split']} images of {first['source']} ({first['images']})"
        if same
        else "the models were evaluated on different images, so the figures do not show which is better"
    )
    shown = 4 if same else 5  # The images get a column if they differ.
    rows = [[*about[:3], *held, *about[3:shown]] for about, held in zip(conditions, figures, strict=True)]
    table = aligned(rows, gap=2 if same else 3, indent=2)
    if len(table.splitlines()[0]) > _columns():
        table = _in_pairs_of_lines([about[:shown] for about in conditions[1:]], figures)
    title = _wrapped(f"{images}; {first['precision']}")
    return f"{title}\n\n{table}"


def _in_pairs_of_lines(conditions: Sequence[Sequence[str]], figures: Sequence[Sequence[str]]) -> str:
    """Return a table with two lines per model: its name and conditions, then its results."""
    head, *rows = aligned(figures, left=(), indent=2).splitlines()
    lines = [f"  {head}"]
    for (model, weights, parameters, speed, *images), row in zip(conditions, rows, strict=True):
        about = [model, *[f"{weights} weights"] * bool(weights), f"{parameters} parameters", f"{speed} images/s"]
        lines += [_wrapped(", ".join([*about, *images]), indent="  "), f"  {row}"]
    return "\n".join(lines)


def _figures(result: Json, why_no_temperature: str | None) -> str:
    rows = [
        ["precision, mean over classes", percent(result["macro_precision"]), ""],
        ["recall, mean over classes", percent(result["macro_recall"]), ""],
        ["F1, mean over classes", percent(result["macro_f1"]), ""],
        ["calibration error", _percent(result["ece"]), "15 bins; 0 is best"],
    ]
    if result["superclass_top1"] is not None:
        rows[:0] = [
            ["super-class top-1", percent(result["superclass_top1"]), "of the first guess"],
            ["errors inside the super-class", _percent(result["errors_in_superclass"]), ""],
        ]
    scaled, why = "  after temperature scaling", why_no_temperature or "the held-out logits are not finite"
    if result["temperature"] is None:
        rows.append([scaled, "-", why])
    else:
        fitted = f"T = {result['temperature']:.3f} fitted on {result['temperature_fitted_on']}"
        rows.append([scaled, _percent(result["ece_scaled"]), fitted])
        rows.append(["  loss after it", _decimal(result["loss_scaled"]), ""])
    return "\n".join(f"  {name:<29} {value:>8}  {note}".rstrip() for name, value, note in rows)


def _classes(result: Json) -> str:
    """Return the best and the worst classes side by side, without classes that have no images."""
    measured = [row for row in result["classes"] if row["accuracy"] is not None]
    best_first = sorted(measured, key=lambda row: -row["accuracy"])
    worst_first = sorted(measured, key=lambda row: row["accuracy"])
    rows = [["best classes", "accuracy", "precision", "", "worst classes", "accuracy", "precision"]]
    for best, worst in zip(best_first[:SHOWN], worst_first[:SHOWN], strict=True):
        rows.append(
            [
                *(display_name(best["name"]), _percent(best["accuracy"]), _percent(best["precision"]), ""),
                *(display_name(worst["name"]), _percent(worst["accuracy"]), _percent(worst["precision"])),
            ]
        )
    return aligned(rows, left=(0, 4), indent=2)


def _pairs(result: Json) -> str:
    shown = result["most_confused"][:SHOWN]
    if not shown:
        return "no image was classified as another class"
    images = {row["name"]: row["num_images"] for row in result["classes"]}
    rows = [["most confused", "taken for", "images"]] + [
        [
            *(display_name(pair["true"]), display_name(pair["predicted"])),
            f"{pair['num_images']} of {images[pair['true']]}",
        ]
        for pair in shown
    ]
    return aligned(rows, gap=3, left=(0, 1), indent=2)


def _corruptions(corruptions: Json) -> str:
    severities = [str(severity) for severity in corruptions["severities"]]
    rows = [["top-1 by severity", *severities, "mean"]] + [
        [name, *(percent(value) for value in values), percent(sum(values) / len(values))]
        for name, values in corruptions["top1"].items()
    ]
    rows.append(["mean", *[""] * len(severities), percent(corruptions["mean_top1"])])
    if corruptions["mean_top1_of_15"] is not None:
        rows.append(["mean of the usual 15", *[""] * len(severities), percent(corruptions["mean_top1_of_15"])])
    return f"corrupted images: {corruptions['source']}\n{aligned(rows, indent=2)}"


def _wrapped(text: str, indent: str = "") -> str:
    """Return a sentence wrapped at the width of the terminal."""
    lines = textwrap.wrap(text, _columns() - len(indent), break_long_words=False, break_on_hyphens=False)
    return "\n".join(f"{indent}{line}" for line in lines)


def _columns() -> int:
    """Return the width of the terminal; unlimited for a file or a pipe."""
    return shutil.get_terminal_size(fallback=(10_000, 24)).columns


def _percent(fraction: Any) -> str:
    return "-" if fraction is None else percent(fraction)


def _decimal(value: float | None) -> str:
    return "not a number" if value is None else f"{value:.4f}"
