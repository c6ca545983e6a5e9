"""Publish a run on the Hugging Face Hub, after re-evaluating it."""

from __future__ import annotations

import re
import shlex
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Final, final

import tyro

from cifar100_tk.cli.arguments import RegisterOption, parse
from cifar100_tk.distributed.single_process import refuse_several
from cifar100_tk.errors import ConfigError, StoppedError, exit_on_error
from cifar100_tk.storage import atomic

# huggingface_hub, torch and timm take seconds to import: the first, which validates ids and tokens, is imported by each
# command, the others after the arguments are checked.

PROGRAM: Final = "python -m cifar100_tk.hub"
STALE_OF_SPACE: Final = re.compile(r"(?:cifar100_tk|examples)/.+")
"""Files of an earlier push of a Space, removed by the same commit unless the new push has them too."""


@dataclass(frozen=True, kw_only=True)
class DataChoice:
    """Data for the re-evaluation. Default: the data of the run."""

    source: str | None = None
    """hub, shapes100, or the path of a local copy; it must contain the images that the run used."""


@dataclass(frozen=True, kw_only=True)
class Checked(RegisterOption):
    """Options shared by build and push."""

    data: DataChoice = field(default_factory=DataChoice)
    """Images to re-evaluate on."""
    check: bool = True
    """Re-evaluate in a fresh process before uploading; with --no-check the card says that this was skipped."""
    license: str | None = None
    """License of the weights, as a Hub identifier. Default: that of an existing card, else of pretrained weights, else
    apache-2.0."""

    def build(self, run: Path, to: Path) -> str:
        """Build a run with these options. Returns the sentence for the card about the check."""
        from cifar100_tk.hub import folder

        return folder.build(
            run, to, check=self.check, source=self.data.source, register=self.register, license=self.license
        )


@final
@dataclass(frozen=True, kw_only=True)
class Build(Checked):
    """Write the folder that push uploads and re-evaluate it; works offline."""

    run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    """A finished run folder."""
    to: Path
    """Output folder; it must not exist yet."""

    def execute(self) -> None:
        """Build the folder and print the next command."""
        from cifar100_tk.hub.card import PLACEHOLDER

        self.build(self.run, self.to)
        print(f"built {self.to}; upload it with: {PROGRAM} push {shlex.quote(str(self.to))} {PLACEHOLDER}", flush=True)


@final
@dataclass(frozen=True, kw_only=True)
class Check(RegisterOption):
    """Load a built folder through timm, re-evaluate it, and compare with its figures. Exit code 3 if they differ."""

    folder: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="FOLDER")]
    """A folder that `build` wrote."""
    data: DataChoice = field(default_factory=DataChoice)
    """Images to re-evaluate on."""
    output: Path | None = None
    """Text file that the sentence for the card is also written to."""

    def execute(self) -> None:
        """Check the folder and print the result."""
        self.run_registered()
        from cifar100_tk.hub import measurement

        sentence = measurement.check(self.folder, self.data.source)
        print(sentence, flush=True)
        if self.output is not None:
            atomic.write_file(self.output, sentence.encode())


@final
@dataclass(frozen=True, kw_only=True)
class Push(Checked):
    """Upload a run, or a folder that `build` wrote, as one commit, with the token of `hf auth login` or $HF_TOKEN."""

    run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    """A finished run folder, or a folder that `build` wrote."""
    repo: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="USER/NAME")]
    """Repository to push to, created if it does not exist."""
    private: bool = False
    """Create the repository as private; an existing public repository is refused."""
    revision: str | None = None
    """Branch to commit to, created from main if it does not exist. Default: main."""
    create_pr: bool = False
    """Open a pull request instead of committing to main."""

    def execute(self) -> None:
        """Build if necessary, check, and upload as one commit. Nothing is uploaded unless the check passes."""
        from cifar100_tk.hub import card, card_data, folder, process
        from cifar100_tk.hub.upload import check_id, check_token, upload

        check_id(self.repo)
        if self.create_pr and self.revision:
            raise ConfigError(
                "--create-pr opens a pull request against main and cannot be combined with --revision; use one of them."
            )
        check_token()
        with tempfile.TemporaryDirectory() as scratch:
            built, written = Path(scratch) / "model", ""
            if folder.is_built(self.run):
                folder.copy(self.run, built)
                checked = process.checked(built, check=self.check, source=self.data.source, register=self.register)
                written = card.read(built)
            else:
                checked = self.build(self.run, built)
            known = card_data.of_folder(built, checked)
            upload(
                folder.published(built),
                self.repo,
                readme=lambda theirs: card.write(known, self.repo, license=self.license, existing=[theirs, written]),
                private=self.private,
                revision=self.revision,
                create_pr=self.create_pr,
                message=f"{known.architecture}, {' and '.join(known.evaluations)}",
            )


@final
@dataclass(frozen=True, kw_only=True)
class Space(RegisterOption):
    """Write or push a Space: a page on the Hub for trying a published model."""

    repo: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="USER/NAME")]
    """Id of the Space."""
    model: Annotated[str, tyro.conf.arg(metavar="USER/MODEL")]
    """Published model that the Space serves."""
    to: Path | None = None
    """Write the Space to this folder, which must not exist yet, instead of pushing it."""
    private: bool = False
    """Create the Space as private; an existing public Space is refused."""
    revision: str | None = None
    """Branch, tag or commit of the model. Default: main."""
    title: str | None = None
    """Title of the Space. Default: the name of the model."""
    license: str = "apache-2.0"
    """License of the Space, as a Hub identifier."""
    register: Path | None = None
    """Python file that registers a custom network with timm; copied into the Space."""
    examples: Path | None = None
    """Folder of example images; copied into the Space."""

    def execute(self) -> None:
        """Build the Space, and unless --to is given, push all of it as one commit."""
        from cifar100_tk.hub.upload import check_id, check_token, upload

        check_id(self.repo)
        check_id(self.model)
        if self.to is not None:
            self.build(self.to)
            print(f"built {self.to}; run python app.py in it to serve the page, or omit --to to push it", flush=True)
            return
        check_token()
        with tempfile.TemporaryDirectory() as scratch:
            folder = self.build(Path(scratch) / "space")
            files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
            upload(
                files,
                self.repo,
                private=self.private,
                message=f"The page of {self.model}",
                repo_type="space",
                stale=STALE_OF_SPACE,
            )

    def build(self, to: Path) -> Path:
        """Write the folder of the Space and return its path."""
        from cifar100_tk.hub import space

        return space.build(
            self.model,
            to,
            revision=self.revision,
            title=self.title,
            license=self.license,
            register=self.register,
            examples=self.examples,
        )


def main(arguments: list[str] | None = None) -> None:
    """Run one command. arguments: without the program name; None uses sys.argv."""
    with exit_on_error(PROGRAM):
        refuse_several(PROGRAM)
        words = sys.argv[1:] if arguments is None else arguments
        commands: Any = (
            Annotated[Build, tyro.conf.subcommand("build")]
            | Annotated[Check, tyro.conf.subcommand("check")]
            | Annotated[Push, tyro.conf.subcommand("push")]
            | Annotated[Space, tyro.conf.subcommand("space")]
        )
        command: Build | Check | Push | Space = parse(
            lambda: tyro.cli(commands, prog=PROGRAM, args=words, description=__doc__), words
        )
        try:
            command.execute()
        except KeyboardInterrupt as error:
            raise StoppedError(
                "stopped before anything was published; run the same command again to publish."
            ) from error


if __name__ == "__main__":
    main()
