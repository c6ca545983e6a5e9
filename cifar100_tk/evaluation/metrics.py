"""Sums that add up across batches and processes, and the accuracies and losses computed from them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from cifar100_tk.storage.json_files import Json
from cifar100_tk.tensors import Labels, Logits


def batch_sums(logits: Logits, labels: Labels) -> Tensor:
    """Return (4,) float32, on the batch's device: the number of images, top-1 hits, top-5 hits and the summed loss.

    logits: (B, C). labels: (B,) int64. The loss is unsmoothed cross-entropy in nats. Where logits tie, the class with
    the smaller index ranks first, so that a network with constant logits scores no better than chance.
    """
    logits = logits.float()
    ranks = true_ranks(logits, labels)
    hits = [(ranks < k).sum().float() for k in (1, 5)]
    count = torch.full_like(hits[0], len(labels))
    return torch.stack([count, *hits, cross_entropy(logits, labels, reduction="sum")])


def true_ranks(logits: Logits, labels: Labels) -> Labels:
    """Return the rank of each image's class in the predictions, (B,) int64, 0 for the top-1 prediction.

    Where logits tie, the class with the smaller index ranks first. The rank is the largest int64 if a logit is NaN.
    """
    true = logits.gather(1, labels[:, None])
    earlier = torch.arange(logits.shape[1], device=logits.device) < labels[:, None]
    rank = ((logits > true) | ((logits == true) & earlier)).sum(dim=1)
    # Comparisons with NaN are false, so its class would rank first: count it as a miss.
    return rank.masked_fill(logits.isnan().any(dim=1), torch.iinfo(torch.int64).max)


def first_guesses(logits: Logits) -> Labels:
    """Return the top-1 class of each image, (B,) int64, or -1 (no prediction) where a logit is NaN."""
    # argmax returns the first of equal values, as in the order of `true_ranks`.
    return logits.argmax(dim=1).masked_fill(logits.isnan().any(dim=1), -1)


@dataclass(frozen=True)
class Metrics:
    """The results of a model on a split."""

    num_images: int
    """Images measured, each once."""

    top1: float
    """Fraction of images whose class is the top-1 prediction, in 0..1."""

    top5: float
    """Fraction of images whose class is among the top-5 predictions, in 0..1."""

    loss: float
    """Mean cross-entropy in nats, without smoothing."""

    @classmethod
    def from_sums(cls, sums: Tensor) -> Metrics:
        """Divide summed `batch_sums`, (4,) float64, by their count."""
        count, top1, top5, loss = sums.tolist()
        return cls(num_images=int(count), top1=top1 / count, top5=top5 / count, loss=loss / count)

    @classmethod
    def of_result(cls, result: Json) -> Metrics:
        """Take the figures of the JSON of an evaluation, where a loss that is not finite is null."""
        loss = math.nan if result["loss"] is None else result["loss"]
        return cls(num_images=result["num_images"], top1=result["top1"], top5=result["top5"], loss=loss)
