"""Computes moments of Q(z | x), and its rate, dimension by dimension."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import NamedTuple

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import kl_divergence

from pyrovae import supports
from pyrovae.pair.masks import entries as entries_of
from pyrovae.pair.row_model import RowModel
from pyrovae.pair.running import Batch, Latents, Site, Sites, fold, repeat, run
from pyrovae.refusals import bad_value
from pyrovae.row_noise import RowNoise


@dataclass(frozen=True)
class Moments:
    """The posterior's mean and rate of one latent, and the prior's variance, each of shape (rows, dimensions).

    The mean is NaN if it does not exist, as of a Cauchy distribution. ``lacks`` tells which entries a row lacks. ``error`` is
    the squared Monte-Carlo error of the mean, zero in closed form. ``kind`` tells how the rate was computed: "exact",
    "sampled" or "marginal". A marginal rate is NaN if the prior has no variance.
    """

    mean: Tensor
    error: Tensor
    rate: Tensor
    prior_variance: Tensor
    lacks: Tensor
    kind: str


class Given(NamedTuple):
    """Moments of one latent under Q(z | x), given the latents that the guide draws before it.

    Mean and variance have shape (draws, rows, entries), float64. The latent's mean is the mean of the means over the draws.
    Its variance is the mean of the variances plus the variance of the means (law of total variance). Without a closed form
    the mean is the draw itself and the variance 0. ``lacks`` tells which entries a row lacks, (rows, entries); None if
    masks leave out none.
    """

    mean: Tensor
    variance: Tensor
    closed: bool
    lacks: Tensor | None


def check_have_means(model: RowModel, batch: Batch) -> None:
    """Raise ``ValueError`` for a latent whose mean has no meaning: labels without an order, and angles."""
    sites = run(model.pair, "guide", batch)
    for name in model.structure.latents:
        inner = supports.innermost(sites[name]["fn"])
        if isinstance(inner, dist.Categorical) or supports.circle(inner):
            raise bad_value(
                "model",
                "latents that have a mean",
                f"{name!r}, labels or angles of a {type(inner).__name__}",
                "Write labels as a OneHotCategorical, whose mean is the probability of each; leave angles to the guide.",
            )


def guide_moments(
    model: RowModel, batch: Batch, count: int, noise: RowNoise
) -> tuple[dict[str, Given], Latents, Sites]:
    """Return every latent's moments given ``count`` draws of the guide, the draws in plain layout, and the guide's sites."""
    latents, _ = model.propose(batch, count, noise)
    held = fold(model.structure, latents)
    drawn = run(model.pair, "guide", repeat(batch, count), held)
    found = {}
    for name in model.structure.latents:
        entries = partial(_entries, model, name, count)
        moments = _conditional_moments(drawn[name]["fn"], entries, entries(held[name]))
        found[name] = Given(*moments, _lacks(drawn[name], entries))
    return found, held, drawn


def lacking(model: RowModel, batch: Batch, latents: Latents) -> dict[str, Tensor | None]:
    """Return which entries of latents a row lacks, as ``Given.lacks``, for one sample in the layout of ``RowModel``."""
    drawn = run(model.pair, "guide", batch, fold(model.structure, latents))
    return {name: _lacks(drawn[name], partial(_entries, model, name, 1)) for name in model.structure.latents}


def _lacks(site: Site, entries: Callable[[Tensor], Tensor]) -> Tensor | None:
    counted = entries_of(site)
    return None if counted is None else ~entries(counted)[0].bool()


def posterior_moments(model: RowModel, batch: Batch, count: int, noise: RowNoise) -> dict[str, Moments]:
    """Return every latent's posterior moments and rate, by name, from ``count`` draws of the guide.

    Raises:
        ValueError: a latent is discrete.
    """
    pair, structure = model.pair, model.structure
    given, held, drawn = guide_moments(model, batch, count, noise)
    repeated = repeat(batch, count)
    scored = run(pair, "model", repeated, held)

    @cache
    def of_prior() -> tuple[Latents, Sites]:
        prior = fold(structure, model.draw_prior(batch, count, noise)[0])
        return prior, run(pair, "model", repeated, prior)

    found = {}
    for name in structure.latents:
        q, p = drawn[name]["fn"], scored[name]["fn"]
        if p.support.is_discrete:
            raise bad_value(
                "model",
                "continuous latents, whose posterior mean can vary",
                f"the discrete latent {name!r}",
                "Sum it out in the model, or use log_evidence and elbo only.",
            )
        entries = partial(_entries, model, name, count)
        mean, within, _, lacking = given[name]
        at, between, closed = _conditional_moments(p, entries, entries(held[name]))
        if not (
            closed and _same(at) and _same(between)
        ):  # it depends on other latents, which the prior draws, too
            prior, sites = of_prior()
            at, between, _ = _conditional_moments(sites[name]["fn"], entries, entries(prior[name]))
        prior_mean, prior_variance = at.mean(dim=0), between.mean(dim=0) + at.var(dim=0)
        spread = mean.var(dim=0)
        variance = within.mean(dim=0) + spread
        terms = _factors(q, p)
        if terms is None:
            ratio = (variance + (mean.mean(dim=0) - prior_mean) ** 2) / prior_variance
            each, kind = 0.5 * (ratio - 1 - torch.log(variance / prior_variance)), "marginal"
            each = each.masked_fill(prior_variance.isinf(), math.nan)
        else:
            each, kind = _rate_of(*terms, held[name], entries)
        lacks = torch.zeros_like(each, dtype=torch.bool) if lacking is None else lacking
        each = each.masked_fill(lacks, 0.0)
        found[name] = Moments(mean.mean(dim=0), spread / count, each, prior_variance, lacks, kind)
    return found


def _same(value: Tensor) -> bool:
    """Return whether moments are the same given every draw."""
    return torch.allclose(value, value[:1].expand_as(value), rtol=0.0, atol=0.0, equal_nan=True)


def _entries(model: RowModel, name: str, count: int, value: Tensor) -> Tensor:
    """Return a latent's plain layout of draws · rows as (draws, rows, entries), float64."""
    axis = value.dim() - model.structure.event_dims[name] + model.structure.data_dim[name]
    rows = value.movedim(axis, 0)
    return rows.reshape(count, len(rows) // count, -1).double()


def _conditional_moments(
    fn: dist.TorchDistribution, entries: Callable[[Tensor], Tensor], draws: Tensor
) -> tuple[Tensor, Tensor, bool]:
    """Return the mean, the variance and whether they are closed forms, as in ``Given``."""
    try:
        return entries(fn.mean), entries(fn.variance), True
    except NotImplementedError:
        return draws, torch.zeros_like(draws), False


def _factors(
    q: dist.TorchDistribution, p: dist.TorchDistribution
) -> tuple[dist.TorchDistribution, dist.TorchDistribution] | None:
    """Return the distributions of the entries if both factorise over them, else None."""
    while isinstance(q, dist.Independent) and isinstance(p, dist.Independent):
        q, p = q.base_dist, p.base_dist
    return None if q.event_shape or p.event_shape else (q, p)


def _rate_of(
    q: dist.TorchDistribution,
    p: dist.TorchDistribution,
    value: Tensor,
    entries: Callable[[Tensor], Tensor],
) -> tuple[Tensor, str]:
    """Return the rate of every entry, (rows, dimensions), and whether it is in closed form or from the draws."""
    try:
        exact = entries(kl_divergence(q, p))
    except NotImplementedError:
        exact = None
    sampled = entries(q.log_prob(value) - p.log_prob(value)).mean(dim=0)
    if exact is None:
        return sampled, "sampled"
    # If it varies over draws, q or P depends on other latents. Averaging over these is right only if the guide
    # draws them first.
    same = torch.isclose(exact[:1], exact, rtol=1e-4, atol=1e-6).all(dim=0)
    return torch.where(same, exact[0], sampled), "exact" if bool(same.all()) else "sampled"
