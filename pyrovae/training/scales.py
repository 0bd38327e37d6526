"""Checks of learned scales: a scale that shrinks to zero takes the density, and log P(x), to +∞."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pyrovae import noise
from pyrovae.likelihoods.mixed import Mixed
from pyrovae.likelihoods.real import LocationScale
from pyrovae.model import VAE, LatentVariableModel
from pyrovae.pair import Batch
from pyrovae.refusals import bad_value, column_of, parameters_hold
from pyrovae.rounding import blocks
from pyrovae.rows import Source, spread_of


def _learns_scale(pair: LatentVariableModel) -> bool:
    return isinstance(pair, VAE) and (
        isinstance(getattr(pair.likelihood, "scale", None), str) or bool(_learned(pair.likelihood))
    )


def _learned(likelihood: Any) -> list[tuple[int, list[int]]]:
    """Return the groups of a ``Mixed`` with a density whose scale is learned: their numbers and columns."""
    if not isinstance(likelihood, Mixed):
        return []
    return [
        (number, columns)
        for number, (part, columns) in enumerate(likelihood.each())
        if isinstance(part, LocationScale) and not part.is_mass and isinstance(part.scale, str)
    ]


def _in_units(likelihood: Any, x: Tensor, observed: Tensor | None) -> Tensor:
    """Return rows in the units of the learned scales: a log-normal's is that of log x; missing cells are 0."""
    groups: list[tuple[Any, Any]] = [(likelihood, slice(None))]
    if isinstance(likelihood, Mixed):
        parts = list(likelihood.each())
        groups = [(parts[number][0], columns) for number, columns in _learned(likelihood)]
    of_log = [columns for part, columns in groups if getattr(part, "standardizes", None) == "log x"]
    if not of_log:
        return x
    x = x.clone()
    for columns in of_log:
        logs = x[:, columns].log()
        x[:, columns] = logs if observed is None else logs.masked_fill(~observed[:, columns], 0.0)
    return x


def check_columns_vary(pair: LatentVariableModel, x: Tensor, labels: Sequence[Any] | None) -> None:
    """Raise ``ValueError`` for constant columns, on which a learned or standardising scale would shrink to zero."""
    likelihood: Any = pair.likelihood if isinstance(pair, VAE) else None
    if isinstance(likelihood, Mixed):
        columns = sorted(column for _, group in _learned(likelihood) for column in group)
        if columns:
            _check_varying(x, True, "leave them out of the table", columns, labels)
        return
    standardizes = getattr(likelihood, "standardize", None) is not None
    if standardizes or _learns_scale(pair):
        spread = getattr(likelihood, "spread_name", None) or "scale"
        instead = f'fit VAE.mlp(…, standardize=False, {spread}="shared")'
        every = standardizes or likelihood.learns_scale_per_column
        _check_varying(x, every, instead, labels=labels)


class Scales:
    """Checks the scales that a likelihood learns: one that shrinks to zero takes the density to +∞."""

    def __init__(
        self, pair: LatentVariableModel, batch: Batch, seed: int, labels: Sequence[Any] | None
    ) -> None:
        #: The smallest scale of every column before training, shape (columns,); None if no scale is learned.
        self.start: Tensor | None = None
        if _learns_scale(pair):
            self._pair: Any = pair
            self._labels = labels
            self._rows, self._seed = {name: value[:128] for name, value in batch.items()}, seed
            observed = batch.get("observed")
            self._spread = spread_of(
                Source(_in_units(self._pair.likelihood, batch["x"], observed), {}, None, observed)
            )
            self.start = self._smallest()

    def check(self) -> None:
        """Raise ``ValueError`` if a scale fell below 1e-5 of its column's standard deviation."""
        if self.start is None:
            return
        scale = self._smallest()
        vanished = (scale < 1e-5 * self._spread) & (scale < self.start)
        if bool(vanished.any()):
            column = int(vanished.int().argmax())
            raise bad_value(
                "x",
                "a density that stays bounded",
                f"a learned scale of {float(scale[column]):.2g} in {column_of(column, self._labels)}, whose spread is "
                f"{float(self._spread[column]):.2g}: log P(x) goes to +∞",
                "Dequantise whole numbers, drop columns that repeat a value or another column, or fix the scale.",
            )

    def _smallest(self) -> Tensor:
        """Return the smallest scale of every column over some rows, shape (columns,)."""
        pair = self._pair
        x, observed = self._rows["x"], self._rows.get("observed")
        seeded = noise.seeded(noise.derive(self._seed, noise.Stream.INSPECT), x.device)
        with pair.evaluating(), seeded, parameters_hold(fix=lambda: pair.fix_of_rows(x)):
            fn = pair.likelihood(pair.encode(x, observed).sample()).base_dist
            if not isinstance(pair.likelihood, Mixed):
                return fn.scale.flatten(1).amin(dim=0)
            scale = torch.full(x.shape[1:], torch.inf, dtype=torch.float64, device=x.device)
            for number, columns in _learned(pair.likelihood):
                scale[columns] = fn.fns[number].scale.double().amin(dim=0)
        return scale


def _check_varying(
    x: Tensor,
    every: bool,
    instead: str,
    columns: list[int] | None = None,
    labels: Sequence[Any] | None = None,
) -> None:
    """Raise ``ValueError`` if one value fills over 99 % of the cells of any column, or of all if not ``every``.

    On such a column, a scale that is learned for each column would shrink towards 0. The density, and with it
    log P(x), would grow to +∞. A scale that all columns share does so only if every column is like that.
    """
    value_of, share = _commonest(x)
    if columns is not None:  # the scales of others are not learned
        share = share.new_zeros(len(share)).index_copy(0, torch.tensor(columns), share[columns])
    stuck = torch.nonzero(share > 0.99).flatten()
    if len(stuck) == len(share) or (every and len(stuck)):
        column = int(stuck[0])
        value = float(value_of[column])
        raise bad_value(
            "x",
            "columns that vary, because this likelihood learns a scale for each",
            f"{len(stuck)} column(s) with one value in over 99 % of the rows, first {column_of(column, labels)} (value {value:g})",
            f"Drop those columns, dequantise whole numbers, or {instead}.",
        )


def _commonest(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return, for every column, the value that fills more than half of its rows, and its share of them.

    NaN is a missing cell. If no value fills more than half, the result is some value and its share. The algorithm is a majority vote block by
    block (Boyer and Moore 1991). A value that fills more than half of a block is the block's median. It gets as many
    votes as it has rows more than all other values together. This runs on the CPU, because a GPU's medians are not
    deterministic.
    """
    candidate = x[0].flatten().cpu()
    lead, count = (torch.zeros_like(candidate, dtype=torch.int64) for _ in range(2))
    for _, block in blocks(x):
        values = block.cpu().reshape(len(block), -1)
        median = values.nanmedian(dim=0).values
        more = (2 * (values == median).sum(dim=0) - (~values.isnan()).sum(dim=0)).clamp(min=0)
        lead = torch.where(median == candidate, lead + more, lead - more)
        candidate = torch.where(lead < 0, median, candidate)
        lead = lead.abs()
    seen = torch.zeros_like(count)
    for _, block in blocks(x):
        values = block.cpu().reshape(len(block), -1)
        count += (values == candidate).sum(dim=0)
        seen += (~values.isnan()).sum(dim=0)
    return candidate, count.double() / seen.clamp(min=1)
