"""Answers whose weighted draws of z are kept: of the encoder, of posteriors fitted to each row, of values of discrete latents."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyrovae import arguments
from pyrovae.evaluation import Evaluation, Simulated, Terms
from pyrovae.evidence.defensive import shares_of_values, sum_over_latents, weigh_values
from pyrovae.evidence.draws import Draws, Keep
from pyrovae.evidence.importance import answered as by_encoder
from pyrovae.evidence.importance import importance
from pyrovae.evidence.posterior import dimensions, undisturbed
from pyrovae.evidence.reach import unreached
from pyrovae.evidence.refined import answered as by_fits
from pyrovae.evidence.refined import refined
from pyrovae.evidence.result import CUT_OFF, LogEvidence
from pyrovae.evidence.run import Run
from pyrovae.evidence.simulated import simulated
from pyrovae.model import LatentVariableModel
from pyrovae.noise import Stream, derive
from pyrovae.progress import Progress

#: Methods whose draws can be kept; "auto" chooses among them and ``defensive``.
METHODS = ("auto", "importance", "refined")
_VALUES_PILOT = 512  # draws that tell the shares of the values of discrete latents


def defensive(
    pair: LatentVariableModel,
    x: Any,
    num_samples: int = 2000,
    seed: int = 0,
    tile: tuple[int, int] | None = None,
    compile: str | bool = "auto",
    noise: str = "index",
    check: bool = True,
) -> LogEvidence:
    """Return log P(x_n) of pairs with discrete latents, as ``auto`` does, but with equally many draws for every row.

    All values of z are summed over if they are at most 1024. Beside other latents, each value of the discrete ones gets a share
    of the draws. With more values, the draws are those of the encoder. The arguments are those of ``importance``.
    """
    return _defended(Run.prepare(defensive, locals()))


def _defended(run: Run, keep: Keep | None = None) -> LogEvidence:
    """Return the answer of a run of ``defensive``; ``keep`` gets every block's draws."""
    evaluation = run.evaluation
    with run.bar() as bar:
        summed = sum_over_latents(evaluation, _counted(keep, bar))
    if summed is not None:
        every = np.full(len(evaluation), "exact")
        return run.answer(
            summed,
            "exact",
            verdict=np.full(len(evaluation), "trust"),
            num_samples=0,
            answered_by=every,
        )
    rows = torch.arange(len(evaluation), device=evaluation.numbers.device)
    pilot = evaluation.of_rows(rows, derive(evaluation.seed, Stream.LADDER), _VALUES_PILOT)
    shares = shares_of_values(pilot)
    if shares is None:
        return by_encoder(run.by(importance, pareto_smoothed=False), keep)
    with run.bar() as bar:
        columns = weigh_values(evaluation, shares, _counted(keep, bar)).also_missed(shares.doubtful)
    findings = {CUT_OFF: unreached(evaluation, shares.names).rows}
    answered_by = np.full(len(evaluation), "defensive")
    return run.answer(columns, "lower bound", findings, answered_by=answered_by)


def _counted(keep: Keep | None, bar: Progress) -> Keep | None:
    """Return the function that also counts the rows of each block."""
    if keep is None:
        return None

    def count(draws: Draws) -> None:
        keep(draws)
        bar.advance(draws.rows.stop - draws.rows.start)

    return count


_ANSWERS: dict[Callable[..., LogEvidence], Callable[[Run, Keep | None], LogEvidence]] = {
    importance: by_encoder,
    refined: by_fits,
    defensive: _defended,
}


def prepare(
    pair: LatentVariableModel,
    x: Any,
    method: str,
    num_samples: int,
    seed: int,
    check: bool,
    noise: str = "index",
    tile: tuple[int, int] | None = None,
    least: int = 100,
    progress: bool = False,
) -> Run:
    """Return a run of a method, whose other options have their defaults.

    "auto" is a run of ``importance``, or of ``defensive`` if z is not continuous. ``least`` is the fewest draws of "importance".
    """
    arguments.choice("method", method, METHODS)
    arguments.integer("num_samples", num_samples, minimum=least if method == "importance" else 100)
    estimator = refined if method == "refined" else importance
    given = {"pair": pair, "x": x, "num_samples": num_samples, "seed": seed, "check": check, "noise": noise}
    run = Run.prepare(estimator, given | {"tile": tile, "progress": progress})
    return run.by(defensive) if method == "auto" and not dimensions(run.evaluation) else run


def answer(run: Run, keep: Keep | None) -> LogEvidence:
    """Return the answer of a run; ``keep`` gets the draws of every block of its rows."""
    return _ANSWERS[run.estimator](run, keep)


def by_fitted(run: Run) -> Run:
    """Return the run whose draws are those of posteriors fitted to each row; the run itself if z is not continuous."""
    if run.estimator is refined or not dimensions(run.evaluation):
        return run
    own = ("family", "num_starts", "num_steps")
    return run.by(refined, **{name: value for name, value in _options(refined).items() if name in own})


def answers(
    run: Run, method: str, rows: Tensor, keep: Keep, poor: Callable[[LogEvidence], np.ndarray] | None = None
) -> list[tuple[Run, Tensor, LogEvidence]]:
    """Return the answer of some rows: the run, the rows' numbers, and log P(x).

    With "auto", if z is continuous, a second entry answers again the rows that are not trusted and those that ``poor`` marks.
    ``keep`` gets the draws of the second answer after those of the first.
    """
    here = run.only(rows)
    evidence = answer(here, keep)
    found = [(here, rows, evidence)]
    again = by_fitted(run)
    if method != "auto" or again is run:
        return found
    bad = evidence.verdict != ("trust" if run.check else "unchecked")
    bad = (bad if poor is None else bad | poor(evidence)) & (evidence.kind != "exact")
    if bad.any():
        rows = rows[torch.from_numpy(np.flatnonzero(bad)).to(rows.device)]
        here = again.only(rows)
        found.append((here, rows, answer(here, keep)))
    return found


def on_simulated(run: Run, count: int, seed: int, keep: Keep) -> tuple[Simulated, LogEvidence]:
    """Return rows simulated from the model, and their answer without a check; ``keep`` gets their draws.

    They have the masks, and the values beside x, of rows of the run chosen at random. Rows with numbers that are not finite
    are left out. What the user's model raises on such rows is raised.
    """
    template = run.evaluation
    generator = torch.Generator().manual_seed(seed)
    index = torch.randint(len(template), (count,), generator=generator).to(template.numbers.device)
    rows = simulated(replace(template, seed=seed), index)
    rows = rows.only(torch.isfinite(rows.complete.reshape(count, -1)).all(dim=1).nonzero()[:, 0])
    given = {"pair": template.pair, "x": rows, "seed": seed, "check": False}
    trial = Run.prepare(run.estimator, given | dict(run.options))
    return rows, answer(trial, keep)


def of_empty_rows(whole: Evaluation) -> Iterator[Draws]:
    """Yield draws of P(z), of equal weight, for rows without an observed cell, whose posterior is the prior."""
    if "observed" not in whole.batch:
        return
    empty = (~whole.batch["observed"].reshape(len(whole), -1).any(dim=1)).nonzero()[:, 0]
    if len(empty):
        rows_of = whole.of_rows(empty, whole.seed, whole.num_samples)
        for rows in rows_of.blocks():
            with undisturbed(rows_of, Stream.EMBED, rows=rows) as drawn:
                latents, joint = rows_of.model.draw_prior(rows_of.part(rows), whole.num_samples, drawn)
            none = torch.zeros_like(joint.prior)
            yield Draws(rows_of, rows, latents, Terms(none, none, none))


def _options(estimator: Callable[..., LogEvidence]) -> dict[str, Any]:
    parameters = inspect.signature(estimator).parameters.values()
    return {each.name: each.default for each in parameters if each.default is not inspect.Parameter.empty}
