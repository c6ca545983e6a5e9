"""Mixup and CutMix on a batch from keyed draws, and soft targets with and without them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cifar100_tk.augment.base import SIDE
from cifar100_tk.draws import Int64s, seeded_globals, word
from cifar100_tk.errors import ConfigError
from cifar100_tk.phases import Phased
from cifar100_tk.ranges import SHARE, Within
from cifar100_tk.tensors import Images, Labels, Targets

ALPHA = Within(low=0.001, high=1000, or_zero=True, use="use 0.2, or 0 to turn it off")
"""The allowed alphas: NumPy's Beta distribution returns NaN for much smaller ones."""


@final
@dataclass(frozen=True, kw_only=True)
class Mix(Phased):
    """Mix image i of a batch with image B-1-i, in the whole run or a part of it.

    Mixup: arXiv:1710.09412. CutMix: arXiv:1905.04899.
    """

    mixup_alpha: Annotated[float, ALPHA] = 0.2
    """Mixup's lambda is Beta(alpha, alpha); 0 turns Mixup off."""
    cutmix_alpha: Annotated[float, ALPHA] = 0.0
    """CutMix's uncut area is Beta(alpha, alpha); 0 turns CutMix off."""
    p: Annotated[float, SHARE] = 1.0
    """Fraction of the batches mixed, or of the images with mode="elem"; 0 is off."""
    switch_p: Annotated[float, SHARE] = 0.5
    """Fraction of the mixed batches or images that use CutMix if both are on; unused if either is off."""
    mode: Literal["batch", "elem"] = "batch"
    """`batch` draws one lambda and one box for the whole batch, `elem` another for each image; named as timm's."""

    def __post_init__(self) -> None:
        self.check("mix.")
        if self.mode not in ("batch", "elem"):
            raise ConfigError(f"mix.mode={self.mode!r} is not supported; use 'batch' or 'elem'.")

    @property
    def active(self) -> bool:
        """True if any batch can be mixed."""
        return self.p > 0 and (self.mixup_alpha > 0 or self.cutmix_alpha > 0)

    def build(self, num_classes: int, smoothing: float) -> Mixer:
        """Build the mixer. smoothing: timm's epsilon: every class gets epsilon / num_classes; 0 is off."""
        return Mixer(self, num_classes, smoothing)


@final
@dataclass(frozen=True)
class MixDraws:
    """The draws of one step for one process."""

    cut: NDArray[np.bool_]
    """(b,) the images that CutMix takes part in: those with a box of their partner, and those partners."""
    controls: dict[str, Any]
    """Arrays to send to the device; none with mode="batch"."""


@final
@dataclass(frozen=True)
class Mixer:
    """Mixes batches; made by `Mix.build`."""

    mix: Mix
    num_classes: int
    smoothing: float

    def draw(self, seed: int, step: int, positions: Int64s, batch_size: int, side: int = SIDE) -> MixDraws:
        """Draw a process's share of the step's lambdas and boxes, which are those of (seed, step, place in the batch).

        positions: (b,) its places in the global batch of `batch_size` images, partners at opposite ends. side: of the
        images, in pixels.
        """
        mix = self.mix
        if mix.mode == "batch":
            with seeded_globals(seed, "mix", step):
                lam, cut = self._timm()._params_per_batch() if mix.active else (1.0, False)
            return MixDraws(np.full(len(positions), cut and lam != 1), {})
        # Every process draws for the whole batch. NumPy keeps the stream of RandomState the same in all releases.
        random = np.random.RandomState(word(seed, "mix", step))
        cut_share = (mix.switch_p if mix.mixup_alpha > 0 else 1.0) if mix.cutmix_alpha > 0 else 0.0
        mixed, cut = random.rand(batch_size) < mix.p, random.rand(batch_size) < cut_share
        blended, uncut = (random.beta(a or 1, a or 1, batch_size) for a in (mix.mixup_alpha, mix.cutmix_alpha))
        centre = random.rand(batch_size, 2)
        blend = np.where(mixed & ~cut, blended, 1.0)[positions]
        cut, centre = (mixed & cut)[positions], (centre[positions] * side).astype(np.int64)
        # The box of CutMix, clipped at the border, as timm's rand_bbox computes it.
        length = np.where(cut, side * np.sqrt(1 - uncut[positions]), 0).astype(np.int64)[:, None]
        first, last = np.clip(centre - length // 2, 0, side), np.clip(centre + (length + 1) // 2, 0, side)
        lam = blend - (last - first).prod(1) / side**2
        controls = {"first": first, "last": last, "blend": blend.astype(np.float32), "lam": lam.astype(np.float32)}
        return MixDraws(cut | cut[::-1], controls)

    def __call__(
        self, images: Images, labels: Labels, seed: int, step: int, controls: dict[str, Tensor] | None = None
    ) -> tuple[Images, Targets]:
        """Mix one batch with the draws of (seed, step), without waiting for the device; may change the images in place.

        Partners are i and B-1-i, so a rank's part of a global batch must hold both, in this order.
        controls: those of `draw` as tensors, for mode="elem". Returns the mixed images and their targets.
        """
        if not self.mix.active:
            return images, soft_targets(labels, self.num_classes, self.smoothing)
        # The pipeline rejects an odd local batch size before the run and suggests batch sizes that work.
        assert len(images) % 2 == 0, f"{len(images)} images cannot be paired"
        if self.mix.mode == "elem":
            assert controls is not None, "the draws are missing"
            return self._mix_each(images, labels, controls)
        with seeded_globals(seed, "mix", step):
            mixed, targets = self._timm()(images, labels)
        return mixed, targets

    def _mix_each(self, images: Images, labels: Labels, controls: dict[str, Tensor]) -> tuple[Images, Targets]:
        partners = images.flip(0)
        if self.mix.mixup_alpha > 0:
            blend = controls["blend"].view(-1, 1, 1, 1)
            images = images * blend + partners * (1 - blend)
        if self.mix.cutmix_alpha > 0:
            place = torch.arange(images.shape[-1], device=images.device)
            inside = (place >= controls["first"][:, :, None]) & (place < controls["last"][:, :, None])
            box = inside[:, 0, None, :, None] & inside[:, 1, None, None, :]
            images = torch.where(box, partners, images)
        lam, targets = controls["lam"][:, None], soft_targets(labels, self.num_classes, self.smoothing)
        mixed = targets * lam + targets.flip(0) * (1 - lam)
        return images.contiguous(memory_format=torch.channels_last), mixed

    def _timm(self) -> Any:
        from timm.data.mixup import Mixup  # Imported late, since timm takes seconds.

        return Mixup(
            mixup_alpha=self.mix.mixup_alpha,
            cutmix_alpha=self.mix.cutmix_alpha,
            prob=self.mix.p,
            switch_prob=self.mix.switch_p,
            label_smoothing=self.smoothing,
            num_classes=self.num_classes,
        )


def soft_targets(labels: Labels, num_classes: int, smoothing: float) -> Targets:
    """Make soft targets from unmixed labels: 1 - eps + eps/C for the class, eps/C for each other class (arXiv:1512.00567)."""
    from timm.data.mixup import one_hot

    off = smoothing / num_classes
    targets: Targets = one_hot(labels, num_classes, on_value=1.0 - smoothing + off, off_value=off)
    return targets
