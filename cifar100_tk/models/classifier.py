"""Classifier, a trained network with everything needed to use it, and the classes that it predicts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
import PIL.Image
import torch
from numpy.typing import NDArray
from PIL.Image import Resampling
from timm.data import resolve_data_config
from torch import Tensor, nn

from cifar100_tk.augment import SIDE, Normalize
from cifar100_tk.data.image_files import open_image, to_rgb
from cifar100_tk.data.labels import display_name, superclasses_of
from cifar100_tk.errors import ConfigError, DataError

Resize = Literal["crop", "squash"]
"""The way to the network's square input: crop resizes the short side and crops the center; squash resizes both sides."""
OneImage = PIL.Image.Image | str | Path | NDArray[Any] | Tensor
"""An image to predict: a Pillow image, the path of a file, or a uint8 array or tensor (H, W), (H, W, 3) or (3, H, W)."""


@dataclass(frozen=True)
class Prediction:
    """The most probable classes of one image, the most probable first.

    >>> print(Prediction(("otter", "aquarium_fish"), ("aquatic_mammals", "fish"), (0.912, 0.055)))
    otter 91.2 %, aquarium fish 5.5 %
    """

    class_names: tuple[str, ...]
    """The classes, named as in the data set, such as `aquarium_fish`."""
    superclasses: tuple[str | None, ...]
    """Their super-classes; None unless the class names are those of CIFAR-100 or of the built-in images."""
    probabilities: tuple[float, ...]
    """Their probabilities, 0..1: the softmax of the logits, not calibrated."""

    @property
    def class_name(self) -> str:
        """The most probable class."""
        return self.class_names[0]

    @property
    def probability(self) -> float:
        """The probability of the most probable class."""
        return self.probabilities[0]

    def __str__(self) -> str:
        shown = zip(self.class_names, self.probabilities, strict=True)
        return ", ".join(f"{display_name(name)} {100 * value:.1f} %" for name, value in shown)


@dataclass(frozen=True)
class Classifier:
    """A trained network with everything needed to use it."""

    model: nn.Module
    """In evaluation mode; maps (B, 3, S, S) normalized images to (B, C) logits, with S = `image_size`."""
    class_names: tuple[str, ...]
    """(C,) names, in the order of the logits."""
    transform: Callable[[PIL.Image.Image], Tensor]
    """Converts any Pillow image to a normalized (3, S, S) float32 image, on the CPU."""
    normalize: Normalize
    """The same normalization for batches of uint8 images."""
    image_size: int = SIDE
    """Height and width of the network's input, in pixels."""

    @property
    def device(self) -> torch.device:
        """The device of the network."""
        return next(self.model.parameters()).device

    @overload
    def predict(
        self, images: PIL.Image.Image | str | Path, *, top: int = ..., resize: Resize = ..., batch_size: int = ...
    ) -> Prediction: ...
    @overload
    def predict(
        self, images: list[Any] | tuple[Any, ...], *, top: int = ..., resize: Resize = ..., batch_size: int = ...
    ) -> list[Prediction]: ...
    @overload
    def predict(
        self, images: NDArray[Any] | Tensor, *, top: int = ..., resize: Resize = ..., batch_size: int = ...
    ) -> Any: ...
    def predict(
        self,
        images: OneImage | Sequence[OneImage],
        *,
        top: int = 5,
        resize: Resize = "crop",
        batch_size: int = 256,
    ) -> Prediction | list[Prediction]:
        """Return the most probable classes of an image, or of each of several, on the device of the network.

        images: a Pillow image, the path of a file, or a uint8 array or tensor (H, W), (H, W, 3) or (3, H, W), of any size; or
        a list of these, or one array (N, H, W, 3) or (N, 3, H, W), which return a list. top: the number of classes, at most as
        many as there are. batch_size: images per forward pass. Raises DataError for what is not an image, and for a
        model whose logits are not finite.
        """
        for name, value in (("top", top), ("batch_size", batch_size)):
            if value < 1:
                raise ConfigError(f"{name}={value} is out of range; give 1 or more.")
        one = not isinstance(images, list | tuple) and getattr(images, "ndim", 0) < 4
        several: Sequence[Any] = [images] if one else images  # type: ignore[assignment]
        found: list[Prediction] = []
        for start in range(0, len(several), batch_size):
            batch = [self.prepare(image, resize) for image in several[start : start + batch_size]]
            found += self.top_classes(torch.stack(batch), top)
        return found[0] if one else found

    def prepare(self, image: OneImage, resize: Resize = "crop") -> Tensor:
        """Return the network's input for an image, (3, S, S) float32, normalized, on the CPU. Raises DataError."""
        opened = as_pillow(image)
        if resize == "squash":
            interpolation: str = resolve_data_config(model=self.model)["interpolation"]
            opened = opened.resize((self.image_size,) * 2, Resampling[interpolation.upper()])
        return self.transform(opened)

    def probabilities(self, images: Tensor) -> Tensor:
        """Return the softmax of the logits, (B, C) float32 on the CPU. Raises DataError if it is not finite.

        images: (B, 3, S, S), as `prepare` and `transform` return each, on any device.
        """
        with torch.inference_mode():
            probabilities: Tensor = self.model(images.to(self.device)).float().softmax(dim=1).cpu()
        if not probabilities.isfinite().all():
            raise DataError("the model's logits are not finite, so its training has diverged; use another model.")
        return probabilities

    def top_classes(self, images: Tensor, top: int = 5) -> list[Prediction]:
        """Return the `top` most probable classes of each image, or as many as there are. images: as for `probabilities`."""
        names, superclasses = self.class_names, superclasses_of(self.class_names)
        found = self.probabilities(images).topk(min(top, len(names)))
        return [
            Prediction(
                tuple(names[number] for number in numbers),
                tuple(superclasses[number] for number in numbers),
                tuple(values),
            )
            for values, numbers in zip(found.values.tolist(), found.indices.tolist(), strict=True)
        ]


def choose_device(asked: str, option: str) -> torch.device:
    """Return a device by its name; "auto" is a GPU if there is one. option: its name in errors, such as "--device "."""
    if asked == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(asked)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"{option}{asked} cannot be used ({reason}); leave it out to use the default device."
        ) from error
    return device


def as_pillow(image: Any) -> PIL.Image.Image:
    """Return an image in any form that `Classifier.predict` takes as an RGB Pillow image. Raises DataError for anything else."""
    if isinstance(image, PIL.Image.Image):
        return to_rgb(image)
    if isinstance(image, str | Path):
        return open_image(Path(image))
    if isinstance(image, Tensor):
        if image.dtype != torch.uint8:  # NumPy does not know every type of torch's.
            raise _wrong_array(tuple(image.shape), str(image.dtype).removeprefix("torch."))
        return _of_array(image.cpu().numpy(), channels_first=True)
    if isinstance(image, np.ndarray):
        return _of_array(image, channels_first=False)
    raise DataError(
        f"predict cannot read {type(image).__name__}; give a Pillow image, a path, a uint8 array or tensor, or a list of them."
    )


def _of_array(pixels: NDArray[Any], *, channels_first: bool) -> PIL.Image.Image:
    """Return an array as an RGB Pillow image. channels_first: for (3, H, 3), which is both."""
    places = [place for place in (0, -1) if pixels.ndim == 3 and pixels.shape[place] == 3]
    if pixels.dtype != np.uint8 or not pixels.size or (pixels.ndim != 2 and not places):
        raise _wrong_array(pixels.shape, str(pixels.dtype))
    if places and places[0 if channels_first else -1] == 0:
        pixels = pixels.transpose(1, 2, 0)
    return PIL.Image.fromarray(np.ascontiguousarray(pixels)).convert("RGB")


def _wrong_array(shape: tuple[int, ...], kind: str) -> DataError:
    return DataError(
        f"predict cannot read an array of shape {shape} and type {kind}; give uint8, 0 to 255, of shape (H, W), (H, W, 3) or "
        "(3, H, W)."
    )
