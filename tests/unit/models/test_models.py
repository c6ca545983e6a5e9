"""The networks are the ones they claim to be, do what timm's own do, and refuse what does not fit."""

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch
import torchvision
from timm.models import register_model
from timm.models.resnet import BasicBlock, Bottleneck
from torch import Tensor, nn

from cifar100_tk.errors import ConfigError
from cifar100_tk.models import MAX_CLASSES, ResNetCifar, TimmModel

SMALL = "resnet10_cifar_w16"
OURS = [SMALL, "resnet18_cifar", "resnet34_cifar", "resnet50_cifar", "resnet101_cifar"]


def build(name: str = SMALL, seed: int = 0, **kwargs: Any) -> Any:
    torch.manual_seed(seed)
    return timm.create_model(name, **kwargs)


def images(count: int = 4) -> Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def torchvision_twin(name: str) -> nn.Module:
    """Build the same network from torchvision's parts, whose parameters bear the same names."""
    twin: nn.Module = getattr(torchvision.models, name)(weights=None, num_classes=100)
    twin.conv1, twin.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    return twin


def test_timm_lists_all_of_ours_and_no_others() -> None:
    assert sorted(timm.list_models(module="resnet_cifar")) == sorted(OURS)


@pytest.mark.parametrize(
    ("name", "count"),
    [
        # Published ImageNet counts, minus 900 classes (2049 or 513 each), minus the 7x7 stem's 9,408, plus 1,728.
        ("resnet18_cifar", 11_689_512 - 900 * 513 - 9_408 + 1_728),
        ("resnet34_cifar", 21_797_672 - 900 * 513 - 9_408 + 1_728),
        ("resnet50_cifar", 23_705_252),
        ("resnet101_cifar", 44_549_160 - 900 * 2_049 - 9_408 + 1_728),
        # Stem 3*16*9 + 32; stages of two 3x3 convolutions and a 1x1 shortcut, each with a norm; head 129 * 100.
        (SMALL, 464 + 4_672 + 14_528 + 57_728 + 230_144 + 12_900),
    ],
)
def test_parameter_count(name: str, count: int) -> None:
    with torch.device("meta"):
        assert sum(parameter.numel() for parameter in timm.create_model(name).parameters()) == count


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_computes_what_torchvisions_network_with_the_same_stem_computes(name: str) -> None:
    ours, twin = build(f"{name}_cifar").eval(), torchvision_twin(name).eval()
    with torch.no_grad():
        for parameter in ours.parameters():  # Zero-initialised norms would hide the residual branches.
            parameter.copy_(torch.randn_like(parameter) * 0.05)
        twin.load_state_dict(ours.state_dict())
        torch.testing.assert_close(ours(images(2)), twin(images(2)))


def test_stem_keeps_the_size_and_the_last_map_is_4x4() -> None:
    model = build("resnet50_cifar")
    assert (model.conv1.kernel_size, model.conv1.stride, model.conv1.out_channels) == ((3, 3), (1, 1), 64)
    assert isinstance(model.maxpool, nn.Identity)
    with torch.no_grad():
        assert model.forward_features(images(1)).shape == (1, 2048, 4, 4)


def test_stem_starts_as_every_other_convolution_does() -> None:
    # Kaiming, fan-out: the standard deviation is sqrt(2 / (9 * filters)). 1,728 numbers estimate it to within 2 %.
    conv1 = build("resnet18_cifar").conv1
    assert conv1.weight.std().item() == pytest.approx((2 / (9 * 64)) ** 0.5, rel=0.06)


@pytest.mark.parametrize("name", [SMALL, "resnet50_cifar"])
def test_every_residual_branch_starts_at_zero(name: str) -> None:
    blocks = [module for module in build(name).modules() if isinstance(module, BasicBlock | Bottleneck)]
    assert len(blocks) == (4 if name == SMALL else 16)
    for block in blocks:
        last = block.bn2 if isinstance(block, BasicBlock) else block.bn3
        assert not last.get_parameter("weight").any()


def test_default_configuration_is_cifar100s() -> None:
    config = timm.data.resolve_data_config(model=build())
    assert config["input_size"] == (3, 32, 32) and config["crop_pct"] == 1.0
    assert config["mean"] == (0.5071, 0.4867, 0.4408) and config["std"] == (0.2675, 0.2565, 0.2761)


@pytest.mark.parametrize(
    ("name", "channels"), [(SMALL, [16, 16, 32, 64, 128]), ("resnet50_cifar", [64, 256, 512, 1024, 2048])]
)
def test_features_only_reports_what_it_returns(name: str, channels: list[int]) -> None:
    model = build(name, features_only=True)
    assert model.feature_info.channels() == channels
    assert model.feature_info.reduction() == [1, 1, 2, 4, 8]
    with torch.no_grad():
        shapes = [tuple(feature.shape) for feature in model(images(1))]
    assert shapes == [(1, c, 32 // r, 32 // r) for c, r in zip(channels, [1, 1, 2, 4, 8], strict=True)]


def test_output_stride_counts_from_the_image() -> None:
    dilated = build(output_stride=4)
    with torch.no_grad():
        assert dilated.forward_features(images(1)).shape == (1, 128, 8, 8)
    assert [stage["reduction"] for stage in dilated.feature_info] == [1, 1, 2, 4, 4]


def test_forward_intermediates_ends_with_the_features() -> None:
    model = build().eval()
    with torch.no_grad():
        last, between = model.forward_intermediates(images())
        assert [feature.shape[-1] for feature in between] == [32, 32, 16, 8, 4]
        assert torch.equal(last, model.forward_features(images()))


def test_reset_classifier_changes_the_number_of_logits_only() -> None:
    model = build()
    body = model.layer4[0].conv1.weight
    model.reset_classifier(10)
    assert model(images()).shape == (4, 10)
    assert model.layer4[0].conv1.weight is body


def test_drop_path_rises_linearly_to_its_rate_and_is_off_in_evaluation() -> None:
    model = build(drop_path_rate=0.3)
    rates = [
        block.drop_path.drop_prob if block.drop_path else 0
        for stage in range(1, 5)
        for block in model.get_submodule(f"layer{stage}")
    ]
    assert rates == pytest.approx([0, 0.1, 0.2, 0.3])
    with torch.no_grad():
        assert torch.equal(model.eval()(images()), build().eval()(images()))


def test_checkpointed_gradients_are_the_plain_ones() -> None:
    models: list[Any] = []
    for grad_checkpointing in (False, True):
        torch.manual_seed(0)
        models.append(TimmModel(name=SMALL, grad_checkpointing=grad_checkpointing).build(100))
        models[-1](images()).square().sum().backward()
    assert [model.grad_checkpointing for model in models] == [False, True]
    torch.testing.assert_close(*([parameter.grad for parameter in model.parameters()] for model in models))


def test_reloads_through_timm_bit_for_bit(tmp_path: Path) -> None:
    model = build(num_classes=7).eval()
    with torch.no_grad():
        for buffer in model.buffers():  # Running statistics are part of what must come back.
            buffer.add_(torch.ones_like(buffer))
    config = {"architecture": SMALL, "num_classes": 7, "pretrained_cfg": {"input_size": [3, 32, 32]}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    safetensors.torch.save_file(model.state_dict(), tmp_path / "model.safetensors")
    again = build(f"local-dir:{tmp_path}", seed=1, pretrained=True).eval()
    with torch.no_grad():
        assert torch.equal(again(images()), model(images()))


def test_build_gives_the_default_network_in_training_mode() -> None:
    model = TimmModel().build(100)
    assert isinstance(model, ResNetCifar) and model.training
    assert sum(parameter.numel() for parameter in model.parameters()) == 23_705_252


def test_weights_depend_on_the_seed_alone_and_the_trial_draws_nothing() -> None:
    plain = build(num_classes=5, drop_rate=0.5)
    after_plain = torch.rand(1)
    torch.manual_seed(0)
    built = TimmModel(name=SMALL, drop_rate=0.5).build(5)
    assert torch.equal(torch.rand(1), after_plain)
    assert all(map(torch.equal, built.state_dict().values(), plain.state_dict().values()))


def test_model_made_for_another_size_is_built_for_32x32_from_the_same_seed() -> None:
    torch.manual_seed(0)
    built = TimmModel(name="vit_tiny_patch16_224").build(100)
    assert built(images(2)).shape == (2, 100)
    plain = build("vit_tiny_patch16_224", num_classes=100, img_size=32)
    assert all(map(torch.equal, built.state_dict().values(), plain.state_dict().values()))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (TimmModel(name="resnet5_cifar"), "'resnet5_cifar' is not a timm model; did you mean resnet50_cifar or"),
        (TimmModel(name="qqqqqqqqqqqq"), "'qqqqqqqqqqqq' is not a timm model; timm.list_models"),
        (
            TimmModel(name="resnet50.a1_in1k"),
            "'resnet50.a1_in1k' names pretrained weights; use 'resnet50', and model.pretrained",
        ),
        (TimmModel(name="hf-hub:someone/net"), "'hf-hub:someone/net' is a file or a repository; use a name"),
        (
            TimmModel(name="inception_v3"),
            "'inception_v3' does not work on 32x32 images .*Kernel size.*; choose another",
        ),
        (TimmModel(drop_rate=1.0), "model.drop_rate=1.0 is not a probability below 1; use 0"),
        (TimmModel(drop_path_rate=-0.1), "model.drop_path_rate=-0.1 is not a probability below 1; use 0"),
        (
            TimmModel(name="vgg11", drop_path_rate=0.1),
            "model.drop_path_rate=0.1 is not supported by vgg11",
        ),
        (TimmModel(name="darknet53", grad_checkpointing=True), "grad_checkpointing=True is not supported by darknet53"),
    ],
    ids=lambda value: value.name if isinstance(value, TimmModel) else "",
)
def test_what_cannot_be_built_is_refused_with_a_remedy(model: TimmModel, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        model.build(100)


@pytest.mark.parametrize("num_classes", [0, -1, MAX_CLASSES + 1])
def test_absurd_numbers_of_classes_are_refused(num_classes: int) -> None:
    with pytest.raises(ConfigError, match=f"num_classes={num_classes} is out of range; use 1 to 100000"):
        TimmModel(name=SMALL).build(num_classes)


class Bare(nn.Module):
    """A network of one's own."""

    def __init__(self, num_logits: int) -> None:
        super().__init__()
        self.num_logits = num_logits

    def forward(self, images: Tensor) -> Tensor:
        return images.mean((2, 3)).repeat(1, 34)[:, : self.num_logits]


@register_model
def bare_without_config(pretrained: bool = False, **_: Any) -> Bare:
    return Bare(100)


@register_model
def bare_with_99_logits(pretrained: bool = False, **_: Any) -> Bare:
    return Bare(99)


@register_model
def bare_without_classifier(
    pretrained: bool, pretrained_cfg: Any, pretrained_cfg_overlay: Any, cache_dir: Any, drop_rate: float = 0.0
) -> Bare:
    return Bare(100)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("bare_without_config", "lacks pretrained_cfg and num_classes and num_features, .*config.json"),
        ("bare_with_99_logits", r"\(it does not return 100 logits per image\); choose another"),
        ("bare_without_classifier", "has no classifier; choose a model with a classifier"),
    ],
)
def test_a_network_of_ones_own_that_does_not_fit_is_refused_before_it_is_trained(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TimmModel(name=name).build(100)
