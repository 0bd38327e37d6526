"""importance() estimates log P(x) by importance sampling: the log-mean-exp of a row's log weights."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pyrovae import arguments
from pyrovae.diagnostics import Accumulator
from pyrovae.evaluation import Evaluation
from pyrovae.evidence.draws import Draws, Keep
from pyrovae.evidence.posterior import total, undisturbed
from pyrovae.evidence.result import CUT_OFF, Columns, LogEvidence
from pyrovae.evidence.run import BlockFunction, Folder, Run
from pyrovae.evidence.workers import Workers
from pyrovae.model import LatentVariableModel
from pyrovae.noise import Stream
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
    check: bool = True,
    executor: Workers = None,
) -> LogEvidence:
    """Return log P(x_n) ≈ log (1/K) Σ_k P(x_n, z_k) / Q(z_k | x_n), z_k ~ Q(z | x_n).

    The estimate is a lower bound in expectation, which tightens with K (Burda, Grosse and Salakhutdinov
    2016). The computation streams over tiles. Its memory does not depend on ``num_samples``; each row adds
    one result.

    Args:
        pair: a ``VAE`` or any ``LatentVariableModel``.
        x: rows on dim 0; tensor, numpy array or DataFrame.
        num_samples: K, draws per row.
        seed: the same seed gives the same numbers; with the same tile, bit for bit.
        pareto_smoothed: replace the largest weights by the quantiles of a Pareto distribution fitted to their
            tail (Vehtari et al. 2024). This reduces the noise of heavy-tailed weights, but the result is an
            estimate instead of a bound.
        tile: (rows, samples) computed at once; None chooses it from the shapes.
        progress: show a bar, or plain lines if there is no terminal.
        checkpoint: a folder for this evaluation only, which keeps finished blocks of rows. The same call
            continues after the last of them.
        compile: False runs guide and model by Pyro for every tile. True traces their computation once and
            compiles it: several times as fast after some 10 seconds, and equal up to rounding. "auto" decides
            by the amount of work; see ``log_weights``.
        noise: the key of a row's noise beside ``seed``: its "index" in x, or its "content". With "content", a
            row has the same number in any order and selection of rows.
        check: try the method on rows simulated from the model, too; see ``evidence.check``. If the method trusts too many
            simulated rows that it missed, no row of x is "trust". A check that passes costs as much as 64 rows and the
            simulation of 20 000. With False, no row is "trust": a row whose weights show nothing wrong is "unchecked".
        executor: an ``Executor`` of ``concurrent.futures`` whose worker processes compute blocks of rows: a spawned
            ``ProcessPoolExecutor``, loky's, Dask's ``client.get_executor()``. The numbers equal those without it, bit for
            bit. Workers have as many threads as the caller; call ``torch.set_num_threads(1)`` first. A block whose worker
            died is tried up to five times. A function that returns an executor is called again if a pool breaks. The
            ``check`` runs in the caller. See ``docs/cluster.md``.

    Returns:
        A ``LogEvidence`` whose rows are lower bounds, or estimates if ``pareto_smoothed``.

    Raises:
        TypeError, ValueError: an option, the rows or the pair cannot be used; see ``pyrovae.pair.inspect``.
        BrokenExecutor: the executor's workers died too often; finished blocks are in ``checkpoint``.

    Example:
        >>> import torch
        >>> from pyrovae import VAE
        >>> importance(VAE.mlp(6, latent_dim=2), torch.ones(4, 6), num_samples=100).estimate.shape
        (4,)
    """
    arguments.boolean("pareto_smoothed", pareto_smoothed)
    run = Run.prepare(importance, locals())
    return answered(run)


def answered(run: Run, keep: Keep | None = None) -> LogEvidence:
    """Return the answer of a run of ``importance``; ``keep`` gets every block's draws."""
    pareto_smoothed = bool(run.options["pareto_smoothed"])
    columns = run.columns(partial(encoder_block, pareto_smoothed=pareto_smoothed, keep=keep))
    kind = "estimate" if pareto_smoothed else "lower bound"
    return run.answer(columns, kind, {CUT_OFF: run.unreached()})


def encoder_block(
    evaluation: Evaluation, pareto_smoothed: bool = False, keep: Keep | None = None
) -> BlockFunction:
    """Return the function of a block that adds up its rows' weights under the encoder, tile by tile."""
    x, tiles = evaluation.batch["x"], list(evaluation.tiles())

    def weigh(block: int, rows: slice) -> Columns:
        weights = Accumulator(evaluation.num_samples, rows.stop - rows.start, len(tiles[block]), x.device)
        lost = torch.zeros(rows.stop - rows.start, dtype=torch.float64, device=x.device)
        held = []
        for number, tile in enumerate(tiles[block]):
            if keep is None:
                terms = evaluation.terms(tile)
            else:
                latents, terms = evaluation.weighed(tile)
                held.append((latents, terms))
            weights.add(number, terms.log_weights)
            lost += terms.lost.sum(dim=0)
        if keep is not None:
            keep(Draws.cat(evaluation, rows, held))
        count = evaluation.num_samples
        columns = Columns.of_weights(weights, evaluation.dtype, count, lost / count)
        columns = columns.beside(exact_weight(evaluation, rows), count, weights)
        return replace(columns, estimate=weights.smoothed()) if pareto_smoothed else columns

    return weigh


def exact_weight(evaluation: Evaluation, rows: slice) -> Tensor | None:
    """Return log P(x_n, z) − log Q(z | x_n) at the z that rows were simulated with, (rows,); None without such z."""
    exact = evaluation.exact_draw(rows)
    if exact is None:
        return None
    batch = evaluation.part(rows)
    with undisturbed(evaluation, Stream.EXACT, rows=rows):
        weight = total(evaluation.model.log_joint(batch, exact)) - evaluation.model.log_proposal(batch, exact)
    return weight[0]
