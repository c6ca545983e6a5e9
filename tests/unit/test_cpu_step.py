"""benchmarks/cpu_step.py: a row measured, and the numbers it refuses."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "cpu_step.py"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True, timeout=300)


def test_a_row_has_a_speed_for_each_side() -> None:
    done = run("--row", "0", "--steps", "1", "--sides", "17", "20")
    speeds = json.loads(done.stdout)
    assert list(speeds) == ["17", "20"]
    assert min(speeds.values()) > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sides", "20", "16"], "--sides 16 is too small for the recipe's network; give 17 or more."),
        (["--rounds", "0"], "--rounds and --steps must be 1 or more."),
        (["--steps", "0"], "--rounds and --steps must be 1 or more."),
    ],
)
def test_numbers_that_cannot_be_measured_are_refused(arguments: list[str], message: str) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
