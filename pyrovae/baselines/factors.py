"""Linear factor models of rows with missing cells, in the space of the latents: log P(x_obs), maximum likelihood, draws."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from pyrovae import arguments
from pyrovae.baselines.base import Distributed, Incomplete

_BLOCK = 2**20  # entries of the matrices that are in memory at once

#: Nats a row by which a later start has to be better. Rounding, up to 1e-5 where ψ is 1e-11, does not choose among equal ones.
SAME = 1e-4

_Start = TypeVar("_Start")


class Factors(NamedTuple):
    """z ~ N(0, I_L), x | z ~ N(W z + μ, diag(ψ)): μ, shape (columns,); W, shape (columns, L); ψ, shape (columns,)."""

    loc: Tensor
    loadings: Tensor
    noise: Tensor


def fewer(most: int, width: int) -> str:
    """Return the fix for too many latents, if ``most`` fit the rows, which have ``width`` columns."""
    if most > 0:
        return f"Pass latent_dim={most} or less."
    if width == 1:
        return "Use FullGaussian: one column has one variance, so its rows cannot tell a latent from noise."
    return "Pass three rows or more."  # two centred rows have one dimension, which leaves no noise


class FactorModel(Distributed, Incomplete):
    """A linear factor model; its ``noise_variance`` is one number, or one a column, shape (columns,)."""

    measure = "density"

    loc: Tensor
    loadings: Tensor
    noise_variance: float | Tensor

    def __init__(self, latent_dim: int, max_iter: int = 2000) -> None:
        self.latent_dim = arguments.integer("latent_dim", latent_dim)
        self.max_iter = arguments.integer("max_iter", max_iter)

    @property
    def num_parameters(self) -> float:
        width, noises = self._require_fit(), torch.as_tensor(self.noise_variance).numel()
        rotations = self.latent_dim * (self.latent_dim - 1) // 2
        return width + width * self.latent_dim - rotations + noises

    def _factors(self) -> Factors:
        noise = torch.as_tensor(self.noise_variance, dtype=self.loc.dtype).expand_as(self.loc)
        return Factors(self.loc, self.loadings, noise)

    def _log_prob(self, rows: Tensor, observed: Tensor | None = None) -> Tensor:
        if observed is None:
            return super()._log_prob(rows)
        return log_prob(self._factors(), rows, observed)

    def _draw(self, rows: Tensor, observed: Tensor, num_draws: int) -> Tensor:
        return draw(self._factors(), rows, observed, num_draws)

    def posterior_moments(self, x: Any) -> tuple[Tensor, Tensor, Any]:
        """Return means and standard deviations of P(z | x_obs), each (rows, L), and the index of x or None."""
        rows, mask, source = self._like_fitted(x)
        blocks = _blocks(self._factors(), rows, mask[0] if mask else torch.ones_like(rows, dtype=torch.bool))
        means, factors = zip(*(posterior(self._factors(), *block)[1:] for block in blocks), strict=True)
        spread = [torch.cholesky_inverse(each).diagonal(dim1=-2, dim2=-1).sqrt() for each in factors]
        return torch.cat(means), torch.cat(spread), source.index


def posterior(factors: Factors, rows: Tensor, observed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return log P(x_o), shape (rows,), E[z | x_o], shape (rows, L), and a Cholesky factor of Cov[z | x_o]⁻¹.

    Let M = I + W_oᵀ ψ_o⁻¹ W_o be the precision of z, and r = x_o − μ_o. Then E[z | x_o] = M⁻¹ W_oᵀ ψ_o⁻¹ r and

        log P(x_o) = −½ (Σ_o (r − W_o E[z])²/ψ_o + ‖E[z]‖² + log|M| + Σ_o log 2π ψ_o).

    The cost is of order L² a cell. Ghahramani and Hinton (1994); Ilin and Raiko (2010).
    """
    loc, loadings, noise = factors
    seen, scaled = observed.to(rows), loadings / noise[:, None]
    outer = (loadings[:, :, None] * scaled[:, None, :]).flatten(1)
    identity = torch.eye(loadings.shape[1], dtype=rows.dtype)
    factor = torch.linalg.cholesky(identity + (seen @ outer).unflatten(1, identity.shape))
    centred = (rows - loc) * seen
    mean = torch.cholesky_solve((centred @ scaled)[..., None], factor)[..., 0]
    # Residuals keep the digits that a difference of two quadratic forms loses if ψ is small.
    quadratic = ((centred - (mean @ loadings.T) * seen).square() / noise).sum(dim=1) + mean.square().sum(
        dim=1
    )
    log_det = 2 * factor.diagonal(dim1=-2, dim2=-1).log().sum(dim=1) + seen @ (2 * math.pi * noise).log()
    return -0.5 * (quadratic + log_det), mean, factor


def log_prob(factors: Factors, rows: Tensor, observed: Tensor) -> Tensor:
    """Return log P(x_o), shape (rows,)."""
    return torch.cat([posterior(factors, *block)[0] for block in _blocks(factors, rows, observed)])


def draw(factors: Factors, rows: Tensor, observed: Tensor, num_draws: int) -> Tensor:
    """Return draws of x_m | x_o, through draws of z | x_o, shape (draws, rows, columns)."""
    _, mean, factor = posterior(factors, rows, observed)
    noise = torch.randn(num_draws, *mean.shape, 1, dtype=rows.dtype)
    z = mean + torch.linalg.solve_triangular(factor.mT, noise, upper=True)[..., 0]
    x = factors.loc + z @ factors.loadings.T
    return x + factors.noise.sqrt() * torch.randn_like(x)


def fit(
    rows: Tensor,
    observed: Tensor,
    latent_dim: int,
    shared: bool,
    least: float,
    max_iter: int,
    starts: Sequence[Factors] = (),
) -> tuple[Factors, tuple[float, ...], bool]:
    """Return the factors of highest Σ_n log P(x_n,o) / N, that objective at each step, and whether the fit converged.

    Steps are quasi-Newton, with z integrated out. EM over z has the same maxima, but slows down as ψ gets small.

    Args:
        rows: standardised, shape (rows, columns), 0 in missing cells.
        shared: whether all columns have one ψ.
        least: the smallest ψ.
        max_iter: the most steps from a start.
        starts: further ones, after the principal components; the best fit is kept.
    """
    from scipy.optimize import OptimizeResult, minimize

    def unpacked(numbers: Tensor) -> Factors:
        loc, loadings, log_noise = numbers.split([width, width * latent_dim, 1 if shared else width])
        return Factors(loc, loadings.view(width, latent_dim), log_noise.exp().expand(width))

    def loss(numbers: np.ndarray) -> tuple[float, np.ndarray]:
        """Return −Σ_n log P(x_n,o) / N and its gradient."""
        total, slope = 0.0, torch.zeros(len(numbers), dtype=rows.dtype)
        for block in _blocks(start, rows, observed):
            free = torch.from_numpy(numbers).requires_grad_()
            part = -posterior(unpacked(free), *block)[0].sum() / len(rows)
            slope += torch.autograd.grad(part, free)[0]
            total += float(part.detach())
        return total, slope.numpy()

    def climb(first: Factors) -> OptimizeResult:
        log_noise = first.noise[:1].log() if shared else first.noise.log()
        numbers = torch.cat([first.loc, first.loadings.flatten(), log_noise]).numpy()
        history = [-loss(numbers)[0]]

        def record(intermediate_result: OptimizeResult) -> None:
            history.append(-float(intermediate_result.fun))

        found = minimize(
            loss,
            numbers,
            jac=True,
            method="L-BFGS-B",
            bounds=[(None, None)] * (width * (1 + latent_dim)) + [(math.log(least), None)] * len(log_noise),
            callback=record,
            options={"maxiter": max_iter, "maxfun": 10 * max_iter, "ftol": 1e-15, "gtol": 1e-8},
        )
        return OptimizeResult(found, history=tuple(history))

    width, start = rows.shape[1], _start(rows, observed, latent_dim, shared)
    found = best(climb, [start, *starts])
    loc, loadings, noise = unpacked(torch.from_numpy(found.x))
    # The likelihood depends on W Wᵀ only: choose the rotation in which ψ^−½ W has orthogonal columns, largest first.
    left, values, _ = torch.linalg.svd(loadings / noise.sqrt()[:, None], full_matrices=False)
    fitted = Factors(loc, noise.sqrt()[:, None] * left * values, noise.clone())
    return fitted, found.history, found.status != 1  # 1: out of steps


def best(climb: Callable[[_Start], Any], starts: Iterable[_Start]) -> Any:
    """Return the result of least ``fun`` of all starts; a later one has to be better by more than rounding."""
    kept, *others = map(climb, starts)
    for found in others:
        if found.fun < kept.fun - SAME:
            kept = found
    return kept


def _start(rows: Tensor, observed: Tensor, latent_dim: int, shared: bool) -> Factors:
    """Return factors of rows whose missing cells hold the columns' means, by principal components."""
    covariance = rows.T @ rows / len(rows)
    values, vectors = torch.linalg.eigh(covariance)
    rest = values[:-latent_dim].mean()
    loadings = vectors[:, -latent_dim:] * (values[-latent_dim:] - rest).clamp(min=0).sqrt()
    variance = rows.square().sum(dim=0) / observed.sum(dim=0)
    noise = (variance - loadings.square().sum(dim=1)).maximum(0.05 * variance)
    return Factors(torch.zeros_like(variance), loadings, noise.mean().expand_as(noise) if shared else noise)


def _blocks(factors: Factors, rows: Tensor, observed: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Return rows and masks in blocks whose matrices fit in memory."""
    width, latent_dim = factors.loadings.shape
    height = max(1, _BLOCK // (width + (latent_dim + 1) ** 2))
    return list(zip(rows.split(height), observed.split(height), strict=True))
