"""Imputation of scikit-learn's breast cancer by MIWAE's protocol: half of the cells removed at random, standardised, no split.

    python benchmarks/wdbc.py --masks 10 --json benchmarks/results/wdbc.json

Columns are standardised by their observed cells. Each method sees the observed cells of all 569 rows and fills in the others;
the figure is the mean squared error on the removed cells, mean ± standard deviation over the masks. Peers: scikit-learn's
IterativeImputer with a random forest (a chain of trees as in missForest) and with BayesianRidge. For the VAE it is the mean of 100
imputations, and the share of removed cells that its 90 % intervals hold. A mask that the JSON has is not run again.

Mattei and Frellsen (2019).
"""

from __future__ import annotations

import argparse
import time
import warnings
from pathlib import Path
from typing import Any

import harness
import numpy as np
import torch
from sklearn.datasets import load_breast_cancer
from sklearn.ensemble import RandomForestRegressor
from sklearn.experimental import enable_iterative_imputer  # noqa: F401
from sklearn.impute import IterativeImputer
from sklearn.linear_model import BayesianRidge

import pyrovae as pv

DRAWS = 100


def vae_of(x: torch.Tensor, epochs: int, seed: int) -> pv.VAE:
    """Return a VAE fitted to rows with missing cells; its encoder sees which cells they are."""
    torch.manual_seed(seed)
    vae = pv.VAE.mlp(
        x.shape[1], 8, "gaussian", (64,), activation="tanh", scale="per_dimension", missing=True
    ).double()
    pv.fit(vae, x, epochs=epochs, batch_size=64, lr=3e-3, seed=seed)
    return vae


def mask_of(seed: int, epochs: int, trees: int) -> dict[str, dict[str, float]]:
    """Return the error of every method on one mask."""
    generator = np.random.default_rng(seed)
    data = load_breast_cancer().data
    removed = generator.random(data.shape) < 0.5
    seen = np.where(removed, np.nan, data)
    truth = (data - np.nanmean(seen, axis=0)) / np.nanstd(seen, axis=0)
    x = np.where(removed, np.nan, truth)
    rows, found = torch.from_numpy(x), {}

    def note(name: str, started: float, filled: np.ndarray, **more: float) -> None:
        error = float(np.mean((filled - truth)[removed] ** 2))
        found[name] = {"mse": error, "seconds": round(time.perf_counter() - started, 1), **more}
        print(f"mask {seed}  {name:16s} {error:.4f}  {found[name]['seconds']:6.1f} s", flush=True)

    for name, regressor, rounds in (
        ("forest", RandomForestRegressor(trees, max_features="sqrt", n_jobs=1, random_state=seed), 5),
        ("BayesianRidge", BayesianRidge(), 10),
    ):
        started = time.perf_counter()
        note(name, started, IterativeImputer(regressor, max_iter=rounds, random_state=seed).fit_transform(x))
    models: dict[str, Any] = {
        "PPCA": lambda: pv.baselines.PPCA(8).fit(rows),
        "FactorAnalysis": lambda: pv.baselines.FactorAnalysis(8).fit(rows),
        "VAE": lambda: vae_of(rows, epochs, seed),
    }
    for name, make in models.items():
        started = time.perf_counter()
        options = {"check": False} if name == "VAE" else {}
        imputed = pv.impute(make(), rows, DRAWS, seed=seed, **options)
        low, high = imputed.interval(0.9)
        inside = (truth[removed] >= low) & (truth[removed] <= high)
        note(name, started, imputed.point("mean").numpy(), inside=float(inside.mean()))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--masks", type=int, default=10)
    parser.add_argument("--epochs", type=int, default=150)
    parser.add_argument("--trees", type=int, default=50)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    warnings.simplefilter("ignore")  # chains and factor analysis may not have converged
    pins = {"epochs": options.epochs, "trees": options.trees}
    masks: dict[str, dict[str, dict[str, float]]] = {}
    if options.json is not None and options.json.exists():
        kept = harness.read(options.json)
        masks = kept["masks"] if {name: kept.get(name) for name in pins} == pins else {}
    for seed in range(options.masks):
        if str(seed) not in masks:
            masks[str(seed)] = mask_of(seed, **pins)
            if options.json is not None:
                harness.write(options.json, {**harness.environment(), **pins, "masks": masks})
    print(
        f"{len(masks)} masks\n{'method':16s} {'mean squared error':>18s} {'in 90 % intervals':>18s} {'seconds':>8s}"
    )
    for name in next(iter(masks.values())):
        errors = [found[name]["mse"] for found in masks.values()]
        spread = f" ± {np.std(errors, ddof=1):.3f}" if len(errors) > 1 else ""
        inside = [found[name]["inside"] for found in masks.values() if "inside" in found[name]]
        taken = np.mean([found[name]["seconds"] for found in masks.values()])
        print(
            f"{name:16s} {np.mean(errors):10.3f}{spread:8s} {f'{np.mean(inside):.3f}' if inside else '':>18s} {taken:8.1f}"
        )


if __name__ == "__main__":
    main()
