"""Gaussians fitted to the posterior of every row, from the encoder's place and from places it knows nothing of.

A fit is a fixed point of what a Gaussian of least KL(q ‖ posterior) satisfies (Opper and Archambeau 2009):

    E_q[∇ log P(x, u)] = 0,    E_q[−∇² log P(x, u)] = precision of q.

Regressing the gradients at draws of q on the draws gives both expectations at once, the second without a
second derivative (Stein's identity), and a Newton step on each gives the next q. On a Gaussian posterior
the first step is exact. torch's optimisers do vectorise over rows, but need far more: on 50 latent
dimensions Adam takes 4800 decoder evaluations a row to an effective sample size of 619 in 1000 draws,
three of these steps take 918 to one of 1000 (benchmarks/README.md). The search for modes is torch's Adam.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pyrovae.evidence.posterior import Gaussian, Posterior

FAMILIES = ("full_rank", "mean_field")

_ENCODER_DRAWS = 128
_PRIOR_DRAWS = 32  # for every start
_ASCENT_STEPS = 50
_ASCENT_RATE = 0.2  # of the prior's standard deviation
# A step moves q by at most this many of its standard deviations, and changes its variances by at most tenfold.
_TRUST = 2.0
_FEWEST_PAIRS = 4
_LEAST, _MOST = 0.1, 10.0
# A fit this many nats below the row's best holds a share of the posterior that does not matter.
_NEGLIGIBLE = 10.0


@dataclass(frozen=True)
class Starts:
    """Where fits begin: loc of shape (starts, rows, dim), log_joint there, and the encoder's spread (rows, dim)."""

    loc: Tensor
    log_joint: Tensor
    spread: Tensor


def encoder_start(posterior: Posterior) -> Starts:
    """The encoder's mean and standard deviations, from draws that cost no decoder evaluation."""
    u = posterior.draw_encoder(_ENCODER_DRAWS).double()
    loc = u.mean(dim=0)
    # A guide that has collapsed in some dim must still be able to move there.
    spread = u.std(dim=0).clamp(min=1e-6)
    return Starts(loc[None], _total(posterior, loc[None]), spread)


def independent_starts(posterior: Posterior, num_starts: int, spread: Tensor) -> Starts:
    """Local modes of the posterior, by ascents from the best of 32 prior draws each: nothing of the encoder's."""
    draws = posterior.draw_prior(_PRIOR_DRAWS * num_starts)
    scale = draws.double().std(dim=(0, 1)).clamp(min=1e-6)
    values = _total(posterior, draws).view(_PRIOR_DRAWS, num_starts, -1)
    best = values.nan_to_num(nan=-math.inf).argmax(dim=0)  # (starts, rows)
    draws = draws.view(_PRIOR_DRAWS, num_starts, *draws.shape[1:]).double()
    v = (draws.gather(0, best[None, ..., None].expand(1, *draws.shape[1:]))[0] / scale).requires_grad_()
    optimizer = torch.optim.Adam([v], lr=_ASCENT_RATE, betas=(0.8, 0.95))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, _ASCENT_STEPS)
    for _ in range(_ASCENT_STEPS):
        _, gradient = posterior.score((v.detach() * scale).to(posterior.dtype))
        v.grad = -gradient.double() * scale
        optimizer.step()
        schedule.step()
    loc = v.detach() * scale
    return Starts(loc, _total(posterior, loc), spread)


def _total(posterior: Posterior, u: Tensor) -> Tensor:
    joint = posterior.log_joint(u.to(posterior.dtype))
    return joint.prior + joint.likelihood


def fit_gaussians(
    posterior: Posterior, starts: Starts, num_steps: int, family: str
) -> tuple[list[Gaussian], Tensor]:
    """A Gaussian for every start and row, and its ELBO, shape (starts, rows), in nats.

    ``num_steps`` steps, each from ``step_cost`` decoder evaluations; the iterate with the largest ELBO is kept. One
    that ends where there is next to nothing of a row's posterior is replaced by the row's best.
    """
    num_starts, num_rows, dim = starts.loc.shape
    loc = starts.loc.clone()
    tril = torch.diag_embed(starts.spread).expand(num_starts, num_rows, dim, dim).clone()
    best = torch.full((num_starts, num_rows), -math.inf, dtype=torch.float64, device=loc.device)
    best_loc, best_tril = loc.clone(), tril.clone()
    for step in range(num_steps + 1):
        half = _frames(loc)
        noise = torch.cat([half, -half])  # (pairs · 2, starts, rows, dim): antithetic
        u = (loc + _apply(tril, noise)).to(posterior.dtype)
        total, gradient = posterior.score(u.flatten(0, 1).view(-1, num_rows, dim))
        total, gradient = total.view(u.shape[:-1]), gradient.view(u.shape).double()
        log_q = -0.5 * (noise**2 + math.log(2 * math.pi)).sum(-1) - _log_det(tril)
        elbo = (total - log_q).mean(dim=0).nan_to_num(nan=-math.inf)
        better = elbo > best
        best = torch.where(better, elbo, best)
        best_loc = torch.where(better[..., None], loc, best_loc)
        best_tril = torch.where(better[..., None, None], tril, best_tril)
        if step < num_steps:
            # Whole steps at first; later ones average the noise of their predecessors.
            loc, tril = _step(loc, tril, half, gradient, 1.0 if 2 * step < num_steps else 0.5, family)
    hopeless = best < best.max(dim=0).values - _NEGLIGIBLE
    index = torch.where(hopeless, best.argmax(dim=0), torch.arange(num_starts, device=loc.device)[:, None])
    rows = torch.arange(num_rows, device=loc.device)
    fits = [Gaussian(best_loc[i, rows], best_tril[i, rows], posterior.dtype) for i in index]
    return fits, best.gather(0, index)


def step_cost(dim: int) -> int:
    """Decoder evaluations of a step, for every start: a gradient counts three."""
    return 3 * 2 * dim * _num_frames(dim)


def _num_frames(dim: int) -> int:
    return -(-_FEWEST_PAIRS // dim)


def _frames(loc: Tensor) -> Tensor:
    """Standard normal vectors, (pairs, starts, rows, dim), orthogonal in sets of ``dim``.

    Orthogonal, they determine a regression with no more of them than there are coefficients.
    """
    dim = loc.shape[-1]
    shape = (_num_frames(dim), *loc.shape, dim)
    directions = torch.linalg.qr(torch.randn(shape, dtype=torch.float64, device=loc.device)).Q
    lengths = torch.randn(shape, dtype=torch.float64, device=loc.device).norm(dim=-1, keepdim=True)
    return (directions * lengths).movedim(-2, 1).flatten(0, 1)


def _step(
    loc: Tensor, tril: Tensor, half: Tensor, gradient: Tensor, rate: float, family: str
) -> tuple[Tensor, Tensor]:
    """The next Gaussian, from gradients at loc ± tril · half; in coordinates in which the present one is N(0, I)."""
    gradient = _apply(tril.mT, gradient)
    pairs, dim = len(half), half.shape[-1]
    odd = (gradient[:pairs] - gradient[pairs:]) / 2  # −A e, without the mean
    e = half.movedim(0, -2)  # (starts, rows, pairs, dim)
    eye = torch.eye(dim, dtype=half.dtype, device=half.device)
    precision = -torch.linalg.solve(e.mT @ e, e.mT @ odd.movedim(0, -2))
    precision = (1 - rate) * eye + rate * (precision + precision.mT) / 2
    values, vectors = torch.linalg.eigh(precision)
    values = values.clamp(_LEAST, _MOST)
    shift = _apply(vectors, _apply(vectors.mT, gradient.mean(dim=0)) / values)
    length = shift.norm(dim=-1, keepdim=True)
    loc = loc + _apply(tril, shift * (_TRUST / length.clamp(min=_TRUST)))
    if family == "mean_field":
        diagonal = ((vectors**2) @ values[..., None])[..., 0]
        return loc, tril * diagonal.rsqrt()[..., None, :]
    root = tril @ vectors / values.sqrt()[..., None, :]
    return loc, _cholesky(root)


def _cholesky(root: Tensor) -> Tensor:
    """The lower triangular factor of root · rootᵀ, by QR: it does not square the condition number."""
    r = torch.linalg.qr(root.mT).R.mT
    return r * torch.where(r.diagonal(dim1=-2, dim2=-1) < 0, -1.0, 1.0)[..., None, :]


def _apply(matrix: Tensor, vectors: Tensor) -> Tensor:
    """matrix · vector for every one of (..., dim)."""
    return (matrix @ vectors[..., None])[..., 0]


def _log_det(tril: Tensor) -> Tensor:
    return tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
