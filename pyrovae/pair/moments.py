"""Computes moments of Q(z | x) and its rate, dimension by dimension."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import kl_divergence

from pyrovae.pair.masks import entries as entries_of
from pyrovae.pair.row_model import RowModel
from pyrovae.pair.running import Batch, fold, repeat, run
from pyrovae.refusals import bad_value
from pyrovae.row_noise import RowNoise


@dataclass(frozen=True)
class Moments:
    """The posterior's mean and rate of one latent, each of shape (rows, dimensions).

    The mean is NaN if a row lacks the entry. ``error`` is the squared Monte-Carlo error of the mean, zero in closed
    form. ``kind`` tells how the rate was computed: "exact", "sampled" or "marginal".
    """

    mean: Tensor
    error: Tensor
    rate: Tensor
    kind: str


def posterior_moments(model: RowModel, batch: Batch, count: int, noise: RowNoise) -> dict[str, Moments]:
    """Return every latent's posterior moments and rate, by name, from ``count`` draws of the guide.

    Raises:
        ValueError: a latent is discrete.
    """
    pair, structure = model.pair, model.structure
    latents, _ = model.propose(batch, count, noise)
    repeated = repeat(batch, count)
    held = fold(structure, latents)
    drawn, scored = (run(pair, part, repeated, held) for part in ("guide", "model"))
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

        def entries(value: Tensor, name: str = name) -> Tensor:
            """Return the plain layout as (draws, rows, dimensions)."""
            axis = value.dim() - structure.event_dims[name] + structure.data_dim[name]
            return value.movedim(axis, 0).reshape(count, len(batch["x"]), -1).double()

        mean, within = _conditional_moments(q, entries, entries(held[name]))
        spread = mean.var(dim=0)
        variance = within.mean(dim=0) + spread
        terms = _factors(q, p)
        if terms is None:
            prior, _ = model.draw_prior(batch, count, noise)
            prior = fold(structure, prior)
            p = run(pair, "model", repeated, prior)[name]["fn"]
            at, between = _conditional_moments(p, entries, entries(prior[name]))
            prior_mean, prior_variance = at.mean(dim=0), between.mean(dim=0) + at.var(dim=0)
            ratio = (variance + (mean.mean(dim=0) - prior_mean) ** 2) / prior_variance
            each, kind = 0.5 * (ratio - 1 - torch.log(variance / prior_variance)), "marginal"
        else:
            each, kind = _rate_of(*terms, held[name], entries)
        average, counted = mean.mean(dim=0), entries_of(drawn[name])
        if counted is not None:
            lacks = ~entries(counted)[0].bool()
            average, each = average.masked_fill(lacks, math.nan), each.masked_fill(lacks, 0.0)
        found[name] = Moments(average, spread / count, each, kind)
    return found


def _conditional_moments(
    fn: dist.TorchDistribution, entries: Callable[[Tensor], Tensor], draws: Tensor
) -> tuple[Tensor, Tensor]:
    """Return mean and variance given earlier latents, (draws, rows, dimensions); the draw and 0 if unknown.

    The law of total variance then holds for both: variance = mean of the variances + variance of the means.
    """
    try:
        return entries(fn.mean), entries(fn.variance)
    except NotImplementedError:
        return draws, torch.zeros_like(draws)


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
