"""Densities of positive x and of x in [0, 1]."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints
from torch.nn.functional import logsigmoid

from pyrovae import distributions
from pyrovae.likelihoods.base import REGISTRY, Concentrated, Likelihood, log, logit
from pyrovae.likelihoods.real import LocationScale


class _Inside(constraints.Constraint):
    """Numbers strictly between 0 and 1."""

    def check(self, value: Tensor) -> Tensor:
        return (value > 0) & (value < 1)

    def __repr__(self) -> str:
        return "0 < x < 1"


_INSIDE = 1e-3  # training starts from marginal means at least this far inside [0, 1]


@REGISTRY.register("log_normal")
class LogNormal(LocationScale):
    """log x_d ~ N(μ_d(z), σ_d²) for positive x: a density of x itself, Jacobian included.

    ``network``, ``scale`` and ``standardize`` are as in ``Gaussian``, but refer to log x.

    Example:
        >>> import torch
        >>> from pyrovae.networks import MLP
        >>> LogNormal(MLP(2, (8,), 5))(torch.zeros(3, 2)).event_shape
        torch.Size([5])
    """

    takes = "positive"
    off_support = 'LogNormal takes positive numbers; use "gaussian" if zeros or negatives occur.'
    inside = constraints.positive
    standardizes = "log x"

    def distribution(self, outputs: Tensor) -> dist.TorchDistribution:
        return dist.LogNormal(*self.loc_and_scale(outputs))

    def marginal_parts(self, x: Tensor) -> list[Tensor]:
        return super().marginal_parts(x.log())


@REGISTRY.register("gamma")
class Gamma(Concentrated):
    """P(x | z) = Π_d Gamma(x_d; a_d, a_d / m_d(z)) for positive x, with mean m_d and concentration a_d.

    Args:
        network: returns log m_d. With ``concentration="decoder"`` it then returns log a_d.
        concentration: a number, ``"shared"``, ``"per_dimension"`` or ``"decoder"``; the variance is m²/a.

    Example:
        >>> import torch
        >>> from pyrovae.networks import MLP
        >>> Gamma(MLP(2, (8,), 5))(torch.zeros(3, 2)).event_shape
        torch.Size([5])
    """

    takes = "positive"
    off_support = 'Gamma takes positive numbers; use "gaussian" if zeros or negatives occur.'
    inside = constraints.positive

    def check_rows(self, x: Tensor, names: Sequence[Any] | None = None) -> None:
        if self.concentration != 1:  # an exponential distribution has a finite density at 0
            super().check_rows(x, names)

    def link(self, location: float) -> float:
        return log(location)

    def distribution(self, outputs: Tensor) -> dist.TorchDistribution:
        log_mean, log_concentration = self.parts(outputs)
        return dist.Gamma(log_concentration.exp(), (log_concentration - log_mean).exp())

    def marginal_parts(self, x: Tensor) -> list[Tensor]:
        mean = x.mean(dim=0)
        return [mean.log(), ((mean / x.std(dim=0)) ** 2).clamp(max=1e6)]


@REGISTRY.register("beta")
class Beta(Concentrated):
    """P(x | z) = Π_d Beta(x_d; c_d m_d, c_d (1 − m_d)) for x inside (0, 1), m_d(z) the mean, c_d the concentration.

    Args:
        network: returns the logit of m_d. With ``concentration="decoder"`` it then returns log c_d.
        concentration: a number, ``"shared"``, ``"per_dimension"`` or ``"decoder"``.

    Example:
        >>> import torch
        >>> from pyrovae.networks import MLP
        >>> Beta(MLP(2, (8,), 5))(torch.zeros(3, 2)).event_shape
        torch.Size([5])
    """

    takes = "bounded"
    off_support = 'Use "continuous_bernoulli" if exact 0 or 1 occur, "gaussian" if values leave [0, 1].'
    inside = _Inside()

    def link(self, location: float) -> float:
        return logit(location)

    def distribution(self, outputs: Tensor) -> dist.TorchDistribution:
        logits, log_concentration = self.parts(outputs)
        return dist.Beta(
            (log_concentration + logsigmoid(logits)).exp(), (log_concentration + logsigmoid(-logits)).exp()
        )

    def marginal_parts(self, x: Tensor) -> list[Tensor]:
        mean = x.mean(dim=0).clamp(_INSIDE, 1 - _INSIDE)
        return [torch.logit(mean), (mean * (1 - mean) / x.var(dim=0).clamp(min=1e-6) - 1).clamp(min=0.1)]


@REGISTRY.register("continuous_bernoulli")
class ContinuousBernoulli(Likelihood):
    """P(x | z) = Π_d η_d e^(η_d x_d) / (e^η_d − 1) for x in [0, 1], such as grey pixels: a density.

    ``network`` returns η. A Bernoulli likelihood of grey pixels is not normalised; this density is
    (Loaiza-Ganem and Cunningham 2019).

    Example:
        >>> import torch
        >>> from pyrovae.networks import MLP
        >>> ContinuousBernoulli(MLP(2, (8,), 5))(torch.zeros(3, 2)).event_shape
        torch.Size([5])
    """

    takes = "bounded"
    off_support = 'It takes numbers in [0, 1]: divide by the largest value, or use "gaussian".'

    def link(self, location: float) -> float:
        if location in (0, 1):
            return math.inf if location else -math.inf
        low, high = -1 / location, 1 / (1 - location)  # at these outputs, the mean is below and above
        while low < (middle := (low + high) / 2) < high:
            mean = distributions.ContinuousBernoulli(torch.tensor(middle, dtype=torch.float64)).mean
            low, high = (middle, high) if mean < location else (low, middle)
        return low

    def distribution(self, outputs: Tensor) -> dist.TorchDistribution:
        return distributions.ContinuousBernoulli(outputs)

    def marginal_outputs(self, x: Tensor) -> list[Tensor]:
        # Newton's method solves mean(logit) = column mean; the slope comes from a finite difference.
        target = x.mean(dim=0).clamp(_INSIDE, 1 - _INSIDE)
        logits = 12 * (target - 0.5)
        for _ in range(50):
            mean = distributions.ContinuousBernoulli(logits).mean
            nearby = distributions.ContinuousBernoulli(logits + 1e-4).mean
            logits = (logits - (mean - target) / ((nearby - mean) / 1e-4)).clamp(-1e3, 1e3)
        return [logits]
