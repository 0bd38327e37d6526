"""Models whose log P(x) is known, each with a guide that leads some estimator to trust a wrong number.

To add one: write a builder that returns a ``Trap`` and add a line per setting to ``SETTINGS``. ``traps.py`` runs the
methods on them, and ``traps.py --verify`` compares log P(x) with importance sampling from the builder's own ``cover``.
"""

from __future__ import annotations

import itertools
import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

import pyrovae as pv

#: Draws of a distribution close to one row's posterior: latents by site, (draws, …), and their log density, (draws,).
Cover = Callable[[Tensor, int], tuple[dict[str, Tensor], Tensor]]


@dataclass(frozen=True)
class Trap:
    """A pair with rows simulated from its model.

    Attributes:
        model, guide: the Pyro pair.
        x: (rows, columns), float32.
        truth: log P(x) as a closed form or a grid gives it, (rows,), float64.
        cover: of one row of x, (1, columns), float64, and a number of draws; used by ``importance_sampled`` alone.
    """

    model: Callable[[Tensor], None]
    guide: Callable[[Tensor], None]
    x: Tensor
    truth: Tensor
    cover: Cover


@dataclass(frozen=True)
class Setting:
    """One line of the registry.

    Attributes:
        name: in tables.
        kind: what it has in common with other settings.
        builder: called with a numpy generator, the number of rows and ``options``.
    """

    name: str
    kind: str
    builder: Callable[..., Trap]
    options: dict[str, Any]

    @property
    def held_back(self) -> bool:
        """Whether nobody looks at its results while a method is tuned."""
        return self.kind in HELD_BACK

    def trap(self, seed: int, rows: int) -> Trap:
        # The model and the rows follow from the name and the seed alone.
        rng = np.random.default_rng((_HELD_OUT, zlib.crc32(self.name.encode()), seed))
        with torch.no_grad():
            return self.builder(rng, rows, **self.options)

    def build(self, seed: int, rows: int) -> tuple[pv.LatentVariableModel, Tensor, np.ndarray]:
        """Return the pair, ``rows`` rows of x and their log P(x)."""
        trap = self.trap(seed, rows)
        return pv.LatentVariableModel(trap.model, trap.guide), trap.x, trap.truth.double().numpy()


_HELD_OUT = 71_193


# ---------------------------------------------------------------------------------------------------------------------
# Integrals and densities, float64

_AGREE = 1e-7


def normal(x: Tensor, loc: Any, scale: Any) -> Tensor:
    """log N(x; loc, scale²)."""
    scale = torch.as_tensor(scale, dtype=torch.float64)
    return -0.5 * ((x - loc) / scale) ** 2 - scale.log() - 0.5 * math.log(2 * math.pi)


def integral(log_f: Callable[[Tensor, Tensor], Tensor], x: Tensor, low: float, high: float) -> Tensor:
    """log ∫ exp log_f(x_n, t) dt for every row, (rows,), to 1e-6.

    ``log_f`` takes x as (rows, 1, columns) and t as (points,), and returns (rows, points). The number of points doubles
    until the trapezoidal rule of two resolutions agrees.
    """
    x = x.double()[:, None, :]
    found = None
    for points in (2**power + 1 for power in range(11, 20)):
        t = torch.linspace(low, high, points, dtype=torch.float64)
        sums, ends = [], []
        for rows in x.split(max(1, (1 << 22) // points)):
            values = log_f(rows, t)
            sums.append(torch.logsumexp(values, dim=1) + (t[1] - t[0]).log())
            ends.append(torch.maximum(values[:, 0], values[:, -1]))
        before, found = found, torch.cat(sums)
        if before is not None and (found - before).abs().max() < _AGREE:
            # The integrand must have vanished at both ends.
            if (torch.cat(ends) + math.log(high - low) - found).max() > math.log(_AGREE):
                raise ArithmeticError(f"the integrand is not negligible at {low} or at {high}")
            return found
    raise ArithmeticError(
        f"{points} points and half as many differ by {(found - before).abs().max():.1e} nats"
    )


def plane_integral(log_f: Callable[[Tensor, Tensor], Tensor], x: Tensor, reach: float) -> Tensor:
    """log ∫∫ exp log_f(x_n, t) dt over [−reach, reach]², (rows,), checked as in ``integral``; t is (points, 2)."""
    x = x.double()[:, None, :]
    found = None
    for order in (101, 201, 401):
        axis = torch.linspace(-reach, reach, order, dtype=torch.float64)
        t = torch.cartesian_prod(axis, axis)
        rows = x.split(max(1, (1 << 21) // (len(t) * x.shape[-1])))
        before, found = found, torch.cat([torch.logsumexp(log_f(part, t), dim=1) for part in rows])
        found = found + 2 * (axis[1] - axis[0]).log()
        if before is not None and (found - before).abs().max() < _AGREE:
            return found
    raise ArithmeticError(f"two grids differ by {(found - before).abs().max():.1e} nats")


def drawn_cells(
    log_f: Callable[[Tensor, Tensor], Tensor], row: Tensor, low: float, high: float, draws: int
) -> tuple[Tensor, Tensor]:
    """Draws of the density that is constant on cells and proportional to exp log_f there, and its log; each (draws,)."""
    cells = 1 << 15
    width = (high - low) / cells
    centre = low + width * (torch.arange(cells, dtype=torch.float64) + 0.5)
    log_p = torch.log_softmax(log_f(row[:, None, :], centre)[0], dim=0)
    chosen = torch.multinomial(log_p.exp(), draws, replacement=True)
    t = centre[chosen] + width * (torch.rand(draws, dtype=torch.float64) - 0.5)
    return t, log_p[chosen] - math.log(width)


def covered_by(make: Callable[[Tensor], Any], site: str = "z") -> Cover:
    """A cover from a function of one row that returns a distribution over the latent ``site``."""

    def cover(row: Tensor, draws: int) -> tuple[dict[str, Tensor], Tensor]:
        q = make(row)
        z = q.sample((draws,))
        return {site: z}, q.log_prob(z)

    return cover


def gaussians(log_weights: Tensor, locs: Tensor, scales: Tensor) -> Any:
    """A mixture of Gaussians with independent entries; (components,), (components, entries) twice."""
    parts = torch.distributions.Independent(torch.distributions.Normal(locs, scales.expand_as(locs)), 1)
    return torch.distributions.MixtureSameFamily(torch.distributions.Categorical(logits=log_weights), parts)


def draws(rng: np.random.Generator, *shape: int) -> Tensor:
    """Standard normal numbers, float32."""
    return torch.from_numpy(rng.standard_normal(shape)).float()


def regression(features: Tensor, targets: Tensor) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """Least squares of targets on features and one: the prediction as a function, and the residuals' spread."""

    def with_one(features: Tensor) -> Tensor:
        return torch.cat([features, torch.ones_like(features[..., :1])], dim=-1)

    design = with_one(features.double())
    weights = torch.linalg.lstsq(design, targets.double()).solution
    spread = (targets.double() - design @ weights).std(dim=0).float()
    return lambda features: with_one(features) @ weights.to(features), spread


def standard(dim: int) -> Any:
    """N(0, I) over a vector."""
    return dist.Normal(torch.zeros(dim), 1.0).to_event(1)


# ---------------------------------------------------------------------------------------------------------------------
# A narrow mode beside a broad one


def spike(rng: Any, rows: int, dim: int, sd: float, shift: float = 0.0, weight: float = 0.9) -> Trap:
    """x = z + noise of sd 1, or x = z + shift + noise of a small sd; the guide is the posterior of the first."""
    offset = torch.zeros(dim)
    offset[0] = shift
    log_weights = torch.tensor([1 - weight, weight]).log()
    scales = torch.tensor([[1.0], [sd]])
    offsets = torch.stack([torch.zeros(dim), offset])
    which = torch.from_numpy(rng.random(rows) < weight).long()
    x = draws(rng, rows, dim) + offsets[which] + scales[which] * draws(rng, rows, dim)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", standard(dim))
            parts = dist.Normal(z[..., None, :] + offsets, scales).to_event(1)
            pyro.sample("x", dist.MixtureSameFamily(dist.Categorical(logits=log_weights), parts), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, math.sqrt(0.5)).to_event(1))

    wide = (1 + scales.double() ** 2).sqrt()

    def parts(x: Tensor) -> Tensor:
        return log_weights.double() + normal(x.double()[:, None], offsets, wide).sum(-1)

    def posterior(row: Tensor) -> Any:
        return gaussians(parts(row)[0], (row - offsets) / wide**2, scales.double() / wide)

    return Trap(model, guide, x, torch.logsumexp(parts(x), dim=1), covered_by(posterior))


def plateau(rng: Any, rows: int, dim: int, sd: float, reach: float = 5.0, weight: float = 0.9) -> Trap:
    """The likelihood of ``spike`` under a prior that is uniform on [−reach, reach]^dim: a phase transition.

    Tempering from the prior goes from the wide part to the narrow one at once. In units of x in which the narrow and the
    wide part together have the integral 10 (2π)^(dim/2), as in the example of blackjax's nested sampling, log P(0) is
    −11.534 in ten dimensions. The guide is wide, and centred at the row.
    """
    unit = (10 * (2 * math.pi) ** (dim / 2)) ** (-1 / dim)
    log_weights = torch.tensor([1 - weight, weight]).log()
    scales = torch.tensor([[1.0], [sd]])
    which = torch.from_numpy(rng.random(rows) < weight).long()
    z = torch.from_numpy(rng.uniform(-reach, reach, (rows, dim))).float()
    x = unit * (z + scales[which] * draws(rng, rows, dim))

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Uniform(-reach * torch.ones(dim), reach).to_event(1))
            parts = dist.Normal(unit * z[..., None, :], unit * scales).to_event(1)
            pyro.sample("x", dist.MixtureSameFamily(dist.Categorical(logits=log_weights), parts), obs=x)

    onto = [dist.transforms.SigmoidTransform(), dist.transforms.AffineTransform(-reach, 2 * reach)]

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            loc = (x / unit).clamp(-0.98 * reach, 0.98 * reach) * 2 / reach
            pyro.sample("z", dist.TransformedDistribution(dist.Normal(loc, 2 / reach), onto).to_event(1))

    standard_normal = torch.distributions.Normal(torch.zeros((), dtype=torch.float64), 1.0)

    def between(x: Tensor) -> Tensor:
        """P(−reach < z < reach) of z ~ N(x / unit, scale²), (rows, parts, dim)."""
        ends = (torch.tensor([-reach, reach])[:, None, None, None] - x.double()[:, None] / unit) / scales
        # of the half line with the smaller probability
        low, high = torch.where(ends.sum(0) > 0, -ends.flip(0), ends)
        return standard_normal.cdf(high) - standard_normal.cdf(low)

    def parts(x: Tensor) -> Tensor:
        each = between(x).clamp(min=1e-300).log() - math.log(2 * reach * unit)
        return log_weights.double() + each.sum(-1)

    def cover(row: Tensor, count: int) -> tuple[dict[str, Tensor], Tensor]:
        # draws of each Gaussian between the bounds, by the inverse of its distribution function
        log_share = parts(row)[0].log_softmax(-1)
        label = torch.multinomial(log_share.exp(), count, replacement=True)
        low = standard_normal.cdf((-reach - row / unit) / scales)
        mass = between(row)[0]
        at = (low[label] + torch.rand(count, dim, dtype=torch.float64) * mass[label]).clamp(1e-12, 1 - 1e-12)
        z = (row / unit + scales[label] * standard_normal.icdf(at)).clamp(-reach, reach)
        each = normal(z[:, None], row / unit, scales.double()) - mass.log()
        return {"z": z}, torch.logsumexp(log_share + each.sum(-1), dim=1)

    return Trap(model, guide, x, torch.logsumexp(parts(x), dim=1), cover)


# ---------------------------------------------------------------------------------------------------------------------
# Curved posteriors


def banana(rng: Any, rows: int, bend: float, sd: float, others: int = 0) -> Trap:
    """x_0 = z_1 + bend · z_0² + noise and x_1 = z_0 + noise of sd 1; ``others`` are latents with a column each."""
    scale = torch.tensor([sd, 1.0] + [0.5] * others)

    def decode(z: Tensor) -> Tensor:
        return torch.cat([z[..., 1:2] + bend * z[..., :1] ** 2, z[..., :1], z[..., 2:]], dim=-1)

    x = decode(draws(rng, rows, 2 + others)) + scale * draws(rng, rows, 2 + others)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", standard(2 + others))
            pyro.sample("x", dist.Normal(decode(z), scale).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        first = x[:, 1:2] / 2
        loc = torch.cat([first, (x[:, :1] - bend * first**2).clamp(-3, 3), x[:, 2:] / 1.25], dim=1)
        with pyro.plate("data", len(x)):
            width = torch.tensor([0.5, 0.4] + [0.2**0.5] * others)
            pyro.sample("z", dist.Normal(loc, width).to_event(1))

    def first(x: Tensor, t: Tensor) -> Tensor:
        curved = normal(x[..., 0], bend * t**2, math.sqrt(1 + sd**2))
        return curved + normal(x[..., 1], t, 1.0) + normal(t, 0.0, 1.0)

    rest = normal(x.double()[:, 2:], 0.0, math.sqrt(1.25)).sum(-1)

    def cover(row: Tensor, count: int) -> tuple[dict[str, Tensor], Tensor]:
        t, log_q = drawn_cells(first, row, -9.0, 9.0, count)
        loc = torch.cat(
            [(row[:, 0] - bend * t**2)[:, None] / (1 + sd**2), (row[:, 2:] / 1.25).expand(count, -1)], 1
        )
        width = torch.tensor([sd / math.sqrt(1 + sd**2)] + [0.2**0.5] * others, dtype=torch.float64)
        z = loc + width * torch.randn(count, 1 + others, dtype=torch.float64)
        return {"z": torch.cat([t[:, None], z], 1)}, log_q + normal(z, loc, width).sum(-1)

    return Trap(model, guide, x, integral(first, x, -9.0, 9.0) + rest, cover)


def shell(rng: Any, rows: int, dim: int, sd: float) -> Trap:
    """x = ‖z‖ + noise; the guide is at one point of the shell."""
    x = draws(rng, rows, dim).norm(dim=1, keepdim=True) + sd * draws(rng, rows, 1)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", standard(dim))
            pyro.sample("x", dist.Normal(z.norm(dim=-1, keepdim=True), sd).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            loc = torch.cat([x, torch.zeros_like(x).expand(-1, dim - 1)], dim=1)
            pyro.sample("z", dist.Normal(loc, 0.4).to_event(1))

    log_area = math.log(2) + dim / 2 * math.log(math.pi) - math.lgamma(dim / 2)

    def radius(x: Tensor, t: Tensor) -> Tensor:
        density = (dim - 1) * t.log() - t**2 / 2 - dim / 2 * math.log(2 * math.pi) + log_area
        return density + normal(x[..., 0], t, sd)

    def cover(row: Tensor, count: int) -> tuple[dict[str, Tensor], Tensor]:
        t, log_q = drawn_cells(radius, row, 1e-12, 12.0, count)
        direction = torch.nn.functional.normalize(torch.randn(count, dim, dtype=torch.float64), dim=1)
        return {"z": t[:, None] * direction}, log_q - (dim - 1) * t.log() - log_area

    return Trap(model, guide, x, integral(radius, x, 1e-12, 12.0), cover)


def product(rng: Any, rows: int, pairs: int, sd: float) -> Trap:
    """x_j = z_2j · z_2j+1 + noise; the guide is on the branch where z_2j is positive."""

    def decode(z: Tensor) -> Tensor:
        return z[..., 0::2] * z[..., 1::2]

    x = decode(draws(rng, rows, 2 * pairs)) + sd * draws(rng, rows, pairs)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", standard(2 * pairs))
            pyro.sample("x", dist.Normal(decode(z), sd).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        root = x.abs().sqrt()
        with pyro.plate("data", len(x)):
            loc = torch.stack([root, root * x.sign()], dim=-1).flatten(1)
            pyro.sample("z", dist.Normal(loc, 0.5).to_event(1))

    def first(x: Tensor, t: Tensor) -> Tensor:
        return normal(x[..., 0], 0.0, (t**2 + sd**2).sqrt()) + normal(t, 0.0, 1.0)

    truth = sum(integral(first, column, -12.0, 12.0) for column in x.split(1, dim=1))

    def cover(row: Tensor, count: int) -> tuple[dict[str, Tensor], Tensor]:
        found, log_q = [], torch.zeros(count, dtype=torch.float64)
        for column in row.split(1, dim=1):
            t, log_p = drawn_cells(first, column, -12.0, 12.0, count)
            loc, width = t * column[0] / (t**2 + sd**2), sd / (t**2 + sd**2).sqrt()
            other = loc + width * torch.randn(count, dtype=torch.float64)
            found += [t, other]
            log_q = log_q + log_p + normal(other, loc, width)
        return {"z": torch.stack(found, dim=1)}, log_q

    return Trap(model, guide, x, truth, cover)


# ---------------------------------------------------------------------------------------------------------------------
# Several modes


def modes(
    rng: Any, rows: int, folded: int, dim: int, loc: float = 0.0, sd: float = 0.3, known: int = 1
) -> Trap:
    """x_l = z_l² + noise for ``folded`` latents, z_l ~ N(loc, 1): 2^folded modes, of equal mass if loc is 0.

    The other columns are z_l + noise. The guide covers the first ``known`` modes.
    """
    prior = torch.tensor([loc] * folded + [0.0] * (dim - folded))
    signs = torch.tensor(list(itertools.product((1.0, -1.0), repeat=folded)))[:known]

    def decode(z: Tensor) -> Tensor:
        return torch.cat([z[..., :folded] ** 2, z[..., folded:]], dim=-1)

    x = decode(prior + draws(rng, rows, dim)) + sd * draws(rng, rows, dim)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(prior, 1.0).to_event(1))
            pyro.sample("x", dist.Normal(decode(z), sd).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        root = x[:, :folded].clamp(min=sd**2).sqrt()
        rest = x[:, folded:] / (1 + sd**2)
        width = torch.cat(
            [(sd / (2 * root)).clamp(max=0.6), torch.full_like(rest, sd / math.sqrt(1 + sd**2))], dim=1
        )
        with pyro.plate("data", len(x)):
            if known == 1:
                q = dist.Normal(torch.cat([root, rest], dim=1), width).to_event(1)
            else:
                locs = torch.cat([root[:, None] * signs, rest[:, None].expand(-1, known, -1)], dim=-1)
                parts = dist.Normal(locs, width[:, None].expand_as(locs)).to_event(1)
                q = dist.MixtureSameFamily(dist.Categorical(torch.ones(len(x), known)), parts)
            pyro.sample("z", q)

    def fold(x: Tensor, t: Tensor) -> Tensor:
        return normal(x[..., 0], t**2, sd) + normal(t, loc, 1.0)

    wide = math.sqrt(1 + sd**2)
    truth = normal(x.double()[:, folded:], 0.0, wide).sum(-1)
    for column in x[:, :folded].split(1, dim=1):
        truth = truth + integral(fold, column, -10.0, 10.0)

    def cover(row: Tensor, count: int) -> tuple[dict[str, Tensor], Tensor]:
        found = [drawn_cells(fold, column, -10.0, 10.0, count) for column in row[:, :folded].split(1, dim=1)]
        rest = row[:, folded:] / wide**2 + sd / wide * torch.randn(count, dim - folded, dtype=torch.float64)
        log_q = normal(rest, row[:, folded:] / wide**2, sd / wide).sum(-1) + sum(log_p for _, log_p in found)
        return {"z": torch.cat([torch.stack([t for t, _ in found], dim=1), rest], dim=1)}, log_q

    return Trap(model, guide, x, truth, cover)


def folds(rng: Any, rows: int, dim: int, ratio: float, sd: float) -> Trap:
    """x_l = z_l + noise where z_l is positive, else −ratio · z_l + noise: 2^dim modes, whose widths differ by the ratio.

    The guide covers the widest one.
    """

    def decode(z: Tensor) -> Tensor:
        return torch.where(z > 0, z, -ratio * z)

    x = decode(draws(rng, rows, dim)) + sd * draws(rng, rows, dim)
    wide = math.sqrt(1 + sd**2)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", standard(dim))
            pyro.sample("x", dist.Normal(decode(z), sd).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / wide**2, sd / wide).to_event(1))

    def side(slope: float) -> Tensor:
        """log ∫ over t > 0 of N(t; 0, 1) N(x; slope · t, sd²)."""
        spread = math.sqrt(slope**2 + sd**2)
        return normal(x.double(), 0.0, spread) + torch.special.log_ndtr(slope * x.double() / (spread * sd))

    def factor(x: Tensor, t: Tensor) -> Tensor:
        return normal(t, 0.0, 1.0) + normal(x[..., 0], decode(t), sd)

    def cover(row: Tensor, count: int) -> tuple[dict[str, Tensor], Tensor]:
        found = [drawn_cells(factor, column, -9.0, 9.0, count) for column in row.split(1, dim=1)]
        return {"z": torch.stack([t for t, _ in found], dim=1)}, sum(log_p for _, log_p in found)

    return Trap(model, guide, x, torch.logaddexp(side(1.0), side(ratio)).sum(-1), cover)


def order(rng: Any, rows: int, dim: int, sd: float) -> Trap:
    """x = the latents in ascending order + noise, so that labels switch: dim! modes; the guide covers the ascending one."""
    x = draws(rng, rows, dim).sort(-1).values + sd * draws(rng, rows, dim)
    wide = math.sqrt(1 + sd**2)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", standard(dim))
            pyro.sample("x", dist.Normal(z.sort(-1).values, sd).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / wide**2, sd / wide).to_event(1))

    # P(u_1 < … < u_dim) of independent Gaussians, by integrals over u_1, then u_2, and so on.
    t = torch.linspace(-9.0, 9.0, 40_001, dtype=torch.float64)
    ascending = []
    for loc in x.double() / wide**2:
        below = torch.ones_like(t)
        for entry in loc:
            part = torch.cumulative_trapezoid(below * normal(t, entry, sd / wide).exp(), t)
            below = torch.cat([torch.zeros(1, dtype=torch.float64), part])
        ascending.append(below[-1].log())
    truth = math.lgamma(dim + 1) + normal(x.double(), 0.0, wide).sum(-1) + torch.stack(ascending)
    places = torch.tensor(list(itertools.permutations(range(dim))))

    def posterior(row: Tensor) -> Any:
        locs = (row[0] / wide**2)[places]
        return gaussians(
            torch.zeros(len(places), dtype=torch.float64), locs, torch.full_like(locs, sd / wide)
        )

    return Trap(model, guide, x, truth, covered_by(posterior))


def mixture_prior(rng: Any, rows: int, components: int, dim: int, sd: float) -> Trap:
    """z from a mixture of Gaussians, x = z + noise; the guide is right for a Gaussian prior of the same moments."""
    locs = 3 * draws(rng, components, dim)
    scales = torch.from_numpy(rng.uniform(0.3, 1.2, (components, dim))).float()
    weights = torch.from_numpy(rng.dirichlet(np.full(components, 2.0))).float()
    which = torch.from_numpy(
        rng.choice(components, rows, p=weights.double().numpy() / float(weights.double().sum()))
    )
    x = locs[which] + scales[which] * draws(rng, rows, dim) + sd * draws(rng, rows, dim)
    mean = weights @ locs
    variance = weights @ (scales**2 + (locs - mean) ** 2)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            parts = dist.Normal(locs, scales).to_event(1)
            z = pyro.sample("z", dist.MixtureSameFamily(dist.Categorical(weights), parts))
            pyro.sample("x", dist.Normal(z, sd).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        gain = variance / (variance + sd**2)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(mean + gain * (x - mean), sd * gain.sqrt()).to_event(1))

    locs64, scales64 = locs.double(), scales.double()
    wide = (scales64**2 + sd**2).sqrt()
    log_weights = weights.double().log() - weights.double().sum().log()

    def parts(x: Tensor) -> Tensor:
        return log_weights + normal(x.double()[:, None], locs64, wide).sum(-1)

    def posterior(row: Tensor) -> Any:
        gain = scales64**2 / wide**2
        return gaussians(parts(row)[0], locs64 + gain * (row - locs64), sd * gain.sqrt())

    return Trap(model, guide, x, torch.logsumexp(parts(x), dim=1), covered_by(posterior))


# ---------------------------------------------------------------------------------------------------------------------
# Linear Gaussian models as plain pairs, with better and worse guides


def linear(
    rng: Any,
    rows: int,
    dim: int,
    columns: int,
    encoder: str = "mean field",
    shift: float = 0.0,
    scale: float = 1.0,
    out: float = 1.0,
    ridge: float = 0.0,
) -> Trap:
    """x = z W + noise.

    Args:
        encoder: "full", the posterior; "mean field", its mean with the best independent widths; "saturating", the same
            with the mean bent to at most 3; "prior".
        shift: of the guide's mean, in posterior standard deviations, each entry up or down.
        scale: factor of the guide's standard deviations.
        out: standard deviation of the z of the rows; above 1 they are not typical of the model.
        ridge: if not 0, every column is the mean of z, with this noise.
    """
    weights = torch.full((dim, columns), dim**-0.5) if ridge else 0.6 * draws(rng, dim, columns)
    noise = torch.from_numpy(rng.uniform(0.45, 1.1, columns)).float()
    if ridge:
        noise = torch.full((columns,), ridge)
    x = out * draws(rng, rows, dim) @ weights + noise * draws(rng, rows, columns)
    w, s = weights.double(), noise.double()
    precision = torch.eye(dim, dtype=torch.float64) + (w / s**2) @ w.T
    covariance = torch.linalg.inv(precision)
    to_mean = (w / s**2).T @ covariance  # (columns, dim)
    sign = torch.from_numpy(rng.choice([-1.0, 1.0], dim))
    moved = (shift * covariance.diagonal().sqrt() * sign).float()
    width = (scale * precision.diagonal().rsqrt()).float()
    tril = (scale * torch.linalg.cholesky(covariance)).float()

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", standard(dim))
            pyro.sample("x", dist.Normal(z @ weights.to(z), noise).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        loc = x @ to_mean.to(x) + moved
        with pyro.plate("data", len(x)):
            if encoder == "full":
                q = dist.MultivariateNormal(loc, scale_tril=tril)
            elif encoder == "prior":
                q = dist.Normal(torch.zeros_like(loc), 1.0).to_event(1)
            else:
                q = dist.Normal(3 * torch.tanh(loc / 3) if encoder == "saturating" else loc, width).to_event(
                    1
                )
            pyro.sample("z", q)

    marginal = torch.distributions.MultivariateNormal(
        torch.zeros(columns, dtype=torch.float64), w.T @ w + torch.diag(s**2)
    )

    def posterior(row: Tensor) -> Any:
        return torch.distributions.MultivariateNormal(row[0] @ to_mean, covariance)

    return Trap(model, guide, x, marginal.log_prob(x.double()), covered_by(posterior))


def layers(rng: Any, rows: int, upper: int, lower: int, columns: int, encoder: str) -> Trap:
    """z2 → z1 → x, linear and Gaussian; the guide is "exact", "mean field", or has the prior of z2 ("collapsed")."""
    up, down = draws(rng, upper, lower) / upper**0.5, draws(rng, lower, columns) / lower**0.5
    sd = 0.5
    z1 = draws(rng, rows, upper) @ up + sd * draws(rng, rows, lower)
    x = z1 @ down + sd * draws(rng, rows, columns)
    b, c = up.double(), down.double()
    # Precision of (z2, z1) given x.
    top = torch.eye(upper, dtype=torch.float64) + b @ b.T / sd**2
    bottom = (torch.eye(lower, dtype=torch.float64) + c @ c.T) / sd**2
    precision = torch.cat([torch.cat([top, -b / sd**2], 1), torch.cat([-b.T / sd**2, bottom], 1)])
    covariance = torch.linalg.inv(precision)
    to_mean = (torch.cat([torch.zeros(upper, columns, dtype=torch.float64), c]) / sd**2).T @ covariance
    width = precision.diagonal().rsqrt().float()
    tril1 = torch.linalg.cholesky(covariance[upper:, upper:]).float()
    above = torch.linalg.inv(top)
    tril2, back = torch.linalg.cholesky(above).float(), (b.T @ above / sd**2).float()

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z2 = pyro.sample("z2", standard(upper))
            z1 = pyro.sample("z1", dist.Normal(z2 @ up.to(z2), sd).to_event(1))
            pyro.sample("x", dist.Normal(z1 @ down.to(z1), sd).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        loc = x @ to_mean.to(x)
        with pyro.plate("data", len(x)):
            if encoder == "exact":
                z1 = pyro.sample("z1", dist.MultivariateNormal(loc[..., upper:], scale_tril=tril1))
                pyro.sample("z2", dist.MultivariateNormal(z1 @ back.to(z1), scale_tril=tril2))
                return
            pyro.sample("z1", dist.Normal(loc[..., upper:], width[upper:]).to_event(1))
            if encoder == "collapsed":
                pyro.sample("z2", dist.Normal(torch.zeros_like(loc[..., :upper]), 1.0).to_event(1))
            else:
                pyro.sample("z2", dist.Normal(loc[..., :upper], width[:upper]).to_event(1))

    eye = torch.eye(lower, dtype=torch.float64)
    spread = c.T @ (b.T @ b + sd**2 * eye) @ c + sd**2 * torch.eye(columns, dtype=torch.float64)
    marginal = torch.distributions.MultivariateNormal(torch.zeros(columns, dtype=torch.float64), spread)

    def cover(row: Tensor, count: int) -> tuple[dict[str, Tensor], Tensor]:
        q = torch.distributions.MultivariateNormal(row[0] @ to_mean, covariance)
        z = q.sample((count,))
        return {"z2": z[:, :upper], "z1": z[:, upper:]}, q.log_prob(z)

    return Trap(model, guide, x, marginal.log_prob(x.double()), cover)


# ---------------------------------------------------------------------------------------------------------------------
# Scales and heavy tails


def funnel(rng: Any, rows: int, dim: int, spread: float) -> Trap:
    """v ~ N(0, spread²), z_d ~ N(0, exp v), x = z + noise of sd 1 (Neal 2003); the guide has independent entries."""

    def simulate(count: int) -> tuple[Tensor, Tensor]:
        v = spread * draws(rng, count, 1)
        return v, (v / 2).exp() * draws(rng, count, dim) + draws(rng, count, dim)

    def features(x: Tensor) -> Tensor:
        size = (x**2).mean(-1, keepdim=True)
        return torch.cat([(size + 0.5).log(), (size + 0.5).log() ** 2], dim=-1)

    v, made = simulate(4000)
    predict, left = regression(features(made), v)
    _, x = simulate(rows)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            v = pyro.sample("v", dist.Normal(0.0, spread))
            width = (v / 2).exp()[..., None].expand(*v.shape, dim)
            z = pyro.sample("z", dist.Normal(torch.zeros_like(width), width).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        v = predict(features(x))
        gain = torch.sigmoid(v)
        with pyro.plate("data", len(x)):
            pyro.sample("v", dist.Normal(v[..., 0], left[0]))
            pyro.sample("z", dist.Normal(gain * x, gain.sqrt().expand_as(x)).to_event(1))

    def first(x: Tensor, t: Tensor) -> Tensor:
        wide = (1 + t.exp()).sqrt()
        return normal(t, 0.0, spread) + sum(normal(x[..., d], 0.0, wide) for d in range(dim))

    low, high = -8 * spread, 8 * spread

    def cover(row: Tensor, count: int) -> tuple[dict[str, Tensor], Tensor]:
        t, log_q = drawn_cells(first, row, low, high, count)
        gain = torch.sigmoid(t)[:, None]
        z = gain * row + gain.sqrt() * torch.randn(count, dim, dtype=torch.float64)
        return {"v": t, "z": z}, log_q + normal(z, gain * row, gain.sqrt()).sum(-1)

    return Trap(model, guide, x, integral(first, x, low, high), cover)


def half_cauchy(rng: Any, rows: int, effects: int, columns: int = 0) -> Trap:
    """A scale τ ~ HalfCauchy(1) from few data: x_j = effect_j + noise of sd 1 with effect_j ~ N(0, τ²).

    Without effects, ``columns`` draws of N(0, τ²).
    """
    columns = effects or columns
    floor = 1.0 if effects else 0.0

    def simulate(count: int) -> tuple[Tensor, Tensor]:
        tau = torch.from_numpy(np.abs(rng.standard_cauchy((count, 1)))).float()
        return tau.log(), tau * draws(rng, count, columns) + floor * draws(rng, count, columns)

    def features(x: Tensor) -> Tensor:
        size = ((x**2).mean(-1, keepdim=True) + 0.1 * floor + 1e-6).log()
        return torch.cat([size, size**2], dim=-1) if effects else size

    log_tau, made = simulate(4000)
    predict, left = regression(features(made), log_tau)
    _, x = simulate(rows)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            tau = pyro.sample("tau", dist.HalfCauchy(torch.ones(())))
            width = tau[..., None].expand(*tau.shape, columns)
            if effects:
                effect = pyro.sample("effect", dist.Normal(torch.zeros_like(width), width).to_event(1))
                pyro.sample("x", dist.Normal(effect, 1.0).to_event(1), obs=x)
            else:
                pyro.sample("x", dist.Normal(torch.zeros_like(width), width).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        loc = predict(features(x))
        with pyro.plate("data", len(x)):
            pyro.sample("tau", dist.LogNormal(loc[..., 0], left[0]))
            if effects:
                gain = torch.sigmoid(2 * loc)
                pyro.sample("effect", dist.Normal(gain * x, gain.sqrt().expand_as(x)).to_event(1))

    def first(x: Tensor, t: Tensor) -> Tensor:
        # t = log τ, so that the density of τ gains the factor τ.
        prior = math.log(2 / math.pi) - torch.nn.functional.softplus(2 * t) + t
        wide = (floor + (2 * t).exp()).sqrt()
        return prior + sum(normal(x[..., d], 0.0, wide) for d in range(columns))

    low, high = -25.0, 45.0

    def cover(row: Tensor, count: int) -> tuple[dict[str, Tensor], Tensor]:
        t, log_q = drawn_cells(first, row, low, high, count)
        found, log_q = {"tau": t.exp()}, log_q - t
        if effects:
            gain = torch.sigmoid(2 * t)[:, None]
            found["effect"] = gain * row + gain.sqrt() * torch.randn(count, columns, dtype=torch.float64)
            log_q = log_q + normal(found["effect"], gain * row, gain.sqrt()).sum(-1)
        return found, log_q

    return Trap(model, guide, x, integral(first, x, low, high), cover)


def student(
    rng: Any, rows: int, dim: int, df: float, repeats: int = 1, scale: float = 1.0, prior: bool = False
) -> Trap:
    """Student's t as the prior of z, or as the noise of ``repeats`` columns a latent; the guide is Gaussian."""

    def t_noise(*shape: int) -> Tensor:
        return torch.from_numpy(rng.standard_t(df, shape)).float()

    z = t_noise(rows, dim) if prior else draws(rng, rows, dim)
    noise = draws(rng, rows, dim, repeats) if prior else t_noise(rows, dim, repeats)
    x = (z[..., None] + scale * noise).flatten(1)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            t_prior = dist.StudentT(torch.tensor(df), torch.zeros(dim), torch.ones(())).to_event(1)
            z = pyro.sample("z", t_prior if prior else standard(dim))
            loc = z.repeat_interleave(repeats, dim=-1)
            noise = dist.Normal(loc, scale) if prior else dist.StudentT(torch.tensor(df), loc, scale)
            pyro.sample("x", noise.to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        centre = x.unflatten(-1, (dim, repeats)).median(dim=-1).values
        variance = scale**2 / repeats
        spread = variance / (1 + variance)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(centre / (1 + variance), math.sqrt(spread)).to_event(1))

    def t_density(x: Tensor) -> Tensor:
        constant = math.lgamma((df + 1) / 2) - math.lgamma(df / 2) - 0.5 * math.log(df * math.pi)
        return constant - (df + 1) / 2 * torch.log1p(x**2 / df)

    def factor(x: Tensor, t: Tensor) -> Tensor:
        # The first columns are centred at x or at zero, wherever the Gaussian factor is.
        t = t + x[..., :1].squeeze(-1) if prior else t
        gap = (x[..., 1:] - t[..., None]) / scale
        noise = normal(gap, 0.0, 1.0) if prior else t_density(gap)
        return (t_density(t) if prior else normal(t, 0.0, 1.0)) + (noise - math.log(scale)).sum(-1)

    def centred(x: Tensor) -> Tensor:
        """(…, repeats) → (…, 1 + repeats): where the Gaussian factor is, then the columns."""
        return torch.cat([x.mean(-1, keepdim=True) if prior else torch.zeros_like(x[..., :1]), x], dim=-1)

    reach = 9.0
    blocks = [centred(block) for block in x.double().split(repeats, dim=1)]
    truth = sum(integral(factor, block, -reach, reach) for block in blocks)

    def cover(row: Tensor, count: int) -> tuple[dict[str, Tensor], Tensor]:
        found, log_q = [], torch.zeros(count, dtype=torch.float64)
        for block in row.split(repeats, dim=1):
            t, log_p = drawn_cells(factor, centred(block), -reach, reach, count)
            found.append(t + (block.mean() if prior else 0.0))
            log_q = log_q + log_p
        return {"z": torch.stack(found, dim=1)}, log_q

    return Trap(model, guide, x, truth, cover)


# ---------------------------------------------------------------------------------------------------------------------
# Kinks


def kink(rng: Any, rows: int, dim: int, bend: str, sd: float) -> Trap:
    """x = |R z| + noise, or the positive part of R z, for a rotation R; the guide knows R, and the upper side alone."""
    rotation = torch.from_numpy(np.linalg.qr(rng.standard_normal((dim, dim)))[0]).float()
    fold = {"abs": torch.abs, "relu": torch.relu}[bend]
    x = fold(draws(rng, rows, dim) @ rotation) + sd * draws(rng, rows, dim)
    wide = math.sqrt(1 + sd**2)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", standard(dim))
            pyro.sample("x", dist.Normal(fold(z @ rotation.to(z)), sd).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        tril = torch.linalg.cholesky(rotation @ rotation.T) * sd / wide
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.MultivariateNormal(x / wide**2 @ rotation.T, scale_tril=tril))

    x64 = x.double()
    # log ∫ over z > 0 of N(z; 0, 1) N(x; z, sd²).
    upper = normal(x64, 0.0, wide) + torch.special.log_ndtr(x64 / (wide * sd))
    lower = upper if bend == "abs" else normal(x64, 0.0, sd) - math.log(2)

    def factor(x: Tensor, t: Tensor) -> Tensor:
        return normal(t, 0.0, 1.0) + normal(x[..., 0], fold(t), sd)

    # R is a rotation up to float32, which the density of z = R u must not feel.
    exact = torch.linalg.inv(rotation.double())
    volume = torch.linalg.slogdet(exact).logabsdet

    def cover(row: Tensor, count: int) -> tuple[dict[str, Tensor], Tensor]:
        found = [drawn_cells(factor, column, -9.0, 9.0, count) for column in row.split(1, dim=1)]
        u = torch.stack([t for t, _ in found], dim=1)
        return {"z": u @ exact}, sum(log_p for _, log_p in found) - volume

    return Trap(model, guide, x, torch.logaddexp(upper, lower).sum(-1), cover)


def relu_network(rng: Any, rows: int, hidden: int, columns: int, sd: float) -> Trap:
    """One latent, a network with a hidden layer of rectified units; the guide is a linear regression of z on x."""
    into, bias = draws(rng, hidden), draws(rng, hidden)
    out = 1.5 * draws(rng, hidden, columns) / hidden**0.5

    def decode(z: Tensor) -> Tensor:
        return torch.relu(z * into.to(z) + bias.to(z)) @ out.to(z)

    def simulate(count: int) -> tuple[Tensor, Tensor]:
        z = draws(rng, count, 1)
        return z, decode(z) + sd * draws(rng, count, columns)

    z, made = simulate(4000)
    predict, left = regression(made, z)
    _, x = simulate(rows)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", standard(1))
            pyro.sample("x", dist.Normal(decode(z), sd).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(predict(x), left).to_event(1))

    def log_joint(x: Tensor, t: Tensor) -> Tensor:
        loc = decode(t[:, None])
        return normal(t, 0.0, 1.0) + sum(normal(x[..., d], loc[:, d], sd) for d in range(columns))

    def cover(row: Tensor, count: int) -> tuple[dict[str, Tensor], Tensor]:
        t, log_q = drawn_cells(log_joint, row, -9.0, 9.0, count)
        return {"z": t[:, None]}, log_q

    return Trap(model, guide, x, integral(log_joint, x, -9.0, 9.0), cover)


# ---------------------------------------------------------------------------------------------------------------------
# Latents with bounds, and discrete ones


def gamma_poisson(rng: Any, rows: int, dim: int, shape: float, repeats: int, guide_family: str) -> Trap:
    """Rates from Gamma(shape, 1) with ``repeats`` Poisson counts each; the guide is "gamma", too wide, or "log-normal"."""
    rate = rng.gamma(shape, 1.0, (rows, dim))
    x = torch.from_numpy(rng.poisson(np.repeat(rate, repeats, axis=1))).float()

    def sums(x: Tensor) -> Tensor:
        return x.unflatten(-1, (dim, repeats)).sum(-1)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            rate = pyro.sample("rate", dist.Gamma(torch.full((dim,), shape), 1.0).to_event(1))
            pyro.sample("x", dist.Poisson(rate.repeat_interleave(repeats, dim=-1)).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        total = shape + sums(x)
        with pyro.plate("data", len(x)):
            if guide_family == "gamma":
                pyro.sample("rate", dist.Gamma(0.7 * total, 0.7 * (1.0 + repeats)).to_event(1))
            else:
                pyro.sample("rate", dist.LogNormal((total / (1 + repeats)).log(), total.rsqrt()).to_event(1))

    x64 = x.double()
    total = shape + sums(x64)
    truth = torch.lgamma(total) - math.lgamma(shape) - total * math.log(1 + repeats)
    truth = truth.sum(-1) - torch.lgamma(x64 + 1).sum(-1)

    def posterior(row: Tensor) -> Any:
        gamma = torch.distributions.Gamma(
            shape + sums(row)[0], torch.tensor(1.0 + repeats, dtype=torch.float64)
        )
        return torch.distributions.Independent(gamma, 1)

    return Trap(model, guide, x, truth, covered_by(posterior, "rate"))


def beta_bernoulli(rng: Any, rows: int, dim: int, a: float, trials: int, guess: float) -> Trap:
    """Probabilities from Beta(a, a) with some trials each; the guide takes ``guess`` for a."""
    p = rng.beta(a, a, (rows, dim))
    x = torch.from_numpy(rng.random((rows, dim * trials)) < np.repeat(p, trials, axis=1)).float()

    def counts(x: Tensor) -> Tensor:
        return x.unflatten(-1, (dim, trials)).sum(-1)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            p = pyro.sample("p", dist.Beta(torch.full((dim,), a), a).to_event(1))
            pyro.sample("x", dist.Bernoulli(probs=p.repeat_interleave(trials, dim=-1)).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        ones = counts(x)
        with pyro.plate("data", len(x)):
            pyro.sample("p", dist.Beta(guess + ones, guess + trials - ones).to_event(1))

    def log_beta(a: Tensor, b: Tensor) -> Tensor:
        return torch.lgamma(a) + torch.lgamma(b) - torch.lgamma(a + b)

    ones, alone = counts(x.double()), torch.tensor(a, dtype=torch.float64)
    truth = (log_beta(a + ones, a + trials - ones) - log_beta(alone, alone)).sum(-1)

    def posterior(row: Tensor) -> Any:
        ones = counts(row)[0]
        return torch.distributions.Independent(torch.distributions.Beta(a + ones, a + trials - ones), 1)

    return Trap(model, guide, x, truth, covered_by(posterior, "p"))


def log_normal(rng: Any, rows: int, dim: int, sd: float, factor: float) -> Trap:
    """z ~ LogNormal(0, 1), x_l ~ LogNormal(log z_l, sd); the guide's standard deviations are wrong by a factor."""
    x = (draws(rng, rows, dim) + sd * draws(rng, rows, dim)).exp()
    gain = 1 / (1 + sd**2)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.LogNormal(torch.zeros(dim), 1.0).to_event(1))
            pyro.sample("x", dist.LogNormal(z.log(), sd).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.LogNormal(gain * x.log(), factor * sd * gain**0.5).to_event(1))

    logs = x.double().log()
    truth = (normal(logs, 0.0, math.sqrt(1 + sd**2)) - logs).sum(-1)

    def posterior(row: Tensor) -> Any:
        each = torch.distributions.LogNormal(gain * row[0].log(), sd * gain**0.5)
        return torch.distributions.Independent(each, 1)

    return Trap(model, guide, x, truth, covered_by(posterior))


def bits(rng: Any, rows: int, dim: int, columns: int, floor: float) -> Trap:
    """Binary latents, x = z W + noise; the guide proposes the first as one with probability ``floor``."""
    weights, prior = 1.5 * draws(rng, dim, columns), torch.full((dim,), 0.3)

    def simulate(count: int) -> tuple[Tensor, Tensor]:
        z = torch.from_numpy(rng.random((count, dim)) < 0.3).float()
        return z, z @ weights + draws(rng, count, columns)

    z, made = simulate(4000)
    predict, _ = regression(made, z)
    _, x = simulate(rows)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(prior).to_event(1))
            pyro.sample("x", dist.Normal(z @ weights.to(z), 1.0).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        probs = predict(x).clamp(0.05, 0.95)
        probs = torch.cat([torch.full_like(probs[..., :1], floor), probs[..., 1:]], dim=-1)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Bernoulli(probs).to_event(1))

    values = torch.tensor(list(itertools.product((0.0, 1.0), repeat=dim)), dtype=torch.float64)
    chance = prior.double()
    log_prior = (values * chance.log() + (1 - values) * (1 - chance).log()).sum(-1)

    def terms(x: Tensor) -> Tensor:
        return log_prior + normal(x.double()[:, None], values @ weights.double(), 1.0).sum(-1)

    def cover(row: Tensor, count: int) -> tuple[dict[str, Tensor], Tensor]:
        log_q = torch.log_softmax(terms(row)[0] / 1.2, dim=0)
        chosen = torch.multinomial(log_q.exp(), count, replacement=True)
        return {"z": values[chosen]}, log_q[chosen]

    return Trap(model, guide, x, torch.logsumexp(terms(x), dim=1), cover)


def classes(rng: Any, rows: int, number: int, dim: int, sd: float, keep: float) -> Trap:
    """A class c of equal probability and z ~ N(0, I), x = loc_c + z W_c + noise; the guide is the posterior of z given c.

    It proposes the first class with probability ``keep`` and the others alike.
    """
    locs, weights = 1.5 * draws(rng, number, dim), 0.7 * draws(rng, number, dim, dim)
    chosen = torch.from_numpy(rng.integers(0, number, rows))
    x = locs[chosen] + (draws(rng, rows, 1, dim) @ weights[chosen])[:, 0] + sd * draws(rng, rows, dim)
    log_guide = torch.full((number,), (1 - keep) / number).index_fill(0, torch.tensor([0]), keep).log()
    w, eye = weights.double(), torch.eye(dim, dtype=torch.float64)
    covariance = torch.linalg.inv(eye + w @ w.mT / sd**2)
    to_mean, tril = w.mT @ covariance / sd**2, torch.linalg.cholesky(covariance)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Categorical(torch.full((number,), 1 / number)))
            z = pyro.sample("z", standard(dim))
            loc = locs[c].to(z) + (z[..., None, :] @ weights[c].to(z))[..., 0, :]
            pyro.sample("x", dist.Normal(loc, sd).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Categorical(logits=log_guide.expand(len(x), number)))
            loc = ((x - locs[c])[..., None, :] @ to_mean.to(x)[c])[..., 0, :]
            pyro.sample("z", dist.MultivariateNormal(loc, scale_tril=tril.to(x)[c]))

    marginal = torch.distributions.MultivariateNormal(locs.double(), w.mT @ w + sd**2 * eye)

    def each(x: Tensor) -> Tensor:
        return marginal.log_prob(x.double()[:, None]) - math.log(number)

    def cover(row: Tensor, count: int) -> tuple[dict[str, Tensor], Tensor]:
        log_share = each(row)[0].log_softmax(-1)
        c = torch.multinomial(log_share.exp(), count, replacement=True)
        loc = ((row - locs[c])[:, None] @ to_mean[c])[:, 0]
        q = torch.distributions.MultivariateNormal(loc, scale_tril=tril[c])
        z = q.sample()
        return {"c": c, "z": z}, log_share[c] + q.log_prob(z)

    return Trap(model, guide, x, torch.logsumexp(each(x), dim=1), cover)


def responses(rng: Any, rows: int, dim: int, columns: int, family: str) -> Trap:
    """One or two latents, Bernoulli or Poisson columns with the canonical link; the guide is a linear regression."""
    weights, bias = 1.2 * draws(rng, dim, columns), 0.5 * draws(rng, columns)

    def likelihood(z: Tensor) -> Any:
        eta = z @ weights.to(z) + bias.to(z)
        return dist.Bernoulli(logits=eta) if family == "Bernoulli" else dist.Poisson((0.6 * eta).exp())

    def simulate(count: int) -> tuple[Tensor, Tensor]:
        z = draws(rng, count, dim)
        mean = likelihood(z).mean.numpy()
        made = rng.random(mean.shape) < mean if family == "Bernoulli" else rng.poisson(mean)
        return z, torch.from_numpy(made).float()

    def features(x: Tensor) -> Tensor:
        return x if family == "Bernoulli" else (x + 0.5).log()

    z, made = simulate(4000)
    predict, left = regression(features(made), z)
    _, x = simulate(rows)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", standard(dim))
            pyro.sample("x", likelihood(z).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(predict(features(x)), left).to_event(1))

    def log_joint(x: Tensor, t: Tensor) -> Tensor:
        t = t.reshape(-1, dim)
        return normal(t, 0.0, 1.0).sum(-1) + likelihood(t).log_prob(x).sum(-1)

    truth = integral(log_joint, x, -8.0, 8.0) if dim == 1 else plane_integral(log_joint, x, 8.0)

    def posterior(row: Tensor) -> Any:
        spread = 1.3 * left.double()
        return torch.distributions.Independent(
            torch.distributions.Normal(predict(features(row))[0].double(), spread), 1
        )

    return Trap(model, guide, x, truth, covered_by(posterior))


# ---------------------------------------------------------------------------------------------------------------------
# The registry

#: Kinds that nobody looks at while a method is tuned: ``traps.py`` leaves them out without ``--held-back``.
HELD_BACK = frozenset({"rare spike", "shell", "product"})

SETTINGS = [
    Setting("spike 0.3, 2-D", "spike", spike, {"dim": 2, "sd": 0.3}),
    Setting("spike 0.3, 5-D, shifted 4", "spike", spike, {"dim": 5, "sd": 0.3, "shift": 4.0}),
    Setting("spike 0.3, 10-D", "spike", spike, {"dim": 10, "sd": 0.3}),
    Setting("spike 0.3, 20-D, shifted 4", "spike", spike, {"dim": 20, "sd": 0.3, "shift": 4.0}),
    Setting("spike 0.1, 2-D, shifted 4", "spike", spike, {"dim": 2, "sd": 0.1, "shift": 4.0}),
    Setting("spike 0.1, 5-D", "spike", spike, {"dim": 5, "sd": 0.1}),
    Setting("spike 0.1, 10-D", "spike", spike, {"dim": 10, "sd": 0.1}),
    Setting("spike 0.1, 10-D, shifted 4", "spike", spike, {"dim": 10, "sd": 0.1, "shift": 4.0}),
    Setting("spike 0.1, 20-D", "spike", spike, {"dim": 20, "sd": 0.1}),
    Setting("spike 0.03, 2-D", "spike", spike, {"dim": 2, "sd": 0.03}),
    Setting("spike 0.03, 5-D, shifted 4", "spike", spike, {"dim": 5, "sd": 0.03, "shift": 4.0}),
    Setting("spike 0.03, 20-D", "spike", spike, {"dim": 20, "sd": 0.03}),
    Setting("plateau 0.3, 5-D", "phase transition", plateau, {"dim": 5, "sd": 0.3}),
    Setting("plateau 0.1, 10-D", "phase transition", plateau, {"dim": 10, "sd": 0.1}),
    Setting("plateau 0.03, 10-D", "phase transition", plateau, {"dim": 10, "sd": 0.03}),
    Setting("banana, bend 1", "banana", banana, {"bend": 1.0, "sd": 0.1}),
    Setting("banana, bend 1.5", "banana", banana, {"bend": 1.5, "sd": 0.1}),
    Setting("banana, bend 3", "banana", banana, {"bend": 3.0, "sd": 0.05}),
    Setting("banana, 6-D", "banana", banana, {"bend": 1.5, "sd": 0.1, "others": 4}),
    Setting("2 modes, 2-D", "equal modes", modes, {"folded": 1, "dim": 2}),
    Setting("4 modes, 2-D", "equal modes", modes, {"folded": 2, "dim": 2}),
    Setting("8 modes, 3-D", "equal modes", modes, {"folded": 3, "dim": 3}),
    Setting("8 modes, 6-D", "equal modes", modes, {"folded": 3, "dim": 6}),
    Setting("16 modes, 4-D", "equal modes", modes, {"folded": 4, "dim": 4}),
    Setting("16 modes, 15 known, 4-D", "equal modes", modes, {"folded": 4, "dim": 4, "known": 15}),
    Setting("folds 1 : 20, 1-D", "folds", folds, {"dim": 1, "ratio": 20.0, "sd": 0.3}),
    Setting("folds 1 : 10, 3-D", "folds", folds, {"dim": 3, "ratio": 10.0, "sd": 0.3}),
    Setting("folds 1 : 5, 5-D", "folds", folds, {"dim": 5, "ratio": 5.0, "sd": 0.2}),
    Setting("order of 2", "order", order, {"dim": 2, "sd": 0.2}),
    Setting("order of 3", "order", order, {"dim": 3, "sd": 0.1}),
    Setting("order of 4", "order", order, {"dim": 4, "sd": 0.2}),
    Setting("2 unequal modes, 3-D", "unequal modes", modes, {"folded": 1, "dim": 3, "loc": -0.5}),
    Setting("4 unequal modes, 4-D", "unequal modes", modes, {"folded": 2, "dim": 4, "loc": 0.5}),
    Setting("16 unequal modes, 6-D", "unequal modes", modes, {"folded": 4, "dim": 6, "loc": 0.5}),
    Setting(
        "mixture prior of 3, 2-D", "mixture prior", mixture_prior, {"components": 3, "dim": 2, "sd": 1.0}
    ),
    Setting(
        "mixture prior of 4, 5-D", "mixture prior", mixture_prior, {"components": 4, "dim": 5, "sd": 2.0}
    ),
    Setting(
        "mixture prior of 8, 10-D", "mixture prior", mixture_prior, {"components": 8, "dim": 10, "sd": 3.0}
    ),
    Setting("funnel, 2 + 1-D", "funnel", funnel, {"dim": 2, "spread": 3.0}),
    Setting("funnel, 5 + 1-D", "funnel", funnel, {"dim": 5, "spread": 3.0}),
    Setting("funnel, 9 + 1-D", "funnel", funnel, {"dim": 9, "spread": 1.5}),
    Setting("half-Cauchy, 2 draws", "half-Cauchy", half_cauchy, {"effects": 0, "columns": 2}),
    Setting("half-Cauchy, 1 effect", "half-Cauchy", half_cauchy, {"effects": 1}),
    Setting("half-Cauchy, 4 effects", "half-Cauchy", half_cauchy, {"effects": 4}),
    Setting("half-Cauchy, 8 effects", "half-Cauchy", half_cauchy, {"effects": 8}),
    Setting("t prior, df 2, 1-D", "heavy tails", student, {"dim": 1, "df": 2.0, "prior": True}),
    Setting("t prior, df 3, 2-D", "heavy tails", student, {"dim": 2, "df": 3.0, "prior": True}),
    Setting(
        "t noise, df 1.5, 1-D", "heavy tails", student, {"dim": 1, "df": 1.5, "repeats": 3, "scale": 0.3}
    ),
    Setting("t noise, df 1, 2-D", "heavy tails", student, {"dim": 2, "df": 1.0, "repeats": 2, "scale": 0.3}),
    Setting("prior as encoder, 2-D", "collapsed", linear, {"dim": 2, "columns": 4, "encoder": "prior"}),
    Setting("prior as encoder, 5-D", "collapsed", linear, {"dim": 5, "columns": 10, "encoder": "prior"}),
    Setting("prior as encoder, 10-D", "collapsed", linear, {"dim": 10, "columns": 20, "encoder": "prior"}),
    Setting("shifted 1 sd, 10-D", "shifted", linear, {"dim": 10, "columns": 20, "shift": 1.0}),
    Setting("shifted 2 sd, 5-D", "shifted", linear, {"dim": 5, "columns": 10, "shift": 2.0}),
    Setting("shifted 4 sd, 2-D", "shifted", linear, {"dim": 2, "columns": 6, "shift": 4.0}),
    Setting("shifted 4 sd, 10-D", "shifted", linear, {"dim": 10, "columns": 20, "shift": 4.0}),
    Setting("shrunk to 0.5, 5-D", "shrunk", linear, {"dim": 5, "columns": 10, "scale": 0.5}),
    Setting("shrunk to 0.3, 2-D", "shrunk", linear, {"dim": 2, "columns": 6, "scale": 0.3}),
    Setting("shrunk to 0.3, 10-D", "shrunk", linear, {"dim": 10, "columns": 20, "scale": 0.3}),
    Setting("widened by 5, 2-D", "widened", linear, {"dim": 2, "columns": 6, "scale": 5.0}),
    Setting("widened by 2, 5-D", "widened", linear, {"dim": 5, "columns": 10, "scale": 2.0}),
    Setting("widened by 3, 10-D", "widened", linear, {"dim": 10, "columns": 20, "scale": 3.0}),
    Setting("|z|, 2-D", "kink", kink, {"dim": 2, "bend": "abs", "sd": 0.3}),
    Setting("|z|, 4-D", "kink", kink, {"dim": 4, "bend": "abs", "sd": 0.2}),
    Setting("positive part, 3-D", "kink", kink, {"dim": 3, "bend": "relu", "sd": 0.3}),
    Setting("positive part, 8-D", "kink", kink, {"dim": 8, "bend": "relu", "sd": 0.2}),
    Setting("ReLU network, 1-D", "kink", relu_network, {"hidden": 8, "columns": 4, "sd": 0.2}),
    Setting(
        "layers 1, 2, 3", "two layers", layers, {"upper": 1, "lower": 2, "columns": 3, "encoder": "exact"}
    ),
    Setting(
        "layers 2, 4, 8",
        "two layers",
        layers,
        {"upper": 2, "lower": 4, "columns": 8, "encoder": "mean field"},
    ),
    Setting(
        "layers 5, 10, 20",
        "two layers",
        layers,
        {"upper": 5, "lower": 10, "columns": 20, "encoder": "collapsed"},
    ),
    Setting(
        "gamma–Poisson, 1-D",
        "bounded",
        gamma_poisson,
        {"dim": 1, "shape": 2.0, "repeats": 3, "guide_family": "gamma"},
    ),
    Setting(
        "gamma–Poisson, 5-D",
        "bounded",
        gamma_poisson,
        {"dim": 5, "shape": 1.0, "repeats": 2, "guide_family": "log-normal"},
    ),
    Setting(
        "gamma 0.3–Poisson, 3-D",
        "bounded",
        gamma_poisson,
        {"dim": 3, "shape": 0.3, "repeats": 2, "guide_family": "log-normal"},
    ),
    Setting(
        "beta–Bernoulli, 3-D", "bounded", beta_bernoulli, {"dim": 3, "a": 0.5, "trials": 4, "guess": 1.0}
    ),
    Setting("log-normal, 4-D", "bounded", log_normal, {"dim": 4, "sd": 0.5, "factor": 0.6}),
    Setting(
        "far rows, 4 sd, 2-D",
        "far rows",
        linear,
        {"dim": 2, "columns": 6, "encoder": "saturating", "out": 4.0},
    ),
    Setting(
        "far rows, 6 sd, 5-D",
        "far rows",
        linear,
        {"dim": 5, "columns": 15, "encoder": "saturating", "out": 6.0},
    ),
    Setting(
        "far rows, 6 sd, 10-D",
        "far rows",
        linear,
        {"dim": 10, "columns": 30, "encoder": "saturating", "out": 6.0},
    ),
    Setting("ridge, 2-D", "ridge", linear, {"dim": 2, "columns": 2, "ridge": 0.05}),
    Setting("ridge, 5-D", "ridge", linear, {"dim": 5, "columns": 2, "ridge": 0.05}),
    Setting("ridge, 10-D", "ridge", linear, {"dim": 10, "columns": 4, "ridge": 0.02}),
    Setting("6 binary answers, 1-D", "responses", responses, {"dim": 1, "columns": 6, "family": "Bernoulli"}),
    Setting(
        "10 binary answers, 2-D", "responses", responses, {"dim": 2, "columns": 10, "family": "Bernoulli"}
    ),
    Setting("6 counts, 2-D", "responses", responses, {"dim": 2, "columns": 6, "family": "Poisson"}),
    Setting("PPCA, 10-D, exact encoder", "healthy", linear, {"dim": 10, "columns": 20, "encoder": "full"}),
    Setting(
        "PPCA, 10-D, 1.1 × sd", "healthy", linear, {"dim": 10, "columns": 20, "encoder": "full", "scale": 1.1}
    ),
    Setting("PPCA, 50-D, exact encoder", "healthy", linear, {"dim": 50, "columns": 100, "encoder": "full"}),
    Setting(
        "PPCA, 50-D, 1.05 × sd",
        "healthy",
        linear,
        {"dim": 50, "columns": 100, "encoder": "full", "scale": 1.05},
    ),
    Setting("bits, 3", "discrete", bits, {"dim": 3, "columns": 4, "floor": 0.3}),
    Setting("bits, 6, one rarely proposed", "discrete", bits, {"dim": 6, "columns": 8, "floor": 1e-2}),
    Setting("bits, 6, one never proposed", "discrete", bits, {"dim": 6, "columns": 8, "floor": 1e-7}),
    Setting("3 classes, 2-D", "classes", classes, {"number": 3, "dim": 2, "sd": 0.5, "keep": 0.5}),
    Setting("5 classes, 2-D", "classes", classes, {"number": 5, "dim": 2, "sd": 0.3, "keep": 0.9}),
    Setting(
        "5 classes, one proposed, 3-D", "classes", classes, {"number": 5, "dim": 3, "sd": 0.3, "keep": 0.9999}
    ),
    Setting("rare spike 0.03, 5-D", "rare spike", spike, {"dim": 5, "sd": 0.03, "shift": 4.0, "weight": 0.1}),
    Setting("rare spike 0.1, 10-D", "rare spike", spike, {"dim": 10, "sd": 0.1, "weight": 0.05}),
    Setting("rare spike 0.1, 20-D", "rare spike", spike, {"dim": 20, "sd": 0.1, "weight": 0.02}),
    Setting("shell, 2-D", "shell", shell, {"dim": 2, "sd": 0.1}),
    Setting("shell, 3-D", "shell", shell, {"dim": 3, "sd": 0.1}),
    Setting("shell, 5-D", "shell", shell, {"dim": 5, "sd": 0.05}),
    Setting("product, 2-D", "product", product, {"pairs": 1, "sd": 0.1}),
    Setting("product, 4-D", "product", product, {"pairs": 2, "sd": 0.3}),
    Setting("product, 8-D", "product", product, {"pairs": 4, "sd": 0.3}),
]


def verify(setting: Setting, rows: int = 5, count: int = 20_000, seed: int = 0) -> tuple[float, float]:
    """Return the largest error of ``truth`` against importance sampling from ``cover``, in nats and in standard errors."""
    trap = setting.trap(seed, rows)
    worst, ratio = 0.0, 0.0
    for row, truth in zip(trap.x.double().split(1), trap.truth.double(), strict=True):
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(seed)
            latents, log_q = trap.cover(row, count)
            conditioned = pyro.poutine.condition(trap.model, data=latents)
            trace = pyro.poutine.trace(conditioned).get_trace(row.expand(count, -1))
        trace.compute_log_prob()
        sites = [site for site in trace.nodes.values() if site["type"] == "sample" and "log_prob" in site]
        log_joint = sum(site["log_prob"] for site in sites if site["log_prob"].shape == (count,))
        log_weights = log_joint - log_q
        estimate = torch.logsumexp(log_weights, dim=0) - math.log(count)
        relative = (log_weights - estimate).exp()
        error = float(relative.std() / count**0.5)
        off = abs(float(estimate - truth))
        worst, ratio = max(worst, off), max(ratio, off / (error + 1e-5))
    return worst, ratio
