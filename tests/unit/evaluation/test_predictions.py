"""evaluate() and collect() ask about every image once, over any number of processes, and leave the model as it was."""

from __future__ import annotations

import contextlib
import itertools
import json
import threading
import types
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from hypothesis import given, settings
from hypothesis import strategies as st
from processes import PROGRAMS, torchrun
from sides import AS_IS, Sides, numbered, sided
from torch import Tensor, nn

from cifar100_tk.augment import Normalize
from cifar100_tk.data import Split
from cifar100_tk.errors import DataError
from cifar100_tk.evaluation import predictions
from cifar100_tk.evaluation.metrics import Metrics
from cifar100_tk.evaluation.predictions import Predictions, evaluate, forward_batch, predict
from cifar100_tk.evaluation.scores import Scores


class Reader(nn.Module):
    """Reads number and class off an image; is right about even numbers only, for the others says the next class."""

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
        self.rank, self.world_size, self.barrier, self.held = rank, world, barrier, held

    process_index = property(lambda self: self.rank)
    num_processes = property(lambda self: self.world_size)
    device = property(lambda self: torch.device("cpu"))

    @contextlib.contextmanager
    def autocast(self, autocast_handler: Any = None) -> Iterator[None]:
        yield

    def reduce(self, tensor: Tensor, reduction: str = "sum", scale: float = 1.0) -> Tensor:
        assert reduction == "sum"
        return torch.stack(self.everyones(tensor)).sum(0)

    def gather(self, tensor: Tensor) -> Tensor:
        return torch.cat(self.everyones(tensor))

    def everyones(self, tensor: Tensor) -> list[Tensor]:
        self.held[self.rank] = tensor
        self.barrier.wait(timeout=20)
        found = [self.held[rank] for rank in range(self.world_size)]
        self.barrier.wait(timeout=20)  # Nobody goes on to the next collective before all have read this one.
        return found


def on_processes(world: int, model: nn.Module, split: Split, measure: Any = evaluate, **options: Any) -> list[Any]:
    """Run `evaluate`, or another like it, on several processes. Returns what each gets."""
    barrier, held = threading.Barrier(world), dict[int, Tensor]()
    with ThreadPoolExecutor(world) as threads:
        tasks = [
            threads.submit(measure, model, split, AS_IS, accelerator=OneOf(rank, world, barrier, held), **options)
            for rank in range(world)
        ]
        return [task.result(timeout=30) for task in tasks]


@given(st.integers(1, 40), st.integers(1, 11), st.integers(1, 5))
@settings(max_examples=40, deadline=None)
def test_every_image_is_counted_once_for_any_number_of_images_and_processes(
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


def test_a_limit_counts_500_images_however_many_the_device_takes_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = predict(Reader(), numbered(1200), AS_IS, accelerator=alone())
    for size, passes in ((300, 4), (500, 2), (2000, 1)):
        monkeypatch.setattr(predictions, "forward_batch", lambda *_, size=size: size)
        model = Reader()
        with_limit: list[int] = []
        options: dict[str, Any] = {"limit_batches": 2, "between_batches": lambda calls=with_limit: calls.append(1)}
        assert evaluate(model, numbered(1200), AS_IS, accelerator=alone(), **options).num_images == 1000
        assert model.seen == list(range(1000)) and len(with_limit) == passes
        assert torch.equal(predict(Reader(), numbered(1200), AS_IS, accelerator=alone()).logits, whole.logits)


def test_a_large_gpu_evaluates_more_images_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    assert forward_batch(torch.device("cpu")) == 500
    for gigabytes, expected in ((24, 500), (80, 2000)):
        card = types.SimpleNamespace(total_memory=gigabytes * 10**9)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _, card=card: card)
        assert forward_batch(torch.device("cuda")) == expected


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_measured_in_evaluation_mode_and_left_in_its_own(training: bool) -> None:
    model = Reader()
    model.train(training)
    evaluate(model, numbered(5), AS_IS, accelerator=alone(), batch_size=2)
    assert model.modes == {False}
    assert model.training is model.dropout.training is training


@pytest.mark.parametrize("measure", [evaluate, predict])
@pytest.mark.parametrize("training", [True, False])
def test_a_measurement_that_is_broken_off_leaves_the_model_in_its_own_mode(measure: Any, training: bool) -> None:
    class Broken(Reader):
        def forward(self, images: Tensor) -> Tensor:
            raise RuntimeError("no forward pass")

    calls: list[int] = []

    def stop_at_the_third() -> None:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt

    model, broken = Reader().train(training), Broken().train(training)
    with pytest.raises(KeyboardInterrupt):
        measure(model, numbered(9), AS_IS, accelerator=alone(), batch_size=2, between_batches=stop_at_the_third)
    with pytest.raises(RuntimeError, match="no forward pass"):
        measure(broken, numbered(9), AS_IS, accelerator=alone())
    assert model.seen == [0, 1, 2, 3] and model.modes == {False}
    for left in (model, broken):
        assert left.training is left.dropout.training is training
    assert not torch.is_inference_mode_enabled()


def test_images_are_normalized_and_nothing_else() -> None:
    class Keep(Reader):
        def forward(self, images: Tensor) -> Tensor:
            self.images = images.clone()
            return super().forward(images)

    model = Keep()
    normalize = Normalize(mean=(0.5, 0.25, 0.0), std=(0.5, 0.5, 1.0))
    evaluate(model, numbered(3), normalize, accelerator=alone())
    # Image 2: red 2, green 0, blue 4 (7 * 2 % 10).
    expected = torch.tensor([(2 / 255 - 0.5) / 0.5, -0.5, 4 / 255])
    torch.testing.assert_close(model.images[2], expected[:, None, None].expand(3, 32, 32))


@given(st.integers(1, 40), st.integers(1, 11), st.integers(1, 5))
@settings(max_examples=40, deadline=None)
def test_predictions_are_of_every_image_once_in_order_on_every_process(count: int, batch_size: int, world: int) -> None:
    rows = [row for row in range(2 * count) if row % 3 or row < 3][:count]
    split = sided(2 * count, rows)
    everyones = on_processes(world, Sides(), split, predict, batch_size=batch_size)
    expected = Sides()(torch.from_numpy(split.images[split.index]).float() / 255)
    for one in everyones:
        assert isinstance(one, Predictions) and one.logits.dtype == torch.float32
        assert one.rows.tolist() == split.index.tolist()
        assert one.labels.tolist() == [row * 7 % 9 for row in one.rows.tolist()]
        torch.testing.assert_close(one.logits, expected)
        assert one.logits.equal(everyones[0].logits)


@pytest.mark.parametrize("world", [1, 3])
def test_predictions_and_sums_agree(world: int) -> None:
    split = sided(50)
    measured = on_processes(world, Sides(), split, batch_size=7)[0]
    found = on_processes(world, Sides(), split, predict, batch_size=7)[0]
    scores = Scores.of(found.logits, found.labels, split.class_names, split.coarse_names, split.coarse_of_fine)
    assert (scores.num_images, scores.top1, scores.top5) == (50, measured.top1, measured.top5)
    assert scores.loss == pytest.approx(measured.loss, rel=1e-6)


@pytest.mark.parametrize("world", [1, 2])
def test_with_mirror_images_the_two_softmaxes_are_averaged(world: int) -> None:
    split = sided(11)
    images = torch.from_numpy(np.array(split.images)).double() / 255
    straight, mirrored = Sides()(images).softmax(1), Sides()(images.flip(3)).softmax(1)
    assert (straight - mirrored).abs().max() > 0.1
    (found, *_) = on_processes(world, Sides(), split, predict, batch_size=4, flip=True)
    torch.testing.assert_close(found.logits.double().exp(), (straight + mirrored) / 2, rtol=1e-5, atol=1e-7)


def test_predictions_can_be_differentiated_and_changed() -> None:
    logits = predict(Sides(), sided(3), AS_IS, accelerator=alone()).logits
    logits[0, 0] = 1.0
    scale = torch.ones((), requires_grad=True)
    (logits * scale).sum().backward()  # What was made in inference mode could not be.
    assert scale.grad is not None and scale.grad.item() == pytest.approx(logits.sum().item(), rel=1e-5)


@pytest.mark.parametrize("measure", [evaluate, predict])
def test_a_split_without_images_is_refused(measure: Any) -> None:
    with pytest.raises(DataError, match="the test split contains no images, so there is nothing to evaluate"):
        measure(Sides(), sided(3, rows=[]), AS_IS, accelerator=alone())


@pytest.mark.parametrize("measure", [evaluate, predict])
def test_between_batches_is_called_as_often_on_every_process(measure: Any) -> None:
    calls: list[int] = []
    # 7 images: shares of 3, 2 and 2, in batches of 2.
    on_processes(3, Sides(), sided(7), measure, batch_size=2, between_batches=lambda: calls.append(1))
    assert len(calls) == 3 * 2


@pytest.mark.parametrize("measure", [evaluate, predict])
@pytest.mark.parametrize("world", [1, 2])
def test_images_that_are_lost_on_the_way_are_noticed(monkeypatch: pytest.MonkeyPatch, measure: Any, world: int) -> None:
    said = predictions._batch_logits
    monkeypatch.setattr(predictions, "_batch_logits", lambda *words, **more: itertools.islice(said(*words, **more), 1))
    with pytest.raises(AssertionError, match=f"{2 * world} images counted of 7"):  # The first batch of each process.
        on_processes(world, Sides(), sided(7), measure, batch_size=2)


@pytest.mark.distributed
def test_two_real_processes_get_what_one_gets(tmp_path: Path) -> None:
    ended = torchrun(PROGRAMS / "measure_on_two.py", tmp_path, ACCELERATE_USE_CPU="true")
    assert ended.returncode == 0, ended.stderr[-3000:]
    found = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1)]
    assert found[0] == found[1] and found[0]["num_processes"] == 2
    for count in (1, 2, 7, 40):
        for flip in (False, True):
            one = predict(Sides(), sided(count), AS_IS, accelerator=alone(), batch_size=3, flip=flip)
            logits, labels, rows = found[0][f"{count} {flip}"]
            torch.testing.assert_close(torch.tensor(logits), one.logits)
            assert (labels, rows) == (one.labels.tolist(), one.rows.tolist())
        sums = evaluate(Sides(), sided(count), AS_IS, accelerator=alone(), batch_size=3)
        assert found[0][f"{count} sums"] == pytest.approx(vars(sums), rel=1e-6)
