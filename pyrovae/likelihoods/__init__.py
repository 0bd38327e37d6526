"""P_Φ(x | z): likelihoods, each a module whose forward returns a Pyro distribution over one row of x.

A likelihood's ``forward(z)`` takes z of shape (..., latent_dim), treats every dim but the last as batch,
and returns a distribution of batch shape (...) and the event shape of a row of x. Its network, the
decoder, only ever sees (batch, latent_dim), so it may hold convolutions or anything else.
To add a family: write ``distribution`` and ``marginal_outputs`` and decorate the class with its name.
"""

from pyrovae.likelihoods.base import REGISTRY, Likelihood
from pyrovae.likelihoods.bounded import Beta, ContinuousBernoulli, Gamma, LogNormal
from pyrovae.likelihoods.counts import Binomial, NegativeBinomial, Poisson, ZeroInflatedNegativeBinomial
from pyrovae.likelihoods.levels import Bernoulli, Categorical, DiscretizedLogistic, Ordinal
from pyrovae.likelihoods.real import Gaussian, Laplace, StudentT
from pyrovae.likelihoods.suggestion import suggest

__all__ = [
    "REGISTRY",
    "Bernoulli",
    "Beta",
    "Binomial",
    "Categorical",
    "ContinuousBernoulli",
    "DiscretizedLogistic",
    "Gamma",
    "Gaussian",
    "Laplace",
    "Likelihood",
    "LogNormal",
    "NegativeBinomial",
    "Ordinal",
    "Poisson",
    "StudentT",
    "ZeroInflatedNegativeBinomial",
    "suggest",
]
