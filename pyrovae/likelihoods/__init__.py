"""P_Φ(x | z): likelihoods. Each is a module whose forward returns a Pyro distribution over one row of x.

``forward(z)`` takes z of shape (..., latent_dim) and treats every dim but the last as batch. It returns a
distribution of batch shape (...) and the event shape of a row of x. The network of a likelihood is the
decoder. It always gets input of shape (batch, latent_dim), so it may contain convolutions or any other layer.
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
