"""P_Φ(x | z): likelihoods, each a module whose forward returns a Pyro distribution over one row of x.

A likelihood's ``forward(z)`` takes z of shape (..., latent_dim), treats every dim but the last as batch,
and returns a distribution of batch shape (...) and the event shape of a row of x. Its network, the
decoder, only ever sees (batch, latent_dim), so it may hold convolutions or anything else.
To add a family: write ``distribution`` and decorate the class with its name.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyrovae import checks
from pyrovae.networks import output_width
from pyrovae.registry import Registry

#: Every likelihood by its name: the class name in snake case.
REGISTRY: Registry[Likelihood] = Registry()


class Likelihood(nn.Module, ABC):
    """Base of every family: runs the decoder on flattened batch dims and asks for ``distribution``."""

    #: Whether a scale is learned for every dimension of x: columns that do not vary are then refused.
    learns_scale_per_column = False

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = checks.module("network", network)

    def forward(self, z: Tensor) -> dist.TorchDistribution:
        batch_shape = z.shape[:-1]
        outputs = self.network(z.reshape(-1, z.shape[-1]))  # (batch, *row)
        fn = self.distribution(outputs.reshape(*batch_shape, *outputs.shape[1:]))
        return fn.to_event(len(fn.batch_shape) - len(batch_shape))

    @classmethod
    def outputs_per_dimension(cls, **options: Any) -> int:
        """How many decoder outputs one dimension of x needs, given the family's own options."""
        return 1

    @abstractmethod
    def distribution(self, outputs: Tensor) -> dist.TorchDistribution:
        """The family with a parameter for every entry of x, from decoder outputs (..., *row)."""


@REGISTRY.register("bernoulli")
class Bernoulli(Likelihood):
    """P(x | z) = Π_d Bernoulli(x_d; sigmoid(logit_d(z))) for x of zeros and ones: a mass.

    ``network`` maps (batch, latent_dim) to logits of the shape of the rows, (batch, ...).

    Example:
        >>> import torch
        >>> from pyrovae.networks import MLP
        >>> p = Bernoulli(MLP(2, (8,), 5))(torch.zeros(3, 7, 2))
        >>> p.batch_shape, p.event_shape
        (torch.Size([3, 7]), torch.Size([5]))
    """

    def distribution(self, outputs: Tensor) -> dist.TorchDistribution:
        return dist.Bernoulli(logits=outputs)


@REGISTRY.register("gaussian")
class Gaussian(Likelihood):
    """P(x | z) = Π_d N(x_d; μ_d(z), σ_d²) for real x: a density, in the units of x.

    Args:
        network: maps (batch, latent_dim) to means of the shape of the rows, (batch, ...); with
            ``scale="decoder"`` to twice as many on the last dim: the means, then the log-scales.
        scale: a number (σ fixed), ``"shared"`` (one σ learned), ``"per_dimension"`` (one learned for
            each entry of x) or ``"decoder"`` (put out by the network).

    Raises:
        ValueError: another scale, or a network whose output width cannot be read or is odd.

    Example:
        >>> import torch
        >>> from pyrovae.networks import MLP
        >>> Gaussian(MLP(2, (8,), 2 * 5), scale="decoder")(torch.zeros(3, 2)).event_shape
        torch.Size([5])
    """

    def __init__(self, network: nn.Module, scale: float | str = 1.0) -> None:
        super().__init__(network)
        if isinstance(scale, str):
            if scale not in ("shared", "per_dimension", "decoder"):
                raise checks.bad_value(
                    "scale",
                    "a number > 0, 'shared', 'per_dimension' or 'decoder'",
                    repr(scale),
                    "Pass one of these.",
                )
            self.scale: float | str = scale
        else:
            self.scale = checks.positive("scale", scale)
        self.learns_scale_per_column = scale in ("per_dimension", "decoder")
        width = output_width(network)
        if scale == "decoder":
            if width is not None and width % 2:
                raise checks.bad_value(
                    "network",
                    'an even output width for scale="decoder" (means, then log-scales)',
                    str(width),
                    "Give it two outputs for every entry of x.",
                )
        elif scale == "shared":
            self.log_scale = nn.Parameter(torch.zeros(()))
        elif scale == "per_dimension":
            if width is None:
                raise checks.bad_value(
                    "network",
                    'a network that names its output width, for scale="per_dimension"',
                    f"a {type(network).__name__} without out_features",
                    "Set network.out_features to the width of a row of x.",
                )
            self.log_scale = nn.Parameter(torch.zeros(width))

    @classmethod
    def outputs_per_dimension(cls, **options: Any) -> int:
        return 2 if options.get("scale") == "decoder" else 1

    def distribution(self, outputs: Tensor) -> dist.TorchDistribution:
        if self.scale == "decoder":
            loc, log_scale = outputs.chunk(2, dim=-1)
            return dist.Normal(loc, log_scale.exp())
        if isinstance(self.scale, str):
            return dist.Normal(outputs, self.log_scale.exp().expand_as(outputs))
        return dist.Normal(outputs, outputs.new_tensor(self.scale).expand_as(outputs))

    def extra_repr(self) -> str:
        return f"scale={self.scale!r}"
