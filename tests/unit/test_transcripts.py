"""The transcripts and figures of the documents: all from the one recorded run of `make transcripts`."""

from __future__ import annotations

import json
import re
import runpy
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = runpy.run_path(str(ROOT / "benchmarks" / "transcripts.py"))
RECORD: dict[str, Any] = json.loads(SCRIPT["RECORD"].read_text())
OUTPUTS: dict[str, str] = RECORD["outputs"]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
QUICKSTART = "accelerate launch recipes/quickstart.py"
MEASURED_AGAIN = ("python -m cifar100_tk.eval runs/quickstart", "bash docs/publishing.sh runs/quickstart")
FIGURE = re.compile(r"\b\d\d\.\d\d(?= (?:%|/|±))")


def quickstart() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "recipes" / "quickstart.py"))


def top1(output: str) -> set[str]:
    """Return the accuracies on the quickstart's test images at the beginning of a line."""
    return set(re.findall(r"^top-1 (\d+\.\d\d) %, top-5 .* on 2,000 test images of shapes100\b", output, re.MULTILINE))


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.stem)
def test_every_transcript_of_a_document_is_the_recorded_one(document: Path) -> None:
    text = document.read_text()
    missing = [command for command in SCRIPT["commands"](text) if command not in OUTPUTS]
    assert not missing, "make transcripts has not run these"
    assert SCRIPT["written"](text, OUTPUTS) == text


def test_the_record_holds_the_commands_of_the_documents_in_their_order_and_no_others() -> None:
    commands = [command for path in SCRIPT["documents"]() for command in SCRIPT["commands"](path.read_text())]
    assert list(dict.fromkeys(commands)) == list(OUTPUTS)


def test_the_readme_shows_the_quickstart() -> None:
    assert QUICKSTART in SCRIPT["commands"]((ROOT / "README.md").read_text())


@pytest.mark.parametrize("command", MEASURED_AGAIN)
def test_a_later_command_measures_the_accuracy_that_the_quickstart_reported(command: str) -> None:
    assert len(top1(OUTPUTS[QUICKSTART])) == 1
    assert top1(OUTPUTS[command]) == top1(OUTPUTS[QUICKSTART])


def blocks(text: str) -> list[tuple[str, str]]:
    """Return the language and the text of each fenced block."""
    return re.findall(r"^```(.*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.stem)
def test_no_output_of_a_command_stands_outside_a_transcript(document: Path) -> None:
    strangers = [
        text for language, text in blocks(document.read_text()) if language != "console" and "shapes100: " in text
    ]
    strangers += [text for language, text in blocks(document.read_text()) if language != "console" and top1(text)]
    assert not strangers, "give it the language console and the line `$ COMMAND`, and run make transcripts"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.stem)
def test_what_is_said_of_the_quickstart_is_recorded_or_in_its_recipe(document: Path) -> None:
    known = {*FIGURE.findall(OUTPUTS[QUICKSTART]), *FIGURE.findall(str(quickstart()["__doc__"]).replace("+-", "±"))}
    prose = re.sub(r"^```.*?^```$", "", document.read_text(), flags=re.MULTILINE | re.DOTALL)
    for passage in re.split(r"\n\n|\n(?=\|)", prose):
        if "quickstart" in passage:
            assert set(FIGURE.findall(passage)) <= known, passage


def test_the_conditions_that_the_documents_name_are_the_recorded_ones() -> None:
    text = (ROOT / "docs" / "launching.md").read_text().split("\n## ")[0]
    assert f"torch {RECORD['torch']} " in text
    assert f"{ {2: 'two', 4: 'four', 8: 'eight'}.get(RECORD['cpus'], RECORD['cpus']) } CPU cores" in text


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
