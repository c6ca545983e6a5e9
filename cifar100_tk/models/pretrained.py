"""Trained weights to start from: found by timm tag, Hub id, folder or file, and matched with a network tensor by tensor."""

from __future__ import annotations

import re
import sys
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError, safe_open
from timm.models import get_pretrained_cfg, is_model, list_pretrained, model_entrypoint
from torch import Tensor, nn

from cifar100_tk.errors import ConfigError, DataError, HubError
from cifar100_tk.models.folder import PICKLES, WEIGHTS, find
from cifar100_tk.storage import atomic
from cifar100_tk.storage.json_files import Json

_WRAPPERS: Final = ("module.", "_orig_mod.", "model.", "net.", "network.", "backbone.")
"""Prefixes that DistributedDataParallel, torch.compile and wrapper classes put before every name."""
_HEADS: Final = ("fc", "classifier", "head", "head.fc", "linear")
"""Common names of the last layer."""
_COUNTER: Final = ".num_batches_tracked"
_MAX_FILE: Final = 2_000_000_000
_MAX_CARD: Final = 1_000_000

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Source:
    """A file of trained weights and what is known of its origin."""

    file: Path
    base_model: str | None = None
    """The Hub id of the model; None for a local one."""
    license: str | None = None
    """As its author states it, in the Hub's words; None if unknown."""


@dataclass(frozen=True)
class Pretrained:
    """The trained weights that a network starts from."""

    source: str
    """As the recipe gives it."""
    sha256: str
    """Of the weights file."""
    base_model: str | None
    """The Hub id of the model; None for a local one."""
    license: str | None
    """As its author states it, in the Hub's words; None if unknown."""
    taken: tuple[str, ...]
    """The network's tensors that hold trained weights, in its order; counters of batches are not listed."""
    new: tuple[str, ...]
    """Those that keep their random initial values, because the stem or the head has another shape."""

    @property
    def record(self) -> Json:
        """The entry in recipe.json, so that a run resumes with the same weights only."""
        origin = {"sha256": self.sha256, "base_model": self.base_model, "license": self.license}
        return origin | {"taken": len(self.taken), "new": list(self.new)}

    @property
    def sentence(self) -> str:
        """The origin and its license, for a model card."""
        origin = self.base_model or Path(self.source).name
        return f"Fine-tuned from {origin} (sha256 {self.sha256[:16]}), license {self.license or 'not stated'}."

    def describe(self) -> str:
        """Return the weights, their origin and the tensors taken from them, as the plan shows them."""
        count = len(self.taken) + len(self.new)
        taken = f"all {count} tensors taken" if not self.new else f"{len(self.taken)} of {count} tensors taken"
        layers = dict.fromkeys(name.rpartition(".")[0] or name for name in self.new)
        new = f"; new: {', '.join(layers)}" if layers else ""
        license = self.license or "not stated"
        return f"{self.source}, sha256 {self.sha256[:16]}, license {license}: {taken}{new}"


def load_pretrained(net: nn.Module, source: str, name: str) -> Pretrained:
    """Load trained weights into a network in place, and leave its stem and its head as they are where they do not fit.

    source: a timm tag, a Hub id, a run or model folder, or a .safetensors file. name: the network's, for errors. Raises
    ConfigError for a source that means nothing, DataError for weights that do not fit, HubError if they cannot be fetched.
    Nothing is unpickled.
    """
    found = locate(source)
    # Hashed before and after: another file may take its place in between.
    sha256 = atomic.sha256(found.file)
    tensors = _adapted(read_tensors(found.file), net, str(found.file))
    if atomic.sha256(found.file) != sha256:
        raise DataError(f"{found.file} changed while it was read; run the same command again.")
    wanted = shapes_of(net.state_dict())
    new = _misfits(shapes_of(tensors), wanted, net)
    roots = {key.partition(".")[0] for key in new}
    kept = {key: t for key, t in tensors.items() if key not in new and not (key not in wanted and _under(key, roots))}
    expected = {key: shape for key, shape in wanted.items() if key not in new}
    check_names(shapes_of(kept), expected, name, source)
    check_numbers(kept, source)
    net.load_state_dict(kept, strict=False)
    listed = [key for key in wanted if not key.endswith(_COUNTER)]
    taken = tuple(key for key in listed if key not in new)
    return Pretrained(
        source, sha256, found.base_model, found.license, taken, tuple(key for key in listed if key in new)
    )


def head_names(net: nn.Module) -> tuple[str, ...]:
    """Return the names of the modules that make a network's logits, as timm declares them; () if it does not."""
    return _declared(net, "classifier")


def locate(source: str) -> Source:
    """Return the weights file that a source means; one on the Hub is fetched, into the cache that timm uses too."""
    path = Path(source)
    if path.suffix == ".safetensors" or path.is_file() or path.suffix in PICKLES or "://" in source:
        if "://" in source:
            raise ConfigError(
                f"model.pretrained={source!r} is a URL; give a timm tag, a Hub id USER/NAME, a folder or a .safetensors file."
            )
        check_file(path)
        return Source(path)
    if path.is_dir():
        folder = find(source)
        return Source(folder / WEIGHTS, license=_license(folder / "README.md"))
    architecture = source.split(".")[0]
    if "/" not in source and is_model(architecture):
        return _of_timm(source, architecture)
    repo_id, _, revision = source.removeprefix("hf-hub:").partition("@")
    if re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", repo_id):
        return _of_hub(repo_id, revision or None, source)
    raise ConfigError(
        f"model.pretrained={source!r} is neither a file nor a folder, nor a timm tag such as 'resnet18.a1_in1k', nor a Hub "
        "id such as USER/NAME."
    )


def _of_timm(source: str, architecture: str) -> Source:
    """Find the weights of a timm tag, on the Hub as timm does."""
    tags = list_pretrained(f"{architecture}.*")
    if source not in tags:
        known = f"use one of {', '.join(tags[:4])}" if tags else f"timm has no weights for {architecture}"
        raise ConfigError(f"model.pretrained={source!r} is not a tag of timm's pretrained weights; {known}.")
    config = get_pretrained_cfg(source)
    if config is None or not config.hf_hub_id:
        raise DataError(
            f"timm publishes the weights of {source} as a pickle only, and pickles are never loaded; choose a tag with "
            "safetensors on the Hub."
        )
    if config.custom_load:
        raise DataError(f"the weights of {source} are in a format of their own, not safetensors; choose another tag.")
    return _of_hub(config.hf_hub_id, None, source, config.license)


def _of_hub(repo_id: str, revision: str | None, source: str, license: str | None = None) -> Source:
    try:
        file = Path(hf_hub_download(repo_id, WEIGHTS, revision=revision))
    except LocalEntryNotFoundError as error:
        raise HubError(
            f"the weights of {source} are not in the local cache, and the Hub cannot be reached; fetch them once with a "
            f"network (hf download {repo_id} {WEIGHTS}), or give a folder or file."
        ) from error
    except EntryNotFoundError as error:
        raise DataError(
            f"{repo_id} does not contain {WEIGHTS}; only safetensors are read, never pickles such as pytorch_model.bin."
        ) from error
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise HubError(
            f"the weights of {source} could not be fetched from the Hub ({reason}); check the name, the network, or, for "
            "private weights, the token of `hf auth login`."
        ) from error
    if license is None:
        try:
            license = _license(Path(hf_hub_download(repo_id, "README.md", revision=revision)))
        except (HfHubHTTPError, EntryNotFoundError, OSError):
            license = None  # A repository without a card states none.
    return Source(file, repo_id, license)


def _license(card: Path) -> str | None:
    """Return the license in the front matter of a model card, or None."""
    if not card.is_file() or card.stat().st_size > _MAX_CARD:
        return None
    found = re.match(
        r"---[ \t]*\n(.*?)^---", card.read_text(encoding="utf-8", errors="replace"), re.DOTALL | re.MULTILINE
    )
    try:
        front = yaml.safe_load(found[1]) if found else None
    except (yaml.YAMLError, RecursionError):
        return None
    license = front.get("license") if isinstance(front, dict) else None
    return license if isinstance(license, str) and re.fullmatch(r"[\w.+-]{1,60}", license) else None


def check_file(file: Path) -> None:
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


def read_tensors(file: Path) -> dict[str, Tensor]:
    """Read a safetensors file; float16, bfloat16 and float64 become float32. Raises DataError for any other file."""
    check_file(file)
    try:
        with safe_open(file, framework="pt") as opened:
            return {name: _float32(opened.get_tensor(name)) for name in opened.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise DataError(f"{file} is not a complete safetensors file ({error}).") from error


def plain_names(
    tensors: Mapping[str, Tensor], wanted: Collection[str], file: str, head: str = "fc"
) -> dict[str, Tensor]:
    """Return tensors by names without wrapper prefixes, with the last layer called as in the network.

    wanted: the network's names. head: that of its last layer.
    """
    prefix = _prefix(tensors)
    plain = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    for other in _HEADS:
        if f"{other}.weight" in plain and f"{head}.weight" in wanted and f"{head}.weight" not in plain:
            if twice := [
                name for name in plain if _moved(name, other, head) in plain and _moved(name, other, head) != name
            ]:
                raise DataError(
                    f"{file} holds {len(twice)} tensors twice, the first is {_moved(twice[0], other, head)}."
                )
            plain = {_moved(name, other, head): tensor for name, tensor in plain.items()}
    return plain


def shapes_of(tensors: Mapping[str, Tensor]) -> Shapes:
    """Return the shape of each tensor, by name."""
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def check_names(found: Shapes, wanted: Shapes, model: str, file: str) -> None:
    """Raise DataError if any tensor is missing, unexpected or of another shape; counters of batches may be missing.

    found, wanted: the shapes by name. model: the network's name.
    """
    missing = [name for name in wanted if name not in found and not name.endswith(_COUNTER)]
    if missing:
        raise DataError(
            f"{file} lacks {len(missing)} of the {len(wanted)} tensors of {model}, the first is {missing[0]}; it holds "
            f"{', '.join(list(found)[:3]) or 'nothing'} and so on. Choose the network that the weights belong to."
        )
    if unknown := [name for name in found if name not in wanted]:
        raise DataError(
            f"{file} holds {len(unknown)} tensors that {model} does not have, the first is {unknown[0]}. "
            "Choose the network that the weights belong to."
        )
    for name, shape in found.items():
        if shape != wanted[name]:
            raise DataError(f"{file}: {name} is {by(shape)}, but that of {model} is {by(wanted[name])}.")


def check_numbers(tensors: Mapping[str, Tensor], file: str) -> None:
    """Raise DataError for a tensor that is not of finite floating-point numbers, or a counter that is."""
    for name, tensor in tensors.items():
        counter = name.endswith(_COUNTER)
        if tensor.is_floating_point() == counter or not (counter or bool(tensor.isfinite().all())):
            raise DataError(f"{file}: {name} does not contain finite floating-point numbers.")


def by(shape: tuple[int, ...]) -> str:
    """Return a shape as an error shows it."""
    return "x".join(map(str, shape)) or "a single number"


def _adapted(tensors: dict[str, Tensor], net: nn.Module, file: str) -> dict[str, Tensor]:
    """Return the tensors by the network's names, adapted as timm does for its family, such as to another image size."""
    head = next(iter(head_names(net)), "fc")
    renamed = plain_names(tensors, net.state_dict().keys(), file, head)
    architecture = getattr(net, "pretrained_cfg", {}).get("architecture", "")
    module = sys.modules.get(model_entrypoint(architecture).__module__) if is_model(architecture) else None
    adapt: Any = getattr(module, "checkpoint_filter_fn", None)  # timm's name for it in every family that has one.
    if adapt is None:
        return renamed
    try:
        adapted: dict[str, Tensor] = adapt(renamed, net)
    except Exception as error:  # Each family fails in its own way on weights that are not its own.
        raise DataError(
            f"{file} does not hold weights of {architecture} ({type(error).__name__}: {error}); choose the network that the "
            "weights belong to."
        ) from error
    return adapted


def _misfits(found: Shapes, wanted: Shapes, net: nn.Module) -> set[str]:
    """Return the network's tensors in its stem and its head that the weights do not fit, with the rest of their layer.

    A new first convolution takes the normalization behind it along, whose statistics are those of the old one's outputs.
    """
    layers = [name for name, module in net.named_modules() if not any(True for _ in module.children())]
    stem = [name for name in layers if any(_under(name, {first}) for first in _declared(net, "first_conv"))]
    new: set[str] = set()
    for names in (stem, head_names(net)):
        mine = {key for key in wanted if any(_under(key, {name}) for name in names)}
        if all(found.get(key) == wanted[key] for key in mine):
            continue
        new |= mine
        if names is stem and stem and (at := layers.index(stem[-1]) + 1) < len(layers):
            behind = layers[at]
            new |= {key for key in wanted if _under(key, {behind}) and f"{behind}.running_mean" in wanted}
    return new


def _declared(net: nn.Module, key: str) -> tuple[str, ...]:
    names = getattr(net, "pretrained_cfg", {}).get(key) or ()
    return (names,) if isinstance(names, str) else tuple(names)


def _under(name: str, modules: Iterable[str]) -> bool:
    return any(name == module or name.startswith(f"{module}.") for module in modules)


def _prefix(names: Collection[str]) -> str:
    """Return the wrapper prefixes that all names share."""
    first, last, prefix = min(names, default=""), max(names, default=""), ""
    # A prefix of the first and the last name in order is a prefix of all names between them.
    while more := next((p for p in _WRAPPERS if first.startswith(prefix + p) and last.startswith(prefix + p)), ""):
        prefix += more
    return prefix


def _moved(name: str, old: str, new: str) -> str:
    return f"{new}.{name.removeprefix(f'{old}.')}" if name.startswith(f"{old}.") else name


def _float32(tensor: Tensor) -> Tensor:
    """Convert float16, bfloat16 and float64 to float32; return other tensors unchanged."""
    return tensor.float() if tensor.is_floating_point() else tensor
