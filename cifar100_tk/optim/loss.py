"""The losses: cross-entropy and binary cross-entropy against soft targets, and distillation from a teacher's logits."""

from __future__ import annotations

import functools
import os
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, final

from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div

from cifar100_tk.errors import ConfigError
from cifar100_tk.ranges import Within, check_ranges
from cifar100_tk.tensors import Logits, Targets

if TYPE_CHECKING:
    from timm.loss import BinaryCrossEntropy as TimmBinaryCrossEntropy


@dataclass(frozen=True, kw_only=True)
class Loss(ABC):
    """The loss of a batch, and the label smoothing of its targets (Szegedy et al., arXiv:1512.00567 section 7)."""

    smoothing: Annotated[float, Within(low=0, high=0.9, use="use 0.1, or 0 for none")] = 0.1
    """The probability taken from the true class, 0..0.9; 0 turns smoothing off."""

    smooth_over: Literal["others", "all"] = "others"
    """The classes that share it: `others` gives eps/(C-1) to each other class and leaves 1-eps for the true class;
    `all` gives eps/C to every class, the true one included, as torch and timm do."""

    def __post_init__(self) -> None:
        check_ranges(self, "loss.")
        if self.smooth_over not in ("others", "all"):
            raise ConfigError(f"loss.smooth_over={self.smooth_over!r} is not supported; use 'others' or 'all'.")

    def smoothing_over_all(self, num_classes: int) -> float:
        """Return the eps of the `all` convention, which timm's Mixup uses, that gives the same targets.

        eps/(C-1) for each other class is eps'/C with eps' = eps * C / (C-1).

        >>> round(CrossEntropy(smoothing=0.1).smoothing_over_all(100) / 100, 12) == round(0.1 / 99, 12)
        True
        """
        return self.smoothing * num_classes / (num_classes - 1) if self.smooth_over == "others" else self.smoothing

    @abstractmethod
    def __call__(self, logits: Logits, targets: Targets) -> Tensor:
        """Return the mean loss over the images, () float32. logits: (B, C). targets: (B, C), already smoothed and mixed.

        It must be a mean over images, so that micro-batches and processes add up to the loss of the whole batch.
        """


@final
@dataclass(frozen=True, kw_only=True)
class CrossEntropy(Loss):
    """Cross-entropy of the softmax, in nats."""

    def __call__(self, logits: Logits, targets: Targets) -> Tensor:
        """Return the mean cross-entropy in nats, () float32. logits: (B, C). targets: (B, C), already smoothed and mixed."""
        return cross_entropy(logits.float(), targets)


@final
@dataclass(frozen=True, kw_only=True)
class BinaryCrossEntropy(Loss):
    """Binary cross-entropy of each class by itself, as in "ResNet strikes back" (arXiv:2110.00476), computed by timm."""

    smoothing: Annotated[float, Within(low=0, high=0.9, use="use 0.1, or 0 for none")] = 0.0
    """The probability taken from the true class, 0..0.9; 0 turns smoothing off."""

    target_threshold: Annotated[float | None, Within(low=0, high=1, below=True, use="use 0.2, or None for none")] = None
    """Targets above it become 1 and all others 0, so that a mixed image is of both its classes; None keeps the targets soft."""

    sum_classes: bool = False
    """Sum over the classes instead of averaging over them, which makes the loss and its gradient C times as large."""

    def __call__(self, logits: Logits, targets: Targets) -> Tensor:
        """Return the mean binary cross-entropy in nats, () float32, averaged over the classes unless `sum_classes` is set.

        logits: (B, C). targets: (B, C), already smoothed and mixed.
        """
        loss: Tensor = _timm_loss(self.target_threshold, self.sum_classes)(logits.float(), targets)
        return loss


@functools.cache
def _timm_loss(target_threshold: float | None, sum_classes: bool) -> TimmBinaryCrossEntropy:
    from timm.loss import BinaryCrossEntropy as TimmBinaryCrossEntropy  # Imported late, since timm takes seconds.

    return TimmBinaryCrossEntropy(target_threshold=target_threshold, sum_classes=sum_classes)


@final
@dataclass(frozen=True, kw_only=True)
class Distillation:
    """Learning from a trained network, the teacher, beside the labels (Hinton et al., arXiv:1503.02531).

    The loss is (1 - weight) * the recipe's loss + weight * temperature**2 * KL(teacher || network), with both softmaxes at
    the temperature. The teacher sees the same augmented and mixed image as the network.
    """

    teacher: str
    """The teacher: a run folder, a model folder, a Hub id USER/NAME, or timm's tag of pretrained weights, such as
    `resnet18.a1_in1k`. It must know the classes of the training images, in their order."""

    revision: str | None = None
    """Branch, tag or commit of a teacher on the Hub; None for its newest."""

    temperature: Annotated[float, Within(low=0, above=True, high=1000, use="use 4")] = 4.0
    """The logits of both networks are divided by it before the softmax; more than 1 brings out the less likely classes."""

    weight: Annotated[float, Within(low=0, above=True, high=1, use="use 0.9, or distillation=None for none")] = 0.9
    """The share of the teacher in the loss, above 0; 1 leaves the labels out."""

    def __post_init__(self) -> None:
        check_ranges(self, "distillation.")
        if not self.teacher:
            raise ConfigError("distillation.teacher is empty; give a run folder, a model folder or a Hub id USER/NAME.")

    @property
    def name(self) -> str:
        """The teacher's name for publication, without the folders that a local one is in.

        >>> Distillation(teacher="/home/somebody/runs/resnet50/model").name, Distillation(teacher="somebody/resnet50").name
        ('resnet50', 'somebody/resnet50')
        """
        path = Path(self.teacher.removeprefix("local-dir:"))
        if not (path.exists() or path.is_absolute() or self.teacher.startswith(("local-dir:", "."))):
            return self.teacher
        absolute = Path(os.path.abspath(path))
        return absolute.parent.name if absolute.name == "model" else absolute.name

    def __call__(self, loss: Tensor, logits: Logits, teacher_logits: Logits) -> Tensor:
        """Return the loss with the teacher's share in it, () float32.

        loss: (), that of the labels. logits and teacher_logits: (B, C), of the same images. The factor temperature**2 keeps
        the gradient's size independent of the temperature (section 2.1).
        """
        student, teacher = ((each.float() / self.temperature).log_softmax(dim=1) for each in (logits, teacher_logits))
        divergence = kl_div(student, teacher, reduction="batchmean", log_target=True)
        return (1 - self.weight) * loss + self.weight * self.temperature**2 * divergence
