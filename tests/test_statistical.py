"""The statistical checks, on one seed; benchmarks/fresh_seeds.py runs them on 200."""

import pytest
from rates import SEED
from statistical import CHECKS


@pytest.mark.statistical
@pytest.mark.parametrize("name", CHECKS)
def test_statistical(name):
    assert CHECKS[name](SEED)
