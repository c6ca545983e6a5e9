"""A recipe checks its numbers, and is told apart from another one field by field."""

from __future__ import annotations

import dataclasses
import json
import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from runs import TINY, tiny

import cifar100_tk
from cifar100_tk.augment import Flip, Normalize
from cifar100_tk.errors import ConfigError
from cifar100_tk.optim import SGD, Ema
from cifar100_tk.recipe import flatten, to_json


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"batch_size": 0},
            "batch_size=0 is out of range; expected from 1 to 1048576; the reference recipe uses 2048",
        ),
        ({"epochs": 0}, "epochs=0 is out of range; expected from 1 to 100000; the reference recipe uses 200"),
        (
            {"clip_grad_norm": -1.0},
            "clip_grad_norm=-1.0 is out of range; expected from 0 to 1000000; use 1.0, or 0",
        ),
        ({"clip_grad_norm": float("nan")}, "clip_grad_norm=nan is out of range"),
        ({"seed": -1}, r"seed=-1 is out of range; expected from 0 to 2\*\*64 - 1; use 0"),
        ({"seed": 2**64}, "seed=18446744073709551616 is out of range"),
    ],
)
def test_numbers_out_of_range_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        tiny(**changes)


def test_a_recipe_cannot_be_changed_but_by_making_another() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        TINY.epochs = 5  # type: ignore[misc]


def test_the_peak_learning_rate_is_that_of_the_batch() -> None:
    assert tiny(optimizer=SGD(lr=0.1, lr_batch_size=256), batch_size=512).peak_lr == pytest.approx(0.2)


def test_a_recipe_comes_through_json_unchanged_and_names_every_component() -> None:
    written = to_json(tiny(ema=Ema()))
    assert json.loads(json.dumps(written)) == written
    assert written["type"] == "Recipe" and written["data"]["shapes100_rows"] == [100, 100]
    assert [part["type"] for part in written["augment"]] == ["RandomResizedCrop", "Flip"]
    parts = ("model", "optimizer", "schedule", "ema")
    assert [written[part]["type"] for part in parts] == ["TimmModel", "SGD", "WarmupCosine", "Ema"]


def test_a_flat_recipe_has_a_dotted_name_for_every_number() -> None:
    flat = flatten(to_json(TINY))
    assert flat["optimizer.lr"] == 0.2 and flat["augment.0.scale.1"] == 1.0 and flat["ema"] is None
    other = flatten(to_json(tiny(optimizer=SGD(lr=0.3, weight_decay=5e-4))))
    assert {name for name in flat if flat[name] != other[name]} == {"optimizer.lr"}


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("batch_size", "50", "batch_size='50' in the recipe is str; expected int"),
        ("schedule", None, "schedule=None in the recipe is NoneType; expected Schedule"),
        ("ema", 0.99, r"ema=0.99 in the recipe is float; expected .*Ema | None"),
        ("augment", Flip(), "augment=Flip.* in the recipe is Flip; expected tuple"),  # The comma that is forgotten.
        (
            "augment",
            (Flip(), Normalize()),
            "augment contains Normalize.*, which is not an Augmentation; Normalize, Cutout and",
        ),
    ],
)
def test_a_part_of_the_wrong_kind_is_named(field: str, value: Any, message: str) -> None:
    recipe = dataclasses.replace(TINY)
    # Past the type checks of the test run, which users do not have.
    object.__setattr__(recipe, field, value)
    with pytest.raises(ConfigError, match=message):
        recipe.__post_init__()


MISTAKEN = """
from runs import tiny
from cifar100_tk.train import main

recipe = tiny(
    epochs=3,
    batch_size=0,
)
"""


def mistaken(path: Path, mistake: str = "batch_size=0") -> Path:
    (path / "mine.py").write_text(MISTAKEN.replace("batch_size=0", mistake))
    return path / "mine.py"


def test_a_mistake_in_a_recipe_file_is_a_sentence_with_its_place_and_its_code(tmp_path: Path) -> None:
    # As a user does: the file is the program.
    paths = [str(Path(__file__).parents[1] / "support"), str(Path(cifar100_tk.__file__).parent.parent)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, str(mistaken(tmp_path))]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    sentence = (
        "mine.py, line 5: batch_size=0 is out of range; expected from 1 to 1048576; the reference recipe uses 2048.\n"
    )
    assert (ended.returncode, ended.stderr, ended.stdout) == (2, sentence, "")


@pytest.mark.parametrize("mistake", ["batchsize=0", "batch_size=1 / 0"])
def test_any_other_mistake_keeps_its_traceback(
    mistake: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises((TypeError, ZeroDivisionError)) as caught:
        runpy.run_path(str(mistaken(tmp_path, mistake)))
    sys.excepthook(caught.type, caught.value, caught.tb)
    assert "Traceback" in (said := capsys.readouterr().err) and "mine.py" in said


def test_an_error_outside_a_recipe_file_keeps_its_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        tiny(batch_size=0)
    sys.excepthook(caught.type, caught.value, caught.tb)
    assert "Traceback" in (said := capsys.readouterr().err) and "batch_size=0 is out of range" in said
