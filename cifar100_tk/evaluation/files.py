"""Evaluations on disk: results as JSON and the predictions of each image as parquet, validated when read back."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from cifar100_tk.errors import DataError
from cifar100_tk.evaluation.metrics import first_guesses
from cifar100_tk.evaluation.predictions import Predictions
from cifar100_tk.evaluation.scores import Scaled, Scores, confusion
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
    """Return a description of the first invalid field, or None."""
    for name, (allowed, expected) in _RULES.items():
        if name not in result or not allowed(result[name]):
            shown = repr(result[name])[:60] if name in result else "missing"
            return f"{name} is {shown}; expected {expected}"
    classes = len(result["classes"])
    if len(result["confusion"]) != classes or not all(len(row) == classes for row in result["confusion"]):
        return f"confusion is not {classes} by {classes}, as its classes are"
    return _contradiction(result)


def _contradiction(result: Json) -> str | None:
    """Return a description of the first value that contradicts the confusion matrix, or None."""
    counts = np.array(result["confusion"], dtype=np.float64)
    names, superclasses = ([row[key] for row in result["classes"]] for key in ("name", "superclass"))
    sizes = np.array([row["num_images"] for row in result["classes"]], dtype=np.float64)
    n = result["num_images"]
    if sizes.sum() != n:
        return f"num_images is {n}; expected the {sizes.sum():.0f} of its classes"
    for name, size, row in zip(names, sizes, counts.sum(axis=1), strict=True):
        if row > size:
            return f"confusion counts {row:.0f} images of {name}, which has {size:.0f}"
    counted = {"top1": counts.trace() / n, "superclass_top1": None}
    if None not in superclasses:
        counted["superclass_top1"] = counts[np.equal.outer(superclasses, superclasses)].sum() / n
    for name, expected in counted.items():
        if (result[name] is None) != (expected is None):
            return f"{name} is {result[name]}, but its classes have {'no ' * (expected is None)}super-classes"
        if expected is not None and abs(result[name] - expected) > 1e-9:
            return f"{name} is {result[name]}, but its confusion matrix gives {expected:.6g}"
    if result["top5"] < result["top1"]:
        return f"top5 is {result['top5']}, less than top1, which is {result['top1']}"
    for row, size, right in zip(result["classes"], sizes, counts.diagonal(), strict=True):
        if (row["accuracy"] is None) != (size == 0) or abs((row["accuracy"] or 0.0) * size - right) > 1e-6:
            return f"accuracy of {row['name']} is {row['accuracy']}, but its confusion matrix has {right:.0f} of {size:.0f}"
    for pair in result["most_confused"]:
        if {pair["true"], pair["predicted"]} - set(names):
            return f"most_confused names {pair['true']} and {pair['predicted']}; expected two of its classes"
        found = counts[names.index(pair["true"]), names.index(pair["predicted"])]
        if found != pair["num_images"]:
            return (
                f"most_confused says that {pair['num_images']} of {pair['true']} were taken for {pair['predicted']}, "
                f"but its confusion matrix has {found:.0f}"
            )
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
    numbers = {}
    for name in ("row", "label", "predicted", "logits"):
        if name not in table.column_names:
            raise DataError(f"{path} has no column {name}; expected row, label, predicted and logits.")
        if table[name].null_count:
            raise DataError(f"{path}: column {name} has {table[name].null_count} empty cells; expected none.")
        numbers[name] = table[name].combine_chunks()
    if not len(table):
        raise DataError(f"{path} contains no predictions; expected at least one.")
    rows, labels, predicted = (_whole_numbers(path, name, numbers[name]) for name in ("row", "label", "predicted"))
    predictions = Predictions(torch.from_numpy(_logits(path, numbers["logits"])), labels, rows)
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


def _whole_numbers(path: Path, name: str, column: Any) -> torch.Tensor:
    """Return a column as (N,) int64."""
    if str(column.type) != "int64":
        raise DataError(f"{path}: column {name} has type {column.type}; expected int64.")
    return torch.from_numpy(column.to_numpy(zero_copy_only=False).copy())


def _logits(path: Path, column: Any) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    """Return the column of logits as (N, C) float32."""
    import pyarrow

    if not pyarrow.types.is_fixed_size_list(column.type) or str(column.type.value_type) != "float":
        raise DataError(
            f"{path}: column logits has type {column.type}; expected as many float32 as classes in each cell."
        )
    values = column.flatten()
    if values.null_count:
        raise DataError(f"{path}: column logits has {values.null_count} empty numbers; expected none.")
    array: np.ndarray[tuple[int, int], np.dtype[np.float32]] = (
        values.to_numpy().reshape(len(column), column.type.list_size).copy()
    )
    return array


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


def _rows(**rules: Callable[[Any], bool]) -> Callable[[Any], bool]:
    """Return the check of a list of objects. rules: the check of each of their fields."""
    return lambda value: (
        isinstance(value, list)
        and all(
            isinstance(row, dict) and all(name in row and allowed(row[name]) for name, allowed in rules.items())
            for row in value
        )
    )


def _counts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(row, list) and all(map(_count, row)) for row in value)


_RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    **dict.fromkeys(("model", "source", "split", "images", "precision"), (_text, "text")),
    "weights": (lambda value: value in ("ema", "raw", None), "ema, raw or null"),
    "flip": (lambda value: isinstance(value, bool), "true or false"),
    "images_per_second": (lambda value: _number(value) and value >= 0, "a number of images"),
    "num_images": (lambda value: _count(value) and value > 0, "a number of images"),
    "num_parameters": (_count, "a number of parameters"),
    **dict.fromkeys(
        ("top1", "top5", "macro_precision", "macro_recall", "macro_f1"),
        (_share, "a fraction in 0..1"),
    ),
    **dict.fromkeys(
        ("superclass_top1", "errors_in_superclass", "ece", "ece_scaled"),
        (_maybe(_share), "a fraction in 0..1, or null"),
    ),
    **dict.fromkeys(("loss", "loss_scaled"), (_maybe(_number), "a number, or null")),
    "temperature": (lambda value: value is None or (_number(value) and value > 0), "a number over 0, or null"),
    "temperature_fitted_on": (_maybe(_text), "the name of a split, or null"),
    "classes": (
        _rows(
            name=_text,
            superclass=_maybe(_text),
            num_images=_count,
            **dict.fromkeys(("accuracy", "precision", "f1"), _maybe(_share)),
        ),
        "a list with name, superclass, num_images, accuracy, precision and f1 of each class",
    ),
    "most_confused": (
        _rows(true=_text, predicted=_text, num_images=_count),
        "a list of true, predicted and num_images",
    ),
    "confusion": (_counts, "a list of lists of numbers of images"),
}
"""The check of each JSON field and the description of its allowed values."""
