"""Densities of real x: Gaussian, Laplace, Student's t."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyrovae.likelihoods.base import REGISTRY, Spread, as_row
from pyrovae.networks import Standardize, standardization
from pyrovae.refusals import bad_value


class LocationScale(Spread):
    """Base of families with a location from the decoder and a scale, both in standard units or in x's."""

    spread_name = "scale"
    standardizes = "x"
    least_spread = 0.0  # a scale has the units of x, and no fixed bound suits every unit

    def __init__(
        self, network: nn.Module, scale: float | str = 1.0, standardize: Standardize | None = None
    ) -> None:
        super().__init__(network, scale)
        standardize = standardization(standardize)
        if standardize is not None and standardize.log != (self.standardizes == "log x"):
            raise bad_value(
                "standardize",
                f"a Standardize of {self.standardizes}, the quantity that {type(self).__name__} models",
                repr(standardize),
                f"Pass log={self.standardizes == 'log x'} to it.",
            )
        self.standardize = standardize

    def loc_and_scale(self, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """Return location and scale in x's own units, from decoder outputs (..., *row)."""
        loc, log_scale = self.parts(outputs)
        if self.standardize is None:
            return loc, log_scale.exp()
        unit = as_row(self.standardize.scale, loc)
        return as_row(self.standardize.loc, loc) + unit * loc, unit * log_scale.exp()

    def marginal_parts(self, x: Tensor) -> list[Tensor]:
        loc, scale = x.mean(dim=0), x.std(dim=0)
        size = torch.where(loc == 0, 1.0, loc.abs())
        # The mean of a constant column is rounded, and its scale then is that rounding.
        scale = torch.where(scale > 4 * torch.finfo(loc.dtype).eps * loc.abs(), scale, 1e-3 * size)
        if self.standardize is None:
            return [loc, scale]
        unit = as_row(self.standardize.scale, loc).to(loc)
        return [(loc - as_row(self.standardize.loc, loc).to(loc)) / unit, scale / unit]


@REGISTRY.register("gaussian")
class Gaussian(LocationScale):
    """P(x | z) = Π_d N(x_d; μ_d(z), σ_d²) for real x: a density, in the units of x.

    Args:
        network: maps (batch, latent_dim) to means of the shape of the rows, (batch, ...). With
            ``scale="decoder"`` it returns twice as many on the last dim: the means, then the log-scales.
        scale: a number (σ fixed), ``"shared"`` (one σ is learned), ``"per_dimension"`` (one is learned for
            each entry of x) or ``"decoder"`` (the network returns them).
        standardize: if given, ``network`` and ``scale`` refer to standardised x, and ``standardize`` converts
            means and σ to x's units. Pass the same one to the encoder.

    Raises:
        ValueError: the scale is none of these; the output width is needed and cannot be read, or does not fit.

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

    ``network``, ``scale`` (here b) and ``standardize`` are as in ``Gaussian``.

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

    ``network``, ``scale`` and ``standardize`` are as in ``Gaussian``. The degrees of freedom ν are learned, one number for
    all of x: ν = 1 + exp(``log_excess``). They start at 5 and stay above 1, so that the mean exists.

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
