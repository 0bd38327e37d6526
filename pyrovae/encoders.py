"""Q_Ψ(z | x): encoders, each a module whose forward returns a Pyro distribution over z.

An encoder's ``forward(x)`` takes rows of shape (batch, ...) and returns a distribution of batch shape
(batch,) and event shape (latent_dim,). To add one: write the class and decorate it with its name.
"""

from __future__ import annotations

import pyro.distributions as dist
from torch import Tensor, nn

from pyrovae import checks
from pyrovae.registry import Registry

#: Every encoder by its name: the class name in snake case. Each says how many network outputs a latent
#: dimension needs: ``outputs_per_latent``.
REGISTRY: Registry[nn.Module] = Registry()


@REGISTRY.register("diagonal_normal")
class DiagonalNormal(nn.Module):
    """Q(z | x) = N(z; μ(x), diag σ(x)²): a mean-field Gaussian (Kingma and Welling 2014).

    ``network`` maps rows of x to (batch, 2 · latent_dim): the means, then the log-scales log σ.

    Example:
        >>> import torch
        >>> from pyrovae.networks import MLP
        >>> q = DiagonalNormal(MLP(5, (8,), 2 * 3))(torch.zeros(7, 5))
        >>> q.batch_shape, q.event_shape
        (torch.Size([7]), torch.Size([3]))
    """

    outputs_per_latent = 2

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = checks.module("network", network)

    def forward(self, x: Tensor) -> dist.TorchDistribution:
        loc, log_scale = self.network(x).chunk(2, dim=-1)
        return dist.Normal(loc, log_scale.exp()).to_event(1)
