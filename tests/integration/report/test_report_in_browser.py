"""The pages fit a phone and a desktop in both colour schemes, and can be explored with mouse, finger and keyboard."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from screenshots import screenshot_folder
from written_runs import folder

from cifar100_tk import report

pytestmark = pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium on PATH")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    with playwright.sync_playwright() as browsers:
        browser = browsers.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def pages(
    built_report: Path, finished_run: Path, ema_run: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """The page of one run, of two recipes, and of three seeds."""
    scratch = tmp_path_factory.mktemp("pages")
    seeds = [folder(scratch / f"a-rather-long-name-of-a-run-seed{seed}", seed=seed) for seed in range(3)]
    two = report.build([finished_run, ema_run], scratch / "two")
    return {"report": built_report, "report-two": two, "report-seeds": report.build(seeds, scratch / "seeds")}


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("name", ["report", "report-two", "report-seeds"])
def test_a_page_fits_its_window(
    name: str, width: int, scheme: str, browser: Any, pages: dict[str, Path], tmp_path: Path
) -> None:
    view = browser.new_page(viewport={"width": width, "height": 844}, color_scheme=scheme)
    heard: list[str] = []
    view.on("console", lambda message: heard.append(message.text))
    view.on("pageerror", lambda error: heard.append(str(error)))
    view.goto(pages[name].as_uri())
    view.screenshot(path=screenshot_folder(tmp_path) / f"{name}-{width}-{scheme}.png", full_page=True)
    assert view.evaluate("document.documentElement.scrollWidth") == width and not heard
    # Plots have the width of their neighbours, and none is wider than the page.
    widths = view.evaluate(
        "[...document.querySelectorAll('.plots svg')].map(s => s.getBoundingClientRect().width).filter(w => w)"
    )
    assert widths and max(widths) - min(widths) < 1 and 300 < max(widths) < 390
    view.close()


def confusion(run: Path, true: int, guess: int) -> str:
    """What the page should say about a cell, from the evaluation."""
    result = json.loads((run / "evaluation" / "test.json").read_text())
    names = [row["name"].replace("_", " ") for row in result["classes"]]
    count, total = result["confusion"][true][guess], sum(result["confusion"][true])
    told = f"{names[true]}: right" if true == guess else f"{names[true]} mistaken for {names[guess]}"
    return f"{told} in {count} of {total} ({100 * count / total:.1f}\N{NO-BREAK SPACE}%)"


def test_a_cell_is_named_under_mouse_finger_and_keyboard(
    finished_run: Path, browser: Any, pages: dict[str, Path]
) -> None:
    result = json.loads((finished_run / "evaluation" / "test.json").read_text())
    order = sorted(range(100), key=lambda number: (result["classes"][number]["superclass"], number))
    true, guess = next((t, g) for t in order for g in order if t != g and result["confusion"][t][g])
    row, column = order.index(true), order.index(guess)
    context = browser.new_context(viewport={"width": 390, "height": 844}, has_touch=True)
    view = context.new_page()
    view.goto(pages["report"].as_uri())
    matrix, readout = view.locator(".cells"), view.locator(".readout")
    assert "arrow keys" in readout.text_content()
    side = matrix.bounding_box()["width"]
    place = {"x": side * (column + 0.5) / 100, "y": side * (row + 0.5) / 100}
    matrix.hover(position=place)
    assert readout.text_content() == confusion(finished_run, true, guess)
    view.mouse.move(0, 0)
    # A finger just beside a cell means the cell; from there the arrow keys go from one filled cell to the next.
    counts = result["confusion"]
    guess = max(order, key=lambda g: sum(counts[t][g] > 0 for t in order))
    upper, lower = [t for t in order if counts[t][guess]][:2]
    place = {"x": side * (order.index(guess) + 0.5) / 100, "y": side * (order.index(upper) + 0.4) / 100}
    matrix.tap(position=place)
    assert readout.text_content() == confusion(finished_run, upper, guess)
    matrix.focus()
    view.keyboard.press("ArrowDown")
    assert readout.text_content() == confusion(finished_run, lower, guess)
    view.keyboard.press("ArrowUp")
    right = [g for g in order[order.index(guess) :] if counts[upper][g]][:2][-1]
    view.keyboard.press("ArrowRight")
    assert readout.text_content() == confusion(finished_run, upper, right)
    context.close()


def test_the_axes_are_switched_without_javascript(browser: Any, pages: dict[str, Path]) -> None:
    context = browser.new_context(java_script_enabled=False)
    view = context.new_page()
    view.goto(pages["report"].as_uri())
    by_epoch, by_time = (view.get_by_role("img", name=f"Loss against {axis}") for axis in ("epochs", "time"))
    assert by_epoch.is_visible() and not by_time.is_visible()
    view.get_by_label("seconds").check()
    assert by_time.is_visible() and not by_epoch.is_visible()
    # What only the script can do is not offered; the pairs say the same.
    assert not view.locator(".readout").is_visible() and view.locator(".cells img").is_visible()
    assert view.locator(".pairs li").count() == 20
    context.close()
