"""The transcripts of the documents: how `make transcripts` runs commands and writes their output."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

SCRIPT = runpy.run_path(str(Path(__file__).parent.parent / "benchmarks" / "transcripts.py"))


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        ("old\n", "a\nb\nc\nd\n"),
        ("1\n...\n9\n", "a\n...\nd\n"),
        ("...\n8\n9\n", "...\nc\nd\n"),
        ("1\n...\n", "a\n...\n"),
    ],
)
def test_a_long_output_keeps_as_many_lines_as_its_document_shows(shown: str, expected: str) -> None:
    assert SCRIPT["written"](f"```console\n$ run\n{shown}```\n", {"run": "a\nb\nc\nd\n"}) == (
        f"```console\n$ run\n{expected}```\n"
    )


def test_commands_run_once_in_order_in_one_folder_and_in_a_home_of_their_own() -> None:
    outputs = SCRIPT["run"](
        ["echo hello > said", "until [ -s there ]; do sleep 0.1; done; cat there &", "cp said there"] * 2
    )
    assert list(outputs.values()) == ["", "hello\n", ""]
    assert SCRIPT["run"](["pwd; echo ~; ls -d recipes", "cat said"]) == {
        "pwd; echo ~; ls -d recipes": ".\n~\nrecipes\n",
        "cat said": "cat: said: No such file or directory\n",
    }


def test_what_launchers_add_is_left_out_and_blank_lines_of_ours_stay() -> None:
    output = "ours\n\nours\nTraceback (most recent call last):\n  File\nError: x\n\nW1234 torch\n\nours\n"
    assert SCRIPT["tidy"](output, Path("/nowhere")) == f"ours\n\nours\n{SCRIPT['LEFT_OUT']}ours\n"
