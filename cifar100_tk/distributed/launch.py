"""Starting Accelerate, and checking before any computation that the launcher set up what was asked for."""

from __future__ import annotations

import datetime
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import (
    DistributedDataParallelKwargs,
    DynamoBackend,
    InitProcessGroupKwargs,
    ProjectConfiguration,
    parse_flag_from_env,
)
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import register_rendezvous_handler, rendezvous

from cifar100_tk.distributed.watchdog import meet_peers
from cifar100_tk.errors import ConfigError

PRECISIONS = {"no": "float32", "fp16": "fp16 with loss scaling", "bf16": "bf16"}
"""The values of `--mixed_precision`, and the precision that each one means."""
Precision = Literal["auto", "bf16", "fp16", "no"]
SHARDING = {
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism configuration",
}
"""The methods that split one network over several processes, by the variable that the launcher sets for each."""


def start_accelerator(
    output_dir: Path, *, timeout_minutes: float = 30.0, precision: Precision = "auto", log_with: list[Any] | None = None
) -> Accelerator:
    """Return the Accelerator of this process, after checking that the launcher and the run agree.

    The launcher chooses the device and the number of processes; the recipe gives the global batch size. timeout_minutes: how
    long a process waits for the others before it gives up. precision: see `choose_precision`. log_with: the trackers.

    The process group lives until the process exits, and serves every run in it. Destroying and recreating it would find
    the old addresses in torch's store, and gloo would block forever.
    """
    check_launch()
    chosen, _ = choose_precision(precision)
    if chosen == "fp16" == precision and not _on_gpu():
        raise ConfigError(_no_fp16("--precision"))
    accelerator = join(
        timeout_minutes,
        mixed_precision=chosen,
        log_with=log_with,
        project_config=ProjectConfiguration(logging_dir=str(output_dir)),
    )
    if accelerator.gradient_accumulation_steps != 1:
        raise ConfigError(
            f"the launcher asks for {accelerator.gradient_accumulation_steps} gradient accumulation steps; the recipe's "
            "batch_size is already global; leave them at 1 and use --micro-batch to save memory."
        )
    return accelerator


def choose_precision(asked: Precision) -> tuple[str, str]:
    """Return the precision of a run, as Accelerate names it, and the reason, as the plan prints it.

    asked: "auto" takes the launcher's setting. `accelerate launch` passes `no` when none was given, so `no` from the
    launcher means the default too: bf16 on GPUs of compute capability 8 or more, float32 elsewhere.
    """
    if asked != "auto":
        return asked, "as asked"
    named = os.environ.get("ACCELERATE_MIXED_PRECISION", "no").lower()
    if named != "no":
        return named, "from the launcher"
    if _on_gpu():
        capability = min(torch.cuda.get_device_capability(number) for number in range(torch.cuda.device_count()))
        if capability >= (8, 0):
            return "bf16", "the default on this GPU"
        return "no", "the default on this GPU; --precision fp16 is faster"
    return "no", "the default"


def _on_gpu() -> bool:
    return torch.cuda.is_available() and not parse_flag_from_env("ACCELERATE_USE_CPU")


def join(timeout_minutes: float, **options: Any) -> Accelerator:
    """Check the launch, wait for the other processes, and return the Accelerator of this one, created with the options."""
    check_launch()
    AcceleratorState._reset_state()  # It would keep the precision of an earlier run or evaluation in this process.
    with meet_peers(timeout_minutes):
        accelerator = Accelerator(
            kwargs_handlers=[
                # Running statistics are averaged over processes after each step; broadcasting rank 0's would undo that.
                DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True),
                InitProcessGroupKwargs(init_method=init_method(), timeout=datetime.timedelta(minutes=timeout_minutes)),
            ],
            **options,
        )
    accelerator.state.device = with_index(accelerator.device)
    check_started(accelerator)
    return accelerator


def init_method() -> str | None:
    """Return the URL of the rendezvous: None for torch's own, or `restart://` after a restart by torchrun.

    torchrun keeps one store across restarts, and torch does not separate their keys: restarted processes would find the
    addresses of the dead ones, and gloo would wait for those.
    """
    # Each machine's torchrun counts only the restarts that it initiated, so the counts of several machines may differ.
    restarted = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0" and os.environ.get("GROUP_WORLD_SIZE") == "1"
    return "restart://" if restarted else None


def _after_restart(url: str, **options: Any) -> Iterator[tuple[Store, int, int]]:
    """Yield the rendezvous of `env://`, with a separate key prefix in the store for each restart."""
    for store, rank, world_size in rendezvous("env://", **options):
        prefix = f"restart-{os.environ['TORCHELASTIC_RESTART_COUNT']}"
        yield PrefixStore(prefix, store), rank, world_size


register_rendezvous_handler("restart", _after_restart)


def with_index(device: torch.device) -> torch.device:
    """Return a CUDA device with its index, which every tensor has and Accelerate leaves out for a single process."""
    return torch.device("cuda", torch.cuda.current_device()) if str(device) == "cuda" else device


def check_started(accelerator: Accelerator) -> None:
    """Raise ConfigError where the launcher silently does something other than it was asked to."""
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if started > 1 and accelerator.num_processes == 1:
        why = "torch sees no GPU here (python -m cifar100_tk.doctor tells why); " * (accelerator.device.type == "cpu")
        raise ConfigError(
            f"the launcher started {started} processes, but no process group was initialized, so each would repeat the "
            f"whole run; {why}on a CPU set ACCELERATE_USE_CPU=true for torchrun, elsewhere use accelerate launch --multi_gpu."
        )
    if accelerator.mixed_precision == "fp16" and accelerator.device.type == "cpu":
        raise ConfigError(_no_fp16("--mixed_precision"))


def _no_fp16(option: str) -> str:
    return (
        "fp16 is not supported on a CPU, where Accelerate would silently use float32; "
        f"use {option} bf16 or {option} no."
    )


def use_kernels(*, deterministic: bool) -> None:
    """Let cuDNN benchmark its kernels for each shape, or use deterministic kernels only."""
    torch.backends.cudnn.benchmark = not deterministic
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # Required by cuBLAS.
        torch.use_deterministic_algorithms(True)


def check_launch() -> None:
    """Raise ConfigError for launcher settings that are not supported; reads the environment only."""
    for variable, least in (
        ("WORLD_SIZE", 1),
        ("RANK", 0),
        ("LOCAL_RANK", 0),
        ("LOCAL_WORLD_SIZE", 1),
        ("MASTER_PORT", 1),
    ):
        value = os.environ.get(variable, str(least))
        if not (value.isdecimal() and value.isascii() and least <= int(value) <= 65535):
            raise ConfigError(
                f"{variable}={value!r} in the environment is not a whole number from {least} to 65535; unset it, or let "
                "accelerate launch or torchrun set it."
            )
    asked = os.environ.get("ACCELERATE_MIXED_PRECISION", "no").lower()
    if asked not in PRECISIONS:
        raise ConfigError(
            f"the launcher asks for the precision {asked}, which is not supported; use --mixed_precision bf16, fp16 or no."
        )
    for variable, name in SHARDING.items():
        if parse_flag_from_env(variable):
            raise ConfigError(
                f"the launcher asks for {name}, which is not supported: each process holds the whole network. Pass one of "
                "accelerate_configs/ as --config_file, or run accelerate config again without it."
            )
    on_cpu = parse_flag_from_env("ACCELERATE_USE_CPU")
    # For several processes accelerate launch always sets MASTER_ADDR, but on a CPU it starts only one, without a rank.
    if on_cpu and "MASTER_ADDR" in os.environ and "WORLD_SIZE" not in os.environ:
        raise ConfigError(
            "several processes were asked for, but accelerate launch starts only one on a CPU; use ACCELERATE_USE_CPU=true "
            "torchrun --nproc_per_node 2 RECIPE, or one process (and no MASTER_ADDR in the environment)."
        )
    here, gpus = int(os.environ.get("LOCAL_WORLD_SIZE", "1")), torch.cuda.device_count()
    if not on_cpu and here > gpus > 0:
        raise ConfigError(
            f"the launcher started {here} processes on a machine with {gpus} usable GPU{'s' * (gpus > 1)}; "
            f"use --num_processes {gpus}, and check CUDA_VISIBLE_DEVICES if there should be more."
        )


def launcher_compiles(accelerator: Accelerator) -> bool:
    """Return whether Accelerate's own settings (`--dynamo_backend`) compile the network."""
    return bool(accelerator.state.dynamo_plugin.backend != DynamoBackend.NO)


def use_threads(device: torch.device, asked: int | None) -> None:
    """Set the CPU threads of this process: the number asked for, else its share of this machine's cores.

    `accelerate launch` and torchrun set OMP_NUM_THREADS=1 unless told otherwise, which would leave all cores but one idle
    when training on a CPU. Any other value of that variable was set by the user, and is kept.
    """
    if asked is not None:
        torch.set_num_threads(asked)
    launched = any(name in os.environ for name in ("ACCELERATE_MIXED_PRECISION", "TORCHELASTIC_RUN_ID"))
    if asked is None and device.type == "cpu" and launched and os.environ.get("OMP_NUM_THREADS") == "1":
        torch.set_num_threads(cores_per_process())


def cores() -> int:
    """Return the CPU cores of this machine that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cores_per_process() -> int:
    """Return this process's share of the CPU cores of its machine, at least 1."""
    return max(1, cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def precision(accelerator: Accelerator) -> str:
    """Return a description of the precision in effect, including TF32 where float32 uses it."""
    name = PRECISIONS[accelerator.mixed_precision]
    tf32 = tf32_use() if accelerator.device.type == "cuda" and name == "float32" else None
    return f"{name} ({tf32})" if tf32 else name


def tf32_use() -> str | None:
    """Return a description of the operations that torch computes in TF32 instead of float32 on a GPU, or None."""
    # Not `allow_tf32`, which can no longer be read once these have been set.
    settings = {
        "convolutions": torch.backends.cudnn.conv,  # type: ignore[attr-defined]
        "matrix products": torch.backends.cuda.matmul,
    }
    used = [name for name, setting in settings.items() if setting.fp32_precision == "tf32"]
    return f"TF32 {' and '.join(used)}" if used else None


def device_name(accelerator: Accelerator) -> str:
    """Return the device in words, such as `cuda:0 (NVIDIA A100-PCIE-40GB)` or `cpu (8 threads)`."""
    device = accelerator.device
    threads = torch.get_num_threads()
    detail = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{threads} thread{'s' * (threads > 1)}"
    return f"{device} ({detail})"
