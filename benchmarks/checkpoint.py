"""Cost of a ResNet-50 checkpoint in milliseconds, for the training thread and the writer, against naive saving.

python benchmarks/checkpoint.py [FOLDER]      # a folder on the disk to measure; default: .

The plain way copies each tensor to the host while training waits, and then makes one `bytes` object of each file, hashes
it, writes it, and compares it to what is read back. It is measured in the same run, in turn. "Pauses" are what another
thread of the process, which calls small torch operations as a training loop does, loses while the checkpoint is written;
"noise" is the same for a writer that sleeps.
"""

from __future__ import annotations

import hashlib
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import safetensors.torch
import torch

from cifar100_tk.models import TimmModel
from cifar100_tk.runs import checkpoint
from cifar100_tk.runs.checkpoint_manager import Files, Snapshot

REPEATS = 7
PAUSE_MS = 1.0
"""Loop iterations longer than this count as pauses; a normal iteration takes a tenth of it."""


def main() -> None:
    """Print a table for a run without EMA weights and one for a run with them."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else ".")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(
        f"{name}, torch {torch.__version__}, {os.cpu_count()} cores; medians of {REPEATS}, with the least and the most"
    )
    net = TimmModel(name="resnet50_cifar").build(100).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    momentum = {f"momentum_buffer/{name}": torch.randn_like(p) for name, p in net.named_parameters()}
    average = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    for ema in ({}, {"ema": average}):
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            measure(Path(scratch), lambda ema=ema: {"model": net.state_dict(), "optimizer": momentum} | ema)


def measure(folder: Path, files: Callable[[], Files]) -> None:
    """Print a table of both ways to save, measured alternately, and of verifying and reading."""
    snapshot = Snapshot()
    ways: dict[str, tuple[Callable[[], Callable[[], Files]], Callable[[int, Files], object]]] = {
        "plain": (lambda: copied_to_host(files()), lambda step, on_host: save_plainly(folder, step, on_host)),
        "ours": (
            lambda: snapshot.take(files()),
            lambda step, on_host: checkpoint.save(folder, step, on_host, {}, keep=1),
        ),
    }
    rows = ["training thread, first save", "training thread", "writer", "pauses, sum", "pauses, longest"]
    times: dict[str, dict[str, list[float]]] = {row: {way: [] for way in ways} for row in [*rows, "noise, sum"]}
    for repeat in range(REPEATS + 1):
        for way, (take, write) in ways.items():
            synchronize()
            started = time.perf_counter()
            on_host = take()
            copied = milliseconds(started)
            if repeat == 0:
                times[rows[0]][way].append(copied)
                write(0, on_host())
                continue
            times["training thread"][way].append(copied)
            took, pauses = beside(lambda write=write, on_host=on_host, step=repeat: write(step, on_host()))
            times["writer"][way].append(took)
            times["pauses, sum"][way].append(sum(pauses))
            times["pauses, longest"][way].append(max(pauses, default=0.0))
            times["noise, sum"][way].append(sum(beside(lambda took=took: time.sleep(took / 1000))[1]))
    path = folder / f"{checkpoint.PREFIX}{REPEATS:08d}"
    size = sum(file.stat().st_size for file in path.iterdir())
    print(f"\n{size:,} bytes in {len(list(path.iterdir()))} files\n\n| ms | plain | ours |\n| --- | --- | --- |")
    for row, by_way in times.items():
        print(f"| {row} | {' | '.join(summary(values) for values in by_way.values())} |")
    for row, work in {"verify": checkpoint.verify, "read, which verifies": checkpoint.read}.items():
        print(f"| {row} | | {summary([timed(work, path) for _ in range(REPEATS)])} |")


def copied_to_host(files: Files) -> Callable[[], Files]:
    """Copy tensors one by one, synchronizing after each."""
    copies = {
        file: {name: tensor.detach().to("cpu", copy=True) for name, tensor in values.items()}
        for file, values in files.items()
    }
    return lambda: copies


def save_plainly(folder: Path, step: int, files: Files) -> None:
    """Serialize, hash, write and compare each file as one object in memory."""
    plain: Mapping[str, bytes] = {
        file: safetensors.torch.save({name: tensor.contiguous() for name, tensor in values.items()})
        for file, values in files.items()
    }
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        for name, content in plain.items():
            hashlib.sha256(content).hexdigest()
            with (Path(scratch) / name).open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            assert Path(file.name).read_bytes() == content


def beside(work: Callable[[], object]) -> tuple[float, list[float]]:
    """Run work in a thread while this one runs small operations. Returns its time and the pauses here, in ms."""
    ended: list[float] = []
    started = time.perf_counter()

    def working() -> None:
        work()
        ended.append(milliseconds(started))

    thread = threading.Thread(target=working)
    thread.start()
    number, pauses = torch.zeros(8), []
    while not ended:
        before = time.perf_counter()
        number.add_(1.0)
        time.sleep(20e-6)  # Releases the GIL, as calls in a training loop do.
        if (took := milliseconds(before)) > PAUSE_MS:
            pauses.append(took)
    thread.join()
    return ended[0], pauses


def timed(work: Callable[[Path], object], path: Path) -> float:
    """Return the duration of a call in milliseconds."""
    started = time.perf_counter()
    work(path)
    return milliseconds(started)


def milliseconds(since: float) -> float:
    """Return the time since a clock reading."""
    return (time.perf_counter() - since) * 1000


def synchronize() -> None:
    """Wait for the GPU if there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def summary(values: list[float]) -> str:
    """Return the median with minimum and maximum."""
    return f"{statistics.median(values):.1f} ({min(values):.1f} to {max(values):.1f})"


if __name__ == "__main__":
    main()
