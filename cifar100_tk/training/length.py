"""The number of steps of a run: the same for its whole life, or more from a step on at which it was extended."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final


@final
@dataclass(frozen=True)
class RunLength:
    """The number of steps that the schedule and the phases of each step are computed with."""

    num_steps: int
    """Steps of the whole run, after every extension."""
    earlier: tuple[tuple[int, int], ...] = ()
    """For each extension, in order: the steps done before it, and the number of steps of the whole run until then."""

    def at(self, step: int) -> int:
        """Return the number of steps of the whole run as it was at a step.

        >>> extended = RunLength(300, earlier=((150, 200),))
        >>> extended.at(149), extended.at(150)
        (200, 300)
        """
        return next((num_steps for done, num_steps in self.earlier if step < done), self.num_steps)


NO_STEPS = RunLength(0)
"""Stands for the length where nothing depends on it."""
