"""Independent Poisson columns with exact log P(x)."""

from __future__ import annotations

from torch import Tensor
from torch.distributions import Poisson, constraints

from pyrovae.baselines.base import ClosedForm, register


@register("independent_poisson")
class IndependentPoisson(ClosedForm):
    """x_d ~ Poisson(λ_d), independent columns of counts, fitted by maximum likelihood; exact.

    A column of zeros has λ = 0. Other rows have to be zero there, too; otherwise ``log_evidence`` raises ``ValueError``.

    After ``fit``: ``rate`` λ, the columns' means, shape (columns,).

    Raises:
        ValueError: values are not counts.

    Example:
        >>> import torch
        >>> IndependentPoisson().fit(torch.tensor([[0, 1], [4, 1]])).rate.tolist()
        [2.0, 1.0]
    """

    measure = "mass"
    support = constraints.nonnegative_integer
    family = "Poisson"

    rate: Tensor

    def _fit(self, rows: Tensor) -> None:
        self.rate = rows.mean(dim=0)

    def _log_prob(self, rows: Tensor) -> Tensor:
        return Poisson(self.rate).log_prob(rows).sum(dim=1)

    def _sample(self, num_rows: int) -> Tensor:
        return Poisson(self.rate).sample((num_rows,))

    @property
    def num_parameters(self) -> float:
        width = self._require_fit()
        return width

    def summary(self) -> str:
        width = self._require_fit()
        return f"IndependentPoisson, {width} columns, {len(self.seen)} rows, plug-in, exact"
