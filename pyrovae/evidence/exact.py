"""exact() computes log P(x) in closed form for a linear-Gaussian VAE."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from pyro.distributions import (
    Independent,
    LowRankMultivariateNormal,
    MultivariateNormal,
    Normal,
    TorchDistribution,
)
from torch import Tensor, nn

from pyrovae.evaluation import Evaluation
from pyrovae.evidence.result import LogEvidence, about
from pyrovae.likelihoods import Gaussian
from pyrovae.model import VAE, LatentVariableModel
from pyrovae.networks import MLP
from pyrovae.refusals import Refused, bad_value
from pyrovae.turns import takes_turns


@dataclass(frozen=True)
class LinearGaussian:
    """z ~ N(m, S), x | z ~ N(W z + b, diag σ²), float64: the model of probabilistic PCA and factor analysis.

    ``loadings`` is W, shape (columns, latent_dim). ``loc`` b and ``scale`` σ have shape (columns,). ``prior``
    is the distribution of z.
    """

    loadings: Tensor
    loc: Tensor
    scale: Tensor
    prior: MultivariateNormal

    def log_prob(self, x: Tensor) -> Tensor:
        """Return log N(x; W m + b, W S Wᵀ + diag σ²), shape (rows,), in nats."""
        marginal = LowRankMultivariateNormal(
            self.loc + self.loadings @ self.prior.mean,
            self.loadings @ self.prior.scale_tril,
            self.scale**2,
        )
        return marginal.log_prob(x)

    def posterior(self, x: Tensor) -> MultivariateNormal:
        """Return P(z | x_n) for every row."""
        weighted = self.loadings.T / self.scale**2  # (latent_dim, columns)
        precision = weighted @ self.loadings + self.prior.precision_matrix
        pull = (x - self.loc) @ weighted.T + self.prior.precision_matrix @ self.prior.mean
        mean = torch.linalg.solve(precision, pull.T).T
        return MultivariateNormal(mean, precision_matrix=precision)


def linear_gaussian(pair: LatentVariableModel, x: Tensor) -> LinearGaussian:
    """Return the pair's model as a ``LinearGaussian``, for rows like ``x``.

    Raises:
        ValueError: naming the part that is not linear, not Gaussian, or not recognised as such.
    """
    if not isinstance(pair, VAE) or type(pair).model is not VAE.model:
        raise _refused("a VAE: code in plain Pyro cannot be analysed", f"a {type(pair).__name__}")
    if type(pair.likelihood) is not Gaussian or pair.likelihood.scale == "decoder":
        raise _refused("a Gaussian likelihood whose scale does not depend on z", repr(pair.likelihood))
    if not _affine(pair.likelihood.network):
        raise _refused("a decoder without hidden layers: MLP(latent_dim, (), data_dim)", "another decoder")
    with pair.evaluating():
        prior = _normal(pair.prior())
        latent_dim = len(prior.mean)
        # The images of zero and of the unit vectors determine an affine map.
        own = pair.dtype or x.dtype
        probes = torch.cat([torch.zeros(1, latent_dim), torch.eye(latent_dim)]).to(x.device, own)
        likelihood = pair.likelihood(probes)
    means = likelihood.mean.flatten(1).double()  # (1 + latent_dim, columns)
    return LinearGaussian(
        loadings=(means[1:] - means[0]).T,
        loc=means[0],
        scale=likelihood.stddev.flatten(1)[0].double(),
        prior=prior,
    )


def _affine(network: nn.Module) -> bool:
    """Return whether all layers of a network are affine."""
    if type(network) is MLP:
        network = network.layers
    if type(network) is nn.Sequential:
        return all(_affine(layer) for layer in network)
    return type(network) in (nn.Linear, nn.Identity, nn.Flatten, nn.Unflatten)


def _normal(prior: TorchDistribution) -> MultivariateNormal:
    """Return a prior over vectors as a multivariate normal in float64."""
    base = prior
    while isinstance(base, Independent):
        base = base.base_dist
    if type(base) is MultivariateNormal and len(prior.event_shape) == 1:
        return MultivariateNormal(base.mean.double(), scale_tril=base.scale_tril.double())
    if type(base) is Normal and len(prior.event_shape) == 1:
        return MultivariateNormal(prior.mean.double(), scale_tril=prior.stddev.double().diag())
    raise _refused("a normal prior", type(base).__name__)


def _refused(expected: str, came: str) -> Refused:
    return bad_value(
        "pair",
        f"a linear-Gaussian VAE, with {expected}",
        came,
        "Use method='auto', which needs no closed form.",
    )


@takes_turns
def exact(pair: LatentVariableModel, x: Any) -> LogEvidence:
    """Return log P(x_n) = log N(x_n; W m + b, W S Wᵀ + diag σ²), for a VAE whose decoder is linear.

    It needs a normal prior N(m, S), a ``likelihoods.Gaussian`` whose scale is a number, "shared" or
    "per_dimension", and a decoder without hidden layers. The encoder does not matter.

    Args:
        pair: such a ``VAE``.
        x: rows on dim 0; tensor, numpy array or DataFrame.

    Returns:
        A ``LogEvidence`` whose rows are exact, computed in float64.

    Raises:
        TypeError, ValueError: an option or the rows cannot be used; also if the pair is not linear-Gaussian, naming the part.

    Tipping and Bishop (1999).

    Example:
        >>> import torch
        >>> from pyrovae import VAE
        >>> vae = VAE.mlp(6, latent_dim=2, likelihood="gaussian", hidden_dims=())
        >>> exact(vae, torch.ones(4, 6)).kind[0].item()
        'exact'
    """
    evaluation = Evaluation.prepare(pair, x, num_samples=1, seed=0)
    rows = evaluation.batch["x"]
    return LogEvidence.exact(
        linear_gaussian(pair, rows).log_prob(rows.flatten(1).double()).cpu().numpy(),
        measure=evaluation.structure.measure,
        method="exact",
        **about(evaluation.source, pair),
    )
