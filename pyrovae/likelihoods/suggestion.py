"""suggest(): lists the families that can take each column of an array or a table, best fit first, with reasons."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from pyrovae.rounding import WHOLE
from pyrovae.rows import as_passed, joined, read_in_double, restored

if TYPE_CHECKING:
    import pandas as pd

_FEW_LEVELS = 20  # a column of up to so many levels may hold labels or grades
_MOST_LEVELS = 256  # a column of up to so many levels may hold pixels
_REPEATED = 0.05  # densities leave out one value if it fills more than this share of the rows
_ROWS = 2000  # families are compared on so many rows, evenly spread
_COLUMNS = 64  # columns of a sparse matrix that are dense at once
_CONCENTRATIONS = np.geomspace(0.01, 1000, 60)  # of a negative binomial
_DEGREES = np.array([1.5, 3.0, 5.0, 10.0, 30.0])  # of freedom of Student's t


class _Candidate(NamedTuple):
    """A family, its options, the reason for it, its log-likelihood and how many numbers were fitted."""

    family: str
    options: dict[str, Any]
    why: str
    log_likelihood: float
    fitted: int


def suggest(x: Any) -> pd.DataFrame:
    """Return the built-in likelihoods that can take each column of ``x``, the best fit first, with the reason for each.

    ``suggest`` fits each family to the column's values alone, without latents. It orders families by log-likelihood
    minus ½ log(rows) for every fitted number (BIC). Columns of whole numbers ≥ 0 get masses, all others get densities.
    If one value fills more than 5 % of a column of real numbers, densities are fitted to the other rows. If such a
    column is non-negative, Laplace and Student's t are left out: their peak could sit on that value.

    The order may differ for models with latents. A continuous Bernoulli has no scale, so it loses most where latents tell x
    nearly exactly. Fit them with ``pyrovae.swap`` and compare held-out log P(x).

    Args:
        x: rows on dim 0, columns on dim 1: a tensor, numpy array or DataFrame; or one column. Missing cells, NaN, None or NA,
            are left out.

    Returns:
        A frame with a line for every column and family: ``column``, ``family`` (its name in
        ``likelihoods.REGISTRY``), ``options`` for it, and ``why``. A constant or empty column has family None.

    Raises:
        TypeError, ValueError: x is no tensor, array or frame of real numbers.

    Schwarz (1978) derives the BIC.

    Example:
        >>> import torch
        >>> frame = suggest(torch.tensor([[0.0, 1.5], [1.0, -0.2], [1.0, 0.1]]))
        >>> frame["family"].tolist()
        ['bernoulli', 'gaussian', 'laplace', 'student_t']
    """
    import pandas as pd

    x = joined(x, "x")
    _, passed = as_passed(x)
    names = list(passed.columns) if hasattr(passed, "columns") else None
    batch, source = read_in_double(x, missing=True)
    rows = restored(batch["x"], source.observed)
    if rows.dim() == 1:  # one column
        rows, own = rows[:, None], getattr(passed, "name", None)
        names = names if own is None else [own]
    rows = rows.flatten(1)
    lines = [
        {"column": index if names is None else names[index], "family": family, "options": options, "why": why}
        for first in range(0, rows.shape[1], _COLUMNS)
        for index, column in enumerate(rows[:, first : first + _COLUMNS].cpu().numpy().T, start=first)
        for family, options, why in _ordered(column[~np.isnan(column)], bool(np.isnan(column).any()))
    ]
    return pd.DataFrame(lines, columns=["column", "family", "options", "why"])


def _ordered(column: np.ndarray, missing: bool) -> list[tuple[str | None, dict[str, Any], str]]:
    if not len(column):
        return [(None, {}, "no observed cell")]
    low, high = column.min(), column.max()
    if low == high:
        return [(None, {}, f"does not vary: {low:g} in every {'observed ' * missing}row")]
    # Larger numbers are whole in float64 whatever they measure.
    whole = bool((column == np.round(column)).all()) and max(high, -low) <= WHOLE
    if whole and low < 0:
        return [("gaussian", {"scale": "shared"}, f"whole, down to {low:g}: no count; dequantise it, x + u")]
    some = column[np.linspace(0, len(column) - 1, min(len(column), _ROWS)).astype(int)]
    if some.min() == some.max():  # the column varies in other rows only
        some = column
    with np.errstate(all="ignore"):  # a fit that returns NaN is ordered last
        found = _masses(some, int(high)) if whole else _densities(some, low, high)
    costs = {
        each.family: each.fitted * np.log(len(some)) / 2 - np.nan_to_num(each.log_likelihood, nan=-np.inf)
        for each in found
    }
    # Within a nat of the best, the simpler family comes first: far from zero, a log-normal is close to a Gaussian.
    found.sort(key=lambda each: max(costs[each.family], min(costs.values()) + 1))
    return [(each.family, each.options, each.why) for each in found]


# ---------------------------------------------------------------------------------------------------------
# Whole numbers from 0 on


def _masses(column: np.ndarray, high: int) -> list[_Candidate]:
    from scipy.special import xlogy

    values, times = np.unique(column, return_counts=True)
    mean, variance, levels = column.mean(), column.var(), high + 1
    best = float(xlogy(times, times / len(column)).sum())  # under a free probability for every value
    if high == 1:
        return [_Candidate("bernoulli", {}, "zeros and ones", best, 1)]
    why = f"whole, variance {variance / mean:.2g} times the mean"
    zeros = (column == 0).mean()
    found = [
        _Candidate("poisson", {}, why, _poisson(values, times, mean), 1),
        _Candidate("negative_binomial", {}, why, _negative_binomial(values, times, mean), 2),
    ]
    if 0 < zeros < 1 and high > 1:
        inflated = _inflated(values[1:], times[1:], len(column), zeros)
        found.append(
            _Candidate("zero_inflated_negative_binomial", {}, f"{why}; {zeros:.0%} zeros", inflated, 3)
        )
    if levels <= _FEW_LEVELS:
        why = f"{len(values)} of the levels 0 to {high}"
        if len(values) == 2:
            why = f"two values, {values[0]:g} and {values[1]:g}; for bernoulli, recode them as 0 and 1"
        fitted = len(values) - 1
        found += [
            _Candidate("ordinal", {"num_levels": levels}, f"{why}; for ordered grades", best, fitted),
            _Candidate(
                "categorical", {"num_categories": levels}, f"{why}; for labels without an order", best, fitted
            ),
            _Candidate(
                "binomial",
                {"total_count": high},
                f"{why}; for counts out of {high}",
                _binomial(values, times, high),
                1,
            ),
        ]
    if _FEW_LEVELS / 2 < levels <= _MOST_LEVELS:
        found.append(
            _Candidate(
                "discretized_logistic",
                {"levels": levels},
                f"{levels} levels; for pixels",
                _discretized_logistic(values, times, mean, variance, high),
                2,
            )
        )
    return found


def _poisson(values: np.ndarray, times: np.ndarray, mean: float) -> float:
    from scipy.stats import poisson

    return float(times @ poisson.logpmf(values, mean))


def _negative_binomial(values: np.ndarray, times: np.ndarray, mean: float) -> float:
    """Return the largest log-likelihood over a grid of concentrations, at the column's mean."""
    from scipy.stats import nbinom

    r = _CONCENTRATIONS[:, None]
    return float((nbinom.logpmf(values, r, r / (r + mean)) @ times).max())


def _inflated(values: np.ndarray, times: np.ndarray, num_rows: int, zeros: float) -> float:
    """Return the largest log-likelihood over a grid of concentrations; zeros have a free probability."""
    from scipy.stats import nbinom

    r, mean = _CONCENTRATIONS, times @ values / times.sum()
    inner = np.full_like(r, mean)
    for _ in range(100):  # m (1 − P(0))⁻¹ is the mean of the non-zero counts
        inner = mean * -np.expm1(r * np.log(r / (r + inner)))
    none = r * np.log(r / (r + inner))  # log P(0)
    allowed = np.exp(none) <= zeros  # a gate only adds zeros
    each = nbinom.logpmf(values, r[:, None], (r / (r + inner))[:, None]) @ times - times.sum() * np.log(
        -np.expm1(none)
    )
    if not allowed.any():
        return -np.inf
    share = num_rows * zeros * np.log(zeros) + num_rows * (1 - zeros) * np.log1p(-zeros)
    return float(each[allowed].max() + share)


def _binomial(values: np.ndarray, times: np.ndarray, high: int) -> float:
    from scipy.stats import binom

    return float(times @ binom.logpmf(values, high, times @ values / times.sum() / high))


def _discretized_logistic(
    values: np.ndarray, times: np.ndarray, mean: float, variance: float, high: int
) -> float:
    """Return the largest log-likelihood at the mean, over scales around the one that gives the column's variance."""
    from scipy.special import expit

    scale = (3 * variance) ** 0.5 / np.pi * np.geomspace(0.3, 3, 30)[:, None]
    above = np.where(values == high, np.inf, values + 0.5)
    below = np.where(values == 0, -np.inf, values - 0.5)
    mass = expit((above - mean) / scale) - expit((below - mean) / scale)
    return float((np.log(mass.clip(min=1e-300)) @ times).max())


# ---------------------------------------------------------------------------------------------------------
# Real numbers


def _densities(column: np.ndarray, low: float, high: float) -> list[_Candidate]:
    values, times = np.unique(column, return_counts=True)
    share, value = times.max() / len(column), values[times.argmax()]
    note, repeated = "", bool(share > _REPEATED and len(values) > 2 and times.max() > 1)
    if repeated:
        note = f"; {share:.0%} are exactly {value:g}. A density gives one value no mass: model these rows separately"
        column = column[column != value]
    if low < 0 or high > 1:  # rescaled against overflow; this shifts all families alike
        column = column / np.abs(column).max()
    z = (column - column.mean()) / column.std()
    why = f"in [{low:.3g}, {high:.3g}], skewness {(z**3).mean():.1f}, excess kurtosis {(z**4).mean() - 3:.1f}{note}"
    learned = {"scale": "shared"}
    found = [_Candidate("gaussian", learned, f"real: {why}", _gaussian(column), 2)]
    if low > 0:
        log = np.log(column)
        found += [
            _Candidate("log_normal", learned, f"positive: {why}", _gaussian(log) - log.sum(), 2),
            _Candidate("gamma", {}, f"positive: {why}", _gamma(column), 2),
        ]
    if low >= 0 and high <= 1:
        if low > 0 and high < 1:
            found.append(_Candidate("beta", {}, f"inside (0, 1): {why}", _beta(column), 2))
        found.append(
            _Candidate(
                "continuous_bernoulli",
                {},
                f"a share, 0 and 1 allowed: {why}",
                _continuous_bernoulli(column),
                1,
            )
        )
    if not (repeated and low >= 0):
        found += [
            _Candidate("laplace", learned, f"real, heavier tails: {why}", _laplace(column), 2),
            _Candidate("student_t", learned, f"real, tails of a power: {why}", _student_t(column), 3),
        ]
    return found


def _gaussian(column: np.ndarray) -> float:
    return float(-len(column) * (np.log(column.std()) + 0.5 * np.log(2 * np.pi * np.e)))


def _laplace(column: np.ndarray) -> float:
    spread = np.abs(column - np.median(column)).mean()
    return float(-len(column) * (np.log(2 * spread) + 1))


def _student_t(column: np.ndarray) -> float:
    """Return the largest log-likelihood over _DEGREES; EM fits location and scale (Lange, Little and Taylor 1989)."""
    from scipy.special import gammaln

    nu, least = _DEGREES[:, None], 1e-12 * column.var()
    loc, square = np.full_like(nu, np.median(column)), np.full_like(nu, column.var())
    for _ in range(20):
        apart = (column - loc) ** 2
        weight = (nu + 1) / (nu + apart / square)
        square = (weight * apart).mean(axis=1, keepdims=True).clip(min=least)
        loc = (weight @ column / weight.sum(axis=1))[:, None]
    tails = (nu + 1) / 2 * np.log1p((column - loc) ** 2 / (nu * square))
    each = gammaln((nu + 1) / 2) - gammaln(nu / 2) - 0.5 * np.log(np.pi * nu * square) - tails
    return float(each.sum(axis=1).max())


def _gamma(column: np.ndarray) -> float:
    """Return the log-likelihood at a concentration close to the maximum-likelihood one (Minka 2002)."""
    from scipy.stats import gamma

    s = max(np.log(column.mean()) - np.log(column).mean(), 1e-12)
    concentration = (3 - s + ((s - 3) ** 2 + 24 * s) ** 0.5) / (12 * s)
    return float(gamma.logpdf(column, concentration, scale=column.mean() / concentration).sum())


def _beta(column: np.ndarray) -> float:
    """Return the log-likelihood at the parameters that match the column's moments."""
    from scipy.stats import beta

    mean = column.mean()
    concentration = max(mean * (1 - mean) / column.var() - 1, 1e-3)
    return float(beta.logpdf(column, concentration * mean, concentration * (1 - mean)).sum())


def _continuous_bernoulli(column: np.ndarray) -> float:
    """Return rows · max_η (η x̄ − log((e^η − 1) / η)), over a grid of logits η."""
    eta = np.concatenate([-np.geomspace(1e4, 1e-3, 400), np.geomspace(1e-3, 1e4, 400)])
    size = np.abs(eta)
    log_ratio = eta.clip(min=0) + np.log(-np.expm1(-size) / size)
    return float(len(column) * (eta * column.mean() - log_ratio).max())
