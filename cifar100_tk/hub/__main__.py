"""`python -m cifar100_tk.hub build|check|push|space`: publish a run on the Hugging Face Hub, measured again before it goes up."""

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

# torch, timm and huggingface_hub take seconds to import: huggingface_hub, which judges an id and a token, when there is a
# command, and the others when the arguments are known to be good.

PROGRAM: Final = "python -m cifar100_tk.hub"
STALE_OF_SPACE: Final = re.compile(r"(?:cifar100_tk|examples)/.+")
"""What an older push of a Space may have left: removed by the same commit where the new one has it not."""


@dataclass(frozen=True, kw_only=True)
class DataChoice:
    """Which images the figures are measured again on; if not given, those of the run."""

    source: str | None = None
    """hub, shapes100, or the path of a local copy, which must hold the images that the run had."""


@dataclass(frozen=True, kw_only=True)
class Checked(RegisterOption):
    """What building and pushing have in common."""

    data: DataChoice = field(default_factory=DataChoice)
    """The images."""
    check: bool = True
    """Measure again in a fresh process before anything goes up; with --no-check the card says that nobody did."""
    license: str | None = None
    """Of the weights, as the Hub names it; if not given what an existing card says, else apache-2.0."""

    def build(self, run: Path, to: Path) -> str:
        """Build a run as these options say. Returns the sentence that says how it was checked."""
        from cifar100_tk.hub import folder

        return folder.build(
            run, to, check=self.check, source=self.data.source, register=self.register, license=self.license
        )


@final
@dataclass(frozen=True, kw_only=True)
class Build(Checked):
    """Write the folder that a push uploads, without a network, and measure it again."""

    run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    """A finished run folder."""
    to: Path
    """The folder to write; it must not be there yet."""

    def execute(self) -> None:
        """Build, and say what to do next."""
        from cifar100_tk.hub.card import PLACEHOLDER

        self.build(self.run, self.to)
        print(f"built {self.to}; upload it with: {PROGRAM} push {shlex.quote(str(self.to))} {PLACEHOLDER}", flush=True)


@final
@dataclass(frozen=True, kw_only=True)
class Check(RegisterOption):
    """Load a built folder through timm, measure it again, and compare with what it claims. Exit code 3 if that differs."""

    folder: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="FOLDER")]
    """A folder that `build` wrote."""
    data: DataChoice = field(default_factory=DataChoice)
    """The images."""
    output: Path | None = None
    """Also write to this file, as text, the sentence that the card carries."""

    def execute(self) -> None:
        """Check, and say what came out."""
        self.run_registered()
        from cifar100_tk.hub import measurement

        sentence = measurement.check(self.folder, self.data.source)
        print(sentence, flush=True)
        if self.output is not None:
            atomic.write_file(self.output, sentence.encode())


@final
@dataclass(frozen=True, kw_only=True)
class Push(Checked):
    """Upload a run, or a folder that `build` wrote, as one commit. The token is that of `hf auth login` or $HF_TOKEN."""

    run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    """A finished run folder, or a folder that `build` wrote."""
    repo: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="USER/NAME")]
    """Where to, made if it is not there."""
    private: bool = False
    """Make the repository private; one that is public already is then refused."""
    revision: str | None = None
    """The branch to commit to, made from main if it is not there; main if not given."""
    create_pr: bool = False
    """Open a pull request rather than change the branch."""

    def execute(self) -> None:
        """Build if need be, check, and upload as one commit. Nothing goes up before the check has passed."""
        from cifar100_tk.hub import card, card_data, folder, process
        from cifar100_tk.hub.upload import check_id, check_token, upload

        check_id(self.repo)
        if self.create_pr and self.revision:
            raise ConfigError(
                "--create-pr opens a pull request against main, so it takes no --revision; give one of them."
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
    """Write or push a Space, a page on the Hub where people try a published model."""

    repo: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="USER/NAME")]
    """The Space's own id."""
    model: Annotated[str, tyro.conf.arg(metavar="USER/MODEL")]
    """The published model that it shows."""
    to: Path | None = None
    """Write the Space to this folder, which must not be there yet, rather than push it."""
    private: bool = False
    """Make the Space private; one that is public already is then refused."""
    revision: str | None = None
    """Branch, tag or commit of the model to show; main if not given."""
    title: str | None = None
    """Of the Space; the model's name if not given."""
    license: str = "apache-2.0"
    """Of the Space, as the Hub names it."""
    register: Path | None = None
    """A Python file that registers a network of your own with timm, copied along."""
    examples: Path | None = None
    """A folder of images to offer, copied along."""

    def execute(self) -> None:
        """Build, and upload unless only a folder was asked for; a push writes all of it anew, as one commit."""
        from cifar100_tk.hub.upload import check_id, check_token, upload

        check_id(self.repo)
        check_id(self.model)
        if self.to is not None:
            self.build(self.to)
            print(f"built {self.to}; python app.py in it serves the page, and without --to it is pushed", flush=True)
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
        """Write the folder of the Space, and return it."""
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
    """Run one command. arguments: those after the program's name; None takes the process's own."""
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
            raise StoppedError("stopped before anything was published; the same command can be given again.") from error


if __name__ == "__main__":
    main()
