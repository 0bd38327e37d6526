"""Finds what log P of all rows together measures: the cells of x that a model's observed sites hold, and their order.

Rows need not be separable for this: a latent may belong to a row, and a row may depend on earlier ones. The model runs
on changed cells with its latents held, and its sites show which cells they hold and which they depend on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyro.distributions as dist
import torch
from torch import Tensor

from pyrovae.pair import masks
from pyrovae.pair.contract import adds_nothing, holds_data
from pyrovae.pair.running import Batch, Latents, Site, Sites, flat, log_prob, sample_sites

# Reorderings of x that are tried to tell cells of equal values apart.
_ORDERS = 64
# Places in an order at which earlier entries are checked for dependence on later ones.
_CUTS = 128
# Most sites among which an order is searched for.
_SITES = 64


@dataclass(frozen=True)
class Together:
    """The measure of the log-probability of all rows together.

    Attributes:
        measure: for every column of the flattened x, "mass" or "density"; "unscored", or "unscored in part" if that
            holds for some rows only. All are "transformed" if sites do not hold cells of x, each once. All are
            "pseudo-likelihood" if a site's distribution depends on cells that depend on that site.
        left_out: cells that are not scored, shape (rows, columns), bool.
    """

    measure: tuple[str, ...]
    left_out: Tensor

    @classmethod
    def of(cls, model: Callable[..., Any], batch: Batch, latents: tuple[Latents, Latents]) -> Together:
        """Return the measure of a model of rows, from two draws of its latents in the model's own space."""
        runs = _Runs(model, batch, latents)
        held = runs.cells()
        kinds = np.full(runs.x.numel(), "unscored", dtype=object)
        normalised = held is not None
        for name, cells in (held or {}).items():
            site = runs.base[name]
            try:
                kind = "mass" if site["fn"].support.is_discrete else "density"
            except NotImplementedError:
                normalised = False
                continue
            counted = masks.entries(site)
            kinds[cells if counted is None else cells[counted.flatten().numpy()]] = kind
        kinds = kinds.reshape(runs.x.shape)
        left_out = torch.from_numpy((kinds == "unscored").astype(bool))
        measure = []
        for column in kinds.T:
            found = set(column)
            part = len(found) > 1 and "unscored" in found
            measure.append("unscored in part" if part else "transformed" if len(found) > 1 else column[0])
        if held is None or not normalised or "transformed" in measure:
            measure = ["transformed"] * len(measure)
        elif not runs.has_an_order(held):
            measure = ["pseudo-likelihood"] * len(measure)
        return cls(tuple(measure), left_out)


class _Runs:
    """Runs a model on changed cells of x, with its latents held."""

    def __init__(self, model: Callable[..., Any], batch: Batch, latents: tuple[Latents, Latents]) -> None:
        self._model, self._batch, self._latents = model, batch, latents
        self.x = flat(batch["x"])
        self.base = self.sites(self.x, latents[0])
        self._log_probs: dict[str, Tensor] = {}
        self._generator = torch.Generator().manual_seed(0)

    def sites(self, x: Tensor, latents: Latents) -> Sites:
        """Return the model's sites on cells of shape (rows, columns)."""
        return sample_sites(self._model, self._batch | {"x": x.reshape(self._batch["x"].shape)}, latents)

    def _tried(self, x: Tensor, latents: Latents) -> Sites | None:
        """Return ``sites``, or None if the model fails on such cells."""
        try:
            return self.sites(x, latents)
        except Exception:  # a model may fail in any way on other cells, for example by an index out of range
            return None

    # -----------------------------------------------------------------------------------------------------
    # Cells of sites

    def cells(self) -> dict[str, np.ndarray] | None:
        """Return the cells of each site's entries, by number in the flattened x; None if they are not cells, each once."""
        numbered = torch.arange(self.x.numel(), dtype=self.x.dtype).reshape(self.x.shape)
        found = self._matched(iter([numbered])) if self._tried(numbered, self._latents[0]) else None
        return self._matched(self._reordered()) if found is None else found

    def _reordered(self) -> Iterator[Tensor]:
        """Yield x with the entries of each column reordered, so that the values themselves stay valid."""
        for _ in range(_ORDERS):
            order = torch.rand(self.x.shape, generator=self._generator).argsort(dim=0)
            yield self.x.gather(0, order)

    def _matched(self, others: Iterator[Tensor]) -> dict[str, np.ndarray] | None:
        """Return the cells whose values equal the sites' entries, on x and on the other versions."""
        names = [
            name
            for name, site in self.base.items()
            if name not in self._latents[0] and not adds_nothing(site)
        ]
        if not all(holds_data(self.base[name]) for name in names):
            return None
        runs = [(self.x, self.base)]
        for x in others:
            sites = self._tried(x, self._latents[0])
            if sites is not None and all(name in sites for name in names):
                runs.append((x, sites))
            signatures = _rows_as_bytes([x.flatten() for x, _ in runs])
            if len(set(signatures)) == len(signatures):
                break
        free: dict[bytes, list[int]] = {}
        for number, signature in enumerate(signatures):
            free.setdefault(signature, []).append(number)
        held = {}
        for name in names:
            values = [sites[name]["value"].double().flatten() for _, sites in runs]
            if len({len(value) for value in values}) > 1:
                return None
            cells = [free.get(signature) for signature in _rows_as_bytes(values)]
            if not all(cells):
                return None
            try:
                held[name] = np.array([same.pop(0) for same in cells if same is not None])
            except IndexError:  # a cell that is observed twice
                return None
        return held

    # -----------------------------------------------------------------------------------------------------
    # Order of sites and cells

    def has_an_order(self, held: dict[str, np.ndarray]) -> bool:
        """Return whether latents and cells have an order in which each depends on earlier ones only.

        Most models sample them in such an order. Otherwise it is searched for among the sites.
        """
        names = list(self.base)
        reads_itself: list[str] = []
        # Sites affect earlier ones only through cells of x, so a cut before a latent shows nothing.
        for cut in [place for place, name in enumerate(names) if name in held]:
            moved = self._readers(names[cut:], held, names[: cut + 1])
            if moved - {names[cut]}:
                return len(names) <= _SITES and self._graph_has_an_order(held)
            reads_itself += moved
        return all(self._in_order([name], held) for name in reads_itself)

    def _graph_has_an_order(self, held: dict[str, np.ndarray]) -> bool:
        """Return the same from each site's dependences: sites in a circle need an order of rows."""
        from scipy.sparse.csgraph import connected_components

        names = list(self.base)
        reads = np.zeros((len(names), len(names)), dtype=bool)
        for place, name in enumerate(names):
            readers = self._readers([name], held, names)
            reads[place] = [reader in readers for reader in names]
        count, labels = connected_components(reads, connection="strong")
        for label in range(count):
            circle = np.flatnonzero(labels == label)
            inside = [names[place] for place in circle]
            if not reads[np.ix_(circle, circle)].any():
                continue
            if not all(name in held for name in inside) or not self._in_order(inside, held):
                return False
        return True

    def _readers(
        self, exchanged: Sequence[str], held: dict[str, np.ndarray], among: Sequence[str]
    ) -> set[str]:
        """Return the sites whose distributions change if some sites hold other values."""
        cells = np.concatenate([held.get(name, np.zeros(0, dtype=int)) for name in exchanged])
        found: set[str] = set()
        here, other = self._latents
        values = here | {name: other[name] for name in exchanged if name in other}
        for x in self._exchanged(cells) if len(cells) else [self.x]:
            sites = self._tried(x, values)
            if sites is not None:
                found |= {name for name in among if bool(self._moves(sites, name).any())}
        return found

    def _exchanged(self, cells: np.ndarray) -> Iterator[Tensor]:
        """Yield x with some cells replaced: by others of the column, its minimum, its maximum, and their value plus 1.

        Sums change with any of these, extremes and counts with some. A value plus 1 may be off a support or an index.
        """
        where = torch.zeros(self.x.numel(), dtype=torch.bool)
        where[cells] = True
        where = where.reshape(self.x.shape)
        drawn = torch.randint(len(self.x), self.x.shape, generator=self._generator)
        for other in (self.x.gather(0, drawn), self.x.amin(dim=0), self.x.amax(dim=0), self.x + 1):
            yield torch.where(where, other, self.x)

    def _in_order(self, names: Sequence[str], held: dict[str, np.ndarray]) -> bool:
        """Return whether entries of some sites depend on earlier cells only, in the order of rows or its reverse.

        Within a row, the cells of one site come after those of another in the order of sampling.
        """
        columns = self.x.shape[1]
        for direction in (1, -1):
            places, begins = {}, {}
            for number, name in enumerate(names):
                row, column = np.divmod(held[name], columns)
                places[name] = (direction * row * len(names) + number) * columns + direction * column
                entries = max(1, _entries(self.base[name]).numel())
                begins[name] = places[name].reshape(entries, -1).min(axis=1)  # of an event with several cells
            if all(
                self._holds_before(held, places, begins, cut)
                for cut in self._some(np.unique(np.concatenate(list(begins.values()))), _CUTS)
            ):
                return True
        return False

    def _holds_before(
        self,
        held: dict[str, np.ndarray],
        places: dict[str, np.ndarray],
        begins: dict[str, np.ndarray],
        cut: int,
    ) -> bool:
        """Return whether entries that begin at or before a cut stay the same if cells from there on change."""
        later = np.concatenate([held[name][place >= cut] for name, place in places.items()])
        for x in self._exchanged(later):
            sites = self._tried(x, self._latents[0])
            if sites is None:
                continue
            for name, begin in begins.items():
                if bool(self._moves(sites, name).flatten()[begin <= cut].any()):
                    return False
        return True

    def _some(self, cuts: np.ndarray, most: int) -> np.ndarray:
        """Return all cuts, or a random choice if they are more than ``most``."""
        if len(cuts) <= most:
            return cuts
        return cuts[torch.randperm(len(cuts), generator=self._generator)[:most].numpy()]

    def _moves(self, sites: Sites, name: str) -> Tensor:
        """Return which of a site's log-probabilities, at its first value, change under another run's distributions."""
        if name not in self._log_probs:
            self._log_probs[name] = _entries(self.base[name])
        log_prob = self._log_probs[name]
        if name not in sites:
            return torch.ones_like(log_prob, dtype=torch.bool)
        try:
            again = _entries({**sites[name], "value": self.base[name]["value"]})
        except Exception:  # a distribution of another shape
            return torch.ones_like(log_prob, dtype=torch.bool)
        if again.shape != log_prob.shape:
            return torch.ones_like(log_prob, dtype=torch.bool)
        return ~torch.isclose(again, log_prob, rtol=1e-8, atol=1e-8, equal_nan=True)


def _entries(site: Site) -> Tensor:
    """Return a site's log-probabilities, one per entry if entries are independent."""
    fn = site["fn"]
    while isinstance(fn, dist.Independent):
        fn = fn.base_dist
    mask = site["mask"]
    if isinstance(mask, Tensor):
        mask = mask.reshape(mask.shape + (1,) * (site["fn"].event_dim - fn.event_dim))
    return log_prob({**site, "fn": fn, "mask": mask})


def _rows_as_bytes(columns: Sequence[Tensor]) -> list[bytes]:
    """Return each row of some columns as bytes that are equal for equal numbers."""
    table = torch.stack([column.double() + 0.0 for column in columns], dim=1)  # turns −0.0 into 0.0
    return [row.tobytes() for row in table.numpy()]
