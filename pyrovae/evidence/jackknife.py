"""jackknife() estimates log P(x) by importance sampling and removes the first-order bias by leaving draws out."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pyrovae import arguments
from pyrovae.diagnostics import Accumulator
from pyrovae.evaluation import Evaluation
from pyrovae.evidence.importance import exact_weight
from pyrovae.evidence.result import CUT_OFF, Columns, LogEvidence
from pyrovae.evidence.run import BlockFunction, Folder, Run
from pyrovae.evidence.workers import Workers
from pyrovae.model import LatentVariableModel
from pyrovae.turns import takes_turns


@takes_turns
def jackknife(
    pair: LatentVariableModel,
    x: Any,
    num_samples: int = 1000,
    seed: int = 0,
    tile: tuple[int, int] | None = None,
    progress: bool = False,
    checkpoint: Folder = None,
    compile: str | bool = "auto",
    noise: str = "index",
    check: bool = True,
    executor: Workers = None,
) -> LogEvidence:
    """Return log P(x_n) ≈ K L_K − (K − 1) mean_i L_{K−1}^(−i), L the importance-weighted log-mean-exp.

    This is the first-order jackknife, JVI-1 (Nowozin 2018), with the combinatorial weights K and −(K − 1). It
    reduces the bias from O(1/K) to O(1/K²) with the same draws. The result is no longer a lower bound.

    Args:
        pair, x, seed, tile, progress, checkpoint, compile, noise, check, executor: as in ``importance``.
        num_samples: K, draws per row, at least 2. A block of rows holds all its log weights in memory.

    Returns:
        A ``LogEvidence`` whose rows are estimates. ``bias`` is zero to first order; ``mcse`` is the
        jackknife's standard error.

    Raises:
        TypeError, ValueError: an option, the rows or the pair cannot be used; see ``pyrovae.pair.inspect``.

    Example:
        >>> import torch
        >>> from pyrovae import VAE
        >>> jackknife(VAE.mlp(6, latent_dim=2), torch.ones(4, 6), num_samples=10).kind[0].item()
        'estimate'
    """
    arguments.integer("num_samples", num_samples, minimum=2)
    run = Run.prepare(jackknife, locals())
    return run.answer(run.columns(jackknife_block), "estimate", {CUT_OFF: run.unreached()})


def jackknife_block(evaluation: Evaluation) -> BlockFunction:
    """Return the function of a block that computes JVI-1 of its rows."""
    num_samples, tiles = evaluation.num_samples, list(evaluation.tiles())

    def weigh(block: int, rows: slice) -> Columns:
        terms = [evaluation.terms(tile) for tile in tiles[block]]
        log_weights = torch.cat([each.log_weights for each in terms])
        lost = torch.cat([each.lost for each in terms]).double().mean(dim=0)
        weights = Accumulator.of(log_weights)
        columns = Columns.of_weights(weights, evaluation.dtype, num_samples, lost)
        columns = columns.beside(exact_weight(evaluation, rows), num_samples, weights)
        estimate, mcse = leave_one_out(log_weights)
        return replace(columns, estimate=estimate, mcse=mcse, bias=torch.zeros_like(estimate))

    return weigh


def leave_one_out(log_weights: Tensor) -> tuple[Tensor, Tensor]:
    """Return JVI-1 and its jackknife standard error, each of shape (rows,), from (samples, rows), in nats."""
    num_samples = len(log_weights)
    total = torch.logsumexp(log_weights, dim=0)
    # log Σ_{j ≠ i} w_j. Subtracting the largest weight from the total cancels digits, so its rest is summed anew.
    share = torch.exp(log_weights - total)
    largest = log_weights.argmax(dim=0, keepdim=True)
    rest = torch.logsumexp(log_weights.scatter(0, largest, -math.inf), dim=0, keepdim=True)
    others = (total + torch.log1p(-share.clamp(max=1 - 1e-16))).scatter(0, largest, rest)
    others = others - math.log(num_samples - 1)  # L^(−i)
    everything = total - math.log(num_samples)
    estimate = num_samples * everything - (num_samples - 1) * others.mean(dim=0)
    spread = ((others - others.mean(dim=0)) ** 2).sum(dim=0)
    mcse = (spread * (num_samples - 1) / num_samples).sqrt()
    # With fewer than two weights above zero, leaving one out may leave none, so there is no correction.
    known = torch.isfinite(others).all(dim=0)
    return torch.where(known, estimate, everything), torch.where(known, mcse, math.inf)
