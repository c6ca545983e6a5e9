"""Compares claimed figures of a model with re-evaluated ones, within tolerances."""

from __future__ import annotations

import itertools
import math
from typing import Final

from cifar100_tk.errors import DataError
from cifar100_tk.storage.json_files import Json

SAME_CONDITIONS: Final = 2e-4
"""Tolerance under the same conditions, as a fraction of the images."""
OTHER_CONDITIONS: Final = 2e-3
"""Tolerance if device, precision or compilation differ."""


def compare(claim: Json, found: Json, *, exact: bool, where: str) -> None:
    """Raise DataError, with both numbers, if a figure differs from the claim by more than the tolerance.

    exact: both were evaluated under the same conditions, so at most 2 in 10,000 images may differ instead of 20.
    """
    count = found["num_images"]
    allowed = int((SAME_CONDITIONS if exact else OTHER_CONDITIONS) * count)
    for name in ("top1", "top5", "superclass_top1"):
        if claim.get(name) is not None:
            claimed, right = round(claim[name] * count), round(found[name] * count)
            if abs(claimed - right) > allowed:
                raise DataError(
                    f"{where} claims {name} {claim[name]:.4f} ({claimed:,} of {count:,} images), but it is {found[name]:.4f} "
                    f"({right:,}); at most {allowed} may differ. Nothing is published."
                )
    for name in ("loss", "ece", "loss_scaled", "ece_scaled"):
        if claim.get(name) is None:
            continue  # Not claimed, such as scaled figures without a temperature.
        measured = math.nan if found[name] is None else found[name]
        if not abs(claim[name] - measured) <= (1e-3 if exact else 2e-2) * max(1.0, abs(measured)):
            raise DataError(f"{where} claims {name} {claim[name]:.6f}, but it is {measured:.6f}. Nothing is published.")
    if "confusion" in claim:
        _compare_classes(claim, found, 10 * allowed, where)


def _compare_classes(claim: Json, found: Json, allowed: int, where: str) -> None:
    """Raise DataError if per-class figures differ. allowed: images; most differences cancel out in top-1."""
    names = [each["name"] for each in found["classes"]]
    if [each["name"] for each in claim["classes"]] != names:
        raise DataError(f"{where} claims figures for different classes than the model has. Nothing is published.")
    pairs = list(itertools.product(names, names))
    counts, claimed = (dict(zip(pairs, itertools.chain(*each["confusion"]), strict=True)) for each in (found, claim))
    reported = {(p["true"], p["predicted"]): p["num_images"] for p in claim["most_confused"]}
    right = {
        (c["name"], c["name"]): round(c["accuracy"] * f["num_images"])
        for c, f in zip(claim["classes"], found["classes"], strict=True)
        if c["accuracy"] is not None
    }
    for table in (claimed, reported, right):
        for (true, predicted), n in table.items():
            if abs(n - counts.get((true, predicted), 0)) > allowed:
                raise DataError(
                    f"{where} claims that {n:,} images of {true} are predicted as {predicted}, but it is "
                    f"{counts.get((true, predicted), 0):,}; at most {allowed} may differ. Nothing is published."
                )
