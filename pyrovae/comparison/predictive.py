"""compare(): ranks models by log P(x) of held-out rows, with the standard error of each difference."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import fields, replace
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import nn

from pyrovae import arguments, frames
from pyrovae.comparison.refusals import (
    check_comparable,
    check_held_out,
    check_models,
    check_possible,
    check_target,
    in_one_order,
)
from pyrovae.convert import stacking_weights
from pyrovae.evidence import METHODS, VERDICTS, LogEvidence, log_evidence
from pyrovae.refusals import bad_value
from pyrovae.rows import align, as_passed, joined, numbered
from pyrovae.turns import takes_turns

if TYPE_CHECKING:
    import pandas as pd

    from pyrovae.tables import Table
    from pyrovae.tables.columns import Column


@takes_turns
def compare(
    models: Mapping[str, Any],
    x: Any = None,
    *,
    method: str = "auto",
    seed: int = 0,
    by: Any = None,
    training_rows: bool = False,
    progress: bool = False,
    **options: Any,
) -> pd.DataFrame:
    """Score the same held-out rows under every model and rank them by log P(x), in nats a row.

    Args:
        models: name → a ``VAE``, a ``LatentVariableModel``, a fitted baseline, or a ``LogEvidence``
            computed before.
        x: held-out rows on dim 0; may be left out if every model is a ``LogEvidence``. Columns of a frame are matched by
            name, so models may be fitted to frames with their columns in different orders. Arrays and codes have no names:
            they raise ``ValueError`` for such models.
        method, seed, progress, options: of ``log_evidence``, for the pairs among the models.
        by: a label for every row, shape (rows,). The result then has one table for each label, one below the
            other, with differences within the label. A series is aligned by the index of x.
        training_rows: allow rows that models were fitted to. Without it, ``compare`` raises ``ValueError`` if a model
            was fitted to more than half of the rows, or of the rows with one label.

    Returns:
        A frame, best first, indexed by name, with all numbers in nats a row. ``elpd`` is the mean log P(x_n), an
        estimate of the expected log predictive density of a new row, and ``se`` its standard error over rows.
        ``elpd_diff`` is the difference to the best, and ``dse`` the standard error of that paired difference.
        ``weight`` comes from stacking: the mixture of the models that explains the rows best. ``mcse`` and
        ``bias`` are the Monte-Carlo error and first-order bias of ``elpd``, which ``se`` and ``dse`` leave out.
        ``mcse_diff`` is the Monte-Carlo error of ``elpd_diff``, as if the two errors were independent. It also counts
        the difference of the biases, and the errors by weights that were too rare to be drawn. ``kind`` says whether
        log P(x) is exact, a bound or an estimate. ``given`` names values other than x that the score is conditional
        on. ``parameters`` is "plug-in" or "posterior-averaged". ``num_parameters`` counts the fitted numbers,
        including a VAE's encoder, and is NaN if they were integrated out. Then come the rows by verdict. ``check``
        says how the method did on rows simulated from the model (``evidence.check``): "passed", "failed", "unchecked"
        or "exempt". ``open`` is True if the difference may be off by more than ``mcse_diff``, or if ``mcse_diff`` is
        not finite. The difference may be off if the model or the best failed the check or was not checked. It may
        also be off if over a tenth of the rows of either are not trusted. ``seen`` counts rows that the model was
        fitted to. ``seconds`` is NaN for a ``LogEvidence``. The frame prints in a few columns; ``to_latex`` has the
        same ones.

    Raises:
        ValueError: a column is a mass under one model and a density under another. Rows or units differ; the message
            says how, if that can be found out. A model was fitted to the rows. A number is not a predictive score of x
            in its own units.

    Vehtari, Gelman and Gabry (2017) for elpd; Yao, Vehtari, Simpson and Gelman (2018) for stacking.

    Example:
        >>> import torch, pyrovae as pv
        >>> from pyrovae import baselines
        >>> x = (torch.rand(60, 5, generator=torch.Generator().manual_seed(0)) < 0.3).float()
        >>> independent = baselines.IndependentBernoulli().fit(x[:40])
        >>> table = pv.compare({"VAE": pv.VAE.mlp(5, latent_dim=1), "independent": independent}, x[40:])
        >>> table.index[0]
        'independent'
    """
    check_models(models)
    arguments.boolean("training_rows", training_rows)
    arguments.boolean("progress", progress)
    arguments.integer("seed", seed, minimum=0)
    arguments.choice("method", method, tuple(METHODS))
    arguments.options(f"method {method!r}", METHODS[method], options, taken=("pair", "x"))
    if method != "exact":  # "exact" has no noise and is quick
        options |= {"seed": seed, "progress": progress}
    x = None if x is None else joined(x, "x")
    _require_one_reading(models, x)
    seconds: dict[str, float] = {}

    def score(name: str, method: str, options: Mapping[str, Any]) -> LogEvidence:
        started = time.perf_counter()
        found = _score(name, models[name], x, method, options)
        seconds[name] = math.nan if found is models[name] else time.perf_counter() - started
        return found

    # Two draws tell what a pair scores, and on which rows: refusals come before the work, not after an hour of it.
    rough = {name: score(name, "importance", {"num_samples": 2, "check": False}) for name in models}
    scores = in_one_order(_in_order_of_frame(rough, models, x))
    check_target(scores, "predictive")
    check_comparable(scores)
    if not training_rows:
        check_held_out(scores)
    labels = None if by is None else _labels_of(by, scores)
    if labels is not None and not training_rows:
        within = _within(labels, scores)
        for label, some in within.items():
            check_held_out(some, label=label, labels=len(within))
    full = {name: score(name, method, options) for name, model in models.items() if _is_pair(model)}
    scores = in_one_order(_in_order_of_frame(rough | full, models, x))
    check_possible(scores)
    about = {
        name: {"num_parameters": _num_parameters(model), "seconds": seconds[name]}
        for name, model in models.items()
    }
    if labels is None:
        return _table(scores, about)
    return _table_by(getattr(by, "name", None) or "by", labels, scores, about)


def _score(name: str, model: Any, x: Any, method: str, options: Mapping[str, Any]) -> LogEvidence:
    """Return log P(x) under one of the models, or the ``LogEvidence`` among them."""
    if isinstance(model, LogEvidence):
        return model
    if x is None:
        raise bad_value(
            "x", f"rows to score {name!r} on", "None", "Pass held-out rows as the second argument."
        )
    x = _arranged(model, x)
    return log_evidence(model, x, method=method, **options) if _is_pair(model) else log_evidence(model, x)


def _is_pair(model: Any) -> bool:
    """Return whether an estimator has to compute the score of a model."""
    return not isinstance(model, LogEvidence) and not hasattr(model, "log_evidence")


def _order(model: Any, came: tuple[str, ...]) -> tuple[str, ...]:
    """Return the columns that came in the order in which a model was fitted, if they are the same; else its own.

    A model that was fitted without names has the columns 0, 1, … if these came, and otherwise takes them as they lie. So do
    other objects that have no ``feature_names_in_`` as in scikit-learn.
    """
    names = getattr(model, "names", None)
    if not isinstance(names, Mapping):
        return tuple(map(str, getattr(model, "feature_names_in_", came)))
    known: tuple[str, ...] | None = names.get("x")
    numbers = tuple(map(str, range(len(came))))
    return known or (numbers if sorted(came) == sorted(numbers) else came)


def _arranged(model: Any, x: Any) -> Any:
    """Return rows with the columns of a frame in the order in which the model was fitted; others as they are.

    A mask of the cells beside them gets the same order, if it is an array or a frame with the same columns.
    """
    beside, rows = as_passed(x)
    came = frames.labels(rows) or ()
    known, mask = _order(model, came), beside.get("observed")
    if came == known or sorted(came) != sorted(known) or len(set(came)) < len(came):
        return x
    if mask is not None and tuple(np.shape(mask)) != tuple(rows.shape):
        return x  # which is refused by name
    if frames.labels(mask) not in (None, came):
        return x
    places = [came.index(name) for name in known]
    rows = rows.iloc[:, places]
    if mask is not None:
        mask = mask.iloc[:, places] if hasattr(mask, "iloc") else mask[:, places]
        beside = {**beside, "observed": mask}
    return {**beside, "x": rows} if isinstance(x, Mapping) else rows


def _columns(model: Any, x: Any) -> list[Any] | None:
    """Return what a model scores of a frame's columns, in its order: names, and a table's levels and resolutions."""
    labels = frames.labels(as_passed(x)[1])
    table = getattr(model, "table", None)
    if labels is None:
        return None
    if table is None:
        return [(name, None, None) for name in _order(model, labels)]
    return _read_by(table)


def _read_by(table: Table) -> list[Any]:
    """Return what a table's codes stand for: the names of its columns, their levels and resolutions."""
    return [(str(column.name), *_units(column)) for column in table.columns]


def _known(model: Any) -> tuple[str, ...] | None:
    """Return the names or numbers of the columns that a model without a table was fitted to; None if it knows none."""
    names = getattr(model, "names", None)
    if isinstance(names, Mapping):
        found = names.get("x", names.get(numbered("x")))
    else:  # as in scikit-learn, whose names are strings only; this package's estimators also know numbers
        found = getattr(model, "feature_names_in_", getattr(model, "_labels", None))
    return tuple(map(str, found)) if isinstance(found, tuple | list | np.ndarray) else None


def _require_one_reading(models: Mapping[str, Any], x: Any) -> None:
    """Raise ``ValueError`` for rows without names, arrays or codes, whose columns several models read differently."""
    if x is None or frames.labels(as_passed(x)[1]) is not None:
        return
    tables = {name: getattr(model, "table", None) for name, model in models.items()}
    read = {name: _read_by(table) for name, table in tables.items() if table is not None}
    for name, columns in read.items():
        first = next(iter(read))
        if columns != read[first]:
            came = f"codes, which the tables of {first!r} and {name!r} read differently"
            raise bad_value("x", "a frame, or models of one table", came, "Pass the frame.")
    fitted = {name: _known(model) for name, model in models.items() if name not in read}
    read |= {name: [(c, None, None) for c in columns] for name, columns in fitted.items() if columns}
    for (first, one), (name, other) in combinations(read.items(), 2):
        places = {column: place for place, (column, *_) in enumerate(one)}
        for place, (column, *units) in enumerate(other):
            at = place if (place < len(one) and one[place][0] == column) else places.get(column, place)
            if at != place:
                came = f"rows without names; column {column!r} is number {at} for {first!r} and number {place} for {name!r}"
                expected = "a frame, because the models were fitted to the same columns in different orders"
                raise bad_value("x", expected, came, "Pass the frame.")
            if column in places and units != list(one[place][1:]):
                came = f"codes, which {first!r} and {name!r} read differently in column {column!r}"
                raise bad_value("x", "a frame, or models fitted to codes", came, "Pass the frame.")


def _units(column: Column) -> tuple[Any, Any]:
    """Return the levels and the resolution of a table's column; None for 0, 1, … and steps of 1, which change no number."""
    levels, resolution = column.levels, column.resolution
    plain = levels is not None and list(levels) == list(range(len(levels)))
    return None if plain else levels, None if resolution == 1 else resolution


def _in_order_of_frame(
    scores: Mapping[str, LogEvidence], models: Mapping[str, Any], x: Any
) -> dict[str, LogEvidence]:
    """Return scores of a frame by models of its columns in several orders as scores in one order.

    It is that of a model with the rows of a ``LogEvidence`` among the models, if there is one, or of the first.
    """
    orders = {
        name: _columns(model, x) for name, model in models.items() if not isinstance(model, LogEvidence)
    }
    given = [score.fingerprint for name, score in scores.items() if name not in orders]
    first = next((name for name in orders if scores[name].fingerprint in given), next(iter(orders), ""))
    return {
        name: _like(scores[first], score, orders[first], orders[name]) if name in orders else score
        for name, score in scores.items()
    }


def _like(
    first: LogEvidence, score: LogEvidence, order: list[Any] | None, own: list[Any] | None
) -> LogEvidence:
    """Return a score of the same frame whose columns stand in another order as one in the order of the first.

    The models score equal columns if these have the same names and, in tables, the same levels and resolutions.
    """
    if order is None or own is None or order == own or len({name for name, *_ in own}) < len(own):
        return score
    if len(own) != len(order) or not all(column in own for column in order):
        return score
    measure = tuple(score.measure[own.index(column)] for column in order)
    return replace(score, measure=measure, fingerprint=first.fingerprint)


def _labels_of(by: Any, scores: Mapping[str, LogEvidence]) -> np.ndarray:
    """Return a label for every row that was scored, shape (rows,), in their order."""
    index = next((score.index for score in scores.values() if score.index is not None), None)
    return _labels(align("by", by, index), len(next(iter(scores.values()))))


def _within(labels: np.ndarray, scores: Mapping[str, LogEvidence]) -> dict[Any, dict[str, LogEvidence]]:
    """Return the scores of the rows with each label."""
    import pandas as pd

    return {
        label: {name: subset(score, labels == label) for name, score in scores.items()}
        for label in pd.unique(labels)
    }


def _table_by(
    name: Any,
    labels: np.ndarray,
    scores: Mapping[str, LogEvidence],
    about: Mapping[str, Mapping[str, float]],
) -> pd.DataFrame:
    """Return one table for each label, one below the other; ``name`` is that of the labels."""
    import pandas as pd

    from pyrovae.comparison.table import ComparisonTable

    parts = {label: _table(some, about) for label, some in _within(labels, scores).items()}
    table = ComparisonTable(pd.concat(parts, names=[name, "model"]))
    table.attrs.update(parts[labels[0]].attrs, rows=len(labels))
    return table


def _table(scores: Mapping[str, LogEvidence], about: Mapping[str, Mapping[str, float]]) -> pd.DataFrame:
    import pandas as pd

    from pyrovae.comparison.table import ComparisonTable

    ranked = sorted(scores, key=lambda name: scores[name].mean, reverse=True)
    best = scores[ranked[0]]
    weights = stacking_weights(scores)
    lines = []
    for name in ranked:
        score = scores[name]
        difference = score.estimate - best.estimate
        same = score is best
        error = 0.0 if same else score.error_beside(best)
        lines.append(
            {
                "elpd": score.mean,
                "se": _standard_error(score.estimate),
                "elpd_diff": float(difference.mean()),
                "dse": 0.0 if same else _standard_error(difference),
                "weight": weights[name],
                "mcse": score.mean_mcse,
                "bias": score.mean_bias,
                "mcse_diff": error,
                "kind": ", ".join(sorted(set(score.kind.tolist()))),
                "given": ", ".join(score.given),
                "parameters": score.parameters,
                "num_parameters": about[name]["num_parameters"],
                **score.counts(),
                "check": score.checked,
                "open": not same and (_leaves_open(score) or _leaves_open(best) or not np.isfinite(error)),
                "seen": score.seen,
                "seconds": about[name]["seconds"],
            }
        )
    table = ComparisonTable(lines, index=pd.Index(ranked, name="model"))
    measure = sorted(set(best.measure))
    table.attrs.update(unit="nats a row", rows=len(best), measure=", ".join(measure), verdicts=list(VERDICTS))
    return table


def _leaves_open(score: LogEvidence) -> bool:
    """Return whether a score may be off by more than its error."""
    return score.checked in ("failed", "unchecked") or float((score.verdict == "trust").mean()) < 0.9


def _num_parameters(model: Any) -> float:
    """Return how many numbers were fitted; NaN if unknown."""
    if isinstance(model, nn.Module):
        return sum(p.numel() for p in model.parameters())
    return getattr(model, "num_parameters", float("nan"))


def _labels(by: Any, num_rows: int) -> np.ndarray:
    """Return a label for every row, shape (rows,)."""
    labels = np.asarray(by)
    missing = labels != labels
    if labels.shape == (num_rows,) and np.any(missing):
        raise bad_value(
            "by",
            "a label for every row",
            f"{int(np.sum(missing))} labels that are NaN, first at row {int(np.argmax(missing))}",
            "Give these rows a label, or drop them.",
        )
    if labels.shape != (num_rows,):
        raise bad_value(
            "by", f"a label for each of the {num_rows} rows", f"shape {labels.shape}", "Pass one column."
        )
    return labels


def subset(score: LogEvidence, chosen: np.ndarray) -> LogEvidence:
    """Return the score of some of the rows."""
    per_row = [
        f.name
        for f in fields(score)
        if isinstance(getattr(score, f.name), np.ndarray) and len(getattr(score, f.name)) == len(score)
    ]
    shared = score.shared_mcse
    if shared is not None:  # unknown for a subset; at most the mean of the rows' errors
        shared = float(score.mcse[chosen].mean())
    index = None if score.index is None else score.index[chosen]
    parts = {name: getattr(score, name)[chosen] for name in per_row}
    rows = None if score._seen is None else score._seen.of(chosen)
    # A hand-made score has only the number of seen rows: assume that they are spread evenly.
    seen = round(score.seen * chosen.mean()) if rows is None else rows.number
    return replace(score, **parts, shared_mcse=shared, index=index, seen=seen, _seen=rows)


def _standard_error(values: np.ndarray) -> float:
    """Return the standard error of the mean over rows; NaN for a single row."""
    return float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else float("nan")
