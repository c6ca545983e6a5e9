"""The figures in metrics.jsonl, a line for each epoch, and in steps.jsonl, a line for each logged step."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, TypeGuard


def read_lines(path: Path, key: str, complaints: list[str], absent: str | None = None) -> list[dict[str, float]]:
    """Read a file of figures, skipping lines without a valid count under `key`, "epoch" or "step".

    complaints: gets a sentence for each damaged line. absent: the end of the complaint if the file is missing; None for
    no complaint.
    """
    try:
        lines = path.read_text(errors="replace").splitlines()
    except FileNotFoundError:
        complaints.extend([f"There is no {path.name}, {absent}"] if absent else [])
        return []
    except OSError as error:
        complaints.append(f"{path.name} cannot be read ({error.strerror}).")
        return []
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
            figures = {name: float(value) for name, value in record.items() if is_figure(value)}
            if not 1 <= figures[key] < math.inf:
                raise ValueError
            records.append(figures)
        except (ValueError, AttributeError, KeyError, OverflowError, RecursionError):
            complaints.append(f"Line {number} of {path.name} is damaged and left out.")
    return records


def is_figure(value: Any) -> TypeGuard[float]:
    """Return whether a JSON value is a number."""
    return isinstance(value, int | float) and not isinstance(value, bool)
