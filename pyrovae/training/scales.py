"""Checks of learned scales: a scale that shrinks to zero takes the density, and log P(x), to +∞."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from pyrovae import checks, noise
from pyrovae.model import VAE, LatentVariableModel


def _learns_scale(pair: LatentVariableModel) -> bool:
    return isinstance(pair, VAE) and isinstance(getattr(pair.likelihood, "scale", None), str)


def check_columns_vary(pair: LatentVariableModel, x: Tensor) -> None:
    """Raise ``ValueError`` for constant columns, on which a learned or standardising scale would shrink to zero."""
    likelihood: Any = pair.likelihood if isinstance(pair, VAE) else None
    standardizes = getattr(likelihood, "standardize", None) is not None
    if standardizes or _learns_scale(pair):
        checks.varying_columns("x", x, every=standardizes or likelihood.learns_scale_per_column)


class Scales:
    """Checks the scales that a likelihood learns: one that shrinks to zero takes the density to +∞."""

    def __init__(self, pair: LatentVariableModel, x: Tensor, seed: int) -> None:
        #: The smallest scale of every column before training, shape (columns,); None if no scale is learned.
        self.start: Tensor | None = None
        if _learns_scale(pair):
            self._pair: Any = pair
            self._x, self._seed = x[:128], seed
            self._spread = x.flatten(1).std(dim=0, correction=0)
            self.start = self._smallest()

    def check(self) -> None:
        """Raise ``ValueError`` if a scale fell below 1e-5 of its column's standard deviation."""
        if self.start is None:
            return
        scale = self._smallest()
        vanished = (scale < 1e-5 * self._spread) & (scale < self.start)
        if bool(vanished.any()):
            column = int(vanished.int().argmax())
            raise checks.bad_value(
                "x",
                "a density that stays bounded",
                f"a learned scale of {float(scale[column]):.2g} in column {column}, whose spread is "
                f"{float(self._spread[column]):.2g}: log P(x) goes to +∞",
                "Dequantise whole numbers, drop columns that repeat a value or another column, or fix the scale.",
            )

    def _smallest(self) -> Tensor:
        """Return the smallest scale of every column over some rows, shape (columns,)."""
        pair = self._pair
        seeded = noise.seeded(noise.derive(self._seed, noise.Stream.INSPECT), self._x.device)
        with pair.evaluating(), seeded, checks.parameters_hold(fix=lambda: pair.fix_of_rows(self._x)):
            scale = pair.likelihood(pair.encoder(self._x).sample()).base_dist.scale
        return scale.flatten(1).amin(dim=0)
