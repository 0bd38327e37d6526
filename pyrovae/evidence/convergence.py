"""convergence() tabulates the lower bound and two estimates of log P(x) against the number of draws K."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pyrovae import arguments, diagnostics
from pyrovae.evaluation import Evaluation
from pyrovae.evidence.check import judged_by_check
from pyrovae.evidence.importance import importance
from pyrovae.evidence.jackknife import leave_one_out
from pyrovae.evidence.reach import unreached
from pyrovae.evidence.result import CUT_OFF, Columns, judge, verdicts
from pyrovae.model import LatentVariableModel
from pyrovae.progress import Progress
from pyrovae.refusals import bad_type
from pyrovae.turns import takes_turns

if TYPE_CHECKING:
    import pandas as pd


@takes_turns
def convergence(
    pair: LatentVariableModel,
    x: Any,
    num_samples: Sequence[int] = (10, 30, 100, 300, 1000, 3000),
    seed: int = 0,
    tile: tuple[int, int] | None = None,
    progress: bool = False,
    compile: str | bool = "auto",
    noise: str = "index",
    check: bool = True,
) -> pd.DataFrame:
    """Return the mean log P(x_n) by the first K of the same draws, for growing K: a bound and two estimates.

    K is too small if the lower bound still rises from one K to the next. K is also too small if the bound differs
    from the estimates by more than their errors.

    Args:
        pair: a ``VAE`` or any ``LatentVariableModel``.
        x: rows on dim 0; tensor, numpy array or DataFrame.
        num_samples: the values of K, each at least 2.
        seed, tile, progress, compile, noise, check: as in ``importance``.

    Returns:
        A frame with one line per K, means over the rows in nats per row. ``elbo`` is the bound at K = 1 from
        all draws. ``lower_bound`` is importance-weighted, with ``mcse`` and ``bias``. ``jackknife`` and
        ``pareto_smoothed`` are estimates from the same draws. ``trusted`` is the share of rows whose verdict
        is "trust". ``num_samples`` is K. ``plots.convergence`` draws the frame.

    Raises:
        TypeError, ValueError: an option, the rows or the pair cannot be used; see ``pyrovae.pair.inspect``.

    Example:
        >>> import torch
        >>> from pyrovae import VAE
        >>> frame = convergence(VAE.mlp(6, latent_dim=2), torch.ones(4, 6), num_samples=(10, 100))
        >>> frame["num_samples"].tolist()
        [10, 100]
    """
    import pandas as pd

    if not isinstance(num_samples, Sequence | np.ndarray) or not len(num_samples):
        raise bad_type(
            "num_samples",
            "a sequence of numbers of draws per row",
            repr(num_samples),
            "Pass a tuple such as (10, 100, 1000).",
        )
    sizes = sorted({arguments.integer("num_samples", size, minimum=2) for size in num_samples})
    arguments.boolean("progress", progress)
    arguments.boolean("check", check)
    evaluation = Evaluation.prepare(pair, x, sizes[-1], seed, tile, compile=compile, noise=noise)
    dtype = evaluation.dtype
    found: dict[int, list[tuple[Columns, torch.Tensor]]] = {size: [] for size in sizes}
    elbo = 0.0
    with Progress("convergence", len(evaluation), "rows", progress) as bar:
        for block in evaluation.tiles():
            log_weights = torch.cat([evaluation.terms(part).log_weights for part in block])
            elbo += float(log_weights.mean(dim=0).sum())
            for size in sizes:
                weights = diagnostics.Accumulator.of(log_weights[:size])
                estimates = torch.stack([leave_one_out(log_weights[:size])[0], weights.smoothed()])
                found[size].append((Columns.of_weights(weights, dtype, size), estimates))
            bar.advance(log_weights.shape[1])
    lines, beyond = [], unreached(evaluation).rows
    for size, blocks in found.items():
        columns = Columns.cat([block for block, _ in blocks])
        estimates = torch.cat([block for _, block in blocks], dim=1).mean(dim=1)
        numbers = columns.numpy()
        verdict, _ = judge(verdicts(numbers["pareto_k"], size), columns, {CUT_OFF: beyond})
        options = {"num_samples": size, "tile": tile, "compile": compile, "noise": noise}
        verdict, _ = judged_by_check(verdict, evaluation, importance if check else None, options)
        lines.append(
            {
                "num_samples": size,
                "elbo": elbo / len(evaluation),
                "lower_bound": numbers["estimate"].mean(),
                "mcse": np.sqrt((numbers["mcse"] ** 2).sum()) / len(evaluation),
                "bias": numbers["bias"].mean(),
                "jackknife": float(estimates[0]),
                "pareto_smoothed": float(estimates[1]),
                "trusted": (verdict == "trust").mean(),
            }
        )
    return pd.DataFrame(lines)
