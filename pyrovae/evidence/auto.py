"""auto() estimates log P(x) by the cheapest of several methods that reaches a target error, row by row."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
import torch

from pyrovae import arguments
from pyrovae.evaluation import Evaluation
from pyrovae.evidence.exact import exactly
from pyrovae.evidence.ladder import PILOT, Ladder
from pyrovae.evidence.nearby import Pool
from pyrovae.evidence.posterior import dimensions
from pyrovae.evidence.result import Columns, LogEvidence, verdicts
from pyrovae.evidence.run import Folder, Run
from pyrovae.evidence.workers import Workers, computed
from pyrovae.model import LatentVariableModel
from pyrovae.progress import Progress
from pyrovae.refusals import Refused
from pyrovae.turns import takes_turns

_ROWS_AT_ONCE = 1 << 22  # numbers in the fitted Gaussians that are held at a time


@takes_turns
def auto(
    pair: LatentVariableModel,
    x: Any,
    target_mcse: float = 0.05,
    max_cost: int = 50_000,
    seed: int = 0,
    tile: tuple[int, int] | None = None,
    progress: bool = False,
    checkpoint: Folder = None,
    compile: str | bool = "auto",
    noise: str = "index",
    check: bool = True,
    executor: Workers = None,
) -> LogEvidence:
    """Return log P(x_n) to a target error, by the cheapest method that reaches it, chosen row by row.

    1. A linear-Gaussian VAE is computed in closed form.
    2. A pilot of 64 draws of the encoder predicts how many draws ``importance`` would need. A small k-hat is
       not sufficient, so 96 draws of the prior search for mass that the encoder misses. If their weights are too uneven
       to tell, gradient ascents from prior draws far from the encoder search for modes.
    3. A row gets Gaussians of its own, as in ``refined``, if it needs too many draws, has a heavy tail or a
       missed mode. If most of the ascents end in different modes, further ascents search for more (Good 1953). A second
       pilot tells whether the Gaussians are good enough. If they are not, the fits continue, and then a mixture of up
       to twelve Gaussians is adapted to the row (Cappé et al. 2008).
    4. If that is not good enough, ``quadrature`` computes rows with one or two latent dimensions. ``annealed``
       computes all others, with half of its chains from the prior. If grid or chains give a nat less than the pilot's
       bound, the mixture answers the row.

    2000 pairs (x, z) are simulated from the model, once per call. The z of pairs near a row are further starts, and points
    at which proposals are tested. ``cost`` leaves out the simulation. Rows with values beside x, such as context, have
    no pairs.

    Pilots only choose the method. The answer comes from fresh noise and is kept whatever its value, so a
    lower bound remains one. If a row's answer did not cover a known mode, the row is neither settled nor
    trusted.

    Args:
        pair: a ``VAE`` or any ``LatentVariableModel``. Pairs with discrete latents are answered otherwise.
            Up to 128 values of z are summed over ("exact"). Beside other latents, each of up to 32 values of Bernoulli and
            categorical ones gets a share of the draws ("defensive"). Half of the draws follow a pilot's estimate of
            P(c | x); the others are shared equally. With more values or other families, only step 2 is done. If the guide
            then cannot reach all of the prior, up to 1024 values are summed over. With more values, half of the draws come
            from the prior ("defensive").
        x: rows on dim 0; tensor, numpy array or DataFrame.
        target_mcse: the requested Monte-Carlo error, in nats per row; a row within it is settled.
        max_cost: most decoder evaluations to spend on a row; a gradient counts three. A row that would need
            more is answered within this limit, and is not settled.
        seed, tile, progress, checkpoint, compile, noise, check, executor: as in ``importance``.

    Returns:
        A ``LogEvidence`` with, for every row, ``answered_by``, ``cost`` and ``settled``.

    Raises:
        TypeError, ValueError: an option, the rows or the pair cannot be used; see ``pyrovae.pair.inspect``.

    Example:
        >>> import torch
        >>> from pyrovae import VAE
        >>> ev = auto(VAE.mlp(6, latent_dim=2), torch.ones(4, 6), target_mcse=0.1)
        >>> ev.answered_by.shape, ev.settled.shape
        ((4,), (4,))
    """
    arguments.positive("target_mcse", target_mcse)
    arguments.integer("max_cost", max_cost, minimum=1000)
    run = Run.prepare(auto, locals(), num_samples=PILOT)
    closed = _closed_form(run.whole)
    if closed is not None:
        return dataclasses.replace(closed, method="auto", target_mcse=float(target_mcse))
    answers = _climbed(run, float(target_mcse), max_cost)
    columns = Columns.cat([Columns(**answer["columns"]) for answer in answers])
    answered_by, draws = (
        np.concatenate([np.asarray(answer[name]) for answer in answers]) for name in ("answered_by", "draws")
    )
    grid = answered_by == "quadrature"
    within = (columns.mcse <= target_mcse).cpu().numpy()
    verdict = verdicts(columns.pareto_k.cpu().numpy(), draws)
    summed = answered_by == "exact"
    verdict = np.where(summed, "trust", verdict)
    verdict = np.where(grid, np.where(within, "trust", "another method"), verdict)
    return run.answer(
        columns,
        np.where(summed, "exact", np.where(grid, "estimate", "lower bound")),
        verdict=verdict,
        answered_by=answered_by,
        target_mcse=float(target_mcse),
    )


def _climbed(run: Run, target: float, max_cost: int) -> list[dict[str, Any]]:
    """Return the answers of blocks of rows, in their order."""
    evaluation = run.evaluation
    dim = dimensions(evaluation)
    pool = Pool(evaluation if dim else None)
    height = max(1, _ROWS_AT_ONCE // (dim or 1) ** 2)
    blocks = [slice(at, min(at + height, len(evaluation))) for at in range(0, len(evaluation), height)]
    make = functools.partial(auto_block, pool=pool, target=target, max_cost=max_cost, dim=dim)
    found: dict[int, dict[str, Any]] = {}
    with run.bar() as bar:
        here = functools.partial(make, bar=bar) if run.pool is None else make
        for rows, answer in computed(evaluation, blocks, here, run.parts, run.pool):
            found[rows.start] = answer
            if run.pool is not None:
                bar.advance(rows.stop - rows.start)
    return [found[rows.start] for rows in blocks]


def auto_block(
    evaluation: Evaluation, pool: Pool, target: float, max_cost: int, dim: int, bar: Progress | None = None
) -> Callable[[int, slice], dict[str, Any]]:
    """Return the function of a block that answers its rows; ``bar`` counts rows, and parts of rows before their answer."""
    device = evaluation.batch["x"].device

    def answer(number: int, rows: slice) -> dict[str, Any]:
        part = evaluation.of_rows(torch.arange(rows.start, rows.stop, device=device), evaluation.seed, PILOT)
        return Ladder(part, pool, target, max_cost, bar).climb(dim)

    return answer


def _closed_form(evaluation: Evaluation) -> LogEvidence | None:
    with suppress(Refused):
        return exactly(evaluation)
    return None
