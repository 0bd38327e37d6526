"""Swap the likelihood in model code: one line changes, and the two log P(x) must not be compared."""

import torch

import pyrovae as pv
from pyrovae import encoders, likelihoods, priors

torch.manual_seed(0)
data = pv.datasets.digits("binary")


def vae(likelihood):
    return pv.VAE(
        prior=priors.StandardNormal(8),
        likelihood=likelihood,
        encoder=encoders.DiagonalNormal(pv.MLP(64, (64,), 2 * 8)),
    )


bernoulli = vae(likelihoods.Bernoulli(pv.MLP(8, (64,), 64)))
gaussian = vae(likelihoods.Gaussian(pv.MLP(8, (64,), 64), scale="shared"))  # the one line

for name, model in {"Bernoulli": bernoulli, "Gaussian": gaussian}.items():
    pv.fit(model, data.train, epochs=30, lr=3e-3)
    print(f"{name}\n{pv.log_evidence(model, data.test, num_samples=500)}\n")

# The first is the probability of a row of zeros and ones, the second a density at those points. The
# Gaussian's number is larger, and that says nothing:
try:
    pv.compare({"Bernoulli": bernoulli, "Gaussian": gaussian}, data.test)
except ValueError as refusal:
    print(f"Refused. {refusal}")
