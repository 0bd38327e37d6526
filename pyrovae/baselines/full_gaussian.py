"""A Gaussian with a full covariance and exact log P(x)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from pyrovae.baselines import columns
from pyrovae.baselines.base import Distributed, register
from pyrovae.refusals import bad_value


@register("full_gaussian")
class FullGaussian(Distributed):
    """x ~ N(μ, Σ), fitted by maximum likelihood: mean and covariance of the rows, divided by N; exact.

    After ``fit``: ``loc`` μ, shape (columns,); ``covariance`` Σ, shape (columns, columns).

    Raises:
        ValueError: rows are not more than columns; columns are constant or determined by others. The density
            then goes to +∞.

    Example:
        >>> import torch
        >>> x = torch.randn(100, 3, generator=torch.Generator().manual_seed(0))
        >>> FullGaussian().fit(x).covariance.shape
        torch.Size([3, 3])
    """

    measure = "density"

    loc: Tensor
    covariance: Tensor

    def _fit(self, rows: Tensor) -> None:
        from sklearn.covariance import EmpiricalCovariance

        n, width = rows.shape
        if n <= width:
            raise bad_value(
                "x",
                f"more rows than its {width} columns",
                f"{n} rows: the density goes to +∞",
                "Use PPCA or FactorAnalysis, or fit on more rows.",
            )
        standard, self.loc, scale = columns.standardized(rows)
        correlation = torch.from_numpy(EmpiricalCovariance().fit(standard.numpy()).covariance_)
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

    def _distribution(self) -> MultivariateNormal:
        return MultivariateNormal(self.loc, scale_tril=self._factor)

    @property
    def num_parameters(self) -> float:
        width = self._require_fit()
        return width + width * (width + 1) // 2

    def summary(self) -> str:
        width = self._require_fit()
        return f"FullGaussian, {width} columns, {len(self.seen)} rows, plug-in, exact"
