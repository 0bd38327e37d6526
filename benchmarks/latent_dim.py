"""Does scikit-learn's GridSearchCV find the number of factors? VAEs with linear networks beside exact factor analysis.

    python benchmarks/latent_dim.py --json benchmarks/results/latent_dim.json

Rows are x = W z + ε with 3 factors z ~ N(0, 1), 50 columns, loadings W ~ N(0, 1) and variances of ε uniform in (0.5, 1.5).
GridSearchCV scores 1 to 5 latent dimensions by log P of held-out rows, in 2 folds. The second search fits factor analysis by
maximum likelihood in the same folds, so its log P is that of the best fit of the same family.
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path
from typing import Any

import harness
import joblib
import numpy as np
from sklearn.model_selection import GridSearchCV

import pyrovae as pv

TRUE, COLUMNS, TRIED, FOLDS = 3, 50, [1, 2, 3, 4, 5], 2


def rows_of(num_rows: int, seed: int) -> np.ndarray:
    """Return rows of a factor model."""
    generator = np.random.default_rng(seed)
    loadings = generator.normal(size=(TRUE, COLUMNS))
    scale = generator.uniform(0.5, 1.5, COLUMNS) ** 0.5
    return generator.normal(size=(num_rows, TRUE)) @ loadings + scale * generator.normal(
        size=(num_rows, COLUMNS)
    )


def simulation(num_rows: int, epochs: int, seed: int) -> dict[str, Any]:
    """Return the dimension that each search chose in one simulation, and the scores of all."""
    warnings.simplefilter("ignore")  # factor analysis may not have converged
    x = rows_of(num_rows, seed)
    vae = pv.sklearn.VAEDensity(
        hidden_dims=(), epochs=epochs, batch_size=num_rows, lr=0.01, random_state=seed
    )
    exact = pv.sklearn.BaselineDensity("factor_analysis")
    searches = {
        "VAE": GridSearchCV(vae, {"latent_dim": TRIED}, cv=FOLDS, refit=False),
        "factor analysis": GridSearchCV(
            exact, {"options": [{"latent_dim": dim} for dim in TRIED]}, cv=FOLDS, refit=False
        ),
    }
    found = {}
    for name, search in searches.items():
        scores = search.fit(x).cv_results_["mean_test_score"]
        found[name] = {
            "chosen": TRIED[int(np.argmax(scores))],
            "scores": [round(float(s), 4) for s in scores],
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--simulations", type=int, default=20)
    parser.add_argument("--rows", type=int, default=500)
    parser.add_argument("--epochs", type=int, default=400)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    work = (joblib.delayed(simulation)(args.rows, args.epochs, seed) for seed in range(args.simulations))
    runs = []
    for seed, run in enumerate(joblib.Parallel(n_jobs=args.jobs, return_as="generator")(work)):
        runs.append(run)
        print(seed, {name: run["chosen"] for name, run in runs[-1].items()}, flush=True)
    right = {name: sum(run[name]["chosen"] == TRUE for run in runs) for name in runs[0]}
    for name, count in right.items():
        print(f"{name}: {TRUE} dimensions in {count} of {len(runs)} simulations")
    if args.json is not None:
        settings = {
            "rows": args.rows,
            "epochs": args.epochs,
            "true": TRUE,
            "tried": TRIED,
            "folds": FOLDS,
            "columns": COLUMNS,
        }
        harness.write(args.json, {**harness.environment(), **settings, "right": right, "simulations": runs})


if __name__ == "__main__":
    main()
