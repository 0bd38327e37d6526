"""Every figure of docs/figures.md, on digits and on a table.

python examples/figures.py [--out FOLDER] [--rows N] [--epochs N]
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
import torch

import pyrovae as pv
from pyrovae import baselines, plots

parser = argparse.ArgumentParser()
parser.add_argument("--out", type=Path, default=Path())
parser.add_argument("--rows", type=int, default=300)
parser.add_argument("--epochs", type=int, default=100)
chosen = parser.parse_args()


def save(name, axes):
    figure = np.atleast_1d(axes)[0].figure
    figure.savefig(chosen.out / f"{name}.png")


# Images
torch.manual_seed(0)
data = pv.datasets.digits("binary")
x = data.test[: chosen.rows]
ink = pd.Series(x.mean(dim=1), name="share of black pixels")
vae = pv.VAE.mlp(64, latent_dim=8, hidden_dims=(128, 128))
history = pv.fit(
    vae, data.train, epochs=chosen.epochs, lr=2e-3, kl_warmup=chosen.epochs // 20, validation=data.validation
)
evidence = pv.log_evidence(vae, x, num_samples=1000)
simulated = pv.log_evidence(vae, vae.sample(len(x)), num_samples=1000, check=False)
models = {
    "VAE": evidence,
    "independent pixels": baselines.IndependentBernoulli().fit(data.train),
    "ten mixture components": baselines.BernoulliMixture(10).fit(data.train),
}
thick = np.where(ink > ink.median(), "thick digits", "thin digits")
diagnosis = pv.diagnose(vae, x)

save("training_curves", plots.training_curves(history))
save("image_grid", plots.image_grid(vae.sample(30), (8, 8)))
save("reconstructions", plots.reconstructions(x[:20], vae.reconstruct(x[:20]), (8, 8)))
save("log_evidence", plots.log_evidence(evidence, simulated))
save("pareto_k", plots.pareto_k({"held-out rows": evidence, "simulated rows": simulated}))
save("check", plots.check(evidence))
save("convergence", plots.convergence(pv.evidence.convergence(vae, x[:50], check=False)))
save("compare", plots.compare(pv.compare(models, x, by=thick)))
save("diagnosis", plots.diagnosis(diagnosis))
save("latent", plots.latent(vae.encoder(x).mean, ink))

# A table with missing cells
rng = np.random.default_rng(0)
job = rng.choice(["cook", "nurse", "smith"], chosen.rows)
age = rng.normal(np.where(job == "smith", 50, 35), 8).round()
df = pd.DataFrame({"job": job, "age": age, "dose": rng.lognormal(age / 40, 0.4)})
df = df.mask(rng.random(df.shape) < 0.15)
table_vae = pv.VAE.for_table(df, latent_dim=2, hidden_dims=(32,))
pv.fit(table_vae, df, epochs=chosen.epochs, lr=3e-3)

save("predictive", plots.predictive(df, table_vae.sample(len(df))))
save("imputation", plots.imputation(pv.impute(table_vae, df, check=False)))
print(f"12 figures in {chosen.out.resolve()}")
