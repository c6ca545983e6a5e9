"""The doctor: what it says, its advice, its exit code, and that nothing makes it fall over."""

from __future__ import annotations

import functools
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from runs import forget
from torch._dynamo.utils import counters

from cifar100_tk.doctor import speed
from cifar100_tk.doctor.__main__ import DataChoice, DoctorOptions, ModelChoice, examine
from cifar100_tk.models import TimmModel

pytestmark = pytest.mark.usefixtures("on_cpu")


def options(tmp_path: Path, source: str = "shapes100", **changes: Any) -> DoctorOptions:
    model = ModelChoice(name="resnet10_cifar_w16")
    return DoctorOptions(data=DataChoice(source=source), model=model, output_dir=tmp_path, seconds=0.01, **changes)


def test_it_says_what_is_here_and_how_fast_it_goes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert examine(options(tmp_path, batch_size=4))
    said = capsys.readouterr().out
    for line in (
        rf"packages +torch {re.escape(torch.__version__.split('+')[0])}.*, Pillow \d",
        r"processor +.*, \d+ cores?$",
        r"this launch +no launcher: 1 process, the first on cpu \(\d+ threads?\), float32",
        rf"runs +{tmp_path}, [\d.]+ GB free",
        r"data +shapes100: 2,000 train, 100 test; shapes100, built in",
        r"device loader +[\d,]+ images/s for this process, on cpu",
        r"host loader +[\d,]+ images/s for this process, on \d+ worker process",
        r"network +resnet10_cifar_w16: [\d,.e+]+ images/s for this process, 4 per step, .* update, not compiled$",
        r"a whole run +200 epochs of 50,000 images in about [\d.]+ (hours|days)",
    ):
        assert re.search(line, said, re.MULTILINE), line
    assert said.count("\nadvice:\n") + said.count("no problems found.") == 1


def test_it_measures_the_network_compiled_where_a_run_compiles_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch._dynamo.reset()
    counters.clear()
    # A backend that takes the same graph as Inductor and writes no C++.
    monkeypatch.setattr(torch.nn.Module, "compile", functools.partialmethod(torch.nn.Module.compile, backend="eager"))
    assert examine(options(tmp_path, batch_size=4, compile="on"))
    said = capsys.readouterr().out
    assert counters["stats"]["unique_graphs"] == 1 and not counters["graph_break"]
    assert re.search(
        r"network .*, 4 per step, .*, compiled \(including the first step, in \d+ s\)$", said, re.MULTILINE
    )
    assert re.search(r"a whole run .*, compiled, without evaluation$", said, re.MULTILINE)


def test_making_batches_and_training_take_turns_on_a_cpu_and_go_on_at_once_on_a_gpu() -> None:
    # 36,000 images at 30/s are 20 minutes, at 15/s 40 minutes.
    assert speed.hours(36_000, 30.0, 15.0, at_once=False) == pytest.approx(1)
    assert speed.hours(36_000, 30.0, 15.0, at_once=True) == pytest.approx(2 / 3)
    assert speed.hours(36_000, 10.0, 15.0, at_once=True) == pytest.approx(1)


def test_a_batch_may_be_larger_than_the_images_it_is_measured_on() -> None:
    rate, workers = speed.of_augmentation(Accelerator(), 2301, "device", 0.01)
    assert rate > 0 and workers == 0


def test_missing_data_is_advice_and_not_healthy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert not examine(options(tmp_path, "no/such/folder", speed=False))
    said = capsys.readouterr().out
    assert re.search(r"data +problem: source='no/such/folder' does not exist", said)
    assert said.index("advice:") < said.rindex("no/such/folder") and "loader" not in said


def test_data_that_is_not_downloaded_yet_is_said_without_downloading(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert examine(options(tmp_path, "hub", speed=False))
    said = capsys.readouterr().out
    assert "hub: not downloaded yet" in said and "data prepare --to FOLDER" in said


def test_a_full_disk_is_advice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    usage = type("usage", (), {"free": 50_000_000})
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    examine(options(tmp_path, speed=False))
    said = capsys.readouterr().out
    assert re.search(rf"  - {tmp_path} has 0.05 GB free; a run may need 1.0 GB; give --output-dir", said)
    assert re.search(r"  - .* has 0.05 GB free; a run may need 0.2 GB; set CIFAR100_TK_CACHE", said)


def test_a_folder_for_runs_that_may_not_be_written_to_is_not_healthy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    runs = tmp_path / "file" / "runs"
    assert not examine(options(runs, speed=False))
    assert f"  - {runs} is not writable; give --output-dir a folder on another disk." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"ACCELERATE_MIXED_PRECISION": "bf16"}, r"this launch +accelerate launch: 1 process, .*, bf16"),
        ({"ACCELERATE_DYNAMO_BACKEND": "INDUCTOR"}, r"float32, compiled by Accelerate"),
        ({"ACCELERATE_MIXED_PRECISION": "fp16"}, r"launch +problem: fp16 is not supported on a CPU"),
        ({"MASTER_ADDR": "first"}, r"launch +problem: several processes were asked for"),
    ],
)
def test_it_says_what_the_launcher_gives(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    variables: dict[str, str],
    said: str,
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    forget()
    healthy = examine(options(tmp_path, speed=False))
    assert healthy == ("problem: " not in said)
    assert re.search(said, capsys.readouterr().out)


def test_whatever_goes_wrong_is_a_finding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(model: ModelChoice, num_classes: int) -> None:
        raise RuntimeError("CUDA error: an illegal instruction was encountered\nmore")

    monkeypatch.setattr(TimmModel, "build", broken)
    assert not examine(options(tmp_path, batch_size=2))
    assert "speed could not be checked (RuntimeError: CUDA error: an illegal instruction was encountered)." in (
        capsys.readouterr().out
    )


def test_a_driver_without_a_torch_for_it_is_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho 570.86\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    examine(options(tmp_path, speed=False))
    said = capsys.readouterr().out
    assert (
        "none that torch can use, although driver 570.86 is installed" in said and "install a torch built for" in said
    )


def test_help_is_quick() -> None:
    begun = time.perf_counter()
    finished = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "cifar100_tk.doctor", "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "--data.source" in finished.stdout and time.perf_counter() - begun < 10
    imported = {line.rpartition("|")[2].strip() for line in finished.stderr.splitlines()}
    assert "tyro" in imported and not {"torch", "timm", "accelerate", "datasets"} & imported
