"""Factor analysis: PPCA with a noise variance for every column and exact log P(x)."""

from __future__ import annotations

import warnings

import numpy as np
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from pyrovae.baselines import columns, factors
from pyrovae.baselines.base import register
from pyrovae.refusals import bad_value

# The least noise variance, relative to a column's variance. A fit that is singular at the first is made at the second, where
# only columns that others determine up to rounding errors are singular.
_LEAST = (1e-8, 1e-11)
# Most random starts, and most of them times columns squared, because wide rows take longer and have fewer maxima that differ.
# With 40, the fits of 180 sets of 12 to 50 rows and 10 columns were compared with the best of 20 other starts. None was
# lower by over 1e-3 nats a row. With scikit-learn's start alone, 2 of 60 such sets of 20 rows were, and 11 of 30 with weak
# factors.
_STARTS, _STARTS_BY_COLUMNS = 40, 16_000
# Most cells of rows with missing cells for a second start: steps over them take longer.
_MOST_CELLS = 100_000


@register("factor_analysis")
class FactorAnalysis(factors.FactorModel):
    """z ~ N(0, I_L), x | z ~ N(W z + μ, diag(ψ)), hence x ~ N(μ, W Wᵀ + diag(ψ)): exact.

    ``fit`` maximises the likelihood by quasi-Newton steps over ψ; the best W for each ψ has a closed form (Jöreskog
    1967). The steps start at scikit-learn's EM, which comes near a maximum, but becomes very slow if a ψ_d tends to 0
    (Heywood 1931). The likelihood may have several maxima, above all with few rows. So the steps also start at random ψ:
    40 times for up to 20 columns, less often for more, and not at all beyond 126. The best result is kept. No number
    of starts proves that it is the highest maximum. If the likelihood stays bounded as a ψ_d tends to 0, the fit is
    accepted. No ψ_d is below 1e-8 of its column's variance, or 1e-11 if others nearly determine a column.

    If cells are missing, quasi-Newton steps over all parameters maximise the likelihood of the observed cells. They
    start at principal components and, for up to 100 000 cells, at the fit to rows whose missing cells hold their
    columns' means. The better result is kept. Ghahramani and Hinton (1994).

    Args:
        latent_dim: L, less than the number of columns, and than the number of rows less one.
        max_iter: the most quasi-Newton steps from a start. A fit whose best start needs more warns and says so in
            ``summary``.

    After ``fit``: ``loc`` μ, shape (columns,); ``loadings`` W, shape (columns, L); ``noise_variance`` ψ,
    shape (columns,); ``converged``, of the start that is kept; ``history`` (see ``Incomplete``).

    Raises:
        ValueError: L is too large; columns are constant or determined by others, which takes the density to +∞.

    Example:
        >>> import torch
        >>> x = torch.randn(100, 5, generator=torch.Generator().manual_seed(0))
        >>> FactorAnalysis(1).fit(x).noise_variance.shape
        torch.Size([5])
    """

    noise_variance: Tensor

    def _fit(self, rows: Tensor, observed: Tensor | None = None) -> None:
        n, width = rows.shape
        if self.latent_dim >= min(n - 1, width):
            raise bad_value(
                "latent_dim",
                f"fewer than the {width} columns, and than the {n} rows of x less one",
                str(self.latent_dim),
                factors.fewer(min(n - 1, width) - 1, width),
            )
        standard, centre, scale = columns.standardized(rows, observed=observed)
        for least in _LEAST:
            if observed is None:
                loadings, noise_variance, self.converged = self._fit_complete(standard, least)
                self.loc, self.history = centre, ()
            else:
                starts = [self._filled(standard)] if rows.numel() <= _MOST_CELLS else []
                (loc, loadings, noise_variance), self.history, self.converged = factors.fit(
                    standard, observed, self.latent_dim, False, least, self.max_iter, starts
                )
                self.loc = centre + loc * scale
            if not columns.singular(loadings @ loadings.T + noise_variance.diag(), least=10 * least):
                break
        else:
            raise bad_value(
                "x",
                f"columns with noise that {self.latent_dim} factors do not explain",
                "columns that others determine: the density goes to +∞",
                "Drop columns that repeat others, use a smaller latent_dim or PPCA, or fit on more rows.",
            )
        self.loadings, self.noise_variance = loadings * scale[:, None], noise_variance * scale**2
        self._warn_unconverged()

    def _fit_complete(self, standard: Tensor, least: float) -> tuple[Tensor, Tensor, bool]:
        """Return W and ψ ≥ ``least`` of standardised rows, and whether the fit converged."""
        from scipy.optimize import OptimizeResult, minimize

        n, width = standard.shape
        correlation = (standard.T @ standard / n).numpy()

        def climb(start: np.ndarray) -> OptimizeResult:
            return minimize(
                _profile,
                np.log(start),
                args=(correlation, self.latent_dim),
                jac=True,
                method="L-BFGS-B",
                bounds=[(np.log(least), 0.0)] * width,
                options={"maxiter": self.max_iter, "maxfun": 10 * self.max_iter, "ftol": 1e-15, "gtol": 1e-8},
            )

        found = factors.best(climb, (self._start(standard, least), *_random_starts(width)))
        noise = np.exp(found.x)
        loadings, _ = _loadings(noise, correlation, self.latent_dim)
        return torch.from_numpy(loadings), torch.from_numpy(noise), found.status != 1  # 1: out of steps

    def _filled(self, standard: Tensor) -> factors.Factors:
        """Return the fit to standardised rows that hold 0 in missing cells, each ψ at least 0.05, off its bound."""
        loadings, noise, _ = self._fit_complete(standard, 0.05)
        return factors.Factors(torch.zeros_like(noise), loadings, noise)

    def _start(self, standard: Tensor, least: float) -> np.ndarray:
        """Return ψ ≥ ``least`` of scikit-learn's fit, shape (columns,)."""
        from sklearn.decomposition import FactorAnalysis as Climb
        from sklearn.exceptions import ConvergenceWarning

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # quasi-Newton steps follow
            climb = Climb(self.latent_dim, svd_method="lapack").fit(standard.numpy())
        return np.clip(climb.noise_variance_, least, 1.0)

    def _distribution(self) -> MultivariateNormal:
        # Uses the full covariance: the low-rank form divides by ψ and loses digits if that is small.
        return MultivariateNormal(self.loc, self.loadings @ self.loadings.T + self.noise_variance.diag())

    def summary(self) -> str:
        self._require_fit()
        return f"FactorAnalysis, {self.latent_dim} latent dimensions, {len(self.seen)} rows{self._state}, plug-in, exact"


def _random_starts(width: int) -> np.ndarray:
    """Return ψ of standardised columns, the same for all rows, shape (starts, columns)."""
    number = min(_STARTS, _STARTS_BY_COLUMNS // width**2)
    return np.random.default_rng(0).uniform(0.05, 1.0, (number, width))


def _loadings(noise: np.ndarray, correlation: np.ndarray, latent_dim: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the best W given ψ, shape (columns, L), and the eigenvalues of ψ^−½ S ψ^−½, largest first."""
    root = np.sqrt(noise)
    values, vectors = np.linalg.eigh(correlation / np.outer(root, root))
    values, vectors = values[::-1], vectors[:, ::-1]
    kept = np.sqrt(np.maximum(values[:latent_dim] - 1, 0))
    return root[:, None] * vectors[:, :latent_dim] * kept, values


def _profile(log_noise: np.ndarray, correlation: np.ndarray, latent_dim: int) -> tuple[float, np.ndarray]:
    """Return −log-likelihood in nats a row, up to a constant, at ψ and its best W, and the slope in log ψ."""
    noise = np.exp(log_noise)
    loadings, values = _loadings(noise, correlation, latent_dim)
    taken = np.maximum(values[:latent_dim], 1)  # the model's variance in each factor's direction
    loss = 0.5 * (log_noise.sum() + np.log(taken).sum() + (values[:latent_dim] / taken).sum())
    loss += 0.5 * values[latent_dim:].sum()
    slope = 0.5 * ((loadings**2).sum(axis=1) + noise - correlation.diagonal()) / noise
    return float(loss), slope
