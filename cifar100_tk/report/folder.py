"""The folder that a report is written to: its page and its figures, and nothing of anybody else's."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from cifar100_tk.errors import ConfigError
from cifar100_tk.storage import atomic

PAGE: Final = "report.html"
IMAGES: Final = ("curves.png", "confusion.png", "reliability.png", "mistakes.png")
MARK: Final = '<meta name="generator" content="cifar100_tk.report">'
"""Stands in every report, and tells a report from a folder that is somebody else's."""


def check(to: Path) -> None:
    """Refuse a folder that holds anything but an older report."""
    if to.exists() and not to.is_dir():
        raise ConfigError(f"{to} is a file; give --to a folder.")
    if not to.is_dir() or _is_report(to / PAGE):
        return
    strangers = sorted(path.name for path in to.iterdir() if not path.name.startswith(atomic.TEMPORARY))
    if strangers:
        raise ConfigError(f"{to} holds no report but {strangers[0]}, and is left as it is; give --to another folder.")


def write(to: Path, files: dict[str, bytes]) -> None:
    """Write the page and its images, each replaced at once. files: the content of each by name."""
    atomic.make_folder(to)
    try:
        for name in IMAGES:
            if name not in files:  # An image of the report before would not be this one's.
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
