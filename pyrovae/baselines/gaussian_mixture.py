"""A mixture of Gaussians with exact log P(x)."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

from pyrovae import arguments, noise
from pyrovae.baselines import columns
from pyrovae.baselines.base import Distributed, register, warn_unconverged
from pyrovae.refusals import bad_value

COVARIANCES = ("full", "tied", "diag", "spherical")


@register("gaussian_mixture")
class GaussianMixture(Distributed):
    """x ~ Σ_k π_k N(μ_k, Σ_k): exact.

    Fitted by scikit-learn's EM from several starts, each from k-means; ``fit`` keeps the best. Unlike
    scikit-learn's default, nothing (1e-6) is added to the covariances, so the fit is a local maximum of the
    likelihood. The likelihood is unbounded, because a component on a single row takes it to +∞. Starts
    that end there are left out. If all do, ``fit`` raises ``ValueError``.

    Args:
        num_components: how many Gaussians.
        covariance: "full"; "tied", one for all; "diag"; or "spherical", one variance for each component.
        num_starts: how many runs of k-means to start from.
        max_iter: of EM from each start. A fit that needs more warns and says so in ``summary``.
        seed: of the starts.

    After ``fit``: ``weights`` π, shape (components,); ``loc`` μ, shape (components, columns); ``covariances`` Σ,
    shape (components, columns, columns), for every kind; ``converged``.

    Raises:
        ValueError: columns are constant; there are fewer rows than components; every start's density goes to +∞.

    Example:
        >>> import torch
        >>> x = torch.randn(100, 2, generator=torch.Generator().manual_seed(0))
        >>> GaussianMixture(2).fit(x).covariances.shape
        torch.Size([2, 2, 2])
    """

    measure = "density"

    weights: Tensor
    loc: Tensor
    covariances: Tensor
    converged: bool

    def __init__(
        self,
        num_components: int,
        covariance: str = "full",
        num_starts: int = 5,
        max_iter: int = 2000,
        seed: int = 0,
    ) -> None:
        self.num_components = arguments.integer("num_components", num_components)
        self.covariance = arguments.choice("covariance", covariance, COVARIANCES)
        self.num_starts = arguments.integer("num_starts", num_starts)
        self.max_iter = arguments.integer("max_iter", max_iter)
        self.seed = arguments.integer("seed", seed, minimum=0)

    def _fit(self, rows: Tensor) -> None:
        if len(rows) < self.num_components:
            raise bad_value(
                "x",
                f"at least as many rows as the {self.num_components} components",
                f"{len(rows)} rows",
                "Use fewer components.",
            )
        # EM is equivariant to units. Spherical covariances need one unit for all columns.
        standard, loc, scale = columns.standardized(rows, shared=self.covariance == "spherical")
        climbs = [climb for start in range(self.num_starts) if (climb := self._climb(standard, start))]
        if not climbs:
            raise bad_value(
                "x",
                f"rows on which {self.num_components} components each have variance in every direction",
                f"a component without variance from every one of {self.num_starts} starts: the density goes to +∞",
                'Use fewer components, covariance="tied" or "diag", or dequantise whole numbers.',
            )
        best = max(climbs, key=lambda climb: float(climb.lower_bound_))
        self.weights = torch.from_numpy(best.weights_)
        self.loc = torch.from_numpy(best.means_) * scale + loc
        self.covariances = self._as_full(best) * torch.outer(scale, scale)
        self._factors = torch.linalg.cholesky(self.covariances)
        self.converged = bool(best.converged_)
        if not self.converged:
            warn_unconverged(self, self.max_iter)

    def _climb(self, standard: Tensor, start: int) -> Any:
        """Return scikit-learn's fit from one start, or None if a component lost its variance."""
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.mixture import GaussianMixture as Climb

        climb = Climb(
            self.num_components,
            covariance_type=self.covariance,
            reg_covar=0.0,
            tol=1e-9,  # nats a row
            max_iter=self.max_iter,
            random_state=noise.derive(self.seed, noise.Stream.WEIGHTS, start) % 2**32,
        )
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", ConvergenceWarning
            )  # _fit warns itself, or there are fewer distinct rows than means
            warnings.simplefilter("ignore", RuntimeWarning)  # from logarithms and ratios of a zero variance
            try:
                climb.fit(standard.numpy())
            except ValueError:  # the covariances are no longer positive definite
                return None
        covariances = self._as_full(climb)
        lost = not bool(torch.isfinite(covariances).all()) or columns.singular(covariances)
        return None if lost else climb

    def _as_full(self, climb: Any) -> Tensor:
        """Return the covariances as (components, columns, columns)."""
        width = climb.means_.shape[1]
        covariances = torch.from_numpy(climb.covariances_)
        if self.covariance == "tied":
            return covariances.expand(self.num_components, width, width)
        if self.covariance == "diag":
            return torch.diag_embed(covariances)
        if self.covariance == "spherical":
            return torch.diag_embed(covariances[:, None].expand(-1, width))
        return covariances

    def _distribution(self) -> MixtureSameFamily:
        return MixtureSameFamily(
            Categorical(probs=self.weights), MultivariateNormal(self.loc, scale_tril=self._factors)
        )

    @property
    def num_parameters(self) -> float:
        width = self._require_fit()
        triangle, k = width * (width + 1) // 2, self.num_components
        spread = {"full": k * triangle, "tied": triangle, "diag": k * width, "spherical": k}
        return k - 1 + k * width + spread[self.covariance]

    def summary(self) -> str:
        self._require_fit()
        state = "" if self.converged else ", not converged"
        return (
            f"GaussianMixture, {self.num_components} components, covariance {self.covariance}, "
            f"{len(self.seen)} rows{state}, plug-in, exact"
        )
