"""Overhead of an evaluation: 10,000 images through `predict` against bare forward passes on tensors in memory.

    python benchmarks/evaluation.py [--model NAME] [--images N] [--batch-size N] [--rounds N]

All rows do the same forward passes of the same network. `bare` has normalized images ready and keeps the logits;
`evaluate` is what training does each epoch; `collect` gives the predictions of each image on the host; the last row
makes every figure of `python -m cifar100_tk.eval` of them, with a temperature fitted on as many held-out images as
would come with 5,000. They take turns in one process. The first ratio is the median of those of the rounds, by the clock; the
second is that of the least CPU time of this process over all rounds, which other work on the machine disturbs least.
"""

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable

import timm
import torch
from accelerate import Accelerator

from cifar100_tk.augment import Normalize, finish
from cifar100_tk.data import Cifar100, Split
from cifar100_tk.evaluation.predictions import Predictions, evaluate, predict
from cifar100_tk.evaluation.scores import Scaled, Scores, fit_temperature


def bare_passes(net: torch.nn.Module, split: Split, batch_size: int, accelerator: Accelerator) -> Callable[[], object]:
    """Return a loop over batches that are already normalized and on the device."""
    raw_images = torch.from_numpy(split.images[split.index]).to(accelerator.device)
    batches = [finish(part, Normalize(), None, 0, 0, split.index) for part in raw_images.split(batch_size)]

    @torch.inference_mode()
    def run() -> object:
        with accelerator.autocast():
            return torch.cat([net(images) for images in batches]).cpu()

    return run


def all_figures(split: Split, found: Predictions) -> object:
    """Score predictions, and fit and apply a temperature; on 5,000 of them, since the value does not matter here."""
    scores = Scores.of(found.logits, found.labels, split.class_names, split.coarse_names, split.coarse_of_fine)
    temperature = fit_temperature(found.logits[:5000], found.labels[:5000])
    return scores.to_json(Scaled.of(found.logits, found.labels, temperature, "holdout"))


def seconds(run: Callable[[], object], accelerator: Accelerator) -> tuple[float, float]:
    """Return the wall time and the CPU time of a call."""
    if accelerator.device.type == "cuda":
        torch.cuda.synchronize()
    begun, cpu = time.perf_counter(), time.process_time()
    run()
    if accelerator.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begun, time.process_time() - cpu


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet10_cifar_w16")
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--batch-size", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    accelerator = Accelerator()
    split = Cifar100(source="shapes100", shapes100_rows=(100, arguments.images)).open("test")
    net = timm.create_model(arguments.model, num_classes=100).eval().to(accelerator.device)
    net = net.to(memory_format=torch.channels_last)
    options = {"accelerator": accelerator, "batch_size": arguments.batch_size}
    rows: dict[str, Callable[[], object]] = {
        "bare forward passes": bare_passes(net, split, arguments.batch_size, accelerator),
        "evaluate": lambda: evaluate(net, split, Normalize(), **options),
        "collect": lambda: predict(net, split, Normalize(), **options),
        "collect and every figure": lambda: all_figures(split, predict(net, split, Normalize(), **options)),
    }
    # Warm-up: the first batch allocates, and the first scores import torchmetrics.
    all_figures(split, predict(net, split, Normalize(), limit_batches=1, **options))
    load = os.getloadavg()[0]
    times = [{name: seconds(run, accelerator) for name, run in rows.items()} for _ in range(arguments.rounds)]
    device = (
        torch.cuda.get_device_name()
        if accelerator.device.type == "cuda"
        else f"{platform.machine()}, {torch.get_num_threads()} threads"
    )
    print(
        f"{arguments.model}, {arguments.images:,} images, batch {arguments.batch_size}, {device}, "
        f"torch {torch.__version__}; {arguments.rounds} rounds; load {load:.1f} before, {os.getloadavg()[0]:.1f} after\n"
    )
    print("| what | seconds, median | over bare, by the clock | least CPU seconds | over bare |")
    print("| --- | --: | --: | --: | --: |")
    bare = [timing["bare forward passes"] for timing in times]
    for name in rows:
        clock = [timing[name][0] / wall - 1 for timing, (wall, _) in zip(times, bare, strict=True)]
        least = min(timing[name][1] for timing in times)
        print(
            f"| {name} | {statistics.median(timing[name][0] for timing in times):.3f} "
            f"| {statistics.median(clock):+.1%} ({min(clock):+.1%} to {max(clock):+.1%}) "
            f"| {least:.3f} | {least / min(cpu for _, cpu in bare) - 1:+.1%} |"
        )


if __name__ == "__main__":
    main()
