"""`python -m cifar100_tk.doctor`: report the hardware, the launch, the data and the speed of this machine, with advice."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from cifar100_tk.cli.arguments import parse
from cifar100_tk.errors import CifarError, exit_on_error
from cifar100_tk.ranges import Within, check_ranges

if TYPE_CHECKING:
    from accelerate import Accelerator

    from cifar100_tk.data import Cifar100

# torch, timm and Accelerate take seconds to import; they are imported once the arguments are known to be valid.

PACKAGES = ("torch", "torchvision", "accelerate", "timm", "datasets", "safetensors", "numpy", "Pillow")
RUN_BYTES = 1_000_000_000
"""The most disk space that a reference run needs, in bytes: three checkpoints of 190 MB with a weight average, and the model."""


@dataclass(frozen=True, kw_only=True)
class DataChoice:
    """The images."""

    source: str = "hub"
    """hub, shapes100, or the path of a local copy."""


@dataclass(frozen=True, kw_only=True)
class ModelChoice:
    """The network."""

    name: str = "resnet50_cifar"
    """Its timm name."""


@dataclass(frozen=True, kw_only=True)
class DoctorOptions:
    """Check this machine and report what a run would find. Start it the way you start a recipe: directly, or with
    `accelerate launch -m cifar100_tk.doctor` to see what that launcher sets up."""

    data: Annotated[DataChoice, tyro.conf.arg(name="data")] = field(default_factory=DataChoice)
    """The images."""
    model: Annotated[ModelChoice, tyro.conf.arg(name="model")] = field(default_factory=ModelChoice)
    """The network whose speed is measured."""
    batch_size: Annotated[int | None, Within(low=2, high=2**20, use="give 2 or more, which BatchNorm needs")] = None
    """Images per step in the measurement; by default 512 on a GPU and 16 on a CPU."""
    compile: Literal["auto", "on", "off"] = "auto"
    """Compile the measured network; `auto` compiles on a GPU, as a run of 1,000 steps or more does."""
    output_dir: Path = Path("runs")
    """The folder of the runs, checked for free space."""
    speed: bool = True
    """Measure the augmentation and the network, for a few seconds each."""
    seconds: Annotated[float, Within(low=0, above=True, high=3600, use="give 3, or more for a steadier figure")] = 3.0
    """The duration of each measurement; at least one step is measured."""

    def __post_init__(self) -> None:
        check_ranges(self, "--")


@dataclass(frozen=True)
class Finding:
    """A line of the report, with a remedy if there is a problem."""

    label: str
    text: str
    advice: str | None = None
    stops: bool = False
    """True if no run could start."""


def main() -> None:
    """Run the command and exit: 0 if a run could start, 1 if something prevents it."""
    program = "python -m cifar100_tk.doctor"
    with exit_on_error(program):
        healthy = examine(parse(lambda: tyro.cli(DoctorOptions, prog=program)))
        import torch

        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
    sys.exit(0 if healthy else 1)


def examine(options: DoctorOptions) -> bool:
    """Print every finding as soon as it is known, then the advice. Returns True if a run could start.

    With several processes, all of them measure and the main process prints.
    """
    loud = os.environ.get("RANK", "0") == "0"
    advice: list[str] = []
    healthy = True
    sections: list[Callable[[DoctorOptions], Iterator[Finding]]] = [_versions, _devices, _launch, _disk, _data]
    for section in [*sections, *([_speed] if options.speed else [])]:
        try:
            for finding in section(options):
                if loud:
                    print(f"  {finding.label:14} {finding.text}", flush=True)
                advice += [finding.advice] if finding.advice else []
                healthy = healthy and not finding.stops
        except CifarError as error:
            healthy = False
            advice.append(str(error))
            if loud:
                print(f"  {section.__name__.strip('_'):14} problem: {error}", flush=True)
        except Exception as error:  # A crash would not help the user: any exception becomes a finding.
            healthy = False
            reason = (str(error).splitlines() or [""])[0]
            advice.append(f"{section.__name__.strip('_')} could not be checked ({type(error).__name__}: {reason}).")
            if loud:
                print(f"  {section.__name__.strip('_'):14} {type(error).__name__}: {reason}", flush=True)
    if loud:
        print("\n".join(["advice:", *(f"  - {line}" for line in advice)] if advice else ["no problems found."]))
    return healthy


def _versions(options: DoctorOptions) -> Iterator[Finding]:
    from cifar100_tk import __version__

    yield Finding("cifar100_tk", f"{__version__}, Python {platform.python_version()}, {platform.platform(terse=True)}")
    found = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "missing"
    missing = [package for package, version in found.items() if version == "missing"]
    advice = f"{', '.join(missing)} cannot be found; install with: pip install -e ." if missing else None
    yield Finding("packages", ", ".join(f"{name} {version}" for name, version in found.items()), advice)


def _devices(options: DoctorOptions) -> Iterator[Finding]:
    import torch

    from cifar100_tk.distributed.launch import cores

    yield Finding("processor", f"{_processor()}, {cores()} core{'s' * (cores() > 1)}")
    driver = _first_line(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"])
    if not torch.cuda.is_available():
        if driver:
            yield Finding(
                "GPUs",
                f"none that torch can use, although driver {driver} is installed",
                f"torch {torch.__version__} (built for CUDA {torch.version.cuda or 'none'}) does not see the GPU: install a "
                f"torch built for this driver, or check CUDA_VISIBLE_DEVICES "
                f"({os.environ.get('CUDA_VISIBLE_DEVICES', 'unset')}).",
            )
        else:
            yield Finding("GPUs", "none")
        return
    for number in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(number)
        busy = total - free > 0.2 * total
        yield Finding(
            f"GPU {number}",
            f"{torch.cuda.get_device_name(number)}, {free / 1e9:.1f} of {total / 1e9:.1f} GB free, driver {driver or 'unknown'}, "
            f"CUDA {torch.version.cuda}, bf16 {'yes' if torch.cuda.get_device_capability(number) >= (8, 0) else 'no'}",
            f"another program uses {(total - free) / 1e9:.1f} GB of GPU {number}; nvidia-smi shows it."
            if busy
            else None,
        )


def _launch(options: DoctorOptions) -> Iterator[Finding]:
    import torch

    from cifar100_tk.distributed.launch import device_name, launcher_compiles, precision

    accelerator = _accelerator(options)
    world = accelerator.num_processes
    compiled = ", compiled by Accelerate" if launcher_compiles(accelerator) else ""
    how = "accelerate launch" if "ACCELERATE_MIXED_PRECISION" in os.environ else "no launcher"
    how = "torchrun" if how == "no launcher" and "TORCHELASTIC_RUN_ID" in os.environ else how
    yield Finding(
        "this launch",
        f"{how}: {world} process{'es' * (world > 1)}, the first on {device_name(accelerator)}, "
        f"{precision(accelerator)}{compiled}",
    )
    on_gpu, gpus = accelerator.device.type == "cuda", torch.cuda.device_count()
    if gpus > 1 == world:
        yield Finding(
            "",
            f"{gpus - 1} GPU{'s' * (gpus > 2)} would be idle",
            f"accelerate launch --multi_gpu --num_processes {gpus} uses all {gpus} GPUs, with the same global batch.",
        )
    if on_gpu and accelerator.mixed_precision == "no":
        ampere = torch.cuda.get_device_capability(accelerator.device) >= (8, 0)
        yield Finding(
            "",
            "float32 is the slowest precision on this GPU",
            f"accelerate launch --mixed_precision {'bf16' if ampere else 'fp16'} trains faster.",
        )
    if "ACCELERATE_MIXED_PRECISION" not in os.environ and (saved := _saved_config()):
        yield Finding(
            "", f"accelerate launch would read {saved}; run it with -m cifar100_tk.doctor to see what it sets up"
        )


def _disk(options: DoctorOptions) -> Iterator[Finding]:
    from cifar100_tk.data.store import cache_folder

    for label, folder, needed, remedy in (
        ("cache", cache_folder(), 200_000_000, "set CIFAR100_TK_CACHE to a folder on another disk"),
        ("runs", options.output_dir.absolute(), RUN_BYTES, "give --output-dir a folder on another disk"),
    ):
        existing = next(parent for parent in (folder, *folder.parents) if os.path.exists(parent))
        free, writable = shutil.disk_usage(existing).free, existing.is_dir() and os.access(existing, os.W_OK)
        problem = f"has {free / 1e9:.2f} GB free; a run may need {needed / 1e9:.1f} GB" if free < needed else None
        problem = problem if writable else "is not writable"
        # Stores already in the cache are only read.
        yield Finding(
            label,
            f"{folder}, {free / 1e9:.1f} GB free",
            f"{folder} {problem}; {remedy}." if problem else None,
            stops=label == "runs" and not writable,
        )


def _data(options: DoctorOptions) -> Iterator[Finding]:
    start = time.perf_counter()
    if options.data.source == "hub" and not _hub_is_here():
        yield Finding(
            "data",
            "hub: not downloaded yet (the first run downloads it)",
            "the images are not downloaded yet: python -m cifar100_tk.data prepare --to FOLDER downloads them, and "
            "--data.source FOLDER uses them without a network. Everything else can be checked with "
            "--data.source shapes100.",
        )
        return
    train, test = (_source(options).open(split) for split in ("train", "test"))
    seconds = time.perf_counter() - start
    counts = f"{len(train):,} train, {len(test):,} test"
    yield Finding("data", f"{options.data.source}: {counts}; {train.identity.sentence}; opened in {seconds:.1f} s")


def _speed(options: DoctorOptions) -> Iterator[Finding]:
    from cifar100_tk.distributed.launch import launcher_compiles
    from cifar100_tk.doctor import speed

    accelerator, name = _accelerator(options), options.model.name
    on_gpu = accelerator.device.type == "cuda"
    share = options.batch_size or (512 if on_gpu else 16)
    made = {}
    for executor in speed.EXECUTORS:
        made[executor], workers = speed.of_augmentation(accelerator, share, executor, options.seconds)
        where = f"{workers} worker process{'es' * (workers > 1)}" if executor == "host" else str(accelerator.device)
        yield Finding(f"{executor} loader", f"{made[executor]:,.0f} images/s for this process, on {where}")
    compile_model = options.compile == "on" or (options.compile == "auto" and on_gpu)
    trained, first = speed.of_network(accelerator, name, share, options.seconds, compile_model=compile_model)
    compiles = compile_model or launcher_compiles(accelerator)
    compiled = "compiled" if compiles else "not compiled"
    shown = f"{trained:,.0f}" if trained >= 10 else f"{trained:.2g}"
    yield Finding(
        "network",
        f"{name}: {shown} images/s for this process, {share} per step, forward, backward and update, {compiled}"
        + f" (including the first step, in {first:.0f} s)" * compiles,
    )
    share_of_all = 200 * 50_000 // accelerator.num_processes
    hours = speed.hours(share_of_all, made["device"], trained, at_once=on_gpu)
    estimate = f"{hours:.1f} hours" if hours < 48 else f"{hours / 24:.0f} days"
    slow = None
    if not on_gpu and hours > 24:
        slow = (
            f"200 epochs of {name} would take about {estimate} here; train it on a GPU, and use "
            "recipes/quickstart.py on this machine."
        )
    elif on_gpu and made["host"] <= trained:
        slow = "the host loader is slower than the network; keep --pipeline auto, which augments on the GPU where possible."
    yield Finding(
        "a whole run",
        f"200 epochs of 50,000 images in about {estimate}, at the current speed, {compiled}, without evaluation",
        slow,
    )


def _accelerator(options: DoctorOptions) -> Accelerator:
    from cifar100_tk.distributed.launch import start_accelerator, use_threads

    accelerator = start_accelerator(options.output_dir)
    use_threads(accelerator.device, None)
    return accelerator


def _source(options: DoctorOptions) -> Cifar100:
    from cifar100_tk.data import Cifar100

    return Cifar100(source=options.data.source, shapes100_rows=(2000, 100))


def _hub_is_here() -> bool:
    """Return whether `--data.source hub` works without a download."""
    from cifar100_tk.data import Cifar100
    from cifar100_tk.data.store import is_stored

    return all(is_stored(origin) for origin in Cifar100(source="hub").origins().values())


def _saved_config() -> str | None:
    from accelerate.commands.config.config_args import default_config_file

    return str(default_config_file) if os.path.isfile(default_config_file) else None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _first_line(command: list[str]) -> str | None:
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.splitlines()
    except (OSError, subprocess.SubprocessError):
        return None
    return found[0].strip() if found else None


if __name__ == "__main__":
    main()
