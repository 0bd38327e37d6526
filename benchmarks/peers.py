"""What the scripts share: a VAE of pyrovae, its networks, rows for it, and the same VAE in plain Pyro."""

from __future__ import annotations

import copy

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

import pyrovae as pv


def mlp_vae(data_dim: int, hidden_dims: tuple[int, ...], latent_dim: int) -> pv.VAE:
    """A VAE with the same weights at every call."""
    torch.manual_seed(0)
    return pv.VAE.mlp(data_dim, latent_dim, hidden_dims=hidden_dims)


def networks(vae: pv.VAE) -> tuple[nn.Module, nn.Module]:
    """Copies of a VAE's encoder and decoder, as plain ``nn.Sequential``s."""
    return copy.deepcopy(vae.encoder.network.layers), copy.deepcopy(vae.likelihood.network.layers)


def binary_rows(num_rows: int, width: int) -> Tensor:
    """Rows of zeros and ones; what they are does not bear on the time."""
    return torch.bernoulli(torch.full((num_rows, width), 0.3), generator=torch.Generator().manual_seed(0))


class TutorialVAE(nn.Module):
    """Model and guide after Pyro's VAE tutorial: a Bernoulli decoder, a diagonal normal encoder.

    Unlike there, the decoder puts out logits, the encoder log-scales, and pixels are zeros and ones. And it
    has a ``name``, because Pyro's store would make two in a process share their parameters.
    """

    def __init__(self, name: str, encoder: nn.Module, decoder: nn.Module, latent_dim: int) -> None:
        super().__init__()
        self.name = name
        self.encoder = encoder
        self.decoder = decoder
        self.latent_dim = latent_dim

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
