"""What a pair is made of: its sites, the plate over rows, what its columns measure; checked on a handful of rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyrovae import checks, noise
from pyrovae.distributions import InDouble
from pyrovae.likelihoods import Likelihood, off_support
from pyrovae.model import VAE, LatentVariableModel
from pyrovae.pair.context import judge
from pyrovae.pair.contract import (
    check_log_prob_dims,
    check_modules,
    check_rows_stand_alone,
    check_scale,
    check_shape,
    check_sites,
    check_varies,
    check_vectorised,
    holds_data,
    no_answer,
)
from pyrovae.pair.running import Batch, Site, Sites, Structure, Support, sample_sites

_PROBE_ROWS = 4


def inspect(pair: LatentVariableModel, batch: Batch, seed: int = 0) -> Structure:
    """Find out what the pair is made of, and refuse it where a row's log P(x) would not mean what it says.

    Runs the pair on up to four of the rows, in ``eval()`` mode and without gradients; the first call
    fills the parameter store of a pair written in plain functions, from ``seed``.

    Raises:
        ValueError: naming what was found, for every sentence of the contract: no plate over the rows or
            several, a site outside it, a latent missing from the guide or known to it alone, a guide
            that is a point, observations that do not answer to x, subsampling or scaled sites, randomness
            outside sample sites, rows that feel their neighbours, values off the likelihood's support.
    """
    num_rows = min(len(batch["x"]), _PROBE_ROWS)
    chosen = _distinct_rows(batch["x"], num_rows)
    # The same rows backwards, without the first: other neighbours, other places, another batch size.
    order = list(range(len(chosen) - 1, 0, -1))
    probe = {name: value[chosen] for name, value in batch.items()}
    fewer = {name: value[order] for name, value in probe.items()}
    seeded = noise.seeded(noise.derive(seed, noise.Stream.INSPECT), batch["x"].device)
    if isinstance(pair, VAE) and isinstance(pair.likelihood, Likelihood):
        pair.likelihood.check_rows(batch["x"])
    with pair.nothing_declared_on_error(), pair.evaluating(), seeded:
        sites = _first_runs(pair, probe)
        latents, observed = check_sites(sites["model"], sites["guide"])
        again = _first_runs(pair, fewer)
        check_modules(pair, probe, {name: sites["guide"][name]["value"] for name in latents})
        data_dim, plates = _data_dims(pair, sites, again, len(chosen))
        columns, measure, supports = _measure(sites["model"], observed, data_dim, probe["x"])
        if len(set(chosen)) > 1 and not {"mass", "density"} & set(measure):
            check_varies(sites["model"], observed, data_dim)
        structure = Structure(
            latents=latents,
            observed=observed,
            data_dim=data_dim,
            nesting=max(-frame.dim for part in sites.values() for _, frame in _plates(part)),
            plates=plates,
            widest=_widest(pair, sites["model"], probe["x"]),
            batch_dims={name: len(sites["model"][name]["fn"].batch_shape) for name in latents},
            event_dims={name: sites["model"][name]["fn"].event_dim for name in latents},
            columns=columns,
            measure=measure,
            supports=supports,
            vectorised={"model": True, "guide": True},
        )
        check_supports(structure, batch["x"])
        computed, own_totals = judge(batch, probe, sites["model"], columns, measure)
        structure = replace(structure, own_totals=own_totals)
        if computed:
            structure = replace(structure, measure=("pseudo-likelihood",) * len(measure))
        check_log_prob_dims(sites, structure)
        check_rows_stand_alone(pair, structure, sites, probe, fewer, order)
        return replace(structure, vectorised=check_vectorised(pair, structure, probe))


def check_supports(structure: Structure, x: Tensor, argument: str = "x") -> None:
    """Refuse rows with values off the likelihood's support, naming the first and what would fit."""
    rows = _columns(x)
    for support in structure.supports:
        checks.on_support(argument, rows, *support, off_support(support.family))


def _distinct_rows(x: Tensor, num_rows: int) -> list[int]:
    """Indices of up to ``num_rows`` rows that differ, so that an exchange of two of them shows; at least two."""
    chosen: list[int] = []
    # Candidates from all over x: the first rows of sorted data may be all the same.
    for index in torch.linspace(0, len(x) - 1, 256).long().unique().tolist():
        if all(not torch.equal(x[index], x[other]) for other in chosen):
            chosen.append(index)
        if len(chosen) == num_rows:
            return chosen if len(chosen) > 1 else chosen * 2
    return (chosen * num_rows)[: max(2, num_rows)] if len(chosen) == 1 else chosen


def _first_runs(pair: LatentVariableModel, batch: Batch) -> dict[str, Sites]:
    """Run the guide, and the model on what it drew, as training does."""
    guide = _first_run(pair, "guide", batch)
    return {"guide": guide, "model": _first_run(pair, "model", batch, guide)}


def _first_run(pair: LatentVariableModel, part: str, batch: Batch, drawn: Sites | None = None) -> Sites:
    """Run a part as it stands, and say so clearly if it can't be called on these rows."""
    function, before = getattr(pair, part), {name: value._version for name, value in batch.items()}
    if drawn is not None:
        trace = poutine.Trace()
        for name, site in drawn.items():
            if not site["is_observed"]:
                trace.add_node(name, **site)
        function = poutine.replay(function, trace=trace)
    with pair.own_parameters():
        try:
            with _RefuseSubsampling(part):
                sites = sample_sites(poutine.trace(function), batch)
        except (RuntimeError, ValueError, TypeError, IndexError, NotImplementedError) as error:
            # Pyro raises the error again with a page of shapes; the first one says it.
            reason = error.__cause__ or error
            if isinstance(reason, checks.Refused):
                raise reason from None
            if isinstance(reason, TypeError) and "unexpected keyword argument" in str(reason):
                given = [name for name in batch if name != "x"]
                raise checks.bad_value(
                    "x",
                    f"names beside 'x' that the {part} takes as keywords",
                    f"{', '.join(map(repr, given))}: {reason}",
                    f"Write {part}(x, {', '.join(f'{name}=None' for name in given)}), or leave them out: model "
                    "and guide are called alike.",
                ) from reason
            if isinstance(reason, TypeError) and "positional argument" in str(reason):
                raise checks.bad_value(
                    part,
                    f"a callable of the rows alone, {part}(x)",
                    str(reason),
                    "Pass what belongs to the rows beside them, by its name: {'x': rows, 'offset': …}; put what else it "
                    "needs into a module's buffers.",
                ) from reason
            if isinstance(reason, ValueError) and "satisfy the constraint" in str(reason):
                raise checks.bad_value(
                    "x",
                    f"rows of a size that the {part}'s networks can take",
                    str(reason).splitlines()[0].removesuffix(", but found invalid values:"),
                    "Bring the columns to numbers of size one, or let the model do it: standardize=True.",
                ) from reason
            one_dim = "x has one dim, so every number is a row: for one row of many columns pass x[None]. "
            raise checks.bad_value(
                "x",
                f"rows that the {part} can be called on, any number of them",
                f"{type(reason).__name__} from it on {len(batch['x'])} rows of shape "
                f"{tuple(batch['x'].shape[1:])}: {reason}",
                (one_dim if batch["x"].dim() == 1 else "")
                + f"Pass rows of the shape the {part} is written for, and use len(x) where it needs their number.",
            ) from reason
    for name, value in batch.items():
        if value._version != before[name]:  # the user's own numbers, or a file's that can't be written to
            raise checks.bad_value(
                part,
                "a callable that leaves its rows as they are",
                f"{name} changed in place",
                f"Work on a copy: {name} = {name}.clone().",
            )
    for name, site in sites.items():
        check_scale(part, name, site)
        if part == "model" and site["is_observed"]:
            check_shape(name, site, len(batch["x"]))
    return sites


class _RefuseSubsampling(poutine.messenger.Messenger):
    """Refuses a plate that draws some of its rows by itself, before its sites fail on the wrong number."""

    def __init__(self, part: str) -> None:
        super().__init__()
        self.part = part

    def _pyro_post_sample(self, msg: Any) -> None:
        if site_is_subsample(msg) and len(msg["value"]) != msg["fn"].size:
            raise checks.bad_value(
                self.part,
                "plates that hold the rows they are given",
                f"plate {msg['name']!r}, which subsamples {len(msg['value'])} of {msg['fn'].size}",
                f'Declare pyro.plate("{msg["name"]}", len(x)); fit draws minibatches and scales them by N/B.',
            )


def _data_dims(
    pair: LatentVariableModel, sites: dict[str, Sites], again: dict[str, Sites], num_rows: int
) -> tuple[dict[str, int], frozenset[str]]:
    """For each site, the dim of the plate over rows: the one whose size follows their number; the plates' names."""
    found: dict[str, int] = {}
    names: set[str] = set()
    named = {frame.name for part in sites.values() for _, frame in _plates(part)}
    if pair.plate is not None and pair.plate not in named:
        raise checks.bad_value(
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
                raise checks.bad_value(
                    part,
                    f"site {name!r} inside a plate of size len(x)",
                    f"it inside {[f'{plate} ({frame.size})' for plate, frame in frames.items()] or 'no plate'} "
                    f"for {num_rows} rows",
                    'Put it under "with pyro.plate("data", len(x)):"; what is joint over rows or shared by '
                    "them has no log P(x) of a row, and a shared quantity belongs into a parameter.",
                )
            if len(fitting) > 1:
                raise checks.bad_value(
                    "plate",
                    f"one plate of size len(x) around site {name!r} of the {part}",
                    f"{len(fitting)}: {sorted(fitting)}",
                    f"Say which one holds the rows: LatentVariableModel(model, guide, plate={sorted(fitting)[0]!r}).",
                )
            ((plate, dim),) = fitting.items()
            if part == "model":
                names.add(plate)
            if found.setdefault(name, dim) != dim:
                raise checks.bad_value(
                    part,
                    f"the plate over rows at dim {found[name]} of site {name!r}, as in the guide",
                    f"dim {dim}",
                    "Give the plate the same dim in model and guide.",
                )
    return found, frozenset(names)


def _widest(pair: LatentVariableModel, model: Sites, probe: Tensor) -> int:
    """Numbers in the widest tensor of one row: what a tile's height has to allow for."""
    sites = [site["value"].numel() // len(probe) for site in model.values()]
    layers = [getattr(module, "out_features", 0) for module in pair.every_module()]
    return max([probe[0].numel(), *sites, *(width for width in layers if isinstance(width, int))])


def _plates(sites: Sites) -> Iterator[tuple[str, Any]]:
    """(site name, frame) for every vectorised plate around every site."""
    for name, site in sites.items():
        for frame in site["cond_indep_stack"]:
            if frame.vectorized:
                yield name, frame


def _measure(
    model: Sites, observed: tuple[str, ...], data_dim: dict[str, int], probe: Tensor
) -> tuple[dict[str, tuple[int, ...]], tuple[str, ...], tuple[Support, ...]]:
    """Which columns of x each observed site holds, what each contributes and where it must lie, by the supports."""
    columns = _columns(probe)
    supports = []
    held: dict[str, tuple[int, ...]] = {}
    free: dict[bytes, list[int]] = {}
    for index, column in enumerate(columns.T.contiguous().cpu().numpy()):
        free.setdefault(column.tobytes(), []).append(index)
    measure = ["unscored"] * columns.shape[1]
    normalised = True
    for name in observed:
        site = model[name]
        if not holds_data(site):  # pyro.factor: the rest is no distribution any more
            normalised = False
            continue
        fn, value = site["fn"], site["value"]
        axis = value.dim() - fn.event_dim + data_dim[name]
        if axis < 0 or value.shape[axis] != len(probe):
            raise no_answer(name)
        values = value.movedim(axis, 0).reshape(len(probe), -1)
        matched = []
        for column in values.T.to(columns.dtype).contiguous().cpu().numpy():
            indices = free.get(column.tobytes())
            if indices:
                matched.append(indices.pop(0))
            else:
                normalised = False
        held[name] = tuple(matched)
        try:
            support = fn.support
        except NotImplementedError:
            normalised = False
            continue
        for index in matched if not _masked(site) else []:
            measure[index] = "mass" if support.is_discrete else "density"
        each = checks.elementwise(support)
        if matched and each is not None:
            supports.append(Support(sorted(matched), each, _family(fn)))
    if not normalised:
        measure = ["transformed"] * len(measure)
    return held, tuple(measure), tuple(supports)


def _masked(site: Site) -> bool:
    """Whether a mask may leave out some of a site's log-probability: on other rows, if not on these."""
    fn, masks = site["fn"], [site["mask"]]
    while hasattr(fn, "base_dist"):
        masks.append(getattr(fn, "_mask", None))
        fn = fn.base_dist
    return any(mask is not None and mask is not True for mask in masks)


def _columns(x: Tensor) -> Tensor:
    """Rows flattened: (rows, columns)."""
    return x.flatten(1) if x.dim() > 1 else x[:, None]


def _family(fn: dist.TorchDistribution) -> str:
    """The family's name, without what Pyro and this package wrap around it."""
    while isinstance(fn, _WRAPPERS):
        fn = fn.base_dist
    return type(fn).__name__


_WRAPPERS = (dist.Independent, dist.MaskedDistribution, dist.ExpandedDistribution, InDouble)
