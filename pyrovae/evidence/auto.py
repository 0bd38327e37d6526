"""auto() estimates log P(x) by the cheapest of several methods that reaches a target error, row by row."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterator
from enum import IntEnum
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pyrovae import arguments, diagnostics, noise
from pyrovae.evaluation import Evaluation, Terms
from pyrovae.evidence.annealed import Path, path_cost, weigh_chains
from pyrovae.evidence.exact import linear_gaussian
from pyrovae.evidence.gaussians import (
    PRIOR_DRAWS,
    Starts,
    encoder_start,
    fit_cost,
    fit_gaussians,
    independent_starts,
)
from pyrovae.evidence.importance import encoder_block
from pyrovae.evidence.posterior import Encoder, Gaussian, Posterior, Proposal, total, undisturbed
from pyrovae.evidence.quadrature import MOST_DIMENSIONS, first_price, grid_block
from pyrovae.evidence.reach import Unreached, reach_cost, unreached
from pyrovae.evidence.refined import defended, shares, weigh_mixture
from pyrovae.evidence.result import Columns, LogEvidence, about, verdicts
from pyrovae.evidence.run import Folder, Run, each_block
from pyrovae.model import LatentVariableModel
from pyrovae.noise import Stream
from pyrovae.pair import all_values
from pyrovae.progress import Progress
from pyrovae.refusals import Refused
from pyrovae.row_noise import RowNoise
from pyrovae.turns import takes_turns

RUNGS = ("importance", "exact", "defensive", "refined", "quadrature", "annealed")

_MISSED = "the posterior has mass where no draws were made"
_PILOT, _SECOND_PILOT = 64, 128  # draws of the encoder, and of the fitted mixture
_FEWEST = 128  # draws of an answer
_RESERVE = 150  # decoder evaluations of an answer by _FEWEST draws, held back until the end
# An answer aims at this share of the target, because a pilot estimates a variance only to about a quarter.
_MARGIN = 0.6
# Thresholds on a pilot's k-hat. Its 13 to 26 tail draws determine k-hat to about 0.2, and a fit costs less than an
# answer that is then not trusted.
_ENCODER_TAIL, _TAIL = 0.3, 0.5
_STARTS = 3  # modes searched for without the encoder
_PRIOR_PILOT = PRIOR_DRAWS * _STARTS
# Least effective sample size, of 96 prior draws, at which they can show mass that the encoder misses. The error under
# the mixture cannot replace it: it is small if no draw hits that mass.
_FEWEST_SEEN = 40
_UNCOVERED, _NEGLIGIBLE = 3.0, 7.0  # nats: see _uncovered
_MATTERS, _FEWEST_VISITS = 4.0, 20  # nats below the answer, and draws: see _answer_defensively
_STEPS = (4, 8)  # of a fit, and of a second fit if the pilot of the first is not good enough
_CHAINS, _FEWEST_TEMPERATURES, _MOST_TEMPERATURES = 64, 30, 1000
_ROWS_AT_ONCE = 1 << 22  # numbers in the fitted Gaussians that are held at a time


@takes_turns
def auto(
    pair: LatentVariableModel,
    x: Any,
    target_mcse: float = 0.05,
    max_cost: int = 50_000,
    seed: int = 0,
    tile: tuple[int, int] | None = None,
    progress: bool = False,
    checkpoint: Folder = None,
    compile: str | bool = "auto",
    noise: str = "index",
    check: bool = True,
) -> LogEvidence:
    """Return log P(x_n) to a target error, by the cheapest method that reaches it, chosen row by row.

    1. A linear-Gaussian VAE is computed in closed form.
    2. A pilot of 64 draws of the encoder predicts how many draws ``importance`` would need. A small k-hat is
       not sufficient, so 96 draws of the prior search for mass that the encoder misses. If their weights
       are too uneven to tell, gradient ascents from those far from the encoder search for modes.
    3. A row gets Gaussians of its own, as in ``refined``, if it needs too many draws, has a heavy tail or a
       missed mode. A second pilot tells whether they are good enough.
    4. If they are not, ``quadrature`` computes rows with one or two latent dimensions, and ``annealed`` all
       others, starting from the Gaussians.

    Pilots only choose the method. The answer comes from fresh noise and is kept whatever its value, so that a
    lower bound stays one. If a mode is known that a row's answer did not cover, the row is neither settled
    nor trusted.

    Args:
        pair: a ``VAE`` or any ``LatentVariableModel``. Discrete latents allow only step 2. If their guide
            cannot reach all of the prior, ``auto`` sums over all z ("exact"). If the values are too many for
            that, half of the draws come from the prior ("defensive").
        x: rows on dim 0; tensor, numpy array or DataFrame.
        target_mcse: the requested Monte-Carlo error, in nats per row.
        max_cost: most decoder evaluations to spend on a row; a gradient counts three. A row that would need
            more is answered within this limit, and is not settled.
        seed, tile, progress, checkpoint, compile, noise, check: as in ``importance``.

    Returns:
        A ``LogEvidence`` with, for every row, ``answered_by``, ``cost`` and ``settled``.

    Raises:
        TypeError, ValueError: an option, the rows or the pair cannot be used; see ``pyrovae.pair.inspect``.

    Example:
        >>> import torch
        >>> from pyrovae import VAE
        >>> ev = auto(VAE.mlp(6, latent_dim=2), torch.ones(4, 6), target_mcse=0.1)
        >>> ev.answered_by.shape, ev.settled.shape
        ((4,), (4,))
    """
    arguments.positive("target_mcse", target_mcse)
    arguments.integer("max_cost", max_cost, minimum=1000)
    run = Run.prepare(
        auto,
        pair,
        x,
        _PILOT,
        seed,
        tile=tile,
        progress=progress,
        checkpoint=checkpoint,
        compile=compile,
        noise=noise,
        check=check,
        target_mcse=target_mcse,
        max_cost=max_cost,
    )
    evaluation = run.evaluation
    closed = _closed_form(evaluation)
    if closed is not None:
        return dataclasses.replace(closed, method="auto", target_mcse=float(target_mcse))
    dim = _dimensions(evaluation)
    height = max(1, _ROWS_AT_ONCE // (dim or 1) ** 2)
    answers = []
    with run.bar() as bar:
        everything = torch.arange(len(evaluation), device=evaluation.batch["x"].device)
        for number, rows in enumerate(everything.split(height)):
            part = evaluation.of_rows(rows, evaluation.seed, _PILOT)
            ladder = _Ladder(part, float(target_mcse), max_cost, bar)
            climb = functools.partial(ladder.climb, dim)
            answers.append(climb() if run.parts is None else run.parts.keep(number, climb))
    columns = Columns.cat([Columns(**answer["columns"]) for answer in answers])
    answered_by, draws, doubtful = (
        np.concatenate([np.asarray(answer[name]) for answer in answers])
        for name in ("answered_by", "draws", "doubtful")
    )
    grid = answered_by == "quadrature"
    within = (columns.mcse <= target_mcse).cpu().numpy()
    verdict = verdicts(columns.pareto_k.cpu().numpy(), draws)
    summed = answered_by == "exact"
    verdict = np.where(summed, "trust", verdict)
    verdict = np.where(grid, np.where(within, "trust", "another method"), verdict)
    return run.answer(
        columns,
        np.where(summed, "exact", np.where(grid, "estimate", "lower bound")),
        {_MISSED: torch.from_numpy(doubtful)},
        verdict,
        answered_by=answered_by,
        target_mcse=float(target_mcse),
    )


def _closed_form(evaluation: Evaluation) -> LogEvidence | None:
    rows = evaluation.batch["x"]
    try:
        known = linear_gaussian(evaluation.pair, rows)
    except Refused:
        return None
    return LogEvidence.exact(
        known.log_prob(rows.flatten(1).double()).cpu().numpy(),
        measure=evaluation.structure.measure,
        method="exact",
        **about(evaluation.source, evaluation.pair),
    )


def _dimensions(evaluation: Evaluation) -> int:
    """Return the number of entries of u, or zero if latents cannot be moved."""
    try:
        with undisturbed(evaluation, Stream.PILOT):
            return Posterior(evaluation, slice(0, 1)).dim
    except Refused:
        return 0


class Stage(IntEnum):
    """Parts of the work on a row. Each has noise of its own, which does not depend on other rows."""

    PILOT = 0
    PLACES = 1
    MODES = 2
    FIT = 3
    FIT_ALL = 4
    SECOND_PILOT = 5
    ANSWER = 6


class _Pilot(NamedTuple):
    """Results of a pilot, each of shape (rows, ...)."""

    needed: Tensor  # draws of the encoder for the target
    tail: Tensor  # k-hat of the encoder's draws
    level: Tensor  # a first log P(x)
    missed: Tensor  # whether draws show mass that the encoder misses
    beyond: Unreached  # findings on z that the guide never draws
    unseen: Tensor  # whether the prior's draws are too far from the row to tell
    prior: Tensor  # the prior's draws, (rows, draws, dim)
    values: Tensor  # log P(x, u) there, (rows, draws)


class _Modes(NamedTuple):
    """Starts of fits, the encoder's first, NaN if no modes were searched for; and whether the encoder misses one."""

    loc: Tensor  # (starts, rows, dim)
    log_joint: Tensor  # (starts, rows)
    spread: Tensor  # (rows, dim)
    missed: Tensor  # (rows,)

    def starts(self, rows: Tensor, chosen: slice) -> Starts:
        """Return some of the starts for some of the rows."""
        return Starts(self.loc[chosen, rows], self.log_joint[chosen, rows], self.spread[rows])


_ENCODERS, _OTHERS, _ALL = slice(0, 1), slice(1, None), slice(None)


class _Fitted(NamedTuple):
    """Rows and the Gaussians fitted to them."""

    rows: Tensor
    fits: list[Gaussian]

    def only(self, keep: Tensor) -> _Fitted:
        return _Fitted(self.rows[keep], [fit[keep] for fit in self.fits])


class _Ladder:
    """The choice of methods for some rows. ``columns`` and the other public attributes hold the answers, each (rows,)."""

    def __init__(self, evaluation: Evaluation, target: float, max_cost: int, bar: Progress) -> None:
        self._evaluation, self._target, self._max_cost, self._bar = evaluation, target, max_cost, bar
        count, device = len(evaluation), evaluation.batch["x"].device
        self._cost = torch.zeros(count, dtype=torch.float64, device=device)
        empty = torch.full((count,), math.nan, dtype=torch.float64, device=device)
        self.columns = Columns(*(empty.clone() for _ in dataclasses.fields(Columns)))
        self.answered_by = np.full(count, "", dtype=f"<U{max(map(len, RUNGS))}")
        self.draws = np.zeros(count, dtype=np.int64)
        self.doubtful = np.zeros(count, dtype=bool)

    def climb(self, dim: int) -> dict[str, Any]:
        """Return every row's answer by the method that its pilots choose; ``dim`` is 0 if z cannot be moved."""
        self._climb(dim)
        return {
            "columns": vars(self.columns),
            "answered_by": self.answered_by.tolist(),
            "draws": self.draws,
            "doubtful": self.doubtful,
        }

    def _climb(self, dim: int) -> None:
        rows = torch.arange(len(self._cost), device=self._cost.device)
        pilot = self._pilot(rows, dim)
        if not dim:
            reached = ~pilot.beyond.rows
            self._answer_by_importance(rows[reached], pilot.needed[reached], pilot.missed[reached])
            beyond = Unreached(*(each[~reached] for each in pilot.beyond))
            self._answer_defensively(rows[~reached], pilot.needed[~reached], beyond)
            return
        modes = self._look_for_modes(rows, pilot, dim)
        enough = ~modes.missed & (pilot.tail <= _ENCODER_TAIL) & (pilot.needed <= self._fit_price(dim, 1, 0))
        affordable = self._left(rows) >= self._fit_price(dim, 1, 0)
        here = enough | ~affordable
        self._answer_by_importance(rows[here], pilot.needed[here], modes.missed[here])
        waiting = rows[~here]
        for turn in range(len(_STEPS)):
            waiting = self._refine(waiting, pilot, modes, turn, dim)

    # -----------------------------------------------------------------------------------------------------
    # Cost

    def _left(self, rows: Tensor) -> Tensor:
        """Return the decoder evaluations that rows may still spend, without the reserve for an answer."""
        return self._max_cost - _RESERVE - self._cost[rows]

    def _fit_price(self, dim: int, num_starts: int, turn: int) -> int:
        """Return the decoder evaluations of a fit and its pilot."""
        return fit_cost(dim, num_starts, _STEPS[turn]) + _mixture_cost(_SECOND_PILOT) + 8

    # -----------------------------------------------------------------------------------------------------
    # Pilots

    def _part(self, rows: Tensor, num_samples: int, stage: Stage, turn: int = 0) -> Evaluation:
        """Return the evaluation of some of the rows, with noise that no other stage uses."""
        seed = noise.derive(self._evaluation.seed, Stream.LADDER, stage, turn)
        return self._evaluation.of_rows(rows, seed, num_samples)

    def _each_block(
        self, rows: Tensor, stage: Stage, turn: int = 0
    ) -> Iterator[tuple[Tensor, Posterior, RowNoise]]:
        """Yield blocks of some rows with their posteriors and noise."""
        part = self._part(rows, _PILOT, stage, turn)
        for block in part.blocks():
            with undisturbed(part, Stream.PILOT, rows=block) as drawn:
                posterior = Posterior(part, block)
                yield rows[block], posterior, drawn
            self._cost[rows[block]] += posterior.cost

    def _needed(self, mcse: Tensor, draws: int) -> Tensor:
        """Return the draws that reach the target error, (rows,), as estimated from a pilot of ``draws``."""
        return draws * mcse**2 / (_MARGIN * self._target) ** 2

    def _pilot(self, rows: Tensor, dim: int) -> _Pilot:
        """Return the results of 64 draws of the encoder and 96 of the prior for every row."""
        found = []
        part = self._part(rows, _PILOT, Stage.PILOT)
        model, total_draws = part.model, _PILOT + _PRIOR_PILOT
        beyond = unreached(part)
        for block in part.blocks():
            batch = part.part(block)
            with undisturbed(part, Stream.PILOT, rows=block) as drawn:
                # In the latents' own space, because Jacobians cancel in a weight and a discrete latent has none.
                _, joint, log_q = model.weigh(batch, _PILOT, drawn)
                prior, prior_joint = model.draw_prior(batch, _PRIOR_PILOT, drawn)
                prior_log_q = model.log_proposal(batch, prior)
                if dim:
                    posterior = Posterior(part, block)
                    u = posterior.flatten(prior, drawn)
                    values = total(prior_joint) + posterior.log_det(u)
                else:
                    u, values = prior_log_q[..., None], prior_log_q  # placeholders, never used
            terms = Terms(joint.likelihood, joint.prior, log_q).checked(part.numbers[block])
            weights = terms.log_weights
            both = diagnostics.Accumulator(total_draws, weights.shape[1], 2, weights.device, strata=[0, 1])
            sides = (
                (terms, log_q),
                (Terms(prior_joint.likelihood, prior_joint.prior, prior_log_q), prior_log_q),
            )
            for index, (side, q) in enumerate(sides):
                both.add(index, _against_both(side, q, _PILOT / total_draws, _PRIOR_PILOT / total_draws))
            level = diagnostics.log_mean_exp(weights)
            error = torch.hypot(diagnostics.mcse(weights), both.mcse())
            found.append(
                _Pilot(
                    needed=self._needed(diagnostics.mcse(weights), _PILOT),
                    tail=diagnostics.pareto_k(weights),
                    level=level,
                    missed=beyond.rows[block] | (both.log_mean_exp() - level > self._target + 2 * error),
                    beyond=beyond,
                    unseen=diagnostics.ess(prior_joint.likelihood) < _FEWEST_SEEN,
                    prior=u.movedim(0, 1),
                    values=values.T,
                )
            )
        self._cost[rows] += total_draws + 2 + reach_cost(part)
        tensors = [[each for name, each in part._asdict().items() if name != "beyond"] for part in found]
        needed, tail, level, missed, unseen, prior_draws, at = map(torch.cat, zip(*tensors, strict=True))
        return _Pilot(needed, tail, level, missed, beyond, unseen, prior_draws, at)

    def _look_for_modes(self, rows: Tensor, pilot: _Pilot, dim: int) -> _Modes:
        """Return a start at the encoder's mean and, for rows whose pilot asks for it, modes found without the encoder."""
        loc = torch.full((1 + _STARTS, len(rows), dim), math.nan, dtype=torch.float64, device=rows.device)
        modes = _Modes(loc, loc[..., 0].clone(), loc[0].clone(), pilot.missed.clone())
        for block, posterior, drawn in self._each_block(rows, Stage.PLACES):
            first = encoder_start(posterior, pilot.prior[block].movedim(0, 1), drawn)
            modes.loc[0, block], modes.log_joint[0, block] = first.loc[0], first.log_joint[0]
            modes.spread[block] = first.spread
        for block, posterior, _ in self._each_block(rows[pilot.unseen | pilot.missed], Stage.MODES):
            others = independent_starts(
                posterior,
                _STARTS,
                modes.starts(block, _ENCODERS),
                pilot.prior[block].movedim(0, 1),
                pilot.values[block].T,
            )
            modes.loc[1:, block], modes.log_joint[1:, block] = others.loc, others.log_joint
            modes.missed[block] |= _uncovered(
                others, Encoder(posterior), posterior, pilot.level[block], modes.log_joint[0, block]
            )
        return modes

    # -----------------------------------------------------------------------------------------------------
    # Methods

    def _refine(self, rows: Tensor, pilot: _Pilot, modes: _Modes, turn: int, dim: int) -> Tensor:
        """Fit the rows and answer them; return those for which a longer fit may be better."""
        fitted = self._fit_beside_the_encoder(rows[~modes.missed[rows]], modes, turn)
        # If a fit shows an uncovered mode, the row is fitted again, from that mode too.
        several = rows[modes.missed[rows]]
        affordable = self._left(several) >= self._fit_price(dim, 1 + _STARTS, turn)
        for found in fitted:
            missed = modes.missed[found.rows]
            poor = missed & (self._left(found.rows) < self._fit_price(dim, 1 + _STARTS, turn))
            self._answer_by_mixture(found.only(poor), pilot.needed[found.rows[poor]], doubtful=True)
        fitted = [found.only(~modes.missed[found.rows]) for found in fitted]
        waiting = [rows[:0]]
        unanswered = torch.from_numpy(self.answered_by[several.cpu().numpy()] == "").to(rows.device)
        given_up = several[~affordable & unanswered]
        self._answer_by_importance(given_up, pilot.needed[given_up], modes.missed[given_up])
        for block, posterior, drawn in self._each_block(several[affordable], Stage.FIT_ALL, turn):
            fits, _ = fit_gaussians(posterior, modes.starts(block, _ALL), _STEPS[turn], "full_rank", drawn)
            fitted.append(_Fitted(block, fits))
        for found in fitted:
            if len(found.rows):
                waiting.append(self._answer_or_wait(found, turn, dim))
        return torch.cat(waiting)

    def _fit_beside_the_encoder(self, rows: Tensor, modes: _Modes, turn: int) -> list[_Fitted]:
        """Return one Gaussian per row, fitted from the encoder's mean; mark in ``modes`` rows with an uncovered mode."""
        fitted = []
        for block, posterior, drawn in self._each_block(rows, Stage.FIT, turn):
            starts = modes.starts(block, _ENCODERS)
            fits, elbo = fit_gaussians(posterior, starts, _STEPS[turn], "full_rank", drawn)
            centre = total(posterior.log_joint(fits[0].loc[None].to(posterior.dtype)))[0]
            others = modes.starts(block, _OTHERS)
            sought = torch.isfinite(others.log_joint[0])
            modes.missed[block] |= sought & _uncovered(others, fits[0], posterior, elbo[0], centre)
            fitted.append(_Fitted(block, fits))
        return fitted

    def _answer_or_wait(self, found: _Fitted, turn: int, dim: int) -> Tensor:
        """Answer rows by their fits, by quadrature or by annealing; return those worth a longer fit."""
        needed, tail = self._pilot_mixture(found, turn)
        left = self._left(found.rows)
        good = (tail <= _TAIL) & (_mixture_cost(needed) <= left)
        if turn + 1 < len(_STEPS):
            longer = self._fit_price(dim, len(found.fits), turn + 1)
            # A longer fit is preferred if the draws cost more than it.
            wait = (~good | (needed > longer)) & (longer <= left)
        else:
            wait = torch.zeros_like(good)
        self._answer_by_mixture(found.only(good & ~wait), needed[good & ~wait])
        poor = ~good & ~wait
        if dim < MOST_DIMENSIONS:  # in three dimensions a grid costs more than chains
            gridded = poor & (left >= first_price(dim, len(found.fits)))
            self._answer_by_quadrature(found.only(gridded))
            poor &= ~gridded
        self._answer_by_annealing(found.only(poor), needed[poor])
        return found.rows[wait]

    def _pilot_mixture(self, found: _Fitted, turn: int) -> tuple[Tensor, Tensor]:
        """Return the draws needed from the fits with their defensive components, and k-hat; each (rows,)."""
        columns = self._weigh_mixture(found, _SECOND_PILOT, Stage.SECOND_PILOT, turn)
        self._cost[found.rows] += columns.cost
        return self._needed(columns.mcse, _SECOND_PILOT), columns.pareto_k

    def _weigh_mixture(self, found: _Fitted, draws: int, stage: Stage, turn: int = 0) -> Columns:
        part = self._part(found.rows, draws, stage, turn)
        return Columns.cat(
            [weigh_mixture(part, block, [fit[block] for fit in found.fits]) for block in part.blocks()]
        )

    def _answer_by_importance(self, rows: Tensor, needed: Tensor, doubtful: Tensor) -> None:
        for chosen, count in self._by_draws(rows, needed):
            part = self._part(rows[chosen], count, Stage.ANSWER)
            columns = each_block(part, encoder_block(part))
            self._keep(rows[chosen], columns, "importance", count, doubtful[chosen])

    def _answer_defensively(self, rows: Tensor, needed: Tensor, beyond: Unreached) -> None:
        """Answer rows if z cannot be moved and the guide cannot reach all of the prior.

        The answer is the sum over all z if these are few. Otherwise half of the draws come from the guide and
        half from the prior. Such a row is doubtful if a z that the guide never draws matters and draws of the
        prior rarely hit it.
        """
        if len(rows):
            summed = _sum(self._part(rows, 1, Stage.ANSWER))
            if summed is not None:
                self._keep(rows, summed, "exact", 0)
                return
        for chosen, count in self._by_draws(rows, 2 * needed):
            columns = _weigh_both(self._part(rows[chosen], count, Stage.ANSWER))
            visits = beyond.log_prior[chosen].exp() * count / 2
            matters = beyond.log_joint[chosen] > columns.estimate - _MATTERS
            self._keep(rows[chosen], columns, "defensive", count, matters & (visits < _FEWEST_VISITS))

    def _answer_by_mixture(self, found: _Fitted, needed: Tensor, doubtful: bool = False) -> None:
        for chosen, count in self._by_draws(found.rows, needed):
            columns = self._weigh_mixture(found.only(chosen), count, Stage.ANSWER)
            self._keep(found.rows[chosen], columns, "refined", count, doubtful)

    def _answer_by_quadrature(self, found: _Fitted) -> None:
        for left, alike in self._by_cost(found):
            part = self._part(alike.rows, _PILOT, Stage.ANSWER)
            columns = each_block(part, grid_block(part, _MARGIN * self._target, alike.fits, left))
            self._keep(alike.rows, columns, "quadrature", 0)

    def _by_cost(self, found: _Fitted) -> Iterator[tuple[float, _Fitted]]:
        """Yield remaining budgets and the rows that have them, so that no row's budget depends on others."""
        spent = self._cost[found.rows]
        for cost in spent.unique().tolist():
            yield self._max_cost - cost, found.only(spent == cost)

    def _answer_by_annealing(self, found: _Fitted, needed: Tensor) -> None:
        wanted = dict(zip(found.rows.tolist(), needed, strict=True))
        for left, alike in self._by_cost(found):
            here = needed.new_tensor([float(wanted[row]) for row in alike.rows.tolist()])
            self._anneal(alike, here, left)

    def _anneal(self, found: _Fitted, needed: Tensor, left: float) -> None:
        temperatures = _FEWEST_TEMPERATURES
        while path_cost(_CHAINS, temperatures + 1) <= left and temperatures < _MOST_TEMPERATURES:
            temperatures += 1
        if path_cost(_CHAINS, temperatures) > left:
            self._answer_by_mixture(found, needed)
            return
        part = self._part(found.rows, _CHAINS, Stage.ANSWER)
        columns = []
        for block in part.blocks():
            here = [fit[block] for fit in found.fits]
            with undisturbed(part, Stream.PILOT, rows=block) as drawn:
                posterior = Posterior(part, block)
                posterior.expect(3 * temperatures * _CHAINS)
                start = defended(posterior, here, _CHAINS)
                scale = here[0].tril.norm(dim=-1)
                path = Path(posterior, start, drawn, scale, min(part.tile[1], _CHAINS))
                moves = path.tune(temperatures, drawn)
            columns.append(weigh_chains(part, path, moves, block))
        self._keep(found.rows, Columns.cat(columns), "annealed", _CHAINS)

    def _by_draws(self, rows: Tensor, needed: Tensor) -> Iterator[tuple[Tensor, int]]:
        """Yield indices of rows that need about equally many draws, and that number: 128 · 2^(j/2), within the budget."""
        if not len(rows):
            return
        # The largest K for which K draws of a mixture fit into the budget, reserve included.
        most = ((self._left(rows) + _RESERVE - 8) / _mixture_cost(1.0)).clamp(min=_FEWEST)
        steps = torch.ceil(2 * torch.log2(needed.clamp(min=_FEWEST) / _FEWEST) - 1e-9)
        draws = torch.minimum((_FEWEST * 2 ** (steps / 2)).nan_to_num(posinf=2.0**62), most).long()
        for count in draws.unique().tolist():
            yield (draws == count).nonzero()[:, 0], count

    def _keep(
        self, rows: Tensor, found: Columns, name: str, draws: int, doubtful: Tensor | bool = False
    ) -> None:
        """Store an answer and add its cost to what the rows have cost before."""
        self._cost[rows] += found.cost
        for field in dataclasses.fields(Columns):
            getattr(self.columns, field.name)[rows] = getattr(found, field.name)
        self.columns.cost[rows] = self._cost[rows]
        index = rows.cpu().numpy()
        self.answered_by[index], self.draws[index] = name, draws
        self.doubtful[index] = doubtful.cpu().numpy() if isinstance(doubtful, Tensor) else doubtful
        self._bar.advance(len(rows))


def _against_both(drawn: Terms, log_q: Tensor, of_guide: float, of_prior: float) -> Tensor:
    """Return log weights of draws from the guide or the prior against the mixture of both, (samples, rows)."""
    mixed = torch.logaddexp(log_q + math.log(of_guide), drawn.prior + math.log(of_prior))
    log_joint = drawn.likelihood + drawn.prior
    # A draw that rounding put onto a bound of its support has an infinite density and weighs nothing.
    lost = (mixed == math.inf) | (log_joint == math.inf)
    return torch.where(lost, -math.inf, log_joint - mixed)


def _sum(evaluation: Evaluation) -> Columns | None:
    """Return log Σ_z P(x_n, z) over all values of discrete latents, or None if they are too many."""
    model, found = evaluation.model, []
    for rows in evaluation.blocks():
        batch = evaluation.part(rows)
        with undisturbed(evaluation, Stream.TILE, rows=rows) as drawn:
            at, _ = model.propose(batch, 1, drawn)
            every = all_values(model, batch, at, evaluation.tile[1])
            if every is None:
                return None
            terms = torch.cat([total(model.log_joint(batch, z)) for z in every])
        estimate = torch.logsumexp(terms, dim=0)
        zero, unknown = torch.zeros_like(estimate), torch.full_like(estimate, math.nan)
        columns = Columns(
            estimate, zero, zero, unknown, unknown, zero + len(terms), zero, zero, unknown, unknown
        )
        # A sum over all z leaves none out.
        found.append(columns.beside(None if evaluation.simulated is None else zero - math.inf, 1))
    return Columns.cat(found)


def _weigh_both(evaluation: Evaluation) -> Columns:
    """Return the importance sampling estimate with half of the draws from the guide and half from the prior."""
    model, count = evaluation.model, evaluation.num_samples
    shares = (count - count // 2, count // 2)
    blocks = []
    for rows in evaluation.blocks():
        batch = evaluation.part(rows)
        num_rows, width = len(batch["x"]), evaluation.tile[1]
        strata = [
            (i, done, min(width, n - done)) for i, n in enumerate(shares) for done in range(0, n, width)
        ]
        weights = diagnostics.Accumulator(
            count, num_rows, len(strata), batch["x"].device, [stratum for stratum, _, _ in strata]
        )
        for index, (stratum, done, draws) in enumerate(strata):
            with undisturbed(evaluation, Stream.TILE, stratum, rows=rows, first=done) as drawn:
                if stratum == 0:
                    _, joint, log_q = model.weigh(batch, draws, drawn)
                else:
                    z, joint = model.draw_prior(batch, draws, drawn)
                    log_q = model.log_proposal(batch, z)
            terms = Terms(joint.likelihood, joint.prior, log_q)
            log_weights = _against_both(terms, log_q, shares[0] / count, shares[1] / count)
            weights.add(index, log_weights)
        columns = Columns.of_weights(weights, evaluation.dtype, count)
        exact = evaluation.exact_draw(rows)
        if exact is not None:
            with undisturbed(evaluation, Stream.EXACT, rows=rows):
                joint, log_q = model.log_joint(batch, exact), model.log_proposal(batch, exact)
            terms = Terms(joint.likelihood, joint.prior, log_q)
            weight = _against_both(terms, log_q, shares[0] / count, shares[1] / count)[0]
            columns = columns.beside(weight, count, weights)
        blocks.append(columns)
    return Columns.cat(blocks)


def _mixture_cost(draws: Any) -> Any:
    """Return the decoder evaluations of ``draws`` of a defended mixture; draws of the prior run the model twice."""
    return (1 + shares(1)[-1]) * draws


def _uncovered(
    modes: Starts, proposal: Proposal, posterior: Posterior, level: Tensor, centre: Tensor
) -> Tensor:
    """Return whether the proposal has little density at a mode of the posterior that matters; (rows,).

    At a mode that the proposal covers, the log weight is about log P(x), the ``level``. If it is far above,
    the proposal hardly draws there. That matters unless the mode is much lower than the ``centre``.
    """
    u = modes.loc.to(posterior.dtype)
    log_weight = modes.log_joint - proposal.log_density(u, torch.zeros_like(modes.log_joint))
    high = modes.log_joint > centre - _NEGLIGIBLE - posterior.dim / 4
    return ((log_weight > level + _UNCOVERED) & high).any(dim=0)
