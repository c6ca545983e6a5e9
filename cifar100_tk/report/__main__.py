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
    """Write an HTML report of one run, or of several side by side; it opens offline."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN [RUN ...]")]
    """Run folders, finished or not. Runs of one recipe with different seeds are averaged."""
    to: Path | None = None
    """Output folder. Default: RUN/report, or for several runs a folder `report` next to them."""

    def __post_init__(self) -> None:
        if not self.runs:
            raise ConfigError("no RUN given; pass at least one run folder, such as runs/quickstart.")

    @property
    def folder(self) -> Path:
        """The output folder."""
        if self.to is not None:
            return self.to
        if len(self.runs) == 1:
            return self.runs[0] / "report"
        parents = {run.resolve().parent for run in self.runs}
        if len(parents) > 1:
            raise ConfigError(
                f"the {len(self.runs)} runs are in {len(parents)} different folders; choose the output folder with --to."
            )
        return self.runs[0].parent / "report"


def main() -> None:
    """Run the command and exit with its exit code."""
    program = "python -m cifar100_tk.report"
    with exit_on_error(program):
        refuse_several(program)
        options = parse(lambda: tyro.cli(ReportOptions, prog=program))
        print(f"report written to {build(options.runs, options.folder)}", flush=True)


if __name__ == "__main__":
    main()
