"""Are the posteriors of PyroMCMC and BayesianPCA the right ones, and is a bridge's error what it says?

    python benchmarks/calibration.py ranks --json benchmarks/results/calibration.json --figure benchmarks/results/calibration.png
    PYROVAE_DATA=… python benchmarks/calibration.py evidence --json benchmarks/results/calibration_evidence.json

ranks: simulation-based calibration (Talts et al. 2018). Parameters from the prior, rows from the model, a posterior from
the rows: the rank of the true parameters among the draws is uniform, if all is right. The log-likelihood
of the rows is ranked, too: it sees errors that no single parameter shows (Modrák et al. 2023). A chi-square test of five
bins for each quantity; at a false-alarm rate of 1e-3 for all of them together, none may fail.

evidence: log evidences by bridge sampling against closed forms and quadrature, and the bridge alone at 50 dimensions.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import harness
import numpy as np
import pyro
import pyro.distributions as dist
import torch
from scipy.stats import binom, chisquare
from torch import Tensor

from pyrovae import baselines
from pyrovae.evidence.bridge import bridge
from pyrovae.pair.globals import BayesianModel

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
import conjugate
import posteriordb

FALSE_ALARMS = 1e-3
BINS = 5
#: Draws that are ranked: every fifth of a chain's, so that they are nearly independent.
RANKED, THIN = 19, 5
CHAIN = {"num_samples": (RANKED + 1) * THIN, "warmup_steps": 150, "num_chains": 1}


@dataclass
class Case:
    """A model to be calibrated.

    simulate: parameters and rows, from the prior. fit: a posterior from rows. quantities: by name, from
    parameters, each of shape (draws, ...), and rows: shape (draws,).
    """

    simulate: Callable[[], tuple[dict[str, Tensor], Tensor]]
    fit: Callable[[Tensor], baselines.PyroMCMC]
    parameters: Callable[[baselines.PyroMCMC], dict[str, Tensor]]
    quantities: Callable[[dict[str, Tensor], Tensor], dict[str, Tensor]]


def normal(x: Tensor) -> None:
    """Rows from a normal distribution of unknown mean and scale."""
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    scale = pyro.sample("scale", dist.HalfNormal(1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(mean, scale), obs=x)


def simulate_normal() -> tuple[dict[str, Tensor], Tensor]:
    mean, scale = torch.randn(1), torch.randn(1).abs()
    return {"mean": mean, "scale": scale}, mean + scale * torch.randn(10)


def of_normal(parameters: dict[str, Tensor], x: Tensor) -> dict[str, Tensor]:
    mean, scale = parameters["mean"], parameters["scale"]
    likelihood = torch.distributions.Normal(mean[:, None], scale[:, None]).log_prob(x).sum(1)
    return {"mean": mean, "scale": scale, "log-likelihood": likelihood}


def simulate_pca() -> tuple[dict[str, Tensor], Tensor]:
    """A full W: the prior of W Wᵀ is BayesianPCA's."""
    loc, loadings, sigma = torch.randn(3), torch.randn(3, 1), torch.randn(1).abs()
    rows = loc + torch.randn(15, 1) @ loadings.T + sigma * torch.randn(15, 3)
    return {"loc": loc[None], "loadings": loadings[None], "sigma": sigma}, rows


def of_pca(parameters: dict[str, Tensor], x: Tensor) -> dict[str, Tensor]:
    loc, w, sigma = parameters["loc"], parameters["loadings"], parameters["sigma"]
    common = w @ w.mT
    covariance = common + sigma[:, None, None] ** 2 * torch.eye(3)
    likelihood = torch.distributions.MultivariateNormal(loc[:, None], covariance[:, None]).log_prob(x).sum(1)
    return {
        "mean, column 0": loc[:, 0],
        "(W Wᵀ)₀₀": common[:, 0, 0],
        "(W Wᵀ)₀₁": common[:, 0, 1],
        "σ": sigma,
        "log-likelihood": likelihood,
    }


def flat(mcmc: baselines.PyroMCMC) -> dict[str, Tensor]:
    return {name: value[0] for name, value in mcmc.posterior.items()}


CASES = {
    "PyroMCMC, normal rows": Case(
        simulate_normal,
        lambda x: baselines.PyroMCMC(normal, **CHAIN).fit(x),
        flat,
        of_normal,
    ),
    "BayesianPCA, 1 latent of 3 columns": Case(
        simulate_pca,
        lambda x: baselines.BayesianPCA(1, loc_scale=1.0, **CHAIN).fit(x),
        lambda mcmc: flat(mcmc) | {"loadings": mcmc.loadings[0]},
        of_pca,
    ),
}


def ranks(name: str, seed: int) -> dict[str, int]:
    """The rank of every true quantity among the thinned draws of one replication: 0 to ``RANKED``."""
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(seed)
    case = CASES[name]
    truth, x = case.simulate()
    drawn = {key: value[THIN - 1 :: THIN][:RANKED] for key, value in case.parameters(case.fit(x)).items()}
    true, found = case.quantities(truth, x), case.quantities(drawn, x)
    return {key: int((found[key] < true[key]).sum()) for key in true}


def calibrate(name: str, replications: int, workers: int) -> dict[str, Any]:
    """Ranks of many replications, with the p-value of their uniformity by quantity."""
    started = time.perf_counter()
    with ProcessPoolExecutor(workers) as pool:
        each = list(pool.map(partial(ranks, name), range(replications)))
    found = {}
    for quantity in each[0]:
        values = [line[quantity] for line in each]
        counts = np.bincount(np.array(values) * BINS // (RANKED + 1), minlength=BINS)
        found[quantity] = {"ranks": values, "counts": counts.tolist(), "p": float(chisquare(counts).pvalue)}
    return {
        "replications": replications,
        "seconds": round(time.perf_counter() - started, 1),
        "quantities": found,
    }


def show_ranks(results: dict[str, dict[str, Any]]) -> bool:
    """Print the table; whether all quantities are uniform at the family's false-alarm rate."""
    tests = sum(len(result["quantities"]) for result in results.values())
    limit = FALSE_ALARMS / tests
    uniform = True
    for name, result in results.items():
        print(
            f"\n{name}, {result['replications']} replications, ranks among {RANKED} draws, {result['seconds']:.0f} s\n"
        )
        print(f"{'':18} {'counts in five bins':40} {'p':>8}")
        for quantity, line in result["quantities"].items():
            print(f"{quantity:18} {' '.join(f'{c:3d}' for c in line['counts']):40} {line['p']:8.3f}")
            uniform &= line["p"] > limit
    verdict = "all uniform" if uniform else "NOT UNIFORM"
    print(
        f"\n{tests} tests, the smallest p may be {limit:.1e} at a false-alarm rate of {FALSE_ALARMS:g}: {verdict}"
    )
    return uniform


def draw(results: dict[str, dict[str, Any]], path: Path) -> None:
    """For every quantity the distribution of ranks minus the uniform one, with the band of 99 % for each point."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, len(results), figsize=(10, 4), sharey=True, layout="constrained")
    for axis, (name, result) in zip(axes, results.items(), strict=True):
        n = result["replications"]
        share = np.arange(1, RANKED + 1) / (RANKED + 1)
        grid = np.linspace(0.001, 0.999, 500)
        low, high = (binom.ppf(quantile, n, grid) / n for quantile in (0.005, 0.995))
        axis.fill_between(grid, low - grid, high - grid, color="0.88", label="99 % at each point", lw=0)
        for quantity, line in result["quantities"].items():
            below = [np.mean(np.array(line["ranks"]) < k) for k in range(1, RANKED + 1)]
            axis.plot(share, np.array(below) - share, marker=".", lw=1, label=quantity)
        axis.axhline(0, color="0.4", lw=0.8)
        axis.set_title(f"{name}\n{n} replications", fontsize=10)
        axis.set_xlabel("rank of the truth among the draws, as a share")
        axis.legend(fontsize=7, loc="upper center", ncols=3, bbox_to_anchor=(0.5, -0.18))
    axes[0].set_ylabel("share below, minus uniform")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def evidence() -> list[dict[str, Any]]:
    """Bridge sampling against what is known."""
    lines = []
    for name, case in conjugate.CASES.items():
        mcmc = baselines.PyroMCMC(case.model, num_samples=500, num_chains=2).fit(case.x)
        lines += [_line(f"{name}, {form}", mcmc, case.log_evidence, form == "warp-3") for form in FORMS]
    for name, model in (
        ("eight_schools-eight_schools_noncentered", posteriordb.eight_schools),
        ("arK-arK", posteriordb.autoregression),
    ):
        reference = posteriordb.reference(name)
        options = {"target_accept_prob": 0.9, "full_mass": "arK" in name}
        mcmc = baselines.PyroMCMC(model, num_samples=500, num_chains=2, **options).fit(reference.x)
        for version, stated in (("normalised", model), ("as_written", posteriordb.as_written(model))):
            # The two densities differ by a factor: the draws are of both.
            mcmc._joint = BayesianModel(stated, mcmc._joint.batch)
            truth = reference.log_evidence[version]
            lines += [
                _line(f"{name.split('-')[0]}, {version}, {form}", mcmc, truth, form == "warp-3")
                for form in FORMS
            ]
    return lines


FORMS = ("bridge", "warp-3")


def _line(name: str, mcmc: baselines.PyroMCMC, truth: float, warp: bool) -> dict[str, Any]:
    found = mcmc.marginal_likelihood(warp=warp)
    return {
        "case": name,
        "truth": truth,
        "estimate": found.total,
        "error": found.total - truth,
        "reported": float(found.mcse[0]),
        "verdict": str(found.verdict[0]),
    }


def alone(dim: int, num_draws: int, replications: int, warp: bool) -> dict[str, Any]:
    """The bridge on independent draws of a normal distribution: its error against the one it reports."""
    errors, reported = [], []
    for seed in range(replications):
        generator = torch.Generator().manual_seed(seed)
        root = torch.randn(dim, dim, generator=generator, dtype=torch.float64) / dim**0.5
        tril = torch.linalg.cholesky(root @ root.T + torch.eye(dim, dtype=torch.float64))
        draws = torch.randn(num_draws, dim, generator=generator, dtype=torch.float64) @ tril.T

        def log_target(u: Tensor, tril: Tensor = tril) -> Tensor:
            return -0.5 * torch.linalg.solve_triangular(tril, u.mT, upper=False).square().sum(0)

        found = bridge(log_target, draws.unflatten(0, (4, -1)), warp=warp, seed=10_000 + seed)
        truth = dim / 2 * math.log(2 * math.pi) + float(tril.diagonal().log().sum())
        errors.append(found.log_evidence - truth)
        reported.append(found.error)
    errors, reported = np.array(errors), np.array(reported)
    return {
        "dimensions": dim,
        "draws": num_draws,
        "form": "warp-3" if warp else "bridge",
        "replications": replications,
        "mean": float(errors.mean()),
        "rms": float((errors**2).mean() ** 0.5),
        "reported": float((reported**2).mean() ** 0.5),
        "covered": float((np.abs(errors) < 1.96 * reported).mean()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["ranks", "evidence"])
    parser.add_argument("--replications", type=int, default=80)
    parser.add_argument("--slow", type=int, default=40, help="replications of BayesianPCA (default 40)")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--figure", type=Path)
    arguments = parser.parse_args()
    good = True
    if arguments.what == "ranks":
        found: dict[str, Any] = {}
        for name in CASES:
            replications = arguments.slow if name.startswith("BayesianPCA") else arguments.replications
            found[name] = calibrate(name, replications, arguments.workers)
        good = show_ranks(found)
        if arguments.figure:
            draw(found, arguments.figure)
    else:
        lines = evidence()
        print(f"{'':42} {'truth':>10} {'estimate':>10} {'error':>8} {'reported':>8}  verdict")
        for line in lines:
            print(
                f"{line['case']:42} {line['truth']:10.4f} {line['estimate']:10.4f} {line['error']:+8.4f} "
                f"{line['reported']:8.4f}  {line['verdict']}"
            )
        bridges = [alone(dim, 1000, 200, warp) for dim in (10, 50) for warp in (False, True)]
        print(f"\n{'':34} {'mean error':>10} {'rms':>7} {'reported':>8} {'covered':>8}")
        for line in bridges:
            name = f"{line['dimensions']} dimensions, {line['draws']} draws, {line['form']}"
            print(
                f"{name:34} {line['mean']:+10.4f} {line['rms']:7.4f} {line['reported']:8.4f} {line['covered']:8.1%}"
            )
        found = {"evidence": lines, "bridge": bridges}
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(
            json.dumps(harness.environment() | found, indent=1) + "\n", encoding="utf-8"
        )
    sys.exit(not good)


if __name__ == "__main__":
    main()
