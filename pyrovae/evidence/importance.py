"""Importance-weighted log P(x): the log-mean-exp of a row's log weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from pyrovae import checks
from pyrovae.diagnostics import Accumulator
from pyrovae.evidence.result import LogEvidence, verdicts
from pyrovae.log_weights import Evaluation
from pyrovae.model import LatentVariableModel
from pyrovae.progress import Progress


def importance(
    pair: LatentVariableModel,
    x: Any,
    num_samples: int = 5000,
    seed: int = 0,
    tile: tuple[int, int] | None = None,
    progress: bool = False,
) -> LogEvidence:
    """log P(x_n) ≈ log (1/K) Σ_k P(x_n, z_k) / Q(z_k | x_n), z_k ~ Q(z | x_n).

    A lower bound in expectation, which tightens with K (Burda, Grosse and Salakhutdinov 2016). Streams
    over tiles: memory does not grow with ``num_samples``, nor with the rows beyond their results.

    Args:
        pair: a ``VAE`` or any ``LatentVariableModel``.
        x: rows on dim 0; tensor, numpy array or DataFrame.
        num_samples: draws a row, K.
        seed: the same seed and tile give the same bits.
        tile: (rows, samples) computed at once; chosen from the shapes where None.
        progress: show a bar, or plain lines where there is no terminal.

    Returns:
        A ``LogEvidence`` whose rows are lower bounds.

    Raises:
        TypeError, ValueError: see ``pyrovae.checks`` and ``pyrovae.pair.inspect``.

    Example:
        >>> import torch
        >>> from pyrovae import VAE
        >>> importance(VAE.mlp(6, latent_dim=2), torch.ones(4, 6), num_samples=100).estimate.shape
        (4,)
    """
    evaluation = Evaluation.prepare(pair, x, num_samples, seed, tile)
    rows = evaluation.batch["x"]
    eps = torch.finfo(rows.dtype).eps
    blocks = []
    with Progress("log P(x)", len(evaluation), "rows", progress) as bar:
        for block in evaluation.tiles():
            height = block[0].rows.stop - block[0].rows.start
            weights = Accumulator(num_samples, height, len(block), rows.device)
            for number, tile_ in enumerate(block):
                weights.add(number, evaluation.terms(tile_).log_weights)
            estimate = weights.log_mean_exp()
            # Weights that differ by no more than rounding are constant, not a tail to be fitted.
            k = weights.pareto_k(resolution=16 * eps * estimate.abs().clamp(min=1))
            blocks.append(torch.stack([estimate, weights.mcse(), weights.bias(), weights.ess(), k]))
            bar.advance(height)
    estimate, mcse, bias, ess, pareto_k = torch.cat(blocks, dim=1).cpu().numpy()
    return LogEvidence(
        estimate=estimate,
        mcse=mcse,
        bias=bias,
        ess=ess,
        pareto_k=pareto_k,
        kind=np.full(len(rows), "lower bound"),
        verdict=verdicts(pareto_k, num_samples),
        measure=evaluation.structure.measure,
        method="importance",
        num_samples=num_samples,
        seed=seed,
        tile=evaluation.tile,
        fingerprint=checks.fingerprint(rows),
    )
