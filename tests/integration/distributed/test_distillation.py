"""Distillation and extension in two processes: each learns from the same teacher, and the result is that of one."""

from __future__ import annotations

import dataclasses
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import pytest
import torch
from forks import Trainer
from interrupted import ALIKE
from runs import lines, newest

from cifar100_tk.optim import Distillation
from cifar100_tk.runs.files import read_recipe


@pytest.mark.distributed
def test_two_processes_learn_from_one_teacher_and_are_extended_like_one(
    forkserver: ForkServerContext, tmp_path: Path
) -> None:
    assert Trainer(forkserver, tmp_path / "teacher", recipe=ALIKE).wait() == 0
    recipe = dataclasses.replace(
        ALIKE, distillation=Distillation(teacher=str(tmp_path / "teacher"), weight=0.5), seed=1
    )
    one, two = tmp_path / "one", tmp_path / "two"
    for path, processes, micro_batch in ((one, 1, 3), (two, 2, None)):
        for more in ({}, {"extend_to": 3}):
            options: dict[str, Any] = {"processes": processes, "micro_batch": micro_batch} | more
            trainer = Trainer(forkserver, path, recipe=recipe, **options)
            assert trainer.wait() == 0, trainer.said()
    assert read_recipe(one) == read_recipe(two) and read_recipe(one)["extended"] == [{"epochs": 2, "step": 4}]
    # The same batches, teacher and rates: what is left is the rounding.
    for ours, theirs in zip(lines(two), lines(one), strict=True):
        assert ours["train/lr"] == theirs["train/lr"] and ours == pytest.approx(theirs, rel=1e-3, abs=1e-9)
    torch.testing.assert_close(newest(two).tensors["model"], newest(one).tensors["model"], rtol=1e-3, atol=1e-5)
