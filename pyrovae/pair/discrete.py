"""Lists values of discrete latents other than the drawn ones."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import MaskedDistribution
from torch import Tensor

from pyrovae import supports
from pyrovae.pair.row_model import RowModel
from pyrovae.pair.running import Batch, Latents, repeat, run

# Most values to list: of a count, of one unit at a time, of all units together.
_MOST_COUNTS, _MOST_CHANGES, _MOST_COMBINATIONS = 64, 1024, 1024


def other_values(model: RowModel, batch: Batch, at: Latents, at_once: int) -> Iterator[Latents]:
    """Yield the draws ``at``, of one sample, with discrete latents at other values.

    One unit changes at a time. If all units together take few values, all combinations are listed. The layout is that
    of ``propose``, with at most ``at_once`` samples each.
    """
    units, *_ = _discrete_units(model, batch, at)
    if len(units) > 1 and _number(units) <= _MOST_COMBINATIONS:
        return _combined(model, at, units, at_once)
    changes = [(unit, value) for unit, (_, _, values) in enumerate(units) for value in range(len(values))]
    return _changed(model, at, units, changes[:_MOST_CHANGES], at_once)


def all_values(
    model: RowModel, batch: Batch, at: Latents, at_once: int, most: int = _MOST_COMBINATIONS
) -> Iterator[Latents] | None:
    """Return every combination of values of the latents once, laid out as in ``other_values``.

    None if a latent is not discrete or the combinations are more than ``most``. Values that depend on other latents, as
    those of a binomial with a drawn number of trials, are those of one draw. Then the masses do not sum to 1.
    """
    units, known, others = _discrete_units(model, batch, at)
    if not known or others or _number(units) > most:
        return None
    return _combined(model, at, units, at_once)


#: A unit of a discrete latent: the site, its index among the site's units, and its values, (values, entries).
_Unit = tuple[str, int, Tensor]


def _discrete_units(
    model: RowModel, batch: Batch, at: Latents, fixed: bool = False
) -> tuple[list[_Unit], bool, bool]:
    """Return the units of discrete latents, whether these are all of them with all values, and whether there are other latents.

    With ``fixed``, all values are known of families alone whose values cannot depend on other latents.
    """
    sites = run(model.pair, "model", batch)
    units: list[_Unit] = []
    known, others = True, False
    for name in model.structure.latents:
        fn, masked = sites[name]["fn"], sites[name]["mask"] is not None
        while isinstance(fn, dist.Independent | MaskedDistribution):
            masked |= isinstance(fn, MaskedDistribution)
            fn = fn.base_dist
        found = supports.support(fn)
        if found is None or not found.is_discrete:
            others = True
            continue
        values, every = _values_of(fn, at[name])
        same = isinstance(fn, dist.Bernoulli | dist.Categorical | dist.OneHotCategorical)
        known &= every and not masked and (same or not fixed)
        if values is not None:
            width = model.rows_second(name, at[name])[0, 0].numel()
            size = values[0].numel()
            units += [(name, place, values.reshape(len(values), size)) for place in range(width // size)]
    return units, known, others


class DiscreteValues:
    """Every combination of values of a pair's discrete latents.

    ``names`` are the discrete latents; ``len`` is the number of combinations.
    """

    def __init__(self, model: RowModel, at: Latents, units: list[_Unit]) -> None:
        self._model, self._at, self._units = model, at, units
        self.names = tuple(dict.fromkeys(name for name, _, _ in units))

    @classmethod
    def of(cls, model: RowModel, batch: Batch, at: Latents, most: int) -> DiscreteValues | None:
        """Return the values, laid out as the draws ``at``, of one sample.

        None if the pair does not have both kinds of latents, or if the combinations are unknown or more than ``most``.
        """
        units, known, others = _discrete_units(model, batch, at, fixed=True)
        if not (units and known and others) or _number(units) > most:
            return None
        return cls(model, at, units)

    def __len__(self) -> int:
        return _number(self._units)

    def held(self, numbers: Tensor) -> Latents:
        """Return the discrete latents at combinations with these numbers, (samples, rows)."""
        entries: dict[str, list[Tensor]] = {name: [] for name in self.names}
        left = numbers
        for name, _, values in reversed(self._units):  # the last unit changes first
            entries[name].insert(0, values[left % len(values)])
            left = left // len(values)
        found = {}
        for name, parts in entries.items():
            one = self._model.rows_second(name, self._at[name])
            value = torch.cat(parts, dim=-1).to(one).reshape(*numbers.shape, *one.shape[2:])
            found[name] = self._model.rows_back(name, value)
        return found

    def numbers(self, latents: Latents) -> Tensor:
        """Return the numbers of the combinations that latents have, (samples, rows); ``held`` inverts it."""
        rows = next(iter(latents.values()))
        found: Tensor | int = 0
        for name, place, values in self._units:
            moved = self._model.rows_second(name, latents[name])
            size = values.shape[1]
            here = moved.reshape(*moved.shape[:2], -1)[..., place * size : (place + 1) * size]
            same = (here[..., None, :] == values.to(here)).all(-1)
            found = found * len(values) + same.to(torch.uint8).argmax(-1)
        return torch.as_tensor(found, device=rows.device)


def _number(units: list[_Unit]) -> int:
    return math.prod(len(values) for _, _, values in units)


def _combined(model: RowModel, at: Latents, units: list[_Unit], at_once: int) -> Iterator[Latents]:
    """Yield ``at`` with every combination of the units' values, one sample for each."""
    values, name = DiscreteValues(model, at, units), units[0][0]
    one = model.rows_second(name, at[name])
    for numbers in torch.arange(len(values), device=one.device).split(at_once):
        yield repeat(at, len(numbers)) | values.held(numbers[:, None].expand(-1, one.shape[1]))


def _changed(
    model: RowModel, at: Latents, units: list[_Unit], changes: list[tuple[int, int]], at_once: int
) -> Iterator[Latents]:
    """Yield ``at`` with one unit changed, one sample for each change: the numbers of the unit and of its value."""
    for start in range(0, len(changes), at_once):
        some = changes[start : start + at_once]
        latents = repeat(at, len(some))
        for name, value in latents.items():
            moved = model.rows_second(name, value)
            entries = moved.reshape(*moved.shape[:2], -1).clone()
            for sample, (unit, chosen) in enumerate(some):
                site, place, values = units[unit]
                if site == name:
                    size = values.shape[1]
                    entries[sample, :, place * size : (place + 1) * size] = values[chosen].to(value.dtype)
            latents[name] = model.rows_back(name, entries.reshape(moved.shape))
        yield latents


def _values_of(fn: Any, at: Tensor) -> tuple[Tensor | None, bool]:
    """Return values of one unit of a discrete distribution, (values, event...), and whether they are all.

    For counts, the values are those around the draws.
    """
    try:
        values = fn.enumerate_support(expand=False)
        values = values.reshape(len(values), *values.shape[values.dim() - len(fn.event_shape) :])
        return values[:_MOST_CHANGES], len(values) <= _MOST_CHANGES
    except NotImplementedError:  # counts without a bound, or with varying bounds
        if fn.event_shape:
            return None, False
        return torch.arange(_MOST_COUNTS, device=at.device, dtype=at.dtype), False
