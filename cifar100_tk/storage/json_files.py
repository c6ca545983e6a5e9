"""JSON objects on the disk: read with one sentence for whatever is wrong, and written the same everywhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cifar100_tk.errors import DataError

Json = dict[str, Any]
"""A JSON object, or values made of such."""


def read_object(path: Path, remedy: str) -> Json:
    """Return the object that a file holds.

    remedy: what to do where it holds none, the end of the sentence. Raises DataError naming the file.
    """
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path} cannot be read as JSON ({error}); {remedy}") from error
    if not isinstance(value, dict):
        raise DataError(f"{path} holds no JSON object but a {type(value).__name__}; {remedy}")
    return value


def read_or_nothing(path: Path) -> Json:
    """Return the object that a file holds, or {} where it holds none."""
    try:
        return read_object(path, "")
    except DataError:
        return {}


def to_bytes(value: Json) -> bytes:
    """Return an object as people can read it too, two spaces an indent, with a line's end."""
    return (json.dumps(value, indent=2) + "\n").encode()
