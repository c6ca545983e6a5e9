"""Commands run in this process: how they end, and what they say."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest


def exit_code(main: Callable[[], None], *arguments: object, program: str = "program") -> int:
    """Run a command's main with these arguments. Returns what the process would end with."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [program, *map(str, arguments)])
        try:
            main()
        except SystemExit as end:
            return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0


def said(capsys: pytest.CaptureFixture[str]) -> str:
    """Return what was printed, errors first, in words with one space between: without the frame that tyro draws."""
    printed = capsys.readouterr()
    return re.sub(r"[│╭╮╰╯─\s]+", " ", printed.err + printed.out)


class Refusal(NamedTuple):
    """A command line that is refused."""

    arguments: list[str]
    code: int
    sentence: str
    """A pattern that is found in what it says."""

    def check(
        self, capsys: pytest.CaptureFixture[str], main: Callable[[], None], *others: object, **places: object
    ) -> None:
        """Run the command, with other arguments behind. places: what stands for words in capitals of the arguments."""
        words = [re.sub(r"[A-Z]{2,}", lambda word: str(places.get(word[0], word[0])), word) for word in self.arguments]
        assert exit_code(main, *words, *others) == self.code
        plain = said(capsys)
        assert re.search(self.sentence, plain), plain
        assert "Traceback" not in plain


def refusals(*rows: tuple[list[str], int, str]) -> pytest.MarkDecorator:
    """Run a test once for each row, as `refusal`."""
    return pytest.mark.parametrize("refusal", [Refusal(*row) for row in rows], ids=lambda one: " ".join(one.arguments))


def own_network(model: Path, name: str) -> Path:
    """Make a model folder one of an architecture that timm does not know. Returns the file that registers it."""
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"architecture": name}))
    file = model.parent / "register.py"
    file.write_text(
        "import timm\nfrom timm.models import register_model\n"
        "@register_model\n"
        f"def {name}(pretrained=False, **kwargs):\n"
        f"    return timm.create_model({config['architecture']!r}, **kwargs)\n"
    )
    return file
