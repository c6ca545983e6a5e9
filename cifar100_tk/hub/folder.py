"""Builds the folder to publish from a run, without paths of this machine, and selects the files to upload."""

from __future__ import annotations

import contextlib
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from cifar100_tk.data import Data, source_name
from cifar100_tk.errors import CifarError, ConfigError, DataError
from cifar100_tk.hub import card, card_data, process
from cifar100_tk.hub.card_data import SPLITS
from cifar100_tk.storage import atomic
from cifar100_tk.storage.json_files import Json, to_bytes

# torch and timm take seconds to import, so they are imported when a run is built.

PUBLISHED: Final = re.compile(
    r"README\.md|config\.json|model\.safetensors|recipe\.json|metrics\.jsonl|environment\.json"
    rf"|evaluation/(?:{'|'.join(SPLITS)})\.json|report/[\w-]+\.png|tensorboard/events\.out\.tfevents\.\d+\.\d+"
)
"""Names of the files that are uploaded from a built folder; any others are ignored."""
REQUIRED: Final = ("config.json", "model.safetensors", "recipe.json", "metrics.jsonl")


def build(
    run: Path,
    to: Path,
    *,
    check: bool = True,
    source: str | None = None,
    register: Path | None = None,
    license: str | None = None,
) -> str:
    """Write the folder to publish for a run; it appears only once it has passed the check.

    check: re-evaluate the model. source: current location of the images, if it differs from the run's. register: a
    Python file that registers the network. license: of the weights, as a Hub identifier. Returns the sentence for the
    card about the check. Raises ConfigError if the run is unfinished or the folder exists, DataError if the run is
    damaged or its figures are not reproduced, DiskError; all leave nothing behind.
    """
    if to.exists():
        raise ConfigError(f"{to} already exists; choose another --to, or remove it first.")
    files = files_of(run, source=source, register=register)
    with _appearing(to) as staged:
        for name, content in files.items():
            atomic.make_folder((staged / name).parent)
            atomic.write_file(staged / name, content)
        _draw(run, staged)
        # The staged recipe does not contain the path of the images.
        source = source or card_data.data_of(run).source
        checked = process.checked(staged, check=check, source=source, register=register, of=run)
        text = card.write(card_data.of_folder(staged, checked), license=license)
        atomic.write_file(staged / "README.md", text.encode())
    return checked


def files_of(path: Path, *, source: str | None = None, register: Path | None = None) -> dict[str, bytes]:
    """Return the published files of a run by name, except images and card, without paths of this machine.

    source and register as in `build`; they are used if the run has no evaluation, which is then made now.
    """
    from cifar100_tk.evaluation import files as evaluation_files
    from cifar100_tk.models import folder as model_folder
    from cifar100_tk.recipe import published as published_recipe
    from cifar100_tk.runs import summary as run_summary

    run = run_summary.read(path)
    if not run.finished:
        how = run.status.get("status", "of unknown state")
        raise ConfigError(
            f"{path} is not finished ({how}); resume it with the same command, and publish it when it is finished."
        )
    if run.complaints:
        raise DataError(f"{path} is damaged: {' '.join(run.complaints)}")
    model = model_folder.find(path)
    evaluations: dict[str, Json] = {
        split: evaluation_files.read_result(path / "evaluation" / f"{split}.json")
        for split in SPLITS
        if split in run.evaluations
    }
    if run.split not in evaluations:
        evaluations[run.split] = process.evaluate(run, source=source, register=register)
    Data.of_recipe(run.recipe, path / "recipe.json", "it must be unchanged since training wrote it.")
    environment = run.environment | ({} if run.seconds is None else {"seconds": run.seconds})
    files = {
        "config.json": read(model / "config.json"),
        "model.safetensors": read(model / "model.safetensors"),
        "metrics.jsonl": read(path / "metrics.jsonl"),
        "recipe.json": to_bytes(published_recipe(run.recipe)),
    }
    files |= {
        f"evaluation/{split}.json": to_bytes(
            result | {"model": path.resolve().name, "source": source_name(result["source"])}
        )
        for split, result in evaluations.items()
    }
    if environment:
        files["environment.json"] = to_bytes(environment)
    return files | _trace_files(path)


def _trace_files(run: Path) -> dict[str, bytes]:
    """Return the TensorBoard files of a run, renamed to omit the host name."""
    events = sorted(path for path in (run / "tensorboard").rglob("events.out.tfevents.*") if _is_plain(path, run))
    timed = [(event, time[1]) for event in events if (time := re.search(r"tfevents\.(\d+)", event.name))]
    return {
        f"tensorboard/events.out.tfevents.{time}.{number}": read(event) for number, (event, time) in enumerate(timed)
    }


def _draw(run: Path, folder: Path) -> None:
    """Add the images of the run's report to the folder, or print why there are none."""
    with tempfile.TemporaryDirectory() as scratch:
        try:
            from cifar100_tk import report

            report.build([run], Path(scratch) / "report")
        except (ImportError, CifarError) as error:  # Their dependencies are an optional extra.
            print(f"no images in the card: {error}", flush=True)
            return
        for image in sorted(Path(scratch).rglob("*.png")):
            if PUBLISHED.fullmatch(f"report/{image.name}"):
                atomic.make_folder(folder / "report")
                atomic.write_file(folder / "report" / image.name, image.read_bytes())


@contextlib.contextmanager
def _appearing(to: Path) -> Iterator[Path]:
    """Yield a temporary folder that is renamed to `to` on success and removed on failure."""
    with atomic.writing(to), atomic.new_folder(to.absolute()) as staged:
        yield staged


def published(folder: Path) -> dict[str, Path]:
    """Return the files of a built folder to upload, by name, and print those left out. Symbolic links are left out."""
    found = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if not path.is_dir()}
    listed = {name: path for name, path in found.items() if PUBLISHED.fullmatch(name) and _is_plain(path, folder)}
    if missing := [name for name in REQUIRED if name not in listed]:
        raise DataError(f"{folder} has no regular file {missing[0]}; build the folder again from its run.")
    if strangers := sorted(found.keys() - listed.keys()):
        print(f"not uploaded: {', '.join(strangers)}", flush=True)
    return listed


def is_built(folder: Path) -> bool:
    """Return True if `build` wrote the folder; otherwise it may be a run."""
    return all((folder / name).is_file() for name in REQUIRED)


def copy(folder: Path, to: Path) -> None:
    """Copy the files to upload, so that the same bytes are read, checked and uploaded."""
    atomic.write_folder(to, {name: read(path) for name, path in published(folder).items()})


def read(path: Path) -> bytes:
    """Return the content of a published file. Raises DataError if it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); the run folder is incomplete.") from error


def _is_plain(path: Path, within: Path) -> bool:
    """Return True for a regular file that is not reached through a symbolic link."""
    return path.is_file() and path.resolve() == within.resolve() / path.relative_to(within)
