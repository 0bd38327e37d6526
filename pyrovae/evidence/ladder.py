"""Ladder chooses, row by row, the method of ``auto`` that answers, and makes the answers."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Hashable, Iterator, Sequence
from enum import IntEnum
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pyrovae import diagnostics, noise
from pyrovae.evaluation import Evaluation, Terms
from pyrovae.evidence.adaptive import Cloud, adaptation_cost, adapted
from pyrovae.evidence.annealed import Path, half_from_prior, path_cost, weigh_chains
from pyrovae.evidence.defensive import (
    against_both,
    shares_of_values,
    sum_over_latents,
    weigh_both,
    weigh_values,
)
from pyrovae.evidence.gaussians import (
    MORE_STARTS,
    PRIOR_DRAWS,
    Hints,
    Starts,
    encoder_start,
    fit_cost,
    fit_gaussians,
    further_starts,
    independent_starts,
    mostly_new,
    search_cost,
    step_cost,
)
from pyrovae.evidence.importance import encoder_block
from pyrovae.evidence.nearby import Pool
from pyrovae.evidence.posterior import (
    Encoder,
    Fit,
    Gaussian,
    Posterior,
    Proposal,
    total,
    undisturbed,
)
from pyrovae.evidence.quadrature import MOST_DIMENSIONS, first_price, grid_block
from pyrovae.evidence.reach import Unreached, reach_cost, unreached
from pyrovae.evidence.refined import defended, log_defended, shares, uncovered, unmet, weigh_mixture
from pyrovae.evidence.result import Columns, resolution
from pyrovae.evidence.run import each_block
from pyrovae.noise import Stream
from pyrovae.progress import Progress
from pyrovae.row_noise import RowNoise

RUNGS = ("importance", "exact", "defensive", "refined", "quadrature", "annealed")

PILOT, _SECOND_PILOT = 64, 128  # draws of the encoder, and of the fitted mixture
_FEWEST = 128  # draws of an answer
_MOST_SUMMED = 128  # values of discrete latents that are summed over
_BY_VALUES = 512  # the same, and of its pilot, if every value of the discrete latents gets a share
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
_MATTERS, _FEWEST_VISITS = 4.0, 20  # nats below the answer, and draws: see _answer_defensively
_PATIENCE, _FEWEST_STEPS = 2, 4  # of a fit; see fit_gaussians
_PATIENCE_AGAIN = 6  # of a fit that goes on from another
_OF_BUDGET = 0.5  # share of the remaining budget that a fit may spend
# Draws kept beside a grid or chains, and nats that their answer may be below the pilot's.
_SPARE, _WORSE = 1000, 1.0
_CHAINS, _FEWEST_TEMPERATURES, _MOST_TEMPERATURES = 64, 30, 1000


class Stage(IntEnum):
    """Parts of the work on a row. Each has noise of its own, which does not depend on other rows."""

    PILOT = 0
    PLACES = 1
    MODES = 2
    FIT = 3
    FIT_ALL = 4
    SECOND_PILOT = 5
    ANSWER = 6
    FIT_AGAIN = 7
    ADAPT = 8
    GRID = 9
    MORE_MODES = 10


#: The share of a row's work that is done after a stage, roughly, for the time left.
_WORK = {Stage.PILOT: 0.1, Stage.PLACES: 0.2, Stage.MODES: 0.4, Stage.FIT: 0.6, Stage.FIT_ALL: 0.6}


class _Pilot(NamedTuple):
    """Results of a pilot, each of shape (rows, ...)."""

    needed: Tensor  # draws of the encoder for the target
    tail: Tensor  # k-hat of the encoder's draws
    level: Tensor  # a first log P(x)
    missed: Tensor  # whether draws show mass that the encoder misses
    least: Tensor  # what log P(x) is above, by draws of the encoder and the prior
    beyond: Unreached  # findings on z that the guide never draws
    unseen: Tensor  # whether the prior's draws are too far from the row to tell
    prior: Tensor  # the prior's draws, (rows, draws, dim)
    values: Tensor  # log P(x, u) there, (rows, draws)


class _Modes(NamedTuple):
    """Starts of fits, the encoder's first, NaN if no modes were searched for; and whether the encoder misses one."""

    found: Starts
    missed: Tensor  # (rows,)
    unmet: Tensor  # whether the encoder has little density at a hint that matters, (rows,)


_ENCODERS, _OTHERS, _ALL = slice(0, 1), slice(1, None), slice(None)


class Fitted(NamedTuple):
    """Rows and the proposals fitted to them."""

    rows: Tensor
    fits: Sequence[Fit]

    @property
    def gaussians(self) -> list[Gaussian]:
        return [fit for fit in self.fits if isinstance(fit, Gaussian)]

    @property
    def kind(self) -> Hashable:
        """Which proposals can be put together."""
        return tuple(fit.kind for fit in self.fits)

    def only(self, keep: Tensor) -> Fitted:
        return Fitted(self.rows[keep], [fit[keep] for fit in self.fits])

    def where(self, better: Tensor, other: Fitted) -> Fitted:
        """Return these proposals for some rows, and those of ``other`` for the rest."""
        pairs = zip(self.fits, other.fits, strict=True)
        return Fitted(self.rows, [fit.where(better, beside) for fit, beside in pairs])


def _joined(parts: Sequence[Fitted]) -> list[Fitted]:
    """Return the parts with proposals of one kind together, without those of no row."""
    kinds: dict[Hashable, list[Fitted]] = {}
    for part in parts:
        if len(part.rows):
            kinds.setdefault(part.kind, []).append(part)
    return [
        Fitted(
            torch.cat([part.rows for part in alike]),
            [each[0].joined(each) for each in zip(*(part.fits for part in alike), strict=True)],
        )
        for alike in kinds.values()
    ]


class _Judged(NamedTuple):
    """Results of a pilot of fitted proposals, each of shape (rows,)."""

    needed: Tensor  # draws for the target
    tail: Tensor  # k-hat
    level: Tensor  # a lower bound of log P(x) in expectation
    unmet: Tensor  # whether they have little density at a hint that matters

    def only(self, keep: Tensor) -> _Judged:
        return _Judged(*(each[keep] for each in self))

    def where(self, better: Tensor, other: _Judged) -> _Judged:
        return _Judged(*(torch.where(better, a, b) for a, b in zip(self, other, strict=True)))

    def better(self, other: _Judged) -> Tensor:
        """Return whether these proposals are to be preferred: a higher bound, else a lighter tail, else fewer draws.

        Bounds within half a nat count as equal. Few draws of a proposal that misses a mode look good, so they come last.
        """
        higher, lower = self.level > other.level + 0.5, self.level < other.level - 0.5
        good, bad = self.tail <= _TAIL, other.tail > _TAIL
        fewer = (self.needed < other.needed) & (good | bad)
        return ~lower & (higher | ((good & bad) | fewer) & (other.unmet | ~self.unmet))


class Ladder:
    """The choice of methods for some rows. ``columns`` and the other public attributes hold the answers, each (rows,)."""

    def __init__(
        self, evaluation: Evaluation, pool: Pool, target: float, max_cost: int, bar: Progress | None
    ) -> None:
        self._evaluation, self._pool = evaluation, pool
        self._target, self._max_cost, self._bar = target, max_cost, bar
        self._waiting: list[tuple[Fitted, Tensor, Tensor]] = []
        count, device = len(evaluation), evaluation.batch["x"].device
        self._cost = torch.zeros(count, dtype=torch.float64, device=device)
        empty = torch.full((count,), math.nan, dtype=torch.float64, device=device)
        self._worked = torch.zeros(count, dtype=torch.float64)
        self.columns = Columns(*(empty.clone() for _ in dataclasses.fields(Columns)))
        self.answered_by = np.full(count, "", dtype=f"<U{max(map(len, RUNGS))}")
        self.draws = np.zeros(count, dtype=np.int64)

    def climb(self, dim: int) -> dict[str, Any]:
        """Return every row's answer by the method that its pilots choose; ``dim`` is 0 if z cannot be moved."""
        self._climb(dim)
        return {
            "columns": vars(self.columns),
            "answered_by": self.answered_by.tolist(),
            "draws": self.draws,
        }

    def _climb(self, dim: int) -> None:
        rows = torch.arange(len(self._cost), device=self._cost.device)
        pilot = self._pilot(rows, dim)
        if not dim:
            left = ~self._answer_by_values(rows, pilot)
            reached, cut_off = left & ~pilot.beyond.rows, left & pilot.beyond.rows
            self._answer_by_importance(rows[reached], pilot.needed[reached], pilot.missed[reached])
            beyond = Unreached(*(each[cut_off] for each in pilot.beyond))
            self._answer_defensively(rows[cut_off], pilot.needed[cut_off], beyond)
            return
        modes = self._look_for_modes(rows, pilot, dim)
        enough = (
            ~modes.missed
            & ~modes.unmet
            & (pilot.tail <= _ENCODER_TAIL)
            & (pilot.needed <= self._fit_price(dim, 1))
        )
        affordable = self._left(rows) >= self._fit_price(dim, 1)
        here = enough | ~affordable
        self._answer_by_importance(rows[here], pilot.needed[here], (modes.missed | modes.unmet)[here])
        self._refine(rows[~here], pilot, modes, dim)
        for found in _joined([found for found, _, _ in self._waiting]):
            alike = [each for each in self._waiting if each[0].kind == found.kind]
            needed = torch.cat([each for _, each, _ in alike])
            doubtful = torch.cat([each for _, _, each in alike])
            for chosen, count in self._by_draws(found.rows, needed):
                columns = self._weigh_mixture(found.only(chosen), count, Stage.ANSWER)
                self._keep(found.rows[chosen], columns.also_missed(doubtful[chosen]), "refined", count)

    # -----------------------------------------------------------------------------------------------------
    # Cost

    def _left(self, rows: Tensor) -> Tensor:
        """Return the decoder evaluations that rows may still spend, without the reserve for an answer."""
        return self._max_cost - _RESERVE - self._cost[rows]

    def _fit_price(self, dim: int, num_starts: int) -> int:
        """Return the decoder evaluations of a short fit and its pilot."""
        return fit_cost(dim, num_starts, _FEWEST_STEPS) + _mixture_cost(_SECOND_PILOT) + 8

    def _fit(
        self, rows: Tensor, posterior: Posterior, starts: Starts, noise: RowNoise, tril: Tensor | None = None
    ) -> tuple[list[Gaussian], Tensor]:
        """Return fits for a block of rows and their ELBOs, as ``fit_gaussians`` does; count their cost."""
        price = len(starts.loc) * step_cost(posterior.dim)
        most = (self._left(rows) - self._fit_price(posterior.dim, len(starts.loc))).clamp(min=0)
        steps = _FEWEST_STEPS + (_OF_BUDGET * most / price).long()
        patience = _PATIENCE if tril is None else _PATIENCE_AGAIN
        fits, elbo, cost = fit_gaussians(posterior, starts, steps, "full_rank", noise, patience, tril)
        self._cost[rows] += cost
        return fits, elbo

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
        part = self._part(rows, PILOT, stage, turn)
        for block in part.blocks():
            with undisturbed(part, Stream.PILOT, rows=block) as drawn:
                posterior = Posterior(part, block)
                yield rows[block], posterior, drawn
            self._cost[rows[block]] += posterior.cost
            self._count(rows[block], _WORK.get(stage, 0.0))

    def _needed(self, mcse: Tensor, draws: int) -> Tensor:
        """Return the draws that reach the target error, (rows,), as estimated from a pilot of ``draws``."""
        return draws * mcse**2 / (_MARGIN * self._target) ** 2

    def _pilot(self, rows: Tensor, dim: int) -> _Pilot:
        """Return the results of 64 draws of the encoder and 96 of the prior for every row."""
        found = []
        part = self._part(rows, PILOT, Stage.PILOT)
        model, total_draws = part.model, PILOT + _PRIOR_PILOT
        beyond = unreached(part)
        for block in part.blocks():
            batch = part.part(block)
            with undisturbed(part, Stream.PILOT, rows=block) as drawn:
                # In the latents' own space, because Jacobians cancel in a weight and a discrete latent has none.
                _, joint, log_q = model.weigh(batch, PILOT, drawn)
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
                both.add(index, against_both(side, q, PILOT / total_draws, _PRIOR_PILOT / total_draws))
            level = diagnostics.log_mean_exp(weights)
            error = torch.hypot(diagnostics.mcse(weights), both.mcse())
            least = both.log_mean_exp() - self._target - 2 * error
            found.append(
                _Pilot(
                    needed=self._needed(diagnostics.mcse(weights), PILOT),
                    tail=diagnostics.pareto_k(weights, resolution(part.dtype, level)),
                    level=level,
                    missed=beyond.rows[block] | (least > level),
                    least=least,
                    beyond=beyond,
                    unseen=diagnostics.ess(prior_joint.likelihood) < _FEWEST_SEEN,
                    prior=u.movedim(0, 1),
                    values=values.T,
                )
            )
            self._count(rows[block], _WORK[Stage.PILOT])
        self._cost[rows] += total_draws + 2 + reach_cost(part)
        tensors = [[each for name, each in part._asdict().items() if name != "beyond"] for part in found]
        needed, tail, level, missed, least, unseen, prior_draws, at = map(
            torch.cat, zip(*tensors, strict=True)
        )
        return _Pilot(needed, tail, level, missed, least, beyond, unseen, prior_draws, at)

    def _look_for_modes(self, rows: Tensor, pilot: _Pilot, dim: int) -> _Modes:
        """Return a start at the encoder's mean and, for rows whose pilot asks for it, modes found without the encoder."""
        loc = torch.full((1 + _STARTS, len(rows), dim), math.nan, dtype=torch.float64, device=rows.device)
        starts = Starts(loc, loc[..., 0].clone(), loc.clone())
        modes = _Modes(starts, pilot.missed.clone(), torch.zeros_like(pilot.missed))
        found = []
        for block, posterior, drawn in self._each_block(rows, Stage.PLACES):
            first = encoder_start(posterior, pilot.prior[block].movedim(0, 1), drawn)
            starts.put(_ENCODERS, block, first)
            near = self._pool.near(self._evaluation.part(block))
            if near is not None:
                hints = Hints.at(posterior, near)
                found.append(hints)
                modes.unmet[block] = unmet(hints, hints.log_encoder, pilot.level[block], first.log_joint[0])
        self._hints = Hints.cat(found) if found else None
        self._search(rows[pilot.unseen | pilot.missed], pilot, modes)
        return modes

    def _search(self, rows: Tensor, pilot: _Pilot, modes: _Modes, turn: int = 0) -> None:
        """Search for modes of some rows without the encoder, and mark rows in which it misses one."""
        for block, posterior, drawn in self._each_block(rows, Stage.MODES, turn):
            others = independent_starts(
                posterior,
                _STARTS,
                modes.found.some(_ENCODERS, block),
                pilot.prior[block].movedim(0, 1),
                pilot.values[block].T,
                drawn,
                self._hints_of(block),
            )
            modes.found.put(_OTHERS, block, others)
            modes.missed[block] |= _uncovered(
                others, Encoder(posterior), posterior, pilot.level[block], modes.found.log_joint[0, block]
            )

    def _search_on(self, rows: Tensor, modes: _Modes) -> None:
        """Go on searching rows in which most of the modes found were new ones; add what is found to the hints.

        Each search starts from fresh draws of the prior, far from another one of the points known at first. This also
        reaches modes near the encoder's mean, which are far from other modes.
        """
        price = search_cost(MORE_STARTS) + _mixture_cost(_SECOND_PILOT) + 8
        known = modes.found.loc
        rows = rows[mostly_new(modes.found.some(_OTHERS, rows), known[_ENCODERS, rows])]
        for turn in range(len(known)):
            rows = rows[self._left(rows) >= price]
            if not len(rows):
                return
            found, again = [], []
            for block, posterior, drawn in self._each_block(rows, Stage.MORE_MODES, turn):
                first = modes.found.some(slice(turn, turn + 1), block)
                first = first._replace(spread=modes.found.spread[_ENCODERS, block])
                starts = further_starts(posterior, first, drawn)
                found.append(Hints.at(posterior, starts.loc))
                again.append(block[mostly_new(starts, known[:, block])])
            more = Hints.cat(found).of_all(rows, len(self._cost))
            self._hints = more if self._hints is None else self._hints.beside(more)
            known, rows = torch.cat([known, more.u.to(known)]), torch.cat(again)

    # -----------------------------------------------------------------------------------------------------
    # Methods

    def _refine(self, rows: Tensor, pilot: _Pilot, modes: _Modes, dim: int) -> None:
        """Fit the rows and answer them."""
        before = modes.missed.clone()
        fitted = self._fit_beside_the_encoder(rows[~before[rows]], pilot, modes)
        # If a fit shows an uncovered mode, the row is fitted again, from that mode too.
        several = rows[modes.missed[rows]]
        affordable = self._left(several) >= self._fit_price(dim, 1 + _STARTS)
        for found in fitted:
            missed = modes.missed[found.rows]
            poor = missed & (self._left(found.rows) < self._fit_price(dim, 1 + _STARTS))
            self._answer_by_mixture(found.only(poor), pilot.needed[found.rows[poor]], missed[poor])
        fitted = [found.only(~modes.missed[found.rows]) for found in fitted]
        given_up = several[~affordable & before[several]]
        self._answer_by_importance(given_up, pilot.needed[given_up], modes.missed[given_up])
        for block, posterior, drawn in self._each_block(several[affordable], Stage.FIT_ALL):
            fits, _ = self._fit(block, posterior, modes.found.some(_ALL, block), drawn)
            fitted.append(Fitted(block, fits))
        self._search_on(several[affordable], modes)
        for found in _joined(fitted):
            self._answer_fitted(found, dim)

    def _fit_beside_the_encoder(self, rows: Tensor, pilot: _Pilot, modes: _Modes) -> list[Fitted]:
        """Return one Gaussian per row, fitted from the encoder's mean; mark in ``modes`` rows with an uncovered mode."""
        fitted, unsought = [], []
        for block, posterior, drawn in self._each_block(rows, Stage.FIT):
            fits, elbo = self._fit(block, posterior, modes.found.some(_ENCODERS, block), drawn)
            centre = total(posterior.log_joint(fits[0].loc[None].to(posterior.dtype)))[0]
            others = modes.found.some(_OTHERS, block)
            sought = torch.isfinite(others.log_joint[0])
            modes.missed[block] |= sought & _uncovered(others, fits[0], posterior, elbo[0], centre)
            fitted.append(Fitted(block, fits))
            unmet = self._unmet_by(fitted[-1], elbo[0], centre)
            modes.missed[block] |= unmet
            unsought.append(block[unmet & ~sought])
        self._search(torch.cat([rows[:0], *unsought]), pilot, modes, 1)
        return fitted

    def _answer_fitted(self, found: Fitted, dim: int) -> None:
        """Answer rows by their fits, by longer fits, by adapted mixtures, by quadrature or by annealing."""
        inhand = self._pilot_mixture(found, 0)
        # More is done for rows with a heavy tail, and for those whose draws cost more than it.
        price = fit_cost(dim, len(found.fits), _PATIENCE_AGAIN) + _mixture_cost(_SECOND_PILOT)
        found, inhand = self._answer_good(found, inhand, price, dim)
        if not len(found.rows):
            return
        longer = self._go_on(found)
        other = self._pilot_mixture(longer, 1)
        better = other.better(inhand)
        found, inhand = longer.where(better, found), other.where(better, inhand)
        price = adaptation_cost() + _mixture_cost(_SECOND_PILOT)
        found, inhand = self._answer_good(found, inhand, 2 * price, dim)
        if not len(found.rows):
            return
        clouds = self._adapt(found)
        other = self._pilot_mixture(clouds, 2)
        better = other.better(inhand)
        self._answer_or_fall_back(found.only(~better), inhand.only(~better), dim)
        self._answer_or_fall_back(clouds.only(better), other.only(better), dim, found.only(better))

    def _answer_good(self, found: Fitted, pilot: _Judged, price: float, dim: int) -> tuple[Fitted, _Judged]:
        """Answer rows whose proposals are good, or that cannot pay ``price`` for better ones; return the others."""
        poor = (pilot.tail > _TAIL) | pilot.unmet | (_mixture_cost(pilot.needed) > price)
        further = poor & (price <= self._left(found.rows))
        self._answer_or_fall_back(found.only(~further), pilot.only(~further), dim)
        return found.only(further), pilot.only(further)

    def _go_on(self, found: Fitted) -> Fitted:
        """Return the fits after further steps, which average over the noise of each."""
        loc, tril = (torch.stack([getattr(fit, name) for fit in found.gaussians]) for name in ("loc", "tril"))
        parts, at = [], 0
        for block, posterior, drawn in self._each_block(found.rows, Stage.FIT_AGAIN, len(found.fits)):
            here = slice(at, at := at + len(block))
            starts = Starts(loc[:, here], loc[:, here, 0], loc[:, here])
            parts.append(Fitted(block, self._fit(block, posterior, starts, drawn, tril[:, here])[0]))
        return _joined(parts)[0]

    def _adapt(self, found: Fitted) -> Fitted:
        """Return mixtures adapted to the posterior, from the fits."""
        clouds, at = [], 0
        for block, posterior, drawn in self._each_block(found.rows, Stage.ADAPT, len(found.fits)):
            here = slice(at, at := at + len(block))
            cloud = Cloud.around([fit[here] for fit in found.gaussians], self._hints_of(block))
            clouds.append(Fitted(block, [adapted(posterior, cloud, drawn)]))
        return _joined(clouds)[0]

    def _answer_or_fall_back(
        self, found: Fitted, pilot: _Judged, dim: int, fits: Fitted | None = None
    ) -> None:
        """Answer rows by their proposals, or by quadrature or annealing if these are poor; grids follow ``fits``.

        An answer of grid or chains that is lower than the pilot's bound has missed mass that the proposals found. Such rows
        are answered by the proposals, whose pilot is independent of the answer.
        """
        if not len(found.rows):
            return
        left = self._left(found.rows)
        good = (pilot.tail <= _TAIL) & (_mixture_cost(pilot.needed) <= left)
        poor = ~good
        if dim < MOST_DIMENSIONS:  # in three dimensions a grid costs more than chains
            grids = fits or found
            gridded = poor & (left >= first_price(dim, len(grids.fits)))
            good[gridded] = self._answer_by_quadrature(grids.only(gridded), pilot.level[gridded])
            poor &= ~gridded
        good[poor] = self._answer_by_annealing(found.only(poor), pilot.level[poor], pilot.unmet[poor])
        self._answer_by_mixture(found.only(good), pilot.needed[good], pilot.unmet[good])

    def _pilot_mixture(self, found: Fitted, turn: int) -> _Judged:
        """Return the results of a pilot of proposals with their defensive components."""
        columns = self._weigh_mixture(found, _SECOND_PILOT, Stage.SECOND_PILOT, 8 * turn + len(found.fits))
        self._cost[found.rows] += columns.cost
        needed = self._needed(torch.hypot(columns.mcse, columns.tail_error), _SECOND_PILOT)
        return _Judged(needed, columns.pareto_k, columns.estimate, self._unmet_by(found, columns.estimate))

    def _hints_of(self, rows: Tensor) -> Hints | None:
        return None if self._hints is None else self._hints.of_rows(rows)

    def _unmet_by(self, found: Fitted, level: Tensor, centre: Tensor | None = None) -> Tensor:
        """Return in which rows their proposals have little density at a hint that matters, (rows,)."""
        hints = self._hints_of(found.rows)
        if hints is None:
            return torch.zeros_like(found.rows, dtype=torch.bool)
        return unmet(hints, log_defended(found.fits, hints), level, centre)

    def _weigh_mixture(self, found: Fitted, draws: int, stage: Stage, turn: int = 0) -> Columns:
        part = self._part(found.rows, draws, stage, turn)
        return Columns.cat(
            [weigh_mixture(part, block, [fit[block] for fit in found.fits]) for block in part.blocks()]
        )

    def _answer_by_importance(self, rows: Tensor, needed: Tensor, doubtful: Tensor) -> None:
        for chosen, count in self._by_draws(rows, needed):
            part = self._part(rows[chosen], count, Stage.ANSWER)
            columns = each_block(part, encoder_block(part))
            self._keep(rows[chosen], columns.also_missed(doubtful[chosen]), "importance", count)

    def _answer_by_values(self, rows: Tensor, pilot: _Pilot) -> Tensor:
        """Answer rows by their discrete latents' values, if these are few, and return which rows are answered.

        The answer is the sum over all z if all latents are discrete. Otherwise every value gets a share of the draws. A guide
        that is too sure of a value would hardly draw others, and the spread of its weights would not show them. Rows in which
        the guide cannot reach all values of the other latents are not answered.
        """
        every = torch.ones_like(rows, dtype=torch.bool)
        summed = sum_over_latents(self._part(rows, 1, Stage.ANSWER), most=_MOST_SUMMED)
        if summed is not None:
            self._keep(rows, summed, "exact", 0)
            return every
        given = shares_of_values(self._part(rows, _BY_VALUES, Stage.SECOND_PILOT))
        if given is None:
            return ~every
        self._cost[rows] += _BY_VALUES
        if bool(pilot.beyond.rows.any()):
            every &= ~unreached(self._part(rows, PILOT, Stage.PILOT), given.names).rows
        own = given.of_rows(every)
        needed = own.variance / (_MARGIN * self._target) ** 2
        needed = torch.maximum(needed, own.fewest).clamp(min=_BY_VALUES)
        for chosen, count in self._by_draws(rows[every], needed):
            here = rows[every][chosen]
            found = weigh_values(self._part(here, count, Stage.ANSWER), own.of_rows(chosen))
            doubtful = own.doubtful[chosen] | (pilot.least[here] > found.estimate)
            self._keep(here, found.also_missed(doubtful), "defensive", count)
        return every

    def _answer_defensively(self, rows: Tensor, needed: Tensor, beyond: Unreached) -> None:
        """Answer rows if z cannot be moved and the guide cannot reach all of the prior.

        The answer is the sum over all z if these are few. Otherwise half of the draws come from the guide and
        half from the prior. Such a row is doubtful if a z that the guide never draws matters and draws of the
        prior rarely hit it.
        """
        if len(rows):
            summed = sum_over_latents(self._part(rows, 1, Stage.ANSWER))
            if summed is not None:
                self._keep(rows, summed, "exact", 0)
                return
        for chosen, count in self._by_draws(rows, 2 * needed):
            columns = weigh_both(self._part(rows[chosen], count, Stage.ANSWER))
            visits = beyond.log_prior[chosen].exp() * count / 2
            matters = beyond.log_joint[chosen] > columns.estimate - _MATTERS
            columns = columns.also_missed(matters & (visits < _FEWEST_VISITS))
            self._keep(rows[chosen], columns, "defensive", count)

    def _answer_by_mixture(self, found: Fitted, needed: Tensor, doubtful: Tensor) -> None:
        """Have rows answered by their proposals, in the end and together, because few rows take as long as many."""
        if len(found.rows):
            self._waiting.append((found, needed, doubtful))

    def _answer_by_quadrature(self, found: Fitted, level: Tensor) -> Tensor:
        """Answer rows whose grid is not lower than a bound ``level``, and return which rows are not answered."""
        if not len(found.rows):
            return found.rows > 0
        part = self._part(found.rows, PILOT, Stage.GRID)
        left = self._left(found.rows) - _mixture_cost(_SPARE)
        columns = each_block(part, grid_block(part, _MARGIN * self._target, found.gaussians, left))
        return self._keep_unless_lower(found.rows, columns, level, "quadrature", 0)

    def _answer_by_annealing(self, found: Fitted, level: Tensor, doubtful: Tensor) -> Tensor:
        """Anneal with as many temperatures as each row can pay for, in steps of √2, and return which rows have no answer.

        A row has no answer if its budget is too small, or if its chains give less than a bound ``level``.
        """
        left, temperatures = self._left(found.rows) - _mixture_cost(_SPARE), torch.zeros_like(found.rows)
        for step in range(2 * int(math.log2(_MOST_TEMPERATURES / _FEWEST_TEMPERATURES)) + 1):
            count = int(_FEWEST_TEMPERATURES * 2 ** (step / 2))
            temperatures[path_cost(_CHAINS, count) <= left] = count
        failed = temperatures == 0
        for count in temperatures[~failed].unique().tolist():
            here = temperatures == count
            columns = self._anneal(found.only(here), count).also_missed(doubtful[here])
            failed[here] = self._keep_unless_lower(
                found.rows[here], columns, level[here], "annealed", _CHAINS
            )
        return failed

    def _anneal(self, found: Fitted, temperatures: int) -> Columns:
        part = self._part(found.rows, _CHAINS, Stage.ANSWER)
        columns = []
        for block in part.blocks():
            here = [fit[block] for fit in found.fits]
            with undisturbed(part, Stream.PILOT, rows=block) as drawn:
                posterior = Posterior(part, block)
                posterior.expect(3 * temperatures * _CHAINS)
                start = half_from_prior(posterior, defended(posterior, here, _CHAINS), _CHAINS)
                path = Path(posterior, start, drawn, here[0].spread, min(part.tile[1], _CHAINS))
                moves = path.tune(temperatures, drawn)
            columns.append(weigh_chains(part, path, moves, block))
        return Columns.cat(columns)

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

    def _keep_unless_lower(
        self, rows: Tensor, found: Columns, level: Tensor, name: str, draws: int
    ) -> Tensor:
        """Keep answers that are not lower than a bound ``level``, and return which are; those have cost, too."""
        lower = ~(found.estimate + found.mcse.nan_to_num(posinf=0.0) >= level - _WORSE)
        self._cost[rows[lower]] += found.cost[lower]
        self._keep(rows[~lower], found.of_rows(~lower), name, draws)
        return lower

    def _keep(self, rows: Tensor, found: Columns, name: str, draws: int) -> None:
        """Store an answer and add its cost to what the rows have cost before."""
        self._cost[rows] += found.cost
        for column, values in vars(found).items():
            getattr(self.columns, column)[rows] = values
        self.columns.cost[rows] = self._cost[rows]
        index = rows.cpu().numpy()
        self.answered_by[index], self.draws[index] = name, draws
        self._count(rows, 1.0)

    def _count(self, rows: Tensor, share: float) -> None:
        """Show that a share of the work on some rows is done."""
        if self._bar is not None:
            rows = rows.cpu()
            more = (share - self._worked[rows]).clamp(min=0)
            self._worked[rows] += more
            self._bar.advance(float(more.sum()))


def _mixture_cost(draws: Any) -> Any:
    """Return the decoder evaluations of ``draws`` of a defended mixture; draws of the prior run the model twice."""
    return (1 + shares(1)[-1]) * draws


def _uncovered(
    modes: Starts, proposal: Proposal, posterior: Posterior, level: Tensor, centre: Tensor
) -> Tensor:
    """Return whether the proposal has little density at a mode of the posterior that matters; (rows,)."""
    u = modes.loc.to(posterior.dtype)
    log_q = proposal.log_density(u, torch.zeros_like(modes.log_joint))
    return uncovered(modes.log_joint, log_q, level, centre, posterior.dim).any(dim=0)
