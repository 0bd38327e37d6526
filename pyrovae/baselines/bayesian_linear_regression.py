"""Linear regression with a conjugate prior: exact log P(y | covariates), with parameters integrated out."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.distributions import StudentT

from pyrovae import arguments
from pyrovae.baselines.base import Conjugate, register
from pyrovae.refusals import bad_value
from pyrovae.turns import takes_turns


@register("bayesian_linear_regression")
class BayesianLinearRegression(Conjugate):
    """y = w·φ + N(0, σ²), w | σ² ~ N(0, σ²/precision · I), σ² ~ InverseGamma(alpha, beta); exact.

    The last column of x, shape (rows, columns), is the response y. The others are the covariates. φ holds the
    covariates and, with ``intercept``, a 1. Let Λ = precision · I + ΦᵀΦ and m = Λ⁻¹Φᵀy. The posterior has
    alpha_N = alpha + N/2 and beta_N = beta + (‖y − Φm‖² + precision ‖m‖²)/2. A new row's predictive is
    Student's t,

        t(2 alpha_N; m·φ, sqrt(beta_N/alpha_N · (1 + φᵀΛ⁻¹φ))).

    The evidence is Γ(alpha_N)/Γ(alpha) · beta^alpha/beta_N^alpha_N · sqrt(precision^P/|Λ|) · (2π)^(−N/2), where P
    is the number of entries of φ. Bishop (2006), 3.3–3.5; Murphy (2012), 7.6.

    The number is log P(y | covariates), not log P of the whole row. The ``measure`` of the covariates is therefore
    "unscored", so that ``compare`` does not rank it with densities of rows.

    Args:
        precision: of the weights and the intercept, in units of 1/σ².
        alpha, beta: of the prior on the noise variance, beta in the response's units squared.
        intercept: whether φ has a 1.

    After ``fit``: ``weights`` m, shape (P,), the intercept last; ``alpha_n`` and ``beta_n`` of the posterior.

    Raises:
        ValueError: x has no covariate beside the response; the prior is not proper.

    Example:
        >>> import torch
        >>> x = torch.tensor([[0.0, 1.0], [1.0, 3.0], [2.0, 5.0]])
        >>> BayesianLinearRegression(precision=1e-9).fit(x).weights.round(decimals=3).tolist()
        [2.0, 1.0]
    """

    measure = "density"

    weights: Tensor
    alpha_n: float
    beta_n: float

    def __init__(
        self, precision: float = 1.0, alpha: float = 1.0, beta: float = 1.0, intercept: bool = True
    ) -> None:
        self.precision = arguments.positive("precision", precision)
        self.alpha = arguments.positive("alpha", alpha)
        self.beta = arguments.positive("beta", beta)
        self.intercept = arguments.boolean("intercept", intercept)

    def _measures(self, columns: int) -> tuple[str, ...]:
        return ("unscored",) * (columns - 1) + (self.measure,)

    def _fit(self, rows: Tensor) -> None:
        if rows.shape[1] < 2:
            raise bad_value(
                "x",
                "covariates, and the response as the last column",
                "a single column",
                "Use NormalInverseGamma for a response without covariates.",
            )
        features, response = self._split(rows)
        n, width = features.shape
        # The prior enters as further rows. QR of all rows has RᵀR = Λ and does not square the condition number.
        prior = math.sqrt(self.precision) * torch.eye(width, dtype=rows.dtype)
        q, self._r = torch.linalg.qr(torch.cat([features, prior]))
        target = torch.cat([response, response.new_zeros(width)])
        projected = q.T @ target
        self.weights = torch.linalg.solve_triangular(self._r, projected[:, None], upper=True)[:, 0]
        self.alpha_n = self.alpha + n / 2
        self.beta_n = self.beta + 0.5 * float(((target - q @ projected) ** 2).sum())
        self._covariates = rows[:, :-1].clone()  # the user may change theirs

    def _split(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return φ, shape (rows, P), and y, shape (rows,)."""
        features = rows[:, :-1]
        if self.intercept:
            features = torch.cat([features, torch.ones_like(rows[:, :1])], dim=1)
        return features, rows[:, -1]

    def _predictive(self, features: Tensor) -> StudentT:
        """Return the predictive of the responses to φ, shape (rows, P); batch shape (rows,)."""
        reach = torch.linalg.solve_triangular(
            self._r.T, features.T, upper=False
        )  # R⁻ᵀφ, whose square is φᵀΛ⁻¹φ
        variance = self.beta_n / self.alpha_n * (1 + (reach**2).sum(dim=0))
        return StudentT(2 * self.alpha_n, features @ self.weights, variance.sqrt())

    def _log_prob(self, rows: Tensor) -> Tensor:
        features, response = self._split(rows)
        return self._predictive(features).log_prob(response)

    @takes_turns
    def sample(self, num_rows: int, seed: int = 0) -> Tensor:
        """Return rows of covariates drawn from the training rows, with independent responses from the predictive.

        Shape (num_rows, columns), float64. The model has no distribution of the covariates.
        """
        return super().sample(num_rows, seed)

    def _sample(self, num_rows: int) -> Tensor:
        covariates = self._covariates[torch.randint(len(self._covariates), (num_rows,))]
        features, _ = self._split(torch.cat([covariates, covariates.new_zeros(num_rows, 1)], dim=1))
        return torch.cat([covariates, self._predictive(features).sample()[:, None]], dim=1)

    def _log_marginal(self) -> float:
        n, width = len(self.seen), len(self.weights)
        log_det = 2 * float(self._r.diagonal().abs().log().sum())
        return (
            math.lgamma(self.alpha_n)
            - math.lgamma(self.alpha)
            + self.alpha * math.log(self.beta)
            - self.alpha_n * math.log(self.beta_n)
            + 0.5 * (width * math.log(self.precision) - log_det)
            - 0.5 * n * math.log(2 * math.pi)
        )

    def summary(self) -> str:
        width = self._require_fit()
        return (
            f"BayesianLinearRegression, the last of {width} columns on the others, precision {self.precision:g}, "
            f"alpha {self.alpha:g}, beta {self.beta:g}, {len(self.seen)} rows, posterior-averaged, exact"
        )
