"""One process, smaller pieces and two processes: the same batches and rates, and weights within float32 summation error."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest
from runs import forget

# The script trains six times in one process and twice in two.
pytestmark = [pytest.mark.distributed, pytest.mark.slow, pytest.mark.usefixtures("on_cpu")]
SCRIPT = Path(__file__).parents[2] / "benchmarks" / "agreement.py"


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, dict[str, Any]]]:
    """What the script that makes the table of docs/agreement.md measures."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCELERATE_USE_CPU", "true")
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("PYTHONPATH", str(SCRIPT.parent.parent))
        forget()
        script = runpy.run_path(str(SCRIPT))
        measured: dict[str, dict[str, dict[str, Any]]] = script["measure"](tmp_path_factory.mktemp("agreement"))
        table = script["table"](measured)
    assert table.count("\n") == 9 and "DIFFERENT" not in table
    return measured


def test_every_way_sees_the_same_batches_and_learning_rates(found: dict[str, dict[str, dict[str, Any]]]) -> None:
    assert set(found) == {"without BatchNorm", "with BatchNorm"}
    for ways in found.values():
        assert [(way, one["processes"]) for way, one in ways.items()] == [
            ("one process again", 1),
            ("pieces", 1),
            ("two processes", 2),
        ]
        for one in ways.values():
            assert one["same_batches"] and one["same_lr"] and one["steps"] == 20


def test_without_batchnorm_every_way_gives_the_same_weights(found: dict[str, dict[str, dict[str, Any]]]) -> None:
    for way, one in found["without BatchNorm"].items():
        # Twenty gradients, each summed in another order: 2**-24 of a weight of about 1, some twenty times over.
        assert one["weights"] < 2e-6 < 1e-4 * one["moved"], way
        assert one["ema"] < 2e-6 and one["loss"] < 5e-6 and one["test_loss"] < 5e-6 and one["top5"] == 0


def test_the_same_way_again_gives_the_same_bits(found: dict[str, dict[str, dict[str, Any]]]) -> None:
    for ways in found.values():
        again = ways["one process again"]
        assert [again[kind] for kind in ("weights", "ema", "loss", "test_loss", "top5")] == [0] * 5


def test_with_batchnorm_statistics_are_those_of_each_piece_and_weights_differ(
    found: dict[str, dict[str, dict[str, Any]]],
) -> None:
    for way in ("pieces", "two processes"):
        assert 1e-4 < found["with BatchNorm"][way]["weights"] < 0.5, way
