"""What log P of all rows together measures: which cells of x a model's observed sites hold, and in which order.

Rows need not be separable for that: a latent may belong to a row, and a row may depend on earlier ones. The model is
run on other cells, with its latents held, and the sites say what they hold and what they read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor

from pyrovae.pair.contract import holds_data
from pyrovae.pair.running import Batch, Latents, Site, Sites, log_prob, sample_sites

# Orders of x in which cells of equal values are told apart.
_ORDERS = 64
# Places in an order at which it is asked whether what comes before reads what comes after.
_CUTS = 128
# Sites of which an order is looked for.
_SITES = 64


@dataclass(frozen=True)
class Together:
    """What the log-probability of all rows together measures.

    Attributes:
        measure: for every column of x flattened, "mass" or "density"; "unscored", or "unscored in part" where that goes
            for some rows; "transformed" throughout where sites hold something else than cells of x, each once;
            "pseudo-likelihood" throughout where a site's distribution depends on cells that depend on that site.
        left_out: which cells are not scored, shape (rows, columns), bool.
    """

    measure: tuple[str, ...]
    left_out: Tensor

    @classmethod
    def of(cls, model: Callable[..., Any], batch: Batch, latents: tuple[Latents, Latents]) -> Together:
        """From the model's rows, and two draws of its latents, in the model's own space."""
        asked = _Asked(model, batch, latents)
        held = asked.cells()
        kinds = np.full(asked.x.numel(), "unscored", dtype=object)
        normalised = held is not None
        for name, cells in (held or {}).items():
            site = asked.base[name]
            try:
                kind = "mass" if site["fn"].support.is_discrete else "density"
            except NotImplementedError:
                normalised = False
                continue
            kinds[cells[_scored(site)]] = kind
        kinds = kinds.reshape(asked.x.shape)
        left_out = torch.from_numpy((kinds == "unscored").astype(bool))
        measure = []
        for column in kinds.T:
            found = set(column)
            part = len(found) > 1 and "unscored" in found
            measure.append("unscored in part" if part else "transformed" if len(found) > 1 else column[0])
        if held is None or not normalised or "transformed" in measure:
            measure = ["transformed"] * len(measure)
        elif not asked.has_an_order(held):
            measure = ["pseudo-likelihood"] * len(measure)
        return cls(tuple(measure), left_out)


class _Asked:
    """A model that is run on cells of x that were exchanged, with its latents held."""

    def __init__(self, model: Callable[..., Any], batch: Batch, latents: tuple[Latents, Latents]) -> None:
        self._model, self._batch, self._latents = model, batch, latents
        self.x = batch["x"].flatten(1) if batch["x"].dim() > 1 else batch["x"][:, None]
        self.base = self.sites(self.x, latents[0])
        self._log_probs: dict[str, Tensor] = {}
        self._generator = torch.Generator().manual_seed(0)

    def sites(self, x: Tensor, latents: Latents) -> Sites:
        """The model's sites on cells of shape (rows, columns)."""
        model = poutine.condition(self._model, data=latents)
        return sample_sites(poutine.trace(model), self._batch | {"x": x.reshape(self._batch["x"].shape)})

    def _tried(self, x: Tensor, latents: Latents) -> Sites | None:
        """``sites``; None where the model can't be called on such cells."""
        try:
            return self.sites(x, latents)
        except Exception:  # whatever it makes of them: an index out of range, say
            return None

    # -----------------------------------------------------------------------------------------------------
    # Which cells

    def cells(self) -> dict[str, np.ndarray] | None:
        """The cells that each site's entries are, by their number in x flattened; None where they are not cells, each once."""
        numbered = torch.arange(self.x.numel(), dtype=self.x.dtype).reshape(self.x.shape)
        found = self._matched(iter([numbered])) if self._tried(numbered, self._latents[0]) else None
        return self._matched(self._reordered()) if found is None else found

    def _reordered(self) -> Iterator[Tensor]:
        """x with the entries of each column in another order: the values stay what they were."""
        for _ in range(_ORDERS):
            order = torch.rand(self.x.shape, generator=self._generator).argsort(dim=0)
            yield self.x.gather(0, order)

    def _matched(self, others: Iterator[Tensor]) -> dict[str, np.ndarray] | None:
        """The cells whose values the sites' entries have, on x as it is and on others."""
        names = [name for name, site in self.base.items() if name not in self._latents[0]]
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
                held[name] = np.array([numbers.pop(0) for numbers in cells if numbers is not None])
            except IndexError:  # a cell that is observed twice
                return None
        return held

    # -----------------------------------------------------------------------------------------------------
    # In which order

    def has_an_order(self, held: dict[str, np.ndarray]) -> bool:
        """Whether latents and cells can be put in an order in which each depends on earlier ones alone.

        Most models sample them in such an order; else it is looked for among the sites.
        """
        names = list(self.base)
        reads_itself: list[str] = []
        # Sites move earlier ones through cells of x alone: a cut before a latent shows nothing.
        for cut in [place for place, name in enumerate(names) if name in held]:
            moved = self._readers(names[cut:], held, names[: cut + 1])
            if moved - {names[cut]}:
                return len(names) <= _SITES and self._graph_has_an_order(held)
            reads_itself += moved
        return all(self._in_order([name], held) for name in reads_itself)

    def _graph_has_an_order(self, held: dict[str, np.ndarray]) -> bool:
        """The same from every site by itself: those that depend on each other in a circle have to in the order of rows."""
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
        """The sites whose distributions move where some sites hold other values."""
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
        """x with others in the place of some cells: of the same column, its least, its largest, and each one higher.

        Sums move with any of these, extremes and counts with some; what is higher may be off a support or an index.
        """
        where = torch.zeros(self.x.numel(), dtype=torch.bool)
        where[cells] = True
        where = where.reshape(self.x.shape)
        drawn = torch.randint(len(self.x), self.x.shape, generator=self._generator)
        for other in (self.x.gather(0, drawn), self.x.amin(dim=0), self.x.amax(dim=0), self.x + 1):
            yield torch.where(where, other, self.x)

    def _in_order(self, names: Sequence[str], held: dict[str, np.ndarray]) -> bool:
        """Whether the entries of some sites depend on earlier cells alone: row after row, from the first or from the last.

        In a row, the cells of one site come after those of another, as the model samples them.
        """
        columns = self.x.shape[1]
        for direction in (1, -1):
            places, begins = {}, {}
            for number, name in enumerate(names):
                row, column = np.divmod(held[name], columns)
                places[name] = (direction * row * len(names) + number) * columns + direction * column
                entries = max(1, _entries(self.base[name]).numel())
                begins[name] = places[name].reshape(entries, -1).min(axis=1)  # of an event of several cells
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
        """Whether entries that begin no later than a cut stay as they are where cells from there on are others."""
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
        """All cuts, or some of them where there are more."""
        if len(cuts) <= most:
            return cuts
        return cuts[torch.randperm(len(cuts), generator=self._generator)[:most].numpy()]

    def _moves(self, sites: Sites, name: str) -> Tensor:
        """Which of a site's log-probabilities, at the value it had, are others under the distributions of another run."""
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
    """A site's log-probabilities, of each entry by itself where they are independent."""
    fn = site["fn"]
    while isinstance(fn, dist.Independent):
        fn = fn.base_dist
    mask = site["mask"]
    if isinstance(mask, Tensor):
        mask = mask.reshape(mask.shape + (1,) * (site["fn"].event_dim - fn.event_dim))
    return log_prob({**site, "fn": fn, "mask": mask})


def _scored(site: Site) -> np.ndarray:
    """Which entries of a site's value no mask leaves out, flattened, bool."""
    scored = torch.ones(site["value"].shape, dtype=torch.bool)
    fn, masks = site["fn"], [(site["mask"], site["fn"].event_dim)]
    while hasattr(fn, "base_dist"):
        masks.append((getattr(fn, "_mask", None), fn.event_dim))
        fn = fn.base_dist
    for mask, event_dim in masks:
        if mask is not None:
            mask = torch.as_tensor(mask).bool()
            scored = scored & mask.reshape(mask.shape + (1,) * event_dim)
    return scored.flatten().numpy()


def _rows_as_bytes(columns: Sequence[Tensor]) -> list[bytes]:
    """Each row of some columns, as bytes that are equal for equal numbers."""
    table = torch.stack([column.double() + 0.0 for column in columns], dim=1)  # −0.0 is 0.0
    return [row.tobytes() for row in table.numpy()]
