"""Every test starts and ends with an empty parameter store and torch's generator as it found it."""

import os

import matplotlib
import pyro
import pytest
import torch

matplotlib.use("Agg")
if "PYTEST_XDIST_WORKER" in os.environ:
    # The workers share the cores: two threads each, and in each process they start, would wait for one another.
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"


def pytest_collection_modifyitems(items):
    """The longest test first: the others fill the second worker while it runs."""
    items.sort(key=lambda item: "planted_bug" not in item.name)


@pytest.fixture(autouse=True)
def untouched_globals():
    """No test may leave something in Pyro's global store, or move torch's global generator unseen."""
    pyro.clear_param_store()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield
    pyro.clear_param_store()
