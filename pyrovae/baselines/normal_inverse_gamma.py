"""Independent Gaussian columns with a conjugate prior: exact log P(x), with parameters integrated out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributions import StudentT

from pyrovae import arguments
from pyrovae.baselines import columns
from pyrovae.baselines.base import Columnwise, Conjugate, register
from pyrovae.refusals import bad_value


@register("normal_inverse_gamma")
class NormalInverseGamma(Columnwise, Conjugate):
    """x_d ~ N(μ_d, σ_d²), μ_d | σ_d² ~ N(loc, σ_d²/kappa), σ_d² ~ InverseGamma(alpha, beta), by column; exact.

    Let N rows in a column have mean x̄ and S = Σ (x − x̄)². The posterior has kappa_N = kappa + N,
    loc_N = (kappa·loc + N x̄)/kappa_N and alpha_N = alpha + N/2. Also
    beta_N = beta + S/2 + kappa N (x̄ − loc)²/(2 kappa_N). A new row's predictive is Student's t,

        t(2 alpha_N; loc_N, sqrt(beta_N (kappa_N + 1)/(alpha_N kappa_N))).

    The evidence is Γ(alpha_N)/Γ(alpha) · beta^alpha/beta_N^alpha_N · sqrt(kappa/kappa_N) · (2π)^(−N/2).
    Bernardo and Smith (1994); Murphy (2007).

    The evidence depends on the prior for any number of rows; the predictive depends on it less as rows are added.
    The defaults suit columns with scales near 1.

    Args:
        loc: the prior's mean, in x's units: a number, or one a column.
        kappa: how many rows the prior's mean is worth.
        alpha: half the number of rows that the prior's variance is worth.
        beta: alpha times the variance that the prior expects (1/E[1/σ²]), in x's units squared: a number, or one
            a column.

    After ``fit``: the posterior's ``loc_n`` and ``beta_n``, shape (columns,), and its ``kappa_n`` and ``alpha_n``,
    numbers. If cells were missing, these have shape (columns,), too, because N is each column's number of observed
    cells.

    Raises:
        ValueError: the prior is not proper; the number of locs or betas is not that of columns.

    Example:
        >>> import torch
        >>> fitted = NormalInverseGamma().fit(torch.tensor([[0.0], [3.0]]))
        >>> fitted.loc_n.tolist(), fitted.alpha_n
        ([1.0], 2.0)
    """

    measure = "density"

    loc_n: Tensor
    kappa_n: float | Tensor
    alpha_n: float | Tensor
    _num_rows: int | Tensor | None = (
        None  # N, one a column if cells were missing; None in files of the first version
    )
    beta_n: Tensor

    def __init__(
        self,
        loc: float | Sequence[float] = 0.0,
        kappa: float = 1.0,
        alpha: float = 1.0,
        beta: float | Sequence[float] = 1.0,
    ) -> None:
        arguments.per_column("loc", loc, arguments.number)
        self.loc = loc
        self.kappa = arguments.positive("kappa", kappa)
        self.alpha = arguments.positive("alpha", alpha)
        arguments.per_column("beta", beta, arguments.positive)
        self.beta = beta

    def _fit(self, rows: Tensor, observed: Tensor | None = None) -> None:
        n: Any
        n, width = rows.shape
        loc, self._beta = (_per_column(name, getattr(self, name), width) for name in ("loc", "beta"))
        if observed is None:
            mean, squares = rows.mean(dim=0), None
        else:
            n, mean, squares = columns.moments(rows, observed)
        self._num_rows = n
        self.kappa_n, self.alpha_n = self.kappa + n, self.alpha + n / 2
        self.loc_n = (self.kappa * loc + n * mean) / self.kappa_n
        squares = ((rows - mean) ** 2).sum(dim=0) if squares is None else squares
        spread = squares + self.kappa * n / self.kappa_n * (mean - loc) ** 2
        self.beta_n = self._beta + spread / 2

    def _distribution(self) -> StudentT:
        variance = self.beta_n * (self.kappa_n + 1) / (self.alpha_n * self.kappa_n)
        return StudentT(2 * self.alpha_n, self.loc_n, variance.sqrt())

    def _log_probs(self, rows: Tensor) -> Tensor:
        return self._distribution().log_prob(rows)

    def _sample(self, num_rows: int) -> Tensor:
        return self._distribution().sample((num_rows,))

    def _log_marginal(self) -> float:
        num_rows = len(self.seen) if self._num_rows is None else self._num_rows
        counts, alphas, kappas = (
            torch.as_tensor(value, dtype=torch.float64).reshape(-1).tolist()
            for value in (num_rows, self.alpha_n, self.kappa_n)
        )
        constants = []
        for n, alpha, kappa in zip(counts, alphas, kappas, strict=True):
            constant = math.lgamma(alpha) - math.lgamma(self.alpha)
            constants.append(
                constant + (0.5 * math.log(self.kappa / kappa) - 0.5 * n * math.log(2 * math.pi))
            )
        fixed = self.beta_n.new_tensor(constants)
        return float((fixed + self.alpha * self._beta.log() - self.alpha_n * self.beta_n.log()).sum())

    def summary(self) -> str:
        width = self._require_fit()
        return (
            f"NormalInverseGamma, {width} columns, prior loc {self.loc}, kappa {self.kappa:g}, alpha {self.alpha:g}, "
            f"beta {self.beta}, {len(self.seen)} rows, posterior-averaged, exact"
        )


def _per_column(argument: str, value: float | Sequence[float], width: int) -> Tensor:
    """Return a number, or one a column, as shape (columns,), float64."""
    values = torch.as_tensor(value, dtype=torch.float64)
    if values.dim() and values.shape != (width,):
        raise bad_value(
            argument,
            f"a number, or one for each of the {width} columns",
            f"{len(values)} of them",
            "Pass as many as columns, or a single number.",
        )
    return values.expand(width)
