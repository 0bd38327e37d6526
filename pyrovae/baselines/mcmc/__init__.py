"""MCMC for Bayesian Pyro models: NUTS chains, their diagnostics, bridge sampling, and the baseline ``PyroMCMC``."""

from pyrovae.baselines.mcmc.pyro_mcmc import PyroMCMC

__all__ = ["PyroMCMC"]
