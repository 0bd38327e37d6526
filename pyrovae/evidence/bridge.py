"""bridge() estimates the normaliser of a density from its draws, by bridge sampling."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pyrovae import identity, noise
from pyrovae.chain_diagnostics import distinct_ess, row_ess, series_ess
from pyrovae.diagnostics import k_threshold, pareto_k
from pyrovae.refusals import bad_value

#: The iteration contracts. If 10 000 steps are not enough, target and partner hardly overlap.
_STEPS = 10_000
_TOLERANCE = 1e-10
#: Draws of q for each draw of the chains, because they cost one evaluation and those of the chains many. With 50
#: dimensions and 1000 draws, the root mean square error is 0.036 nats, and 0.054 with one draw of q for each.
_PROPOSED = 8
#: Numbers of Gaussians that are tried for the partner, beside one.
_COMPONENTS = (2, 4, 8, 16)
#: Draws whose order decides the noise.
_ORDERED = 64
#: Most draws that mixtures are fitted to.
_FITTED = 5000
#: Share of the draws in each tail that the balance is checked in.
_TAIL = 0.05
#: Effective draws for each degree of freedom of a standard error. It rests on an autocorrelation, which is summed over
#: about five times its own length.
_DRAWS_A_DEGREE = 5
#: Nats by which a mixture may be too high at the draws that it was fitted to, if these enter the balance.
_MOST_OVERFIT = 0.1
#: Smallest standard deviation of a dimension given those before it, in units of its own.
_FLAT = 1e-7


class BridgeEstimate(NamedTuple):
    """An estimate of log ∫ exp(log_target(u)) du, in nats, and what its error rests on.

    Attributes:
        log_evidence: the estimate, in nats.
        error: its standard error, in nats; if inf, the estimate has no meaning.
        bias: its bias to second order, in nats.
        pareto_k: k-hat of the terms at the partner's draws, and of those at the chains' draws.
        imbalance: the least probable |z| of the identities that hold if the draws are draws of the density.
        chance: the probability of such a |z| by chance, times the number of identities (Bonferroni); at most 1.
        evaluations: of the density.
        undefined: the number of the partner's draws at which the density is NaN.
    """

    log_evidence: float
    error: float
    bias: float
    pareto_k: tuple[float, float]
    imbalance: float
    chance: float
    evaluations: int
    undefined: int


def bridge(
    log_target: Callable[[Tensor], Tensor],
    draws: Tensor,
    *,
    warp: bool = False,
    seed: int = 0,
    names: Sequence[str] | None = None,
) -> BridgeEstimate:
    """Return log C of a density exp(log_target(u)) / C on real vectors u, from draws of it.

    A partner q is fitted to the first half of every chain. It is a Gaussian by its moments, or a mixture of
    Gaussians if its BIC at the effective sample size is lower. The second half and eight times as many draws of q
    enter the iteration of Meng and Wong (1996) for the optimal bridge. Let n₁ be the effective sample size of the
    chains' draws and n₂ the number of draws of q. The shares are s₁ = n₁ / (n₁ + n₂) and s₂ = 1 − s₁:

        C ← mean_q [p / (s₁ p + s₂ C q)] / mean_p [q / (s₁ p + s₂ C q)],    p = exp(log_target).

    With ``warp``, p is standardised by the fitted moments and made symmetric, ½ [p(v) + p(−v)], and q is
    N(0, I). A skewed posterior then overlaps better with q, at twice the evaluations (warp-3, Meng and Schilling
    2002). The error is the square root of the relative mean squared error of Frühwirth-Schnatter (2004). The
    autocorrelation of the chains enters through the effective sample size of its second term. The k-hat of both
    sets of terms says whether the error can be believed (Micaletto and Vehtari 2025). Gronau et al. (2017) is a
    tutorial.

    Any g satisfies mean_p [g C q / (s₁ p + s₂ C q)] = mean_q [g p / (s₁ p + s₂ C q)] if the draws are draws of p.
    ``imbalance`` is the least probable deviation, in standard errors. For g = v, v² and the tails of each dimension, it
    comes from all draws. For log p/q and the probabilities of the mixture's components, it comes from the second half, to
    which q was not fitted. If a mixture of many numbers overfits the first half, all come from the second. By chance it
    has Student's distribution with a degree of freedom for five effective draws.

    Args:
        log_target: log of the unnormalised density of vectors of shape (n, dim), shape (n,), in nats. NaN at a
            draw of q counts as a density of zero.
        draws: of the density, shape (chains, draws, dim).
        warp: whether to make the target symmetric.
        seed: of the partner's draws, together with ``draws``.
        names: of the dimensions, for messages.

    Returns:
        The log evidence and its diagnostics; the error is inf if the iteration did not converge.

    Raises:
        ValueError: there are too few draws to fit the moments; the draws lie in a plane; or the density is
            not finite at a draw.

    Example:
        >>> draws = torch.randn(2, 500, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        >>> estimate = bridge(lambda u: -(u**2).sum(-1) / 2, draws)
        >>> abs(estimate.log_evidence - 1.5 * math.log(2 * math.pi)) < 5 * estimate.error < 0.1
        True
    """
    draws = _checked(draws)
    chains, length, dim = draws.shape
    kept = draws[:, length // 2 :]
    # A mixture's fit depends on the order of its draws; this order does not depend on that of the chains.
    fitted = draws[draws[:, 0, 0].argsort(), : length // 2].flatten(0, 1)
    # Other draws get other noise, so that errors of several data sets under one seed are independent. Draws in another
    # precision or on another scale get the same, because only their order counts.
    order = identity.digest(fitted[:_ORDERED, 0].argsort(stable=True))
    seed = noise.derive(seed, noise.Stream.BRIDGE, int(order[:15], 16))
    loc, tril = _moments(fitted, names or [f"dimension {i}" for i in range(dim)])
    distinct = distinct_ess(kept)
    effective = min(float(row_ess(kept).median()), distinct)
    partner = GaussianMixture.standard(dim)
    if not warp:
        partner = fitted_mixture(standardised(fitted, loc, tril), effective, seed)
    overlap = _Overlap(_Density(log_target), loc, tril, _tails(fitted), partner, warp)
    at_draws = overlap.density.at_draws(draws)
    of_p = overlap.points(standardised(kept.flatten(0, 1), loc, tril), at_draws[:, length // 2 :].flatten())
    of_q = overlap.points(partner.draw(_PROPOSED * len(of_p.v), torch.Generator().manual_seed(seed)))
    count = len(of_q.v)
    log_shares = math.log(effective / (effective + count)), -math.log1p(effective / count)
    log_c, converged = _iterate(of_p.log_ratio, of_q.log_ratio, log_shares)
    error, bias, k_hats = math.inf, math.nan, (math.nan, math.nan)
    imbalance = chance = math.nan
    if converged:
        above, below = (terms.exp() for terms in _terms(of_p.log_ratio, of_q.log_ratio, log_c, log_shares))
        ess = min(_ess(below.reshape(chains, -1)), distinct)
        error, k_hats = _error(above, below, ess, log_shares)
        bias = _bias(above, below, effective, ess, log_shares)
        of_all, distinct_all = of_p, distinct
        # A warp would evaluate mirrored points of the first half, too. A partner of many numbers is too high at its draws.
        if not warp and partner.overfit(effective) <= _MOST_OVERFIT:
            of_all = overlap.points(standardised(draws.flatten(0, 1), loc, tril), at_draws.flatten())
            distinct_all = distinct_ess(draws)
        bridged = _Bridged(of_q, above, log_c, log_shares, chains)
        imbalance, chance = _least_probable(
            bridged.deviations(overlap.by_partner, of_p, distinct),
            bridged.deviations(overlap.by_dimension, of_all, distinct_all),
        )
    density = overlap.density
    return BridgeEstimate(
        log_c, error, bias, k_hats, imbalance, chance, density.evaluations, density.undefined
    )


def _checked(draws: Tensor) -> Tensor:
    """Return draws of shape (chains, draws, dim) in float64; there must be enough to fit the moments to half of them."""
    if draws.dim() != 3:
        raise bad_value(
            "draws", "shape (chains, draws, dim)", f"{tuple(draws.shape)}", "Keep the chains apart on dim 0."
        )
    chains, length, dim = draws.shape
    if chains * (length // 2) < dim + 2:
        least = f"at least {2 * (dim + 2)} to fit {dim} dimensions"
        raise bad_value("draws", least, f"{chains * length}", "Draw more samples.")
    return draws.double()


# ---------------------------------------------------------------------------------------------------------
# The density and its partner


class _Density:
    """The log density, −∞ where it is NaN. It counts its evaluations, and those at draws of q that are NaN."""

    def __init__(self, log_target: Callable[[Tensor], Tensor]) -> None:
        self._log_target = log_target
        self.evaluations = self.undefined = 0

    def __call__(self, u: Tensor) -> Tensor:
        found = self._log_target(u).double()
        self.evaluations += len(u)
        self.undefined += int(found.isnan().sum())
        if bool(torch.isposinf(found).any()):
            fix = "Return −∞ where it is not defined."
            raise bad_value("log_density", "a density that is finite everywhere", "+∞", fix)
        return found.nan_to_num(nan=-math.inf, neginf=-math.inf)

    def at_draws(self, draws: Tensor) -> Tensor:
        """Return the log density at the chains' draws, shape (chains, draws), where it must be finite."""
        found = self(draws.flatten(0, 1)).view(draws.shape[:2])
        odd = ~torch.isfinite(found)
        if bool(odd.any()):
            chain, draw = odd.nonzero()[0].tolist()
            raise bad_value(
                "log_density",
                "finite numbers at the draws",
                f"NaN or −∞ at {int(odd.sum())} of {odd.numel()}, first at chain {chain}, draw {draw}",
                "Check that the columns are in the order and on the scale that log_density expects, and that it is the "
                "density which was sampled.",
            )
        return found


class _Points(NamedTuple):
    """Standardised points v, shape (n, dim), and log p / q there, shape (n,)."""

    v: Tensor
    log_ratio: Tensor


class _Overlap(NamedTuple):
    """A density of u = m + L v and its partner q of v; with ``warp``, the density is made symmetric in v."""

    density: _Density
    loc: Tensor
    tril: Tensor
    tails: tuple[Tensor, Tensor]
    partner: GaussianMixture
    warp: bool

    def points(self, v: Tensor, here: Tensor | None = None) -> _Points:
        """Return points with log p / q; ``here`` is the log density at them, if it is known."""
        there = self.density(self.loc + v @ self.tril.mT) if here is None else here
        if self.warp:
            there = torch.logaddexp(there, self.density(self.loc - v @ self.tril.mT)) - math.log(2)
        return _Points(v, there + self.tril.diagonal().log().sum() - self.partner.log_prob(v))

    def by_dimension(self, points: _Points, log_c: float) -> Tensor:
        """Return the functions g that belong to one dimension each, shape (n, functions)."""
        v = points.v
        if self.warp:  # the identities hold for even g only
            return v**2
        u, (low, high) = self.loc + v @ self.tril.mT, self.tails
        return torch.cat([v**2, v, (u < low).double(), (u > high).double()], dim=1)

    def by_partner(self, points: _Points, log_c: float) -> Tensor:
        """Return the functions g that belong to the partner, shape (n, functions)."""
        ratio = (points.log_ratio - log_c).clamp(-10, 10)[:, None]
        return ratio if self.warp else torch.cat([ratio, self.partner.shares(points.v)], dim=1)


def _tails(draws: Tensor) -> tuple[Tensor, Tensor]:
    """Return where the tails of each dimension begin, each of shape (dim,), by draws of shape (n, dim)."""
    count = max(1, int(_TAIL * len(draws)))
    low, high = (draws.kthvalue(k, dim=0).values for k in (count, len(draws) + 1 - count))
    return low, high


def _moments(draws: Tensor, names: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Return mean and Cholesky factor of the covariance of draws, shape (n, dim)."""
    loc, scale = draws.mean(dim=0), draws.std(dim=0)
    scale = torch.where(scale > 0, scale, 1.0)
    correlation = torch.cov(((draws - loc) / scale).mT).reshape(len(scale), len(scale))
    tril, failed = torch.linalg.cholesky_ex(correlation)
    flat = ~(tril.diagonal() > _FLAT)  # NaN, too
    if bool(failed) or bool(flat.any()):
        # ``failed`` is the order of the leading minor that is not positive definite, from 1
        first = int(failed) - 1 if bool(failed) else int(flat.int().argmax())
        raise bad_value(
            "draws",
            "draws that fill their space",
            f"{names[first]} constant, or a linear function of those before it",
            "Leave it out, or check the chains: they did not move, or two parameters are the same.",
        )
    return loc, scale[:, None] * tril


def standardised(u: Tensor, loc: Tensor, tril: Tensor) -> Tensor:
    """Return v = L⁻¹ (u − m) of vectors, shape (n, dim)."""
    return torch.linalg.solve_triangular(tril, (u - loc).mT, upper=False).mT


class GaussianMixture(NamedTuple):
    """A mixture of Gaussians: weights (components,), loc (components, dim), tril (components, dim, dim)."""

    weights: Tensor
    loc: Tensor
    tril: Tensor

    @classmethod
    def standard(cls, dim: int) -> GaussianMixture:
        """Return N(0, I)."""
        eye = torch.eye(dim, dtype=torch.float64)
        return cls(torch.ones(1, dtype=torch.float64), torch.zeros(1, dim, dtype=torch.float64), eye[None])

    def overfit(self, effective: float) -> float:
        """Return by how many nats a mixture is higher at draws that it was fitted to, worth ``effective``; 0 for one Gaussian.

        Of k numbers fitted to n draws, it is about k/n on average (Akaike 1973). A Gaussian's moments are those of the draws.
        """
        count, dim = self.loc.shape
        return 0.0 if count == 1 else (count * (dim + 1) * (dim + 2) / 2 - 1) / effective

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Return draws, shape (count, dim)."""
        e = torch.randn(count, self.loc.shape[1], generator=generator, dtype=torch.float64)
        if len(self.weights) == 1:
            return self.loc[0] + e @ self.tril[0].mT
        chosen = torch.multinomial(self.weights, count, replacement=True, generator=generator)
        for k in range(len(self.weights)):
            e[chosen == k] = self.loc[k] + e[chosen == k] @ self.tril[k].mT
        return e

    def _joint(self, v: Tensor) -> Tensor:
        """Return the log density of each component times its weight, shape (n, components)."""
        parts = []
        for weight, loc, tril in zip(*self, strict=True):
            e = standardised(v, loc, tril)
            scale = tril.diagonal().log().sum() + 0.5 * len(loc) * math.log(2 * math.pi)
            parts.append(weight.log() - 0.5 * (e**2).sum(-1) - scale)
        return torch.stack(parts, dim=1)

    def log_prob(self, v: Tensor) -> Tensor:
        """Return the log density of vectors, shape (n, dim) → (n,)."""
        return self._joint(v).logsumexp(dim=1)

    def shares(self, v: Tensor) -> Tensor:
        """Return the probability of each component but the last at vectors, shape (n, components − 1)."""
        return self._joint(v).softmax(dim=1)[:, :-1]


def fitted_mixture(v: Tensor, effective: float, seed: int) -> GaussianMixture:
    """Return the Gaussian or the mixture of lowest BIC, from standardised draws that are worth ``effective`` ones."""
    from sklearn import mixture
    from threadpoolctl import threadpool_limits

    dim = v.shape[1]
    v = v[:: -(-len(v) // _FITTED)]
    found = GaussianMixture.standard(dim)
    best = _bic(dim * (dim + 3) / 2, float(found.log_prob(v).mean()), effective)
    for kind in ("full", "tied"):
        for components in _COMPONENTS:
            matrices = components if kind == "full" else 1
            free = components * (dim + 1) - 1 + matrices * dim * (dim + 1) / 2
            if free > effective * dim:
                break
            fit = mixture.GaussianMixture(components, covariance_type=kind, random_state=seed % 2**32)
            # Products of a few thousand draws: two threads of NumPy's BLAS wait for each other on a busy machine.
            with warnings.catch_warnings(), threadpool_limits(1, user_api="blas"):
                warnings.simplefilter("ignore")  # of EM that has not converged; any mixture is a partner
                fit.fit(v.numpy())
            bic = _bic(free, float(fit.score(v.numpy())), effective)
            if bic >= best:
                break
            best = bic
            tril = torch.linalg.cholesky(torch.from_numpy(fit.covariances_)).expand(components, dim, dim)
            found = GaussianMixture(torch.from_numpy(fit.weights_), torch.from_numpy(fit.means_), tril)
    return found


def _bic(free: float, mean_log_density: float, effective: float) -> float:
    """Return the BIC of a density with ``free`` fitted numbers, from draws that are worth ``effective`` ones."""
    return free * math.log(effective) - 2 * effective * mean_log_density


# ---------------------------------------------------------------------------------------------------------
# The iteration and its diagnostics


def _terms(
    at_p: Tensor, at_q: Tensor, log_c: float, log_shares: tuple[float, float]
) -> tuple[Tensor, Tensor]:
    """Return log of p / (s₁ p + s₂ C q) at q's draws and of C q / (s₁ p + s₂ C q) at p's; each is at most −log s."""
    log_s1, log_s2 = log_shares
    offset = torch.tensor(log_s2 + log_c, dtype=torch.float64)
    above = at_q - torch.logaddexp(log_s1 + at_q, offset)
    below = log_c - torch.logaddexp(log_s1 + at_p, offset)
    return above, below


def _iterate(at_p: Tensor, at_q: Tensor, log_shares: tuple[float, float]) -> tuple[float, bool]:
    """Return the fixed point log C, and whether the iteration converged to a finite one."""
    log_c = float(at_p.median())
    for _ in range(_STEPS):
        above, below = _terms(at_p, at_q, log_c, log_shares)
        step = float(above.logsumexp(0) - below.logsumexp(0)) + math.log(len(below) / len(above))
        log_c += step
        if not math.isfinite(log_c):
            break
        if abs(step) <= _TOLERANCE * max(1.0, abs(log_c)):
            return log_c, True
    return log_c, False


def _ess(series: Tensor) -> float:
    """Return the effective sample size of a series, shape (chains, draws), at most the number of draws.

    The autocorrelation of several chains that were joined step by step begins at a long lag, where estimators do not
    look. The means of twenty batches show it; by chance, they vary five times too much in one of 10¹¹ series.
    """
    total = float(
        series.numel()
    )  # more is chance, or antithetic chains; the error then stays on the safe side
    found = min(series_ess(series), total)
    if len(series) > 1 or total < 400:
        return found
    length = series.shape[1] // 20
    means = series[0, : 20 * length].view(20, length).mean(dim=1)
    by_batches = total * float(series.var() / (length * means.var()))
    return by_batches if by_batches < found / 5 else found


def _error(
    above: Tensor, below: Tensor, ess: float, log_shares: tuple[float, float]
) -> tuple[float, tuple[float, float]]:
    """Return the standard error of log C in nats, and k-hat of the terms at q's draws and at the chains'."""
    variance, k_hats = 0.0, []
    for terms, count, log_share in ((above, float(len(above)), log_shares[0]), (below, ess, log_shares[1])):
        k_hats.append(float(pareto_k(terms.log()[:, None], 1e-9)))
        variance += float(terms.var() / terms.mean() ** 2) / count
        if not k_hats[-1] <= k_threshold(int(count)):
            # The draws may have missed the largest terms. These are bounded by 1/s: one more would add this much.
            variance += (math.exp(-log_share) / (count * float(terms.mean()))) ** 2
    return math.sqrt(variance), (k_hats[0], k_hats[1])


def _bias(
    above: Tensor, below: Tensor, effective: float, ess: float, log_shares: tuple[float, float]
) -> float:
    """Return the bias of log C to second order, in nats.

    log C is minus the intercept of a logistic regression that tells the chains' draws from q's (Geyer 1994). Its score U
    has the derivative −I + h, with h of mean zero, and the second derivative T. The bias of the intercept is then
    E[h U] / I² + T E[U²] / 2 I³. ``ess`` is the effective sample size of the terms at the chains' draws.
    """
    log_s1, log_s2 = log_shares
    at_q, at_p = math.exp(log_s1) * above, 1 - math.exp(log_s2) * below  # the probabilities of the chains
    information = third = product = square = 0.0
    for share, count, repeats in ((at_p, effective, effective / ess), (at_q, len(at_q), 1.0)):
        slope = share * (1 - share)
        information += count * float(slope.mean())
        third -= count * float((slope * (1 - 2 * share)).mean())
        covariance = torch.cov(torch.stack([slope, share]))
        product += count * repeats * float(covariance[0, 1])
        square += count * repeats * float(covariance[1, 1])
    return -(product / information**2 + third * square / (2 * information**3))


class _Bridged(NamedTuple):
    """What draws of q and the estimate say about draws of p."""

    of_q: _Points
    above: Tensor
    log_c: float
    log_shares: tuple[float, float]
    chains: int

    def deviations(
        self, functions: Callable[[_Points, float], Tensor], of_p: _Points, distinct: float
    ) -> tuple[Tensor, Tensor]:
        """Return z of mean_p [g · below] = mean_q [g · above], and the effective number of draws of p, each (functions,).

        ``functions`` returns g, shape (draws, functions). Each is centred at its mean under the overlap of p and q, so that
        the error of log C cancels to first order. Each side's draws estimate both variances, since s₁ · above + s₂ · below = 1
        everywhere. The larger estimate counts: a feature that is rare on one side has no variance there.
        """
        s1, s2 = (math.exp(log_share) for log_share in self.log_shares)
        g_q, g_p = (functions(points, self.log_c) for points in (self.of_q, of_p))
        above = self.above[:, None]
        below = _terms(of_p.log_ratio, self.of_q.log_ratio, self.log_c, self.log_shares)[1].exp()[:, None]
        centre = ((g_p * below).mean(0) + (g_q * above).mean(0)) / (below.mean() + above.mean())
        g_p, g_q = g_p - centre, g_q - centre
        at_p, at_q = (g_p * below).mean(0), (g_q * above).mean(0)
        spread_p = torch.maximum(
            (g_p * below).var(0), (g_q**2 * above * (1 - s1 * above) / s2).mean(0) - at_q**2
        )
        spread_q = torch.maximum(
            (g_q * above).var(0), (g_p**2 * below * (1 - s2 * below) / s1).mean(0) - at_p**2
        )
        ess = row_ess((g_p * below).unflatten(0, (self.chains, -1))).clamp(max=distinct)
        variance = spread_p / ess + spread_q / len(above)
        return ((at_p - at_q) / variance.clamp(min=0).sqrt()).nan_to_num(0.0), ess


def _least_probable(*deviations: tuple[Tensor, Tensor]) -> tuple[float, float]:
    """Return |z| of the least probable of several deviations, and its probability times their number, at most 1."""
    from scipy.special import stdtr

    z, ess = (torch.cat(parts) for parts in zip(*deviations, strict=True))
    probability = torch.from_numpy(2 * stdtr((ess / _DRAWS_A_DEGREE).numpy(), -z.abs().numpy()))
    least = int(probability.argmin())
    return float(z[least].abs()), min(1.0, len(z) * float(probability[least]))
