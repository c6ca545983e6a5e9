"""A part of a run, given in fractions of the run or in epochs, in which a component is on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from cifar100_tk.errors import ConfigError
from cifar100_tk.ranges import Within, check_ranges


@dataclass(frozen=True, kw_only=True)
class Phased:
    """The base of components that are on in a part of the run only."""

    start: Annotated[float, Within(low=0, high=100_000, use="use 0 for the start of the run")] = 0.0
    """The point of the run from which it is on: a fraction in [0, 1), or a number of epochs with `in_epochs`."""

    stop: Annotated[float | None, Within(low=0, high=100_000, use="leave it out for the end of the run")] = None
    """The point of the run from which it is off again, in the same unit; None for the end of the run."""

    in_epochs: bool = False
    """Count `start` and `stop` in epochs, instead of as fractions of the run."""

    def check(self, prefix: str) -> None:
        """Reject numbers outside their range, and a phase without a step. prefix: before a field's name, such as `mix.`."""
        check_ranges(self, prefix)
        given = f"{prefix}start={self.start}" + ("" if self.stop is None else f" with {prefix}stop={self.stop}")
        stop = self.stop if self.stop is not None else None if self.in_epochs else 1.0
        if not self.in_epochs and max(self.start, stop or 0.0) > 1:
            raise ConfigError(
                f"{given} is not a part of the run; use fractions from 0 "
                f"to 1, or set {prefix}in_epochs to count epochs."
            )
        if stop is not None and stop <= self.start:
            raise ConfigError(
                f"{given} leaves no step; use a start before the {'end' if self.stop is None else 'stop'}."
            )

    @property
    def throughout(self) -> bool:
        """True if it is on in the whole run."""
        return self.start == 0 and (self.stop is None or (self.stop == 1 and not self.in_epochs))

    def is_on(self, step: int, steps_per_epoch: int, num_steps: int) -> bool:
        """Return whether it is on at a step. step: 0..num_steps-1."""
        unit = steps_per_epoch if self.in_epochs else num_steps
        return step >= round(self.start * unit) and (self.stop is None or step < round(self.stop * unit))

    def describe_phase(self, steps_per_epoch: int, num_steps: int) -> str:
        """Return the phase as the plan shows it.

        >>> Phased(start=0.3, stop=0.95).describe_phase(100, 1000)
        'from step 300 to step 950'
        >>> Phased(start=2, in_epochs=True).describe_phase(100, 1000)
        'from step 200 to the end'
        """
        if self.throughout:
            return "throughout"
        unit = steps_per_epoch if self.in_epochs else num_steps
        first, last = round(self.start * unit), num_steps if self.stop is None else round(self.stop * unit)
        if first >= num_steps:
            return f"never, because the run ends at step {num_steps:,}"
        return f"from step {first:,} to {'the end' if last >= num_steps else f'step {last:,}'}"
