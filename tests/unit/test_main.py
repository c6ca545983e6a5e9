"""cifar100-tk: every command under one name."""

from __future__ import annotations

import re
import runpy
import subprocess
from pathlib import Path

import pytest
from commands import exit_code, said

from cifar100_tk import __main__ as command_line
from cifar100_tk.__main__ import COMMANDS, main
from cifar100_tk.cli.recipes import path_of, recipes

ROOT = Path(__file__).parents[2]


def test_the_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["--help"]):
        assert exit_code(main, *arguments) == 0
        shown = said(capsys)
        assert all(name.replace("_", "-") in shown for name in COMMANDS)


def test_every_module_with_a_command_line_is_a_command() -> None:
    package = ROOT / "cifar100_tk"
    folders = {path.parent.name for path in package.glob("*/__main__.py")}
    files = {path.stem for path in package.glob("*.py") if '__name__ == "__main__"' in path.read_text()} - {"__main__"}
    assert folders | files == COMMANDS.keys() - {"train", "recipes", "completion"}


def test_a_command_runs_as_its_module_does(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert exit_code(main, "runs", "list", tmp_path / "nowhere") == 2
    assert "nowhere is not a folder" in said(capsys)
    assert exit_code(main, "import-weights", "--help") == 0
    assert "usage: python -m cifar100_tk.import_weights" in said(capsys)


def test_measuring_nothing_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(main, "eval") == 2
    assert "no MODEL given; give one or more run folders" in said(capsys)


def test_a_recipe_is_trained_by_its_name_or_its_path(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = tmp_path / "mine.py"
    mine.write_text("import sys\nprint(__name__, sys.argv)\n")
    assert exit_code(main, "train", mine, "--epochs", "3") == 0
    assert f"__main__ ['{mine}', '--epochs', '3']" in said(capsys)
    # An installed package finds its recipes by the list of files that pip has written.
    monkeypatch.setattr(command_line, "recipes", lambda: {"mine": mine})
    assert exit_code(main, "train", "mine") == 0
    assert f"['{mine}']" in said(capsys)


@pytest.mark.parametrize("typed", ["quickstart", "recipes/quickstart.py"])
def test_the_help_of_a_recipe_shows_the_command_that_was_typed_in_flowing_sentences(
    typed: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("COLUMNS", "100")
    assert exit_code(main, "train", typed, "--help") == 0
    rows = capsys.readouterr().out.splitlines()
    assert f"usage: cifar100-tk train {typed} [-h] [OPTIONS]" in rows
    # The docstring of the recipe is wrapped anew, with its command on a line of its own.
    about = rows[: rows.index("    accelerate launch recipes/quickstart.py")]
    assert all(len(row) <= 100 for row in about) and "5 seeds, mean and sample standard deviation, one" in " ".join(
        about
    )
    assert about[3].startswith("84.42 +- 1.23 % top-1") and about[2] == about[-1] == ""
    # The source has a line break after "and".
    assert any("OUTPUT_DIR/seed-1 and so on; prints" in row for row in rows)


def test_the_help_of_a_script_shows_the_script(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)

    def run() -> None:
        runpy.run_path("recipes/quickstart.py", run_name="__main__")

    assert exit_code(run, "--help") == 0
    assert "usage: recipes/quickstart.py [-h] [OPTIONS]" in said(capsys)


def test_recipes_are_listed_with_their_titles(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(main, "recipes") == 0
    shown = capsys.readouterr().out
    for path in (ROOT / "recipes").glob("*.py"):
        assert f"\n{path.stem} " in f"\n{shown}"
    assert f"in {ROOT / 'recipes'}" in shown


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["trian"], "there is no command trian; give one of train, recipes,"),
        (["train"], "train needs a recipe first; give .*quickstart"),
        (["train", "--epochs", "3"], "train needs a recipe first"),
        (["train", "resnet51"], "there is no recipe resnet51; give .*resnet50"),
        (["recipes", "all"], "recipes takes no arguments, but all was given"),
        (["completion"], "there is no completion for no shell; give bash or zsh"),
        (["completion", "fish"], "there is no completion for fish; give bash or zsh"),
    ],
)
def test_mistakes_get_a_sentence(arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(main, *arguments) == 2
    assert re.search(sentence, said(capsys))


def test_bash_completes_commands_and_recipes(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(main, "completion", "bash") == 0
    script = capsys.readouterr().out
    for words, expected in ((["ex"], "export"), (["train", "quick"], "quickstart")):
        line = " ".join(["cifar100-tk", *words])
        ask = f"COMP_WORDS=({line}); COMP_CWORD={len(words)}; _cifar100_tk; echo ${{COMPREPLY[@]}}"
        done = subprocess.run(["bash", "-c", f"{script}\n{ask}"], capture_output=True, text=True, check=True)
        assert done.stdout.split() == [expected]


def test_a_recipe_file_of_ones_own_goes_before_one_of_the_package_with_its_name(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert path_of("resnet50.py", recipes()) == path_of("resnet50", recipes()) == recipes()["resnet50"]
    (tmp_path / "resnet50.py").touch()
    assert path_of("resnet50.py", recipes()) == Path("resnet50.py")
    assert path_of("resnet50", recipes()) == recipes()["resnet50"]
