"""How near is each method to log P(x), what does it cost, and does it say when not to believe it?

    python benchmarks/evidence.py ppca digits mnist --json benchmarks/results/evidence.json

ppca: probabilistic PCA with the best mean-field encoder, 200 rows, exact answers. digits: a Bernoulli VAE
with two latents, against a dense grid, and how many draws importance would need for the error that auto was
asked for. modes: two far modes, the encoder on one. mnist: a VAE 784-200-200-20 on binarized MNIST ($PYROVAE_DATA), where no exact answer is known.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import harness
import numpy as np
import torch
from torch import Tensor

import pyrovae as pv

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
from oracles import LinearGaussian, TwoModes

METHODS: dict[str, dict[str, Any]] = {
    "importance, K=100": {"method": "importance", "num_samples": 100},
    "importance, K=5000": {"method": "importance", "num_samples": 5000},
    "jackknife, K=1000": {"method": "jackknife", "num_samples": 1000},
    "refined, K=1000": {"method": "refined", "num_samples": 1000},
    "annealed, 128 × 300": {"method": "annealed"},
    "auto, target 0.05": {"method": "auto", "target_mcse": 0.05},
}


def measure(pair: pv.LatentVariableModel, x: Tensor, truth: np.ndarray | None, seed: int) -> list[dict]:
    """Every method on the same rows: its mean with error, errors against the truth, verdicts, cost and seconds."""
    lines = []
    for name, options in METHODS.items():
        started = time.perf_counter()
        ev = pv.log_evidence(pair, x, seed=seed, **options)
        lines.append(line(name, ev, time.perf_counter() - started, truth))
    return lines


def line(name: str, ev: pv.LogEvidence, seconds: float, truth: np.ndarray | None) -> dict[str, Any]:
    low, high = ev.mean_interval
    found = {
        "method": name,
        "mean": ev.mean,
        "low": low,
        "high": high,
        "believed": int((ev.verdict == "trust").sum()),
        "settled": int(ev.settled.sum()),
        "rows": len(ev),
        "cost": float(ev.cost.mean()),
        "seconds": seconds,
    }
    if truth is not None:
        error = ev.estimate - truth
        within = np.abs(error)[ev.settled] <= 0.1
        found |= {
            "error": float(error.mean()),
            "error_se": float(error.std() / len(error) ** 0.5),
            "rms": float((error**2).mean() ** 0.5),
            "worst": float(np.abs(error).max()),
            "within": float(within.mean()) if len(within) else math.nan,
        }
    return found


def show(title: str, lines: list[dict]) -> None:
    """A table that fits a terminal."""
    print(f"\n{title}\n")
    exact = "error" in lines[0]
    if exact:
        print(f"{'':19} {'mean error':>17} {'rms':>7} {'worst':>7} {'believed':>8} {'cost':>7} {'s':>6}")
    else:
        print(f"{'':19} {'log P(x), 95 % interval':>30} {'believed':>8} {'cost':>7} {'s':>6}")
    for entry in lines:
        tail = f"{entry['believed']:4d}/{entry['rows']:<3d} {entry['cost']:7.0f} {entry['seconds']:6.1f}"
        if exact:
            middle = (
                f"{entry['error']:+8.4f} ± {entry['error_se']:6.4f} {entry['rms']:7.4f} {entry['worst']:7.3f}"
            )
        else:
            middle = f"{entry['mean']:9.3f} ({entry['low']:.3f} to {entry['high']:.3f})"
        print(f"{entry['method']:19} {middle:>{30 if not exact else 33}} {tail}", flush=True)


def show_sandwich(title: str, sandwich: Any, seconds: float) -> dict[str, Any]:
    print(f"\n{title}\n{sandwich}\n{seconds:.1f} s", flush=True)
    return {
        "title": title,
        "lower": float(sandwich.lower.mean()),
        "upper": float(sandwich.upper.mean()),
        "gap": float(sandwich.gap.mean()),
        "gap_error": float(
            np.hypot(np.linalg.norm(sandwich.lower_mcse), np.linalg.norm(sandwich.upper_mcse))
            / len(sandwich.gap)
        ),
        "rows": len(sandwich.gap),
        "seconds": seconds,
    }


def draws_needed(pair: pv.LatentVariableModel, x: Tensor, truth: np.ndarray, seed: int) -> np.ndarray:
    """Draws from which on importance is within 0.05 nats of the truth, root mean square over replications.

    The smallest K = 25 · 2^j, from 2^17 draws a row cut into replications of K, at least eight; rows for which
    that does not say are drawn 2^20 times, and are inf where even K = 102 400 is not enough.
    """
    needed = _needed(pair, x, truth, 1 << 17, seed)
    hard = torch.from_numpy(~np.isfinite(needed)).nonzero()[:, 0]
    for rows in hard.split(50):
        needed[rows] = _needed(pair, x[rows], truth[rows], 1 << 20, seed + 1)
    return needed


def _needed(pair: pv.LatentVariableModel, x: Tensor, truth: np.ndarray, total: int, seed: int) -> np.ndarray:
    log_weights = pv.log_weights(pair, x, num_samples=total, seed=seed)
    needed, good = np.full(len(x), math.inf), np.full(len(x), True)
    for size in (25 * 2**j for j in reversed(range(int(math.log2(total / 200)) + 1))):
        cut = log_weights[: total // size * size].view(-1, size, len(x))
        errors = torch.logsumexp(cut, dim=1) - math.log(size) - torch.from_numpy(truth)
        good &= (errors**2).mean(dim=0).sqrt().numpy() <= 0.05
        needed[good] = size
    return needed


MOST_DRAWS = 102_400  # the largest K of ``draws_needed``


def compare_cost(ev: pv.LogEvidence, needed: np.ndarray) -> dict[str, Any]:
    """auto's decoder evaluations beside those of importance, on rows where that needs more than 5000, and the rest.

    A row that needs more draws than were tried counts as twice the most tried: less than it needs.
    """
    found: dict[str, Any] = {"rows": len(needed), "beyond": int((~np.isfinite(needed)).sum())}
    draws = np.minimum(needed, 2 * MOST_DRAWS)
    for name, rows in (("hard", needed > 5000), ("rest", needed <= 5000)):
        found[name] = int(rows.sum())
        if rows.any():
            cost, own, fixed = (
                float(ev.cost[rows].mean()),
                float(draws[rows].mean()),
                float(draws[rows].max()),
            )
            found |= {f"{name}_auto": cost, f"{name}_own": own, f"{name}_fixed": fixed}
            print(
                f"importance needs {'more than' if name == 'hard' else 'at most'} 5000 draws: {rows.sum()} rows. "
                f"Decoder evaluations a row: auto {cost:.0f}; importance {own:.0f} if every row had "
                f"{'at least ' if name == 'hard' else ''}its own K, {fixed:.0f} at one K for all"
            )
    return found


def ppca(seed: int) -> dict[str, Any]:
    """Rows 1 to 3 of the table of passes."""
    found: dict[str, Any] = {}
    for latent_dim in (10, 50):
        oracle = LinearGaussian.random(latent_dim, 2 * latent_dim, dtype=torch.float32)
        double = LinearGaussian(oracle.loadings.double(), oracle.loc.double(), oracle.sigma)
        pair, x = oracle.mean_field_pair(), oracle.sample(200)
        truth = double.log_prob(x.double()).numpy()
        lines = measure(pair, x, truth, seed)
        title = f"PPCA, {latent_dim} latents, {2 * latent_dim} columns, best mean-field encoder, 200 rows"
        show(title, lines)
        # every row's weights have the same law here: forty rows say it
        needed = draws_needed(pair, x[:40], truth[:40], seed + 1)
        ev = pv.log_evidence(pair, x[:40], method="auto", target_mcse=0.05, seed=seed)
        cost = compare_cost(ev, needed)
        started = time.perf_counter()
        sandwich = pv.evidence.sandwich(pair, x, num_rows=200, seed=seed, start="encoder")
        seconds = time.perf_counter() - started
        found[f"L={latent_dim}"] = {
            "methods": lines,
            "cost": cost,
            "sandwich": show_sandwich(f"sandwich, {latent_dim} latents", sandwich, seconds),
        }
    return found


def digits(seed: int) -> dict[str, Any]:
    """A Bernoulli decoder with two latents against a dense grid."""
    data = pv.datasets.digits("binary")
    torch.manual_seed(0)
    vae = pv.VAE.mlp(64, 2, "bernoulli", (64, 64))
    pv.fit(vae, data.train, epochs=60, batch_size=64, lr=2e-3, seed=0)
    truth = on_a_grid(vae, data.test, 1201)
    again = on_a_grid(vae, data.test, 801)
    print(f"\ngrid of 1201² against 801²: at most {np.abs(truth - again).max():.1e} nats apart")
    lines = measure(vae, data.test, truth, seed)
    started = time.perf_counter()
    grid = pv.log_evidence(vae, data.test, method="quadrature", seed=seed)
    lines.append(line("quadrature", grid, time.perf_counter() - started, truth))
    show("Bernoulli VAE of the digits, 2 latents, 400 rows", lines)
    error = np.abs(grid.estimate - truth)
    # What the reference grid itself does not know is not quadrature's error.
    within = error <= grid.mcse + np.abs(truth - again)
    print(
        f"quadrature within its own error on {int(within.sum())} of {len(within)} rows; "
        f"largest error {error.max():.1e}, largest stated {grid.mcse.max():.1e}"
    )
    ev = pv.log_evidence(vae, data.test, method="auto", target_mcse=0.05, seed=seed)
    needed = draws_needed(vae, data.test, truth, seed + 1)
    cost = compare_cost(ev, needed)
    settled = np.abs(ev.estimate - truth)[ev.settled] <= 0.1
    print(f"auto settles {int(ev.settled.sum())} of 400 rows, {settled.mean():.2%} of them within 0.1 nat")
    return {"methods": lines, "cost": cost, "quadrature_within": int(within.sum())}


def on_a_grid(vae: pv.VAE, x: Tensor, order: int) -> np.ndarray:
    """log ∫ N(z; 0, I) P(x given z) dz over [−7, 7]², by the trapezoidal rule with order² points."""
    axis = torch.linspace(-7.0, 7.0, order, dtype=torch.float64)
    points = torch.cartesian_prod(axis, axis)
    prior = torch.distributions.Normal(0.0, 1.0).log_prob(points).sum(-1) + 2 * math.log(
        float(axis[1] - axis[0])
    )
    total = torch.full((len(x),), -math.inf, dtype=torch.float64)
    with torch.no_grad():
        for z, log_p in zip(points.split(4096), prior.split(4096), strict=True):
            logits = vae.likelihood.network(z.float()).double()
            likelihood = logits @ x.double().T - torch.nn.functional.softplus(logits).sum(-1, keepdim=True)
            total = torch.logaddexp(total, torch.logsumexp(likelihood + log_p[:, None], dim=0))
    return total.numpy()


def mnist(seed: int) -> dict[str, Any]:
    """Real rows: consistent within errors, where the truth is not known."""
    data = pv.datasets.binarized_mnist()
    torch.manual_seed(0)
    vae = pv.VAE.mlp(784, 20, "bernoulli", (200, 200))
    started = time.perf_counter()
    pv.fit(vae, data.train, epochs=30, batch_size=128, lr=1e-3, seed=0)
    print(f"\ntrained in {time.perf_counter() - started:.0f} s")
    x = data.test[:200]
    lines = measure(vae, x, None, seed)
    show("VAE 784-200-200-20, binarized MNIST, 200 test rows", lines)
    started = time.perf_counter()
    sandwich = pv.evidence.sandwich(vae, x, num_rows=64, num_temperatures=1000, seed=seed, start="encoder")
    seconds = time.perf_counter() - started
    gap = show_sandwich("sandwich, 64 rows simulated from the model, 1000 temperatures", sandwich, seconds)
    return {"methods": lines, "sandwich": gap}


def modes(seed: int) -> dict[str, Any]:
    """Two far modes of the same mass, the encoder on one of them: what k-hat can't see."""
    oracle = TwoModes()
    x = oracle.sample(400)
    lines = measure(oracle.pair(), x, oracle.log_prob(x).numpy(), seed)
    show("two far modes, the encoder on one, 400 rows", lines)
    return {"methods": lines}


PARTS = {"ppca": ppca, "digits": digits, "mnist": mnist, "modes": modes}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], default=list(PARTS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write every figure to this file")
    arguments = parser.parse_args()
    found = {name: PARTS[name](arguments.seed) for name in arguments.parts}
    if arguments.json:
        arguments.json.parent.mkdir(exist_ok=True)
        arguments.json.write_text(
            json.dumps(harness.environment() | found, indent=1) + "\n", encoding="utf-8"
        )


if __name__ == "__main__":
    main()
