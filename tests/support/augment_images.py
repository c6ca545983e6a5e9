"""Images that the augmentation tests work on: like photographs, pure noise, and flat or nearly flat ones."""

from typing import Any

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from cifar100_tk.augment import (
    Augmentation,
    AutoAugment,
    Flip,
    PadCrop,
    RandAugment,
    RandomResizedCrop,
    TrivialAugmentWide,
)

Uint8s = NDArray[np.uint8]

REFERENCE: tuple[Augmentation, ...] = (RandomResizedCrop(), Flip(), AutoAugment(p=0.7))
CHAINS: list[tuple[Augmentation, ...]] = [
    (),
    REFERENCE,
    (PadCrop(mode="reflect"), Flip(alternate=True), TrivialAugmentWide()),
    (PadCrop(), RandAugment(num_ops=3, magnitude=25), RandomResizedCrop(scale=(0.1, 1.0), ratio=(0.5, 2.0))),
]


def photo_like(count: int, seed: int = 0) -> Uint8s:
    """Draw gradients, discs and noise at all brightnesses. Returns (count, 3, 32, 32) uint8."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:32, :32]
    base = rng.uniform(0, 255, (count, 3, 1, 1))
    slope = rng.normal(0, 3, (2, count, 3, 1, 1))
    centre, radius = rng.uniform(0, 32, (2, count, 1, 1, 1)), rng.uniform(3, 14, (count, 1, 1, 1))
    disc = (x - centre[0]) ** 2 + (y - centre[1]) ** 2 < radius**2
    noise = rng.normal(0, rng.uniform(0, 20, (count, 1, 1, 1)), (count, 3, 32, 32))
    values = base + slope[0] * (x - 16) + slope[1] * (y - 16) + disc * rng.normal(0, 80, (count, 3, 1, 1)) + noise
    images: Uint8s = np.clip(values, 0, 255).astype(np.uint8)
    return images


def awkward() -> Uint8s:
    """Make the cases on which equalize and autocontrast turn special. Returns (8, 3, 32, 32) uint8."""
    rng = np.random.default_rng(1)
    images = np.zeros((8, 3, 32, 32), np.uint8)  # 0: black
    images[1] = 255
    images[2] = np.array([3, 128, 250]).reshape(3, 1, 1)  # flat, each channel its own
    images[3, :, 16:] = 1  # two neighbouring values
    images[4] = 200
    images[4, :, 0, 0] = 7  # one pixel off: too few others to equalize
    images[5, :, :8] = 90  # 256 of 1024 pixels
    images[6] = rng.integers(0, 256, (3, 32, 32))
    images[7, 0] = rng.integers(0, 256, (32, 32))  # one channel of noise, two flat ones
    return images


def to_pil(image: Uint8s) -> PIL.Image.Image:
    """Turn (3, 32, 32) uint8 into a Pillow image."""
    return PIL.Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0)))


def from_pil(image: PIL.Image.Image) -> Uint8s:
    """Turn a Pillow image into (3, 32, 32) uint8."""
    return np.asarray(image).transpose(2, 0, 1)


def unchecked(component: Any, **values: Any) -> None:
    """Put a value of the wrong type into a frozen component, past the type checks of the test run, and validate it."""
    for name, value in values.items():
        object.__setattr__(component, name, value)
    component.__post_init__()
