"""Independent Gaussian columns with exact log P(x)."""

from __future__ import annotations

from torch import Tensor
from torch.distributions import Independent, Normal

from pyrovae.baselines import columns
from pyrovae.baselines.base import Distributed, register


@register("independent_gaussian")
class IndependentGaussian(Distributed):
    """x_d ~ N(μ_d, σ_d²), independent columns, fitted by maximum likelihood; exact.

    After ``fit``: ``loc`` μ and ``scale`` σ (divided by N), each of shape (columns,).

    Raises:
        ValueError: a column is constant, which takes the density to +∞.

    Example:
        >>> import torch
        >>> IndependentGaussian().fit(torch.tensor([[0.0, 1.0], [2.0, 7.0]])).scale.tolist()
        [1.0, 3.0]
    """

    measure = "density"

    loc: Tensor
    scale: Tensor

    def _fit(self, rows: Tensor) -> None:
        _, self.loc, self.scale = columns.standardized(rows)

    def _distribution(self) -> Independent:
        return Independent(Normal(self.loc, self.scale), 1)

    @property
    def num_parameters(self) -> float:
        width = self._require_fit()
        return 2 * width

    def summary(self) -> str:
        width = self._require_fit()
        return f"IndependentGaussian, {width} columns, {len(self.seen)} rows, plug-in, exact"
