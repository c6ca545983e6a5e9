"""Evaluations on disk: results as JSON and the predictions of each image as parquet, validated when read back."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from cifar100_tk.errors import DataError
from cifar100_tk.evaluation.metrics import first_guesses
from cifar100_tk.evaluation.predictions import Predictions
from cifar100_tk.evaluation.scores import Scaled, Scores, confusion, counted, plain
from cifar100_tk.recipe import flatten
from cifar100_tk.storage import atomic
from cifar100_tk.storage.json_files import Json, read_object

# pyarrow takes a while to import; it is imported when a file is written or read.


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """The model, the images and the settings of an evaluation."""

    model: str
    """The model as given: a run folder, a model folder or a Hub id."""
    source: str
    """hub, shapes100, or the path of a local copy."""
    split: str
    """train, holdout or test."""
    images: str
    """A description of the source's images."""
    precision: str
    """The precision of the forward passes, in words."""
    weights: Literal["ema", "raw"] | None
    """`ema` for the average over the steps, `raw` for the weights of the last step; None if unknown."""
    flip: bool
    """True if predictions are averaged with those of the mirrored images."""
    images_per_second: float
    """Images per second, over all processes."""
    num_parameters: int
    """Number of parameters of the network."""


def result(conditions: Conditions, scores: Scores, scaled: Scaled | None = None) -> Json:
    """Return the JSON of one evaluation; docs/evaluating.md explains its fields. scaled: those after scaling."""
    return vars(conditions) | scores.to_json(scaled)


def write(folder: Path, name: str, result: Json, predictions: Predictions) -> None:
    """Write FOLDER/NAME.parquet and then FOLDER/NAME.json, replacing older ones. name: the split's.

    Raises DiskError, leaving the old files in place.
    """
    atomic.make_folder(folder)
    write_predictions(folder / f"{name}.parquet", predictions)
    write_json(folder / f"{name}.json", result)


def read(folder: Path, name: str) -> tuple[Json, Predictions]:
    """Read back the result of `write`. Raises DataError naming the missing or invalid file."""
    result, predictions = read_result(folder / f"{name}.json"), read_predictions(folder / f"{name}.parquet")
    shape = (result["num_images"], len(result["classes"]))
    if shape != tuple(predictions.logits.shape):
        raise DataError(
            f"{folder / name}.json has {shape[0]} images and {shape[1]} classes, {name}.parquet has "
            f"{predictions.logits.shape[0]} and {predictions.logits.shape[1]}; they are not from one evaluation; measure again."
        )
    if result["split"] != name:
        raise DataError(
            f"{folder / name}.json is for the {result['split']} split, not for {name}; measure the model again."
        )
    guesses = first_guesses(predictions.logits)
    if result["confusion"] != confusion(guesses, predictions.labels, predictions.logits.shape[1]).tolist():
        raise DataError(
            f"{folder / name}.json has a different confusion matrix from {name}.parquet; they are not from one evaluation; "
            "measure again with both --output and --predictions."
        )
    return result, predictions


def write_json(path: Path, value: Json | list[Json]) -> None:
    """Write or replace a JSON file atomically. Raises DiskError, leaving the old one in place."""
    text = json.dumps(value, indent=2, allow_nan=False)
    # One line per row of the confusion matrix, not a hundred.
    text = re.sub(
        r"\[\n\s+(?:\d+,\n\s+)*\d+\n\s+\]", lambda row: "[" + ", ".join(re.findall(r"\d+", row[0])) + "]", text
    )
    atomic.write_file(path, f"{text}\n".encode())


def write_predictions(path: Path, predictions: Predictions) -> None:
    """Write or replace a parquet file with one row per image: row, label, predicted (-1 for no guess), logits.

    Raises DiskError, leaving the old one in place.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    count, classes = predictions.logits.shape
    numbers = {
        "row": predictions.rows,
        "label": predictions.labels,
        "predicted": first_guesses(predictions.logits),
    }
    columns = {name: pa.array(values.numpy(), pa.int64()) for name, values in numbers.items()}
    columns["logits"] = pa.FixedSizeListArray.from_arrays(pa.array(predictions.logits.numpy().ravel()), classes)
    # The features, as `datasets` stores them in a parquet file.
    features: Json = {name: {"dtype": "int64", "_type": "Value"} for name in numbers}
    features["logits"] = {"feature": {"dtype": "float32", "_type": "Value"}, "length": classes, "_type": "List"}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    content = io.BytesIO()
    pq.write_table(pa.table(columns, metadata=metadata), content, row_group_size=count)
    atomic.write_file(path, content.getvalue())


def read_result(path: Path) -> Json:
    """Read the JSON of one evaluation. Raises DataError naming the first invalid field."""
    found = read_object(path, "measure the model again.")
    if complaint := _complaint(found):
        raise DataError(f"{path}: {complaint}. Measure the model again.")
    return found


def holds_results(path: Path) -> bool:
    """Return whether a file was written by `write_json`: one result, or a list of results."""
    try:
        with path.open("rb") as file:
            if file.read(1) not in (b"{", b"["):  # Do not read all of a huge file for that.
                return False
        held = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    results = held if isinstance(held, list) else [held]
    return bool(results) and all(isinstance(result, dict) and _complaint(result) is None for result in results)


def _complaint(result: Json) -> str | None:
    """Return a description of the first invalid field, or of the first that contradicts the confusion matrix, or None."""
    for name, (allowed, expected) in _RULES.items():
        if name not in result or not allowed(result[name]):
            shown = repr(result[name])[:60] if name in result else "missing"
            return f"{name} is {shown}; expected {expected}"
    names, superclasses, sizes = ([row[key] for row in result["classes"]] for key in _OF_A_CLASS)
    if [len(names)] * len(names) != [len(row) for row in result["confusion"]]:
        return f"confusion is not {len(names)} by {len(names)}, as its classes are"
    if sum(sizes) != result["num_images"]:
        return f"num_images is {result['num_images']}; expected the {sum(sizes)} of its classes"
    scores = counted(torch.tensor(result["confusion"]), sizes, names, superclasses)
    derived = flatten({name: plain(value) for name, value in scores.items()})
    found = flatten({name: result[name] for name in scores if name in result})
    for name in derived | found:
        if (shown := found.get(name, "missing")) != (expected := derived.get(name, "nothing")):
            return f"{name} is {shown}, but its confusion matrix gives {expected}"
    if result["top5"] < result["top1"]:
        return f"top5 is {result['top5']}, less than top1, which is {result['top1']}"
    return None


def read_predictions(path: Path) -> Predictions:
    """Return the predictions of a parquet file. Raises DataError if it is invalid."""
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path)
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(f"{path} is not a valid parquet file ({reason}); measure the model again.") from error
    expected = ["int64", "int64", "int64", r"fixed_size_list<.*: float.*>\[[1-9]\d*\]"]
    found = {field.name: str(field.type) for field in table.schema}
    if list(found) != ["row", "label", "predicted", "logits"] or not all(map(re.fullmatch, expected, found.values())):
        shown = ", ".join(f"{name} {kind}" for name, kind in found.items())
        raise DataError(
            f"{path} has the columns {shown}; expected row, label and predicted of int64, and logits of as many float32 as "
            "classes in each cell."
        )
    if not len(table):
        raise DataError(f"{path} contains no predictions; expected at least one.")
    *numbers, lists = (column.combine_chunks() for column in table.columns)
    flat = lists.flatten()
    if flat.null_count or any(column.null_count for column in table.columns):
        raise DataError(f"{path} has empty cells; expected a number in each.")
    rows, labels, predicted = (torch.from_numpy(column.to_numpy().copy()) for column in numbers)
    logits = torch.from_numpy(flat.to_numpy().reshape(len(rows), -1).copy())
    predictions = Predictions(logits, labels, rows)
    if not bool((rows.diff() > 0).all()) or rows[0] < 0:
        raise DataError(f"{path}: column row must be ascending and not negative; expected every image once, in order.")
    if not 0 <= int(labels.min()) <= int(labels.max()) < predictions.logits.shape[1]:
        raise DataError(f"{path}: column label must contain class indices from 0 to {predictions.logits.shape[1] - 1}.")
    if not predicted.equal(first_guesses(predictions.logits)):
        raise DataError(f"{path}: column predicted does not match the logits; measure the model again.")
    return predictions


def holds_predictions(path: Path) -> bool:
    """Return whether a file was written by `write_predictions`."""
    try:
        read_predictions(path)
    except DataError:
        return False
    return True


def _number(value: Any) -> bool:
    # Neither JSON's NaN nor an integer too large for a float.
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


def _share(value: Any) -> bool:
    return _number(value) and 0 <= value <= 1


def _maybe(allowed: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or allowed(value)


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**53


def _classes(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(row, dict) and all(name in row and allowed(row[name]) for name, allowed in _OF_A_CLASS.items())
        for row in value
    )


def _counts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(row, list) and all(map(_count, row)) for row in value)


_OF_A_CLASS: dict[str, Callable[[Any], bool]] = {"name": _text, "superclass": _maybe(_text), "num_images": _count}
_RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    **dict.fromkeys(("model", "source", "split", "images", "precision"), (_text, "text")),
    "weights": (lambda value: value in ("ema", "raw", None), "ema, raw or null"),
    "flip": (lambda value: isinstance(value, bool), "true or false"),
    "images_per_second": (lambda value: _number(value) and value >= 0, "a number of images"),
    "num_images": (lambda value: _count(value) and value > 0, "a number of images"),
    "num_parameters": (_count, "a number of parameters"),
    **dict.fromkeys(("top1", "top5"), (_share, "a fraction in 0..1")),
    **dict.fromkeys(("ece", "ece_scaled"), (_maybe(_share), "a fraction in 0..1, or null")),
    **dict.fromkeys(("loss", "loss_scaled"), (_maybe(_number), "a number, or null")),
    "temperature": (lambda value: value is None or (_number(value) and value > 0), "a number over 0, or null"),
    "temperature_fitted_on": (_maybe(_text), "the name of a split, or null"),
    "classes": (_classes, "a list with name, superclass and num_images of each class"),
    "confusion": (_counts, "a list of lists of numbers of images"),
}
"""The check of each JSON field that does not follow from the confusion matrix, and the description of its allowed values."""
