"""Casts that report what they lose in each column, relative to the column's standard deviation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from numbers import Integral, Number
from typing import Any

import numpy as np
import torch
from torch import Tensor

#: Whole numbers up to this one, in either direction, are numbers of float64.
WHOLE = 2**53
#: A cast may move an entry by this share of its column's standard deviation.
TOLERANCE = 1e-4
# The same for a column of one value, whose standard deviation is unknown: in the column's own units.
_OF_ONE_VALUE = 1e-2
# How many rows to sample for the spread around each value, which outliers and distant clusters do not widen.
_SAMPLED = 256
# Values whose relative difference is below this differ by rounding in float64 only.
_JITTER = 1e-12
# Entries in a block of rows: 8 MiB in float64.
_BLOCK = 2**20
_BITS = {
    **{torch.bool: 1, torch.uint8: 8, torch.int8: 7, torch.int16: 15, torch.int32: 31, torch.int64: 63},
    **{torch.float16: 11, torch.bfloat16: 8, torch.float32: 24, torch.float64: 53},
}


def beyond_whole(values: Any) -> Any:
    """Return which numbers float64 may not hold, entry by entry: whole ones beyond ``WHOLE``, and others that it changes there.

    Args:
        values: an array, a tensor or a series, of objects too. Floats of 64 bits or fewer are always held.
    """
    if isinstance(values, Tensor):
        # torch would compare narrow types with a number that wrapped around.
        return torch.from_numpy(np.asarray(beyond_whole(values.cpu().numpy()), dtype=bool))
    if values.dtype.kind in "iu":
        return (values > WHOLE) | (values < -WHOLE)
    held = getattr(values.dtype, "subtype", values.dtype)  # of pandas' sparse columns
    if held.kind in "bf" and held.itemsize <= 8:
        return np.zeros(np.shape(values), dtype=bool)
    objects = np.asarray(values, dtype=object)
    return np.array([_beyond_whole(value) for value in objects.flat], dtype=bool).reshape(objects.shape)


def _beyond_whole(value: Any) -> bool:
    if isinstance(value, str):
        try:
            value = Decimal(value)
        except InvalidOperation:
            return False
    if not isinstance(value, Number) or isinstance(value, float | complex):
        return False
    try:
        if value != value or -WHOLE <= value <= WHOLE:  # type: ignore[operator]  # Number has no order; reals have
            return False
        return isinstance(value, Integral) or value != float(value)  # type: ignore[arg-type]
    except OverflowError:
        return True
    except InvalidOperation:  # a decimal that is not a number
        return False


@dataclass(frozen=True)
class Loss:
    """The changes by a cast: how many entries, the first one's place, its value before and after, its column's spread.

    ``spread`` is None if a whole number was changed, and 0 for a column of one value.
    """

    count: int
    position: list[int]
    value: float
    cast: float
    spread: float | None


def holds(source: torch.dtype, target: torch.dtype) -> bool:
    """Return whether one dtype can represent every number of another."""
    if source == target:
        return True
    if source.is_floating_point:
        wide = target.is_floating_point and torch.finfo(source).max <= torch.finfo(target).max
        return wide and _BITS.get(source, 64) <= _BITS[target]
    return _BITS.get(source, 64) <= _BITS[target]


def cast(x: Tensor, dtype: torch.dtype, spread: Tensor | None = None) -> tuple[Tensor, Loss | None]:
    """Return ``x`` in a float dtype and what that loses, or None; rows on dim 0, read once, block by block.

    A loss is

    * an entry that moves by more than 1e-4 of its column's standard deviation, or by 0.01 in a column of one value;
    * an entry that moves by more than 1e-4 of its local spread, in some columns. In these, most rows move by more
      than 1e-3 of the width of the fifth of rows around them. Outliers and distant clusters widen the standard
      deviation, but not this width; the local spread is twice its median;
    * a whole number that changes, in an integer dtype or in a column of whole numbers below 2^53.

    If a dtype has fewer digits than float32, the tolerance grows to 8 units of its resolution. The caller checks NaN and
    infinities. An entry that the cast makes infinite is a loss.

    Args:
        x: a float or integer tensor.
        dtype: the float dtype to cast to.
        spread: the columns' standard deviations, shape (columns,), if they are known from other rows.

    Example:
        >>> cast(torch.tensor([[16777217.0], [0.0]], dtype=torch.float64), torch.float32)[1].position
        [0, 0]
    """
    if holds(x.dtype, dtype) or x.numel() == 0 or x.dim() == 0:
        return x.to(dtype), None
    out, watch = x.to(dtype), Watch(dtype)
    for start, block in blocks(x):
        watch.add(block, out[start : start + len(block)])
    return out, watch.loss(x, spread)


def spread(x: Tensor, count: Tensor | int | None = None) -> Tensor:
    """Return the standard deviation of every column of flattened rows: shape (columns,), float64, block by block.

    ``count`` is the number of observed cells of each column, (columns,). Missing cells must equal the column's first row.
    """
    count = len(x) if count is None else count
    first = x[0].reshape(-1).double()
    total = squares = torch.zeros_like(first)
    for _, block in blocks(x):
        centred = block.reshape(len(block), -1).double() - first
        total = total + centred.sum(dim=0)
        squares = squares + centred.square_().sum(dim=0)
    return (squares / count - (total / count) ** 2).clamp(min=0).sqrt()


class Watch:
    """Collects what a cast changes in rows that come one block at a time."""

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype, self._count = dtype, 0
        self._tolerance = max(TOLERANCE, 8 * torch.finfo(dtype).eps)
        # For each column: the first row, sums of differences from it and of their squares, and the largest move.
        self._first = self._sum = self._squares = self._worst = torch.zeros(())
        self._changed = torch.tensor(False)

    def add(self, block: Tensor, narrow: Tensor) -> None:
        """Record rows, and the same rows after the cast."""
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
        """Return what the casts changed too much, or None; ``x`` holds all the recorded rows."""
        if not bool(((self._worst > 0) | self._changed).any()):
            return None
        variance = self._squares / self._count - (self._sum / self._count) ** 2
        known = variance.clamp(min=0).sqrt()
        # A few equal rows say little about their column.
        if spread is not None and spread.shape == known.shape:
            known = torch.maximum(known, spread.to(known))
        local = self._local_spread(x)
        limit = torch.where(known > 0, self._tolerance * known, _OF_ONE_VALUE).minimum(
            self._tolerance * local
        )
        # The caller rejects rows that are NaN or infinite; entries that overflow exceed every limit.
        limit = torch.where(torch.isfinite(known), limit, torch.finfo(torch.float64).max)
        whole = self._changed & self._all_whole(x)
        if not bool(((self._worst > limit) | whole).any()):
            return None
        count, first = 0, None
        for start, block in blocks(x):
            _, moved, changed = _compared(block, block.to(self._dtype))
            changed = torch.zeros_like(moved, dtype=torch.bool) if changed is None else changed & whole
            bad = changed | (moved > limit)
            if first is None and bool(bad.any()):
                row, column = torch.nonzero(bad)[0].tolist()
                place = np.unravel_index(column, tuple(x.shape[1:])) if x.dim() > 1 else ()
                seen = None if bool(changed[row, column]) else float(known.minimum(local)[column])
                value = block.reshape(len(block), -1)[row, column]
                first = [start + row, *map(int, place)], value.item(), float(value.to(self._dtype)), seen
            count += int(bad.sum())
        return None if first is None else Loss(count, *first)

    def _all_whole(self, x: Tensor) -> Tensor:
        """Return which columns hold only whole numbers, if a whole number was changed."""
        if not x.is_floating_point() or not bool(self._changed.any()):
            return torch.ones_like(self._changed)
        found = torch.ones_like(self._changed)
        for _, block in blocks(x):
            wide = block.reshape(len(block), -1)
            found &= (wide == wide.round()).all(dim=0)
            if not bool(found.any()):
                break
        return found

    def _local_spread(self, x: Tensor) -> Tensor:
        """Return twice the median width of the fifth of rows around a row, in columns where it shows a loss, else ∞."""
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
    """Return rows in float64, how far each entry moved, and which whole numbers changed (None if none).

    Each has shape (rows, columns). An entry that was infinite moves by NaN; one that becomes infinite, by infinity.
    """
    block, narrow = block.reshape(len(block), -1), narrow.reshape(len(block), -1)
    wide, cast = block.double(), narrow.double()
    moved = (cast - wide).abs_()
    if not block.is_floating_point():
        return wide, moved, (cast.to(block.dtype) != block) | (cast >= 2.0**63)
    if not bool((moved.amax(dim=0) >= 1).any()):  # a changed whole number moves by at least 1
        return wide, moved, None
    return wide, moved, (moved > 0) & (wide.abs() < WHOLE) & (wide == wide.round())


def blocks(rows: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Return an iterator over blocks of rows, each with its first row number; mapped rows are never in memory whole."""
    height = max(1, _BLOCK * len(rows) // max(1, rows.numel()))
    return ((start, rows[start : start + height]) for start in range(0, len(rows), height))
