"""The teacher of a distillation: a trained network, the same on every process, and its logits on the batch."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from timm.models import is_model
from torch import nn

from cifar100_tk.augment import Normalize, resize_images
from cifar100_tk.distributed.collectives import broadcast_json, raise_on_all_ranks
from cifar100_tk.errors import CifarError, ConfigError, DataError
from cifar100_tk.models.classifier import Classifier
from cifar100_tk.models.folder import load
from cifar100_tk.optim import Distillation
from cifar100_tk.storage import tensor_file
from cifar100_tk.storage.json_files import Json
from cifar100_tk.tensors import Images, Logits


@dataclass(frozen=True)
class Teacher:
    """A trained network that is only asked for its logits; it is never trained, saved or averaged."""

    net: nn.Module
    """In evaluation mode, on the training device."""
    identity: Json
    """Its record in recipe.json: name, architecture, SHA-256 of its weights, and preprocessing."""
    side: int
    """Width and height of its input, in pixels."""
    rescale: tuple[torch.Tensor, torch.Tensor] | None
    """Scale and shift, each (1, 3, 1, 1), from the network's normalization to the teacher's; None if they are the same."""
    accelerator: Accelerator

    @classmethod
    def open(
        cls,
        distillation: Distillation,
        class_names: tuple[str, ...],
        normalize: Normalize,
        accelerator: Accelerator,
    ) -> Teacher:
        """Load the teacher on every process, the main one first, which may download it. Every rank takes part.

        class_names: of the training images. normalize: the recipe's. Raises a CifarError, the main process's on every
        rank, if it cannot be loaded or knows other classes, and DataError where it differs from the main process's.
        """
        error: CifarError | None = None
        found: Classifier | None = None
        if accelerator.is_main_process:
            try:
                found = _load(distillation, class_names)
            except CifarError as caught:
                error = caught
        raise_on_all_ranks(accelerator, error)
        classifier = found or _load(distillation, class_names)
        identity = _identity(classifier) | {"name": distillation.name}
        if accelerator.num_processes > 1 and broadcast_json(accelerator, identity) != identity:
            raise DataError(
                f"the teacher {distillation.teacher} on rank {accelerator.process_index} is not that of the main process "
                f"(here sha256 {identity['sha256'][:16]}); give every machine the same files."
            )
        net = classifier.model.requires_grad_(False).to(accelerator.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        rescale = _rescale(normalize, classifier.normalize, accelerator.device)
        return cls(net, identity, identity["input_size"][-1], rescale, accelerator)

    @torch.no_grad()
    def __call__(self, images: Images) -> Logits:
        """Return the teacher's logits, (B, C) float32, computed under the run's autocast.

        images: (B, 3, H, W), augmented, normalized and mixed as the network sees them; resized if its input has another size.
        """
        if self.rescale is not None:
            scale, shift = self.rescale
            images = images * scale + shift
        with self.accelerator.autocast():
            logits: Logits = self.net(resize_images(images, self.side))
        return logits.float()

    def describe(self, distillation: Distillation, image_size: int) -> str:
        """Return the teacher and its share in the loss, as the plan shows them. image_size: that of the network's input."""
        size = f", its input resized to {self.side} px" if self.side != image_size else ""
        return (
            f"{distillation.teacher}, {self.identity['architecture']}, sha256 {self.identity['sha256'][:16]}{size}; "
            f"weight {distillation.weight:g}, temperature {distillation.temperature:g}"
        )


def _load(distillation: Distillation, class_names: tuple[str, ...]) -> Classifier:
    """Load the teacher. Raises DataError or HubError if that fails, ConfigError if it knows other classes."""
    classifier = load(teacher_source(distillation.teacher), revision=distillation.revision)
    names = classifier.class_names
    # A model without label_names numbers its classes.
    if len(names) != len(class_names) or names not in (class_names, tuple(map(str, range(len(names))))):
        raise ConfigError(
            f"the teacher {distillation.teacher} knows {len(names):,} classes ({names[0]}, ...), but the training images have "
            f"{len(class_names):,} ({class_names[0]}, ...), and both must be the same in the same order; give a "
            "--distillation.teacher that was trained on the same classes."
        )
    return classifier


def teacher_source(teacher: str) -> str:
    """Return a teacher as `load` takes it: timm's prefixes are left out, and timm's own weights are on the Hub by their tag."""
    plain = teacher.removeprefix("hf-hub:").removeprefix("local-dir:")
    architecture, dot, _ = plain.partition(".")
    return f"timm/{plain}" if dot and is_model(architecture) else plain


def _identity(classifier: Classifier) -> Json:
    digest = hashlib.sha256()
    for part in tensor_file.parts(
        classifier.model.state_dict()
    ):  # The digest of its model.safetensors as written here.
        digest.update(part)
    config = classifier.model.pretrained_cfg
    assert isinstance(config, dict), "a timm model has its configuration"
    return {
        "architecture": config["architecture"],
        "sha256": digest.hexdigest(),
        "input_size": list(config["input_size"]),
        "mean": list(classifier.normalize.mean),
        "std": list(classifier.normalize.std),
    }


def _rescale(ours: Normalize, theirs: Normalize, device: torch.device) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Return the factors that turn an image normalized with `ours` into one normalized with `theirs`, or None.

    (x * std + mean - mean') / std' = x * (std / std') + (mean - mean') / std'.
    """
    if (ours.mean, ours.std) == (theirs.mean, theirs.std):
        return None
    mean, std, mean_, std_ = (
        torch.tensor(values, dtype=torch.float64).view(1, 3, 1, 1)
        for values in (ours.mean, ours.std, theirs.mean, theirs.std)
    )
    return (std / std_).float().to(device), ((mean - mean_) / std_).float().to(device)
