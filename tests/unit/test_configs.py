"""Every accelerate configuration is one that Accelerate accepts, and its launch line starts what its name says."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "accelerate_configs"
FILES = sorted(FOLDER.glob("*.yaml"))
STARTS: dict[str, dict[str, Any]] = {
    "cpu": {"num_processes": 1, "num_machines": 1, "mixed_precision": "no", "use_cpu": True, "multi_gpu": False},
    "one_gpu_fp16": {"num_processes": 1, "mixed_precision": "fp16", "use_cpu": False, "multi_gpu": False},
    "one_gpu_bf16": {"num_processes": 1, "mixed_precision": "bf16", "use_cpu": False, "multi_gpu": False},
    "eight_gpus": {"num_processes": 8, "num_machines": 1, "mixed_precision": "bf16", "multi_gpu": True},
    "two_nodes": {"num_processes": 16, "num_machines": 2, "mixed_precision": "bf16", "multi_gpu": True},
}
"""What each one makes `accelerate launch` start."""


def launch_line(file: Path) -> str:
    """The command in the comment at the top of a configuration."""
    comment = " ".join(line.strip("# ").removesuffix("\\") for line in file.read_text().splitlines() if line[0] == "#")
    found = re.search(r"accelerate launch --config_file .*?\.py", comment)
    assert found, f"{file} has no launch line"
    return found.group()


def test_there_is_a_configuration_for_each_place() -> None:
    assert [file.stem for file in FILES] == sorted(STARTS) and len(FILES) == 5


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_accelerate_loads_it_and_knows_every_name_in_it(file: Path) -> None:
    config = load_config_from_file(str(file))  # Raises for a name that it does not know.
    written = yaml.safe_load(file.read_text())
    assert config.num_processes == written["num_processes"] == STARTS[file.stem]["num_processes"]
    # Left to the launcher or the recipe, these would change what is trained without a word.
    assert not {"gradient_accumulation_steps", "dynamo_config", "downcast_bf16"} & written.keys()


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_its_launch_line_starts_what_it_says(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    words = shlex.split(launch_line(file))
    assert words[:2] == ["accelerate", "launch"]
    args, _, _ = _validate_launch_command(launch_command_parser().parse_args(words[2:]))
    assert (ROOT / args.training_script).is_file()
    started = {name: getattr(args, name) for name in STARTS[file.stem]}
    assert started == STARTS[file.stem]
    assert args.gradient_accumulation_steps in (None, 1)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_the_readme_names_it(file: Path) -> None:
    assert f"accelerate_configs/{file.name}" in (ROOT / "README.md").read_text()


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_there_is_a_transcript_of_it(file: Path) -> None:
    command = rf"^\$ accelerate launch --config_file accelerate_configs/{file.name} .*\n[^$`]"
    assert re.search(command, (ROOT / "docs" / "launching.md").read_text(), re.MULTILINE)


FAKES = {
    # Two nodes of one task each, as srun would start them.
    "srun": 'shift\nfor rank in 0 1; do SLURM_PROCID=$rank SLURM_LOCALID=0 SLURM_NTASKS=2 "$@" || code=$?; done\nexit $code',
    "scontrol": 'echo "scontrol $*" >>"$LOG"\n[ "$1" = show ] && printf "first\\nsecond\\n"\nexit 0',
    "python": 'echo "$RANK/$WORLD_SIZE $LOCAL_RANK $MASTER_ADDR:$MASTER_PORT $ACCELERATE_MIXED_PRECISION $*" >>"$LOG"\n'
    "exit $CODE",
}


@pytest.mark.parametrize(("code", "again"), [(75, True), (0, False), (1, False), (6, False)])
def test_the_slurm_script_starts_every_task_and_requeues_only_a_run_that_stopped_and_saved(
    tmp_path: Path, code: int, again: bool
) -> None:
    for name, body in FAKES.items():
        (tmp_path / name).write_text(f"#!/bin/bash\ncode=0\n{body}\n")
        (tmp_path / name).chmod(0o755)
    log = tmp_path / "log"
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "LOG": str(log), "CODE": str(code)}
    slurm = {"SLURM_JOB_ID": "123456", "SLURM_JOB_NODELIST": "node[1-2]"}
    script = [str(FOLDER / "slurm.sbatch"), "recipes/resnet50.py", "--epochs", "3"]
    finished = subprocess.run(["bash", *script], env=environment | slurm, timeout=20, check=False)
    assert finished.returncode == code
    task = "0 first:23456 bf16 recipes/resnet50.py --epochs 3"
    expected = ["scontrol show hostnames node[1-2]", f"0/2 {task}", f"1/2 {task}"]
    assert log.read_text().splitlines() == expected + ["scontrol requeue 123456"] * again


def test_the_slurm_script_asks_for_the_signal_that_the_trainer_saves_on() -> None:
    text = (FOLDER / "slurm.sbatch").read_text()
    for directive in ("--signal=USR1@120", "--requeue", "--open-mode=append"):
        assert f"#SBATCH {directive}\n" in text
