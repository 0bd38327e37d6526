"""Finds whether rows are independent given the latents that they share, so that each can be scored by itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pyrovae.pair import masks
from pyrovae.pair.context import judged
from pyrovae.pair.contract import holds_data
from pyrovae.pair.dependence import check_order
from pyrovae.pair.inspection import columns_scored
from pyrovae.pair.on_data import groups
from pyrovae.pair.running import Batch, Scored, Sites, log_prob, sample_sites, take
from pyrovae.refusals import Refused, bad_value
from pyrovae.torch_private import LinAlgError

#: Runs a model on some rows with its latents at u, shape (dim,).
Run = Callable[[Batch, Tensor], Sites]
#: Tries of a random u, each closer to 0 than the one before.
_TRIES, _CLOSER = 50, 0.9


def scored_apart(model: Callable[..., Any], run: Run, batch: Batch, sites: Sites, dim: int) -> Scored:
    """Return what the terms of single rows measure; raise ``ValueError`` unless rows are independent given the latents.

    Args:
        model: the model, to be called with latents drawn from the prior.
        run: the same with its latents at u.
        batch: the rows.
        sites: the model's sites on them.
        dim: of u.
    """
    whole = batch
    if len(whole["x"]) == 1:
        whole = {name: torch.cat([value, value]) for name, value in whole.items()}
        sites = _on(model, whole)
    # The reversed rows without the first change each row's companions, its place and the number of rows.
    order = list(range(len(whole["x"]) - 1, 0, -1))
    fewer = take(whole, order)
    data_dim = _row_dims(sites, _on(model, fewer), len(whole["x"]))
    # Random values, because a slope of zero would hide a dependence.
    points = some_points(run, whole, dim)
    _check_stand_alone(run, points, whole, fewer, order, data_dim)
    u = points[0]

    def again(rows: Batch, *_: Any) -> Sites:
        return run(rows, u)

    scored = columns_scored(sites, tuple(data_dim), data_dim, whole, whole, again)
    scored = replace(scored, measure=_without_masked(scored, sites, whole))
    check_order(again, whole, (), tuple(scored.columns), data_dim)
    return judged(scored, batch, whole, sites)


def _without_masked(scored: Scored, sites: Sites, batch: Batch) -> tuple[str, ...]:
    """Return the measure of every column: "unscored" if its site has a mask, which may leave cells of other rows out."""
    measure = list(scored.measure)
    for name, columns in scored.columns.items():
        if masks.of(sites[name]) and not masks.only_missing(
            sites[name], scored.data_dim[name], columns, batch
        ):
            for column in columns:
                if measure[column] in ("mass", "density"):
                    measure[column] = "unscored"
    return tuple(measure)


def some_points(run: Run, batch: Batch, dim: int, seed: int = 0) -> list[Tensor]:
    """Return two random u, shape (dim,), at which no matrix of the model is singular; if possible, no row has P = 0.

    Where a row has probability zero, a dependence of its other terms would not show.
    """
    generator, found, others = torch.Generator().manual_seed(seed), list[Tensor](), list[Tensor]()
    for number in range(_TRIES):
        u = _CLOSER**number * torch.randn(dim, generator=generator, dtype=torch.float64)
        try:
            sites = run(batch, u)
        except LinAlgError:
            continue
        impossible = any(bool((log_prob(site) == -torch.inf).any()) for site in sites.values())
        (others if impossible else found).append(u)
        if len(found) == 2:
            return found
    found += others
    if len(found) > 1:
        return found[:2]
    raise bad_value(
        "model",
        "matrices that can be factored at the latents of two random points",
        f"singular ones at all but {len(found)} of {_TRIES}",
        "Add a small number to the diagonal, or constrain the latents: LKJCholesky for correlations.",
    )


def at_some_draw(drawn: Callable[[], Sites]) -> Sites:
    """Return the sites of a run on draws from the prior, the first at which no matrix of the model is singular."""
    for _ in range(_TRIES - 1):
        try:
            return drawn()
        except LinAlgError:
            continue
    return drawn()


def by_row(sites: Sites, data_dim: dict[str, int], num_rows: int) -> tuple[Tensor, Tensor]:
    """Return each row's log-likelihood, shape (rows,), and the terms of the log joint that all rows share."""
    rows, rest = torch.zeros(num_rows, dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    for name, site in sites.items():
        term = log_prob(site)
        if name in data_dim:
            rows = rows + term.movedim(data_dim[name], 0).reshape(num_rows, -1).sum(1)
        else:
            rest = rest + term.sum()
    return rows, rest


def check_groups(run: Run, batch: Batch, u: Tensor, data_dim: dict[str, int]) -> None:
    """Raise ``ValueError`` unless rows scored alone or in two halves have the same log-likelihood as together."""
    scores = by_row(run(batch, u), data_dim, len(batch["x"]))[0]
    for some in groups(batch["x"]):
        fewer = take(batch, some)
        apart = (by_row(run(fewer, u), data_dim, len(some))[0] - scores[some]).abs()
        if bool((apart > 1e-8 * scores[some].abs().clamp(min=1)).any()):
            raise _rows_depend(
                f"a log-probability that changes by {float(apart.max()):.3g} nats if {len(some)} rows are scored separately"
            )


def _check_stand_alone(
    run: Run, points: list[Tensor], whole: Batch, fewer: Batch, order: list[int], data_dim: dict[str, int]
) -> None:
    """Raise ``ValueError`` unless each row's term and the shared terms stay the same without some of the rows."""
    for u in points:
        rows, rest = by_row(run(whole, u), data_dim, len(order) + 1)
        rows_again, rest_again = by_row(run(fewer, u), data_dim, len(order))
        apart = torch.cat([rows[order] - rows_again, (rest - rest_again)[None]])
        scale = torch.cat([rows[order], rest[None]]).abs().clamp(min=1)
        if bool((apart.abs() > 1e-8 * scale).any()):
            raise _rows_depend(
                f"a log-probability that changes by {float(apart.abs().max()):.3g} nats without some of the rows"
            )
        check_groups(run, whole, u, data_dim)


def _row_dims(sites: Sites, again: Sites, num_rows: int) -> dict[str, int]:
    """Return for each observed site the dim of its log-probability that rows lie on, from runs on all rows and on fewer."""
    data_dim = {}
    for name, site in sites.items():
        if site["is_observed"]:
            if name not in again:
                raise _for_all_rows(name)
            dim = _row_dim(name, site, again[name], num_rows)
            if dim is not None:
                data_dim[name] = dim
        elif name not in again or again[name]["fn"].shape() != site["fn"].shape():
            raise bad_value(
                "model",
                "latents that all rows share: a new row is scored given them",
                f"latent {name!r}, which changes with the number of rows",
                "Integrate it out in the model (a marginal or a mixture for x), or take the evidence of the "
                "training rows, marginal_likelihood().",
            )
    return data_dim


def _on(model: Callable[..., Any], batch: Batch) -> Sites:
    """Return the model's sites on some rows; raise ``ValueError`` if it cannot be called on them."""
    try:
        sites = at_some_draw(lambda: sample_sites(model, batch))
        for site in sites.values():
            log_prob(site)
        return sites
    except Exception as error:
        raise bad_value(
            "model",
            "a model that can be called on any number of rows",
            f"{type(error).__name__} from it on {len(batch['x'])} rows: {error}",
            'Use len(x) for the number of rows, and pass values aligned with the rows beside them: {"x": rows, '
            '"sigma": …}. The evidence of the training rows, marginal_likelihood(), needs neither.',
        ) from error


def _row_dim(name: str, site: Any, again: Any, num_rows: int) -> int | None:
    """Return the dim of an observed site's log-probability that the rows lie on; None if all rows share the term."""
    first, second = log_prob(site).shape, log_prob(again).shape
    if first == second:
        if holds_data(site) and site["value"].shape != again["value"].shape:
            raise _for_all_rows(name)
        return None
    if len(first) != len(second):
        raise _for_all_rows(name)
    moved = [dim for dim in range(-len(first), 0) if first[dim] != second[dim]]
    if [(first[dim], second[dim]) for dim in moved] != [(num_rows, num_rows - 1)]:
        raise _rows_depend(f"site {name!r}, of shape {tuple(first)} for {num_rows} rows")
    return moved[0]


def _for_all_rows(name: str) -> Refused:
    """Return the error for a site whose log-probability is one number for all rows."""
    return bad_value(
        "model",
        "a log-probability for every row",
        f"site {name!r}, with one for all of them together",
        'Put it under "with pyro.plate("data", len(x)):", and declare only a row\'s own dims as event, .to_event(n).',
    )


def _rows_depend(came: str) -> Refused:
    """Return the error for rows that are not independent given the globals."""
    return bad_value(
        "model",
        "rows that are independent given the latents that they share",
        came,
        "A time series has no log P of a single row: use the evidence of the training rows, "
        "marginal_likelihood(). Keep a constant of the data set in a tensor, instead of a mean over the batch.",
    )
