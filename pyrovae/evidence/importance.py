"""Importance-weighted log P(x): the log-mean-exp of a row's log weights."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from pyrovae import checks
from pyrovae.checkpoints import Parts
from pyrovae.diagnostics import Accumulator
from pyrovae.evidence.blocks import Folder, each_block, parts_of
from pyrovae.evidence.reach import unreached
from pyrovae.evidence.result import CUT_OFF, Columns, LogEvidence, judge, verdicts
from pyrovae.log_weights import Evaluation
from pyrovae.model import LatentVariableModel
from pyrovae.progress import Progress
from pyrovae.turns import takes_turns


@takes_turns
def importance(
    pair: LatentVariableModel,
    x: Any,
    num_samples: int = 5000,
    seed: int = 0,
    pareto_smoothed: bool = False,
    tile: tuple[int, int] | None = None,
    progress: bool = False,
    checkpoint: Folder = None,
    compile: str | bool = "auto",
    noise: str = "index",
) -> LogEvidence:
    """log P(x_n) ≈ log (1/K) Σ_k P(x_n, z_k) / Q(z_k | x_n), z_k ~ Q(z | x_n).

    A lower bound in expectation, which tightens with K (Burda, Grosse and Salakhutdinov 2016). Streams
    over tiles: memory does not grow with ``num_samples``, nor with the rows beyond their results.

    Args:
        pair: a ``VAE`` or any ``LatentVariableModel``.
        x: rows on dim 0; tensor, numpy array or DataFrame.
        num_samples: draws a row, K.
        seed: the same seed gives the same numbers; the same tile, too, the same bits.
        pareto_smoothed: replace the largest weights by what the tail fitted to them expects (Vehtari et
            al. 2024). Less noise where weights are heavy, and an estimate instead of a bound.
        tile: (rows, samples) computed at once; chosen from the shapes where None.
        progress: show a bar, or plain lines where there is no terminal.
        checkpoint: a folder of this evaluation's own that keeps finished blocks of rows: the same call goes on
            after the last of them.
        compile: whether Pyro runs guide and model for every tile (False), or what they compute is traced once and
            compiled (True): several times as fast after some 10 seconds, the same up to rounding. "auto" goes by
            the work ahead; see ``log_weights``.
        noise: what the noise of a row follows from beside ``seed``: its "index" in x, or its "content", so that a row
            has the same number in any order and selection of rows.

    Returns:
        A ``LogEvidence`` whose rows are lower bounds, or estimates where smoothed.

    Raises:
        TypeError, ValueError: see ``pyrovae.checks`` and ``pyrovae.pair.inspect``.

    Example:
        >>> import torch
        >>> from pyrovae import VAE
        >>> importance(VAE.mlp(6, latent_dim=2), torch.ones(4, 6), num_samples=100).estimate.shape
        (4,)
    """
    checks.boolean("progress", progress)
    checks.boolean("pareto_smoothed", pareto_smoothed)
    evaluation = Evaluation.prepare(pair, x, num_samples, seed, tile, compile=compile, noise=noise)
    with Progress("log P(x)", len(evaluation), "rows", progress) as bar:
        parts = parts_of(checkpoint, evaluation, method="importance", pareto_smoothed=pareto_smoothed)
        columns = weigh_encoder(evaluation, bar, pareto_smoothed, parts)
    verdict, reasons = judge(
        verdicts(columns.pareto_k.cpu().numpy(), num_samples), columns, {CUT_OFF: unreached(evaluation).rows}
    )
    return LogEvidence.of(
        columns,
        evaluation,
        method="importance",
        kind="estimate" if pareto_smoothed else "lower bound",
        verdict=verdict,
        reasons=reasons,
        num_samples=num_samples,
    )


def weigh_encoder(
    evaluation: Evaluation, bar: Progress, pareto_smoothed: bool = False, parts: Parts | None = None
) -> Columns:
    """The log-mean-exp of every row's weights, tile by tile."""
    x, tiles = evaluation.batch["x"], list(evaluation.tiles())

    def weigh(block: int, rows: slice) -> Columns:
        weights = Accumulator(evaluation.num_samples, rows.stop - rows.start, len(tiles[block]), x.device)
        lost = torch.zeros(rows.stop - rows.start, dtype=torch.float64, device=x.device)
        for number, tile in enumerate(tiles[block]):
            terms = evaluation.terms(tile)
            weights.add(number, terms.log_weights)
            lost += terms.lost.sum(dim=0)
        columns = Columns.of_weights(
            weights, evaluation.dtype, evaluation.num_samples, lost / evaluation.num_samples
        )
        return replace(columns, estimate=weights.smoothed()) if pareto_smoothed else columns

    return each_block(evaluation, weigh, bar, parts)
