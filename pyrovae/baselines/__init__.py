"""Baselines for comparison with a VAE's log P(x). Each has fit(x), log_evidence(x), sample(n) and summary()."""

from pyrovae.baselines.base import REGISTRY, Baseline
from pyrovae.baselines.bayesian_linear_regression import BayesianLinearRegression
from pyrovae.baselines.bayesian_pca import BayesianPCA
from pyrovae.baselines.bernoulli_mixture import BernoulliMixture
from pyrovae.baselines.dirichlet_categorical import DirichletCategorical
from pyrovae.baselines.factor_analysis import FactorAnalysis
from pyrovae.baselines.full_gaussian import FullGaussian
from pyrovae.baselines.gaussian_mixture import GaussianMixture
from pyrovae.baselines.independent_bernoulli import IndependentBernoulli
from pyrovae.baselines.independent_gaussian import IndependentGaussian
from pyrovae.baselines.independent_negative_binomial import IndependentNegativeBinomial
from pyrovae.baselines.independent_poisson import IndependentPoisson
from pyrovae.baselines.kernel_density import KernelDensity
from pyrovae.baselines.latent_class import LatentClass
from pyrovae.baselines.mcmc import PyroMCMC
from pyrovae.baselines.normal_inverse_gamma import NormalInverseGamma
from pyrovae.baselines.ppca import PPCA

__all__ = [
    "PPCA",
    "REGISTRY",
    "Baseline",
    "BayesianLinearRegression",
    "BayesianPCA",
    "BernoulliMixture",
    "DirichletCategorical",
    "FactorAnalysis",
    "FullGaussian",
    "GaussianMixture",
    "IndependentBernoulli",
    "IndependentGaussian",
    "IndependentNegativeBinomial",
    "IndependentPoisson",
    "KernelDensity",
    "LatentClass",
    "NormalInverseGamma",
    "PyroMCMC",
]
