"""Command lines: usage errors in one sentence, and the options that several commands share."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import io
import os
import re
import shutil
import sys
import tempfile
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from tyro.constructors import ConstructorRegistry, StructConstructorSpec, StructTypeInfo

from cifar100_tk.cli.register import check_register, run_register
from cifar100_tk.errors import ConfigError, DiskError

T = TypeVar("T")


def parse(cli: Callable[[], T], arguments: Sequence[str] | None = None) -> T:
    """Return what `cli`, a call of `tyro.cli`, returns. Raises ConfigError with one sentence instead of tyro's error box.

    arguments: the arguments to parse; None for those of the process.
    """
    for word in sys.argv[1:] if arguments is None else arguments:
        if not word or re.fullmatch(r"--[\w.-]+=", word):
            given = word or repr(word)
            raise ConfigError(
                f"{given} is an empty argument, perhaps an unset shell variable; give a value or leave it out."
            )
    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed), _flowing_help():
            result = cli()
    except SystemExit as end:
        if end.code == 2:
            raise ConfigError(_sentence(_unbroken(cli))) from None
        raise
    sys.stderr.write(printed.getvalue())
    return result


def print_about(text: str) -> None:
    """Print a docstring above the help, each paragraph wrapped at the width of the terminal; indented ones stay as they are."""
    width = shutil.get_terminal_size().columns
    for paragraph in inspect.cleandoc(text).split("\n\n"):
        print(paragraph if paragraph.startswith(" ") else textwrap.fill(paragraph, width, break_on_hyphens=False))
        print()


def _flowing_help() -> ConstructorRegistry:
    """Return a rule for tyro that gives each option its flowing description; tyro keeps the line breaks of a docstring."""
    registry, asked = ConstructorRegistry(), False

    @registry.struct_rule
    def rule(info: StructTypeInfo) -> StructConstructorSpec | None:
        nonlocal asked
        if asked or not dataclasses.is_dataclass(info.type):
            return None
        asked = True  # The next rule in turn is tyro's own.
        spec = ConstructorRegistry.get_struct_spec(info)
        asked = False
        if not isinstance(spec, StructConstructorSpec):
            return None
        fields = (dataclasses.replace(field, helptext=_later(field.helptext)) for field in spec.fields)
        return dataclasses.replace(spec, fields=tuple(fields))

    return registry


def _later(text: str | Callable[[], str | None] | None) -> Callable[[], str | None]:
    """Return a function that gives a flowing description when it is needed: only --help reads the sources for them."""

    def flowing() -> str | None:
        found = text() if callable(text) else text
        return found and re.sub(r"(?<!\n)\n(?!\n)", " ", inspect.cleandoc(found))

    return flowing


def _unbroken(cli: Callable[[], object]) -> str:
    """Return tyro's error output as on a terminal so wide that no line is wrapped."""
    printed, width = io.StringIO(), os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "100000"
    try:
        with contextlib.redirect_stderr(printed), contextlib.suppress(SystemExit):
            cli()
    finally:
        del os.environ["COLUMNS"]
        if width is not None:
            os.environ["COLUMNS"] = width
    return re.sub(r"\x1b\[[\d;]*m", "", printed.getvalue())


def _sentence(framed: str) -> str:
    """Return the message in tyro's error box, without its title, help texts and rules.

    >>> _sentence("╭─ Missing argument ─╮\\n│ Missing value for argument '--seed'. │\\n│ ─── │\\n│ For help │\\n╰───╯")
    "missing value for argument '--seed'; --help lists every option."
    """
    # Rows are indented instead if the output encoding has no box characters.
    rows = [re.sub(r"^(?:│ |  )| *│?$", "", row) for row in framed.strip("\n").splitlines()[1:]]
    message = "\n".join(row for row in rows if not row.startswith((" " * 8, "╰")))
    sections = (" ".join(section.split()) for section in re.split(r"^ ?[─-]{3,}$", message, flags=re.MULTILINE))
    message, *others = filter(None, sections)
    # An error raised by our own classes already contains its remedy.
    if own := re.fullmatch(r"Error parsing (?:[A-Z]?[a-z][\w.]*): (.*)", message):
        return own[1]
    message = re.sub(r"^Error parsing ", "", re.sub(r"^Missing from .*?: ", "missing: ", message)).removesuffix(".")
    hints = "".join(f"; {other[0].lower()}{other[1:]}" for other in others if other.startswith("Perhaps you meant"))
    return f"{message[0].lower()}{message[1:]}{hints}; --help lists every option."


def check_output(option: str, path: Path | None) -> None:
    """Raise ConfigError or DiskError for an output that could not be written after the long work; None passes."""
    if path is None:
        return
    folder = path.absolute().parent
    if not folder.is_dir():
        raise ConfigError(f"{option} {path}: the folder {folder} does not exist; create it first.")
    if path.is_dir():
        raise ConfigError(f"{option} {path} is a folder; give the name of a file in it.")
    if path.exists() and not path.is_file():
        raise ConfigError(f"{option} {path} is a device or a pipe, not a regular file; give another name.")
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise DiskError(
            f"{option} {path} cannot be written ({error.strerror}); choose a folder that you own."
        ) from error


@dataclass(frozen=True, kw_only=True)
class RegisterOption:
    """The option of commands that build networks by name."""

    register: Path | None = None
    """A Python file to run first, such as the recipe that registers a network of your own with timm."""

    def __post_init__(self) -> None:
        check_register(self.register)

    def run_registered(self) -> None:
        """Run the file, if one is given. Raises ConfigError where it fails."""
        run_register(self.register)


@dataclass(frozen=True, kw_only=True)
class ModelOptions(RegisterOption):
    """The options of commands that load models."""

    revision: str | None = None
    """Branch, tag or commit of a Hub id."""

    def check_revision(self, *models: str) -> None:
        """Raise ConfigError if a revision is given for a local folder."""
        for model in models:
            if self.revision is not None and Path(model).exists():
                raise ConfigError(
                    f"--revision {self.revision} applies to a Hub id, but {model} is a local folder; leave --revision out."
                )
