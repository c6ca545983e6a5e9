"""A command of a single process that a launcher starts several times says so, and writes nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from commands import exit_code
from processes import torchrun
from written_runs import folder

from cifar100_tk import import_weights, predict
from cifar100_tk.demo.__main__ import main as demo
from cifar100_tk.export import __main__ as export
from cifar100_tk.hub.__main__ import main as hub
from cifar100_tk.report.__main__ import main as report

COMMANDS = {
    "report": report,
    "predict": predict.main,
    "export": export.main,
    "import_weights": import_weights.main,
    "hub": hub,
    "demo": demo,
}


@pytest.mark.parametrize(("name", "main"), COMMANDS.items(), ids=COMMANDS)
def test_several_processes_are_refused_before_anything_else_is_looked_at(
    name: str, main: Callable[[], None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert exit_code(main, "no/such/thing") == 2
    program = f"python -m cifar100_tk.{name}"
    assert capsys.readouterr().err == (
        f"{program}: a launcher started 2 processes (WORLD_SIZE), but this command runs as one; start it directly: {program}\n"
    )
    for alone in ("1", ""):  # What a launcher of one process sets, and a script that unsets it.
        monkeypatch.setenv("WORLD_SIZE", alone)
        assert exit_code(main, "--help") == 0
        assert "launcher" not in capsys.readouterr().err


@pytest.mark.distributed
def test_two_real_processes_write_no_report(tmp_path: Path) -> None:
    run = folder(tmp_path / "net")
    before = sorted(run.rglob("*"))
    script = tmp_path / "script.py"
    script.write_text("from cifar100_tk.report.__main__ import main\nmain()\n")
    ended = torchrun(script, run)
    assert ended.returncode != 0
    assert (
        "cifar100_tk.report: a launcher started 2 processes (WORLD_SIZE), but this command runs as one" in ended.stderr
    )
    assert sorted(run.rglob("*")) == before
