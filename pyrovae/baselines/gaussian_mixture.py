"""A mixture of Gaussians with exact log P(x)."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

from pyrovae import arguments, noise
from pyrovae.baselines import columns
from pyrovae.baselines.base import Gaussian, register
from pyrovae.baselines.observed import Mixture, Patterns, climb, em_step
from pyrovae.refusals import bad_value
from pyrovae.torch_private import LinAlgError

_SCOUTING = 30  # steps of EM over missing cells from every start; only the best starts continue
_TOLERANCE = 1e-12  # nats a row and step of this EM

COVARIANCES = ("full", "tied", "diag", "spherical")


@register("gaussian_mixture")
class GaussianMixture(Gaussian):
    """x ~ Σ_k π_k N(μ_k, Σ_k): exact.

    Fitted by scikit-learn's EM from several starts, each from k-means; ``fit`` keeps the best. scikit-learn's
    default adds 1e-6 to the variances; ``fit`` adds nothing, so it reaches a local maximum of the likelihood.
    The likelihood is unbounded, because a component on a single row takes it to +∞. Starts that end there are
    left out. If all do, ``fit`` raises ``ValueError``.

    If cells are missing, each start fills them with observed values of their columns, drawn at random, and
    runs scikit-learn's EM. EM over the missing cells continues from there. Ghahramani and Jordan (1994).

    Args:
        num_components: how many Gaussians.
        covariance: "full"; "tied", one for all; "diag"; or "spherical", one variance for each component.
        num_starts: how many runs of k-means to start from.
        max_iter: the most steps of EM from each start. A fit that needs more warns and says so in
            ``summary``.
        seed: of the starts.

    After ``fit``: ``weights`` π, shape (components,); ``loc`` μ, shape (components, columns); ``covariances`` Σ,
    shape (components, columns, columns), for every kind; ``converged``; ``history`` (see ``Incomplete``).

    Raises:
        ValueError: columns are constant; there are fewer rows than components; every start's density goes to +∞.
        ValueError: two columns are never observed in one row ("full" and "tied").

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

    def _fit(self, rows: Tensor, observed: Tensor | None = None) -> None:
        if len(rows) < self.num_components:
            raise bad_value(
                "x",
                f"at least as many rows as the {self.num_components} components",
                f"{len(rows)} rows",
                "Use fewer components.",
            )
        # EM is equivariant to units. Spherical covariances need one unit for all columns.
        standard, loc, scale = columns.standardized(
            rows, shared=self.covariance == "spherical", observed=observed
        )
        self.history = ()
        found = self._fit_complete(standard) if observed is None else self._fit_observed(standard, observed)
        if found is None:
            raise bad_value(
                "x",
                f"rows on which {self.num_components} components each have variance in every direction",
                f"a component without variance from every one of {self.num_starts} starts: the density goes to +∞",
                'Use fewer components, covariance="tied" or "diag", or dequantise whole numbers.',
            )
        self.weights = found[0]
        self.loc = found[1] * scale + loc
        self.covariances = found[2] * torch.outer(scale, scale)
        self._factors = torch.linalg.cholesky(self.covariances)
        self._warn_unconverged()

    def _fit_complete(self, standard: Tensor) -> Mixture | None:
        """Return the best of scikit-learn's fits to complete rows; None if all starts lost a component's variance."""
        climbs = [climb for start in range(self.num_starts) if (climb := self._climb(standard, start))]
        if not climbs:
            return None
        best = max(climbs, key=lambda climb: float(climb.lower_bound_))
        self.converged = bool(best.converged_)
        return self._parameters(best)

    def _fit_observed(self, standard: Tensor, observed: Tensor) -> Mixture | None:
        """Return the best fit by EM over missing cells; None if all starts lost a component's variance."""
        if self.covariance in ("full", "tied"):
            columns.together(observed)
        patterns = Patterns(standard, observed)
        scouts = []
        for start in range(self.num_starts):
            found = self._climb(_filled(standard, observed, self._seed(start)), start)
            scout = found and self._climb_observed(patterns, self._parameters(found), _SCOUTING)
            if scout:
                scouts.append(scout)
        for at, before, _ in sorted(scouts, key=lambda scout: -scout[1][-1]):
            if best := self._climb_observed(patterns, at, self.max_iter):
                parameters, after, self.converged = best
                self.history = (*before, *after)
                return parameters
        return None

    def _climb_observed(
        self, patterns: Patterns, at: Mixture, max_steps: int
    ) -> tuple[Mixture, list[float], bool] | None:
        """Return ``climb`` by EM over missing cells, or None if a component lost its variance."""
        try:
            found = climb(lambda each: em_step(patterns, each, self._restricted), at, max_steps, _TOLERANCE)
        except LinAlgError:
            return None
        return None if columns.singular(found[0][2]) else found

    def _restricted(self, weights: Tensor, covariances: Tensor) -> Tensor:
        """Return the best covariances of the kind in use, from the components' expected covariances."""
        if self.covariance == "tied":
            return (weights[:, None, None] * covariances).sum(dim=0).expand_as(covariances)
        variances = covariances.diagonal(dim1=1, dim2=2)
        if self.covariance == "spherical":
            variances = variances.mean(dim=1, keepdim=True).expand_as(variances)
        return covariances if self.covariance == "full" else torch.diag_embed(variances)

    def _seed(self, start: int) -> int:
        return noise.derive(self.seed, noise.Stream.WEIGHTS, start)

    def _parameters(self, climb: Any) -> Mixture:
        """Return the parameters of scikit-learn's fit."""
        return torch.from_numpy(climb.weights_), torch.from_numpy(climb.means_), self._as_full(climb)

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
            random_state=self._seed(start) % 2**32,
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

    def _components(self) -> Mixture:
        return self.weights, self.loc, self.covariances

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
        return (
            f"GaussianMixture, {self.num_components} components, covariance {self.covariance}, "
            f"{len(self.seen)} rows{self._state}, plug-in, exact"
        )


def _filled(rows: Tensor, observed: Tensor, seed: int) -> Tensor:
    """Return rows whose missing cells hold observed values of their columns, drawn at random."""
    filled = rows.clone()
    with noise.seeded(seed):
        for column, there in enumerate(observed.T):
            values = rows[there, column]
            filled[~there, column] = values[torch.randint(len(values), (int((~there).sum()),))]
    return filled
