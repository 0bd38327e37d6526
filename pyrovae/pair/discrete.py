"""Values of discrete latents other than those that were drawn."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import product
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import MaskedDistribution
from torch import Tensor

from pyrovae import supports
from pyrovae.pair.row_model import RowModel
from pyrovae.pair.running import Batch, Latents, run

# Values of discrete latents that are looked at: of a count, of one unit at a time, of all together.
_MOST_COUNTS, _MOST_CHANGES, _MOST_COMBINATIONS = 64, 1024, 1024


def other_values(model: RowModel, batch: Batch, at: Latents, at_once: int) -> Iterator[Latents]:
    """Draws ``at``, of one sample, with discrete latents at other values: one unit at a time, and where all take few
    values, all combinations. As ``propose`` lays them out, at most ``at_once`` samples in one."""
    units, _ = _discrete_units(model, batch, at)
    changes = [[(unit, value)] for unit, (_, _, values) in enumerate(units) for value in range(len(values))]
    if len(units) > 1 and math.prod(len(values) for _, _, values in units) <= _MOST_COMBINATIONS:
        changes = _combinations(units)
    return _changed(model, at, units, changes[:_MOST_CHANGES], at_once)


def all_values(model: RowModel, batch: Batch, at: Latents, at_once: int) -> Iterator[Latents] | None:
    """Every value of the latents together, each once, laid out as in ``other_values``; None where they are not discrete
    with few values."""
    units, complete = _discrete_units(model, batch, at)
    if not complete or math.prod(len(values) for _, _, values in units) > _MOST_COMBINATIONS:
        return None
    return _changed(model, at, units, _combinations(units), at_once)


#: A unit of a discrete latent: the site, its place among the site's units, and its values, (values, entries).
_Unit = tuple[str, int, Tensor]


def _discrete_units(model: RowModel, batch: Batch, at: Latents) -> tuple[list[_Unit], bool]:
    """The units of discrete latents, and whether they are all there is, each with every value it can take."""
    sites = run(model.pair, "model", batch)
    units: list[_Unit] = []
    complete = True
    for name in model.structure.latents:
        fn = sites[name]["fn"]
        while isinstance(fn, dist.Independent | MaskedDistribution):
            complete &= isinstance(fn, dist.Independent)
            fn = fn.base_dist
        values, every = _values_of(fn, at[name])
        complete &= every and sites[name]["mask"] is None
        if values is not None:
            width = model.rows_second(name, at[name])[0, 0].numel()
            size = values[0].numel()
            units += [(name, place, values.reshape(len(values), size)) for place in range(width // size)]
    return units, complete


def _combinations(units: list[_Unit]) -> list[list[tuple[int, int]]]:
    return [list(enumerate(each)) for each in product(*(range(len(values)) for _, _, values in units))]


def _changed(
    model: RowModel,
    at: Latents,
    units: list[_Unit],
    changes: list[list[tuple[int, int]]],
    at_once: int,
) -> Iterator[Latents]:
    """``at`` with some units at some of their values, a sample for each change: (unit, value) pairs by their numbers."""
    for start in range(0, len(changes), at_once):
        some = changes[start : start + at_once]
        latents = {name: value.repeat(len(some), *[1] * (value.dim() - 1)) for name, value in at.items()}
        for name, value in latents.items():
            moved = model.rows_second(name, value)
            entries = moved.reshape(*moved.shape[:2], -1).clone()
            for sample, change in enumerate(some):
                for unit, chosen in change:
                    site, place, values = units[unit]
                    if site == name:
                        size = values.shape[1]
                        entries[sample, :, place * size : (place + 1) * size] = values[chosen].to(value.dtype)
            latents[name] = model.rows_back(name, entries.reshape(moved.shape))
        yield latents


def _values_of(fn: Any, at: Tensor) -> tuple[Tensor | None, bool]:
    """Values of one unit of a discrete distribution, (values, event...), of counts those around draws; and whether
    they are all."""
    found = supports.support(fn)
    if found is None or not found.is_discrete:
        return None, False
    try:
        values = fn.enumerate_support(expand=False)
        values = values.reshape(len(values), *values.shape[values.dim() - len(fn.event_shape) :])
        # Of others, such as a binomial, the values may depend on other latents.
        every = isinstance(fn, dist.Bernoulli | dist.Categorical | dist.OneHotCategorical)
        return values[:_MOST_CHANGES], every and len(values) <= _MOST_CHANGES
    except NotImplementedError:  # counts without a bound, or with bounds that vary
        if fn.event_shape:
            return None, False
        count = min(_MOST_COUNTS, 2 * int(at.max()) + 4)
        return torch.arange(count, device=at.device, dtype=at.dtype), False
