"""outliers() scores how odd each row is under a model, and names the cell that makes it odd."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pyrovae import arguments, frames
from pyrovae.baselines.dirichlet_categorical import DirichletCategorical
from pyrovae.baselines.latent_class import LatentClass
from pyrovae.diagnostics import Accumulator, tail_length
from pyrovae.evidence import Check, LogEvidence, log_evidence
from pyrovae.evidence.conditional import columns_of, keeping, root_sum
from pyrovae.evidence.draws import Draws
from pyrovae.evidence.posterior import undisturbed
from pyrovae.evidence.result import frame_of, resolution, verdicts, worse, worst
from pyrovae.evidence.run import Run
from pyrovae.evidence.sampled import METHODS, answer, by_fitted, on_simulated, prepare
from pyrovae.likelihoods.mixed import Mixed
from pyrovae.model import LatentVariableModel
from pyrovae.noise import Stream, derive
from pyrovae.progress import Progress
from pyrovae.refusals import bad_value
from pyrovae.rows import as_passed, joined, without
from pyrovae.sparse import dense
from pyrovae.turns import takes_turns

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["METHODS", "outliers"]

# Log densities of cells that are in memory at once.
_CELLS = 1 << 21
_FEWEST_EFFECTIVE = 25
_SOUND = ("trust", "unchecked")
_MOST_AGAIN = 20  # cells of a row that are scored again
# Rows that tell how heavy the tails of a column's weights are. With fewer, so many are simulated.
_FEWEST_ROWS = 32
# A value is frequent if at least this share of a column's cells has it. The other values are fine-grained if no value has this
# share of the other cells. Fewer cells of either group have no median of their own.
_FREQUENT, _FEWEST_APART = 0.1, 10
_SLACK = 3.0  # nats that a median may lie below log P of an even spread


class _Cells(NamedTuple):
    """log P(x_d | the rest) of every cell, its error, its verdict, whether it is there, and x_d, each of shape (rows, columns).

    log P is NaN for cells that are missing, and where P(the rest) is 0.
    """

    log_p: np.ndarray
    error: np.ndarray
    verdict: np.ndarray
    seen: np.ndarray
    value: np.ndarray


@takes_turns
def outliers(
    model: Any,
    x: Any,
    *,
    cells: bool = False,
    method: str = "auto",
    num_samples: int = 2000,
    seed: int = 0,
    check: bool = True,
    progress: bool = False,
) -> pd.DataFrame:
    """Return how odd each row is, −log P(x_obs) in nats, and which of its cells is the oddest given the others.

    The oddness of a cell is −log P(x_d | the row's other cells). For a pair, rows and cells are scored by one set of
    weighted draws of z:

        log P(x_d | rest) = log Σ_k w_k − log Σ_k w_k / P(x_d | z_k),   w_k = P(x_obs, z_k) / q(z_k).

    The second sum has heavier tails, and so a k-hat of its own. If it is below the column's median, it is shrunk towards the
    median. If it is too large, draws given all cells cannot score the cell, and its verdict is "another method". If the pair
    takes missing cells, up to 20 such cells of a row are scored again. The score is then log P(x_obs) − log P(rest), with
    draws given the rest. A baseline that takes missing cells is exact.

    Densities have units, and a column of many values has smaller probabilities than a column of few. Cells are therefore
    compared by how many nats log P(x_d | rest) lies below its median over the rows of ``x`` with the column. Amounts in
    cents beside many zeros have smaller probabilities than the zeros. A value is frequent if at least a tenth of the
    column's cells have it, and no value has a tenth of the others. Frequent values get a median of their own. Values that
    the model rules out do not lower the medians. The median of the frequent values is at least that of the others. The
    median of the others is at most 3 nats below log P of a value if all of them spread evenly over their range. There is
    one median if a group has fewer than 10 cells, and for levels of a VAE or of a categorical baseline.

    Args:
        model: a ``VAE`` or ``LatentVariableModel`` whose columns are independent given z, or a fitted baseline.
        x: rows on dim 0, in any form that ``log_evidence`` takes; cells may be missing if the model allows it.
        cells: return a line for each observed cell instead of one for each row.
        method, num_samples, seed, check: as in ``impute``; they apply to pairs. With "auto" the draws of z are those of
            "refined" if z is continuous. A tenth of them comes from the prior, because the posterior without an odd cell
            may have another mode. Sums over few values of discrete latents are exact. ``check`` tries log P(x_obs) only,
            so cells from draws of the guide alone are "unchecked" at best.
        progress: show a bar, or plain lines if there is no terminal; another one for cells that are scored again.

    Returns:
        A frame with the index of ``x``. For rows, it has ``score``, its ``error`` (one standard error) and its ``verdict``.
        It names the ``oddest`` column by its label, with its ``log_p``, how far ``below`` the median that is, and its
        ``cell_error``. ``cell_verdict`` is the worst over the row's cells, because a cell that cannot be scored may be
        odder. For cells: row, column, ``log_p``, ``below``, ``error`` and ``verdict``.

    Raises:
        TypeError, ValueError: an option, the rows or the model cannot be used; a site scores several columns jointly.

    Gelfand, Dey and Chang (1992) for the estimate of a conditional predictive density.

    Example:
        >>> import torch, pyrovae as pv
        >>> x = torch.randn(200, 3) + torch.randn(200, 1)
        >>> x[0, 2] = 30.0
        >>> found = outliers(pv.baselines.FullGaussian().fit(x), x)
        >>> int(found["score"].idxmax()), int(found["oddest"][0])
        (0, 2)
    """
    arguments.boolean("cells", cells)
    arguments.boolean("progress", progress)
    if hasattr(model, "log_evidence") and not getattr(model, "takes_missing", False):
        raise bad_value(
            "model",
            "a pair, or a baseline that takes missing cells, so that one can be left out",
            f"a {type(model).__name__}",
            "Use one that does, such as PPCA or FullGaussian, or a VAE.",
        )
    x = joined(x, "x")
    x = model.arranged(x) if isinstance(model, LatentVariableModel) else x
    names, count = columns_of(x)
    if isinstance(model, LatentVariableModel):
        evidence, found = _of_pair(_prepare(model, x, method, num_samples, seed, check, progress), count)
    else:
        evidence = log_evidence(model, x)
        found = _by_leaving_out(model, x, count, evidence, progress)
    own = getattr(as_passed(x)[1], "columns", names)
    labels = frames.own_labels(range(count) if own is None else own)
    median = _medians(found, _of_levels(model, count), evidence.measure)
    below = median - found.log_p
    if isinstance(model, LatentVariableModel) and model.takes_missing:
        made: Check | None = None  # of the first round; further ones differ by one missing cell
        waiting = _waiting(found, evidence)
        total = int(waiting.sum(axis=1).clip(max=_MOST_AGAIN).sum())
        with Progress("cells again", total, "cells", progress) as bar:
            for left_out in _rounds(waiting, below):
                holed = _holed(x, left_out)
                # Noise is keyed by rows: with one seed, the errors of both terms would depend on each other.
                again = derive(seed, Stream.GIVEN)
                run = _prepare(model, holed, method, num_samples, again, check and made is None, False)
                made = _answer_again(run, left_out, evidence, found, made)
                below[left_out] = median[left_out] - found.log_p[left_out]
                bar.advance(int(left_out.sum()))
    if cells:
        return _frame_by_cell(found, below, labels, evidence.index)
    return _frame_by_row(found, below, labels, evidence)


def _of_levels(model: Any, count: int) -> np.ndarray:
    """Return which of so many columns are known to have levels, which are labels or ranks, and not amounts."""
    likelihood = getattr(model, "likelihood", None)
    if likelihood is None:
        return np.full(count, isinstance(model, DirichletCategorical | LatentClass))
    levels = np.full(count, getattr(likelihood, "takes", "") == "levels")
    if isinstance(likelihood, Mixed):
        for part, columns in likelihood.each():
            levels[columns] = part.takes == "levels"
    return levels


def _medians(found: _Cells, levels: np.ndarray, measure: tuple[str, ...]) -> np.ndarray:
    """Return the median of log P(x_d | rest) with which each cell is compared, (rows, columns), over cells of its column.

    Frequent values and others, such as zeros and amounts in cents, have their own medians. Each amount has a small mass,
    and the median over both would be that of the zeros. But values that the model rules out must not be compared with each
    other alone. So the median of frequent values is at least that of the others, and theirs is at least ``_even``.
    """
    medians = np.full(found.log_p.shape, math.nan)
    for column, level in enumerate(levels):
        log_p, seen = found.log_p[:, column], found.seen[:, column]
        if not np.isnan(log_p).all():
            medians[:, column] = np.nanmedian(log_p)
        if level or not seen.any():
            continue
        frequent = np.zeros_like(seen)
        frequent[seen] = _frequent(found.value[seen, column])
        groups = [group & ~np.isnan(log_p) for group in (frequent, ~frequent)]
        counts = [int(group.sum()) for group in groups]
        if min(counts) >= _FEWEST_APART:
            of_frequent, of_others = (np.median(log_p[group]) for group in groups)
            even = _even(found.value[groups[1], column], measure[column] == "mass")
            of_others = max(of_others, even + math.log(counts[1] / sum(counts)))
            medians[:, column] = np.where(frequent, max(of_frequent, of_others), of_others)
    return medians


def _even(values: np.ndarray, masses: bool) -> float:
    """Return log P of a value if these spread evenly, less ``_SLACK``: a mass of one of the whole numbers, or a density."""
    low, high = np.quantile(values, [0.05, 0.95])
    return -math.log(high - low + masses) - _SLACK


def _frequent(values: np.ndarray) -> np.ndarray:
    """Return which cells of a column have a frequent value, if the others are fine-grained; else none of them."""
    _, place, times = np.unique(values, return_inverse=True, return_counts=True)
    frequent = times >= _FREQUENT * len(values)
    others = times[~frequent]
    fine = bool(others.max(initial=0) < _FREQUENT * others.sum())
    return (frequent & fine)[place]


def _frame_by_cell(
    found: _Cells, below: np.ndarray, labels: pd.Index, index: pd.Index | None
) -> pd.DataFrame:
    """Return a line for each observed cell, by the rows' labels, or by their numbers if they have none."""
    seen = found.seen
    rows, columns = np.nonzero(seen)
    places = {"row": rows} if index is None else {}
    frame = frame_of(
        {
            **places,
            "column": labels[columns],
            "log_p": found.log_p[seen],
            "below": below[seen],
            "error": found.error[seen],
            "verdict": found.verdict[seen],
        },
        None if index is None else index[rows],
    )
    return frame.set_index("row") if places else frame


def _frame_by_row(found: _Cells, below: np.ndarray, labels: pd.Index, evidence: LogEvidence) -> pd.DataFrame:
    """Return a line for each row, with its oddest cell."""
    unknown = np.isnan(below)
    oddest = np.where(unknown, -math.inf, below).argmax(axis=1)
    every, empty = np.arange(len(oddest)), unknown.all(axis=1)
    named = labels[oddest]
    if empty.any():
        named = named.astype(object).to_numpy().copy()
        named[empty] = None
    return frame_of(
        {
            "score": 0.0 - evidence.estimate,
            "error": evidence.mcse,
            "verdict": evidence.verdict,
            "oddest": named,
            "log_p": found.log_p[every, oddest],
            "below": below[every, oddest],
            "cell_error": found.error[every, oddest],
            # A cell that cannot be scored may be odder.
            "cell_verdict": worst(np.where(found.seen, found.verdict, "trust")),
        },
        evidence.index,
    )


def _by_leaving_out(model: Any, x: Any, count: int, evidence: LogEvidence, progress: bool) -> _Cells:
    """Return log P(x_obs) − log P(x_obs without d) of every cell, by leaving out each column in turn."""
    log_p = np.empty((len(evidence), count))
    with Progress("outliers", count, "columns", progress) as bar:
        for column in range(count):
            rest = [other for other in range(count) if other != column]
            log_p[:, column] = evidence.estimate - log_evidence(model, keeping(x, rest)).estimate
            bar.advance()
    rows, observed, _ = model._like_fitted(x)
    seen = observed[0].numpy() if observed else np.ones(log_p.shape, dtype=bool)
    log_p[~seen] = np.nan
    error = np.where(np.isnan(log_p), np.nan, 0.0)
    return _Cells(log_p, error, np.full(log_p.shape, "trust"), seen, rows.numpy())


def _prepare(
    pair: LatentVariableModel, x: Any, method: str, num_samples: int, seed: int, check: bool, progress: bool
) -> Run:
    """Return the run whose draws serve.

    Draws given all cells miss where the others alone would be if one odd cell decides the mode. So "auto" draws by
    "refined", a tenth of whose draws come from the prior.
    """
    run = prepare(pair, x, method, num_samples, seed, check, progress=progress)
    return by_fitted(run) if method == "auto" else run


def _of_pair(run: Run, count: int) -> tuple[LogEvidence, _Cells]:
    """Return log P(x_obs) of every row of a run, and its cells, of so many columns."""
    whole, num_samples = run.whole, run.whole.num_samples
    shape = (len(whole), count)
    log_p, error, tail = (torch.full(shape, math.nan, dtype=torch.float64) for _ in range(3))
    effective = torch.full(shape, math.inf, dtype=torch.float64)
    with undisturbed(whole, Stream.IMPUTE, rows=slice(0, 1)) as drawn:
        some = whole.part(slice(0, 1))
        whole.model.log_columns(some, whole.model.draw_prior(some, 1, drawn)[0])  # raises for joint sites

    def keep(draws: Draws) -> None:
        numbers = draws.evaluation.numbers[draws.rows].cpu()
        for into, found in zip((log_p, error, tail, effective), _leave_one_out(draws), strict=True):
            into[numbers] = found.cpu()

    evidence = answer(run, keep)
    seen = np.ones(shape, dtype=bool)
    if "observed" in whole.batch:
        seen = whole.batch["observed"].cpu().reshape(shape).numpy()
        for each in (log_p, error):
            each[~torch.from_numpy(seen)] = math.nan
    shapes = np.where(seen, tail.numpy(), math.nan)
    more, sound = np.empty((0, count)), True
    if run.check and len(whole) < _FEWEST_ROWS and (evidence.verdict == "trust").any():
        more, sound = _of_simulated(run, count)
    own = verdicts(_pooled(shapes, more, num_samples), num_samples)
    if not sound:
        own = worse(own, np.array("unchecked"))
    own = np.where((effective < _FEWEST_EFFECTIVE).numpy() & (own == "trust"), "more samples", own)
    if evidence.method == "importance":
        # Neither k-hat nor the check sees modes that the guide lacks given all cells.
        own = worse(own, np.array("unchecked"))
    exact = (evidence.kind == "exact")[:, None]
    verdict = np.where(exact, "trust", worse(own, evidence.verdict[:, None]))
    spread = np.where(exact & ~log_p.isnan().numpy(), 0.0, error.numpy())
    value = (whole.batch["x"] if whole.source is None else whole.source.exact).cpu().reshape(shape)
    return evidence, _Cells(log_p.numpy(), spread, verdict, seen, dense(value).numpy())


def _waiting(found: _Cells, evidence: LogEvidence) -> np.ndarray:
    """Return the cells without a sound score in rows with one, boolean of shape (rows, columns)."""
    sound = np.isin(evidence.verdict, _SOUND)
    return found.seen & ~np.isin(found.verdict, _SOUND) & sound[:, None]


def _rounds(waiting: np.ndarray, below: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the cells to score again, boolean of shape (rows, columns): in each row the oddest that waits.

    A score that is not sound is mostly too high, so the cell may be odder than the oddest of the others.
    """
    waiting = waiting.copy()
    for _ in range(_MOST_AGAIN):
        rows = np.flatnonzero(waiting.any(axis=1))
        if not len(rows):
            return
        oddness = np.where(waiting, below, -math.inf)[rows]
        chosen = np.zeros_like(waiting)
        chosen[rows, np.where(np.isnan(oddness), math.inf, oddness).argmax(axis=1)] = True
        waiting &= ~chosen
        yield chosen


def _holed(x: Any, left_out: np.ndarray) -> Any:
    """Return x with further missing cells, boolean of shape (rows, columns)."""
    beside, rows = as_passed(x)
    return {**beside, "x": without(rows, ~left_out.reshape(rows.shape))}


def _answer_again(
    run: Run, left_out: np.ndarray, evidence: LogEvidence, found: _Cells, made: Check | None
) -> Check | None:
    """Replace log P(x_d | rest) of the cells that a run leaves out, at most one a row, by a difference of two log P.

    Returns the check of the method; ``made`` is one that was made before, for a run that makes none.
    """
    numbers = np.flatnonzero(left_out.any(axis=1))
    rest = answer(run.only(torch.from_numpy(numbers).to(run.whole.numbers.device)), None)
    cells = numbers, left_out[numbers].argmax(axis=1)
    found.log_p[cells] = evidence.estimate[numbers] - rest.estimate
    found.error[cells] = root_sum(evidence.mcse[numbers], rest.mcse, rest.tail_error)
    verdict = rest.verdict
    if made is not None:
        verdict = np.where(verdict == "unchecked", made.word, verdict)
    found.verdict[cells] = worse(evidence.verdict[numbers], verdict)
    return made or rest.check


def _leave_one_out(draws: Draws) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return log P(x_d | rest), its standard error, k-hat and ESS of the weights without d, each (rows, columns).

    Let a_k be the shares of the weights w_k, and b_k those of w_k / P(x_d | z_k). The difference of the two logs has the
    variance Σ_k (a_k − b_k)² (delta method).
    """
    evaluation, rows = draws.evaluation, draws.rows
    batch, log_weights = evaluation.part(rows), draws.log_weights
    # The weights without any cell; a draw without a weight has none, unless cells alone make it impossible.
    no_cells = torch.where(draws.terms.lost, -math.inf, draws.terms.prior - draws.terms.proposal)
    samples, height = log_weights.shape
    columns = batch["x"][0].numel()
    width = max(1, _CELLS // (height * columns))
    parts = range(0, samples, width)
    without = Accumulator(samples, height * columns, len(parts), log_weights.device)
    crossed = torch.full((height, columns), -math.inf, dtype=torch.float64, device=log_weights.device)
    with undisturbed(evaluation, Stream.IMPUTE, rows=rows):
        for number, start in enumerate(parts):
            some = {name: z[start : start + width] for name, z in draws.latents.items()}
            weights = log_weights[start : start + width, :, None]
            terms = evaluation.model.log_columns(batch, some)
            never = torch.isneginf(terms)
            alone = never & (never.sum(dim=-1, keepdim=True) == 1)  # cells that alone make a draw impossible
            others = torch.where(never, 0.0, terms).sum(dim=-1, keepdim=True)
            less = torch.where(torch.isneginf(weights), -math.inf, weights - terms)
            less = torch.where(alone, no_cells[start : start + width, :, None] + others, less)
            without.add(number, less.flatten(1))
            crossed = torch.logaddexp(crossed, torch.logsumexp(weights + less, dim=0))
    total = torch.logsumexp(log_weights, dim=0)[:, None]
    rest = (without.log_mean_exp() + math.log(samples)).view(height, columns)
    ess = without.ess().view(height, columns)
    own = (torch.logsumexp(2 * log_weights, dim=0)[:, None] - 2 * total).exp()
    variance = own - 2 * (crossed - total - rest).exp() + 1 / ess
    rounding = resolution(evaluation.dtype, rest).flatten()
    k = without.pareto_k(rounding).view(height, columns)
    rare = without.tail_error(rounding).view(height, columns)
    error = (variance.clamp(min=0) + rare.square()).sqrt().nan_to_num(nan=math.inf)
    return total - rest, error, k, ess


def _of_simulated(run: Run, count: int) -> tuple[np.ndarray, bool]:
    """Return k-hat of cells of rows simulated from the model, (rows, columns), and whether there are such rows."""
    found = torch.full((_FEWEST_ROWS, count), math.nan, dtype=torch.float64)

    def keep(draws: Draws) -> None:
        found[draws.evaluation.numbers[draws.rows].cpu()] = _leave_one_out(draws)[2].cpu()

    try:
        rows, _ = on_simulated(run, _FEWEST_ROWS, derive(run.evaluation.seed, Stream.IMPUTE, 2), keep)
    except (torch.OutOfMemoryError, MemoryError):
        raise
    except Exception:  # the user's model may be unable to run on rows that it simulates
        return found.numpy(), False
    if "observed" in rows.batch:
        observed = rows.batch["observed"].cpu().reshape(-1, count)
        found[: len(observed)][~observed] = math.nan
    return found.numpy(), True


def _pooled(k: np.ndarray, more: np.ndarray, num_samples: int) -> np.ndarray:
    """Return k-hat of cells, (rows, columns), shrunk to its median in the column if that is larger; NaN if a cell has none.

    k-hat of M tail draws has a standard error of (1 + k) / √M. If many cells of a column have heavy tails, those with the
    smallest k-hat are small by chance. By empirical Bayes, each is weighed with the median by its own error and by how much
    the column's k-hat vary beyond their errors. ``more`` are k-hat of further rows, which only tell median and variation.
    """
    finite, found = np.concatenate([k, more]), k.copy()
    finite[~np.isfinite(finite)] = math.nan
    known = ~np.isnan(finite).all(axis=0)
    finite, own = finite[:, known], k[:, known]
    median = np.nanmedian(finite, axis=0)
    error = (1 + median) / math.sqrt(tail_length(num_samples))
    between = np.clip(np.nanvar(finite, axis=0) - error**2, 0, None)
    pooled = median + (own - median) * between / (between + error**2)
    found[:, known] = np.where(np.isfinite(own), np.maximum(own, pooled), own)
    return found
