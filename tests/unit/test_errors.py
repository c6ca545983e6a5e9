"""How a command ends when something is wrong that none of its modules looks for."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial

import pytest
from commands import exit_code, said
from runs import TINY

from cifar100_tk import eval, import_weights, train
from cifar100_tk.errors import exit_on_error
from cifar100_tk.export import __main__ as export
from cifar100_tk.runs import __main__ as runs_command


@pytest.mark.parametrize(
    ("main", "arguments"),
    [
        (runs_command.main, ["verify"]),
        (eval.main, []),
        (export.main, ["--to", "onnx"]),
        (import_weights.main, ["--to", "model"]),
        (partial(train.main, TINY), ["--output-dir"]),
    ],
    ids=["checkpoint", "eval", "export", "import_weights", "train"],
)
def test_a_name_that_no_file_can_have_ends_with_a_sentence(
    main: Callable[[], None], arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code(main, *arguments, "x" * 300) == 2
    assert re.search(r"x{300}[\w./]* is too long for a file name; give a shorter one\.", said(capsys))


def test_a_closed_output_ends_a_command_without_a_word(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end, pytest.MonkeyPatch.context() as patch, open("/dev/null", "w") as closed:
        patch.setattr("sys.stderr", closed)
        with exit_on_error("program"):
            raise BrokenPipeError
    assert end.value.code == 0 and said(capsys) == ""


def test_an_error_of_our_own_making_keeps_its_traceback() -> None:
    for error in (ZeroDivisionError("ours"), FileNotFoundError("ours")):
        with pytest.raises(type(error), match="ours"), exit_on_error("program"):
            raise error
