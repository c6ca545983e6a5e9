"""What is claimed of a model, compared with what was found: how much may differ, and a sentence where more does."""

from __future__ import annotations

import itertools
import math
from typing import Final

from cifar100_tk.errors import DataError
from cifar100_tk.storage.json_files import Json

SAME_CONDITIONS: Final = 2e-4
"""Share of the images by which a figure may differ under the same conditions."""
OTHER_CONDITIONS: Final = 2e-3
"""The same where device, precision or compiled code differ."""


def compare(claim: Json, found: Json, *, exact: bool, where: str) -> None:
    """Raise DataError, with both numbers, where a figure is not what was claimed.

    exact: whether both were measured under the same conditions, so that at most 2 in 10,000 images may differ, not 20.
    """
    count = found["num_images"]
    allowed = int((SAME_CONDITIONS if exact else OTHER_CONDITIONS) * count)
    for name in ("top1", "top5", "superclass_top1"):
        if name in claim:
            claimed, right = round(claim[name] * count), round(found[name] * count)
            if abs(claimed - right) > allowed:
                raise DataError(
                    f"{where} claims {name} {claim[name]:.4f} ({claimed:,} of {count:,} images), but it is {found[name]:.4f} "
                    f"({right:,}); at most {allowed} may differ. Nothing is published."
                )
    for name in ("loss", "ece", "loss_scaled", "ece_scaled"):
        if claim.get(name) is None:
            continue  # Without a temperature there is nothing scaled.
        measured = math.nan if found[name] is None else found[name]
        if not abs(claim[name] - measured) <= (1e-3 if exact else 2e-2) * max(1.0, abs(measured)):
            raise DataError(f"{where} claims {name} {claim[name]:.6f}, but it is {measured:.6f}. Nothing is published.")
    if "confusion" in claim:
        _compare_classes(claim, found, 10 * allowed, where)


def _compare_classes(claim: Json, found: Json, allowed: int, where: str) -> None:
    """Raise DataError where what is said of the classes is not so. allowed: images, of which most even out in top-1."""
    names = [each["name"] for each in found["classes"]]
    if [each["name"] for each in claim["classes"]] != names:
        raise DataError(f"{where} claims figures of other classes than the model has. Nothing is published.")
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
                    f"{where} claims that {n:,} images of {true} are taken for {predicted}, but it is "
                    f"{counts.get((true, predicted), 0):,}; at most {allowed} may differ. Nothing is published."
                )
