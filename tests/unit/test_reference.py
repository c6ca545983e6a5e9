"""A run that is elsewhere than measured runs of its recipe says so in a line, and only where they can be compared."""

from __future__ import annotations

import dataclasses
import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from commands import exit_code
from runs import SHAPES, TINY, lines, run, tiny

from cifar100_tk.augment import Flip
from cifar100_tk.data import Cifar100
from cifar100_tk.errors import ConfigError
from cifar100_tk.optim import SGD, Ema
from cifar100_tk.recipe import Band, Recipe, comparable, to_json
from cifar100_tk.train import main

HIGH, LOW = Band(epoch=1, top1=(0.5, 0.6)), Band(epoch=2, top1=(0.0, 0.0))
"""Bands that ten steps stay below, and above: with 100 images of 100 classes top-1 is about 0.01 to 0.1."""
CURVE = tiny(reference=(HIGH, LOW))


def test_a_band_holds_its_own_edges() -> None:
    band = Band(epoch=10, top1=(0.25, 0.5))
    assert [band.remark(top1) for top1 in (0.25, 0.3, 0.5)] == [None] * 3
    below, above = band.remark(0.2499), band.remark(0.51)
    assert below == (
        "  note           epoch 10: test top-1 24.99 % is below the 25.00 % to 50.00 % of measured runs of this recipe; "
        "check the setup (the data, the learning rate, --contact-sheet) before training further."
    )
    assert (
        above is not None
        and "51.00 % is above the 25.00 % to 50.00 %" in above
        and "no test image is in the training set" in above
    )


@pytest.mark.parametrize(
    ("band", "message"),
    [
        ({"epoch": 0, "top1": (0.1, 0.2)}, r"Band\.epoch must be at least 1, got 0"),
        (
            {"epoch": 1, "top1": (38.0, 46.0)},
            r"Band\.top1 must be two fractions, low and high, such as \(0\.38, 0\.46\); got \(38\.0, 46\.0\)",
        ),
        ({"epoch": 1, "top1": (0.4, 0.3)}, r"Band\.top1 must be .*; got \(0\.4, 0\.3\)"),
    ],
)
def test_a_band_that_is_none_is_refused(band: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Band(**band)


def test_a_recipe_wants_bands() -> None:
    recipe = dataclasses.replace(TINY)
    object.__setattr__(recipe, "reference", (0.5,))  # Past the type checks of the test run.
    with pytest.raises(ConfigError, match=r"reference=\(0.5,\) in the recipe must contain only Bands; use \(Band"):
        recipe.__post_init__()


def test_the_curve_is_none_of_what_is_learned() -> None:
    assert CURVE == TINY and to_json(CURVE) == to_json(TINY) and "reference" not in to_json(CURVE)


@pytest.mark.parametrize(
    ("file", "changes", "holds"),
    [
        (CURVE, {}, True),
        (CURVE, {"seed": 7}, True),
        (CURVE, {"epochs": 3}, False),
        (CURVE, {"batch_size": 50}, False),
        (CURVE, {"optimizer": SGD(lr=0.1, weight_decay=5e-4)}, False),
        (CURVE, {"augment": (Flip(),)}, False),
        (CURVE, {"ema": Ema()}, False),
        (CURVE, {"data": dataclasses.replace(SHAPES, holdout=100)}, False),
        (CURVE, {"data": dataclasses.replace(SHAPES, source="hub")}, False),
        (tiny(data=Cifar100()), {"data": Cifar100(source="a/copy")}, True),
        (tiny(data=Cifar100()), {"data": Cifar100(source="shapes100")}, False),
    ],
)
def test_the_curve_holds_for_other_seeds_and_places_only(file: Recipe, changes: dict[str, Any], holds: bool) -> None:
    assert comparable(dataclasses.replace(file, **changes), file) is holds


@pytest.mark.usefixtures("on_cpu")
def test_a_run_that_leaves_its_bands_says_so_at_that_epoch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(tmp_path, dataclasses.replace(CURVE, reference=(HIGH, Band(epoch=2, top1=(0.0, 1.0)))), eval_every=100)
    said = capsys.readouterr().out
    assert "  reference      top-1 after epoch 1, 2; warns when it leaves the expected range\n" in said
    # The first epoch is evaluated for it.
    first, last = lines(tmp_path)
    assert first["test/top1"] < 0.5 and "test/top1" in last
    notes = [line for line in said.splitlines() if " note " in line]
    assert len(notes) == 1 and f"epoch 1: test top-1 {100 * first['test/top1']:.2f} % is below" in notes[0]
    place = said.splitlines().index(notes[0])
    assert said.splitlines()[place - 1].startswith("epoch 1/2") and said.splitlines()[place + 1].startswith("epoch 2/2")


@pytest.mark.usefixtures("on_cpu")
@pytest.mark.parametrize(
    ("arguments", "epochs"),
    [
        (["--seed", "1"], [1]),
        (["--optimizer.lr", "0.1"], []),
        (["--limit-eval-batches", "1"], []),
        (["--limit-train-batches", "2"], []),
    ],
    ids=str,
)
def test_what_cannot_be_compared_is_not(
    arguments: list[str], epochs: list[int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = dataclasses.replace(CURVE, reference=(HIGH, Band(epoch=2, top1=(0, 0), split="holdout")))
    assert exit_code(partial(main, recipe), "--dry-run", "--output-dir", tmp_path / "run", *arguments) == 0
    # The other point is of a held-out part, which this run does not have.
    found = re.search(r"reference +top-1 after epoch ([\d, ]+);", capsys.readouterr().out)
    assert ([int(number) for number in found[1].split(", ")] if found else []) == epochs


def test_the_curve_cannot_be_changed_on_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(partial(main, CURVE), "--help") == 0
    assert "--reference" not in (help_text := capsys.readouterr().out) and "--mix.mixup-alpha" in help_text
