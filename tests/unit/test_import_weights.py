"""torchvision's and timm's ResNets with a CIFAR stem say the same here, and weights that do not fit say what differs."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch
import torchvision
from commands import Refusal, exit_code, refusals
from torch import Tensor, nn

import cifar100_tk
from cifar100_tk import import_weights
from cifar100_tk.augment import Normalize
from cifar100_tk.data import FINE_NAMES
from cifar100_tk.errors import DataError

State = dict[str, Tensor]


def cifar_stem(net: nn.Module, classes: int = 100) -> nn.Module:
    """Exchange the stem as everybody does, and give every tensor values of its own, running statistics too."""
    torch.manual_seed(0)
    net.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    net.maxpool = nn.Identity()
    net.fc = nn.Linear(net.fc.in_features, classes)  # type: ignore[union-attr,arg-type]
    for name, tensor in net.state_dict().items():
        if name.endswith(("running_var", "bn1.weight", "bn2.weight", "downsample.1.weight")):
            tensor.uniform_(0.5, 1.5)
        elif name.endswith(("bn3.weight", "running_mean", "bias")):
            tensor.normal_(0, 0.2)
    return net.eval()


@pytest.fixture(scope="module")
def resnet18() -> nn.Module:
    return cifar_stem(torchvision.models.resnet18())


@pytest.fixture(scope="module")
def file18(resnet18: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("weights") / "weights.safetensors", resnet18.state_dict())


def saved(path: Path, state: State) -> Path:
    safetensors.torch.save_file({name: tensor.clone().contiguous() for name, tensor in state.items()}, path)
    return path


def logits(net: nn.Module) -> Tensor:
    with torch.no_grad():
        answer: Tensor = net(torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1)))
    return answer


@pytest.mark.parametrize("library", ["torchvision", "timm"])
def test_resnet50_with_a_cifar_stem_says_the_same_here(
    tmp_path: Path, library: str, capsys: pytest.CaptureFixture[str]
) -> None:
    net = cifar_stem(torchvision.models.resnet50() if library == "torchvision" else timm.create_model("resnet50"))
    file = saved(tmp_path / "weights.safetensors", net.state_dict())
    normalization = ["--mean", "0.5", "0.4", "0.3", "--std", "0.2", "0.25", "0.3"]
    assert exit_code(import_weights.main, file, "--to", tmp_path / "model", *normalization) == 0
    said = capsys.readouterr().out
    assert f"{tmp_path / 'model'}: resnet50_cifar for 100 classes" in said and "python -m cifar100_tk.eval" in said
    classifier = cifar100_tk.load(tmp_path / "model")
    expected = logits(net)
    assert expected.std() > 0.1
    torch.testing.assert_close(logits(classifier.model), expected, rtol=1e-5, atol=1e-5)
    assert classifier.class_names == FINE_NAMES
    assert classifier.normalize == Normalize(mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3))
    assert json.loads((tmp_path / "model" / "config.json").read_text())["architecture"] == "resnet50_cifar"


def renamed(old: str, new: str) -> Callable[[State], State]:
    return lambda state: {name.replace(old, new): tensor for name, tensor in state.items()}


def prefixed(prefix: str) -> Callable[[State], State]:
    return lambda state: {prefix + name: tensor for name, tensor in state.items()}


@pytest.mark.parametrize(
    "change",
    [
        prefixed("module."),
        prefixed("_orig_mod."),
        prefixed("module._orig_mod."),
        prefixed("_orig_mod.module.model."),
        renamed("fc.", "classifier."),
        renamed("fc.", "head.fc."),
        renamed("fc.", "linear."),
        lambda state: prefixed("model.")(renamed("fc.", "head.")(state)),
        lambda state: {k: t for k, t in state.items() if "num_batches" not in k},
        lambda state: {k: t.double() if t.is_floating_point() else t for k, t in state.items()},
    ],
)
def test_the_same_tensors_by_other_usual_names_give_the_same_logits(
    tmp_path: Path, resnet18: nn.Module, change: Callable[[State], State]
) -> None:
    file = saved(tmp_path / "weights.safetensors", change(resnet18.state_dict()))
    net = import_weights.load_foreign(file, "resnet18_cifar", 100)
    assert not net.training
    torch.testing.assert_close(logits(net), logits(resnet18), rtol=1e-5, atol=1e-5)


def test_half_precision_is_read_as_what_it_holds(tmp_path: Path, resnet18: nn.Module) -> None:
    halves = {k: t.half() if t.is_floating_point() else t for k, t in resnet18.state_dict().items()}
    net = import_weights.load_foreign(saved(tmp_path / "half.safetensors", halves), "resnet18_cifar", 100)
    assert all(tensor.dtype in (torch.float32, torch.int64) for tensor in net.state_dict().values())
    assert torch.equal(net.state_dict()["conv1.weight"], halves["conv1.weight"].float())


def without(name: str) -> Callable[[State], State]:
    return lambda state: {key: tensor for key, tensor in state.items() if key != name}


def replaced(name: str, tensor: Tensor) -> Callable[[State], State]:
    return lambda state: state | {name: tensor}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            replaced("conv1.weight", torch.zeros(64, 3, 7, 7)),
            "conv1.weight is 64x3x7x7, but the first convolution of resnet18_cifar is 64x3x3x3; "
            "a 7x7 stem is for 224x224 images and cannot be used here",
        ),
        (replaced("conv1.weight", torch.zeros(32, 3, 3, 3)), "conv1.weight is 32x3x3x3, but .* is 64x3x3x3.$"),
        (without("layer4.1.bn2.bias"), "lacks 1 of the 122 tensors of resnet18_cifar, the first is layer4.1.bn2.bias;"),
        (lambda state: {"a.weight": torch.zeros(1)}, "lacks 102 of the 122 tensors .* conv1.weight; it holds a.weight"),
        (lambda state: {}, "lacks 102 of the 122 tensors .*; it holds nothing and so on"),
        (lambda state: renamed("fc.w", "head.w")(state) | {"head.bias": torch.zeros(100)}, "holds 1 tensors .*fc.bias"),
        (
            replaced("layer1.0.gate.weight", torch.zeros(1)),
            "holds 1 tensors that resnet18_cifar does not have.*gate.weight",
        ),
        (
            lambda state: state | {"fc.weight": torch.zeros(10, 512), "fc.bias": torch.zeros(10)},
            "fc.(weight is 10x512|bias is 10), for 10 classes, but there are 100 class names; give those of",
        ),
        (replaced("fc.weight", torch.zeros(100, 64)), "fc.weight is 100x64, but that of resnet18_cifar is 100x512"),
        (replaced("layer2.0.conv1.weight", torch.zeros(1)), "layer2.0.conv1.weight is 1, but that of .* 128x64x3x3"),
        (replaced("bn1.bias", torch.full((64,), torch.nan)), "bn1.bias does not contain finite floating-point numbers"),
        (
            replaced("bn1.bias", torch.zeros(64, dtype=torch.int8)),
            "bn1.bias does not contain finite floating-point numbers",
        ),
        (replaced("bn1.num_batches_tracked", torch.tensor(0.5)), "num_batches_tracked does not contain finite"),
    ],
)
def test_weights_that_do_not_fit_say_what_differs(
    tmp_path: Path, resnet18: nn.Module, change: Callable[[State], State], message: str
) -> None:
    file = saved(tmp_path / "weights.safetensors", change(resnet18.state_dict()))
    with pytest.raises(DataError, match=message):
        import_weights.load_foreign(file, "resnet18_cifar", 100)


def test_weights_of_another_depth_are_refused(file18: Path) -> None:
    with pytest.raises(DataError, match=r"lacks .* of resnet34_cifar, the first is layer1.2.conv1.weight; .* Choose"):
        import_weights.load_foreign(file18, "resnet34_cifar", 100)


def test_other_classes_are_named_in_a_file(tmp_path: Path, resnet18: nn.Module) -> None:
    state = resnet18.state_dict() | {"fc.weight": torch.randn(3, 512), "fc.bias": torch.zeros(3)}
    file = saved(tmp_path / "weights.safetensors", state)
    (tmp_path / "names.txt").write_text("Katze\r\nHund\n\nVögel\n", encoding="utf-8")
    names = ["--class-names", tmp_path / "names.txt"]
    assert exit_code(import_weights.main, file, "--model", "resnet18_cifar", "--to", tmp_path / "model", *names) == 0
    assert cifar100_tk.load(tmp_path / "model").class_names == ("Katze", "Hund", "Vögel")


@refusals(
    (["nothing.safetensors"], 3, "nothing.safetensors does not exist; give a .safetensors file"),
    (["."], 3, r". is not a file; give a .safetensors file"),
    (
        ["zip.pth"],
        3,
        "zip.pth is a pickle, which can run arbitrary code .* torch.load.FILE, weights_only=True.*save_file",
    ),
    (["old.bin"], 3, "old.bin is a pickle"),
    (["named.safetensors"], 3, "named.safetensors is a pickle"),
    (["short.safetensors"], 3, "short.safetensors is not a complete safetensors file"),
    (["huge.safetensors"], 3, "huge.safetensors has 3,000,000,000 bytes, more than any supported network"),
    (["FILE", "--model", "resnet18_imaginary"], 2, "resnet18_imaginary"),
    (["FILE", "--std", "0", "1", "1"], 2, "normalize.std"),
    (["FILE", "--class-names", "none.txt"], 2, "--class-names none.txt cannot be read as text"),
    (["FILE", "--class-names", "twice.txt"], 2, "twice.txt holds 3 names, 2 different; give each once"),
    (["FILE", "--to", "there"], 2, "--to there already exists; give a new folder"),
    (["FILE", "--to", "no/such/place"], 2, "the folder .*no/such does not exist; create it first"),
)
def test_what_cannot_be_imported_ends_with_a_sentence_and_its_code(
    refusal: Refusal, tmp_path: Path, file18: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({}, "zip.pth")
    Path("old.bin").write_bytes(pickle.dumps({"fc.bias": [0.0]}, protocol=4))
    Path("named.safetensors").write_bytes(pickle.dumps({"fc.bias": [0.0]}))
    Path("short.safetensors").write_bytes(file18.read_bytes()[:-5])
    with Path("huge.safetensors").open("wb") as huge:
        huge.truncate(3_000_000_000)
    Path("twice.txt").write_text("a\nb\na\n")
    Path("there").mkdir()
    usual = {"--to": "model", "--model": "resnet18_cifar"}
    others = [word for name, value in usual.items() if name not in refusal.arguments for word in (name, value)]
    before = sorted(tmp_path.iterdir())
    refusal.check(capsys, import_weights.main, *others, FILE=file18)
    assert sorted(tmp_path.iterdir()) == before
