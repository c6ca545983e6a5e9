"""What a report is made of: the facts that its template reads, the files beside it, and what it does without."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, final

from cifar100_tk.progress import percent


@final
@dataclass
class Report:
    """What goes into the page and beside it."""

    facts: dict[str, Any] = field(default_factory=dict)
    """What the template reads."""
    files: dict[str, bytes] = field(default_factory=dict)
    """The images beside the page."""
    notes: list[str] = field(default_factory=list)
    """A sentence for each thing that the page does without."""


def percent_of(fraction: Any) -> str:
    """Return a fraction in percent, or a dash where an evaluation has none."""
    return percent(fraction) if isinstance(fraction, int | float) else "-"
