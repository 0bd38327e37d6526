"""Fits Gaussians to the posterior of every row, from the encoder's mean and from modes found without the encoder.

A fit is a fixed point of the equations of a Gaussian of least KL(q ‖ posterior) (Opper and Archambeau 2009):

    E_q[∇ log P(x, u)] = 0,    E_q[−∇² log P(x, u)] = precision of q.

A regression of the gradients at draws of q on these draws gives both expectations at once. The second needs no
second derivative, by Stein's identity. A Newton step on each gives the next q; on a Gaussian posterior the first
step is exact. torch's optimisers vectorise over rows too, but need more decoder evaluations. On 50 latent
dimensions, Adam takes 9600 per row to an effective sample size of 947 in 1000 draws; three of these steps take
1200 to one of 1000 (benchmarks/fits.py). The search for modes uses torch's Adam.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pyrovae.evidence.posterior import Gaussian, Posterior, total
from pyrovae.row_noise import RowNoise

FAMILIES = ("full_rank", "mean_field")

_ENCODER_DRAWS = 128
PRIOR_DRAWS = 32  # for every start
_ASCENT_STEPS = 40
_ASCENT_RATE = 0.2  # of the prior's standard deviation
# A step moves q by at most this many of its standard deviations, and changes its variances by at most tenfold.
_TRUST = 2.0
_FEWEST_PAIRS = 4
_LEAST, _MOST = 0.1, 10.0
_LEAST_SPREAD = 0.01  # of the prior's standard deviation
_ASTRAY = 5.0  # nats of the ELBO that a step may lose
# A fit this many nats below the row's best covers a negligible share of the posterior.
_NEGLIGIBLE = 10.0


@dataclass(frozen=True)
class Starts:
    """Starting points of fits: loc (starts, rows, dim), log_joint there, and the encoder's spread (rows, dim)."""

    loc: Tensor
    log_joint: Tensor
    spread: Tensor


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
    return Starts(loc[None], total(posterior.log_joint(loc[None].to(posterior.dtype))), spread)


def _scale(prior: Tensor) -> Tensor:
    """Return the standard deviations of the prior's draws, (rows, dim), each row's from its own draws."""
    return prior.double().std(dim=0).clamp(min=1e-6)


def independent_starts(
    posterior: Posterior, num_starts: int, encoder: Starts, prior: Tensor, values: Tensor
) -> Starts:
    """Return local modes of the posterior, found by gradient ascent from draws of the prior far from the encoder.

    ``prior`` holds draws of the prior, (samples, rows, dim), and ``values`` log P(x, u) there. The starts come
    from the best quarter of the draws. The first is the draw farthest from the encoder's mean; each of the
    others is the one farthest from all before. With two modes of equal mass, three such starts find the mode
    that the encoder misses in 400 of 400 rows; starts at the three best draws find it in 349 (benchmarks/fits.py).
    """
    scale = _scale(prior)
    values = torch.where(torch.isfinite(values), values, -math.inf)
    better = values.topk(len(prior) // 4, dim=0).indices[..., None].expand(-1, -1, prior.shape[-1])
    candidates = prior.double().gather(0, better) / scale  # (candidates, rows, dim)
    distance = ((candidates - encoder.loc[0] / scale) ** 2).sum(-1)
    chosen = []
    for _ in range(num_starts):
        farthest = distance.argmax(dim=0)[None, :, None].expand(1, *candidates.shape[1:])
        chosen.append(candidates.gather(0, farthest)[0])
        distance = torch.minimum(distance, ((candidates - chosen[-1]) ** 2).sum(-1))
    v = torch.stack(chosen).requires_grad_()
    optimizer = torch.optim.Adam([v], lr=_ASCENT_RATE, betas=(0.8, 0.95))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, _ASCENT_STEPS)
    for _ in range(_ASCENT_STEPS):
        _, gradient = posterior.score((v.detach() * scale).to(posterior.dtype))
        v.grad = -gradient.double() * scale
        optimizer.step()
        schedule.step()
    loc = v.detach() * scale
    return Starts(loc, total(posterior.log_joint(loc.to(posterior.dtype))), encoder.spread)


def fit_gaussians(
    posterior: Posterior, starts: Starts, num_steps: int, family: str, noise: RowNoise
) -> tuple[list[Gaussian], Tensor]:
    """Return a Gaussian for every start and row, and its ELBO, shape (starts, rows), in nats.

    The fit makes ``num_steps`` steps of ``step_cost`` decoder evaluations per start, and one more such
    evaluation for the ELBO. A fit with a negligible share of a row's posterior is replaced by the row's best.
    """
    num_starts, num_rows, dim = starts.loc.shape
    loc = starts.loc.clone()
    tril = torch.diag_embed(starts.spread).expand(num_starts, num_rows, dim, dim).clone()
    best = torch.full((num_starts, num_rows), -math.inf, dtype=torch.float64, device=loc.device)
    best_loc, best_tril = loc.clone(), tril.clone()
    for step in range(num_steps + 1):
        half = _frames(loc, noise)
        directions = torch.cat([half, -half])  # (pairs · 2, starts, rows, dim): antithetic
        u = (loc + _apply(tril, directions)).to(posterior.dtype)
        values, gradient = posterior.score(u.flatten(0, 1).view(-1, num_rows, dim))
        values, gradient = values.view(u.shape[:-1]), gradient.view(u.shape).double()
        log_q = -0.5 * (directions**2 + math.log(2 * math.pi)).sum(-1) - _log_det(tril)
        elbo = (values - log_q).mean(dim=0)
        elbo = torch.where(torch.isfinite(elbo), elbo, -math.inf)
        # Keep the latest fit unless its step lost _ASTRAY nats: the largest ELBO from few draws is large by chance.
        kept = elbo > best - _ASTRAY
        best = torch.where(kept, elbo, best)
        best_loc = torch.where(kept[..., None], loc, best_loc)
        best_tril = torch.where(kept[..., None, None], tril, best_tril)
        if step < num_steps:
            # Full steps at first; later ones average over the noise of earlier ones.
            loc, tril = _step(loc, tril, half, gradient, 1.0 if 2 * step < num_steps else 0.5, family)
    hopeless = best < best.max(dim=0).values - _NEGLIGIBLE
    index = torch.where(hopeless, best.argmax(dim=0), torch.arange(num_starts, device=loc.device)[:, None])
    rows = torch.arange(num_rows, device=loc.device)
    fits = [Gaussian(best_loc[i, rows], best_tril[i, rows], posterior.dtype) for i in index]
    return fits, best.gather(0, index)


def fit_cost(dim: int, num_starts: int, num_steps: int) -> int:
    """Return the decoder evaluations of ``fit_gaussians`` per row."""
    return num_starts * (num_steps + 1) * step_cost(dim)


def step_cost(dim: int) -> int:
    """Return the decoder evaluations of one step for one start; a gradient counts three."""
    return 3 * 2 * dim * _num_frames(dim)


def _num_frames(dim: int) -> int:
    return -(-_FEWEST_PAIRS // dim)


def _frames(loc: Tensor, noise: RowNoise) -> Tensor:
    """Return standard normal vectors, (pairs, starts, rows, dim), orthogonal in sets of ``dim``.

    Orthogonal vectors determine a regression with as few of them as it has coefficients.
    """
    starts, _, dim = loc.shape
    # (frames, rows, starts, dim, dim)
    drawn, other = (noise.normal(_num_frames(dim), starts, dim, dim, dtype=torch.float64) for _ in range(2))
    vectors = torch.linalg.qr(drawn).Q * other.norm(dim=-1, keepdim=True)
    return vectors.permute(0, 3, 2, 1, 4).flatten(0, 1)


def _step(
    loc: Tensor, tril: Tensor, half: Tensor, gradient: Tensor, rate: float, family: str
) -> tuple[Tensor, Tensor]:
    """Return the next Gaussian from gradients at loc ± tril · half, in coordinates where the present one is N(0, I)."""
    gradient = _apply(tril.mT, gradient)
    pairs, dim = len(half), half.shape[-1]
    odd = (gradient[:pairs] - gradient[pairs:]) / 2  # −A e, without the mean
    e = half.movedim(0, -2)  # (starts, rows, pairs, dim)
    eye = torch.eye(dim, dtype=half.dtype, device=half.device)
    precision = -torch.linalg.solve(e.mT @ e, e.mT @ odd.movedim(0, -2))
    precision = (1 - rate) * eye + rate * (precision + precision.mT) / 2
    values, vectors = torch.linalg.eigh(precision)
    shift = _apply(vectors, _apply(vectors.mT, gradient.mean(dim=0)) / values.clamp(min=_LEAST))
    length = shift.norm(dim=-1, keepdim=True)
    loc = loc + _apply(tril, shift * (_TRUST / length.clamp(min=_TRUST)))
    if family == "mean_field":
        # The precision of the best mean-field Gaussian is the diagonal of the posterior's.
        diagonal = precision.diagonal(dim1=-2, dim2=-1).clamp(_LEAST, _MOST)
        return loc, tril * diagonal.rsqrt()[..., None, :]
    root = tril @ vectors / values.clamp(_LEAST, _MOST).sqrt()[..., None, :]
    return loc, _cholesky(root)


def _cholesky(root: Tensor) -> Tensor:
    """Return the lower triangular factor of root · rootᵀ, by QR, which does not square the condition number."""
    r = torch.linalg.qr(root.mT).R.mT
    return r * torch.where(r.diagonal(dim1=-2, dim2=-1) < 0, -1.0, 1.0)[..., None, :]


def _apply(matrix: Tensor, vectors: Tensor) -> Tensor:
    """Return matrix · vector for each of the vectors, (..., dim)."""
    return (matrix @ vectors[..., None])[..., 0]


def _log_det(tril: Tensor) -> Tensor:
    return tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
