"""`python -m cifar100_tk.export MODEL --to onnx`: export a model as one file, written only if its predictions agree."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from cifar100_tk.cli.arguments import ModelOptions, check_output, parse
from cifar100_tk.distributed.single_process import refuse_several
from cifar100_tk.errors import ConfigError, DataError, exit_on_error
from cifar100_tk.ranges import COUNT, check_ranges

# torch and timm take seconds to import; they are imported once the arguments are known to be valid.
if TYPE_CHECKING:
    from cifar100_tk.data import Split

_PROGRAM = "python -m cifar100_tk.export"
_SUFFIX = {"onnx": ".onnx", "torch-export": ".pt2"}
_NEEDED = {"onnx": ("onnx", "onnxruntime", "onnxscript"), "torch-export": ()}


@dataclass(frozen=True, kw_only=True)
class ExportOptions(ModelOptions):
    """Write a model as one file for other programs, after comparing both on images."""

    model: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="MODEL")]
    """A run folder, a model folder, or a Hub id USER/NAME."""
    to: Literal["onnx", "torch-export"]
    """onnx, for ONNX Runtime and other ONNX tools, or torch-export, a .pt2 file for torch without this package."""
    output: Path | None = None
    """The file to write; by default the last part of MODEL with .onnx or .pt2, in this folder. Never overwritten."""
    normalization: Literal["inside", "outside"] = "inside"
    """inside: the file takes images as bytes, (batch, 3, S, S) uint8 RGB, and normalizes them itself. outside: it takes
    (batch, 3, S, S) float32, normalized as its metadata says. S is the size of the network's input, usually 32."""
    source: str | None = None
    """The images to compare on: hub, shapes100, or the path of a local copy; by default what a run folder's recipe
    says, else shapes100, which needs no download."""
    num_images: Annotated[int, COUNT] = 1000
    """Number of images to compare on, the first of test, or of train if there is no test."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_revision(self.model)
        check_ranges(self, "--")
        if self.file.exists():
            raise ConfigError(f"{self.file} already exists; remove it, or give another --output.")
        check_output("--output", self.file)

    @property
    def file(self) -> Path:
        """The file to write."""
        return self.output or Path(Path(self.model).absolute().name + _SUFFIX[self.to])


def main() -> None:
    """Run the command and exit with its exit code."""
    with exit_on_error(_PROGRAM):
        refuse_several(_PROGRAM)
        run(parse(lambda: tyro.cli(ExportOptions, prog=_PROGRAM)))


def run(options: ExportOptions) -> None:
    """Export, compare, and write the file if the predictions agree. Otherwise raises DataError and writes nothing."""
    if missing := [name for name in _NEEDED[options.to] if importlib.util.find_spec(name) is None]:
        raise ConfigError(
            f'--to {options.to} needs {" and ".join(missing)}; install it with: pip install -e ".[export]"'
        )
    from cifar100_tk.export.formats import compare, export, input_of
    from cifar100_tk.models import folder as model_folder
    from cifar100_tk.storage import atomic

    options.run_registered()
    classifier = model_folder.load(options.model, revision=options.revision)
    split = _images(options)
    exported = export(classifier, options.to, options.normalization)
    agreement = compare(classifier, exported, split, options.normalization, options.num_images)
    same = "the same" if not agreement.other_classes else f"on {agreement.other_classes:,} another"
    measured = (
        f"{same} top-1 class, of {agreement.num_images:,} {split.name} images ({split.identity.sentence}); logits differ "
        f"by {agreement.largest_difference:.1e} at most, {agreement.allowed:.1e} is allowed"
    )
    if not agreement.holds:
        raise DataError(
            f"the exported file does not give the predictions of {options.model}: {measured}. Nothing was written."
        )
    atomic.write_file(options.file, exported.content)
    print(f"{options.file}: {len(exported.content) / 1e6:.1f} MB, takes {input_of(classifier, options.normalization)}")
    print(f"compared with {options.model}: {measured}")


def _images(options: ExportOptions) -> Split:
    """Open the images to compare on."""
    from cifar100_tk.data import Cifar100
    from cifar100_tk.runs.files import read_recipe

    source = options.source
    if source is None and (Path(options.model) / "recipe.json").is_file():
        recipe = read_recipe(Path(options.model)).get("data")
        source = recipe.get("source") if isinstance(recipe, dict) else None
    # Row i of shapes100 is the same image for any number of images.
    drawn = -(-options.num_images // 100) * 100
    data = Cifar100(source=source or "shapes100", shapes100_rows=(100, drawn))
    return data.open("test" if "test" in data.origins() else "train")


if __name__ == "__main__":
    main()
