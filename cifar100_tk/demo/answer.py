"""Prediction and explanation for one image, independent of the web page."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import PIL.Image
import torch
from jaxtyping import Float, UInt8
from numpy.typing import NDArray
from torch import Tensor

from cifar100_tk.data.labels import display_name, superclasses_of
from cifar100_tk.models.cam import activation_map
from cifar100_tk.models.classifier import Classifier

SHOWN = 384
"""Width of the displayed images in pixels: 12 for each pixel of a 32x32 input."""
HEAT: Final = np.array([(20, 24, 82), (126, 30, 122), (232, 93, 60), (255, 226, 120)], np.float32)
"""Colour map from low to high, increasing in lightness so that it is readable without colour."""


@dataclass(frozen=True)
class Answer:
    """Result for one image."""

    probabilities: dict[str, float]
    """Probabilities of all classes, by display name."""
    superclass: str | None
    """Super-class of the most likely class; None if unknown."""
    seen: PIL.Image.Image
    """The input of the network, enlarged; of a 32x32 input each pixel is drawn as a 12x12 square."""
    looked: PIL.Image.Image | None
    """Class activation map of the most likely class over the input; None if the network has no feature map."""


def answer(classifier: Classifier, image: PIL.Image.Image) -> Answer:
    """Classify one image of any size, and explain the most likely class. image: RGB."""
    images = classifier.prepare(image)[None]
    probabilities = classifier.probabilities(images)[0]
    likeliest = int(probabilities.argmax())
    pixels = seen(classifier, images[0])
    found = activation_map(classifier.model, images, probabilities.argmax()[None])
    names, superclass = readable(classifier.class_names), superclasses_of(classifier.class_names)[likeliest]
    return Answer(
        probabilities=dict(zip(names, probabilities.tolist(), strict=True)),
        superclass=superclass and display_name(superclass),
        seen=_shown(pixels),
        # A 1x1 map says nothing about location.
        looked=_heated(pixels, found[0][0]) if found and found[0].numel() > 1 else None,
    )


def readable(class_names: tuple[str, ...]) -> tuple[str, ...]:
    """Return display names, or the own names with the class number in front if two display names would be the same."""
    shown = tuple(map(display_name, class_names))
    return shown if len(set(shown)) == len(shown) else tuple(f"{k}: {name}" for k, name in enumerate(class_names))


def seen(classifier: Classifier, image: Float[Tensor, "3 side side"]) -> NDArray[np.uint8]:
    """Undo the normalization. Returns (S, S, 3) uint8."""
    mean = torch.tensor(classifier.normalize.mean)[:, None, None]
    std = torch.tensor(classifier.normalize.std)[:, None, None]
    pixels: UInt8[Tensor, "3 side side"] = ((image * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)
    return np.ascontiguousarray(pixels.permute(1, 2, 0).numpy())


def _shown(pixels: NDArray[np.uint8]) -> PIL.Image.Image:
    return PIL.Image.fromarray(pixels).resize((SHOWN, SHOWN), PIL.Image.Resampling.NEAREST)


def _heated(pixels: NDArray[np.uint8], places: Float[Tensor, "height width"]) -> PIL.Image.Image:
    """Overlay an activation map on the image, normalized to its maximum.

    Negative contributions are clamped to 0, as in Grad-CAM (arXiv:1610.02391 section 3). places: logits.
    """
    for_it = places.clamp(min=0).numpy()
    heat = PIL.Image.fromarray(for_it / max(float(for_it.max()), 1e-12)).resize(
        (SHOWN, SHOWN), PIL.Image.Resampling.BICUBIC
    )
    level = np.clip(np.asarray(heat), 0, 1)
    stops = np.linspace(0, 1, len(HEAT))
    colour = np.stack([np.interp(level, stops, HEAT[:, channel]) for channel in range(3)], axis=-1)
    grey = np.asarray(_shown(pixels).convert("L"), np.float32)[..., None]
    mixed = 0.45 * grey + 0.55 * colour
    return PIL.Image.fromarray(np.rint(np.clip(mixed, 0, 255)).astype(np.uint8))
