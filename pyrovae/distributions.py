"""Distributions that Pyro and torch lack or compute wrongly at extreme parameters. No networks here."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Size, Tensor
from torch.distributions.utils import broadcast_all
from torch.nn.functional import logsigmoid


class InDouble(TorchDistribution):
    """A distribution that is computed in float64 for values and results of another dtype.

    In float32 the terms of a count's log-probability cancel. For counts of a million, each term is 1e7 nats and
    their difference is wrong by one nat. The base distribution has float64 parameters. Samples, means,
    variances and log-probabilities are returned in ``dtype``.

    Example:
        >>> fn = InDouble(dist.Poisson(torch.tensor(1e6, dtype=torch.float64)), torch.float32)
        >>> round(float(fn.log_prob(torch.tensor(1e6))), 3)
        -7.827
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}

    def __init__(self, base_dist: TorchDistribution, dtype: torch.dtype) -> None:
        self.base_dist, self.dtype = base_dist, dtype
        # The base distribution validates values itself.
        super().__init__(base_dist.batch_shape, base_dist.event_shape, validate_args=False)

    @property
    def support(self) -> Any:
        return self.base_dist.support

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]  # a plain attribute in torch
        return self.base_dist.has_rsample

    @property
    def mean(self) -> Tensor:
        return self.base_dist.mean.to(self.dtype)

    @property
    def variance(self) -> Tensor:
        return self.base_dist.variance.to(self.dtype)

    def expand(self, batch_shape: Any, _instance: Any = None) -> InDouble:
        return InDouble(self.base_dist.expand(Size(batch_shape)), self.dtype)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        return self.base_dist.sample(Size(sample_shape)).to(self.dtype)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        return self.base_dist.rsample(Size(sample_shape)).to(self.dtype)

    def log_prob(self, value: Tensor) -> Tensor:
        return self.base_dist.log_prob(value.double()).to(self.dtype)


class ContinuousBernoulli(TorchDistribution):
    """p(x) = η e^{ηx} / (e^η − 1) on [0, 1], with logit η; uniform at η = 0.

    torch's ContinuousBernoulli clamps the probability to the float's resolution, which turns |η| = 100 into 16
    and changes the likelihood. Loaiza-Ganem and Cunningham (2019).

    Example:
        >>> float(ContinuousBernoulli(torch.tensor(0.0)).log_prob(torch.tensor(0.3)).exp())
        1.0
    """

    arg_constraints: ClassVar[dict[str, Any]] = {"logits": constraints.real}
    support = constraints.unit_interval
    has_rsample = True

    def __init__(self, logits: Tensor, validate_args: bool | None = None) -> None:
        self.logits = logits
        super().__init__(logits.shape, validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> ContinuousBernoulli:
        return ContinuousBernoulli(self.logits.expand(Size(batch_shape)), validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        logits, value = broadcast_all(self.logits, value)
        # log((e^η − 1)/η) = max(η, 0) + log((1 − e^−t)/t), t = |η|; a series replaces it near 0
        t, near = logits.abs(), logits.abs() < 1e-2
        safe = torch.where(near, torch.ones_like(t), t)
        log_ratio = torch.where(near, -t / 2 + t**2 / 24, torch.log(-torch.expm1(-safe) / safe))
        return logits * value - logits.clamp(min=0) - log_ratio

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        shape = self._extended_shape(Size(sample_shape))
        u = torch.rand(shape, dtype=self.logits.dtype, device=self.logits.device)
        t, near = self.logits.abs().expand(shape), (self.logits.abs() < 1e-4).expand(shape)
        safe = torch.where(near, torch.ones_like(t), t)
        # The quantile function for η < 0. For η > 0, the result is mirrored.
        low = torch.where(near, u, -torch.log1p(u * torch.expm1(-safe)) / safe).clamp(0, 1)
        return torch.where(self.logits.expand(shape) > 0, 1 - low, low)

    @property
    def mean(self) -> Tensor:
        # 1/(1 − e^−η) − 1/η; a series replaces it near 0
        near = self.logits.abs() < 1e-2
        safe = torch.where(near, torch.ones_like(self.logits), self.logits)
        return torch.where(near, 0.5 + self.logits / 12, -1 / torch.expm1(-safe) - 1 / safe)


class Levels(dist.Categorical):
    """A categorical distribution over levels 0, 1, … as floats, whose mean is the mean level, Σ_k k P(k).

    Example:
        >>> round(float(Levels(logits=torch.zeros(3)).mean), 5)
        1.0
    """

    @property
    def mean(self) -> Tensor:
        levels = torch.arange(self.logits.shape[-1], dtype=self.logits.dtype, device=self.logits.device)
        return (self.logits.exp() * levels).sum(-1)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        return super().sample(Size(sample_shape)).to(self.logits.dtype)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Levels:
        batch_shape = Size(batch_shape)
        return Levels(logits=self.logits.expand(batch_shape + self.logits.shape[-1:]), validate_args=False)


class ZeroInflated(dist.ZeroInflatedDistribution):
    """Pyro's zero-inflated distribution, with the logits of its gate, whose ``expand`` also works after sampling."""

    def expand(self, batch_shape: Any, _instance: Any = None) -> ZeroInflated:
        batch_shape = Size(batch_shape)
        return ZeroInflated(
            self.base_dist.expand(batch_shape),
            gate_logits=self.gate_logits.expand(batch_shape),
            validate_args=False,
        )


def log_sigmoid_difference(upper: Tensor, lower: Tensor) -> Tensor:
    """Return log(σ(upper) − σ(lower)) = log σ(upper) + log σ(−lower) + log(1 − e^(lower − upper)), upper > lower."""
    width = upper - lower
    # log(1 − e^−w): one formula for small w, one for large w (Mächler 2012)
    log_gap = torch.where(
        width < math.log(2), torch.log(-torch.expm1(-width)), torch.log1p(-torch.exp(-width))
    )
    return logsigmoid(upper) + logsigmoid(-lower) + log_gap


class DiscretizedLogistic(TorchDistribution):
    """P(k) = σ((k + ½ − loc)/scale) − σ((k − ½ − loc)/scale) for levels k = 0 … levels − 1.

    The lowest and the highest level also get the mass beyond them. ``loc`` and ``scale`` are in levels.
    Salimans, Karpathy, Chen and Kingma (2017).

    Example:
        >>> fn = DiscretizedLogistic(torch.tensor(100.0), torch.tensor(5.0), levels=256)
        >>> round(float(fn.log_prob(torch.arange(256.0)).exp().sum()), 5)
        1.0
    """

    arg_constraints: ClassVar[dict[str, Any]] = {"loc": constraints.real, "scale": constraints.positive}

    def __init__(self, loc: Tensor, scale: Tensor, levels: int, validate_args: bool | None = None) -> None:
        self.loc, self.scale = broadcast_all(loc, scale)
        self.levels = levels
        super().__init__(self.loc.shape, validate_args=validate_args)

    @property
    def support(self) -> constraints.Constraint:
        return constraints.integer_interval(0, self.levels - 1)

    def expand(self, batch_shape: Any, _instance: Any = None) -> DiscretizedLogistic:
        batch_shape = Size(batch_shape)
        loc, scale = self.loc.expand(batch_shape), self.scale.expand(batch_shape)
        return DiscretizedLogistic(loc, scale, self.levels, validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        upper, lower = (value + 0.5 - self.loc) / self.scale, (value - 0.5 - self.loc) / self.scale
        inside = log_sigmoid_difference(upper, lower)
        first, last = logsigmoid(upper), logsigmoid(-lower)
        return torch.where(value == 0, first, torch.where(value == self.levels - 1, last, inside))

    def sample(self, sample_shape: Any = ()) -> Tensor:
        with torch.no_grad():
            u = torch.rand(
                self._extended_shape(Size(sample_shape)), dtype=self.loc.dtype, device=self.loc.device
            )
            x = self.loc + self.scale * torch.logit(u)
            return x.round().clamp(0, self.levels - 1)

    @property
    def mean(self) -> Tensor:
        # Σ_{k ≥ 1} P(x ≥ k)
        k = torch.arange(1, self.levels, dtype=self.loc.dtype, device=self.loc.device)
        return torch.sigmoid((self.loc[..., None] - k + 0.5) / self.scale[..., None]).sum(-1)
