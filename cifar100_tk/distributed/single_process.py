"""A check for single-process commands: several processes would repeat the work and write the same files at once."""

from __future__ import annotations

import os

from cifar100_tk.errors import ConfigError


def refuse_several(program: str) -> None:
    """Raise ConfigError where a launcher has started this program in more than one process; reads the environment only."""
    started = os.environ.get("WORLD_SIZE") or "1"
    if started != "1":
        raise ConfigError(
            f"a launcher started {started} processes (WORLD_SIZE), but this command runs as one; start it directly: {program}"
        )
