"""A compiled run: bare names in every file, one graph, no compiling after the first step, and the weights of a plain run."""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import Literal

import pytest
import torch
from runs import SHAPES, forget, newest, on_cpu, run, run_once, tiny
from safetensors import safe_open
from torch._dynamo.utils import counters

from cifar100_tk.errors import ConfigError
from cifar100_tk.launch import start_accelerator
from cifar100_tk.models import TimmModel
from cifar100_tk.optim import Ema
from cifar100_tk.plan import Plan, RunOptions

__all__ = ["on_cpu"]
pytestmark = pytest.mark.usefixtures("on_cpu")

SMALL = tiny(model=TimmModel(name="resnet10_cifar_w16"), ema=Ema())
"""With BatchNorm and an average, two epochs of five steps."""


@pytest.fixture(autouse=True)
def _count_from_zero() -> None:
    torch._dynamo.reset()
    counters.clear()


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run without compiling."""
    return run_once(tmp_path_factory, SMALL, eval_every=1)


def names(path: Path) -> dict[str, set[str]]:
    """The names of every tensor in every file of a run."""
    found = {}
    for file in sorted(path.rglob("*.safetensors")):
        with safe_open(file, "pt") as opened:
            found[str(file.relative_to(path))] = set(opened.keys())
    return found


def assert_one_graph(path: Path, plain: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Assert what any way to compile must keep, and that it compiled at all."""
    # Compiled once, for both epochs and across the evaluations between them.
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"] and not counters["recompile_limit"]
    assert names(path) == names(plain) and len(names(path)) == 7  # Two checkpoints of three files, and the model.
    ours, theirs = newest(path), newest(plain)
    for file in ("model", "ema"):
        # The weights moved by 0.06; sums in another order are amplified by ten steps of BatchNorm over 20 pictures.
        torch.testing.assert_close(ours.tensors[file], theirs.tensors[file], rtol=1e-2, atol=5e-4)
    said = capsys.readouterr().out
    assert re.search(r"device .*, compiled\n", said)
    assert len(re.findall(r"^compiled, with the first step, in .* s$", said, re.MULTILINE)) == 1


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compile with a backend that takes the same graphs as Inductor and writes no C++."""
    monkeypatch.setattr(torch.nn.Module, "compile", functools.partialmethod(torch.nn.Module.compile, backend="eager"))


@pytest.mark.usefixtures("quick")
def test_a_compiled_run_is_one_graph_with_bare_names(
    plain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(tmp_path / "run", SMALL, eval_every=1, compile="on")
    assert_one_graph(tmp_path / "run", plain, capsys)


@pytest.mark.slow  # Inductor compiles C++ for more than a minute.
def test_inductor_gives_the_weights_of_a_plain_run(
    plain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(tmp_path / "run", SMALL, eval_every=1, compile="on")
    assert_one_graph(tmp_path / "run", plain, capsys)


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_accelerate_s_own_setting_compiles_too(
    plain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    # As `accelerate launch --dynamo_backend` sets it; this backend takes the same graph and is quicker to start.
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "EAGER")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", precision)
    forget()
    if precision == "no":
        run(tmp_path / "run", SMALL, eval_every=1)
        assert_one_graph(tmp_path / "run", plain, capsys)
    else:
        run(tmp_path / "run", SMALL, compile="on")  # Both asked for: compiled once all the same.
        assert counters["stats"]["unique_graphs"] == 1 and not counters["graph_break"]
        assert names(tmp_path / "run") == names(plain)


@pytest.mark.parametrize(
    ("asked", "device", "epochs", "compiled"),
    [
        ("auto", "cuda", 199, False),  # 995 steps.
        ("auto", "cuda", 200, True),
        ("auto", "cpu", 200, False),
        ("off", "cuda", 200, False),
        ("on", "cpu", 1, True),
    ],
)
def test_auto_compiles_where_there_is_a_gpu_and_the_run_is_long(
    tmp_path: Path, asked: Literal["auto", "on", "off"], device: str, epochs: int, compiled: bool
) -> None:
    accelerator = start_accelerator(tmp_path)
    accelerator.state.device = torch.device(device)
    options = RunOptions(compile=asked, pipeline="host")
    plan = Plan.of(tiny(epochs=epochs), options, accelerator, SHAPES.open("train"))
    assert plan.compiles is plan.compile is compiled


def test_compile_off_against_the_launcher_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR")
    forget()
    with pytest.raises(
        ConfigError, match=r"--compile off, but the launcher asks for torch\.compile; launch with --dyn"
    ):
        run(tmp_path / "run", SMALL, compile="off")


@pytest.mark.usefixtures("quick")
def test_a_short_last_piece_is_compiled_once_more_and_never_again(tmp_path: Path) -> None:
    run(tmp_path / "run", SMALL, compile="on", micro_batch=12)
    # Pieces of 12 and 8 pictures.
    assert counters["stats"]["unique_graphs"] == 2 and not counters["graph_break"]
