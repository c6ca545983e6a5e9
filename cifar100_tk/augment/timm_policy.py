"""Any of timm's augmentation policies, by the string that timm's own command line takes; on the host only."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, final

import PIL.Image
import PIL.ImageOps

from cifar100_tk.augment.base import SIDE, Augmentation, AugmentPlan, Row
from cifar100_tk.augment.finish import Normalize
from cifar100_tk.draws import ImageDraws, bits, seeded_globals
from cifar100_tk.errors import ConfigError

_WHOLE, _COUNT, _NUMBER = r"\d+", r"[1-9]", r"\d+(\.\d+)?"
_POSITIVE = rf"(?!0+(\.0+)?$){_NUMBER}"
_SECTIONS: dict[str, dict[str, str]] = {
    "rand": {
        "m": _WHOLE,
        "n": _COUNT,
        "p": _NUMBER,
        "mstd": _NUMBER,
        "mmax": _WHOLE,
        "inc": "[01]",
        "t": "weights|3aw?",
    },
    "augmix": {
        "m": _WHOLE,
        "w": _COUNT,
        "d": _COUNT,
        "a": _POSITIVE,
        "b": "[01]",
        "mstd": _NUMBER,
    },
    **{family: {"mstd": _NUMBER} for family in ("original", "originalr", "v0", "v0r", "3a")},
}
"""The sections that timm reads after the family's name. It ignores unknown sections, so a typo would go unnoticed."""


@final
@dataclass(frozen=True, kw_only=True)
class TimmPolicy(Augmentation):
    """Apply one of timm's policies: RandAugment and AugMix variants, and the AutoAugment policies of ImageNet."""

    policy: str = "rand-m9-mstd0.5-inc1"
    """timm's policy string, such as `rand-m9-mstd0.5-inc1`, `augmix-m5-w4-d2` or `original-mstd0.5`."""

    def __post_init__(self) -> None:
        family, *sections = self.policy.split("-")
        if family not in _SECTIONS:
            raise ConfigError(
                f"timm_policy.policy={self.policy!r} is not a timm policy; start with {', '.join(_SECTIONS)}."
            )
        for section in sections:
            if not any(re.fullmatch(f"{key}({value})", section) for key, value in _SECTIONS[family].items()):
                raise ConfigError(
                    f"timm_policy.policy={self.policy!r} has the unknown section {section!r}; "
                    f"{family!r} takes {', '.join(_SECTIONS[family])}, each with a value, as in 'rand-m9-mstd0.5-inc1'."
                )

    def draw(self, draws: ImageDraws) -> AugmentPlan:
        """Draw a seed for each image, which timm's own draws follow from. Returns `word`: (B,) uint32."""
        return {"word": bits(draws.seed, draws.purpose, draws.epoch, draws.images, 1)[:, 0]}

    def apply(self, image: PIL.Image.Image, row: Row) -> PIL.Image.Image:
        with seeded_globals(row["word"], "timm_policy", 0):
            return _transform(self.policy)(image)


@lru_cache(maxsize=16)
def _transform(policy: str) -> Callable[[PIL.Image.Image], PIL.Image.Image]:
    """Build timm's transform with the settings that timm derives from a 32x32 input and the mean of CIFAR-100."""
    from timm.data import auto_augment  # late, since importing timm takes seconds

    settings: dict[str, Any] = {
        "translate_const": int(SIDE * 0.45),
        "img_mean": tuple(min(255, round(255 * mean)) for mean in Normalize().mean),
    }
    if policy.startswith("rand"):
        transform = auto_augment.rand_augment_transform(policy, settings)
        ops = transform.ops
    elif policy.startswith("augmix"):
        transform = auto_augment.augment_and_mix_transform(policy, settings | {"translate_pct": 0.3})
        ops = transform.ops
    else:
        transform = auto_augment.auto_augment_transform(policy, settings)
        ops = [op for pair in transform.policy for op in pair]
    for op in ops:
        if op.aug_fn is auto_augment.posterize:
            op.aug_fn = _posterize
    return transform  # type: ignore[no-any-return]


def _posterize(image: PIL.Image.Image, bits_to_keep: int, **_: Any) -> PIL.Image.Image:
    """Posterize as timm does, also to 0 bits (black), which its strongest level asks for and Pillow 13 rejects."""
    if bits_to_keep < 1:
        return PIL.Image.new(image.mode, image.size)
    return PIL.ImageOps.posterize(image, min(bits_to_keep, 8))
