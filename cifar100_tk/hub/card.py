"""Model card: a generated part, and the hand-written text around it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from cifar100_tk.errors import DataError
from cifar100_tk.hub.body import render_card
from cifar100_tk.hub.card_data import REPOSITORIES, CardData
from cifar100_tk.hub.front_matter import front_matter
from cifar100_tk.storage.json_files import Json

BEGIN = "<!-- cifar100_tk: written from the run; the next push writes it anew up to the end mark, all else stays -->"
END = "<!-- cifar100_tk: end -->"
PLACEHOLDER = "USER/NAME"
"""Placeholder for a repository id that is not known yet."""

_OURS = ("library_name", "pipeline_tag", "model-index")
"""Front matter keys that every push regenerates, so that no figures of older weights remain."""
_LISTS = ("tags", "datasets", "metrics")
"""Front matter lists with both generated and hand-written entries."""
_NOT_THEIRS = {"tags": [*REPOSITORIES], "datasets": [*REPOSITORIES.values()]}
"""Generated entries about the training data, dropped from an older card unless generated again."""
_MARK = re.compile(rf"{re.escape(BEGIN)}.*?{re.escape(END)}", re.DOTALL)
# Not huggingface_hub's RepoCard: it drops keys without a value and misparses text after an empty front matter.
_FRONT = re.compile(r"\A---[ \t]*\n(.*?)^---[ \t]*(?:\n|\Z)", re.DOTALL | re.MULTILINE)


def write(
    facts: CardData, repo_id: str = PLACEHOLDER, *, license: str | None = None, existing: Iterable[str] = ()
) -> str:
    """Return README.md: front matter, the generated part between its marks, and the hand-written text around it.

    license: a Hub identifier; None keeps an existing one, else that of the pretrained weights or apache-2.0. existing: cards
    whose hand-written text, front matter keys and license stay; of two that disagree the first counts. Raises DataError for
    front matter that is no YAML.
    """
    generated = front_matter(facts)
    kept: Json = {}
    before = after = ""
    for card in existing:
        theirs, body = _split(card)
        kept = _united(kept, theirs)
        their_before, their_after = _around(body)
        before, after = _joined(before, their_before), _joined(after, their_after)
    kept |= {
        key: [entry for entry in _listed(kept.get(key)) if entry not in generated_entries]
        for key, generated_entries in _NOT_THEIRS.items()
    }
    data = _united(generated, {key: value for key, value in kept.items() if key not in _OURS and value != []})
    data["license"] = license or kept.get("license") or generated["license"]
    order = sorted(data, key=lambda key: key == "model-index")  # Long, so last.
    front = yaml.safe_dump({key: data[key] for key in order}, sort_keys=False, allow_unicode=True, width=1000).strip()
    parts = [before, f"{BEGIN}\n\n{render_card(facts, repo_id)}\n{END}", after]
    return f"---\n{front}\n---\n\n" + "\n\n".join(part for part in parts if part) + "\n"


def read(folder: Path) -> str:
    """Return README.md of a folder, or "" if there is none. Raises DataError if it is not text."""
    path = folder / "README.md"
    try:
        return path.read_text(encoding="utf-8") if path.is_file() else ""
    except UnicodeDecodeError as error:
        raise DataError(f"the existing README.md is not UTF-8 text ({error}); fix it first.") from error


def _split(card: str) -> tuple[Json, str]:
    """Return the front matter and the body of a card."""
    card = card.removeprefix("\ufeff").replace("\r\n", "\n")
    found = _FRONT.match(card)
    if not found:
        return {}, card
    try:
        data = yaml.safe_load(found[1]) or {}
    except yaml.YAMLError as error:
        where = " ".join(str(error).split())
        raise DataError(
            f"the front matter of the existing README.md is not valid YAML ({where}); fix it first."
        ) from error
    if not isinstance(data, dict):
        raise DataError(
            f"the front matter of the existing README.md must be a YAML mapping, got {data!r}; fix it first."
        )
    return data, card[found.end() :]


def _around(body: str) -> tuple[str, str]:
    """Return the text before and after the generated part; without one, all text counts as after."""
    found = _MARK.search(body)
    before, after = (body[: found.start()], body[found.end() :]) if found else ("", body)
    return _without_marks(before), _without_marks(after)


def _without_marks(text: str) -> str:
    # Remove unpaired marks and duplicate parts, which the next push would misread.
    return _MARK.sub("", text).replace(BEGIN, "").replace(END, "").strip()


def _joined(first: str, second: str) -> str:
    """Concatenate two hand-written texts; if one contains the other, return the longer."""
    if first in second or second in first:
        return max(first, second, key=len)
    return f"{first}\n\n{second}"


def _united(first: Json, second: Json) -> Json:
    """Merge two mappings: the first wins, except that shared lists are merged without duplicates."""
    united = first | {key: value for key, value in second.items() if key not in first}
    for key in _LISTS:
        if isinstance(first.get(key), list) and second.get(key):
            united[key] = [*first[key], *(entry for entry in _listed(second[key]) if entry not in first[key])]
    return united


def _listed(value: Any) -> list[Any]:
    """Return a value as a list: None is empty, a scalar has one entry."""
    return value if isinstance(value, list) else [] if value is None else [value]
