"""Bayesian models as Pyro programs whose evidence and predictive are known in closed form."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import pyro
import pyro.distributions as dist
import torch
from scipy.special import betaln, gammaln
from torch import Tensor


@dataclass
class Conjugate:
    """A model, rows, and the exact log evidence of any rows."""

    model: Callable[[Tensor], None]
    x: Tensor
    evidence: Callable[[Tensor], float]

    @property
    def log_evidence(self) -> float:
        return self.evidence(self.x)

    def predictive(self, row: Tensor) -> float:
        """log P(row | x), a ratio of evidences; row of shape (1, ...)."""
        return self.evidence(torch.cat([self.x, row])) - self.log_evidence


def coins(x: Tensor) -> None:
    """Three columns of coins, each Beta(1, 2)."""
    p = pyro.sample("p", dist.Beta(1.0, 2.0).expand([3]).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Bernoulli(p).to_event(1), obs=x)


def coins_evidence(x: Tensor) -> float:
    ones, n = x.sum(0).numpy(), len(x)
    return float((betaln(1 + ones, 2 + n - ones) - betaln(1, 2)).sum())


def normal(x: Tensor) -> None:
    """1/σ² ~ Gamma(2, 3), μ | σ ~ N(0.5, σ² / 0.4)."""
    precision = pyro.sample("precision", dist.Gamma(2.0, 3.0))
    mu = pyro.sample("mu", dist.Normal(0.5, (0.4 * precision) ** -0.5))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(mu, precision**-0.5), obs=x)


def normal_evidence(x: Tensor) -> float:
    n, a, b, kappa = len(x), 2.0, 3.0, 0.4
    after = b + 0.5 * float(((x - x.mean()) ** 2).sum())
    after += kappa * n * float(x.mean() - 0.5) ** 2 / (2 * (kappa + n))
    log_gammas = float(gammaln(a + n / 2) - gammaln(a))
    return (
        log_gammas
        + a * math.log(b)
        - (a + n / 2) * math.log(after)
        + 0.5 * math.log(kappa / (kappa + n))
        - n / 2 * math.log(2 * math.pi)
    )


def regression(x: Tensor) -> None:
    """The last column on the others: weights N(0, I), noise 0.5."""
    weights = pyro.sample("weights", dist.Normal(0.0, 1.0).expand([x.shape[1] - 1]).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(x[:, :-1] @ weights, 0.5), obs=x[:, -1])


def regression_evidence(x: Tensor) -> float:
    features, y = x[:, :-1], x[:, -1]
    covariance = features @ features.T + 0.25 * torch.eye(len(x), dtype=x.dtype)
    return float(torch.distributions.MultivariateNormal(torch.zeros_like(y), covariance).log_prob(y))


def _rows(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


CASES = {
    "Beta-Bernoulli": Conjugate(coins, (_rows(20, 3) > 0.6).double(), coins_evidence),
    "normal-inverse-gamma": Conjugate(normal, 1 + 0.8 * _rows(15), normal_evidence),
    "linear regression": Conjugate(regression, _rows(20, 4), regression_evidence),
}
