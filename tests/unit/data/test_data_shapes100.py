"""The built-in images: the same for ever, any number of them, and nothing for a linear model."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from processes import PROGRAMS

from cifar100_tk.data import Cifar100
from cifar100_tk.data.rows import HostImages, Numbers
from cifar100_tk.data.shapes100 import NAMES, VERSION, Shapes100
from cifar100_tk.data.silhouettes import SILHOUETTES, distances
from cifar100_tk.data.waves import cosine, sine
from cifar100_tk.errors import ConfigError


def drawn(split: str, num_rows: int) -> tuple[HostImages, Numbers]:
    blocks = list(Shapes100(split, num_rows).blocks())
    return np.concatenate([rows.images for rows in blocks]), np.concatenate([rows.fine for rows in blocks])


def test_a_row_is_the_same_image_however_many_are_drawn() -> None:
    few, few_labels = drawn("train", 250)
    many, many_labels = drawn("train", 730)
    np.testing.assert_array_equal(many[:250], few)
    np.testing.assert_array_equal(many_labels[:250], few_labels)


def test_other_images_are_another_version() -> None:
    # A cache and every figure measured on shapes100 go by VERSION: a new digest here needs a new VERSION there.
    digest = hashlib.sha256(drawn("train", 400)[0].tobytes()).hexdigest()
    assert (VERSION, digest) == (2, "3a7ddb60d28e5337ae1454592ed937465a9b61ce5fa144f8ff9e1c7419759b3f")


@pytest.mark.parametrize("num_kept", [0, 1])
def test_another_processor_draws_the_same_images(num_kept: int) -> None:
    config: Any = np.show_config("dicts")
    lacking = " ".join(config["SIMD Extensions"]["found"][num_kept:])
    environment = os.environ | {"NPY_DISABLE_CPU_FEATURES": lacking, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, str(PROGRAMS / "draw_shapes.py")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == hashlib.sha256(drawn("train", 400)[0].tobytes()).hexdigest()


def test_labels_are_balanced_in_every_hundred_and_mixed() -> None:
    _, labels = drawn("train", 1000)
    for hundred in labels.reshape(10, 100):
        assert sorted(hundred.tolist()) == list(range(100))
    assert len({tuple(hundred) for hundred in labels.reshape(10, 100).tolist()}) == 10


def test_train_and_test_share_no_image() -> None:
    train, test = ({image.tobytes() for image in drawn(split, 500)[0]} for split in ("train", "test"))
    assert len(train) == len(test) == 500 and not train & test


def test_a_linear_model_on_pixels_does_badly() -> None:
    train, train_labels = drawn("train", 2500)
    test, test_labels = drawn("test", 1000)
    # Ridge regression on one-hot targets; for so few rows the dual is the small system.
    x, y = (images.reshape(len(images), -1) / 255.0 - 0.5 for images in (train, test))
    gram = x @ x.T
    weights = x.T @ np.linalg.solve(gram + 100.0 * np.eye(len(x)), np.eye(100)[train_labels])
    top1 = float((np.argmax(y @ weights, axis=1) == test_labels).mean())
    assert top1 < 0.10


def test_colour_alone_tells_nothing() -> None:
    images, labels = drawn("train", 4000)
    # Were a colour tied to a class, the classes' mean colours would lie further apart than those of 40 random images.
    means = images.mean(axis=(2, 3))
    of_classes = np.stack([means[labels == label].mean(axis=0) for label in range(100)])
    expected = means.std(axis=0) / np.sqrt(40)
    np.testing.assert_allclose(of_classes.std(axis=0), expected, rtol=0.25)


@pytest.mark.parametrize(("dtype", "atol"), [(np.float64, 1e-7), (np.float32, 2e-6)])
def test_sine_and_cosine_are_those_of_the_circle(dtype: Any, atol: float) -> None:
    turns = np.linspace(-7, 7, 10_001, dtype=dtype)
    assert sine(turns).dtype == cosine(turns).dtype == dtype
    angles = 2 * np.pi * turns.astype(np.float64)
    np.testing.assert_allclose(sine(turns), np.sin(angles), rtol=0, atol=atol)
    np.testing.assert_allclose(cosine(turns), np.cos(angles), rtol=0, atol=atol)


def test_names_describe_the_images() -> None:
    assert len(NAMES.fine) == len(set(NAMES.fine)) == 100 and len(NAMES.coarse) == 20
    assert "striped_star" in NAMES.fine and NAMES.coarse[NAMES.fine.index("striped_star") // 5] == "star"


def test_distances_are_those_of_the_square() -> None:
    which = np.array([list(SILHOUETTES).index("square")])  # its sides are at 0.85
    x = np.array([[0.0, 0.5, 0.85, 1.2, 1.15]], np.float32)
    y = np.array([[0.0, 0.0, 0.0, 0.0, 1.25]], np.float32)
    np.testing.assert_allclose(distances(which, x, y), [[-0.85, -0.35, 0.0, 0.35, 0.5]], atol=1.5 / 60)


def test_every_silhouette_lies_about_the_middle() -> None:
    for name, corners in SILHOUETTES.items():
        assert 0.7 < np.abs(corners).max() < 1.4, name


def test_too_few_rows_say_how_many_are_needed() -> None:
    with pytest.raises(ConfigError, match=r"shapes100_rows asks for 50 test rows; use at least 100"):
        Cifar100(source="shapes100", shapes100_rows=(1000, 50)).open("train")
