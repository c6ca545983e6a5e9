"""Finding the largest micro-batch that fits in the memory of the device, and out-of-memory errors in one sentence."""

from __future__ import annotations

import gc
import os
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from cifar100_tk.distributed.collectives import reduce_sum
from cifar100_tk.distributed.launch import device_name
from cifar100_tk.errors import ConfigError

LossFunction = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Returns the loss, (), of logits, targets and the images that the logits are of."""
Forward = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Workload:
    """The parts of a training step whose memory depends on the number of images."""

    accelerator: Accelerator
    net: nn.Module
    """The bare network as `accelerator.prepare` left it."""
    loss: LossFunction
    num_classes: int
    image_size: int
    """Pixels of a side of the images."""


_SPARE_BYTES = 2**29
"""Kept free on a GPU during the search, for the augmentation of the next batch."""
_OOM_MESSAGES = (
    "out of memory",  # torch's allocator, and CUDA, NCCL and Triton outside it.
    "unable to find an engine to execute this computation",  # cuDNN, when every plan ran out of workspace.
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate",  # No room for the handle.
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",  # The same since cuDNN 9.
    "CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED",
    "can't allocate memory",  # The CPU.
)


def is_oom(error: RuntimeError) -> bool:
    """Return whether an error means out of memory; the libraries below torch do not raise OutOfMemoryError."""
    return isinstance(error, torch.OutOfMemoryError) or any(text in str(error) for text in _OOM_MESSAGES)


def find_micro_batch(
    work: Workload,
    local_batch_size: int,
    *,
    compiled: bool = False,
) -> int:
    """Return the micro-batch that fits on every process: the whole share, or a power of two below it.

    The network and the random state are left unchanged. compiled: whether
    to measure the compiled network, starting from what fits eagerly, so that few sizes are compiled, usually only the one
    that the run then uses. Every rank takes part. Raises ConfigError on every rank when not even one image fits.
    """
    local, reason = _find_here(work, local_batch_size)
    if compiled and local:
        local, reason = _find_compiled(work, local_batch_size, local)
    # The minimum over the processes, by a sum in which each has its own place.
    places = torch.zeros(work.accelerator.num_processes, dtype=torch.float64)
    places[work.accelerator.process_index] = local
    micro_batch = int(reduce_sum(work.accelerator, places).min().item())
    if micro_batch == 0:
        raise ConfigError(_nothing_fits(work.accelerator, reason if local == 0 else "on another process"))
    return micro_batch


@contextmanager
def _oom_as_error(describe: Callable[[str], str]) -> Iterator[None]:
    """Turn an out-of-memory error inside the block into a ConfigError. describe: maps its first line to the message."""
    try:
        yield
    except RuntimeError as error:
        if not is_oom(error):
            raise
        traceback.clear_frames(error.__traceback__)  # They hold the activations of the step that failed.
        raise ConfigError(describe(_first_line(error))) from None


def oom_as_error(work: Workload, micro_batch: int) -> AbstractContextManager[None]:
    """Turn an out-of-memory error inside the block into a ConfigError that names the size that fits on this process."""

    def describe(first_line: str) -> str:
        fits, reason = _find_here(work, micro_batch - 1)
        if not fits:
            return _nothing_fits(work.accelerator, reason or first_line)
        return (
            f"rank {work.accelerator.process_index} ran out of memory on {device_name(work.accelerator)} with {micro_batch:,} "
            f"images per forward pass; --micro-batch {fits} fits, and neither it nor --micro-batch auto changes the batch size. "
            "The same command with it resumes from the last checkpoint, if there is one."
        )

    return _oom_as_error(describe)


def device_oom_as_error() -> AbstractContextManager[None]:
    """Turn an out-of-memory error inside the block, outside training steps, into a ConfigError."""
    return _oom_as_error(
        lambda first_line: (
            f"rank {os.environ.get('RANK', '0')} ran out of memory before, between or after training steps "
            f"({first_line}); check whether another program uses the device (python -m cifar100_tk.doctor), and run the "
            "same command again to resume from the last checkpoint, or choose a smaller --model.name and another --output-dir."
        )
    )


def batch_oom_as_error(batch_size: int) -> AbstractContextManager[None]:
    """Turn an out-of-memory error inside the block, during inference, into a ConfigError."""
    return _oom_as_error(
        lambda _: f"--batch-size {batch_size} does not fit in the memory of the device; use half of it."
    )


def _find_here(work: Workload, most: int) -> tuple[int, str | None]:
    """Return the largest micro-batch that fits on this process, `most` or a power of two below it, or 0 with the reason.

    The network runs eagerly, so that no size has to be compiled.
    """
    reason = None
    for micro_batch in _sizes(most):
        reason = _why_not(work, work.net.forward, micro_batch)
        if reason is None:
            return micro_batch, None
    return 0, reason


def _find_compiled(
    work: Workload,
    most: int,
    eager: int,
) -> tuple[int, str | None]:
    """Return the largest micro-batch that fits when compiled, or 0 with the reason. eager: the largest that fits eagerly."""
    sizes = _sizes(most)
    place, reason = sizes.index(eager), None
    for micro_batch in sizes[place:]:
        reason = _why_not(work, work.net, micro_batch)
        if reason is None:
            break
    else:
        return 0, reason
    if micro_batch == eager:  # Fused operations keep less, so more may fit.
        for larger in reversed(sizes[:place]):
            if _why_not(work, work.net, larger) is not None:
                break
            micro_batch = larger
    return micro_batch, None


def _sizes(most: int) -> list[int]:
    """Return `most` and the powers of two below it, the largest first."""
    powers = [2**exponent for exponent in reversed(range(most.bit_length())) if 2**exponent < most]
    return [most, *powers] if most else []


def _why_not(
    work: Workload,
    forward: Forward,
    micro_batch: int,
) -> str | None:
    """Return the first line of the out-of-memory error for a micro-batch, or None if it fits.

    forward: the network to run it compiled, if it is, or its `forward` to run it eagerly.
    """
    net, device = work.net, work.accelerator.device
    buffers = [buffer.clone() for buffer in net.buffers()]
    devices = [device] if device.type == "cuda" else []
    modes = [(module, module.training) for module in net.modules()]
    net.train()
    for module in net.modules():
        if isinstance(module, nn.SyncBatchNorm):
            module.eval()  # It saves the same for the backward pass, and does not wait for the other processes.
    try:
        with torch.random.fork_rng(devices):
            _try(work, forward, micro_batch)
    except RuntimeError as error:
        if not is_oom(error):
            raise
        traceback.clear_frames(error.__traceback__)
        return _first_line(error)
    finally:
        with torch.no_grad():
            for buffer, before in zip(net.buffers(), buffers, strict=True):
                buffer.copy_(before)
        for module, training in modes:
            module.training = training
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return None


def _try(
    work: Workload,
    forward: Forward,
    micro_batch: int,
) -> None:
    device = work.accelerator.device
    parameters = [parameter for parameter in work.net.parameters() if parameter.requires_grad]
    # The memory of a real step beside the activations: the optimizer's state, at most that of AdamW.
    beside = [torch.empty_like(parameter) for parameter in parameters for _ in range(2)]
    if device.type == "cuda":
        beside.append(torch.empty(_SPARE_BYTES, dtype=torch.uint8, device=device))
    images = torch.zeros(micro_batch, 3, work.image_size, work.image_size, device=device).to(
        memory_format=torch.channels_last
    )
    targets = torch.full((micro_batch, work.num_classes), 1 / work.num_classes, device=device)
    # As in a step, where Accelerate's autocast is part of `forward`; around it, it would be compiled as another graph.
    value = work.loss(forward(images), targets, images)
    # Not backward(): it would accumulate gradients and synchronize them with the other processes.
    torch.autograd.grad(value, parameters, allow_unused=True)


def _nothing_fits(accelerator: Accelerator, reason: str | None) -> str:
    return (
        f"not even one image per forward pass fits in the memory of {device_name(accelerator)} ({reason}); check whether "
        "another program uses it (python -m cifar100_tk.doctor), try --model.grad-checkpointing, or choose a smaller "
        "--model.name."
    )


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
