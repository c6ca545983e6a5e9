"""Sums against a ranking made by sorting, with ties, with NaN, and however the images are divided."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from cifar100_tk.evaluation.metrics import Metrics, batch_sums


def scores(seed: int, count: int, classes: int, distinct: int) -> tuple[Tensor, Tensor]:
    """Random logits of few distinct values, so that many tie, and random labels."""
    rng = np.random.default_rng(seed)
    logits = rng.integers(0, distinct, (count, classes)).astype(np.float32)
    return torch.from_numpy(logits), torch.from_numpy(rng.integers(0, classes, count))


def by_sorting(logits: Tensor, labels: Tensor) -> list[float]:
    values, truth = logits.double().numpy(), labels.numpy()
    # A stable sort leaves tied classes in the order of their numbers.
    ranking = np.argsort(-values, axis=1, kind="stable")
    top1 = sum(int(label in row[:1]) for label, row in zip(truth, ranking, strict=True))
    top5 = sum(int(label in row[:5]) for label, row in zip(truth, ranking, strict=True))
    log_p = values - np.log(np.exp(values).sum(1, keepdims=True))
    return [len(truth), top1, top5, -log_p[np.arange(len(truth)), truth].sum()]


@given(st.integers(0, 2**31), st.integers(1, 40), st.integers(2, 12), st.integers(1, 9))
def test_sums_are_those_of_a_sorted_ranking(seed: int, count: int, classes: int, distinct: int) -> None:
    logits, labels = scores(seed, count, classes, distinct)
    assert batch_sums(logits, labels).tolist() == pytest.approx(by_sorting(logits, labels), rel=1e-5, abs=1e-5)


def test_by_hand() -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0, -2.0, -3.0]] * 3)
    # The first guess, the fifth, and the sixth and last.
    count, top1, top5, loss = batch_sums(logits, torch.tensor([0, 4, 5])).tolist()
    assert (count, top1, top5) == (3, 1, 2)
    total = sum(math.exp(x) for x in (2, 1, 0, -1, -2, -3))
    assert loss == pytest.approx(3 * math.log(total) - 2 + 2 + 3, rel=1e-6)


def test_a_network_that_says_nothing_hits_no_more_than_its_share() -> None:
    sums = batch_sums(torch.zeros(100, 100), torch.arange(100))
    assert sums[:3].tolist() == [100, 1, 5]
    assert sums[3].item() == pytest.approx(100 * math.log(100), rel=1e-6)


def test_an_image_whose_logits_are_not_numbers_is_a_miss_and_spoils_the_loss() -> None:
    logits = torch.tensor([[1.0, 0.0], [float("nan"), float("nan")], [0.0, float("nan")]])
    count, top1, top5, loss = batch_sums(logits, torch.tensor([0, 0, 0])).tolist()
    assert (count, top1, top5) == (3, 1, 1)
    assert math.isnan(loss)


def test_logits_of_little_precision_lose_no_more_in_the_sums() -> None:
    logits, labels = torch.randn(64, 100, generator=torch.Generator().manual_seed(0)).bfloat16(), torch.arange(64)
    assert torch.equal(batch_sums(logits, labels), batch_sums(logits.float(), labels))


def test_sums_of_parts_add_up_to_the_sums_of_the_whole() -> None:
    logits, labels = scores(3, 30, 20, 50)
    parts = [batch_sums(logits[part], labels[part]) for part in (slice(0, 1), slice(1, 24), slice(24, 30))]
    torch.testing.assert_close(torch.stack(parts).sum(0), batch_sums(logits, labels))


def test_metrics_are_sums_divided_by_the_count() -> None:
    assert Metrics.from_sums(torch.tensor([8.0, 2.0, 6.0, 12.0], dtype=torch.float64)) == Metrics(
        num_images=8, top1=0.25, top5=0.75, loss=1.5
    )
