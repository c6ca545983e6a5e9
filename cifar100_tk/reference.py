"""A reference curve: where measured runs of a recipe were after some epochs, and what to say of a run that is elsewhere."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, final

from cifar100_tk.errors import ConfigError
from cifar100_tk.progress import percent

if TYPE_CHECKING:
    from cifar100_tk.recipe import Recipe


@final
@dataclass(frozen=True, kw_only=True)
class Band:
    """The top-1 that measured runs of a recipe had after an epoch, of the weights that are saved."""

    epoch: int
    """The epoch, counted from 1; it is evaluated whatever --eval-every says."""
    top1: tuple[float, float]
    """The lowest and the highest that is no surprise, as fractions."""
    split: Literal["test", "holdout"] = "test"
    """What it was measured on."""

    def __post_init__(self) -> None:
        low, high = self.top1
        if self.epoch < 1:
            raise ConfigError(f"epoch={self.epoch} of a Band is no epoch; the first is 1.")
        if not 0 <= low <= high <= 1:
            raise ConfigError(
                f"top1={self.top1} of a Band is no band; give low and high as fractions, such as (0.38, 0.46)."
            )

    def remark(self, top1: float) -> str | None:
        """Return what to say of a run's top-1, a fraction, or None where it is as expected."""
        low, high = self.top1
        found = f"epoch {self.epoch}: {self.split} top-1 {percent(top1)} is"
        known = f"{percent(low)} to {percent(high)}, where measured runs of this recipe were"
        if top1 < low:
            return (
                f"  note           {found} below {known}: look for what differs in the set-up (the data, the learning rate, "
                "--contact-sheet) before you train on."
            )
        if top1 > high:
            return (
                f"  note           {found} above {known}: if that was not the aim, see that no {self.split} picture is among "
                "those that are trained on."
            )
        return None


def comparable(recipe: Recipe, file: Recipe) -> bool:
    """Return whether the reference curve of a recipe file holds for a recipe made of it on the command line.

    It does for every seed, and for the same data set from another place; every other number may change the curve.
    """
    from cifar100_tk.recipe import flatten, to_json  # Which imports this.

    ours, theirs = (flatten(to_json(one)) for one in (recipe, file))
    different = {name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name)}
    builtin = "shapes100" in (recipe.data.source, file.data.source)
    return different <= ({"seed"} if builtin else {"seed", "data.source"})
