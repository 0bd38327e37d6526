"""P_Ω(z): priors, each a module whose forward returns a Pyro distribution over one row's z.

A prior's ``forward()`` takes nothing and returns a distribution of batch shape () and event shape
(latent_dim,). To add one: write the class and decorate it with its name.
"""

from __future__ import annotations

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyrovae import checks
from pyrovae.registry import Registry

#: Every prior by its name: the class name in snake case.
REGISTRY: Registry[nn.Module] = Registry()


@REGISTRY.register("standard_normal")
class StandardNormal(nn.Module):
    """P(z) = N(z; 0, I), z of shape (latent_dim,). Nothing to learn.

    Example:
        >>> StandardNormal(3)().event_shape
        torch.Size([3])
    """

    loc: Tensor
    scale: Tensor

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        self.latent_dim = checks.integer("latent_dim", latent_dim)
        # Buffers, so that .double() and .to(device) carry them along; not state worth saving.
        self.register_buffer("loc", torch.zeros(latent_dim), persistent=False)
        self.register_buffer("scale", torch.ones(latent_dim), persistent=False)

    def forward(self) -> dist.TorchDistribution:
        return dist.Normal(self.loc, self.scale).to_event(1)
