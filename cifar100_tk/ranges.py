"""Ranges of numbers, declared where a field is declared and checked when its dataclass is made."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin, get_type_hints

from cifar100_tk.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Within:
    """The numbers that a field may hold: `lr: Annotated[float, Within(low=0, above=True, high=1000, use="use 0.1")]`.

    Applies to every number of a tuple. None and the strings of a Literal pass where the field's type allows them.
    """

    low: float
    high: float
    use: str
    """The remedy that ends the error message."""
    above: bool = False
    """True excludes `low` itself."""
    below: bool = False
    """True excludes `high` itself."""
    or_zero: bool = False
    """True allows 0 although it is less than `low`."""

    def __contains__(self, value: float) -> bool:
        if self.or_zero and value == 0:
            return True
        return self.low <= value <= self.high and not (
            (self.above and value == self.low) or (self.below and value == self.high)
        )

    def __str__(self) -> str:
        low = f"more than {_plain(self.low)} and " if self.above else f"from {_plain(self.low)} "
        to = "" if self.above else "to "
        high = (
            f"{to}below {_plain(self.high)}" if self.below else f"{'at most ' if self.above else to}{_plain(self.high)}"
        )
        return f"{'0, or ' if self.or_zero else ''}{low}{high}"


def check_ranges(component: object, prefix: str) -> None:
    """Reject a field whose value is outside its declared range.

    prefix: the text before the field's name in the message, such as `optimizer.`; `--` for a command-line option.
    """
    kind: Any = type(component)
    for name, plain, within in _declared(kind):
        given = getattr(component, name)
        words = [word for part in _leaves(plain) if get_origin(part) is Literal for word in get_args(part)]
        if (given is None and type(None) in _leaves(plain)) or (isinstance(given, str) and given in words):
            continue
        shown = f"--{name.replace('_', '-')} {given}" if prefix == "--" else f"{prefix}{name}={given!r}"
        whole = float not in _leaves(plain)
        for value in given if isinstance(given, tuple) else (given,):
            if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
                number = "a whole number" if whole else "a number"
                raise ConfigError(f"{shown} is not {number}; expected {within}; {within.use}.")
            if value not in within:
                raise ConfigError(f"{shown} is out of range; expected {within}; {within.use}.")


@functools.cache
def _declared(kind: Any) -> tuple[tuple[str, Any, Within], ...]:
    hints = get_type_hints(kind, include_extras=True).items()
    return tuple(
        (name, get_args(hint)[0], mark)
        for name, hint in hints
        for mark in getattr(hint, "__metadata__", ())
        if isinstance(mark, Within)
    )


def _leaves(hint: Any) -> Iterator[Any]:
    parts = () if get_origin(hint) is Literal else get_args(hint)
    if not parts:
        yield hint
    for part in parts:
        yield from _leaves(part)


def _plain(number: float) -> str:
    if number == 2**64 - 1:
        return "2**64 - 1"
    return str(number) if isinstance(number, int) else f"{number:g}"


SEED = Within(low=0, high=2**64 - 1, use="use 0")
"""Any seed."""
BATCH = Within(low=1, high=2**20, use="use a power of two that fits in memory, such as 256")
"""Images processed together."""
EPOCHS = Within(low=1, high=100_000, use="the reference recipe uses 200")
"""Passes over the training set."""
SHARE = Within(low=0, high=1, use="use 0 for never, 1 for always")
"""A probability, or a fraction of the images."""
COUNT = Within(low=1, high=10**6, use="give 1 or more")
"""A count, at least 1."""
MINUTES = Within(low=0, above=True, high=525_600, use="give 30, or more for a slow disk")
"""A waiting time, at most a year."""
