"""Checks of every entry of rows, block by block, so that mapped rows are never in memory whole."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.constraints import Constraint

from pyrovae.refusals import bad_value, column_of, place
from pyrovae.rounding import blocks
from pyrovae.sparse import SparseRows

#: Bytes of memory that sparse rows may take if a computation needs all of them dense.
_MOST_DENSE = 2 * 10**9


def most_dense(rows: Tensor) -> int:
    """Return how many sparse rows may be dense at once."""
    return int(_MOST_DENSE / (rows.dtype.itemsize * rows[0].numel()))


def all_dense(rows: Tensor, reader: str) -> Tensor:
    """Return sparse rows as dense ones, for a ``reader`` that needs all of them at once; other rows as they are.

    Raises:
        ValueError: they would take more than 2 GB.
    """
    if not isinstance(rows, SparseRows):
        return rows
    most = most_dense(rows)
    if len(rows) > most:
        size = rows.numel() * rows.dtype.itemsize / 1e9
        raise bad_value(
            "x",
            f"sparse rows of at most {_MOST_DENSE / 1e9:g} GB when they are dense, because {reader} needs all of them at once",
            f"{len(rows)} rows of {size:.3g} GB",
            f"Pass a random sample of at most {most} rows, or a dense array.",
        )
    return rows.dense()


def finite(argument: str, x: Tensor, missing: bool = False, names: Sequence[Any] | None = None) -> None:
    """Raise ``ValueError`` for NaN and ±inf, with their count and the first position.

    With ``missing``, the caller takes NaN for missing cells and has replaced them; the message says so. ``names`` are those
    of columns.
    """
    # A finite sum needs finite entries and no second array. Otherwise entries are checked: the sum may have overflowed.
    if torch.isfinite(x.sum()):
        return
    count, position = found(x, lambda block: ~torch.isfinite(block))
    if not count:
        return
    value = float(x[tuple(position)])
    raise bad_value(
        argument,
        "finite numbers" + (", or NaN in missing cells" if missing else ""),
        f"{count} that are {'' if missing else 'NaN or '}infinite, first {value} at {place(position, names)}",
        "Pass NaN if these cells are missing, or drop those rows."
        if missing
        else "Drop those rows or impute them first.",
    )


def within(argument: str, rows: Tensor, low: float, high: float, fix: str) -> None:
    """Raise ``ValueError`` for values outside [low, high], with their count and first position; rows have any shape."""
    count, position = found(rows, lambda block: (block < low) | (block > high))
    if count:
        raise bad_value(
            argument,
            f"values from {low:g} to {high:g}",
            f"{count} outside, first {float(rows[tuple(position)]):g} at {place(position)}",
            fix,
        )


def elementwise(support: Any) -> Constraint | None:
    """Return a support as a constraint on single numbers with numbers as bounds, for ``on_support``; else None.

    The result is None if the support constrains several numbers at once. It is also None if the bounds vary by row, as
    with a total count, or by column. Only the distribution's own check covers these.
    """
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    fixed = copy.copy(support)
    for name, bound in vars(support).items():
        if isinstance(bound, Tensor):
            if not bool((bound == bound.flatten()[0]).all()):
                return None
            setattr(fixed, name, bound.flatten()[0].item())
    return fixed if fixed.event_dim == 0 else None


def on_support(
    argument: str,
    rows: Tensor,
    columns: list[int],
    support: Constraint,
    family: str,
    fix: str,
    names: Sequence[Any] | None = None,
) -> None:
    """Raise ``ValueError`` for values off an elementwise ``support`` in ``columns`` of ``rows``, shape (rows, columns).

    NaN, a missing cell, is left out. The message names the family, the number of values, the first row and column, and
    the fix. ``names`` are those of all columns.
    """
    held = columns if len(columns) < rows.shape[1] else slice(None)
    count, position = found(rows, lambda block: ~(support.check(block[:, held]) | block[:, held].isnan()))
    if not count:
        return
    row, column = position[0], columns[position[1]]
    raise bad_value(
        argument,
        f"values on the support of {family} ({support})",
        f"{count} off it, first {float(rows[row, column]):g} at {place([row, column], names)}",
        fix,
    )


def check_sizes(x: Tensor, names: tuple[str, ...] | None = None, spread: bool = True) -> None:
    """Raise ``ValueError`` for columns of real numbers whose squares leave the range of their dtype.

    log P(x) squares differences within a column. Values must be below 1e151 and ranges above 1e-151 in float64; in float32,
    1e16 and 1e-16. The range of a column is its largest value less its smallest; a constant column has none.

    Args:
        x: rows, NaN in missing cells.
        names: of the columns.
        spread: whether ranges are checked, too; a few rows to score may be close to each other.
    """
    info = torch.finfo(x.dtype)
    least, most = 1e3 * info.tiny**0.5, 1e-3 * info.max**0.5
    low, high = (x.new_full((x[0].numel(),), edge) for edge in (torch.inf, -torch.inf))
    for _, block in blocks(x):
        flat = block.reshape(len(block), -1)
        hole = flat.isnan()
        low = torch.minimum(low, flat.masked_fill(hole, torch.inf).amin(dim=0))
        high = torch.maximum(high, flat.masked_fill(hole, -torch.inf).amax(dim=0))
    width = high / 2 - low / 2  # halves, because the difference may overflow
    size = torch.maximum(high, -low)
    small = (width > 0) & (width < least / 2) & spread
    bad = torch.nonzero(((size > most) & (low <= high)) | small).flatten()
    if len(bad):
        column = int(bad[0])
        held = float(2 * width[column] if small[column] else size[column])
        unit = float(f"1e{math.floor(math.log10(held))}")
        double = x.dtype != torch.float64
        raise bad_value(
            "x",
            f"columns of values up to {most:.0e}"
            + (f" and of ranges from {least:.0e} on" if spread else "")
            + f", whose squares {str(x.dtype).removeprefix('torch.')} can represent",
            f"{len(bad)} column(s) outside, first {column_of(column, names)} with a {'range' if small[column] else 'value'} of {held:.2g}",
            f"Divide that column by {unit:g}. Each of its cells then adds {math.log(unit):.2f} nats to log P(x); subtract them to "
            "return to the old units."
            + (" Or use float64: call .double() on the model and on x." if double else ""),
        )


def column_sizes(x: Tensor) -> tuple[float, float]:
    """Return the root mean squares of the smallest and largest columns, without columns of zeros; else (1.0, 1.0)."""
    size = x.detach().double().reshape(len(x), -1).square().mean(dim=0).sqrt()
    size = size[size > 0]
    return (float(size.min()), float(size.max())) if len(size) else (1.0, 1.0)


def largest_entry(x: Tensor) -> tuple[int, int, float]:
    """Return the row, column and value of the entry with the largest absolute value, in flattened rows."""
    rows = x.detach().reshape(len(x), -1)
    index = int(rows.abs().argmax())
    row, column = divmod(index, rows.shape[1])
    return row, column, float(rows[row, column])


def found(rows: Tensor, bad: Callable[[Tensor], Tensor]) -> tuple[int, list[int]]:
    """Return how many entries of rows are bad, and the index of the first; checked block by block."""
    count, first = 0, []
    for start, block in blocks(rows):
        entries = bad(block)
        if not bool(entries.any()):
            continue
        if not count:
            index = int(entries.flatten().int().argmax())
            row, *rest = (int(i) for i in np.unravel_index(index, tuple(entries.shape)))
            first = [start + row, *rest]
        count += int(entries.sum())
    return count, first
