"""Every test starts and ends with an empty parameter store and torch's generator as it found it."""

import matplotlib
import pyro
import pytest
import torch

matplotlib.use("Agg")


@pytest.fixture(autouse=True)
def untouched_globals():
    """No test may leave something in Pyro's global store, or move torch's global generator unseen."""
    pyro.clear_param_store()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield
    pyro.clear_param_store()
