"""Does a stated 95 % interval of log Z hold the exact value in 95 % of the seeds, and what does it cost?

    python benchmarks/league.py --seeds 200 --json benchmarks/results/league.json
    python benchmarks/league.py --methods dynesty ultranest --seeds 20 --json benchmarks/results/league.json
    python benchmarks/league.py --show benchmarks/results/league.json

A target is a likelihood and a prior, the prior as a map from the unit cube. Its log Z is computed here, in closed form or
by a grid. The methods:

    from_draws   bridges 4 × 1000 exact draws of the posterior
    refined      the target as one row of a Pyro pair, whose guide is the prior; without the check
    auto         the same
    dynesty      NestedSampler with its defaults; only if it is installed
    ultranest    ReactiveNestedSampler with its defaults; only if it is installed

The columns: seeds, seeds with a "trust" verdict (a peer has none, so all), how many of these hold the exact value, mean and
variance of error / mcse, root mean square error, evaluations of the likelihood (a gradient counts three) and seconds of a
seed. A row of the pair is called "trust" if its weights show nothing wrong.

Results are written after every seed, and a run continues after those in the file. The peers need not share an environment
with pyrovae.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from scipy import integrate, special

PEERS = ("dynesty", "ultranest")
METHODS = ("from_draws", "refined", "auto", *PEERS)


def lib(values: Any) -> Any:
    """The module of an array: torch for a tensor, else numpy."""
    if isinstance(values, np.ndarray):
        return np
    import torch

    return torch


def normal_quantile(u: Any) -> Any:
    """The standard normal quantile of arrays or tensors."""
    return special.ndtri(u) if lib(u) is np else lib(u).special.ndtri(u)


@dataclass(frozen=True)
class Target:
    """A likelihood and a prior.

    Attributes:
        dim: of θ.
        log_z: the exact value, in nats.
        log_likelihood: of points θ, (..., dim) → (...); arrays or tensors.
        log_prior: their log prior density.
        transform: from the unit cube to θ.
        draw: exact draws of the posterior, from a generator and a number, (n, dim).
        bounds: by the number of θ_i, of those that have some.
        highest: an upper bound of the log likelihood.
    """

    dim: int
    log_z: float
    log_likelihood: Callable[[Any], Any]
    log_prior: Callable[[Any], Any]
    transform: Callable[[Any], Any]
    draw: Callable[[np.random.Generator, int], np.ndarray]
    bounds: dict[int, tuple[float, float]]
    highest: float


def boxed(dim: int, low: float, high: float, log_integral: float, log_likelihood: Any, **rest: Any) -> Target:
    """A target whose prior is uniform on [low, high]^dim."""
    volume = dim * math.log(high - low)
    return Target(
        dim,
        log_integral - volume,
        log_likelihood,
        lambda theta: 0 * theta[..., 0] - volume,
        lambda u: low + (high - low) * u,
        bounds=dict.fromkeys(range(dim), (low, high)),
        **rest,
    )


def accepted(make: Callable[[int], tuple[np.ndarray, np.ndarray]], count: int) -> np.ndarray:
    """Draws that are accepted: ``make`` returns candidates, and whether to keep each."""
    found: list[np.ndarray] = []
    while sum(map(len, found)) < count:
        candidates, keep = make(2 * count)
        found.append(candidates[keep])
    return np.concatenate(found)[:count]


def on_grid(log_f: Callable[[np.ndarray], np.ndarray], low: float, high: float, points: int) -> float:
    """log ∫∫ exp log_f over [low, high]² by the trapezoidal rule."""
    axis = np.linspace(low, high, points)
    weight = np.ones(points)
    weight[[0, -1]] = 0.5
    total = [
        special.logsumexp(log_f(np.stack([np.full(points, t), axis], -1)), b=w * weight)
        for t, w in zip(axis, weight, strict=True)
    ]
    return float(special.logsumexp(total)) + 2 * math.log(axis[1] - axis[0])


def two_blobs() -> Target:
    """exp(−|θ − 1|²/2σ²) + exp(−|θ + 1|²/2σ²), σ = 0.1, uniform on [−5, 5]²: nestle's test."""

    def log_likelihood(theta: Any) -> Any:
        parts = [-((theta - centre) ** 2).sum(-1) / 0.02 for centre in (1.0, -1.0)]
        return lib(theta).logaddexp(*parts)

    def draw(rng: np.random.Generator, n: int) -> np.ndarray:
        return rng.choice([-1.0, 1.0], (n, 1)) + 0.1 * rng.standard_normal((n, 2))

    value = math.log(4 * math.pi * 0.01)
    return boxed(2, -5.0, 5.0, value, log_likelihood, draw=draw, highest=0.0)


def eggbox() -> Target:
    """(2 + cos(θ₁/2) cos(θ₂/2))⁵, uniform on [0, 10π]²; the exact value is a grid's."""

    def log_likelihood(theta: Any) -> Any:
        cos = lib(theta).cos
        return (2 + cos(theta[..., 0] / 2) * cos(theta[..., 1] / 2)) ** 5

    high = 10 * math.pi

    def draw(rng: np.random.Generator, n: int) -> np.ndarray:
        # The modes are at (2πi, 2πj) with i + j even; around each, a Gaussian of precision 5 · 3⁴ / 4 covers the mode.
        peaks = np.array([(i, j) for i in range(6) for j in range(6) if (i + j) % 2 == 0]) * 2 * math.pi

        def make(m: int) -> tuple[np.ndarray, np.ndarray]:
            step = 0.12 * rng.standard_normal((m, 2))
            theta = peaks[rng.integers(len(peaks), size=m)] + step
            ratio = log_likelihood(theta) - 243 + (step**2).sum(-1) / (2 * 0.12**2)
            inside = ((theta >= 0) & (theta <= high)).all(-1)
            return theta, inside & (np.log(rng.random(m)) < ratio)

        return accepted(make, n)

    value = on_grid(log_likelihood, 0.0, high, 4001)
    return boxed(2, 0.0, high, value, log_likelihood, draw=draw, highest=243.0)


def shells() -> Target:
    """Two Gaussian shells of radius 2 and width 0.1 around (±3.5, 0), uniform on [−6, 6]² (Feroz et al. 2009)."""

    def log_likelihood(theta: Any) -> Any:
        xp, parts = lib(theta), []
        for centre in (3.5, -3.5):
            radius = xp.sqrt((theta[..., 0] - centre) ** 2 + theta[..., 1] ** 2 + 1e-300)
            parts.append(-((radius - 2.0) ** 2) / 0.02 - 0.5 * math.log(2 * math.pi * 0.01))
        return xp.logaddexp(*parts)

    def draw(rng: np.random.Generator, n: int) -> np.ndarray:
        def make(m: int) -> tuple[np.ndarray, np.ndarray]:
            radius = 2.0 + 0.1 * rng.standard_normal(m)
            angle = rng.uniform(0, 2 * math.pi, m)
            theta = radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], -1)
            theta[:, 0] += rng.choice([-3.5, 3.5], m)
            return theta, rng.random(m) < radius / 2.8

        return accepted(make, n)

    value = on_grid(log_likelihood, -6.0, 6.0, 4001)
    highest = -0.5 * math.log(2 * math.pi * 0.01) + 1e-6
    return boxed(2, -6.0, 6.0, value, log_likelihood, draw=draw, highest=highest)


def funnel() -> Target:
    """Neal's funnel in ten dimensions, v ~ N(0, 3²) and x_i ~ N(0, exp(v)), under a uniform prior on [−30, 30]¹⁰."""

    def log_likelihood(theta: Any) -> Any:
        v, rest = theta[..., 0], theta[..., 1:]
        square = (rest**2).sum(-1)
        log_x = -0.5 * square * lib(theta).exp(-v) - 4.5 * v - 4.5 * math.log(2 * math.pi)
        return -(v**2) / 18 - math.log(3) - 0.5 * math.log(2 * math.pi) + log_x

    def inside(v: float) -> float:
        share = special.erf(30 / math.sqrt(2) * math.exp(-v / 2))
        return float(math.exp(-(v**2) / 18) / (3 * math.sqrt(2 * math.pi)) * share**9)

    def draw(rng: np.random.Generator, n: int) -> np.ndarray:
        def make(m: int) -> tuple[np.ndarray, np.ndarray]:
            v = 3 * rng.standard_normal((m, 1))
            theta = np.concatenate([v, np.exp(v / 2) * rng.standard_normal((m, 9))], -1)
            return theta, (np.abs(theta) < 30).all(-1)

        return accepted(make, n)

    value = math.log(integrate.quad(inside, -30, 30, points=[0.0, 6.0], epsabs=1e-12)[0])
    return boxed(10, -30.0, 30.0, value, log_likelihood, draw=draw, highest=140.0)


def normal_gamma() -> Target:
    """100 numbers from N(μ, 1/τ), τ ~ Exponential(1), μ ~ N(0, 1/τ): the conjugate closed form."""
    y = np.random.default_rng(71).standard_normal(100)
    n, mean, square = len(y), float(y.mean()), float(((y - y.mean()) ** 2).sum())
    shape, rate = 1 + n / 2, 1 + 0.5 * square + 0.5 * n * mean**2 / (1 + n)
    value = (
        math.lgamma(shape) - shape * math.log(rate) - 0.5 * math.log(1 + n) - n / 2 * math.log(2 * math.pi)
    )

    def log_likelihood(theta: Any) -> Any:
        mu, tau = theta[..., 0], theta[..., 1]
        return n / 2 * lib(theta).log(tau / (2 * math.pi)) - tau / 2 * (square + n * (mu - mean) ** 2)

    def log_prior(theta: Any) -> Any:
        mu, tau = theta[..., 0], theta[..., 1]
        return -tau + 0.5 * lib(theta).log(tau / (2 * math.pi)) - tau / 2 * mu**2

    def transform(u: Any) -> Any:
        xp = lib(u)
        tau = -xp.log1p(-u[..., 1])
        return xp.stack([normal_quantile(u[..., 0]) / xp.sqrt(tau), tau], -1)

    def draw(rng: np.random.Generator, m: int) -> np.ndarray:
        tau = rng.gamma(shape, 1 / rate, m)
        mu = n * mean / (1 + n) + rng.standard_normal(m) / np.sqrt((1 + n) * tau)
        return np.stack([mu, tau], -1)

    highest = n / 2 * math.log(n / square / (2 * math.pi)) - n / 2 + 1e-6
    return Target(2, value, log_likelihood, log_prior, transform, draw, {1: (0.0, math.inf)}, highest)


def phase_transition() -> Target:
    """A Gaussian of sd 0.1 with 90 % of the mass on one of sd 1, uniform on [−5, 5]¹⁰, times 10 (2π)⁵: log Z = −11.534."""
    scales = (1.0, 0.1)
    heights = [
        math.log(share) + math.log(10) - 10 * math.log(s) for share, s in zip((0.1, 0.9), scales, strict=True)
    ]

    def log_likelihood(theta: Any) -> Any:
        square = (theta**2).sum(-1)
        return lib(theta).logaddexp(*(h - square / (2 * s**2) for h, s in zip(heights, scales, strict=True)))

    def draw(rng: np.random.Generator, n: int) -> np.ndarray:
        def make(m: int) -> tuple[np.ndarray, np.ndarray]:
            scale = np.where(rng.random((m, 1)) < 0.9, 0.1, 1.0)
            theta = scale * rng.standard_normal((m, 10))
            return theta, (np.abs(theta) < 5).all(-1)

        return accepted(make, n)

    inside = 0.9 + 0.1 * special.erf(5 / math.sqrt(2)) ** 10
    value = 5 * math.log(2 * math.pi) + math.log(10) + math.log(inside)
    return boxed(
        10, -5.0, 5.0, value, log_likelihood, draw=draw, highest=float(np.logaddexp(*heights)) + 1e-6
    )


#: Strength of 42 specimens of Radiata pine, and their density adjusted for resin (Williams 1959).
STRENGTH = np.array(
    [
        [3040, 2470, 3610, 3480, 3810, 2330, 1800, 3110, 3670, 2310, 4360, 1880, 3670, 1740],
        [2250, 2650, 4970, 2620, 2900, 1670, 2540, 3840, 3800, 4600, 1900, 2530, 2920, 4990],
        [1670, 3310, 3450, 3600, 2850, 1590, 3770, 3850, 2480, 3570, 2620, 1890, 3030, 3030],
    ],
    dtype=float,
).ravel()
DENSITY = np.array(
    [
        [25.4, 22.2, 32.2, 31.0, 30.9, 23.9, 19.2, 27.2, 29.0, 23.9, 33.2, 21.0, 29.0, 22.0],
        [23.8, 25.3, 34.2, 25.7, 26.4, 20.0, 23.9, 30.7, 32.6, 32.5, 20.8, 23.1, 29.8, 38.1],
        [21.3, 28.5, 29.2, 31.4, 25.9, 21.4, 29.8, 30.6, 22.6, 30.3, 23.8, 18.4, 29.4, 28.2],
    ],
    dtype=float,
).ravel()


def radiata_pine() -> Target:
    """A regression of strength on density, θ = (α, β, τ), with the conjugate priors of Friel and Wyse (2012).

    α ~ N(3000, 1/(0.06 τ)), β ~ N(185, 1/(6 τ)), τ ~ Gamma(3, b), b = 2 · 300². Their exact log Z is −301.7046. A quantile of
    that Gamma has no closed form, so the prior of τ here is Exponential(b), and the likelihood has the ratio (b τ)²/2.
    """
    y, x, b = STRENGTH, DENSITY - DENSITY.mean(), 2 * 300.0**2
    n, centre, weights = len(y), np.array([3000.0, 185.0]), np.array([0.06, 6.0])
    design = np.stack([np.ones(n), x], -1)
    precision = np.diag(weights) + design.T @ design
    mean = np.linalg.solve(precision, weights * centre + design.T @ y)
    shape = 3 + n / 2
    rate = b + 0.5 * float(y @ y + centre @ (weights * centre) - mean @ precision @ mean)
    value = 0.5 * (np.log(weights).sum() - np.linalg.slogdet(precision)[1]) - n / 2 * math.log(2 * math.pi)
    value += math.lgamma(shape) - math.lgamma(3) + 3 * math.log(b) - shape * math.log(rate)
    fitted, square = float(y.mean()), float(x @ x)
    slope = float(x @ y) / square
    least = float(((y - fitted - slope * x) ** 2).sum())

    def log_likelihood(theta: Any) -> Any:
        log, tau = lib(theta).log, theta[..., 2]
        squares = least + n * (theta[..., 0] - fitted) ** 2 + square * (theta[..., 1] - slope) ** 2
        return n / 2 * log(tau / (2 * math.pi)) - tau / 2 * squares + 2 * log(b * tau) - math.log(2)

    def log_prior(theta: Any) -> Any:
        tau = theta[..., 2]
        found = math.log(b) - b * tau
        for place in (0, 1):
            scaled = weights[place] * tau
            found = found + 0.5 * lib(theta).log(scaled / (2 * math.pi))
            found = found - scaled / 2 * (theta[..., place] - centre[place]) ** 2
        return found

    def transform(u: Any) -> Any:
        xp = lib(u)
        tau = -xp.log1p(-u[..., 2]) / b
        both = [centre[i] + normal_quantile(u[..., i]) / xp.sqrt(weights[i] * tau) for i in (0, 1)]
        return xp.stack([*both, tau], -1)

    def draw(rng: np.random.Generator, m: int) -> np.ndarray:
        tau = rng.gamma(shape, 1 / rate, m)
        root = np.linalg.cholesky(np.linalg.inv(precision))
        both = mean + rng.standard_normal((m, 2)) @ root.T / np.sqrt(tau)[:, None]
        return np.concatenate([both, tau[:, None]], -1)

    best = (n + 4) / least  # τ of the largest likelihood
    highest = float(log_likelihood(np.array([fitted, slope, best]))) + 1e-6
    return Target(3, float(value), log_likelihood, log_prior, transform, draw, {2: (0.0, math.inf)}, highest)


def spike() -> Target:
    """z ~ N(0, I₁₀), x given z ~ 0.1 N(z, I) + 0.9 N(z + 4e₁, 0.1² I), at an x from the narrow component."""
    dim, shift = 10, np.zeros(10)
    shift[0] = 4.0
    x = shift + 1.005 * np.random.default_rng(18).standard_normal(dim)
    parts = [
        (math.log(weight), x - move, scale)
        for weight, move, scale in ((0.1, 0 * shift, 1.0), (0.9, shift, 0.1))
    ]
    heights = [log_w - dim * math.log(scale) - dim / 2 * math.log(2 * math.pi) for log_w, _, scale in parts]
    evidences = np.array(
        [
            log_w - dim / 2 * math.log(2 * math.pi * (1 + scale**2)) - at @ at / (2 * (1 + scale**2))
            for log_w, at, scale in parts
        ]
    )
    value = float(special.logsumexp(evidences))

    def log_likelihood(theta: Any) -> Any:
        xp = lib(theta)
        each = [
            height - ((theta - (at if xp is np else xp.as_tensor(at))) ** 2).sum(-1) / (2 * scale**2)
            for height, (_, at, scale) in zip(heights, parts, strict=True)
        ]
        return xp.logaddexp(*each)

    def log_prior(theta: Any) -> Any:
        return -(theta**2).sum(-1) / 2 - dim / 2 * math.log(2 * math.pi)

    def draw(rng: np.random.Generator, m: int) -> np.ndarray:
        narrow = rng.random((m, 1)) < math.exp(evidences[1] - value)
        _, (wide_at, narrow_at), (wide, thin) = zip(*parts, strict=True)
        scale = np.where(narrow, thin, wide)
        at = np.where(narrow, narrow_at, wide_at)
        return at / (1 + scale**2) + scale / np.sqrt(1 + scale**2) * rng.standard_normal((m, dim))

    highest = float(np.logaddexp(*heights)) + 1e-6
    return Target(dim, value, log_likelihood, log_prior, normal_quantile, draw, {}, highest)


TARGETS: dict[str, Callable[[], Target]] = {
    "two blobs": two_blobs,
    "eggbox": eggbox,
    "shells, 2-D": shells,
    "funnel, 10-D": funnel,
    "normal–gamma": normal_gamma,
    "phase transition, 10-D": phase_transition,
    "radiata pine": radiata_pine,
    "spike 0.1, 10-D, shifted 4": spike,
}


# ---------------------------------------------------------------------------------------------------------------------
# Methods: estimate, error, low and high end of the interval, verdict, evaluations


def result(evidence: Any, offset: float = 0.0) -> dict[str, Any]:
    low, high = evidence.interval
    return {
        "estimate": float(evidence.estimate[0]) + offset,
        "mcse": float(evidence.mcse[0]),
        "low": float(low[0]) + offset,
        "high": float(high[0]) + offset,
        "trust": str(evidence.verdict[0]) in ("trust", "unchecked"),
        "evaluations": float(evidence.cost[0]),
    }


def by_draws(target: Target, seed: int) -> dict[str, Any]:
    import pyrovae as pv

    draws = target.draw(np.random.default_rng(seed), 4000).reshape(4, 1000, target.dim)

    def log_density(theta: Any) -> Any:
        return target.log_likelihood(theta) + target.log_prior(theta)

    return result(pv.evidence.from_draws(log_density, draws, bounds=target.bounds, seed=seed))


def by_rows(method: str) -> Callable[[Target, int], dict[str, Any]]:
    """The target as one row: a coin that shows one with the probability exp(log likelihood − highest)."""

    def run(target: Target, seed: int) -> dict[str, Any]:
        import pyro
        import pyro.distributions as dist
        import torch

        import pyrovae as pv

        class Coin(dist.TorchDistribution):  # type: ignore[misc]
            """One with log probability ``log_p``; Bernoulli's own argument would round it."""

            arg_constraints: ClassVar[dict[str, Any]] = {}
            support = dist.constraints.boolean

            def __init__(self, log_p: torch.Tensor) -> None:
                self.log_p = log_p
                super().__init__(log_p.shape, validate_args=False)

            def expand(self, batch_shape: Any, _instance: Any = None) -> Coin:
                return Coin(self.log_p.expand(batch_shape))

            def sample(self, sample_shape: Any = ()) -> torch.Tensor:
                p = self.log_p.exp().expand(torch.Size(sample_shape) + self.batch_shape)
                return torch.bernoulli(p)

            def log_prob(self, value: torch.Tensor) -> torch.Tensor:
                return torch.where(
                    value > 0.5, self.log_p, torch.log1p(-self.log_p.exp().clamp(max=1 - 1e-12))
                )

        cube = dist.Uniform(torch.zeros(target.dim, dtype=torch.float64), 1.0).to_event(1)

        def model(x: torch.Tensor) -> None:
            with pyro.plate("data", len(x)):
                u = pyro.sample("u", cube)
                log_p = target.log_likelihood(target.transform(u)) - target.highest
                pyro.sample("x", Coin(log_p), obs=x)

        def guide(x: torch.Tensor) -> None:
            with pyro.plate("data", len(x)):
                pyro.sample("u", cube)

        pair = pv.LatentVariableModel(model, guide)
        x = torch.ones(1, dtype=torch.float64)
        found = pv.log_evidence(pair, x, method=method, seed=seed, compile=False, check=False)
        return result(found, target.highest)

    return run


def by_dynesty(target: Target, seed: int) -> dict[str, Any]:
    import dynesty

    sampler = dynesty.NestedSampler(
        target.log_likelihood, target.transform, target.dim, rstate=np.random.default_rng(seed)
    )
    sampler.run_nested(print_progress=False)
    found = sampler.results
    return peer(float(found.logz[-1]), float(found.logzerr[-1]), float(np.sum(found.ncall)))


def by_ultranest(target: Target, seed: int) -> dict[str, Any]:
    import logging

    import ultranest

    logging.getLogger("ultranest").setLevel(logging.ERROR)
    np.random.seed(seed)  # noqa: NPY002, ultranest draws from numpy's global generator
    names = [f"theta{i}" for i in range(target.dim)]
    sampler = ultranest.ReactiveNestedSampler(names, target.log_likelihood, target.transform, vectorized=True)
    found = sampler.run(show_status=False, viz_callback=False)
    return peer(float(found["logz"]), float(found["logzerr"]), float(found["ncall"]))


def peer(estimate: float, error: float, evaluations: float) -> dict[str, Any]:
    low, high = estimate - 1.96 * error, estimate + 1.96 * error
    return {
        "estimate": estimate,
        "mcse": error,
        "low": low,
        "high": high,
        "trust": True,
        "evaluations": evaluations,
    }


RUN: dict[str, Callable[[Target, int], dict[str, Any]]] = {
    "from_draws": by_draws,
    "refined": by_rows("refined"),
    "auto": by_rows("auto"),
    "dynesty": by_dynesty,
    "ultranest": by_ultranest,
}


# ---------------------------------------------------------------------------------------------------------------------
# Table

#: What a file keeps of a run, in this order.
FIELDS = ("estimate", "mcse", "low", "high", "trust", "evaluations", "seconds")


def show(found: dict[str, Any]) -> None:
    print(
        f"{'target':24} {'log Z':>11} {'method':11} {'seeds':>5} {'trust':>5} {'held':>5} {'mean z':>7} {'var z':>7} "
        f"{'rms':>7} {'evaluations':>11} {'s':>6}"
    )
    for name in TARGETS:
        for method in METHODS:
            each = [
                dict(zip(FIELDS, value, strict=True))
                for key, value in found["results"].items()
                if key.rsplit("|", 1)[0] == f"{name}|{method}"
            ]
            if not each:
                continue
            exact = found["log_z"][name]
            kept = [one for one in each if one["trust"]]
            held = sum(one["low"] <= exact <= one["high"] for one in kept)
            error = np.array([one["estimate"] - exact for one in kept] or [math.nan])
            z = error / np.array([one["mcse"] for one in kept] or [math.nan])
            evaluations = np.mean([one["evaluations"] for one in each])
            seconds = np.mean([one["seconds"] for one in each])
            print(
                f"{name:24} {exact:11.5f} {method:11} {len(each):5d} {len(kept):5d} {held:5d} {z.mean():7.2f} {z.var():7.2f} "
                f"{math.sqrt((error**2).mean()):7.3f} {evaluations:11.0f} {seconds:6.1f}"
            )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=200)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS[:3]))
    parser.add_argument("--only", default="", help="targets with this in their name")
    parser.add_argument("--json", type=Path, help="a file to continue and to write")
    parser.add_argument("--show", type=Path, help="print the table of a file, and run nothing")
    arguments = parser.parse_args()
    if arguments.show:
        show(json.loads(arguments.show.read_text(encoding="utf-8")))
        return
    found: dict[str, Any] = {"log_z": {}, "results": {}}
    if arguments.json and arguments.json.exists():
        found = json.loads(arguments.json.read_text(encoding="utf-8"))
    targets = {name: make() for name, make in TARGETS.items() if arguments.only in name}
    found["log_z"] |= {name: target.log_z for name, target in targets.items()}
    for seed in range(arguments.seeds):
        for method in arguments.methods:
            for name, target in targets.items():
                key = f"{name}|{method}|{seed}"
                if key in found["results"]:
                    continue
                started = time.perf_counter()
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    one = RUN[method](target, seed)
                one |= {"seconds": round(time.perf_counter() - started, 2)}
                found["results"][key] = [
                    round(one[name], 7) if isinstance(one[name], float) else one[name] for name in FIELDS
                ]
                if arguments.json:
                    arguments.json.parent.mkdir(parents=True, exist_ok=True)
                    new = arguments.json.with_suffix(".tmp")
                    new.write_text(json.dumps(found, separators=(",", ":")) + "\n", encoding="utf-8")
                    os.replace(new, arguments.json)
    show(found)


if __name__ == "__main__":
    main()
