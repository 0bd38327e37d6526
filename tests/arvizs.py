"""Names of arviz 0.x and 1.x for what the tests take from it."""

import math

import arviz
import numpy as np
import pytest

MODERN = not arviz.__version__.startswith("0.")


def psislw(log_weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pareto-smoothed log weights, and k-hat, of each row of log weights, shape (rows, draws)."""
    if not MODERN:
        return arviz.psislw(log_weights.copy())
    from arviz_stats.base import array_stats

    num = log_weights.shape[-1]
    if num < 100:
        pytest.skip("arviz 1.x gives no k-hat of 5 draws, which are the tail of 25 and of 26")
    # It rounds the length of a tail down, Vehtari et al. (2024) round it up. Above 225 draws r_eff sets it.
    r_eff = 9 * num / math.ceil(3 * num**0.5) ** 2 * (1 - 1e-12) if num > 225 else 1.0
    return array_stats.psislw(-log_weights, r_eff=r_eff)  # which takes log likelihoods, and negates them
