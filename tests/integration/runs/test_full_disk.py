"""A disk that refuses a write, at any of them: a sentence and exit code 5, nothing half-written, and the run goes on later."""

from __future__ import annotations

import errno
import os
import re
import time
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import pytest
from forks import Trainer
from interrupted import ONE, POINTS, TWO, Whole, assert_killed_whole, assert_same_run
from runs import status

REFUSED = [point for point in POINTS if not re.search(r"\.(done|removed|retired|polled|opening):", point)]
"""Every moment of a run at which it writes."""
KINDS = [errno.ENOSPC, errno.EDQUOT, errno.EROFS]
"""Full, over quota, read-only: each moment meets one of them."""
QUICK = {
    *(
        "recipe.json.written:1",
        "run_status.json.written:1",
        "metrics.jsonl.opened:2",
        "optimizer.safetensors.written:2",
    ),
    *(
        "manifest.json.opened:1",
        "step-00000004.complete:1",
        "step-00000002.retiring:1",
        "test.json.written:1",
        "config.json.written:1",
    ),
    "run_status.json.replaced:2",
}


def refused(server: ForkServerContext, path: Path, point: str, number: int, **options: Any) -> str:
    """Run until the disk refuses a write. Returns what the run said."""
    trainer = Trainer(server, path, patch=("fail_at", point, number), **options)
    assert trainer.wait() == 5, trainer.said()
    said = trainer.said()
    assert "Traceback" not in said and f"cannot write {path}" in said
    assert not list(path.rglob(".tmp-*"))
    assert_killed_whole(path)
    return said


def test_every_write_is_among_those_that_are_refused() -> None:
    assert set(REFUSED) > QUICK and len(REFUSED) == 79
    assert {REFUSED.index(point) % len(KINDS) for point in QUICK} == {0, 1, 2}


@pytest.mark.parametrize("point", [p if p in QUICK else pytest.param(p, marks=pytest.mark.slow) for p in REFUSED])
def test_a_run_goes_on_after_a_full_disk_at(
    point: str, forkserver: ForkServerContext, tmp_path: Path, uninterrupted: Whole
) -> None:
    path, number = tmp_path / "run", KINDS[REFUSED.index(point) % len(KINDS)]
    said = refused(forkserver, path, point, number, **ONE)
    bytes_free = r"([\d,]+ bytes are needed and )?[\d,]+ (bytes )?are free; make room"
    remedy = "it is not writable; choose another folder that you own" if number == errno.EROFS else bytes_free
    assert re.search(rf"\({os.strerror(number)}\): {remedy}", said), said
    if (path / "run_status.json").exists() and not point.startswith("run_status.json"):
        assert os.strerror(number) in status(path)["reason"]
    again = Trainer(forkserver, path, **ONE)
    assert again.wait() == 0 or status(path)["status"] == "finished", again.said()
    assert_same_run(path, uninterrupted(ONE))


@pytest.mark.parametrize("n", [1, 2])
def test_a_save_in_the_background_that_fails_ends_the_run_too(
    n: int, forkserver: ForkServerContext, tmp_path: Path, uninterrupted: Whole
) -> None:
    path, patch = tmp_path / "run", ("save_in_background", "fail_at", f"manifest.json.written:{n}", errno.ENOSPC)
    trainer = Trainer(forkserver, path, patch=patch, **ONE)
    assert trainer.wait() == 5 and "bytes are needed and" in trainer.said()
    assert_killed_whole(path)
    assert status(path)["status"] == "failed" and not (path / "model").exists()
    again = Trainer(forkserver, path, patch=("save_in_background",), **ONE)
    assert again.wait() == 0, again.said()
    assert_same_run(path, uninterrupted(ONE))


@pytest.mark.distributed
def test_all_processes_stop_when_the_disk_of_the_main_one_is_full(
    forkserver: ForkServerContext, tmp_path: Path, uninterrupted: Whole
) -> None:
    path = tmp_path / "run"
    for point in ("metrics.jsonl.written:1", "ema.safetensors.written:1", "README.md.written:1"):
        trainer = Trainer(forkserver, path, patch=("fail_at", point, errno.EDQUOT), **TWO)
        assert trainer.wait() == 5, trainer.said()
        assert [process.exitcode for process in trainer.processes] == [5, 5]
    again = Trainer(forkserver, path, **TWO)
    assert again.wait() == 0, again.said()
    assert_same_run(path, uninterrupted(TWO))


@pytest.mark.parametrize(
    ("point", "size", "name"),
    [
        ("manifest.json.synced", 1_000_000, "step-00000004"),  # More than TensorBoard has, less than the weights.
        ("metrics.jsonl.synced", 90, "run"),  # TensorBoard is the next to write.
    ],
)
def test_a_real_limit_on_the_size_of_files(
    point: str, size: int, name: str, forkserver: ForkServerContext, tmp_path: Path, uninterrupted: Whole
) -> None:
    path = tmp_path / "run"
    trainer = Trainer(forkserver, path, patch=("limit_files_from", point, size), **ONE)
    assert trainer.wait() == 5, trainer.said()
    until = time.monotonic() + 10
    while "File too large" not in trainer.said() and time.monotonic() < until:
        time.sleep(0.01)
    assert re.search(rf"cannot write .*/{name} \(File too large\): [\d,]+ bytes are", trainer.said()), trainer.said()
    assert not list(path.rglob(".tmp-*"))
    assert_killed_whole(path)
    again = Trainer(forkserver, path, **ONE)
    assert again.wait() == 0, again.said()
    assert_same_run(path, uninterrupted(ONE))
