"""Pairs whose log P(x) and posterior are known in closed form."""

from dataclasses import dataclass

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

import pyrovae as pv


@dataclass
class LinearGaussian:
    """z ~ N(0, I_L), x | z ~ N(W z + μ, σ² I), the model of probabilistic PCA.

    loadings W, shape (columns, L); loc μ, shape (columns,); sigma σ. Tipping and Bishop (1999).
    """

    loadings: Tensor
    loc: Tensor
    sigma: float

    @classmethod
    def random(cls, latent_dim: int, columns: int, seed: int = 0, dtype=torch.float64) -> "LinearGaussian":
        generator = torch.Generator().manual_seed(seed)
        loadings = torch.randn(columns, latent_dim, generator=generator, dtype=dtype)
        return cls(loadings, torch.randn(columns, generator=generator, dtype=dtype), 0.7)

    def sample(self, num_rows: int, seed: int = 0) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        z, noise = (
            torch.randn(num_rows, n, generator=generator, dtype=self.loc.dtype) for n in self.loadings.T.shape
        )
        return z @ self.loadings.T + self.loc + self.sigma * noise

    def log_prob(self, x: Tensor) -> Tensor:
        """By the matrix identity on the L × L matrix M = WᵀW + σ² I; shape (rows,)."""
        w, variance = self.loadings, self.sigma**2
        columns, latent_dim = w.shape
        m = w.T @ w + variance * torch.eye(latent_dim, dtype=w.dtype)
        centred = x - self.loc
        projected = centred @ w
        quadratic = (centred**2).sum(-1) - (projected * torch.linalg.solve(m, projected.T).T).sum(-1)
        log_det = (columns - latent_dim) * torch.log(torch.tensor(variance, dtype=w.dtype)) + torch.logdet(m)
        return -0.5 * (
            columns * torch.log(torch.tensor(2 * torch.pi, dtype=w.dtype)) + log_det + quadratic / variance
        )

    def posterior(self, x: Tensor, widen: float = 1.0) -> dist.MultivariateNormal:
        """N(M⁻¹Wᵀ(x − μ), σ² M⁻¹) for every row, its standard deviations multiplied by ``widen``."""
        w, variance = self.loadings, self.sigma**2
        m = w.T @ w + variance * torch.eye(w.shape[1], dtype=w.dtype)
        mean = torch.linalg.solve(m, ((x - self.loc) @ w).T).T
        covariance = variance * torch.linalg.inv(m) * widen**2
        return dist.MultivariateNormal(mean, covariance_matrix=(covariance + covariance.T) / 2)

    def pair(self, widen: float = 1.0) -> pv.LatentVariableModel:
        """The model, with its exact posterior as guide, widened."""

        def model(x):
            with pyro.plate("data", len(x)):
                prior = dist.Normal(torch.zeros_like(self.loadings[0]), 1.0).to_event(1)
                z = pyro.sample("z", prior)
                pyro.sample("x", dist.Normal(z @ self.loadings.T + self.loc, self.sigma).to_event(1), obs=x)

        def guide(x):
            with pyro.plate("data", len(x)):
                pyro.sample("z", self.posterior(x, widen))

        return pv.LatentVariableModel(model, guide)

    def cv2(self, widen: float) -> float:
        """Squared coefficient of variation of the weights: (s² / sqrt(2s² − 1))^L − 1."""
        return (widen**2 / (2 * widen**2 - 1) ** 0.5) ** self.loadings.shape[1] - 1
