"""A fully Bayesian linear model of rows: probabilistic PCA with priors on all parameters, fitted by MCMC."""

from __future__ import annotations

from typing import Any, Self

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from pyrovae import arguments
from pyrovae.baselines.base import register
from pyrovae.baselines.mcmc import PyroMCMC
from pyrovae.entries import check_sizes
from pyrovae.refusals import bad_value
from pyrovae.rows import complete, joined, read_in_double
from pyrovae.turns import takes_turns


@register("bayesian_pca")
class BayesianPCA(PyroMCMC):
    """z ~ N(0, I_L), x | z ~ N(W z + μ, σ² I) with μ, W and σ averaged over their posterior.

    z is integrated out, x ~ N(μ, W Wᵀ + σ² I), so rows are independent given μ, W and σ. W is lower triangular
    with a positive diagonal, because the likelihood depends on W Wᵀ only. Rotated loadings would have the same
    likelihood. Chains in different rotations would not agree, and bridge sampling would fail. Under the
    priors, W Wᵀ has the distribution that it has if every entry of a full W is N(0, s²). It does not depend on
    the order of the columns (Leung and Drton 2016):

        W_dk ~ N(0, s²) below the diagonal,   W_kk² / s² ~ χ²(L − k), k from 0,
        μ_d ~ N(0, m²),   σ ~ half-normal(n).

    ``fit`` chooses which columns come first, by a pivoted QR of the leading eigenvectors, to keep the diagonal
    away from zero. Near zero, a column of W with all signs flipped is a second mode that chains may miss.
    P(x) is the same in every order, so this choice does not use the rows twice.

    The priors are in the units of x and must not be chosen from the rows. The defaults suit columns with
    standard deviations near 1. ``PPCA`` plugs in the maximum of the likelihood. This model also has an evidence,
    ``marginal_likelihood()``, which says which L the rows support.

    Args:
        latent_dim: L, at most the number of columns.
        loadings_scale: s.
        loc_scale: m.
        noise_scale: n.
        options: of ``PyroMCMC``: num_samples, warmup_steps, num_chains, seed, …

    After ``fit``, ``loadings`` holds the draws of W, shape (chains, draws, columns, L); others as in ``PyroMCMC``.

    Raises:
        ValueError: L is above the number of columns; rows are not vectors.

    Example:
        >>> x = torch.randn(30, 3, generator=torch.Generator().manual_seed(0))
        >>> bayesian = BayesianPCA(1, num_samples=50, warmup_steps=50, num_chains=2).fit(x)
        >>> bayesian.loadings.shape
        torch.Size([2, 50, 3, 1])
    """

    derived = ("model", *PyroMCMC.derived)

    def __init__(
        self,
        latent_dim: int,
        *,
        loadings_scale: float = 1.0,
        loc_scale: float = 10.0,
        noise_scale: float = 1.0,
        **options: Any,
    ) -> None:
        super().__init__(self._model, **options)
        self.latent_dim = arguments.integer("latent_dim", latent_dim)
        self.loadings_scale = arguments.positive("loadings_scale", loadings_scale)
        self.loc_scale = arguments.positive("loc_scale", loc_scale)
        self.noise_scale = arguments.positive("noise_scale", noise_scale)
        self._order: Tensor | None = None

    @takes_turns
    def fit(self, x: Any) -> Self:
        """Run the chains on rows, shape (rows, columns), and return self. See ``PyroMCMC.fit``."""
        x = complete(joined(x, "x"), "BayesianPCA")
        batch, source = read_in_double(x)
        rows = batch["x"]
        check_sizes(rows, source.names.get("x"))
        before, self._order = self._order, _pivots(rows, self.latent_dim) if rows.dim() == 2 else None
        try:
            return super().fit(x)
        except BaseException:
            self._order = before
            raise

    @property
    def loadings(self) -> Tensor:
        """Return the draws of W, shape (chains, draws, columns, L)."""
        self._require_fit()
        return self._loadings(
            self.posterior["squares"].sqrt(), self.posterior.get("below"), self.posterior["loc"].shape[-1]
        )

    def _loadings(self, diagonal: Tensor, below: Tensor | None, columns: int) -> Tensor:
        """Return W, shape (..., columns, L), with rows in the order of x's columns."""
        triangular = _triangular(diagonal, below, columns)
        return triangular if self._order is None else triangular[..., self._order.argsort(), :]

    def _model(self, x: Tensor) -> None:
        """The Pyro model of rows, shape (rows, columns)."""
        if x.dim() != 2 or x.shape[1] < self.latent_dim:
            raise bad_value(
                "x",
                f"rows of shape (rows, columns), with at least latent_dim={self.latent_dim} columns",
                f"shape {tuple(x.shape)}",
                "Flatten the rows, or use fewer latent dimensions.",
            )
        columns, latent_dim = x.shape[1], self.latent_dim
        loc = pyro.sample("loc", dist.Normal(0.0, self.loc_scale).expand([columns]).to_event(1))
        shape = torch.arange(latent_dim, 0, -1, dtype=x.dtype) / 2
        squares = pyro.sample("squares", dist.Gamma(shape, 0.5 / self.loadings_scale**2).to_event(1))
        below = None
        free = columns * latent_dim - latent_dim * (latent_dim + 1) // 2
        if free:
            normal = dist.Normal(0.0, self.loadings_scale)
            below = pyro.sample("below", normal.expand([free]).to_event(1))
        sigma = pyro.sample("sigma", dist.HalfNormal(self.noise_scale))
        loadings = self._loadings(squares.sqrt(), below, columns)
        with pyro.plate("data", len(x)):
            variance = sigma.square().expand(columns)
            pyro.sample("x", dist.LowRankMultivariateNormal(loc, loadings, variance), obs=x)


def _pivots(rows: Tensor, latent_dim: int) -> Tensor:
    """Return an order of x's columns whose first L determine the first L principal directions best."""
    from scipy.linalg import qr

    values, vectors = torch.linalg.eigh(torch.cov(rows.T, correction=0).reshape(rows.shape[1], -1))
    leading = vectors[:, -latent_dim:] * values[-latent_dim:].clamp(min=0).sqrt()
    return torch.from_numpy(qr(leading.T.numpy(), mode="r", pivoting=True)[1]).long()


def _triangular(diagonal: Tensor, below: Tensor | None, columns: int) -> Tensor:
    """Return W, shape (..., columns, L), from its diagonal, shape (..., L), and its entries below it, row by row."""
    latent_dim = diagonal.shape[-1]
    zero = torch.zeros_like(diagonal[..., :1])
    values = torch.cat([zero, diagonal] + ([] if below is None else [below]), dim=-1)
    row, column = torch.meshgrid(torch.arange(columns), torch.arange(latent_dim), indexing="ij")
    under = row > column
    place = torch.where(row == column, 1 + column, 0).masked_scatter(
        under, torch.arange(1 + latent_dim, values.shape[-1])
    )
    return values[..., place]
