"""pyrovae: variational autoencoders on Pyro whose log P(x) can be trusted."""

import importlib
import logging
from typing import Any

from pyrovae import baselines, convert, datasets, encoders, evidence, likelihoods, plots, priors
from pyrovae.checkpoints import Checkpoint
from pyrovae.comparison import compare, compare_evidence, swap
from pyrovae.diagnosis import diagnose
from pyrovae.embedding import embed
from pyrovae.evidence import LogEvidence, log_evidence
from pyrovae.imputation import Imputation, impute
from pyrovae.log_weights import elbo, log_weights
from pyrovae.model import VAE, LatentVariableModel
from pyrovae.networks import MLP, ConvDecoder, ConvEncoder
from pyrovae.outlying import outliers
from pyrovae.reporting import report
from pyrovae.saving import load, save
from pyrovae.training import History, fit

__version__ = "0.1.0"

__all__ = [
    "MLP",
    "VAE",
    "Checkpoint",
    "ConvDecoder",
    "ConvEncoder",
    "History",
    "Imputation",
    "LatentVariableModel",
    "LogEvidence",
    "baselines",
    "compare",
    "compare_evidence",
    "convert",
    "datasets",
    "diagnose",
    "elbo",
    "embed",
    "encoders",
    "evidence",
    "fit",
    "impute",
    "likelihoods",
    "load",
    "log_evidence",
    "log_weights",
    "outliers",
    "plots",
    "priors",
    "report",
    "save",
    "swap",
]

# The logger "pyrovae" is quiet unless the program that imports pyrovae adds a handler.
logging.getLogger(__name__).addHandler(logging.NullHandler())


def __getattr__(name: str) -> Any:
    """Import ``pyrovae.sklearn`` when it is first used, because scikit-learn takes a second to import."""
    if name == "sklearn":
        return importlib.import_module("pyrovae.sklearn")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
