"""A VAE on handwritten digits, from data to a figure and a comparison.

python examples/digits.py [figure.png]
"""

import sys

import matplotlib.pyplot as plt
import torch

import pyrovae as pv
from pyrovae import baselines, plots

torch.manual_seed(0)
data = pv.datasets.digits("binary")

vae = pv.VAE.mlp(64, latent_dim=8, likelihood="bernoulli", hidden_dims=(128, 128))
history = pv.fit(
    vae, data.train, epochs=60, lr=3e-3, kl_warmup=10, validation=data.validation, patience=15, progress=True
)

evidence = pv.log_evidence(vae, data.test, num_samples=1000, progress=True)
print(evidence)

independent = baselines.IndependentBernoulli().fit(data.train)
table = pv.compare({"VAE": evidence, "independent pixels": independent}, data.test)
print(table[["elpd", "se", "elpd_diff", "dse", "mcse", "trust", "more samples", "another method"]].round(3))

figure, axes = plt.subplots(1, 3, figsize=(12, 4), layout="constrained")
plots.training_curves(history, ax=axes[0]).set_title("training")
plots.image_grid(vae.sample(64), (8, 8), columns=8, ax=axes[1]).set_title("samples from P(x)")
plots.pareto_k({"VAE": evidence}, ax=axes[2]).set_title("k-hat of every row")
figure.savefig(sys.argv[1] if len(sys.argv) > 1 else "digits.png")
