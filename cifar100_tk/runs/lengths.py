"""The lengths that a run had before it was extended, as recipe.json records them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from cifar100_tk.storage.json_files import Json


@dataclass(frozen=True)
class Earlier:
    """A length that a run had before it was extended."""

    epochs: int
    """The epochs that it was to have until then."""
    step: int
    """Steps done when it was extended: those before were trained with the schedule of `epochs` epochs."""


def read_earlier(recipe: Json) -> tuple[Earlier, ...]:
    """Return the lengths in `extended` of a recipe.json, the first length first; () for a run that was never extended.

    >>> read_earlier({"epochs": 300, "extended": [{"epochs": 200, "step": 4800}]})
    (Earlier(epochs=200, step=4800),)
    >>> read_earlier({"epochs": 300, "extended": [{"epochs": -1}]})
    ()
    """
    found: Any = recipe.get("extended")
    try:
        earlier = tuple(Earlier(**each) for each in found or ())
    except TypeError:
        return ()
    numbers = [number for each in earlier for number in (each.epochs, each.step)]
    return earlier if all(type(number) is int and 0 <= number < 10**12 for number in numbers) else ()


def record(earlier: tuple[Earlier, ...]) -> Json:
    """Return the part of recipe.json that records earlier lengths; {} if there are none."""
    return {"extended": [asdict(each) for each in earlier]} if earlier else {}


def extends(recipe: Json, recorded: Json) -> bool:
    """Return whether a recipe.json is that of a recorded run, made longer once more."""
    earlier = read_earlier(recipe)
    return bool(earlier) and earlier[:-1] == read_earlier(recorded) and earlier[-1].epochs == recorded.get("epochs")


def describe_earlier(recipe: Json) -> str:
    """Return the extensions of a run in words, or "".

    >>> describe_earlier({"epochs": 300, "extended": [{"epochs": 200, "step": 4800}]})
    'extended from 200 epochs after step 4,800'
    """
    lengths = [(f"{each.epochs:,} epoch{'s' * (each.epochs != 1)}", each.step) for each in read_earlier(recipe)]
    return ", ".join(f"extended from {epochs} after step {step:,}" for epochs, step in lengths)
