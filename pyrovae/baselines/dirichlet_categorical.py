"""Independent categorical columns with a conjugate prior: exact log P(x), with parameters integrated out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.distributions import constraints

from pyrovae import arguments
from pyrovae.baselines import columns
from pyrovae.baselines.base import Columnwise, Conjugate, register


@register("dirichlet_categorical")
class DirichletCategorical(Columnwise, Conjugate):
    """x_d ~ Categorical(θ_d), θ_d ~ Dirichlet(a, …, a), for independent columns of categories 0, 1, …; exact.

    A new row's predictive is P(x_d = k | training) = (a + n_dk)/(a K_d + N_d). N_d training rows have column d,
    and n_dk of them have k. The evidence is Π_d Γ(a K_d)/Γ(a K_d + N_d) · Π_k Γ(a + n_dk)/Γ(a).

    Args:
        concentration: a, the prior's pseudo-count of every category.
        num_categories: K, for all columns or one a column. None means one more than a column's largest training
            value. Rows with a category beyond raise ``ValueError``.

    After ``fit``: ``probabilities``, the predictive probabilities of each column, shape (K_d,).

    Raises:
        ValueError: values are not categories, or are beyond num_categories.

    Example:
        >>> import torch
        >>> x = torch.tensor([[0], [0], [2]])
        >>> DirichletCategorical(1.0).fit(x).probabilities[0].tolist()
        [0.5, 0.16666666666666666, 0.3333333333333333]
    """

    measure = "mass"
    support = constraints.nonnegative_integer
    family = "Categorical"

    probabilities: tuple[Tensor, ...]

    def __init__(self, concentration: float = 1.0, num_categories: int | Sequence[int] | None = None) -> None:
        self.concentration = arguments.positive("concentration", concentration)
        self.num_categories = num_categories

    def _fit(self, rows: Tensor, observed: Tensor | None = None) -> None:
        sizes = columns.categories(rows, self.num_categories)
        columns.known(rows, sizes, self.names.get("x"))
        seen = torch.ones_like(rows, dtype=torch.bool) if observed is None else observed
        self._counts = tuple(
            torch.bincount(column[there], minlength=k).double()
            for column, there, k in zip(rows.long().T, seen.T, sizes, strict=True)
        )
        self.probabilities = tuple(
            (self.concentration + n) / (self.concentration * len(n) + n.sum()) for n in self._counts
        )

    def _log_probs(self, rows: Tensor) -> Tensor:
        columns.known(rows, tuple(len(p) for p in self.probabilities), self.names.get("x"))
        labels = rows.long().T
        return torch.stack([p.log()[c] for p, c in zip(self.probabilities, labels, strict=True)]).T

    def _sample(self, num_rows: int) -> Tensor:
        drawn = [torch.multinomial(p.expand(num_rows, -1), 1) for p in self.probabilities]
        return torch.cat(drawn, dim=1).double()

    def _log_marginal(self) -> float:
        prior = [torch.full_like(n, self.concentration) for n in self._counts]
        return float(sum(_log_beta(a + n) - _log_beta(a) for a, n in zip(prior, self._counts, strict=True)))

    def summary(self) -> str:
        width = self._require_fit()
        return (
            f"DirichletCategorical, {width} columns, Dirichlet({self.concentration:g}) prior, {len(self.seen)} rows, "
            "posterior-averaged, exact"
        )


def _log_beta(a: Tensor) -> Tensor:
    """Return the logarithm of the multivariate Beta function of a, shape (K,)."""
    return torch.lgamma(a).sum() - torch.lgamma(a.sum())
