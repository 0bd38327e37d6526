"""mismatch() tests whether draws of guide, prior and likelihood have the density that their log_prob states."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from pyrovae.evaluation import Evaluation
from pyrovae.evidence.bridge import GaussianMixture, fitted_mixture, standardised
from pyrovae.evidence.overlap import Fault, Overlap
from pyrovae.evidence.posterior import Posterior, undisturbed
from pyrovae.noise import Stream, tile_shape
from pyrovae.pair import Batch, Coordinates, Latents
from pyrovae.refusals import Refused
from pyrovae.row_noise import RowNoise

#: Rows that are tested, and draws of each.
ROWS, DRAWS = 16, 256
# Most draws that a Gaussian is fitted to, for each row, and draws for each squared dimension. With fewer, the Gaussian has
# independent dimensions.
_MOST_FITTED, _BY_SQUARE = 2048, 1 / 8
# With a smaller overlap than this, at most so many rows are compared with mixtures of Gaussians. Normals of up to 128
# dimensions have 0.2.
_LEAST_OVERLAP, _MIXED = 0.1, 4
_MOST_NUMBERS = 1 << 19  # in the draws of x; fewer rows are tested if there are many columns
_CLIP = 6.0  # spreads around the median that the Gaussian is fitted to
_MOST_ROUNDED = 1e-3  # share of draws on a bound, and resolution of a dtype in units of the spread
_BETWEEN = 16  # draws of x in an interval of the reference
_KEPT = 1 / 4  # of the entries of x keep their value while those of other columns change
_DEPENDS = 1e-3  # relative change of log P(x_d | z) by other columns
_CHANCE = 1e-9  # that so many draws of a density are equal


class _Reference(NamedTuple):
    """A normalised density for each row: a Gaussian fitted to some draws, and the box that these draws lie in.

    Some rows have a mixture of v in its place, where u is the mean plus v times the Cholesky factor.
    """

    gaussian: MultivariateNormal
    low: Tensor
    high: Tensor
    mixtures: Mapping[int, GaussianMixture] = {}

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

    def mixed(self, u: Tensor, rows: Tensor, seed: int) -> _Reference:
        """Return the reference with mixtures fitted to the draws of some rows, where a fit does not fail."""
        found = {}
        for row in rows.tolist():
            with suppress(ValueError, RuntimeError):
                found[row] = fitted_mixture(self._standardised(u, row), float(len(u)), seed)
        return self._replace(mixtures=found)

    def draw(self, noise: RowNoise) -> Tensor:
        """Return draws, (samples, rows, dim)."""
        mean = self.gaussian.loc
        standard = noise.normal(DRAWS, mean.shape[-1], dtype=mean.dtype)
        for row, mixture in self.mixtures.items():
            standard[:, row] = mixture.draw(DRAWS, torch.Generator().manual_seed(noise.seed ^ row)).to(mean)
        return mean + (self.gaussian.scale_tril @ standard.unsqueeze(-1)).squeeze(-1)

    def log_prob(self, u: Tensor) -> Tensor:
        """Return the log density of draws, (samples, rows)."""
        found = self.gaussian.log_prob(u)
        for row, mixture in self.mixtures.items():
            log_det = self.gaussian.scale_tril[row].diagonal().log().sum()
            found[:, row] = mixture.log_prob(self._standardised(u, row)).to(u) - log_det
        return found

    def _standardised(self, u: Tensor, row: int) -> Tensor:
        gaussian = self.gaussian
        parts = (each.double().cpu() for each in (u[:, row], gaussian.loc[row], gaussian.scale_tril[row]))
        return standardised(*parts)

    def inside(self, u: Tensor) -> Tensor:
        """Return which draws lie in the box, (samples, rows)."""
        return ((u >= self.low) & (u <= self.high)).all(dim=-1)


class _Marginals(NamedTuple):
    """A distribution of every column of every row, which is uniform between some order statistics of draws of x.

    Masses are those of whole numbers. In columns with other numbers, or with multiples of a number alone, values are
    numbered by their ranks in a row. Values that are not among the draws then have no mass.
    """

    counted: Tensor  # which columns have masses, (columns,)
    ordered: Tensor  # draws, (rows, columns, samples)
    ranks: Tensor  # of the draws' values
    ranked: Tensor  # which columns have ranks for numbers, (columns,)
    ends: Tensor  # of the intervals, which lack the lower one, (rows, columns, intervals + 1), float64
    shares: Tensor  # of the draws up to every end, likewise

    @classmethod
    def fit(cls, x: Tensor, counted: Tensor) -> _Marginals:
        """Return the distributions of draws, (samples, rows, columns)."""
        ordered = x.movedim(0, -1).sort(dim=-1).values.contiguous()
        ranks = torch.zeros_like(ordered, dtype=torch.float64)
        ranks[..., 1:] = (ordered.diff(dim=-1) != 0).cumsum(dim=-1)
        whole = (ordered == ordered.round()) & (ordered.abs() * torch.finfo(x.dtype).eps < 1)
        steps = torch.where(whole, ordered, 0.0).long().diff(dim=-1).movedim(1, 0).flatten(1).cpu().numpy()
        multiples = torch.from_numpy(np.gcd.reduce(steps, axis=1)).to(x.device) > 1
        ranked = counted & (multiples | ~whole.all(dim=-1).all(dim=0))
        numbers = torch.where(ranked[:, None], ranks, ordered.double())
        ends = numbers[..., _BETWEEN - 1 :: _BETWEEN]
        start = numbers[..., :1] - counted[:, None].double()
        shares = torch.searchsorted(numbers, ends.contiguous(), right=True).double() / len(x)
        ends, shares = torch.cat([start, ends], dim=-1), torch.cat([torch.zeros_like(start), shares], dim=-1)
        return cls(counted, ordered, ranks, ranked, ends, shares)

    def draw(self, noise: RowNoise) -> Tensor:
        """Return draws, (samples, rows, columns)."""
        at = noise.uniform(DRAWS, len(self.counted), dtype=torch.float64).movedim(0, -1).contiguous()
        number = torch.searchsorted(self.shares, at).clamp(1, self.ends.shape[-1] - 1)
        low, high, before, share = (
            each.gather(-1, number - shift)
            for each, shift in ((self.ends, 1), (self.ends, 0), (self.shares, 1), (self.shares, 0))
        )
        drawn = low + (high - low) * (at - before) / (share - before)
        drawn = torch.where(self.counted[:, None], (low + 1 + (drawn - low).floor()).minimum(high), drawn)
        if bool(self.ranked.any()):
            place = torch.searchsorted(self.ranks, drawn).clamp(max=self.ranks.shape[-1] - 1)
            drawn = torch.where(self.ranked[:, None], self.ordered.gather(-1, place).double(), drawn)
        return drawn.movedim(-1, 0).to(self.ordered)

    def log_prob(self, x: Tensor) -> Tensor:
        """Return the log mass or density of every entry, (samples, rows, columns)."""
        moved = x.movedim(0, -1).contiguous()
        numbers = moved.double()
        if bool(self.ranked.any()):
            place = torch.searchsorted(self.ordered, moved).clamp(max=self.ordered.shape[-1] - 1)
            known = self.ordered.gather(-1, place) == moved
            ranks = torch.where(known, self.ranks.gather(-1, place), -math.inf)
            numbers = torch.where(self.ranked[:, None], ranks, numbers)
        logs = (self.shares.diff(dim=-1) / self.ends.diff(dim=-1)).log()
        number = torch.searchsorted(self.ends, numbers)
        inside = (number > 0) & (number < self.ends.shape[-1])
        found = logs.gather(-1, (number - 1).clamp(0, logs.shape[-1] - 1))
        return torch.where(inside, found, -math.inf).movedim(-1, 0)


def mismatch(evaluation: Evaluation, guide: bool = True) -> str | None:
    """Return which of guide, prior and likelihood has draws without the density of its log_prob, in words; None if none.

    Let r be a density fitted to draws u ~ q of a row. With log_prob for log q, a mean over other draws of q gives the
    overlap of r and q. So does a mean over draws of r (see ``Overlap``). These means differ if log_prob lacks a constant or
    a log-determinant, or if the draws have another density. Latents are tested in unbounded coordinates. A latent has none
    if it is discrete, if others move its bounds, or if its space has no bijection. All latents are then tested given the
    discrete ones of one draw, with z itself for coordinates. Columns of x are tested one by one, given the z that the row
    was simulated with.

    The following are not tested:

    * masses of discrete latents;
    * pairs with a latent on a surface or without a declared support that has no bijection, or with masks that z changes;
    * sites that score several columns jointly;
    * columns that depend on others given z;
    * densities with a mass at some value;
    * rows whose draws round onto a bound.

    Args:
        evaluation: of rows simulated from the model.
        guide: whether to test the guide.
    """
    found: dict[str, Fault | None] = {}
    with undisturbed(evaluation, Stream.DENSITIES) as noise:
        width = max(1, tile_shape(evaluation.structure.widest, 1)[0] // len(evaluation))
        try:
            posterior = Posterior(evaluation)
            found["prior"] = _of_prior(posterior, width, noise.branch())
            if guide:
                found["guide"] = _fault(
                    posterior, posterior.draw_encoder, posterior.log_encoder, noise.branch()
                )
        except Refused:
            found["prior"] = _of_given(evaluation, "model", width, noise.branch())
            if guide:
                found["guide"] = _of_given(evaluation, "guide", width, noise.branch())
        with suppress(Refused):  # columns that are scored jointly, or not sampled
            found["likelihood"] = _of_columns(evaluation, width, noise.branch())
    for part, fault in found.items():
        if fault:
            where = part if fault.column is None else f"{part} of column {fault.column}"
            return (
                f"draws of the {where} do not have the density of its log_prob, which is {fault}: check its "
                "normalisation, its log-determinant, its sample(), and its rounding in float32"
            )
    return None


def _of_prior(posterior: Posterior, width: int, noise: RowNoise) -> Fault | None:
    """Return how the prior's log density differs from that of its draws, ``width`` draws at a time."""

    def log_density(u: Tensor) -> Tensor:
        return torch.cat([posterior.log_joint(part).prior for part in u.split(width)])

    def draw(number: int, noise: RowNoise) -> Tensor:
        return torch.cat([posterior.draw_prior(size, noise)[0] for size in _sizes(number, width)])

    return _fault(posterior, draw, log_density, noise)


def _of_given(evaluation: Evaluation, part: str, width: int, noise: RowNoise) -> Fault | None:
    """Return how a part's log density of continuous latents, given the discrete ones of one draw, differs from that of draws."""
    model, batch = evaluation.model, evaluation.batch
    try:
        coordinates = Coordinates(model, batch, whole=False)
        names, one = coordinates.held, model.weigh_rest(batch, 1, {}, (), noise.branch(), part)[0]

        def held(number: int) -> Latents:
            return {name: one[name].expand(number, *one[name].shape[1:]) for name in names}

        def draw(number: int, noise: RowNoise) -> Tensor:
            parts = []
            for size in _sizes(number, width):
                z, _, log_q, _ = model.weigh_rest(batch, size, held(size), names, noise, part)
                u = coordinates.flatten(z, noise)
                parts.append(u.masked_fill(torch.isposinf(log_q)[..., None], math.nan))  # z on a bound
            return torch.cat(parts)

        def log_density(u: Tensor) -> Tensor:
            z, log_det = coordinates.unflatten(u)
            z |= held(len(u))
            if part == "guide":
                return log_det + model.log_proposal(batch, z, names)
            return log_det + model.log_joint(batch, z, names).prior

        return _fault(
            coordinates, draw, lambda u: torch.cat([log_density(each) for each in u.split(width)]), noise
        )
    except torch.OutOfMemoryError:
        raise
    except (ValueError, IndexError, RuntimeError):  # no such latents, or a model that fails off supports
        return None


def _fault(
    space: Posterior | Coordinates,
    draw: Callable[[int, RowNoise], Tensor],
    log_density: Callable[[Tensor], Tensor],
    noise: RowNoise,
) -> Fault | None:
    """Return how a log density of latents differs from that of its draws.

    Where the Gaussian's overlap with the draws is small, as with separated clusters, a few rows are compared with mixtures.
    """
    fitted = min(max(DRAWS, math.ceil(_BY_SQUARE * space.dim**2)), _MOST_FITTED)

    def overlap(number: int, rows: Tensor | None = None) -> Overlap:
        known, own = draw(number, noise.branch()), draw(DRAWS, noise.branch())
        reference = _Reference.fit(known)
        sound = _resolved(known).all(dim=-1) & (space.beyond(own).to(own).mean(dim=0) <= _MOST_ROUNDED)
        if rows is not None:
            reference = reference.mixed(known, rows, noise.branch().seed)
            sound &= torch.isin(torch.arange(len(sound), device=sound.device), rows.to(sound.device))
        other = reference.draw(noise.branch())

        def log_ratio(u: Tensor, outside: float) -> Tensor:
            ratio = reference.log_prob(u) - log_density(u)
            return torch.where(reference.inside(u), ratio, outside)[..., None]

        return Overlap.of(log_ratio(own, -math.inf), log_ratio(other, math.inf), sound[:, None])

    found = overlap(fitted)
    fault = found.fault()
    low = (found.first + found.second < 2 * _LEAST_OVERLAP)[:, 0].nonzero()[:_MIXED, 0]
    if fault or not len(low) or _BY_SQUARE * space.dim**2 > _MOST_FITTED:
        return fault
    return overlap(_MOST_FITTED, low).fault()


def _of_columns(evaluation: Evaluation, width: int, noise: RowNoise) -> Fault | None:
    """Return how log P(x_d | z) differs from that of its draws, for columns that do not depend on others."""
    columns = _Columns.of(evaluation, width)
    if columns is None:
        return None
    known, own = columns.draw(), columns.draw()
    noise = noise.of_rows(torch.arange(known.shape[1], device=known.device))
    kept = noise.uniform(DRAWS, known.shape[-1], dtype=torch.float64) < _KEPT
    reference = _Marginals.fit(known, columns.counted)
    other = torch.where(kept, own, reference.draw(noise))
    of_own, of_other = columns.log_density(own), columns.log_density(other)
    if bool((kept & ((of_other - of_own).abs() > _DEPENDS * (1 + of_own.abs()))).any()):
        return None
    by_own, by_other = reference.log_prob(own), reference.log_prob(other)
    of_own = torch.where(by_own > -math.inf, by_own - of_own, -math.inf)
    of_other = torch.where(by_other > -math.inf, by_other - of_other, math.inf)
    sound = columns.counted | (_resolved(known) & ~_tied(torch.cat([known, own])))
    return Overlap.of(of_own, of_other, sound, ~kept).fault()


class _Columns(NamedTuple):
    """The columns of x, drawn and scored one by one, given the z that each row was simulated with."""

    evaluation: Evaluation
    batch: Batch
    exact: Latents
    width: int
    counted: Tensor  # which columns have masses, (columns,)

    @classmethod
    def of(cls, evaluation: Evaluation, width: int) -> _Columns | None:
        """Return the columns of rows that fit in memory; None if z is unknown, or a column is not scored by itself."""
        kinds = evaluation.structure.measure
        number = min(len(evaluation), max(1, _MOST_NUMBERS // (DRAWS * len(kinds))))
        batch, exact = evaluation.part(slice(0, number)), evaluation.exact_draw(slice(0, number))
        if exact is None or set(kinds) - {"mass", "density"}:
            return None
        if "observed" in batch:
            batch = {**batch, "observed": torch.ones_like(batch["observed"])}
        counted = torch.tensor([kind == "mass" for kind in kinds], device=evaluation.numbers.device)
        return cls(evaluation, batch, exact, width, counted)

    def draw(self) -> Tensor:
        """Return draws of x, (samples, rows, columns)."""
        parts = []
        for count in _sizes(DRAWS, self.width):
            batch, latents = self._repeated(count)
            x = self.evaluation.model.replicate(batch, latents, None)[0]
            parts.append(x.reshape(count, -1, len(self.counted)))
        return torch.cat(parts)

    def log_density(self, x: Tensor) -> Tensor:
        """Return log P(x_d | z), (samples, rows, columns)."""
        parts = []
        for part in x.split(self.width):
            batch, latents = self._repeated(len(part))
            batch["x"] = part.reshape(-1, *batch["x"].shape[1:])
            parts.append(self.evaluation.model.log_columns(batch, latents)[0].view(part.shape))
        return torch.cat(parts)

    def _repeated(self, count: int) -> tuple[Batch, Latents]:
        """Return every row and its z, ``count`` times, as rows of their own."""
        model, number = self.evaluation.model, len(self.batch["x"])
        index = torch.arange(number, device=self.counted.device).repeat(count)
        latents = {
            name: model.rows_back(name, model.rows_second(name, z)[:, index])
            for name, z in self.exact.items()
        }
        return {name: value[index] for name, value in self.batch.items()}, latents


def _tied(x: Tensor) -> Tensor:
    """Return which columns have a value again and again, which is a mass and has no density, (columns,).

    Let ε be the resolution in units of the spread. Rounding alone makes about 0.14 n² ε equal pairs of n draws of a row. Up
    to four times as many count as rounding, because densities have several shapes. Generators of uniform numbers repeat
    some of their 2²⁴ numbers in float32, or 2⁵³ in float64. If all columns together have more pairs than chance makes,
    columns with few of them are left out, too.
    """
    from scipy.stats import poisson

    pairs = (x.sort(dim=0).values.diff(dim=0) == 0).sum(dim=(0, 1)).cpu()
    # A row in which most draws are equal has no spread.
    rounded = 4 * 0.14 * _resolution(x).nan_to_num(0.0, 0.0, 0.0) + torch.finfo(x.dtype).eps / 4
    expected = len(x) ** 2 * rounded.double().sum(dim=0).cpu()
    most, in_all = (poisson.isf(_CHANCE, each) for each in (expected, expected.sum()))
    limit = expected if float(pairs.sum()) > in_all else torch.as_tensor(most)
    return (pairs > limit).to(x.device)


def _sizes(number: int, width: int) -> list[int]:
    """Return the sizes of the parts of ``number`` draws, at most ``width`` each."""
    return [min(width, number - done) for done in range(0, number, width)]


def _place(u: Tensor) -> tuple[Tensor, Tensor]:
    """Return median and spread of draws, from the quartiles, (rows, dim) each."""
    ordered, last = u.sort(dim=0).values, len(u) - 1
    low, centre, high = (ordered[last * quarter // 4] for quarter in (1, 2, 3))
    return centre, (high - low) / 1.35


def _resolution(u: Tensor) -> Tensor:
    """Return the resolution of the dtype in units of the spread of draws, (rows, dim)."""
    centre, spread = _place(u)
    return torch.finfo(u.dtype).eps * centre.abs().maximum(spread) / spread


def _resolved(u: Tensor) -> Tensor:
    """Return in which rows and dimensions rounding is small beside the spread, (rows, dim)."""
    return _resolution(u) <= _MOST_ROUNDED
