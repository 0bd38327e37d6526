"""The statistical checks of the suite, each a function of a seed: tests run them once, and
benchmarks/fresh_seeds.py on 200 seeds more. Each returns what it measured; it raises where it fails.
"""

import dataclasses
import functools

import numpy as np
import torch
from oracles import CONJUGATE, LinearGaussian
from pyro.infer import TraceMeanField_ELBO
from rates import Z, close
from scipy.stats import norm

import pyrovae as pv
from pyrovae import evidence
from pyrovae import pair as pair_module

REPETITIONS = 10_000
WIDEN = 1.2


@functools.cache
def _oracle() -> LinearGaussian:
    return LinearGaussian.random(latent_dim=3, columns=10)


@functools.lru_cache(maxsize=4)
def _repeated(num_samples: int, seed: int) -> tuple[pv.LogEvidence, float]:
    """One row, 10 000 times over, each with its own noise; and its exact log P(x)."""
    oracle = _oracle()
    row = oracle.sample(1, seed=1)
    ev = pv.log_evidence(
        oracle.pair(WIDEN), row.expand(REPETITIONS, -1), num_samples=num_samples, seed=seed, check=False
    )
    return ev, float(oracle.log_prob(row))


def bias(num_samples: int, seed: int) -> dict[str, float]:
    """Bias of the estimate and of the reported bias, against −CV²/(2K).

    E[ŵ] = P(x) exactly, so ŵ/P(x) − 1 is a control variate of mean zero and takes out all noise of the
    first order: the standard error is CV²/K/√2/√10000, one 100th of the bias itself; smallest bias seen
    6.1 of them, 6.1 % of it.
    """
    ev, truth = _repeated(num_samples, seed)
    expected = -_oracle().cv2(WIDEN) / (2 * num_samples)
    error = ev.estimate - truth
    second_order = error - np.expm1(error)
    mean, se = second_order.mean(), second_order.std() / np.sqrt(REPETITIONS)
    assert abs(error.mean()) < {100: 0.005, 1000: 0.002}[num_samples]
    assert abs(mean - expected) + Z * se < 0.15 * abs(expected)
    assert abs(ev.bias.mean() - expected) < 0.15 * abs(expected)
    # and without the control variate: unbiased once the bias is taken out
    assert close((error - ev.bias).mean(), 0.0, error.std() / np.sqrt(REPETITIONS))
    return {"bias": mean, "expected": expected, "reported": float(ev.bias.mean()), "se": se}


def coverage(seed: int) -> dict[str, float]:
    """How often each row's 95 % interval holds the truth, K = 1000.

    The tail's error widens the interval a little where the tail is light, so that up to 97 % is allowed. Standard error
    0.0022; coverages below 0.95 by 6.1 of them, 0.013, are seen.
    """
    ev, truth = _repeated(1000, seed)
    low, high = ev.interval
    inside = (low <= truth) & (truth <= high)
    se = np.sqrt(0.95 * 0.05 / REPETITIONS)
    assert 0.95 - Z * se <= inside.mean() <= 0.97
    assert (ev.verdict == "unchecked").mean() > 0.999
    return {"coverage": float(inside.mean()), "se": float(se)}


def total_interval(seed: int) -> dict[str, float]:
    """How often the interval of a sum of 1000 rows at K = 10 holds the truth: the bias matters here.

    100 sums; an interval without the bias would hold it in a minority of them. At least 95 % is claimed;
    a coverage of 0.82 is seen with probability one half.
    """
    held, without = [], []
    for repetition in range(10):
        ev, truth = _repeated(10, 10 * seed + repetition)
        for rows in np.split(np.arange(REPETITIONS), 10):
            low, high = _interval(ev, rows)
            held.append(low <= truth <= high)
            half = norm.isf(0.025) * np.sqrt((ev.mcse[rows] ** 2).sum()) / len(rows)
            without.append(abs(ev.estimate[rows].mean() - truth) <= half)
    assert np.mean(held) >= 0.95 - Z * np.sqrt(0.95 * 0.05 / len(held))
    return {"coverage": float(np.mean(held)), "without bias": float(np.mean(without))}


def _interval(ev: pv.LogEvidence, rows: np.ndarray) -> tuple[float, float]:
    names = (
        "estimate",
        "mcse",
        "bias",
        "ess",
        "pareto_k",
        "kind",
        "verdict",
        "answered_by",
        "cost",
        "tail_error",
    )
    return dataclasses.replace(ev, **{name: getattr(ev, name)[rows] for name in names}).mean_interval


def unbiased_minibatches(seed: int) -> dict[str, float]:
    """The minibatch loss, N/B included, estimates the whole data set's: over random minibatches.

    A third of the rows a minibatch; the smallest bias seen is 6.1 of the returned standard errors.
    """
    torch.manual_seed(seed)
    vae = pv.VAE.mlp(6, latent_dim=2, likelihood="gaussian", hidden_dims=(8,))
    x = torch.randn(50, 6)
    objective = TraceMeanField_ELBO(num_particles=3)
    with torch.no_grad():
        whole = [float(pair_module.loss(vae, objective, {"x": x}, 50, 1.0)) for _ in range(100)]
        parts = []
        for _ in range(100):
            rows = torch.randperm(50)[:16]
            parts.append(float(pair_module.loss(vae, objective, {"x": x[rows]}, 50, 1.0)))
    se = np.hypot(np.std(whole), np.std(parts)) / 10
    assert close(float(np.mean(parts)), float(np.mean(whole)), se)
    return {"minibatches": float(np.mean(parts)), "whole": float(np.mean(whole)), "se": float(se)}


def jackknife_bias(seed: int) -> dict[str, float]:
    """Bias of the jackknife at K = 10: at most a tenth of importance's on the same draws.

    E[ŵ] = P(x), so importance's ŵ/P(x) − 1 is a control variate for both, as in ``bias``. Standard error
    about a 110th of importance's bias; what is asserted allows 6.1 of them on top of the bias seen.
    """
    oracle, repetitions = _oracle(), 3 * REPETITIONS
    row = oracle.sample(1, seed=1)
    pair, x, truth = oracle.pair(WIDEN), row.expand(repetitions, -1), float(oracle.log_prob(row))
    plain, jack = (
        pv.log_evidence(pair, x, method=method, num_samples=10, seed=seed, check=False).estimate - truth
        for method in ("importance", "jackknife")
    )
    control = np.expm1(plain)
    (before, _), (after, se) = _mean_and_error(plain - control), _mean_and_error(jack - control)
    assert close(before, -oracle.cv2(WIDEN) / 20, 0.2 * abs(before) / Z)  # of the right size to first order
    assert abs(after) + Z * se <= 0.1 * abs(before)
    return {"importance": before, "jackknife": after, "se": se}


def _mean_and_error(values: np.ndarray) -> tuple[float, float]:
    return float(values.mean()), float(values.std() / np.sqrt(len(values)))


#: Quick runs of every lower bound, with few draws, where a bound has most to hide.
BOUNDS: dict[str, dict[str, object]] = {
    "importance": {"num_samples": 10},
    "annealed": {"num_samples": 4, "num_temperatures": 15},
    "refined": {"num_samples": 100, "num_starts": 2, "num_steps": 2},
    "auto": {"target_mcse": 0.1},
}


def bound(method: str, seed: int) -> dict[str, float]:
    """A lower bound is none too high: in the mean, in probability, and its exponential is unbiased.

    E[ŵ] = P(x) is more than a bound and sharper: a mistake that only makes the bound looser shows in it, too.
    The encoder is 1.5 times as wide as the posterior, so that weights are bounded and their mean is normal.
    Smallest bias of ŵ/P(x) seen: 6.1 of the returned standard errors.
    """
    oracle, repetitions = _oracle(), 3000
    row = oracle.sample(1, seed=1)
    x, truth = row.expand(repetitions, -1), float(oracle.log_prob(row))
    ev = pv.log_evidence(oracle.pair(1.5), x, method=method, seed=seed, check=False, **BOUNDS[method])
    assert (ev.kind == "lower bound").all()
    return _is_bound(ev.estimate - truth)


def _is_bound(violation: np.ndarray) -> dict[str, float]:
    """E[v] ≤ 0, E[e^v] = 1 and P(v ≥ t) ≤ e^−t by Markov's inequality, each beyond Z standard errors."""
    mean, se = _mean_and_error(violation)
    ratio, ratio_se = _mean_and_error(np.expm1(violation))
    assert mean <= Z * se
    assert close(ratio, 0.0, ratio_se)
    for t in (0.1, 0.5, 1.0):
        most = np.exp(-t)
        assert (violation >= t).mean() <= most + Z * np.sqrt(most * (1 - most) / len(violation))
    return {"violation": mean, "se": se, "ratio − 1": ratio, "ratio se": ratio_se}


def sandwich(seed: int) -> dict[str, float]:
    """Both bounds of bidirectional Monte Carlo on 3000 simulated rows, from a mean-field encoder."""
    oracle = _oracle()
    sw = evidence.sandwich(
        oracle.mean_field_pair(),
        oracle.sample(1),
        num_rows=3000,
        num_samples=4,
        num_temperatures=15,
        seed=seed,
    )
    truth = oracle.log_prob(sw.x).numpy()
    lower, upper = _is_bound(sw.lower - truth), _is_bound(truth - sw.upper)
    return {"lower": lower["violation"], "upper": -upper["violation"], "ratio": upper["ratio − 1"]}


#: Runs of every method that claims an interval, at an encoder that is good enough for it.
INTERVALS: dict[str, dict[str, object]] = {
    "jackknife": {"num_samples": 200},
    "annealed": {"num_samples": 64, "num_temperatures": 20},
    "refined": {"num_samples": 300, "num_starts": 2, "num_steps": 3},
    "auto": {"target_mcse": 0.1},
}


def method_coverage(method: str, seed: int) -> dict[str, float]:
    """How often a method's 95 % intervals hold the truth: not less than claimed, beyond Z standard errors.

    Standard error 0.0049 at 2000 repetitions: a coverage of 0.92 is seen with probability one half.
    """
    oracle, repetitions = _oracle(), 2000
    row = oracle.sample(1, seed=1)
    x, truth = row.expand(repetitions, -1), float(oracle.log_prob(row))
    ev = pv.log_evidence(oracle.pair(WIDEN), x, method=method, seed=seed, check=False, **INTERVALS[method])
    low, high = ev.interval
    inside = float(((low <= truth) & (truth <= high)).mean())
    se = np.sqrt(0.95 * 0.05 / repetitions)
    assert inside >= 0.95 - Z * se
    # and an error that is too large covers everything and is worth nothing
    scale = float((ev.estimate - truth).std() / np.sqrt((ev.mcse**2).mean()))
    assert abs(scale - 1) <= Z * np.sqrt(0.5 / repetitions) + 0.1
    return {"coverage": inside, "noise / mcse": scale, "se": float(se)}


def quadrature_error(seed: int) -> dict[str, float]:
    """Quadrature within 1e-3 beyond its own stated error, every row, over three constrained latents."""
    worst = 0.0
    for build in CONJUGATE.values():
        case = build()
        rows = case.x[torch.randint(len(case.x), (30,), generator=torch.Generator().manual_seed(seed))]
        ev = pv.log_evidence(case.pair, rows, method="quadrature", seed=seed, tolerance=0.01, check=False)
        error = np.abs(ev.estimate - case.log_prob(rows).numpy())
        assert (error <= 1e-3 + ev.mcse).all()
        assert (ev.verdict == "unchecked").all()
        worst = max(worst, float(error.max()))
    return {"worst": worst}


CHECKS = {
    "bias, K = 100": functools.partial(bias, 100),
    "bias, K = 1000": functools.partial(bias, 1000),
    "coverage": coverage,
    "total interval": total_interval,
    "unbiased minibatches": unbiased_minibatches,
    "jackknife bias": jackknife_bias,
    **{f"bound, {method}": functools.partial(bound, method) for method in BOUNDS},
    "sandwich": sandwich,
    **{f"coverage, {method}": functools.partial(method_coverage, method) for method in INTERVALS},
    "quadrature error": quadrature_error,
}
