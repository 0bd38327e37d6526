"""Independent Gaussian columns with exact log P(x)."""

from __future__ import annotations

from torch import Tensor
from torch.distributions import Normal

from pyrovae.baselines import columns
from pyrovae.baselines.base import Columnwise, register


@register("independent_gaussian")
class IndependentGaussian(Columnwise):
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

    def _fit(self, rows: Tensor, observed: Tensor | None = None) -> None:
        _, self.loc, self.scale = columns.standardized(rows, observed=observed)

    def _log_probs(self, rows: Tensor) -> Tensor:
        return Normal(self.loc, self.scale).log_prob(rows)

    def _sample(self, num_rows: int) -> Tensor:
        return Normal(self.loc, self.scale).sample((num_rows,))

    @property
    def num_parameters(self) -> float:
        return 2 * self._require_fit()

    def summary(self) -> str:
        width = self._require_fit()
        return f"IndependentGaussian, {width} columns, {len(self.seen)} rows, plug-in, exact"
