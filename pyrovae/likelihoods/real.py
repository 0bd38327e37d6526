"""Densities of real x: Gaussian, Laplace, Student's t."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyrovae.likelihoods.base import REGISTRY, Spread


class LocationScale(Spread):
    """Base of families with a location, put out by the decoder, and a scale."""

    spread_name = "scale"

    def __init__(self, network: nn.Module, scale: float | str = 1.0) -> None:
        super().__init__(network, scale)

    def marginal_parts(self, x: Tensor) -> list[Tensor]:
        return [x.mean(dim=0), x.std(dim=0)]


@REGISTRY.register("gaussian")
class Gaussian(LocationScale):
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

    def distribution(self, outputs: Tensor) -> dist.TorchDistribution:
        loc, log_scale = self.parts(outputs)
        return dist.Normal(loc, log_scale.exp())


@REGISTRY.register("laplace")
class Laplace(LocationScale):
    """P(x | z) = Π_d exp(−|x_d − μ_d(z)| / b_d) / (2 b_d) for real x: a density with heavier tails.

    ``network`` and ``scale``, here b, as in ``Gaussian``.

    Example:
        >>> import torch
        >>> from pyrovae.networks import MLP
        >>> Laplace(MLP(2, (8,), 5), scale="shared")(torch.zeros(3, 2)).event_shape
        torch.Size([5])
    """

    def distribution(self, outputs: Tensor) -> dist.TorchDistribution:
        loc, log_scale = self.parts(outputs)
        return dist.Laplace(loc, log_scale.exp())


@REGISTRY.register("student_t")
class StudentT(LocationScale):
    """P(x | z) = Π_d t_ν(x_d; μ_d(z), σ_d) for real x: a density whose tails fall like a power.

    ``network`` and ``scale`` as in ``Gaussian``. The degrees of freedom ν, one for all of x, are learned:
    ν = 1 + exp(``log_excess``), above 1 so that there is a mean; at first 5.

    Example:
        >>> import torch
        >>> from pyrovae.networks import MLP
        >>> StudentT(MLP(2, (8,), 5))(torch.zeros(3, 2)).base_dist.df[0, 0].item()
        5.0
    """

    def __init__(self, network: nn.Module, scale: float | str = 1.0) -> None:
        super().__init__(network, scale)
        self.log_excess = nn.Parameter(torch.tensor(4.0).log())

    def distribution(self, outputs: Tensor) -> dist.TorchDistribution:
        loc, log_scale = self.parts(outputs)
        return dist.StudentT((1 + self.log_excess.exp()).to(outputs), loc, log_scale.exp())
