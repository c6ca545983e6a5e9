"""What an augmentation is: numbers drawn per picture on the host, and what they do to one picture or to a batch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import PIL.Image
from numpy.typing import NDArray

from cifar100_tk.augment.transfer import send
from cifar100_tk.draws import PictureDraws
from cifar100_tk.tensors import Pictures

SIDE = 32
"""Height and width of every picture, in pixels."""

Plan = dict[str, NDArray[Any]]
"""What happens to each picture of a batch: named arrays, each (B, ...), row i for picture i."""

Row = dict[str, Any]
"""One picture's row of a plan, as plain Python numbers and lists: what `tolist` makes of each array's row."""


class Augmentation(ABC):
    """One step of the chain from uint8 pictures to uint8 pictures, run on the host one picture at a time."""

    @property
    def host_only(self) -> str:
        """What of it knows Pillow pictures only, as an error names it; empty where all of it is batched too."""
        return type(self).__name__

    @abstractmethod
    def draw(self, draws: PictureDraws) -> Plan:
        """Decide what happens to each picture, from its own draws alone."""

    @abstractmethod
    def apply(self, picture: PIL.Image.Image, row: Row) -> PIL.Image.Image:
        """Change one 32x32 RGB picture, and leave the given one as it was."""


class BatchedAugmentation(Augmentation):
    """An augmentation that also runs as a tensor program on a whole batch, with the same bytes as `apply`."""

    @property
    def host_only(self) -> str:
        return ""

    @abstractmethod
    def apply_batch(self, pictures: Pictures, plan: Plan) -> Pictures:
        """Change a batch on its device, and leave the given one as it was.

        plan: the whole batch's arrays, on the host, so that no answer of the device is needed.
        """


class PackedAugmentation(BatchedAugmentation):
    """A batched augmentation whose arrays cross to the device in one copy with those of the whole chain."""

    @abstractmethod
    def controls(self, plan: Plan) -> dict[str, Any]:
        """Work out the arrays that the kernels read, on the host. Returns them in dictionaries nested at will.

        plan: the whole batch's arrays.
        """

    @abstractmethod
    def run(self, pictures: Pictures, controls: dict[str, Any]) -> Pictures:
        """Change a batch on its device, and leave the given one as it was. controls: the arrays as tensors there."""

    def apply_batch(self, pictures: Pictures, plan: Plan) -> Pictures:
        return self.run(pictures, send(self.controls(plan), pictures.device))
