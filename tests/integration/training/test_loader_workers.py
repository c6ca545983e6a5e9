"""A failure of one's own augmentation in a loader worker: the run ends at once, with its sentence and all its workers."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

HEAD = """
import os, signal, sys, time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import final
from torch.utils.data import get_worker_info
sys.path.insert(0, {tests!r})
from runs import TINY
from cifar100_tk.augment import Augmentation
from cifar100_tk.train import main

def stuck():
    Path("stuck").touch()
    time.sleep(600)

def once_stuck():
    while not Path("stuck").exists():
        time.sleep(0.01)
    return True

@final
@dataclass(frozen=True, kw_only=True)
class Own(Augmentation):
    def draw(self, draws):
        Path("workers", str(os.getpid())).touch()
        return {draw}

    def apply(self, image, row):
        return {apply}

if __name__ == "__main__":
    main(replace(TINY, augment=(Own(),)))
"""


def ended(folder: Path, *options: str, draw: str = "{}", apply: str = "image") -> tuple[int, str, float]:
    """Run a recipe with such an augmentation on two workers. Returns exit code, what it said, seconds until it had ended."""
    (folder / "workers").mkdir()
    file = folder / "own.py"
    file.write_text(HEAD.format(tests=str(Path(__file__).parents[2] / "support"), draw=draw, apply=apply))
    command = [sys.executable, str(file), "--workers", "2", "--output-dir", "run", *options]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true"}
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
    code, said, _ = ended(tmp_path, *options, draw="draws.uniform(1)")
    assert code == 2
    assert said.splitlines()[-1] == (
        "own.py: Own.draw returned an array of shape (20, 1); return a dict of named numpy arrays, each with one row for each "
        "of the 20 images, or an empty dict for no draws."
    )
    assert not (tmp_path / "sheet.png").exists()


def test_an_exception_ends_the_workers_that_are_stuck(tmp_path: Path) -> None:
    code, said, seconds = ended(tmp_path, draw="stuck() if get_worker_info().id else once_stuck() and {}[0]")
    assert code == 1 and "KeyError: 0" in said and "stuck() if" in said
    assert seconds < 20  # Most of it is the start.


def test_a_worker_that_is_killed_is_a_sentence(tmp_path: Path) -> None:
    code, said, _ = ended(tmp_path, apply="os.kill(os.getpid(), signal.SIGKILL)")
    assert code == 1
    assert said.splitlines()[-1].startswith("own.py: a loader worker died (DataLoader worker (pid")
    assert (
        said.endswith("give fewer --workers than 2, or find the cause with --workers 0.\n") and "Traceback" not in said
    )


def test_an_image_of_another_size_is_a_sentence(tmp_path: Path) -> None:
    code, said, _ = ended(tmp_path, apply="image.resize((16, 32))")
    assert code == 2
    assert said.endswith("own.py: Own.apply returned a 16x32 RGB image; return a 32x32 RGB Pillow image.\n")
