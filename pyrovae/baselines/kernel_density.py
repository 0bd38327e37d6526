"""Kernel density estimation with Gaussian kernels and exact log P(x)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pyrovae import arguments
from pyrovae.baselines import columns
from pyrovae.baselines.base import ClosedForm, register
from pyrovae.refusals import bad_value

RULES = ("scott", "silverman", "cross_validation")
_BLOCK = 256  # rows whose distances to all training rows are in memory at once


@register("kernel_density")
class KernelDensity(ClosedForm):
    """p(x) = 1/N Σ_n Π_d N(x_d; x_nd, h_d²), a Gaussian around every training row; exact.

    Args:
        bandwidth: a number, the h of all columns, in x's units; or a rule for c in h_d = c · s_d. Here s_d is the
            column's standard deviation (divided by N − 1). The rules are "scott", c = N^(−1/(D+4)) (Scott 1992);
            "silverman", c = (N (D+2)/4)^(−1/(D+4)) (Silverman 1986); "cross_validation", the c with the highest mean
            log P of training rows, each left out in turn (Habbema, Hermans and van den Broek 1974; Duin 1976). Its
            time is of order N² D, as is scoring N rows. (scikit-learn's rules of these names leave s_d out.)

    After ``fit``: ``bandwidths`` h, shape (columns,).

    Raises:
        ValueError: a rule sets h and a column is constant.
        ValueError: under "cross_validation", every row is repeated, so that h tends to 0 and the density to
            +∞.

    Example:
        >>> import torch
        >>> x = torch.tensor([[0.0], [1.0]])
        >>> round(float(KernelDensity(1.0).fit(x).log_evidence(x[:1]).mean), 3)
        -1.138
    """

    measure = "density"

    bandwidths: Tensor

    def __init__(self, bandwidth: float | str = "cross_validation") -> None:
        self.bandwidth: float | str
        if isinstance(bandwidth, str):
            self.bandwidth = arguments.choice("bandwidth", bandwidth, RULES)
        else:
            self.bandwidth = arguments.positive("bandwidth", bandwidth)

    def _fit(self, rows: Tensor) -> None:
        n, width = rows.shape
        if not isinstance(self.bandwidth, str):
            self.bandwidths = rows.new_full((width,), self.bandwidth)
        else:
            standard, _, scale = columns.standardized(rows)
            unbiased = math.sqrt(n / (n - 1))
            if self.bandwidth == "scott":
                factor = n ** (-1 / (width + 4))
            elif self.bandwidth == "silverman":
                factor = (n * (width + 2) / 4) ** (-1 / (width + 4))
            else:
                factor = _best_factor(standard / unbiased)
            self.bandwidths = factor * unbiased * scale
        self._centres = rows.clone()  # the user may change theirs

    def _log_prob(self, rows: Tensor) -> Tensor:
        scaled = self._centres / self.bandwidths
        blocks = [_log_kernels(block / self.bandwidths, scaled) for block in rows.split(_BLOCK)]
        return torch.cat(blocks) - math.log(len(scaled)) - self.bandwidths.log().sum()

    def _sample(self, num_rows: int) -> Tensor:
        chosen = self._centres[torch.randint(len(self._centres), (num_rows,))]
        return chosen + self.bandwidths * torch.randn_like(chosen)

    def summary(self) -> str:
        self._require_fit()
        low, high = float(self.bandwidths.min()), float(self.bandwidths.max())
        size = f"{low:.4g}" if low == high else f"{low:.4g} to {high:.4g}"
        how = f" by {self.bandwidth}" if isinstance(self.bandwidth, str) else ""
        return f"KernelDensity, bandwidth {size}{how}, {len(self.seen)} rows, plug-in, exact"


def _squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """Return squared distances, (A, D), (B, D) → (A, B), from differences: products lose the digits of close rows."""
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist") ** 2


def _log_kernels(a: Tensor, b: Tensor) -> Tensor:
    """Return log Σ_m N(a_n; b_m, I) for every row of a; (A, D), (B, D) → (A,)."""
    constant = 0.5 * a.shape[1] * math.log(2 * math.pi)
    return torch.logsumexp(-0.5 * _squared_distances(a, b), dim=1) - constant


def _left_out(rows: Tensor, factors: Tensor) -> Tensor:
    """Return the mean log P of each row given the others, up to a constant, at each of factors, shape (factors,)."""
    total = torch.zeros_like(factors)
    for first in range(0, len(rows), _BLOCK):
        block = rows[first : first + _BLOCK]
        squares = _squared_distances(block, rows)
        squares[torch.arange(len(block)), torch.arange(first, first + len(block))] = torch.inf
        total += torch.stack([torch.logsumexp(-0.5 * squares / c**2, dim=1).sum() for c in factors])
    return total / len(rows) - rows.shape[1] * factors.log()


def _best_factor(rows: Tensor) -> float:
    """Return the bandwidth with the highest left-out likelihood, found on a grid and finer grids around its best."""
    low, high = math.log(1e-6), math.log(10.0)
    factors = torch.linspace(low, high, 57, dtype=rows.dtype).exp()
    best = int(_left_out(rows, factors).argmax())
    if best == 0:
        raise bad_value(
            "x",
            "rows of which some are not repeated",
            "a left-out likelihood that rises as the bandwidth tends to 0: the density goes to +∞",
            "Pass a number as bandwidth, drop repeated rows, or dequantise whole numbers.",
        )
    for _ in range(4):
        low, high = (math.log(factors[i]) for i in (max(best - 1, 0), min(best + 1, len(factors) - 1)))
        factors = torch.linspace(low, high, 11, dtype=rows.dtype).exp()
        best = int(_left_out(rows, factors).argmax())
    return float(factors[best])
