"""The ranking of ingredients: what is switched off, the table worked out by hand, and runs that are not repeated."""

from __future__ import annotations

import dataclasses
import json
import runpy
from pathlib import Path
from typing import Any

import pytest
from runs import TINY

from cifar100_tk.errors import ConfigError
from cifar100_tk.optim import SAM, SGD, AdamW, Ema, Lookahead, Muon
from cifar100_tk.recipe import Recipe, flatten, to_json
from cifar100_tk.training.plan import RunOptions

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks" / "ingredients.py"


@pytest.fixture(scope="module")
def script() -> dict[str, Any]:
    return runpy.run_path(str(SCRIPT))


def load(name: str) -> Recipe:
    recipe: Recipe = runpy.run_path(str(ROOT / "recipes" / name))["recipe"]
    return recipe


@pytest.mark.parametrize("name", ["speedrun.py", "resnet50_fast.py", "resnet50_best.py", "quickstart.py"])
def test_each_variant_lacks_one_ingredient(script: dict[str, Any], name: str) -> None:
    recipe = load(name)
    whole, *others = script["variants"](recipe)
    assert whole.recipe == recipe and len({variant.name for variant in others}) == len(others) >= 6
    plain = to_json(recipe)
    for variant in others:
        changed = [key for key, value in to_json(variant.recipe).items() if value != plain[key]]
        assert len(changed) == 1, variant.name
        ours, theirs = flatten(to_json(variant.recipe)), flatten(plain)
        if changed[0] not in ("augment", "optimizer") and getattr(variant.recipe, changed[0]) is not None:
            assert sum(ours[key] != theirs[key] for key in ours) == 1, variant.name


def test_the_ingredients_of_a_recipe_are_found(script: dict[str, Any]) -> None:
    names = [variant.name for variant in script["variants"](load("resnet50_best.py"))]
    wanted = {"Mix", "SAM", "Ema", "label smoothing", "PadCrop", "reflected border", "Flip", "TrivialAugmentWide"}
    assert set(names) == wanted | {"whole recipe", "Nesterov momentum", "weight decay", "warm-up"}
    given = dataclasses.replace(
        TINY, sam=SAM(), lookahead=Lookahead(), ema=Ema(), clip_grad_norm=1.0, optimizer=Muon(lr=0.01, weight_decay=0.1)
    )
    found = {variant.name: variant.recipe for variant in script["variants"](given)}
    assert {"SAM", "Lookahead", "Ema", "gradient clipping", "Muon", "weight decay"} <= found.keys()
    assert found["Muon"].optimizer == AdamW(lr=0.003, betas=(0.9, 0.95))
    undecayed = dataclasses.replace(TINY, optimizer=SGD(lr=0.1, decay_norm_and_bias=False))
    assert "no decay of norms and biases" in {variant.name for variant in script["variants"](undecayed)}


def result(ingredient: str, seed: int, top1: float, off: str = "off") -> dict[str, Any]:
    return {"ingredient": ingredient, "off": off, "seed": seed, "top1": top1, "seconds": 60.0}


def test_the_table_compares_seed_by_seed(script: dict[str, Any]) -> None:
    results = [
        *(result("whole recipe", seed, top1) for seed, top1 in enumerate((0.60, 0.62))),
        *(result("Mix", seed, top1, "images unmixed") for seed, top1 in enumerate((0.61, 0.62))),
        *(result("Muon", seed, top1, "AdamW") for seed, top1 in enumerate((0.50, 0.54))),
    ]
    assert script["table"](results).splitlines() == [
        "| ingredient | off | difference |",
        "| --- | --- | --: |",
        "| Muon | AdamW | -9.00 ± 1.41 |",
        "| Mix | images unmixed | +0.50 ± 0.71 |",
        "",
        "Whole recipe: 61.00 ± 1.41 % top-1 (2 seeds); differences in points of top-1, of the same seeds. "
        "60 s a run on average.",
    ]
    assert "| Muon | AdamW | -10.00 |" in script["table"](results[::2])


@pytest.mark.usefixtures("on_cpu")
def test_runs_are_done_once_and_kept_apart_from_those_of_other_numbers(script: dict[str, Any], tmp_path: Path) -> None:
    recipe = dataclasses.replace(TINY, epochs=1)
    chosen = [variant for variant in script["variants"](recipe) if variant.name in ("whole recipe", "Mix")]
    options, shown = RunOptions(limit_train_batches=1, limit_eval_batches=1), list[str]()
    results = script["measure"](chosen, 1, tmp_path, options, shown.append)
    assert [(one["ingredient"], one["seed"]) for one in results] == [("whole recipe", 0), ("Mix", 0)]
    assert [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()] == results
    assert len(shown) == 2 and script["measure"](chosen, 1, tmp_path, options, shown.append) == results
    assert len(shown) == 2  # Nothing was trained again.
    longer = dataclasses.replace(chosen[0], recipe=dataclasses.replace(recipe, epochs=2))
    with pytest.raises(ConfigError, match=r"epochs was 1 and is 2"):
        script["measure"]([longer], 1, tmp_path, options)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["nowhere.py"], "nowhere.py is not a file; give a recipe file, such as recipes/speedrun.py."),
        ([str(SCRIPT)], "has no `recipe = Recipe(...)`; give a recipe file"),
        ([str(ROOT / "recipes" / "speedrun.py"), "--seeds", "0"], "--seeds 0 trains nothing; give 1 or more."),
        (
            [str(ROOT / "recipes" / "speedrun.py"), "--only", "Cutout"],
            "--only 'Cutout' is not an ingredient of",
        ),
    ],
    ids=["no file", "no recipe", "no seed", "no ingredient"],
)
def test_a_wrong_argument_is_refused(
    script: dict[str, Any], arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    monkeypatch.setattr("sys.argv", ["ingredients.py", *arguments])
    with pytest.raises(SystemExit) as ended:
        script["main"]()
    assert ended.value.code == 2 and sentence in capsys.readouterr().err
