"""Command lines: usage errors in one sentence, and the options that several commands share."""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

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
        with contextlib.redirect_stderr(printed):
            result = cli()
    except SystemExit as end:
        if end.code == 2:
            raise ConfigError(_sentence(_unbroken(cli))) from None
        raise
    sys.stderr.write(printed.getvalue())
    return result


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
