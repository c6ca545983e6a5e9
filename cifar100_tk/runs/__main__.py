"""List and compare runs, and verify their checkpoints."""

from __future__ import annotations

import functools
import os
import shlex
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import tyro

from cifar100_tk.cli.arguments import parse
from cifar100_tk.errors import ConfigError, DataError, ResumeError, exit_on_error
from cifar100_tk.runs import listing
from cifar100_tk.runs.checkpoint import BAD, PREFIX, read, survey
from cifar100_tk.storage import failpoint
from cifar100_tk.storage.json_files import read_or_nothing


def main() -> None:
    """Run `python -m cifar100_tk.runs` and end the process with the exit code that fits."""
    program = "python -m cifar100_tk.runs"
    with exit_on_error(program):
        commands: Any = {
            "list": list_runs,
            "compare": compare_runs,
            "verify": verify_run,
            "verify-resume": verify_resume,
        }
        as_calls = {name: _as_call(command) for name, command in commands.items()}
        parse(lambda: tyro.extras.subcommand_cli_from_dict(as_calls, prog=program, description=__doc__))()


def _as_call(command: Callable[..., None]) -> Callable[..., Callable[[], None]]:
    """Return a function that only binds the arguments, so that the command runs after they have been validated."""

    @functools.wraps(command)
    def bind(*given: Any, **named: Any) -> Callable[[], None]:
        return functools.partial(command, *given, **named)

    return bind


def list_runs(
    folders: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="FOLDER")] = (Path("runs"),),
) -> None:
    """List runs: status, epochs, result, time, and the recipe in brief.

    Args:
        folders: Run folders, or folders that hold some; defaults to runs.
    """
    print(listing.table(listing.find(folders)))


def compare_runs(
    folders: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="RUN")],
) -> None:
    """Compare runs: the table of `list`, and every part of the recipe that differs.

    Args:
        folders: Run folders, or folders that hold some.
    """
    runs = listing.find(folders)
    if len(runs) < 2:
        raise ConfigError(f"{runs[0].path} is one run; give two or more to compare.")
    print(listing.table(runs))
    print(f"\n{listing.comparison(runs) or 'the recipes are the same, seeds included.'}")


def verify_run(run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]) -> None:
    """Verify every checkpoint of a run folder against its manifest. Changes nothing; the run may be in progress.

    Args:
        run: A run folder.
    """
    folder = run / "checkpoints"
    if not (run / "recipe.json").is_file():
        raise DataError(f"{run} is not a run folder (it holds no recipe.json); give the --output-dir of a run.")
    found = survey(folder)
    for path, error in found.items():
        print(f"{path.name}: {error or 'valid'}")
    if read_or_nothing(run / "run_status.json").get("status") == "finished":
        print(f"the run is finished; its model is in {run / 'model'}; --extend-to trains it further.")
    elif not found and not any(folder.glob(f"{BAD}*")):
        print(f"{folder} holds no checkpoint yet; the run starts at the first step.")
    elif all(found.values()):
        raise ResumeError(f"no valid checkpoint in {folder}; start again with another --output-dir.")
    else:
        print(f"the same command resumes from {max(path.name for path, error in found.items() if error is None)}.")


def verify_resume(
    recipe: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RECIPE")], steps: int = 4, more: str = ""
) -> None:
    """Check on this machine that a killed and resumed run ends bit for bit like an uninterrupted one.

    Trains two short epochs of a recipe in a temporary folder, then again with a `kill -9` in the middle.

    Args:
        recipe: A recipe file.
        steps: Steps in each of the two epochs.
        more: Further arguments for the recipe, in one string: --more="--data.source shapes100 --deterministic".
    """
    if not recipe.is_file():
        raise ConfigError(f"{recipe} is not a file; give a recipe such as recipes/quickstart.py.")
    if steps < 2:
        raise ConfigError(f"--steps {steps} is too short to kill a run in the middle of an epoch; give 2 or more.")
    limits = [
        "--epochs",
        "2",
        "--limit-train-batches",
        str(steps),
        "--limit-eval-batches",
        "1",
        "--checkpoint-every",
        "1",
    ]
    killed_at = f"step-{steps + steps // 2:08d}.done:1"
    with tempfile.TemporaryDirectory() as scratch:
        whole, parts = Path(scratch) / "whole", Path(scratch) / "parts"
        for path, fail_at in ((whole, ""), (parts, killed_at), (parts, "")):
            print(f"{path.name}: training{', to be killed' * bool(fail_at)} ...", flush=True)
            command = [sys.executable, str(recipe), *limits, "--output-dir", str(path), *shlex.split(more)]
            environment = os.environ | {failpoint.VARIABLE: fail_at}
            ended = subprocess.run(command, env=environment, capture_output=True, text=True)
            if ended.returncode != (-signal.SIGKILL if fail_at else 0):
                raise ResumeError(
                    f"{shlex.join(command)} ended with {ended.returncode}: {ended.stderr.strip()[-2000:]}"
                )
        resumed, uninterrupted = (
            read(path / "checkpoints" / f"{PREFIX}{2 * steps:08d}").tensors for path in (parts, whole)
        )
    different = {
        f"{file}: {name}": (resumed[file][name].double() - tensor.double()).abs().max().item()
        for file, tensors in uninterrupted.items()
        for name, tensor in tensors.items()
        if not resumed[file][name].equal(tensor)
    }
    count = sum(map(len, uninterrupted.values()))
    if different:
        worst = max(different, key=lambda name: different[name])
        raise ResumeError(
            f"{len(different)} of {count} tensors are not bit for bit the same, {worst} by up to {different[worst]:.3g}; on a "
            'GPU add --more="--deterministic" for kernels that give the same bits each time.'
        )
    print(
        f"killed after step {steps + steps // 2} of {2 * steps} and resumed: all {count} tensors are the same, bit for bit."
    )


if __name__ == "__main__":
    main()
