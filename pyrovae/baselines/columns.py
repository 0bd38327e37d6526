"""Checks and transforms of columns that several baselines share: variance, collinearity, categories."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pyrovae import arguments
from pyrovae.refusals import bad_value, column_of, place

# Eigenvalues of a correlation matrix are near 1; below this one, a direction holds only rounding errors.
_SINGULAR = 1e-10


def moments(rows: Tensor, observed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return each column's number of observed cells, their mean and their sum of squares about it, each (columns,).

    ``rows`` are 0 in missing cells.
    """
    count = observed.sum(dim=0).double()
    mean = rows.sum(dim=0) / count
    return count, mean, ((rows - mean) ** 2).masked_fill(~observed, 0.0).sum(dim=0)


def standardized(
    rows: Tensor, shared: bool = False, observed: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return rows with mean 0 and variance 1 (divided by N), and mean and standard deviation, for (rows, columns).

    With ``shared``, all columns are divided by one scale, so that their mean variance is 1. With ``observed``, a mask of
    cells, mean and variance are those of a column's observed cells; missing cells are 0.

    Raises:
        ValueError: a column is constant, for which a learned variance takes the density to +∞. With shared,
            all columns are constant.
    """
    first, same = rows[0], rows == rows[0]
    if observed is not None:
        first = rows.take_along_dim(observed.int().argmax(dim=0, keepdim=True), dim=0)[0]
        same = (rows == first) | ~observed
    stuck = torch.nonzero(same.all(dim=0)).flatten()
    if len(stuck) == rows.shape[1] or (len(stuck) and not shared):
        column = int(stuck[0])
        raise bad_value(
            "x",
            "columns that vary, because " + ("their" if shared else "for each a") + " variance is learned",
            f"{len(stuck)} constant column(s), first column {column} (value {float(first[column]):g}): the density "
            "goes to +∞",
            "Drop those columns" + ("." if shared else ", or use PPCA, whose noise variance is shared."),
        )
    if observed is None:
        loc, variance = rows.mean(dim=0), rows.var(dim=0, correction=0)
    else:
        count, loc, squares = moments(rows, observed)
        variance = squares / count
    if shared:
        variance = variance.mean().expand_as(variance)
    scale = variance.sqrt()
    standard = (rows - loc) / scale
    return standard if observed is None else standard.masked_fill(~observed, 0.0), loc, scale


def together(observed: Tensor) -> None:
    """Raise ``ValueError`` if two columns are never observed in one row: no fit can tell their covariance."""
    counts = observed.double().T @ observed.double()
    apart = torch.nonzero((counts == 0).triu())
    if len(apart):
        one, other = apart[0].tolist()
        raise bad_value(
            "x",
            "rows in which every two columns are observed together, because their covariance is learned",
            f"{len(apart)} pair(s) that never are, first columns {one} and {other}",
            'Drop one of the two columns, or use PPCA, FactorAnalysis or GaussianMixture(covariance="diag").',
        )


def singular(covariance: Tensor, least: float = _SINGULAR) -> bool:
    """Return whether covariances (..., columns, columns) of standardised columns lack variance in some direction."""
    return bool((torch.linalg.eigvalsh(covariance)[..., 0] < least).any())


def categories(rows: Tensor, num_categories: int | Sequence[int] | None) -> tuple[int, ...]:
    """Return the number of categories of each column: as given, or one more than the largest value in ``rows``."""
    columns = rows.shape[1]
    if num_categories is None:
        return tuple(int(k) + 1 for k in rows.amax(dim=0))
    if not isinstance(num_categories, Sequence):
        return (arguments.integer("num_categories", num_categories),) * columns
    if len(num_categories) != columns:
        raise bad_value(
            "num_categories",
            f"one for each of the {columns} columns",
            f"{len(num_categories)} of them",
            "Pass as many as columns, or a single number.",
        )
    return tuple(arguments.integer("num_categories", k) for k in num_categories)


def known(rows: Tensor, sizes: tuple[int, ...], names: Sequence[Any] | None) -> None:
    """Raise ``ValueError`` if a column holds categories beyond its number of them; ``names`` are those of columns."""
    beyond = rows >= rows.new_tensor(sizes)
    if bool(beyond.any()):
        row, column = (int(i) for i in torch.nonzero(beyond)[0])
        raise bad_value(
            "x",
            f"categories 0 … {sizes[column] - 1} in {column_of(column, names)}",
            f"{int(beyond.sum())} above that, first {float(rows[row, column]):g} at {place([row, column], names)}",
            "Pass num_categories to the baseline if other rows hold categories that training rows lack.",
        )


class OneHot:
    """Encodes rows of categories as zeros and ones, the columns' categories side by side: width Σ_d K_d.

    Args:
        sizes: K_d, how many categories each column has.

    ``column`` holds the column of each of the Σ_d K_d entries.
    """

    def __init__(self, sizes: tuple[int, ...]) -> None:
        self.sizes = sizes
        count = torch.tensor(sizes)
        self.column = torch.repeat_interleave(torch.arange(len(sizes)), count)
        self._first = count.cumsum(0) - count

    def __call__(self, rows: Tensor, observed: Tensor | None = None) -> Tensor:
        """Return the encoded rows: (rows, columns) → (rows, Σ_d K_d), float64; a missing cell has no one."""
        hot = rows.new_zeros(len(rows), len(self.column))
        if observed is None:
            return hot.scatter_(1, rows.long() + self._first, 1.0)
        return hot.scatter_(1, rows.long() + self._first, observed.to(hot))

    def normalized(self, counts: Tensor) -> Tensor:
        """Return counts (..., Σ_d K_d) divided by their sums within each column."""
        return counts / self.totals(counts)

    def totals(self, counts: Tensor) -> Tensor:
        """Return the sums of counts (..., Σ_d K_d) within each column, at each of its entries: the same shape."""
        totals = counts.new_zeros(*counts.shape[:-1], len(self.sizes)).index_add_(-1, self.column, counts)
        return totals[..., self.column]

    def split(self, values: Tensor) -> tuple[Tensor, ...]:
        """Return one tensor for each column: (..., Σ_d K_d) → (..., K_d)."""
        return values.split(self.sizes, dim=-1)
