"""Every example runs, in a folder of its own, without a warning; none goes unlisted."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"

#: What each prints that shows it did its job, and the figure it leaves.
EXPECTED = {
    "your_own_model.py": ("rows by verdict", None),
    "linear_gaussian.py": ("nats a row", "linear_gaussian.png"),
    "swap_likelihood.py": ("Refused. models: expected all masses or all densities", None),
    "digits.py": ("independent pixels", "digits.png"),
}


def test_every_example_is_listed():
    assert {path.name for path in EXAMPLES.glob("*.py")} == EXPECTED.keys()


def run(name, folder):
    environment = {**os.environ, "MPLBACKEND": "Agg"}
    ignored = ["-W", "ignore:`torch.jit:DeprecationWarning"]
    return subprocess.run(
        [sys.executable, "-W", "error", *ignored, str(EXAMPLES / name)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("name", EXPECTED)
def test_example(name, tmp_path):
    result = run(name, tmp_path)
    assert result.returncode == 0, result.stderr
    text, figure = EXPECTED[name]
    assert text in result.stdout
    assert {path.name for path in tmp_path.iterdir()} == ({figure} if figure else set())


def test_linear_gaussian_bounds_are_in_order(tmp_path):
    """ELBO ≤ importance-weighted ≤ exact, and closing: as printed."""
    lines = run("linear_gaussian.py", tmp_path).stdout.splitlines()
    elbo, *_, exact, _fitted = [
        float(line.rsplit("  ")[-1].split()[0]) if "±" not in line else None for line in lines
    ]
    bounds = [float(line.split("±")[0].split()[-1]) for line in lines if "±" in line]
    assert elbo < bounds[-1] < exact + 0.01
    assert abs(bounds[-1] - exact) < abs(elbo - exact) + 1e-9
