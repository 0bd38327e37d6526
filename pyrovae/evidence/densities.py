"""mismatch() tests whether draws of guide, prior and likelihood have the density that their log_prob states."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributions import MultivariateNormal, Normal

from pyrovae.evaluation import Evaluation
from pyrovae.evidence.posterior import Posterior, undisturbed
from pyrovae.noise import Stream, tile_shape
from pyrovae.pair import Batch, Latents
from pyrovae.refusals import Refused
from pyrovae.row_noise import RowNoise

#: Rows that are tested, and draws of each.
ROWS, DRAWS = 16, 256
# Most draws that a Gaussian is fitted to, for each row, and draws for each squared dimension. With fewer, the Gaussian has
# independent dimensions.
_MOST_FITTED, _BY_SQUARE = 2048, 1 / 8
# A difference counts from this many standard errors and nats on. Chance makes six standard errors in two of 10⁹ tests.
_ERRORS, _NATS = 6.0, 0.02
_FEWEST = 200  # the least sum of numbers in [0, 1] for which their sample variance is used
_MOST_NUMBERS = 1 << 19  # in the draws of x; fewer rows are tested if there are many columns
_CLIP = 6.0  # spreads around the median that the Gaussian is fitted to
_MOST_TIED = 2  # draws of a column that equal another one
_MOST_ROUNDED = 1e-3  # share of draws on a bound, and resolution of a dtype in units of the spread


class _Reference(NamedTuple):
    """A normalised density for each row: a Gaussian fitted to some draws, and the box that these draws lie in."""

    gaussian: MultivariateNormal
    low: Tensor
    high: Tensor

    @classmethod
    def fit(cls, u: Tensor) -> _Reference:
        """Return the reference of draws, (samples, rows, dim)."""
        samples, _, dim = u.shape
        centre, spread = _place(u)
        clipped = torch.maximum(torch.minimum(u, centre + _CLIP * spread), centre - _CLIP * spread)
        mean = clipped.mean(dim=0)
        rest = clipped - mean
        if samples >= _BY_SQUARE * dim**2:
            covariance = torch.einsum("sni,snj->nij", rest, rest) / samples
            scale = torch.diag_embed(1e-6 * covariance.diagonal(dim1=-2, dim2=-1))
            tril = torch.linalg.cholesky_ex(covariance + scale).L
        else:
            tril = torch.diag_embed(rest.square().mean(dim=0).sqrt())
        return cls(
            MultivariateNormal(mean, scale_tril=tril, validate_args=False), u.amin(dim=0), u.amax(dim=0)
        )

    def draw(self, noise: RowNoise) -> Tensor:
        """Return draws, (samples, rows, dim)."""
        mean = self.gaussian.loc
        standard = noise.normal(DRAWS, mean.shape[-1], dtype=mean.dtype)
        return mean + (self.gaussian.scale_tril @ standard.unsqueeze(-1)).squeeze(-1)

    def share(self, u: Tensor, log_ratio: Tensor) -> Tensor:
        """Return min(1, exp(log_ratio)) of draws in the box and 0 elsewhere, (samples, rows); NaN stays."""
        inside = ((u >= self.low) & (u <= self.high)).all(dim=-1)
        return torch.where(inside, log_ratio.clamp(max=0.0).exp(), 0.0)


def mismatch(evaluation: Evaluation, guide: bool = True) -> str | None:
    """Return which of guide, prior and likelihood has draws without the density of its log_prob, in words; None if none.

    Let r be a density fitted to draws u ~ q of a row. For every normalised q and every box B,

        E_q[1_B min(1, r / q)] = ∫_B min(q, r) du = E_r[1_B min(1, q / r)].

    Both means are taken of other draws, with log_prob for log q. Their numbers are at most 1, so tails do not disturb the
    test. They differ if log_prob lacks a constant or a log-determinant, or if the draws have another density. Latents are
    tested in unbounded coordinates, and columns of x one by one, given the z that the row was simulated with. Not tested are
    discrete latents, sites that score several columns jointly, columns that depend on others given z, densities with a
    mass at some value, and rows whose draws round onto a bound.

    Args:
        evaluation: of rows simulated from the model.
        guide: whether to test the guide.

    Meng and Wong (1996) for the identity.
    """
    found: dict[str, float] = {}
    with undisturbed(evaluation, Stream.DENSITIES) as noise:
        width = max(1, tile_shape(evaluation.structure.widest, 1)[0] // len(evaluation))
        with suppress(Refused):  # discrete latents, or a space in which draws cannot be moved
            found |= _of_latents(Posterior(evaluation), guide, width, noise.branch())
        with suppress(Refused):  # columns that are scored jointly, or not sampled
            found |= _of_columns(evaluation, width, noise.branch())
    for part, nats in found.items():
        if nats:
            way = "high" if nats > 0 else "low"
            many = f"{abs(nats):.2g}" if math.isfinite(nats) else "many"
            return (
                f"draws of the {part} do not have the density of its log_prob, which is {many} nats too {way} on "
                "average: check its normalisation, its log-determinant, its sample(), and its rounding in float32"
            )
    return None


def _of_latents(posterior: Posterior, guide: bool, width: int, noise: RowNoise) -> dict[str, float]:
    """Return by how many nats the log densities of guide and prior are too high for their draws; 0 if they may be right."""

    def of_prior(u: Tensor) -> Tensor:
        return torch.cat([posterior.log_joint(part).prior for part in u.split(width)])

    def drawn_prior(number: int, noise: RowNoise) -> Tensor:
        return torch.cat([posterior.draw_prior(size, noise)[0] for size in _sizes(number, width)])

    found = {"prior": _off(posterior, drawn_prior, of_prior, noise.branch())}
    if guide:
        found["guide"] = _off(posterior, posterior.draw_encoder, posterior.log_encoder, noise.branch())
    return found


def _off(
    posterior: Posterior,
    draw: Callable[[int, RowNoise], Tensor],
    log_density: Callable[[Tensor], Tensor],
    noise: RowNoise,
) -> float:
    """Return by how many nats a log density is too high for its draws, over all rows; 0 if it may be right."""
    fitted = min(max(DRAWS, math.ceil(_BY_SQUARE * posterior.dim**2)), _MOST_FITTED)
    known, own = draw(fitted, noise.branch()), draw(DRAWS, noise.branch())
    reference = _Reference.fit(known)
    other = reference.draw(noise.branch())
    of_own = reference.share(own, reference.gaussian.log_prob(own) - log_density(own))
    of_other = reference.share(other, log_density(other) - reference.gaussian.log_prob(other))
    centre, spread = _place(known)
    resolution = torch.finfo(posterior.dtype).eps * centre.abs().maximum(spread)
    sound = (resolution <= _MOST_ROUNDED * spread).all(dim=-1)
    sound &= posterior.beyond(own).to(own).mean(dim=0) <= _MOST_ROUNDED
    sound &= torch.isfinite(of_own).all(dim=0) & torch.isfinite(of_other).all(dim=0)
    return _difference(of_own[:, sound], of_other[:, sound])


def _of_columns(evaluation: Evaluation, width: int, noise: RowNoise) -> dict[str, float]:
    """Return by how many nats log P(x_d | z) is too high for draws, of the worst column or of all; 0 if they may be right."""
    rows = slice(min(len(evaluation), max(1, _MOST_NUMBERS // (DRAWS * len(evaluation.structure.measure)))))
    model, number = evaluation.model, rows.stop
    batch, exact = evaluation.part(rows), evaluation.exact_draw(rows)
    kinds = evaluation.structure.measure
    if exact is None or set(kinds) - {"mass", "density"}:
        return {}
    if "observed" in batch:
        batch = {**batch, "observed": torch.ones_like(batch["observed"])}
    model.check_replicable(batch)

    def repeated(count: int) -> tuple[Batch, Latents]:
        """Return every row and its z, ``count`` times, as rows of their own."""
        index = torch.arange(number, device=evaluation.numbers.device).repeat(count)
        latents = {
            name: model.rows_back(name, model.rows_second(name, z)[:, index]) for name, z in exact.items()
        }
        return {name: value[index] for name, value in batch.items()}, latents

    def drawn() -> Tensor:
        parts = []
        for count in _sizes(DRAWS, width):
            some, latents = repeated(count)
            parts.append(model.replicate(some, latents, None)[0].reshape(count, number, -1))
        return torch.cat(parts)

    def log_density(x: Tensor) -> Tensor:
        parts = []
        for part in x.split(width):
            some, latents = repeated(len(part))
            some["x"] = part.reshape(-1, *batch["x"].shape[1:])
            parts.append(model.log_columns(some, latents)[0].view(part.shape))
        return torch.cat(parts)

    known, own = drawn(), drawn()
    counted = torch.tensor([kind == "mass" for kind in kinds], device=known.device)
    ordered = known.movedim(0, -1).sort(dim=-1).values.contiguous()  # (rows, columns, samples)
    centre, spread = _place(known)
    mean, deviation = known.double().mean(dim=0), known.double().std(dim=0)
    gaussian = Normal(mean, deviation.clamp(min=torch.finfo(torch.float64).tiny), validate_args=False)

    def log_reference(x: Tensor) -> Tensor:
        moved = x.movedim(0, -1).contiguous()
        counts = torch.searchsorted(ordered, moved, right=True) - torch.searchsorted(ordered, moved)
        return torch.where(
            counted, (counts / DRAWS).movedim(-1, 0).double().log(), gaussian.log_prob(x.double())
        )

    noise = noise.of_rows(torch.arange(number, device=known.device))
    chosen = (noise.uniform(DRAWS, len(kinds), dtype=torch.float64) * DRAWS).long()
    standard = noise.normal(DRAWS, len(kinds), dtype=torch.float64)
    other = torch.where(counted, known.gather(0, chosen), (mean + deviation * standard).to(known))
    inside = (other >= ordered[..., 0]) & (other <= ordered[..., -1])
    of_own = torch.where(
        (own >= ordered[..., 0]) & (own <= ordered[..., -1]),
        (log_reference(own) - log_density(own)).clamp(max=0.0).exp(),
        0.0,
    )
    # Values outside of the box may be off the support, and count for nothing.
    scored = log_density(torch.where(inside, other, centre))
    of_other = torch.where(inside, (scored - log_reference(other)).clamp(max=0.0).exp(), 0.0)
    # A value that is drawn again and again has a mass, which is no density.
    every = torch.cat([known, own]).flatten(0, 1).sort(dim=0).values
    ties = (every.diff(dim=0) == 0).sum(dim=0)
    resolution = torch.finfo(known.dtype).eps * centre.abs().maximum(spread)
    sound = counted | ((resolution <= _MOST_ROUNDED * spread) & (ties <= _MOST_TIED))
    sound &= torch.isfinite(of_own).all(dim=0) & torch.isfinite(of_other).all(dim=0)
    found = {
        f"likelihood of column {column}": _difference(of_own[:, rows, column], of_other[:, rows, column])
        for column, rows in enumerate(sound.T)
    }
    found["likelihood"] = _difference(of_own[:, sound], of_other[:, sound], len(kinds))
    worst = max(found, key=lambda name: abs(found[name]))
    return {worst: found[worst]}


def _difference(of_own: Tensor, of_other: Tensor, columns: int = 1) -> float:
    """Return the log of the ratio of two means over samples and rows, times ``columns``; 0 if they may be equal.

    The entries are in [0, 1]. If their sum is small, their sample variance may miss the large ones, so that the largest
    variance of such entries is used.
    """
    if not of_own.numel():
        return 0.0
    number, (first, second) = of_own.shape[1], (float(each.mean()) for each in (of_own, of_other))
    variance = float((of_own.var(dim=0) + of_other.var(dim=0)).mean())
    if min(first, second) * of_own.numel() < _FEWEST:
        variance = max(variance, (first + second) * (1 - (first + second) / 2))
    if abs(first - second) <= _ERRORS * math.sqrt(variance / (DRAWS * number)):
        return 0.0
    ratio = math.log(second / first) if min(first, second) else math.copysign(math.inf, second - first)
    return columns * ratio if abs(columns * ratio) > _NATS else 0.0


def _sizes(number: int, width: int) -> list[int]:
    """Return the sizes of the parts of ``number`` draws, at most ``width`` each."""
    return [min(width, number - done) for done in range(0, number, width)]


def _place(u: Tensor) -> tuple[Tensor, Tensor]:
    """Return median and spread of draws, from the quartiles, (rows, dim) each."""
    ordered, last = u.sort(dim=0).values, len(u) - 1
    low, centre, high = (ordered[last * quarter // 4] for quarter in (1, 2, 3))
    return centre, (high - low) / 1.35
