"""Contents of a report: the values its template reads, the image files, and notes on anything missing."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, final

from cifar100_tk.progress import percent


@final
@dataclass
class Report:
    """Everything on the page, and the files next to it."""

    facts: dict[str, Any] = field(default_factory=dict)
    """Template variables by name."""
    files: dict[str, bytes] = field(default_factory=dict)
    """Image files next to the page, by name."""
    notes: list[str] = field(default_factory=list)
    """One sentence for each thing missing from the page."""


def percent_of(fraction: Any) -> str:
    """Return a fraction in percent, or a dash if the evaluation has no value."""
    return percent(fraction) if isinstance(fraction, int | float) else "-"
