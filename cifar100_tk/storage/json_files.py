"""Reading and writing JSON objects on disk, with one-sentence errors and one format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cifar100_tk.errors import DataError

Json = dict[str, Any]
"""A JSON object."""


def read_object(path: Path, remedy: str) -> Json:
    """Return the JSON object in a file.

    remedy: the end of the error message. Raises DataError naming the file if it does not hold an object.
    """
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path} cannot be read as JSON ({error}); {remedy}") from error
    if not isinstance(value, dict):
        raise DataError(f"{path} must hold a JSON object, not a {type(value).__name__}; {remedy}")
    return value


def read_or_nothing(path: Path) -> Json:
    """Return the JSON object in a file, or {} if there is none."""
    try:
        return read_object(path, "")
    except DataError:
        return {}


def to_bytes(value: Json) -> bytes:
    """Return an object as human-readable JSON, indented by two spaces, with a final newline."""
    return (json.dumps(value, indent=2) + "\n").encode()
