"""HTML report of one run, or of several side by side; `python -m cifar100_tk.report RUN`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cifar100_tk.errors import ConfigError

__all__ = ["build"]


def build(runs: Sequence[Path], to: Path) -> Path:
    """Write the report of run folders to the folder `to`: report.html, which is self-contained, and its figures as PNG.

    Returns the path of report.html. An older report is replaced. Raises ConfigError if a path is not a run folder or `to`
    holds anything else, DataError if a recipe cannot be read, DiskError if the folder cannot be written.
    """
    try:
        from cifar100_tk.report.page import write  # matplotlib and torch take seconds to import.
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("matplotlib", "jinja2", "markupsafe"):
            raise
        raise ConfigError(f'the report needs {error.name}; install it with: pip install -e ".[report]"') from error
    return write(list(runs), to)
