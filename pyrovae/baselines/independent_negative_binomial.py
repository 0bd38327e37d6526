"""Independent negative binomial columns with exact log P(x)."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Gamma, Poisson, constraints

from pyrovae.baselines import columns
from pyrovae.baselines.base import Columnwise, register

# At r above this times max(m, 1), a negative binomial is within 1e-12 nats a row of its Poisson limit.
_POISSON = 1e6


@register("independent_negative_binomial")
class IndependentNegativeBinomial(Columnwise):
    """x_d ~ NB(mean m_d, concentration r_d), of variance m + m²/r, for independent columns of counts; exact.

    Fitted by maximum likelihood. m is the column's mean for every r. If the variance (divided by N) exceeds the
    mean, r has one best value (Levin and Reeds 1977). Otherwise the likelihood rises with r towards its limit,
    the Poisson distribution, and ``fit`` sets r = ∞.

    After ``fit``: ``loc`` m and ``concentration`` r, each of shape (columns,).

    Raises:
        ValueError: values are not counts; rows are not zero in a column that was zero in training.

    Example:
        >>> import torch
        >>> fitted = IndependentNegativeBinomial().fit(torch.tensor([[0, 1], [9, 1], [0, 2]]))
        >>> fitted.concentration.isinf().tolist()
        [False, True]
    """

    measure = "mass"
    support = constraints.nonnegative_integer
    family = "NegativeBinomial"

    loc: Tensor
    concentration: Tensor

    def _fit(self, rows: Tensor, observed: Tensor | None = None) -> None:
        self.loc = rows.mean(dim=0) if observed is None else columns.moments(rows, observed)[1]
        seen = torch.ones_like(rows, dtype=torch.bool) if observed is None else observed
        cells = [column[there] for column, there in zip(rows.T.numpy(), seen.T.numpy(), strict=True)]
        self.concentration = rows.new_tensor([_best_concentration(column) for column in cells])

    def _log_probs(self, rows: Tensor) -> Tensor:
        # Above r = 100, a Poisson mass with a correction is used, because differences of log Γ near r lose digits.
        low, high = self.concentration.clamp(max=100.0), self.concentration.clamp(min=100.0, max=1e300)
        return torch.where(
            self.concentration <= 100.0, _log_mass(rows, self.loc, low), _near_poisson(rows, self.loc, high)
        )

    def _sample(self, num_rows: int) -> Tensor:
        finite = torch.isfinite(self.concentration)
        r = torch.where(finite, self.concentration, 1.0)
        mean = torch.where(finite, self.loc, 1.0)
        rate = torch.where(finite, Gamma(r, r / mean).sample((num_rows,)), self.loc)
        return torch.poisson(rate)

    @property
    def num_parameters(self) -> float:
        return 2 * self._require_fit()

    def summary(self) -> str:
        width = self._require_fit()
        limits = int(self.concentration.isinf().sum())
        return (
            f"IndependentNegativeBinomial, {width} columns, {limits} of them Poisson, {len(self.seen)} rows, "
            "plug-in, exact"
        )


def _log_mass(x: Tensor, m: Tensor, r: Tensor) -> Tensor:
    """Return log NB(x; m, r), by Γ(r + x) / (Γ(r) x!) = 1 / ((r + x) B(r, x + 1))."""
    from scipy.special import betaln

    ways = -torch.from_numpy(betaln(r.numpy(), x.numpy() + 1)) - (r + x).log()
    return ways - r * torch.log1p(m / r) + torch.xlogy(x, m / (m + r))


def _near_poisson(x: Tensor, m: Tensor, r: Tensor) -> Tensor:
    """Return log NB(x; m, r) for r ≥ 100 to 1e-13, by Stirling's series of Γ(r + x)/Γ(r); Poisson's as r → ∞."""

    def series(z: Tensor) -> Tensor:
        return (1 - 1 / (30 * z**2)) / (12 * z)

    correction = (r + x) * torch.log1p((x - m) / (r + m)) - (x - m) - 0.5 * torch.log1p(x / r)
    return Poisson(m).log_prob(x) + correction + series(r + x) - series(r)


def _best_concentration(column: np.ndarray) -> float:
    """Return the r of highest likelihood for one column, shape (rows,); ∞ if that is the Poisson limit."""
    from scipy.optimize import brentq
    from scipy.special import digamma

    mean = float(column.mean())
    if column.var() <= mean:
        return math.inf
    values, counts = np.unique(column, return_counts=True)
    share = counts / len(column)

    def slope(log_r: float) -> float:
        """Return E[ψ(x + r) − ψ(r)] − log(1 + m/r), the mean log-likelihood's slope in r; positive below the maximum."""
        r = math.exp(log_r)
        return float(share @ (digamma(values + r) - digamma(r)) - np.log1p(mean / r))

    # Start from the moments' r and widen both ends until the slope changes its sign.
    low = high = math.log(mean**2 / (float(column.var()) - mean))
    while slope(low) <= 0:
        low -= 1.0
    limit = math.log(_POISSON * max(mean, 1.0))
    while slope(high) > 0:
        if high > limit:
            return math.inf
        high += 1.0
    return math.exp(brentq(slope, low, high, xtol=1e-12, rtol=1e-12))
