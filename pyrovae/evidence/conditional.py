"""log P(rest | given): the difference of two log P, of a row's observed cells and of its given cells alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from pyrovae import frames
from pyrovae.evidence.result import LogEvidence, worse
from pyrovae.refusals import bad_value, shown
from pyrovae.rows import as_passed, column_numbers, without


def keeping(x: Any, columns: list[int]) -> Any:
    """Return x with missing cells in all columns but some, which are numbered in the flattened rows."""
    beside, rows = as_passed(x)
    mask = np.zeros(int(np.prod(rows.shape[1:])), dtype=bool)
    mask[columns] = True
    held = without(rows, np.broadcast_to(mask.reshape(rows.shape[1:]), rows.shape))
    return {**beside, "x": held} if beside or isinstance(x, Mapping) else held


def columns_of(x: Any) -> tuple[tuple[str, ...] | None, int]:
    """Return the names of the columns of x, if it is a frame, and their number."""
    _, rows = as_passed(x)
    shape = getattr(rows, "shape", ())
    if not isinstance(shape, tuple) or len(shape) < 2:
        raise bad_value("x", "rows of several columns", shown(rows), "Pass rows of shape (rows, columns).")
    return frames.names(rows), int(np.prod(shape[1:]))


def root_sum(*errors: Any) -> Any:
    """Return the root of the sum of squares of independent errors."""
    return np.sqrt(sum(np.square(error) for error in errors))


def _given(given: Any, passed: Any, x: Any) -> list[int]:
    """Return the numbers in x of columns that are named, or numbered in the rows as they were passed."""
    names, count = columns_of(passed)
    names = names or frames.labels(as_passed(passed)[1])  # of columns 0, 1, … too
    labels = list(getattr(as_passed(passed)[1], "columns", ()))
    columns = column_numbers("given", given, names, count, labels)
    modelled = list(getattr(as_passed(x)[1], "columns", ()))
    if labels == modelled:
        return columns
    out = [labels[column] for column in columns if labels[column] not in modelled]
    if out:
        raise bad_value(
            "given", f"columns of the model, {modelled}", f"{out[0]!r}, which is left out", "Name others."
        )
    return [modelled.index(labels[column]) for column in columns]


def conditional(
    score: Callable[[Any], LogEvidence],
    score_again: Callable[[Any], LogEvidence],
    x: Any,
    given: Any,
    passed: Any,
) -> LogEvidence:
    """Return log P(x_obs) − log P(x_given) of every row, which is 0 where all observed cells are given.

    ``score`` returns log P of the observed cells of its argument, and ``score_again`` does so with independent noise. ``x``
    are the rows in the model's order, and ``passed`` the same as they came, in which ``given`` numbers columns. Weights that
    were too rare to be drawn make log P(x_given) too low and the difference too high. Their error is therefore in ``mcse``,
    which widens both ends of the interval.
    """
    names, count = columns_of(x)
    columns = _given(given, passed, x)
    whole = score(x)
    part = score_again(keeping(x, columns))
    failed = next(
        (each.check for each in (whole, part) if each.check is not None and not each.check.passed),
        whole.check,
    )
    if failed is not None:  # the simulated rows have log P of all cells or of the given ones, not of the rest
        failed = replace(failed, lowest=-math.inf, highest=math.inf)
    cells = [count if each.observed is None else each.observed for each in (whole, part)]
    observed = np.broadcast_to(cells[0] - cells[1], len(whole))
    nothing = observed == 0  # whose log P is 0, which noise of two terms would hide
    exact = (whole.kind == "exact") & (part.kind == "exact") | nothing
    with np.errstate(invalid="ignore"):  # P(x_rest | x_given) is undefined, NaN, if P(x_given) is 0
        estimate, bias = whole.estimate - part.estimate, whole.bias - part.bias
    shared = None
    if (
        whole.shared_mcse is not None or part.shared_mcse is not None
    ):  # rows that differ may have equal given cells
        shared = math.hypot(whole.mean_mcse, part.mean_mcse, part.mean_tail_error)
    words = [str(names[column]) if names else str(column) for column in sorted(columns)]
    return replace(
        whole,
        estimate=np.where(nothing, 0.0, estimate),
        mcse=np.where(nothing, 0.0, root_sum(whole.mcse, part.mcse, part.tail_error)),
        bias=np.where(nothing, 0.0, bias),
        tail_error=np.where(nothing, 0.0, whole.tail_error),
        ess=np.fmin(whole.ess, part.ess),
        pareto_k=np.fmax(whole.pareto_k, part.pareto_k),
        cost=whole.cost + part.cost,
        kind=np.where(exact, "exact", "estimate"),
        verdict=np.where(nothing, "trust", worse(whole.verdict, part.verdict)),
        check=failed,
        observed=observed,
        shared_mcse=shared,
        reasons=(*whole.reasons, *(f"of the given columns: {reason}" for reason in part.reasons)),
        fingerprint=replace(whole.fingerprint, given=tuple(sorted(columns))),
        method=f"{whole.method}, given {', '.join(words)}",
    )
