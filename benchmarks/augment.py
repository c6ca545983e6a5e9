"""Throughput of the reference augmentations: both executors of this package against other libraries.

The chain: crop and resize, flip, AutoAugment's CIFAR-10 policy on 70 % of the images, normalize, Cutout on half. Each
row does as much of it as its library can, from uint8 images in memory to a float32 batch, on one CPU thread. Ratios
are to torchvision's Pillow chain. With CUDA a second table gives what our whole pipeline takes there, mixed and with
targets, from a store on the device: milliseconds a batch, one after the other, and the share of a compiled bf16 step of
ResNet-50 on as many images.

    python benchmarks/augment.py [--batch-sizes 256 2048] [--rounds 8]
"""

from __future__ import annotations

import argparse
import importlib.util
import platform
import random
import resource
import runpy
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import PIL
import torch
import torchvision
from gpu_measure import bare_step, timed
from numpy.typing import NDArray
from timm.data.auto_augment import auto_augment_transform
from timm.data.random_erasing import RandomErasing
from torchvision.transforms import v2

from cifar100_tk.augment import AutoAugment, Chain, Cutout, Flip, Normalize, RandomResizedCrop, finish
from cifar100_tk.data import Cifar100
from cifar100_tk.recipe import Recipe
from cifar100_tk.training.loader import BatchOrder, Pipeline

MEAN, STD = Normalize().mean, Normalize().std
Uint8s = NDArray[np.uint8]
Run = Callable[[Uint8s], object]
"""Augment (B, 3, 32, 32) uint8 images in memory."""


def images(count: int) -> Uint8s:
    """Draw gradients with noise, since the speed of some ops depends on the content. Returns (count, 3, 32, 32) uint8."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:32, :32]
    slopes = rng.normal(0, 4, (2, count, 3, 1, 1))
    values = rng.uniform(40, 215, (count, 3, 1, 1)) + slopes[0] * (x - 16) + slopes[1] * (y - 16)
    drawn: Uint8s = np.clip(values + rng.normal(0, 12, (count, 3, 32, 32)), 0, 255).astype(np.uint8)
    return drawn


def ours(executor: str) -> Run:
    """Return this package's chain, including its random draws."""
    chain = Chain((RandomResizedCrop(), Flip(), AutoAugment(p=0.7)), 0)
    epoch = iter(range(1_000_000))

    def run(batch: Uint8s) -> object:
        index, now = np.arange(len(batch)), next(epoch)
        if executor == "host":
            augmented = torch.from_numpy(chain.host(batch, now, index))
        else:
            augmented = chain.device(torch.from_numpy(batch), now, index)
        return finish(augmented, Normalize(), Cutout(), 0, now, index)

    return run


def one_at_a_time(transform: Callable[[PIL.Image.Image], torch.Tensor]) -> Run:
    """Return a chain on Pillow images, as in a Dataset of decoded images."""

    def run(batch: Uint8s) -> object:
        rows = np.ascontiguousarray(batch.transpose(0, 2, 3, 1))
        return torch.stack([transform(PIL.Image.fromarray(row)) for row in rows])

    return run


def cutout(image: torch.Tensor) -> torch.Tensor:
    """Cut one 16x16 hole clipped at the border, as the published code does, in half of the images."""
    if random.random() < 0.5:
        x, y = random.randrange(32), random.randrange(32)
        image[:, max(y - 8, 0) : y + 8, max(x - 8, 0) : x + 8] = 0.0
    return image


def torchvision_pillow() -> Run:
    from torchvision import transforms as T

    policy = T.AutoAugment(T.AutoAugmentPolicy.CIFAR10)
    chain = [T.RandomResizedCrop(32, (0.8, 1.0), (0.9, 1.1)), T.RandomHorizontalFlip(), T.RandomApply([policy], 0.7)]
    return one_at_a_time(T.Compose([*chain, T.ToTensor(), T.Normalize(MEAN, STD), cutout]))


def torchvision_v2() -> Run:
    """Return v2 on uint8 tensors, one image at a time, since it draws once per call."""
    policy = v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10)
    chain = [v2.RandomResizedCrop(32, (0.8, 1.0), (0.9, 1.1), antialias=True), v2.RandomHorizontalFlip()]
    scale = [v2.ToDtype(torch.float32, scale=True), v2.Normalize(list(MEAN), list(STD)), cutout]
    transform = v2.Compose([*chain, v2.RandomApply([policy], 0.7), *scale])
    return lambda batch: torch.stack([transform(image) for image in torch.from_numpy(batch)])


def timm_pillow() -> Run:
    """Return timm's AutoAugment (the ImageNet policy; it has none for CIFAR), with random erasing instead of Cutout."""
    from torchvision import transforms as T

    policy = auto_augment_transform("originalr", {"translate_const": 14, "img_mean": (129, 124, 112)})
    chain = [T.RandomResizedCrop(32, (0.8, 1.0), (0.9, 1.1)), T.RandomHorizontalFlip(), T.RandomApply([policy], 0.7)]
    erase = RandomErasing(0.5, 0.25, 0.25, 1.0, device="cpu")
    return one_at_a_time(T.Compose([*chain, T.ToTensor(), T.Normalize(MEAN, STD), erase]))


def kornia_batched() -> Run:
    """Return kornia's batched chain; its AutoAugment draws one sub-policy for the whole batch."""
    import kornia.augmentation as K  # type: ignore[import-not-found]

    policy = K.auto.AutoAugment("cifar10")
    chain = torch.nn.Sequential(K.RandomResizedCrop((32, 32), (0.8, 1.0), (0.9, 1.1)), K.RandomHorizontalFlip())
    last = torch.nn.Sequential(
        K.Normalize(torch.tensor(MEAN), torch.tensor(STD)), K.RandomErasing((0.25, 0.25), (1.0, 1.0), p=0.5)
    )

    def run(batch: Uint8s) -> object:
        images = chain(torch.from_numpy(batch).float() / 255)
        return last(policy(images) if random.random() < 0.7 else images)

    return run


def seconds_a_batch(runs: list[Run], batch: Uint8s, rounds: int) -> list[float]:
    """Time a batch of every chain: the best of several interleaved rounds, so that other load affects all alike."""
    best = [float("inf")] * len(runs)
    for number in range(rounds + 1):
        for row, run in enumerate(runs):
            start = time.perf_counter()
            run(batch if number else batch[:256])  # The first round is a warm-up, with a smaller batch.
            if number:
                best[row] = min(best[row], time.perf_counter() - start)
    return best


def on_cuda(batch_size: int, rounds: int) -> tuple[float, float, float]:
    """Return the milliseconds of a batch of the reference recipe's pipeline, those of a step, and the peak memory in MB."""
    device, steps = torch.device("cuda"), 20
    recipe: Recipe = runpy.run_path(str(Path(__file__).parent.parent / "recipes" / "resnet50.py"))["recipe"]
    split = Cifar100(source="shapes100", shapes100_rows=(max(10_000, 100 * (-(-batch_size // 100))), 100)).open("train")
    order = BatchOrder(0, split.index, batch_size, len(split) // batch_size)
    chain = (recipe.augment, recipe.normalize, recipe.cutout, recipe.mix, recipe.loss.smoothing_over_all(100))
    batches = Pipeline(split, order, *chain, device, "device").batches(0, 3 + rounds * steps)
    for _ in range(3):
        next(batches)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()

    def make() -> None:
        for _ in range(steps):
            next(batches)

    made = min(timed(device, make) for _ in range(rounds)) / steps
    peak = torch.cuda.max_memory_allocated() - before
    step = bare_step("compiled", recipe.model.name, batch_size, device)
    for _ in range(3):
        step()
    stepped = min(timed(device, lambda: [step() for _ in range(steps)]) for _ in range(rounds)) / steps
    return 1000 * made, 1000 * stepped, peak / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[256, 2048], metavar="B")
    parser.add_argument("--rounds", type=int, default=8, help="rounds of every chain and batch; the best counts")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[tuple[str, Callable[[], Run]]] = [
        ("torchvision, Pillow", torchvision_pillow),
        ("torchvision v2, tensors", torchvision_v2),
        ("timm AutoAugment (ImageNet policy), Pillow", timm_pillow),
        ("ours, host", lambda: ours("host")),
        ("ours, device executor", lambda: ours("device")),
    ]
    if importlib.util.find_spec("kornia"):
        rows.append(("kornia (one sub-policy a batch)", kornia_batched))
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    versions = f"torch {torch.__version__}, torchvision {torchvision.__version__}, Pillow {PIL.__version__}"
    print(
        f"{platform.processor() or platform.machine()}, 1 thread{gpu}; {versions}; best of {arguments.rounds} rounds\n"
    )
    print("| chain | batch | images/s | ms a batch | to torchvision Pillow |\n| --- | --: | --: | --: | --: |")
    for size in arguments.batch_sizes:
        batch = images(size)
        times = seconds_a_batch([build() for _, build in rows], batch, arguments.rounds)
        for (name, _), seconds in zip(rows, times, strict=True):
            speed = f"{size / seconds:,.0f} | {1000 * seconds:,.2f} | {times[0] / seconds:.1f}x"
            print(f"| {name} | {size} | {speed} |", flush=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # kilobytes on Linux
    print(f"\nPeak memory of this process with everything it imports: {peak:,.0f} MB")
    if torch.cuda.is_available():
        print(
            "\n| batch on CUDA | ms a batch | ms a ResNet-50 step | share of the step | memory beyond the store, MB |"
        )
        print("| --: | --: | --: | --: | --: |")
        for size in arguments.batch_sizes:
            made, stepped, beyond = on_cuda(size, arguments.rounds)
            print(f"| {size} | {made:.2f} | {stepped:.2f} | {made / stepped:.1%} | {beyond:,.0f} |", flush=True)


if __name__ == "__main__":
    main()
