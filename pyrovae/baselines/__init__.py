"""Baselines to hold a VAE's log P(x) against: each has fit(x), log_evidence(x) and sample(n)."""

from pyrovae.baselines.independent_bernoulli import IndependentBernoulli
from pyrovae.baselines.ppca import PPCA

__all__ = ["PPCA", "IndependentBernoulli"]
