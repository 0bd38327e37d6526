"""Independent Bernoulli columns with a conjugate prior: exact log P(x), with parameters integrated out."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import constraints

from pyrovae import arguments
from pyrovae.baselines.base import Columnwise, Conjugate, register


@register("independent_bernoulli")
class IndependentBernoulli(Columnwise, Conjugate):
    """x_d ~ Bernoulli(θ_d), θ_d ~ Beta(a, b), for independent columns; exact.

    A new row's score is its posterior predictive, with θ integrated out by Beta–Bernoulli conjugacy:
    P(x_d = 1 | training) = (a + ones_d) / (a + b + N_d), where N_d training rows have column d.

    Args:
        a, b: the prior's pseudo-counts of ones and zeros.

    After ``fit``: ``probabilities``, the predictive probabilities of a one, shape (columns,).

    Raises:
        ValueError: x holds values other than 0 and 1.

    Example:
        >>> import torch
        >>> x = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
        >>> IndependentBernoulli().fit(x).probabilities.tolist()
        [0.75, 0.5]
    """

    measure = "mass"
    support = constraints.boolean
    fits_sparse = True
    family = "Bernoulli"

    probabilities: Tensor

    def __init__(self, a: float = 1.0, b: float = 1.0) -> None:
        self.a = arguments.positive("a", a)
        self.b = arguments.positive("b", b)

    def _fit(self, rows: Tensor, observed: Tensor | None = None) -> None:
        self._num_rows: int | Tensor = len(rows) if observed is None else observed.sum(dim=0)
        self._ones = rows.sum(dim=0)
        self.probabilities = (self.a + self._ones) / (self.a + self.b + self._num_rows)

    def _sample(self, num_rows: int) -> Tensor:
        return torch.bernoulli(self.probabilities.expand(num_rows, -1))

    def _log_probs(self, rows: Tensor) -> Tensor:
        # log1p keeps the digits that log(1 − p) loses near p = 1; the prior keeps p inside (0, 1).
        p = self.probabilities
        return rows * p.log() + (1 - rows) * torch.log1p(-p)

    def _log_marginal(self) -> float:
        a, b = self._ones.new_tensor([self.a, self.b])
        ones = self._ones
        return float((_log_beta(a + ones, b + self._num_rows - ones) - _log_beta(a, b)).sum())

    def summary(self) -> str:
        self._require_fit()
        return (
            f"IndependentBernoulli, {len(self.probabilities)} columns, Beta({self.a:g}, {self.b:g}) prior, "
            f"{len(self.seen)} rows, posterior-averaged, exact"
        )


def _log_beta(a: Tensor, b: Tensor) -> Tensor:
    """Return log B(a, b)."""
    return torch.lgamma(a) + torch.lgamma(b) - torch.lgamma(a + b)
