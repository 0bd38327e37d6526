"""Where log P(x) is known: ELBO ≤ importance-weighted bound ≤ exact, closing with the number of draws.

python examples/linear_gaussian.py [figure.png]
"""

import sys

import matplotlib.pyplot as plt
import numpy as np
import torch
from torch.distributions import LowRankMultivariateNormal

import pyrovae as pv
from pyrovae import baselines

torch.manual_seed(0)
latent_dim, columns = 3, 10
x = torch.randn(600, latent_dim) @ torch.randn(latent_dim, columns) + 0.7 * torch.randn(600, columns)
train, test = x[:500], x[500:]

# A VAE with linear networks is probabilistic PCA: x ~ N(b, W Wᵀ + σ² I), in closed form.
vae = pv.VAE.mlp(columns, latent_dim, likelihood="gaussian", hidden_dims=(), scale="shared")
pv.fit(vae, train, epochs=250, batch_size=64, lr=2e-2)
decoder, scale = vae.likelihood.network.layers[0], vae.likelihood.log_scale.exp()
with torch.no_grad():
    marginal = LowRankMultivariateNormal(decoder.bias, decoder.weight, scale.square().expand(columns))
    exact = marginal.log_prob(test).mean().item()
fitted = baselines.PPCA(latent_dim).fit(train).log_evidence(test).mean

draws = [1, 3, 10, 30, 100, 300, 1000]
bounds = [pv.log_evidence(vae, test, num_samples=k) for k in draws]
elbo = pv.elbo(vae, test, num_samples=2000).mean

lines = {"ELBO": f"{elbo:.4f}"}
for k, bound in zip(draws, bounds, strict=True):
    lines[f"importance, K = {k}"] = f"{bound.mean:.4f} ± {bound.mean_mcse:.4f}, bias {bound.mean_bias:.4f}"
lines |= {"exact": f"{exact:.4f}", "PPCA, fitted exactly": f"{fitted:.4f}"}
for name, value in lines.items():
    print(f"{name:<22}{value}")
print("nats a row")

figure, axes = plt.subplots(layout="constrained")
errors = np.nan_to_num([1.96 * bound.mean_mcse for bound in bounds])
axes.errorbar(draws, [bound.mean for bound in bounds], yerr=errors, marker="o", label="importance-weighted")
axes.axhline(elbo, color="C1", label="ELBO")
axes.axhline(exact, color="k", label="exact")
axes.set(xscale="log", xlabel="draws a row", ylabel="log P(x), nats a row")
axes.legend()
figure.savefig(sys.argv[1] if len(sys.argv) > 1 else "linear_gaussian.png")
