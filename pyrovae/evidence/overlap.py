"""Overlap compares two means of what two densities have in common, one over draws of each; they differ if one is wrong."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

# Chance makes a difference of this size in one of 10⁹ tests; a check makes two for every column, and at most eight of all.
_CHANCE = 1e-9
_NATS = 0.02  # from here on a difference counts
# Fewest degrees of freedom. Densities that hardly overlap have fewer, for which χ² has no tail in floats.
_LEAST_FREEDOM = 1e-3


class Fault(NamedTuple):
    """By how many nats a log density is too high for its draws, on average or, if the sign varies, as a root mean square.

    ``column`` is the number of the column that has most of it, or None.
    """

    nats: float
    signed: bool
    column: int | None = None

    def __str__(self) -> str:
        many = f"{abs(self.nats):.2g} nats" if math.isfinite(self.nats) else "many nats"
        if not self.signed:
            return f"{many} too high or too low (root mean square over rows)"
        return f"{many} too {'high' if self.nats > 0 else 'low'} on average"


class Overlap(NamedTuple):
    """Means of min(1, r/q) over draws of q, and of min(1, q/r) over draws of r, in a box, and the variance of their difference.

    For normalised densities q and r and every box B,

        E_q[1_B min(1, r / q)] = ∫_B min(q, r) du = E_r[1_B min(1, q / r)].

    The numbers in both means are at most 1, so that tails do not disturb them. Shapes are (rows, columns), 0 for what is
    not compared.

    Meng and Wong (1996) for the identity.
    """

    first: Tensor
    second: Tensor
    variance: Tensor
    draws: int

    @classmethod
    def of(
        cls,
        of_q: Tensor,
        of_r: Tensor,
        sound: Tensor,
        used: Tensor | None = None,
    ) -> Overlap:
        """Return the overlap.

        The second moment of either number is also the mean of exp(−|log r/q|) over draws of the other density. The larger
        of both estimates is used, because rare draws may be in one sample only.

        Args:
            of_q: log r/q at draws of q, −∞ outside of the box, shape (samples, rows, columns).
            of_r: log r/q at draws of r, ∞ outside of the box, likewise.
            sound: what to compare, shape (rows, columns); entries with NaN are left out, too.
            used: which draws of r count, shape (samples, rows, columns); default all.
        """
        used = torch.ones_like(of_r, dtype=torch.bool) if used is None else used
        sound = sound & ~of_q.isnan().any(dim=0) & ~(of_r.isnan() & used).any(dim=0)
        draws, number = len(of_q), used.sum(dim=0)

        def over_r(values: Tensor) -> Tensor:
            return torch.where(used, values, 0.0).sum(dim=0) / number

        by_q, by_r = of_q.clamp(max=0.0).exp(), (-of_r).clamp(max=0.0).exp()
        first, second = by_q.mean(dim=0), over_r(by_r)
        of_first = torch.maximum(by_q.square().mean(dim=0), over_r((-of_r.abs()).exp())) - first**2
        of_second = torch.maximum(over_r(by_r.square()), (-of_q.abs()).exp().mean(dim=0)) - second**2
        variance = of_first / draws + of_second / number
        first, second, variance = (torch.where(sound, each, 0.0).cpu() for each in (first, second, variance))
        return cls(first, second, variance, draws)

    def fault(self) -> Fault | None:
        """Return how the two means differ; None if chance makes such a difference.

        Sums of differences over rows and columns are compared with their variances. Faults of rows and of columns may
        cancel in these sums. So squares of every entry and of sums over rows or columns are compared, too.
        """
        difference, variance, rows = self.second - self.first, self.variance, len(self.first)
        both = (self.first + self.second) / 2
        typical, of_each = both[variance > 0].mean(), both.mean(dim=0)

        def squares(size: Tensor, variance: Tensor, scale: Tensor, dim: int | None = None) -> Tensor:
            """Return the root mean square over rows in nats, 0 where chance makes it."""
            excess = (size**2 - variance).sum(dim).clamp(min=0).sqrt() / scale
            return torch.where(self._exceeds(size, variance, dim), excess, 0.0)

        by_row, by_column = difference.sum(dim=1), difference.sum(dim=0)
        of_row, of_column = variance.sum(dim=1), variance.sum(dim=0)
        root = math.sqrt(rows)
        means = _log_ratio(self.first.sum(dim=0), self.second.sum(dim=0))
        means = torch.where(self._exceeds(by_column[:, None], of_column[:, None], 1), means, 0.0)
        mean = len(means) * _log_ratio(self.first.sum(), self.second.sum())
        mean = torch.where(self._exceeds(by_row.sum()[None], of_row.sum()[None]), mean, 0.0)
        each = squares(difference, variance, root * of_each, 0)
        alone = len(means) > 1
        faults = [
            Fault(float(means[worst := int(means.abs().argmax())]), True, worst if alone else None),
            Fault(float(mean), True),
            Fault(float(each[worst := int(each.argmax())]), False, worst if alone else None),
            Fault(float(squares(by_row, of_row, root * typical)), False),
            Fault(float(squares(difference.flatten(), variance.flatten(), root * typical)), False),
            Fault(float(squares(by_column, of_column, rows * typical)), False),
        ]
        largest = max(abs(fault.nats) for fault in faults)
        first = next(fault for fault in faults if 2 * abs(fault.nats) >= largest)
        return first if largest > _NATS else None

    def _exceeds(self, difference: Tensor, variance: Tensor, dim: int | None = None) -> Tensor:
        """Return whether the sum of squared differences is larger than chance makes it, given their variances.

        The sum has about the distribution of a scaled χ² (Satterthwaite 1946). The fourth cumulant of a mean of n numbers
        in [0, 1] is at most its variance / n².
        """
        from scipy.stats import chi2

        total, each = (difference**2).sum(dim), variance.sum(dim)
        spread = (variance**2 + variance / (2 * self.draws**2)).sum(dim)
        freedom = np.where(each > 0, (each.square() / spread).clamp(min=_LEAST_FREEDOM), 1.0)
        return total > each * torch.as_tensor(chi2.isf(_CHANCE, freedom) / freedom)


def _log_ratio(first: Tensor, second: Tensor) -> Tensor:
    """Return log(second / first), 0 if both are 0."""
    return torch.where(first == second, 0.0, (second / first).log())
