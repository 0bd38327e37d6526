"""suggest(): which families fit each column of an array or a table, and why."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pyrovae import checks

if TYPE_CHECKING:
    import pandas as pd

_FEW_LEVELS = 20  # up to so many levels a column may be a label or a grade
_MOST_LEVELS = 256  # up to so many they may be a pixel's
_OVERDISPERSED = 1.5  # variance over mean, above which counts are not Poisson
_EXTRA_ZEROS = 0.05  # share of zeros beyond what a negative binomial has
_SKEWED = 1.0
_HEAVY = 1.0  # excess kurtosis, above which tails are heavier than a Gaussian's


def suggest(x: Any) -> pd.DataFrame:
    """Which likelihoods fit each column of ``x``, the likeliest first, and why.

    Looks at each column's values alone: whole or not, their range, how spread, how skewed. Fit the
    candidates with ``pyrovae.swap`` and let held-out log P(x) decide; masses and densities never compare.

    Args:
        x: rows on dim 0, columns on dim 1; tensor, numpy array or DataFrame.

    Returns:
        A frame with a line for every column and family: ``column``, ``family``, its name in
        ``likelihoods.REGISTRY``, ``options`` for it, and ``why``. A column that does not vary has family None.

    Raises:
        TypeError, ValueError: see ``pyrovae.checks.rows``.

    Example:
        >>> import torch
        >>> suggest(torch.tensor([[0.0, 1.5], [1.0, -0.2], [1.0, 0.1]]))["family"].tolist()
        ['bernoulli', 'gaussian']
    """
    import pandas as pd

    names = list(x.columns) if hasattr(x, "columns") else None
    rows = checks.rows(checks.in_double(x), dtype=torch.float64).flatten(1).cpu().numpy()
    lines = [
        {"column": index if names is None else names[index], "family": family, "options": options, "why": why}
        for index, column in enumerate(rows.T)
        for family, options, why in _candidates(column)
    ]
    return pd.DataFrame(lines, columns=["column", "family", "options", "why"])


def _candidates(column: np.ndarray) -> list[tuple[str | None, dict[str, Any], str]]:
    low, high = column.min(), column.max()
    if low == high:
        return [(None, {}, f"does not vary: {low:g} in every row")]
    if (column == np.round(column)).all():
        return _whole(column)
    if low >= 0 and high <= 1:
        inside = low > 0 and high < 1
        why = f"in [{low:.3g}, {high:.3g}]"
        found: list[tuple[str | None, dict[str, Any], str]] = []
        if inside:
            found.append(("beta", {}, f"{why}: inside (0, 1)"))
        return [*found, ("continuous_bernoulli", {}, f"{why}: a share, 0 and 1 allowed")]
    skew, heavy = _shape(column)
    if low > 0 and skew > _SKEWED:
        why = f"positive, skewness {skew:.1f}"
        return [("log_normal", {"scale": "shared"}, why), ("gamma", {}, why)]
    if heavy > _HEAVY:
        why = f"real, excess kurtosis {heavy:.1f}: tails heavier than a Gaussian's"
        return [(name, {"scale": "shared"}, why) for name in ("student_t", "laplace", "gaussian")]
    return [("gaussian", {"scale": "shared"}, f"real, skewness {skew:.1f}, excess kurtosis {heavy:.1f}")]


def _whole(column: np.ndarray) -> list[tuple[str | None, dict[str, Any], str]]:
    low, high = column.min(), column.max()
    if low >= 0 and high == 1:
        return [("bernoulli", {}, "zeros and ones")]
    if low < 0:
        return [("gaussian", {"scale": "shared"}, f"whole, down to {low:g}: no count; dequantise it, x + u")]
    found: list[tuple[str | None, dict[str, Any], str]] = []
    levels, mean, variance = int(high) + 1, column.mean(), column.var()
    ratio = variance / mean
    zeros = (column == 0).mean()
    if ratio <= _OVERDISPERSED:
        found.append(("poisson", {}, f"whole, variance {ratio:.2g} times the mean"))
    else:
        why = f"whole, variance {ratio:.2g} times the mean"
        concentration = mean**2 / (variance - mean)
        expected = (concentration / (concentration + mean)) ** concentration
        if zeros > expected + _EXTRA_ZEROS:
            more = f"{zeros:.0%} zeros where a negative binomial has {expected:.0%}"
            found.append(("zero_inflated_negative_binomial", {}, f"{why}; {more}"))
        found.append(("negative_binomial", {}, why))
    if levels <= _FEW_LEVELS:
        why = f"{levels} levels, 0 to {levels - 1}"
        found.append(("binomial", {"total_count": levels - 1}, f"{why}: if a count out of {levels - 1}"))
        found.append(("ordinal", {"num_levels": levels}, f"{why}: if grades in an order"))
        found.append(("categorical", {"num_categories": levels}, f"{why}: if labels without an order"))
    if _FEW_LEVELS / 2 < levels <= _MOST_LEVELS:
        found.append(("discretized_logistic", {"levels": levels}, f"{levels} levels: if a pixel's"))
    return found


def _shape(column: np.ndarray) -> tuple[float, float]:
    """Skewness and excess kurtosis."""
    z = (column - column.mean()) / column.std()
    return float((z**3).mean()), float((z**4).mean() - 3)
