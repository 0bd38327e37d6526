"""A ladder of methods: cheap first, and only the rows that need it further; pilots choose, fresh noise answers."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pyrovae import checks, diagnostics, noise
from pyrovae.evidence.annealed import Path, weigh_chains
from pyrovae.evidence.exact import linear_gaussian
from pyrovae.evidence.gaussians import Starts, encoder_start, fit_gaussians, independent_starts, step_cost
from pyrovae.evidence.importance import weigh_encoder
from pyrovae.evidence.posterior import Encoder, Gaussian, Posterior, Proposal, undisturbed
from pyrovae.evidence.quadrature import MOST_DIMENSIONS, integrate
from pyrovae.evidence.refined import defended, weigh_mixture
from pyrovae.evidence.result import Columns, LogEvidence, verdicts
from pyrovae.log_weights import Evaluation
from pyrovae.model import LatentVariableModel
from pyrovae.noise import Stream
from pyrovae.progress import Progress

RUNGS = ("importance", "refined", "quadrature", "annealed")

_PILOT, _SECOND_PILOT = 64, 128  # draws of the encoder, and of what was fitted
_FEWEST = 128  # draws of an answer
# An answer aims at this share of the target: pilots of 64 draws know a variance to a third.
_MARGIN = 0.6
# Of a pilot's k-hat: 13 to 26 draws tell it to 0.2 or so, and a fit costs less than an answer not believed.
_ENCODER_TAIL, _TAIL = 0.3, 0.5
_FEWEST_SEEN = 5  # effective draws of the prior, of 64, below which they tell nothing
_UNCOVERED, _NEGLIGIBLE = 3.0, 7.0  # nats: see _uncovered
_STARTS = 2  # modes looked for without the encoder
_STEPS = (4, 8)  # of a fit, and of the same fit again where its pilot is not good enough
_CHAINS = 64
_FEWEST_TEMPERATURES = 30
_ROWS_AT_ONCE = 1 << 22  # numbers in the fitted Gaussians that are kept


def auto(
    pair: LatentVariableModel,
    x: Any,
    target_mcse: float = 0.05,
    max_cost: int = 50_000,
    seed: int = 0,
    tile: tuple[int, int] | None = None,
    progress: bool = False,
) -> LogEvidence:
    """log P(x_n) to a target error, by the cheapest method that reaches it, chosen row by row.

    1. A linear-Gaussian VAE is answered in closed form.
    2. A pilot of 64 draws of the encoder foretells how many draws ``importance`` would need. Because k-hat
       is necessary and not sufficient, 64 draws of the prior look for what the encoder misses; where they
       are too far from a row to tell, ascents from prior draws look for modes.
    3. A row with too many draws ahead, a heavy tail or a mode missed gets Gaussians of its own, as in
       ``refined``; another pilot says whether they serve.
    4. Where they don't: ``quadrature`` in one or two latent dimensions, else ``annealed`` from them.

    Pilots choose, and are thrown away: the answer comes from fresh noise, whatever it turns out to be, so
    that a bound stays a bound.

    Args:
        pair: a ``VAE`` or any ``LatentVariableModel``. One with discrete latents stays on the first rung.
        x: rows on dim 0; tensor, numpy array or DataFrame.
        target_mcse: the Monte-Carlo error asked for, in nats a row.
        max_cost: decoder evaluations to spend on a row at most; a gradient counts three. A row that
            would need more is answered within it, and not settled.
        seed: the same seed and tile give the same bits.
        tile: (rows, samples) computed at once; chosen from the shapes where None.
        progress: show a bar, or plain lines where there is no terminal.

    Returns:
        A ``LogEvidence`` with, for every row, ``answered_by``, ``cost`` and ``settled``.

    Raises:
        TypeError, ValueError: see ``pyrovae.checks`` and ``pyrovae.pair.inspect``.

    Example:
        >>> import torch
        >>> from pyrovae import VAE
        >>> ev = auto(VAE.mlp(6, latent_dim=2), torch.ones(4, 6), target_mcse=0.1)
        >>> ev.settled.all().item()
        True
    """
    checks.positive("target_mcse", target_mcse)
    checks.integer("max_cost", max_cost, minimum=1000)
    evaluation = Evaluation.prepare(pair, x, _PILOT, seed, tile)
    closed = _closed_form(evaluation)
    if closed is not None:
        return dataclasses.replace(closed, method="auto", target_mcse=float(target_mcse))
    dim = _dimensions(evaluation)
    height = max(1, _ROWS_AT_ONCE // (dim or 1) ** 2)
    ladders = []
    with Progress("log P(x)", len(evaluation), "rows", progress) as bar:
        everything = torch.arange(len(evaluation), device=evaluation.batch["x"].device)
        for number, rows in enumerate(everything.split(height)):
            part = evaluation.of_rows(rows, noise.derive(seed, Stream.LADDER, number), _PILOT)
            ladders.append(_Ladder(part, float(target_mcse), max_cost, bar))
            ladders[-1].climb(dim)
    columns = Columns.cat([ladder.columns for ladder in ladders])
    answered_by = np.concatenate([ladder.answered_by for ladder in ladders])
    draws = np.concatenate([ladder.draws for ladder in ladders])
    within = (columns.mcse <= target_mcse).cpu().numpy()
    on_grid = answered_by == "quadrature"
    verdict = verdicts(columns.pareto_k.cpu().numpy(), draws)
    return LogEvidence.of(
        columns,
        evaluation,
        method="auto",
        kind=np.where(on_grid, "estimate", "lower bound"),
        verdict=np.where(on_grid, np.where(within, "trust", "another method"), verdict),
        answered_by=answered_by,
        target_mcse=float(target_mcse),
    )


def _closed_form(evaluation: Evaluation) -> LogEvidence | None:
    rows = evaluation.batch["x"]
    try:
        known = linear_gaussian(evaluation.pair, rows)
    except checks.Refused:
        return None
    return LogEvidence.exact(
        known.log_prob(rows.flatten(1).double()).cpu().numpy(),
        measure=evaluation.structure.measure,
        method="exact",
        fingerprint=checks.fingerprint(rows),
    )


def _dimensions(evaluation: Evaluation) -> int:
    """Entries of u; zero where latents can't be moved."""
    try:
        with undisturbed(evaluation, Stream.PILOT):
            return Posterior(evaluation, slice(0, 1)).dim
    except checks.Refused:
        return 0


class _Pilot(NamedTuple):
    """What a pilot found out, each of shape (rows,).

    needed draws of the encoder for the target; tail, their k-hat; level, a first log P(x); missed, whether
    the prior's draws show a mass beside the encoder; unseen, whether they are too far from the row to show any.
    """

    needed: Tensor
    tail: Tensor
    level: Tensor
    missed: Tensor
    unseen: Tensor


class _Modes(NamedTuple):
    """Places to fit from, the encoder's first, NaN where none were sought; and where the encoder misses one."""

    loc: Tensor  # (starts, rows, dim)
    log_joint: Tensor  # (starts, rows)
    spread: Tensor  # (rows, dim)
    missed: Tensor  # (rows,)

    def starts(self, rows: Tensor, count: int) -> Starts:
        return Starts(self.loc[:count, rows], self.log_joint[:count, rows], self.spread[rows])


class _Ladder:
    """The climb of some rows. ``columns``, ``answered_by`` and ``draws`` hold the answers once it is over."""

    def __init__(self, evaluation: Evaluation, target: float, max_cost: int, bar: Progress) -> None:
        self._evaluation, self._target, self._max_cost, self._bar = evaluation, target, max_cost, bar
        count, device = len(evaluation), evaluation.batch["x"].device
        self._cost = torch.zeros(count, dtype=torch.float64, device=device)
        self._stage = 0
        empty = torch.full((count,), math.nan, dtype=torch.float64, device=device)
        self.columns = Columns(*(empty.clone() for _ in dataclasses.fields(Columns)))
        self.answered_by = np.full(count, "", dtype=f"<U{max(map(len, RUNGS))}")
        self.draws = np.zeros(count, dtype=np.int64)

    def climb(self, dim: int) -> None:
        """Every row to the rung that its pilots choose, and an answer there."""
        rows = torch.arange(len(self._cost), device=self._cost.device)
        if not dim:
            self._answer_by_importance(rows, self._pilot_encoder(rows))
            return
        pilot = self._pilot_encoder_and_prior(rows)
        modes = self._look_for_modes(rows, pilot, dim)
        fit_cost = step_cost(dim) * (_STEPS[0] + 1) + _PILOT + _FEWEST
        enough = ~modes.missed & (pilot.tail <= _ENCODER_TAIL) & (pilot.needed <= fit_cost)
        self._answer_by_importance(rows[enough], pilot.needed[enough])
        waiting = rows[~enough]
        for steps in _STEPS:
            if len(waiting):
                waiting = self._refine(waiting, modes, steps, dim)

    # -----------------------------------------------------------------------------------------------------
    # Pilots

    def _each_block(self, rows: Tensor) -> Iterator[tuple[Tensor, Posterior]]:
        """Blocks of some rows with their posteriors, on noise that no other stage and no answer sees."""
        part = self._part(rows, _PILOT)
        for number, block in enumerate(part.blocks()):
            with undisturbed(part, Stream.PILOT, number):
                posterior = Posterior(part, block)
                yield rows[block], posterior
            self._cost[rows[block]] += posterior.cost

    def _part(self, rows: Tensor, num_samples: int) -> Evaluation:
        self._stage += 1
        seed = noise.derive(self._evaluation.seed, Stream.LADDER, self._stage)
        return self._evaluation.of_rows(rows, seed, num_samples)

    def _needed(self, log_weights: Tensor) -> Tensor:
        """Draws that would bring the error to the target, as far as a pilot can tell; (rows,)."""
        squared = len(log_weights) * diagnostics.mcse(log_weights) ** 2  # CV²
        return squared / (_MARGIN * self._target) ** 2

    def _pilot_encoder(self, rows: Tensor) -> Tensor:
        """Draws needed of a pair whose latents can't be moved."""
        part = self._part(rows, _PILOT)
        columns = weigh_encoder(part, _silent())
        self._cost[rows] += columns.cost
        return _PILOT * columns.mcse**2 / (_MARGIN * self._target) ** 2

    def _pilot_encoder_and_prior(self, rows: Tensor) -> _Pilot:
        """What 64 draws of the encoder foretell, and what as many of the prior see beside it."""
        found = []
        for block, posterior in self._each_block(rows):
            encoder = Encoder(posterior)
            drawn = []
            for u in (posterior.draw_encoder(_PILOT), posterior.draw_prior(_PILOT)):
                joint = posterior.log_joint(u)
                drawn.append((joint.likelihood, joint.prior, encoder.log_density(u, joint.prior)))
            posterior.cost -= _PILOT  # a draw of the prior is weighed once
            likelihood, log_p, log_q = drawn[0]
            weights = likelihood + log_p - log_q
            both = diagnostics.Accumulator(2 * _PILOT, len(block), 2, weights.device, strata=[0, 1])
            for index, (value, p, q) in enumerate(drawn):
                both.add(index, value + p - torch.logaddexp(q, p) + math.log(2))
            level = diagnostics.log_mean_exp(weights)
            error = torch.hypot(diagnostics.mcse(weights), both.mcse())
            found.append(
                _Pilot(
                    needed=self._needed(weights),
                    tail=diagnostics.pareto_k(weights),
                    level=level,
                    missed=both.log_mean_exp() - level > self._target + 2 * error,
                    unseen=diagnostics.ess(drawn[1][0]) < _FEWEST_SEEN,
                )
            )
        return _Pilot(*map(torch.cat, zip(*found, strict=True)))

    def _look_for_modes(self, rows: Tensor, pilot: _Pilot, dim: int) -> _Modes:
        """The encoder's place and, where the pilot calls for it, modes found without it."""
        loc = torch.full((1 + _STARTS, len(rows), dim), math.nan, dtype=torch.float64, device=rows.device)
        modes = _Modes(loc, loc[..., 0].clone(), loc[0].clone(), pilot.missed.clone())
        for block, posterior in self._each_block(rows):
            first = encoder_start(posterior)
            modes.loc[0, block], modes.log_joint[0, block] = first.loc[0], first.log_joint[0]
            modes.spread[block] = first.spread
        for block, posterior in self._each_block(rows[pilot.unseen | pilot.missed]):
            others = independent_starts(posterior, _STARTS, modes.spread[block])
            modes.loc[1:, block], modes.log_joint[1:, block] = others.loc, others.log_joint
            modes.missed[block] |= _uncovered(
                others, Encoder(posterior), posterior, pilot.level[block], modes.log_joint[0, block]
            )
        return modes

    # -----------------------------------------------------------------------------------------------------
    # Rungs

    def _refine(self, rows: Tensor, modes: _Modes, steps: int, dim: int) -> Tensor:
        """Fit the rows and answer them; returns those that a longer fit might serve better."""
        last = steps == _STEPS[-1]
        alone = rows[~modes.missed[rows]]
        waiting, fitted = [], []
        for block, posterior in self._each_block(alone):
            fits, elbo = fit_gaussians(posterior, modes.starts(block, 1), steps, "full_rank")
            fitted.append((block, fits))
            sought = torch.isfinite(modes.log_joint[1, block])
            others = Starts(modes.loc[1:, block], modes.log_joint[1:, block], modes.spread[block])
            centre = posterior.log_joint(fits[0].loc[None].to(posterior.dtype))
            modes.missed[block] |= sought & _uncovered(
                others, fits[0], posterior, elbo[0], (centre.prior + centre.likelihood)[0]
            )
        # A fit beside which a mode was missed is not answered from, but fitted again with that mode.
        fitted = [
            (block[keep], [fit[keep] for fit in fits])
            for block, fits in fitted
            if (keep := ~modes.missed[block]).any()
        ]
        for block, posterior in self._each_block(rows[modes.missed[rows]]):
            fits, _ = fit_gaussians(posterior, modes.starts(block, 1 + _STARTS), steps, "full_rank")
            fitted.append((block, fits))
        for block, fits in fitted:
            needed, tail = self._pilot_mixture(block, fits)
            left = self._max_cost - self._cost[block]
            good = (tail <= _TAIL) & (needed <= left)
            if not last:
                # Draws that cost more than fitting on are not worth it yet.
                good &= needed <= step_cost(dim) * (1 + _STARTS) * (_STEPS[1] + 1)
            self._answer_by_mixture(block[good], [fit[good] for fit in fits], needed[good])
            poor = block[~good]
            if not last:
                waiting.append(poor)
            elif dim <= MOST_DIMENSIONS - 1:
                self._answer_by_quadrature(poor)
            else:
                self._answer_by_annealing(poor, [fit[~good] for fit in fits], needed[~good])
        return torch.cat(waiting) if waiting else rows[:0]

    def _pilot_mixture(self, rows: Tensor, fits: list[Gaussian]) -> tuple[Tensor, Tensor]:
        """Draws needed from the fits with their defensive components, and k-hat; each of shape (rows,)."""
        part = self._part(rows, _SECOND_PILOT)
        columns = [
            weigh_mixture(part, number, block, [fit[block] for fit in fits])
            for number, block in enumerate(part.blocks())
        ]
        found = Columns.cat(columns)
        self._cost[rows] += found.cost
        return _SECOND_PILOT * found.mcse**2 / (_MARGIN * self._target) ** 2, found.pareto_k

    def _answer_by_importance(self, rows: Tensor, needed: Tensor) -> None:
        for chosen, count in self._by_draws(rows, needed):
            part = self._part(rows[chosen], count)
            self._keep(rows[chosen], weigh_encoder(part, _silent()), "importance", count)

    def _answer_by_mixture(self, rows: Tensor, fits: list[Gaussian], needed: Tensor) -> None:
        for chosen, count in self._by_draws(rows, needed):
            part = self._part(rows[chosen], count)
            here = [fit[chosen] for fit in fits]
            columns = [
                weigh_mixture(part, number, block, [fit[block] for fit in here])
                for number, block in enumerate(part.blocks())
            ]
            self._keep(rows[chosen], Columns.cat(columns), "refined", count)

    def _answer_by_quadrature(self, rows: Tensor) -> None:
        if len(rows):
            part = self._part(rows, _PILOT)
            left = float(self._max_cost - self._cost[rows].max())
            columns = integrate(part, _MARGIN * self._target, _silent(), most_cost=left)
            self._keep(rows, columns, "quadrature", 0)

    def _answer_by_annealing(self, rows: Tensor, fits: list[Gaussian], needed: Tensor) -> None:
        if not len(rows):
            return
        left = float(self._max_cost - self._cost[rows].max())
        temperatures = int(left / (3 * (_CHAINS + _PILOT / 16)))
        if temperatures < _FEWEST_TEMPERATURES:
            self._answer_by_mixture(rows, fits, needed)
            return
        part = self._part(rows, _CHAINS)
        columns = []
        for number, block in enumerate(part.blocks()):
            here = [fit[block] for fit in fits]
            with undisturbed(part, Stream.PILOT, number):
                posterior = Posterior(part, block)
                path = Path(posterior, defended(posterior, here, _CHAINS), here[0].tril.norm(dim=-1))
                moves = path.tune(temperatures)
            columns.append(weigh_chains(part, path, moves, number))
        self._keep(rows, Columns.cat(columns), "annealed", _CHAINS)

    def _by_draws(self, rows: Tensor, needed: Tensor) -> Iterator[tuple[Tensor, int]]:
        """Indices of rows that need about as many draws, and how many: 128 · 2^(j/2), within what is left."""
        if not len(rows):
            return
        left = (self._max_cost - self._cost[rows]).clamp(min=_FEWEST)
        draws = torch.minimum(needed.nan_to_num(posinf=math.inf).clamp(min=_FEWEST), left)
        steps = torch.ceil(2 * torch.log2(draws / _FEWEST) - 1e-9)
        for step in steps.unique().tolist():
            chosen = (steps == step).nonzero()[:, 0]
            yield chosen, min(int(_FEWEST * 2 ** (step / 2)), int(left[chosen].min()))

    def _keep(self, rows: Tensor, found: Columns, name: str, draws: int) -> None:
        """Write down an answer; its cost comes on top of what the rows have cost before."""
        self._cost[rows] += found.cost
        for field in dataclasses.fields(Columns):
            getattr(self.columns, field.name)[rows] = getattr(found, field.name)
        self.columns.cost[rows] = self._cost[rows]
        self.answered_by[rows.cpu().numpy()] = name
        self.draws[rows.cpu().numpy()] = draws
        self._bar.advance(len(rows))


def _uncovered(
    modes: Starts, proposal: Proposal, posterior: Posterior, level: Tensor, centre: Tensor
) -> Tensor:
    """Whether a mode lies where the proposal is too thin and the posterior is not; (rows,).

    At a mode that the proposal covers, the log weight is about log P(x), the ``level``. Where it is far
    above, the proposal has hardly a draw; that matters if the mode is not much lower than the ``centre``.
    """
    u = modes.loc.to(posterior.dtype)
    log_weight = modes.log_joint - proposal.log_density(u, torch.zeros_like(modes.log_joint))
    high = modes.log_joint > centre - _NEGLIGIBLE - posterior.dim / 4
    return ((log_weight > level + _UNCOVERED) & high).any(dim=0)


def _silent() -> Progress:
    return Progress("", 0, "", show=False)
