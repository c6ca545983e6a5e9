"""Every number that a command line or a recipe takes has a finite range, and what is outside it is one sentence."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import pytest
from runs import TINY

from cifar100_tk import augment
from cifar100_tk.augment import (
    AutoAugment,
    Cutout,
    Flip,
    Mix,
    Normalize,
    PadCrop,
    ProgressiveResize,
    RandAugment,
    RandomResizedCrop,
    TrivialAugmentWide,
)
from cifar100_tk.cli.register import run_register
from cifar100_tk.data import Cifar100
from cifar100_tk.distributed.launch import check_launch
from cifar100_tk.doctor.__main__ import DoctorOptions
from cifar100_tk.errors import ConfigError
from cifar100_tk.eval import EvalOptions
from cifar100_tk.export.__main__ import ExportOptions
from cifar100_tk.models import Whitening
from cifar100_tk.optim import SAM, SGD, AdamW, CrossEntropy, Ema, Lookahead, Muon, OneCycle, WarmupCosine, WarmupLinear
from cifar100_tk.predict import PredictOptions
from cifar100_tk.ranges import Within, check_ranges
from cifar100_tk.recipe import Recipe
from cifar100_tk.training.plan import RunOptions

MADE: list[tuple[type, dict[str, Any]]] = [
    (SGD, {"lr": 0.1}),
    (AdamW, {"lr": 0.1}),
    (Muon, {"lr": 0.01}),
    (WarmupCosine, {}),
    (OneCycle, {}),
    (Whitening, {}),
    (ProgressiveResize, {}),
    (WarmupLinear, {}),
    (Ema, {}),
    (SAM, {}),
    (Lookahead, {}),
    (CrossEntropy, {}),
    (Mix, {}),
    (Cutout, {}),
    (Normalize, {}),
    (RandomResizedCrop, {}),
    (PadCrop, {}),
    (Flip, {}),
    (AutoAugment, {}),
    (RandAugment, {}),
    (TrivialAugmentWide, {}),
    (Cifar100, {}),
    (Recipe, {field.name: getattr(TINY, field.name) for field in dataclasses.fields(TINY)}),
    (RunOptions, {}),
    (EvalOptions, {"models": ("RUN",)}),
    (PredictOptions, {"model": "RUN", "images": (Path("a.png"),)}),
    (ExportOptions, {"model": "RUN", "to": "onnx"}),
    (DoctorOptions, {}),
]


def numbers_of(kind: type) -> dict[str, list[Any]]:
    """Each numeric field with numbers that no range should hold, alone or as each of a tuple, of the field's own type."""
    found: dict[str, list[Any]] = {}
    for name, hint in get_type_hints(kind).items():
        parts = [hint, *get_args(hint)]
        numbers = [1e300, -1e300, math.inf, math.nan] if float in parts else [10**30, -(10**30)] if int in parts else []
        if numbers and get_origin(hint) is tuple:
            found[name] = [(number,) * len(get_args(hint)) for number in numbers]
        elif numbers:
            found[name] = numbers
    return found


CASES = [
    (kind, given, name, value) for kind, given in MADE for name, values in numbers_of(kind).items() for value in values
]


@dataclasses.dataclass
class Unchecked:
    """Not of the package, where jaxtyping would look at the types first."""

    share: Annotated[float, Within(low=0, above=True, high=1, use="use 0.5")] = 0.5
    count: Annotated[int | Literal["auto"] | None, Within(low=1, high=9, use="use 3")] = None


def test_the_fields_are_found() -> None:
    assert set(numbers_of(SGD)) == {"lr", "lr_batch_size", "weight_decay", "momentum"}
    assert set(numbers_of(Cifar100)) == {"holdout", "holdout_seed", "shapes100_rows"}
    assert len(numbers_of(RunOptions)) >= 10 and all(numbers_of(kind) for kind, _ in MADE)
    own = {kind for kind in vars(augment).values() if isinstance(kind, type) and dataclasses.is_dataclass(kind)}
    inner = {"Chain", "Mixer", "Op"}  # Made by the others.
    assert {kind.__name__ for kind in own if numbers_of(kind)} - inner <= {kind.__name__ for kind, _ in MADE}


@pytest.mark.parametrize(("kind", "given", "name", "value"), CASES)
def test_no_number_is_without_a_range(kind: type, given: dict[str, Any], name: str, value: Any) -> None:
    flag = name.replace("_", "-")
    with pytest.raises(ConfigError, match=rf"({name}=|--{flag} |flip\.p=).*;.*\d.*\.$"):
        kind(**given | {name: value})


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (
            lambda: SGD(lr=1e300),
            "optimizer.lr=1e+300 is out of range; expected more than 0 and at most 1000; the reference",
        ),
        (
            lambda: Mix(mixup_alpha=1e-320),
            "mix.mixup_alpha=1e-320 is out of range; expected 0, or from 0.001 to 1000; use 0.2",
        ),
    ],
)
def test_the_sentence(make: Callable[[], object], sentence: str) -> None:
    with pytest.raises(ConfigError) as error:
        make()
    assert str(error.value).startswith(sentence)


def refused(**fields: Any) -> str:
    with pytest.raises(ConfigError) as error:
        check_ranges(Unchecked(**fields), "it.")
    return str(error.value)


def test_what_is_no_number_is_a_sentence() -> None:
    for fields in ({}, {"share": 1, "count": "auto"}, {"count": 9}):
        check_ranges(Unchecked(**fields), "it.")
    assert refused(share="0.1") == "it.share='0.1' is not a number; expected more than 0 and at most 1; use 0.5."
    assert refused(share=None).startswith("it.share=None is not a number")
    assert refused(count=2.0) == "it.count=2.0 is not a whole number; expected from 1 to 9; use 3."
    assert refused(count=True).startswith("it.count=True is not a whole number")
    assert refused(count="most").startswith("it.count='most' is not a whole number")


def test_the_ends_of_a_range() -> None:
    half = Within(low=0, above=True, high=1, below=True, use="")
    assert [value in half for value in (0.0, 1e-9, 1 - 1e-9, 1.0)] == [False, True, True, False]
    off = Within(low=1, high=2, or_zero=True, use="")
    assert [value in off for value in (0, 0.5, 1, 2, 3)] == [True, False, True, True, False]
    check_ranges(SGD(lr=1000), "optimizer.")


@pytest.mark.parametrize("value", ["two", "0", "-1", "1.5", "", "²", "99999"])
def test_an_environment_that_no_launcher_makes_is_a_sentence(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", value)
    with pytest.raises(
        ConfigError, match=f"WORLD_SIZE='{value}' in the environment is not a whole number from 1 to 65535"
    ):
        check_launch()


@pytest.mark.parametrize(
    ("code", "sentence"),
    [
        ("def (:\n", r"fails \(SyntaxError: invalid syntax \(net\.py, line 1\)\); run it by itself and fix it\."),
        ("\nraise KeyError('x')\n", r"fails \(KeyError: 'x', line 2\); run it by itself"),
        ("import no_such_module\n", r"fails \(ModuleNotFoundError: No module named 'no_such_module', line 1\)"),
        (
            "import sys\nsys.exit(3)\n",
            r"ended the program \(exit code 3, line 2\); it must only register, so move code that runs",
        ),
    ],
)
def test_a_file_to_register_that_fails_is_a_sentence(code: str, sentence: str, tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(code)
    with pytest.raises(ConfigError, match=r"--register .*net\.py " + sentence):
        run_register(tmp_path / "net.py")
