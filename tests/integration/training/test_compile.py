"""A compiled run: bare names in every file, one graph, no compiling after the first step, and the weights of a plain run."""

from __future__ import annotations

import functools
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from processes import PROGRAMS
from runs import SHAPES, forget, newest, run, run_once, tiny
from safetensors import safe_open
from torch import Tensor, nn
from torch._dynamo.utils import counters

from cifar100_tk.distributed.launch import start_accelerator
from cifar100_tk.errors import ConfigError
from cifar100_tk.models import TimmModel
from cifar100_tk.optim import Ema
from cifar100_tk.training.compiling import allow_compiling, compile_network
from cifar100_tk.training.plan import Plan, RunOptions

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
    return run_once(tmp_path_factory, SMALL, eval_every=1, checkpoint_every=1)


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
        # The weights moved by 0.06; sums in another order are amplified by ten steps of BatchNorm over 20 images.
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
    run(tmp_path / "run", SMALL, eval_every=1, checkpoint_every=1, compile="on")
    assert_one_graph(tmp_path / "run", plain, capsys)


@pytest.mark.slow  # Inductor compiles C++ for more than a minute.
def test_inductor_gives_the_weights_of_a_plain_run(
    plain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(tmp_path / "run", SMALL, eval_every=1, checkpoint_every=1, compile="on")
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
        run(tmp_path / "run", SMALL, eval_every=1, checkpoint_every=1)
        assert_one_graph(tmp_path / "run", plain, capsys)
    else:
        run(tmp_path / "run", SMALL, compile="on", checkpoint_every=1)  # Both asked for: compiled once all the same.
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
    # Pieces of 12 and 8 images.
    assert counters["stats"]["unique_graphs"] == 2 and not counters["graph_break"]


def test_every_activation_of_the_compiled_graph_is_in_channels_last() -> None:
    seen: list[str] = []

    class Formats(torch.fx.Interpreter):
        def run_node(self, n: torch.fx.Node) -> Any:
            result = super().run_node(n)
            # Both formats are one where there is a single channel or pixel.
            if isinstance(result, Tensor) and result.ndim == 4 and result.shape[1] > 1 and result.shape[2] > 1:
                assert result.is_contiguous(memory_format=torch.channels_last), n.format_node()
                seen.append(n.op)
            return result

    net = TimmModel(name="resnet10_cifar_w16").build(100).to(memory_format=torch.channels_last)
    net.compile(dynamic=False, backend=lambda graph, _: Formats(graph).run)
    net(torch.randn(4, 3, 32, 32).to(memory_format=torch.channels_last)).sum().backward()
    assert counters["stats"]["unique_graphs"] == 1 and not counters["graph_break"]
    # Images, the 3x3 weights, and what every convolution, norm, activation and sum gives.
    assert len(seen) > 40


@pytest.mark.parametrize("ours", [True, False])
@pytest.mark.usefixtures("quick")
def test_a_process_compiles_more_shapes_than_torch_s_own_limit(ours: bool) -> None:
    net = nn.Sequential(nn.Linear(3, 3), nn.ReLU())
    with torch._dynamo.config.patch(recompile_limit=8, accumulated_recompile_limit=256):
        if ours:
            compile_network(net)
        else:
            net.compile(dynamic=False)
        for count in range(1, 13):
            net(torch.ones(count, 3))
    # Without our limit the ninth shape and all after it run eagerly.
    assert counters["stats"]["unique_graphs"] == (12 if ours else 8)


def test_compiled_code_is_kept_where_nobody_else_can_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CIFAR100_TK_CACHE", str(tmp_path / "cache"))

    def folder(chosen: str | None = None) -> Path:
        monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
        if chosen:
            monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", chosen)
        allow_compiling()
        return Path(os.environ["TORCHINDUCTOR_CACHE_DIR"])

    assert folder() == tmp_path / "cache" / "compiled" == folder()
    assert folder().stat().st_mode & 0o777 == 0o700
    assert folder(str(tmp_path / "chosen")) == tmp_path / "chosen"
    # torch unpickles what it finds there, so a folder that others can write to is not used.
    (tmp_path / "cache" / "compiled").chmod(0o777)
    apart = folder()
    assert apart.parent != tmp_path / "cache" and apart.stat().st_mode & 0o777 == 0o700
    apart.rmdir()


@pytest.mark.slow  # Inductor compiles C++ for more than a minute.
def test_a_second_process_finds_the_network_compiled(tmp_path: Path) -> None:
    variables = {name: value for name, value in os.environ.items() if name != "TORCHINDUCTOR_CACHE_DIR"}
    starts = []
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, str(PROGRAMS / "compile_once.py")],
            capture_output=True,
            text=True,
            check=True,
            env=variables | {"CIFAR100_TK_CACHE": str(tmp_path), "PYTHONPATH": str(Path(__file__).parents[3])},
        )
        starts.append([float(number) for number in done.stdout.split()])
    (*cold, cold_seconds), (*warm, warm_seconds) = starts
    print(f"cold {cold_seconds} s, warm {warm_seconds} s")
    assert cold == [0, 1] and warm == [1, 0]
    assert warm_seconds < cold_seconds / 2
