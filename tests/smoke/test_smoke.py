"""One of each kind of slow test, for a plain `pytest`: a kill, a signal, a resume, two processes, a page in a browser."""

from __future__ import annotations

import shutil
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest
from interrupted import ONE, TERM, TWO, Whole, resumes_on, stops, survives
from written_runs import folder

from cifar100_tk import report


def test_a_killed_run_ends_as_if_nothing_had_happened(
    forkserver: ForkServerContext, tmp_path: Path, uninterrupted: Whole
) -> None:
    survives(forkserver, tmp_path / "run", uninterrupted(ONE), "optimizer.safetensors.written:2", **ONE)


def test_a_signal_stops_a_run_after_the_step_which_then_resumes(
    forkserver: ForkServerContext, tmp_path: Path, uninterrupted: Whole
) -> None:
    patch = ("signal_at", {"step-00000001.done": TERM})
    said = stops(forkserver, tmp_path / "run", uninterrupted(ONE), 1, patch, **ONE)
    assert "stopped by SIGTERM after step 1," in said


@pytest.mark.distributed
def test_a_signal_stops_two_processes_after_the_same_step(
    forkserver: ForkServerContext, tmp_path: Path, uninterrupted: Whole
) -> None:
    patch = ("signal_at", {"step-00000003.done": TERM}, None)
    said = stops(forkserver, tmp_path / "run", uninterrupted(TWO), 3, patch, **TWO)
    assert said.count("signalled at") == 2 and said.count("stopped by SIGTERM after step 3,") == 2


@pytest.mark.distributed
def test_a_run_goes_on_with_fewer_processes(forkserver: ForkServerContext, tmp_path: Path) -> None:
    resumes_on(forkserver, tmp_path, before=2, after=1)


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium on PATH")
def test_a_browser_shows_it_on_a_phone_without_a_network(built_report: Path, tmp_path: Path) -> None:
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    many = [folder(tmp_path / f"a-rather-long-name-of-a-run-seed{seed}", seed=seed) for seed in range(3)]
    pages = [built_report, report.build(many, tmp_path / "many")]
    heard: list[str] = []
    with playwright.sync_playwright() as browsers:
        browser = browsers.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        view = browser.new_page(viewport={"width": 390, "height": 800}, color_scheme="dark")
        view.on("console", lambda message: heard.append(message.text))
        view.on("pageerror", lambda error: heard.append(str(error)))
        view.on("request", lambda request: heard.append(request.url))
        for path in pages:
            heard.clear()
            view.goto(path.as_uri())
            assert view.evaluate("document.documentElement.scrollWidth") == 390
            assert [url for url in heard if not url.startswith("data:")] == [path.as_uri()]
            ground = view.evaluate("getComputedStyle(document.body).backgroundColor")
            assert ground == "rgb(20, 23, 27)"
            inks = view.evaluate("[...document.querySelectorAll('svg g[style]')].map(g => getComputedStyle(g).fill)")
            assert "rgb(231, 234, 238)" in inks  # The text of the plots is light too.
        browser.close()
