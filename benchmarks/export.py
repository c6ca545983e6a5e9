"""Latency of one image and throughput of a batch on this CPU: torch and ONNX Runtime in one run.

Every runner gets the same images, normalization included, and the same number of threads. Runners take turns: a round
times each once, so that a busy machine is busy for all. The median and the best of the rounds are given. Weights are
random, which changes no time. On a machine that others use, `--clock cpu --threads 1` counts the seconds that the processor
worked for this process, which leaves out what it waited for its turn.

    python benchmarks/export.py [--models resnet10_cifar_w16 resnet50_cifar] [--threads 2] [--rounds 15]
"""

from __future__ import annotations

import argparse
import os
import platform
import time
from collections.abc import Callable
from statistics import median

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray

from cifar100_tk.augment import Normalize
from cifar100_tk.data import FINE_NAMES
from cifar100_tk.export.formats import export
from cifar100_tk.models import TimmModel
from cifar100_tk.models.classifier import Classifier

Run = Callable[[NDArray[np.uint8]], object]
"""Classify (B, 3, 32, 32) uint8 images."""


def classifier(name: str) -> Classifier:
    """Return a network with random weights."""
    torch.manual_seed(0)
    return Classifier(TimmModel(name=name).build(100).eval(), FINE_NAMES, lambda image: torch.empty(0), Normalize())


def with_torch(network: Classifier, memory_format: torch.memory_format) -> Run:
    scale, shift = network.normalize.factors(torch.device("cpu"))
    model = network.model.to(memory_format=memory_format)

    def run(raw_images: NDArray[np.uint8]) -> object:
        with torch.inference_mode():
            images = (torch.from_numpy(raw_images).float() * scale - shift).contiguous(memory_format=memory_format)
            return model(images).numpy()

    return run


def with_onnxruntime(network: Classifier, threads: int) -> Run:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    content = export(network, "onnx").content
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return lambda images: session.run(None, {"images": images})


def timed(
    runners: list[Run], images: NDArray[np.uint8], rounds: int, repeats: int, clock: Callable[[], float]
) -> list[list[float]]:
    """Return the seconds per call of each runner in each round. repeats: calls averaged per measurement."""
    seconds: list[list[float]] = [[] for _ in runners]
    for number in range(rounds + 1):
        for runner, of_runner in zip(runners, seconds, strict=True):
            start = clock()
            for _ in range(repeats):
                runner(images)
            if number:  # The first round is a warm-up.
                of_runner.append((clock() - start) / repeats)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["resnet10_cifar_w16", "resnet50_cifar"], metavar="NAME")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    arguments = parser.parse_args()
    if arguments.clock == "cpu" and arguments.threads != 1:
        parser.error("--clock cpu adds up the threads' time; give --threads 1")
    clock = time.perf_counter if arguments.clock == "wall" else time.process_time
    torch.set_num_threads(arguments.threads)
    print(
        f"{platform.processor() or platform.machine()}, {arguments.threads} thread(s), {arguments.clock} clock, float32; "
        f"torch {torch.__version__}, onnxruntime {onnxruntime.__version__}; {arguments.rounds} rounds; "
        f"load average at the start {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores\n"
    )
    print(
        f"| network | runner | one image, ms: median (best) | batch of {arguments.batch_size}, images/s: median (best) |"
    )
    print("| --- | --- | --: | --: |")
    images = np.random.default_rng(0).integers(0, 256, (arguments.batch_size, 3, 32, 32), np.uint8)
    for name in arguments.models:
        runners = {
            "torch, eager": with_torch(classifier(name), torch.contiguous_format),
            "torch, eager, channels_last": with_torch(classifier(name), torch.channels_last),
            "ONNX Runtime": with_onnxruntime(classifier(name), arguments.threads),
        }
        single = timed(list(runners.values()), images[:1], arguments.rounds, 10, clock)
        batch = timed(list(runners.values()), images, arguments.rounds, 1, clock)
        for runner, ones, batches in zip(runners, single, batch, strict=True):
            speeds = [arguments.batch_size / seconds for seconds in batches]
            latency = f"{1000 * median(ones):.2f} ({1000 * min(ones):.2f})"
            print(f"| {name} | {runner} | {latency} | {median(speeds):,.0f} ({max(speeds):,.0f}) |", flush=True)
    print(f"\nLoad average at the end: {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
