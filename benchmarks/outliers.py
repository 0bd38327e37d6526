"""Odd rows and odd cells of scikit-learn's breast cancer: 30 measurements of 357 benign and 212 malignant tumours.

    python benchmarks/outliers.py --json benchmarks/results/outliers.json

Models are fitted to half of the benign rows. Rows: the other half against all malignant ones, by −log P(x), area under the
ROC curve. Cells: in each held-out benign row one cell, chosen at random, is moved by 4 standard deviations of its column; the
share of rows in which ``outliers`` names it first, and of these whose cell verdict is not "another method".
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path
from typing import Any

import harness
import numpy as np
import torch
from sklearn.datasets import load_breast_cancer
from sklearn.ensemble import IsolationForest
from sklearn.metrics import roc_auc_score

import pyrovae as pv

MOVED = 4.0  # standard deviations of the column


def vae_of(rows: torch.Tensor, epochs: int, seed: int) -> pv.VAE:
    """Return a fitted VAE of standardised Gaussian columns."""
    torch.manual_seed(seed)
    width = rows.shape[1]
    vae = pv.VAE.mlp(width, 6, "gaussian", (64,), standardize=True, scale="per_dimension").double()
    pv.fit(vae, rows, epochs=epochs, batch_size=32, lr=3e-3, seed=seed)
    return vae


def split_of(x: np.ndarray, malignant: np.ndarray, seed: int, epochs: int) -> dict[str, dict[str, float]]:
    """Return the figures of every model on one split."""
    generator = np.random.default_rng(seed)
    benign = generator.permutation(np.flatnonzero(~malignant))
    train, held = x[benign[: len(benign) // 2]], x[benign[len(benign) // 2 :]]
    test = torch.from_numpy(np.concatenate([held, x[malignant]]))
    odd = np.repeat([0, 1], [len(held), int(malignant.sum())])
    rows, place = held.copy(), generator.integers(x.shape[1], size=len(held))
    sign = generator.choice([-1, 1], size=len(held))
    rows[np.arange(len(held)), place] += sign * MOVED * train.std(axis=0)[place]
    forest = IsolationForest(random_state=seed).fit(train)
    found: dict[str, dict[str, float]] = {
        "IsolationForest": {"AUC": roc_auc_score(odd, -forest.score_samples(test.numpy()))}
    }
    models: dict[str, Any] = {
        "FullGaussian": pv.baselines.FullGaussian().fit(train),
        "FactorAnalysis": pv.baselines.FactorAnalysis(6).fit(train),
        "VAE": vae_of(torch.from_numpy(train), epochs, seed),
    }
    for name, model in models.items():
        options = {"seed": seed, "check": False} if name == "VAE" else {}
        score = pv.outliers(model, test, **options)["score"]
        cells = pv.outliers(model, torch.from_numpy(rows), **options)
        named = (cells["oddest"] == place).to_numpy()
        found[name] = {
            "AUC": roc_auc_score(odd, score),
            "named": float(named.mean()),
            "sound": float((cells["cell_verdict"] != "another method")[named].mean()),
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--splits", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    warnings.simplefilter("ignore")  # factor analysis may not have converged
    data = load_breast_cancer()
    splits = [split_of(data.data, data.target == 0, seed, options.epochs) for seed in range(options.splits)]
    print(f"{'model':16s} {'AUC':>14s} {'odd cell named':>15s} {'of these sound':>15s}")
    for name in splits[0]:
        cells = []
        for figure in ("AUC", "named", "sound"):
            values = [split[name][figure] for split in splits if figure in split[name]]
            cells.append(f"{np.mean(values):.3f} ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else "")
        print(f"{name:16s} {cells[0]:>14s} {cells[1]:>15s} {cells[2]:>15s}")
    if options.json is not None:
        harness.write(options.json, {**harness.environment(), "epochs": options.epochs, "splits": splits})


if __name__ == "__main__":
    main()
