"""Classifier.predict gives the same answer for an image in whatever form it comes, and a sentence for what is none."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from numpy.typing import NDArray

import cifar100_tk
from cifar100_tk.augment import Normalize
from cifar100_tk.data import FINE_NAMES
from cifar100_tk.errors import ConfigError, DataError
from cifar100_tk.models import TimmModel
from cifar100_tk.models import folder as model_folder
from cifar100_tk.models.classifier import Classifier, Prediction, as_pillow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder of a network with random weights and CIFAR-100's classes."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("classifier") / "model"
    model_folder.write(folder, TimmModel(name="test_convnext2").build(100), FINE_NAMES, Normalize(), "")
    return folder


@pytest.fixture(scope="module")
def classifier(folder: Path) -> Classifier:
    return cifar100_tk.load(folder)


@pytest.fixture(scope="module")
def pixels() -> NDArray[np.uint8]:
    """(48, 40, 3), so that each axis has its own length."""
    return np.random.default_rng(0).integers(0, 256, (48, 40, 3), np.uint8)


def expected(classifier: Classifier, pixels: NDArray[np.uint8], top: int = 5) -> Prediction:
    """The prediction as somebody works it out who has only the network and the transform."""
    with torch.no_grad():
        values = classifier.model(classifier.transform(PIL.Image.fromarray(pixels))[None])[0].softmax(0)
    order = values.argsort(descending=True)[:top].tolist()
    return Prediction(
        tuple(FINE_NAMES[number] for number in order), (), tuple(values[number].item() for number in order)
    )


def test_an_image_is_a_pillow_image_a_path_an_array_or_a_tensor(
    classifier: Classifier, pixels: NDArray[np.uint8], tmp_path: Path
) -> None:
    image, file = PIL.Image.fromarray(pixels), tmp_path / "a.png"
    image.save(file)
    found = classifier.predict(image)
    wanted = expected(classifier, pixels)
    assert found.class_names == wanted.class_names and found.class_name == wanted.class_names[0]
    assert found.probabilities == pytest.approx(wanted.probabilities) and found.probability == found.probabilities[0]
    first_first = np.ascontiguousarray(pixels.transpose(2, 0, 1))
    for same in (file, str(file), pixels, first_first, torch.from_numpy(pixels), torch.from_numpy(first_first)):
        assert classifier.predict(same) == found
    several = classifier.predict([image, file, pixels])
    assert len(several) == 3 and several[0] == several[1] == several[2]
    assert several[0].class_names == found.class_names and several[0].probability == pytest.approx(found.probability)
    assert image.size == (40, 48)  # And unchanged.


def test_a_batch_is_predicted_image_by_image_and_in_parts(classifier: Classifier) -> None:
    batch = np.random.default_rng(1).integers(0, 256, (5, 3, 32, 32), np.uint8)
    found = classifier.predict(batch, top=2, batch_size=2)
    assert len(found) == 5 and len({each.class_names for each in found}) > 1
    for ours, image in zip(found, batch, strict=True):
        wanted = expected(classifier, np.ascontiguousarray(image.transpose(1, 2, 0)), 2)
        assert ours.class_names == wanted.class_names
        assert ours.probabilities == pytest.approx(wanted.probabilities, rel=1e-5)
    assert classifier.predict(torch.from_numpy(batch), top=2, batch_size=2) == found and classifier.predict([]) == []


def test_gray_and_transparent_images_are_seen_as_their_files_are(classifier: Classifier, tmp_path: Path) -> None:
    gray = np.random.default_rng(2).integers(0, 256, (32, 32), np.uint8)
    assert classifier.predict(gray) == classifier.predict(np.stack([gray] * 3))
    clear = PIL.Image.fromarray(np.random.default_rng(3).integers(0, 256, (32, 32, 4), np.uint8))
    clear.save(tmp_path / "clear.png")
    assert classifier.predict(clear) == classifier.predict(tmp_path / "clear.png") and clear.mode == "RGBA"


def test_three_by_three_is_read_as_its_library_does(classifier: Classifier) -> None:
    odd = np.random.default_rng(4).integers(0, 256, (3, 8, 3), np.uint8)
    assert classifier.predict(odd) == classifier.predict(PIL.Image.fromarray(odd))
    turned = np.ascontiguousarray(odd.transpose(1, 2, 0))
    assert classifier.predict(torch.from_numpy(odd)) == classifier.predict(PIL.Image.fromarray(turned))


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (np.zeros((3, 32, 32), np.float32), r"an array of shape \(3, 32, 32\) and type float32; give uint8, 0 to 255"),
        (torch.zeros(3, 32, 32, dtype=torch.bfloat16), r"shape \(3, 32, 32\) and type bfloat16; give uint8"),
        (torch.zeros(2, 3, 32, 32), r"shape \(3, 32, 32\) and type float32; give uint8"),
        (
            np.zeros((32, 32, 4), np.uint8),
            r"shape \(32, 32, 4\) and type uint8; give uint8, 0 to 255, of shape \(H, W\)",
        ),
        (np.zeros((0, 32, 3), np.uint8), r"shape \(0, 32, 3\)"),
        ("no/such.png", r"^no/such.png does not exist\.$"),
    ],
)
def test_what_is_no_image_is_refused(classifier: Classifier, given: Any, sentence: str) -> None:
    predict: Any = classifier.predict
    with pytest.raises(DataError, match=sentence):
        predict(given)


def test_what_no_library_calls_an_image_is_refused() -> None:
    with pytest.raises(
        DataError, match=r"^predict cannot read int; give a Pillow image, a path, a uint8 array or tensor, or"
    ):
        as_pillow(7)


def test_a_damaged_file_behind_a_pillow_image_is_refused(classifier: Classifier, tmp_path: Path) -> None:
    PIL.Image.effect_noise((64, 64), 50).save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:1000])
    with (
        PIL.Image.open(tmp_path / "cut.png") as image,
        pytest.raises(DataError, match=r"^the image is damaged and cannot"),
    ):
        classifier.predict(image)


def test_a_count_below_one_and_an_unknown_device_are_refused(classifier: Classifier, folder: Path) -> None:
    image = PIL.Image.new("RGB", (32, 32))
    with pytest.raises(ConfigError, match=r"^top=0 is out of range; give 1 or more\.$"):
        classifier.predict(image, top=0)
    with pytest.raises(ConfigError, match=r"^batch_size=-1 is out of range"):
        classifier.predict(image, batch_size=-1)
    with pytest.raises(
        ConfigError, match=r"^device=teapot cannot be used \(.*\); leave it out to use the default device"
    ):
        cifar100_tk.load(folder, device="teapot")
    assert cifar100_tk.load(folder, device="auto").device.type == ("cuda" if torch.cuda.is_available() else "cpu")


def test_a_prediction_is_a_line_of_text() -> None:
    assert re.fullmatch(r"a 50\.0 %, b 12\.3 %", str(Prediction(("a", "b"), (None, None), (0.5, 0.1234))))
