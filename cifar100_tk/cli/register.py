"""The --register option: a Python file to run before a model is opened, such as one that registers a network with timm."""

from __future__ import annotations

import runpy
from pathlib import Path

from cifar100_tk.errors import CifarError, ConfigError


def check_register(path: Path | None) -> None:
    """Raise ConfigError if the file of --register does not exist."""
    if path is not None and not path.is_file():
        raise ConfigError(f"--register {path} does not exist; give a Python file.")


def run_register(path: Path | None) -> None:
    """Run the file of --register, if one is given. Any error in it becomes a ConfigError that names file and line."""
    if path is None:
        return
    try:
        runpy.run_path(str(path))
    except CifarError:
        raise
    except SystemExit as error:
        raise ConfigError(
            f"--register {path} ended the program (exit code {error.code}{_line(path, error)}); it must only register, so move "
            'code that runs a command under if __name__ == "__main__":.'
        ) from error
    except Exception as error:
        message = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ConfigError(
            f"--register {path} fails ({message}{_line(path, error)}); run it by itself and fix it."
        ) from error


def _line(path: Path, error: BaseException) -> str:
    """Return the last line of the file that was executed, as ", line 3"; a SyntaxError already names it."""
    lines = []
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == str(path):
            lines.append(trace.tb_lineno)
        trace = trace.tb_next
    return f", line {lines[-1]}" if lines else ""
