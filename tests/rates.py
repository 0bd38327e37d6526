"""Tolerances of statistical tests, from the sample's own standard error at a stated false-alarm rate.

The whole suite makes fewer than ``CHECKS`` statistical comparisons; together they raise a false alarm at
a rate of at most 1e-6. A comparison of a mean with standard error ``se`` then sees every bias of
``detectable(se)`` with probability one half, and of one standard error more with 84 %.
"""

import os

from scipy.stats import norm

CHECKS = 1000
Z = float(norm.isf(1e-6 / CHECKS / 2))  # 6.1 standard errors

#: Nothing is tuned to a seed: benchmarks/fresh_seeds.py runs the same checks on 200 others.
SEED = int(os.environ.get("PYROVAE_TEST_SEED", "0"))


def detectable(se: float) -> float:
    """The smallest bias that a comparison sees with probability one half."""
    return Z * se


def close(mean: float, truth: float, se: float) -> bool:
    """Whether a mean with standard error ``se`` is compatible with the truth."""
    return abs(mean - truth) <= Z * se
