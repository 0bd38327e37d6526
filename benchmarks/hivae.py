"""Imputation of HI-VAE's tables by its own error measures: Wine and Adult, with its public masks.

    PYROVAE_DATA=… python benchmarks/hivae.py Wine --share 20 50 --masks 10 --json benchmarks/results/hivae.json

A mask hides a share of the cells of all rows; each method is fitted to the rest and fills in the hidden cells, without a split,
as in the paper. The error of a column is the share of wrong cells for nominal columns, the mean absolute difference over
the number of levels for ordinal ones, and the root mean square over the range for numbers. The table shows their average over
columns. Peers: the mean or the mode of each column, and a chain of random forests by scikit-learn's IterativeImputer, as in
missForest. For the VAE, points are the mean of 100 imputations for numbers, the median for ordinal columns and the mode for nominal
ones; its 90 % intervals of numbers are counted by column, pooled over masks. A mask that the JSON has is not run again.

Nazábal, Olmos, Ghahramani and Valera (2020); Stekhoven and Bühlmann (2012).
"""

from __future__ import annotations

import argparse
import os
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import harness
import numpy as np
import pandas as pd
import torch
from sklearn.base import BaseEstimator
from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor
from sklearn.experimental import enable_iterative_imputer  # noqa: F401
from sklearn.impute import IterativeImputer

import pyrovae as pv

DRAWS = 100


class Data(NamedTuple):
    """A table, the sort of each column ("cat", "ordinal", or another for numbers), and which cells are always missing."""

    frame: pd.DataFrame
    sorts: list[str]
    absent: np.ndarray
    folder: Path

    def hidden(self, share: int, mask: int) -> np.ndarray:
        """Return which cells a public mask hides, without those that are always missing."""
        rows, columns = self.frame.shape
        packed = np.load(self.folder / "masks_packed.npz")[f"m{share}_{mask}"]
        return np.unpackbits(packed)[: rows * columns].reshape(rows, columns).astype(bool) & ~self.absent


def table(name: str) -> Data:
    """Return a table of HI-VAE by its name."""
    folder = Path(os.environ["PYROVAE_DATA"]) / "hivae" / name
    frame = pd.read_csv(folder / "data.csv.gz", header=None)
    frame.columns = [f"c{number + 1}" for number in frame.columns]
    absent = np.zeros(frame.shape, dtype=bool)
    if (folder / "MissingTrue.csv.gz").exists():  # row and column of every cell, from 1
        cells = pd.read_csv(folder / "MissingTrue.csv.gz", header=None).to_numpy()
        absent[cells[:, 0] - 1, cells[:, 1] - 1] = True
    sorts = pd.read_csv(folder / "data_types.csv")["type"].tolist()
    return Data(frame.mask(absent), sorts, absent, folder)


def errors(data: Data, hidden: np.ndarray, filled: pd.DataFrame) -> list[float]:
    """Return the error of every column on the hidden cells, by HI-VAE's measures."""
    found = []
    for number, sort in enumerate(data.sorts):
        truth = data.frame.iloc[:, number]
        true, guess = (
            truth[hidden[:, number]].to_numpy(),
            filled.iloc[:, number][hidden[:, number]].to_numpy(),
        )
        if sort == "cat":
            found.append(float((true != guess).mean()))
        elif sort == "ordinal":
            found.append(float(np.abs(true - guess).mean() / truth.nunique()))
        else:
            found.append(float(np.sqrt(((true - guess) ** 2).mean()) / (truth.max() - truth.min())))
    return found


def by_mean(data: Data, seen: pd.DataFrame) -> pd.DataFrame:
    """Fill in the mean of numbers, and the mode of other columns."""
    nominal = [sort in ("cat", "ordinal") for sort in data.sorts]
    values = [seen[c].mode()[0] if n else seen[c].mean() for c, n in zip(seen, nominal, strict=True)]
    return seen.fillna(dict(zip(seen, values, strict=True)))


#: Nominal columns are coded _NOMINAL, _NOMINAL + 1, …, so that the chain can tell them from numbers.
_NOMINAL = 1e9


class Forest(BaseEstimator):
    """A random forest that classifies the codes of nominal columns, and regresses all others."""

    def __init__(self, trees: int = 30) -> None:
        self.trees = trees

    def fit(self, x: np.ndarray, y: np.ndarray) -> Forest:
        kind = RandomForestClassifier if y.min() >= _NOMINAL else RandomForestRegressor
        self.forest_ = kind(self.trees, n_jobs=1, random_state=0).fit(x, y)
        return self

    def predict(self, x: np.ndarray) -> np.ndarray:
        return self.forest_.predict(x)


def by_forests(data: Data, seen: pd.DataFrame, trees: int) -> pd.DataFrame:
    """Fill in by a chain of random forests, starting from each column's most frequent value."""
    nominal = [column for column, sort in zip(seen, data.sorts, strict=True) if sort == "cat"]
    coded = seen.astype(float)
    coded[nominal] += _NOMINAL
    # Without tol=0 the codes of nominal columns, as the largest numbers, end the chain after one sweep.
    chain = IterativeImputer(
        Forest(trees), max_iter=3, tol=0.0, initial_strategy="most_frequent", random_state=0
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*Early stopping criterion not reached")
        filled = pd.DataFrame(chain.fit_transform(coded), columns=seen.columns, index=seen.index)
    filled[nominal] -= _NOMINAL
    ordinal = [column for column, sort in zip(seen, data.sorts, strict=True) if sort == "ordinal"]
    filled[ordinal] = filled[ordinal].round()
    return filled


def vae_of(data: Data, seen: pd.DataFrame, latent_dim: int, epochs: int, seed: int) -> pv.VAE:
    """Return a VAE of the table, fitted to the cells that are there."""
    families = {}
    for column, sort in zip(seen, data.sorts, strict=True):
        if sort in ("cat", "ordinal"):
            two = seen[column].nunique() == 2
            families[column] = "bernoulli" if two else "ordinal" if sort == "ordinal" else "categorical"
    torch.manual_seed(seed)
    vae = pv.VAE.for_table(seen, latent_dim, families=families, hidden_dims=(200, 200))
    size = min(512, max(32, len(seen) // 12))  # few rows get a dozen steps an epoch, too
    pv.fit(vae, seen, epochs=epochs, lr=3e-3, batch_size=size, kl_warmup=10, seed=seed)
    return vae


def by_vae(
    data: Data, seen: pd.DataFrame, latent_dim: int, epochs: int
) -> tuple[pd.DataFrame, dict[str, np.ndarray]]:
    """Fill in by imputations of a VAE; also return the ends of 90 % intervals of every missing cell, by column."""
    vae = vae_of(data, seen, latent_dim, epochs, seed=0)
    cells = pv.impute(vae, seen, DRAWS, method="importance", check=False).to_frame(coverage=0.9)
    kind, filled, ends = {"cat": "mode", "ordinal": "median"}, seen.astype(float), {}
    for column, sort in zip(seen, data.sorts, strict=True):
        here = (
            cells[cells["column"] == column]
            .set_index("row")
            .drop(columns=["column", "verdict"])
            .astype(float)
        )
        filled[column] = filled[column].fillna(here[kind.get(sort, "mean")])
        if sort not in kind:
            ends[column] = here.reset_index()[["row", "low", "high"]].to_numpy().T
    return filled, ends


def inside(data: Data, hidden: np.ndarray, ends: dict[str, np.ndarray]) -> dict[str, list[int]]:
    """Return for every column of numbers how many hidden cells lie in their intervals, and how many there are."""
    found = {}
    for column, (rows, low, high) in ends.items():
        here = hidden[rows.astype(int), data.frame.columns.get_loc(column)]
        true = data.frame[column].to_numpy()[rows.astype(int)]
        found[column] = [int(((true >= low) & (true <= high))[here].sum()), int(here.sum())]
    return found


def mask_of(name: str, share: int, mask: int, options: argparse.Namespace) -> dict[str, Any]:
    """Return the errors of every method on one mask."""
    data = table(name)
    hidden = data.hidden(share, mask)
    seen, found = data.frame.mask(hidden), {}
    methods: dict[str, Callable[[], Any]] = {
        "mean or mode": lambda: by_mean(data, seen),
        "forests": lambda: by_forests(data, seen, options.trees),
        "VAE": lambda: by_vae(data, seen, options.latent_dim, options.epochs),
    }
    for method in options.methods:
        started = time.perf_counter()
        filled, more = methods[method](), {}
        if method == "VAE":
            filled, ends = filled
            more = {"inside": inside(data, hidden, ends)}
        each = errors(data, hidden, filled)
        spent = round(time.perf_counter() - started, 1)
        found[method] = {"error": float(np.mean(each)), "columns": each, "seconds": spent, **more}
        print(
            f"{name} {share} % mask {mask}  {method:14s} {found[method]['error']:.4f}  {spent:7.1f} s",
            flush=True,
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("table", choices=("Wine", "Adult"))
    parser.add_argument("--share", type=int, nargs="+", default=[20, 50], help="per cent of cells hidden")
    parser.add_argument("--masks", type=int, default=1, help="how many of the ten masks")
    parser.add_argument("--methods", nargs="+", default=["mean or mode", "forests", "VAE"])
    parser.add_argument("--latent-dim", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--trees", type=int, default=30)
    parser.add_argument("--json", type=Path, help="where results are kept, and read from")
    options = parser.parse_args()
    found = harness.read(options.json) if options.json and options.json.exists() else {}
    for share in options.share:
        for mask in range(1, options.masks + 1):
            key = f"{options.table} {share} {mask}"
            if set(options.methods) <= set(found.get(key, ())):
                continue
            found[key] = {**found.get(key, {}), **mask_of(options.table, share, mask, options)}
            if options.json:
                harness.write(options.json, found)
        held = [found[f"{options.table} {share} {mask}"] for mask in range(1, options.masks + 1)]
        for method in options.methods:
            each = [one[method]["error"] for one in held]
            print(f"{options.table} {share} %  {method:14s} {np.mean(each):.4f} ± {np.std(each):.4f}")
        if "VAE" in options.methods:
            for column in held[0]["VAE"]["inside"]:
                hits, count = np.sum([one["VAE"]["inside"][column] for one in held], axis=0)
                print(f"  90 % intervals of {column}: {hits / count:.1%} of {count}")


if __name__ == "__main__":
    main()
