"""A Gaussian with a full covariance and exact log P(x)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from pyrovae import arguments
from pyrovae.baselines import columns
from pyrovae.baselines.base import Gaussian, register
from pyrovae.baselines.observed import Mixture, Patterns, climb, em_step
from pyrovae.refusals import bad_value
from pyrovae.torch_private import LinAlgError


@register("full_gaussian")
class FullGaussian(Gaussian):
    """x ~ N(μ, Σ), fitted by maximum likelihood: mean and covariance of the rows, divided by N; exact.

    If cells are missing, EM fills in their conditional means and covariances. Dempster, Laird and Rubin (1977); Little
    and Rubin (2019), 11.2.

    Args:
        max_iter: the most steps of EM over missing cells. A fit that needs more warns and says so in
            ``summary``.

    After ``fit``: ``loc`` μ, shape (columns,); ``covariance`` Σ, shape (columns, columns);
    ``converged``; ``history`` (see ``Incomplete``).

    Raises:
        ValueError: there are not more rows than columns, or columns are constant or determined by others, so
            that the density goes to +∞.
        ValueError: two columns are never observed in one row.

    Example:
        >>> import torch
        >>> x = torch.randn(100, 3, generator=torch.Generator().manual_seed(0))
        >>> FullGaussian().fit(x).covariance.shape
        torch.Size([3, 3])
    """

    measure = "density"

    loc: Tensor
    covariance: Tensor

    def __init__(self, max_iter: int = 5000) -> None:
        self.max_iter = arguments.integer("max_iter", max_iter)

    def _fit(self, rows: Tensor, observed: Tensor | None = None) -> None:
        from sklearn.covariance import EmpiricalCovariance

        n, width = rows.shape
        if n <= width:
            raise bad_value(
                "x",
                f"more rows than its {width} columns",
                f"{n} rows: the density goes to +∞",
                "Use PPCA or FactorAnalysis, or fit on more rows.",
            )
        standard, self.loc, scale = columns.standardized(rows, observed=observed)
        self.converged, self.history = True, ()
        if observed is None:
            correlation = torch.from_numpy(EmpiricalCovariance().fit(standard.numpy()).covariance_)
        else:
            columns.together(observed)
            loc, correlation = self._climb(Patterns(standard, observed))
            self.loc = self.loc + loc * scale
        if columns.singular(correlation):
            raise bad_value(
                "x",
                "columns that are linearly independent",
                f"a correlation matrix whose least eigenvalue is {float(torch.linalg.eigvalsh(correlation)[0]):.2g}: "
                "the density goes to +∞",
                "Drop columns that repeat others, use PPCA or FactorAnalysis, or fit on more rows.",
            )
        self.covariance = correlation * torch.outer(scale, scale)
        self._factor = torch.linalg.cholesky(self.covariance)
        self._warn_unconverged()

    def _climb(self, patterns: Patterns) -> tuple[Tensor, Tensor]:
        """Return mean and covariance of standardised rows by EM; a covariance of zeros if it becomes singular."""
        width = patterns.rows.shape[1]
        one = torch.ones(1, dtype=torch.float64)
        at: Mixture = one, one.new_zeros(1, width), torch.eye(width, dtype=one.dtype)[None]
        try:
            (_, loc, covariance), history, self.converged = climb(
                lambda at: em_step(patterns, at), at, self.max_iter, 1e-12
            )
        except LinAlgError:
            return at[1][0], torch.zeros_like(at[2][0])
        self.history = tuple(history)
        return loc[0], covariance[0]

    def _components(self) -> Mixture:
        return torch.ones(1).to(self.loc), self.loc[None], self.covariance[None]

    def _distribution(self) -> MultivariateNormal:
        return MultivariateNormal(self.loc, scale_tril=self._factor)

    @property
    def num_parameters(self) -> float:
        width = self._require_fit()
        return width + width * (width + 1) // 2

    def summary(self) -> str:
        width = self._require_fit()
        return f"FullGaussian, {width} columns, {len(self.seen)} rows{self._state}, plug-in, exact"
