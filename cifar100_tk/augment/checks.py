"""Checks shared by the fields of several augmentations; each raises ConfigError with a sentence for the user."""

from __future__ import annotations

from cifar100_tk.errors import ConfigError


def check_share(name: str, value: float) -> None:
    """Reject a probability outside 0..1. name: as the user writes it, such as `flip.p`."""
    if not 0.0 <= value <= 1.0:
        raise ConfigError(f"{name}={value} is not a probability; use a number from 0 (never) to 1 (always).")


def check_whole(name: str, value: int, low: int, high: int) -> None:
    """Reject an integer outside low..high, both included."""
    if not low <= value <= high:
        raise ConfigError(f"{name}={value} is out of range; use a whole number from {low} to {high}.")
