"""Probabilistic PCA: the linear-Gaussian model with exact log P(x)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import LowRankMultivariateNormal

from pyrovae.baselines import columns, factors
from pyrovae.baselines.base import register
from pyrovae.refusals import bad_value

_LEAST = 1e-10  # the least noise variance, relative to the largest variance


@register("ppca")
class PPCA(factors.FactorModel):
    """z ~ N(0, I_L), x | z ~ N(W z + μ, σ² I), hence x ~ N(μ, W Wᵀ + σ² I): exact.

    Fitted by maximum likelihood, in closed form. W = U (Λ − σ² I)^½ comes from the L largest eigenvalues of
    the covariance (divided by N). The mean of the others is σ². PCA in scikit-learn divides by N − 1, which
    does not maximise the likelihood; ``fit`` corrects that. A VAE with linear networks has the same optimum.
    Tipping and Bishop (1999); Lucas, Tucker, Grosse and Norouzi (2019).

    If cells are missing, quasi-Newton steps maximise the likelihood of the observed cells. This likelihood
    may have several maxima; the start is the closed form on rows filled with column means. Ilin and Raiko (2010).

    Args:
        latent_dim: L, less than the number of columns and the number of rows.
        max_iter: the most quasi-Newton steps over missing cells. A fit that needs more warns and says so in
            ``summary``.

    After ``fit``: ``loc`` μ, shape (columns,); ``loadings`` W, shape (columns, L); ``noise_variance`` σ²;
    ``converged``; ``history`` (see ``Incomplete``).

    Raises:
        ValueError: L is too large for the rows; rows lie in an L-dimensional plane, which takes the density
            to +∞.

    Example:
        >>> import torch
        >>> x = torch.randn(100, 5, generator=torch.Generator().manual_seed(0))
        >>> PPCA(2).fit(x).log_evidence(x).kind[0].item()
        'exact'
    """

    noise_variance: float

    def _fit(self, rows: Tensor, observed: Tensor | None = None) -> None:
        from sklearn.decomposition import PCA

        n, columns = rows.shape
        if self.latent_dim >= min(n, columns):
            raise bad_value(
                "latent_dim",
                f"fewer than the {columns} columns and the {n} rows of x",
                str(self.latent_dim),
                factors.fewer(min(n - 1, columns) - 1, columns),
            )
        self.converged, self.history = True, ()
        if observed is not None:
            self._fit_observed(rows, observed)
            self._warn_unconverged()
            return
        pca = PCA(self.latent_dim, svd_solver="full").fit(rows.numpy())
        shrink = (n - 1) / n
        variance = torch.from_numpy(pca.explained_variance_) * shrink  # (L,)
        # scikit-learn averages over the eigenvalues it has; with fewer rows than columns, the others are zero.
        discarded = (min(n, columns) - self.latent_dim) / (columns - self.latent_dim)
        noise_variance = float(pca.noise_variance_) * shrink * discarded
        self._check_noise(noise_variance, float(variance.max()))
        self.loc = rows.mean(dim=0)
        self.loadings = (
            torch.from_numpy(pca.components_.T * 1.0) * (variance - noise_variance).clamp(min=0).sqrt()
        )
        self.noise_variance = noise_variance

    def _fit_observed(self, rows: Tensor, observed: Tensor) -> None:
        """Fit to rows with missing cells, in one unit for all columns."""
        standard, loc, scale = columns.standardized(rows, shared=True, observed=observed)
        fitted, self.history, self.converged = factors.fit(
            standard, observed, self.latent_dim, True, _LEAST, self.max_iter
        )
        noise_variance = float(fitted.noise[0])
        largest = float(torch.linalg.matrix_norm(fitted.loadings, 2)) ** 2 + noise_variance
        self._check_noise(noise_variance / 10, largest)  # / 10, because the fit stops at the least
        self.loc, self.loadings = fitted.loc * scale + loc, fitted.loadings * scale[:, None]
        self.noise_variance = noise_variance * float(scale[0]) ** 2

    def _check_noise(self, noise_variance: float, largest: float) -> None:
        """Raise ``ValueError`` for rows in a plane, from σ² and the largest variance."""
        if noise_variance < _LEAST * largest:
            raise bad_value(
                "x",
                f"rows that fill more than {self.latent_dim} dimensions",
                f"a residual variance of {noise_variance:.2g} and a largest variance of {largest:.2g}",
                "Bring the columns to like units, use a smaller latent_dim, drop columns that repeat others, or dequantise "
                "whole numbers.",
            )

    def _distribution(self) -> LowRankMultivariateNormal:
        diagonal = torch.full_like(self.loc, self.noise_variance)
        return LowRankMultivariateNormal(self.loc, self.loadings, diagonal)

    def summary(self) -> str:
        self._require_fit()
        return f"PPCA, {self.latent_dim} latent dimensions, noise variance {self.noise_variance:.4g}{self._state}, plug-in, exact"
