"""Saving checkpoints when they are due: in the background on a GPU, so that training hardly waits."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cifar100_tk.runs import checkpoint
from cifar100_tk.storage.tensor_file import Tensors

SECONDS_BETWEEN_SAVES = 60.0
"""By default a run is saved at the end of the first epoch that ends at least this long after the previous save began."""
ALIGNMENT = 256
"""Bytes; the same as that of CUDA's own allocations."""

Files = Mapping[str, Tensors]
Content = Callable[[], tuple[Files, Mapping[str, Any]]]
"""Returns the content of a checkpoint: its tensors by file, and the facts for its manifest."""
Key = tuple[str, str]
"""A file and the name of a tensor in it."""


class CheckpointManager:
    """Decides when a run is saved, and saves it, optionally in the background, one checkpoint at a time.

    Only the main process has one, so only its clock counts.
    """

    def __init__(
        self,
        folder: Path,
        *,
        keep: int,
        async_save: bool,
        every_epochs: int | None = None,
        saved_step: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Save into a folder.

        every_epochs: epochs between checkpoints; None saves by time, SECONDS_BETWEEN_SAVES. saved_step: the step that the
        run resumes from, which is saved already; 0 for a new run.
        """
        self.folder, self.keep, self.every_epochs = folder, keep, every_epochs
        self.saved_step, self.clock, self.saved_at, self.due = saved_step, clock, clock(), False
        self.snapshot = Snapshot() if async_save else None
        self.writer = ThreadPoolExecutor(max_workers=1)
        self.pending: Future[Path] | None = None

    def is_due(self, epoch: int) -> bool:
        """Return whether `save_if_due` would save if it were called now, at the end of an epoch."""
        if self.every_epochs is None:
            self.due = self.clock() - self.saved_at >= SECONDS_BETWEEN_SAVES
        elif epoch % self.every_epochs == 0:
            self.due = True
        return self.due and (self.pending is None or self.pending.done())

    def save_if_due(self, epoch: int, step: int, content: Content) -> None:
        """Save at the end of an epoch if a save is due; postpone it while the previous save is being written.

        content: called only if there is something to save. Raises DiskError if this or the previous save failed.
        """
        if self.pending is not None and self.pending.done():
            self.wait()
        if self.is_due(epoch):
            self._save(step, content)

    def save_last(self, step: int, content: Content) -> None:
        """Save now unless this step is already saved, and wait until everything is on the disk. Raises DiskError."""
        self.wait()
        if step > self.saved_step:
            self._save(step, content)
        self.wait()

    def wait(self) -> None:
        """Wait for the pending save. Raises DiskError if it failed."""
        pending, self.pending = self.pending, None
        if pending is not None:
            pending.result()

    def _save(self, step: int, content: Content) -> None:
        self.saved_step, self.saved_at, self.due = step, self.clock(), False
        files, facts = content()
        if self.snapshot is None:
            checkpoint.save(self.folder, step, files, facts, keep=self.keep)
            return
        on_host = self.snapshot.take(files)
        self.pending = self.writer.submit(lambda: checkpoint.save(self.folder, step, on_host(), facts, keep=self.keep))


class Snapshot:
    """Copies tensors while training continues to change them, without the host waiting for the GPU.

    Tensors on a GPU are first copied on the training stream into a reusable device buffer; from there a separate stream
    copies them into pinned memory, which is reused as well.
    """

    def __init__(self) -> None:
        self.layout = Layout({})
        self.on_device: Buffer | None = None
        self.pinned: Buffer | None = None
        self.stream: torch.cuda.Stream | None = None

    def take(self, files: Files) -> Callable[[], Files]:
        """Copy tensors as they are now. Returns a function that waits for the copies and returns them, on the host.

        Another thread may call it, but before the next `take`.
        """
        tensors = {(file, name): tensor.detach() for file, values in files.items() for name, tensor in values.items()}
        on_gpu = {key: tensor for key, tensor in tensors.items() if tensor.is_cuda}
        copies = {key: tensor.to("cpu", copy=True) for key, tensor in tensors.items() if key not in on_gpu}
        if not on_gpu:
            return lambda: _by_file(copies)
        if not self.layout.fits(on_gpu):
            self._make_room(on_gpu)
        (self.on_device or self._pin()).fill(on_gpu)
        copied = torch.cuda.Event()
        copied.record()
        return lambda: _by_file(copies | self._to_host(copied))

    def _make_room(self, tensors: Mapping[Key, Tensor]) -> None:
        self.layout, self.on_device, self.pinned = Layout(tensors), None, None
        device = next(iter(tensors.values())).device
        self.stream = torch.cuda.Stream(device)
        # torch's memory has reached the peak of training by now. If little else is free, copies go straight to the host.
        free, _ = torch.cuda.mem_get_info(device)
        if free > 2 * self.layout.size:
            self.on_device = Buffer(self.layout, torch.empty(self.layout.size, dtype=torch.uint8, device=device))

    def _pin(self) -> Buffer:
        if self.pinned is None:
            self.pinned = Buffer(self.layout, torch.empty(self.layout.size, dtype=torch.uint8, pin_memory=True))
        return self.pinned

    def _to_host(self, taken: torch.cuda.Event) -> dict[Key, Tensor]:
        pinned = self._pin()  # Here rather than in `take`, because the first call is slow.
        if self.on_device is None:
            taken.synchronize()
        else:
            assert self.stream is not None
            with torch.cuda.stream(self.stream):
                self.stream.wait_event(taken)
                pinned.flat.copy_(self.on_device.flat, non_blocking=True)
                self.stream.synchronize()
        return pinned.views


class Layout:
    """The places of tensors in a flat byte buffer, with the strides of each."""

    def __init__(self, tensors: Mapping[Key, Tensor]) -> None:
        self.kinds = _kinds(tensors)
        """The dtype, shape and strides of each."""
        self.places: dict[Key, tuple[int, Tensor]] = {}
        """The first byte, and a meta tensor with the shape, dtype and strides."""
        self.size = 0
        """Bytes."""
        for key, tensor in tensors.items():
            self.places[key] = self.size, torch.empty_like(tensor, device="meta")
            self.size += -(-tensor.nbytes // ALIGNMENT) * ALIGNMENT

    def fits(self, tensors: Mapping[Key, Tensor]) -> bool:
        """Return whether these tensors have the same names, shapes, dtypes and strides."""
        return self.kinds == _kinds(tensors)


class Buffer:
    """Memory that holds tensors at the places of a layout."""

    def __init__(self, layout: Layout, flat: Tensor) -> None:
        self.flat = flat
        """(layout.size,) uint8."""
        self.views = {
            key: flat[start : start + like.nbytes].view(like.dtype).as_strided(like.shape, like.stride())
            for key, (start, like) in layout.places.items()
        }

    def fill(self, tensors: Mapping[Key, Tensor]) -> None:
        """Copy tensors into their places asynchronously, on the device's current stream."""
        # One foreach copy per dtype takes few kernels, because the strides are the same.
        by_dtype: dict[torch.dtype, list[Key]] = defaultdict(list)
        for key, tensor in tensors.items():
            by_dtype[tensor.dtype].append(key)
        for keys in by_dtype.values():
            torch._foreach_copy_([self.views[key] for key in keys], [tensors[key] for key in keys], non_blocking=True)


def _kinds(tensors: Mapping[Key, Tensor]) -> dict[Key, tuple[torch.dtype, torch.Size, tuple[int, ...]]]:
    return {key: (tensor.dtype, tensor.shape, tensor.stride()) for key, tensor in tensors.items()}


def _by_file(tensors: Mapping[Key, Tensor]) -> Files:
    files: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for (file, name), tensor in tensors.items():
        files[file][name] = tensor
    return files
