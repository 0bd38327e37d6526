"""What the scripts share: a VAE of pyrovae, its networks, rows for it, and the same VAE in plain Pyro and in torch.

A peer's training is a ``Training``, its log P(x) a function that returns the mean over the rows, in nats.
"""

from __future__ import annotations

import copy
import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyro
import pyro.distributions as dist
import pyro.infer
import pyro.optim
import torch
import torch.nn.functional as F
from pyro import poutine
from torch import Tensor, nn
from torch.distributions import Bernoulli, Normal

import pyrovae as pv

LEARNING_RATE = 1e-3


def mlp_vae(data_dim: int, hidden_dims: tuple[int, ...], latent_dim: int) -> pv.VAE:
    """A VAE with the same weights at every call."""
    torch.manual_seed(0)
    return pv.VAE.mlp(data_dim, latent_dim, hidden_dims=hidden_dims)


@dataclass(frozen=True)
class Nets:
    """Widths of a VAE's networks: rows, hidden layers of the encoder (the decoder's in reverse), latents."""

    title: str
    data_dim: int
    hidden_dims: tuple[int, ...]
    latent_dim: int

    def vae(self) -> pv.VAE:
        return mlp_vae(self.data_dim, self.hidden_dims, self.latent_dim)

    @property
    def encoder(self) -> list[tuple[int, int]]:
        """(in, out) of the encoder's layers."""
        return list(itertools.pairwise([self.data_dim, *self.hidden_dims, 2 * self.latent_dim]))

    @property
    def decoder(self) -> list[tuple[int, int]]:
        """(in, out) of the decoder's layers."""
        return list(itertools.pairwise([self.latent_dim, *reversed(self.hidden_dims), self.data_dim]))


SMALL = Nets("64-64-8", 64, (64,), 8)
LARGE = Nets("784-400-50", 784, (400,), 50)


def networks(vae: pv.VAE) -> tuple[nn.Module, nn.Module]:
    """Copies of a VAE's encoder and decoder, as plain ``nn.Sequential``s."""
    return copy.deepcopy(vae.encoder.network.layers), copy.deepcopy(vae.likelihood.network.layers)


def binary_rows(num_rows: int, width: int) -> Tensor:
    """Rows of zeros and ones; what they are does not bear on the time."""
    return torch.bernoulli(torch.full((num_rows, width), 0.3), generator=torch.Generator().manual_seed(0))


class TutorialVAE(nn.Module):
    """Model and guide after Pyro's VAE tutorial, with copies of a VAE's networks: Bernoulli and diagonal normal.

    Unlike there, the decoder puts out logits, the encoder log-scales, and pixels are zeros and ones. And it
    has a ``name``, because Pyro's store would make two in a process share their parameters.
    """

    _numbers = itertools.count()

    def __init__(self, vae: pv.VAE) -> None:
        super().__init__()
        self.name = f"vae-{next(self._numbers)}"
        self.encoder, self.decoder = networks(vae)
        self.latent_dim = self.decoder[0].in_features

    def model(self, x: Tensor) -> None:
        pyro.module(f"{self.name}-decoder", self.decoder)
        with pyro.plate("data", len(x)):
            loc, scale = x.new_zeros(len(x), self.latent_dim), x.new_ones(len(x), self.latent_dim)
            z = pyro.sample("latent", dist.Normal(loc, scale).to_event(1))
            pyro.sample("obs", dist.Bernoulli(logits=self.decoder(z)).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        pyro.module(f"{self.name}-encoder", self.encoder)
        with pyro.plate("data", len(x)):
            loc, log_scale = self.encoder(x).chunk(2, dim=-1)
            pyro.sample("latent", dist.Normal(loc, log_scale.exp()).to_event(1))


class Training(ABC):
    """A fit in torch: every epoch takes the rows in a new order, by index; Adam, one draw a row."""

    def __init__(self, rows: Tensor, batch_size: int) -> None:
        self.rows, self.batch_size = rows, batch_size

    @abstractmethod
    def step(self, x: Tensor) -> Tensor | float:
        """One step on a minibatch; its loss in nats a row."""

    def epoch(self) -> float:
        """One pass over the rows; the mean of its steps' losses, in nats a row."""
        order = torch.randperm(len(self.rows)).split(self.batch_size)
        losses = [self.step(self.rows[rows]) for rows in order]
        return float(sum(losses)) / len(losses)


class PyroTraining(Training):
    """SVI with Trace_ELBO, with Pyro's validation (its default) or without."""

    def __init__(self, vae: pv.VAE, rows: Tensor, batch_size: int, validation: bool = True) -> None:
        super().__init__(rows, batch_size)
        self._validation = validation
        pair = TutorialVAE(vae)
        adam = pyro.optim.Adam({"lr": LEARNING_RATE})  # type: ignore[attr-defined]
        self._svi = pyro.infer.SVI(pair.model, pair.guide, adam, pyro.infer.Trace_ELBO())

    def step(self, x: Tensor) -> float:
        with pyro.validation_enabled(self._validation):
            return self._svi.step(x) / len(x)

    def elbo(self, x: Tensor) -> float:
        return -self._svi.evaluate_loss(x) / len(x)


class HandTraining(Training):
    """A torch loop: no term in closed form, Adam fused, losses read once an epoch; the loss compiled or not."""

    def __init__(self, vae: pv.VAE, rows: Tensor, batch_size: int, compiled: bool) -> None:
        super().__init__(rows, batch_size)
        self._encoder, self._decoder = networks(vae)
        parameters = [*self._encoder.parameters(), *self._decoder.parameters()]
        self._adam = torch.optim.Adam(parameters, lr=LEARNING_RATE, fused=True)
        self._loss = torch.compile(self.loss) if compiled else self.loss

    def loss(self, x: Tensor) -> Tensor:
        loc, log_scale = self._encoder(x).chunk(2, dim=-1)
        unit = torch.randn_like(loc)
        z = loc + log_scale.exp() * unit
        rate = ((z**2 - unit**2) / 2 - log_scale).sum()  # log Q(z | x) − log P(z)
        return (F.binary_cross_entropy_with_logits(self._decoder(z), x, reduction="sum") + rate) / len(x)

    def step(self, x: Tensor) -> Tensor:
        loss = self._loss(x)
        self._adam.zero_grad()
        loss.backward()
        self._adam.step()
        return loss.detach()


def evidence_by_pyro(
    vae: pv.VAE, x: Tensor, num_samples: int, rows_at_once: int, validation: bool = True
) -> Callable[[], float]:
    """Guide and model traced under a plate of K particles, some rows at a time."""
    pair = TutorialVAE(vae)

    def log_evidence(rows: Tensor) -> Tensor:
        with pyro.plate("particles", num_samples, dim=-2):
            guide = poutine.trace(pair.guide).get_trace(rows)
            model = poutine.trace(poutine.replay(pair.model, trace=guide)).get_trace(rows)
        guide.compute_log_prob()
        model.compute_log_prob()
        log_joint = model.nodes["latent"]["log_prob"] + model.nodes["obs"]["log_prob"]
        log_weights = log_joint - guide.nodes["latent"]["log_prob"]
        return torch.logsumexp(log_weights, dim=0) - math.log(num_samples)

    @torch.no_grad()
    def run() -> float:
        with pyro.validation_enabled(validation):
            return torch.cat([log_evidence(rows) for rows in x.split(rows_at_once)]).mean().item()

    return run


def evidence_in_passes(
    vae: pv.VAE, x: Tensor, num_samples: int, samples_a_pass: int, batch_size: int = 128
) -> Callable[[], float]:
    """The way of scvi-tools' ``get_marginal_ll``: every minibatch is encoded, drawn from and decoded in passes.

    A pass is some draws of each of the minibatch's rows, one by default there; log densities are torch's distributions' (without their
    validation), log weights are stored until the last pass.
    """
    encoder, decoder = networks(vae)

    def log_weights(rows: Tensor) -> Tensor:
        loc, log_scale = encoder(rows).chunk(2, dim=-1)
        q = Normal(loc, log_scale.exp(), validate_args=False)
        z = q.sample((samples_a_pass,))
        prior = Normal(torch.zeros_like(loc), torch.ones_like(loc), validate_args=False)
        likelihood = Bernoulli(logits=decoder(z), validate_args=False).log_prob(rows).sum(dim=-1)
        return likelihood + prior.log_prob(z).sum(dim=-1) - q.log_prob(z).sum(dim=-1)

    @torch.no_grad()
    def run() -> float:
        found = []
        for rows in x.split(batch_size):
            stored = [log_weights(rows) for _ in range(num_samples // samples_a_pass)]
            found.append(torch.logsumexp(torch.cat(stored), dim=0) - math.log(num_samples))
        return torch.cat(found).mean().item()

    return run


# Of the hand-written loop: numbers of x times samples in a block, the quickest of 2^17 … 2^22, and samples.
_BLOCK_ELEMENTS = 1 << 20
_BLOCK_SAMPLES = 128


def evidence_by_hand(vae: pv.VAE, x: Tensor, num_samples: int) -> Callable[[], float]:
    """Torch alone, in blocks of rows × draws that stay near the cache; a row is encoded once."""
    encoder, decoder = networks(vae)
    height = max(1, _BLOCK_ELEMENTS // (x.shape[1] * _BLOCK_SAMPLES))

    def log_weights(rows: Tensor, loc: Tensor, log_scale: Tensor, samples: int) -> Tensor:
        unit = torch.randn(samples, *loc.shape)
        z = loc + log_scale.exp() * unit
        logits = decoder(z)
        # log P(x | z) = x·logit − Σ softplus(logit): one pass over the block less than cross-entropy.
        likelihood = torch.einsum("srd,rd->sr", logits, rows) - F.softplus(logits).sum(dim=-1)
        return likelihood + ((unit**2 - z**2) / 2 + log_scale).sum(dim=-1)

    @torch.no_grad()
    def run() -> float:
        found = []
        for rows in x.split(height):
            loc, log_scale = encoder(rows).chunk(2, dim=-1)
            blocks = [
                log_weights(rows, loc, log_scale, min(_BLOCK_SAMPLES, num_samples - first))
                for first in range(0, num_samples, _BLOCK_SAMPLES)
            ]
            found.append(torch.logsumexp(torch.cat(blocks), dim=0) - math.log(num_samples))
        return torch.cat(found).mean().item()

    return run


ROWS_A_PRODUCT = 1 << 17
_HEIGHTS = tuple(1 << power for power in range(7, 15))


def bare_products(layers: list[tuple[int, int]]) -> dict[tuple[str, int], Callable[[], None]]:
    """The products of a decoder's layers and nothing else, ``ROWS_A_PRODUCT`` rows, by way and rows at once."""

    def run(call: Callable[..., Any], height: int) -> Callable[[], None]:
        generator = torch.Generator().manual_seed(0)
        operands = [
            (
                torch.randn(height, width, generator=generator),
                torch.randn(following, width, generator=generator),
                torch.randn(following, generator=generator),
                torch.empty(height, following),
            )
            for width, following in layers
        ]

        def products() -> None:
            for _ in range(ROWS_A_PRODUCT // height):
                for tensors in operands:
                    call(*tensors)

        return products

    ways: dict[str, Callable[..., Any]] = {
        "mm": lambda x, w, bias, out: torch.mm(x, w.T, out=out),
        "addmm": lambda x, w, bias, out: torch.addmm(bias, x, w.T, out=out),
        "oneDNN": lambda x, w, bias, out: torch.ops.mkldnn._linear_pointwise(x, w, bias, "none", [], ""),
    }
    return {(name, height): run(call, height) for name, call in ways.items() for height in _HEIGHTS}


def bare_steps(nets: Nets, batch_size: int, steps: int) -> dict[str, Callable[[], None]]:
    """The products of a training step and nothing else: x Wᵀ, g W and gᵀ x of every layer, by way."""
    operands = [
        (torch.randn(batch_size, width), torch.randn(following, width), torch.randn(batch_size, following))
        for width, following in [*nets.encoder, *nets.decoder]
    ]

    def run(times_transposed: Callable[[Tensor, Tensor], Tensor]) -> Callable[[], None]:
        def products() -> None:
            for _ in range(steps):
                for number, (x, w, g) in enumerate(operands):
                    times_transposed(x, w)
                    times_transposed(g.T, x.T)
                    if number:  # nobody asks for the gradient of the rows
                        times_transposed(g, w.T)

        return products

    return {
        "mm": run(lambda a, b: torch.mm(a, b.T)),
        "oneDNN": run(lambda a, b: torch.ops.mkldnn._linear_pointwise(a, b, None, "none", [], "")),
    }
