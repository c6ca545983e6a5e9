"""The loss: cross-entropy against smoothed targets, in both common conventions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal, final

from torch import Tensor
from torch.nn.functional import cross_entropy

from cifar100_tk.errors import ConfigError
from cifar100_tk.ranges import Within, check_ranges
from cifar100_tk.tensors import Logits, Targets


@final
@dataclass(frozen=True, kw_only=True)
class CrossEntropy:
    """Cross-entropy with label smoothing (Szegedy et al., arXiv:1512.00567 section 7)."""

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

    def __call__(self, logits: Logits, targets: Targets) -> Tensor:
        """Return the mean cross-entropy in nats, () float32. logits: (B, C). targets: (B, C), already smoothed and mixed."""
        return cross_entropy(logits.float(), targets)
