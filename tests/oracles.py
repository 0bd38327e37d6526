"""Pairs whose log P(x) and posterior are known in closed form."""

import math
from collections.abc import Callable
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

    def model(self, x: Tensor) -> None:
        """As a Pyro model."""
        with pyro.plate("data", len(x)):
            prior = dist.Normal(torch.zeros_like(self.loadings[0]), 1.0).to_event(1)
            z = pyro.sample("z", prior)
            pyro.sample("x", dist.Normal(z @ self.loadings.T + self.loc, self.sigma).to_event(1), obs=x)

    def pair(self, widen: float = 1.0) -> pv.LatentVariableModel:
        """The model, with its exact posterior as guide, widened."""

        def guide(x):
            with pyro.plate("data", len(x)):
                pyro.sample("z", self.posterior(x, widen))

        return pv.LatentVariableModel(self.model, guide)

    def precision(self) -> Tensor:
        """I + WᵀW/σ², the posterior's precision; (L, L)."""
        w = self.loadings
        return torch.eye(w.shape[1], dtype=w.dtype) + w.T @ w / self.sigma**2

    def mean_field_pair(self) -> pv.LatentVariableModel:
        """The model, with the best mean-field Gaussian as guide: Normal(posterior mean, 1/√P_ii).

        P is the posterior's precision. KL(q ‖ posterior) = ½ (Σ log P_ii − log |P|) for every row.
        """

        def guide(x):
            with pyro.plate("data", len(x)):
                scale = self.precision().diagonal().rsqrt()
                pyro.sample("z", dist.Normal(self.posterior(x).mean, scale).to_event(1))

        return pv.LatentVariableModel(self.model, guide)

    def cv2(self, widen: float) -> float:
        """Squared coefficient of variation of the weights: (s² / sqrt(2s² − 1))^L − 1."""
        return (widen**2 / (2 * widen**2 - 1) ** 0.5) ** self.loadings.shape[1] - 1


@dataclass
class TwoModes:
    """z ~ N(0, I); x_0 | z ~ N(z_0², 0.1), the other columns a ``LinearGaussian`` of the other latents.

    The posterior has two modes, at z_0 = ±√x_0, of the same mass; the guide is right, but for the other
    one. log P(x) is a dense grid's over z_0 and the ``LinearGaussian``'s.
    """

    others: LinearGaussian | None = None

    SIGMA = 0.1

    def sample(self, num_rows: int, seed: int = 0) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        x = 1 + 3 * torch.rand(num_rows, 1, generator=generator, dtype=torch.float64)
        return x if self.others is None else torch.cat([x, self.others.sample(num_rows, seed + 1)], dim=1)

    def log_prob(self, x: Tensor) -> Tensor:
        z = torch.linspace(-6, 6, 12_001, dtype=torch.float64)
        log_joint = dist.Normal(0.0, 1.0).log_prob(z) + dist.Normal(z**2, self.SIGMA).log_prob(x[:, :1])
        log_p = torch.logsumexp(log_joint, dim=1) + torch.log(z[1] - z[0])
        return log_p if self.others is None else log_p + self.others.log_prob(x[:, 1:])

    def pair(self) -> pv.LatentVariableModel:
        def model(x):
            with pyro.plate("data", len(x)):
                dim = 1 if self.others is None else 1 + self.others.loadings.shape[1]
                z = pyro.sample("z", dist.Normal(x.new_zeros(dim), 1.0).to_event(1))
                loc, scale = z[..., :1] ** 2, x.new_full((1,), self.SIGMA)
                if self.others is not None:
                    loc = torch.cat([loc, z[..., 1:] @ self.others.loadings.T + self.others.loc], dim=-1)
                    scale = torch.cat([scale, x.new_full((x.shape[1] - 1,), self.others.sigma)])
                pyro.sample("x", dist.Normal(loc, scale).to_event(1), obs=x)

        def guide(x):
            # the curvature at the mode: 1 + (2 z_0 / σ)²
            width = (1 + 4 * x[:, 0] / self.SIGMA**2).rsqrt()
            loc, tril = x[:, :1].sqrt(), torch.diag_embed(1.1 * width[:, None])
            if self.others is not None:
                known = self.others.posterior(x[:, 1:], 1.1)
                loc = torch.cat([loc, known.mean], dim=1)
                zero = x.new_zeros(len(x), 1, known.mean.shape[1])
                rest = torch.cat([zero.mT, known.scale_tril.expand(len(x), -1, -1)], dim=2)
                tril = torch.cat([torch.cat([tril, zero], dim=2), rest], dim=1)
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.MultivariateNormal(loc, scale_tril=tril))

        return pv.LatentVariableModel(model, guide)


@dataclass
class Conjugate:
    """A pair whose latent lives in a part of the line or a simplex, and its exact log P(x); x is float64."""

    pair: pv.LatentVariableModel
    x: Tensor
    log_prob: Callable[[Tensor], Tensor]


def gamma_poisson() -> Conjugate:
    """A positive latent: rate ~ Gamma(2, 1), two counts each; P(x) is negative multinomial."""

    def model(x):
        with pyro.plate("data", len(x)):
            rate = pyro.sample("rate", dist.Gamma(x.new_tensor([2.0]), 1.0).to_event(1))
            pyro.sample("x", dist.Poisson(rate.expand(*rate.shape[:-1], 2)).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            shape = 0.7 * (2 + x.sum(-1, keepdim=True))
            pyro.sample("rate", dist.Gamma(shape, x.new_tensor(0.7 * 3)).to_event(1))

    def log_prob(x):
        total = 2 + x.sum(-1)
        return torch.lgamma(total) - total * math.log(3) - torch.lgamma(x + 1).sum(-1)

    return Conjugate(pv.LatentVariableModel(model, guide), _counts(6, 2), log_prob)


def beta_binomial() -> Conjugate:
    """A latent in an interval: p ~ Beta(2, 3), a count of 12."""

    def model(x):
        with pyro.plate("data", len(x)):
            p = pyro.sample("p", dist.Beta(x.new_tensor([2.0]), 3.0).to_event(1))
            pyro.sample("x", dist.Binomial(12, p).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("p", dist.Beta(2 + 0.7 * x, 3 + 0.7 * (12 - x)).to_event(1))

    def log_prob(x):
        a, b = 2 + x, 15 - x
        log_beta = torch.lgamma(a) + torch.lgamma(b) - math.lgamma(17) + math.lgamma(5)
        ways = math.lgamma(13) - torch.lgamma(x + 1) - torch.lgamma(13 - x)
        return (ways + log_beta - math.lgamma(2) - math.lgamma(3))[:, 0]

    return Conjugate(pv.LatentVariableModel(model, guide), _counts(6, 1), log_prob)


def dirichlet_categorical() -> Conjugate:
    """A latent on a simplex: shares ~ Dirichlet(1, 2, 3), five labels a row."""
    prior = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)

    def counts(x):
        return torch.nn.functional.one_hot(x.long(), 3).double().sum(-2)

    def model(x):
        with pyro.plate("data", len(x)):
            shares = pyro.sample("shares", dist.Dirichlet(prior))
            labels = dist.Categorical(shares[..., None, :].expand(*shares.shape[:-1], 5, 3))
            pyro.sample("x", labels.to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("shares", dist.Dirichlet(prior + 0.7 * counts(x)))

    def log_prob(x):
        after = prior + counts(x)
        terms = torch.lgamma(after).sum(-1) - torch.lgamma(after.sum(-1))
        return terms - torch.lgamma(prior).sum() + torch.lgamma(prior.sum())

    x = torch.randint(3, (6, 5), generator=torch.Generator().manual_seed(0)).double()
    return Conjugate(pv.LatentVariableModel(model, guide), x, log_prob)


def _counts(rows: int, columns: int) -> Tensor:
    rate = torch.full((rows, columns), 3.0, dtype=torch.float64)
    return torch.poisson(rate, generator=torch.Generator().manual_seed(0))


CONJUGATE = {
    "positive": gamma_poisson,
    "interval": beta_binomial,
    "simplex": dirichlet_categorical,
}


def two_blocks() -> tuple[Tensor, float]:
    """Return rows of two independent blocks of columns, and the mean log P of the best factor analysis of one factor.

    A factor of a block with correlations R raises log P by −½ log|R|. The first two columns, ρ = 0.97, have
    −½ log(1 − ρ²) = 1.41. The last six, ρ = 0.5, have −½ log(3.5 · 0.5⁵) = 1.11, but the larger eigenvalue, 3.5, to which
    EM and principal components go.
    """
    correlation = torch.eye(8, dtype=torch.float64)
    correlation[:2, :2] += 0.97 * (1 - torch.eye(2))
    correlation[2:, 2:] += 0.5 * (1 - torch.eye(6))
    root = torch.linalg.cholesky(correlation)
    x = math.sqrt(8) * torch.cat([root.T, -root.T])
    return x, -0.5 * (8 * math.log(2 * math.pi) + math.log(1 - 0.97**2) + 8)
