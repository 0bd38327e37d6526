"""The models of ``nuts.py`` by NumPyro: python nuts_numpyro.py MODEL SEED GIVEN.npz CAME.npz, by itself.

It imports nothing of the other benchmarks, because its environment has no torch.
"""

from __future__ import annotations

import sys
import time
from typing import Any

import jax

jax.config.update("jax_enable_x64", True)

import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import numpyro  # noqa: E402
import numpyro.distributions as dist  # noqa: E402
from numpyro.infer import MCMC, NUTS  # noqa: E402


def schools(x: Any, sigma: Any) -> None:
    mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = numpyro.sample("tau", dist.HalfCauchy(5.0))
    with numpyro.plate("schools", len(x)):
        effect = numpyro.sample("effect", dist.Normal(0.0, 1.0))
        numpyro.sample("x", dist.Normal(mu + tau * effect, sigma), obs=x)


def regression(x: Any, features: Any) -> None:
    slopes = numpyro.sample("slopes", dist.Normal(0.0, 3.0).expand([features.shape[1]]).to_event(1))
    level = numpyro.sample("level", dist.Normal(0.0, 3.0))
    noise = numpyro.sample("noise", dist.HalfNormal(2.0))
    with numpyro.plate("rows", len(x)):
        numpyro.sample("x", dist.Normal(level + features @ slopes, noise), obs=x)


def groups(x: Any, group: Any) -> None:
    mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = numpyro.sample("tau", dist.HalfNormal(2.0))
    noise = numpyro.sample("noise", dist.HalfNormal(2.0))
    effect = numpyro.sample("effect", dist.Normal(mu, tau).expand([40]).to_event(1))
    with numpyro.plate("rows", len(x)):
        numpyro.sample("x", dist.Normal(effect[group], noise), obs=x)


def pivots(x: np.ndarray, latent_dim: int) -> np.ndarray:
    """As ``pyrovae.baselines.bayesian_pca``: columns whose first L determine the first L principal directions best."""
    from scipy.linalg import qr

    values, vectors = np.linalg.eigh(np.cov(x.T, bias=True))
    leading = vectors[:, -latent_dim:] * np.sqrt(np.clip(values[-latent_dim:], 0, None))
    return qr(leading.T, mode="r", pivoting=True)[1]


def pca(x: Any) -> None:
    columns, latent_dim = x.shape[1], 2
    order = np.argsort(pivots(np.asarray(X), latent_dim))
    loc = numpyro.sample("loc", dist.Normal(0.0, 10.0).expand([columns]).to_event(1))
    squares = numpyro.sample("squares", dist.Gamma(jnp.arange(latent_dim, 0, -1) / 2, 0.5).to_event(1))
    free = columns * latent_dim - latent_dim * (latent_dim + 1) // 2
    below = numpyro.sample("below", dist.Normal(0.0, 1.0).expand([free]).to_event(1))
    sigma = numpyro.sample("sigma", dist.HalfNormal(1.0))
    loadings = (
        jnp.zeros((columns, latent_dim))
        .at[np.arange(latent_dim), np.arange(latent_dim)]
        .set(jnp.sqrt(squares))
    )
    loadings = loadings.at[np.tril_indices(columns, -1, latent_dim)].set(below)[order]
    with numpyro.plate("rows", len(x)):
        variance = jnp.broadcast_to(sigma**2, (columns,))
        numpyro.sample("x", dist.LowRankMultivariateNormal(loc, loadings, variance), obs=x)


MODELS = {"eight schools": schools, "regression": regression, "groups": groups, "Bayesian PCA": pca}

if __name__ == "__main__":
    name, seed, given, came = sys.argv[1:]
    with np.load(given) as found:
        X = found["x"]
        data = {key: jnp.asarray(found[key]) for key in found.files}
    mcmc = MCMC(
        NUTS(MODELS[name]),
        num_warmup=500,
        num_samples=500,
        num_chains=2,
        chain_method="sequential",
        progress_bar=False,
    )
    seconds = []
    for key in (int(seed), 1000 + int(seed)):  # the second run has nothing to compile
        started = time.perf_counter()
        mcmc.run(jax.random.PRNGKey(key), **data)
        samples = {site: np.asarray(v) for site, v in mcmc.get_samples(group_by_chain=True).items()}
        seconds.append(time.perf_counter() - started)
    draws = [value.reshape(*value.shape[:2], -1) for _, value in sorted(samples.items())]
    np.savez(
        came,
        seconds=seconds[0],
        sampling=seconds[1],
        draws=np.moveaxis(np.concatenate(draws, axis=2), 2, 0),
    )
