"""Evaluates in a fresh process, so that the result depends on the files alone."""

from __future__ import annotations

import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from cifar100_tk.errors import CifarError, ConfigError, DataError, DiskError, HubError
from cifar100_tk.storage.json_files import Json

if TYPE_CHECKING:
    from cifar100_tk.runs.summary import Run


def checked(folder: Path, *, check: bool, source: str | None, register: Path | None, of: Path | None = None) -> str:
    """Run `python -m cifar100_tk.hub check` on a built folder, unless check is False. Returns the sentence for the card.

    of: the run it was built from; errors name it instead of the temporary folder.
    """
    if not check:
        return "These are the run's own figures; they were not re-evaluated before publishing."
    with tempfile.TemporaryDirectory() as scratch:
        output = Path(scratch) / "sentence"
        _run(
            "cifar100_tk.hub", ["check", str(folder), *_options(source, register), "--output", str(output)], folder, of
        )
        return output.read_text()


def evaluate(run: Run, *, source: str | None, register: Path | None) -> Json:
    """Evaluate a run without an evaluation, and compare with its last epoch. Raises DataError if they differ."""
    from cifar100_tk.evaluation.files import read_result
    from cifar100_tk.hub.verify import compare

    with tempfile.TemporaryDirectory() as scratch:
        output = Path(scratch) / "evaluation.json"
        arguments = [str(run.path), "--split", run.split, *_options(source, register), "--output", str(output)]
        _run("cifar100_tk.eval", arguments)
        result = read_result(output)
    if run.measured is not None:
        claim = result | {"top1": run.measured.top1, "top5": run.measured.top5}
        compare(claim, result, exact=False, where=f"{run.path} at its last epoch")
    return result


def _options(source: str | None, register: Path | None) -> list[str]:
    given = {"--data.source": source, "--register": register}
    return [word for name, value in given.items() if value is not None for word in (name, str(value))]


def _run(module: str, arguments: list[str], folder: Path | None = None, called: Path | None = None) -> None:
    """Run a command of this package and re-raise its error, with `folder` replaced by `called`."""
    command = [sys.executable, "-m", module, *arguments]
    ended = subprocess.run(command, stderr=subprocess.PIPE, text=True, errors="replace")
    if ended.returncode:
        lines = ended.stderr.strip().splitlines() or ["no error message"]
        kinds: dict[int, type[CifarError]] = {k.exit_code: k for k in (ConfigError, DataError, DiskError, HubError)}
        sentence = lines[-1].removeprefix(f"python -m {module}: ")
        if called is not None:
            said, begins, advice = sentence.partition(": python -m ")
            words = [word.replace(str(folder), str(called)) for word in shlex.split(advice)]
            sentence = said.replace(str(folder), str(called)) + begins + shlex.join(words)
        raise kinds.get(ended.returncode, DataError)(sentence)
