"""From the store to the step: which pictures each process sees at each step, and the augmented, mixed batch made of them."""

from __future__ import annotations

import functools
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal, TypeVar

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from cifar100_tk import draws
from cifar100_tk.augment import (
    Augmentation,
    Chain,
    Cutout,
    Mix,
    Normalize,
    ProgressiveResize,
    cutout_controls,
    finish_drawn,
    resize_images,
    send,
    soft_targets,
    to_device,
)
from cifar100_tk.data import Split
from cifar100_tk.draws import Int64s
from cifar100_tk.errors import CifarError, ConfigError, PeerError
from cifar100_tk.tensors import Images, Labels, Pictures, Targets

Executor = Literal["device", "host"]
T = TypeVar("T")


@dataclass(frozen=True)
class BatchOrder:
    """Which pictures one of `world` processes sees at each step: a pure function of (seed, step, rank)."""

    seed: int
    index: Int64s
    """(N,) the rows of the store that the split holds."""
    batch_size: int
    """Pictures a step, over all processes."""
    steps_per_epoch: int
    rank: int = 0
    world: int = 1

    def __post_init__(self) -> None:
        if self.batch_size % self.world:
            below = self.batch_size // self.world * self.world
            choices = [str(size) for size in (below, below + self.world) if size]
            raise ConfigError(
                f"batch_size={self.batch_size} does not split over {self.world} processes; use {' or '.join(choices)}."
            )

    def epoch(self, step: int) -> int:
        """Return the epoch, from 0, that a step belongs to."""
        return step // self.steps_per_epoch

    @functools.cached_property
    def positions(self) -> Int64s:
        """(b,) this rank's places in the global batch of B.

        Mixup pairs place i with place B-1-i. Both partners are given to the same rank, in an order in which they are
        partners there too: the flip of the local batch is the flip of the global one. Without an even share no such
        order exists, and none is needed, because `Mix` refuses it.
        """
        if (self.batch_size // self.world) % 2:
            return np.arange(self.rank, self.batch_size, self.world)
        first = np.arange(self.rank, self.batch_size // 2, self.world)
        return np.concatenate([first, self.batch_size - 1 - first[::-1]])

    def batch(self, step: int) -> Int64s:
        """Return the rows of the store that this rank sees at a step, (b,) int64."""
        start = step % self.steps_per_epoch * self.batch_size
        shuffled = _shuffled(self.seed, self.epoch(step), len(self.index))
        return self.index[shuffled[start + self.positions]]


@functools.lru_cache(maxsize=2)
def _shuffled(seed: int, epoch: int, num_pictures: int) -> Int64s:
    return draws.order(seed, epoch, num_pictures)


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
    """Makes the batches of a run; both executors give the same ones."""

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
    """Processes that feed the host executor; 0 works in this one."""
    resize: ProgressiveResize | None = None
    """Smaller images early in the run; None for full size throughout."""
    num_steps: int = 0
    """Steps of the whole run, of which the stages of `resize` are shares."""

    def __post_init__(self) -> None:
        share = len(self.order.positions)
        if self.mix is not None and self.mix.active and share % 2:
            raise ConfigError(
                f"Mixup and CutMix pair the pictures of a batch, but batch_size={self.order.batch_size} gives each of "
                f"{self.order.world} processes {share}, an odd number; use {self.order.batch_size + self.order.world}."
            )

    def batches(self, start: int, stop: int) -> Batches:
        """Return an iterator over the batches of steps start..stop-1."""
        made = self.made(start, stop)
        return OneAhead(made, self.device) if self.device.type == "cuda" else Batches(made)

    def made(self, start: int, stop: int) -> Iterator[Batch]:
        """Yield the same batches on the current stream, each made when it is asked for."""
        return self._on_device(start, stop) if self.executor == "device" else self._on_host(start, stop)

    def _on_device(self, start: int, stop: int) -> Iterator[Batch]:
        store = PictureStore(self.split, self.device)
        chain = Chain(self.augment, self.order.seed)
        for step in range(start, stop):
            index, epoch = self.order.batch(step), self.order.epoch(step)
            holes = cutout_controls(self.cutout, self.order.seed, epoch, index)
            # All that a step draws crosses to the device in one copy.
            drawn = {"rows": index, "chain": chain.controls(epoch, index), "holes": holes}
            sent = send(drawn, self.device)
            pictures, labels = store.gather(index, sent["rows"])
            yield self._finished(step, index, chain.run(pictures, sent["chain"]), labels, sent["holes"])

    def _on_host(self, start: int, stop: int) -> Iterator[Batch]:
        dataset = _AugmentedBatches(self.split, self.order, Chain(self.augment, self.order.seed))
        loader: DataLoader[tuple[int, Pictures, Labels] | CifarError] = DataLoader(
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
            step, pictures, labels = item
            on_device = pictures.to(self.device, non_blocking=True), labels.to(self.device, non_blocking=True)
            index = self.order.batch(step)
            holes = cutout_controls(self.cutout, self.order.seed, self.order.epoch(step), index)
            yield self._finished(step, index, *on_device, send(holes, self.device))

    def _finished(
        self, step: int, index: Int64s, pictures: Pictures, labels: Labels, holes: dict[str, torch.Tensor]
    ) -> Batch:
        seed, num_classes = self.order.seed, len(self.split.class_names)
        images = finish_drawn(pictures, self.normalize, self.cutout, holes)
        if self.resize is not None:
            images = resize_images(images, self.resize.side(step, self.num_steps))
        if self.mix is None:
            return Batch(step, index, images, soft_targets(labels, num_classes, self.smoothing))
        return Batch(step, index, *self.mix.build(num_classes, self.smoothing)(images, labels, seed, step))


class Batches(Iterator[Batch]):
    """The batches of a run, each made when it is asked for."""

    def __init__(self, made: Iterator[Batch]) -> None:
        self.made = made

    def __next__(self) -> Batch:
        return next(self.made)

    def prefetch(self) -> None:
        """Start on the next batch where that costs no waiting, as on a GPU."""


class OneAhead(Batches):
    """Makes the next batch on a side stream while the model works on this one."""

    def __init__(self, made: Iterator[Batch], device: torch.device) -> None:
        super().__init__(made)
        self.device, self.side = device, torch.cuda.Stream(device)
        self.following: Batch | None = None

    def prefetch(self) -> None:
        """Start on the next batch, unless that is done."""
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
            # The allocator may hand this memory on only when the stream that uses it is done with it.
            tensor.record_stream(current)
        return batch


class PictureStore:
    """A split's whole store on a device, 153.6 MB for CIFAR-100's train, where one batch after another is gathered.

    It is there once: train and holdout are parts of one store, and an evaluation finds it there again.
    """

    _copies: ClassVar[dict[tuple[str, torch.device], tuple[Pictures, Labels]]] = {}

    def __init__(self, split: Split, device: torch.device) -> None:
        self.device = device
        if device.type == "cpu":
            # The memory-mapped file is the store, shared by all processes; only the batch is copied out of it.
            self.split = split
            return
        # A store's file is named after its content.
        name = str(split.pictures.filename) if isinstance(split.pictures, np.memmap) else None
        copy = self._copies.get((name, device)) if name else None
        if copy is None:
            pictures, labels = torch.from_numpy(np.array(split.pictures)), torch.from_numpy(np.array(split.labels))
            copy = pictures.to(device), labels.to(device)
            if name:
                self._copies[name, device] = copy
        self.pictures, self.labels = copy

    def gather(self, index: Int64s, sent: torch.Tensor | None = None) -> tuple[Pictures, Labels]:
        """Return the pictures and labels of rows of the store, (b, 3, 32, 32) uint8 and (b,) int64, on the device.

        sent: the rows on the device, if they are there already.
        """
        if self.device.type == "cpu":
            return torch.from_numpy(self.split.pictures[index]), torch.from_numpy(self.split.labels[index])
        rows = to_device(index, self.device) if sent is None else sent
        return self.pictures[rows], self.labels[rows]


class _AugmentedBatches(Dataset[tuple[int, Pictures, Labels] | CifarError]):
    """Item t is this rank's augmented batch of step t, so that no worker holds any state.

    A CifarError is an item too: raised in a worker, its sentence would reach the trainer inside a traceback.
    """

    def __init__(self, split: Split, order: BatchOrder, chain: Chain) -> None:
        self.split, self.order, self.chain = split, order, chain

    def __getitem__(self, step: int) -> tuple[int, Pictures, Labels] | CifarError:
        index = self.order.batch(step)
        try:
            pictures = self.chain.host(self.split.pictures[index], self.order.epoch(step), index)
        except CifarError as error:
            return error.with_traceback(None)
        return step, torch.from_numpy(pictures), torch.from_numpy(self.split.labels[index])


class _Steps(Sampler[int]):
    """The steps of a run: one pass of the loader is the whole run, so that workers start once."""

    def __init__(self, start: int, stop: int) -> None:
        self.steps = range(start, stop)

    def __iter__(self) -> Iterator[int]:
        return iter(self.steps)

    def __len__(self) -> int:
        return len(self.steps)


def _ending_its_workers(loader: DataLoader[T]) -> Iterator[T]:
    """Yield the items of a loader, and end its workers at once when anything stops short of the last one."""
    others = set(multiprocessing.active_children())
    items = iter(loader)
    workers = set(multiprocessing.active_children()) - others
    try:
        yield from items
    except BaseException as error:
        # torch would give each of them 5 seconds, one after another, and a traceback that holds `items` even more.
        for worker in workers:
            worker.terminate()
        if isinstance(error, RuntimeError) and "DataLoader worker" in str(error).partition("\n")[0]:
            raise PeerError(
                f"a loader worker ended by itself ({str(error).splitlines()[0].strip(' .')}); the usual cause is too little "
                f"memory: give fewer --workers than {len(workers)}, or find the cause with --workers 0."
            ) from None
        raise


def _end_only_with_the_parent(worker: int) -> None:
    """Let a worker end by SIGTERM from its trainer, and by no other signal that asks the run to stop.

    A Ctrl-C or a scheduler's signal reaches all processes; the trainer must outlive it, with its workers, to save its work.
    """
    for stopping in (signal.SIGINT, signal.SIGUSR1):
        signal.signal(stopping, signal.SIG_IGN)
    if not hasattr(signal, "sigwaitinfo"):  # macOS: torch's own handler ends the worker whoever sends the signal.
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
    """Return the executor of a run and the reason, as the plan prints it. store_bytes: what the pictures need on the device."""
    host_only = Chain(augment, 0).host_only
    if asked == "device" and host_only:
        raise ConfigError(
            f"--pipeline device cannot run {', '.join(host_only)}, which only know Pillow pictures; use --pipeline auto."
        )
    if asked != "auto":
        return asked, "as asked"
    if host_only:
        return "host", f"{', '.join(host_only)} only on Pillow pictures"
    if device.type not in ("cpu", "cuda"):
        return "host", f"{device.type} has no float64"  # AutoContrast needs it to give Pillow's bytes.
    if device.type == "cuda" and store_bytes > torch.cuda.mem_get_info(device)[0] // 2:
        return "host", f"the pictures, {store_bytes / 1e6:,.0f} MB, are too much for the GPU's free memory"
    return "device", "every augmentation is batched"
