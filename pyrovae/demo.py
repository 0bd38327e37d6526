"""The computations of ``pyrovae demo``: a VAE on real digits beside a baseline whose log P(x) is exact."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyrovae import datasets, noise, plots
from pyrovae.baselines import PPCA, IndependentBernoulli
from pyrovae.baselines.base import Baseline
from pyrovae.comparison import compare
from pyrovae.evidence import LogEvidence, log_evidence
from pyrovae.model import VAE
from pyrovae.training import History, fit
from pyrovae.turns import takes_turns

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

NUM_SAMPLES = 5000
#: The VAE with the scales of its encoder multiplied by 0.3, scored in two ways.
SPOILED = ("narrow Q, importance", "narrow Q, auto")


class Overconfident(nn.Module):
    """An encoder that is too narrow on purpose: the means of another one, and its scales times ``factor``."""

    def __init__(self, encoder: nn.Module, factor: float) -> None:
        super().__init__()
        self.encoder = encoder
        self.factor = factor

    def forward(self, x: Tensor) -> dist.TorchDistribution:
        q = self.encoder(x).base_dist
        return dist.Normal(q.loc, self.factor * q.scale).to_event(1)


@dataclass(frozen=True)
class Part:
    """One half of the demo: a VAE, the same VAE with a too narrow encoder, and a baseline, on the same rows.

    Attributes:
        title: the data, and whether P(x) is a mass or a density.
        baseline: the fitted baseline.
        vae: the fitted VAE.
        history: of its fit.
        scores: log P(x) of the held-out rows under every model, by the model's name.
        table: the comparison.
        data: the digits the part was fitted to and scored on.
    """

    title: str
    baseline: Baseline
    vae: VAE
    history: History
    scores: dict[str, LogEvidence]
    table: pd.DataFrame
    data: datasets.Split


@takes_turns
def discrete(seed: int, epochs: int, progress: bool) -> Part:
    """Binarized digits: a Bernoulli VAE against independent Bernoulli pixels."""
    data = datasets.digits("binary")
    return _part(
        "Discrete: binarized digits, P(x) a mass",
        data,
        lambda: VAE.mlp(64, latent_dim=8, likelihood="bernoulli", hidden_dims=(128, 128)),
        "independent pixels",
        IndependentBernoulli().fit(data.train),
        seed,
        epochs,
        progress,
    )


@takes_turns
def continuous(seed: int, epochs: int, progress: bool) -> Part:
    """Dequantised digits: a Gaussian VAE against probabilistic PCA, its size chosen on the validation rows."""
    data = datasets.digits("continuous")
    fitted = (PPCA(latent_dim).fit(data.train) for latent_dim in range(4, 64, 4))
    baseline = max(fitted, key=lambda ppca: ppca.log_evidence(data.validation).mean)
    return _part(
        "Continuous: dequantised digits, P(x) a density",
        data,
        lambda: VAE.mlp(64, latent_dim=4, likelihood="gaussian", hidden_dims=(64, 64), scale="decoder"),
        f"PPCA({baseline.latent_dim})",
        baseline,
        seed,
        epochs,
        progress,
    )


def _part(
    title: str,
    data: datasets.Split,
    build: Callable[[], VAE],
    name: str,
    baseline: Baseline,
    seed: int,
    epochs: int,
    progress: bool,
) -> Part:
    with noise.seeded(noise.derive(seed, noise.Stream.WEIGHTS)):
        vae = build()
    cosine = functools.partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=epochs)
    history = fit(
        vae,
        data.train,
        epochs=epochs,
        batch_size=64,
        lr=3e-3,
        seed=seed,
        scheduler=cosine,
        kl_warmup=epochs // 8,
        validation=data.validation,
        patience=30,
        progress=progress,
    )
    spoiled = copy.deepcopy(vae)
    spoiled.encoder = Overconfident(spoiled.encoder, factor=0.3)
    evaluate = functools.partial(log_evidence, x=data.test, seed=seed, progress=progress)
    scores = {
        "VAE": evaluate(vae, method="auto"),
        SPOILED[0]: evaluate(spoiled, num_samples=NUM_SAMPLES),
        SPOILED[1]: evaluate(spoiled, method="auto"),
        name: log_evidence(baseline, data.test),
    }
    return Part(title, baseline, vae, history, scores, compare(scores), data)


def write(parts: list[Part], folder: Path) -> list[Path]:
    """Write the figure and the CSV files, and return their paths, the figure first."""
    folder.mkdir(parents=True, exist_ok=True)
    figure = folder / "demo.png"
    drawn = draw(parts)
    drawn.savefig(figure, dpi=150)
    written = [figure]
    for part in parts:
        label = part.title.split(":")[0].lower()
        frames = {"comparison": part.table, "history": part.history.frame, "rows": _rows(part)}
        for name, frame in frames.items():
            path = folder / f"{label}_{name}.csv"
            frame.to_csv(path, index=name == "comparison")
            written.append(path)
    return written


def _rows(part: Part) -> pd.DataFrame:
    """Return every held-out row under every model, one line each."""
    import pandas as pd

    frames = [score.to_frame().reset_index().assign(model=name) for name, score in part.scores.items()]
    return pd.concat(frames, ignore_index=True)


def draw(parts: list[Part]) -> Figure:
    """Draw a line of panels for each part: training, samples, reconstructions, k-hat of every row."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(plots.STYLE):
        figure = Figure(figsize=(12, 3.4 * len(parts)), layout="constrained")
        for axes, part in zip(figure.subplots(len(parts), 4, squeeze=False), parts, strict=True):
            some = part.data.test[:40]
            limits = (float(part.data.train.min()), float(part.data.train.max()))
            sampled = {
                name: score for name, score in part.scores.items() if score.method in ("importance", "auto")
            }
            plots.training_curves(part.history, ax=axes[0])
            plots.image_grid(part.vae.sample(80), (8, 8), limits=limits, ax=axes[1])
            plots.reconstructions(some, part.vae.reconstruct(some), (8, 8), limits=limits, ax=axes[2])
            plots.pareto_k(sampled, ax=axes[3])
            titles = (
                part.title.replace(", P", "\nP"),
                "samples from P(x)",
                "held-out digits",
                "k-hat of every held-out row",
            )
            for ax, title in zip(axes, titles, strict=True):
                ax.set_title(title)
    return figure
