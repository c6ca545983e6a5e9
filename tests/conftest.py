"""What every test stands on (no network, no file outside temporary folders), and the fixtures that several files use."""

from __future__ import annotations

import gc
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

# A fixture imports what it needs when it is first used: a test of words should not wait for torch.
if TYPE_CHECKING:
    from multiprocessing.context import ForkServerContext

    from data_fixtures import Copy
    from interrupted import Whole

    from cifar100_tk.data import Split

# Set before anything imports the Hugging Face libraries, which read these once. Subprocesses inherit them.
_CACHE = tempfile.mkdtemp(prefix="cifar100_tk-tests-")
os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HOME": f"{_CACHE}/huggingface", "XDG_CACHE_HOME": _CACHE}
# The networks are too small for threads, which wait for each other by spinning; two workers of `-n 2` would starve. Torch reads
# this when it is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")


# Helpers whose assertions should say what differed.
pytest.register_assert_rewrite("commands", "interrupted", "runs")


@pytest.fixture(scope="session", autouse=True)
def _remove_the_cache() -> Iterator[None]:
    yield
    shutil.rmtree(_CACHE, ignore_errors=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    wants_gpu = [item for item in items if item.get_closest_marker("gpu")]
    if not wants_gpu:
        return
    import torch  # Takes seconds, so only when a GPU test has been collected.

    if not torch.cuda.is_available():
        for item in wants_gpu:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


def pytest_collection_finish() -> None:
    """Keep the garbage collector out of what collecting made: the package calls it where memory counts, up to 20 times a test."""
    gc.collect()
    gc.freeze()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say at the end of a run that the pages were not seen in a browser, which a green line would hide."""
    skipped = [report for report in terminalreporter.stats.get("skipped", []) if "chromium" in str(report.longrepr)]
    if skipped:
        terminalreporter.write_line(
            f"no chromium on PATH: skipped tests of pages in a browser: {len(skipped)}", yellow=True
        )


@pytest.fixture
def on_cpu() -> Iterator[None]:
    """A fresh Accelerate on the CPU, where results are the same every time."""
    from runs import cpu

    with cpu():
        yield


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache for decoded images."""
    monkeypatch.setenv("CIFAR100_TK_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="session")
def train_copy() -> Copy:
    from data_fixtures import NUM_TRAIN, Copy

    return Copy(NUM_TRAIN, seed=1)


@pytest.fixture(scope="session")
def test_copy() -> Copy:
    from data_fixtures import NUM_TEST, Copy

    return Copy(NUM_TEST, seed=2)


@pytest.fixture(scope="session")
def forkserver() -> Iterator[ForkServerContext]:
    """A server of processes that have imported the tests' recipes and started no thread."""
    from forks import server

    with server() as context:
        yield context


@pytest.fixture(scope="session")
def uninterrupted(forkserver: ForkServerContext, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """Gives the uninterrupted run of some options, trained when first asked for."""
    from forks import Trainer
    from runs import SHAPES

    # In the cache beforehand: writing them is no moment of a run, and they are drawn with keyed draws, never broken ones.
    for split in ("train", "test"):
        SHAPES.open(split)
    trained: dict[str, Path] = {}

    def run(options: dict[str, Any]) -> Path:
        if str(options) not in trained:
            path = trained[str(options)] = tmp_path_factory.mktemp("whole") / "run"
            trainer = Trainer(forkserver, path, fail_at="never:0", **options)
            assert trainer.wait() == 0, trainer.said()
        return trained[str(options)]

    return run


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of two epochs with its evaluation of 100 images, which nothing may change."""
    from runs import run_once

    return run_once(tmp_path_factory, name="net")


@pytest.fixture(scope="session")
def built_report(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of the finished run."""
    from cifar100_tk import report

    return report.build([finished_run], tmp_path_factory.mktemp("report") / "to")


@pytest.fixture(scope="session")
def ema_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run of EMA, evaluated and saved after each of its two epochs, which nothing may change."""
    from runs import EMA, run_once

    return run_once(tmp_path_factory, EMA, eval_every=1, checkpoint_every=1)


@pytest.fixture(scope="session")
def split() -> Split:
    """100 training images, with a holdout, so that the rows of the store are not the places in the split."""
    from cifar100_tk.data import Cifar100

    return Cifar100(source="shapes100", shapes100_rows=(200, 100), holdout=100).open("train")
