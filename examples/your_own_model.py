"""Your own Pyro model and guide, wrapped, fitted and evaluated: nothing in them comes from pyrovae."""

import pyro
import pyro.distributions as dist
import torch
from torch.distributions import constraints

import pyrovae as pv

columns, latent_dim = 8, 2


def model(x):
    loadings = pyro.param("loadings", lambda: 0.3 * torch.randn(latent_dim, columns))
    noise = pyro.param("noise", torch.ones(columns), constraint=constraints.positive)
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(latent_dim), 1.0).to_event(1))
        pyro.sample("x", dist.StudentT(4.0, z @ loadings, noise).to_event(1), obs=x)


def guide(x):
    weight = pyro.param("weight", lambda: 0.1 * torch.randn(columns, latent_dim))
    scale = pyro.param("scale", torch.ones(latent_dim), constraint=constraints.positive)
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x @ weight, scale).to_event(1))


torch.manual_seed(0)
x = torch.randn(600, latent_dim) @ torch.randn(latent_dim, columns) + 0.3 * torch.randn(600, columns)

pair = pv.LatentVariableModel(model, guide)
history = pv.fit(pair, x[:500], epochs=60, lr=2e-2)
print(history.frame.tail(3).round(2).to_string(index=False))

evidence = pv.log_evidence(pair, x[500:], num_samples=1000)
print(evidence)
print(evidence.to_frame().head(3).round(3))
