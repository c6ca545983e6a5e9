"""Collectives over all processes: sums, and broadcasts of the main process's values and errors."""

from __future__ import annotations

from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import (
    broadcast_object_list,
)

from cifar100_tk.errors import CifarError


def reduce_sum(accelerator: Accelerator, local: torch.Tensor) -> torch.Tensor:
    """Return the sum of a host tensor over all processes, on the host. Every rank takes part."""
    if accelerator.num_processes == 1:
        return local
    reduced: torch.Tensor = accelerator.reduce(local.to(accelerator.device), reduction="sum")
    return reduced.cpu()


def broadcast_json(accelerator: Accelerator, value: Any) -> Any:
    """Return the main process's value on every process. Every rank takes part."""
    box = [value]
    broadcast_object_list(box)
    return box[0]


def raise_on_all_ranks(accelerator: Accelerator, error: CifarError | None) -> None:
    """Raise the main process's error on every process, so that none waits for another. Every rank takes part."""
    if accelerator.num_processes > 1:
        kinds = {kind.__name__: kind for kind in CifarError.__subclasses__()}
        raised = broadcast_json(accelerator, (type(error).__name__, str(error)) if error else None)
        if raised and error is None:
            raise kinds[raised[0]](raised[1])
    if error is not None:
        raise error
