"""A map says of each place what it adds to a logit, and its places add up."""

from typing import Any

import timm
import torch
from torch import Tensor, nn

import cifar100_tk  # noqa: F401  # Registers our networks with timm.
from cifar100_tk.models.cam import activation_map


class Pooled(nn.Module):
    """Two features of 1x4 places, averaged, then one linear layer of three classes: small enough to work out by hand."""

    num_features = 2

    def __init__(self, channels_last: bool = False) -> None:
        super().__init__()
        self.channels_last = channels_last
        self.fc = nn.Linear(2, 3)
        with torch.no_grad():
            self.fc.weight.copy_(torch.tensor([[1.0, -2.0], [0.5, 4.0], [0.0, 0.0]]))
            self.fc.bias.copy_(torch.tensor([0.25, -1.0, 7.0]))

    def forward_features(self, images: Tensor) -> Tensor:
        """The first four pixels of two channels, whatever the rest."""
        corner = images[:, :2, :1, :4]
        return corner.permute(0, 2, 3, 1) if self.channels_last else corner

    def forward_head(self, features: Tensor) -> Tensor:
        logits: Tensor = self.fc(features.mean((1, 2) if self.channels_last else (2, 3)))
        return logits


FEATURES = torch.tensor([[[1.0, 2.0, 3.0, 4.0]], [[0.0, 1.0, -1.0, 8.0]]])


def images() -> Tensor:
    filled = torch.full((2, 3, 32, 32), 9.0)
    filled[0, :2, :1, :4] = FEATURES
    filled[1, :2, :1, :4] = -FEATURES
    return filled


def test_a_map_worked_out_by_hand() -> None:
    for model in (Pooled(), Pooled(channels_last=True)):
        found = activation_map(model.eval(), images(), torch.tensor([0, 1]))
        assert found is not None
        maps, logits = found
        # Each of 4 places: (w1 f1 + w2 f2) / 4, with w = (1, -2) for the first image and (0.5, 4) for the second.
        assert maps[0].tolist() == [[0.25, 0.0, 1.25, -3.0]]
        assert maps[1].tolist() == [[-0.125, -1.25, 0.625, -8.5]]
        # 2.5 - 2 * 2 + 0.25 for class 0 of the first image; -(0.5 * 2.5 + 4 * 2) - 1 for class 1 of the second.
        assert logits[0, 0] == -1.25 and logits[1, 1] == -10.25


def test_the_places_of_a_pooled_network_add_up_to_the_logit_less_the_bias() -> None:
    torch.manual_seed(0)
    model: Any = timm.create_model("resnet10_cifar_w16", num_classes=100).eval()
    images, classes = torch.randn(3, 3, 32, 32), torch.tensor([0, 42, 99])
    found = activation_map(model, images, classes)
    assert found is not None
    maps, logits = found
    assert maps.shape == (3, 4, 4) and not maps.requires_grad
    with torch.no_grad():
        torch.testing.assert_close(logits, model(images))
    bias = model.get_classifier().bias.detach()[classes]
    torch.testing.assert_close(maps.sum((1, 2)), logits.gather(1, classes[:, None])[:, 0] - bias)


def test_the_map_is_the_weighted_sum_of_feature_maps_of_the_original_paper() -> None:
    torch.manual_seed(1)
    model: Any = timm.create_model("resnet10_cifar_w16", num_classes=10).eval()
    image = torch.randn(1, 3, 32, 32)
    found = activation_map(model, image, torch.tensor([3]))
    with torch.no_grad():
        features = model.forward_features(image)[0]
    weighted = torch.einsum("k,khw->hw", model.get_classifier().weight.detach()[3], features)
    assert found is not None
    torch.testing.assert_close(found[0][0], weighted / 16)


def test_it_works_where_nothing_may_be_differentiated_and_leaves_no_gradients() -> None:
    model = Pooled().eval()
    with torch.no_grad():
        found = activation_map(model, images(), torch.tensor([0, 1]))
    assert found is not None and found[0][0].tolist() == [[0.25, 0.0, 1.25, -3.0]]
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_transformer_with_a_class_token_keeps_no_map() -> None:
    model: Any = timm.create_model("test_vit", img_size=32, num_classes=5).eval()
    assert activation_map(model, torch.zeros(1, 3, 32, 32), torch.tensor([0])) is None
