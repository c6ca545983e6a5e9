"""The terminal recording of the README: what a command prints, when it prints it, and that it is the recipe's last run."""

from __future__ import annotations

import re
import runpy
import xml.etree.ElementTree
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT: dict[str, Any] = runpy.run_path(str(ROOT / "benchmarks" / "recording.py"))
SVG = "{http://www.w3.org/2000/svg}"


def visible(drawing: str, part: float) -> list[str]:
    """Return the texts that are visible at a part of the animation's length, 0..1, in their order from the top."""
    names = dict(re.findall(r"@keyframes (f\d+)\{(.*)\}\n", drawing))
    texts: list[tuple[float, str]] = []
    for group in xml.etree.ElementTree.fromstring(drawing).iter(f"{SVG}g"):
        name = group.attrib["style"].partition("animation-name:")[2].partition(";")[0]
        steps = re.findall(r"([\d.]+)%\{visibility:(\w+)\}", names.get(name, ""))
        if steps and [state for at, state in steps if float(at) <= 100 * part][-1] == "visible":
            texts += [(float(each.attrib["y"]), str(each.text)) for each in group.findall(f"{SVG}text")]
    return [text for _, text in sorted(texts)]


def test_a_bar_that_is_drawn_over_itself_and_a_coloured_line_are_shown_when_they_came(tmp_path: Path) -> None:
    command = r"printf '10 %%\r'; sleep 0.3; printf '20 %%\r     \r\033[32mdone\033[0m\n'"
    session = SCRIPT["record"](command, tmp_path)
    assert "".join(text for _, text in session.output) == "10 %\r20 %\r     \r\x1b[32mdone\x1b[0m\r\n"
    assert session.seconds >= 0.3
    drawing = SCRIPT["draw"]([session])
    assert visible(drawing, 0.0) == ["$ p"]
    assert visible(drawing, 0.3)[-1] == "10 %" and visible(drawing, 1.0)[-1] == "done"
    assert '<text x="14.0" y="35" textLength="33.6" class="green">done</text>' in drawing
    assert re.search(r">\d+\.\d s, shown in 20 s</text>", drawing)


def test_a_long_output_scrolls_to_its_end(tmp_path: Path) -> None:
    rows = SCRIPT["ROWS"]
    drawing = SCRIPT["draw"]([SCRIPT["record"](f"seq {rows + 5}", tmp_path)])
    # The command, the numbers and the line of the cursor: seven lines more than fit.
    assert visible(drawing, 1.0)[1 - rows :] == [str(number) for number in range(7, rows + 6)]
    assert f'transform:translateY({-7 * SCRIPT["LEADING"]}px)">' in drawing


def test_a_saved_recording_draws_the_same(tmp_path: Path) -> None:
    sessions = [SCRIPT["record"](f"echo {word}", tmp_path) for word in ("one", "two")]
    SCRIPT["save"](sessions, tmp_path / "two.cast")
    read = SCRIPT["load"](tmp_path / "two.cast")
    assert [(each.command, [text for _, text in each.output]) for each in read] == [
        ("echo one", ["one\r\n"]),
        ("echo two", ["two\r\n"]),
    ]
    assert [each.seconds for each in read] == pytest.approx([each.seconds for each in sessions])
    with pytest.raises(SystemExit, match=r"^false ended with exit code 1; nothing was drawn\.$"):
        SCRIPT["record"]("false", tmp_path)


def test_the_readme_shows_a_recording_of_its_first_command_and_of_what_its_model_is_worth() -> None:
    readme = (ROOT / "README.md").read_text()
    drawing = SCRIPT["DRAWING"].read_text()
    assert f"]({SCRIPT['DRAWING'].relative_to(ROOT)})" in readme
    assert len(drawing) < 300_000
    shown = "\n".join(visible(drawing, 1.0))
    assert "1200/1200" not in shown  # The bar is gone when the result is printed.
    assert all(command in shown for command in SCRIPT["COMMANDS"]) and SCRIPT["COMMANDS"][0] in readme
    assert re.search(r"^top-1 \d\d\.\d\d %, top-5 .* on 2,000 test images", shown, re.MULTILINE)
