"""Rows simulated from the model, each with the z that it was simulated with: an exact draw of its posterior."""

from __future__ import annotations

import math
from dataclasses import replace

import pyro
import torch
from torch import Tensor

from pyrovae import identity
from pyrovae.evaluation import Evaluation, Simulated
from pyrovae.noise import Stream, derive, seeded
from pyrovae.pair import Batch
from pyrovae.refusals import bad_value
from pyrovae.rows import restored

# Rows that are simulated to choose from, and the most numbers in them.
_POOL, _POOL_NUMBERS = 20_000, 1 << 25
# Real rows that simulated ones are chosen to resemble.
_LIKE = 256
# Simulated rows whose distance from the others is that of the model's own.
_COMPARED = 1000
# Values farther from the median than so many spreads count alike.
_FAR = 20.0


def simulated(template: Evaluation, index: Tensor) -> Simulated:
    """Return rows simulated from the model, each given the values beside one row of x, by its index.

    Every row has noise of its own, keyed by its place.
    """
    parts = []
    height = max(1, template.tile[0] * template.tile[1])
    for start in range(0, len(index), height):
        rows = index[start : start + height]
        part = template.of_rows(rows, template.seed, 1)
        keys = torch.arange(start, start + len(rows), device=index.device)
        drawn = replace(part, keys=keys).noise(Stream.SIMULATE)
        # A row may have no density, as one that a heavy tail puts beyond the largest number.
        with template.pair.evaluating(), seeded(drawn.seed, index.device), pyro.validation_enabled(False):
            latents, batch, complete = template.model.simulate(part.batch, drawn)
        exact = {name: template.model.rows_second(name, z) for name, z in latents.items()}
        parts.append(Simulated(template.model, batch, exact, complete))
    return Simulated.cat(parts)


class Supply:
    """Rows simulated from the model, half of them plain, half chosen to resemble rows of x.

    ``most`` is the largest number of rows that will be taken.
    """

    def __init__(self, template: Evaluation, most: int) -> None:
        x = template.batch["x"]
        size = max(2 * most + _COMPARED, min(_POOL, _POOL_NUMBERS // max(1, x[0].numel())))
        generator = torch.Generator().manual_seed(derive(template.seed, Stream.CHECK))
        # By content, so that the order of the rows does not matter.
        hashes = identity.row_hashes(x, template.batch.get("observed"))
        order = torch.from_numpy(hashes[:, 0].argsort(kind="stable"))
        given = order[torch.randint(len(x), (size,), generator=generator)]
        real = order[torch.randperm(len(x), generator=generator)[:_LIKE]].to(x.device)
        self._pool = simulated(template, given.to(x.device))
        made, like = _flat(self._pool.batch), _flat(template.part(real))
        self._points, self._real = comparable(made, made), comparable(like, made)
        self._free = torch.isfinite(self._pool.batch["x"].reshape(len(made), -1)).all(dim=1)
        self._free &= ~torch.isinf(made).any(dim=1)
        if int(self._free.sum()) < 2 * most:
            raise bad_value(
                "model",
                f"at least {2 * most} of {size} simulated rows with finite numbers",
                f"{int(self._free.sum())}",
                "Use a prior or a likelihood with lighter tails.",
            )

    def take(self, num_rows: int, turn: int) -> Simulated:
        """Return rows that have not been taken before; ``turn`` counts the calls."""
        plain = self._free.nonzero()[:, 0][: num_rows - num_rows // 2]
        self._free[plain] = False
        count = num_rows // 2
        like = (turn * count + torch.arange(count, device=plain.device)) % len(self._real)
        matched = torch.empty(count, dtype=torch.long, device=plain.device)
        for number, distance in enumerate(torch.cdist(self._real[like], self._points)):
            matched[number] = torch.where(self._free, distance, math.inf).argmin()
            self._free[matched[number]] = False
        return self._pool.only(torch.cat([plain, matched]))

    def beyond(self) -> tuple[int, int]:
        """Return how many rows of x lie beyond the pool of simulated rows, and how many were compared.

        A row lies beyond if its nearest simulated row is farther than that of every one of a thousand simulated rows.
        """
        here, rest = self._points[:_COMPARED], self._points[_COMPARED:]
        among = torch.cdist(here, rest).amin(dim=1)
        nearest = torch.cdist(self._real, rest).amin(dim=1)
        return int((nearest > among.max()).sum()), len(self._real)


def _flat(batch: Batch) -> Tensor:
    """Return rows, with NaN in missing cells, and the values beside them as one table, (rows, columns)."""
    values = batch | {"x": restored(batch["x"], batch.get("observed"))}
    return torch.cat([value.reshape(len(value), -1).to(batch["x"].dtype) for value in values.values()], dim=1)


def comparable(rows: Tensor, made: Tensor) -> Tensor:
    """Return rows in units of the columns' spread among simulated rows, (rows, columns), float32.

    Location and spread are median and quartiles of some simulated rows, so that a heavy tail does not hide the rest. A
    column that has one value in half of the rows has its standard deviation for a spread. A missing cell, NaN, gets the
    location.
    """
    some = made[:_COMPARED].double().nan_to_num(nan=math.nan)
    ordered, last = (
        some.sort(dim=0).values,
        (~some.isnan()).sum(dim=0).clamp(min=1) - 1,
    )  # NaN is sorted behind the rest
    low, centre, high = (ordered.gather(0, (last * q // 4)[None])[0] for q in (1, 2, 3))
    spread = (high - low) / 1.35
    spread = torch.where(spread > 0, spread, some.std(dim=0))
    spread = torch.where(spread > 0, spread, 1.0)
    scaled = (((part.double() - centre) / spread).nan_to_num(0.0, _FAR, -_FAR) for part in rows.split(256))
    return torch.cat([part.clamp(-_FAR, _FAR).float() for part in scaled])
