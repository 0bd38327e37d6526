"""exact() computes log P(x) in closed form for a linear-Gaussian VAE."""

from __future__ import annotations

import math
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
from pyrovae.pair import Batch
from pyrovae.refusals import Refused, bad_value
from pyrovae.turns import takes_turns

# Numbers in the factors of a block of rows with missing cells: 32 MiB in float64.
_ENTRIES = 2**22


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

    def log_prob(self, x: Tensor, observed: Tensor | None = None) -> Tensor:
        """Return log N(x_o; W_o m + b_o, W_o S W_oᵀ + diag σ_o²) of each row's observed columns o, shape (rows,), in nats.

        ``observed`` has the shape of ``x``, (rows, columns); None means all.
        """
        loc, factor, variance = (
            self.loc + self.loadings @ self.prior.mean,
            self.loadings @ self.prior.scale_tril,
            self.scale**2,
        )
        if observed is None:
            return LowRankMultivariateNormal(loc, factor, variance).log_prob(x)
        found = x.new_empty(len(x))
        for rows in torch.arange(len(x), device=x.device).split(max(1, _ENTRIES // factor.numel())):
            seen = observed[rows]
            # A missing column becomes an independent standard normal at its mean, whose log density is then taken out.
            marginal = LowRankMultivariateNormal(
                loc.expand_as(seen), factor * seen[..., None], torch.where(seen, variance, 1.0)
            )
            missing = (~seen).sum(dim=1).to(x)  # not in torch's default dtype
            log_p = marginal.log_prob(torch.where(seen, x[rows], loc)) + 0.5 * math.log(2 * math.pi) * missing
            found[rows] = log_p.masked_fill(missing == seen.shape[1], 0.0)
        return found

    def posterior(self, x: Tensor, observed: Tensor | None = None) -> MultivariateNormal:
        """Return P(z | x_n,o) for every row; ``observed`` as in ``log_prob``."""
        weighted = self.loadings.T / self.scale**2  # (latent_dim, columns)
        centred, prior = x - self.loc, self.prior.precision_matrix
        if observed is None:
            precision = weighted @ self.loadings + prior
            mean = torch.linalg.solve(precision, (centred @ weighted.T + prior @ self.prior.mean).T).T
        else:
            precision = torch.einsum("kd,nd,dl->nkl", weighted, observed.to(x), self.loadings) + prior
            pull = centred.masked_fill(~observed, 0.0) @ weighted.T + prior @ self.prior.mean
            mean = torch.linalg.solve(precision, pull)
        return MultivariateNormal(mean, precision_matrix=precision)

    @classmethod
    def cells(cls, batch: Batch) -> tuple[Tensor, ...]:
        """Return the arguments of ``log_prob`` and ``posterior`` for a batch."""
        rows = batch["x"].flatten(1).double()
        return (rows, batch["observed"].flatten(1)) if "observed" in batch else (rows,)


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
    return exactly(evaluation)


def exactly(evaluation: Evaluation) -> LogEvidence:
    """Return log P(x_n) of a linear-Gaussian VAE's prepared evaluation; raises ``Refused`` for other pairs."""
    known = linear_gaussian(evaluation.pair, evaluation.batch["x"])
    return LogEvidence.exact(
        known.log_prob(*known.cells(evaluation.batch)).cpu().numpy(),
        measure=evaluation.structure.measure,
        method="exact",
        **about(evaluation.source, evaluation.pair),
    )
