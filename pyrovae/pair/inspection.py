"""inspect() finds a pair's sites, its plate over rows and the measure of its columns, and checks the pair on a few rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from torch.utils.module_tracker import ModuleTracker

from pyrovae import noise, supports
from pyrovae.distributions import ByColumn
from pyrovae.entries import elementwise, on_support
from pyrovae.likelihoods import Likelihood
from pyrovae.likelihoods.base import Inseparable, inseparable, off_support
from pyrovae.model import VAE, LatentVariableModel
from pyrovae.pair import masks
from pyrovae.pair.behaviour import left_as_first_called
from pyrovae.pair.context import judged
from pyrovae.pair.contract import (
    adds_nothing,
    check_log_prob_dims,
    check_modules,
    check_repeats,
    check_shape,
    check_sites,
    check_varies,
    check_vectorised,
    first_run,
    holds_data,
    no_answer,
    unfilled,
)
from pyrovae.pair.dependence import check_order, columns_held
from pyrovae.pair.drawing import check_samplers
from pyrovae.pair.on_data import check_rows
from pyrovae.pair.row_model import RowModel
from pyrovae.pair.running import (
    Batch,
    Latents,
    Scored,
    Sites,
    Structure,
    Support,
    flat,
    of_rows,
    part_for,
    row_axis,
    run,
    take,
    values_of,
)
from pyrovae.refusals import Refused, bad_value, first_line
from pyrovae.rows import restored

_PROBE_ROWS, _MOST_ROWS = 4, 4096
# Fragments of torch's errors on dtypes that differ or that cannot be an index.
OF_DTYPES = (
    "same dtype",
    "scalar type",
    "type) should be the same",
    "used as indices must be",
    "dtype must match",
    "to be a BoolTensor",
)


def inspect(
    pair: LatentVariableModel,
    batch: Batch,
    seed: int = 0,
    argument: str = "x",
    every_row: bool = False,
    names: tuple[str, ...] | None = None,
) -> RowModel:
    """Return the pair with its structure; raise ``ValueError`` if a row's log P(x) would not be defined.

    Runs the pair on up to four of the rows, in ``eval()`` mode and without gradients. The first call fills the
    parameter store of a pair written as plain functions, from ``seed``. Otherwise the pair is left as it was found,
    unless the first call gives parameters to modules. Then runs the pair once on each of the first
    4096 rows, or on all if ``every_row``; see ``on_data``. ``names`` are those of the columns, for messages.

    Raises:
        ValueError: the pair does not satisfy a clause of the contract; the message names what was found. There is
            no plate over the rows, or several, or a site is outside it. A latent is missing from guide or model,
            or the guide is a point. Observations do not change with x. There are subsampling, scaled sites, or
            randomness outside sample sites. Rows depend on other rows. Values are off the likelihood's support.
    """
    chosen = _distinct_rows(batch["x"], min(len(batch["x"]), _PROBE_ROWS))
    # The reversed rows without the first change each row's companions, its place and the batch size.
    order = list(range(len(chosen) - 1, 0, -1))
    probe = take(batch, chosen)
    fewer = take(probe, order)
    seeded = noise.seeded(noise.derive(seed, noise.Stream.INSPECT), batch["x"].device)
    if isinstance(pair, VAE) and isinstance(pair.likelihood, Likelihood):
        pair.likelihood.check_rows(restored(batch["x"], batch.get("observed")), pair.labels or names)
    found = left_as_first_called(pair)
    with pair.nothing_declared_on_error(), found as after_first_call, pair.evaluating(), seeded:
        counter = FlopCounterMode(display=False)
        counter.mod_tracker = (
            _NoModules()
        )  # torch's would hook inputs that require gradients, which fails here
        with counter:
            sites = _first_runs(pair, probe, batch)
        after_first_call()
        latents, observed = check_sites(sites["model"], sites["guide"])
        check_samplers("guide", sites["guide"], latents)
        again = _first_runs(pair, fewer, batch)
        check_modules(pair, probe, values_of(sites["guide"], latents))
        data_dim, plates = _data_dims(pair, sites, again, len(chosen))
        replayed = partial(_replayed, pair, latents)
        scored = columns_scored(sites["model"], observed, data_dim, batch, probe, replayed)
        masks.check_latents(sites["model"], sites["guide"], latents)
        left_out = masks.LeftOut(scored)
        left_out.add(sites["model"], probe)
        if len(set(chosen)) > 1 and not {"mass", "density"} & set(left_out.measure()):
            check_varies(sites["model"], observed, data_dim)
        work = max(counter.get_total_flops() // (2 * len(chosen)), sum(p.numel() for p in pair.parameters()))
        structure = _structure(
            sites, latents, observed, plates, scored, _widest(pair, sites["model"], probe["x"]), work
        )
        check_supports(structure, batch, names=pair.labels or names)
        model = RowModel(pair, structure)
        check_log_prob_dims(sites, model.structure)
        check_repeats(model, sites, probe, fewer, order)
        first = batch if every_row else take(batch, slice(_MOST_ROWS))
        model = check_rows(model, first, seed, argument, every_row)
        model = replace(model, structure=judged(model.structure, batch, probe, sites["model"]))
        _check_order(model, batch)
        vectorised = check_vectorised(model, probe)
        model = replace(model, structure=replace(model.structure, vectorised=vectorised))
        return replace(model, keyed=model.draws_by_row(probe))


def _structure(
    sites: dict[str, Sites],
    latents: tuple[str, ...],
    observed: tuple[str, ...],
    plates: frozenset[str],
    scored: Scored,
    widest: int,
    work: int,
) -> Structure:
    """Return what the sites of both parts and the scored columns tell about the pair."""
    model, guide = sites["model"], sites["guide"]
    return Structure(
        **vars(scored),
        latents=latents,
        observed=observed,
        nesting=max(-frame.dim for part in sites.values() for _, frame in _plates(part)),
        plates=plates,
        widest=widest,
        work=work,
        batch_dims={name: len(model[name]["fn"].batch_shape) for name in latents},
        event_dims={name: model[name]["fn"].event_dim for name in latents},
        vectorised={"model": True, "guide": True},
        edges=_edges(sites, latents),
        fixed_masks=True,
        reaches=all(supports.same_reach(guide[name]["fn"], model[name]["fn"]) for name in latents),
    )


def check_supports(
    scored: Scored, batch: Batch, argument: str = "x", names: Sequence[Any] | None = None
) -> None:
    """Raise ``ValueError`` for observed values off the likelihood's support, naming the first and a likelihood that fits."""
    x = restored(batch["x"], batch.get("observed"))
    for support in scored.supports:
        on_support(argument, flat(x), *support, off_support(support.family), names)


def _distinct_rows(x: Tensor, num_rows: int) -> list[int]:
    """Return indices of up to ``num_rows`` different rows, so that exchanging two of them has an effect; at least two."""
    chosen: list[int] = []
    # Candidates come from all over x, because the first rows of sorted data may be equal.
    for index in torch.linspace(0, len(x) - 1, 256).long().unique().tolist():
        if all(not torch.equal(x[index], x[other]) for other in chosen):
            chosen.append(index)
        if len(chosen) == num_rows:
            return chosen if len(chosen) > 1 else chosen * 2
    return (chosen * num_rows)[: max(2, num_rows)] if len(chosen) == 1 else chosen


def _first_runs(pair: LatentVariableModel, batch: Batch, every: Batch) -> dict[str, Sites]:
    """Run the guide, and the model on its draws, as training does; ``every`` holds all rows."""
    guide = _first_run(pair, "guide", batch, every)
    return {"guide": guide, "model": _first_run(pair, "model", batch, every, guide)}


def _dtypes(pair: LatentVariableModel, batch: Batch) -> str:
    """Return a text on the dtypes of a pair's parameters and of a batch."""
    parameters = sorted({str(p.dtype).removeprefix("torch.") for p in pair.parameters()})
    each = [f"{name} in {str(value.dtype).removeprefix('torch.')}" for name, value in batch.items()]
    return f"Parameters are in {' and '.join(parameters) or 'no dtype'}, {', '.join(each)}"


def _first_run(
    pair: LatentVariableModel, part: str, batch: Batch, every: Batch, drawn: Sites | None = None
) -> Sites:
    """Run a part unchanged; raise ``ValueError`` with a fix if it cannot be called on these rows."""
    function = part_for(pair, part, batch)
    if drawn is not None:
        trace = poutine.Trace()
        for name, site in drawn.items():
            if not site["is_observed"]:
                trace.add_node(name, **site)
        function = poutine.replay(function, trace=trace)
    with pair.own_parameters():
        try:
            sites = first_run(function, part, batch)
        except Inseparable as error:
            raise inseparable(error.family, every["observed"]) from None
        except Refused:
            raise
        except (RuntimeError, ValueError, TypeError, IndexError, NotImplementedError) as error:
            reason = error.__cause__ or error  # as in first_run
            raise _explained(reason, pair, part, batch, every["x"]) from reason
    for name, site in sites.items():
        if part == "model" and site["is_observed"]:
            check_shape(name, site, len(batch["x"]))
    return sites


def _explained(
    reason: BaseException, pair: LatentVariableModel, part: str, batch: Batch, rows: Tensor
) -> Refused:
    """Return the error for a part that fails on a batch, with a fix; ``rows`` are all of x."""
    text = str(reason)
    if isinstance(reason, TypeError) and "unexpected keyword argument" in text:
        given = [name for name in batch if name != "x"]
        return bad_value(
            "x",
            f"names beside 'x' that the {part} takes as keywords",
            f"{', '.join(map(repr, given))}: {text}",
            f"Write {part}(x, {', '.join(f'{name}=None' for name in given)}), or leave them out: model "
            "and guide are called alike.",
        )
    if isinstance(reason, TypeError) and "positional argument" in text:
        return bad_value(
            part,
            f"a callable of the rows alone, {part}(x)",
            text,
            "Pass values aligned with the rows beside them, by name: {'x': rows, 'offset': …}; put other "
            "values into a module's buffers.",
        )
    if isinstance(reason, ValueError) and "satisfy the constraint" in text:
        return bad_value(
            "x",
            f"rows of a size that the {part}'s networks can take",
            first_line(reason),
            pair.fix_of_rows(rows),
        )
    if any(words in text for words in OF_DTYPES):
        return bad_value(
            "x",
            f"rows, and values beside them, in dtypes that the {part} computes with",
            f"{type(reason).__name__} from it: {first_line(reason)}",
            f"{_dtypes(pair, batch)}. Cast networks and numbers by .float(), labels by .long(), masks by .bool().",
        )
    one_dim = "x has one dim, so every number is a row: for one row of many columns pass x[None], or x.to_frame().T of a series. "
    return bad_value(
        "x",
        f"rows that the {part} can be called on, any number of them",
        f"{type(reason).__name__} from it on {len(batch['x'])} rows of shape {tuple(batch['x'].shape[1:])}: {text}",
        (one_dim if batch["x"].dim() == 1 else "")
        + f"Pass rows of the shape the {part} is written for, on dim 0, and use len(x) for their number.",
    )


def _data_dims(
    pair: LatentVariableModel, sites: dict[str, Sites], again: dict[str, Sites], num_rows: int
) -> tuple[dict[str, int], frozenset[str]]:
    """Return for each site the dim of the plate over rows, whose size changes with their number; and the plates' names."""
    found: dict[str, int] = {}
    names: set[str] = set()
    named = {frame.name for part in sites.values() for _, frame in _plates(part)}
    if pair.plate is not None and pair.plate not in named:
        raise bad_value(
            "plate", f"one of the pair's plates, {sorted(named)}", repr(pair.plate), "Name one of these."
        )
    for part in ("guide", "model"):
        sizes_again = {(name, frame.name): frame.size for name, frame in _plates(again[part])}
        for name, site in sites[part].items():
            frames = {frame.name: frame for other, frame in _plates({name: site})}
            fitting = {
                plate: frame.dim
                for plate, frame in frames.items()
                if frame.size == num_rows and sizes_again.get((name, plate)) == num_rows - 1
            }
            if pair.plate in fitting:
                fitting = {pair.plate: fitting[pair.plate]}
            if not fitting:
                raise bad_value(
                    part,
                    f"site {name!r} inside a plate of size len(x)",
                    f"it inside {[f'{plate} ({frame.size})' for plate, frame in frames.items()] or 'no plate'} "
                    f"for {num_rows} rows",
                    'Put it under "with pyro.plate("data", len(x)):". A site that is joint over rows or shared by '
                    "them has no log P(x) of a row; make a shared quantity a parameter.",
                )
            if len(fitting) > 1:
                raise bad_value(
                    "plate",
                    f"one plate of size len(x) around site {name!r} of the {part}",
                    f"{len(fitting)}: {sorted(fitting)}",
                    f"Say which one holds the rows: LatentVariableModel(model, guide, plate={sorted(fitting)[0]!r}).",
                )
            ((plate, dim),) = fitting.items()
            if part == "model":
                names.add(plate)
            if found.setdefault(name, dim) != dim:
                raise bad_value(
                    part,
                    f"the plate over rows at dim {found[name]} of site {name!r}, as in the guide",
                    f"dim {dim}",
                    "Give the plate the same dim in model and guide.",
                )
    return found, frozenset(names)


class _NoModules(ModuleTracker):
    """Counts all modules together."""

    def __enter__(self) -> _NoModules:
        return self

    def __exit__(self, *args: object) -> None:
        pass


def _widest(pair: LatentVariableModel, model: Sites, probe: Tensor) -> int:
    """Return the numbers in the widest tensor of one row, which limit a tile's height."""
    sites = [site["value"].numel() // len(probe) for site in model.values()]
    layers = [getattr(module, "out_features", 0) for module in pair.every_module()]
    return max([probe[0].numel(), *sites, *(width for width in layers if isinstance(width, int))])


def _plates(sites: Sites) -> Iterator[tuple[str, Any]]:
    """Yield (site name, frame) for every vectorised plate around every site."""
    for name, site in sites.items():
        for frame in site["cond_indep_stack"]:
            if frame.vectorized:
                yield name, frame


def _edges(sites: dict[str, Sites], latents: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    """Return the latents with bounds in each part; those of the model only if the guide's are not known to be the same."""
    held = {part: {name: runs[name]["fn"] for name in latents} for part, runs in sites.items()}
    fixed = {
        part: {n: supports.bounds(supports.support(fn)) for n, fn in fns.items()}
        for part, fns in held.items()
    }
    alike = {name for name in latents if fixed["guide"][name] == fixed["model"][name] is not None}
    return {
        part: tuple(
            name
            for name, fn in fns.items()
            if supports.reach(fn) is not None and not (part == "model" and name in alike)
        )
        for part, fns in held.items()
    }


def _replayed(pair: LatentVariableModel, latents: tuple[str, ...], rows: Batch) -> Sites:
    """Return the model's sites on the guide's draws; columns may be off their support."""
    with pyro.validation_enabled(False):
        guide = run(pair, "guide", rows)
        return run(pair, "model", rows, values_of(guide, latents))


def _check_order(model: RowModel, batch: Batch) -> None:
    """Raise ``ValueError`` if sites depend on the columns they hold; see ``dependence``."""
    pair, structure = model.pair, model.structure
    drawn: Latents = {}

    def model_on(rows: Batch, rows_of: Tensor, changed: Latents) -> Sites:
        if not drawn:
            guide = run(pair, "guide", rows)
            drawn.update(values_of(guide, structure.latents))
        return run(pair, "model", rows, {**of_rows(structure, drawn, rows_of), **changed})

    data = tuple(name for name in structure.observed if name in structure.columns)
    with pyro.validation_enabled(False):
        check_order(model_on, batch, structure.latents, data, structure.data_dim)


def columns_scored(
    model: Sites,
    observed: tuple[str, ...],
    data_dim: dict[str, int],
    batch: Batch,
    probe: Batch,
    again: Callable[[Batch], Sites],
) -> Scored:
    """Return the columns of x that each observed site holds, every column's measure, and the supports of columns.

    The measure is that without masks. ``model`` was run on ``probe``, some rows of the batch; ``again`` runs it on others.
    """
    probe_rows = len(probe["x"])
    if "observed" in batch:  # a missing cell has no value to follow through the model
        batch = {**batch, "observed": torch.ones_like(batch["observed"])}
    num_columns = batch["x"][0].numel()
    found: list[Support] = []
    held: dict[str, tuple[int, ...]] = {}
    measure = ["unscored"] * num_columns
    data = tuple(name for name in observed if holds_data(model[name]))
    for name in data:
        site = model[name]
        value, axis = site["value"], row_axis(site, data_dim[name])
        if axis < 0 or value.shape[axis] != probe_rows:
            shape = (probe_rows, *batch["x"].shape[1:])
            raise unfilled(name, site, probe_rows) if value.shape == shape else no_answer(name)
    columns_of = columns_held(again, batch, data, data_dim)
    once = [column for name in data for column in columns_of[name]]
    # pyro.factor, an entry that is no column, or a column that counts twice makes the model no distribution of x.
    counted = [name for name in observed if not adds_nothing(model[name])]
    normalised = len(data) == len(counted) and -1 not in once and len(set(once)) == len(once)
    for name in data:
        site = model[name]
        fn = site["fn"]
        held[name] = tuple(column for column in columns_of[name] if column >= 0)
        try:
            families = list(_by_family(fn, columns_of[name]))
        except NotImplementedError:
            normalised = False
            continue
        for part, columns, family in families:
            for index in columns:
                measure[index] = "mass" if part.is_discrete else "density"
            each = elementwise(part) if supports.is_fixed(part) else None
            if columns and each is not None:
                found.append(Support(sorted(columns), each, family))
    if not normalised:
        measure = ["transformed"] * len(measure)
    return Scored(
        data_dim=data_dim,
        columns=held,
        measure=tuple(measure),
        supports=tuple(found),
        added=tuple(name for name in counted if name not in data),
    )


def _by_family(fn: Any, columns: list[int]) -> Iterator[tuple[Any, list[int], str]]:
    """Yield each support of a site's distribution, the columns of x that have it, and its family's class name.

    ``columns`` holds for every entry of the site the column of x that it equals, −1 if none.
    """
    inner = supports.innermost(fn)
    if not isinstance(inner, ByColumn):
        yield fn.support, [column for column in columns if column >= 0], type(inner).__name__
        return
    for part, entries in zip(inner.fns, inner.columns, strict=True):
        held = [columns[entry] for entry in entries if columns[entry] >= 0]
        yield part.support, held, type(supports.innermost(part)).__name__
