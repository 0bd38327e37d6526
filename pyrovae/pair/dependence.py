"""Finds which columns of x a site holds and which sites' distributions depend on x, by changing x.

A product of factors P(unit | its inputs) is a probability only if the units have an order. If a unit depends on a
column it holds, or on a unit that depends on it, the product does not sum to 1. A *unit* is scored by one factor: an
entry of a site under ``.to_event``, or a whole event such as a multivariate normal's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import MaskedDistribution
from torch import Tensor

from pyrovae import supports
from pyrovae.pair.contract import no_answer
from pyrovae.pair.running import Batch, Latents, Site, Sites, by_rows, flat, row_axis, take
from pyrovae.refusals import Refused, bad_value
from pyrovae.rounding import blocks

# Rows to search for dependence on x; rows to search for the order of units; most columns to change.
_ROWS, _ORDERED_ROWS, _MOST_COLUMNS = 64, 3, 2048
_AT_ONCE = 512  # changed copies of a row in one call
# Relative and absolute tolerance for rounding of a unit's log-probability.
_TOLERANCE = 1e-5

#: Runs a model on copies of rows. Takes the copies, the numbers of the rows whose latents they keep, and changed latents.
Run = Callable[[Batch, Tensor, Latents], Sites]


def columns_held(
    run: Callable[[Batch], Sites], batch: Batch, names: tuple[str, ...], data_dim: dict[str, int]
) -> dict[str, list[int]]:
    """Return for every entry of the sites' values the column of the flattened x that it equals; −1 if none.

    The model runs on copies of one row. Copy b changes the columns whose number has bit b. The copies in which an
    entry changes spell the number of its column, even if columns are alike in the data.
    """
    x = flat(batch["x"])
    other, varies = _other_values(x)
    numbers = torch.arange(1, x.shape[1] + 1, device=x.device)
    bits = torch.stack([(numbers >> bit) & 1 == 1 for bit in range(int(x.shape[1]).bit_length())])
    tagged = torch.cat([x[:1], torch.where(bits, other, x[0])])
    copies = _copies(batch, torch.zeros(len(tagged), dtype=torch.long, device=x.device), tagged)
    try:
        sites = run(copies)
    except (RuntimeError, IndexError, ValueError):
        # A changed constant column may be a code that the model does not know: leave such columns unchanged.
        tagged = torch.where(varies, tagged, x[0])
        sites = run(_copies(batch, torch.zeros(len(tagged), dtype=torch.long, device=x.device), tagged))
    held = {}
    for name in names:
        values = by_rows(sites[name], data_dim[name]).to(x.dtype)
        if len(values) != len(tagged):
            raise no_answer(name)
        weights = 2 ** torch.arange(len(bits), device=x.device)
        found = ((values[1:] != values[0]).long() * weights[:, None]).sum(0) - 1
        found = torch.where(found < x.shape[1], found, -1)
        same = (tagged[:, found.clamp(min=0)] == values).all(0)
        held[name] = torch.where(same, found, -1).tolist()
    told = {column for columns in held.values() for column in columns}
    untold = [column for column in range(x.shape[1]) if column not in told]
    # An entry may hold a constant column that could not be changed: assign the first one with its value.
    for name, columns in held.items():
        first = by_rows(sites[name], data_dim[name])[0].to(x.dtype)
        for entry in [entry for entry, column in enumerate(columns) if column < 0]:
            alike = [column for column in untold if not varies[column] and x[0, column] == first[entry]]
            if alike and bool((tagged[:, alike[0]] == tagged[0, alike[0]]).all()):
                columns[entry] = alike[0]
                untold.remove(alike[0])
    return held


def _other_values(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return for every column a value other than row 0's, and whether it is another row's.

    If no other row differs, it is the other of 0 and 1, or one more.
    """
    found = torch.where(x[0] == 1, torch.zeros_like(x[0]), x[0] + 1)
    some = x[torch.linspace(0, len(x) - 1, 256, device=x.device).long()]
    differs = some != some[:1] if len(x) else some.bool()
    first = differs.int().argmax(0)
    varies = differs.any(0)
    return torch.where(varies, some.gather(0, first[None])[0], found), varies


def _copies(batch: Batch, rows: Tensor, x: Tensor) -> Batch:
    """Return the batch's rows of these numbers, with other values of x, (copies, columns)."""
    return {
        name: x.reshape(len(x), *value.shape[1:]) if name == "x" else value[rows]
        for name, value in batch.items()
    }


@dataclass(frozen=True)
class _Probe:
    """A model and the rows whose changed copies it runs on."""

    run: Run
    rows: Batch
    latents: tuple[str, ...]
    observed: tuple[str, ...]
    data_dim: dict[str, int]

    @property
    def names(self) -> tuple[str, ...]:
        return self.latents + self.observed

    def tried(self, rows: Tensor, x: Tensor) -> Sites | None:
        """Return the model's sites on rows with other x; None if it fails, for example on an unknown code."""
        try:
            return self.run(_copies(self.rows, rows, x), rows, {})
        except (RuntimeError, IndexError, ValueError):
            return None

    def by_rows(self, sites: Sites, name: str) -> Tensor:
        return by_rows(sites[name], self.data_dim[name])

    def log_probs(self, sites: Sites, name: str, value: Tensor) -> Tensor:
        return _unit_log_probs(sites[name], value, self.data_dim[name])


def _unit_log_probs(site: Site, value: Tensor, dim: int) -> Tensor:
    """Return a value's log-probabilities under a site's distribution, (rows, units), without sums over events or masks."""
    fn = site["fn"]
    while isinstance(fn, dist.Independent | MaskedDistribution):
        if isinstance(fn, dist.Independent):
            dim -= fn.reinterpreted_batch_ndims
        fn = fn.base_dist
    found = supports.log_prob(fn, value).movedim(dim, 0)
    return found.reshape(len(found), -1)


def check_order(
    run: Run, batch: Batch, latents: tuple[str, ...], observed: tuple[str, ...], data_dim: dict[str, int]
) -> None:
    """Raise an error if sites depend on the columns they hold, or on each other in a circle.

    Raises:
        ValueError: naming the site and the column.
    """
    some = _spread(len(batch["x"]), batch["x"].device)
    probe = _Probe(run, take(batch, some), latents, observed, data_dim)
    every = torch.arange(len(some), device=some.device)
    base = run(probe.rows, every, {})
    x = flat(probe.rows["x"])
    shifts = torch.arange(x.shape[1], device=x.device) % max(1, len(some) - 1) + 1
    each = (every[:, None] + shifts) % len(some)  # a different row for each column
    reading = torch.zeros(len(some), dtype=torch.float64, device=x.device)
    ends = [torch.stack(block.aminmax(dim=0)) for _, block in blocks(flat(batch["x"]))]
    low, high = torch.stack(ends)[:, 0].amin(0), torch.stack(ends)[:, 1].amax(0)
    # The other of 0 and 1, else a value that the data may not have.
    beyond = torch.where((x == 0) | (x == 1), 1 - x, x + 1)
    copies = (x.roll(1, 0), x.gather(0, each), low.expand_as(x), high.expand_as(x))
    for changed in (*copies, torch.where(low == high, beyond, x)):
        sites = probe.tried(every, changed)
        if sites is None:
            continue
        for name in probe.names:
            before, after = (probe.log_probs(s, name, base[name]["value"]) for s in (base, sites))
            reading += _moved(before, after).sum(1)
    if not bool(reading.any()):
        return
    for row in reading.topk(min(_ORDERED_ROWS, len(some))).indices.tolist():
        if reading[row] > 0:
            _check_row(probe, row)


def _check_row(probe: _Probe, row: int) -> None:
    """Run ``check_order`` on one row, with every column and then every latent changed by itself."""
    x = flat(probe.rows["x"])
    other, varies = _other_values(torch.cat([x[row:], x[:row]]))
    generator = torch.Generator().manual_seed(0)
    columns = torch.randperm(x.shape[1], generator=generator)[:_MOST_COLUMNS].sort().values.to(x.device)
    here = torch.tensor([row], device=x.device)
    base = probe.run(take(probe.rows, here), here, {})
    owner = [
        name for name in probe.names for _ in range(probe.log_probs(base, name, base[name]["value"]).shape[1])
    ]
    found = _each_changed(probe, row, other, columns)
    if found is None:  # a value that the data do not have may be an unknown code
        columns = columns[varies[columns]]
        found = _each_changed(probe, row, other, columns)
    if found is None or not len(columns):
        return
    moves, holds = found
    # Latents are held fixed and so do not change with x.
    holds[:, : sum(name in probe.latents for name in owner)] = False
    moved, own_columns = moves.cpu().numpy(), holds.cpu().numpy()
    own = np.argwhere(moved & own_columns)
    if len(own):
        column, unit = int(columns[own[0][0]]), own[0][1]
        raise _refusal(
            f"site {owner[unit]!r}, whose distribution of column {column} depends on column {column} itself"
        )
    edges = own_columns.T.astype(np.float32) @ moved.astype(np.float32) > 0  # unit → unit, through columns
    if any(owner[unit] in probe.latents for unit in np.flatnonzero(moved.any(0))):
        edges |= _latent_edges(probe, row, len(owner))
    circle = _circle(edges)
    if circle is not None:
        a, b = circle
        raise _refusal(
            f"sites {owner[a]!r} and {owner[b]!r}, each of which depends on the other through columns of x"
        )


def _each_changed(probe: _Probe, row: int, other: Tensor, columns: Tensor) -> tuple[Tensor, Tensor] | None:
    """Return which units' log-probabilities and which units' values change with a column, (columns, units) each.

    None if the model fails on such values.
    """
    x = flat(probe.rows["x"])
    moves, holds = [], []
    for part in columns.split(_AT_ONCE):
        changed = x[row].repeat(len(part) + 1, 1)  # the last copy is the unchanged row
        changed[torch.arange(len(part), device=x.device), part] = other[part]
        rows = torch.full((len(changed),), row, device=x.device)
        sites = probe.tried(rows, changed)
        if sites is None:
            return None
        found_moves, found_holds = [], []
        for name in probe.names:
            held = probe.by_rows(sites, name)
            before = held[-1:].expand_as(held)
            scores = probe.log_probs(sites, name, _like(sites[name], before, probe.data_dim[name]))
            found_moves.append(_moved(scores[-1:].expand_as(scores), scores)[:-1])
            found_holds.append((held != before)[:-1].reshape(len(part), scores.shape[1], -1).any(-1))
        moves.append(torch.cat(found_moves, 1))
        holds.append(torch.cat(found_holds, 1))
    if not moves:
        return None
    return torch.cat(moves), torch.cat(holds)


def _latent_edges(probe: _Probe, row: int, num_units: int) -> np.ndarray:
    """Return which units depend on which units of latents, (units, units), by giving one unit another row's z."""
    edges = np.zeros((num_units, num_units), dtype=bool)
    start = 0
    device, num_rows = probe.rows["x"].device, len(probe.rows["x"])
    other_row = torch.tensor([(row + 1) % num_rows], device=device)
    drawn = probe.run(take(probe.rows, other_row), other_row, {})
    for name in probe.latents:
        width = probe.log_probs(drawn, name, drawn[name]["value"]).shape[1]
        for part in torch.arange(min(width, _MOST_COLUMNS), device=device).split(_AT_ONCE):
            rows = torch.full((len(part) + 1,), row, device=device)  # the last copy is the unchanged row
            same = take(probe.rows, rows)
            base = probe.run(same, rows, {})
            mixed = probe.by_rows(base, name).reshape(len(rows), width, -1).clone()
            here = torch.arange(len(part), device=device)
            other = probe.by_rows(drawn, name).reshape(width, -1)[part]
            # A single row has no other row's z.
            mixed[here, part] = other if num_rows > 1 else other / 2 + 1
            sites = probe.run(same, rows, {name: _like(base[name], mixed.flatten(1), probe.data_dim[name])})
            moved = torch.cat(
                [
                    _moved(*(probe.log_probs(s, n, base[n]["value"])[:-1] for s in (base, sites)))
                    for n in probe.names
                ],
                dim=1,
            )
            moved[here, start + part] = False
            edges[(start + part).cpu().numpy()] = moved.cpu().numpy()
        start += width
    return edges


def _like(site: Site, values: Tensor, dim: int) -> Tensor:
    """Return (rows, entries) in the layout of a site's value."""
    axis = row_axis(site, dim)
    moved = site["value"].movedim(axis, 0)
    return values.to(moved.dtype).reshape(len(values), *moved.shape[1:]).movedim(0, axis)


def _moved(before: Tensor, after: Tensor) -> Tensor:
    """Return whether log-probabilities differ by more than rounding."""
    return ~torch.isclose(before.double(), after.double(), rtol=_TOLERANCE, atol=_TOLERANCE, equal_nan=True)


def _spread(num_rows: int, device: torch.device) -> Tensor:
    """Return the numbers of up to 64 random rows, because data may be sorted."""
    return torch.randperm(num_rows, generator=torch.Generator().manual_seed(0))[:_ROWS].to(device)


def _circle(edges: np.ndarray) -> tuple[int, int] | None:
    """Return two units that depend on each other, directly or not; None if the units have an order."""
    from scipy.sparse import csr_matrix
    from scipy.sparse.csgraph import connected_components

    count, label = connected_components(csr_matrix(edges), directed=True, connection="strong")
    if count == len(edges):
        return None
    members = np.flatnonzero(label == np.bincount(label).argmax())
    return int(members[0]), int(members[1])


def _refusal(came: str) -> Refused:
    return bad_value(
        "model",
        "sites that depend on earlier columns of x only, so that the model is a probability of x",
        came,
        "Shift the inputs of an autoregressive network by one, and let the prior read only columns that do not "
        "depend on z. Pass values that x is conditioned on beside it: {'x': rows, 'offset': …}.",
    )
