"""Every example runs, in a folder of its own, without a warning; none goes unlisted."""

import runpy
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import pytest

pytestmark = pytest.mark.usefixtures("few_checked")

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"

#: What each prints that shows it did its job, and the figures it leaves.
EXPECTED = {
    "your_own_model.py": ("rows by verdict", set()),
    "linear_gaussian.py": ("nats a row", {"linear_gaussian.png"}),
    "swap_likelihood.py": ("Refused. models: expected all masses or all densities", set()),
    "two_stochastic_layers.py": ("of 50 units active", set()),
    "cells.py": ("of held-out cells get their type", set()),
    "table.py": ("mean dose in the samples", set()),
    "figures.py": (
        "12 figures in",
        {path.name for path in (EXAMPLES.parent / "docs" / "figures").glob("*.png")},
    ),
    "digits.py": ("independent pixels", {"digits.png"}),
}
#: Arguments of those that take some.
ARGUMENTS = {
    "two_stochastic_layers.py": ["--rows", "200", "--epochs", "3"],
    "figures.py": ["--rows", "20", "--epochs", "2"],
}


def test_every_example_is_listed():
    assert {path.name for path in EXAMPLES.glob("*.py")} == EXPECTED.keys()


@pytest.mark.slow
@pytest.mark.parametrize("name", EXPECTED)
def test_example(name, tmp_path, monkeypatch, capsys, request):
    """As a script, in this process: a process of its own would import torch, Pyro and ArviZ again."""
    monkeypatch.chdir(tmp_path)
    if name != "linear_gaussian.py":  # whose numbers are compared below
        request.getfixturevalue("few_epochs")
    monkeypatch.setattr(sys, "argv", [name, *ARGUMENTS.get(name, ())])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    plt.close("all")
    printed = capsys.readouterr().out
    text, figures = EXPECTED[name]
    assert text in printed
    assert {path.name for path in tmp_path.iterdir()} == figures
    if name == "linear_gaussian.py":
        bounds_are_in_order(printed)


def bounds_are_in_order(printed):
    """ELBO ≤ importance-weighted ≤ exact, and closing."""
    value = {
        line[:22].strip(): float(line[22:].split()[0]) for line in printed.splitlines() if len(line) > 22
    }
    assert value["ELBO"] < value["exact"]
    assert value["importance, K = 1000"] == pytest.approx(value["exact"], abs=0.01)
    assert value["exact"] == pytest.approx(value["PPCA, fitted exactly"], abs=0.05)
