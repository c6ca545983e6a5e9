"""A written model comes back bit-equal through us and through timm, and a folder that is not what it claims is refused."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import safetensors.torch
import timm
import torch

import cifar100_tk
from cifar100_tk.augment import Normalize, finish
from cifar100_tk.errors import DataError, HubError
from cifar100_tk.models import TimmModel
from cifar100_tk.models import folder as model_folder

NAMES = tuple(f"class {number}" for number in range(7))
NORMALIZE = Normalize(mean=(0.5, 0.4, 0.0), std=(0.25, 0.3, 1.0))
SMALL = TimmModel(name="resnet10_cifar_w16")


def trained(model: TimmModel = SMALL) -> torch.nn.Module:
    """A network whose running statistics are not the initial ones, in the layout that training uses."""
    torch.manual_seed(0)
    net = model.build(len(NAMES)).to(memory_format=torch.channels_last)
    with torch.no_grad():
        net(torch.randn(8, 3, 32, 32))
    return net.eval()


def write(folder: Path, net: torch.nn.Module | None = None) -> Path:
    model_folder.write(folder, net or trained(), NAMES, NORMALIZE, "# A card\n")
    return folder


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = model(torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(2)))
    return result


@pytest.mark.parametrize(
    "model",
    [
        SMALL,
        TimmModel(name="resnet10_cifar_w16", drop_path_rate=0.1, drop_rate=0.2),
        TimmModel(name="test_vit"),
        TimmModel(name="vit_tiny_patch16_224"),  # Built for 32x32, which its folder must remember.
    ],
    ids=str,
)
def test_a_written_model_comes_back_bit_equal(tmp_path: Path, model: TimmModel) -> None:
    net = trained(model)
    folder = write(tmp_path / "model", net)
    ours = cifar100_tk.load(folder).model
    timms = timm.create_model(f"local-dir:{folder}", pretrained=True)
    for again in (ours, timms):
        state = again.state_dict()
        assert state.keys() == net.state_dict().keys()
        assert all(torch.equal(state[name], tensor) for name, tensor in net.state_dict().items())
    assert not ours.training
    expected = logits(net.to(memory_format=torch.contiguous_format))
    assert torch.equal(logits(ours), expected) and torch.equal(logits(timms.eval()), expected)


def test_the_folder_holds_exactly_what_a_hub_repository_of_timm_holds(tmp_path: Path) -> None:
    folder = write(tmp_path / "model")
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    assert (folder / "README.md").read_text() == "# A card\n"
    config = json.loads((folder / "config.json").read_text())
    assert config["architecture"] == "resnet10_cifar_w16" and config["num_classes"] == 7
    assert config["label_names"] == list(NAMES)
    assert config["pretrained_cfg"]["mean"] == [0.5, 0.4, 0.0] and config["pretrained_cfg"]["input_size"] == [3, 32, 32]
    with safetensors.safe_open(folder / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}
        assert "conv1.weight" in file.keys() and "fc.bias" in file.keys()  # noqa: SIM118


def test_what_comes_back_knows_the_classes_and_how_to_look_at_an_image(tmp_path: Path) -> None:
    classifier = cifar100_tk.load(write(tmp_path / "model"))
    assert classifier.class_names == NAMES and classifier.normalize == NORMALIZE
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    images = torch.from_numpy(pixels.transpose(2, 0, 1).copy())[None]
    batched = finish(images, classifier.normalize, None, 0, 0, np.array([0]))
    torch.testing.assert_close(classifier.transform(PIL.Image.fromarray(pixels))[None], batched)
    by_hand = (pixels[3, 5] / 255 - np.array(NORMALIZE.mean)) / np.array(NORMALIZE.std)
    assert batched[0, :, 3, 5].tolist() == pytest.approx(by_hand.tolist(), abs=1e-6)


def test_an_image_of_another_size_is_made_to_fit(tmp_path: Path) -> None:
    classifier = cifar100_tk.load(write(tmp_path / "model"))
    assert classifier.transform(PIL.Image.new("RGB", (100, 60))).shape == (3, 32, 32)


def test_extreme_normalizations_that_a_recipe_may_have_come_back(tmp_path: Path) -> None:
    normalize = Normalize(mean=(0.0, 0.0, 1.0), std=(1.0, 1.0, 1.0))
    model_folder.write(tmp_path / "model", trained(), NAMES, normalize, "")
    assert cifar100_tk.load(tmp_path / "model").normalize == normalize


def test_a_run_folder_is_as_good_as_its_model_folder(tmp_path: Path) -> None:
    folder = write(tmp_path / "model")
    assert model_folder.find(tmp_path) == model_folder.find(str(folder)) == folder


def change(key: str, value: Any, part: str | None = None) -> Callable[[Path], object]:
    """Return what sets one value of config.json."""

    def damage(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (config if part is None else config[part])[key] = value
        (folder / "config.json").write_text(json.dumps(config))

    return damage


def reshape_head(folder: Path) -> None:
    state = safetensors.torch.load_file(folder / "model.safetensors")
    safetensors.torch.save_file(state | {"fc.bias": torch.zeros(8)}, folder / "model.safetensors")


def drop_counter(folder: Path) -> None:
    state = safetensors.torch.load_file(folder / "model.safetensors")
    del state["bn1.num_batches_tracked"]
    safetensors.torch.save_file(state, folder / "model.safetensors")


def add_tensor(folder: Path) -> None:
    state = safetensors.torch.load_file(folder / "model.safetensors")
    safetensors.torch.save_file(state | {"module.extra": torch.zeros(1)}, folder / "model.safetensors")


def truncate(folder: Path) -> None:
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])


def pickle_weights(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(pickle.dumps({"fc.bias": [0.0] * 7}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (change("num_classes", 2_000_000), "num_classes is 2000000; expected an integer from 1 to 100000"),
        (change("num_classes", "7"), "num_classes is '7'; expected an integer"),
        (change("num_classes", 8), "label_names is not a list of 8 names"),
        (change("num_classes", 8, "model_args"), "num_classes is 7, but its model_args say 8"),
        (change("label_names", ["cat"]), "label_names is not a list of 7 names"),
        (change("label_names", list(range(7))), "label_names is not a list of 7 names"),
        (change("architecture", "resnet50_imaginary"), "has no architecture 'resnet50_imaginary'"),
        (change("architecture", "hf-hub:someone/net"), "has no architecture 'hf-hub:someone/net'"),
        (change("architecture", None), "does not name an architecture; expected a config.json as timm writes it"),
        (change("checkpoint_path", "/etc/evil.bin", "model_args"), "model_args sets checkpoint_path, which is not a"),
        (change("pretrained", True, "model_args"), "model_args sets pretrained, which is not allowed there"),
        (change("pretrained_cfg", {"file": "x.pth"}, "model_args"), "model_args sets pretrained_cfg"),
        (change("model_args", [1]), "model_args and pretrained_cfg must be objects"),
        (change("colour", "red", "model_args"), "resnet10_cifar_w16 cannot be built with its model_args .*colour"),
        (
            change("act_layer", "nosuch", "model_args"),
            "resnet10_cifar_w16 cannot be built with its model_args .*nosuch",
        ),
        (
            change("in_chans", 1, "model_args"),
            r"conv1.weight has shape \(16, 3, 3, 3\); the network expects \(16, 1, 3",
        ),
        (change("std", [0.0, 1, 1], "pretrained_cfg"), r"std is \[0.0, 1, 1\]; expected three numbers above 0"),
        (change("mean", [0.1, 0.2], "pretrained_cfg"), r"mean is \[0.1, 0.2\]; expected three numbers from 0 to 1"),
        (
            change("input_size", [3, 10**6, 10**6], "pretrained_cfg"),
            r"input_size is .*; expected \[3, S, S\] with S from 1 to 512",
        ),
        (change("crop_pct", 1e-9, "pretrained_cfg"), "crop_pct is 1e-09; expected 1.0"),
        (change("interpolation", "nosuch", "pretrained_cfg"), "interpolation is 'nosuch'; expected one of nearest"),
        (
            lambda folder: (folder / "config.json").write_text("{}".rjust(1_000_001)),
            "config.json has 1,000,001 bytes; a config.json may have at most 1,000,000",
        ),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json cannot be read as JSON"),
        (lambda folder: (folder / "config.json").write_text("[" * 100_000), "config.json cannot be read as JSON"),
        (lambda folder: (folder / "config.json").write_bytes(b"\xff\xfe\x00"), "config.json cannot be read as JSON"),
        (reshape_head, r"model.safetensors: fc.bias has shape \(8,\); the network expects \(7,\)"),
        (drop_counter, "lacks 1 of 74 tensors, such as bn1.num_batches_tracked; it belongs to another network"),
        (add_tensor, "has 1 tensors that the network does not have, such as module.extra"),
        (truncate, "model.safetensors is not a valid safetensors file"),
        (pickle_weights, "model.safetensors is not a valid safetensors file"),
    ],
)
def test_a_folder_that_is_not_what_it_claims_is_refused(
    tmp_path: Path, damage: Callable[[Path], object], message: str
) -> None:
    folder = write(tmp_path / "model")
    damage(folder)
    with pytest.raises(DataError, match=message):
        cifar100_tk.load(folder)


def test_absurd_widths_are_refused_without_being_allocated(tmp_path: Path) -> None:
    folder = write(tmp_path / "model", trained(TimmModel(name="test_vit")))
    change("embed_dim", 8192, "model_args")(folder)  # Gigabytes of weights.
    with pytest.raises(DataError, match=r"has shape \(.*64.*\); the network expects \(.*8192.*\)"):
        cifar100_tk.load(folder)


@pytest.mark.parametrize(("key", "value"), [("depth", 600), ("depths", [200, 200, 200]), ("embed_dim", 10**6)])
def test_numbers_that_no_network_of_this_size_has_are_refused(tmp_path: Path, key: str, value: object) -> None:
    folder = write(tmp_path / "model", trained(TimmModel(name="test_vit")))
    change(key, value, "model_args")(folder)
    with pytest.raises(DataError, match=f"model_args sets {key} to .*, which is far larger than 32x32 images need"):
        cifar100_tk.load(folder)


def test_endless_depths_are_refused_without_being_built(tmp_path: Path) -> None:
    folder = write(tmp_path / "model", trained(TimmModel(name="test_vit")))
    change("depth", 10**9, "model_args")(folder)
    with pytest.raises(
        DataError, match="model_args sets depth to 1000000000, which is far larger than 32x32 images need"
    ):
        cifar100_tk.load(folder)


@pytest.mark.parametrize("mode", ["RGB", "L", "LA", "P", "1", "RGBA", "CMYK", "I;16"])
def test_any_pillow_image_becomes_an_image(tmp_path: Path, mode: str) -> None:
    classifier = cifar100_tk.load(write(tmp_path / "model"))
    raw_image = PIL.Image.new("L", (40, 48), 200).convert("I" if mode == "I;16" else mode)
    image = classifier.transform(raw_image if mode != "I;16" else PIL.Image.new("I;16", (40, 48), 200))
    assert image.shape == (3, 32, 32) and image.dtype == torch.float32
    assert classifier.model(image[None]).shape == (1, len(classifier.class_names))


@pytest.mark.parametrize("name", ["../nothere", "x/..", "./a"])
def test_a_mistyped_path_is_not_taken_for_a_hub_id(name: str) -> None:
    with pytest.raises(DataError, match="does not exist; give a run folder, a model folder or a Hub id"):
        cifar100_tk.load(name)


@pytest.mark.parametrize("name", ["a--b/c", "foo/bar.git"])
def test_an_impossible_hub_id_is_refused_with_the_hubs_reason(name: str) -> None:
    with pytest.raises(HubError, match=f"there is no folder {name}, and it could not be fetched from the Hub"):
        cifar100_tk.load(name)


@pytest.mark.parametrize("name", ["model.pt", "model.pth", "pytorch_model.bin", "model.pkl"])
def test_a_pickle_is_refused_by_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match=f"{name} is a pickle, and loading a pickle runs any code in it; give a folder"):
        cifar100_tk.load(tmp_path / name)


def test_a_folder_of_pickled_weights_is_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "model")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(
        DataError, match=r"is not a model: its pytorch_model.bin is a pickle, and pickles are never loaded"
    ):
        cifar100_tk.load(folder)


def test_places_without_a_model_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"is not a model: it does not contain model.safetensors and config.json\."):
        cifar100_tk.load(tmp_path)
    (tmp_path / "recipe.json").write_text("{}")
    with pytest.raises(DataError, match="its training has not finished, so run the same command again"):
        cifar100_tk.load(tmp_path)
    for seed in (1, 0):
        (tmp_path / "seeds" / f"seed-{seed}").mkdir(parents=True)
        (tmp_path / "seeds" / f"seed-{seed}" / "recipe.json").write_text("{}")
    with pytest.raises(DataError, match=f"config.json; give a run inside it, such as {tmp_path}/seeds/seed-0\\."):
        cifar100_tk.load(tmp_path / "seeds")
    with pytest.raises(DataError, match="no/such/folder does not exist; give a run folder, a model folder or a Hub id"):
        cifar100_tk.load("no/such/folder")


def test_a_hub_id_without_a_network_is_told_with_its_reason() -> None:
    with pytest.raises(
        HubError, match=r"there is no folder someone/net, and it could not be fetched from the Hub .*the network"
    ):
        cifar100_tk.load("someone/net")
