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
    """A run that was asked to go on and has nothing valid to go on from."""

    exit_code = 4


class DiskError(CifarError, OSError):
    """A folder that cannot be written: full, over quota, read-only or not ours."""

    exit_code = 5


class NotFiniteError(CifarError, ArithmeticError):
    """A loss or gradient that is NaN or infinite."""

    exit_code = 6

    def __init__(self, message: str, images: Sequence[int] = ()) -> None:
        super().__init__(message)
        self.images = list(images)
        """Which training images went into it, as far as is known: rows of the data set."""


class LockedError(CifarError, RuntimeError):
    """A folder that another live process is writing."""

    exit_code = 7


class HubError(CifarError, RuntimeError):
    """The Hub cannot be reached, does not accept the token, or refuses what was asked."""

    exit_code = 8


class StoppedError(CifarError):
    """A run stopped by a signal, safe to resume."""

    exit_code = 75


class PeerError(CifarError):
    """Another process of the same run that ended or no longer answers; it says itself what happened to it."""


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
        print(f"{program}: {error.filename} is too long for a name of a file; give a shorter one.", file=sys.stderr)
        sys.exit(ConfigError.exit_code)


def install_excepthook(main: Any) -> None:
    """End a program whose own code raises a `CifarError` as `exit_on_error` does, if it is a recipe file.

    A recipe file builds its recipe while Python reads it, before it calls main. main: what it imports for that, by which it
    is known; any other program keeps its traceback.
    """
    before = sys.excepthook

    def show(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        at = trace
        while at is not None and at.tb_frame.f_globals.get("main") is not main:
            at = at.tb_next
        if at is None or not isinstance(error, CifarError):
            before(kind, error, trace)
            return
        with exit_on_error(f"{Path(at.tb_frame.f_code.co_filename).name}, line {at.tb_lineno}"):
            raise error

    sys.excepthook = show
