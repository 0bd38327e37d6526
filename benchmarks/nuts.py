"""How fast is NUTS, against Pyro's NUTS and NumPyro's?

    python benchmarks/nuts.py --numpyro /path/to/a/python/with/numpyro --json benchmarks/results/nuts.json

2 chains of 500 draws after 500 of warm-up, one after the other, in float64 on one thread: eight schools (10
parameters), a regression of 100 rows on 5 columns (7), effects of 40 groups (43) and Bayesian PCA (18). Each run is a
fresh process, timed after its imports, tracing and compiling included; "sampling" leaves both out. "first compile" is
on a machine where inductor has compiled nothing. "Pyro" is ``pyro.infer.MCMC`` on the same model (not for Bayesian PCA, whose model is
pyrovae's own). "Pyro's NUTS, traced" runs on the traced log joint, not compiled, as pyrovae without nutpie does where
compiling does not pay. Each table's answers are the smallest effective sample size in bulk
of the parameters (``arviz.ess``), and the notes have seconds for each. The posterior means of all peers are compared,
each in Monte-Carlo standard errors of the two. NumPyro need not be installed beside torch: ``--numpyro`` names its
Python, and without it this peer is listed as not installed.
"""

from __future__ import annotations

import contextlib
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any
from unittest import mock

import arviz
import harness
import numpy as np
import pyro
import pyro.distributions as dist
import torch
from harness import Aim, Clocked, Options, Peer, Table
from pyro.infer import MCMC, NUTS
from torch import Tensor

import pyrovae as pv
from pyrovae.baselines.mcmc import native
from pyrovae.tracing import TracedDensity

RUN = {"num_chains": 2, "warmup_steps": 500, "num_samples": 500}
OURS, FIRST, SAMPLING = "pyrovae", "pyrovae, first compile", "pyrovae, sampling"
PYRO, TRACED = "Pyro", "Pyro's NUTS, traced"
NUMPYRO, NUMPYRO_SAMPLING = "NumPyro", "NumPyro, sampling"


def schools(x: Tensor, sigma: Tensor) -> None:
    """Effects of schools with known standard errors, non-centred (Rubin 1981)."""
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("schools", len(x)):
        effect = pyro.sample("effect", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(mu + tau * effect, sigma), obs=x)


def regression(x: Tensor, features: Tensor) -> None:
    """A linear regression whose noise is unknown."""
    slopes = pyro.sample("slopes", dist.Normal(0.0, 3.0).expand([features.shape[1]]).to_event(1))
    level = pyro.sample("level", dist.Normal(0.0, 3.0))
    noise = pyro.sample("noise", dist.HalfNormal(2.0))
    with pyro.plate("rows", len(x)):
        pyro.sample("x", dist.Normal(level + features @ slopes, noise), obs=x)


def groups(x: Tensor, group: Tensor) -> None:
    """40 groups of 10 rows, with effects that are centred because each is well observed."""
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfNormal(2.0))
    noise = pyro.sample("noise", dist.HalfNormal(2.0))
    effect = pyro.sample("effect", dist.Normal(mu, tau).expand([40]).to_event(1))
    with pyro.plate("rows", len(x)):
        pyro.sample("x", dist.Normal(effect[group.long()], noise), obs=x)


def data() -> dict[str, dict[str, np.ndarray]]:
    """What each model is fitted to, by its name."""
    rng = np.random.default_rng(0)
    features, group = rng.normal(size=(100, 5)), np.arange(400) % 40
    return {
        "eight schools": {
            "x": np.array([28.0, 8, -3, 7, -1, 1, 18, 12]),
            "sigma": np.array([15.0, 10, 16, 11, 9, 11, 10, 18]),
        },
        "regression": {
            "x": features @ [1.0, -2.0, 0.5, 0.0, 3.0] + 0.7 * rng.normal(size=100),
            "features": features,
        },
        "groups": {"x": 2 + 1.3 * rng.normal(size=40)[group] + rng.normal(size=400), "group": group},
        "Bayesian PCA": {
            "x": rng.normal(size=(100, 2)) @ rng.normal(size=(2, 6)) + 0.5 * rng.normal(size=(100, 6))
        },
    }


MODELS = {"eight schools": schools, "regression": regression, "groups": groups}


def fitted(name: str, seed: int, way: str) -> dict[str, Any]:
    """Seconds of a fit and of its sampling alone, and its draws by parameter, (parameters, chains, draws)."""
    torch.set_num_threads(1)
    if name in MODELS:
        mcmc: Any = pv.baselines.PyroMCMC(MODELS[name], seed=seed, **RUN)
    else:
        mcmc = pv.baselines.BayesianPCA(2, seed=seed, **RUN)
    x = {key: torch.from_numpy(value) for key, value in data()[name].items()}
    sampling = 0.0
    run = native.run_chain

    def timed(*arguments: Any, **options: Any) -> Any:
        nonlocal sampling
        started = time.perf_counter()
        found = run(*arguments, **options)
        sampling += time.perf_counter() - started
        return found

    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(native, "run_chain", timed))
        if way == TRACED:
            stack.enter_context(mock.patch.object(native, "nutpie", return_value=None))
            stack.enter_context(mock.patch.object(TracedDensity, "pays", return_value=False))
        seconds = harness.seconds(lambda: mcmc.fit(x))
    return {"seconds": seconds, "sampling": sampling, "draws": by_parameter(mcmc.posterior)}


def by_parameter(posterior: Mapping[str, Tensor]) -> np.ndarray:
    """Draws of sites, (chains, draws, ...), as (parameters, chains, draws)."""
    draws = [value.reshape(*value.shape[:2], -1) for _, value in sorted(posterior.items())]
    return torch.cat(draws, dim=2).movedim(2, 0).numpy()


def by_pyro(name: str, seed: int) -> dict[str, Any]:
    """The same by Pyro itself, one chain after the other."""
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    x = {key: torch.from_numpy(value) for key, value in data()[name].items()}
    chains = []

    def run() -> None:
        for chain in range(RUN["num_chains"]):
            pyro.set_rng_seed(RUN["num_chains"] * seed + chain)
            draws = {key: RUN[key] for key in ("warmup_steps", "num_samples")}
            mcmc = MCMC(NUTS(MODELS[name]), disable_progbar=True, **draws)
            mcmc.run(**x)
            chains.append(mcmc.get_samples())

    seconds = harness.seconds(run)
    posterior = {site: torch.stack([chain[site] for chain in chains]) for site in chains[0]}
    return {"seconds": seconds, "sampling": seconds, "draws": by_parameter(posterior)}


def fitted_first(name: str, seed: int) -> dict[str, Any]:
    """The same on a machine where inductor has compiled nothing."""
    with tempfile.TemporaryDirectory() as folder, mock.patch.dict(os.environ, TORCHINDUCTOR_CACHE_DIR=folder):
        return harness.apart(fitted, name, seed, FIRST)


def by_numpyro(python: Path, name: str, seed: int) -> dict[str, Any]:
    """The same by NumPyro, in another environment."""
    with tempfile.TemporaryDirectory() as folder:
        given, came = Path(folder) / "given.npz", Path(folder) / "came.npz"
        np.savez(given, **data()[name])
        script = Path(__file__).with_name("nuts_numpyro.py")
        subprocess.run([python, script, name, str(seed), given, came], check=True)
        with np.load(came) as found:
            return {
                "seconds": float(found["seconds"]),
                "sampling": float(found["sampling"]),
                "draws": found["draws"],
            }


def bulk(draws: np.ndarray) -> float:
    """The smallest effective sample size in bulk, of (parameters, chains, draws)."""
    return min(float(arviz.ess(one)) for one in draws)


def furthest(draws: np.ndarray, others: np.ndarray) -> float:
    """The largest difference of two runs' posterior means, in standard errors of both."""

    def error(one: np.ndarray) -> float:
        return float(arviz.mcse(one, method="mean"))

    return max(
        abs(a.mean() - b.mean()) / math.hypot(error(a), error(b)) for a, b in zip(draws, others, strict=True)
    )


def table(name: str, numpyro: Path | None, options: Options) -> tuple[Table, dict[str, float]]:
    """Seconds of every peer on a model, and notes."""
    kept: dict[str, list[dict[str, Any]]] = {}

    def peer(label: str, run: Callable[[int], dict[str, Any]] | None) -> list[Peer]:
        """The peer, and where sampling alone has a time, one that repeats its last run's."""

        def whole() -> Clocked:
            found = run(len(kept.setdefault(label, [])))  # type: ignore[misc]
            kept[label].append(found)
            return Clocked(bulk(found["draws"]), found["seconds"])

        def sampling() -> Clocked:
            last = kept[label][-1]
            return Clocked(bulk(last["draws"]), last["sampling"])

        peers = [Peer(label, whole if run else None, 1)]
        if label in (OURS, NUMPYRO):
            peers.append(Peer(f"{label}, sampling", sampling if run else None, 1))
        return peers

    if options.rounds:  # what this machine has compiled before
        harness.apart(fitted, name, 0, OURS)
    peers = [
        *peer(OURS, lambda seed: harness.apart(fitted, name, seed, OURS)),
        *peer(FIRST, lambda seed: fitted_first(name, seed)),
        *peer(PYRO, (lambda seed: harness.apart(by_pyro, name, seed)) if name in MODELS else None),
        *peer(TRACED, lambda seed: harness.apart(fitted, name, seed, TRACED)),
        *peer(NUMPYRO, (lambda seed: by_numpyro(numpyro, name, seed)) if numpyro else None),
    ]
    found = harness.compare(
        f"NUTS, {name}",
        peers,
        options=options,
        reference=OURS,
        unit="s a run",
        answer="smallest effective sample sizes",
        warm_up=False,
    )
    notes = {}
    for label, runs in kept.items():
        each = statistics.median(run["seconds"] / bulk(run["draws"]) for run in runs)
        notes[f"{name}: ms for an effective draw, {label}"] = 1000 * each
        if label != OURS:
            z = furthest(kept[OURS][0]["draws"], runs[0]["draws"])
            notes[f"{name}: largest difference of means, standard errors, {label}"] = z
    return found, notes


def main() -> None:
    parser = harness.arguments(__doc__, rounds=3)
    parser.add_argument("models", nargs="*", default=[], help="names of models (default: all)")
    parser.add_argument("--numpyro", type=Path, help="a Python that can import numpyro")
    parsed = parser.parse_args()
    options = Options.of(parsed)
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    tables, notes, aims = [], {}, []
    for name in parsed.models or data():
        found, said = table(name, parsed.numpyro, options)
        print(f"{found}\n\nload of the host: {os.getloadavg()[0]:.1f}\n", flush=True)
        tables.append(found)
        notes |= said
        aims += [
            Aim(f"{name}: faster than Pyro", found.times(PYRO, OURS), "≥", 10.0),
            Aim("… first compile", found.times(PYRO, FIRST), "≥", 10.0),
            Aim("… sampling alone", found.times(PYRO, SAMPLING), "≥", 10.0),
            Aim("… of NumPyro's time", found.times(OURS, NUMPYRO)),
            Aim("… first compile", found.times(FIRST, NUMPYRO)),
            Aim("… sampling alone", found.times(SAMPLING, NUMPYRO_SAMPLING)),
        ]
    print("\n".join(f"{key}: {value:.3g}" for key, value in notes.items()))
    print(f"\n{harness.aims_table(aims)}\n")
    harness.report(tables, None)
    if parsed.json is not None:
        results = harness.environment() | {"load": os.getloadavg()[0]}
        results |= {"tables": [asdict(t) for t in tables], "aims": [asdict(a) for a in aims], "notes": notes}
        harness.write(parsed.json, results)


if __name__ == "__main__":
    sys.exit(main())
