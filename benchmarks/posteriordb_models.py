"""Posteriors of posteriordb whose log evidence is defined, as Pyro models of one row.

The row is the whole data set, so that log P(x) of the row is the log evidence of the posterior. Every latent is inside the
plate over rows. ``PyroMCMC`` fits the same model. To add a posterior: write a builder that returns a ``Posterior`` and add a
line to ``POSTERIORS``.

All densities are normalised on their constrained space. "convention" says how for half and ordered priors.
"""

from __future__ import annotations

import json
import math
import os
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions import constraints
from torch import Tensor
from torch.distributions import biject_to

Draws = dict[str, Tensor]


@dataclass(frozen=True)
class Posterior:
    """One line of the table.

    Attributes:
        convention: how half and ordered priors are normalised, in a phrase.
        prior: samples the latents of a row, inside the plate.
        likelihood: of the latents, shapes (..., event): the distribution of a row.
        x: the row, (1, columns), float64.
        rough: location and scale of each latent's guide, on the unconstrained scale.
        offset: constant that is added to log P(x), for a likelihood that is not normalised.
        relabel: of draws and a generator: the same draws with labels in random order, where labels can be exchanged.
        reference: the draws of posteriordb, and a function that turns them into latents of the model; None without.
        other: a posterior whose chains mix, and a function that turns its latents into those of this one; None where
            chains of the posterior itself do.
    """

    convention: str
    prior: Callable[[], Draws]
    likelihood: Callable[[Draws], dist.TorchDistribution]
    x: Tensor
    rough: dict[str, tuple[Any, Any]]
    offset: float = 0.0
    relabel: Callable[[Draws, torch.Generator], Draws] | None = None
    reference: tuple[str, Callable[[Draws], Draws]] | None = None
    other: tuple[str, Callable[[Draws], Draws]] | None = None

    def __post_init__(self) -> None:
        _ = self.sites  # traced here, outside of plates

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            latents = self.prior()
            pyro.sample("x", self.likelihood(latents), obs=x)

    def guide(self, x: Tensor) -> None:
        """Independent Gaussians on the unconstrained scale, which do not read x."""
        with pyro.plate("data", len(x)):
            for name, site in self.sites.items():
                loc, scale = (torch.as_tensor(value, dtype=torch.float64) for value in self.rough[name])
                onto = biject_to(site.support)
                shape = onto.inverse_shape(site.event_shape)
                base = dist.Normal(loc.expand(shape), scale.expand(shape)).to_event(len(shape))
                pyro.sample(name, dist.TransformedDistribution(base, onto))

    @cached_property
    def sites(self) -> dict[str, dist.TorchDistribution]:
        """The distribution of every latent, given one draw of the others, without a batch."""
        trace = poutine.trace(self.prior).get_trace()
        return {name: trace.nodes[name]["fn"] for name in self.rough}

    def log_density(self, draws: Draws) -> Tensor:
        """log P(x, latents) of draws of shape (n, ...), shape (n,), with ``offset``."""
        values = {name: value.unsqueeze(1) for name, value in draws.items()}
        trace = poutine.trace(poutine.condition(self.model, values)).get_trace(self.x)
        terms = [trace.nodes[name] for name in (*self.rough, "x")]
        found = sum(node["fn"].log_prob(node["value"]) for node in terms)
        return found.squeeze(1) + self.offset

    def unconstrained(self, u: Tensor) -> Tensor:
        """``log_density`` of the latents at u, (n, dim), as a density of u, shape (n,)."""
        draws, log_det = self._from_line(u)
        return self.log_density(draws) + log_det

    def from_line(self, u: Tensor) -> Draws:
        """Return latents of real vectors, shape (..., dim)."""
        return self._from_line(u)[0]

    def to_line(self, draws: Draws) -> Tensor:
        """Return the real vectors of latents, shape (..., dim): the inverse of ``from_line``."""
        parts = []
        for name, site in self.sites.items():
            head = draws[name].shape[: draws[name].dim() - len(site.event_shape)]
            parts.append(biject_to(site.support).inv(draws[name]).reshape(*head, -1))
        return torch.cat(parts, dim=-1)

    def _from_line(self, u: Tensor) -> tuple[Draws, Tensor]:
        draws, log_det, start = {}, u.new_zeros(u.shape[:-1]), 0
        for name, site in self.sites.items():
            onto = biject_to(site.support)
            shape = onto.inverse_shape(site.event_shape)
            part = u[..., start : start + shape.numel()].reshape(*u.shape[:-1], *shape)
            start += shape.numel()
            draws[name] = onto(part)
            jacobian = onto.log_abs_det_jacobian(part, draws[name])
            log_det = log_det + jacobian.reshape(*u.shape[:-1], -1).sum(dim=-1)
        return draws, log_det

    @cached_property
    def rough_centre(self) -> Tensor:
        """The location of the guide, (dim,)."""
        parts = []
        for name, site in self.sites.items():
            shape = biject_to(site.support).inverse_shape(site.event_shape)
            parts.append(torch.as_tensor(self.rough[name][0], dtype=torch.float64).expand(shape).reshape(-1))
        return torch.cat(parts)

    @property
    def dim(self) -> int:
        return sum(site.event_shape.numel() for site in self.sites.values())


# ---------------------------------------------------------------------------------------------------------------------
# Distributions


class _OfParameters(dist.TorchDistribution):
    """A distribution of tensors whose first dimensions are the batch; ``dims`` are the event dimensions of each."""

    arg_constraints: ClassVar[dict[str, Any]] = {}
    has_rsample = False
    dims: ClassVar[dict[str, int]]

    def __init__(self, event_shape: tuple[int, ...], **parameters: Tensor) -> None:
        self.parameters = parameters
        heads = [value.shape[: value.dim() - self.dims[name]] for name, value in parameters.items()]
        super().__init__(torch.broadcast_shapes(*heads), torch.Size(event_shape), validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> _OfParameters:
        batch_shape = torch.Size(batch_shape)
        new = type(self).__new__(type(self))
        new.__dict__.update(self.__dict__)
        new.parameters = {
            name: value.expand(batch_shape + value.shape[value.dim() - self.dims[name] :])
            for name, value in self.parameters.items()
        }
        dist.TorchDistribution.__init__(new, batch_shape, self.event_shape, validate_args=False)
        return new

    def _of(self, name: str, sample_shape: Any) -> Tensor:
        """A parameter in the shape of samples, for ``sample``."""
        shape = torch.Size(sample_shape) + self.batch_shape
        value = self.parameters[name]
        return value.expand(shape + value.shape[value.dim() - self.dims[name] :])


class Ordered(_OfParameters):
    """Independent Gaussians restricted to increasing order, and to positive numbers if ``positive``.

    The density is that of the Gaussians divided by the probability of the restriction, from the trapezoidal rule.
    """

    dims: ClassVar[dict[str, int]] = {"loc": 1, "scale": 1}

    def __init__(self, loc: list[float], scale: list[float], positive: bool = False) -> None:
        self.positive = positive
        self.log_share = math.log(_share_in_order(loc, scale, positive))
        super().__init__(
            (len(loc),),
            loc=torch.tensor(loc, dtype=torch.float64),
            scale=torch.tensor(scale, dtype=torch.float64),
        )

    @property
    def support(self) -> Any:
        return constraints.positive_ordered_vector if self.positive else constraints.ordered_vector

    def log_prob(self, value: Tensor) -> Tensor:
        loc, scale = self.parameters["loc"], self.parameters["scale"]
        each = -0.5 * ((value - loc) / scale) ** 2 - scale.log() - 0.5 * math.log(2 * math.pi)
        inside = (value[..., 1:] > value[..., :-1]).all(dim=-1)
        if self.positive:
            inside = inside & (value[..., 0] > 0)
        return torch.where(inside, each.sum(dim=-1) - self.log_share, -math.inf)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        loc, scale = self._of("loc", sample_shape), self._of("scale", sample_shape)
        found = torch.normal(loc, scale)
        for _ in range(10_000):
            wrong = (found[..., 1:] <= found[..., :-1]).any(dim=-1)
            if self.positive:
                wrong = wrong | (found[..., 0] <= 0)
            if not bool(wrong.any()):
                break
            found = torch.where(wrong[..., None], torch.normal(loc, scale), found)
        return found


def _share_in_order(loc: list[float], scale: list[float], positive: bool) -> float:
    """The probability that two Gaussians are in increasing order, and positive."""
    reach = torch.linspace(-12, 12, 400_001, dtype=torch.float64)
    first, other = (torch.distributions.Normal(m, s) for m, s in zip(loc, scale, strict=True))
    values = loc[0] + scale[0] * reach
    if positive:
        values = torch.linspace(0.0, loc[0] + 12 * scale[0], 400_001, dtype=torch.float64)
    integrand = first.log_prob(values).exp() * (1 - other.cdf(values))
    return float(torch.trapezoid(integrand, values))


class Autoregression(_OfParameters):
    """y_t ~ N(α + Σ β_k y_{t−k}, σ) given the numbers before the first."""

    dims: ClassVar[dict[str, int]] = {"alpha": 0, "beta": 1, "sigma": 0}
    support = constraints.real_vector

    def __init__(self, past: Tensor, length: int, **parameters: Tensor) -> None:
        self.past = past
        super().__init__((length,), **parameters)

    def log_prob(self, value: Tensor) -> Tensor:
        alpha, beta, sigma = self.parameters.values()
        order = len(self.past)
        whole = torch.cat([self.past.expand(*value.shape[:-1], order), value], dim=-1)
        lags = whole.unfold(-1, order, 1)[..., :-1, :].flip(-1)  # (..., times, order)
        loc = alpha[..., None] + (lags @ beta[..., None])[..., 0]
        return dist.Normal(loc, sigma[..., None]).log_prob(value).sum(dim=-1)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        alpha, beta, sigma = (self._of(name, sample_shape) for name in self.parameters)
        found = [value.expand(alpha.shape) for value in self.past]
        for _ in range(self.event_shape[0]):
            loc = alpha + sum(beta[..., k] * found[-1 - k] for k in range(len(self.past)))
            found.append(torch.normal(loc, sigma))
        return torch.stack(found[len(self.past) :], dim=-1)


class MovingAverage(_OfParameters):
    """ARMA(1, 1): y_t = μ + φ y_{t−1} + θ ε_{t−1} + ε_t, ε_t ~ N(0, σ), with y_0 = μ and ε_0 = 0."""

    dims: ClassVar[dict[str, int]] = {"mu": 0, "phi": 0, "theta": 0, "sigma": 0}
    support = constraints.real_vector

    def log_prob(self, value: Tensor) -> Tensor:
        mu, phi, theta, sigma = (parameter[..., None] for parameter in self.parameters.values())
        shape = torch.broadcast_shapes(value.shape[:-1], mu.shape[:-1])
        before = torch.cat([mu.expand(*shape, 1), value[..., :-1].expand(*shape, -1)], dim=-1)
        error = value - mu - phi * before  # ε_t + θ ε_{t−1}
        factor, step = -theta, 1
        while step < value.shape[-1]:  # ε_t = Σ_k (−θ)^k error_{t−k}, by doubling
            shifted = torch.nn.functional.pad(error, (step, 0))[..., :-step]
            error, factor, step = error + factor * shifted, factor**2, 2 * step
        return dist.Normal(torch.zeros_like(error), sigma).log_prob(error).sum(dim=-1)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        mu, phi, theta, sigma = (self._of(name, sample_shape) for name in self.parameters)
        before, error, found = mu, torch.zeros_like(mu), []
        for _ in range(self.event_shape[0]):
            loc = mu + phi * before + theta * error
            before = torch.normal(loc, sigma)
            error = before - loc
            found.append(before)
        return torch.stack(found, dim=-1)


class TwoStates(_OfParameters):
    """A hidden Markov chain of two states; the first one has probability 1/2 each.

    ``first`` is the probability of state 1 after each state. ``emission`` maps ``parameters`` other than ``first``, shapes
    (..., 2), to a distribution of a time's numbers with batch shape (..., 2) and event shape (width,).
    """

    dims: ClassVar[dict[str, int]] = {"first": 1, "one": 1, "other": 1}
    support = constraints.real_vector

    def __init__(self, times: int, emission: Callable[..., Any], **parameters: Tensor) -> None:
        self.times, self.emission = times, emission
        width = emission(*list(parameters.values())[1:]).event_shape[0]
        super().__init__((times * width,), **parameters)

    def log_prob(self, value: Tensor) -> Tensor:
        first, *others = self.parameters.values()
        given = value.unflatten(-1, (self.times, 1, -1))  # (..., times, 1, width)
        emitted = self.emission(*(p[..., None, :] for p in others)).log_prob(given)  # (..., times, 2)
        moves = torch.stack([first.log(), torch.log1p(-first)], dim=-1)  # (..., from, to)
        chain = moves[..., None, :, :] + emitted[..., 1:, None, :]
        chain = _product(chain)
        start = emitted[..., 0, :] - math.log(2)
        return torch.logsumexp(start[..., :, None] + chain, dim=(-2, -1))

    def sample(self, sample_shape: Any = ()) -> Tensor:
        first, *others = (self._of(name, sample_shape) for name in self.parameters)
        second = (torch.rand(first.shape[:-1]) < 0.5).long()
        states = [second]
        for _ in range(self.times - 1):
            stays = torch.gather(first, -1, states[-1][..., None])[..., 0]
            states.append((torch.rand(stays.shape) >= stays).long())
        state = torch.stack(states, dim=-1)  # (..., times)
        each = [torch.gather(p, -1, state)[..., None] for p in others]
        return self.emission(*each).sample()[..., 0, :].flatten(-2)


def _product(logs: Tensor) -> Tensor:
    """Log of the product of matrices along dim −3, pairwise, shape (..., times, 2, 2) → (..., 2, 2)."""
    while logs.shape[-3] > 1:
        even = logs.shape[-3] // 2 * 2
        left, right = logs[..., :even:2, :, :], logs[..., 1:even:2, :, :]
        joined = torch.logaddexp(left[..., :, :1] + right[..., :1, :], left[..., :, 1:] + right[..., 1:, :])
        logs = torch.cat([joined, logs[..., even:, :, :]], dim=-3)
    return logs[..., 0, :, :]


class Dogs(_OfParameters):
    """y_jt ~ Bernoulli, logit = β₁ + β₂ · avoidances so far + β₃ · shocks so far (y = 1 is a shock)."""

    dims: ClassVar[dict[str, int]] = {"beta": 1}

    def __init__(self, dogs: int, trials: int, beta: Tensor) -> None:
        self.sizes = dogs, trials
        super().__init__((dogs * trials,), beta=beta)

    @property
    def support(self) -> Any:
        return constraints.independent(constraints.boolean, 1)

    def log_prob(self, value: Tensor) -> Tensor:
        y = value.unflatten(-1, self.sizes)
        shocks = y.cumsum(dim=-1) - y
        avoided = torch.arange(self.sizes[1], dtype=y.dtype) - shocks
        beta = self.parameters["beta"][..., None, None]
        logits = beta[..., 0, :, :] + beta[..., 1, :, :] * avoided + beta[..., 2, :, :] * shocks
        return (y * logits - torch.nn.functional.softplus(logits)).sum(dim=(-2, -1))

    def sample(self, sample_shape: Any = ()) -> Tensor:
        beta = self._of("beta", sample_shape)[..., None, :]
        shocks = torch.zeros((*beta.shape[:-2], self.sizes[0]), dtype=torch.float64)
        found = []
        for trial in range(self.sizes[1]):
            logits = beta[..., 0] + beta[..., 1] * (trial - shocks) + beta[..., 2] * shocks
            found.append(torch.bernoulli(torch.sigmoid(logits)))
            shocks = shocks + found[-1]
        return torch.stack(found, dim=-1).flatten(-2)


# ---------------------------------------------------------------------------------------------------------------------
# Posteriors


def folder() -> Path | None:
    """posteriordb below $PYROVAE_DATA, or None."""
    found = Path(os.environ["PYROVAE_DATA"]) / "posteriordb" if "PYROVAE_DATA" in os.environ else None
    return found if found is not None and found.is_dir() else None


def read(path: Path) -> Any:
    with zipfile.ZipFile(path) as archive:
        return json.loads(archive.read(archive.namelist()[0]))


def _data(name: str) -> dict[str, Any]:
    place = folder()
    if place is None:
        raise SystemExit("posteriordb lies below $PYROVAE_DATA, which is not set or has no such folder")
    return {
        key: torch.tensor(value, dtype=torch.float64) if isinstance(value, list) else value
        for key, value in read(place / "data" / f"{name}.json.zip").items()
    }


def reference_draws(posterior: Posterior) -> Draws | None:
    """The draws of posteriordb by latent, shape (chains, draws, ...)."""
    if posterior.reference is None:
        return None
    name, convert = posterior.reference
    chains = read(folder() / "reference_draws" / f"{name}.json.zip")
    columns = {key: torch.tensor(np.array([chain[key] for chain in chains])) for key in chains[0]}
    joined: dict[str, Any] = {}
    for key, value in columns.items():
        joined.setdefault(key.partition("[")[0], []).append(value)
    return convert(
        {key: torch.stack(v, dim=-1) if f"{key}[1]" in columns else v[0] for key, v in joined.items()}
    )


def _sample(name: str, fn: dist.TorchDistribution) -> Tensor:
    return pyro.sample(name, fn)


def _number(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def _normal(loc: float, scale: float, size: int | None = None) -> dist.TorchDistribution:
    fn = dist.Normal(_number(loc), _number(scale))
    return fn if size is None else fn.expand([size]).to_event(1)


_SCHOOLS = "eight_schools-eight_schools_noncentered"
_HALF_CAUCHY = "half-Cauchy: twice the Cauchy"
_HALF_NORMAL = "half-normal: twice the normal"


def eight_schools_centred() -> Posterior:
    data = _data("eight_schools")

    def prior() -> Draws:
        mu, tau = _sample("mu", _normal(0, 5)), _sample("tau", dist.HalfCauchy(_number(5)))
        theta = dist.Normal(mu[..., None].expand(*mu.shape, 8), tau[..., None]).to_event(1)
        return {"mu": mu, "tau": tau, "theta": _sample("theta", theta)}

    def convert(draws: Draws) -> Draws:
        mu, tau = draws["mu"], draws["tau"]
        return {"mu": mu, "tau": tau, "theta": mu[..., None] + tau[..., None] * draws["theta_trans"]}

    return Posterior(
        _HALF_CAUCHY,
        prior,
        lambda latents: dist.Normal(latents["theta"], data["sigma"]).to_event(1),
        data["y"][None],
        {"mu": (5, 5), "tau": (1, 1), "theta": (5, 8)},
        reference=(_SCHOOLS, lambda draws: draws),
        other=("eight schools, non-centred", convert),
    )


def eight_schools_non_centred() -> Posterior:
    data = _data("eight_schools")

    def prior() -> Draws:
        mu, tau = _sample("mu", _normal(0, 5)), _sample("tau", dist.HalfCauchy(_number(5)))
        return {"mu": mu, "tau": tau, "theta_trans": _sample("theta_trans", _normal(0, 1, 8))}

    def likelihood(latents: Draws) -> dist.TorchDistribution:
        theta = latents["mu"][..., None] + latents["tau"][..., None] * latents["theta_trans"]
        return dist.Normal(theta, data["sigma"]).to_event(1)

    def convert(draws: Draws) -> Draws:
        standardised = (draws["theta"] - draws["mu"][..., None]) / draws["tau"][..., None]
        return {"mu": draws["mu"], "tau": draws["tau"], "theta_trans": standardised}

    return Posterior(
        _HALF_CAUCHY,
        prior,
        likelihood,
        data["y"][None],
        {"mu": (5, 5), "tau": (1, 1), "theta_trans": (0, 1)},
        reference=(_SCHOOLS, convert),
    )


def eight_schools_pooled() -> Posterior:
    data = _data("eight_schools")
    return Posterior(
        "no half prior",
        lambda: {"mu": _sample("mu", _normal(0, 5))},
        lambda latents: dist.Normal(latents["mu"][..., None], data["sigma"]).to_event(1),
        data["y"][None],
        {"mu": (5, 5)},
    )


def autoregressive() -> Posterior:
    data = _data("arK")
    order, y = data["K"], data["y"]

    def prior() -> Draws:
        return {
            "alpha": _sample("alpha", _normal(0, 10)),
            "beta": _sample("beta", _normal(0, 10, order)),
            "sigma": _sample("sigma", dist.HalfCauchy(_number(2.5))),
        }

    return Posterior(
        f"{_HALF_CAUCHY}; given the first {order} y",
        prior,
        lambda latents: Autoregression(y[:order], len(y) - order, **latents),
        y[None, order:],
        {"alpha": (0, 1), "beta": (0, 1), "sigma": (-1, 1)},
        reference=("arK-arK", lambda draws: draws),
    )


def moving_average() -> Posterior:
    y = _data("arma")["y"]

    def prior() -> Draws:
        return {
            "mu": _sample("mu", _normal(0, 10)),
            "phi": _sample("phi", _normal(0, 2)),
            "theta": _sample("theta", _normal(0, 2)),
            "sigma": _sample("sigma", dist.HalfCauchy(_number(2.5))),
        }

    return Posterior(
        _HALF_CAUCHY,
        prior,
        lambda latents: MovingAverage((len(y),), **latents),
        y[None],
        {"mu": (0, 1), "phi": (0, 1), "theta": (0, 0.5), "sigma": (-1, 1)},
    )


def _mixture(latents: Draws, length: int) -> dist.TorchDistribution:
    weight = latents["weight"]
    weights = torch.stack([weight, 1 - weight], dim=-1)[..., None, :]
    parts = dist.Normal(latents["mu"][..., None, :], latents["sigma"][..., None, :])
    mixture = dist.MixtureSameFamily(dist.Categorical(weights), parts)
    return mixture.expand([*mixture.batch_shape[:-1], length]).to_event(1)


def _mixture_prior(mu: dist.TorchDistribution) -> Draws:
    return {
        "mu": _sample("mu", mu),
        "sigma": _sample("sigma", dist.HalfNormal(_number(2)).expand([2]).to_event(1)),
        "weight": _sample("weight", dist.Beta(_number(5), _number(5))),
    }


def mixture_ordered() -> Posterior:
    y = _data("low_dim_gauss_mix")["y"]
    return Posterior(
        f"{_HALF_NORMAL}; ordered: unordered prior times 2",
        lambda: _mixture_prior(Ordered([0.0, 0.0], [2.0, 2.0])),
        lambda latents: _mixture(latents, len(y)),
        y[None],
        {"mu": ([-2, 1], 1), "sigma": (0, 0.5), "weight": (0, 0.5)},
    )


def mixture_unordered() -> Posterior:
    y = _data("low_dim_gauss_mix")["y"]

    def relabel(draws: Draws, generator: torch.Generator) -> Draws:
        swap = torch.rand(draws["weight"].shape, generator=generator) < 0.5
        pair = {
            name: torch.where(swap[..., None], v.flip(-1), v) for name, v in draws.items() if v.dim() == 3
        }
        return pair | {"weight": torch.where(swap, 1 - draws["weight"], draws["weight"])}

    return Posterior(
        f"{_HALF_NORMAL}; both orders",
        lambda: _mixture_prior(_normal(0, 2, 2)),
        lambda latents: _mixture(latents, len(y)),
        y[None],
        {"mu": (0, 2), "sigma": (0, 0.5), "weight": (0, 0.5)},
        relabel=relabel,
        other=("mixture, ordered", lambda draws: draws),
    )


def hidden_markov() -> Posterior:
    y = _data("hmm_example")["y"]

    def emission(mu: Tensor) -> dist.TorchDistribution:
        return dist.Normal(mu[..., None], _number(1)).to_event(1)

    def prior() -> Draws:
        uniform = dist.Beta(torch.ones(2, dtype=torch.float64), torch.ones(2, dtype=torch.float64))
        return {
            "first": _sample("first", uniform.to_event(1)),
            "mu": _sample("mu", Ordered([3.0, 10.0], [1.0, 1.0], positive=True)),
        }

    return Posterior(
        "0 < μ₁ < μ₂: restricted and renormalised; first state: weight 1 each, so + log 2",
        prior,
        lambda latents: TwoStates(len(y), emission, first=latents["first"], one=latents["mu"]),
        y[None],
        {"first": (0, 1), "mu": ([1, 0.5], 0.5)},
        offset=math.log(2),
    )


def drive() -> Posterior:
    data = _data("bball_drive_event_0")
    alpha = data["alpha"]
    x = torch.stack([data["u"], data["v"]], dim=-1)

    def emission(phi: Tensor, rate: Tensor) -> dist.TorchDistribution:
        return dist.Exponential(torch.stack([phi, rate], dim=-1)).to_event(1)

    def prior() -> Draws:
        return {
            "first": _sample("first", dist.Beta(alpha[:, 0], alpha[:, 1]).to_event(1)),
            "phi": _sample("phi", Ordered([0.0, 3.0], [1.0, 1.0], positive=True)),
            "lambda": _sample("lambda", Ordered([0.0, 3.0], [1.0, 1.0], positive=True)),
        }

    return Posterior(
        "0 < φ₁ < φ₂, 0 < λ₁ < λ₂: restricted and renormalised; first state: weight 1 each, so + log 2",
        prior,
        lambda latents: TwoStates(
            len(x), emission, first=latents["first"], one=latents["phi"], other=latents["lambda"]
        ),
        x.reshape(1, -1),
        {"first": ([2, -2], 1), "phi": ([0, 0], 1), "lambda": ([-3, 0], 1)},
        offset=math.log(2),
    )


def dogs() -> Posterior:
    data = _data("dogs")
    return Posterior(
        "no half prior",
        lambda: {"beta": _sample("beta", _normal(0, 100, 3))},
        lambda latents: Dogs(data["n_dogs"], data["n_trials"], latents["beta"]),
        data["y"].reshape(1, -1),
        {"beta": (0, 1)},
    )


def binomial() -> Posterior:
    data = _data("GLM_Binomial_data")
    year = data["year"]
    design = torch.stack([torch.ones_like(year), year, year**2])
    return Posterior(
        "no half prior",
        lambda: {"beta": _sample("beta", _normal(0, 100, 3))},
        lambda latents: dist.Binomial(data["N"], logits=latents["beta"] @ design).to_event(1),
        data["C"][None],
        {"beta": (0, 1)},
    )


def radon() -> Posterior:
    data = _data("radon_mn")
    floor = data["floor_measure"]

    def likelihood(latents: Draws) -> dist.TorchDistribution:
        alpha, beta, sigma = (latents[name][..., None] for name in ("alpha", "beta", "sigma"))
        return dist.Normal(alpha + beta * floor, sigma).to_event(1)

    return Posterior(
        _HALF_NORMAL,
        lambda: {
            "alpha": _sample("alpha", _normal(0, 10)),
            "beta": _sample("beta", _normal(0, 10)),
            "sigma": _sample("sigma", dist.HalfNormal(_number(1))),
        },
        likelihood,
        data["log_radon"][None],
        {"alpha": (0, 1), "beta": (0, 1), "sigma": (0, 1)},
    )


POSTERIORS: dict[str, Callable[[], Posterior]] = {
    "eight schools, centred": eight_schools_centred,
    "eight schools, non-centred": eight_schools_non_centred,
    "eight schools, pooled": eight_schools_pooled,
    "arK": autoregressive,
    "arma": moving_average,
    "mixture, ordered": mixture_ordered,
    "mixture, unordered": mixture_unordered,
    "hmm_example": hidden_markov,
    "bball_drive_event_0": drive,
    "dogs": dogs,
    "GLM_Binomial": binomial,
    "radon, pooled": radon,
}
