"""The policies that draw ops: AutoAugment, RandAugment and TrivialAugment, each op on the pictures that drew it."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Literal, final

import numpy as np
import PIL.Image
import torch
from numpy.typing import NDArray

from cifar100_tk.augment import kernels
from cifar100_tk.augment.base import BatchedAugmentation, Plan, Row
from cifar100_tk.augment.checks import check_share, check_whole
from cifar100_tk.augment.kernels import put_rows, to_device
from cifar100_tk.augment.ops import OPS, Filters, Moves, Op, Recodes
from cifar100_tk.augment.policies import CIFAR10
from cifar100_tk.draws import Float64s, Int64s, PictureDraws
from cifar100_tk.errors import ConfigError
from cifar100_tk.tensors import Pictures

NO_OP = -1
RAND_OPS = tuple(name for name in OPS if name != "Invert")
"""The 14 ops of RandAugment (arXiv:1909.13719, section 3) and TrivialAugment (arXiv:2103.10158, table 1)."""


class OpPolicy(BatchedAugmentation):
    """An augmentation that applies up to K ops of `OPS` to each picture, one after the other.

    Its plan: `op`: (B, K) int64, positions in `OPS`, -1 for none; `magnitude`: (B, K) float64, sign included.
    """

    @abstractmethod
    def draw(self, draws: PictureDraws) -> Plan: ...

    @property
    @abstractmethod
    def op_names(self) -> tuple[str, ...]:
        """The ops that it may draw, as in `OPS`."""

    @property
    def host_only(self) -> str:
        names = ", ".join(name for name in self.op_names if OPS[name].batched is None)
        return f"{type(self).__name__} with {names}" if names else ""

    def apply(self, picture: PIL.Image.Image, row: Row) -> PIL.Image.Image:
        ops = _ops()
        for op, magnitude in zip(row["op"], row["magnitude"], strict=True):
            if op != NO_OP:
                picture = ops[op].host(picture, magnitude)
        return picture

    def apply_batch(self, pictures: Pictures, plan: Plan) -> Pictures:
        changed = pictures.clone(memory_format=torch.contiguous_format)
        for op, magnitude in zip(plan["op"].T, plan["magnitude"].T, strict=True):
            _move(changed, op, magnitude)
            _recode(changed, op, magnitude)
            _filter(changed, op, magnitude)
        return changed


@final
@dataclass(frozen=True, kw_only=True)
class AutoAugment(OpPolicy):
    """Apply one of 25 learned pairs of ops (arXiv:1805.09501); each op of the pair by its own probability."""

    policy: Literal["cifar10"] = "cifar10"
    """Which learned table: `cifar10`, which the paper also uses for CIFAR-100."""
    p: float = 0.7
    """Share of the pictures that the policy sees; 0 is off."""

    def __post_init__(self) -> None:
        if self.policy != "cifar10":
            raise ConfigError(f"auto_augment.policy={self.policy!r} is not a policy; use 'cifar10'.")
        check_share("auto_augment.p", self.p)

    @property
    def op_names(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(name for pair in CIFAR10 for name, _, _ in pair))

    def draw(self, draws: PictureDraws) -> Plan:
        drawn = draws.uniform(6)
        ops, chance, magnitudes, signed = _cifar10_arrays()
        row = (drawn[:, 1] * len(ops)).astype(np.int64)
        applied = (drawn[:, :1] < self.p) & (drawn[:, 2:4] <= chance[row])
        sign = np.where(signed[row] & (drawn[:, 4:6] < 0.5), -1.0, 1.0)
        return {"op": np.where(applied, ops[row], NO_OP), "magnitude": magnitudes[row] * sign}


@final
@dataclass(frozen=True, kw_only=True)
class RandAugment(OpPolicy):
    """Apply a few ops drawn evenly, all at one magnitude (arXiv:1909.13719)."""

    num_ops: int = 2
    """Ops a picture (N of the paper); 0 is off."""
    magnitude: int = 14
    """Bin of every op's magnitude (M of the paper), 0..num_magnitude_bins-1."""
    num_magnitude_bins: int = 31
    """How many bins the ranges are divided into."""
    ops: tuple[str, ...] = RAND_OPS
    """Names of the ops to draw from."""

    def __post_init__(self) -> None:
        check_whole("rand_augment.num_ops", self.num_ops, 0, 16)
        check_whole("rand_augment.num_magnitude_bins", self.num_magnitude_bins, 2, 1000)
        check_whole("rand_augment.magnitude", self.magnitude, 0, self.num_magnitude_bins - 1)
        _check_ops("rand_augment.ops", self.ops)

    @property
    def op_names(self) -> tuple[str, ...]:
        return self.ops

    def draw(self, draws: PictureDraws) -> Plan:
        table = _ranges(self.ops, self.num_magnitude_bins, wide=False)
        drawn = draws.uniform(2 * self.num_ops)
        which, sign = drawn[:, : self.num_ops], drawn[:, self.num_ops :]
        return table.plan(which, np.full(which.shape, self.magnitude), sign)


@final
@dataclass(frozen=True, kw_only=True)
class TrivialAugmentWide(OpPolicy):
    """Apply one op drawn evenly, at a magnitude drawn evenly from a wide range (arXiv:2103.10158)."""

    num_magnitude_bins: int = 31
    """How many bins the ranges are divided into."""
    ops: tuple[str, ...] = RAND_OPS
    """Names of the ops to draw from."""

    def __post_init__(self) -> None:
        check_whole("trivial_augment_wide.num_magnitude_bins", self.num_magnitude_bins, 2, 1000)
        _check_ops("trivial_augment_wide.ops", self.ops)

    @property
    def op_names(self) -> tuple[str, ...]:
        return self.ops

    def draw(self, draws: PictureDraws) -> Plan:
        table = _ranges(self.ops, self.num_magnitude_bins, wide=True)
        drawn = draws.uniform(3)
        return table.plan(drawn[:, :1], (drawn[:, 1:2] * self.num_magnitude_bins).astype(np.int64), drawn[:, 2:])


# --- What is drawn.


@final
@dataclass(frozen=True)
class _Ranges:
    """Some ops as arrays, row i for op i."""

    ops: Int64s
    magnitudes: Float64s
    """(ops, bins); a row of zeros for an op without a magnitude."""
    signed: NDArray[np.bool_]

    def plan(self, which: Float64s, bins: Int64s, sign: Float64s) -> Plan:
        """Choose ops. which, sign: (B, K) in [0, 1). bins: (B, K)."""
        row = (which * len(self.ops)).astype(np.int64)
        negated = self.signed[row] & (sign < 0.5)
        return {"op": self.ops[row], "magnitude": self.magnitudes[row, bins] * np.where(negated, -1.0, 1.0)}


def _ops() -> tuple[Op, ...]:
    return tuple(OPS.values())


def _check_ops(name: str, ops: tuple[str, ...]) -> None:
    unknown = [op for op in ops if op not in OPS]
    if unknown or not ops:
        raise ConfigError(f"{name}={ops} has no op or an unknown one; use names from {', '.join(OPS)}.")


@lru_cache(maxsize=64)
def _ranges(names: tuple[str, ...], bins: int, wide: bool) -> _Ranges:
    """Look the ops up once. names: as in `OPS`."""
    position = {name: i for i, name in enumerate(OPS)}
    chosen = [(OPS[name].wide if wide else OPS[name].standard) for name in names]
    return _Ranges(
        ops=np.array([position[name] for name in names]),
        magnitudes=np.stack([np.zeros(bins) if one is None else one(bins) for one in chosen]),
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


# --- The three kinds of kernels, each on the pictures that drew it, in place.


def _rows_of(kind: type[Moves | Recodes | Filters], op: Int64s) -> Int64s:
    """List the pictures whose op is of a kind, those of one op together. op: (B,). Returns (n,)."""
    of_kind = np.array([isinstance(one.batched, kind) and one.name != "Identity" for one in _ops()] + [False])
    rows = np.flatnonzero(of_kind[op])
    return rows[np.argsort(op[rows], kind="stable")]


def _groups(op: Int64s) -> list[tuple[Op, slice]]:
    """Cut a sorted list of ops where the op changes."""
    edges = [0, *(np.flatnonzero(np.diff(op)) + 1).tolist(), len(op)]
    ops = _ops()
    return [(ops[op[a]], slice(a, b)) for a, b in pairwise(edges)]


def _move(pictures: Pictures, op: Int64s, magnitude: Float64s) -> None:
    rows = _rows_of(Moves, op)
    if not len(rows):
        return
    matrices = np.empty((len(rows), 6))
    for one, group in _groups(op[rows]):
        assert isinstance(one.batched, Moves)
        matrices[group] = [one.batched.matrix(value) for value in magnitude[rows[group]].tolist()]
    on_device = to_device(rows, pictures.device)
    put_rows(pictures, on_device, kernels.affine_nearest(pictures.index_select(0, on_device), matrices))


def _recode(pictures: Pictures, op: Int64s, magnitude: Float64s) -> None:
    rows = _rows_of(Recodes, op)
    if not len(rows):
        return
    on_device = to_device(rows, pictures.device)
    chosen = pictures.index_select(0, on_device)
    tables = torch.empty(len(rows), 3, 256, dtype=torch.uint8, device=pictures.device)
    factors = _factors(op[rows], magnitude[rows], pictures.device)
    for one, group in _groups(op[rows]):
        assert isinstance(one.batched, Recodes)
        tables[group] = one.batched.tables(chosen[group], factors[group])
    put_rows(pictures, on_device, kernels.look_up(chosen, tables))


def _filter(pictures: Pictures, op: Int64s, magnitude: Float64s) -> None:
    rows = _rows_of(Filters, op)
    if not len(rows):
        return
    on_device = to_device(rows, pictures.device)
    chosen = pictures.index_select(0, on_device)
    factors = _factors(op[rows], magnitude[rows], pictures.device)
    for one, group in _groups(op[rows]):
        assert isinstance(one.batched, Filters)
        put_rows(pictures, on_device[group], one.batched.run(chosen[group], factors[group]))


def _factors(op: Int64s, magnitude: Float64s, device: torch.device) -> kernels.Factors:
    """Give the batched kernels their numbers: magnitude plus the op's offset, rounded to float32 as Pillow does."""
    offset = np.array([one.factor_offset for one in _ops()])
    return to_device((magnitude + offset[op]).astype(np.float32), device)
