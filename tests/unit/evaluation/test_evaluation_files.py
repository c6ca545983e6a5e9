"""Evaluations written and read back, and what is said of files that are not what they claim to be."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from processes import file_limit

from cifar100_tk.errors import DataError, DiskError
from cifar100_tk.evaluation import files as evaluation_files
from cifar100_tk.evaluation.files import Conditions
from cifar100_tk.evaluation.predictions import Predictions
from cifar100_tk.evaluation.scores import Scaled, Scores

NAMES, COARSE = ("ant", "bee", "cat"), ("insect", "pet")
PREDICTIONS = Predictions(
    torch.tensor([[2.0, 1.0, 0.0], [0.0, 1.0, 0.5], [math.nan, 0.0, 0.0], [-1.0, -math.inf, 3.0]]),
    torch.tensor([0, 0, 1, 2]),
    torch.tensor([3, 5, 6, 11]),
)
CONDITIONS = Conditions(
    model="runs/one",
    source="shapes100",
    split="test",
    images="shapes100, built in",
    precision="float32",
    weights="ema",
    flip=False,
    images_per_second=123.5,
    num_parameters=42,
)


def result(scaled: Scaled | None = None) -> dict[str, Any]:
    scores = Scores.of(PREDICTIONS.logits, PREDICTIONS.labels, NAMES, COARSE, (0, 0, 1))
    return evaluation_files.result(CONDITIONS, scores, scaled)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    evaluation_files.write(tmp_path / "evaluation", "test", result(), PREDICTIONS)
    return tmp_path / "evaluation"


@pytest.mark.parametrize("scaled", [None, Scaled(temperature=1.5, fitted_on="holdout", ece=0.25, loss=1.0)])
def test_what_was_written_is_read_back(tmp_path: Path, scaled: Scaled | None) -> None:
    evaluation_files.write(tmp_path / "evaluation", "test", result(scaled), PREDICTIONS)
    held, found = evaluation_files.read(tmp_path / "evaluation", "test")
    assert held == result(scaled)
    assert held["temperature"] == (scaled and 1.5) and held["loss"] is None and held["model"] == "runs/one"
    assert torch.equal(found.logits.view(torch.int32), PREDICTIONS.logits.view(torch.int32))  # NaN too, bit for bit.
    assert found.labels.equal(PREDICTIONS.labels) and found.rows.equal(PREDICTIONS.rows)
    assert sorted(path.name for path in (tmp_path / "evaluation").iterdir()) == ["test.json", "test.parquet"]


def test_datasets_reads_the_predictions(folder: Path, tmp_path: Path) -> None:
    table = datasets.Dataset.from_parquet(str(folder / "test.parquet"), cache_dir=str(tmp_path))
    assert table.column_names == ["row", "label", "predicted", "logits"]
    assert table["row"][:] == [3, 5, 6, 11] and table["label"][:] == [0, 0, 1, 2]
    # The image that is not a number has no guess.
    assert table["predicted"][:] == [0, 1, -1, 2]
    assert table[0]["logits"] == [2.0, 1.0, 0.0]
    assert table.features["logits"] == datasets.List(datasets.Value("float32"), length=3)


def test_a_row_of_the_confusion_matrix_is_a_line(folder: Path) -> None:
    lines = (folder / "test.json").read_text().splitlines()
    assert lines[-6:] == ['  "confusion": [', "    [1, 1, 0],", "    [0, 0, 0],", "    [0, 0, 1]", "  ]", "}"]


@pytest.mark.parametrize("suffix", [".json", ".parquet"])
def test_what_cannot_be_written_leaves_what_was_there(folder: Path, suffix: str) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    many = Predictions(torch.zeros(5000, 3), torch.zeros(5000, dtype=torch.int64), torch.arange(5000))
    with file_limit(900), pytest.raises(DiskError, match=rf"cannot write .*test{suffix} .*File too large"):
        if suffix == ".json":
            evaluation_files.write_json(folder / "test.json", [result()])
        else:
            evaluation_files.write(folder, "test", result(), many)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("top1", None, "test.json: top1 is None; expected a fraction in 0..1. Measure the model again"),
        ("top5", 81.5, "top5 is 81.5; expected a fraction"),
        ("loss", "low", "loss is 'low'; expected a number, or null"),
        ("loss", math.nan, "loss is nan; expected a number, or null"),
        ("loss_scaled", 10**400, "loss_scaled is 1000.*; expected a number, or null"),
        ("num_parameters", 10**400, "num_parameters is 1000.*; expected a number of parameters"),
        ("temperature", 0, "temperature is 0; expected a number over 0, or null"),
        ("ece", True, "ece is True; expected a fraction in 0..1, or null"),
        ("weights", "best", "weights is 'best'; expected ema, raw or null"),
        ("model", 7, "model is 7; expected text"),
        ("num_images", 0, "num_images is 0; expected a number of images"),
        ("classes", [{"name": "ant"}], "classes is .*; expected a list with name, superclass and num_images"),
        ("classes", [], "confusion is not 0 by 0, as its classes are"),
        ("top1", 0.9999, "top1 is 0.9999, but its confusion matrix gives 0"),
        ("superclass_top1", 0.0001, "superclass_top1 is 0.0001, but its confusion matrix gives"),
        ("top5", 0.0, "top5 is 0.0, less than top1, which is"),
        ("num_images", 77, "num_images is 77; expected the \\d+ of its classes"),
        ("confusion", [[1, 2], [3]], "confusion is not 3 by 3"),
        ("confusion", [[1, -2]], "confusion is .*; expected a list of lists of numbers of images"),
        (
            "most_confused",
            [{"true": "ant"}],
            "most_confused.0.predicted is missing, but its confusion matrix gives bee",
        ),
        ("most_confused", 7, "most_confused.0.true is missing, but its confusion matrix gives ant"),
        ("macro_f1", 0.75, "macro_f1 is 0.75, but its confusion matrix gives 0.555"),
        ("errors_in_superclass", ..., "errors_in_superclass is missing, but its confusion matrix gives 0.5"),
        ("flip", ..., "flip is missing; expected true or false"),
        ("split", "holdout", "test.json is for the holdout split, not for test; measure the model again"),
        ("confusion", [[1, 0, 1], [0, 0, 0], [0, 0, 1]], "superclass_top1 is 0.75, but its confusion matrix gives 0.5"),
    ],
    ids=lambda value: value if isinstance(value, str) and len(value) < 15 else "",
)
def test_a_damaged_result_is_named_with_its_field(folder: Path, name: str, value: Any, message: str) -> None:
    held = json.loads((folder / "test.json").read_text())
    if value is ...:
        del held[name]
    else:
        held[name] = value
    (folder / "test.json").write_text(json.dumps(held))
    with pytest.raises(DataError, match=message):
        evaluation_files.read(folder, "test")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "test.json cannot be read as JSON"),
        (b"\xff\xfe{", "test.json cannot be read as JSON"),
        (b"[" * 100_000, "test.json cannot be read as JSON"),
        (b"[]", "test.json must hold a JSON object, not a list; measure the model again"),
    ],
    ids=["cut", "other bytes", "endlessly deep", "a list"],
)
def test_what_is_no_result_is_said(folder: Path, content: bytes, message: str) -> None:
    (folder / "test.json").write_bytes(content)
    with pytest.raises(DataError, match=message):
        evaluation_files.read(folder, "test")


def test_results_and_predictions_are_told_from_other_files(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    for value, ours in (
        (result(), True),
        ([result(), result() | {"corruptions": {}}], True),
        ([result(), {"top1": 0.5}], False),
        ([result(), 7], False),
        ([], False),
        ({}, False),
        ("text", False),
    ):
        other.write_text(json.dumps(value))
        assert evaluation_files.holds_results(other) is ours, value
    for content in (b"", b"[" * 100_000, b"{", b"\xff\xfe{", (folder / "test.parquet").read_bytes()):
        other.write_bytes(content)
        assert not evaluation_files.holds_results(other), content[:20]
    assert not evaluation_files.holds_results(tmp_path) and not evaluation_files.holds_results(tmp_path / "none")
    assert evaluation_files.holds_predictions(folder / "test.parquet")
    for name in ("test.json", "none"):
        assert not evaluation_files.holds_predictions(folder / name)


def columns(**changes: Any) -> pa.Table:
    """The columns of `PREDICTIONS` without its NaN, or others in their place; None leaves one out."""
    whole = {
        "row": pa.array([3, 5, 11]),
        "label": pa.array([0, 0, 2]),
        "predicted": pa.array([0, 1, 2]),
        "logits": pa.array([[2.0, 1.0, 0.0], [0.0, 1.0, 0.5], [0.0, 0.0, 3.0]], pa.list_(pa.float32(), 3)),
    }
    return pa.table({name: value for name, value in (whole | changes).items() if value is not None})


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (
            lambda: columns(logits=None),
            "test.parquet has the columns row int64, label int64, predicted int64; expected row, label and predicted of int64",
        ),
        (
            lambda: columns(row=pa.array([3.0, 5.0, 11.0])),
            "has the columns row double, .*; expected row, label and pred",
        ),
        (lambda: columns(row=pa.array([3, None, 11])), "test.parquet has empty cells; expected a number in each"),
        (lambda: columns(row=pa.array([3, 11, 5])), "column row must be ascending and not negative"),
        (lambda: columns(row=pa.array([-3, 5, 11])), "column row must be ascending and not negative"),
        (lambda: columns(row=pa.array([3, 3, 11])), "column row must be ascending and not negative"),
        (lambda: columns(label=pa.array([0, 0, 3])), "column label must contain class indices from 0 to 2"),
        (lambda: columns(label=pa.array([0, -1, 2])), "column label must contain class indices from 0 to 2"),
        (lambda: columns(predicted=pa.array([0, 1, 1])), "column predicted does not match the logits"),
        (
            lambda: columns(logits=pa.array([[1.0], [1.0], [1.0]], pa.list_(pa.float32()))),
            "logits list<.*>; expected .* and logits of as many float32 as classes in each cell",
        ),
        (
            lambda: columns(logits=pa.array([[1.0], [None], [1.0]], pa.list_(pa.float32(), 1))),
            "test.parquet has empty cells; expected a number in each",
        ),
        (lambda: columns().slice(0, 0), "test.parquet contains no predictions; expected at least one"),
        (columns, "test.json has 4 images and 3 classes, test.parquet has 3 and 3; they are not from one evaluation"),
    ],
)
def test_damaged_predictions_are_named_with_what_is_wrong(
    folder: Path, table: Callable[[], pa.Table], message: str
) -> None:
    pq.write_table(table(), folder / "test.parquet")
    with pytest.raises(DataError, match=message):
        evaluation_files.read(folder, "test")


def test_a_file_that_is_cut_or_missing_is_named(folder: Path) -> None:
    whole = (folder / "test.parquet").read_bytes()
    for size in (0, 10, len(whole) // 2, len(whole) - 1):
        (folder / "test.parquet").write_bytes(whole[:size])
        with pytest.raises(DataError, match=r"test.parquet is not a valid parquet file .*; measure the model again"):
            evaluation_files.read(folder, "test")
    (folder / "test.parquet").unlink()
    with pytest.raises(DataError, match=r"test.parquet is not a valid parquet file"):
        evaluation_files.read(folder, "test")
    with pytest.raises(DataError, match=r"holdout.json cannot be read as JSON \(.*No such file"):
        evaluation_files.read(folder, "holdout")


def test_bytes_changed_anywhere_are_noticed_or_change_only_logits(folder: Path) -> None:
    # The parquet file has no checksum; what can be checked is that nothing but a sentence comes of it.
    whole = bytearray((folder / "test.parquet").read_bytes())
    rng = np.random.default_rng(0)
    for place in rng.choice(len(whole), 60, replace=False).tolist():
        flipped = whole.copy()
        flipped[place] ^= 1 << int(rng.integers(8))
        (folder / "test.parquet").write_bytes(bytes(flipped))
        try:
            found = evaluation_files.read_predictions(folder / "test.parquet")
        except DataError as error:
            assert "test.parquet" in str(error)
        else:
            assert bool((found.rows.diff() > 0).all()) and int(found.labels.max()) < found.logits.shape[1]


def test_figures_and_predictions_of_two_evaluations_are_refused(folder: Path) -> None:
    evaluation_files.write(folder, "test", result(), PREDICTIONS)
    other = Predictions(PREDICTIONS.logits.flip(0), PREDICTIONS.labels, PREDICTIONS.rows)
    evaluation_files.write_predictions(folder / "test.parquet", other)
    with pytest.raises(DataError, match=r"test\.json has a different confusion matrix from test\.parquet"):
        evaluation_files.read(folder, "test")
