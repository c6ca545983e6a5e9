"""Contents of a report: the values its template reads, the image files, and notes on anything missing."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, final

from markupsafe import Markup

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


def unbroken(value: Any) -> Any:
    r"""Return a value for the page: text with no-break spaces between a number and its unit or sign.

    >>> unbroken("84.42 ± 1.23 % in 1 min 19 s")
    '84.42 ±\xa01.23\xa0% in 1\xa0min\xa019\xa0s'
    """
    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    return re.sub(
        r"(?<=\d) (?=(?:%|s|min|h)(?!\w))|(?<=[±<>]) (?=\d)|(?<= min) (?=\d)|(?<= h) (?=\d)|(?<=\bseed) (?=\d)",
        "\u00a0",
        value,
    )
