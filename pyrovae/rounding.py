"""Casts that say what they lose: by column, against how much the column varies. Tensors in, tensors out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

#: A cast may move an entry by so much of its column's standard deviation.
TOLERANCE = 1e-4
# The same for a column whose spread is not known, since it has one value: in its own units.
_OF_ONE_VALUE = 1e-2
# Rows looked at for the spread around each value, which outliers and clusters far apart do not widen.
_SAMPLED = 256
# Values that differ by less than this, relative to their size, differ by rounding in float64 alone.
_JITTER = 1e-12
# Entries in a block of rows.
_BLOCK = 2**20
_BITS = {
    **{torch.bool: 1, torch.uint8: 8, torch.int8: 7, torch.int16: 15, torch.int32: 31, torch.int64: 63},
    **{torch.float16: 11, torch.bfloat16: 8, torch.float32: 24, torch.float64: 53},
}


@dataclass(frozen=True)
class Loss:
    """What a cast would change: how many entries, the first one's place, both its values, and the column's spread.

    ``spread`` is None where a whole number was changed, and 0 for a column of one value.
    """

    count: int
    position: list[int]
    value: float
    cast: float
    spread: float | None


def holds(source: torch.dtype, target: torch.dtype) -> bool:
    """Whether every number of one dtype is one of the other."""
    if source == target:
        return True
    if source.is_floating_point:
        wide = target.is_floating_point and torch.finfo(source).max <= torch.finfo(target).max
        return wide and _BITS.get(source, 64) <= _BITS[target]
    return _BITS.get(source, 64) <= _BITS[target]


def cast(x: Tensor, dtype: torch.dtype, spread: Tensor | None = None) -> tuple[Tensor, Loss | None]:
    """``x`` in a float dtype, and what that changes of it; rows on dim 0, read once, block by block.

    A loss is

    * an entry that moves by more than 1e-4 of its column's standard deviation; of a column of one value, by 0.01;
    * the same in a column most of whose rows move by more than 1e-3 of the width of the fifth of rows around them:
      outliers and distant clusters widen the standard deviation, and not this;
    * a whole number that changes, in an integer dtype or in a column of whole numbers below 2^53.

    A dtype of fewer digits than float32 may move numbers by what it does to a column around zero. NaN and infinities
    are left to the caller; what becomes infinite by the cast is a loss.

    Args:
        x: a float or integer tensor.
        dtype: the float dtype to cast to.
        spread: the columns' standard deviations, shape (columns,), where they are known from other rows.

    Example:
        >>> cast(torch.tensor([[16777217.0], [0.0]], dtype=torch.float64), torch.float32)[1].position
        [0, 0]
    """
    if holds(x.dtype, dtype) or x.numel() == 0 or x.dim() == 0:
        return x.to(dtype), None
    out = torch.empty(x.shape, dtype=dtype, device=x.device)
    watch = Watch(dtype)
    for rows, block in _blocks(x):
        out[rows] = block.to(dtype)
        watch.add(block, out[rows])
    return out, watch.loss(x, spread)


def spread(x: Tensor) -> Tensor:
    """The standard deviation of every column of rows, flattened: shape (columns,), float64, block by block."""
    first = x[0].reshape(-1).double()
    total = squares = torch.zeros_like(first)
    for _, block in _blocks(x):
        centred = block.reshape(len(block), -1).double() - first
        total = total + centred.sum(dim=0)
        squares = squares + centred.square_().sum(dim=0)
    return (squares / len(x) - (total / len(x)) ** 2).clamp(min=0).sqrt()


class Watch:
    """What a cast changes in rows that come a block at a time."""

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype, self._count = dtype, 0
        self._tolerance = max(TOLERANCE, 8 * torch.finfo(dtype).eps)
        # By column: the first row, sums of what the rows differ from it and of its square, the farthest move.
        self._first = self._sum = self._squares = self._worst = torch.zeros(())
        self._changed = torch.tensor(False)

    def add(self, block: Tensor, narrow: Tensor) -> None:
        """Look at rows, and at the same rows after the cast."""
        wide, moved, changed = _compared(block, narrow)
        if not self._count:
            self._first = wide[0].clone()
            self._sum = self._squares = self._worst = torch.zeros_like(self._first)
            self._changed = torch.zeros_like(self._first, dtype=torch.bool)
        centred = wide - self._first
        self._sum = self._sum + centred.sum(dim=0)
        self._squares = self._squares + centred.square_().sum(dim=0)
        self._worst = torch.maximum(self._worst, moved.amax(dim=0))
        if changed is not None:
            self._changed = self._changed | changed.any(dim=0)
        self._count += len(wide)

    def loss(self, x: Tensor, spread: Tensor | None = None) -> Loss | None:
        """What the casts changed too much; ``x`` are all the rows that were looked at."""
        if not bool(((self._worst > 0) | self._changed).any()):
            return None
        variance = self._squares / self._count - (self._sum / self._count) ** 2
        known = variance.clamp(min=0).sqrt()
        # A few rows alike say little of their column.
        if spread is not None and spread.shape == known.shape:
            known = torch.maximum(known, spread.to(known))
        local = self._local_spread(x)
        limit = torch.where(known > 0, self._tolerance * known, _OF_ONE_VALUE).minimum(
            self._tolerance * local
        )
        # NaN or infinite: rows that the caller refuses, and what overflows, which is above every limit.
        limit = torch.where(torch.isfinite(known), limit, torch.finfo(torch.float64).max)
        whole = self._changed & self._all_whole(x)
        if not bool(((self._worst > limit) | whole).any()):
            return None
        count, first = 0, None
        for rows, block in _blocks(x):
            _, moved, changed = _compared(block, block.to(self._dtype))
            changed = torch.zeros_like(moved, dtype=torch.bool) if changed is None else changed & whole
            bad = changed | (moved > limit)
            if first is None and bool(bad.any()):
                row, column = torch.nonzero(bad)[0].tolist()
                place = np.unravel_index(column, tuple(x.shape[1:])) if x.dim() > 1 else ()
                seen = None if bool(changed[row, column]) else float(known.minimum(local)[column])
                value = block.reshape(len(block), -1)[row, column]
                first = [rows.start + row, *map(int, place)], value.item(), float(value.to(self._dtype)), seen
            count += int(bad.sum())
        return None if first is None else Loss(count, *first)

    def _all_whole(self, x: Tensor) -> Tensor:
        """Columns that hold nothing but whole numbers, of those in which one was changed."""
        if not x.is_floating_point() or not bool(self._changed.any()):
            return torch.ones_like(self._changed)
        found = torch.ones_like(self._changed)
        for _, block in _blocks(x):
            wide = block.reshape(len(block), -1)
            found &= (wide == wide.round()).all(dim=0)
            if not bool(found.any()):
                break
        return found

    def _local_spread(self, x: Tensor) -> Tensor:
        """Twice the width of the fifth of rows around a typical row, where that shows a loss; ∞ elsewhere."""
        index = torch.linspace(0, len(x) - 1, min(len(x), _SAMPLED), device=x.device).long()
        reach = len(index) // 10
        found = torch.full_like(self._worst, torch.inf)
        if not reach:
            return found
        # numpy's sort is ten times as fast as torch's.
        sampled = x[index].reshape(len(index), -1).double().T.contiguous().cpu()
        values = torch.from_numpy(np.sort(sampled.numpy(), axis=1)).to(x.device)
        moved = (values.to(self._dtype).double() - values).abs()
        place = torch.arange(len(index), device=x.device)
        width = values[:, (place + reach).clamp(max=len(index) - 1)] - values[:, (place - reach).clamp(min=0)]
        varies = width > _JITTER * values.abs()
        lost = (varies & (moved > 10 * self._tolerance * width)).double().mean(dim=1) > 0.5
        found[lost] = 2 * width[lost].median(dim=1).values
        return found


def _compared(block: Tensor, narrow: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    """Rows in float64, by how much each entry moved, and which whole numbers changed, None for none.

    Each of shape (rows, columns). What is infinite before the cast moves by NaN, what is after it by infinity.
    """
    block, narrow = block.reshape(len(block), -1), narrow.reshape(len(block), -1)
    wide, cast = block.double(), narrow.double()
    moved = (cast - wide).abs_()
    if not block.is_floating_point():
        return wide, moved, (cast.to(block.dtype) != block) | (cast >= 2.0**63)
    if not bool((moved.amax(dim=0) >= 1).any()):  # a whole number moves to another
        return wide, moved, None
    return wide, moved, (moved > 0) & (wide.abs() < 2.0**53) & (wide == wide.round())


def _blocks(x: Tensor) -> Iterator[tuple[slice, Tensor]]:
    height = max(1, _BLOCK * len(x) // max(1, x.numel()))
    return ((slice(start, start + height), x[start : start + height]) for start in range(0, len(x), height))
