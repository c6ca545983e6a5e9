"""Phases of a run: the steps in which a component is on, as a table, in fractions and in epochs."""

from __future__ import annotations

from typing import Any

import pytest

from cifar100_tk.augment import Mix
from cifar100_tk.errors import ConfigError
from cifar100_tk.optim import SAM
from cifar100_tk.phases import Phased


@pytest.mark.parametrize(
    ("given", "steps"),
    [
        ({}, range(20)),
        ({"start": 0.3, "stop": 0.95}, range(6, 19)),
        ({"start": 0.6}, range(12, 20)),
        ({"stop": 0.5}, range(10)),
        ({"start": 1, "stop": 3, "in_epochs": True}, range(5, 15)),
        ({"start": 0.5, "in_epochs": True}, range(2, 20)),
        ({"start": 9, "in_epochs": True}, range(0)),
    ],
    ids=str,
)
def test_the_steps_of_a_run_of_four_epochs_of_five_steps(given: dict[str, Any], steps: range) -> None:
    assert [step for step in range(20) if Phased(**given).is_on(step, 5, 20)] == list(steps)


def test_the_plan_says_when_a_component_is_on() -> None:
    assert Phased().describe_phase(5, 20) == Phased(stop=1.0).describe_phase(5, 20) == "throughout"
    assert Phased(stop=1.0, in_epochs=True).describe_phase(5, 20) == "from step 0 to step 5"
    assert Phased(start=9, in_epochs=True).describe_phase(5, 20) == "never, because the run ends at step 20"


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (
            lambda: Mix(start=0.5, stop=0.3),
            r"mix\.start=0\.5 with mix\.stop=0\.3 leaves no step; use a start before the stop",
        ),
        (lambda: SAM(start=1.0), r"^sam\.start=1\.0 leaves no step; use a start before the end\.$"),
        (
            lambda: Mix(start=10),
            r"^mix\.start=10 is not a part of the run; .* 0 to 1, or set mix\.in_epochs to count epochs",
        ),
        (lambda: Mix(stop=1.5), r"mix\.stop=1\.5 is not a part of the run; use fractions from 0 to 1"),
        (lambda: Mix(start=-1, in_epochs=True), r"mix\.start=-1 is out of range; expected from 0 to 100000; use 0 for"),
    ],
)
def test_a_phase_that_is_none_is_refused(make: Any, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        make()
