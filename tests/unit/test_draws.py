"""The draws are Philox's, and nothing but (seed, purpose, when, index) decides them."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cifar100_tk import draws

ONES = 0xFFFFFFFF


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        # Random123's kat_vectors, philox4x32 with 10 rounds; zeros are in the function's docstring.
        ([ONES] * 4, (ONES, ONES), [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            (0xA4093822, 0x299F31D0),
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ],
    ids=["ones", "digits of pi"],
)
def test_philox_gives_the_known_answers(counter: list[int], key: tuple[int, int], expected: list[int]) -> None:
    assert draws.philox(np.array([counter], np.uint32), key)[0].tolist() == expected


def test_counter_and_key_are_where_the_documentation_says() -> None:
    # Words: block, time, image, CRC-32 of the purpose. Another layout would draw other numbers for the same seed.
    crc32_of_mix = 0x55AFA881
    counters = np.array([[0, 70_000, 5, crc32_of_mix], [1, 70_000, 5, crc32_of_mix]], np.uint32)
    expected = draws.philox(counters, (3, 2)).reshape(1, 8)[:, :6]
    np.testing.assert_array_equal(draws.bits(2 * 2**32 + 3, "mix", 70_000, np.array([5]), 6), expected)


@given(st.permutations(list(range(12))), st.integers(1, 9))
def test_an_images_numbers_do_not_depend_on_the_batch_it_is_in(rows: list[int], size: int) -> None:
    everyone = draws.uniform(1, "augment", 4, np.arange(12), 5)
    batch = np.array(rows[:size])
    np.testing.assert_array_equal(draws.uniform(1, "augment", 4, batch, 5), everyone[batch])
    np.testing.assert_array_equal(draws.ImageDraws(1, "augment", 4, batch).uniform(5), everyone[batch])


def test_drawing_more_numbers_leaves_the_first_ones_as_they_are() -> None:
    index = np.arange(10)
    longest = draws.bits(0, "augment", 0, index, 9)
    for count in range(10):
        np.testing.assert_array_equal(draws.bits(0, "augment", 0, index, count), longest[:, :count])


def test_seed_purpose_time_and_index_each_make_other_numbers() -> None:
    arguments = [
        (0, "order", 0, 0),
        (1, "order", 0, 0),
        (2**32, "order", 0, 0),
        (2**64 - 1, "order", 0, 0),
        (0, "mix", 0, 0),
        (0, "order", 1, 0),
        (0, "order", 0, 1),
    ]
    words = [draws.word(*argument) for argument in arguments]
    assert len(set(words)) == len(arguments)
    assert all(0 <= word < 2**32 for word in words)


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_a_seed_out_of_range_is_refused(seed: int) -> None:
    with pytest.raises(ValueError, match=rf"seed={seed} is out of range; use a whole number from 0 to 2\*\*64 - 1"):
        draws.word(seed, "order", 0)


@given(st.integers(0, 2**64 - 1), st.integers(0, 500), st.integers(0, 60))
def test_order_is_a_permutation(seed: int, epoch: int, num_images: int) -> None:
    assert sorted(draws.order(seed, epoch, num_images).tolist()) == list(range(num_images))


def test_order_is_another_one_each_epoch_and_for_each_seed_and_comes_again() -> None:
    orders = {draws.order(seed, epoch, 50).tobytes() for seed in range(3) for epoch in range(4)}
    assert len(orders) == 12
    assert draws.order(2, 3, 50).tobytes() in orders


def test_order_sorts_by_both_words_and_is_that_of_earlier_releases() -> None:
    high, low = draws.bits(3, "order", 1, np.arange(12), 2).T.tolist()
    by_hand = sorted(range(12), key=lambda image: (high[image], low[image]))
    assert draws.order(3, 1, 12).tolist() == by_hand == [7, 8, 0, 10, 3, 5, 9, 1, 11, 4, 6, 2]


def test_every_place_of_an_order_is_equally_likely() -> None:
    # 4,000 orders of 5: each of 25 cells is binomial(4000, 0.2), standard deviation 25.3.
    orders = np.stack([draws.order(9, epoch, 5) for epoch in range(4000)])
    counts = np.stack([np.bincount(column, minlength=5) for column in orders.T])
    assert np.abs(counts - 800).max() < 5 * 25.3


def test_uniform_numbers_are_uniform_and_unrelated() -> None:
    drawn = draws.uniform(5, "check", 0, np.arange(25_000), 4)
    assert drawn.min() >= 0 and drawn.max() < 1
    # 100,000 in 50 bins: 2,000 each, standard deviation 44.3.
    counts, _ = np.histogram(drawn, bins=50, range=(0, 1))
    assert np.abs(counts - 2000).max() < 5 * 44.3
    # Columns of an image, an image and the next, an epoch and the next: each correlation is 0 +- 0.0063.
    following = draws.uniform(5, "check", 1, np.arange(25_000), 4)
    for a, b in ((drawn[:, 0], drawn[:, 1]), (drawn[:-1, 0], drawn[1:, 0]), (drawn[:, 0], following[:, 0])):
        assert abs(np.corrcoef(a, b)[0, 1]) < 0.03


def test_global_generators_are_seeded_inside_the_block_and_as_before_after_it() -> None:
    def global_draws() -> tuple[float, float]:
        return random.random(), float(np.random.rand())

    random.seed(1)
    np.random.seed(1)
    undisturbed = [global_draws() for _ in range(2)]
    random.seed(1)
    np.random.seed(1)
    inside = []
    with draws.seeded_globals(0, "mix", 3):
        inside.append(global_draws())
    disturbed = [global_draws()]
    with pytest.raises(KeyError), draws.seeded_globals(0, "mix", 3):
        inside.append(global_draws())
        raise KeyError
    disturbed.append(global_draws())
    assert disturbed == undisturbed
    assert inside[0] == inside[1] and inside[0] not in undisturbed
    with draws.seeded_globals(0, "mix", 4):
        assert global_draws() != inside[0]
