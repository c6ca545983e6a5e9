"""The decoded split on a device, from which batches are gathered."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch

from cifar100_tk.data import Split
from cifar100_tk.draws import Int64s
from cifar100_tk.tensors import Labels, RawImages, to_device


class ImageStore:
    """A split's whole store on a device (153.6 MB for CIFAR-100's train), from which batches are gathered.

    It is held once: train and holdout are parts of one store, and evaluations reuse it.
    """

    _copies: ClassVar[dict[tuple[str, torch.device], tuple[RawImages, Labels]]] = {}

    def __init__(self, split: Split, device: torch.device) -> None:
        self.device = device
        if device.type == "cpu":
            # The memory-mapped file is the store, shared by all processes; only the batch is copied out of it.
            self.split = split
            return
        # A store's file name identifies its content.
        name = str(split.images.filename) if isinstance(split.images, np.memmap) else None
        copy = self._copies.get((name, device)) if name else None
        if copy is None:
            images, labels = torch.from_numpy(np.array(split.images)), torch.from_numpy(np.array(split.labels))
            copy = images.to(device), labels.to(device)
            if name:
                self._copies[name, device] = copy
        self.images, self.labels = copy

    def gather(self, index: Int64s, sent: torch.Tensor | None = None) -> tuple[RawImages, Labels]:
        """Return the images and labels of rows of the store, (b, 3, 32, 32) uint8 and (b,) int64, on the device.

        sent: the rows on the device, if already there.
        """
        if self.device.type == "cpu":
            return torch.from_numpy(self.split.images[index]), torch.from_numpy(self.split.labels[index])
        rows = to_device(index, self.device) if sent is None else sent
        return self.images[rows], self.labels[rows]
