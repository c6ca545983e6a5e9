"""Differences between the recipes of runs, one line for each component."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from itertools import takewhile
from typing import Any, Final

from cifar100_tk import augment, data, models, optim
from cifar100_tk.recipe import to_json
from cifar100_tk.storage.json_files import Json

ABSENT: Final = "absent"
MOST_BARE: Final = 2
"""Leading numbers of an augmentation that are written without their names."""


def comparable_recipe(recipe: Json, *, seed: bool = False) -> Json:
    """Return the content of a recipe.json without the fields in which runs of one recipe may differ.

    Those are the seed, the epoch of a model kept by --keep-best, and the source of the images if the run records their
    identity. seed: keep the seed.
    """
    aside = {"best": {"epoch", "value"}, "data": {"source"} if "images" in recipe else set()}
    return {
        name: {field: held for field, held in value.items() if field not in aside[name]}
        if name in aside and isinstance(value, dict)
        else value
        for name, value in recipe.items()
        if name not in ("type", "reference") and (seed or name != "seed")
    }


def differences(recipes: Sequence[Json]) -> dict[str, list[str]]:
    """Return what differs between recipes, with its value in each as in a recipe file.

    A component of one type is given by the numbers that differ: `optimizer.lr` if it is one, else all in a line. Other
    values are given whole, without the fields that have their default; augmentations are shortened to `PadCrop(4)`.
    """
    recipes = [recipe | _digests(recipe) for recipe in recipes]
    names = dict.fromkeys(name for recipe in recipes for name in recipe)
    found: dict[str, list[str]] = {}
    for name in names:
        found |= _differing(name, [recipe.get(name, ABSENT) for recipe in recipes])
    return found


def _digests(recipe: Json) -> Json:
    """Return the `images` of a recipe.json with one value for each split, the digest of its rows."""
    images = recipe.get("images")
    if not isinstance(images, dict):
        return {}
    return {
        "images": {split: held.get("rows_sha256", held) for split, held in images.items() if isinstance(held, dict)}
    }


def _differing(name: str, values: list[Any]) -> dict[str, list[str]]:
    if all(value == values[0] for value in values):
        return {}
    if not all(isinstance(value, dict) for value in values) or len({value.get("type") for value in values}) > 1:
        return {name: [_brief(value) for value in values]}
    fields = dict.fromkeys(field for value in values for field in value)
    held = {field: [value.get(field, ABSENT) for value in values] for field in fields}
    differ = {field: each for field, each in held.items() if any(value != each[0] for value in each)}
    if "type" not in fields or len(differ) == 1:
        return {part: found for field in differ for part, found in _differing(f"{name}.{field}", differ[field]).items()}
    kind = values[0]["type"]
    components = [dict(zip(differ, each, strict=True)) for each in zip(*differ.values(), strict=True)]
    return {name: [as_written({"type": kind} | component) for component in components]}


def _brief(value: Any) -> str:
    """Return a value as in a recipe file, without the fields that have their default.

    >>> _brief({"type": "SGD", "lr": 0.1, "lr_batch_size": 128, "nesterov": True})
    'SGD(lr=0.1, lr_batch_size=128)'
    >>> _brief([{"type": "PadCrop", "padding": 4, "mode": "zero"}, {"type": "Flip", "p": 0.5, "alternate": True}])
    'PadCrop(4), Flip(0.5, alternate=True)'
    >>> _brief([]), _brief(None)
    ('none', 'none')
    """
    if value is None or value == []:
        return "none"
    if isinstance(value, list) and all(isinstance(item, dict) for item in value):
        return ", ".join(_brief_component(item, bare=True) for item in value)
    return _brief_component(value) if isinstance(value, dict) else as_written(value)


def _brief_component(component: Json, *, bare: bool = False) -> str:
    """Return a component without the fields that have their default. bare: write leading numbers without their names."""
    kind, fields = str(component.get("type", "")), {k: v for k, v in component.items() if k != "type"}
    defaults = _defaults(kind)
    leading = [name for name, _ in takewhile(lambda item: _is_number(item[1]), fields.items())][:MOST_BARE]
    unnamed = leading if bare and defaults is not None else []
    named = [
        name for name, value in fields.items() if name not in unnamed and value != (defaults or {}).get(name, ABSENT)
    ]
    parts = [*(as_written(fields[name]) for name in unnamed), *(f"{name}={as_written(fields[name])}" for name in named)]
    return f"{kind}({', '.join(parts)})" if parts else kind


def _defaults(kind: str) -> Json | None:
    """Return the defaults of a component by the name of its type; None if it is not one of ours."""
    found = next((getattr(module, kind) for module in (augment, optim, data, models) if hasattr(module, kind)), None)
    if not (isinstance(found, type) and dataclasses.is_dataclass(found)):
        return None
    given = (field for field in dataclasses.fields(found) if field.default is not dataclasses.MISSING)
    return {field.name: to_json(field.default) for field in given}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def as_written(value: Any) -> str:
    """Return a recipe value in the syntax of a recipe file.

    >>> as_written({"type": "SGD", "lr": 0.1, "nesterov": True})
    'SGD(lr=0.1, nesterov=True)'
    >>> as_written([{"type": "Flip", "p": 0.5}, None])
    'Flip(p=0.5), None'

    A SHA-256 is abbreviated.

    >>> as_written("0123456789abcdef" * 4)
    '0123456789ab…'
    """
    if isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value):
        return f"{value[:12]}…"
    if isinstance(value, dict):
        inner = ", ".join(f"{name}={as_written(held)}" for name, held in value.items() if name != "type")
        return f"{value.get('type', '')}({inner})"
    if isinstance(value, list):
        text = ", ".join(map(as_written, value))
        return text if any(isinstance(held, dict) for held in value) else f"({text})"
    return value if isinstance(value, str) else repr(value)
