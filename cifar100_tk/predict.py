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
    import PIL.Image
    import torch

    from cifar100_tk.models.folder import Classifier

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
    device: str | None = None
    """cpu, cuda or cuda:1; defaults to a GPU if there is one."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_revision(self.model)
        if not self.images:
            raise ConfigError("no IMAGE given; give image files or folders after the MODEL.")
        check_ranges(self, "--")


@dataclass(frozen=True)
class Guess:
    """One predicted class of an image, with names as in the data set, such as `aquarium_fish`."""

    class_name: str
    superclass: str | None
    """None unless the class names are those of CIFAR-100 or of the built-in images."""
    probability: float
    """0..1: the softmax of the logits, not calibrated."""


def main() -> None:
    """Run the command and end the process with the exit code that fits."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # A file name may contain any bytes.
    with exit_on_error(_PROGRAM):
        refuse_several(_PROGRAM)
        run(parse(lambda: tyro.cli(PredictOptions, prog=_PROGRAM)))


def run(options: PredictOptions) -> None:
    """Print the predictions. Raises DataError at the end if any image could not be read."""
    from cifar100_tk.distributed.memory import batch_oom_as_error
    from cifar100_tk.models import folder as model_folder

    options.run_registered()
    paths = list(image_paths(options.images))
    device = _device(options.device)
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
                opened.append((path, fitted(path, classifier, options.resize)))
            except DataError as error:
                unread += 1
                print(f"{_PROGRAM}: {error}", file=sys.stderr, flush=True)
        if opened:
            with batch_oom_as_error(options.batch_size):
                found = predict(classifier, [image for _, image in opened], options.top)
            for (path, _), guesses in zip(opened, found, strict=True):
                print(_line(path, guesses) if options.json else _text(path, guesses), flush=True)
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


def fitted(source: Path | PIL.Image.Image, classifier: Classifier, resize: Resize = "crop") -> torch.Tensor:
    """Convert a file or an RGB image to the network's input. Returns (3, S, S) float32, normalized."""
    from PIL.Image import Resampling
    from timm.data import resolve_data_config

    from cifar100_tk.data.image_files import open_image

    image = open_image(source) if isinstance(source, Path) else source
    if resize == "squash":
        interpolation: str = resolve_data_config(model=classifier.model)["interpolation"]
        image = image.resize((classifier.image_size,) * 2, Resampling[interpolation.upper()])
    return classifier.transform(image)


def predict(classifier: Classifier, images: list[torch.Tensor], top: int = 5) -> list[list[Guess]]:
    """Return the most probable classes of images.

    images: n tensors (3, S, S), as `fitted` or `classifier.transform` returns them; the model stays on its device.
    Returns the `top` guesses for each, or as many as there are classes, the most probable first.
    """
    import torch

    from cifar100_tk.data.labels import superclasses_of

    model = classifier.model
    with torch.inference_mode():
        batch = torch.stack(images).to(next(model.parameters()).device)
        probabilities = model(batch).float().softmax(dim=1).cpu()
    if not probabilities.isfinite().all():
        raise DataError("the model's logits are not finite, so its training has diverged; use another model.")
    names, superclasses = classifier.class_names, superclasses_of(classifier.class_names)
    found = probabilities.topk(min(top, len(names)))
    return [
        [Guess(names[number], superclasses[number], value) for value, number in zip(values, numbers, strict=True)]
        for values, numbers in zip(found.values.tolist(), found.indices.tolist(), strict=True)
    ]


def _device(asked: str | None) -> torch.device:
    import torch

    if asked is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(asked)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"--device {asked} cannot be used ({reason}); leave it out to use the default device."
        ) from error
    return device


def _describe(resize: Resize, image_size: int) -> str:
    methods = {
        "crop": f"its short side resized to {image_size} pixels and the center cropped",
        "squash": f"both sides resized to {image_size} pixels",
    }
    return f"each with {methods[resize]}"


def _text(path: Path, guesses: list[Guess]) -> str:
    from cifar100_tk.data.labels import display_name

    width = max(len(guess.class_name) for guess in guesses)
    lines = [str(path)]
    for guess in guesses:
        name, superclass = display_name(guess.class_name), display_name(guess.superclass or "")
        line = f"  {100 * guess.probability:5.1f} %  {name:{width}}  {superclass}"
        lines.append(line.rstrip())
    return "\n".join(lines)


def _line(path: Path, guesses: list[Guess]) -> str:
    predictions: list[dict[str, Any]] = [
        {"class": guess.class_name, "superclass": guess.superclass, "probability": guess.probability}
        for guess in guesses
    ]
    return json.dumps({"image": str(path), "predictions": predictions})


if __name__ == "__main__":
    main()
