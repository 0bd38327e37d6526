"""Checks of ``compare`` and ``compare_evidence``: which scores may be ranked together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from pyrovae.evidence import LogEvidence
from pyrovae.identity import Fingerprint
from pyrovae.model import LatentVariableModel
from pyrovae.refusals import bad_type, bad_value

_FIXES = {
    "transformed": "Observe x itself, without pyro.factor; put a scaling into the likelihood, or transform x beforehand and "
    "pass that.",
    "unscored in part": "Score every cell under every model, or leave the same cells out of all.",
    "unscored": "Score every column under every model, or pass only the columns that all of them score.",
    "pseudo-likelihood": "The model reads what it scores, or values computed from that, such as an offset. Measure these "
    "separately, infer them in the model, or let each cell depend on earlier cells only.",
}

# Probability that matches by chance alone make a comparison by labels raise an error.
_BY_CHANCE = 1e-3

_LEFT_OUT = ("unscored", "unscored in part")


def check_models(models: object) -> None:
    """Raise an error unless ``models`` is a dict from names to models."""
    if not isinstance(models, Mapping) or not models:
        raise bad_type(
            "models",
            "a dict from names to models",
            f"a {type(models).__name__}" if models else "none",
            'Pass {"VAE": vae, "PPCA": ppca}.',
        )
    for name, model in models.items():
        if isinstance(model, type):
            raise bad_type(
                "models", "fitted models", f"the class {model.__name__} as {name!r}", "Fit an instance first."
            )
        known = isinstance(model, LogEvidence | LatentVariableModel) or callable(
            getattr(model, "log_evidence", getattr(model, "marginal_likelihood", None))
        )
        if not known:
            raise bad_type(
                "models",
                "VAEs, LatentVariableModels, fitted baselines or LogEvidences",
                f"{name!r}, a {type(model).__name__}",
                "Wrap a Pyro model and guide: LatentVariableModel(model, guide).",
            )


def check_target(scores: Mapping[str, LogEvidence], target: str) -> None:
    """Raise ``ValueError`` if a score is not of the target, "predictive" or "evidence"."""
    for name, score in scores.items():
        if score.target != target and target == "predictive":
            raise bad_value(
                "models",
                "predictive scores of held-out rows",
                f"{name!r}, the {score.target} of a training set",
                "Compare evidences of one training set with compare_evidence.",
            )
        if score.target != target:
            raise bad_value(
                "models",
                "evidences of one training set",
                f"{name!r}, predictive scores of rows",
                "Rank those with compare; call fitted_model.marginal_likelihood() for an evidence.",
            )


def in_one_order(scores: Mapping[str, LogEvidence]) -> dict[str, LogEvidence]:
    """Return scores of the same rows as scores with columns in the order of the first, whatever order they were scored in.

    Rows are the same if they are equal, or have columns of the same names in another order. Rows without names may be
    equal to rows with names, which in turn are matched by name.
    """
    first, *others = scores
    orders = {first: tuple(range(len(scores[first].measure)))}  # where the columns of the first lie in each
    reached = [first]
    for name in reached:  # which grows
        for other in [other for other in others if other not in orders]:
            order = _order_beside(scores[name].fingerprint, orders[name], scores[other].fingerprint)
            if order is not None:
                orders[other] = order
                reached.append(other)
    return {
        name: _in_order(score, orders[name], scores[first].fingerprint) if name in orders else score
        for name, score in scores.items()
    }


def _order_beside(known: Fingerprint, order: tuple[int, ...], other: Fingerprint) -> tuple[int, ...] | None:
    """Return where columns that lie in ``order`` among the known rows lie in other rows; None if these are not the same."""
    if other == known:
        return order
    if not other.same_by_name(known):
        return None
    return tuple(other.names.index(known.names[column]) for column in order)


def _in_order(score: LogEvidence, order: tuple[int, ...], first: Fingerprint) -> LogEvidence:
    if score.fingerprint == first:
        return score
    return replace(score, measure=tuple(score.measure[column] for column in order), fingerprint=first)


def check_comparable(scores: Mapping[str, LogEvidence]) -> None:
    """Raise ``ValueError`` if scores measure different quantities: columns, kinds, rows, units."""
    (first, reference), *others = scores.items()
    for name, score in scores.items():
        if others and not len(score.fingerprint):
            raise bad_value(
                "models",
                "evidences of rows that are known to be the same",
                f"{name!r}, an evidence of unknown rows",
                "Pass them: from_draws(log_density, draws, x=x).",
            )
    # Regressions leave out their covariates, the same for all.
    conditional = len({score.measure for score in scores.values()}) == 1 and all(
        (score.kind == "exact").all() or score.target == "evidence" for score in scores.values()
    )
    for name, score in scores.items():
        # Masks of single cells may differ between models; an evidence says which cells it leaves out.
        left_out = _LEFT_OUT if score.target == "evidence" else _LEFT_OUT[:1]
        known = ("mass", "density", *left_out) if conditional else ("mass", "density")
        odd = [column for column, kind in enumerate(score.measure) if kind not in known]
        if odd:
            kind = score.measure[odd[0]]
            raise bad_value(
                "models",
                "a log P of every column of x, in x's own units",
                f"{name!r}, in which {len(odd)} column(s) are {kind}, first column {odd[0]}",
                _FIXES[kind],
            )
    for name, score in others:
        _check_same(first, reference, name, score)


def _check_same(first: str, reference: LogEvidence, name: str, score: LogEvidence) -> None:
    """Raise ``ValueError`` unless two scores are of the same rows, given the same, in the same measures."""
    if score.fingerprint != reference.fingerprint:
        raise bad_value(
            "models",
            f"all scored on the same rows in the same units as {first!r}",
            f"{name!r} on others: {reference.fingerprint.unlike(score.fingerprint)}",
            "Score all models on one x.",
        )
    for given in score.given.keys() & reference.given.keys():
        if score.given[given] != reference.given[given]:
            raise bad_value(
                "models",
                f"all scored given the same {given} as {first!r}",
                f"{name!r} given another",
                "Pass the same to each model, or leave it out of all.",
            )
    if _totals(score) != _totals(reference):
        (other, _), (narrower, by) = sorted(
            [(first, reference), (name, score)], key=lambda entry: len(entry[1].own_totals)
        )
        raise bad_value(
            "models",
            "all log P(x), or all log P(x | total) given the same totals of x",
            f"{narrower!r}, which is conditional on {', '.join(by.own_totals)}, and {other!r}, which is not",
            "These are different quantities: add a model of the total to the first, or compare models given the "
            "same total.",
        )
    if score.measure != reference.measure:
        column = next(
            i
            for i, pair in enumerate(zip(score.measure, reference.measure, strict=True))
            if pair[0] != pair[1]
        )
        raise bad_value(
            "models",
            "all masses or all densities, column by column",
            f"a {reference.measure[column]} under {first!r} and a {score.measure[column]} under {name!r} "
            f"in column {column}",
            "A probability and a density have different units and no common scale: compare masses and densities in "
            "two tables, or give both models the same kind of likelihood.",
        )


def _totals(score: LogEvidence) -> set[str]:
    """Return the totals of x that a score is conditional on, by their hashes."""
    return {score.given.get(name, name) for name in score.own_totals}


def check_possible(scores: Mapping[str, LogEvidence]) -> None:
    """Raise ``ValueError`` for rows without probability, because −∞ has no mean and no differences."""
    for name, score in scores.items():
        bad = ~np.isfinite(score.estimate)
        if bad.any():
            raise bad_value(
                "x",
                "rows with a finite log P(x) under every model",
                f"{int(bad.sum())} with {score.estimate[bad][0]} under {name!r}, first row {int(bad.argmax())}",
                "Such a row is impossible under that model, or all its draws missed it: try method='auto', or leave "
                "the row out under every model.",
            )


def check_held_out(scores: Mapping[str, LogEvidence], label: Any = None, labels: int = 0) -> None:
    """Raise ``ValueError`` if a model was fitted to more than half of the rows it is scored on.

    Under one of ``labels`` labels, few rows may match by chance. Matches that may well be chance are allowed.
    """
    for name, score in scores.items():
        if score.seen > len(score) / 2:
            if labels and score._seen is not None and score._seen.by_chance > _BY_CHANCE / labels:
                continue
            where = f" under the label {str(label)!r}" if labels else ""
            raise bad_value(
                "x",
                "rows that the models were not fitted to",
                f"{score.seen} of {len(score)}{where} that {name!r} was fitted to",
                "Score held-out rows; to compare on the training rows nevertheless, pass training_rows=True.",
            )
