"""Estimators of log P(x) for any pair or baseline, with an error and a verdict: one estimator per file."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from pyrovae import arguments
from pyrovae.evidence.annealed import annealed
from pyrovae.evidence.auto import auto
from pyrovae.evidence.check import Check, check
from pyrovae.evidence.conditional import conditional
from pyrovae.evidence.convergence import convergence
from pyrovae.evidence.exact import exact
from pyrovae.evidence.from_draws import from_draws
from pyrovae.evidence.gaps import gaps
from pyrovae.evidence.importance import importance
from pyrovae.evidence.jackknife import jackknife
from pyrovae.evidence.quadrature import quadrature
from pyrovae.evidence.refined import refined
from pyrovae.evidence.result import KINDS, VERDICTS, LogEvidence
from pyrovae.evidence.sandwich import Sandwich, sandwich
from pyrovae.model import LatentVariableModel
from pyrovae.noise import Stream, derive
from pyrovae.refusals import bad_value
from pyrovae.rows import joined
from pyrovae.turns import takes_turns

#: Every estimator by the name that ``log_evidence(..., method=…)`` takes.
METHODS: dict[str, Callable[..., LogEvidence]] = {
    "importance": importance,
    "jackknife": jackknife,
    "annealed": annealed,
    "refined": refined,
    "quadrature": quadrature,
    "exact": exact,
    "auto": auto,
}


@takes_turns
def log_evidence(
    model: Any, x: Any, *, method: str | None = None, given: Any = None, **options: Any
) -> LogEvidence:
    """Return log P(x_n) of every row under any model that defines it, in nats; or log P of some columns given others.

    A model with a ``log_evidence`` method of its own, such as a baseline, computes the number itself. For a
    ``VAE`` or ``LatentVariableModel``, the estimator named by ``method`` computes it.

    Args:
        model: a ``VAE``, a ``LatentVariableModel`` or a fitted baseline.
        x: rows on dim 0; tensor, numpy array or DataFrame.
        method: one of ``evidence.METHODS``; None means "importance". "auto" chooses row by row.
        given: columns of x: names in a frame, or positions from 0 among the columns as passed. A string is a name, and a
            whole number a position. A number that is also the label of another column is an error. The result is then

                log P(rest | given) = log P(x_obs) − log P(x_given)

            of every row, for a model that takes missing cells. Its kind is "exact" if both terms are, else "estimate": a
            difference of bounds is no bound. Its ``bias`` is the difference of the two biases. Both terms have noise of
            their own. The ``mcse`` is the root of the sum of squares of both errors and of the ``tail_error`` of
            log P(x_given). A row is "trust" only if both terms are. A row whose observed cells are all given has 0.
            ``checkpoint`` cannot be used with it.
        options: the estimator's own. "importance" takes ``num_samples=5000``, ``seed=0``,
            ``pareto_smoothed=False``, ``tile=None`` and ``progress=False``. "auto" takes ``target_mcse=0.05``
            and ``max_cost=50_000``. All but "exact" take ``check=True``: the method is also tried on rows simulated
            from the model. Without it no row is "trust". All but "exact" and "quadrature" take ``compile="auto"``:
            whether guide and model are traced and compiled. All but "exact" take ``checkpoint=None``, a folder, and
            ``executor=None``, worker processes; see ``help(pyrovae.evidence.importance)``.

    Raises:
        TypeError, ValueError: see the estimator; an unknown column in ``given``; a method or options for a
            model that computes log P(x) itself.

    Example:
        >>> import torch, pyrovae as pv
        >>> ev = pv.log_evidence(pv.VAE.mlp(6, latent_dim=2), torch.ones(4, 6), num_samples=100)
        >>> ev.kind[0].item()
        'lower bound'
    """
    if given is not None:
        if options.get("checkpoint") is not None:
            raise bad_value(
                "checkpoint",
                "None with given, whose two terms are two evaluations",
                "a folder",
                "Leave it out.",
            )
        pair, x = isinstance(model, LatentVariableModel), joined(x, "x")
        if not getattr(model, "takes_missing", True):
            raise bad_value(
                "given",
                "a model that takes missing cells, because log P of the given columns leaves out the others",
                "one that takes none" if pair else f"a {type(model).__name__}, which takes none",
                "Write model(x, observed=None), and mask its sites by it."
                if pair
                else "Use a baseline that does, such as PPCA or FullGaussian, or a VAE.",
            )
        ours = model.arranged(x) if pair else x
        score = functools.partial(log_evidence, model, method=method, **options)
        # Noise is keyed by rows: with one seed, the errors of both terms would depend on each other.
        other = {"seed": derive(options.get("seed", 0), Stream.GIVEN)} if pair and method != "exact" else {}
        return conditional(score, functools.partial(score, **other), ours, given, x)
    own = getattr(model, "log_evidence", None)
    if own is None:
        name = arguments.choice("method", "importance" if method is None else method, tuple(METHODS))
        arguments.options(f"method {name!r}", METHODS[name], options, taken=("pair", "x"))
        return METHODS[name](model, x, **options)
    if method is not None or options:
        given = [*(["method"] if method is not None else []), *options]
        raise bad_value(
            given[0],
            f"no options: {type(model).__name__} computes log P(x) itself",
            ", ".join(given),
            "Leave them out.",
        )
    evidence: LogEvidence = own(x)
    return evidence


__all__ = [
    "KINDS",
    "METHODS",
    "VERDICTS",
    "Check",
    "LogEvidence",
    "Sandwich",
    "annealed",
    "auto",
    "check",
    "convergence",
    "exact",
    "from_draws",
    "gaps",
    "importance",
    "jackknife",
    "log_evidence",
    "quadrature",
    "refined",
    "sandwich",
]
