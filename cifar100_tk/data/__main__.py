"""The command line of the data: `python -m cifar100_tk.data prepare` and `... verify`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, final

import tyro

from cifar100_tk.data.copies import prepare, verify
from cifar100_tk.data.dataset import Cifar100
from cifar100_tk.errors import exit_with_sentence

_PROGRAM = "python -m cifar100_tk.data"


@final
@dataclass(frozen=True, kw_only=True)
class Prepare:
    """Write a local copy, parquet in the Hub's layout, which a machine without a network can then use."""

    to: Path
    """The folder to write; it must not be there yet, or be empty."""
    source: str = "hub"
    """What to copy: hub, shapes100, or the path of another local copy."""
    shapes100_rows: tuple[int, int] = (50_000, 10_000)
    """How many train and test pictures shapes100 draws."""

    def run(self) -> None:
        """Write it and say what to do with it."""
        data = Cifar100(source=self.source, shapes100_rows=self.shapes100_rows)
        for file in prepare(data, self.to):
            print(f"{file}: {file.stat().st_size / 1e6:.1f} MB")
        print(f"Use it with --data.source {self.to}")


@final
@dataclass(frozen=True, kw_only=True)
class Verify:
    """Read all of a local copy, check every row, and say which pictures it holds. Exit code 3 if anything is wrong."""

    path: Annotated[str, tyro.conf.Positional]
    """The copy: parquet, a save_to_disk folder, or the official cifar-100-binary folder or tar.gz."""

    def run(self) -> None:
        """Read it and print what was found."""
        for finding in verify(Cifar100(source=self.path)):
            print(finding, flush=True)


def main() -> None:
    """Run one command and end the process with the exit code that fits."""
    command: Prepare | Verify = tyro.cli(
        Annotated[Prepare, tyro.conf.subcommand("prepare")] | Annotated[Verify, tyro.conf.subcommand("verify")],
        prog=_PROGRAM,
        description="Make local copies of the data, and check them.",
    )
    with exit_with_sentence(_PROGRAM):
        command.run()


if __name__ == "__main__":
    main()
