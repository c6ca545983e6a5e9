"""The first batch of a run as the network sees it, to check the augmentation by eye."""

from __future__ import annotations

import numpy as np
import PIL.Image
import torch

from cifar100_tk.augment import Normalize
from cifar100_tk.data import contact_sheet
from cifar100_tk.data.labels import display_name
from cifar100_tk.training.loader import Batch


def draw_batch(batch: Batch, normalize: Normalize, class_names: tuple[str, ...], most: int = 48) -> PIL.Image.Image:
    """Draw the first images of a batch, each with its classes and their weights in the target.

    normalize: is inverted to show the original colours; a Cutout hole shows as the mean.
    """
    scale, shift = normalize.factors(torch.device("cpu"))
    images = ((batch.images[:most].float().cpu() + shift) / scale).round().clamp(0, 255).byte()
    pixels = np.ascontiguousarray(images.permute(0, 2, 3, 1).numpy())
    captions = [_captions(target, class_names) for target in batch.targets[:most].float().cpu()]
    return contact_sheet.draw([PIL.Image.fromarray(image) for image in pixels], captions)


def _captions(target: torch.Tensor, class_names: tuple[str, ...]) -> list[str]:
    """Return a line for each class whose target weight is above that of label smoothing, at most two."""
    weights, classes = target.topk(2)
    floor = target.min().item() + 0.005
    found = zip(weights.tolist(), classes.tolist(), strict=True)
    return [f"{weight:.2f} {display_name(class_names[number])}" for weight, number in found if weight > floor]
