"""gaps() splits the inference gap: limits of the encoder's family, and distance of the encoder from its best."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from pyrovae import arguments
from pyrovae.evaluation import Evaluation
from pyrovae.evidence.check import judged_by_check
from pyrovae.evidence.gaussians import FAMILIES, fit_cost, fit_gaussians
from pyrovae.evidence.nearby import Pool
from pyrovae.evidence.posterior import Gaussian, Posterior, undisturbed
from pyrovae.evidence.refined import all_starts, refined, weigh, weigh_fits
from pyrovae.evidence.result import Columns, frame_of, judge, verdicts
from pyrovae.log_weights import elbo_of
from pyrovae.model import LatentVariableModel
from pyrovae.noise import Stream, derive
from pyrovae.progress import Progress
from pyrovae.turns import takes_turns

if TYPE_CHECKING:
    import pandas as pd

_STARTS, _STEPS = 4, 10


@takes_turns
def gaps(
    pair: LatentVariableModel,
    x: Any,
    num_samples: int = 1000,
    seed: int = 0,
    family: str = "mean_field",
    tile: tuple[int, int] | None = None,
    progress: bool = False,
    compile: str | bool = "auto",
    noise: str = "index",
    check: bool = True,
) -> pd.DataFrame:
    """Return log P(x_n) − ELBO(Q) = approximation gap + amortization gap, for every row.

    Let q* be the best Gaussian of a family for the row, found by optimising it for this row alone. The
    approximation gap log P(x_n) − ELBO(q*) is lost because the family is limited. The amortization gap
    ELBO(q*) − ELBO(Q) is lost because the encoder does not reach q* (Cremer, Li and Duvenaud 2018).

    Args:
        pair: a ``VAE`` or any ``LatentVariableModel`` with continuous latents.
        x: rows on dim 0; tensor, numpy array or DataFrame.
        num_samples: fresh draws per row for each of the three terms, at least 100.
        family: of q*, "mean_field" or "full_rank". Choose the encoder's own family; otherwise the gaps do not
            have this meaning.
        seed, tile, progress, compile, noise, check: as in ``importance``.

    Returns:
        A frame with one line per row and the index of x, in nats. The columns are ``log_evidence`` (as by
        ``refined``, full-rank), ``elbo_optimised``, ``elbo_encoder``, ``approximation``, ``amortization`` and
        their sum ``inference``. Then come the errors ``approximation_mcse``, ``amortization_mcse`` and
        ``inference_mcse``, and the ``verdict`` on log P(x_n). An amortization gap that is negative by more
        than its error means that the encoder is more flexible than the family.

    Raises:
        TypeError, ValueError: see ``refined``.

    Example:
        >>> import torch
        >>> from pyrovae import VAE
        >>> frame = gaps(VAE.mlp(6, latent_dim=2), torch.ones(4, 6), num_samples=100)
        >>> frame[["approximation", "amortization"]].shape
        (4, 2)
    """
    arguments.integer("num_samples", num_samples, minimum=100)
    arguments.choice("family", family, FAMILIES)
    arguments.boolean("progress", progress)
    arguments.boolean("check", check)
    evaluation = Evaluation.prepare(pair, x, num_samples, seed, tile, compile=compile, noise=noise)
    evidence, optimised, pool = [], [], Pool(evaluation)
    with Progress("gaps", len(evaluation), "rows", progress) as bar:
        for rows in evaluation.blocks():
            with undisturbed(evaluation, Stream.PILOT, rows=rows) as drawn:
                posterior = Posterior(evaluation, rows)
                posterior.expect(2 * fit_cost(posterior.dim, _STARTS, _STEPS) + num_samples)
                starts, hints = all_starts(posterior, _STARTS, drawn, pool.near(evaluation.part(rows)))
                fits, levels, _ = fit_gaussians(posterior, starts, _STEPS, "full_rank", drawn)
                family_fits, elbos, _ = fit_gaussians(posterior, starts, _STEPS, family, drawn)
            evidence.append(weigh_fits(evaluation, rows, fits, levels, hints, "full_rank", _STEPS))
            optimised.append(_elbo_of(_best(family_fits, elbos, posterior), evaluation, posterior, rows))
            bar.advance(posterior.num_rows)
    columns = Columns.cat(evidence)
    verdict, _ = judge(verdicts(columns.pareto_k.cpu().numpy(), num_samples), columns)
    options: dict[str, Any] = {"num_samples": num_samples, "num_starts": _STARTS, "num_steps": _STEPS}
    options |= {"tile": tile, "compile": compile, "noise": noise}
    verdict, _ = judged_by_check(verdict, evaluation, refined if check else None, options)
    log_evidence, error = columns.estimate.cpu().numpy(), columns.mcse.cpu().numpy()
    best_elbo, best_error = torch.cat(optimised, dim=1).cpu().numpy()
    # Fresh noise: the noise of the tiles belongs to the estimate of log P(x).
    encoder = elbo_of(dataclasses.replace(evaluation, seed=derive(seed, Stream.WEIGHTS)))
    return frame_of(
        {
            "log_evidence": log_evidence,
            "elbo_optimised": best_elbo,
            "elbo_encoder": encoder.estimate,
            "approximation": log_evidence - best_elbo,
            "amortization": best_elbo - encoder.estimate,
            "inference": log_evidence - encoder.estimate,
            "approximation_mcse": np.hypot(error, best_error),
            "amortization_mcse": np.hypot(best_error, encoder.mcse),
            "inference_mcse": np.hypot(error, encoder.mcse),
            "verdict": verdict,
        },
        evaluation.index,
    )


def _best(fits: Sequence[Gaussian], elbos: Tensor, posterior: Posterior) -> Gaussian:
    """Return for every row the fit of the largest ELBO; ``elbos`` have shape (fits, rows)."""
    best, every = elbos.argmax(dim=0), torch.arange(posterior.num_rows, device=posterior.device)
    loc, tril = (torch.stack([getattr(fit, name) for fit in fits]) for name in ("loc", "tril"))
    return Gaussian(loc[best, every], tril[best, every], posterior.dtype)


def _elbo_of(fit: Gaussian, evaluation: Evaluation, posterior: Posterior, rows: slice) -> Tensor:
    """Return the ELBO of a fit at each row and its error, by fresh draws, shape (2, rows)."""
    weights, count, height = list[Tensor](), evaluation.num_samples, evaluation.tile[1]
    for done in range(0, count, height):
        with undisturbed(evaluation, Stream.WEIGHTS, rows=rows, first=done) as drawn:
            u = fit.draw(min(height, count - done), drawn)
            weights.append(weigh(posterior, fit, u, height).log_weights)
    log_weights = torch.cat(weights)
    return torch.stack([log_weights.mean(dim=0), log_weights.std(dim=0) / count**0.5])
