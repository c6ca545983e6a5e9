"""From the store to the step: the images that each process sees at each step, augmented and mixed into a batch."""

from __future__ import annotations

import functools
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from cifar100_tk import draws
from cifar100_tk.augment import (
    SIDE,
    Augmentation,
    Chain,
    Cutout,
    Mix,
    Mixer,
    Normalize,
    ProgressiveResize,
    cutout_controls,
    finish_drawn,
    resize_images,
    soft_targets,
)
from cifar100_tk.data import Split
from cifar100_tk.data.image_store import ImageStore
from cifar100_tk.draws import Int64s
from cifar100_tk.errors import CifarError, ConfigError, PeerError
from cifar100_tk.tensors import Images, Labels, RawImages, Targets, send
from cifar100_tk.training.length import NO_STEPS, RunLength

Executor = Literal["device", "host"]
T = TypeVar("T")


@dataclass(frozen=True)
class BatchOrder:
    """The images that one of `world_size` processes sees at each step: a pure function of (seed, step, rank)."""

    seed: int
    index: Int64s
    """(N,) the rows of the store that the split holds."""
    batch_size: int
    """Images per step, over all processes."""
    steps_per_epoch: int
    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        if self.batch_size % self.world_size:
            below = self.batch_size // self.world_size * self.world_size
            choices = [str(size) for size in (below, below + self.world_size) if size]
            raise ConfigError(
                f"batch_size={self.batch_size} does not split over {self.world_size} processes; use {' or '.join(choices)}."
            )

    def epoch(self, step: int) -> int:
        """Return the epoch, from 0, that a step belongs to."""
        return step // self.steps_per_epoch

    @functools.cached_property
    def positions(self) -> Int64s:
        """(b,) this rank's places in the global batch of B.

        Mixup pairs place i with place B-1-i. Both partners go to the same rank, in an order that makes them partners
        there too: flipping the local batch is flipping the global one. An odd share has no such order and needs none,
        because `Mix` rejects it.
        """
        if (self.batch_size // self.world_size) % 2:
            return np.arange(self.rank, self.batch_size, self.world_size)
        first = np.arange(self.rank, self.batch_size // 2, self.world_size)
        return np.concatenate([first, self.batch_size - 1 - first[::-1]])

    def batch(self, step: int) -> Int64s:
        """Return the rows of the store that this rank sees at a step, (b,) int64."""
        start = step % self.steps_per_epoch * self.batch_size
        shuffled = _shuffled(self.seed, self.epoch(step), len(self.index))
        return self.index[shuffled[start + self.positions]]


@functools.lru_cache(maxsize=2)
def _shuffled(seed: int, epoch: int, num_images: int) -> Int64s:
    return draws.order(seed, epoch, num_images)


@dataclass(frozen=True)
class Batch:
    """One step's work for one process."""

    step: int
    index: Int64s
    """(b,) rows of the store."""
    images: Images
    targets: Targets


@dataclass(frozen=True)
class Pipeline:
    """Makes the batches of a run; both executors give the same batches."""

    split: Split
    order: BatchOrder
    augment: tuple[Augmentation, ...]
    normalize: Normalize
    cutout: Cutout | None
    mix: Mix | None
    smoothing: float
    """Label smoothing in timm's convention, eps / C on every class."""
    device: torch.device
    executor: Executor
    workers: int = 0
    """Worker processes of the host executor; 0 uses this process."""
    resize: ProgressiveResize | None = None
    """Smaller images early in the run; None for full size throughout."""
    length: RunLength = NO_STEPS
    """Steps of the whole run; the stages of `resize` and the phase of `mix` are fractions of it."""
    image_size: int = SIDE
    """Height and width of the network's input without `resize`, in pixels."""

    def __post_init__(self) -> None:
        local_batch_size = len(self.order.positions)
        if self.mix is not None and self.mix.active and local_batch_size % 2:
            raise ConfigError(
                f"Mixup and CutMix pair the images of a batch, but batch_size={self.order.batch_size} gives each of "
                f"{self.order.world_size} processes {local_batch_size}, an odd number; use "
                f"{self.order.batch_size + self.order.world_size}."
            )

    def batches(self, start: int, stop: int) -> Batches:
        """Return an iterator over the batches of steps start..stop-1."""
        made = self.made(start, stop)
        return OneAhead(made, self.device) if self.device.type == "cuda" else Batches(made)

    def made(self, start: int, stop: int) -> Iterator[Batch]:
        """Yield the same batches on the current stream, each made on demand."""
        return self._on_device(start, stop) if self.executor == "device" else self._on_host(start, stop)

    def _on_device(self, start: int, stop: int) -> Iterator[Batch]:
        store = ImageStore(self.split, self.device)
        chain = Chain(self.augment, self.order.seed)
        for step in range(start, stop):
            index, epoch = self.order.batch(step), self.order.epoch(step)
            # All random draws of a step go to the device in one copy.
            drawn = {"rows": index, "chain": chain.controls(epoch, index), "finish": self._draw(step, index)}
            sent = send(drawn, self.device)
            images, labels = store.gather(index, sent["rows"])
            yield self._finished(step, index, chain.run(images, sent["chain"]), labels, sent["finish"])

    def _on_host(self, start: int, stop: int) -> Iterator[Batch]:
        dataset = _AugmentedBatches(self.split, self.order, Chain(self.augment, self.order.seed))
        loader: DataLoader[tuple[int, RawImages, Labels] | CifarError] = DataLoader(
            dataset,
            batch_size=None,
            sampler=_Steps(start, stop),
            num_workers=min(self.workers, stop - start),
            pin_memory=self.device.type == "cuda",
            worker_init_fn=_end_only_with_the_parent,
        )
        for item in _ending_its_workers(loader):
            if isinstance(item, CifarError):
                raise item
            step, images, labels = item
            on_device = images.to(self.device, non_blocking=True), labels.to(self.device, non_blocking=True)
            index = self.order.batch(step)
            yield self._finished(step, index, *on_device, send(self._draw(step, index), self.device))

    def _draw(self, step: int, index: Int64s) -> dict[str, Any]:
        """Draw what `_finished` reads: the holes of Cutout, and the lambdas and boxes of Mix."""
        order, mixer = self.order, self._mixer(step)
        mixing = None
        if mixer is not None:
            mixing = mixer.draw(order.seed, step, order.positions, order.batch_size, self._side(step))
        holes = cutout_controls(self.cutout, order.seed, order.epoch(step), index, mixing and mixing.cut)
        return {"holes": holes, "mix": mixing.controls if mixing else {}}

    def _finished(
        self, step: int, index: Int64s, raw_images: RawImages, labels: Labels, drawn: dict[str, Any]
    ) -> Batch:
        images = finish_drawn(raw_images, self.normalize, self.cutout, drawn["holes"])
        images = resize_images(images, self._side(step))
        if (mixer := self._mixer(step)) is None:
            return Batch(step, index, images, soft_targets(labels, len(self.split.class_names), self.smoothing))
        return Batch(step, index, *mixer(images, labels, self.order.seed, step, drawn["mix"]))

    def _side(self, step: int) -> int:
        return self.image_size if self.resize is None else self.resize.side(step, self.length.at(step))

    def _mixer(self, step: int) -> Mixer | None:
        """Return what mixes the batch of a step, or None if nothing does."""
        if self.mix is None or not self.mix.is_on(step, self.order.steps_per_epoch, self.length.at(step)):
            return None
        return self.mix.build(len(self.split.class_names), self.smoothing)


class Batches(Iterator[Batch]):
    """The batches of a run, each made on demand."""

    def __init__(self, made: Iterator[Batch]) -> None:
        self.made = made

    def __next__(self) -> Batch:
        return next(self.made)

    def prefetch(self) -> None:
        """Start preparing the next batch where that does not block, as on a GPU."""


class OneAhead(Batches):
    """Makes the next batch on a side stream while the model works on this one."""

    def __init__(self, made: Iterator[Batch], device: torch.device) -> None:
        super().__init__(made)
        self.device, self.side = device, torch.cuda.Stream(device)
        self.following: Batch | None = None

    def prefetch(self) -> None:
        """Start preparing the next batch, unless that is done."""
        if self.following is None:
            with torch.cuda.stream(self.side):
                self.following = next(self.made, None)

    def __next__(self) -> Batch:
        self.prefetch()
        batch, self.following = self.following, None
        if batch is None:
            raise StopIteration
        current = torch.cuda.current_stream(self.device)
        current.wait_stream(self.side)
        for tensor in (batch.images, batch.targets):
            # The allocator may reuse this memory only when the stream that uses it is done with it.
            tensor.record_stream(current)
        return batch


class _AugmentedBatches(Dataset[tuple[int, RawImages, Labels] | CifarError]):
    """Item t is this rank's augmented batch of step t, so that no worker holds any state.

    A CifarError is an item too: raised in a worker, its message would reach the trainer inside a traceback.
    """

    def __init__(self, split: Split, order: BatchOrder, chain: Chain) -> None:
        self.split, self.order, self.chain = split, order, chain

    def __getitem__(self, step: int) -> tuple[int, RawImages, Labels] | CifarError:
        index = self.order.batch(step)
        try:
            images = self.chain.host(self.split.images[index], self.order.epoch(step), index)
        except CifarError as error:
            return error.with_traceback(None)
        return step, torch.from_numpy(images), torch.from_numpy(self.split.labels[index])


class _Steps(Sampler[int]):
    """The steps of a run: one pass of the loader is the whole run, so that workers start once."""

    def __init__(self, start: int, stop: int) -> None:
        self.steps = range(start, stop)

    def __iter__(self) -> Iterator[int]:
        return iter(self.steps)

    def __len__(self) -> int:
        return len(self.steps)


def _ending_its_workers(loader: DataLoader[T]) -> Iterator[T]:
    """Yield the items of a loader, and terminate its workers at once when iteration stops early."""
    others = set(multiprocessing.active_children())
    items = iter(loader)
    workers = set(multiprocessing.active_children()) - others
    try:
        yield from items
    except BaseException as error:
        # torch would wait 5 seconds for each, one after another, and longer while a traceback holds `items`.
        for worker in workers:
            worker.terminate()
        if isinstance(error, RuntimeError) and "DataLoader worker" in str(error).partition("\n")[0]:
            raise PeerError(
                f"a loader worker died ({str(error).splitlines()[0].strip(' .')}); the usual cause is too little "
                f"memory: give fewer --workers than {len(workers)}, or find the cause with --workers 0."
            ) from None
        raise


def _end_only_with_the_parent(worker: int) -> None:
    """Let only its trainer's SIGTERM end a worker, and no other signal that asks the run to stop.

    A Ctrl-C or a scheduler's signal reaches all processes; the trainer must outlive it, with its workers, to save its work.
    """
    for stopping in (signal.SIGINT, signal.SIGUSR1):
        signal.signal(stopping, signal.SIG_IGN)
    if not hasattr(signal, "sigwaitinfo"):  # macOS: torch's own handler ends the worker, whoever sends the signal.
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # Threads that start later inherit it.
    threading.Thread(target=_end_by_the_parent, daemon=True).start()


def _end_by_the_parent() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)  # torch takes any other code for a failure of the worker.


def choose_executor(
    asked: Literal["auto", "device", "host"], augment: tuple[Augmentation, ...], device: torch.device, store_bytes: int
) -> tuple[Executor, str]:
    """Return the executor of a run and the reason, as the plan prints it. store_bytes: size of the images on the device."""
    host_only = Chain(augment, 0).host_only
    if asked == "device" and host_only:
        raise ConfigError(
            f"--pipeline device cannot run {', '.join(host_only)}, which work on Pillow images only; use --pipeline auto."
        )
    if asked != "auto":
        return asked, "as asked"
    if host_only:
        return "host", f"{', '.join(host_only)} on Pillow images only"
    if device.type not in ("cpu", "cuda"):
        return "host", f"{device.type} has no float64"  # AutoContrast needs it to give Pillow's bytes.
    if device.type == "cuda" and store_bytes > torch.cuda.mem_get_info(device)[0] // 2:
        return "host", f"the images, {store_bytes / 1e6:,.0f} MB, do not fit in half of the GPU's free memory"
    return "device", "every augmentation is batched"
