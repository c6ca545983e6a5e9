"""A NaN in one process stops all of them in the same step, before anything is saved that it has touched."""

from __future__ import annotations

import re
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import pytest
from forks import LITTLE, STEPS, Trainer
from interrupted import TWO, Whole, assert_killed_whole, assert_same_run
from runs import SHAPES, status

from cifar100_tk.training.loader import BatchOrder


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("patch", "step", "ranks"),
    [
        (("spoil", "loss", 1, 1), 1, [1]),
        (("spoil", "loss", 2, 0), 2, [0]),
        (("spoil", "gradient", 3, 1), 3, [0, 1]),
        (("scale_the_loss", "spoil", "loss", 1, 1), 1, [1]),
    ],
    ids=[
        "last step of an epoch, rank 1",
        "first step of an epoch, rank 0",
        "gradient in the last step",
        "rank 1 with a loss scale",
    ],
)
def test_all_processes_stop_at_the_same_step(
    patch: tuple[Any, ...],
    step: int,
    ranks: list[int],
    forkserver: ForkServerContext,
    tmp_path: Path,
    uninterrupted: Whole,
) -> None:
    path = tmp_path / "run"
    trainer = Trainer(forkserver, path, patch=patch, **TWO)
    assert trainer.wait() == 6, trainer.said()
    assert [process.exitcode for process in trainer.processes] == [6, 6]
    orders = [BatchOrder(0, SHAPES.open("train").index, LITTLE.batch_size, STEPS, rank, 2) for rank in ranks]
    images = [int(row) for order in orders for row in order.batch(step)]
    tries = ", also with a loss scale halved 40 times" if patch[0] == "scale_the_loss" else ""
    sentence = (
        rf"not finite at step {step} on rank {', '.join(map(str, ranks))} \(learning rate [\de.-]+, training images "
        rf"{', '.join(map(str, images))}\){tries}; checkpoints before it are untouched"
    )
    assert len(re.findall(sentence, trainer.said())) == 2, trainer.said()
    assert {"status": "failed", "images": images}.items() <= status(path).items()
    # Only what was good before that step is there, and the run goes on from it.
    kept = [p.name for p in (path / "checkpoints").iterdir()] if step > 1 else []
    assert kept == (["step-00000002"] if step > 1 else []) and not (step == 1 and (path / "checkpoints").exists())
    assert_killed_whole(path)
    again = Trainer(forkserver, path, **TWO)
    assert again.wait() == 0, again.said()
    assert_same_run(path, uninterrupted(TWO))
