"""`python -m cifar100_tk.predict` names what the network sees in any image file, and goes on past those it cannot read."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import safetensors.torch
import torch
from commands import Refusal, exit_code, own_network, refusals
from torch import nn

import cifar100_tk
from cifar100_tk import predict
from cifar100_tk.augment import Normalize
from cifar100_tk.data import COARSE_NAMES, COARSE_OF_FINE, FINE_NAMES, Cifar100
from cifar100_tk.data.labels import superclasses_of
from cifar100_tk.data.shapes100 import NAMES
from cifar100_tk.models import TimmModel
from cifar100_tk.models import folder as model_folder
from cifar100_tk.models.classifier import Resize

NORMALIZE = Normalize(mean=(0.5, 0.4, 0.3), std=(0.25, 0.3, 0.2))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder of a network with random weights and CIFAR-100's classes."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("predict") / "model"
    model_folder.write(folder, TimmModel(name="test_convnext2").build(100), FINE_NAMES, NORMALIZE, "")
    return folder


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Images of several sizes, files that are none, and folders within."""
    folder = tmp_path / "images"
    (folder / "within").mkdir(parents=True)
    (folder / ".hidden").mkdir()
    generator = np.random.default_rng(0)
    for name, height, width in (
        ("b.png", 32, 32),
        ("a.JPG", 48, 64),
        ("within/c.webp", 90, 30),
        (".hidden/d.png", 9, 9),
    ):
        coarse = PIL.Image.fromarray(generator.integers(0, 256, (8, 8, 3), np.uint8))
        coarse.resize((width, height)).save(folder / name)
    (folder / "notes.txt").write_text("not an image, and not taken for one")
    (folder / "within" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nno")
    return folder


def test_a_folder_is_predicted_in_order_and_its_bad_files_are_named(
    model: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code(predict.main, model, images, "--json", "--batch-size", 2) == 3
    said = capsys.readouterr()
    lines = [json.loads(line) for line in said.out.splitlines()]
    assert [line["image"] for line in lines] == [str(images / name) for name in ("a.JPG", "b.png", "within/c.webp")]
    first, last = said.err.splitlines()
    assert re.search(r"within/broken.png is (damaged and cannot be decoded|not an image in a supported format)", first)
    assert last.endswith("1 of 4 images could not be read; the others were predicted.")
    classifier = cifar100_tk.load(model)
    for line in lines:
        with PIL.Image.open(line["image"]) as image, torch.no_grad():
            logits = classifier.model(classifier.transform(image.convert("RGB"))[None])[0]
        probabilities = torch.softmax(logits, 0)
        expected = probabilities.argsort(descending=True)[:5].tolist()
        assert [guess["class"] for guess in line["predictions"]] == [FINE_NAMES[number] for number in expected]
        for guess, number in zip(line["predictions"], expected, strict=True):
            assert guess["probability"] == pytest.approx(probabilities[number].item(), rel=1e-4)
            assert guess["superclass"] == COARSE_NAMES[COARSE_OF_FINE[number]]


def test_text_says_how_images_are_made_to_fit_and_shows_percentages(
    model: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code(predict.main, model, images / "b.png", "--top", "2") == 0
    head, name, first, second = capsys.readouterr().out.splitlines()
    assert head == f"{model} on 1 image, each with its short side resized to 32 pixels and the center cropped"
    assert name == str(images / "b.png")
    found = cifar100_tk.load(model).predict(images / "b.png", top=2)
    for line, name, superclass, probability in zip(
        (first, second), found.class_names, found.superclasses, found.probabilities, strict=True
    ):
        names = [f"{each}".replace("_", " ") for each in (name, superclass)]
        assert re.split(" {2,}", line.strip()) == [f"{100 * probability:.1f} %", *names]


def fitted(model: Path, image: Path, resize: Resize = "crop") -> torch.Tensor:
    return cifar100_tk.load(model).prepare(image, resize)


def test_a_wide_image_is_cropped_to_its_middle_or_squashed(model: Path, tmp_path: Path) -> None:
    """Thirds in red, green and blue: the middle is all green; squashed, all three are there."""
    wide = PIL.Image.new("RGB", (192, 64), "lime")
    wide.paste("red", (0, 0, 64, 64))
    wide.paste("blue", (128, 0, 192, 64))
    wide.save(tmp_path / "wide.png")
    classifier = cifar100_tk.load(model)
    scale, shift = NORMALIZE.factors(torch.device("cpu"))

    def pixels(resize: Resize) -> torch.Tensor:
        return ((fitted(model, tmp_path / "wide.png", resize) + shift[0]) / scale[0]).round()

    assert pixels("crop")[:, 16, 2:30].T.unique(dim=0).tolist() == [[0, 255, 0]]
    squashed = pixels("squash")
    assert [squashed[:, 16, column].tolist() for column in (3, 16, 28)] == [[255, 0, 0], [0, 255, 0], [0, 0, 255]]
    assert torch.equal(
        classifier.prepare(wide.crop((64, 0, 128, 64)), "squash"),
        classifier.prepare(wide.crop((64, 0, 128, 64)), "crop"),
    )


def test_an_image_of_the_networks_size_is_seen_as_in_evaluation(model: Path, tmp_path: Path) -> None:
    split = Cifar100(source="shapes100", shapes100_rows=(100, 100)).open("test")
    PIL.Image.fromarray(np.ascontiguousarray(split.images[3].transpose(1, 2, 0))).save(tmp_path / "row.png")
    scale, shift = NORMALIZE.factors(torch.device("cpu"))
    expected = (torch.from_numpy(split.images[3:4].copy()).float() * scale - shift)[0]
    for resize in ("crop", "squash"):
        assert fitted(model, tmp_path / "row.png", resize).sub(expected).abs().max() < 1e-5


def test_superclasses_are_named_where_the_classes_are_known() -> None:
    assert superclasses_of(FINE_NAMES)[:2] == ("fruit_and_vegetables", "fish")  # apple, aquarium_fish
    builtin = superclasses_of(NAMES.fine)
    assert builtin == tuple(NAMES.coarse[number // 5] for number in range(100))
    assert superclasses_of(("apple", "tiger")) == ("fruit_and_vegetables", "large_carnivores")
    assert superclasses_of(("apple", "unicorn")) == (None, None)


def test_a_model_of_few_classes_without_superclasses_names_them_all(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    names = ("good", "bad", "ugly")
    model_folder.write(tmp_path / "model", TimmModel(name="test_convnext2").build(3), names, NORMALIZE, "")
    assert exit_code(predict.main, tmp_path / "model", images / "b.png", "--json") == 0
    (line,) = capsys.readouterr().out.splitlines()
    guesses = json.loads(line)["predictions"]
    assert {guess["class"] for guess in guesses} == set(names) and {guess["superclass"] for guess in guesses} == {None}
    assert sum(guess["probability"] for guess in guesses) == pytest.approx(1)
    assert exit_code(predict.main, tmp_path / "model", images / "b.png") == 0
    assert all(line == line.rstrip() for line in capsys.readouterr().out.splitlines())


def test_logits_that_are_no_numbers_are_refused(
    model: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = shutil.copytree(model, tmp_path / "model")
    state = safetensors.torch.load_file(broken / "model.safetensors")
    state["head.fc.bias"][:] = float("nan")
    safetensors.torch.save_file(state, broken / "model.safetensors")
    assert exit_code(predict.main, broken, images / "b.png") == 3
    assert "logits are not finite, so its training has diverged" in capsys.readouterr().err


@refusals(
    (["MODEL"], 2, "no IMAGE given; give image files or folders after the MODEL"),
    (["MODEL", "nothing.png"], 3, "nothing.png does not exist; give image files or folders"),
    (["MODEL", "EMPTY"], 3, "empty holds no images; expected files that end in .png .jpg .jpeg .webp .bmp"),
    (["no/such", "IMAGES"], 8, "there is no folder no/such, and it could not be fetched from the Hub"),
    (["weights.pth", "IMAGES"], 3, "weights.pth is a pickle"),
    (["MODEL", "IMAGES", "--top", "0"], 2, "--top 0 is out of range; expected from 1 to 1000000; give 1 or more"),
    (["MODEL", "IMAGES", "--batch-size", "-1"], 2, "--batch-size -1 is out of range"),
    (["MODEL", "IMAGES", "--register", "no.py"], 2, "--register no.py does not exist; give a Python file"),
    (["MODEL", "IMAGES", "--device", "teapot"], 2, "--device teapot cannot be used .*; leave it out"),
    (["MODEL", "IMAGES", "--resize", "stretch"], 2, "--resize.*squash"),
)
def test_what_cannot_be_predicted_ends_with_a_sentence_and_its_code(
    refusal: Refusal, model: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    refusal.check(capsys, predict.main, MODEL=model, IMAGES=images, EMPTY=tmp_path / "empty")


def test_a_name_that_is_no_text_is_printed(
    model: Path, images: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    odd = Path(str(images / "b\udcff.png"))  # The byte 0xff, which no UTF-8 text holds.
    shutil.copy(images / "b.png", odd)
    assert exit_code(predict.main, model, odd, "--top", 1) == 0
    assert rb"b\udcff.png" in capfdbinary.readouterr().out


def test_a_network_of_ones_own_is_used_after_registering_it(
    model: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = shutil.copytree(model, tmp_path / "mine")
    file = own_network(mine, "net_to_predict_with")
    assert exit_code(predict.main, mine, images / "b.png") == 3
    assert exit_code(predict.main, mine, images / "b.png", "--register", file) == 0
    assert isinstance(cifar100_tk.load(mine).model, nn.Module)


def test_a_batch_that_does_not_fit_is_said(
    model: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    greedy = shutil.copytree(model, tmp_path / "greedy")
    file = own_network(greedy, "net_of_much_memory")
    # A machine that has memory for one image at a time.
    file.write_text(
        "import torch\n"
        + file.read_text().replace("return timm", "net = timm")
        + "    net.register_forward_pre_hook(lambda net, given: torch.empty(10**15) if len(given[0]) > 1 else None)\n"
        "    return net\n"
    )
    arguments = (greedy, images / "a.JPG", images / "b.png")
    assert exit_code(predict.main, *arguments, "--register", file) == 2
    said = "--batch-size 256 does not fit in the memory of the device; use half of it."
    assert capsys.readouterr().err == f"python -m cifar100_tk.predict: {said}\n"
    assert exit_code(predict.main, *arguments, "--batch-size", 1) == 0


@pytest.mark.gpu
def test_a_gpu_gives_the_same_guesses(model: Path, images: Path) -> None:
    classifier = cifar100_tk.load(model)
    files = [images / name for name in ("a.JPG", "b.png")]
    on_gpu = cifar100_tk.load(model, device="auto")
    assert on_gpu.device.type == "cuda"
    for ours, theirs in zip(on_gpu.predict(files), classifier.predict(files), strict=True):
        assert ours.class_names == theirs.class_names


@pytest.mark.parametrize(
    ("count", "said"),
    [(1, "the image could not be read."), (2, "2 of 2 images could not be read; there is nothing to predict.")],
)
def test_where_nothing_could_be_read_nothing_was_predicted(
    count: int, said: str, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [tmp_path / f"{number}.png" for number in range(count)]
    for file in files:
        file.write_bytes(b"")
    assert exit_code(predict.main, model, *files) == 3
    assert capsys.readouterr().err.splitlines()[-1].endswith(said)
