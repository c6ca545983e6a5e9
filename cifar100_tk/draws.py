"""Every random number of a run, as a pure function of (seed, purpose, epoch or step, index): nothing random is state."""

from __future__ import annotations

import random
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

UInt32s = NDArray[np.uint32]
Int64s = NDArray[np.int64]
Float64s = NDArray[np.float64]

# Philox4x32-10: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011), section 5.3.
_ROUNDS = 10
_MULTIPLIERS = np.array([[0xD2511F53], [0xCD9E8D57]], np.uint64)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_LOW = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)


def philox(counters: UInt32s, key: tuple[int, int]) -> UInt32s:
    """Encrypt counters with Philox4x32-10, whose output passes TestU01's BigCrush.

    counters: (N, 4) uint32. key: two words in 0..2**32-1. Returns (N, 4) uint32, each row a function of its own row only.

    >>> [hex(word) for word in philox(np.zeros((1, 4), np.uint32), (0, 0))[0].tolist()]
    ['0x6627e8d5', '0xe169c58d', '0xbc57ac4c', '0x9b00dbd8']
    """
    # Words a and c, and words b and d, in two rows each: the two halves of a round are symmetric, crosswise.
    ac, bd = np.ascontiguousarray(counters.T[[[0, 2], [1, 3]]], dtype=np.uint64)
    for round_number in range(_ROUNDS):
        keys = [[(k + round_number * w) & 0xFFFFFFFF] for k, w in zip(key, _KEY_STEPS, strict=True)]
        ac *= _MULTIPLIERS
        crossed = ac[::-1]
        bd ^= crossed >> _SHIFT
        bd ^= np.array(keys, np.uint64)
        ac, bd = bd, crossed & _LOW
    return np.stack([ac[0], bd[0], ac[1], bd[1]], axis=1).astype(np.uint32)


def bits(seed: int, purpose: str, when: int, index: Int64s, count: int) -> UInt32s:
    """Draw `count` 32-bit words for every index.

    seed: 0..2**64-1. purpose: the name of the stream; different purposes are independent. when: the epoch or the step.
    index: (N,) int64 in 0..2**32-1, usually image numbers. Returns (N, count) uint32.
    """
    if not 0 <= seed < 2**64:
        raise ValueError(f"seed={seed} is out of range; use a whole number from 0 to 2**64 - 1.")
    blocks = -(-count // 4)
    counters = np.empty((len(index), blocks, 4), np.uint32)
    counters[:, :, 0] = np.arange(blocks, dtype=np.uint32)
    counters[:, :, 1] = when
    counters[:, :, 2] = index.astype(np.uint32)[:, None]
    counters[:, :, 3] = zlib.crc32(purpose.encode())
    words = philox(counters.reshape(-1, 4), (seed & 0xFFFFFFFF, seed >> 32))
    return words.reshape(len(index), blocks * 4)[:, :count]


def uniform(seed: int, purpose: str, when: int, index: Int64s, count: int) -> Float64s:
    """Draw `count` numbers in [0, 1) for every index, as `bits` does. Returns (N, count) float64, multiples of 2**-32."""
    return bits(seed, purpose, when, index, count) * np.float64(2.0**-32)


def word(seed: int, purpose: str, when: int, index: int = 0) -> int:
    """Draw one 32-bit word, to seed another generator with. Returns an int in 0..2**32-1."""
    return int(bits(seed, purpose, when, np.array([index]), 1)[0, 0])


def order(seed: int, epoch: int, num_images: int, purpose: str = "order") -> Int64s:
    """Shuffle 0..num_images-1 for one epoch. Returns (num_images,) int64.

    Sorting by independent 64-bit keys, so an image's key depends on nothing but (seed, epoch, image).
    """
    high, low = bits(seed, purpose, epoch, np.arange(num_images), 2).astype(np.uint64).T
    return np.argsort((high << _SHIFT) | low, kind="stable")


@contextmanager
def seeded_globals(seed: int, purpose: str, when: int) -> Iterator[None]:
    """Seed Python's and numpy's global generators with one drawn word inside the block, and restore them after it.

    For libraries that draw from them, such as timm's Mixup and policy strings.
    """
    drawn = word(seed, purpose, when)
    python_state, numpy_state = random.getstate(), np.random.get_state()
    random.seed(drawn)
    np.random.seed(drawn)
    try:
        yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)


@dataclass(frozen=True)
class ImageDraws:
    """The draws of one augmentation for the images of a batch, keyed by (seed, purpose, epoch, image)."""

    seed: int
    purpose: str
    epoch: int
    images: Int64s
    """(B,) rows of the images in the whole data set, so that neither batch nor rank matters."""

    def uniform(self, count: int) -> Float64s:
        """Draw `count` numbers in [0, 1) for every image. Returns (B, count) float64."""
        return uniform(self.seed, self.purpose, self.epoch, self.images, count)
