"""The model of several GPUs: figures worked out by hand, the tables of docs/scaling.md, and figures that cannot be."""

from __future__ import annotations

import re
import runpy
import shlex
from pathlib import Path
from typing import Any

import pytest
from commands import exit_code, said

ROOT = Path(__file__).parents[2]
DOCUMENT = (ROOT / "docs" / "scaling.md").read_text()
COMMAND = shlex.split(re.findall(r"^python benchmarks/scaling\.py (.*)$", DOCUMENT, re.MULTILINE)[0])
ASSUMED = ["--images-per-second", "20000"]


@pytest.fixture(scope="module")
def script() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "benchmarks" / "scaling.py"))


def test_a_step_of_two_machines_is_what_the_model_says_by_hand(script: dict[str, Any]) -> None:
    machines = script["Machines"](images_per_second=20_000)
    # 2048 / 16 images: 4 + 6.4 ms. The ring: 1.875 * 94.821 MB / 25 GB/s + 30 * 0.02 ms = 7.712 ms, of which two thirds of
    # 10.4 ms hide all but the last bucket: 1.875 * 26.214 MB / 25 GB/s + 0.6 ms = 2.566 ms.
    assert script["step_seconds"](machines, 16, 2048) == pytest.approx(12.966e-3, abs=1e-6)
    # 64: 4 + 1.6 ms; 1.96875 * 94.821 / 25 + 126 * 0.02 = 9.987 ms, of which 3.733 are hidden and 6.254 are not.
    assert script["step_seconds"](machines, 64, 2048) == pytest.approx(11.854e-3, abs=1e-6)


@pytest.mark.parametrize("options", [COMMAND, [*ASSUMED, "--batch-size", "256", "--weak"]], ids=["strong", "weak"])
def test_the_document_shows_what_the_script_prints(
    script: dict[str, Any], capsys: pytest.CaptureFixture[str], options: list[str]
) -> None:
    assert exit_code(script["main"], *options) == 0
    label, table = capsys.readouterr().out.split("\n", 1)
    assert label == "Simulated, not measured." and label.rstrip(".") in DOCUMENT
    assert table.count("\n") == 9 and table in DOCUMENT


def test_gpus_over_which_the_batch_does_not_split_are_left_out(
    script: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code(script["main"], *ASSUMED, "--batch-size", "100") == 0
    assert re.findall(r"^\| (\d+) \| 100 \| (\d+) ", capsys.readouterr().out, re.MULTILINE) == [
        ("1", "100"),
        ("2", "50"),
        ("4", "25"),
    ]


@pytest.mark.parametrize(
    ("option", "value", "wanted"),
    [
        ("--images-per-second", "0", "more than 0"),
        ("--images-per-second", "nan", "more than 0"),
        ("--network-gb", "inf", "more than 0"),
        ("--gpus-per-machine", "0", "more than 0"),
        ("--batch-size", "-8", "more than 0"),
        ("--latency-us", "-1", "0 or more"),
    ],
)
def test_figures_that_cannot_be_are_refused(
    script: dict[str, Any], capsys: pytest.CaptureFixture[str], option: str, value: str, wanted: str
) -> None:
    assert exit_code(script["main"], *ASSUMED, option, value) == 2
    assert f"{option} {value} cannot be; give a figure of {wanted}." in said(capsys)
