"""The interface of an augmentation: it draws numbers per image on the host, then transforms one image or a batch with them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import PIL.Image
from numpy.typing import NDArray

from cifar100_tk.draws import ImageDraws
from cifar100_tk.tensors import RawImages, send

SIDE = 32
"""Height and width of every stored image, in pixels; augmentation works at this size."""

MAX_SIDE = 512
"""The largest height and width of the network's input, in pixels."""

AugmentPlan = dict[str, NDArray[Any]]
"""The draws for a batch: named arrays, each (B, ...), row i for image i."""

Row = dict[str, Any]
"""One image's row of a plan, as plain Python numbers and lists (`tolist` of each array's row)."""


class Augmentation(ABC):
    """One step of the chain from uint8 images to uint8 images, run on the host one image at a time."""

    @property
    def host_only(self) -> str:
        """The part that runs on Pillow images only, as errors name it; empty if everything is batched too."""
        return type(self).__name__

    @property
    def stream(self) -> str:
        """The name of its random stream. The draws depend on it, so a class that is renamed keeps the old name here."""
        return type(self).__name__

    @abstractmethod
    def draw(self, draws: ImageDraws) -> AugmentPlan:
        """Draw the plan of a batch, each image from its own random stream."""

    @abstractmethod
    def apply(self, image: PIL.Image.Image, row: Row) -> PIL.Image.Image:
        """Return one transformed 32x32 RGB image; the input is not modified."""


class BatchedAugmentation(Augmentation):
    """An augmentation that also runs as a tensor program on a whole batch, with the same bytes as `apply`."""

    @property
    def host_only(self) -> str:
        return ""

    @abstractmethod
    def apply_batch(self, images: RawImages, plan: AugmentPlan) -> RawImages:
        """Return a transformed batch on its device; the input is not modified.

        plan: the whole batch's arrays, on the host, so that nothing waits for the device.
        """


class PackedAugmentation(BatchedAugmentation):
    """A batched augmentation whose arrays cross to the device in one copy with those of the whole chain."""

    @abstractmethod
    def controls(self, plan: AugmentPlan) -> dict[str, Any]:
        """Compute the arrays that the kernels read, on the host. Returns arbitrarily nested dictionaries of them.

        plan: the whole batch's arrays.
        """

    @abstractmethod
    def run(self, images: RawImages, controls: dict[str, Any]) -> RawImages:
        """Return a transformed batch on its device; the input is not modified. controls: the arrays as tensors there."""

    def apply_batch(self, images: RawImages, plan: AugmentPlan) -> RawImages:
        return self.run(images, send(self.controls(plan), images.device))
