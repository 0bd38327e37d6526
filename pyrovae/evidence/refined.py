"""refined() fits proposals to each row's posterior, then estimates log P(x) by importance sampling from them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pyrovae import arguments
from pyrovae.diagnostics import Accumulator
from pyrovae.evaluation import Evaluation, Terms
from pyrovae.evidence.draws import Draws, Keep
from pyrovae.evidence.gaussians import (
    FAMILIES,
    PATIENCE,
    PRIOR_DRAWS,
    Hints,
    Starts,
    encoder_start,
    far_from,
    fit_cost,
    fit_gaussians,
    further_starts,
    independent_starts,
    mostly_new,
)
from pyrovae.evidence.nearby import Pool
from pyrovae.evidence.posterior import (
    Encoder,
    Fit,
    Gaussian,
    Mixture,
    Posterior,
    Prior,
    Proposal,
    at_exact_draw,
    split,
    tiles_of,
    total,
    undisturbed,
)
from pyrovae.evidence.result import Columns, LogEvidence, lost_at_bounds
from pyrovae.evidence.run import BlockFunction, Folder, Run
from pyrovae.evidence.workers import Workers
from pyrovae.model import LatentVariableModel
from pyrovae.noise import Stream
from pyrovae.row_noise import RowNoise
from pyrovae.turns import takes_turns

# Shares of the draws. On 1200 rows of three VAEs of the digits, k-hat was above 0.7 in 125 without the widened
# fits and in 11 with them (benchmarks/fits.py).
_FITS_SHARE, _WIDE_SHARE = 0.5, 0.3
_ENCODER_SHARE, _PRIOR_SHARE = 0.1, 0.1
# A fit is widened by the factor 1 + 1.5/√dim. A factor without √dim would give draws far from the fit in many
# dimensions.
_WIDER = 1.5
_UNCOVERED, _NEGLIGIBLE = 3.0, 7.0  # nats: see uncovered
# Most fits of further modes, and of all fits for each draw: with more of these, strata have too few draws.
_MOST_MORE, _FITS_OF_DRAWS = 12, 0.15
_FURTHER = 1  # key of the noise of a further search


@takes_turns
def refined(
    pair: LatentVariableModel,
    x: Any,
    num_samples: int = 1000,
    seed: int = 0,
    family: str = "full_rank",
    num_starts: int = 4,
    num_steps: int = 200,
    tile: tuple[int, int] | None = None,
    progress: bool = False,
    checkpoint: Folder = None,
    compile: str | bool = "auto",
    noise: str = "index",
    check: bool = True,
    executor: Workers = None,
) -> LogEvidence:
    """Return log P(x_n) by importance sampling from posteriors that are fitted to each row.

    Gaussians q*_j(u | x_n) are fitted from the encoder's mean and from local modes found without the encoder. One of
    these is near pairs (x, z) simulated from the model. If the fits of a row end in different modes, or have little density
    at one of the pairs or starts, further ascents search for more. Up to twelve more Gaussians are fitted to the modes found; fewer with few draws. A row is "another
    method" if such a point stays uncovered. Then
    log P(x_n) ≈ log (1/K) Σ_k P(x_n, u_k) / q(u_k) with fresh, stratified draws of a mixture q. It consists of the q*_j
    (50 %), the widened q*_j (30 %), the encoder (10 %) and the prior (10 %). The last three are defensive: no weight
    exceeds ten times the weight under the encoder or the prior alone. The estimate is a lower bound in expectation.

    Args:
        pair: a ``VAE`` or any ``LatentVariableModel`` with continuous latents.
        x: rows on dim 0; tensor, numpy array or DataFrame.
        num_samples: K, draws per row, at least 100. The error estimate is rough below a few hundred.
        family: "full_rank" or "mean_field", of the q*.
        num_starts: first fits per row. The first starts at the encoder, each of the others at another mode. With one,
            there is no search for modes.
        num_steps: the most steps of a fit, each of 2 · dim gradients per start. A fit ends when steps gain less than a
            tenth of a nat. Most rows need two to six steps.
        seed, tile, progress, checkpoint, compile, noise, check, executor: as in ``importance``. Each kind of call is
            compiled separately.

    Returns:
        A ``LogEvidence`` whose rows are lower bounds; its ``mcse`` is that of stratified draws.

    Raises:
        TypeError, ValueError: an option, the rows or the pair cannot be used; see ``pyrovae.pair.inspect``; also if
            a latent is discrete.

    Burda et al. (2016) for the bound, Cremer, Li and Duvenaud (2018) for posteriors fitted to each row,
    Hesterberg (1995) for the defensive mixture.

    Example:
        >>> import torch
        >>> from pyrovae import VAE
        >>> refined(VAE.mlp(6, latent_dim=2), torch.ones(4, 6), num_samples=100).kind[0].item()
        'lower bound'
    """
    arguments.integer("num_samples", num_samples, minimum=100)
    arguments.choice("family", family, FAMILIES)
    arguments.integer("num_starts", num_starts)
    arguments.integer("num_steps", num_steps)
    split(num_samples, shares(num_starts))
    run = Run.prepare(refined, locals())
    return answered(run)


def answered(run: Run, keep: Keep | None = None) -> LogEvidence:
    """Return the answer of a run of ``refined``; ``keep`` gets every block's draws."""
    own = {name: run.options[name] for name in ("family", "num_starts", "num_steps")}
    make = partial(refined_block, pool=Pool(run.evaluation), keep=keep, **own)
    return run.answer(run.columns(make), "lower bound")


def refined_block(
    evaluation: Evaluation, pool: Pool, keep: Keep | None, family: str, num_starts: int, num_steps: int
) -> BlockFunction:
    """Return the function of a block that fits its rows' posteriors and draws from the fits."""

    def refine(number: int, rows: slice) -> Columns:
        with undisturbed(evaluation, Stream.PILOT, rows=rows) as drawn:
            posterior = Posterior(evaluation, rows)
            starts, hints = all_starts(posterior, num_starts, drawn, pool.near(evaluation.part(rows)))
            posterior.expect(fit_cost(posterior.dim, num_starts, min(num_steps, PATIENCE)))
            fits, elbos, cost = fit_gaussians(posterior, starts, num_steps, family, drawn)
        columns = weigh_fits(evaluation, rows, fits, elbos, hints, family, num_steps, keep)
        return replace(columns, cost=columns.cost + posterior.cost + cost)

    return refine


def weigh_fits(
    evaluation: Evaluation,
    rows: slice,
    fits: Sequence[Gaussian],
    elbos: Tensor,
    hints: Hints | None,
    family: str,
    num_steps: int,
    keep: Keep | None = None,
) -> Columns:
    """Return ``weigh_mixture`` of a block's fits and, in rows that may have further modes, of further ones.

    ``elbos`` are those of the fits, (fits, rows). A row may have further modes if its fits end in different modes, or have
    little density at a hint that matters. Other rows cost nothing more. A row is ``missed`` if all of its fits have little
    density at such a hint.
    """
    level = elbos.amax(dim=0)
    doubtful = torch.zeros_like(level, dtype=torch.bool)
    if hints is not None:
        doubtful = unmet(hints, log_defended(fits, hints), level)
    points, cost = _further_modes(evaluation, rows, fits, elbos, hints, doubtful)
    numbers = (points.log_joint > -math.inf).sum(dim=0)
    if not bool((numbers > 0).any() | doubtful.any()):
        columns = weigh_mixture(evaluation, rows, fits, keep)
        return replace(columns, cost=columns.cost + cost)
    # Rows with as many components are weighed together, so that a row's draws do not depend on which others there are.
    found, order, held = list[Columns](), list[Tensor](), list[Draws]()
    for count in numbers.unique().tolist():
        here = (numbers == count).nonzero()[:, 0]
        part = evaluation.of_rows(rows.start + here, evaluation.seed, evaluation.num_samples)
        every, spent = [fit[here] for fit in fits], cost[here]
        if count:
            chosen = points.some(slice(count), here)
            with undisturbed(part, Stream.PILOT, _FURTHER, 0) as drawn:
                posterior = Posterior(part)
                more, _, steps = fit_gaussians(posterior, chosen, num_steps, family, drawn)
            every, spent = [*every, *more], spent + steps + posterior.cost
        columns = weigh_mixture(part, slice(0, len(here)), every, None if keep is None else held.append)
        if hints is not None:
            known = hints.of_rows(here)
            still = doubtful[here] & unmet(known, log_defended(every, known), columns.estimate)
            columns = columns.also_missed(still)
        found.append(replace(columns, cost=columns.cost + spent))
        order.append(here)
    back = torch.cat(order).argsort()
    if keep is not None:
        keep(Draws.joined(evaluation, rows, held, back))
    whole = Columns.cat(found)
    return whole.of_rows(back)


def _further_modes(
    evaluation: Evaluation,
    rows: slice,
    fits: Sequence[Gaussian],
    elbos: Tensor,
    given: Hints | None,
    doubtful: Tensor,
) -> tuple[Starts, Tensor]:
    """Return modes at which a block's fits have little density, those with log_joint −∞ last, and the cost, (rows,).

    Rows are searched if they are ``doubtful`` or their fits are in more than one mode, and again while most modes found are
    new. Each search goes away from another of the fits. The first also starts at the hint of the largest weight under the fits.
    """
    loc, spread = (torch.stack([getattr(fit, name) for fit in fits]) for name in ("loc", "spread"))
    known, cost = Starts(loc, elbos, spread), torch.zeros_like(elbos[0])
    most = min(_MOST_MORE, int(_FITS_OF_DRAWS * evaluation.num_samples) - len(fits))
    several = doubtful & (most > 0)
    for fit in fits if most > 0 else ():
        several |= far_from(loc[:1], fit.loc, fit.spread)
    again, found, places = several.nonzero()[:, 0], list[Starts](), loc
    for turn in range(len(fits)):
        if not len(again):
            break
        part = evaluation.of_rows(rows.start + again, evaluation.seed, evaluation.num_samples)
        with undisturbed(part, Stream.PILOT, _FURTHER, 1 + turn) as drawn:
            posterior = Posterior(part)
            near = None if given is None or turn else given.of_rows(again)
            if near is not None:
                near = near._replace(log_encoder=log_defended([fit[again] for fit in fits], near))
            starts = further_starts(posterior, known.some(slice(turn, turn + 1), again), drawn, near)
            hints, known_modes = Hints.at(posterior, starts.loc), Hints.at(posterior, places[:, again])
        cost[again] += posterior.cost
        log_q = log_defended([fit[again] for fit in fits], hints)
        centre = torch.cat([hints.log_joint, known_modes.log_joint]).amax(dim=0)
        apart = uncovered(hints.log_joint, log_q, elbos[:, again].amax(dim=0), centre, posterior.dim)
        # One fit of many has a small share of the draws, and little density at its own mode.
        apart &= torch.stack(
            [far_from(loc[:, again], *each) for each in zip(starts.loc, starts.spread, strict=True)]
        )
        new = torch.where(apart, starts.log_joint, -math.inf)
        found.append(starts._replace(log_joint=new).of_all(again, len(cost)))
        several = mostly_new(starts, places[:, again])
        places, again = torch.cat([places, found[-1].loc]), again[several]
    if not found:
        return known.some(slice(0, 0)), cost
    return _different(Starts.cat(found), most), cost


def _different(starts: Starts, most: int) -> Starts:
    """Return the ``most`` highest starts that are far from each other, the highest first; the others have log_joint −∞."""
    for _ in range(2):
        order = starts.log_joint.argsort(dim=0, descending=True, stable=True)
        wide = order[..., None].expand_as(starts.loc)
        starts = Starts(
            starts.loc.gather(0, wide), starts.log_joint.gather(0, order), starts.spread.gather(0, wide)
        )
        for j in range(1, len(starts.loc)):
            earlier = starts.loc[:j].masked_fill(torch.isneginf(starts.log_joint[:j])[..., None], math.inf)
            near = ~far_from(earlier, starts.loc[j], starts.spread[j])
            starts.log_joint[j].masked_fill_(near, -math.inf)
    return starts.some(slice(0, most))


def all_starts(
    posterior: Posterior, num_starts: int, noise: RowNoise, near: Tensor | None = None
) -> tuple[Starts, Hints | None]:
    """Return starts at the encoder's mean and at modes found without the encoder, and points to compare fits with.

    ``near`` is as from ``Pool.near``. The points are these and the starts, which a fit may leave. There are none for one start.
    """
    prior, joint = posterior.draw_prior(PRIOR_DRAWS * max(1, num_starts - 1), noise)
    first = encoder_start(posterior, prior, noise)
    if num_starts == 1:
        return first, None
    hints = None if near is None else Hints.at(posterior, near)
    others = independent_starts(posterior, num_starts - 1, first, prior, total(joint), noise, hints)
    starts = Starts.cat([first, others])
    at_starts = Hints.at(posterior, starts.loc)
    return starts, at_starts if hints is None else hints.beside(at_starts)


def defended(posterior: Posterior, fits: Sequence[Fit], num_samples: int) -> Mixture:
    """Return the mixture of the fits, the widened fits, the encoder and the prior, for ``num_samples`` draws."""
    wide = _wider(fits, posterior.dim)
    components: list[Proposal] = [*fits, *wide, Encoder(posterior), Prior(posterior)]
    return Mixture(components, split(num_samples, shares(len(fits))))


def _wider(fits: Sequence[Fit], dim: int) -> list[Fit]:
    return [fit.widened(1 + _WIDER / dim**0.5) for fit in fits]


def log_defended(fits: Sequence[Fit], hints: Hints) -> Tensor:
    """Return the log density of ``defended`` at hints, (hints, rows)."""
    parts = [*fits, *_wider(fits, hints.u.shape[-1])]
    densities = [part.log_density(hints.u, hints.log_prior) for part in parts]
    each = zip(shares(len(fits)), [*densities, hints.log_encoder, hints.log_prior], strict=True)
    return torch.logsumexp(torch.stack([math.log(share) + density for share, density in each]), dim=0)


def uncovered(log_joint: Tensor, log_q: Tensor, level: Tensor, centre: Tensor, dim: int) -> Tensor:
    """Return at which points, (points, rows), that matter a proposal has little density.

    At a mode that the proposal covers, the log weight is about log P(x), the ``level``. If it is far above,
    the proposal hardly draws there. That matters unless the mode is much lower than the ``centre``.
    """
    high = log_joint > centre - _NEGLIGIBLE - dim / 4
    return (log_joint - log_q > level + _UNCOVERED) & high


def unmet(hints: Hints, log_q: Tensor, level: Tensor, centre: Tensor | None = None) -> Tensor:
    """Return whether a proposal of log density ``log_q`` has little density at a hint that matters; (rows,)."""
    highest = hints.log_joint.amax(dim=0)
    centre = highest if centre is None else torch.maximum(centre, highest)
    return uncovered(hints.log_joint, log_q, level, centre, hints.u.shape[-1]).any(dim=0)


def shares(num_fits: int) -> list[float]:
    """Return the share of the draws that each component of ``defended`` gets."""
    own, wide = _FITS_SHARE / num_fits, _WIDE_SHARE / num_fits
    return [*[own] * num_fits, *[wide] * num_fits, _ENCODER_SHARE, _PRIOR_SHARE]


def weigh_mixture(
    evaluation: Evaluation, rows: slice, fits: Sequence[Fit], keep: Keep | None = None
) -> Columns:
    """Return the stratified estimate of a block of rows, on fresh noise, in tiles of one stratum each.

    ``keep`` gets the draws.
    """
    with undisturbed(evaluation, Stream.TILE, rows=rows):
        posterior = Posterior(evaluation, rows)
        posterior.expect(evaluation.num_samples)
    mixture = defended(posterior, fits, evaluation.num_samples)
    width = evaluation.tile[1]
    strata = tiles_of(mixture.counts, width)
    weights = Accumulator(
        evaluation.num_samples,
        posterior.num_rows,
        len(strata),
        posterior.device,
        [stratum for stratum, _, _ in strata],
    )
    at_bounds = torch.full((posterior.num_rows,), -math.inf, dtype=torch.float64, device=posterior.device)
    held = []
    for index, (stratum, done, count) in enumerate(strata):
        with undisturbed(evaluation, Stream.TILE, stratum, rows=rows, first=done) as drawn:
            u = mixture.components[stratum].draw(count, drawn)
            terms = weigh(posterior, mixture, u, width)
            weights.add(index, terms.log_weights)
            if keep is not None:
                held.append((posterior.unflatten(u), terms))
            rounded = torch.where(posterior.beyond(u), terms.log_weights, -math.inf)
            at_bounds = torch.logaddexp(at_bounds, torch.logsumexp(rounded, dim=0))
    if keep is not None:
        keep(Draws.cat(evaluation, rows, held))
    lost = lost_at_bounds(at_bounds, weights)
    columns = Columns.of_weights(weights, posterior.dtype, posterior.cost, lost)
    weight = at_exact_draw(
        evaluation, posterior, rows, lambda u, _: Terms(*posterior.weigh(mixture, u, 1)).log_weights[0]
    )
    return columns.beside(weight, evaluation.num_samples, weights)


def weigh(posterior: Posterior, proposal: Proposal, u: Tensor, width: int) -> Terms:
    """Return the terms of log P(x_n, u) − log q(u); raises ``ValueError`` if that is NaN or +∞.

    A draw off the prior's support is NaN and has weight zero. ``width`` is the number of samples of most calls.
    """
    terms = Terms(*posterior.weigh(proposal, u, width)).without(u.isnan().any(dim=-1))
    return terms.checked(posterior.numbers)
