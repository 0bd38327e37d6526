"""The VAE of ``peers.mlp_vae`` in NumPyro, from the same weights: an epoch in one jitted loop, log P(x) in chunks."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jax import Array, lax, random
from numpyro import handlers
from numpyro.infer import SVI, Trace_ELBO
from peers import LEARNING_RATE, networks
from torch import Tensor, nn

import pyrovae as pv

Layers = list[tuple[Array, Array]]


def layers_of(network: nn.Module) -> Layers:
    """Weights (in, out) and biases of a network's linear layers."""
    linear = [module for module in network.modules() if isinstance(module, nn.Linear)]
    return [(to_jax(layer.weight.detach().T), to_jax(layer.bias.detach())) for layer in linear]


def to_jax(tensor: Tensor) -> Array:
    return jnp.array(tensor.numpy())


def apply(layers: Layers, x: Array) -> Array:
    for number, (weight, bias) in enumerate(layers, start=1):
        x = x @ weight + bias
        x = x if number == len(layers) else jax.nn.relu(x)
    return x


class NumPyroVAE:
    """Model and guide."""

    def __init__(self, vae: pv.VAE) -> None:
        self.start = dict(zip(("encoder", "decoder"), map(layers_of, networks(vae)), strict=True))
        self.latent_dim = len(self.start["decoder"][0][0])

    def model(self, x: Array) -> None:
        decoder: Any = numpyro.param("decoder", self.start["decoder"])
        with numpyro.plate("data", len(x)):
            z = numpyro.sample("latent", dist.Normal(jnp.zeros(self.latent_dim), 1.0).to_event(1))
            numpyro.sample("obs", dist.Bernoulli(logits=apply(decoder, z)).to_event(1), obs=x)

    def guide(self, x: Array) -> None:
        encoder: Any = numpyro.param("encoder", self.start["encoder"])
        with numpyro.plate("data", len(x)):
            loc, log_scale = jnp.split(apply(encoder, x), 2, axis=-1)
            numpyro.sample("latent", dist.Normal(loc, jnp.exp(log_scale)).to_event(1))


class NumPyroTraining:
    """SVI with Trace_ELBO and Adam; an epoch is one call: ``fori_loop`` over its steps, rows gathered inside."""

    def __init__(self, vae: pv.VAE, rows: Tensor, batch_size: int, seed: int = 0) -> None:
        pair = NumPyroVAE(vae)
        self._svi = SVI(pair.model, pair.guide, numpyro.optim.Adam(LEARNING_RATE), Trace_ELBO())
        self._rows, self._batch_size = to_jax(rows), batch_size
        self._state = jax.jit(self._svi.init)(random.key(seed), self._rows[:batch_size])
        self._keys = map(functools.partial(random.fold_in, random.key(seed + 1)), itertools.count())
        self._epoch = jax.jit(self._steps, donate_argnums=0)
        self._evaluate = jax.jit(self._svi.evaluate)

    def _steps(self, state: Any, rows: Array, key: Array) -> tuple[Any, Array]:
        order = random.permutation(key, len(rows))
        whole, rest = divmod(len(rows), self._batch_size)

        def step(number: Array, carried: tuple[Any, Array]) -> tuple[Any, Array]:
            state, total = carried
            index = lax.dynamic_slice(order, (number * self._batch_size,), (self._batch_size,))
            state, loss = self._svi.update(state, rows[index])
            return state, total + loss / self._batch_size

        state, total = lax.fori_loop(0, whole, step, (state, jnp.zeros(())))
        if rest:
            state, loss = self._svi.update(state, rows[order[-rest:]])
            total += loss / rest
        return state, total / (whole + bool(rest))

    def epoch(self) -> float:
        """One pass over the rows; the mean of its steps' losses, in nats a row."""
        self._state, loss = self._epoch(self._state, self._rows, next(self._keys))
        return float(loss)

    def elbo(self, x: Tensor) -> float:
        return -float(self._evaluate(self._state, to_jax(x))) / len(x)


def evidence_by_numpyro(vae: pv.VAE, x: Tensor, num_samples: int, chunk: int) -> Callable[[], float]:
    """Jitted: row by row, ``chunk`` draws at a time, each a trace of guide and model under ``vmap``."""
    pair = NumPyroVAE(vae)
    rows = to_jax(x)

    def log_weight(row: Array, key: Array) -> Array:
        guide = handlers.trace(handlers.seed(pair.guide, key)).get_trace(row[None])
        model = handlers.trace(handlers.replay(pair.model, guide)).get_trace(row[None])
        q, p, likelihood = (
            site["fn"].log_prob(site["value"]).sum()
            for site in (guide["latent"], model["latent"], model["obs"])
        )
        return likelihood + p - q

    def log_evidence(row_and_key: tuple[Array, Array]) -> Array:
        row, key = row_and_key
        draws = jax.vmap(functools.partial(log_weight, row))
        keys = random.split(key, num_samples // chunk)
        log_weights = lax.map(lambda key: draws(random.split(key, chunk)), keys)
        return jax.nn.logsumexp(log_weights) - math.log(num_samples)

    @jax.jit
    def mean(rows: Array, key: Array) -> Array:
        return lax.map(log_evidence, (rows, random.split(key, len(rows)))).mean()

    keys = map(functools.partial(random.fold_in, random.key(0)), itertools.count())
    return lambda: float(mean(rows, next(keys)))


VERSIONS = {"jax": jax.__version__, "numpyro": numpyro.__version__}
