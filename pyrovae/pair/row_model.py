"""RowModel joins a pair and the results of its inspection; it proposes z for rows and scores any z."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import pyro
import torch
from torch import Tensor

from pyrovae import supports
from pyrovae.model import LatentVariableModel
from pyrovae.noise import seeded
from pyrovae.pair import masks
from pyrovae.pair.drawing import (
    DrawsByRow,
    DrawsLeftOut,
    Source,
    check_all_drawn,
    check_samplers,
    replaced,
    source_of,
    widened,
)
from pyrovae.pair.running import (
    Batch,
    Latents,
    Reparameterised,
    Site,
    Sites,
    Structure,
    by_row,
    fold,
    lacks_method,
    log_prob,
    part_for,
    particles,
    repeat,
    run,
    sample_sites,
    sum_sites,
    take,
    unfold,
    values_of,
    with_columns,
)
from pyrovae.refusals import bad_value
from pyrovae.row_noise import RowNoise


class LogJoint(NamedTuple):
    """log P(z) and log P(x | z), each of shape (samples, rows), float64, in nats."""

    prior: Tensor
    likelihood: Tensor


class _Unconditioned(Reparameterised):
    """Makes observed sites sampled ones. Pyro's own ``uncondition`` also draws deterministic sites, in a wrong shape."""

    def _pyro_sample(self, msg: Any) -> None:
        super()._pyro_sample(msg)
        if msg["is_observed"] and not msg["infer"].get("_deterministic"):
            msg.update(fn=widened(msg), is_observed=False, value=None, done=False)


def _same_where_scored(a: Site, b: Site) -> bool:
    """Return whether two runs of an observed site have the same values in the entries that the first one scores."""
    held = masks.entries(a)
    ours, theirs = a["value"].double(), b["value"].double()  # rows may have another type than draws
    return torch.equal(ours, theirs if held is None else torch.where(held, theirs, ours))


def _close(a: Tensor, b: Tensor) -> bool:
    """Return whether log densities agree up to rounding in float32; they may be of two types."""
    return torch.allclose(a.double(), b.double(), rtol=1e-4, atol=1e-4, equal_nan=True)


def _columns_of(measure: tuple[str, ...], fitting: set[str]) -> str:
    """Return which columns have another measure than the fitting ones, in words; an empty text if none has."""
    odd = {number: kind for number, kind in enumerate(measure) if kind not in fitting}
    kinds = ", ".join(sorted(set(odd.values())))
    if len(odd) in (0, len(measure)):
        return f"columns that are {kinds}" if odd else ""
    if len(odd) == 1:
        return f"column {next(iter(odd))}, which is {kinds}"
    return f"{len(odd)} columns that are {kinds}, first column {min(odd)}"


@dataclass(frozen=True)
class RowModel:
    """A model and a guide, called for rows: they draw z for the rows and give the densities of rows and z.

    Latents are a dict from site name to value, shape (samples, plates..., event...). Terms have shape (samples, rows),
    float64, in nats. Draws use a ``RowNoise`` of the same rows, or torch's generator without one.
    """

    pair: LatentVariableModel
    structure: Structure
    #: Whether guide and prior draw every number from the rows' noise. If not, a row's draws depend on other rows.
    keyed: bool = False

    # -----------------------------------------------------------------------------------------------------
    # Draws

    def propose(
        self, batch: Batch, num_samples: int, noise: RowNoise | None = None
    ) -> tuple[Latents, Tensor]:
        """Draw z ~ Q(z | x) for every row; return z and log Q(z | x)."""
        return self._proposed(self._ask("guide", batch, num_samples, noise=noise), batch, num_samples)

    def weigh(
        self, batch: Batch, num_samples: int, noise: RowNoise | None = None
    ) -> tuple[Latents, LogJoint, Tensor]:
        """Draw z ~ Q(z | x) for every row; return z, its log joint and log Q(z | x).

        log Q is set to +∞ at a draw that rounding put onto a bound of its support or next to it.
        The density there is wrong, so such a draw must weigh nothing.
        """
        proposed = self._ask("guide", batch, num_samples, noise=noise)
        latents, log_q = self._proposed(proposed, batch, num_samples)
        shape = num_samples, len(batch["x"])
        sites = {"guide": proposed, "model": self._ask("model", batch, num_samples, latents)}
        lost = self._lost(sites, num_samples, shape)
        return latents, self._joint(sites["model"], shape), torch.where(lost, math.inf, log_q)

    def weigh_rest(
        self,
        batch: Batch,
        num_samples: int,
        held: Latents,
        names: tuple[str, ...],
        noise: RowNoise | None = None,
        part: str = "guide",
    ) -> tuple[Latents, LogJoint, Tensor, Tensor]:
        """Draw the latents that are not ``held`` from a part; return z, its log joint, log Q and log R.

        The last two are log densities of the latents that are not ``names``, each given the latents before them. The
        guide's sites give log Q, the model's log R. As in ``weigh``, log Q is +∞ at a draw on a bound.
        """
        shape, other = (num_samples, len(batch["x"])), "model" if part == "guide" else "guide"
        drawn = self._ask(part, batch, num_samples, held, noise)
        if part == "model":
            check_samplers(part, drawn, self.structure.latents)
        latents = self._values(part, drawn, num_samples)
        sites = {part: drawn, other: self._ask(other, batch, num_samples, latents)}
        rest = tuple(name for name in self.structure.latents if name not in names)
        joint, lost = self._joint(sites["model"], shape), self._lost(sites, num_samples, shape)
        log_q, log_r = (self._terms(each, sites[each], rest, shape) for each in ("guide", "model"))
        return latents, joint, torch.where(lost, math.inf, log_q), log_r

    def _lost(self, sites: dict[str, Sites], num_samples: int, shape: tuple[int, int]) -> Tensor:
        """Return which draws, scored by both parts, lie on a bound, (samples, rows)."""
        x = next(iter(sites["guide"].values()))["value"]
        lost = torch.zeros(shape, dtype=torch.bool, device=x.device)
        for part, asked in sites.items():
            if self.structure.edges[part]:
                lost = lost | self._at_edge(part, asked, num_samples)
        return lost

    def _proposed(self, sites: Sites, batch: Batch, num_samples: int) -> tuple[Latents, Tensor]:
        shape = num_samples, len(batch["x"])
        log_q = self._terms("guide", sites, self.structure.latents, shape)
        return self._values("guide", sites, num_samples), log_q

    def draw_prior(
        self, batch: Batch, num_samples: int, noise: RowNoise | None = None
    ) -> tuple[Latents, LogJoint]:
        """Draw z ~ P(z) for every row; return z and its log joint."""
        sites = self._ask("model", batch, num_samples, noise=noise)
        check_samplers("model", sites, self.structure.latents)
        return self._values("model", sites, num_samples), self._joint(sites, (num_samples, len(batch["x"])))

    # -----------------------------------------------------------------------------------------------------
    # Densities

    def log_joint(self, batch: Batch, latents: Latents, without: tuple[str, ...] = ()) -> LogJoint:
        """Return log P(z) and log P(x | z) of rows and given latents; of P(z), the sites that are not in ``without``."""
        shape = (self._count(latents), len(batch["x"]))
        return self._joint(self._ask("model", batch, shape[0], latents), shape, without)

    def log_proposal(self, batch: Batch, latents: Latents, without: tuple[str, ...] = ()) -> Tensor:
        """Return log Q(z | x) of rows and given latents; of the sites that are not in ``without``, given those before them."""
        shape = (self._count(latents), len(batch["x"]))
        sites = self._ask("guide", batch, shape[0], latents)
        names = tuple(name for name in self.structure.latents if name not in without)
        return self._terms("guide", sites, names, shape)

    def plain_scores(self, part: str, batch: Batch, latents: Latents) -> Tensor:
        """Return each row's log-probability under one part, (rows,), for latents in the layout of a plain call."""
        sites = run(self.pair, part, batch, latents)
        return by_row(sites, self.structure.names(part), self.structure, len(batch["x"]))

    # -----------------------------------------------------------------------------------------------------
    # Rows from the model

    def simulate(self, batch: Batch, noise: RowNoise | None = None) -> tuple[Latents, Batch, Tensor]:
        """Return latents and rows simulated from the model, as many as in ``batch`` and of their shape: z ~ P(z), x ~ P(x | z).

        The rows have 0 in the missing cells of ``batch``. The last entry holds the same rows without missing cells.

        Raises:
            ValueError: no site samples some columns of x.
            ValueError: the model also reads x outside its observed sites, so that one pass does not show what it
                computes for simulated rows.
        """
        expected = "every column of x sampled by an observed site, and read nowhere else, to simulate rows"
        fix = "Use log_evidence with method='refined' or 'annealed', which take the rows as they are."
        structure = self.structure
        check_all_drawn(structure.added)
        odd = _columns_of(structure.measure, {"mass", "density"})
        if odd:
            raise bad_value("model", expected, odd, fix)
        model = _Unconditioned()(self.pair.model)
        if noise is not None:
            model = DrawsByRow(noise, 1, structure.data_dim.get, folded=True)(model)
        with self.pair.own_parameters():
            sites = sample_sites(model, batch)
        check_samplers("model", sites, structure.latents)
        simulated = {**batch, "x": with_columns(batch["x"], sites, structure)}
        plain = values_of(sites, structure.latents)
        again = run(self.pair, "model", simulated, plain)
        for name in structure.observed:
            if not _same_where_scored(again[name], sites[name]) or not _close(
                log_prob(again[name]), log_prob(sites[name])
            ):
                raise bad_value("model", expected, f"site {name!r}, which also depends on x", fix)
        for name, columns in structure.columns.items():
            cells = masks.scored(again[name], structure.data_dim[name], columns)
            if cells is not None and bool((~cells & masks.observed_cells(simulated, columns)).any()):
                raise bad_value(
                    "model", expected, f"site {name!r}, whose mask leaves out cells at other z", fix
                )
        complete = simulated["x"]
        if "observed" in batch:
            simulated["x"] = complete.masked_fill(~batch["observed"], 0.0)
        return unfold(structure, plain, 1), simulated, complete

    def replicate(
        self, batch: Batch, latents: Latents, noise: RowNoise | None = None, missed: list[str] | None = None
    ) -> Tensor:
        """Return new rows x ~ P(x | z) for given latents, shape (samples, rows, *row).

        Entries of latents that a mask leaves out are drawn from the model: the proposal's draws of them weigh nothing.

        ``missed`` gets the operations that draw from torch's own generator, in which a row's numbers depend on other rows.
        """
        count, structure = self._count(latents), self.structure
        repeated, missed = repeat(batch, count), [] if missed is None else missed

        aside = None if noise is None else noise.aside()

        def source_for(name: str, fn: Any) -> Source | None:
            if aside is None:
                return None
            return source_of(aside.branch(), count, fn, structure.data_dim[name], folded=True)

        held = DrawsLeftOut(fold(structure, latents), source_for, missed)
        with self.pair.own_parameters():
            sites = sample_sites(held(part_for(self.pair, "model", repeated)), repeated)
        check_samplers("model", sites, tuple(held.drawn))
        drawn = {}
        for name in structure.columns:
            fn, source = widened(sites[name]), None
            if noise is not None:
                source = source_of(noise, count, fn, structure.data_dim[name], folded=True)
            with replaced(source, missed):
                try:
                    drawn[name] = {**sites[name], "value": fn.sample()}
                except NotImplementedError as error:
                    raise lacks_method(sites[name], error) from error
        return with_columns(repeated["x"], drawn, structure).view(-1, *batch["x"].shape)

    def complete(self, batch: Batch, latents: Latents, noise: RowNoise) -> Tensor:
        """Return the rows with missing cells drawn from P(x_mis | z) for given latents, shape (samples, rows, *row).

        A pair with ``obs_mask`` holds its missing cells in a latent, "x_unobserved" beside "x_observed", which is read. A
        row's draws do not depend on the other rows. If a distribution draws from torch's own generator, rows are drawn one
        by one, each with a seed of its own.
        """
        structure, count = self.structure, self._count(latents)
        missed: list[str] = []
        with seeded(noise.seed, batch["x"].device):
            drawn = self.replicate(batch, latents, noise.branch(), missed)
        if missed:
            parts = [self._one_by_one(batch, latents, own, row) for row, own in enumerate(noise.each())]
            drawn = torch.cat(parts, dim=1)
        held = {name: name.removesuffix("_observed") + "_unobserved" for name in structure.columns}
        held = {name: latent for name, latent in held.items() if latent in structure.latents}
        if held:
            plain = fold(structure, latents)
            sites = run(self.pair, "model", repeat(batch, count), plain)
            values = {name: {**sites[name], "value": plain[latent]} for name, latent in held.items()}
            columns = {name: structure.columns[name] for name in held}
            drawn = with_columns(drawn.flatten(0, 1), values, replace(structure, columns=columns)).view(
                drawn.shape
            )
        return (
            torch.where(batch["observed"], batch["x"], drawn)
            if "observed" in batch
            else batch["x"].expand_as(drawn)
        )

    def _one_by_one(self, batch: Batch, latents: Latents, noise: RowNoise, row: int) -> Tensor:
        """Return new rows for one of the rows, whose noise is ``noise``, shape (samples, 1, *row)."""
        one = torch.tensor([row], device=batch["x"].device)
        here = {name: self.rows_back(name, self.rows_second(name, z)[:, one]) for name, z in latents.items()}
        with seeded(noise.seed, batch["x"].device):
            return self.replicate(take(batch, one), here, noise)

    def log_columns(self, batch: Batch, latents: Latents) -> Tensor:
        """Return log P(x_d | z) of every column d of the flattened rows, shape (samples, rows, columns), 0 in missing cells.

        In float64, in nats. Their sum over the columns is ``log_joint(batch, latents).likelihood`` if every observed site
        holds columns of x.

        Raises:
            ValueError: a site scores several columns jointly, as a multivariate normal or a multinomial does.
            ValueError: a column is not scored by a site that holds it.
        """
        structure, shape = self.structure, (self._count(latents), len(batch["x"]))
        sites = self._ask("model", batch, shape[0], latents)
        lead = 1 if structure.vectorised["model"] else 0
        found = torch.zeros(*shape, len(structure.measure), dtype=torch.float64, device=batch["x"].device)
        held = {column for columns in structure.columns.values() for column in columns}
        expected = "a likelihood with independent columns given z, so that each cell has a log P(x_d | z)"
        fix = "Use a likelihood of independent columns: a distribution of single numbers and .to_event(1)."
        if len(held) < len(structure.measure):
            first = min(set(range(len(structure.measure))) - held)
            raise bad_value("model", expected, f"column {first}, which no observed site holds", fix)
        for name, columns in structure.columns.items():
            fn = sites[name]["fn"]
            inner = supports.innermost(fn)
            if len(inner.event_shape):
                came = f"site {name!r}, a {type(inner).__name__}, which scores columns jointly"
                raise bad_value("model", expected, came, fix)
            term = supports.log_prob(inner, sites[name]["value"], checked=True).double()
            for mask, dims in masks.of(sites[name]):
                term = torch.where(
                    torch.as_tensor(mask, device=term.device)[(...,) + (None,) * dims], term, 0.0
                )
            term = term.expand(torch.broadcast_shapes(term.shape, fn.shape()))
            term = term.reshape((1,) * (lead + structure.nesting + fn.event_dim - term.dim()) + term.shape)
            axis = term.dim() - fn.event_dim + structure.data_dim[name]
            term = term.movedim(axis, lead)  # (samples, rows, rest...) or (samples · rows, rest...)
            if lead:
                term = term.expand(shape[0], *term.shape[1:])
            found[..., list(columns)] = term.reshape(*shape, -1)
        return found

    def check_replicable(self, batch: Batch, fix: str = "Pass predictive=False.") -> None:
        """Raise an error if a column of x is not sampled given z, or if the model reads x outside its observed sites.

        ``fix`` is the advice in the message.

        Raises:
            ValueError: naming the columns, or the site that changes with x.
        """
        structure = self.structure
        expected = "every column of x sampled by an observed site, and read nowhere else, to replicate rows"
        check_all_drawn(structure.added, fix)
        odd = _columns_of(structure.measure, {"mass", "density", "pseudo-likelihood"})
        held = {column for columns in structure.columns.values() for column in columns}
        if odd or len(held) < len(structure.measure):
            raise bad_value("model", expected, odd or "columns that are unscored", fix)
        latents, _ = self.draw_prior(batch, 1)
        other = {**batch, "x": self.replicate(batch, latents)[0]}
        here, there = (run(self.pair, "model", rows, fold(structure, latents)) for rows in (batch, other))
        if "observed" in batch:
            filled = {**batch, "x": torch.where(batch["observed"], batch["x"], other["x"])}
            self._check_missing_unread(
                here, run(self.pair, "model", filled, fold(structure, latents)), expected, fix
            )
        for name in structure.columns:
            value = there[name]["value"]
            if not _close(here[name]["fn"].log_prob(value), there[name]["fn"].log_prob(value)):
                raise bad_value("model", expected, f"site {name!r}, which also depends on x", fix)

    def _check_missing_unread(self, here: Sites, filled: Sites, expected: str, fix: str) -> None:
        """Raise ``ValueError`` if a site's distribution is another with numbers in the missing cells, which hold no data."""
        for name in self.structure.columns:
            value = filled[name]["value"]
            one, other = (masks.unmasked(sites[name]["fn"]).log_prob(value) for sites in (here, filled))
            if not _close(one, other):
                raise bad_value("model", expected, f"site {name!r}, which reads missing cells of x", fix)

    # -----------------------------------------------------------------------------------------------------
    # Layout

    def rows_second(self, name: str, value: Tensor) -> Tensor:
        """Return a latent's (samples, plates..., event...) as (samples, rows, rest...)."""
        return value.movedim(self._rows_axis(name), 1)

    def rows_back(self, name: str, value: Tensor) -> Tensor:
        """Return a latent's (samples, rows, rest...) as (samples, plates..., event...)."""
        return value.movedim(1, self._rows_axis(name))

    def _rows_axis(self, name: str) -> int:
        return 1 + self.structure.nesting + self.structure.data_dim[name]

    def draws_by_row(self, batch: Batch) -> bool:
        """Return whether guide and prior draw every number from the noise of the rows."""
        count = len(batch["x"]) + 1  # differs from the number of rows
        noise = RowNoise(0, torch.arange(len(batch["x"]), device=batch["x"].device))
        missed: list[str] = []
        try:
            with pyro.validation_enabled(False):
                for part in ("guide", "model"):
                    self._ask(part, batch, count, noise=noise, missed=missed)
        except Exception:  # a model may fail on draws of its own prior
            return False
        return not missed

    # -----------------------------------------------------------------------------------------------------
    # Runs

    def _ask(
        self,
        part: str,
        batch: Batch,
        num_samples: int,
        latents: Latents | None = None,
        noise: RowNoise | None = None,
        missed: list[str] | None = None,
    ) -> Sites:
        """Run one part for many samples, under a plate of particles or, if it needs that, with the rows repeated."""
        vectorised = self.structure.vectorised[part]
        row_axis = self.structure.data_dim.get

        def ask() -> Sites:
            if vectorised:
                with particles(self.structure, num_samples):
                    return run(self.pair, part, batch, latents)
            folded = None if latents is None else fold(self.structure, latents)
            return run(self.pair, part, repeat(batch, num_samples), folded)

        if noise is None:
            return ask()
        with DrawsByRow(noise, num_samples, row_axis, folded=not vectorised) as drawn:
            sites = ask()
        if missed is not None:
            missed += drawn.missed
        return sites

    def _values(self, part: str, sites: Sites, num_samples: int) -> Latents:
        """Return the latents of sites from ``_ask``."""
        latents = values_of(sites, self.structure.latents)
        return latents if self.structure.vectorised[part] else unfold(self.structure, latents, num_samples)

    def _terms(self, part: str, sites: Sites, names: tuple[str, ...], shape: tuple[int, int]) -> Tensor:
        """Return log-probabilities of sites from ``_ask``, summed to (samples, rows)."""
        if self.structure.vectorised[part]:
            return sum_sites(sites, names, self.structure, lead=1).expand(shape)
        return by_row(sites, names, self.structure, shape[0] * shape[1]).reshape(shape)

    def _joint(self, sites: Sites, shape: tuple[int, int], without: tuple[str, ...] = ()) -> LogJoint:
        names = tuple(name for name in self.structure.latents if name not in without)
        return LogJoint(
            self._terms("model", sites, names, shape),
            self._terms("model", sites, self.structure.observed, shape),
        )

    def _count(self, latents: Latents) -> int:
        return len(latents[self.structure.latents[0]])

    def _at_edge(self, part: str, sites: Sites, num_samples: int) -> Tensor:
        """Return whether a latent lies on a bound of its support in one part, up to rounding, (samples, rows)."""
        at = {}
        for name in self.structure.edges[part]:
            z, bounds = sites[name]["value"], supports.reach(sites[name]["fn"])
            # Bounds that inspection saw may differ in side from row to row, and then they are not known.
            found = (
                torch.zeros_like(z, dtype=torch.bool)
                if bounds is None
                else supports.at_edge(z, bounds, transformed=part == "guide")
            )
            counted = masks.entries(sites[name])
            at[name] = found if counted is None else found & counted
        if not self.structure.vectorised[part]:
            at = unfold(self.structure, at, num_samples)
        each = [self.rows_second(name, found) for name, found in at.items()]
        return torch.stack([found.reshape(*found.shape[:2], -1).any(-1) for found in each]).any(0)

    def plainly(self) -> RowModel:
        """Return the same model, called with the rows repeated for every sample."""
        return replace(self, structure=replace(self.structure, vectorised={"model": False, "guide": False}))
