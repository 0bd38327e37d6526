"""Two posteriors of posteriordb as Pyro models, with its data, its reference draws and log evidences by quadrature."""

import json
import os
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor


@dataclass
class Reference:
    """What posteriordb holds of a posterior.

    x: what the model is fitted to. draws: by name, shape (chains, draws). log_evidence: "normalised", every prior
    a density on its support; "as_written", as the Stan program has it, without the factor 2 of a scale's truncated prior.
    """

    x: Tensor | dict[str, Tensor]
    draws: dict[str, np.ndarray]
    log_evidence: dict[str, float]


def reference(posterior: str) -> Reference:
    """Read a posterior's reference from below $PYROVAE_DATA; skips the test where that is not set."""
    if "PYROVAE_DATA" not in os.environ:
        pytest.skip("posteriordb lies below $PYROVAE_DATA, which is not set")
    folder = Path(os.environ["PYROVAE_DATA"]) / "posteriordb"
    data = _read(folder / "data" / f"{posterior.split('-')[0]}.json.zip")
    chains = _read(folder / "reference_draws" / f"{posterior}.json.zip")
    evidence = json.loads((folder / "reference_log_evidence.json").read_text())[posterior]
    y = torch.tensor(data["y"], dtype=torch.float64)
    return Reference(
        x={"x": y, "sigma": torch.tensor(data["sigma"], dtype=torch.float64)} if "sigma" in data else y,
        draws={name: np.array([chain[name] for chain in chains]) for name in chains[0]},
        log_evidence=evidence,
    )


def _read(path: Path):
    with zipfile.ZipFile(path) as archive:
        return json.loads(archive.read(archive.namelist()[0]))


def eight_schools(x: Tensor, sigma: Tensor) -> None:
    """Effects of eight schools with their standard errors, non-centred (Rubin 1981): a row is a school."""
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("schools", len(x)):
        standardised = pyro.sample("theta_trans", dist.Normal(0.0, 1.0))
        theta = pyro.deterministic("theta", mu + tau * standardised)
        pyro.sample("y", dist.Normal(theta, sigma), obs=x)


def autoregression(x: Tensor) -> None:
    """AR(5), conditional on the first five numbers: a row is a time."""
    alpha = pyro.sample("alpha", dist.Normal(0.0, 10.0))
    beta = pyro.sample("beta", dist.Normal(0.0, 10.0).expand([5]).to_event(1))
    sigma = pyro.sample("sigma", dist.HalfCauchy(2.5))
    past = x.unfold(0, 5, 1)[:-1].flip(-1)  # (times − 5, 5): one, two, … steps before
    with pyro.plate("times", len(x) - 5):
        pyro.sample("y", dist.Normal(alpha + past @ beta, sigma), obs=x[5:])


def as_written(model: Callable[..., None]) -> Callable[..., None]:
    """The model with the density of its one truncated scale prior as Stan leaves it: half of what integrates to one."""

    def halved(*args, **kwargs) -> None:
        pyro.factor("truncation", -torch.tensor(2.0).log())
        model(*args, **kwargs)

    return halved
