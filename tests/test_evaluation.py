"""evaluate() counts every picture once, over any number of processes, and leaves the model as it was."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from cifar100_tk.augment import Normalize
from cifar100_tk.data import Identity, Split
from cifar100_tk.evaluation import evaluate
from cifar100_tk.metrics import Metrics

AS_IS = Normalize(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


def numbered(count: int, rows: list[int] | None = None) -> Split:
    """Pictures that carry their number in red and green and their class in blue."""
    numbers = np.arange(count)
    labels = numbers * 7 % 10
    pictures = np.zeros((count, 3, 32, 32), np.uint8)
    pictures[:, 0], pictures[:, 1], pictures[:, 2] = (
        part[:, None, None] for part in (numbers % 256, numbers // 256, labels)
    )
    return Split(
        name="test",
        pictures=pictures,
        labels=labels,
        index=numbers if rows is None else np.array(rows, np.int64),
        class_names=tuple("abcdefghij"),
        coarse_names=("all",),
        coarse_of_fine=(0,) * 10,
        identity=Identity(sha256="", rows_sha256="", count=count, sentence="numbered pictures"),
    )


class Reader(nn.Module):
    """Reads number and class off a picture; is right about even numbers only, for the others says the next class."""

    def __init__(self) -> None:
        super().__init__()
        self.dropout = nn.Dropout()
        self.seen: list[int] = []
        self.modes: set[bool] = set()

    def forward(self, images: Tensor) -> Tensor:
        red, green, blue = (images[:, :, 0, 0] * 255).round().long().T
        numbers = red + 256 * green
        self.seen += numbers.tolist()
        self.modes |= {self.training, self.dropout.training}
        return 50.0 * nn.functional.one_hot((blue + numbers % 2) % 10, 10).float()


class OneOf(Accelerator):  # type: ignore[misc]  # accelerate carries no types.
    """One of several processes, played by threads that add at a barrier."""

    def __init__(self, rank: int, world: int, barrier: threading.Barrier, held: dict[int, Tensor]) -> None:
        self.rank, self.world, self.barrier, self.held = rank, world, barrier, held

    process_index = property(lambda self: self.rank)
    num_processes = property(lambda self: self.world)
    device = property(lambda self: torch.device("cpu"))

    @contextlib.contextmanager
    def autocast(self, autocast_handler: Any = None) -> Iterator[None]:
        yield

    def reduce(self, tensor: Tensor, reduction: str = "sum", scale: float = 1.0) -> Tensor:
        assert reduction == "sum"
        self.held[self.rank] = tensor
        self.barrier.wait(timeout=20)
        return torch.stack(list(self.held.values())).sum(0)


def on_processes(world: int, model: Reader, split: Split, **options: Any) -> list[Metrics]:
    barrier, held = threading.Barrier(world), dict[int, Tensor]()
    with ThreadPoolExecutor(world) as threads:
        tasks = [
            threads.submit(evaluate, model, split, AS_IS, accelerator=OneOf(rank, world, barrier, held), **options)
            for rank in range(world)
        ]
        return [task.result(timeout=30) for task in tasks]


@given(st.integers(1, 40), st.integers(1, 11), st.integers(1, 5))
@settings(max_examples=40, deadline=None)
def test_every_picture_is_counted_once_for_any_number_of_pictures_and_processes(
    count: int, batch_size: int, world: int
) -> None:
    model = Reader()
    metrics = on_processes(world, model, numbered(count), batch_size=batch_size)
    assert sorted(model.seen) == list(range(count))
    even = (count + 1) // 2
    # A right guess costs nothing at a lead of 50, a wrong one 50 nats.
    expected = Metrics(num_images=count, top1=even / count, top5=metrics[0].top5, loss=50 * (count - even) / count)
    for measured in metrics:
        assert vars(measured) == pytest.approx(vars(expected), abs=1e-5)
    assert len({measured.top5 for measured in metrics}) == 1


def test_only_the_rows_of_the_split_are_measured() -> None:
    model = Reader()
    metrics = evaluate(model, numbered(600, rows=[1, 3, 256, 599]), AS_IS, accelerator=alone())
    assert model.seen == [1, 3, 256, 599]
    assert (metrics.num_images, metrics.top1) == (4, 0.25)


def alone() -> Accelerator:
    return OneOf(0, 1, threading.Barrier(1), {})


@pytest.mark.parametrize(("limit", "count"), [(1, 4), (2, 8), (3, 10), (99, 10)])
@pytest.mark.parametrize("world", [1, 2])
def test_a_limit_measures_the_first_batches_on_any_number_of_processes(limit: int, count: int, world: int) -> None:
    model = Reader()
    metrics = on_processes(world, model, numbered(10), batch_size=4, limit_batches=limit)
    assert {measured.num_images for measured in metrics} == {count}
    assert sorted(model.seen) == list(range(count))


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_measured_in_evaluation_mode_and_left_in_its_own(training: bool) -> None:
    model = Reader()
    model.train(training)
    evaluate(model, numbered(5), AS_IS, accelerator=alone(), batch_size=2)
    assert model.modes == {False}
    assert model.training is model.dropout.training is training


def test_pictures_are_normalized_and_nothing_else() -> None:
    class Keep(Reader):
        def forward(self, images: Tensor) -> Tensor:
            self.images = images.clone()
            return super().forward(images)

    model = Keep()
    normalize = Normalize(mean=(0.5, 0.25, 0.0), std=(0.5, 0.5, 1.0))
    evaluate(model, numbered(3), normalize, accelerator=alone())
    # Picture 2: red 2, green 0, blue 4 (7 * 2 % 10).
    expected = torch.tensor([(2 / 255 - 0.5) / 0.5, -0.5, 4 / 255])
    torch.testing.assert_close(model.images[2], expected[:, None, None].expand(3, 32, 32))
