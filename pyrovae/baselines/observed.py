"""Gaussians of the observed cells of rows: log P(x_obs), conditional moments and draws, by pattern; and the loop of EM."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor
from torch.distributions import Categorical

#: Raised by torch for a matrix that is not positive definite.

# Entries of the matrices that are in memory at once: 32 MiB in float64.
_ENTRIES = 2**22

P = TypeVar("P")

#: Weights (components,), means (components, columns) and covariances (components, columns, columns).
Mixture = tuple[Tensor, Tensor, Tensor]


class Patterns:
    """Rows with missing cells, and Gaussians of their observed cells.

    Let o be the observed columns of a row, and m the others. A Gaussian with mean μ and covariance Σ has

        x_o ~ N(μ_o, Σ_oo),   x_m | x_o ~ N(μ_m + Σ_mo Σ_oo⁻¹ (x_o − μ_o), Σ_mm − Σ_mo Σ_oo⁻¹ Σ_om).

    Rows are sorted by their pattern of missing cells, so that each pattern's matrices are computed once a block of rows.
    Dempster, Laird and Rubin (1977); Little and Rubin (2019), 11.2.

    Args:
        rows: shape (rows, columns), float64, 0 in missing cells.
        observed: boolean, of the same shape.
    """

    def __init__(self, rows: Tensor, observed: Tensor) -> None:
        self.rows, self.observed = rows, observed
        _, pattern = observed.unique(dim=0, return_inverse=True)
        height = max(1, _ENTRIES // rows.shape[1] ** 2)
        #: For each block: its rows, its patterns (patterns, columns), and the pattern of each of its rows.
        self._blocks = [
            (block, *observed[block].unique_consecutive(dim=0, return_inverse=True))
            for block in pattern.argsort(stable=True).split(height)
        ]

    def log_prob(self, loc: Tensor, covariance: Tensor) -> Tensor:
        """Return log N(x_o; μ_o, Σ_oo), shape (rows,)."""
        found = self.rows.new_empty(len(self.rows))
        for block, seen, of in self._blocks:
            factor = _factor(seen, covariance)
            centred = (self.rows[block] - loc).masked_fill(~self.observed[block], 0.0)
            white = torch.linalg.solve_triangular(factor[of], centred[..., None], upper=False)[..., 0]
            constant = 0.5 * math.log(2 * math.pi) * seen.sum(dim=1).to(loc)  # not in torch's default dtype
            constant = constant + factor.diagonal(dim1=-2, dim2=-1).log().sum(dim=1)
            found[block] = -0.5 * white.square().sum(dim=1) - constant[of]
        return found

    def log_joint(self, weights: Tensor, loc: Tensor, covariances: Tensor) -> Tensor:
        """Return log π_k + log N(x_o; μ_k, Σ_k) of a mixture's components, shape (rows, components)."""
        columns = [self.log_prob(*each) for each in zip(loc, covariances, strict=True)]
        return weights.log() + torch.stack(columns, dim=1)

    def expected(self, loc: Tensor, covariance: Tensor, shares: Tensor) -> tuple[Tensor, Tensor]:
        """Return E[x_n | x_n,o], shape (rows, columns), and Σ_n shares_n Cov[x_n | x_n,o], shape (columns, columns)."""
        filled, total = torch.empty_like(self.rows), torch.zeros_like(covariance)
        for block, seen, of in self._blocks:
            onto, spread = _regression(seen, covariance)
            filled[block] = self._conditional(block, of, onto, loc.expand(len(block), -1))
            weights = shares.new_zeros(len(seen)).index_add_(0, of, shares[block])
            total += (weights[:, None, None] * spread).sum(dim=0)
        return filled, total

    def draw(self, weights: Tensor, loc: Tensor, covariances: Tensor, num_draws: int) -> Tensor:
        """Return draws of x_m | x_o under a mixture, shape (draws, rows, columns); see ``log_joint``.

        A component is drawn given x_o. A free draw x' of it is then moved to
        x'_m + Σ_mo Σ_oo⁻¹ (x_o − x'_o) ~ P(x_m | x_o). This needs no factor of the conditional covariance.
        """
        log_joint = self.log_joint(weights, loc, covariances)
        chosen = Categorical(logits=log_joint.expand(num_draws, -1, -1)).sample()
        found = torch.empty(num_draws, *self.rows.shape, dtype=self.rows.dtype)
        for k, covariance in enumerate(covariances):
            free = loc[k] + torch.randn_like(found) @ torch.linalg.cholesky(covariance).T
            for block, seen, of in self._blocks:
                moved = self._conditional(block, of, _regression(seen, covariance)[0], free[:, block])
                found[:, block] = torch.where((chosen[:, block] == k)[..., None], moved, found[:, block])
        return found

    def _conditional(self, block: Tensor, of: Tensor, onto: Tensor, start: Tensor) -> Tensor:
        """Return rows with ``start + onto (x_o − start_o)`` in missing cells; ``start`` has shape (..., rows, columns)."""
        rows, observed = self.rows[block], self.observed[block]
        centred = (rows - start).masked_fill(~observed, 0.0)
        return torch.where(observed, rows, start + torch.einsum("nij,...nj->...ni", onto[of], centred))


def em_step(
    patterns: Patterns, at: Mixture, restrict: Callable[[Tensor, Tensor], Tensor] | None = None
) -> tuple[float, Mixture]:
    """Return Σ_n log P(x_n,o) / N of a mixture of Gaussians, and the mixture after one step of EM.

    Let r_nk = P(k | x_n,o). The next mean of component k is the r-weighted mean of E[x_n | x_n,o, k]. The next covariance
    is that of Cov[x_n | x_n,o, k] plus the squared distance of E[x_n | x_n,o, k] from the next mean. ``restrict`` takes
    the next weights and covariances and returns the best covariances of a kind. Ghahramani and Jordan (1994).
    """
    log_joint = patterns.log_joint(*at)
    log_p = log_joint.logsumexp(dim=1, keepdim=True)
    shares = (log_joint - log_p).exp()  # r, (rows, components)
    sizes = shares.sum(dim=0)
    loc, covariances = torch.empty_like(at[1]), torch.empty_like(at[2])
    for k, size in enumerate(sizes):
        filled, spread = patterns.expected(at[1][k], at[2][k], shares[:, k])
        loc[k] = shares[:, k] @ filled / size
        centred = filled - loc[k]
        covariances[k] = ((centred.T * shares[:, k]) @ centred + spread) / size
    weights = sizes / len(shares)
    return float(log_p.mean()), (weights, loc, restrict(weights, covariances) if restrict else covariances)


def _factor(seen: Tensor, covariance: Tensor) -> Tensor:
    """Return Cholesky factors of Σ_oo, with 1 on the diagonal at missing columns, shape (patterns, columns, columns)."""
    pair = seen[:, :, None] & seen[:, None, :]
    return torch.linalg.cholesky(torch.where(pair, covariance, torch.eye(len(covariance)).to(covariance)))


def _regression(seen: Tensor, covariance: Tensor) -> tuple[Tensor, Tensor]:
    """Return Σ_·o Σ_oo⁻¹, 0 at missing columns, and Cov[x | x_o], each of shape (patterns, columns, columns)."""
    across = covariance * seen[:, :, None]
    onto = torch.cholesky_solve(across, _factor(seen, covariance)).mT
    missing = ~seen[:, :, None] & ~seen[:, None, :]
    return onto, torch.where(missing, covariance - onto @ across, 0.0)


def climb(
    step: Callable[[P], tuple[float, P]], start: P, max_steps: int, tolerance: float
) -> tuple[P, list[float], bool]:
    """Run EM and return the parameters, the objective at every step and whether it converged.

    ``step`` returns the objective at its argument, and the next parameters. The climb has converged if a step gains less
    than ``tolerance``.
    """
    history: list[float] = []
    for _ in range(max_steps):
        objective, after = step(start)
        history.append(objective)
        if len(history) > 1 and history[-1] - history[-2] < tolerance:
            return start, history, True
        start = after
    return start, history, False
