"""Output folder of a report: writes the page and its figures, and leaves any other folder alone."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from cifar100_tk.errors import ConfigError
from cifar100_tk.storage import atomic

PAGE: Final = "report.html"
IMAGES: Final = ("curves.png", "confusion.png", "reliability.png", "mistakes.png")
MARK: Final = '<meta name="generator" content="cifar100_tk.report">'
"""Marks every report, so that a folder with other files is never overwritten."""


def check(to: Path) -> None:
    """Raise ConfigError if the folder holds anything but an older report."""
    if to.exists() and not to.is_dir():
        raise ConfigError(f"{to} is a file; pass a folder to --to.")
    if not to.is_dir() or _is_report(to / PAGE):
        return
    strangers = sorted(path.name for path in to.iterdir() if not path.name.startswith(atomic.TEMPORARY))
    if strangers:
        raise ConfigError(f"{to} is not a report folder: it contains {strangers[0]}; pass another folder to --to.")


def write(to: Path, files: dict[str, bytes]) -> None:
    """Write the page and its images, replacing each file atomically. files: contents by name."""
    atomic.make_folder(to)
    try:
        for name in IMAGES:
            if name not in files:  # A leftover image of an older report.
                (to / name).unlink(missing_ok=True)
    except OSError as error:
        raise atomic.disk_error(error, to, 0) from error
    for name, content in files.items():
        atomic.write_file(to / name, content)


def _is_report(page: Path) -> bool:
    try:
        with page.open("rb") as file:
            return MARK.encode() in file.read(1000)
    except OSError:
        return False
