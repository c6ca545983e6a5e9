"""timm's policy strings: driven by keyed draws, and refused with a sentence where timm would not notice an error."""

import random

import numpy as np
import pytest
from augment_images import from_pil, photo_like, to_pil
from timm.data.auto_augment import rand_augment_transform

from cifar100_tk.augment import Chain, TimmPolicy
from cifar100_tk.draws import ImageDraws, word
from cifar100_tk.errors import ConfigError

STRINGS = [
    "rand-m9-mstd0.5-inc1",
    "rand-m9-n3-p0.8-mmax15",
    "rand-tweights",
    "rand-t3aw-n1",
    "augmix-m5-w4-d2",
    "augmix-b1-a0.5",
    "original-mstd0.5",
    "originalr",
    "v0",
    "v0r",
    "3a",
]


@pytest.mark.parametrize("policy", STRINGS)
def test_a_string_augments_the_same_image_the_same_way_again(policy: str) -> None:
    images, index = photo_like(20), np.arange(20)
    chain = Chain((TimmPolicy(policy=policy),), 3)
    augmented = chain.host(images, 1, index)
    assert (augmented != images).any((1, 2, 3)).sum() >= 5
    np.testing.assert_array_equal(chain.host(images, 1, index), augmented)
    assert (chain.host(images, 2, index) != augmented).any()


def test_an_image_gets_what_timms_own_transform_gives_from_the_same_seed() -> None:
    images, index = photo_like(10), np.arange(10)
    augment = TimmPolicy(policy="rand-m9-mstd0.5-inc1")
    words = augment.draw(ImageDraws(7, "augment.0.TimmPolicy", 2, index))["word"].tolist()
    transform = rand_augment_transform("rand-m9-mstd0.5-inc1", {"translate_const": 14, "img_mean": (129, 124, 112)})
    expected = []
    for image, drawn in zip(images, words, strict=True):
        random.seed(word(drawn, "timm_policy", 0))
        np.random.seed(word(drawn, "timm_policy", 0))
        expected.append(from_pil(transform(to_pil(image))))
    np.testing.assert_array_equal(Chain((augment,), 7).host(images, 2, index), expected)


def test_numpys_global_generator_goes_on_as_if_nothing_had_been_drawn() -> None:
    np.random.seed(1)
    expected = np.random.rand()
    np.random.seed(1)
    Chain((TimmPolicy(),), 3).host(photo_like(3), 0, np.arange(3))
    assert np.random.rand() == expected


def test_the_strongest_posterize_blackens_the_image_instead_of_stopping_the_run() -> None:
    # timm asks for 0 bits at level 10, which `rand-m9-mstd0.5-inc1` draws now and then; Pillow 13 raises on that.
    images, index = photo_like(300), np.arange(300)
    augmented = Chain((TimmPolicy(policy="rand-m10-n1-p1-inc1"),), 0).host(images, 0, index)
    black = (augmented == 0).all((1, 2, 3)) & (images > 0).any((1, 2, 3))
    assert 5 < black.sum() < 60


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        ("random-m9", "policy='random-m9' is not a timm policy; start with rand, augmix, original"),
        ("", "policy='' is not a timm policy"),
        ("rand-m9-foo", "'rand-m9-foo' has the unknown section 'foo'; 'rand' takes m, n, p, .* 'rand-m9-mstd0.5-inc1'"),
        ("rand-m9.5", "unknown section 'm9.5'"),
        ("rand-tweigths", "unknown section 'tweigths'"),
        ("rand-mstdinf", "unknown section 'mstdinf'"),
        ("augmix-w0", "unknown section 'w0'; 'augmix' takes m, w, d, a, b, mstd"),
        ("augmix-a0.0", "unknown section 'a0.0'"),
        ("v0-m9", "unknown section 'm9'; 'v0' takes mstd"),
    ],
)
def test_a_string_that_timm_would_misread_is_refused(policy: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TimmPolicy(policy=policy)
