"""What the launcher gives us: threads of a CPU, and settings that would silently do something else."""

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import SHAPES, TINY, forget

from cifar100_tk.distributed.launch import (
    Precision,
    check_launch,
    choose_precision,
    cores_per_process,
    join,
    start_accelerator,
    tf32_use,
    use_threads,
    with_index,
)
from cifar100_tk.errors import ConfigError
from cifar100_tk.training.plan import Plan, RunOptions


@pytest.fixture(autouse=True)
def _threads_as_before() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("cores", "processes", "share"), [(8, 1, 8), (8, 2, 4), (2, 2, 1), (1, 2, 1)])
def test_processes_share_the_cores_of_their_machine(
    monkeypatch: pytest.MonkeyPatch, cores: int, processes: int, share: int
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(cores)), raising=False)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    assert cores_per_process() == share


@pytest.mark.parametrize(
    ("variables", "asked", "threads"),
    [
        (
            {"OMP_NUM_THREADS": "1", "ACCELERATE_MIXED_PRECISION": "no"},
            None,
            5,
        ),  # What accelerate launch does by default.
        ({"OMP_NUM_THREADS": "3", "ACCELERATE_MIXED_PRECISION": "no"}, None, 2),  # Somebody's choice.
        ({"OMP_NUM_THREADS": "1"}, None, 2),
        ({"OMP_NUM_THREADS": "1", "ACCELERATE_MIXED_PRECISION": "no"}, 4, 4),
    ],
)
def test_a_launcher_that_leaves_the_cores_idle_is_overruled_and_a_person_is_not(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], asked: int | None, threads: int
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(5)), raising=False)
    for name in ("OMP_NUM_THREADS", "ACCELERATE_MIXED_PRECISION", "TORCHELASTIC_RUN_ID", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    torch.set_num_threads(2)
    use_threads(torch.device("cpu"), asked)
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"WORLD_SIZE": "4"}, "started 4 processes, but no process group was initialized, .*ACCELERATE_USE_CPU=true"),
        (
            {"ACCELERATE_USE_CPU": "True", "MASTER_ADDR": "127.0.0.1", "ACCELERATE_MIXED_PRECISION": "no"},
            "several processes were asked for, but accelerate launch starts only one on a CPU; use ACCELERATE_USE_CPU=true",
        ),
        ({"ACCELERATE_MIXED_PRECISION": "fp16"}, "fp16 is not supported on a CPU.*--mixed_precision bf16"),
        ({"ACCELERATE_MIXED_PRECISION": "fp8"}, "asks for the precision fp8, .*; use --mixed_precision bf16, fp16 or"),
        ({"ACCELERATE_USE_FSDP": "true"}, "asks for FSDP, which is not supported: .*each process holds the whole"),
        (
            {"ACCELERATE_USE_DEEPSPEED": "true"},
            "asks for DeepSpeed, .* Pass one of accelerate_configs/ as --config_file",
        ),
        ({"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4"}, "asks for 4 gradient accumulation steps.*--micro-batch"),
    ],
)
def test_settings_that_would_silently_do_something_else_are_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any, variables: dict[str, str], message: str
) -> None:
    from accelerate.state import AcceleratorState, PartialState

    AcceleratorState._reset_state(reset_partial_state=True)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    try:
        with pytest.raises(ConfigError, match=message):
            start_accelerator(tmp_path)
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
        assert not PartialState._shared_state


@pytest.mark.parametrize(
    ("asked", "launcher", "capabilities", "chosen", "reason"),
    [
        ("auto", None, [], "no", "the default"),
        ("auto", "no", [], "no", "the default"),
        ("auto", "no", [(9, 0)], "bf16", "the default on this GPU"),  # accelerate launch passes on `no` by default.
        ("auto", None, [(9, 0), (7, 5)], "no", "the default on this GPU; --precision fp16 is faster"),
        ("auto", "fp16", [(9, 0)], "fp16", "from the launcher"),
        ("auto", "bf16", [], "bf16", "from the launcher"),
        ("no", "bf16", [(9, 0)], "no", "as asked"),
        ("fp16", None, [(9, 0)], "fp16", "as asked"),
    ],
)
def test_a_precision_is_what_was_asked_for_or_what_suits_the_gpu(
    monkeypatch: pytest.MonkeyPatch,
    asked: Precision,
    launcher: str | None,
    capabilities: list[tuple[int, int]],
    chosen: str,
    reason: str,
) -> None:
    for name in ("ACCELERATE_MIXED_PRECISION", "ACCELERATE_USE_CPU"):
        monkeypatch.delenv(name, raising=False)
    if launcher:
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", launcher)
    monkeypatch.setattr("torch.cuda.is_available", lambda: bool(capabilities))
    monkeypatch.setattr("torch.cuda.device_count", lambda: len(capabilities))
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda number: capabilities[number])
    assert choose_precision(asked) == (chosen, reason)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    if asked == "auto" and launcher in (None, "no"):
        assert choose_precision(asked) == ("no", "the default")


@pytest.mark.usefixtures("on_cpu")
def test_the_precision_asked_for_is_the_one_computed_in_and_fp16_on_a_cpu_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    with pytest.raises(ConfigError, match=r"fp16 is not supported on a CPU.*use --precision bf16 or --precision no\.$"):
        start_accelerator(tmp_path, precision="fp16")
    accelerator, split = start_accelerator(tmp_path, precision="bf16"), SHAPES.open("test")
    assert accelerator.mixed_precision == "bf16"
    options = RunOptions(precision="bf16")
    said = Plan.of(TINY, options, accelerator, SHAPES.open("train")).describe(7, split, tmp_path, "name")
    assert "1 process, bf16, as asked\n" in said
    # The next run of the process has its own, and so has an evaluation after it.
    assert start_accelerator(tmp_path, precision="no").mixed_precision == "no"
    assert start_accelerator(tmp_path, precision="bf16").mixed_precision == "bf16"
    assert join(timeout_minutes=1).mixed_precision == "no"


@pytest.mark.parametrize(
    ("convolutions", "products", "words"),
    [
        ("tf32", "ieee", "TF32 convolutions"),
        ("tf32", "tf32", "TF32 convolutions and matrix products"),
        ("ieee", "tf32", "TF32 matrix products"),
        ("ieee", "ieee", None),
    ],
)
def test_what_is_computed_in_tf32_is_told_apart(convolutions: str, products: str, words: str | None) -> None:
    settings = torch.backends.cudnn.conv, torch.backends.cuda.matmul  # type: ignore[attr-defined]
    before = [setting.fp32_precision for setting in settings]
    try:
        for setting, value in zip(settings, (convolutions, products), strict=True):
            setting.fp32_precision = value
        assert tf32_use() == words
    finally:
        for setting, value in zip(settings, before, strict=True):
            setting.fp32_precision = value
    assert tf32_use() == "TF32 convolutions"  # As torch starts.


@pytest.mark.usefixtures("on_cpu")
@pytest.mark.parametrize(("gpus", "words"), [(1, None), (2, "1 more GPU is"), (4, "3 more GPUs are")])
def test_a_plan_of_one_process_says_how_many_gpus_are_idle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gpus: int, words: str | None
) -> None:
    accelerator, split = start_accelerator(tmp_path), SHAPES.open("test")
    accelerator.state.device = torch.device("cuda:0")
    monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda device: "a card")
    plan = Plan.of(TINY, RunOptions(pipeline="host"), accelerator, SHAPES.open("train"))
    said = plan.describe(7, split, tmp_path, "name")
    assert "device         cuda:0 (a card), 1 process, float32 (TF32 convolutions), the default\n" in said
    idle = re.search(r"^  idle +(.*)$", said, re.MULTILINE)
    wanted = words and f"{words} idle; accelerate launch --multi_gpu --num_processes {gpus} uses them"
    assert (idle and idle[1]) == wanted


@pytest.mark.usefixtures("on_cpu")
@pytest.mark.parametrize(
    ("limit", "steps"),
    [
        *(
            (limit, "3 per epoch, 6 in 2 epochs; the last 10 images of each epoch do not fill a batch and are dropped")
            for limit in (None, 3, 500)
        ),
        (2, "2 per epoch, 4 in 2 epochs; epochs are cut short by --limit-train-batches"),
    ],
)
def test_a_plan_says_that_epochs_are_cut_where_they_are(tmp_path: Path, limit: int | None, steps: str) -> None:
    accelerator, split = start_accelerator(tmp_path), SHAPES.open("test")
    recipe = dataclasses.replace(TINY, batch_size=30)  # Of 100 images.
    plan = Plan.of(recipe, RunOptions(limit_train_batches=limit), accelerator, SHAPES.open("train"))
    assert f"  steps          {steps}\n" in plan.describe(7, split, tmp_path, "name")


def test_accelerate_launch_still_marks_several_cpu_processes_the_way_that_is_looked_for() -> None:
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_simple_launcher_cmd_env

    for processes in (1, 2):
        words = ["--cpu", "--num_processes", str(processes), "--mixed_precision", "no", "script.py"]
        args, _, _ = _validate_launch_command(launch_command_parser().parse_args(words))
        _, environment = prepare_simple_launcher_cmd_env(args)
        assert "WORLD_SIZE" not in environment and ("MASTER_ADDR" in environment) == (processes == 2)


def test_one_process_knows_the_index_of_its_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # Accelerate gives a single process on a GPU the device "cuda"; its tensors are on "cuda:0".
    monkeypatch.setattr("torch.cuda.current_device", lambda: 2)
    assert with_index(torch.device("cuda")) == torch.device("cuda:2")
    assert with_index(torch.device("cuda:1")) == torch.device("cuda:1")
    assert with_index(torch.device("cpu")) == torch.device("cpu")
    forget()
    try:
        monkeypatch.setenv("ACCELERATE_TORCH_DEVICE", "cuda")
        monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
        assert start_accelerator(tmp_path).device == torch.device("cuda:2")
    finally:
        forget()


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    with pytest.raises(
        ConfigError, match="8 processes on a machine with 2 usable GPUs; use --num_processes 2, and check"
    ):
        check_launch()
    monkeypatch.setattr("torch.cuda.device_count", lambda: 8)
    check_launch()
