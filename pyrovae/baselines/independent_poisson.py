"""Independent Poisson columns with exact log P(x)."""

from __future__ import annotations

from torch import Tensor
from torch.distributions import Poisson, constraints

from pyrovae.baselines import columns
from pyrovae.baselines.base import Columnwise, register


@register("independent_poisson")
class IndependentPoisson(Columnwise):
    """x_d ~ Poisson(λ_d), independent columns of counts, fitted by maximum likelihood; exact.

    A column of zeros has λ = 0. Other rows have to be zero there, too; otherwise ``log_evidence`` raises ``ValueError``.

    After ``fit``: ``rate`` λ, the means of each column's observed cells, shape (columns,).

    Raises:
        ValueError: values are not counts.

    Example:
        >>> import torch
        >>> IndependentPoisson().fit(torch.tensor([[0, 1], [4, 1]])).rate.tolist()
        [2.0, 1.0]
    """

    measure = "mass"
    support = constraints.nonnegative_integer
    fits_sparse = True
    family = "Poisson"

    rate: Tensor

    def _fit(self, rows: Tensor, observed: Tensor | None = None) -> None:
        self.rate = rows.mean(dim=0) if observed is None else columns.moments(rows, observed)[1]

    def _log_probs(self, rows: Tensor) -> Tensor:
        return Poisson(self.rate).log_prob(rows)

    def _sample(self, num_rows: int) -> Tensor:
        return Poisson(self.rate).sample((num_rows,))

    @property
    def num_parameters(self) -> float:
        return self._require_fit()

    def summary(self) -> str:
        width = self._require_fit()
        return f"IndependentPoisson, {width} columns, {len(self.seen)} rows, plug-in, exact"
