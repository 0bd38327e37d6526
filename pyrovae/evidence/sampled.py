"""Answers whose weighted draws of z are kept: of the encoder first, then of posteriors fitted to each row."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyrovae import arguments
from pyrovae.evidence.draws import Keep
from pyrovae.evidence.importance import answered as by_encoder
from pyrovae.evidence.importance import importance
from pyrovae.evidence.posterior import dimensions
from pyrovae.evidence.refined import answered as by_fits
from pyrovae.evidence.refined import refined
from pyrovae.evidence.result import LogEvidence
from pyrovae.evidence.run import Run
from pyrovae.model import LatentVariableModel

_ANSWERS: dict[str, tuple[Callable[..., LogEvidence], Callable[[Run, Keep | None], LogEvidence]]] = {
    "importance": (importance, by_encoder),
    "refined": (refined, by_fits),
}
#: Methods whose draws can be kept; "auto" asks the second for rows that the first answers badly.
METHODS = ("auto", *_ANSWERS)


def prepare(
    pair: LatentVariableModel,
    x: Any,
    method: str,
    num_samples: int,
    seed: int,
    check: bool,
    noise: str = "index",
) -> Run:
    """Return a run of ``method``, which for "auto" is that of "importance"; its other options are the defaults."""
    arguments.choice("method", method, METHODS)
    arguments.integer("num_samples", num_samples, minimum=100)
    estimator, _ = _ANSWERS["importance" if method == "auto" else method]
    given = {"num_samples": num_samples, "seed": seed, "check": check, "noise": noise}
    return Run.prepare(estimator, pair, x, **_options(estimator) | given)


def answer(run: Run, keep: Keep | None) -> LogEvidence:
    """Return the answer of a run; ``keep`` gets the draws of every block of its rows."""
    return _ANSWERS[run.estimator.__name__][1](run, keep)


def by_fitted(run: Run) -> Run:
    """Return the run whose draws are those of posteriors fitted to each row; the run itself if z is not continuous."""
    if run.estimator is refined or not dimensions(run.evaluation):
        return run
    own = ("family", "num_starts", "num_steps")
    return run.by(refined, **{name: value for name, value in _options(refined).items() if name in own})


def answers(
    run: Run, method: str, rows: Tensor, keep: Keep, least_ess: float
) -> list[tuple[Run, Tensor, LogEvidence]]:
    """Return the answer of some rows: the run, the rows' numbers, and log P(x).

    With "auto" a second entry answers again the rows that have fewer than ``least_ess`` effective draws or that are not
    trusted, if z is continuous. ``keep`` gets the draws of the second answer after those of the first.
    """
    here = run.only(rows)
    evidence = answer(here, keep)
    found = [(here, rows, evidence)]
    again = by_fitted(run)
    if method != "auto" or again is run:
        return found
    sound = evidence.verdict == ("trust" if run.check else "unchecked")
    poor = (~sound | (evidence.ess < least_ess)) & (evidence.kind != "exact")
    if poor.any():
        rows = rows[torch.from_numpy(np.flatnonzero(poor)).to(rows.device)]
        here = again.only(rows)
        found.append((here, rows, answer(here, keep)))
    return found


def _options(estimator: Callable[..., LogEvidence]) -> dict[str, Any]:
    parameters = inspect.signature(estimator).parameters.values()
    return {each.name: each.default for each in parameters if each.default is not inspect.Parameter.empty}
