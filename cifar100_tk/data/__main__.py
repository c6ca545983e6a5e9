"""The command line of the data: `python -m cifar100_tk.data prepare` and `... verify`."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, final

import tyro

from cifar100_tk.cli.arguments import parse
from cifar100_tk.data.copies import prepare, verify
from cifar100_tk.data.dataset import Cifar10, Cifar100, Data
from cifar100_tk.errors import DataError, exit_on_error

DataSet = Literal["cifar100", "cifar10"]
_PROGRAM = "python -m cifar100_tk.data"


@final
@dataclass(frozen=True, kw_only=True)
class Prepare:
    """Write a local copy (parquet in the Hub's layout) for use on machines without a network."""

    to: Path
    """The folder to write; it must not exist yet, or be empty."""
    source: str = "hub"
    """The source to copy: hub, shapes100, or the path of another local copy."""
    data_set: DataSet = "cifar100"
    """The data set."""
    shapes100_rows: tuple[int, int] = (50_000, 10_000)
    """Number of train and test images that shapes100 draws."""

    def run(self) -> None:
        """Write the copy and print how to use it."""
        data: Data = Cifar10(source=self.source)
        if self.data_set == "cifar100":
            data = Cifar100(source=self.source, shapes100_rows=self.shapes100_rows)
        for file in prepare(data, self.to):
            print(f"{file}: {file.stat().st_size / 1e6:.1f} MB")
        print(f"Use it with --data.source {shlex.quote(str(self.to))}")


@final
@dataclass(frozen=True, kw_only=True)
class Verify:
    """Read all of a local copy, check every row, and compare it with the published data set. Exit code 3 if it differs."""

    path: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="PATH")]
    """The copy: parquet, a save_to_disk folder, or the official cifar-100-binary folder or tar.gz."""
    data_set: DataSet = "cifar100"
    """The data set that it should be. The images of CIFAR-10 are recognized only in the published files."""
    custom: bool = False
    """The copy is meant to contain other images: check that it is well-formed and accept any images."""

    def run(self) -> None:
        """Read the copy and print a summary. Raises DataError if it is not the published data set."""
        data: Data = Cifar100(source=self.path) if self.data_set == "cifar100" else Cifar10(source=self.path)
        findings = verify(data)
        for finding in findings:
            print(finding, flush=True)
        differences = [difference for finding in findings if (difference := finding.difference)]
        if differences and not self.custom:
            raise DataError(
                f"{self.path} is not the published {data.published.name}: {'; '.join(differences)}. Download it again, or "
                "give --custom if it is meant to contain other data."
            )


def main() -> None:
    """Run one command and exit with its exit code."""
    commands: Any = (
        Annotated[Prepare, tyro.conf.subcommand("prepare")] | Annotated[Verify, tyro.conf.subcommand("verify")]
    )
    with exit_on_error(_PROGRAM):
        command: Prepare | Verify = parse(
            lambda: tyro.cli(commands, prog=_PROGRAM, description="Make local copies of the data, and check them.")
        )
        command.run()


if __name__ == "__main__":
    main()
