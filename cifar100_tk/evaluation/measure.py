"""Measuring a model: its predictions for a split, with the figures and the conditions that they were obtained under."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from accelerate import Accelerator
from torch import nn

from cifar100_tk.augment import SIDE, Normalize
from cifar100_tk.data import Split
from cifar100_tk.distributed.launch import precision
from cifar100_tk.evaluation import files
from cifar100_tk.evaluation.metrics import Metrics
from cifar100_tk.evaluation.predictions import Predictions, predict
from cifar100_tk.evaluation.scores import Scaled, Scores
from cifar100_tk.storage.json_files import Json


@dataclass(frozen=True)
class Measurement:
    """One evaluation of a model: its metrics and the predictions behind them."""

    result: Json
    """The JSON of the evaluation."""
    predictions: Predictions
    """The predictions that the metrics were computed from."""

    @property
    def metrics(self) -> Metrics:
        """The metrics that `evaluate` returns for the same model, equal to the digit."""
        return Metrics.of_result(self.result)

    def write(self, folder: Path) -> None:
        """Write FOLDER/SPLIT.json and .parquet."""
        files.write(folder, self.result["split"], self.result, self.predictions)


def measure(
    model: nn.Module,
    split: Split,
    normalize: Normalize,
    *,
    accelerator: Accelerator,
    name: str,
    source: str,
    weights: Literal["ema", "raw"] | None,
    batch_size: int | None = None,
    limit_batches: int | None = None,
    image_size: int = SIDE,
    flip: bool = False,
    scale: Callable[[Predictions], Scaled | None] = lambda predictions: None,
    between_batches: Callable[[], None] = lambda: None,
) -> Measurement:
    """Measure a model on every image of a split. All processes must call it; all get the same.

    name, source, weights: as the result states them. scale: returns the calibration after temperature scaling, or None. The
    other arguments are those of `predict`.
    """
    started = time.perf_counter()
    predictions = predict(
        model,
        split,
        normalize,
        accelerator=accelerator,
        batch_size=batch_size,
        limit_batches=limit_batches,
        image_size=image_size,
        flip=flip,
        between_batches=between_batches,
    )
    conditions = files.Conditions(
        model=name,
        source=source,
        split=split.name,
        images=split.identity.sentence,
        precision=precision(accelerator),
        weights=weights,
        flip=flip,
        images_per_second=len(predictions.labels) / (time.perf_counter() - started),
        num_parameters=sum(parameter.numel() for parameter in model.parameters()),
    )
    names = split.class_names, split.coarse_names, split.coarse_of_fine
    scores = Scores.of(predictions.logits, predictions.labels, *names)
    return Measurement(files.result(conditions, scores, scale(predictions)), predictions)
