"""Every test starts and ends with an empty parameter store and torch's generator as it found it."""

import gc
import os
import sys

import matplotlib
import numpy as np
import pyro
import pytest
import torch

import pyrovae as pv
from pyrovae import evidence, tracing
from pyrovae.training import traced

matplotlib.use("Agg")


def pytest_configure(config):
    """Workers share the cores: two threads each, of torch or of NumPy's BLAS, would wait for one another.

    Both read the variable once, when they are loaded: it must stand before the workers start.
    """
    if config.getoption("numprocesses", None):
        os.environ["OMP_NUM_THREADS"] = "1"


def pytest_collection_modifyitems(items):
    """The longest test first: the others fill the second worker while it runs."""
    items.sort(key=lambda item: "planted_bug" not in item.name)


def pytest_collection_finish():
    """The collector leaves alone what was imported and collected: looking through it took a twentieth of the time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 100)


@pytest.fixture(autouse=True)
def untouched_globals():
    """No test may leave something in Pyro's global store, or move torch's global generator unseen."""
    pyro.clear_param_store()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        yield
    pyro.clear_param_store()


@pytest.fixture(scope="module")
def few_checked():
    """Checks of a method on 8 trusted rows in place of 64, in all of a module whose tests do not show what a check finds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.modules["pyrovae.evidence.check"], "_AT_ONCE", 8)
        yield


@pytest.fixture
def unchecked(monkeypatch):
    """No checks of methods on simulated rows: trusted rows are "unchecked"."""
    made = evidence.Check("", 0, 0, 0, 0, None, "left out in this test", np.empty(0), 0, 0)
    monkeypatch.setattr(sys.modules["pyrovae.evidence.check"], "_try", lambda *_: made)


@pytest.fixture
def few_epochs(monkeypatch):
    """Fits of at most 15 epochs, for pages and examples that need no more to show that they run."""
    fit = pv.fit
    monkeypatch.setattr(
        pv, "fit", lambda *given, epochs, **options: fit(*given, epochs=min(epochs, 15), **options)
    )


@pytest.fixture
def as_if_compiled(monkeypatch):
    """Steps count as compiled, though their graphs run operation by operation; those graphs, in order."""
    graphs = []
    monkeypatch.setattr(tracing.steps, "compile_graph", lambda graph, *_: graphs.append(graph) or graph)
    monkeypatch.setattr(tracing, "why_not_compiled", lambda device: None)
    return graphs


@pytest.fixture
def inside(monkeypatch, as_if_compiled):
    """Every step in such a graph, with its update, several a call."""
    monkeypatch.setattr(traced, "_COMPILING_PAYS", 0)
