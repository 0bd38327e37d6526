"""Fits Gaussians to the posterior of every row, from the encoder's mean and from modes found without the encoder.

A fit is a fixed point of the equations of a Gaussian of least KL(q ‖ posterior) (Opper and Archambeau 2009):

    E_q[∇ log P(x, u)] = 0,    E_q[−∇² log P(x, u)] = precision of q.

A regression of the gradients at draws of q on these draws gives both expectations at once. The second needs no
second derivative, by Stein's identity. A Newton step on each gives the next q. On a Gaussian posterior, the
first step is exact. Optimisers of torch vectorise over rows too, but need more decoder evaluations. On 50 latent
dimensions, Adam takes 9600 per row to an effective sample size of 947 in 1000 draws. Three Newton steps take
1200 to one of 1000 (benchmarks/fits.py). The search for modes uses torch's Adam.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pyrovae.evidence.posterior import Gaussian, Posterior, total
from pyrovae.row_noise import RowNoise

FAMILIES = ("full_rank", "mean_field")

_ENCODER_DRAWS = 128
PRIOR_DRAWS = 32  # for every start
_ASCENT_STEPS = 40
_ASCENT_RATE = 0.2  # of the prior's standard deviation
# Last steps from the highest point, because Adam passes a narrow mode. Their length is that of Barzilai and Borwein (1988),
# from the gradient a bit further on, in standard deviations of the prior.
_SECANT_STEPS, _PROBE = 2, 0.01
# The first step moves q by at most this many of its standard deviations, and every step changes its variances by at
# most tenfold.
_TRUST, _GROWTH = 2.0, 4.0
# Nats. A fit has converged if a step promises less than the first, or if PATIENCE steps gain less than the second.
_GAIN, _STALL, PATIENCE = 0.01, 0.1, 3
# Weight of the first regressions' precisions when a fit goes on from another.
_AGAIN = 0.5
_FEWEST_PAIRS = 4
_LEAST, _MOST = 0.1, 10.0
_SPREADS, _SPREAD_PAIRS = (1.0, 0.3, 0.1, 0.03, 0.01), 2  # see _spreads
_LEAST_SPREAD = 0.01  # of the prior's standard deviation
_ASTRAY = 5.0  # nats of the ELBO that a step may lose
# Starts of a further search, and the distance from all known modes at which a mode is a new one, in standard deviations.
MORE_STARTS, _APART = 6, 4.0
# A fit this many nats below the row's best covers a negligible share of the posterior.
_NEGLIGIBLE = 10.0


class Starts(NamedTuple):
    """Starting points of fits, and standard deviations to start with: loc and spread (starts, rows, dim); log_joint at loc."""

    loc: Tensor
    log_joint: Tensor
    spread: Tensor

    @classmethod
    def cat(cls, parts: Sequence[Starts]) -> Starts:
        """Return the starts of several searches together."""
        return cls(*map(torch.cat, zip(*parts, strict=True)))

    def some(self, chosen: slice, rows: Tensor | slice = slice(None)) -> Starts:
        """Return some of the starts, for some of the rows."""
        return Starts(*(each[chosen][:, rows] for each in self))

    def put(self, chosen: slice, rows: Tensor, starts: Starts) -> None:
        """Put starts of some rows in the place of the chosen ones."""
        for whole, part in zip(self, starts, strict=True):
            whole[chosen, rows] = part

    def of_all(self, rows: Tensor, num_rows: int) -> Starts:
        """Return the starts of some ``rows`` as starts of ``num_rows`` rows; log_joint is −∞ in the others."""
        return Starts(*(_of_all(each, rows, num_rows) for each in self))


def _of_all(given: Tensor, rows: Tensor, num_rows: int, empty: float = -math.inf) -> Tensor:
    """Return numbers (points, rows, …) of some ``rows`` as those of ``num_rows`` rows."""
    whole = given.new_full((len(given), num_rows, *given.shape[2:]), empty)
    whole[:, rows] = given
    return whole


def encoder_start(posterior: Posterior, prior: Tensor, noise: RowNoise) -> Starts:
    """Return the encoder's mean and standard deviations, estimated from draws, which cost no decoder evaluation.

    ``prior`` holds draws of the prior, (samples, rows, dim). The spread is at least a hundredth of theirs,
    because a fit that starts at a collapsed encoder could not move.
    """
    u = posterior.draw_encoder(_ENCODER_DRAWS, noise).double()
    centre = u.nanmean(dim=0)  # NaN: draws off the prior's support
    u = torch.where(u.isnan(), torch.where(centre.isnan(), prior.double().mean(dim=0), centre), u)
    loc = u.mean(dim=0)
    spread = torch.maximum(u.std(dim=0), _LEAST_SPREAD * _scale(prior))
    return Starts(loc[None], total(posterior.log_joint(loc[None].to(posterior.dtype))), spread[None])


def _scale(prior: Tensor) -> Tensor:
    """Return the standard deviations of the prior's draws, (rows, dim), each row's from its own draws."""
    return prior.double().std(dim=0).clamp(min=1e-6)


class Hints(NamedTuple):
    """Points that other parts of a row's posterior may be near, with densities there.

    ``u`` has shape (hints, rows, dim). The log densities are those of P(x_n, u), the encoder and the prior, (hints, rows).
    """

    u: Tensor
    log_joint: Tensor
    log_encoder: Tensor
    log_prior: Tensor

    @classmethod
    def at(cls, posterior: Posterior, u: Tensor) -> Hints:
        """Return hints at some points, with their densities."""
        u = u.to(posterior.dtype)
        joint = posterior.log_joint(u)
        log_joint = total(joint).nan_to_num(nan=-math.inf, posinf=-math.inf, neginf=-math.inf)
        return cls(
            u, log_joint, posterior.log_encoder(u).nan_to_num(nan=-math.inf, neginf=-math.inf), joint.prior
        )

    @classmethod
    def cat(cls, parts: Sequence[Hints]) -> Hints:
        return cls(*(torch.cat(each, dim=1) for each in zip(*parts, strict=True)))

    def of_rows(self, rows: Tensor) -> Hints:
        return Hints(*(each[:, rows] for each in self))

    def of_all(self, rows: Tensor, num_rows: int) -> Hints:
        """Return the hints on some ``rows`` as hints on ``num_rows`` rows; those of the others have no density."""
        return Hints(
            _of_all(self.u, rows, num_rows, 0.0), *(_of_all(each, rows, num_rows) for each in self[1:])
        )

    def beside(self, other: Hints) -> Hints:
        """Return these and other hints on the same rows."""
        return Hints(*map(torch.cat, zip(self, other, strict=True)))


def independent_starts(
    posterior: Posterior,
    num_starts: int,
    encoder: Starts,
    prior: Tensor,
    values: Tensor,
    noise: RowNoise,
    hints: Hints | None = None,
) -> Starts:
    """Return points near local modes of the posterior, found by gradient ascent from points far from the encoder.

    ``prior`` holds draws of the prior, (samples, rows, dim), and ``values`` log P(x, u) there. The first start is the hint
    with the largest weight under the encoder. The others come from the hints and the best quarter of the draws. Each is
    the point farthest from the encoder's mean and all earlier starts. With two modes of equal mass, three such starts
    without hints find the mode that the encoder misses in 400 of 400 rows. Starts at the three best draws find it in 349
    (benchmarks/fits.py).

    The ascents climb the likelihood and go on from the point of the highest log P(x, u) on their way. A narrow mode within a
    broad one has a far higher likelihood. Its maximum can be many of its standard deviations from the broad mode's, where
    ascents of log P(x, u) end (benchmarks/traps.py --only "phase transition").
    """
    scale = _scale(prior)
    values = torch.where(torch.isfinite(values), values, -math.inf)
    better = values.topk(len(prior) // 4, dim=0).indices[..., None].expand(-1, -1, prior.shape[-1])
    candidates = prior.double().gather(0, better) / scale  # (candidates, rows, dim)
    chosen = []
    if hints is not None:
        candidates = torch.cat([hints.u.double() / scale, candidates])
        heaviest = (hints.log_joint - hints.log_encoder).nan_to_num(nan=-math.inf).argmax(dim=0)
        chosen.append(candidates[heaviest, torch.arange(len(heaviest), device=heaviest.device)])
    distance = ((candidates - encoder.loc[0] / scale) ** 2).sum(-1)
    for start in chosen:
        distance = torch.minimum(distance, ((candidates - start) ** 2).sum(-1))
    while len(chosen) < num_starts:
        farthest = distance.argmax(dim=0)[None, :, None].expand(1, *candidates.shape[1:])
        chosen.append(candidates.gather(0, farthest)[0])
        distance = torch.minimum(distance, ((candidates - chosen[-1]) ** 2).sum(-1))
    v = torch.stack(chosen).requires_grad_()
    best, highest = v.detach().clone(), torch.full_like(v[..., 0], -math.inf).detach()

    def slope(v: Tensor, of_likelihood: bool = False) -> Tensor:
        """Return the gradient of log P(x, u) or of the log likelihood at v; keep v where log P(x, u) is the highest so far."""
        nonlocal best, highest
        value, gradient = posterior.score((v * scale).to(posterior.dtype), of_likelihood)
        best, highest = _higher(v, value, best, highest)
        return gradient.double() * scale

    optimizer = torch.optim.Adam([v], lr=_ASCENT_RATE, betas=(0.8, 0.95))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, _ASCENT_STEPS)
    for _ in range(_ASCENT_STEPS):
        v.grad = -slope(v.detach(), of_likelihood=True)
        optimizer.step()
        schedule.step()
    slope(v.detach())
    for _ in range(_SECANT_STEPS):
        at = best
        gradient = slope(at)
        step = _PROBE * gradient / gradient.norm(dim=-1, keepdim=True).clamp(min=1e-300)
        change = slope(at + step) - gradient
        length = -(step * step).sum(-1, keepdim=True) / (step * change).sum(-1, keepdim=True)
        slope(at + torch.where(length > 0, length, 0.0) * gradient)
    loc = best * scale
    return Starts(loc, highest, _spreads(posterior, loc, encoder.spread[0], noise))


def mostly_new(starts: Starts, known: Tensor) -> Tensor:
    """Return whether most starts are far from known points, (points, rows, dim), and from each other; (rows,).

    The share of new modes is that of the modes not yet found (Good 1953).
    """
    new = []
    for loc, spread in zip(starts.loc, starts.spread, strict=True):
        new.append(far_from(known, loc, spread))
        known = torch.cat([known, loc[None]])
    return 2 * torch.stack(new).sum(dim=0) > len(new)


def far_from(known: Tensor, loc: Tensor, spread: Tensor) -> Tensor:
    """Return whether a start of every row, (rows, dim), is far from all known points, (points, rows, dim); (rows,)."""
    apart = ((loc - known) / spread).abs().amax(dim=-1)
    return (apart > _APART).all(dim=0)


def further_starts(
    posterior: Posterior, first: Starts, noise: RowNoise, hints: Hints | None = None
) -> Starts:
    """Return starts of a further search, from fresh draws of the prior and hints far from ``first``, one known mode of every row."""
    prior, joint = posterior.draw_prior(PRIOR_DRAWS * MORE_STARTS, noise)
    return independent_starts(posterior, MORE_STARTS, first, prior, total(joint), noise, hints)


def _spreads(posterior: Posterior, loc: Tensor, spread: Tensor, noise: RowNoise) -> Tensor:
    """Return standard deviations for fits that start at ``loc``: the encoder's times the factor of the largest ELBO.

    A fit that starts much wider than a narrow mode would leave it.
    """
    num_starts, num_rows, dim = loc.shape
    half = noise.normal(_SPREAD_PAIRS, num_starts, dim, dtype=torch.float64).movedim(2, 1)
    directions = torch.cat([half, -half]) * spread  # (draws, starts, rows, dim)
    elbos = []
    for factor in _SPREADS:
        u = (loc + factor * directions).to(posterior.dtype)
        values = total(posterior.log_joint(u.view(-1, num_rows, dim))).view(u.shape[:-1])
        elbos.append(values.mean(dim=0).nan_to_num(nan=-math.inf) + dim * math.log(factor))
    best = torch.stack(elbos).argmax(dim=0)
    return torch.tensor(_SPREADS, dtype=loc.dtype, device=loc.device)[best][..., None] * spread


def _higher(v: Tensor, value: Tensor, best: Tensor, highest: Tensor) -> tuple[Tensor, Tensor]:
    """Return the better of two points for every start and row, with its value."""
    better = value > highest
    return torch.where(better[..., None], v, best), torch.where(better, value, highest)


def fit_gaussians(
    posterior: Posterior,
    starts: Starts,
    num_steps: int | Tensor,
    family: str,
    noise: RowNoise,
    patience: int = PATIENCE,
    tril: Tensor | None = None,
) -> tuple[list[Gaussian], Tensor, Tensor]:
    """Return a Gaussian for every start and row, its ELBO, (starts, rows), in nats, and the cost, (rows,).

    A fit ends when a full step promises less than ``_GAIN`` nats, or when ``patience`` steps in a row have gained less
    than ``_STALL``. It makes at most ``num_steps`` steps, a number or one per row. Each costs ``step_cost`` decoder
    evaluations, and so does the ELBO of the first Gaussian. Fits that have ended cost nothing more. A fit with a
    negligible share of a row's posterior is replaced by the row's best.

    A step stays within a trust region (Conn, Gould and Toint 2000). Its radius is multiplied by four while the ELBO
    gains at least half of what is predicted. It is divided by four if the ELBO gains hardly anything. A step that loses
    ``_ASTRAY`` nats is undone.

    ``tril``, (starts, rows, dim, dim), replaces the spread of ``starts``, to go on from an earlier fit. Its steps average
    over the noise from the beginning.
    """
    num_starts, num_rows, dim = starts.loc.shape
    device, count = starts.loc.device, num_starts * num_rows
    row = torch.arange(num_rows, device=device).repeat(num_starts)
    most = torch.as_tensor(num_steps, device=device).expand(num_rows)[row]
    noise = noise.copies(num_starts)
    rate = 1.0 if tril is None else _AGAIN
    if tril is None:
        tril = torch.diag_embed(starts.spread)
    walk = _Walk.begin(starts.loc.flatten(0, 1), tril.flatten(0, 1))
    # Results by start and row. ``walk`` and ``live`` have an entry for each of ``items``.
    best_loc, best_tril, best = walk.loc.clone(), walk.tril.clone(), walk.elbo.clone()
    steps = torch.zeros(count, dtype=torch.long, device=device)
    items, live = torch.arange(count, device=device), torch.ones(count, dtype=torch.bool, device=device)
    here, cost = posterior, posterior.cost
    while bool(live.any()):
        if 2 * int(live.sum()) <= len(live):  # go on without the fits that have ended
            items, walk, live = items[live], walk.only(live), live[live]
            here = posterior.only(row[items])
        loc, tril, predicted = walk.proposal(family)
        half = _frames(dim, noise.of_rows(items))
        directions = torch.cat([half, -half])  # (pairs · 2, items, dim): antithetic
        u = (loc + _apply(tril, directions)).to(posterior.dtype)
        values, gradient = here.score(u.view(-1, here.num_rows, dim))
        values, gradient = values.view(u.shape[:-1]), gradient.view(u.shape).double()
        log_q = -0.5 * (directions**2 + math.log(2 * math.pi)).sum(-1) - _log_det(tril)
        elbo = (values - log_q).mean(dim=0)
        walk, kept = walk.onward(loc, tril, elbo, predicted, half, gradient, rate)
        kept &= live
        best_loc[items[kept]], best_tril[items[kept]], best[items[kept]] = loc[kept], tril[kept], elbo[kept]
        steps[items[live]] += 1
        live &= (steps[items] <= most[items]) & (walk.promise > _GAIN) & (walk.stalled < patience)
    posterior.cost = cost  # the caller adds what its rows have cost
    best = best.view(num_starts, num_rows)
    hopeless = best < best.amax(dim=0) - _NEGLIGIBLE
    index = torch.where(hopeless, best.argmax(dim=0), torch.arange(num_starts, device=device)[:, None])
    fits = [Gaussian(best_loc[i], best_tril[i], posterior.dtype) for i in index * num_rows + row[:num_rows]]
    return fits, best.gather(0, index), steps.view(num_starts, num_rows).sum(dim=0) * step_cost(dim)


class _Walk(NamedTuple):
    """Fits on their way, one entry of dim 0 each.

    The regression at an accepted Gaussian gives the Newton step ``shift``. It also gives the eigenvalues and
    eigenvectors of the posterior's precision. All are in coordinates where that Gaussian is N(0, I).
    """

    loc: Tensor  # of the Gaussian accepted last
    tril: Tensor
    elbo: Tensor
    highest: Tensor  # the largest ELBO so far
    stalled: Tensor  # steps in a row that gained less than _STALL
    radius: Tensor  # of the trust region, in standard deviations
    shift: Tensor
    values: Tensor
    vectors: Tensor
    decrement: Tensor  # twice the nats that the whole shift gains
    promise: Tensor  # nats that a whole step gains

    @classmethod
    def begin(cls, loc: Tensor, tril: Tensor) -> _Walk:
        zero, one = loc.new_zeros(len(loc)), torch.ones_like(loc)
        low, eye = torch.full_like(zero, -math.inf), torch.diag_embed(one)
        return cls(loc, tril, low, low, zero, zero + _TRUST, torch.zeros_like(loc), one, eye, zero, zero)

    def only(self, chosen: Tensor) -> _Walk:
        return _Walk(*(each[chosen] for each in self))

    def proposal(self, family: str) -> tuple[Tensor, Tensor, Tensor]:
        """Return the Gaussian to try next, and the nats that its shift is predicted to gain."""
        part = (self.radius / self.shift.norm(dim=-1).clamp(min=1e-300)).clamp(max=1)
        loc = self.loc + _apply(self.tril, part[:, None] * self.shift)
        predicted = (part - part**2 / 2) * self.decrement
        limit = _MOST ** (self.radius / _TRUST).clamp(max=1)[:, None]
        if family == "mean_field":
            # The precision of the best mean-field Gaussian is the diagonal of the posterior's.
            diagonal = (self.vectors**2 @ self.values[..., None])[..., 0]
            diagonal = torch.minimum(torch.maximum(diagonal, 1 / limit), limit)
            return loc, self.tril * diagonal.rsqrt()[..., None, :], predicted
        values = torch.minimum(torch.maximum(self.values, 1 / limit), limit)
        return loc, _cholesky(self.tril @ self.vectors / values.sqrt()[..., None, :]), predicted

    def onward(
        self,
        loc: Tensor,
        tril: Tensor,
        elbo: Tensor,
        predicted: Tensor,
        half: Tensor,
        gradient: Tensor,
        rate: float,
    ) -> tuple[_Walk, Tensor]:
        """Return the next state, from gradients at loc ± tril · half, and whether the Gaussian tried is accepted."""
        elbo = torch.where(torch.isfinite(elbo), elbo, -math.inf)
        # Keep the latest fit unless its step lost _ASTRAY nats: the largest ELBO from few draws is large by chance.
        kept = elbo > self.elbo - _ASTRAY
        gain = elbo - self.elbo
        clipped = self.shift.norm(dim=-1) > self.radius
        good, bad = clipped & (gain > predicted / 2), ~kept | (gain < predicted / 10 - 1)
        radius = self.radius * torch.where(good, _GROWTH, torch.where(bad, 1 / _GROWTH, 1.0))
        stalled = torch.where(elbo > self.highest + _STALL, 0.0, self.stalled + 1)
        # Whole steps while the ELBO rises; then they average over the noise of earlier ones.
        model = _regress(tril, half, gradient, torch.where(stalled > 0, rate / 2, rate))
        new = _Walk(loc, tril, elbo, self.highest, stalled, radius, *model)
        old = self._replace(radius=radius, stalled=stalled)
        chosen = _Walk(
            *(torch.where(kept.view(-1, *[1] * (a.dim() - 1)), a, b) for a, b in zip(new, old, strict=True))
        )
        return chosen._replace(highest=torch.maximum(self.highest, elbo)), kept


def search_cost(num_starts: int) -> int:
    """Return the decoder evaluations of ``independent_starts`` per row, with the draws of the prior that it starts from."""
    ascent = 3 * (_ASCENT_STEPS + 1 + 3 * _SECANT_STEPS)
    return num_starts * (PRIOR_DRAWS + ascent + 2 * _SPREAD_PAIRS * len(_SPREADS))


def fit_cost(dim: int, num_starts: int, num_steps: int) -> int:
    """Return the decoder evaluations of ``fit_gaussians`` per row."""
    return num_starts * (num_steps + 1) * step_cost(dim)


def step_cost(dim: int) -> int:
    """Return the decoder evaluations of one step for one start; a gradient counts three."""
    return 3 * 2 * dim * _num_frames(dim)


def _num_frames(dim: int) -> int:
    return -(-_FEWEST_PAIRS // dim)


def _frames(dim: int, noise: RowNoise) -> Tensor:
    """Return standard normal vectors, (pairs, fits, dim), orthogonal in sets of ``dim``.

    Orthogonal vectors determine a regression with as few of them as it has coefficients.
    """
    drawn, other = (noise.normal(_num_frames(dim), dim, dim, dtype=torch.float64) for _ in range(2))
    vectors = torch.linalg.qr(drawn).Q * other.norm(dim=-1, keepdim=True)  # (frames, fits, dim, dim)
    return vectors.movedim(2, 1).flatten(0, 1)


def _regress(tril: Tensor, half: Tensor, gradient: Tensor, rate: Tensor) -> tuple[Tensor, ...]:
    """Return ``shift``, ``values``, ``vectors``, ``decrement`` and ``promise`` of a ``_Walk``.

    ``rate`` is the weight of this regression's precision, the rest is that of the present Gaussian.
    """
    gradient = _apply(tril.mT, gradient)
    pairs, dim = len(half), half.shape[-1]
    odd = (gradient[:pairs] - gradient[pairs:]) / 2  # −A e, without the mean
    e = half.movedim(0, -2)  # (fits, pairs, dim)
    precision = -torch.linalg.solve(e.mT @ e, e.mT @ odd.movedim(0, -2))
    eye, rate = torch.eye(dim, dtype=half.dtype, device=half.device), rate[:, None, None]
    values, vectors = torch.linalg.eigh((1 - rate) * eye + rate * (precision + precision.mT) / 2)
    slope = _apply(vectors.mT, gradient.mean(dim=0))
    shift = slope / values.clamp(min=_LEAST)
    decrement = (slope * shift).sum(-1)
    held = values.clamp(_LEAST, _MOST)
    promise = (decrement + (held - 1 - held.log()).sum(-1)) / 2
    return _apply(vectors, shift), values, vectors, decrement, promise


def _cholesky(root: Tensor) -> Tensor:
    """Return the lower triangular factor of root · rootᵀ, by QR, which does not square the condition number."""
    r = torch.linalg.qr(root.mT).R.mT
    return r * torch.where(r.diagonal(dim1=-2, dim2=-1) < 0, -1.0, 1.0)[..., None, :]


def _apply(matrix: Tensor, vectors: Tensor) -> Tensor:
    """Return matrix · vector for each of the vectors, (..., dim)."""
    return (matrix @ vectors[..., None])[..., 0]


def _log_det(tril: Tensor) -> Tensor:
    return tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
