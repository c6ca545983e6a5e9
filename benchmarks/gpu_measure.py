"""One measurement of a GPU machine, run by `benchmarks/gpu.py` in a separate process; also works on a CPU.

python benchmarks/gpu_measure.py '{"what": "ceilings"}' RESULT.json
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import itertools
import json
import os
import platform
import runpy
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cifar100_tk.distributed.launch import use_kernels
from cifar100_tk.distributed.memory import is_oom
from cifar100_tk.runs import summary as run_summary
from cifar100_tk.training.loader import Batch, Pipeline

Json = dict[str, Any]
SLEEP_CYCLES = 200_000_000
"""About 0.1 s on a GPU: longer than the host needs to queue a batch."""
PROFILE_AFTER, PROFILE_STEPS = 8, 20


def conditions(device: torch.device) -> Json:
    """Return the conditions of every figure."""
    packages = ("torch", "torchvision", "accelerate", "timm", "numpy")
    versions = {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in packages}
    if device.type == "cpu":
        return {"card": "CPU", "driver": None, "cores": os.cpu_count()} | versions
    cuda = {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
    properties = torch.cuda.get_device_properties(device)
    memory = {
        "memory_gb": round(properties.total_memory / 1e9, 1),
        "capability": f"{properties.major}.{properties.minor}",
    }
    return {"card": properties.name, "driver": _driver(), "cores": os.cpu_count()} | memory | versions | cuda


def _driver() -> str | None:
    asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    with contextlib.suppress(OSError, subprocess.SubprocessError, IndexError):
        return subprocess.run(asked, capture_output=True, text=True, check=True, timeout=30).stdout.splitlines()[0]
    return None


def ceilings(device: torch.device) -> Json:
    """Return the device's peak rates: bytes/s read and written by a large copy, and FLOP/s of a bf16 matrix product."""
    on_cuda = device.type == "cuda"
    source = torch.empty(2**31 if on_cuda else 2**27, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copy = statistics.median(timed(device, lambda: target.copy_(source)) for _ in range(10))
    side = 8192 if on_cuda else 256
    # Random values: GPUs are faster on zeros.
    a, b = (torch.randn(side, side, device=device).bfloat16() for _ in range(2))
    for _ in range(3):
        a @ b
    product = statistics.median(timed(device, lambda: a @ b) for _ in range(10))
    return {
        "copy_bytes_per_second": 2 * source.numel() / copy,
        "matmul_flop_per_second": 2 * side**3 / product,
        "matmul_side": side,
    }


def bare_step(way: str, network: str, batch_size: int, device: torch.device) -> Callable[[], None]:
    """Return a function that does one training step on a batch already on the device.

    way: plain (NCHW and fp16 with a loss scale on a GPU, float32 on a CPU, eager), channels_last (bf16), or compiled (the
    same, compiled).
    """
    import timm

    use_kernels(deterministic=False)  # The same settings as `train`, for a fair comparison.
    on_cuda = device.type == "cuda"
    model: nn.Module = timm.create_model(network, num_classes=100).to(device)
    images = torch.randn(batch_size, 3, 32, 32, device=device)
    targets = torch.full((batch_size, 100), 0.01, device=device)
    if way != "plain":
        model = model.to(memory_format=torch.channels_last)
        images = images.to(memory_format=torch.channels_last)
    if way == "compiled":
        model.compile(dynamic=False)
    dtype = torch.bfloat16 if way != "plain" else torch.float16
    autocast = torch.autocast(device.type, dtype, enabled=on_cuda or way != "plain")
    scaler = torch.amp.GradScaler(device.type, enabled=on_cuda and way == "plain")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)

    def step() -> None:
        with autocast:
            logits: Tensor = model(images)
        scaler.scale(nn.functional.cross_entropy(logits.float(), targets)).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()

    return step


def bare(device: torch.device, way: str, network: str, batch_size: int, steps: int) -> Json:
    """Return images/s, the time of the first step including compilation, and the peak memory of one variant."""
    step = bare_step(way, network, batch_size, device)
    first = timed(device, step)
    for _ in range(2):
        step()
    seconds = timed(device, lambda: [step() for _ in range(steps)])
    return {
        "images_per_second": steps * batch_size / seconds,
        "first_step_seconds": first,
        "peak_memory_bytes": _peak_memory(device),
    }


class Watch:
    """Timing of a run's batches on the stream that makes them, and a profile of some steps."""

    def __init__(self, device: torch.device, *, profile: bool) -> None:
        self.device, self.on_cuda = device, device.type == "cuda"
        self.spans: list[Callable[[], float]] = []
        """Return the time of each batch in ms."""
        self.asked: list[float] = []
        self.given: list[float] = []
        self.pipeline: Pipeline | None = None
        activities = [torch.profiler.ProfilerActivity.CPU]
        activities += [torch.profiler.ProfilerActivity.CUDA] if self.on_cuda else []
        self.profiler = torch.profiler.profile(activities=activities) if profile else None
        self.profiled_seconds = 0.0

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """Time every pipeline inside the block."""
        made = Pipeline.made

        def watched(pipeline: Pipeline, start: int, stop: int) -> Iterator[Batch]:
            self.pipeline = pipeline
            yield from self.watched(made(pipeline, start, stop))

        Pipeline.made = watched  # type: ignore[assignment, method-assign]
        try:
            yield
        finally:
            Pipeline.made = made  # type: ignore[method-assign]

    def watched(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Yield the same batches. Runs where they are made: on a GPU, on the side stream."""
        for number in range(sys.maxsize):
            self.asked.append(time.perf_counter())
            self._profile(number)
            with self._span():
                batch = next(batches, None)
            if batch is None:
                return
            self.given.append(time.perf_counter())
            yield batch

    @contextlib.contextmanager
    def _span(self) -> Iterator[None]:
        if self.on_cuda:
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            yield
            end.record()
            self.spans.append(lambda: begin.elapsed_time(end))
        else:
            started = time.perf_counter()
            yield
            ms = 1e3 * (time.perf_counter() - started)
            self.spans.append(lambda: ms)

    def _profile(self, number: int) -> None:
        if self.profiler is None:
            return
        if number == PROFILE_AFTER:
            _wait(self.device)
            self.profiler.start()
            self.profiled_seconds = time.perf_counter()
        elif number == PROFILE_AFTER + PROFILE_STEPS:
            _wait(self.device)
            self.profiled_seconds = time.perf_counter() - self.profiled_seconds
            self.profiler.stop()

    def first_step_seconds(self) -> float:
        """Return the host time of the first step: from receiving a batch to requesting the one after the prefetched one."""
        return max(asked - given for given, asked in zip(self.given[:2], self.asked[1:3], strict=True))

    def alone_ms(self, steps: int) -> float:
        """Return the ms of a batch in isolation. On a GPU the host runs ahead, so that this is GPU time only."""
        assert self.pipeline is not None
        before = len(self.spans)
        batches = self.watched(self.pipeline.made(0, steps))
        for _ in range(steps):
            if self.on_cuda:
                torch.cuda.synchronize()  # Frees the pinned memory of earlier batches for reuse.
                torch.cuda._sleep(SLEEP_CYCLES)
            next(batches)
        _wait(self.device)
        return statistics.median(span() for span in self.spans[before + 1 :])


def program(
    device: torch.device, recipe: str, arguments: list[str], output_dir: str, batch_size: int, steps: int
) -> Json:
    """Run a recipe file with its command line; return the speed of its last epoch and the times of its batches."""
    watch = Watch(device, profile=False)
    _run(watch, recipe, [*arguments, "--output-dir", output_dir])
    lines = (Path(output_dir) / "metrics.jsonl").read_text().splitlines()
    speed: float = json.loads(lines[-1])["images_per_second"]
    peak = _peak_memory(device)
    _wait(device)
    beside = statistics.median(span() for span in watch.spans[-steps:])
    alone, step_ms = watch.alone_ms(8), 1e3 * batch_size / speed
    return {
        "images_per_second": speed,
        "first_step_seconds": watch.first_step_seconds(),
        "peak_memory_bytes": peak,
        "augmentation_ms": alone,
        "augmentation_share": alone / step_ms,
        "augmentation_beside_ms": beside,
        "augmentation_beside_share": beside / step_ms,
    }


def profile(device: torch.device, recipe: str, arguments: list[str], output_dir: str) -> Json:
    """Run a recipe file with its command line; return the slowest kernels of some of its steps."""
    watch = Watch(device, profile=True)
    _run(watch, recipe, [*arguments, "--output-dir", output_dir])
    assert watch.profiler is not None
    kernels = []
    for event in watch.profiler.key_averages():
        if watch.on_cuda:
            on_device = event.device_type.name == "CUDA"
            if on_device and not getattr(event, "is_user_annotation", False):
                kernels.append((event.self_device_time_total, event.count, event.key))
        else:
            kernels.append((event.self_cpu_time_total, event.count, event.key))
    kernels.sort(reverse=True)
    total = sum(microseconds for microseconds, _, _ in kernels)
    return {
        "step_ms": 1e3 * watch.profiled_seconds / PROFILE_STEPS,
        "kernels_ms": total / 1e3 / PROFILE_STEPS,
        "kernels_a_step": sum(count for _, count, _ in kernels) / PROFILE_STEPS,
        "top": [
            {
                "kernel": name,
                "ms_a_step": microseconds / 1e3 / PROFILE_STEPS,
                "calls_a_step": count / PROFILE_STEPS,
                "share": microseconds / total,
            }
            for microseconds, count, name in kernels[:20]
        ],
    }


def _run(watch: Watch, recipe: str, arguments: list[str]) -> None:
    sys.argv = [recipe, *arguments]
    with watch.installed():
        try:
            runpy.run_path(recipe, run_name="__main__")
        except SystemExit as end:
            if end.code:
                raise


def result(run: str) -> Json:
    """Return the result of a finished run, its curve and its row of a results table."""
    found = run_summary.summary([Path(run)])
    (measured,) = found.results
    epochs = run_summary.read(Path(run)).epochs
    seconds = [line["seconds"] for line in epochs]
    whole = json.loads((Path(run) / "run_status.json").read_text()).get("seconds")
    return {
        "split": measured.split,
        "top1": measured.top1,
        "top5": measured.top5,
        "loss": measured.loss,
        "epochs": measured.epoch,
        "wall_seconds": whole,
        "epoch_seconds": statistics.median(b - a for a, b in itertools.pairwise(seconds))
        if len(seconds) > 1
        else seconds[0],
        "images_per_second": statistics.median(line["images_per_second"] for line in epochs),
        "curve": list(epochs),
        "markdown": f"{run_summary.MARKDOWN_HEAD}\n{found.markdown_row}",
    }


def timed(device: torch.device, work: Callable[[], Any]) -> float:
    """Return the duration of some work in seconds, including the device."""
    _wait(device)
    started = time.perf_counter()
    work()
    _wait(device)
    return time.perf_counter() - started


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def _peak_memory(device: torch.device) -> int | None:
    return torch.cuda.max_memory_allocated() if device.type == "cuda" else None


def main() -> None:
    """Write the measurement as JSON, or an error if memory ran out."""
    asked, path = json.loads(sys.argv[1]), Path(sys.argv[2])
    name = asked.pop("what")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = result(**asked) if name == "result" else globals()[name](device, **asked)
    except RuntimeError as error:
        if not is_oom(error):
            raise
        found = {"error": "out of memory"}
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(found))
    temporary.rename(path)


if __name__ == "__main__":
    main()
