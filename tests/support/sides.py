"""Images that carry their numbers, and a network that tells their left side from their right."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from torch import Tensor, nn

from cifar100_tk.augment import Normalize
from cifar100_tk.data import Fingerprint, Split

AS_IS = Normalize(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


def numbered(count: int, rows: list[int] | None = None) -> Split:
    """Images that carry their number in red and green and their class in blue."""
    numbers = np.arange(count)
    labels = numbers * 7 % 10
    images = np.zeros((count, 3, 32, 32), np.uint8)
    images[:, 0], images[:, 1], images[:, 2] = (part[:, None, None] for part in (numbers % 256, numbers // 256, labels))
    return Split(
        name="test",
        images=images,
        labels=labels,
        index=numbers if rows is None else np.array(rows, np.int64),
        class_names=tuple("abcdefghij"),
        coarse_names=("all",),
        coarse_of_fine=(0,) * 10,
        identity=Fingerprint(sha256="", rows_sha256="", count=count, sentence="numbered images"),
    )


class Sides(nn.Module):
    """Says for an image (number, left edge, right edge): nine classes of those, so that mirror images differ."""

    def forward(self, images: Tensor) -> Tensor:
        left, right = images[:, :, 5, 0], images[:, :, 5, -1]
        return torch.cat([left, right, left - right], dim=1).mul(8)[:, :9]


def sided(count: int, rows: list[int] | None = None) -> Split:
    """Random images of nine classes."""
    images = np.random.default_rng(count).integers(0, 256, (count, 3, 32, 32), np.uint8)
    split = dataclasses.replace(numbered(count, rows), images=images, labels=np.arange(count) * 7 % 9)
    return dataclasses.replace(split, class_names=tuple("abcdefghi"), coarse_of_fine=(0,) * 9)
