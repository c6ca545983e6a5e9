"""Model folders, laid out like the Hub repository: written from a trained model and loaded after checking everything."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.torch
import timm
import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError, safe_open
from timm.models._hub import save_config_for_hf
from torch import Tensor, nn

from cifar100_tk.augment import MAX_SIDE, SIDE, Normalize
from cifar100_tk.errors import DataError, HubError
from cifar100_tk.models.classifier import Classifier, choose_device
from cifar100_tk.models.timm_model import MAX_CLASSES
from cifar100_tk.storage import atomic, tensor_file
from cifar100_tk.storage.json_files import read_object

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
FACTORY_ARGUMENTS = {
    *(
        "checkpoint_path",
        "pretrained",
        "pretrained_cfg",
        "pretrained_cfg_overlay",
        "cache_dir",
        "scriptable",
        "exportable",
    ),
    *("no_jit", "device", "dtype", "model_name", "features_only"),
}
"""Arguments of timm's factory that an untrusted config.json must not set: some would read other files, even pickles."""
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos")
MAX_ARGUMENT = 8192
"""The largest number allowed in model_args; real widths are smaller."""
MAX_DEPTH = 512
"""The largest value of an argument that counts blocks or layers, or the largest sum if it is a list."""
MAX_CONFIG_BYTES = 1_000_000
PICKLES = (".pt", ".pth", ".bin", ".pkl", ".pickle", ".ckpt")


def write(
    folder: Path,
    model: nn.Module,
    class_names: tuple[str, ...],
    normalize: Normalize,
    card: str,
    *,
    image_size: int = SIDE,
) -> None:
    """Write config.json as timm reads it, model.safetensors with bare names, and README.md; the folder must not exist.

    Raises DiskError, leaving nothing behind.
    """
    with tempfile.TemporaryDirectory() as scratch:
        # timm writes the arguments that rebuild the model, for any architecture.
        save_config_for_hf(
            model,
            str(Path(scratch) / CONFIG),
            model_config={"num_classes": len(class_names), "label_names": list(class_names)},
            data_config={
                "input_size": (3, image_size, image_size),
                "mean": normalize.mean,
                "std": normalize.std,
                "crop_pct": 1.0,
                "interpolation": "bilinear",  # As training resizes images.
            },
        )
        config = (Path(scratch) / CONFIG).read_bytes()
    atomic.write_folder(
        folder, {WEIGHTS: tensor_file.serialize(model.state_dict()), "README.md": card.encode(), CONFIG: config}
    )


def load(source: str | Path, *, device: str = "cpu", revision: str | None = None) -> Classifier:
    """Load a model in evaluation mode with its class names and its transform.

    source: a run folder, a model folder, or a Hub id USER/NAME. device: the device of the network, such as "cuda:0"; "auto"
    is a GPU if there is one. revision: a branch, tag or commit of the Hub id. Raises DataError for any other source or an
    invalid model, ConfigError for a device that cannot be used, HubError if the Hub does not provide it. Nothing is
    unpickled.
    """
    place = choose_device(device, "device=")
    folder = find(source, revision=revision)
    config = _read_config(folder / CONFIG)
    with torch.device("meta"):
        # Shapes first, on the meta device: a config with absurd widths must not allocate memory.
        shapes = {name: tuple(tensor.shape) for name, tensor in _build(config, folder / CONFIG).state_dict().items()}
    weights = _read_weights(folder / WEIGHTS, shapes)
    model = _build(config, folder / CONFIG)
    model.load_state_dict(weights)
    model.eval()
    data = timm.data.resolve_data_config(model=model)
    to_tensor = timm.data.create_transform(**data, is_training=False)
    return Classifier(
        model=model.to(place),
        class_names=tuple(config["label_names"]),
        # timm's transform expects RGB, so grayscale, palette, transparent and other images are converted first.
        transform=lambda image: to_tensor(image.convert("RGB")),
        normalize=Normalize(mean=tuple(data["mean"]), std=tuple(data["std"])),
        image_size=data["input_size"][1],
    )


def find(source: str | Path, *, revision: str | None = None) -> Path:
    """Return the local model folder of a run folder, a model folder or a Hub id, downloading the last."""
    path = Path(source)
    if path.suffix in PICKLES:
        raise DataError(
            f"{source} is a pickle, and loading a pickle runs any code in it; give a folder with {WEIGHTS} and {CONFIG}."
        )
    for folder in (path / "model", path):
        if (folder / CONFIG).is_file() and (folder / WEIGHTS).is_file():
            return folder
    if path.exists():
        pickled = sorted(p.name for p in path.iterdir() if p.suffix in PICKLES) if path.is_dir() else []
        why = (
            f"its {pickled[0]} is a pickle, and pickles are never loaded"
            if pickled
            else f"it does not contain {WEIGHTS} and {CONFIG}"
        )
        remedy = run_within(path)
        if (path / "recipe.json").is_file():
            remedy = "; its training has not finished, so run the same command again"
        raise DataError(f"{source} is not a model: {why}{remedy}.")
    if re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", str(source)):
        return _download(str(source), revision)
    raise DataError(f"{source} does not exist; give a run folder, a model folder or a Hub id such as USER/NAME.")


def run_within(folder: Path) -> str:
    """Return the end of a sentence that names a run inside a folder, such as the folder of --seeds; "" if there is none.

    >>> run_within(Path("no/such/folder"))
    ''
    """
    found = min(folder.glob("*/recipe.json"), default=None)
    return "" if found is None else f"; give a run inside it, such as {found.parent}"


def _download(repo_id: str, revision: str | None) -> Path:
    try:
        folder = Path(snapshot_download(repo_id, revision=revision, allow_patterns=[CONFIG, WEIGHTS]))
    except (HfHubHTTPError, LocalEntryNotFoundError, HFValidationError, OSError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise HubError(
            f"there is no folder {repo_id}, and it could not be fetched from the Hub ({reason}); check the name, the network, "
            "or, for a private model, the token of `hf auth login`."
        ) from error
    if missing := [name for name in (WEIGHTS, CONFIG) if not (folder / name).is_file()]:
        raise DataError(
            f"{repo_id} does not contain {missing[0]}; only safetensors are read, never pickles such as pytorch_model.bin."
        )
    return folder


def _read_config(path: Path) -> dict[str, Any]:
    """Read config.json and check every value that this package or timm relies on before anything is built from it."""
    if (size := path.stat().st_size) > MAX_CONFIG_BYTES:
        raise DataError(f"{path} has {size:,} bytes; a config.json may have at most {MAX_CONFIG_BYTES:,}.")
    config = read_object(path, "expected a config.json as timm writes it.")
    if not isinstance(config.get("architecture"), str):
        raise DataError(f"{path} does not name an architecture; expected a config.json as timm writes it.")
    num_classes = config.get("num_classes")
    if not isinstance(num_classes, int) or not 1 <= num_classes <= MAX_CLASSES:
        raise DataError(f"{path}: num_classes is {num_classes!r}; expected an integer from 1 to {MAX_CLASSES}.")
    names = config.setdefault("label_names", [str(number) for number in range(num_classes)])
    if not isinstance(names, list) or len(names) != num_classes or not all(isinstance(name, str) for name in names):
        raise DataError(f"{path}: label_names is not a list of {num_classes} names.")
    arguments, preprocessing = config.setdefault("model_args", {}), config.get("pretrained_cfg", {})
    if not isinstance(arguments, dict) or not isinstance(preprocessing, dict):
        raise DataError(f"{path}: model_args and pretrained_cfg must be objects.")
    if arguments.setdefault("num_classes", num_classes) != num_classes:
        raise DataError(f"{path}: num_classes is {num_classes}, but its model_args say {arguments['num_classes']!r}.")
    if refused := sorted(arguments.keys() & FACTORY_ARGUMENTS):
        raise DataError(f"{path}: model_args sets {refused[0]}, which is not allowed there.")
    if huge := sorted(key for key, value in arguments.items() if key != "num_classes" and not _modest(key, value)):
        raise DataError(
            f"{path}: model_args sets {huge[0]} to {str(arguments[huge[0]])[:60]}, which is far larger "
            "than 32x32 images need."
        )
    _check_preprocessing(preprocessing, path)
    return config


def _modest(key: str, value: Any) -> bool:
    """Return whether an argument is small enough not to make a network of excessive depth or width."""
    if isinstance(value, dict):
        return all(_modest(inner, held) for inner, held in value.items())
    numbers = [number for number in (value if isinstance(value, list) else [value]) if isinstance(number, int | float)]
    if any(word in key for word in ("depth", "layers", "blocks", "repeat")):
        return sum(map(abs, numbers)) <= MAX_DEPTH
    return len(numbers) <= 64 and all(abs(number) <= MAX_ARGUMENT for number in numbers)


def _check_preprocessing(preprocessing: dict[str, Any], path: Path) -> None:
    """Reject values that timm accepts but fails on at the first image, or that would resize an image to any size."""
    rules: dict[str, tuple[Callable[[Any], bool], str]] = {
        "input_size": (_square, f"[3, S, S] with S from 1 to {MAX_SIDE}"),
        "mean": (lambda value: _three(value) and min(value) >= 0, "three numbers from 0 to 1"),
        "std": (lambda value: _three(value) and min(value) > 0, "three numbers above 0 and at most 1"),
        "crop_pct": (lambda value: value == 1, "1.0"),
        "interpolation": (lambda value: value in INTERPOLATIONS, f"one of {', '.join(INTERPOLATIONS)}"),
    }
    for key, (allowed, expected) in rules.items():
        if not allowed(preprocessing.get(key)):
            raise DataError(f"{path}: {key} is {preprocessing.get(key)!r}; expected {expected}.")


def _square(value: Any) -> bool:
    """Return whether a value is the size of a square RGB image that the network may take."""
    right = isinstance(value, list) and len(value) == 3 and all(type(side) is int for side in value)
    return right and value[0] == 3 and value[1] == value[2] and 1 <= value[1] <= MAX_SIDE


def _three(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 3 and all(isinstance(v, int | float) and v <= 1 for v in value)


def _build(config: dict[str, Any], path: Path) -> nn.Module:
    architecture = config["architecture"]
    if not timm.is_model(architecture):
        raise DataError(
            f"{path}: timm {timm.__version__} has no architecture {architecture!r}; if it is your own, "
            "import the file that registers it first (python -m cifar100_tk.eval MODEL --register FILE.py)."
        )
    overlay = {
        k: v
        for k, v in config.get("pretrained_cfg", {}).items()
        if k in ("input_size", "mean", "std", "crop_pct", "interpolation")
    }
    try:
        model: nn.Module = timm.create_model(architecture, pretrained_cfg_overlay=overlay, **config["model_args"])
    except Exception as error:  # Each network fails on a wrong argument with its own type of error.
        raise DataError(f"{path}: {architecture} cannot be built with its model_args ({error}).") from error
    return model


def _read_weights(path: Path, wanted: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Read weights after comparing every name and shape with the network's."""
    try:
        with safe_open(path, framework="pt") as file:
            found = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        if missing := sorted(wanted.keys() - found.keys()):
            raise DataError(
                f"{path} lacks {len(missing)} of {len(wanted)} tensors, such as {missing[0]}; it belongs to another network."
            )
        if unknown := sorted(found.keys() - wanted.keys()):
            raise DataError(f"{path} has {len(unknown)} tensors that the network does not have, such as {unknown[0]}.")
        for name, shape in found.items():
            if shape != wanted[name]:
                raise DataError(f"{path}: {name} has shape {shape}; the network expects {wanted[name]}.")
        return safetensors.torch.load_file(path)
    except (SafetensorError, OSError) as error:
        raise DataError(f"{path} is not a valid safetensors file ({error}).") from error
