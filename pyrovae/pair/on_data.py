"""Checks a pair on the rows of an evaluation, because the few rows of its inspection may differ from the others."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pyro
import torch
from torch import Tensor

from pyrovae import noise
from pyrovae.pair import masks
from pyrovae.pair.contract import check_scale
from pyrovae.pair.row_model import RowModel
from pyrovae.pair.running import Batch, Sites, Structure, by_row, by_rows, flat, of_rows, run, take, values_of
from pyrovae.refusals import Refused, bad_value, first_line, refusal
from pyrovae.rows import restored

# Numbers of the widest layer in a block of rows; most rows of a block.
_NUMBERS, _MOST_ROWS = 1 << 21, 4096
_BLOCKS_COMPARED = 8  # blocks of which rows are scored again without others
# Draws of guide and prior to find out whether a mask depends on z: fewest, most, and for the rows of a block together.
_MASK_DRAWS = 8, 64, 512
# Matrix products of other shapes round differently. Allowed are 1e-8 of a log-probability in float64, 1e-5 of it in
# float32, or 50 times its change by rounding x or z.
_TOLERANCE, _TOLERANCE_FLOAT32, _ROUNDINGS = {torch.float64: 1e-8}, 1e-5, 50


def check_rows(
    model: RowModel, batch: Batch, seed: int, argument: str = "x", every_row: bool = True
) -> RowModel:
    """Run the pair once on every row; raise ``ValueError`` if a row's log P(x) would not be defined.

    This costs one decoder evaluation per row. Some rows of up to eight blocks are scored again alone, at the same z.
    Without ``every_row``, blocks on which the pair fails are skipped, because training handles such rows itself.

    Returns:
        The model. The measure of its structure is "transformed" if a site does not hold the columns that it held in
        inspection. It is "unscored" or "unscored in part" for columns that masks leave out.

    Raises:
        ValueError: the networks overflow on a row; a value is off the support of its site; model and guide mask a
            latent differently.
        ValueError: a row's log-probability changes by more than rounding when it is scored alone.
    """
    pair, structure = model.pair, model.structure
    height = max(2, min(_MOST_ROWS, _NUMBERS // max(1, structure.widest)))
    starts = list(range(0, len(batch["x"]), height))
    compared = {starts[i] for i in torch.linspace(0, len(starts) - 1, _BLOCKS_COMPARED).long().tolist()}
    seeded = noise.seeded(noise.derive(seed, noise.Stream.INSPECT, 1), batch["x"].device)
    transformed, left_out = False, masks.LeftOut(structure)
    with pair.evaluating(), seeded:
        for start in starts:
            block = take(batch, slice(start, start + height))
            try:
                guide, sites = _run_block(model, block, start, argument)
            except _Overflow:
                if every_row:
                    raise
                continue
            masks.check_masks(sites, guide, structure.latents, structure.data_dim, start)
            if any(masks.entries(sites[name]) is not None for name in structure.latents):
                _check_masked_unused(model, block, guide, sites, start)
                if structure.fixed_masks and _masks_follow_z(model, block, sites):
                    structure = replace(structure, fixed_masks=False)
            if not _as_inspected(structure, sites, block):
                transformed = True
            left_out.add(sites, block)
            if start in compared and _may_follow_z(structure, sites, block, left_out):
                for other in _other_draws(model, block):
                    left_out.add(other, block)
            if "observed" in block and not bool(block["observed"].all()):
                _check_missing_unused(model, block, guide, sites, start)
            if start in compared and len(block["x"]) > 1:
                _check_alone(model, block, guide, sites, start)
    measure = ("transformed",) * len(structure.measure) if transformed else left_out.measure()
    return replace(model, structure=replace(structure, measure=measure))


class _Overflow(Refused):
    """An error on a row that model or guide fails on."""


def _run_block(model: RowModel, block: Batch, start: int, argument: str) -> tuple[Sites, Sites]:
    """Run guide and model on a block of rows; if they fail, name the first row that they fail on by itself."""
    pair, structure = model.pair, model.structure
    try:
        with masks.refused_on_distributions("guide"):
            guide = run(pair, "guide", block)
        with masks.refused_on_distributions("model"):
            sites = run(pair, "model", block, values_of(guide, structure.latents))
        _check_sites(structure, guide, sites, start)
        masks.check_observed(sites, structure.observed, structure.data_dim, start, argument)
        return guide, sites
    except (Refused, torch.OutOfMemoryError):
        raise
    except (RuntimeError, ValueError, IndexError) as error:
        count = len(block["x"])
        if count > 1:
            half = count // 2
            for rows, first in ((slice(0, half), start), (slice(half, count), start + half)):
                _run_block(model, take(block, rows), first, argument)
        # Either one row fails by itself, or one of several failed at one draw of z.
        those = f"row {start}" if count == 1 else f"rows {start} to {start + count - 1}"
        reason = first_line(error)
        fix = pair.fix_of_rows(block["x"], torch.arange(start, start + count))
        raise _Overflow(
            refusal(
                argument, "rows that model and guide can take", f"{those}, where they fail: {reason}", fix
            )
        ) from error


def _check_sites(structure: Structure, guide: Sites, model_sites: Sites, start: int) -> None:
    """Raise ``ValueError`` for sites or scales that only some rows have."""
    for part, sites, known in (
        ("guide", guide, structure.latents),
        ("model", model_sites, structure.names("model")),
    ):
        if sites.keys() != set(known):
            odd = sorted(sites.keys() ^ set(known))
            raise bad_value(
                part,
                "the same sample sites for all rows",
                f"{odd[0]!r} for some of them only, in the block from row {start} on",
                "Declare every site for every batch, and mask it for rows that lack it.",
            )
        for name, site in sites.items():
            check_scale(part, name, site)
            masks.check_shape(part, site)


def _may_follow_z(structure: Structure, sites: Sites, block: Batch, left_out: masks.LeftOut) -> bool:
    """Return whether a mask that depends on z could leave out columns that no mask has left out so far.

    Masks that leave out just the missing cells are taken not to depend on z.
    """
    return any(
        masks.of(sites[name])
        and not left_out.holds(held)
        and not masks.only_missing(sites[name], structure.data_dim[name], held, block)
        for name, held in structure.columns.items()
    )


def _other_draws(model: RowModel, block: Batch) -> Iterator[Sites]:
    """Yield the model's sites at other draws of z from the guide and the prior, as far as the model can be run on them."""
    pair, structure = model.pair, model.structure
    for _ in range(_num_draws(block)):
        guide = run(pair, "guide", block)
        for latents in (values_of(guide, structure.latents), None):
            try:
                sites = run(pair, "model", block, latents)
            except (RuntimeError, ValueError, IndexError):  # a model may fail on draws of its own prior
                continue
            yield sites


def _num_draws(block: Batch) -> int:
    """Return how many draws of guide and prior show whether a mask depends on z."""
    least, most, of_all = _MASK_DRAWS
    return min(most, max(least, of_all // len(block["x"])))


def _masks_follow_z(model: RowModel, block: Batch, sites: Sites) -> bool:
    """Return whether a latent's mask differs at other draws of z."""
    pair, structure = model.pair, model.structure
    for _ in range(_num_draws(block)):
        guide = run(pair, "guide", block)
        for other in (
            run(pair, "model", block, values_of(guide, structure.latents)),
            run(pair, "model", block),
        ):
            if not all(
                masks.same(masks.entries(sites[name]), masks.entries(other[name]))
                for name in structure.latents
            ):
                return True
    return False


def _as_inspected(structure: Structure, sites: Sites, block: Batch) -> bool:
    """Return whether every site holds the unchanged columns of x that inspection found in it, and scores no missing cell."""
    columns, observed = flat(block["x"]), block.get("observed")
    for name, held in structure.columns.items():
        values = by_rows(sites[name], structure.data_dim[name])
        expected = columns[:, list(held)]
        if values.shape[1] != len(held):
            continue
        values = values.to(columns.dtype)
        if observed is not None:
            # A model may put any value into a missing cell.
            values = torch.where(flat(observed)[:, list(held)], values, expected)
            scored = {structure.measure[column] for column in held} & {"mass", "density"}
            if scored and not masks.only_missing(
                sites[name], structure.data_dim[name], held, block, others=True
            ):
                return False
        if not torch.equal(values, expected):
            return False
    return True


def _check_missing_unused(model: RowModel, block: Batch, guide: Sites, sites: Sites, start: int) -> None:
    """Put other values into missing cells; raise ``ValueError`` if a site's log-probability changes with them."""
    structure, observed = model.structure, block["observed"]
    seen = restored(block["x"], observed)
    # A value that another row has is on the column's support.
    low, high = (
        getattr(seen.nan_to_num(fill), f"a{name}")(0)
        for name, fill in (("min", torch.inf), ("max", -torch.inf))
    )
    other = torch.where(high != 0, high, low).nan_to_num(1.0, 1.0, 1.0)
    others = [other] if bool((other != 0).all()) else [torch.where(other == 0, 1.0, other), other]
    for fill in others:
        changed = {**block, "x": torch.where(observed, block["x"], fill)}
        try:
            with pyro.validation_enabled(False):
                again = run(model.pair, "model", changed, values_of(guide, structure.latents))
            break
        except (RuntimeError, ValueError, IndexError):
            if fill is other:
                raise  # 1 may be a code that the model does not know; a value of the data is not
    for name in structure.names("model"):
        here, there = (by_row(each, (name,), structure, len(observed)) for each in (sites, again))
        moved = _distance(here, there) > _TOLERANCE_FLOAT32 * (1 + here.abs().nan_to_num(posinf=0.0))
        if bool(moved.any()):
            raise bad_value(
                "model",
                "sites that leave missing cells out, because the model takes observed",
                f"site {name!r}, whose log-probability changes with the value in a missing cell in {int(moved.sum())} rows, "
                f"first row {start + int(moved.int().argmax())}",
                "Mask the distribution below .to_event, .mask(observed).to_event(1), or pass obs_mask=observed; compute "
                "nothing else of missing cells.",
            )


def _check_alone(model: RowModel, block: Batch, guide: Sites, sites: Sites, start: int) -> None:
    """Score some rows of a block alone, and all in two halves, at the same z; raise if log-probabilities change."""
    pair, structure, count = model.pair, model.structure, len(block["x"])
    latents = values_of(guide, structure.latents)
    whole = {
        part: by_row(found, structure.names(part), structure, count)
        for part, found in (("guide", guide), ("model", sites))
    }
    for rows in groups(block["x"]):
        fewer = take(block, rows)
        moved = of_rows(structure, latents, rows)
        for part in ("guide", "model"):
            within = whole[part][rows]
            try:
                alone = model.plain_scores(part, fewer, moved)
            except (RuntimeError, ValueError, IndexError) as error:
                raise _depends(
                    part,
                    f"row {start + int(rows[0])}, {type(error).__name__} when {_those(rows)}: {first_line(error)}",
                ) from error
            apart = _distance(alone, within)
            tolerance = _TOLERANCE.get(pair.coarsest or fewer["x"].dtype, _TOLERANCE_FLOAT32) * (
                1 + within.abs().nan_to_num(posinf=0.0)
            )
            if not bool((apart > tolerance).any()):
                continue
            changes = [
                change
                for turns in (False, True)
                for change in ((_nudged(fewer, turns), moved), (fewer, _nudged(moved, turns)))
            ]
            nudged = [_distance(alone, model.plain_scores(part, *change)) for change in changes]
            rounding = (_ROUNDINGS * torch.stack(nudged).amax(0)).nan_to_num(posinf=0.0)
            moves = apart > torch.maximum(tolerance, rounding)
            if bool(moves.any()):
                row = start + int(rows[int(moves.int().argmax())])
                raise _depends(
                    part, f"row {row}, which changes by {float(apart[moves][0]):.3g} nats when {_those(rows)}"
                )


def _nudged(values: dict[str, Tensor], turns: bool) -> dict[str, Tensor]:
    """Return numbers changed by two roundings, to measure the effect of rounding; whole numbers stay.

    All change up, or up and down in ``turns``. x and z are changed one at a time. Otherwise changes may cancel: z − W x stays
    as small as it is if x and z grow by one factor.
    """
    found = {}
    for name, value in values.items():
        if value.is_floating_point():
            odd = (torch.arange(value.numel(), device=value.device) % 2).view(value.shape)
            by = 2 * torch.finfo(value.dtype).eps * (1 - 2 * odd if turns else 1)
            value = torch.where(value == value.round(), value, value * (1 + by))
        found[name] = value
    return found


def _those(rows: Tensor) -> str:
    return "the row is scored alone" if len(rows) == 1 else f"{len(rows)} rows are scored without the others"


def _depends(part: str, came: str) -> Refused:
    return bad_value(
        part,
        "rows whose log-probability does not depend on the rest of the batch",
        came,
        "Compute nothing over the batch, such as a mean, a maximum or a rank, and switch BatchNorm in train mode to "
        "eval() mode. Keep constants of the data set in buffers.",
    )


def _check_masked_unused(model: RowModel, block: Batch, guide: Sites, sites: Sites, start: int) -> None:
    """Draw absent entries of latents again; raise ``ValueError`` if unmasked terms depend on them."""
    structure = model.structure
    again, other = run(model.pair, "guide", block), {}
    for name in structure.latents:
        held, value = masks.entries(sites[name]), guide[name]["value"]
        other[name] = value if held is None else torch.where(held, value, again[name]["value"])
    for part, first in (("guide", guide), ("model", sites)):
        scores = by_row(first, structure.names(part), structure, len(block["x"]))
        apart = _distance(scores, model.plain_scores(part, block, other))
        moved = apart > _TOLERANCE_FLOAT32 * (1 + scores.abs().nan_to_num(posinf=0.0))
        if bool(moved.any()):
            raise bad_value(
                part,
                "unmasked terms that do not depend on masked latents",
                f"{int(moved.sum())} rows whose log-probability changes with them, first row "
                f"{start + int(moved.int().argmax())}, by {float(apart[moved][0]):.3g} nats",
                "Mask every site that depends on a masked latent, or do not mask that latent.",
            )


def groups(x: Tensor) -> Iterator[Tensor]:
    """Yield rows to score alone: the smallest, the largest and a random one; then all in two random halves."""
    totals = flat(x).double().sum(1)
    some = torch.randperm(len(x), generator=torch.Generator().manual_seed(0)).to(x.device)
    alone = {int(totals.argmin()), int(totals.argmax()), int(some[0])}
    yield from (torch.tensor([row], device=x.device) for row in alone)
    if len(some) > 2:
        yield from some.chunk(2)


def _distance(a: Tensor, b: Tensor) -> Tensor:
    """Return |a − b|; 0 if both are the same infinity or both NaN."""
    return torch.where((a == b) | (a.isnan() & b.isnan()), 0.0, (a - b).abs().nan_to_num(nan=torch.inf))
