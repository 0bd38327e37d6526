"""Probability masses of counts: Poisson, negative binomial, zero-inflated negative binomial, binomial.

Rates take an offset per row, the logarithm of an exposure such as a sequencing depth, an area or a time.
The offset has to come from outside the scored columns. An offset computed from them, such as the log of the
row's own total, tells the model part of what it predicts. The result is then labelled a pseudo-likelihood.
"""

from __future__ import annotations

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyrovae import arguments, distributions
from pyrovae.likelihoods.base import REGISTRY, Concentrated, Likelihood, log, logit

_LEAST_MEAN = 1e-3  # a column of zeros starts from this mean


@REGISTRY.register("poisson")
class Poisson(Likelihood):
    """P(x | z) = Π_d Poisson(x_d; λ_d(z)) for counts: a mass.

    Args:
        network: returns log λ_d.
        offset: whether every row has the logarithm of an exposure e. The rates are then e λ_d(z). Pass
            ``{"x": rows, "offset": log_e}`` as x.

    Example:
        >>> import torch
        >>> from pyrovae.networks import MLP
        >>> Poisson(MLP(2, (8,), 5))(torch.zeros(3, 2)).event_shape
        torch.Size([5])
    """

    takes = "counts"
    off_support = 'Poisson takes counts 0, 1, 2, …; use "gaussian" for real values.'
    in_double = True

    def __init__(self, network: nn.Module, offset: bool = False) -> None:
        super().__init__(network)
        self.offset = arguments.boolean("offset", offset)

    def link(self, location: float) -> float:
        return log(location)

    def distribution(self, outputs: Tensor) -> dist.TorchDistribution:
        return dist.Poisson(outputs.exp())

    def marginal_outputs(self, x: Tensor) -> list[Tensor]:
        return [x.mean(dim=0).clamp(min=_LEAST_MEAN).log()]


@REGISTRY.register("negative_binomial")
class NegativeBinomial(Concentrated):
    """P(x | z) = Π_d NB(x_d; mean m_d(z), concentration r_d) for counts of variance m + m²/r: a mass.

    Args:
        network: returns log m_d. With ``concentration="decoder"`` it then returns log r_d.
        concentration: a number, ``"shared"``, ``"per_dimension"`` or ``"decoder"``; r → ∞ is Poisson.
        offset: whether every row has the logarithm of an exposure e. The means are then e m_d(z): see ``Poisson``.

    Example:
        >>> import torch
        >>> from pyrovae.networks import MLP
        >>> NegativeBinomial(MLP(2, (8,), 5))(torch.zeros(3, 2)).event_shape
        torch.Size([5])
    """

    takes = "counts"
    off_support = 'It takes counts 0, 1, 2, …; use "gaussian" for real values.'
    is_mass = True

    def __init__(
        self, network: nn.Module, concentration: float | str = "per_dimension", offset: bool = False
    ) -> None:
        super().__init__(network, concentration)
        self.offset = arguments.boolean("offset", offset)

    def link(self, location: float) -> float:
        return log(location)

    def distribution(self, outputs: Tensor) -> dist.TorchDistribution:
        log_mean, log_concentration = self.parts(outputs)
        return dist.NegativeBinomial(log_concentration.exp(), logits=log_mean - log_concentration)

    def marginal_parts(self, x: Tensor) -> list[Tensor]:
        mean = x.mean(dim=0).clamp(min=_LEAST_MEAN)
        excess = (x.var(dim=0) - mean).clamp(min=1e-3)
        return [mean.log(), (mean**2 / excess).clamp(1e-2, 1e3)]


@REGISTRY.register("zero_inflated_negative_binomial")
class ZeroInflatedNegativeBinomial(NegativeBinomial):
    """P(x | z) = Π_d g_d [x_d = 0] + (1 − g_d) NB(x_d; mean m_d, concentration r_d), for counts: a mass.

    Args:
        network: returns log m_d(z), then log r_d if ``concentration="decoder"``, then the logit of g_d(z).
        concentration, offset: as in ``NegativeBinomial``.

    Example:
        >>> import torch
        >>> from pyrovae.networks import MLP
        >>> ZeroInflatedNegativeBinomial(MLP(2, (8,), 2 * 5))(torch.zeros(3, 2)).event_shape
        torch.Size([5])
    """

    off_support = NegativeBinomial.off_support
    family = "ZeroInflated"
    more_outputs = 1

    def distribution(self, outputs: Tensor) -> dist.TorchDistribution:
        log_mean, log_concentration, gate = self.parts(outputs)
        counts = dist.NegativeBinomial(log_concentration.exp(), logits=log_mean - log_concentration)
        return distributions.ZeroInflated(counts, gate_logits=gate)

    def marginal_parts(self, x: Tensor) -> list[Tensor]:
        log_mean, concentration = super().marginal_parts(x)
        return [log_mean, concentration, torch.full_like(log_mean, -3.0)]  # few zeros beyond the counts' own


@REGISTRY.register("binomial")
class Binomial(Likelihood):
    """P(x | z) = Π_d Binomial(x_d; total_count, sigmoid(logit_d(z))) for counts up to ``total_count``: a mass.

    Args:
        network: returns the logits.
        total_count: the largest count.

    Example:
        >>> import torch
        >>> from pyrovae.networks import MLP
        >>> Binomial(MLP(2, (8,), 5), total_count=16)(torch.zeros(3, 2)).event_shape
        torch.Size([5])
    """

    takes = "bounded"
    off_support = 'It takes counts from 0 to total_count: raise total_count, or use "negative_binomial", which has no largest count.'
    in_double = True

    def __init__(self, network: nn.Module, total_count: int) -> None:
        super().__init__(network)
        self.total_count = arguments.integer("total_count", total_count)

    def link(self, location: float) -> float:
        return logit(location / self.total_count)

    def distribution(self, outputs: Tensor) -> dist.TorchDistribution:
        return dist.Binomial(self.total_count, logits=outputs)

    def marginal_outputs(self, x: Tensor) -> list[Tensor]:
        return [torch.logit((x.mean(dim=0) / self.total_count).clamp(1e-3, 1 - 1e-3))]

    def extra_repr(self) -> str:
        return f"total_count={self.total_count}"
