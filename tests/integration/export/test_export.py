"""Exported files say what the model says, to whoever reads them, and a file that does not is never left behind."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import PIL.Image
import pytest
import safetensors.torch
import torch
from commands import Refusal, exit_code, refusals
from runs import contents

import cifar100_tk
from cifar100_tk.augment import Normalize
from cifar100_tk.data import Cifar100, Split
from cifar100_tk.errors import DataError
from cifar100_tk.export import __main__ as export
from cifar100_tk.export import formats
from cifar100_tk.models import TimmModel
from cifar100_tk.models import folder as model_folder

NAMES = tuple(f"class {number}" for number in range(10))
NORMALIZE = Normalize(mean=(0.5, 0.4, 0.3), std=(0.25, 0.3, 0.2))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder of a network with running statistics and random weights."""
    torch.manual_seed(0)
    net = TimmModel(name="resnet10_cifar_w16").build(len(NAMES))
    with torch.no_grad():
        net(torch.randn(32, 3, 32, 32))
    folder = tmp_path_factory.mktemp("export") / "small"
    model_folder.write(folder, net, NAMES, NORMALIZE, "")
    return folder


@pytest.fixture(scope="module")
def split() -> Split:
    return Cifar100(source="shapes100", shapes100_rows=(100, 100)).open("test")


def test_onnx_takes_bytes_and_any_batch_and_knows_its_classes(
    model: Path, split: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert exit_code(export.main, model, "--to", "onnx", "--num-images", 70) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["small.onnx"]
    first, second = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"small.onnx: \d\.\d MB, takes images \(batch, 3, 32, 32\) uint8, RGB, 0..255", first)
    assert "the same top-1 class, of 70 test images (shapes100, built in); logits differ by" in second
    onnx.checker.check_model(onnx.load("small.onnx"), full_check=True)
    session = onnxruntime.InferenceSession("small.onnx", providers=["CPUExecutionProvider"])
    (given,), (answer,) = session.get_inputs(), session.get_outputs()
    assert (given.name, given.type, given.shape) == ("images", "tensor(uint8)", ["batch", 3, 32, 32])
    assert (answer.name, answer.type, answer.shape) == ("logits", "tensor(float)", ["batch", 10])
    about = session.get_modelmeta().custom_metadata_map
    assert json.loads(about["class_names"]) == list(NAMES) and about["input"].startswith("images (batch, 3, 32, 32)")
    assert json.loads(about["mean"]) == [0.5, 0.4, 0.3] and json.loads(about["std"]) == [0.25, 0.3, 0.2]
    # Whoever loads the model with this package gets the same from the same image.
    classifier = cifar100_tk.load(model)
    for count in (1, 3, 64):
        images = split.images[:count]
        rows = [PIL.Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0))) for image in images]
        with torch.no_grad():
            expected = classifier.model(torch.stack([classifier.transform(row) for row in rows])).numpy()
        (logits,) = session.run(None, {"images": np.ascontiguousarray(images)})
        assert logits.shape == (count, 10) and np.abs(logits - expected).max() < 1e-4
        assert np.array_equal(logits.argmax(1), expected.argmax(1))


def test_onnx_without_normalization_takes_normalized_images(model: Path, split: Split) -> None:
    classifier = cifar100_tk.load(model)
    exported = formats.export(classifier, "onnx", "outside")
    session = onnxruntime.InferenceSession(exported.content, providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    assert (given.name, given.type, given.shape) == ("images", "tensor(float)", ["batch", 3, 32, 32])
    about = session.get_modelmeta().custom_metadata_map
    assert about["normalization"] == "outside"
    assert about["input"].endswith("RGB: (value / 255 - [0.5, 0.4, 0.3]) / [0.25, 0.3, 0.2]")
    mean, std = (np.array(json.loads(about[key]), np.float32)[:, None, None] for key in ("mean", "std"))
    images = ((split.images[:20] / 255 - mean) / std).astype(np.float32)
    with torch.no_grad():
        expected = classifier.model(torch.from_numpy(images)).numpy()
    assert np.abs(session.run(None, {"images": images})[0] - expected).max() < 1e-4
    agreement = formats.compare(classifier, exported, split, "outside", 100)
    assert agreement.holds and agreement.num_images == 100 and 0 < agreement.largest_difference < 1e-5


def test_torch_export_is_read_by_torch_alone_and_holds_no_pickle(
    model: Path, split: Split, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "small.pt2"
    assert exit_code(export.main, model, "--to", "torch-export", "--output", file, "--num-images", 50) == 0
    assert "small.pt2: 1.4 MB, takes images" in capsys.readouterr().out
    content = file.read_bytes()
    assert b"archive/data.pkl" not in content and b"ctorch" not in content
    about = {"metadata.json": ""}
    module = torch.export.load(file, extra_files=about).module()
    assert json.loads(json.loads(about["metadata.json"])["class_names"]) == list(NAMES)
    classifier = cifar100_tk.load(model)
    scale, shift = NORMALIZE.factors(torch.device("cpu"))
    for count in (1, 7):
        images = torch.from_numpy(split.images[:count].copy())
        with torch.no_grad():
            assert (module(images) - classifier.model(images.float() * scale - shift)).abs().max() < 1e-5


def test_a_difference_is_noticed(model: Path, split: Split) -> None:
    exported = formats.export(cifar100_tk.load(model), "torch-export")
    other = cifar100_tk.load(model)
    assert formats.compare(other, exported, split, "inside", 40).holds
    bias = dict(other.model.named_parameters())["fc.bias"].data
    bias[3] += 0.001
    agreement = formats.compare(other, exported, split, "inside", 40)
    assert not agreement.holds and agreement.largest_difference == pytest.approx(0.001, rel=0.01)
    assert agreement.other_classes == 0 and agreement.num_images == 40
    bias[3] += 100
    before = exported.logits(torch.from_numpy(split.images[:40].copy())).argmax(1)
    assert formats.compare(other, exported, split, "inside", 40).other_classes == (before != 3).sum() > 10
    bias[3] = float("nan")
    with pytest.raises(DataError, match="the model's logits are not finite numbers, so it cannot be compared"):
        formats.compare(other, exported, split, "inside", 40)


OWN = """
import timm, torch
from timm.models import register_model
from cifar100_tk.models import ResNetCifar
from timm.models.resnet import BasicBlock
class Sly(ResNetCifar):
    def forward(self, x):
        logits = super().forward(x)
        {twist}
        return logits
@register_model
def {name}(pretrained=False, **kwargs):
    del kwargs["pretrained_cfg"], kwargs["pretrained_cfg_overlay"]
    net = Sly(BasicBlock, (1, 1, 1, 1), stem_width=16, channels=(16, 32, 64, 128), num_classes=10)
    net.pretrained_cfg = {{"input_size": (3, 32, 32), "mean": (0.5, 0.4, 0.3), "std": (0.25, 0.3, 0.2), "crop_pct": 1.0,
                          "interpolation": "bilinear"}}
    return net
"""


@pytest.mark.parametrize(
    ("name", "twist", "code", "message"),
    [
        # It adds something where it is traced, and nowhere else.
        ("sly", "logits = logits + 0.01 * torch.compiler.is_compiling()", 3, "the same top-1 class, .* is allowed"),
        # A Python branch on values cannot be traced.
        ("moody", "logits = -logits if logits.sum() > 0 else logits", 2, "this network cannot be exported with --to"),
    ],
)
def test_a_file_that_says_something_else_is_not_left_behind(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, twist: str, code: int, message: str
) -> None:
    register = tmp_path / "register.py"
    register.write_text(OWN.format(name=name, twist=twist))
    mine = shutil.copytree(model, tmp_path / "mine")
    config = json.loads((mine / "config.json").read_text())
    (mine / "config.json").write_text(json.dumps(config | {"architecture": name}))
    output = tmp_path / "out" / "sly.pt2"
    output.parent.mkdir()
    arguments = ["--to", "torch-export", "--output", output, "--register", register, "--num-images", 10]
    assert exit_code(export.main, mine, *arguments) == code
    said = capsys.readouterr().err.splitlines()[-1]
    assert re.search(message, said) and ("Nothing was written" in said) == (code == 3)
    assert not list(output.parent.iterdir())


def test_the_data_of_a_run_are_what_it_is_compared_on(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(model, run / "model")
    (run / "recipe.json").write_text(json.dumps({"data": {"source": str(tmp_path / "gone")}}))
    assert exit_code(export.main, run, "--to", "torch-export", "--output", tmp_path / "x.pt2") == 3
    assert "gone" in capsys.readouterr().err
    arguments = ["--source", "shapes100", "--num-images", "5", "--output", tmp_path / "x.pt2"]
    assert exit_code(export.main, run, "--to", "torch-export", *arguments) == 0
    assert "of 5 test images (shapes100, built in)" in capsys.readouterr().out


@refusals(
    (["MODEL"], 2, "--to"),
    (["MODEL", "--to", "pickle"], 2, "--to.*torch-export"),
    (["no/such/run", "--to", "onnx"], 3, "no/such/run does not exist; give a run folder"),
    (["weights.pth", "--to", "onnx"], 3, "weights.pth is a pickle"),
    (
        ["MODEL", "--to", "onnx", "--output", "no/such/x.onnx"],
        2,
        "the folder .*no/such does not exist; create it first",
    ),
    (["MODEL", "--to", "onnx", "--output", "there.onnx"], 2, "there.onnx already exists; remove it, or give"),
    (["MODEL", "--to", "onnx", "--num-images", "0"], 2, "--num-images 0 is out of range"),
    (["MODEL", "--to", "onnx", "--register", "no.py"], 2, "--register no.py does not exist; give a Python file"),
    (["MODEL", "--to", "onnx", "--source", "no/such/copy"], 3, "no/such/copy"),
)
def test_what_cannot_be_exported_ends_with_a_sentence_and_its_code(
    refusal: Refusal, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.onnx").write_text("somebody's")
    refusal.check(capsys, export.main, MODEL=model)
    assert contents(tmp_path) == {"there.onnx": b"somebody's"}


def test_a_missing_extra_is_named(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)  # As if it were not installed.
    assert exit_code(export.main, model, "--to", "onnx") == 2
    assert 'onnx needs onnxruntime; install it with: pip install -e ".[export]"' in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_model_whose_logits_are_not_finite_is_not_exported(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = shutil.copytree(model, tmp_path / "model")
    weights = safetensors.torch.load_file(broken / "model.safetensors")
    weights["fc.bias"][3] = float("nan")
    safetensors.torch.save_file(weights, broken / "model.safetensors")
    file = tmp_path / "broken.pt2"
    assert exit_code(export.main, broken, "--to", "torch-export", "--num-images", 2, "--output", file) == 3
    assert "the model's logits are not finite numbers, so it cannot be compared" in capsys.readouterr().err
    assert not file.exists()
