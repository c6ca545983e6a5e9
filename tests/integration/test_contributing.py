"""The how-tos of CONTRIBUTING.md: each of their code blocks is a file that trains as it stands there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from runs import status

ROOT = Path(__file__).parents[2]
HOW_TOS = dict(
    re.findall(
        r"^## How to add an? (\w+)\n.*?^```python\n(.*?)^```", (ROOT / "CONTRIBUTING.md").read_text(), re.M | re.S
    )
)
USED = {
    "recipe": "",
    "model": 'model=TimmModel(name="plain_net")',
    "augmentation": "augment=(Flip(), Darken())",
    "optimizer": "optimizer=RMSprop(lr=0.001)",
    "loss": "loss=FocalLoss(gamma=1.0)",
}
TRAIN = """
import sys
from dataclasses import replace

from cifar100_tk.augment import Flip
from cifar100_tk.models import TimmModel
from cifar100_tk.train import main

if __name__ == "__main__":
    sys.path.insert(0, {tests!r})
    from runs import TINY

    main(replace(TINY, {changes}))
"""


def test_each_how_to_has_its_code() -> None:
    assert HOW_TOS.keys() == USED.keys()


@pytest.mark.parametrize("what", USED)
def test_the_code_of_a_how_to_trains(what: str, tmp_path: Path) -> None:
    tail = TRAIN.format(tests=str(Path(__file__).parents[1] / "support"), changes=USED[what]) if USED[what] else ""
    (tmp_path / "mine.py").write_text(HOW_TOS[what] + tail)
    numbers = [
        "--data.source",
        "shapes100",
        "--data.shapes100-rows",
        "100",
        "100",
        "--batch-size",
        "20",
        "--epochs",
        "1",
    ]
    command = [
        sys.executable,
        "mine.py",
        *numbers,
        "--limit-train-batches",
        "2",
        "--workers",
        "1",
        "--output-dir",
        "run",
    ]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true"}
    ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert status(tmp_path / "run")["status"] == "finished"
    if what == "model":
        command = [sys.executable, "-m", "cifar100_tk.eval", "run", "--register", "mine.py"]
        ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert ended.returncode == 0 and "plain_net" in ended.stdout + (tmp_path / "run/model/config.json").read_text()
