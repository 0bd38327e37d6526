"""Do two independent methods agree on the log evidence of posteriors of posteriordb, each with an honest error?

    PYROVAE_DATA=… python benchmarks/posteriordb.py --json benchmarks/results/posteriordb.json
    PYROVAE_DATA=… python benchmarks/posteriordb.py --only arK --methods chains one_row
    PYROVAE_DATA=… python benchmarks/posteriordb.py --show benchmarks/results/posteriordb.json

Every posterior of ``posteriordb_models.POSTERIORS`` is a Pyro model of one row, the whole data set. The methods:

    nuts        ``PyroMCMC`` draws by NUTS, and ``marginal_likelihood`` bridges them
    chains      ``from_draws`` bridges draws of 16 parallel HMC chains (``parallel_chains``)
    reference   ``from_draws`` bridges the draws that posteriordb holds, of Stan
    one_row     ``auto`` without chains, from a rough Gaussian guide; ``refined`` where ``auto`` is not trusted
    grid        the trapezoidal rule around the mode, up to five dimensions: no Monte Carlo

Results are written after every method, and a run with the same options continues after those in the
file. Only ``--draws`` may differ; the file says it with each result of chains.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import harness
import pyro
import torch
from posteriordb_models import POSTERIORS, Draws, Posterior, folder, reference_draws
from torch import Tensor

import pyrovae as pv
from pyrovae import baselines
from pyrovae.evidence import LogEvidence

CHAINS, WARMUP, STEPS = 16, 400, 8  # parallel HMC; a trajectory takes 1 to STEPS leapfrog steps
TARGET, MOST_SAMPLES = 0.005, 1_000_000  # error of one_row in nats, and draws of ``refined`` at most
MOST_GRID = 5  # dimensions
REACH, SPACING = 5.0, (1.25, 1.0)  # of a grid, in standard deviations of the Gaussian at the mode


# ---------------------------------------------------------------------------------------------------------------------
# Draws and grids on the unconstrained scale


def mode(posterior: Posterior) -> tuple[Tensor, Tensor]:
    """Return the best of several local modes of the unconstrained density, (dim,), and a factor of its covariance.

    The factor is that of the inverse Hessian, with eigenvalues of at least 0.01.
    """
    generator = torch.Generator().manual_seed(0)
    best, value = torch.empty(0), -math.inf
    for scale in (0.0, 0.3, 0.3, 1.0, 1.0):
        u = (
            posterior.rough_centre
            + scale * torch.randn(posterior.dim, generator=generator, dtype=torch.float64)
        )[None]
        u.requires_grad_(True)
        optimizer = torch.optim.LBFGS([u], max_iter=500, line_search_fn="strong_wolfe")

        def closure(u: Tensor = u, optimizer: torch.optim.LBFGS = optimizer) -> Tensor:
            optimizer.zero_grad()
            loss = -posterior.unconstrained(u).sum()
            loss.backward()
            return loss

        found = -float(optimizer.step(closure))
        found = float(posterior.unconstrained(u.detach())[0])
        if found > value:
            best, value = u.detach()[0], found
    hessian = torch.autograd.functional.hessian(lambda v: posterior.unconstrained(v[None])[0], best)
    precision, directions = torch.linalg.eigh(-hessian)
    return best, directions / precision.clamp(min=0.01).sqrt()


def parallel_chains(posterior: Posterior, num_draws: int, seed: int) -> Tensor:
    """Return draws of parallel HMC chains, (CHAINS, num_draws, dim), on the unconstrained scale, after WARMUP iterations each.

    The metric is the Hessian's at the mode. The step size is adapted to an acceptance rate of 0.8 during warm-up. Starts
    are drawn from the Gaussian at the mode.
    """
    generator = torch.Generator().manual_seed(seed)
    centre, factor = mode(posterior)

    def log_density(z: Tensor) -> Tensor:
        value = posterior.unconstrained(centre + z @ factor.T)
        return torch.where(value.isnan(), -math.inf, value)

    def with_gradient(z: Tensor) -> tuple[Tensor, Tensor]:
        z = z.detach().requires_grad_(True)
        value = log_density(z)
        (gradient,) = torch.autograd.grad(value.sum(), z)
        return value.detach(), gradient.nan_to_num(0.0)

    z = torch.randn(CHAINS, posterior.dim, generator=generator, dtype=torch.float64)
    value, gradient = with_gradient(z)
    log_step, kept = math.log(0.5), []
    for iteration in range(WARMUP + num_draws):
        momentum = torch.randn(z.shape, generator=generator, dtype=torch.float64)
        steps = int(torch.randint(1, STEPS + 1, (), generator=generator))
        # A chain takes up to ten times shorter steps now and then, so that it leaves narrow regions.
        shorter = 10 ** -torch.rand(CHAINS, 1, generator=generator, dtype=torch.float64).square()
        step = math.exp(log_step) * shorter
        new, p, new_value, new_gradient = z, momentum, value, gradient
        for _ in range(steps):
            p = p + 0.5 * step * new_gradient
            new = new + step * p
            new_value, new_gradient = with_gradient(new)
            p = p + 0.5 * step * new_gradient
        change = new_value - value + 0.5 * (momentum.square() - p.square()).sum(dim=1)
        chance = change.nan_to_num(-math.inf).clamp(max=0.0).exp()
        accepted = torch.rand(CHAINS, generator=generator, dtype=torch.float64) < chance
        z = torch.where(accepted[:, None], new, z)
        value = torch.where(accepted, new_value, value)
        gradient = torch.where(accepted[:, None], new_gradient, gradient)
        if iteration < WARMUP:
            log_step += (float(chance.mean()) - 0.8) / (1 + iteration) ** 0.6
        else:
            kept.append(z)
    return centre + torch.stack(kept, dim=1) @ factor.T


def grid(posterior: Posterior) -> tuple[float, float]:
    """Return the log evidence by the trapezoidal rule around the mode, and the difference of two spacings.

    Raises:
        ArithmeticError: the integrand is not negligible at the edge of the grid.
    """
    centre, factor = mode(posterior)
    found = []
    for spacing in SPACING:
        half = round(REACH / spacing)
        axis = spacing * torch.arange(-half, half + 1, dtype=torch.float64)
        total, edge = torch.tensor(-math.inf, dtype=torch.float64), -math.inf
        points = torch.cartesian_prod(*[axis] * posterior.dim).reshape(-1, posterior.dim)
        for z in points.split(max(1, (1 << 21) // posterior.x.shape[1])):
            value = posterior.unconstrained(centre + z @ factor.T)
            value = torch.where(value.isnan(), -math.inf, value)
            total = torch.logaddexp(total, torch.logsumexp(value, dim=0))
            outside = value[z.abs().max(dim=1).values >= axis[-1] - 1e-9]
            edge = max(edge, float(torch.logsumexp(outside, dim=0)) if len(outside) else -math.inf)
        if edge - float(total) > math.log(1e-4):
            raise ArithmeticError(
                f"the edge of the grid holds {math.exp(edge - float(total)):.1e} of the integral"
            )
        log_det = float(torch.linalg.slogdet(factor).logabsdet)
        found.append(float(total) + log_det + posterior.dim * math.log(spacing))
    return found[1], abs(found[1] - found[0])


# ---------------------------------------------------------------------------------------------------------------------
# Methods: each returns a result of one line of the table


def _result(evidence: LogEvidence, offset: float) -> dict[str, Any]:
    check = evidence.check
    return {
        "value": float(evidence.estimate[0]) + offset,
        "error": float(evidence.mcse[0]),
        "verdict": str(evidence.verdict[0]),
        "method": str(evidence.answered_by[0]),
        "pareto_k": float(evidence.pareto_k[0]),
        "ess": float(evidence.ess[0]),
        "reasons": list(evidence.reasons),
        "check": None if check is None else str(check),
    }


def _bridged(posterior: Posterior, u: Tensor, seed: int) -> dict[str, Any]:
    return _result(pv.evidence.from_draws(posterior.unconstrained, u, seed=seed), 0.0)


def nuts(posterior: Posterior, options: argparse.Namespace) -> dict[str, Any]:
    mcmc = baselines.PyroMCMC(
        posterior.model,
        num_samples=options.nuts_samples,
        warmup_steps=options.nuts_samples // 2,
        full_mass=True,
        seed=options.seed,
    ).fit(posterior.x)
    return _result(mcmc.marginal_likelihood(), posterior.offset)


@functools.cache
def _drawn(name: str, num_draws: int, seed: int) -> Draws:
    sampled = POSTERIORS[name]()
    return sampled.from_line(parallel_chains(sampled, num_draws, seed))


def chains(posterior: Posterior, options: argparse.Namespace) -> dict[str, Any]:
    name, convert = posterior.other or (None, None)
    draws = _drawn(options.name if name is None else name, options.draws, options.seed)
    if convert is not None:
        draws = convert(draws)
    if posterior.relabel is not None:
        draws = posterior.relabel(draws, torch.Generator().manual_seed(options.seed))
    return _bridged(posterior, posterior.to_line(draws), options.seed)


def reference(posterior: Posterior, options: argparse.Namespace) -> dict[str, Any]:
    draws = reference_draws(posterior)
    if draws is None:
        return {"skipped": "posteriordb holds no draws"}
    return _bridged(posterior, posterior.to_line(draws), options.seed)


def one_row(posterior: Posterior, options: argparse.Namespace) -> dict[str, Any]:
    pair = pv.LatentVariableModel(posterior.model, posterior.guide)
    common = {"seed": options.seed, "compile": False, "check": options.check}
    first = pv.evidence.auto(pair, posterior.x, target_mcse=TARGET, max_cost=options.max_cost, **common)
    if first.verdict[0] in ("trust", "unchecked"):
        return _result(first, posterior.offset)
    num_samples = options.max_cost // 10
    pilot = pv.evidence.refined(pair, posterior.x, num_samples=num_samples, **common | {"check": False})
    more = min(MOST_SAMPLES / num_samples, 1.5 * (float(pilot.mcse[0]) / TARGET) ** 2)
    again = pv.evidence.refined(
        pair,
        posterior.x,
        num_samples=int(num_samples * max(1.0, more)),
        **common | {"seed": options.seed + 1},
    )
    return _result(again, posterior.offset) | {"auto": _result(first, posterior.offset)}


def by_grid(posterior: Posterior, options: argparse.Namespace) -> dict[str, Any]:
    if posterior.dim > MOST_GRID or posterior.relabel is not None:
        return {"skipped": f"more than {MOST_GRID} dimensions, or several modes"}
    try:
        value, error = grid(posterior)
    except ArithmeticError as reason:
        return {"skipped": str(reason)}
    return {"value": value, "error": error, "verdict": "trust", "method": "grid"}


METHODS: dict[str, Callable[[Posterior, argparse.Namespace], dict[str, Any]]] = {
    "nuts": nuts,
    "chains": chains,
    "reference": reference,
    "one_row": one_row,
    "grid": by_grid,
}


# ---------------------------------------------------------------------------------------------------------------------
# Table


def known(name: str) -> float | None:
    """The log evidence by quadrature that comes with the data, every prior normalised."""
    place = folder()
    stored = {} if place is None else json.loads((place / "reference_log_evidence.json").read_text())
    key = {"arK": "arK-arK", "eight schools, centred": "eight_schools-eight_schools_noncentered"}.get(name)
    return stored[key]["normalised"] if key in stored else None


def comparison(one: dict[str, Any] | None, other: dict[str, Any] | None) -> str:
    """The difference of two results in nats and in standard errors, and whether they agree."""
    if one is None or other is None or "value" not in one or "value" not in other:
        return f"{'-':>8} {'-':>5} {'':3}"
    gap = one["value"] - other["value"]
    error = math.hypot(one["error"], other["error"])
    agree = abs(gap) <= 0.01 or abs(gap) <= 1.96 * error
    return f"{gap:+8.4f} {abs(gap) / max(error, 1e-12):5.1f} {'yes' if agree else 'NO ':3}"


def exact(name: str, results: dict[str, dict[str, Any]]) -> tuple[float, str] | None:
    """The log evidence without Monte Carlo: that of the data's own file, or the grid's."""
    same = {"eight schools, non-centred": "eight schools, centred", "mixture, unordered": "mixture, ordered"}
    name = same.get(name, name)
    if known(name) is not None:
        return known(name), "file"
    found = results.get(f"{name}|grid", {})
    return (found["value"], "grid") if "value" in found else None


def show(results: dict[str, dict[str, Any]]) -> None:
    """Print a block of lines per posterior: its convention, and every method with its difference to the exact value."""
    head = f"{'':28} {'log evidence':>21} {'verdict':14} {'s':>4} {'− exact':>8} {'errs':>5}"
    print(head)
    for name in POSTERIORS:
        lines = {method: results[f"{name}|{method}"] for method in METHODS if f"{name}|{method}" in results}
        truth = exact(name, results)
        if not lines:
            continue
        known_by = "" if truth is None else f"{truth[0]:12.4f}  by {truth[1]}"
        print(f"{name:28} {known_by}\n  {next(iter(lines.values()))['convention']}")
        for method, result in lines.items():
            if "skipped" in result or (method == "grid" and "value" in result):
                continue
            if "value" not in result:
                print(f"  {method:26} {next(f'{k}: {v}' for k, v in result.items())[:60]}")
                continue
            by = method if result["method"] == "bridge" else f"{method}, {result['method']}"
            off = (
                ""
                if truth is None
                else f"{result['value'] - truth[0]:+8.4f} {abs(result['value'] - truth[0]) / result['error']:5.1f}"
            )
            print(
                f"  {by:26} {result['value']:12.4f} ± {result['error']:.4f} {result['verdict']:14} "
                f"{result['seconds']:4.0f} {off}"
            )
        print(f"  {'chains − one_row':26} {comparison(lines.get('chains'), lines.get('one_row'))}")


# ---------------------------------------------------------------------------------------------------------------------
# Running


def measure(name: str, method: str, options: argparse.Namespace) -> dict[str, Any]:
    posterior = POSTERIORS[name]()
    started = time.perf_counter()
    try:
        # Far points may give NaN, which counts as density zero.
        with warnings.catch_warnings(), pyro.validation_enabled(False):
            warnings.simplefilter("ignore")
            result = METHODS[method](posterior, argparse.Namespace(**vars(options) | {"name": name}))
    except Exception as error:  # a crash is a result, too
        result = {"crashed": f"{type(error).__name__}: {error}"[:300]}
    return result | {
        "dim": posterior.dim,
        **({"draws": options.draws} if method == "chains" else {}),
        "convention": posterior.convention,
        "seconds": round(time.perf_counter() - started, 1),
    }


def run(options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Measure what the file does not have yet."""
    settings = {name: getattr(options, name) for name in ("seed", "max_cost", "nuts_samples", "check")}
    found: dict[str, Any] = harness.environment() | {"options": settings, "results": {}}
    if options.json and options.json.exists():
        found = harness.read(options.json)
        if found["options"] != settings:
            raise SystemExit(f"{options.json} is of other options, {found['options']}. Name another file.")
    for name in POSTERIORS:
        for method in options.methods:
            key = f"{name}|{method}"
            if options.only not in name or key in found["results"]:
                continue
            result = found["results"][key] = measure(name, method, options)
            print(f"{name:28} {method:10} {result['seconds']:5.0f} s", file=sys.stderr, flush=True)
            if options.json:
                harness.write(options.json, found)
    return found["results"]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", help="posteriors with this in their name")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=[m for m in METHODS if m != "nuts"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--draws", type=int, default=500, help="of each of the parallel chains")
    parser.add_argument("--max-cost", type=int, default=100_000, help="density evaluations of one_row")
    parser.add_argument("--nuts-samples", type=int, default=500, help="of each of four NUTS chains")
    parser.add_argument(
        "--check", action="store_true", help="check one_row on simulated rows: 60 times its work"
    )
    parser.add_argument("--json", type=Path, help="a JSON file to continue and to write")
    parser.add_argument("--show", type=Path, help="print the table of this file, and run nothing")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    if folder() is None and options.show is None:
        print("skipped: posteriordb lies below $PYROVAE_DATA, which is not set or has no such folder")
        return
    show(harness.read(options.show)["results"] if options.show else run(options))


if __name__ == "__main__":
    main()
