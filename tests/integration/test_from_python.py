"""What somebody writes who trains from Python: a path as a string, a thread of one's own, a network of one's own."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from runs import cpu, run, status, tiny

import cifar100_tk
from cifar100_tk.data import Cifar100
from cifar100_tk.errors import ConfigError
from cifar100_tk.models import registered_by
from cifar100_tk.training.plan import RunOptions

OWN = """
import sys
from dataclasses import replace
from timm.models import create_model, register_model
from cifar100_tk.models import TimmModel
from cifar100_tk.train import main
sys.path.insert(0, {tests!r})

@register_model
def my_net(pretrained=False, **options):
    return create_model("test_convnext2", **options)

if __name__ == "__main__":
    from runs import TINY
    main(replace(TINY, epochs=1, model=TimmModel(name="my_net")))
"""


def test_a_thread_trains_too(tmp_path: Path) -> None:
    with cpu():
        thread = threading.Thread(target=run, args=(tmp_path / "run", tiny(epochs=1)))
        thread.start()
        thread.join(timeout=120)
    assert status(tmp_path / "run")["status"] == "finished"


def test_a_path_may_be_a_string(tmp_path: Path) -> None:
    # In a process of its own: here jaxtyping would see the type first.
    code = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parents[1] / 'support')!r}); from runs import TINY; "
        "from cifar100_tk.training.plan import RunOptions; from cifar100_tk.train import train; "
        "train(TINY, RunOptions(output_dir='run', limit_train_batches=1))"
    )
    environment = os.environ | {"ACCELERATE_USE_CPU": "true"}
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, env=environment, capture_output=True)
    assert status(tmp_path / "run")["status"] == "finished"


def test_the_package_lists_what_it_offers() -> None:
    assert "load" in dir(cifar100_tk) and callable(cifar100_tk.load)


def test_a_split_is_shown_in_a_line() -> None:
    split = Cifar100(source="shapes100", shapes100_rows=(1000, 100), holdout=100).open("train")
    assert repr(split) == "Split(train: 900 of 1,000 images, shapes100, built in)"


def test_a_network_of_ones_own_is_measured_again_by_the_command_that_is_printed(tmp_path: Path) -> None:
    (tmp_path / "my net.py").write_text(OWN.format(tests=str(Path(__file__).parents[1] / "support")))
    environment = os.environ | {"ACCELERATE_USE_CPU": "true"}
    command = [sys.executable, "my net.py", "--output-dir", "a run"]
    ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    again = ended.stdout.partition("measure it again with: ")[2].strip()
    program, *arguments = shlex.split(again)
    assert program == "python" and arguments[-2:] == ["--register", str(tmp_path / "my net.py")]
    ended = subprocess.run([sys.executable, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0 and "top-1" in ended.stdout, ended.stderr


def test_networks_of_timm_and_ours_need_no_file() -> None:
    assert registered_by("resnet18") is None and registered_by("resnet50_cifar") is None


def test_a_contact_sheet_replaces_nothing(tmp_path: Path) -> None:
    sheet = tmp_path / "sheet.png"
    sheet.write_bytes(b"mine")
    with pytest.raises(
        ConfigError, match=r"sheet\.png is an existing file and is not overwritten; give another name, or remove it"
    ):
        RunOptions(contact_sheet=sheet)
    with pytest.raises(ConfigError, match=r"--contact-sheet \. is a folder; give the name of a file in it"):
        RunOptions(contact_sheet=Path("."))
    assert sheet.read_bytes() == b"mine"
