"""What an augmentation is: numbers drawn per image on the host, and what they do to one image or to a batch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import PIL.Image
from numpy.typing import NDArray

from cifar100_tk.draws import ImageDraws
from cifar100_tk.tensors import RawImages, send

SIDE = 32
"""Height and width of every image, in pixels."""

AugmentPlan = dict[str, NDArray[Any]]
"""What happens to each image of a batch: named arrays, each (B, ...), row i for image i."""

Row = dict[str, Any]
"""One image's row of a plan, as plain Python numbers and lists: what `tolist` makes of each array's row."""


class Augmentation(ABC):
    """One step of the chain from uint8 images to uint8 images, run on the host one image at a time."""

    @property
    def host_only(self) -> str:
        """What of it knows Pillow images only, as an error names it; empty where all of it is batched too."""
        return type(self).__name__

    @abstractmethod
    def draw(self, draws: ImageDraws) -> AugmentPlan:
        """Decide what happens to each image, from its own draws alone."""

    @abstractmethod
    def apply(self, image: PIL.Image.Image, row: Row) -> PIL.Image.Image:
        """Change one 32x32 RGB image, and leave the given one as it was."""


class BatchedAugmentation(Augmentation):
    """An augmentation that also runs as a tensor program on a whole batch, with the same bytes as `apply`."""

    @property
    def host_only(self) -> str:
        return ""

    @abstractmethod
    def apply_batch(self, images: RawImages, plan: AugmentPlan) -> RawImages:
        """Change a batch on its device, and leave the given one as it was.

        plan: the whole batch's arrays, on the host, so that no answer of the device is needed.
        """


class PackedAugmentation(BatchedAugmentation):
    """A batched augmentation whose arrays cross to the device in one copy with those of the whole chain."""

    @abstractmethod
    def controls(self, plan: AugmentPlan) -> dict[str, Any]:
        """Work out the arrays that the kernels read, on the host. Returns them in dictionaries nested at will.

        plan: the whole batch's arrays.
        """

    @abstractmethod
    def run(self, images: RawImages, controls: dict[str, Any]) -> RawImages:
        """Change a batch on its device, and leave the given one as it was. controls: the arrays as tensors there."""

    def apply_batch(self, images: RawImages, plan: AugmentPlan) -> RawImages:
        return self.run(images, send(self.controls(plan), images.device))
