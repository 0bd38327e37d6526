"""Densities of real x: Gaussian, Laplace, Student's t."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyrovae import checks
from pyrovae.likelihoods.base import REGISTRY, Spread, as_row
from pyrovae.networks import Standardize, standardization


class LocationScale(Spread):
    """Base of families with a location, put out by the decoder, and a scale; both in standard units or in x's."""

    spread_name = "scale"
    standardizes = "x"

    def __init__(
        self, network: nn.Module, scale: float | str = 1.0, standardize: Standardize | None = None
    ) -> None:
        super().__init__(network, scale)
        standardize = standardization(standardize)
        if standardize is not None and standardize.log != (self.standardizes == "log x"):
            raise checks.bad_value(
                "standardize",
                f"a Standardize of {self.standardizes}, as {type(self).__name__} has it",
                repr(standardize),
                f"Pass log={self.standardizes == 'log x'} to it.",
            )
        self.standardize = standardize

    def loc_and_scale(self, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """Location and scale in x's own units, from decoder outputs (..., *row)."""
        loc, log_scale = self.parts(outputs)
        if self.standardize is None:
            return loc, log_scale.exp()
        unit = as_row(self.standardize.scale, loc)
        return as_row(self.standardize.loc, loc) + unit * loc, unit * log_scale.exp()

    def marginal_parts(self, x: Tensor) -> list[Tensor]:
        loc, scale = x.mean(dim=0), x.std(dim=0)
        if self.standardize is None:
            return [loc, scale]
        unit = as_row(self.standardize.scale, loc).to(loc)
        return [(loc - as_row(self.standardize.loc, loc).to(loc)) / unit, scale / unit]


@REGISTRY.register("gaussian")
class Gaussian(LocationScale):
    """P(x | z) = Π_d N(x_d; μ_d(z), σ_d²) for real x: a density, in the units of x.

    Args:
        network: maps (batch, latent_dim) to means of the shape of the rows, (batch, ...); with
            ``scale="decoder"`` to twice as many on the last dim: the means, then the log-scales.
        scale: a number (σ fixed), ``"shared"`` (one σ learned), ``"per_dimension"`` (one learned for
            each entry of x) or ``"decoder"`` (put out by the network).
        standardize: where given, ``network`` and ``scale`` are of standardised x: means and σ are taken back
            to x's units by it. Share it with the encoder.

    Raises:
        ValueError: another scale, or a network whose output width cannot be read or is odd.

    Example:
        >>> import torch
        >>> from pyrovae.networks import MLP
        >>> Gaussian(MLP(2, (8,), 2 * 5), scale="decoder")(torch.zeros(3, 2)).event_shape
        torch.Size([5])
    """

    def distribution(self, outputs: Tensor) -> dist.TorchDistribution:
        return dist.Normal(*self.loc_and_scale(outputs))


@REGISTRY.register("laplace")
class Laplace(LocationScale):
    """P(x | z) = Π_d exp(−|x_d − μ_d(z)| / b_d) / (2 b_d) for real x: a density with heavier tails.

    ``network``, ``scale``, here b, and ``standardize`` as in ``Gaussian``.

    Example:
        >>> import torch
        >>> from pyrovae.networks import MLP
        >>> Laplace(MLP(2, (8,), 5), scale="shared")(torch.zeros(3, 2)).event_shape
        torch.Size([5])
    """

    def distribution(self, outputs: Tensor) -> dist.TorchDistribution:
        return dist.Laplace(*self.loc_and_scale(outputs))


@REGISTRY.register("student_t")
class StudentT(LocationScale):
    """P(x | z) = Π_d t_ν(x_d; μ_d(z), σ_d) for real x: a density whose tails fall like a power.

    ``network``, ``scale`` and ``standardize`` as in ``Gaussian``. The degrees of freedom ν, one for all of x, are learned:
    ν = 1 + exp(``log_excess``), above 1 so that there is a mean; at first 5.

    Example:
        >>> import torch
        >>> from pyrovae.networks import MLP
        >>> StudentT(MLP(2, (8,), 5))(torch.zeros(3, 2)).base_dist.df[0, 0].item()
        5.0
    """

    def __init__(
        self, network: nn.Module, scale: float | str = 1.0, standardize: Standardize | None = None
    ) -> None:
        super().__init__(network, scale, standardize)
        self.log_excess = nn.Parameter(torch.tensor(4.0).log())

    def distribution(self, outputs: Tensor) -> dist.TorchDistribution:
        loc, scale = self.loc_and_scale(outputs)
        return dist.StudentT((1 + self.log_excess.exp()).to(outputs), loc, scale)
