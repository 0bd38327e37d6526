"""Does the VAE beat what it should beat? Held-out log P(x) of VAEs and baselines on real images.

python benchmarks/comparison.py digits --json benchmarks/results/comparison_digits.json
PYROVAE_DATA=… python benchmarks/comparison.py frey --json benchmarks/results/comparison_frey.json

Every model is fitted to the same training rows, has its size chosen on the same validation rows, and is scored once
on the same test rows. Figures go to benchmarks/results/comparison_<data>.png.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import harness
import torch

import pyrovae as pv
from pyrovae import baselines
from pyrovae.datasets import Split
from pyrovae.networks import standardizing

RESULTS = Path(__file__).parent / "results"


def chosen(name: str, make: Callable[[Any], Any], sizes: Iterable[Any], data: Split) -> Any:
    """The baseline of the size that explains the validation rows best."""
    fitted: dict[float, Any] = {}
    shown = []
    for size in sizes:
        try:
            model = make(size).fit(data.train)
        except ValueError as refusal:  # a density that runs off
            shown.append(f"{size} (refused: {str(refusal).partition('.')[0]})")
            continue
        score = pv.log_evidence(model, data.validation, check=False).mean
        fitted[score] = model
        shown.append(f"{size} ({score:.2f})")
    print(f"  {name}: {fitted[max(fitted)]}, of {', '.join(shown)}")
    return fitted[max(fitted)]


def fitted_vae(vae: pv.VAE, data: Split, lr: float = 1e-3) -> pv.VAE:
    """A VAE that starts at the marginals and stops where the validation rows say so."""
    with standardizing(vae.modules(), data.train):
        vae.likelihood.start_from(data.train)
    pv.fit(vae, data.train, epochs=400, lr=lr, validation=data.validation, patience=30, clip_norm=100.0)
    return vae


def mixture_prior(vae: pv.VAE, latent_dim: int) -> pv.VAE:
    """The same with a mixture of Gaussians as its prior."""
    return pv.VAE(pv.priors.GaussianMixture(latent_dim, 10), vae.likelihood, vae.encoder)


def digits() -> tuple[str, dict[str, Any], torch.Tensor]:
    """Binarized digits, 64 pixels: masses."""
    data = pv.datasets.digits("binary")
    torch.manual_seed(0)

    def vae(**options: Any) -> pv.VAE:
        return pv.VAE.mlp(64, 8, "bernoulli", hidden_dims=(128, 128), **options)

    models = {
        "VAE": fitted_vae(vae(), data),
        "VAE, mixture prior": fitted_vae(mixture_prior(vae(), 8), data),
        "VAE, full-rank encoder": fitted_vae(vae(encoder="full_rank_normal"), data),
        "VAE, flow prior": fitted_vae(vae(prior="flow"), data),
        "Bernoulli mixture": chosen(
            "Bernoulli mixture", baselines.BernoulliMixture, (5, 10, 20, 40, 80), data
        ),
        "latent classes, pseudo-count 0.1": chosen(
            "latent classes", lambda k: baselines.LatentClass(k, 2, pseudo_count=0.1), (10, 20, 40, 80), data
        ),
        "independent Bernoulli": baselines.IndependentBernoulli().fit(data.train),
        "Dirichlet–categorical": baselines.DirichletCategorical(2).fit(data.train),
    }
    return "digits, zeros and ones: 1197 rows to fit, 200 to choose by, 400 to score", models, data.test


def frey() -> tuple[str, dict[str, Any], torch.Tensor]:
    """Dequantised Frey faces, 560 pixels: densities."""
    data = pv.datasets.frey_faces("continuous")
    torch.manual_seed(0)

    def vae(likelihood: str, **options: Any) -> pv.VAE:
        return pv.VAE.mlp(
            560, 16, likelihood, hidden_dims=(200,), scale="decoder", standardize=True, **options
        )

    models = {
        "VAE, Student's t": fitted_vae(vae("student_t"), data),
        "VAE, Gaussian": fitted_vae(vae("gaussian"), data),
        "VAE, Gaussian, mixture prior": fitted_vae(mixture_prior(vae("gaussian"), 16), data),
        "PPCA": chosen("PPCA", baselines.PPCA, (20, 40, 80, 160, 320), data),
        "factor analysis": chosen("factor analysis", baselines.FactorAnalysis, (20, 40, 80, 160), data),
        "full Gaussian": baselines.FullGaussian().fit(data.train),
        "mixture of Gaussians, diagonal": chosen(
            "mixture of Gaussians",
            lambda k: baselines.GaussianMixture(k, "diag", num_starts=2),
            (10, 20, 40),
            data,
        ),
        "kernel density": baselines.KernelDensity("cross_validation").fit(data.train),
        "independent Gaussian": baselines.IndependentGaussian().fit(data.train),
    }
    return "Frey faces, dequantised: 1565 rows to fit, 200 to choose by, 200 to score", models, data.test


PARTS = {"digits": digits, "frey": frey}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="+", choices=PARTS)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    found: dict[str, Any] = {"environment": harness.environment()}
    for part in arguments.parts:
        started = time.perf_counter()
        print(f"\nsizes, by log P of the validation rows, {part}")
        title, models, test = PARTS[part]()
        table = pv.compare(models, test, method="auto", target_mcse=0.05)
        print(f"\n{title}\n\n{table}\n\n{time.perf_counter() - started:.0f} s")
        found[part] = {
            "title": title,
            "models": table.drop(columns="seconds").reset_index().to_dict("records"),
        }
        if arguments.json:
            draw(table, title, RESULTS / f"comparison_{part}.png")
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")


def draw(table: Any, title: str, path: Path) -> None:
    """Every model's elpd with its errors."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 3.5), layout="constrained")
    pv.plots.compare(table, ax=axes).set_title(title.partition(":")[0])
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    try:
        main()
    except FileNotFoundError as missing:  # of a data set: a sentence says what to put where
        raise SystemExit(str(missing)) from None
