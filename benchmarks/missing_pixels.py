"""log P of the seen half of an image, and draws of the other half: static MNIST with half of the pixels missing at random.

    PYROVAE_DATA=… python benchmarks/missing_pixels.py --folder /tmp/missing_pixels --json benchmarks/results/missing_pixels.json

A Bernoulli VAE is fitted to 50 000 training rows, each with a mask of its own. On test rows: log P(x_obs) by "auto", beside
independent pixels; and the share of missing pixels that the most probable value gets wrong. The figure,
benchmarks/results/missing_pixels.png, has an image a column: the truth, the seen pixels (grey: missing), three draws of the
missing pixels, and the mean of 20 draws, without the check. A run that is stopped goes on from the checkpoints in ``--folder``.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import harness
import numpy as np
import torch
from torch import Tensor

import pyrovae as pv
from pyrovae import plots

RESULTS = Path(__file__).parent / "results"
IMAGES, DRAWS = 8, 20


def holed(x: Tensor, seed: int) -> Tensor:
    """Return rows with NaN in half of the pixels, drawn independently."""
    keep = torch.rand(x.shape, generator=torch.Generator().manual_seed(seed)) < 0.5
    return x.masked_fill(~keep, torch.nan)


def figure(truth: Tensor, seen: Tensor, draws: Tensor, path: Path) -> None:
    """Draw a line each of the truth, the seen pixels, three draws and the mean."""
    lines = [truth[:IMAGES], seen[:IMAGES].nan_to_num(0.3), *draws[:3], draws.mean(dim=0)]
    ax = plots.image_grid(torch.cat(lines), (28, 28), IMAGES, limits=(0.0, 1.0))
    ax.set_yticks(
        [29 * line + 14 for line in range(len(lines))],
        ["truth", "seen", "draw 1", "draw 2", "draw 3", f"mean of {len(draws)}"],
    )
    ax.figure.savefig(path, dpi=220, bbox_inches="tight")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--rows", type=int, default=100)
    parser.add_argument("--folder", type=Path, help="where checkpoints of the fit and of log P(x) are kept")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    data = pv.datasets.binarized_mnist(download=False)
    train, truth = holed(data.train, 1), data.test[: options.rows]
    x = holed(truth, 2)

    def kept(name: str) -> Path | None:
        return None if options.folder is None else options.folder / name

    torch.manual_seed(0)
    vae = pv.VAE.mlp(784, 20, "bernoulli", (200, 200), missing=True)
    started = time.perf_counter()
    history = pv.fit(vae, train, epochs=options.epochs, checkpoint=kept("fit"), progress=True)
    fitting = time.perf_counter() - started
    started = time.perf_counter()
    ev = pv.log_evidence(vae, x, method="auto", checkpoint=kept("auto"))
    scoring = time.perf_counter() - started
    pixels = pv.baselines.IndependentBernoulli().fit(train)
    started = time.perf_counter()
    found = pv.impute(vae, x, DRAWS)
    imputing = time.perf_counter() - started

    missing = x.isnan().numpy()
    wrong = {
        name: float(np.mean((np.asarray(mean) > 0.5) != truth.numpy()[missing]))
        for name, mean in (
            ("VAE", found.mean),
            ("independent pixels", pixels.draw_missing(x, 1000).mean(dim=0).numpy()[missing]),
        )
    }
    drawn = pv.impute(vae, x[:IMAGES], DRAWS, check=False)
    figure(truth, x, torch.stack(drawn.completed), RESULTS / "missing_pixels.png")
    verdicts = dict(zip(*(part.tolist() for part in np.unique(ev.verdict, return_counts=True)), strict=True))
    trusted = int((found.verdict == "trust").sum())
    low, high = ev.mean_interval
    print(ev.summary())
    print(found.summary())
    result = {
        **harness.environment(),
        "epochs": options.epochs,
        "train_elbo": float(history.frame["elbo"].iloc[-1]),
        "rows": options.rows,
        "missing_share": float(missing.mean()),
        "log_evidence": {
            "mean": ev.mean,
            "interval": [low, high],
            "mean_over_rows_se": float(ev.estimate.std(ddof=1) / options.rows**0.5),
            "verdicts": verdicts,
            "independent_pixels": pixels.log_evidence(x).mean,
        },
        "imputation": {"wrong": wrong, "rows_trusted": trusted},
        "seconds": {"fit": round(fitting), "log_evidence": round(scoring), "impute": round(imputing)},
    }
    print(f"log P(x_obs) {ev.mean:.2f} nats a row, interval {low:.2f} to {high:.2f}; verdicts {verdicts}")
    print(f"independent pixels {result['log_evidence']['independent_pixels']:.2f} nats a row")
    print(", ".join(f"{name}: {share:.1%} of missing pixels wrong" for name, share in wrong.items()))
    print(f"{trusted} rows whose draws are trusted; seconds {result['seconds']}")
    if options.json is not None:
        harness.write(options.json, result)


if __name__ == "__main__":
    main()
