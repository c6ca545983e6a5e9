"""The ways a command can end, each with its exit code, and the one place that turns an error into a sentence."""

from __future__ import annotations

import errno
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar


class CifarError(Exception):
    """Base of every error that a user can cause; its message is the sentence the user reads."""

    exit_code: ClassVar[int] = 1


class ConfigError(CifarError, ValueError):
    """A wrong argument, recipe or launch configuration."""

    exit_code = 2


class DataError(CifarError, ValueError):
    """Data or a model file that is missing, malformed or not what it claims to be."""

    exit_code = 3


class ResumeError(CifarError, ValueError):
    """A run that cannot resume because its folder has no valid checkpoint."""

    exit_code = 4


class DiskError(CifarError, OSError):
    """A folder that cannot be written: full, over quota, read-only or owned by somebody else."""

    exit_code = 5


class NotFiniteError(CifarError, ArithmeticError):
    """A loss or gradient that is NaN or infinite."""

    exit_code = 6

    def __init__(self, message: str, images: Sequence[int] = ()) -> None:
        super().__init__(message)
        self.images = list(images)
        """Data set rows of the training images in the failing step, as far as they are known."""


class LockedError(CifarError, RuntimeError):
    """A folder that another live process is writing."""

    exit_code = 7


class HubError(CifarError, RuntimeError):
    """The Hub cannot be reached, does not accept the token, or refuses the request."""

    exit_code = 8


class StoppedError(CifarError):
    """A run stopped by a signal, safe to resume."""

    exit_code = 75


class PeerError(CifarError):
    """Another process of the same run that exited or stopped responding; it prints its own error."""


@contextmanager
def exit_on_error(program: str) -> Iterator[None]:
    """End the process with one sentence on stderr and the right exit code for every `CifarError` raised inside.

    Any other exception is a bug in the program and keeps its traceback.
    """
    try:
        yield
    except CifarError as error:
        print(f"{program}: {error}", file=sys.stderr, flush=True)
        sys.exit(error.exit_code)
    except BrokenPipeError:  # `... | head` closed our output: nothing is wrong and nobody is listening.
        sys.stderr.close()
        sys.exit(0)
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        print(f"{program}: {error.filename} is too long for a file name; give a shorter one.", file=sys.stderr)
        sys.exit(ConfigError.exit_code)


def install_excepthook(main: Any) -> None:
    """Make an uncaught `CifarError` in a recipe file end the process as `exit_on_error` does.

    A recipe file builds its recipe at import time, before it calls main. main: the function that recipe files import, which
    identifies them; any other program keeps its traceback.
    """
    before = sys.excepthook

    def show(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        at = trace
        while at is not None and not _imports(at.tb_frame.f_globals, main):
            at = at.tb_next
        if at is None or not isinstance(error, CifarError):
            before(kind, error, trace)
            return
        with exit_on_error(f"{Path(at.tb_frame.f_code.co_filename).name}, line {at.tb_lineno}"):
            raise error

    sys.excepthook = show


def _imports(names: dict[str, Any], main: Any) -> bool:
    """Return whether the names of a module hold a function that another module defines."""
    return names is not main.__globals__ and names.get("main") is main
