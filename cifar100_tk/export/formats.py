"""Export formats: a classifier as one file for other programs, with metadata, compared with the original."""

from __future__ import annotations

import io
import json
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Literal, final

import timm
import torch
from timm.data import resolve_data_config
from torch import Tensor, nn
from torch.export import ExportedProgram

from cifar100_tk import __version__
from cifar100_tk.augment import resize_images
from cifar100_tk.data import Split
from cifar100_tk.errors import ConfigError, DataError
from cifar100_tk.models.classifier import Classifier
from cifar100_tk.tensors import Images, Logits, RawInputs

Format = Literal["onnx", "torch-export"]
Normalization = Literal["inside", "outside"]

TOLERANCE = 1e-4
"""The tolerance of a logit, relative to the largest logit or 1: other kernels add in another order."""
_BATCH = 250


class Exported(ABC):
    """An exported classifier, not yet in a file."""

    content: bytes
    """The content of the file."""

    @abstractmethod
    def logits(self, inputs: Tensor) -> Logits:
        """Run it. inputs: (B, 3, S, S), uint8 or float32 as it was exported. Returns (B, C) float32."""


@dataclass(frozen=True)
class Comparison:
    """The comparison of an exported classifier with the original."""

    num_images: int
    largest_difference: float
    """The largest difference of any logit; infinite if a logit is not finite."""
    allowed: float
    """The largest difference allowed."""
    other_classes: int
    """Number of images with another top-1 class."""

    @property
    def holds(self) -> bool:
        """True if the predictions agree."""
        return self.largest_difference <= self.allowed and self.other_classes == 0


def export(classifier: Classifier, to: Format, normalization: Normalization = "inside") -> Exported:
    """Export a classifier, on the CPU and with a free batch size.

    normalization: inside takes images (B, 3, S, S) uint8 and normalizes them; outside takes images (B, 3, S, S)
    float32, normalized, where S is the classifier's `image_size`. Raises ConfigError for a network that cannot be exported.
    """
    inside = normalization == "inside"
    name, module = ("images", _OnRawImages(classifier)) if inside else ("images", _OnImages(classifier.model))
    example = torch.zeros(
        2, 3, classifier.image_size, classifier.image_size, dtype=torch.uint8 if inside else torch.float32
    )
    made: type[_Onnx | _TorchExport] = _Onnx if to == "onnx" else _TorchExport
    try:
        with torch.no_grad():
            shapes = {name: {0: torch.export.Dim("batch", min=1)}}
            program = torch.export.export(module.cpu().eval(), (example,), dynamic_shapes=shapes)
        return made(program, name, metadata(classifier, normalization))
    except Exception as error:  # Each network fails with its own type of error.
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ConfigError(f"this network cannot be exported with --to {to} ({reason}).") from error


def compare(
    classifier: Classifier, exported: Exported, split: Split, normalization: Normalization, num_images: int
) -> Comparison:
    """Run both on the first images of a split: a single image, then batches.

    Raises DataError where the classifier's own logits are not finite.
    """
    rows = split.index[:num_images]
    scale, shift = classifier.normalize.factors(torch.device("cpu"))
    largest = difference = 0.0
    other_classes = start = 0
    while start < len(rows):
        part = rows[start : start + (_BATCH if start else 1)]
        start += len(part)
        resized = resize_images(torch.from_numpy(split.images[part]).float(), classifier.image_size)
        raw_images = resized.round().clamp(0, 255).byte()
        images = raw_images.float() * scale - shift
        with torch.inference_mode():
            logits = classifier.model(images).float()
            if not logits.isfinite().all():
                raise DataError(
                    "the model's logits are not finite numbers, so it cannot be compared; its training diverged."
                )
            exported_logits = exported.logits(raw_images if normalization == "inside" else images)
        largest = max(largest, logits.abs().max().item())
        # max() would lose a NaN.
        difference = max(difference, (logits - exported_logits).abs().nan_to_num(nan=float("inf")).max().item())
        other_classes += int((logits.argmax(1) != exported_logits.argmax(1)).sum())
    return Comparison(len(rows), difference, TOLERANCE * max(1.0, largest), other_classes)


def metadata(classifier: Classifier, normalization: Normalization) -> dict[str, str]:
    """Return the metadata needed to use the file; lists are JSON."""
    interpolation, side = resolve_data_config(model=classifier.model)["interpolation"], classifier.image_size
    return {
        "class_names": json.dumps(classifier.class_names),
        "input": input_of(classifier, normalization),
        "resize": f"images of another size: the short side to {side} pixels ({interpolation}), then the middle {side}x{side}",
        "normalization": normalization,
        "mean": json.dumps(classifier.normalize.mean),
        "std": json.dumps(classifier.normalize.std),
        "output": "logits (batch, classes) float32, in the order of class_names; their softmax are probabilities",
        "made_by": f"cifar100_tk {__version__}, torch {torch.__version__}, timm {timm.__version__}",
    }


def input_of(classifier: Classifier, normalization: Normalization) -> str:
    """Say what the exported file takes."""
    shape = f"(batch, 3, {classifier.image_size}, {classifier.image_size})"
    if normalization == "inside":
        return f"images {shape} uint8, RGB, 0..255"
    mean, std = list(classifier.normalize.mean), list(classifier.normalize.std)
    return f"images {shape} float32, RGB: (value / 255 - {mean}) / {std}"


class _OnRawImages(nn.Module):
    """The network preceded by its normalization."""

    scale: Tensor
    shift: Tensor

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.model = classifier.model
        for name, factor in zip(("scale", "shift"), classifier.normalize.factors(torch.device("cpu")), strict=True):
            self.register_buffer(name, factor.clone())  # Both are views of one tensor, which file formats store badly.

    def forward(self, images: RawInputs) -> Logits:
        logits: Logits = self.model(images.float() * self.scale - self.shift)
        return logits


class _OnImages(nn.Module):
    """The network with a named argument."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Images) -> Logits:
        logits: Logits = self.model(images)
        return logits


@final
class _Onnx(Exported):
    """ONNX in one file, run by ONNX Runtime."""

    def __init__(self, program: ExportedProgram, name: str, metadata: dict[str, str]) -> None:
        import onnxruntime

        onnx: Any = torch.onnx.export(
            program,
            dynamo=True,
            input_names=[name],
            output_names=["logits"],
            dynamic_shapes={name: {0: "batch"}},
            verbose=False,
        )
        onnx.model.metadata_props.update(metadata)
        self.content = onnx.model_proto.SerializeToString()
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # Errors only.
        self._session = onnxruntime.InferenceSession(self.content, options, providers=["CPUExecutionProvider"])

    def logits(self, inputs: Tensor) -> Logits:
        (name,) = (node.name for node in self._session.get_inputs())
        return torch.from_numpy(self._session.run(["logits"], {name: inputs.numpy()})[0])


@final
class _TorchExport(Exported):
    """The bytes of torch.export.save without the example inputs, the only pickled part of such a file."""

    def __init__(self, program: ExportedProgram, name: str, metadata: dict[str, str]) -> None:
        program.example_inputs = None
        file = io.BytesIO()
        torch.export.save(program, file, extra_files={"metadata.json": json.dumps(metadata)})
        self.content = file.getvalue()
        self._module = program.module()

    def logits(self, inputs: Tensor) -> Logits:
        logits: Logits = self._module(inputs)
        return logits
