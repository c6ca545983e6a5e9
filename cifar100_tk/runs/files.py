"""recipe.json and run_status.json of a run folder."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any, Literal

from cifar100_tk.errors import DataError, ResumeError
from cifar100_tk.storage import atomic
from cifar100_tk.storage.json_files import Json, read_object, read_or_nothing, to_bytes

Status = Literal["running", "stopped", "failed", "finished"]


def read_recipe(path: Path) -> Json:
    """Return the recipe in a run folder, as nested JSON. Raises ResumeError if it cannot be read."""
    try:
        return read_object(path / "recipe.json", "start again with another --output-dir.")
    except DataError as error:
        raise ResumeError(str(error)) from error


def read_status(path: Path) -> Json:
    """Return the content of run_status.json, or {} if it is missing or damaged."""
    return read_or_nothing(path / "run_status.json")


def write_status(path: Path, status: Status, **facts: Any) -> None:
    """Write run_status.json of a run folder."""
    holder = {"status": status, "host": socket.gethostname(), "pid": os.getpid()}
    atomic.write_file(path / "run_status.json", to_bytes(holder | facts))
