"""What the choice of a likelihood does to log P(x): real counts, real grey levels, real digits.

PYROVAE_DATA=… python benchmarks/families.py cells frey digits --json benchmarks/results/families.json

The latent space of the cells is drawn to benchmarks/results/cells.png.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import harness
import numpy as np
import torch

import pyrovae as pv

RESULTS = Path(__file__).parent / "results"


def cells(draw: Path | None) -> list[dict[str, Any]]:
    """Molecules in single cells of three lines, the 500 most variable genes: Poisson, NB, ZINB.

    Each with and without an offset: the logarithm of what was counted of all other genes.
    """
    data = pv.datasets.cell_counts(500)
    x, x_test, validation = (
        {"x": counts, "offset": others.log()}
        for counts, others in (
            (data.counts.train, data.others.train),
            (data.counts.test, data.others.test),
            (data.counts.validation, data.others.validation),
        )
    )
    counts = ("poisson", "negative_binomial", "zero_inflated_negative_binomial")
    found = pv.swap(
        x,
        latent_dim=2,
        families=[*counts, *((name, {"offset": True}) for name in counts)],
        x_test=x_test,
        hidden_dims=(64,),
        epochs=400,
        lr=3e-3,
        batch_size=32,
        validation=validation,
        patience=30,
        clip_norm=100.0,
    )
    if draw is not None:
        draw_latents(found, data, draw)
    return lines("cells: 500 genes, 174 cells to fit, 50 to score", found)


def draw_latents(found: pv.comparison.Swapped, data: pv.datasets.CellCounts, path: Path) -> None:
    """Posterior means of all cells under the best family, coloured by line, a marker for held-out ones."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    name = found.masses.index[0]
    vae = found.models[name]
    figure, axes = plt.subplots(figsize=(5, 4), layout="constrained")
    for line, label in enumerate(data.cell_lines):
        for part, marker in (("train", "."), ("test", "*")):
            chosen = getattr(data.labels, part) == line
            with vae.evaluating():
                z = vae.encoder(getattr(data.counts, part)[chosen]).mean
            shown = f"{label}{', held out' if part == 'test' else ''}"
            axes.scatter(*z.T, marker=marker, s=60 if part == "test" else 25, c=f"C{line}", label=shown)
    axes.set(xlabel="$z_1$", ylabel="$z_2$", title=f"Posterior means, {name.partition('(')[0]}")
    axes.legend(fontsize="x-small")
    figure.savefig(path, dpi=110)


def frey(draw: Path | None) -> list[dict[str, Any]]:
    """Frey faces, 560 pixels: dequantised, as densities; as whole numbers 0 to 255, as masses."""
    out = []
    runs: dict[str, list[Any]] = {
        "continuous": [
            (name, {"scale": scale})
            for name in ("gaussian", "laplace", "student_t")
            for scale in ("shared", "per_dimension", "decoder")
        ],
        "levels": [
            *(
                ("discretized_logistic", {"levels": 256, "scale": scale})
                for scale in ("shared", "per_dimension", "decoder")
            ),
            ("binomial", {"total_count": 255}),
        ],
    }
    for kind, families in runs.items():
        data = pv.datasets.frey_faces(kind)
        found = pv.swap(
            data.train,
            latent_dim=16,
            families=families,
            x_test=data.test,
            hidden_dims=(200,),
            epochs=300,
            lr=1e-3,
            validation=data.validation,
            patience=25,
            clip_norm=100.0,
        )
        out += lines(f"Frey faces, {kind}: 560 pixels, 1565 rows to fit, 200 to score", found)
    return out


def digits(draw: Path | None) -> list[dict[str, Any]]:
    """scikit-learn's digits as they are, whole numbers 0 to 16: four masses on one support."""
    data = pv.datasets.digits("levels")
    found = pv.swap(
        data.train,
        latent_dim=10,
        families=[
            ("binomial", {"total_count": 16}),
            ("categorical", {"num_categories": 17}),
            ("ordinal", {"num_levels": 17}),
            *(
                ("discretized_logistic", {"levels": 17, "scale": scale})
                for scale in ("shared", "per_dimension", "decoder")
            ),
        ],
        x_test=data.test,
        hidden_dims=(128, 128),
        epochs=300,
        lr=1e-3,
        validation=data.validation,
        patience=25,
    )
    return lines("digits: 64 pixels of 17 levels, 1197 rows to fit, 400 to score", found)


def lines(title: str, found: pv.comparison.Swapped) -> list[dict[str, Any]]:
    """The tables as records; printed, too."""
    out = []
    for kind, table in (("masses", found.masses), ("densities", found.densities)):
        if table is None:
            continue
        columns = ["elpd", "se", "elpd_diff", "dse", "mcse", "bits_per_dim", "trust"]
        print(f"\n{title}; {kind}, nats a row\n")
        print(table[columns].round({**dict.fromkeys(columns, 2), "mcse": 3}).to_string())
        records = table.drop(columns="seconds").reset_index().to_dict("records")
        out += [{"data": title, "measure": kind, **record} for record in records]
    return out


PARTS = {"cells": cells, "frey": frey, "digits": digits}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="+", choices=PARTS)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    found: dict[str, Any] = {"environment": harness.environment()}
    for part in arguments.parts:
        started = time.perf_counter()
        found[part] = PARTS[part](RESULTS / "cells.png" if arguments.json else None)
        print(f"\n{time.perf_counter() - started:.0f} s")
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1, default=_plain) + "\n")


def _plain(value: Any) -> Any:
    """numpy's and torch's numbers as Python's."""
    return value.item() if isinstance(value, np.generic | torch.Tensor) else str(value)


if __name__ == "__main__":
    try:
        main()
    except FileNotFoundError as missing:  # of a data set: a sentence says what to put where
        raise SystemExit(str(missing)) from None
