"""`python -m cifar100_tk.import_weights FILE.safetensors --to FOLDER`: make a model folder of weights trained elsewhere."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from cifar100_tk.cli.arguments import check_output, parse
from cifar100_tk.distributed.single_process import refuse_several
from cifar100_tk.errors import ConfigError, DataError, exit_on_error

# torch and timm take seconds to import; they are imported after the arguments are validated.
if TYPE_CHECKING:
    from torch import nn

    from cifar100_tk.models.pretrained import Shapes

_PROGRAM = "python -m cifar100_tk.import_weights"
_WIDE_STEM = (
    "; a 7x7 stem is for 224x224 images and cannot be used here, but --model.pretrained FILE of a recipe trains the rest of "
    "the network with a new stem"
)


@dataclass(frozen=True, kw_only=True)
class ImportOptions:
    """Make a model folder from a state dict of torchvision's or timm's ResNet with a CIFAR stem, matched by name."""

    file: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="FILE.safetensors")]
    """The weights."""
    to: Path
    """The folder to write; it must not exist yet."""
    model: str = "resnet50_cifar"
    """The timm name of the network: resnet18_cifar, resnet34_cifar, resnet50_cifar, resnet101_cifar."""
    class_names: Path | None = None
    """A text file with the class names, one per line in the order of the logits; defaults to CIFAR-100's, in alphabetical
    order."""
    mean: tuple[float, float, float] = (0.5071, 0.4867, 0.4408)
    """Mean of the red, green and blue channels, 0..1, that the network was trained with; the weights do not contain it."""
    std: tuple[float, float, float] = (0.2675, 0.2565, 0.2761)
    """Standard deviation of the channels, likewise."""

    def __post_init__(self) -> None:
        if self.to.exists():
            raise ConfigError(f"--to {self.to} already exists; give a new folder.")
        check_output("--to", self.to)


def main() -> None:
    """Run the command and end the process with the exit code that fits."""
    with exit_on_error(_PROGRAM):
        refuse_several(_PROGRAM)
        run(parse(lambda: tyro.cli(ImportOptions, prog=_PROGRAM)))


def run(options: ImportOptions) -> None:
    """Read and check the weights, and write the model folder. Raises a CifarError, and writes nothing, if they do not fit."""
    from cifar100_tk.augment import Normalize
    from cifar100_tk.models import folder as model_folder

    normalize = Normalize(mean=options.mean, std=options.std)
    names = _class_names(options.class_names)
    network = load_foreign(options.file, options.model, len(names))
    card = f"# {options.model}\n\nWeights of `{options.file.name}`, trained elsewhere.\n"
    model_folder.write(options.to, network, names, normalize, card)
    print(f"{options.to}: {options.model} for {len(names)} classes, every tensor from {options.file}")
    print(
        "Weights do not contain strides, max-pooling, the normalization or the class order; check them by measuring the model: "
        f"python -m cifar100_tk.eval {shlex.quote(str(options.to))}"
    )


def load_foreign(file: Path, model: str, num_classes: int) -> nn.Module:
    """Build a network and load a foreign state dict into it.

    Names may have prefixes such as `module.`, and the last layer may have another common name. float16, bfloat16 and
    float64 become float32; counters of batches, which only training uses, may be missing. Raises DataError naming the
    difference if any tensor is missing, unexpected, or of another shape, and ConfigError for an unknown model.
    """
    from cifar100_tk.models import TimmModel
    from cifar100_tk.models.pretrained import check_names, check_numbers, plain_names, read_tensors, shapes_of

    tensors = read_tensors(file)
    network = TimmModel(name=model).build(num_classes)
    wanted = shapes_of(network.state_dict())
    state = plain_names(tensors, wanted, str(file))
    _check_ends(shapes_of(state), wanted, model, file)
    check_names(shapes_of(state), wanted, model, str(file))
    check_numbers(state, str(file))
    network.load_state_dict(state, strict=False)  # Counters that are missing stay at 0.
    return network.eval()


def _check_ends(found: Shapes, wanted: Shapes, model: str, file: Path) -> None:
    """Raise DataError for a first convolution or a last layer of another shape, which a run would replace."""
    from cifar100_tk.models.pretrained import by

    first = next(iter(wanted))
    if (stem := found.get(first, wanted[first])) != wanted[first]:
        raise DataError(
            f"{file}: {first} is {by(stem)}, but the first convolution of {model} is {by(wanted[first])}"
            f"{_WIDE_STEM if stem[-1:] == (7,) else ''}."
        )
    for name, shape in found.items():
        if name.startswith("fc.") and name in wanted and shape[:1] != wanted[name][:1]:
            raise DataError(
                f"{file}: {name} is {by(shape)}, for {shape[0] if shape else 1} classes, but there are {wanted[name][0]} class "
                "names; give those of the weights with --class-names FILE."
            )


def _class_names(file: Path | None) -> tuple[str, ...]:
    """Read the class names, one per line."""
    from cifar100_tk.data import FINE_NAMES
    from cifar100_tk.models import MAX_CLASSES

    if file is None:
        return FINE_NAMES
    try:
        names = tuple(file.read_text(encoding="utf-8").split("\n"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--class-names {file} cannot be read as text ({error}); give one name per line.") from error
    names = tuple(name.strip() for name in names if name.strip())
    if not 1 <= len(names) <= MAX_CLASSES or len(set(names)) < len(names):
        raise ConfigError(
            f"--class-names {file} holds {len(names)} names, {len(set(names))} different; give each once."
        )
    return names


if __name__ == "__main__":
    main()
