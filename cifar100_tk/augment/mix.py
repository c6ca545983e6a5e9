"""Mixup and CutMix on a batch, run by timm's own code from keyed draws, and soft targets with and without them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, final

from cifar100_tk.augment.checks import check_share
from cifar100_tk.draws import seeded_globals
from cifar100_tk.ranges import Within, check_ranges
from cifar100_tk.tensors import Images, Labels, Targets

ALPHA = Within(low=0.001, high=1000, or_zero=True, use="use 0.2, or 0 to turn it off")
"""The allowed alphas: NumPy's Beta distribution returns NaN for much smaller ones."""


@final
@dataclass(frozen=True, kw_only=True)
class Mix:
    """Mix image i of a batch with image B-1-i, with one lambda (or one box) per batch.

    Mixup: arXiv:1710.09412. CutMix: arXiv:1905.04899.
    """

    mixup_alpha: Annotated[float, ALPHA] = 0.2
    """Mixup's lambda is Beta(alpha, alpha); 0 turns Mixup off."""
    cutmix_alpha: Annotated[float, ALPHA] = 0.0
    """CutMix's uncut area is Beta(alpha, alpha); 0 turns CutMix off."""
    p: float = 1.0
    """Fraction of the batches that are mixed; 0 is off."""
    switch_p: float = 0.5
    """Fraction of the mixed batches that use CutMix if both are on; unused if either is off."""

    def __post_init__(self) -> None:
        check_ranges(self, "mix.")
        check_share("mix.p", self.p)
        check_share("mix.switch_p", self.switch_p)

    @property
    def active(self) -> bool:
        """True if any batch can be mixed."""
        return self.p > 0 and (self.mixup_alpha > 0 or self.cutmix_alpha > 0)

    def build(self, num_classes: int, smoothing: float) -> Mixer:
        """Build the mixer. smoothing: timm's epsilon: every class gets epsilon / num_classes; 0 is off."""
        check_share("smoothing", smoothing)
        return Mixer(self, num_classes, smoothing)


@final
@dataclass(frozen=True)
class Mixer:
    """Mixes batches; made by `Mix.build`."""

    mix: Mix
    num_classes: int
    smoothing: float

    def __call__(self, images: Images, labels: Labels, seed: int, step: int) -> tuple[Images, Targets]:
        """Mix one batch, in place, with the lambda of (seed, step), without waiting for the device.

        Partners are i and B-1-i, so a rank's part of a global batch must hold both, in this order.
        Returns the same images and their targets.
        """
        if not self.mix.active:
            return images, soft_targets(labels, self.num_classes, self.smoothing)
        # The pipeline rejects an odd local batch size before the run and suggests batch sizes that work.
        assert len(images) % 2 == 0, f"{len(images)} images cannot be paired"
        from timm.data.mixup import Mixup  # late, since importing timm takes seconds

        mixup = Mixup(
            mixup_alpha=self.mix.mixup_alpha,
            cutmix_alpha=self.mix.cutmix_alpha,
            prob=self.mix.p,
            switch_prob=self.mix.switch_p,
            label_smoothing=self.smoothing,
            num_classes=self.num_classes,
        )
        with seeded_globals(seed, "mix", step):
            mixed, targets = mixup(images, labels)
        return mixed, targets


def soft_targets(labels: Labels, num_classes: int, smoothing: float) -> Targets:
    """Make soft targets from unmixed labels: 1 - eps + eps/C for the class, eps/C for each other class (arXiv:1512.00567)."""
    from timm.data.mixup import one_hot

    off = smoothing / num_classes
    targets: Targets = one_hot(labels, num_classes, on_value=1.0 - smoothing + off, off_value=off)
    return targets
