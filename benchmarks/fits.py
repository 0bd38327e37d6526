"""Why posteriors are fitted as they are: steps against Adam, widened fits against none, starts far from the encoder.

python benchmarks/fits.py --json benchmarks/results/fits.json
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import harness
import torch
from torch import Tensor

import pyrovae as pv
from pyrovae import diagnostics
from pyrovae.evaluation import Evaluation
from pyrovae.evidence import gaussians
from pyrovae.evidence.posterior import Gaussian, Posterior, total, undisturbed
from pyrovae.noise import Stream

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
from oracles import LinearGaussian, TwoModes

refined = sys.modules["pyrovae.evidence.refined"]  # the package's attribute is the function


def adam(posterior: Posterior, starts: gaussians.Starts, steps: int, rate: float) -> Gaussian:
    """A full-rank Gaussian by torch's Adam on the ELBO, four antithetic draws a step, without the score's noise.

    The path derivative alone (Roeder, Wu and Duvenaud 2017): its noise vanishes at the optimum, as the steps' does.
    """
    loc, spread = starts.loc[0], starts.spread
    rows, dim = loc.shape
    mean = torch.zeros(rows, dim, dtype=torch.float64, requires_grad=True)
    raw = torch.zeros(rows, dim, dim, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([mean, raw], lr=rate, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)

    def tril() -> Tensor:
        return torch.tril(raw, -1) + torch.diag_embed(raw.diagonal(dim1=-2, dim2=-1).exp())

    for _ in range(steps):
        half = torch.randn(2, rows, dim, dtype=torch.float64)
        noise = torch.cat([half, -half])
        with torch.enable_grad():
            v = mean + (tril() @ noise[..., None])[..., 0]
            _, gradient = posterior.score((loc + spread * v).detach().to(posterior.dtype))
            back = torch.linalg.solve_triangular(tril().detach().mT, noise[..., None], upper=True)[..., 0]
            optimizer.zero_grad()
            (-((gradient.double() * spread + back) * v).sum() / len(noise)).backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        return Gaussian(loc + spread * mean, spread[..., None] * tril(), posterior.dtype)


def steps_against_adam() -> list[dict[str, Any]]:
    """Effective draws of 1000 from q*, PPCA with 50 latents, the encoder the best mean-field one, 50 rows."""
    oracle = LinearGaussian.random(50, 100, dtype=torch.float32)
    evaluation = Evaluation.prepare(oracle.mean_field_pair(), oracle.sample(50), 64, 0)
    lines = []
    with undisturbed(evaluation, Stream.PILOT):
        posterior = Posterior(evaluation)
        starts = gaussians.encoder_start(posterior, posterior.draw_prior(32)[0])
        runs = {f"Adam, {steps} steps": (adam, steps, 0.05) for steps in (100, 200, 400, 800)}
        runs |= {f"steps, {steps}": (None, steps, 0.0) for steps in (1, 3, 10)}
        for name, (method, steps, rate) in runs.items():
            before = posterior.cost
            if method is None:
                fits, _ = gaussians.fit_gaussians(posterior, starts, steps, "full_rank")
                fit = fits[0]
            else:
                fit = method(posterior, starts, steps, rate)
            cost = posterior.cost - before
            u = fit.draw(1000)
            joint = posterior.log_joint(u)
            ess = diagnostics.ess(total(joint) - fit.log_density(u, joint.prior))
            lines.append(
                {"fit": name, "cost": cost, "mean ess": float(ess.mean()), "least ess": float(ess.min())}
            )
            print(
                f"{name:18} {cost:6} evaluations  effective draws {ess.mean():5.0f}, least {ess.min():5.0f}"
            )
    return lines


def widened_against_not() -> list[dict[str, Any]]:
    """Rows with k-hat above 0.7 of 400 by ``refined``, with and without widened fits among the strata."""
    lines = []
    for latent_dim, kind in ((2, "bernoulli"), (10, "bernoulli"), (10, "gaussian")):
        data = pv.datasets.digits("binary" if kind == "bernoulli" else "continuous")
        torch.manual_seed(0)
        vae = pv.VAE.mlp(64, latent_dim, kind, (64, 64))
        pv.fit(vae, data.train, epochs=60, batch_size=64, lr=2e-3, seed=0)
        shares = refined._FITS_SHARE, refined._WIDE_SHARE
        found = {}
        for name, chosen in (("without", (0.8 - 1e-9, 1e-9)), ("with", shares)):
            refined._FITS_SHARE, refined._WIDE_SHARE = chosen
            found[name] = int(
                (pv.log_evidence(vae, data.test, method="refined", check=False).pareto_k > 0.7).sum()
            )
        refined._FITS_SHARE, refined._WIDE_SHARE = shares
        lines.append({"vae": f"{kind}, {latent_dim} latents", **found})
        print(
            f"{kind}, {latent_dim} latents: k-hat above 0.7 in {found['without']} rows without, {found['with']} with"
        )
    return lines


def starts_far_from_the_encoder() -> dict[str, int]:
    """Rows of 400 in which three starts find the other one of two modes: the farthest good draws, or the best."""
    oracle = TwoModes()
    x = oracle.sample(400)
    evaluation = Evaluation.prepare(oracle.pair(), x, 64, 0)
    with undisturbed(evaluation, Stream.PILOT):
        posterior = Posterior(evaluation)
        prior, joint = posterior.draw_prior(96)
        encoder = gaussians.encoder_start(posterior, prior)
        far = gaussians.independent_starts(posterior, 3, encoder, prior, total(joint)).loc
        # the best of each 32 draws: as if the encoder's place were nowhere, and a quarter of 12 draws one
        best = [
            gaussians.independent_starts(posterior, 1, encoder, part[i : i + 1].repeat(4, 1, 1), value)
            for part, value, i in _best(prior, total(joint))
        ]
    found = {
        "farthest": int((far[..., 0] < 0).any(dim=0).sum()),
        "best": int((torch.cat([start.loc for start in best])[..., 0] < 0).any(dim=0).sum()),
    }
    print(
        f"the other mode found in {found['farthest']} of 400 rows by the farthest, {found['best']} by the best"
    )
    return found


def _best(prior: Tensor, values: Tensor) -> list[tuple[Tensor, Tensor, int]]:
    """For each third of the draws, every row's best draw, at index 0."""
    chosen = []
    for part, value in zip(prior.chunk(3), values.chunk(3), strict=True):
        index = value.argmax(dim=0)
        draw = part.gather(0, index[None, :, None].expand(1, -1, part.shape[-1]))
        chosen.append((draw, value.max(dim=0, keepdim=True).values.repeat(4, 1), 0))
    return chosen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write every figure to this file")
    arguments = parser.parse_args()
    found = {
        "steps against Adam": steps_against_adam(),
        "widened fits": widened_against_not(),
        "starts": starts_far_from_the_encoder(),
    }
    if arguments.json:
        arguments.json.write_text(
            json.dumps(harness.environment() | found, indent=1) + "\n", encoding="utf-8"
        )


if __name__ == "__main__":
    main()
