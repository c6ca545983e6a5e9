"""The progress display of a run: one bar for the whole run in a terminal, plain lines elsewhere."""

from __future__ import annotations

import os
import sys
import time

from tqdm import tqdm

BOLD, DIM, GREEN, YELLOW = "1", "2", "32", "33"
"""Terminal styles."""
QUIET_SECONDS = 60.0
"""The longest silence between two lines when there is no bar."""


class Progress:
    """A bar with the time left and the latest figures, and a line per epoch."""

    def __init__(self, num_steps: int, start: int, *, silent: bool, quiet: bool = False) -> None:
        """silent: print nothing, as on every process but the main one. quiet: print warnings only."""
        self.silent, self.quiet = silent, quiet or silent
        self.num_steps, self.start, self.start_time = num_steps, start, time.perf_counter()
        self.done, self.last_output = start, self.start_time
        at_terminal = sys.stderr.isatty() and not self.quiet
        self.bar = tqdm(
            total=num_steps,
            initial=start,
            unit="step",
            dynamic_ncols=True,
            smoothing=0.05,
            disable=not at_terminal,
            leave=False,
        )

    def step(self, images_per_second: float, loss: float, lr: float) -> None:
        """Count a finished step. loss: the newest known, in nats. lr: the step's learning rate."""
        figures = f"loss {loss:.3f}  lr {lr:.3g}  {images_per_second:,.0f} images/s"
        self.bar.update()
        self.done += 1
        if self.bar.disable and time.perf_counter() - self.last_output > QUIET_SECONDS:
            self.line(f"step {self.done:,}/{self.num_steps:,}  {figures}", self.done)
        if not self.bar.disable:
            self.bar.set_postfix_str(figures, refresh=False)

    def line(self, text: str, step: int) -> None:
        """Print a permanent line, with the time left when there is no bar."""
        self.note(f"{text}  {self.left(step)}" if self.bar.disable else text)

    def note(self, text: str) -> None:
        """Print a permanent line, unless quiet."""
        self.last_output = time.perf_counter()
        if not self.quiet:
            self._print(text)

    def warn(self, text: str) -> None:
        """Print a permanent line, also if quiet."""
        if not self.silent:
            self._print(style(text, YELLOW))

    def _print(self, text: str) -> None:
        if not self.bar.disable:
            self.bar.clear()
        print(text, flush=True)
        if not self.bar.disable:
            self.bar.refresh()

    def left(self, step: int) -> str:
        """Return the estimated time left as text, from the speed of this process's own steps."""
        done = step - self.start
        seconds = (time.perf_counter() - self.start_time) / done * (self.num_steps - step) if done else 0.0
        return f"{duration(seconds)} left" if step < self.num_steps else "done"

    def close(self) -> None:
        """Remove the bar."""
        self.bar.close()


class Speed:
    """The training speed: images and time since the last restart."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Start counting from zero."""
        self.images, self.start_time = 0, time.perf_counter()

    def count(self, images: int) -> None:
        """Add trained images to the count."""
        self.images += images

    @property
    def seconds(self) -> float:
        """The time since the start."""
        return time.perf_counter() - self.start_time

    @property
    def images_per_second(self) -> float:
        """The mean speed since the start."""
        return self.images / self.seconds


def style(text: str, code: str) -> str:
    """Return text in a terminal style; unchanged where output is not a terminal, or NO_COLOR is set (https://no-color.org)."""
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb" or not sys.stdout.isatty()
    return text if plain else f"\x1b[{code}m{text}\x1b[0m"


def duration(seconds: float) -> str:
    """Return a duration in human-readable form.

    >>> duration(7.21), duration(59.97), duration(75), duration(7502)
    ('7.2 s', '1 min 00 s', '1 min 15 s', '2 h 05 min')
    """
    if round(seconds, 1) < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def percent(fraction: float) -> str:
    """Return a fraction as a percentage for display.

    >>> percent(0.8145)
    '81.45 %'
    """
    return f"{100 * fraction:.2f} %"
