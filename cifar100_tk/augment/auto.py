"""The policies that draw ops: AutoAugment, RandAugment and TrivialAugment, each op on the images that drew it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Annotated, Any, Literal, final

import numpy as np
import PIL.Image
import torch
from numpy.typing import NDArray

from cifar100_tk.augment import kernels
from cifar100_tk.augment.base import AugmentPlan, PackedAugmentation, Row
from cifar100_tk.augment.kernels import put_rows
from cifar100_tk.augment.ops import OPS, Affine, Blend, Filter, FixedTable, Kernel, LookupTable, Op
from cifar100_tk.augment.policies import CIFAR10
from cifar100_tk.draws import Float64s, ImageDraws, Int64s
from cifar100_tk.errors import ConfigError
from cifar100_tk.ranges import SHARE, Within, check_ranges
from cifar100_tk.tensors import RawImages

BINS = Within(low=2, high=1000, use="use 31")
"""Bins of a magnitude range."""

NO_OP = -1
RAND_OPS = tuple(name for name in OPS if name != "Invert")
"""The 14 ops of RandAugment (arXiv:1909.13719, section 3) and TrivialAugment (arXiv:2103.10158, table 1)."""


class OpPolicy(PackedAugmentation):
    """An augmentation that applies up to K ops of `OPS` to each image, one after the other.

    Its plan: `op`: (B, K) int64, positions in `OPS`, -1 for none; `magnitude`: (B, K) float64, sign included.
    """

    @abstractmethod
    def draw(self, draws: ImageDraws) -> AugmentPlan: ...

    @property
    @abstractmethod
    def op_names(self) -> tuple[str, ...]:
        """The ops that it may draw, as in `OPS`."""

    @property
    def host_only(self) -> str:
        names = ", ".join(name for name in self.op_names if OPS[name].batched is None)
        return f"{type(self).__name__} with {names}" if names else ""

    def apply(self, image: PIL.Image.Image, row: Row) -> PIL.Image.Image:
        ops = _ops()
        for op, magnitude in zip(row["op"], row["magnitude"], strict=True):
            if op != NO_OP:
                image = ops[op].host(image, magnitude)
        return image

    def controls(self, plan: AugmentPlan) -> dict[str, Any]:
        """Group the images by operation: for each of the K slots and each kind of kernel, the images that drew it."""
        slots = zip(plan["op"].T, plan["magnitude"].T, strict=True)
        return {str(slot): _slot_controls(op, magnitude) for slot, (op, magnitude) in enumerate(slots)}

    def run(self, images: RawImages, controls: dict[str, Any]) -> RawImages:
        changed = images.clone(memory_format=torch.contiguous_format)
        for kinds in controls.values():
            # Each image is in at most one kind per slot.
            for kind, arrays in kinds.items():
                rows = arrays["rows"]
                put_rows(changed, rows, _RUN[kind](changed.index_select(0, rows), arrays))
        return changed


@final
@dataclass(frozen=True, kw_only=True)
class AutoAugment(OpPolicy):
    """Apply one of 25 learned pairs of ops (arXiv:1805.09501), each op of the pair with its own probability."""

    policy: Literal["cifar10"] = "cifar10"
    """The learned table: `cifar10`, which the paper also uses for CIFAR-100."""
    p: Annotated[float, SHARE] = 0.7
    """Fraction of the images that the policy is applied to; 0 is off."""

    def __post_init__(self) -> None:
        if self.policy != "cifar10":
            raise ConfigError(f"auto_augment.policy={self.policy!r} is not a policy; use 'cifar10'.")
        check_ranges(self, "auto_augment.")

    @property
    def op_names(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(name for pair in CIFAR10 for name, _, _ in pair))

    def draw(self, draws: ImageDraws) -> AugmentPlan:
        drawn = draws.uniform(6)
        ops, chance, magnitudes, signed = _cifar10_arrays()
        row = (drawn[:, 1] * len(ops)).astype(np.int64)
        applied = (drawn[:, :1] < self.p) & (drawn[:, 2:4] <= chance[row])
        sign = np.where(signed[row] & (drawn[:, 4:6] < 0.5), -1.0, 1.0)
        return {"op": np.where(applied, ops[row], NO_OP), "magnitude": magnitudes[row] * sign}


@final
@dataclass(frozen=True, kw_only=True)
class RandAugment(OpPolicy):
    """Apply a few ops drawn uniformly, all at one magnitude (arXiv:1909.13719)."""

    num_ops: Annotated[int, Within(low=0, high=16, use="use 2, or 0 for none")] = 2
    """Ops per image (N in the paper); 0 is off."""
    magnitude: Annotated[int, Within(low=0, high=999, use="use 14")] = 14
    """Bin of every op's magnitude (M in the paper), 0..num_magnitude_bins-1."""
    num_magnitude_bins: Annotated[int, BINS] = 31
    """Number of bins that each magnitude range is divided into."""
    ops: tuple[str, ...] = RAND_OPS
    """Names of the ops to draw from."""

    def __post_init__(self) -> None:
        check_ranges(self, "rand_augment.")
        if self.magnitude >= self.num_magnitude_bins:
            raise ConfigError(
                f"rand_augment.magnitude={self.magnitude} is out of range; use a bin from 0 to {self.num_magnitude_bins - 1}."
            )
        _check_ops("rand_augment.ops", self.ops)

    @property
    def op_names(self) -> tuple[str, ...]:
        return self.ops

    def draw(self, draws: ImageDraws) -> AugmentPlan:
        table = _ranges(self.ops, self.num_magnitude_bins, wide=False)
        drawn = draws.uniform(2 * self.num_ops)
        which, sign = drawn[:, : self.num_ops], drawn[:, self.num_ops :]
        return table.plan(which, np.full(which.shape, self.magnitude), sign)


@final
@dataclass(frozen=True, kw_only=True)
class TrivialAugmentWide(OpPolicy):
    """Apply one op drawn uniformly, at a magnitude drawn uniformly from a wide range (arXiv:2103.10158)."""

    num_magnitude_bins: Annotated[int, BINS] = 31
    """Number of bins that each magnitude range is divided into."""
    ops: tuple[str, ...] = RAND_OPS
    """Names of the ops to draw from."""

    def __post_init__(self) -> None:
        check_ranges(self, "trivial_augment_wide.")
        _check_ops("trivial_augment_wide.ops", self.ops)

    @property
    def op_names(self) -> tuple[str, ...]:
        return self.ops

    def draw(self, draws: ImageDraws) -> AugmentPlan:
        table = _ranges(self.ops, self.num_magnitude_bins, wide=True)
        drawn = draws.uniform(3)
        return table.plan(drawn[:, :1], (drawn[:, 1:2] * self.num_magnitude_bins).astype(np.int64), drawn[:, 2:])


# --- The draws.


@final
@dataclass(frozen=True)
class _Ranges:
    """Some ops as arrays, row i for op i."""

    ops: Int64s
    magnitudes: Float64s
    """(ops, bins); a row of zeros for an op without a magnitude."""
    signed: NDArray[np.bool_]

    def plan(self, which: Float64s, bins: Int64s, sign: Float64s) -> AugmentPlan:
        """Choose ops. which, sign: (B, K) in [0, 1). bins: (B, K)."""
        row = (which * len(self.ops)).astype(np.int64)
        negated = self.signed[row] & (sign < 0.5)
        return {"op": self.ops[row], "magnitude": self.magnitudes[row, bins] * np.where(negated, -1.0, 1.0)}


def _ops() -> tuple[Op, ...]:
    return tuple(OPS.values())


def _check_ops(name: str, ops: tuple[str, ...]) -> None:
    unknown = [op for op in ops if op not in OPS]
    if unknown or not ops:
        raise ConfigError(f"{name}={ops} is empty or contains an unknown op; use names from {', '.join(OPS)}.")


@lru_cache(maxsize=64)
def _ranges(names: tuple[str, ...], bins: int, wide: bool) -> _Ranges:
    """Look up the ops once. names: as in `OPS`."""
    position = {name: i for i, name in enumerate(OPS)}
    chosen = [(OPS[name].wide if wide else OPS[name].standard) for name in names]
    return _Ranges(
        ops=np.array([position[name] for name in names]),
        magnitudes=np.stack(
            [np.zeros(bins) if magnitude_of is None else magnitude_of(bins) for magnitude_of in chosen]
        ),
        signed=np.array([OPS[name].signed for name in names]),
    )


@lru_cache(maxsize=1)
def _cifar10_arrays() -> tuple[Int64s, Float64s, Float64s, NDArray[np.bool_]]:
    """Turn the table into arrays, each (25, 2): op, probability, unsigned magnitude, whether a sign is drawn."""
    table = _ranges(tuple(OPS), 10, wide=False)
    position = {name: i for i, name in enumerate(OPS)}
    ops = np.array([[position[name] for name, _, _ in pair] for pair in CIFAR10])
    chance = np.array([[p for _, p, _ in pair] for pair in CIFAR10])
    bins = np.array([[step or 0 for _, _, step in pair] for pair in CIFAR10])
    return ops, chance, table.magnitudes[ops, bins], table.signed[ops]


# --- The kinds of kernels, each run on the images that drew it: arguments prepared on the host, execution on the device.

_KINDS: dict[type[Kernel], str] = {
    Affine: "move",
    FixedTable: "recode",
    LookupTable: "recode",
    Blend: "blend",
    Filter: "filter",
}
"""The runner of each kernel class; kernels with the same runner are batched together."""


def _slot_controls(op: Int64s, magnitude: Float64s) -> dict[str, Any]:
    """Return the arguments of each kind of kernel: `rows`, grouped by op, and more. op, magnitude: (B,)."""
    ops = _ops()
    order = np.argsort(op, kind="stable")
    edges = np.searchsorted(op[order], np.arange(len(ops) + 1)).tolist()
    kinds: dict[str, dict[str, Int64s]] = {}
    for one, (start, stop) in zip(ops, pairwise(edges), strict=True):
        if start < stop and one.name != "Identity" and one.batched is not None:
            kinds.setdefault(_KINDS[type(one.batched)], {})[one.name] = order[start:stop]
    return {kind: _CONTROLS[kind](rows, magnitude) for kind, rows in kinds.items()}


Rows = dict[str, Int64s]
"""The images that drew an op, by its name."""


def _move_controls(rows: Rows, magnitude: Float64s) -> dict[str, Any]:
    return _tabulated(rows, magnitude, _move_table, "source")


def _recode_controls(rows: Rows, magnitude: Float64s) -> dict[str, Any]:
    """Return the arguments of the lookups; tables that depend on the magnitude alone are made on the host and come first."""
    fixed = {name: group for name, group in rows.items() if isinstance(OPS[name].batched, FixedTable)}
    others = {name: group for name, group in rows.items() if name not in fixed}
    controls = {"rows": np.concatenate([*fixed.values(), *others.values()]), "factors": _factors(others, magnitude)}
    return controls | ({"fixed": _tabulated(fixed, magnitude, _fixed_table, "tables")} if fixed else {})


def _other_controls(rows: Rows, magnitude: Float64s) -> dict[str, Any]:
    return {"rows": np.concatenate(list(rows.values())), "factors": _factors(rows, magnitude)}


_CONTROLS: dict[str, Callable[[Rows, Float64s], dict[str, Any]]] = {
    "move": _move_controls,
    "recode": _recode_controls,
    "blend": _other_controls,
    "filter": _other_controls,
}


def _factors(rows: Rows, magnitude: Float64s) -> dict[str, NDArray[np.float32]]:
    """Return the kernels' factors: magnitude plus the op's offset, rounded to float32 as Pillow does."""
    return {name: (magnitude[group] + OPS[name].factor_offset).astype(np.float32) for name, group in rows.items()}


def _tabulated(
    rows: Rows, magnitude: Float64s, table: Callable[[Op, float], NDArray[Any]], name: str
) -> dict[str, Any]:
    """Make a table for each op and magnitude that occurs; `which` is the table index of each image."""
    numbers: dict[tuple[str, float], int] = {}
    which = [
        numbers.setdefault((op_name, value), len(numbers))
        for op_name, group in rows.items()
        for value in magnitude[group].tolist()
    ]
    tables = np.stack([table(OPS[op_name], value) for op_name, value in numbers])
    return {"rows": np.concatenate(list(rows.values())), "which": np.array(which), name: tables}


@lru_cache(maxsize=2048)
def _move_table(op: Op, magnitude: float) -> NDArray[np.int16]:
    assert isinstance(op.batched, Affine)
    return kernels.affine_source(op.batched.matrix(magnitude))


@lru_cache(maxsize=2048)
def _fixed_table(op: Op, magnitude: float) -> NDArray[np.uint8]:
    assert isinstance(op.batched, FixedTable)
    return op.batched.table(magnitude + op.factor_offset)


def _move(chosen: RawImages, controls: dict[str, Any]) -> RawImages:
    return kernels.move_pixels(chosen, controls["source"], controls["which"])


def _recode(chosen: RawImages, controls: dict[str, Any]) -> RawImages:
    tables: list[kernels.Tables] = []
    if fixed := controls.get("fixed"):
        tables.append(fixed["tables"].index_select(0, fixed["which"])[:, None])
    start = len(chosen) - sum(map(len, controls["factors"].values()))
    for name, factors in controls["factors"].items():
        kernel = OPS[name].batched
        assert isinstance(kernel, LookupTable)
        tables.append(kernel.tables(chosen[start : start + len(factors)], factors))
        start += len(factors)
    return kernels.look_up(chosen, torch.cat([table.expand(-1, 3, -1) for table in tables]))


def _blend(chosen: RawImages, controls: dict[str, Any]) -> RawImages:
    plain, start = torch.empty_like(chosen), 0
    for name, factors in controls["factors"].items():
        kernel, group = OPS[name].batched, slice(start, start + len(factors))
        assert isinstance(kernel, Blend)
        plain[group] = kernel.plain(chosen[group])
        start += len(factors)
    return kernels.blend(plain, chosen, torch.cat(list(controls["factors"].values())))


def _filter(chosen: RawImages, controls: dict[str, Any]) -> RawImages:
    filtered, start = [], 0
    for name, factors in controls["factors"].items():
        kernel = OPS[name].batched
        assert isinstance(kernel, Filter)
        filtered.append(kernel.run(chosen[start : start + len(factors)], factors))
        start += len(factors)
    return torch.cat(filtered)


_RUN: dict[str, Callable[[RawImages, dict[str, Any]], RawImages]] = {
    "move": _move,
    "recode": _recode,
    "blend": _blend,
    "filter": _filter,
}
