"""A pickle that tells when it is loaded."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class Canary:
    """Leaves a folder behind when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.trace),)


@contextmanager
def unpickled() -> Iterator[list[object]]:
    """Listen to what this process unpickles: each class and function that a pickle asks for."""
    heard: list[object] = []
    listening = True

    def listen(event: str, arguments: tuple[object, ...]) -> None:
        if listening and event == "pickle.find_class":
            heard.append(arguments)

    sys.addaudithook(listen)  # Never to be removed, so told when to stop.
    try:
        yield heard
    finally:
        listening = False
