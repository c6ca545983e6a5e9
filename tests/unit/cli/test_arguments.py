"""Usage errors are one plain sentence, and what several commands share is refused alike by all of them."""

from __future__ import annotations

import re
import runpy
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import exit_code

from cifar100_tk import eval, import_weights, predict
from cifar100_tk.data.__main__ import main as data
from cifar100_tk.demo.__main__ import main as demo
from cifar100_tk.doctor import __main__ as doctor
from cifar100_tk.errors import DiskError
from cifar100_tk.export import __main__ as export
from cifar100_tk.hub.__main__ import main as hub
from cifar100_tk.report.__main__ import main as report
from cifar100_tk.runs import __main__ as runs_command
from cifar100_tk.storage import atomic

RECIPE = Path(__file__).parents[3] / "recipes" / "quickstart.py"
COMMANDS = [
    runs_command.main,
    data,
    demo,
    doctor.main,
    eval.main,
    export.main,
    hub,
    import_weights.main,
    predict.main,
    report,
]


def recipe() -> None:
    runpy.run_path(str(RECIPE), run_name="__main__")


def sentence(capsys: pytest.CaptureFixture[str]) -> str:
    """Return what was said, after asserting that it is one line without a frame."""
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1 and not re.search(r"[│╭╮╰╯─]|---|\|", said.err), said
    return said.err


@pytest.mark.parametrize("main", [*COMMANDS, recipe], ids=lambda main: f"{main.__module__}.{main.__name__}")
def test_an_unknown_option_is_refused_in_one_sentence(
    main: Callable[[], None], capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code(main, "--no-such-option", "3") == 2
    assert re.search(r": (unrecognized options: --no-such-option|expected one of |missing)", sentence(capsys))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["--optimizer.lr", "fast"],
            r"--optimizer.lr: could not convert string to float: 'fast'; --help lists every opt",
        ),
        (["--optimizer.lr", "-1"], r"optimizer.lr=-1.0 is out of range; .* 256 images\.$"),
        (["--optimizer.rate", "1"], r"unrecognized options: --optimizer.rate, 1; .*--help lists every option\.$"),
        (
            ["--pipeline", "quick"],
            r"invalid choice 'quick' for argument '--pipeline'. Expected one of \('auto', .*--help",
        ),
        (["--seed"], r"missing value for argument '--seed'"),
        (["--timeout-minutes", "-1"], r"--timeout-minutes -1.0 is out of range; .*give 30"),
        (
            ["--output-dir", ""],
            r"'' is an empty argument, perhaps an unset shell variable; give a value or leave it out",
        ),
        (["--data.source="], r"--data.source= is an empty argument"),
    ],
)
@pytest.mark.parametrize("columns", ["40", "200"])
def test_a_wrong_number_of_a_recipe_is_one_sentence_however_wide_the_terminal(
    arguments: list[str], said: str, columns: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    assert exit_code(recipe, *arguments) == 2
    assert re.search(said, sentence(capsys).strip())


@pytest.mark.parametrize(
    ("main", "arguments"),
    [
        (eval.main, []),
        (export.main, ["--to", "torch-export", "--output", "x.pt2"]),
        (predict.main, ["image.png"]),
        (demo, []),
    ],
)
def test_a_revision_of_a_local_folder_is_refused(
    main: Callable[[], None], arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code(main, tmp_path, *arguments, "--revision", "v2") == 2
    assert f"--revision v2 applies to a Hub id, but {tmp_path} is a local folder; leave --revision out" in sentence(
        capsys
    )


@pytest.mark.skipif(not Path("/sys/kernel").is_dir(), reason="needs a file system that takes no files, which Linux has")
def test_a_file_where_none_can_be_written_or_removed_is_a_disk_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(Path, "unlink", refuse)  # As on a read-only mount, where what is not there cannot be removed.
    with pytest.raises(DiskError, match=r"cannot write /sys/kernel/sheet.png \(.*\)"):
        atomic.write_file(Path("/sys/kernel/sheet.png"), b"")
