"""`python -m cifar100_tk.import_weights FILE.safetensors --to FOLDER`: make a model folder of weights trained elsewhere."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import tyro

from cifar100_tk.cli.arguments import check_output, parse
from cifar100_tk.distributed.single_process import refuse_several
from cifar100_tk.errors import ConfigError, DataError, exit_on_error

# torch and timm take seconds to import; they are imported after the arguments are validated.
if TYPE_CHECKING:
    from torch import Tensor, nn

_PROGRAM = "python -m cifar100_tk.import_weights"
_WRAPPERS: Final = ("module.", "_orig_mod.", "model.", "net.", "network.", "backbone.")
"""Prefixes that DistributedDataParallel, torch.compile and wrapper classes put before every name."""
_HEADS: Final = ("fc", "classifier", "head", "head.fc", "linear")
"""Common names of the last layer; ours is `fc`, as in torchvision and timm."""
_COUNTER: Final = ".num_batches_tracked"
_MAX_FILE: Final = 2_000_000_000

Shapes = Mapping[str, tuple[int, ...]]


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
    import torch
    from safetensors import SafetensorError, safe_open

    from cifar100_tk.models import TimmModel

    _check_file(file)
    network = TimmModel(name=model).build(num_classes)
    wanted = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    try:
        with safe_open(file, framework="pt") as opened:
            shapes = {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
            sources = match_names(shapes, wanted, model, str(file))
            state = {name: _float32(opened.get_tensor(source)) for name, source in sources.items()}
    except (SafetensorError, OSError) as error:
        raise DataError(f"{file} is not a complete safetensors file ({error}).") from error
    if strange := [name for name, tensor in state.items() if not _usable(name, tensor)]:
        raise DataError(f"{file}: {sources[strange[0]]} does not contain finite floating-point numbers.")
    for name in wanted.keys() - state.keys():  # Counters.
        state[name] = torch.zeros((), dtype=torch.int64)
    network.load_state_dict(state)
    return network.eval()


def match_names(found: Shapes, wanted: Shapes, model: str, file: str) -> dict[str, str]:
    """Map each of our names to the foreign one. found, wanted: the shapes by name. Raises DataError on a mismatch."""
    prefix = _prefix(found)
    renamed = {name.removeprefix(prefix): name for name in found}
    for head in _HEADS[1:]:
        if f"{head}.weight" in renamed and "fc.weight" in wanted and "fc.weight" not in renamed:
            renamed = {_moved(name, head): source for name, source in renamed.items()}
    first = next(iter(wanted))
    if first in renamed and (stem := found[renamed[first]]) != wanted[first]:
        raise DataError(
            f"{file}: {renamed[first]} is {_by(stem)}, but the first convolution of {model} is {_by(wanted[first])}"
            f"{'; a 7x7 stem is for 224x224 images and cannot be used here' if stem[-1] == 7 else ''}."
        )
    missing = [name for name in wanted if name not in renamed and not name.endswith(_COUNTER)]
    if missing:
        raise DataError(
            f"{file} lacks {len(missing)} of the {len(wanted)} tensors of {model}, the first is {missing[0]}; it holds "
            f"{', '.join(list(found)[:3]) or 'nothing'} and so on. Choose the matching --model."
        )
    used = {source for name, source in renamed.items() if name in wanted}  # fc.bias and head.bias may both exist.
    if unknown := [source for source in found if source not in used]:
        raise DataError(
            f"{file} holds {len(unknown)} tensors that {model} does not have, the first is {unknown[0]}. "
            "Choose the matching --model."
        )
    for name, source in renamed.items():
        if name.startswith("fc.") and found[source][:1] != wanted[name][:1]:
            raise DataError(
                f"{file}: {source} is {_by(found[source])}, for {found[source][0] if found[source] else 1} classes, but there "
                f"are {wanted[name][0]} class names; give those of the weights with --class-names FILE."
            )
        if found[source] != wanted[name]:
            raise DataError(f"{file}: {source} is {_by(found[source])}, but that of {model} is {_by(wanted[name])}.")
    return {name: source for name, source in renamed.items() if name in wanted}


def _prefix(names: Collection[str]) -> str:
    """Return the wrapper prefixes that all names share."""
    first, last, prefix = min(names, default=""), max(names, default=""), ""
    # A prefix of the first and the last name in order is a prefix of all names between them.
    while more := next((p for p in _WRAPPERS if first.startswith(prefix + p) and last.startswith(prefix + p)), ""):
        prefix += more
    return prefix


def _moved(name: str, head: str) -> str:
    return f"fc.{name.removeprefix(f'{head}.')}" if name.startswith(f"{head}.") else name


def _by(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "a single number"


def _usable(name: str, tensor: Tensor) -> bool:
    if name.endswith(_COUNTER):
        return not tensor.is_floating_point()
    return tensor.is_floating_point() and bool(tensor.isfinite().all())


def _float32(tensor: Tensor) -> Tensor:
    """Convert float16, bfloat16 and float64 to float32; return other tensors unchanged."""
    return tensor.float() if tensor.is_floating_point() else tensor


def _check_file(file: Path) -> None:
    """Raise DataError for a file that is not safetensors, with the way to convert it."""
    if not file.is_file():
        raise DataError(f"{file} {'is not a file' if file.exists() else 'does not exist'}; give a .safetensors file.")
    try:
        with file.open("rb") as opened:
            start = opened.read(9)
    except OSError as error:
        raise DataError(f"{file} cannot be read ({error.strerror or error}).") from error
    # torch.save writes a zip, 0x80 starts a pickle, and { the header of a safetensors file.
    if start[:4] == b"PK\x03\x04" or (start[:1] == b"\x80" and start[8:9] != b"{"):
        raise DataError(
            f"{file} is a pickle, which can run arbitrary code when it is loaded. If you trust it, convert it: "
            "import torch, safetensors.torch; state = torch.load(FILE, weights_only=True); "
            "safetensors.torch.save_file({k: v.contiguous() for k, v in state.items()}, 'FILE.safetensors')"
        )
    if file.stat().st_size > _MAX_FILE:
        raise DataError(
            f"{file} has {file.stat().st_size:,} bytes, more than any supported network; give the weights of one network."
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
