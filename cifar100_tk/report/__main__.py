"""`python -m cifar100_tk.report RUN [RUN ...]`: the command line of the report."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from cifar100_tk.cli.arguments import parse
from cifar100_tk.distributed.single_process import refuse_several
from cifar100_tk.errors import ConfigError, exit_on_error
from cifar100_tk.report import build


@dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """Write an HTML report of a run, or of several side by side; it opens without a network."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN [RUN ...]")]
    """Run folders, finished or not. Runs of one recipe with different seeds are averaged."""
    to: Path | None = None
    """The folder to write; RUN/report if not given, for several runs the folder `report` beside them."""

    def __post_init__(self) -> None:
        if not self.runs:
            raise ConfigError("no RUN is given; name at least one run folder, such as runs/quickstart.")

    @property
    def folder(self) -> Path:
        """Where the report goes."""
        if self.to is not None:
            return self.to
        if len(self.runs) == 1:
            return self.runs[0] / "report"
        parents = {run.resolve().parent for run in self.runs}
        if len(parents) > 1:
            raise ConfigError(
                f"the {len(self.runs)} runs lie in {len(parents)} folders; say with --to where the report goes."
            )
        return self.runs[0].parent / "report"


def main() -> None:
    """Run the command and end the process with the exit code that fits."""
    program = "python -m cifar100_tk.report"
    with exit_on_error(program):
        refuse_several(program)
        options = parse(lambda: tyro.cli(ReportOptions, prog=program))
        print(f"report in {build(options.runs, options.folder)}", flush=True)


if __name__ == "__main__":
    main()
