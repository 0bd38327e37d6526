"""A table with missing cells: a family for each column, log P(x), imputed cells, odd cells, and rows drawn from the VAE."""

import numpy as np
import pandas as pd
import torch

import pyrovae as pv

torch.manual_seed(0)
rng = np.random.default_rng(0)
ward = rng.choice(["day", "night", "surgery"], 600, p=[0.5, 0.3, 0.2])
ill = pd.Series(ward).map({"day": 0.0, "night": 1.0, "surgery": 2.0}) + rng.normal(0, 0.5, 600)
df = pd.DataFrame(
    {
        "ward": ward,
        "fever": ill + rng.normal(0, 0.7, 600) > 1,
        "age": (50 + 10 * ill + rng.normal(0, 8, 600)).round(),  # recorded to a year
        "visits": rng.poisson(np.exp(0.5 * ill)),
        "dose": np.exp(0.8 * ill + rng.normal(0, 0.3, 600)),
    }
)
df = df.mask(rng.random(df.shape) < 0.2)  # a fifth of the cells is missing
train, test = df[:500], df[500:]

vae = pv.VAE.for_table(train, latent_dim=2, resolution={"age": 1}, hidden_dims=(32,))
print(vae.table.summary()[["column", "family", "why"]].to_string(index=False))

pv.fit(vae, train, epochs=60, lr=1e-2)
print(pv.log_evidence(vae, test, num_samples=500))

imputed = pv.impute(vae, test, num_imputations=20)
print(imputed)
print(
    imputed.to_frame().head(6).round(2).to_string(index=False)
)  # with intervals, in the columns' own values
print(imputed.point("median").head(3).to_string())

odd = pd.concat([test.dropna()[:20], pd.DataFrame([["day", False, 45.0, 1.0, 40.0]], columns=test.columns)])
scores = pv.outliers(vae, odd, check=False)
print(
    scores.sort_values("score").tail(2)[["score", "oddest", "below"]].round(1).to_string()
)  # a dose of 40 on a day ward

print("mean dose in the rows:   ", df.groupby("ward")["dose"].mean().round(2).to_dict())
print("mean dose in the samples:", vae.sample(5000).groupby("ward")["dose"].mean().round(2).to_dict())
