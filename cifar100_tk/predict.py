"""`python -m cifar100_tk.predict MODEL IMAGE ...`: what a model sees in image files and folders of them."""

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

# torch, timm and Pillow take seconds to import; they are imported when the arguments are known to be good.
if TYPE_CHECKING:
    import PIL.Image
    import torch

    from cifar100_tk.models.folder import Classifier

_PROGRAM = "python -m cifar100_tk.predict"
Resize = Literal["crop", "squash"]


@dataclass(frozen=True, kw_only=True)
class PredictOptions(ModelOptions):
    """Name what is in images: the most probable classes of each. What cannot be read is said, and the rest goes on."""

    model: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="MODEL")]
    """A run folder, a model folder, or a Hub id USER/NAME."""
    images: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="IMAGE [IMAGE ...]")]
    """PNG, JPEG, WEBP or BMP files, and folders, whose images and those in folders within are taken in the order of
    their names."""
    top: Annotated[int, COUNT] = 5
    """How many classes to name."""
    json: tyro.conf.FlagCreatePairsOff[bool] = False
    """Print one JSON object a line and image instead of text: image, and predictions of class, superclass (null where
    it is not known) and probability."""
    resize: Resize = "crop"
    """How an image gets the 32x32 pixels that the network takes: crop resizes its short side and takes the middle; squash
    resizes both sides, whatever their ratio."""
    batch_size: Annotated[int, BATCH] = 256
    """Images at a time; changes speed and memory only."""
    device: str | None = None
    """cpu, cuda or cuda:1; if not given a GPU if there is one."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_revision(self.model)
        if not self.images:
            raise ConfigError("no IMAGE is given; name image files or folders after the MODEL.")
        check_ranges(self, "--")


@dataclass(frozen=True)
class Guess:
    """One class that an image may be of."""

    class_name: str
    superclass: str | None
    """None where the class names are not those of CIFAR-100 or of the built-in images."""
    probability: float
    """0..1: the softmax of the logits, as it is, not calibrated."""


def main() -> None:
    """Run the command and end the process with the exit code that fits."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # A file's name may be anything.
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
    if not options.json:
        print(f"{options.model} on {len(paths):,} image{'s' if len(paths) > 1 else ''}, {_said(options.resize)}")
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
    """Yield files as they are given, and the image files in folders and below, sorted; hidden ones are left out.

    Raises DataError for what does not exist, and for a folder without an image.
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
    """Make of a file or an RGB image what the network sees. Returns (3, 32, 32) float32, normalized."""
    from PIL.Image import Resampling
    from timm.data import resolve_data_config

    from cifar100_tk.data.image_files import open_image

    image = open_image(source) if isinstance(source, Path) else source
    if resize == "squash":
        interpolation: str = resolve_data_config(model=classifier.model)["interpolation"]
        image = image.resize((32, 32), Resampling[interpolation.upper()])
    return classifier.transform(image)


def predict(classifier: Classifier, images: list[torch.Tensor], top: int = 5) -> list[list[Guess]]:
    """Name the most probable classes of some images.

    images: n of (3, 32, 32), as `fitted` or `classifier.transform` returns them; the model is used where it is.
    Returns for each of them the `top` guesses, or as many as there are classes, the most probable first.
    """
    import torch

    from cifar100_tk.data.labels import superclasses_of

    model = classifier.model
    with torch.inference_mode():
        batch = torch.stack(images).to(next(model.parameters()).device)
        probabilities = model(batch).float().softmax(dim=1).cpu()
    if not probabilities.isfinite().all():
        raise DataError("the model's logits are not finite numbers; its training has gone wrong.")
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
        raise ConfigError(f"--device {asked} cannot be used ({reason}); leave it out to take what is there.") from error
    return device


def _said(resize: Resize) -> str:
    how = {
        "crop": "its short side resized to 32 pixels and the middle 32x32 taken",
        "squash": "both sides resized to 32 pixels",
    }
    return f"each with {how[resize]}"


def _text(path: Path, guesses: list[Guess]) -> str:
    width = max(len(guess.class_name) for guess in guesses)
    lines = [str(path)]
    for guess in guesses:
        line = f"  {100 * guess.probability:5.1f} %  {guess.class_name:{width}}  {guess.superclass or ''}"
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
