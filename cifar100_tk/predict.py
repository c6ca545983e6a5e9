"""`python -m cifar100_tk.predict MODEL IMAGE ...`: classify image files and folders of them."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from cifar100_tk.cli.arguments import ModelOptions, parse
from cifar100_tk.distributed.single_process import refuse_several
from cifar100_tk.errors import ConfigError, DataError, exit_on_error
from cifar100_tk.ranges import BATCH, COUNT, check_ranges

# torch, timm and Pillow take seconds to import; they are imported after the arguments are validated.
if TYPE_CHECKING:
    from cifar100_tk.models.classifier import Prediction

_PROGRAM = "python -m cifar100_tk.predict"
Resize = Literal["crop", "squash"]


@dataclass(frozen=True, kw_only=True)
class PredictOptions(ModelOptions):
    """Classify images: print the most probable classes of each. Unreadable images are reported and skipped."""

    model: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="MODEL")]
    """A run folder, a model folder, or a Hub id USER/NAME."""
    images: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="IMAGE [IMAGE ...]")]
    """PNG, JPEG, WEBP or BMP files, or folders, which are searched recursively in the order of their names."""
    top: Annotated[int, COUNT] = 5
    """Number of classes to print per image."""
    json: tyro.conf.FlagCreatePairsOff[bool] = False
    """Print JSON instead of text, an object on a line for each image: image, and predictions with class, superclass (null if
    unknown) and probability."""
    resize: Resize = "crop"
    """Resizing to the network's input, usually 32x32 pixels: crop resizes the short side and crops the center; squash resizes
    both sides and ignores the aspect ratio."""
    batch_size: Annotated[int, BATCH] = 256
    """Images per forward pass; affects speed and memory only."""
    device: str = "auto"
    """cpu, cuda or cuda:1; auto is a GPU if there is one."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_revision(self.model)
        if not self.images:
            raise ConfigError("no IMAGE given; give image files or folders after the MODEL.")
        check_ranges(self, "--")


def main() -> None:
    """Run the command and end the process with the exit code that fits."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # A file name may contain any bytes.
    with exit_on_error(_PROGRAM):
        refuse_several(_PROGRAM)
        run(parse(lambda: tyro.cli(PredictOptions, prog=_PROGRAM)))


def run(options: PredictOptions) -> None:
    """Print the predictions. Raises DataError at the end if any image could not be read."""
    import torch

    from cifar100_tk.distributed.memory import batch_oom_as_error
    from cifar100_tk.models import folder as model_folder
    from cifar100_tk.models.classifier import choose_device

    options.run_registered()
    paths = list(image_paths(options.images))
    device = choose_device(options.device, "--device ")
    classifier = model_folder.load(options.model, revision=options.revision)
    classifier.model.to(device)
    how = _describe(options.resize, classifier.image_size)
    if not options.json:
        print(f"{options.model} on {len(paths):,} image{'s' if len(paths) > 1 else ''}, {how}")
    unread = 0
    for start in range(0, len(paths), options.batch_size):
        opened = []
        for path in paths[start : start + options.batch_size]:
            try:
                opened.append((path, classifier.prepare(path, options.resize)))
            except DataError as error:
                unread += 1
                print(f"{_PROGRAM}: {error}", file=sys.stderr, flush=True)
        if opened:
            with batch_oom_as_error(options.batch_size):
                found = classifier.top_classes(torch.stack([image for _, image in opened]), options.top)
            for (path, _), prediction in zip(opened, found, strict=True):
                print(_line(path, prediction) if options.json else _text(path, prediction), flush=True)
    if unread:
        if len(paths) == 1:
            raise DataError("the image could not be read.")
        others = "there is nothing to predict" if unread == len(paths) else "the others were predicted"
        raise DataError(f"{unread:,} of {len(paths):,} images could not be read; {others}.")


def image_paths(given: Iterable[Path]) -> Iterator[Path]:
    """Yield files as given, and the image files in folders recursively, sorted; hidden ones are skipped.

    Raises DataError for a path that does not exist, and for a folder without images.
    """
    from cifar100_tk.data.image_files import SUFFIXES

    for path in given:
        if not path.is_dir():
            if not path.exists():
                raise DataError(f"{path} does not exist; give image files or folders.")
            yield path
            continue
        inside = sorted(
            file
            for file in path.rglob("*")
            if file.suffix.lower() in SUFFIXES
            and file.is_file()
            and not any(part.startswith(".") for part in file.relative_to(path).parts)
        )
        if not inside:
            raise DataError(f"{path} holds no images; expected files that end in {' '.join(SUFFIXES)}.")
        yield from inside


def _describe(resize: Resize, image_size: int) -> str:
    methods = {
        "crop": f"its short side resized to {image_size} pixels and the center cropped",
        "squash": f"both sides resized to {image_size} pixels",
    }
    return f"each with {methods[resize]}"


def _text(path: Path, found: Prediction) -> str:
    from cifar100_tk.data.labels import display_name

    width = max(map(len, found.class_names))
    lines = [str(path)]
    for class_name, superclass, probability in _rows(found):
        name, above = display_name(class_name), display_name(superclass or "")
        lines.append(f"  {100 * probability:5.1f} %  {name:{width}}  {above}".rstrip())
    return "\n".join(lines)


def _line(path: Path, found: Prediction) -> str:
    predictions: list[dict[str, Any]] = [
        {"class": class_name, "superclass": superclass, "probability": probability}
        for class_name, superclass, probability in _rows(found)
    ]
    return json.dumps({"image": str(path), "predictions": predictions})


def _rows(found: Prediction) -> Iterator[tuple[str, str | None, float]]:
    return zip(found.class_names, found.superclasses, found.probabilities, strict=True)


if __name__ == "__main__":
    main()
