"""What differs between recipes is told in one line for each component."""

from __future__ import annotations

from cifar100_tk.augment import AutoAugment, Flip, PadCrop, RandAugment, RandomResizedCrop
from cifar100_tk.optim import SGD, Ema, Muon, OneCycle, WarmupCosine
from cifar100_tk.recipe import to_json
from cifar100_tk.runs.differences import differences


def test_a_component_of_another_type_is_given_without_its_defaults() -> None:
    one = {"augment": [PadCrop(), RandAugment()], "schedule": OneCycle(), "optimizer": SGD(lr=0.1)}
    two = {"augment": [RandomResizedCrop(), AutoAugment()], "schedule": WarmupCosine(), "optimizer": Muon(lr=0.02)}
    assert differences([{name: to_json(part) for name, part in recipe.items()} for recipe in (one, two)]) == {
        "augment": ["PadCrop(4), RandAugment(2, 14)", "RandomResizedCrop, AutoAugment"],
        "schedule": ["OneCycle", "WarmupCosine"],
        "optimizer": ["SGD(lr=0.1)", "Muon(lr=0.02)"],
    }


def test_a_component_of_the_same_type_is_given_by_its_differing_numbers() -> None:
    one, two = to_json(SGD(lr=0.1)), to_json(SGD(lr=0.2))
    assert differences([{"optimizer": one}, {"optimizer": two}]) == {"optimizer.lr": ["0.1", "0.2"]}
    two = to_json(SGD(lr=0.2, weight_decay=0.001))
    assert differences([{"optimizer": one}, {"optimizer": two}, {"optimizer": one}]) == {
        "optimizer": [
            f"SGD(lr=0.1, weight_decay={one['weight_decay']})",
            "SGD(lr=0.2, weight_decay=0.001)",
            f"SGD(lr=0.1, weight_decay={one['weight_decay']})",
        ]
    }


def test_a_component_that_is_switched_off_is_none() -> None:
    found = differences([{"ema": None, "augment": []}, {"ema": to_json(Ema(decay=0.9)), "augment": [to_json(Flip())]}])
    assert found == {"ema": ["none", "Ema(decay=0.9)"], "augment": ["none", "Flip(0.5)"]}


def test_a_component_of_a_recipe_file_is_given_whole() -> None:
    own = {"type": "Darken", "p": 0.5, "by": 2}
    assert differences([{"augment": [own]}, {}]) == {"augment": ["Darken(p=0.5, by=2)", "absent"]}


def test_equal_values_do_not_differ() -> None:
    assert differences([{"lr": 1, "p": [0.5]}, {"lr": 1.0, "p": [0.5]}]) == {} == differences([{"lr": 1}])


def test_other_images_are_one_line_for_each_split() -> None:
    one, two = ({"images": {"train": {"count": n, "sha256": f"{n}" * 64, "rows_sha256": f"{n}" * 64}}} for n in (1, 2))
    assert differences([one, two]) == {"images.train": [f"{'1' * 12}…", f"{'2' * 12}…"]}
