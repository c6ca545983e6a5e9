"""Failpoints: named points at which a test can kill the process, to prove that a run survives it."""

from __future__ import annotations

import os
import signal
from collections import Counter

VARIABLE = "CIFAR100_TK_FAIL_AT"
"""NAME:N in this environment variable kills the process, as `kill -9` does, when it reaches NAME for the N-th time."""

reached: Counter[str] = Counter()
"""Number of times that each name was reached, counted only if the variable is set."""


def reach(name: str) -> None:
    """Kill the process if the environment variable asks for it; otherwise do nothing."""
    if wanted := os.environ.get(VARIABLE):
        reached[name] += 1
        if wanted == f"{name}:{reached[name]}":
            os.kill(os.getpid(), signal.SIGKILL)
