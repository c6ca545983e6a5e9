"""A failure of one's own augmentation in a loader worker: the run ends at once, with its sentence and all its workers."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from processes import PROGRAMS, patient


def ended(folder: Path, how: str, *options: str) -> tuple[int, str, float]:
    """Run a recipe with such an augmentation on two workers. Returns exit code, what it said, seconds until it had ended."""
    (folder / "workers").mkdir()
    command = [sys.executable, str(PROGRAMS / "own_augmentation.py"), "--workers", "2", "--output-dir", "run", *options]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OWN": how, "PYTHONPATH": os.pathsep.join(sys.path)}
    started = time.monotonic()
    process = subprocess.Popen(
        command, cwd=folder, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    try:
        said, _ = process.communicate(timeout=60)  # The workers hold the pipe, so all of them have ended too.
    finally:
        process.kill()
        process.wait()
    workers = [int(one.name) for one in (folder / "workers").iterdir()]
    assert workers and process.pid not in workers
    assert not [pid for pid in workers if Path(f"/proc/{pid}").exists()]
    return process.returncode, said, time.monotonic() - started


@pytest.mark.parametrize("options", [(), ("--contact-sheet", "sheet.png")])
def test_a_draw_that_returns_an_array_is_a_sentence(tmp_path: Path, options: tuple[str, ...]) -> None:
    code, said, _ = ended(tmp_path, "draws an array", *options)
    assert code == 2
    assert said.splitlines()[-1] == (
        "own_augmentation.py: Own.draw returned an array of shape (20, 1); return a dict of named numpy arrays, each with one "
        "row for each of the 20 images, or an empty dict for no draws."
    )
    assert not (tmp_path / "sheet.png").exists()


def test_an_exception_ends_the_workers_that_are_stuck(tmp_path: Path) -> None:
    code, said, seconds = ended(tmp_path, "raises while another is stuck")
    assert code == 1 and "KeyError: 'a bug in one worker'" in said and "in draw" in said
    assert seconds < patient(20)  # Most of it is the start.


def test_a_worker_that_is_killed_is_a_sentence(tmp_path: Path) -> None:
    code, said, _ = ended(tmp_path, "is killed")
    assert code == 1
    assert said.splitlines()[-1].startswith("own_augmentation.py: a loader worker died (DataLoader worker (pid")
    assert (
        said.endswith("give fewer --workers than 2, or find the cause with --workers 0.\n") and "Traceback" not in said
    )


def test_an_image_of_another_size_is_a_sentence(tmp_path: Path) -> None:
    code, said, _ = ended(tmp_path, "resizes")
    assert code == 2
    assert said.endswith(
        "own_augmentation.py: Own.apply returned a 16x32 RGB image; return a 32x32 RGB Pillow image.\n"
    )
