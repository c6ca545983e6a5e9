"""Pretrained weights: what fits is taken, what does not is new or refused with a sentence, and no pickle is read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch
from huggingface_hub import constants
from torch import Tensor, nn

import cifar100_tk
from cifar100_tk.augment import Normalize
from cifar100_tk.errors import ConfigError, DataError, HubError
from cifar100_tk.models import TimmModel
from cifar100_tk.models import folder as model_folder
from cifar100_tk.models.pretrained import load_pretrained, locate
from cifar100_tk.storage import atomic

State = dict[str, Tensor]


def saved(path: Path, state: State) -> Path:
    safetensors.torch.save_file({name: tensor.clone().contiguous() for name, tensor in state.items()}, path)
    return path


@pytest.fixture(scope="module")
def donor() -> nn.Module:
    """An ImageNet-like network: a 7x7 stem and ten classes."""
    torch.manual_seed(5)
    return timm.create_model("test_resnet", num_classes=10)


@pytest.fixture(scope="module")
def file(donor: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("weights") / "weights.safetensors", donor.state_dict())


def built(name: str = "test_resnet", num_classes: int = 100) -> nn.Module:
    torch.manual_seed(0)
    return TimmModel(name=name).build(num_classes)


def test_a_head_of_other_classes_is_new_and_all_else_is_taken(file: Path, donor: nn.Module) -> None:
    net, untouched = built(), built()
    loaded = load_pretrained(net, str(file), "test_resnet")
    assert loaded.new == ("fc.weight", "fc.bias") and loaded.sha256 == atomic.sha256(file)
    ours, theirs, random = (one.state_dict() for one in (net, donor, untouched))
    assert len(loaded.taken) > 20 and {"conv1.0.weight", "layer1.0.bn1.running_mean"} <= set(loaded.taken)
    assert all(torch.equal(ours[name], theirs[name]) for name in loaded.taken)
    assert all(torch.equal(ours[name], random[name]) for name in loaded.new)
    assert f"{len(loaded.taken)} of {len(loaded.taken) + 2} tensors taken; new: fc" in loaded.describe()


def test_a_fitting_head_is_taken_too(file: Path) -> None:
    loaded = load_pretrained(built(num_classes=10), str(file), "test_resnet")
    assert loaded.new == () and f"all {len(loaded.taken)} tensors taken" in loaded.describe()


def test_a_stem_for_large_images_is_replaced_with_the_normalization_behind_it(tmp_path: Path) -> None:
    torch.manual_seed(5)
    theirs = timm.create_model("resnet18", num_classes=100).state_dict()
    net = built("resnet18_cifar")
    loaded = load_pretrained(net, str(saved(tmp_path / "weights.safetensors", theirs)), "resnet18_cifar")
    assert loaded.new == ("conv1.weight", *(f"bn1.{key}" for key in ("weight", "bias", "running_mean", "running_var")))
    assert torch.equal(net.state_dict()["layer1.0.conv1.weight"], theirs["layer1.0.conv1.weight"])
    assert torch.equal(net.state_dict()["fc.weight"], theirs["fc.weight"])


def test_a_transformer_is_adapted_to_another_image_size_as_timm_adapts_it(tmp_path: Path) -> None:
    torch.manual_seed(5)
    large = timm.create_model("test_vit", num_classes=7, img_size=64)
    file = saved(tmp_path / "weights.safetensors", large.state_dict())
    net = built("test_vit")
    loaded = load_pretrained(net, str(file), "test_vit")
    adapted = {"file": str(file), "num_classes": 7}
    theirs = timm.create_model("test_vit", pretrained=True, num_classes=100, pretrained_cfg_overlay=adapted)
    assert loaded.new == ("head.weight", "head.bias") and "pos_embed" in loaded.taken
    ours = net.state_dict()["pos_embed"]
    assert torch.equal(ours, theirs.state_dict()["pos_embed"]) and ours.shape != large.state_dict()["pos_embed"].shape


@pytest.mark.parametrize("prefix", ["module.", "module._orig_mod."])
def test_names_with_wrappers_are_recognized(tmp_path: Path, donor: nn.Module, prefix: str) -> None:
    named = {prefix + name: tensor for name, tensor in donor.state_dict().items()}
    assert load_pretrained(built(), str(saved(tmp_path / "w.safetensors", named)), "test_resnet").new[0] == "fc.weight"


def test_model_and_run_folders_give_their_weights_and_license(tmp_path: Path, donor: nn.Module) -> None:
    names = tuple("abcdefghij")
    card = "---\nlicense: cc-by-nc-4.0\n---\n# A model\n"
    model_folder.write(tmp_path / "run" / "model", TimmModel(name="test_resnet").build(10), names, Normalize(), card)
    for folder in (tmp_path / "run", tmp_path / "run" / "model"):
        loaded = load_pretrained(built(), str(folder), "test_resnet")
        assert loaded.license == "cc-by-nc-4.0" and loaded.base_model is None and loaded.new == ("fc.weight", "fc.bias")
        assert loaded.sha256 == atomic.sha256(tmp_path / "run" / "model" / "model.safetensors")


def cached(cache: Path, repo_id: str, files: dict[str, bytes]) -> None:
    """Lay files into a Hub cache as a download does."""
    folder, commit = cache / f"models--{repo_id.replace('/', '--')}", "1" * 40
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(commit)
    for name, content in files.items():
        (folder / "snapshots" / commit / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "snapshots" / commit / name).write_bytes(content)


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Hub cache of our own, and no network."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "cache"


def test_a_timm_tag_comes_from_the_cache_that_timm_fills(offline: Path, file: Path, donor: nn.Module) -> None:
    cached(offline, "timm/test_resnet.r160_in1k", {"model.safetensors": file.read_bytes()})
    # Both read the same cache without a network.
    theirs = timm.create_model("test_resnet.r160_in1k", pretrained=True, num_classes=7, cache_dir=offline)
    net = built()
    loaded = load_pretrained(net, "test_resnet.r160_in1k", "test_resnet")
    assert loaded.base_model == "timm/test_resnet.r160_in1k" and loaded.license == "apache-2.0"
    assert torch.equal(net.state_dict()["layer1.0.conv1.weight"], theirs.state_dict()["layer1.0.conv1.weight"])
    assert loaded.record["new"] == ["fc.weight", "fc.bias"] and loaded.record["sha256"] == atomic.sha256(file)


def test_a_hub_id_states_the_license_of_its_card(offline: Path, file: Path) -> None:
    card = b"---\nlicense: mit\n---\n"
    cached(offline, "user/model", {"model.safetensors": file.read_bytes(), "README.md": card})
    found = locate("hf-hub:user/model")
    assert (found.base_model, found.license) == ("user/model", "mit")


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        (
            "test_resnet.r160_in1k",
            HubError,
            "not in the local cache, and the Hub cannot be reached; fetch them once .*hf download",
        ),
        ("user/model", HubError, "the weights of user/model are not in the local cache"),
        ("resnet18.imaginary", ConfigError, "'resnet18.imaginary' is not a tag .*; use one of resnet18.a1_in1k, "),
        ("resnet18", ConfigError, "'resnet18' is not a tag of timm's pretrained weights; use one of resnet18.a1_in1k"),
        ("resnet18_cifar", ConfigError, "timm has no weights for resnet18_cifar"),
        (
            "gcvit_tiny.in1k",
            DataError,
            "publishes the weights of gcvit_tiny.in1k as a pickle only, and pickles are never loaded",
        ),
        ("https://somewhere/w.safetensors", ConfigError, "is a URL; give a timm tag, a Hub id"),
        ("nothing", ConfigError, "'nothing' is neither a file nor a folder, nor a timm tag"),
        ("none.safetensors", DataError, "none.safetensors does not exist; give a .safetensors file"),
        ("zip.pth", DataError, "zip.pth is a pickle, which can run arbitrary code .*save_file"),
        ("named.safetensors", DataError, "named.safetensors is a pickle"),
        ("short.safetensors", DataError, "short.safetensors is not a complete safetensors file"),
        ("empty", DataError, "empty is not a model: it does not contain model.safetensors"),
    ],
)
def test_what_is_not_there_or_not_safe_is_refused(
    offline: Path, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, error: type, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({}, "zip.pth")
    torch.save({}, "named.safetensors")
    Path("short.safetensors").write_bytes(file.read_bytes()[:-5])
    Path("empty").mkdir()
    with pytest.raises(error, match=message):
        load_pretrained(built(), source, "test_resnet")


def without(name: str) -> Callable[[State], State]:
    return lambda state: {key: tensor for key, tensor in state.items() if key != name}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            without("layer1.0.conv1.weight"),
            "lacks 1 of the .* tensors of test_resnet, the first is layer1.0.conv1.weight",
        ),
        (
            lambda state: state | {"layer9.weight": torch.ones(1)},
            "holds 1 tensors that test_resnet does not have.*layer9.weight",
        ),
        (
            lambda state: state | {"layer1.0.bn1.bias": torch.ones(3)},
            "layer1.0.bn1.bias is 3, but that of test_resnet is",
        ),
        (
            lambda state: state | {"layer1.0.bn1.bias": torch.full_like(state["layer1.0.bn1.bias"], torch.inf)},
            "layer1.0.bn1.bias does not contain finite floating-point numbers",
        ),
        (
            lambda state: timm.create_model("test_vit").state_dict(),
            "lacks .* Choose the network that the weights belong to",
        ),
    ],
)
def test_weights_of_another_network_are_refused_and_change_nothing(
    tmp_path: Path, donor: nn.Module, change: Callable[[State], State], message: str
) -> None:
    net = built()
    with pytest.raises(DataError, match=message):
        load_pretrained(net, str(saved(tmp_path / "w.safetensors", change(donor.state_dict()))), "test_resnet")
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), built().state_dict().values(), strict=True))


def test_another_image_size_is_in_the_folder_as_timm_reads_it(tmp_path: Path) -> None:
    net = TimmModel(name="test_resnet").build(3, 96)
    model_folder.write(tmp_path / "model", net, ("a", "b", "c"), Normalize(), "", image_size=96)
    classifier = cifar100_tk.load(tmp_path / "model")
    theirs = timm.create_model(f"local-dir:{tmp_path / 'model'}", pretrained=True)
    data = timm.data.resolve_data_config(model=theirs)
    assert classifier.image_size == 96 and (data["input_size"], data["interpolation"]) == ((3, 96, 96), "bilinear")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    config["pretrained_cfg"]["input_size"] = [3, 96, 100]
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    with pytest.raises(DataError, match=r"input_size is \[3, 96, 100\]; expected \[3, S, S\] with S from 1 to 512"):
        cifar100_tk.load(tmp_path / "model")
