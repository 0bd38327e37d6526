"""pyrovae: variational autoencoders on Pyro whose log P(x) can be trusted."""

from pyrovae import baselines, datasets, encoders, evidence, likelihoods, plots, priors
from pyrovae.comparison import compare, swap
from pyrovae.evidence import LogEvidence, log_evidence
from pyrovae.log_weights import elbo, log_weights
from pyrovae.model import VAE, LatentVariableModel
from pyrovae.networks import MLP, ConvDecoder, ConvEncoder
from pyrovae.training import History, fit

__version__ = "0.1.0"

__all__ = [
    "MLP",
    "VAE",
    "ConvDecoder",
    "ConvEncoder",
    "History",
    "LatentVariableModel",
    "LogEvidence",
    "baselines",
    "compare",
    "datasets",
    "elbo",
    "encoders",
    "evidence",
    "fit",
    "likelihoods",
    "log_evidence",
    "log_weights",
    "plots",
    "priors",
    "swap",
]
