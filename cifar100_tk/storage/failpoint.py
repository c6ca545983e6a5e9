"""Named moments at which a test can kill the process, to prove that a run survives dying there."""

from __future__ import annotations

import os
import signal
from collections import Counter

VARIABLE = "CIFAR100_TK_FAIL_AT"
"""NAME:N in this environment variable kills the process, as `kill -9` does, when it reaches NAME for the N-th time."""

reached: Counter[str] = Counter()
"""How often each name was reached, counted only where the variable is set."""


def reach(name: str) -> None:
    """Do nothing, or die if the environment says so."""
    if wanted := os.environ.get(VARIABLE):
        reached[name] += 1
        if wanted == f"{name}:{reached[name]}":
            os.kill(os.getpid(), signal.SIGKILL)
