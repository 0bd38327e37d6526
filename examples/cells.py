"""Sparse counts of molecules in cells: fit a VAE to a scipy.sparse matrix, embed the cells, name the odd ones."""

import numpy as np
import scipy.sparse
import torch
from sklearn.linear_model import LogisticRegression

import pyrovae as pv

# 600 cells of three types; each has its own genes; depths differ by cell. Replace x by your own matrix, cells first.
rng = np.random.default_rng(0)
kind = rng.integers(3, size=600)
profile = np.exp(rng.normal(-3.5, 0.8, 120) + np.kron(3 * np.eye(3), np.ones(40)) * (rng.random(120) < 0.3))[
    kind
]
depth = rng.lognormal(0, 0.4, 600)
x = scipy.sparse.csr_matrix(rng.poisson(profile * depth[:, None]))
print(f"{x.nnz / np.prod(x.shape):.0%} of the counts are not 0")

torch.manual_seed(0)
train, test = x[:400], x[400:]
vae = pv.VAE.mlp(120, latent_dim=3, likelihood="negative_binomial", hidden_dims=(64,), standardize=True)
vae.likelihood.start_from(train)
pv.fit(vae, train, epochs=30, lr=1e-2)
print(pv.log_evidence(vae, test, num_samples=500))

codes = pv.embed(vae, x)  # z_0, z_1, z_2 and their standard deviations z_0_sd, …
means = codes[["z_0", "z_1", "z_2"]]
print(codes.head(3).round(2).to_string())
classifier = LogisticRegression(max_iter=1000).fit(means[:400], kind[:400])
print(f"{classifier.score(means[400:], kind[400:]):.0%} of held-out cells get their type from the embedding")
