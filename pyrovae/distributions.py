"""Distributions that Pyro and torch lack or compute wrongly at extreme parameters. No networks here."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
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
            return _whole(x).clamp(0, self.levels - 1)

    @property
    def mean(self) -> Tensor:
        # Σ_{k ≥ 1} P(x ≥ k)
        k = torch.arange(1, self.levels, dtype=self.loc.dtype, device=self.loc.device)
        return torch.sigmoid((self.loc[..., None] - k + 0.5) / self.scale[..., None]).sum(-1)


def _whole(draws: Tensor) -> Tensor:
    """Return draws rounded to whole numbers; a zero has no sign."""
    return draws.round() + 0.0


def log_normal_mass(lower: Tensor, upper: Tensor, given: Tensor) -> Tensor:
    """Return log(Φ(upper) − Φ(lower)) for lower < upper, exact to rounding in the tails and for narrow intervals.

    ``given`` is upper − lower, computed without cancellation; it is used for narrow intervals only.

    An interval right of 0 is mirrored, so that both Φ are small. In a narrow interval with midpoint m and width w, the
    difference would lose digits. The result is then log φ(m) + log w + log(1 + w²(m² − 1)/24).
    """
    right = lower + upper > 0
    low, high = torch.where(right, -upper, lower), torch.where(right, -lower, upper)
    low = torch.maximum(low, high.clamp(max=0) - 50)  # the rest is below e^−1000 of the interval's mass
    middle = (high + low) / 2
    # A wide interval may have been cut, and its ends do not cancel.
    width = torch.where(given * (1 + middle.abs()) < 1e-3, given, high - low)
    narrow = width * (1 + middle.abs()) < 1e-3
    above = torch.special.log_ndtr(high)
    gap = torch.where(narrow, torch.ones_like(above), above - torch.special.log_ndtr(low))
    wide = above + torch.where(
        gap < math.log(2), torch.log(-torch.expm1(-gap)), torch.log1p(-torch.exp(-gap))
    )
    small = torch.where(narrow, width, torch.full_like(width, 1e-3))
    bend = torch.where(narrow, small**2 * (middle**2 - 1) / 24, torch.zeros_like(small))
    thin = -(middle**2) / 2 - math.log(2 * math.pi) / 2 + small.log() + torch.log1p(bend)
    return torch.where(narrow, thin, wide)


class RoundedNormal(TorchDistribution):
    """P(k) = Φ((k + ½ − loc)/scale) − Φ((k − ½ − loc)/scale) for whole numbers k: a normal number, rounded.

    With ``log=True`` the logarithm is normal: P(k) is the mass of k − ½ < e^u < k + ½ for k = 0, 1, …. With ``censored=True``
    negative numbers count as 0: P(0) = Φ((½ − loc)/scale), as in Tobin (1958). ``mean`` is the mean before rounding, which is
    within ½ of the mean of k.

    Example:
        >>> fn = RoundedNormal(torch.tensor(0.3), torch.tensor(2.0))
        >>> round(float(fn.log_prob(torch.arange(-40.0, 41.0)).exp().sum()), 5)
        1.0
    """

    arg_constraints: ClassVar[dict[str, Any]] = {"loc": constraints.real, "scale": constraints.positive}

    def __init__(
        self,
        loc: Tensor,
        scale: Tensor,
        log: bool = False,
        censored: bool = False,
        validate_args: bool | None = None,
    ) -> None:
        self.loc, self.scale = broadcast_all(loc, scale)
        self.log, self.censored = log, censored
        super().__init__(self.loc.shape, validate_args=validate_args)

    @property
    def support(self) -> constraints.Constraint:
        return constraints.nonnegative_integer if self.log or self.censored else constraints.integer

    def expand(self, batch_shape: Any, _instance: Any = None) -> RoundedNormal:
        loc, scale = self.loc.expand(Size(batch_shape)), self.scale.expand(Size(batch_shape))
        return RoundedNormal(loc, scale, self.log, self.censored, validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        lower, upper = value - 0.5, value + 0.5
        if self.log:
            width = (1 / lower.clamp(min=0.5)).log1p() / self.scale
            lower, upper = lower.clamp(min=0.5).log(), upper.clamp(min=0.5).log()
        else:
            width = 1 / self.scale
        below, above = (lower - self.loc) / self.scale, (upper - self.loc) / self.scale
        if self.log or self.censored:
            # 0 has no lower bound; beyond 50 scales nothing is left. −∞ would make gradients NaN.
            below = torch.where(value > 0, below, above.clamp(max=0) - 50)
            width = torch.where(value > 0, width, above - below)
        return log_normal_mass(below, above, width)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        with torch.no_grad():
            shape = self._extended_shape(Size(sample_shape))
            drawn = torch.normal(self.loc.expand(shape), self.scale.expand(shape))
            return self._observed(drawn)

    def _observed(self, drawn: Tensor) -> Tensor:
        """Return the whole numbers that normal ones are recorded as."""
        whole = _whole(drawn.exp() if self.log else drawn)
        return whole.clamp(min=0.0) if self.censored else whole

    @property
    def mean(self) -> Tensor:
        if self.log:
            return (self.loc + self.scale**2 / 2).exp()
        if self.censored:
            a = self.loc / self.scale
            density = (-(a**2) / 2).exp() / math.sqrt(2 * math.pi)
            return self.loc * torch.special.ndtr(a) + self.scale * density
        return self.loc

    @property
    def median(self) -> Tensor:
        """The median before rounding, rounded."""
        return self._observed(self.loc)


class EachColumn(constraints.Constraint):
    """A support of single numbers that differs by column of the last dim. ``parts`` holds (columns, support)."""

    def __init__(self, parts: Sequence[tuple[tuple[int, ...], constraints.Constraint]]) -> None:
        self.parts = list(parts)

    @property
    def is_discrete(self) -> bool:  # type: ignore[override]  # a plain attribute in torch
        return all(support.is_discrete for _, support in self.parts)

    def check(self, value: Tensor) -> Tensor:
        inside = torch.ones_like(value, dtype=torch.bool)
        for columns, support in self.parts:
            inside[..., list(columns)] = support.check(value[..., list(columns)])
        return inside

    def __repr__(self) -> str:
        return ", ".join(f"{support} in columns {list(columns)}" for columns, support in self.parts)


class ByColumn(TorchDistribution):
    """Independent columns, each of its own family: batch shape (..., columns), no event dims.

    Args:
        fns: for each group of columns a distribution of batch shape (..., columns of the group), no event dims.
        columns: the numbers of the columns in each group.
        order: the same numbers in one tensor, shape (columns,), int64.
        inverse: the place of every column in ``order``.

    Example:
        >>> order = torch.tensor([1, 0])
        >>> fns = [dist.Poisson(torch.ones(3, 1)), dist.Normal(torch.zeros(3, 1), 1.0)]
        >>> fn = ByColumn(fns, [[1], [0]], order, order)
        >>> fn.log_prob(torch.tensor([[0.0, 2.0]]))[0]
        tensor([-0.9189, -1.6931])
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}

    def __init__(
        self,
        fns: Sequence[TorchDistribution],
        columns: Sequence[Sequence[int]],
        order: Tensor,
        inverse: Tensor,
    ) -> None:
        self.fns, self.columns, self.order, self.inverse = list(fns), columns, order, inverse
        # The groups' distributions validate values themselves.
        super().__init__(Size((*fns[0].batch_shape[:-1], len(order))), validate_args=False)

    @property
    def support(self) -> EachColumn:
        supports: list[Any] = [fn.support for fn in self.fns]
        return EachColumn([(tuple(c), each) for c, each in zip(self.columns, supports, strict=True)])

    def expand(self, batch_shape: Any, _instance: Any = None) -> ByColumn:
        lead = Size(batch_shape)[:-1]
        fns = [fn.expand(Size((*lead, fn.batch_shape[-1]))) for fn in self.fns]
        return ByColumn(fns, self.columns, self.order, self.inverse)

    def joined(self, values: Sequence[Tensor]) -> Tensor:
        """Return the groups' values, each (..., columns of the group), in the order of the columns."""
        return torch.cat(list(values), dim=-1).index_select(-1, self.inverse)

    def each(self, log_prob: Callable[[TorchDistribution, Tensor], Tensor], value: Tensor) -> Tensor:
        """Return ``log_prob`` of every group and its columns of ``value``, in the order of the columns."""
        values = value.index_select(-1, self.order).split([len(each) for each in self.columns], dim=-1)
        return self.joined([log_prob(fn, part) for fn, part in zip(self.fns, values, strict=True)])

    def log_prob(self, value: Tensor) -> Tensor:
        return self.each(lambda fn, part: fn.log_prob(part), value)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        return self.joined([fn.sample(Size(sample_shape)) for fn in self.fns])

    @property
    def mean(self) -> Tensor:
        return self.joined([fn.mean for fn in self.fns])

    @property
    def typical(self) -> Tensor:
        """The most probable level of columns with levels, the median of rounded numbers, the mean of all others."""
        return self.joined([_typical(fn) for fn in self.fns])


def _typical(fn: Any) -> Tensor:
    if isinstance(fn, InDouble):
        return _typical(fn.base_dist).to(fn.dtype)
    if isinstance(fn, Levels):
        return fn.logits.argmax(dim=-1).to(fn.logits.dtype)
    if isinstance(fn, dist.Bernoulli):
        return (fn.mean > 0.5).to(fn.mean.dtype)
    return fn.median if isinstance(fn, RoundedNormal) else fn.mean
