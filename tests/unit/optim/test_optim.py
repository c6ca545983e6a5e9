"""Schedules as tables, groups, updates and averages worked out by hand, and optimizers that go on as if never stopped."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor, nn

from cifar100_tk.errors import ConfigError
from cifar100_tk.optim import (
    SGD,
    AdamW,
    Ema,
    Muon,
    OneCycle,
    Optimizer,
    Schedule,
    WarmupCosine,
    WarmupLinear,
    load_named_state,
)
from cifar100_tk.optim import named_state as named

OPTIMIZERS: list[Optimizer] = [
    SGD(lr=0.01, weight_decay=0.01),
    SGD(lr=0.01, momentum=0.0, nesterov=False),
    AdamW(lr=0.01, weight_decay=0.1),
    AdamW(lr=0.01, weight_decay=0.1, decay_norm_and_bias=False),
    Muon(lr=0.01, weight_decay=0.1, fallback_weight_decay=0.1),
]


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 30 * 30, 2)).to(
        memory_format=torch.channels_last
    )


def weight(value: float) -> nn.Module:
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, value)
    return model


def table(schedule: Schedule, num_steps: int) -> list[float]:
    return [schedule.lr(step, peak_lr=0.8, steps_per_epoch=2, num_steps=num_steps) for step in range(num_steps)]


@pytest.mark.parametrize(
    ("schedule", "rates"),
    [
        # After the peak (1 + cos(pi * k / 4)) / 2 = 0.853553, 0.5, 0.146447, 0 of it.
        (WarmupCosine(warmup_epochs=2, final_lr=0.0), [0.2, 0.4, 0.6, 0.8, 0.682843, 0.4, 0.117157, 0.0]),
        (WarmupLinear(warmup_epochs=2, final_lr=0.0), [0.2, 0.4, 0.6, 0.8, 0.6, 0.4, 0.2, 0.0]),
        (WarmupLinear(warmup_epochs=0, final_lr=0.4), [0.75, 0.7, 0.65, 0.6, 0.55, 0.5, 0.45, 0.4]),
        # A part of an epoch: 1.5 epochs are 3 steps. After them cos(pi * k / 5).
        (
            WarmupCosine(warmup_epochs=1.5, final_lr=0.1),
            [0.266667, 0.533333, 0.8, 0.733156, 0.558156, 0.341844, 0.166844, 0.1],
        ),
        # 2.3 * 2 is 4.6, which is about five steps.
        (WarmupLinear(warmup_epochs=2.3, final_lr=0.2), [0.16, 0.32, 0.48, 0.64, 0.8, 0.6, 0.4, 0.2]),
        # Longer than the run: it never gets to the peak.
        (WarmupCosine(warmup_epochs=5), [0.08, 0.16, 0.24, 0.32, 0.4, 0.48, 0.56, 0.64]),
        # Shares of the run: a quarter of 8 steps up, 6 down, whatever the epoch is.
        (OneCycle(pct_start=0.25, final_lr=0.2), [0.4, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2]),
        (
            OneCycle(pct_start=0.5, anneal="cosine", final_lr=0.0),
            [0.2, 0.4, 0.6, 0.8, 0.682843, 0.4, 0.117157, 0.0],
        ),
        (OneCycle(pct_start=0.0, final_lr=0.4), [0.75, 0.7, 0.65, 0.6, 0.55, 0.5, 0.45, 0.4]),
    ],
    ids=[
        *("cosine", "linear", "no warm-up", "part of an epoch", "about five steps", "all warm-up"),
        *("one cycle", "one cycle, cosine", "one cycle, no warm-up"),
    ],
)
def test_learning_rate_table(schedule: Schedule, rates: list[float]) -> None:
    assert table(schedule, 8) == pytest.approx(rates, abs=1e-6)


def test_reference_learning_rate_rises_over_240_steps_to_its_peak_and_falls_to_a_millionth() -> None:
    peak = SGD(lr=0.1, lr_batch_size=256).peak_lr(2048)
    assert peak == pytest.approx(0.8, rel=1e-12)
    schedule = WarmupCosine(warmup_epochs=10, final_lr=1e-6)
    rates = [schedule.lr(step, peak_lr=peak, steps_per_epoch=24, num_steps=4800) for step in range(4800)]
    assert rates[0] == pytest.approx(0.8 / 240) and rates[119] == pytest.approx(0.4)
    assert rates.index(max(rates)) == 239 and rates[239] == pytest.approx(0.8, rel=1e-12)
    assert rates[2519] == pytest.approx((0.8 + 1e-6) / 2)
    assert rates[-1] == pytest.approx(1e-6, rel=1e-9)


def test_learning_rate_as_it_is_when_it_belongs_to_no_batch_size() -> None:
    assert SGD(lr=0.3, lr_batch_size=0).peak_lr(4096) == 0.3


def names_of(model: nn.Module, group: dict[str, Any]) -> list[str]:
    return [name for name, p in model.named_parameters() if any(p is member for member in group["params"])]


def test_one_group_decays_everything_that_is_trained() -> None:
    model = network()
    model.get_parameter("3.bias").requires_grad = False
    (group,) = SGD(lr=0.1, weight_decay=0.5).parameter_groups(model)
    assert names_of(model, group) == ["0.weight", "0.bias", "1.weight", "1.bias", "3.weight"]
    assert group["weight_decay"] == 0.5


def test_norms_and_biases_are_in_a_group_of_their_own_without_decay() -> None:
    model = network()
    decayed, rest = SGD(lr=0.1, weight_decay=0.5, decay_norm_and_bias=False).parameter_groups(model)
    assert (names_of(model, decayed), decayed["weight_decay"]) == (["0.weight", "3.weight"], 0.5)
    assert (names_of(model, rest), rest["weight_decay"]) == (["0.bias", "1.weight", "1.bias", "3.bias"], 0.0)


def test_two_sgd_steps_by_hand() -> None:
    # g = 2 + 0.5 w; v = 0.9 v + g; w -= 0.1 (g + 0.9 v). Gradient 2 everywhere, weight decay 0.5, momentum 0.9.
    # Step 1: g 2.5, v 2.5, w 1 - 0.1 * 4.75 = 0.525. Step 2: g 2.2625, v 4.5125, w 0.525 - 0.1 * 6.32375 = -0.107375.
    model = weight(1.0)
    optimizer = SGD(lr=0.1, weight_decay=0.5).build(model)
    seen = []
    for _ in range(2):
        optimizer.zero_grad()
        (2 * model.get_parameter("weight")).sum().backward()
        optimizer.step()
        seen.append(model.get_parameter("weight").item())
    assert seen == pytest.approx([0.525, -0.107375], rel=1e-6)


def test_an_adamw_step_by_hand() -> None:
    # The decay takes lr * 0.1 of the weight, and the first step is lr times the sign of the gradient.
    model = weight(2.0)
    optimizer = AdamW(lr=0.01, weight_decay=0.1).build(model)
    (-3 * model.get_parameter("weight")).sum().backward()
    optimizer.step()
    assert model.get_parameter("weight").item() == pytest.approx(2.0 * (1 - 0.001) + 0.01, rel=1e-6)


def test_a_muon_step_moves_a_kernel_by_its_orthogonalized_gradient() -> None:
    torch.manual_seed(0)
    model = nn.Conv2d(4, 8, 2, bias=False)
    before, gradient = model.weight.detach().clone(), torch.randn(8, 4, 2, 2)
    (model.weight * gradient).sum().backward()
    Muon(lr=0.01, weight_decay=0.5).build(model).step()
    # Without a momentum yet, the direction is the gradient's. Its nearest orthogonal matrix is U V^T of the SVD, the
    # update is scaled to the RMS of AdamW's by 0.2 * sqrt(max(8, 16)), and the decay takes lr * 0.5 of the weight.
    u, _, v = torch.linalg.svd(gradient.flatten(1), full_matrices=False)
    update = (before * (1 - 0.005) - model.weight.detach()).flatten(1) / (0.01 * 0.2 * 4)
    cosine = (update * (u @ v)).sum() / (update.norm() * (u @ v).norm())
    assert cosine.item() > 0.98
    # Newton-Schulz in bfloat16 brings the singular values near 1, no nearer.
    assert torch.linalg.svdvals(update) == pytest.approx([1.0] * 8, abs=0.35)


def test_fewer_newton_schulz_iterations_orthogonalize_less() -> None:
    gradient = torch.diag(torch.tensor([1.0, 0.5, 0.1, 0.01])).view(4, 4, 1, 1)
    smallest = []
    for ns_steps in (2, 3, 5):
        model = nn.Conv2d(4, 4, 1, bias=False)
        before = model.weight.detach().clone()
        (model.weight * gradient).sum().backward()
        Muon(lr=0.01, ns_steps=ns_steps).build(model).step()
        update = (before - model.weight.detach()).flatten(1) / (0.01 * 0.2 * 2)
        smallest.append(torch.linalg.svdvals(update).min().item())
    # The smallest of 1 is multiplied by nearly the polynomial's slope at 0 in each iteration, about 4.
    assert smallest[0] < smallest[1] < smallest[2]
    assert smallest[0] < 0.25 < 0.5 < smallest[2]


def test_muon_updates_everything_but_kernels_by_adamw_at_its_own_rate() -> None:
    model = nn.Sequential(nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 2))
    kernels, others = Muon(lr=0.01, weight_decay=0.1, fallback_lr_scale=0.5).build(model).param_groups
    assert (names_of(model, kernels), kernels["weight_decay"]) == (["0.weight"], 0.1)
    assert names_of(model, others) == ["0.bias", "1.weight", "1.bias", "3.weight", "3.bias"]
    assert others["weight_decay"] == 0.0
    bias = model.get_parameter("3.bias")
    nn.init.zeros_(bias)
    optimizer = Muon(lr=0.01, fallback_lr_scale=0.5).build(model)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, -3.0)
    optimizer.step()
    # With Nesterov momentum the first step is 0.9 + 0.1 / (1 - 0.9) = 1.9 times the rate, 0.01 * 0.5, against the sign.
    assert bias.tolist() == pytest.approx([0.0095, 0.0095], rel=1e-5)


def test_muon_leaves_a_frozen_kernel_alone_and_refuses_a_model_without_any() -> None:
    model = network()
    model.get_parameter("0.weight").requires_grad_(False)
    with pytest.raises(ConfigError, match="Muon needs convolutions and the model has none; use AdamW"):
        Muon(lr=0.01).build(model)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"momentum": 1.0}, r"optimizer\.momentum=1\.0 is out of range; expected from 0 to below 1; use 0\.95"),
        (
            {"fallback_lr_scale": 0.0},
            r"optimizer\.fallback_lr_scale=0\.0 is out of range; expected more than 0 .*; use 0\.3",
        ),
        (
            {"fallback_weight_decay": -1.0},
            r"optimizer\.fallback_weight_decay=-1\.0 is out of range; expected from 0 to 1000",
        ),
        (
            {"betas": (0.9, 1.0)},
            r"optimizer\.betas=\(0\.9, 1\.0\) is out of range; expected from 0 to below 1; use 0\.9 0\.95",
        ),
        ({"decay_norm_and_bias": False}, "decay_norm_and_bias has no effect on Muon; use fallback_weight_decay"),
    ],
)
def test_muon_refuses_numbers_that_make_no_sense(given: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        Muon(lr=0.01, **given)


def test_one_cycle_refuses_numbers_that_make_no_sense() -> None:
    with pytest.raises(
        ConfigError, match=r"schedule\.pct_start=1\.0 is out of range; expected from 0 to below 1; use 0\.2"
    ):
        OneCycle(pct_start=1.0)
    schedule = OneCycle()
    object.__setattr__(schedule, "anneal", "step")  # As a recipe file may, whose types nobody checks.
    with pytest.raises(ConfigError, match=r"schedule\.anneal='step' is not supported; use 'linear' or 'cosine'"):
        schedule.__post_init__()


def test_average_follows_the_documented_decay() -> None:
    # Decay at steps 1..4 is 1 - step**(-2/3) = 0, 0.370039, 0.519250, 0.603150, and at most 0.5.
    model = weight(0.0)
    average = Ema(decay=0.5).build(model)
    seen = []
    for step in range(1, 5):
        nn.init.constant_(model.get_parameter("weight"), 10.0 * step)
        average.update(model, step)
        seen.append(average.module.get_parameter("weight").item())
    second = 10 * 0.370039 + 20 * 0.629961
    third = second * 0.5 + 30 * 0.5
    assert seen == pytest.approx([10.0, second, third, third * 0.5 + 40 * 0.5], rel=1e-5)


def test_average_without_warm_up_keeps_the_same_share_from_the_second_step_on() -> None:
    model = weight(0.0)
    average = Ema(decay=0.75, warmup=False).build(model)
    for step in (1, 2):
        nn.init.constant_(model.get_parameter("weight"), 4.0 * step)
        average.update(model, step)
    assert average.module.get_parameter("weight").item() == pytest.approx(0.75 * 4 + 0.25 * 8)


def test_average_holds_running_statistics_too() -> None:
    model = nn.BatchNorm1d(1)
    average = Ema().build(model)
    model(torch.tensor([[1.0], [3.0]]))
    average.update(model, 1)
    assert average.module.get_buffer("running_mean").item() == pytest.approx(0.2)
    assert average.module.get_buffer("num_batches_tracked").item() == 1


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        model(images).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("choice", OPTIMIZERS, ids=str)
def test_an_optimizer_put_back_by_name_goes_on_bit_for_bit(choice: Optimizer, fused: bool) -> None:
    whole = network()
    optimizer = choice.build(whole, fused=fused)
    train(whole, optimizer, range(3))
    weights = {name: tensor.clone() for name, tensor in whole.state_dict().items()}
    # As a file gives it: contiguous, on the host, and in whatever order.
    saved = dict(reversed([(name, tensor.clone().contiguous()) for name, tensor in named(whole, optimizer)]))
    resumed = network()
    resumed.load_state_dict(weights)
    second = choice.build(resumed, fused=fused)
    load_named_state(resumed, second, saved)
    restored = dict(named(resumed, second))
    assert restored.keys() == saved.keys()
    for name, tensor in named(whole, optimizer):
        assert torch.equal(restored[name], tensor) and restored[name].stride() == tensor.stride()
    train(whole, optimizer, range(3, 5))
    train(resumed, second, range(3, 5))
    for name, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name


def test_optimizer_tensors_are_named_by_what_they_are_and_whose() -> None:
    model = network()
    optimizer = AdamW(lr=0.01).build(model)
    assert list(named(model, optimizer)) == []
    train(model, optimizer, range(1))
    names: dict[str, Tensor] = dict(named(model, optimizer))
    assert {"exp_avg/0.weight", "exp_avg_sq/0.weight", "step/0.weight", "exp_avg/3.bias"} <= names.keys()
    assert len(names) == 3 * 6


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: SGD(lr=-0.1),
            "optimizer.lr=-0.1 is out of range; expected more than 0 and at most 1000; the refer",
        ),
        (lambda: SGD(lr=0.0), "optimizer.lr=0.0 is out of range"),
        (lambda: AdamW(lr=float("nan")), "optimizer.lr=nan is out of range"),
        (lambda: AdamW(lr=float("inf")), "optimizer.lr=inf is out of range"),
        (
            lambda: SGD(lr=0.1, lr_batch_size=-1),
            "optimizer.lr_batch_size=-1 is out of range; expected from 0 to 1048576",
        ),
        (
            lambda: SGD(lr=0.1, weight_decay=-5e-4),
            "optimizer.weight_decay=-0.0005 is out of range; expected from 0 to 1000; use",
        ),
        (
            lambda: SGD(lr=0.1, momentum=1.0),
            r"optimizer.momentum=1.0 is out of range; expected from 0 to below 1; use 0.9",
        ),
        (lambda: SGD(lr=0.1, momentum=0.0), "optimizer.nesterov needs momentum; use --optimizer.momentum 0.9"),
        (
            lambda: AdamW(lr=0.1, betas=(0.9, 1.0)),
            r"optimizer.betas=\(0.9, 1.0\) is out of range; expected from 0 to below 1",
        ),
        (
            lambda: WarmupCosine(warmup_epochs=-1),
            "schedule.warmup_epochs=-1 is out of range; expected from 0 to 100000; use 10, or 0 for none",
        ),
        (
            lambda: WarmupLinear(final_lr=-1e-6),
            "schedule.final_lr=-1e-06 is out of range; expected from 0 to 1000; use 1e-6",
        ),
        (lambda: Ema(decay=1.0), r"ema.decay=1.0 is out of range; expected more than 0 and below 1; use 0.999"),
    ],
)
def test_numbers_out_of_range_are_refused(build: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build()


def test_the_average_is_timm_s_to_the_bit() -> None:
    model = network()
    ours, theirs = Ema(decay=0.9).build(model), ModelEmaV3(model, decay=0.9, use_warmup=True)
    optimizer = SGD(lr=0.1).build(model)
    for step in range(4):
        train(model, optimizer, range(step, step + 1))
        ours.update(model, step + 1)
        theirs.update(model, step + 1)
        if step == 1:  # As a resume does.
            ours.module.load_state_dict({name: value.clone() for name, value in ours.module.state_dict().items()})
    averaged = ours.module.state_dict()
    assert averaged and not torch.equal(averaged["0.weight"], model.state_dict()["0.weight"])
    assert all(torch.equal(averaged[name], value) for name, value in theirs.module.state_dict().items())
