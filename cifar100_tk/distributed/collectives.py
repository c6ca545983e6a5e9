"""Collectives over all processes: sums, and broadcasts of the main process's values and errors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from cifar100_tk.errors import CifarError

T = TypeVar("T")


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


def from_main(accelerator: Accelerator, call: Callable[[], T]) -> T:
    """Call a function on the main process only, and return its JSON value, or raise its CifarError, on every process.

    Every rank takes part.
    """
    value, error = None, None
    if accelerator.is_main_process:
        try:
            value = call()
        except CifarError as caught:
            error = caught
    raise_on_all_ranks(accelerator, error)
    shared: T = broadcast_json(accelerator, value)
    return shared


def raise_on_all_ranks(accelerator: Accelerator, error: CifarError | None) -> None:
    """Raise the main process's error on every process, so that none waits for another. Every rank takes part."""
    if accelerator.num_processes > 1:
        kinds = {kind.__name__: kind for kind in CifarError.__subclasses__()}
        raised = broadcast_json(accelerator, (type(error).__name__, str(error)) if error else None)
        if raised and error is None:
            raise kinds[raised[0]](raised[1])
    if error is not None:
        raise error
