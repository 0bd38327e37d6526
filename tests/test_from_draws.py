"""evidence.from_draws: the normaliser of densities known in closed form, its error, and what it refuses or does not trust."""

import math
import re

import arviz
import numpy as np
import pytest
import torch
import xarray
from arvizs import MODERN
from conjugate import CASES
from rates import SEED, Z, close
from scipy import stats
from scipy.signal import lfilter
from scipy.special import gammaln

import pyrovae as pv
from pyrovae import baselines, noise
from pyrovae.chain_diagnostics import distinct_ess
from pyrovae.evidence import from_draws
from pyrovae.evidence.bridge import (
    GaussianMixture,
    _bias,
    _Bridged,
    _iterate,
    _least_probable,
    _terms,
    bridge,
)

LOG_2PI = math.log(2 * math.pi)


def rng(*key):
    return np.random.default_rng([SEED, *key])


def normal(u):
    return -(u**2).sum(-1) / 2


def autocorrelated(generator, rho, shape):
    """Chains of N(0, 1), AR(1), shape (chains, draws, dim)."""
    steps = generator.normal(size=shape)
    steps[:, 1:] *= (1 - rho**2) ** 0.5
    return lfilter([1.0], [1.0, -rho], steps, axis=1)


def right(ev, truth, verdict="trust"):
    """Whether an estimate is the truth up to its error, and has this verdict."""
    return close(ev.total - ev.mean_bias, truth, ev.mean_mcse) and ev.verdict[0] == verdict


# ---------------------------------------------------------------------------------------------------------
# Exact answers


@pytest.mark.statistical
@pytest.mark.parametrize("rho", [0.0, 0.9])
@pytest.mark.parametrize("dim", [1, 10, 50])
def test_gaussians(dim, rho):
    """Correlated, on scales from 1e-6 to 1e6 and far from zero."""
    generator = rng(dim)
    scale, loc = 10.0 ** generator.uniform(-6, 6, size=dim), generator.normal(size=dim) * 1e3
    tril = np.tril(generator.normal(size=(dim, dim))) / dim + np.eye(dim)
    u = autocorrelated(generator, rho, (4, 4000 if rho else 1000, dim))
    ev = from_draws(
        lambda x: normal(np.linalg.solve(tril, ((x - loc) / scale).T).T), u @ tril.T * scale + loc
    )
    truth = dim / 2 * LOG_2PI + np.log(scale).sum() + np.log(np.abs(np.diag(tril))).sum()
    assert right(ev, truth)
    assert ev.mean_mcse < (0.05 if dim == 50 else 0.02)


@pytest.mark.statistical
@pytest.mark.parametrize("seed", range(5))
def test_normal_gamma(seed):
    """Exact posterior draws; in the model's own space, with the precision's bound, or as log precision by hand."""
    generator, x = rng(seed), CASES["normal-inverse-gamma"].x.numpy()
    n, a, b, m, kappa = len(x), 2.0, 3.0, 0.5, 0.4
    rate = b + ((x - x.mean()) ** 2).sum() / 2 + kappa * n * (x.mean() - m) ** 2 / (2 * (kappa + n))
    precision = generator.gamma(a + n / 2, 1 / rate, size=(4, 500))
    spread = ((kappa + n) * precision) ** -0.5
    mu = (kappa * m + x.sum()) / (kappa + n) + spread * generator.normal(size=(4, 500))

    def log_joint(t):
        s = t["precision"]
        prior = a * math.log(b) - gammaln(a) + (a - 1) * np.log(s) - b * s
        prior += (np.log(kappa * s) - LOG_2PI - kappa * s * (t["mu"] - m) ** 2) / 2
        return prior + ((np.log(s) - LOG_2PI)[:, None] - s[:, None] * (x - t["mu"][:, None]) ** 2).sum(1) / 2

    ev = from_draws(
        log_joint, {"mu": mu, "precision": precision}, bounds={"precision": (0, math.inf)}, seed=seed
    )
    by_hand = from_draws(
        lambda u: log_joint({"mu": u[:, 0], "precision": np.exp(u[:, 1])}) + u[:, 1],
        np.stack([mu, np.log(precision)], 2),
        seed=seed,
    )
    assert ev.total == pytest.approx(by_hand.total, abs=1e-9)
    assert right(ev, CASES["normal-inverse-gamma"].log_evidence)


def two_blobs(u):
    """0.3 · N(6, 0.25 I) + 0.7 · N(0, I) in two dimensions."""
    far = math.log(0.3) - 2 * ((u - 6) ** 2).sum(-1) - math.log(0.25)
    return np.logaddexp(math.log(0.7) + normal(u), far) - LOG_2PI


def draws_of_two_blobs(generator, share=0.3, chains=4):
    second = generator.random((chains, 4000 // chains, 1)) < share
    u = generator.normal(size=(chains, 4000 // chains, 2))
    return np.where(second, 6 + 0.5 * u, u)


def nested(u):
    """Half N(0, I), half N(0, 0.03² I) in ten dimensions, times exp(−11.534): tempering meets a phase transition."""
    narrow = normal(u) / 0.03**2 - 10 * math.log(0.03)
    return np.logaddexp(normal(u), narrow) - math.log(2) - 5 * LOG_2PI - 11.534


def funnel(u):
    """v ~ N(0, 9), nine x ~ N(0, e^v) (Neal 2003)."""
    v, x = u[:, 0], u[:, 1:]
    return -(v**2) / 18 - math.log(3) + normal(x * np.exp(-v / 2)[:, None]) - 4.5 * v - 5 * LOG_2PI


def draws_of_funnel(generator):
    u = generator.normal(size=(4, 1000, 10))
    v = 3 * u[..., :1]
    return np.concatenate([v, np.exp(v / 2) * u[..., 1:]], 2)


def draws_of_nested(generator):
    return generator.normal(size=(4, 500, 10)) * np.where(generator.random((4, 500, 1)) < 0.5, 1, 0.03)


def student(freedom):
    constant = gammaln((freedom + 1) / 2) - gammaln(freedom / 2) - math.log(freedom * math.pi) / 2
    return lambda u: (constant - (freedom + 1) / 2 * np.log1p(u**2 / freedom)).sum(-1)


@pytest.mark.statistical
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("log_density", "draws", "truth"),
    [
        (two_blobs, draws_of_two_blobs, 0.0),
        (nested, draws_of_nested, -11.534),
        (funnel, draws_of_funnel, 0.0),
        (student(2), lambda generator: generator.standard_t(2, size=(4, 500, 3)), 0.0),
        (student(1), lambda generator: generator.standard_t(1, size=(4, 500, 3)), 0.0),
    ],
    ids=["two blobs", "phase transition", "funnel", "t of 2", "Cauchy"],
)
def test_shapes_that_one_gaussian_does_not_fit(log_density, draws, truth, seed):
    ev = from_draws(log_density, draws(rng(seed)), seed=seed)
    assert right(ev, truth)
    assert ev.mean_mcse < 0.1
    assert abs(ev.total - truth) < (0.1 if log_density is nested else 0.3)


@pytest.mark.statistical
@pytest.mark.parametrize("warp", [False, True])
@pytest.mark.parametrize(
    ("log_density", "draws", "bound", "truth"),
    [
        (lambda x: 2 * np.log(x) - x, lambda g: g.gamma(3, size=(4, 1000, 1)), (0, math.inf), math.log(2)),
        (lambda x: 2 * np.log(7 - x) + x, lambda g: 7 - g.gamma(3, size=(4, 1000, 1)), (-math.inf, 7), 7 + math.log(2)),
        (lambda x: np.log(x * (5 - x)), lambda g: 5 * g.beta(2, 2, size=(4, 1000, 1)), (0, 5), 3 * math.log(5) - math.log(6)),
        (lambda x: 0 * x, lambda g: g.uniform(2, 5, size=(4, 1000, 1)), (2, 5), math.log(3)),
    ],
    ids=["from below", "from above", "both", "flat"],
)  # fmt: skip
def test_bounds(log_density, draws, bound, truth, warp):
    ev = from_draws(lambda x: log_density(x)[:, 0], draws(rng()), bounds={0: bound}, warp=warp)
    assert right(ev, truth)
    assert ev.mean_mcse < 0.01


# ---------------------------------------------------------------------------------------------------------
# The error and the bias


@pytest.mark.statistical
def test_errors_are_those_made():
    """40 sets of Cauchy draws, each draw ten times. Mean and variance of error / mcse are 0 and 1; 95 % intervals cover.

    Standard errors 0.16, 0.22 and 0.034. An mcse that ignores the repeats has a variance of 4.8 and is found.
    """
    number, found = 40, []
    for seed in range(number):
        draws = rng(seed).standard_cauchy(size=(4, 150, 1)).repeat(10, axis=1)
        found.append(from_draws(student(1), draws, seed=seed))
    error = np.array([(ev.total - ev.mean_bias) / ev.mean_mcse for ev in found])
    low, high = np.array([ev.mean_interval for ev in found]).T
    covered = ((low <= 0) & (high >= 0)).mean()
    assert close(error.mean(), 0.0, number**-0.5)
    assert close(error.var(), 1.0, (2 / number) ** 0.5)
    assert close(covered, 0.95, (0.95 * 0.05 / number) ** 0.5)
    assert (
        np.mean([ev.verdict[0] == "trust" for ev in found]) > 0.5
    )  # the others have too few effective draws


@pytest.mark.statistical
def test_errors_of_resampled_draws_are_those_made():
    """30 sets of 4000 draws with replacement of 700. The mean square of error / mcse is at most 1 + 5 · 0.26.

    Both halves share draws, which adds to the error. Without a count of distinct draws the mean square is 3.4 to 4.2.
    """
    found = [from_draws(normal, resampled(rng(seed), 700, 3), seed=seed) for seed in range(30)]
    squares = [((ev.total - 1.5 * LOG_2PI) / ev.mean_mcse) ** 2 for ev in found]
    assert np.mean(squares) < 1 + 5 * (2 / 30) ** 0.5


def test_draws_that_come_again_count_once():
    """A chain that stays is no resampling: 0 0 1 1 has three other values, and none recurs."""
    chain = torch.tensor([0.0, 0, 1, 1, 2, 3]).double()
    assert distinct_ess(chain.view(1, 6, 1)) == math.inf
    again = torch.tensor([[0.0, 0, 1, 0], [2, 0, 3, 3]]).double()  # 0 comes three times, 1, 2 and 3 once
    assert distinct_ess(again[..., None]) == 6**2 / (3**2 + 3)
    assert distinct_ess(torch.stack([again, torch.arange(8.0).view(2, 4)], dim=2).double()) == math.inf


@pytest.mark.statistical
def test_bias_is_that_of_few_draws():
    """30 draws of N(0, 1) and 240 of N(1.5, 1), 800 times: −0.0017 nats, by a control variate of mean zero."""
    generator, shares = torch.Generator().manual_seed(SEED), (math.log(1 / 9), math.log(8 / 9))
    estimates, reported, control = [], [], []
    for _ in range(800):
        p, q = (torch.randn(n, generator=generator, dtype=torch.float64) for n in (30, 240))
        at_p, at_q = (((u - 1.5) ** 2 - u**2) / 2 for u in (p, q + 1.5))
        log_c, converged = _iterate(at_p, at_q, shares)
        assert converged
        estimates.append(log_c)
        above, below = (terms.exp() for terms in _terms(at_p, at_q, log_c, shares))
        reported.append(_bias(above, below, 30.0, 30.0, shares))
        above, below = (terms.exp() for terms in _terms(at_p, at_q, 0.0, shares))
        control.append(float(above.mean() - below.mean()))
    estimates, control = np.array(estimates), np.array(control)
    rest = estimates - np.cov(estimates, control)[0, 1] / control.var() * control
    se = math.hypot(rest.std(), np.std(reported)) / 800**0.5
    assert close(rest.mean(), np.mean(reported), se)
    assert rest.mean() < -Z * se


@pytest.mark.statistical
def test_errors_of_several_data_sets_under_one_seed_are_independent():
    """60 sets of draws, the same seed: the errors' mean square is 1 up to 5 · 0.18, and their mean 0 up to 5 · 0.13.

    With the same noise of the partner for all sets, the mean square is 0.25 to 4, and differs from seed to seed.
    """
    found = [from_draws(normal, rng(number).normal(size=(4, 1000, 1))) for number in range(60)]
    z = np.array([(ev.total - LOG_2PI / 2) / ev.mean_mcse for ev in found])
    assert close(z.mean(), 0.0, 60**-0.5)
    assert close((z**2).mean(), 1.0, (2 / 60) ** 0.5)


def test_steps_of_chains_joined_step_by_step_are_not_taken_for_independent():
    """emcee's flat chain: the lag of the autocorrelation is the number of walkers."""
    walkers = autocorrelated(rng(), 0.97, (20, 1000, 2))
    flat, apart = (from_draws(normal, d) for d in (walkers.swapaxes(0, 1).reshape(-1, 2), walkers))
    assert flat.verdict[0] != "trust" or flat.mean_mcse > 0.5 * apart.mean_mcse


# ---------------------------------------------------------------------------------------------------------
# Forms of draws and densities


def test_all_forms_give_one_number():
    """Arrays, tensors, dicts and ArviZ data; the density gets what the draws are made of."""
    generator = rng()
    a, b = generator.normal(size=(4, 500)), generator.normal(size=(4, 500, 2, 1))
    seen = []

    def labelled(t):
        seen.append({name: (type(value), value.shape[1:]) for name, value in t.items()})
        return -(t["a"] ** 2) / 2 - (t["b"] ** 2).sum((-1, -2)) / 2

    dims = {"a": ("draw", "chain"), "function of a": ("chain", "draw"), "b": ("chain", "draw", "i", "j")}
    values = {"a": a.T, "function of a": a + 1, "b": b}
    dataset = xarray.Dataset({name: (dims[name], value) for name, value in values.items()})
    tree = xarray.DataTree.from_dict({"posterior": dataset})
    data = tree if MODERN else arviz.InferenceData(None, False, posterior=dataset)
    names = ["b", "a"]
    forms = {
        "array": from_draws(normal, np.concatenate([b[..., 0], a[..., None]], 2)),
        "tensor": from_draws(normal, torch.from_numpy(np.concatenate([b[..., 0], a[..., None]], 2))),
        "dict": from_draws(labelled, {"b": b, "a": a}),
        "dict of tensors": from_draws(labelled, {"b": torch.from_numpy(b), "a": torch.from_numpy(a)}),
        "arviz": from_draws(labelled, data, variables=names),
        "tree": from_draws(labelled, tree, variables=names),
        "dataset": from_draws(labelled, dataset[names]),
    }
    assert len({ev.total for ev in forms.values()}) == 1
    assert {"a": (np.ndarray, ()), "b": (np.ndarray, (2, 1))} in seen
    assert {"a": (torch.Tensor, ()), "b": (torch.Tensor, (2, 1))} in seen
    with pytest.raises(ValueError, match=r"depends on every dimension.*whatever function of a is.*variables"):
        from_draws(labelled, data)


def test_a_density_may_return_a_scalar_for_one_point():
    """scipy's multivariate densities do; a float or a tensor without dims is one as well."""
    draws = rng().normal(size=(4, 500, 2))
    density = stats.multivariate_normal([0, 0], np.eye(2))
    assert np.shape(density.logpdf(draws[0, :1])) == ()
    arrays = [density.logpdf, lambda u: density.logpdf(u) if len(u) > 1 else float(density.logpdf(u))]
    found = {from_draws(log_density, draws).total for log_density in arrays}
    found.add(from_draws(lambda u: torch.as_tensor(density.logpdf(u)), torch.from_numpy(draws)).total)
    assert len(found) == 1
    assert found.pop() == pytest.approx(from_draws(lambda u: normal(u) - LOG_2PI, draws).total, abs=1e-9)
    with pytest.raises(ValueError, match=r"a real number for each of 8 points, shape \(8,\), got shape \(\)"):
        from_draws(lambda u: normal(u).sum(), draws)


def test_order_of_chains_does_not_matter():
    for log_density, draws in (
        (normal, rng().normal(size=(4, 300, 2))),
        (two_blobs, draws_of_two_blobs(rng())),
    ):
        first, other = (from_draws(log_density, d) for d in (draws, draws[[2, 0, 3, 1]]))
        assert first.total == pytest.approx(other.total, abs=1e-9)
        assert first.mean_mcse == pytest.approx(other.mean_mcse, rel=1e-6)


def test_float32_draws_and_densities():
    draws = rng().normal(size=(4, 500, 3))
    exact = from_draws(normal, draws)
    rounded = from_draws(normal, draws.astype(np.float32))
    narrow = from_draws(lambda u: normal(u).astype(np.float32), draws)
    assert exact.total == pytest.approx(rounded.total, abs=1e-5)
    assert exact.total == pytest.approx(narrow.total, abs=1e-5)
    assert exact.verdict[0] == rounded.verdict[0] == narrow.verdict[0] == "trust"
    coarse = from_draws(lambda u: (normal(u) - 1e6).astype(np.float32), draws)
    assert "rounds to 0.12 nats" in coarse.reasons[0]


def test_a_seed_gives_the_same_bits():
    draws = draws_of_two_blobs(rng())
    first, again, other = (from_draws(two_blobs, draws, seed=seed) for seed in (1, 1, 2))
    assert first.total == again.total != other.total


# ---------------------------------------------------------------------------------------------------------
# One mechanism with PyroMCMC, and comparisons


def test_a_users_draws_are_compared_with_models():
    case = CASES["linear regression"]
    mcmc = baselines.PyroMCMC(case.model, num_samples=100, warmup_steps=60, num_chains=2, seed=SEED).fit(
        case.x
    )
    own = mcmc.marginal_likelihood()
    seed = noise.derive(SEED, noise.Stream.WEIGHTS)
    rows = {"x": case.x, "measure": ("unscored",) * 3 + ("density",)}
    ev = from_draws(mcmc._joint.log_joints, mcmc._draws, seed=seed, **rows)
    assert ev.total == pytest.approx(own.total, rel=1e-12)
    assert ev.mean_mcse == pytest.approx(own.mean_mcse, rel=1e-9)
    assert ev.verdict[0] == own.verdict[0]
    table = pv.compare_evidence({"NUTS": mcmc, "own": ev})
    assert table["log_bayes_factor"].abs().max() < 1e-9
    with pytest.raises(ValueError, match=r"rows that are known to be the same, got 'own', .*from_draws\("):
        pv.compare_evidence({"NUTS": mcmc, "own": from_draws(mcmc._joint.log_joints, mcmc._draws)})
    other = from_draws(mcmc._joint.log_joints, mcmc._draws, **rows | {"x": case.x + 1})
    with pytest.raises(ValueError, match="all scored on the same rows"):
        pv.compare_evidence({"NUTS": mcmc, "own": other})


def test_the_summary_says_what_was_estimated():
    draws = rng().normal(size=(4, 500, 2))
    first, second, third = str(from_draws(normal, draws)).splitlines()
    assert re.match(r"log Z = 1\.8\d\d nats \(95 % interval", first)
    assert second == "bridge, 2000 draws: estimate, posterior-averaged"
    assert third == "verdict: trust"
    assert "all 3 rows together" in str(from_draws(normal, draws, x=torch.ones(3, 2)))
    assert math.isnan(from_draws(normal, draws).bits_per_dim)


# ---------------------------------------------------------------------------------------------------------
# What is not trusted


def far_modes(u):
    return np.logaddexp(normal(u - 10), normal(u + 10))


def resampled(generator, number, dim):
    """4000 draws with replacement of ``number`` draws of N(0, I)."""
    return generator.normal(size=(number, dim))[generator.integers(0, number, (4, 1000))]


GOOD = np.random.default_rng(0).normal(size=(4, 1000, 2))
SIDES = np.where(np.random.default_rng(1).random((4, 1000, 1)) < 0.2, -10, 10)
GAMMA = np.random.default_rng(2).gamma(3, size=(4, 1000, 1))


@pytest.mark.parametrize(
    ("log_density", "draws", "verdict", "reason"),
    [
        (far_modes, GOOD + np.array([-10, 10, 10, 10])[:, None, None], "more samples", "R-hat"),
        (far_modes, GOOD + SIDES, "another method", "all modes have their share"),
        (two_blobs, draws_of_two_blobs(np.random.default_rng(3), 0.5, 1), "another method", "not from this density"),
        (lambda u: normal(1.2 * u), GOOD, "another method", "not from this density"),
        (lambda u: normal(u / [1, 3]), GOOD * [3, 1], "another method", "order of columns"),
        (lambda u: (2 * u - np.exp(u))[:, 0], np.log(GAMMA), "another method", "Jacobians"),
        (lambda u: -u[:, 0], np.random.default_rng(4).exponential(size=GAMMA.shape), "another method", "bounds"),
        (normal, np.abs(GOOD), "another method", "not from this density"),
        (lambda u: np.where(np.abs(u - 1).max(1) < 1, 0.0, np.nan), np.random.default_rng(5).uniform(0, 2, GOOD.shape), "another method", "NaN at"),
        (normal, GOOD[:, :25], "more samples", "effective sample size"),
        (normal, np.random.default_rng(6).normal(size=(2, 60, 50)), "another method", "hardly overlap"),
        (normal, resampled(np.random.default_rng(7), 300, 2), "more samples", "resampled or rounded"),
    ],
    ids=[
        "chains in modes of their own", "modes in wrong shares", "modes in wrong shares, one chain", "other scale",
        "columns exchanged", "no Jacobian", "no bounds", "draws of one side", "NaN", "few draws", "few draws of many dimensions",
        "draws resampled from few",
    ],
)  # fmt: skip
def test_not_trusted(log_density, draws, verdict, reason):
    ev = from_draws(log_density, draws)
    assert ev.verdict[0] == verdict
    assert any(reason in words for words in ev.reasons)
    assert reason in ev.summary()


def test_the_limit_of_a_deviation_follows_from_their_number_and_the_draws():
    many = torch.full((3,), 1e12, dtype=torch.float64)
    z, chance = _least_probable((torch.tensor([0.5, -4.8, 1.0]).double(), many))
    assert z == pytest.approx(4.8)
    assert chance == pytest.approx(3 * 2 * stats.norm.sf(4.8), rel=1e-5)
    few = torch.tensor([50.0, 1e12]).double()  # ten degrees of freedom, and as good as infinitely many
    z, chance = _least_probable(
        (torch.tensor([5.0, 4.0]).double(), few), (torch.zeros(8).double(), torch.ones(8).double())
    )
    assert z == 4
    assert chance == pytest.approx(10 * 2 * stats.norm.sf(4), rel=1e-6)
    assert 10 * 2 * stats.t(10).sf(5) > chance
    assert _least_probable((torch.zeros(2).double(), few))[1] == 1


def log_variances(generator, rows):
    """Exact draws of the log variance t of ``rows`` normal numbers under v ~ InverseGamma(1, 1); log P(y), log P(y, v)."""
    y = 2 * generator.normal(size=rows)
    a, b = 1 + rows / 2, 1 + (y**2).sum() / 2
    draws = np.log(b / generator.gamma(a, size=(4, 1000, 1)))

    def log_joint(t):
        return -(a + 1) * t[:, 0] - b * np.exp(-t[:, 0]) - rows / 2 * LOG_2PI

    return draws, gammaln(a) - a * math.log(b) - rows / 2 * LOG_2PI, log_joint


@pytest.mark.statistical
def test_a_missing_jacobian_is_found():
    """100 rows, 20 times: the mean of t is off by 0.14 standard deviations, 7.9 errors, of which 4.8 are needed.

    At most one in 1000 is missed; five or more have a probability of 2e-11.
    """
    found = 0
    for seed in range(20):
        draws, truth, log_joint = log_variances(rng(seed), 100)
        assert right(from_draws(lambda t, f=log_joint: f(t) + t[:, 0], draws), truth)
        without = from_draws(log_joint, draws)
        assert without.total < truth - 1
        found += without.verdict[0] == "another method"
    assert found > 15


@pytest.mark.statistical
def test_draws_of_the_density_are_said_not_to_be_as_rarely_as_stated():
    """75 sets of draws: normal, skewed, heavy tails; independent, autocorrelated; one to ten dimensions.

    A probability below 1 % comes 0.75 times by chance, and 11 times with a probability of 4e-10. One below the 1e-5 at
    which draws are refused comes by chance in 1 of 1300 such tests.
    """
    shapes = {
        "normal": (lambda u: u, normal),
        "log of an exponential": (
            lambda u: np.log(-stats.norm.logsf(u)),
            lambda x: (x - np.exp(x)).sum(-1),
        ),
        "t of 2": (lambda u: stats.t(2).ppf(stats.norm.cdf(u)), student(2)),
    }
    chances = []
    for seed in range(5):
        for name, (shape, log_density) in shapes.items():
            for dim, rho in ((1, 0.0), (3, 0.0), (10, 0.0), (1, 0.9), (3, 0.9)):
                u = autocorrelated(rng(seed, dim, len(name)), rho, (4, 2000 if rho else 400, dim))
                draws = torch.from_numpy(shape(u))
                found = bridge(lambda x, f=log_density: torch.as_tensor(f(x.numpy())), draws, seed=seed)
                assert found.error < 1
                assert found.chance > 1e-5
                chances.append(found.chance)
    assert sum(chance < 0.01 for chance in chances) < 11


def test_draws_that_a_mixture_overfits_are_no_evidence_against_the_density(monkeypatch):
    """Exact draws of a t of 3 in 50 dimensions, 4 · 2000, deviated by 3.1 to 6.4 errors, where q was fitted to half of them."""
    two = GaussianMixture(*(torch.ones(2, *shape) for shape in ((), (1,), (1, 1))))
    assert two.overfit(50.0) == pytest.approx(5 / 50)  # two weights that sum to one, two means, two variances
    assert GaussianMixture.standard(50).overfit(50.0) == 0
    balanced, deviations = [], _Bridged.deviations

    def counted(self, functions, of_p, distinct):
        balanced.append(len(of_p.v))
        return deviations(self, functions, of_p, distinct)

    monkeypatch.setattr(_Bridged, "deviations", counted)
    generator = rng(30)
    wide = generator.normal(size=(4, 500, 30)) / np.sqrt(generator.chisquare(3, size=(4, 500, 1)) / 3)
    for density, draws, by_dimension in (
        (stats.multivariate_t(np.zeros(30), df=3).logpdf, wide, 1000),
        (two_blobs, draws_of_two_blobs(generator), 4000),
        (normal, generator.normal(size=(4, 500, 30)), 2000),
    ):
        bridge(lambda u, f=density: torch.as_tensor(f(u.numpy())), torch.from_numpy(draws))
        assert balanced.pop() == by_dimension


@pytest.mark.statistical
def test_resampled_draws_are_draws_of_the_density():
    """4000 draws with replacement of 700: means have 2.6 times the error of 4000 independent draws."""
    found = [from_draws(normal, resampled(rng(seed), 700, 3), seed=seed) for seed in range(10)]
    assert not any("not from this density" in words for ev in found for words in ev.reasons)


@pytest.mark.parametrize(
    ("b", "dtype", "verdict"),
    [(0.1, np.float64, "another method"), (0.2, np.float32, "another method"), (1.0, np.float32, "trust")],
)
def test_mass_beyond_the_last_number_before_a_bound_is_not_trusted(b, dtype, verdict):
    """Of Beta(1, 0.1), 2.5 % lies between 1 − 2⁻⁵³ and 1; draws there round to the last number below 1."""
    uniform = np.random.default_rng(0).random((8, 250, 2))
    draws = (-np.expm1(np.log(uniform) / b)).astype(dtype)
    draws = np.minimum(draws, np.nextafter(dtype(1), dtype(0)))
    ev = from_draws(lambda p: stats.beta(1, b).logpdf(p).sum(1), draws, bounds={0: (0, 1), 1: (0, 1)})
    assert ev.verdict[0] == verdict
    assert any("and mass beyond is lost" in words for words in ev.reasons) == (verdict != "trust")


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_float32_draws_in_large_units_are_no_whole_numbers(dtype):
    """Between 2²⁴ and 2²⁵ the numbers of float32 are even."""
    draws = (2e7 + 2e6 * rng(7).standard_normal((4, 1000, 1))).astype(np.float32).astype(dtype)
    assert (draws == draws.round()).mean() > 0.99
    ev = from_draws(lambda x: -(((x - 2e7) / 2e6) ** 2)[:, 0] / 2, draws)
    assert ev.verdict[0] == "trust"
    assert close(ev.total, math.log(2e6) + LOG_2PI / 2, ev.mean_mcse)


@pytest.mark.parametrize(
    "draws", [rng(8).poisson(1e7, (4, 100, 1)), rng(8).poisson(1e3, (4, 100, 1)).astype(np.float32)]
)
def test_counts_are_whole_numbers(draws):
    with pytest.raises(ValueError, match="column 0 whole numbers at 400 of 400 draws"):
        from_draws(lambda x: stats.poisson(1e7).logpmf(x)[:, 0], draws)


@pytest.mark.statistical
@pytest.mark.parametrize("columns", [1, 4])
def test_float32_draws_of_a_density_that_is_flat_at_a_bound_are_trusted(columns):
    """Of Beta(5000, 1), 0.2 % is in the last four numbers below 1, and 0.03 % between the last one and 1, with a flat density."""
    draws = np.random.default_rng(SEED).random((4, 1000, columns)) ** (1 / 5000)
    draws = np.minimum(draws.astype(np.float32), np.nextafter(np.float32(1), np.float32(0)))
    bounds = dict.fromkeys(range(columns), (0, 1))
    ev = from_draws(lambda p: 4999 * np.log(p).sum(1), draws, bounds=bounds)
    assert ev.verdict[0] == "trust"
    assert close(ev.total, -columns * math.log(5000), ev.mean_mcse)


@pytest.mark.parametrize("b", [0.3, 0.4])
def test_float32_draws_of_a_density_that_rises_at_a_bound_are_not_trusted(b):
    """Of Beta(1, 0.4), 0.22 % is in the last four numbers of float32, and 0.13 % between the last one and 1: more than a quarter."""
    draws = -np.expm1(np.log(np.random.default_rng(SEED).random((4, 5000, 1))) / b)
    draws = np.minimum(draws.astype(np.float32), np.nextafter(np.float32(1), np.float32(0)))
    ev = from_draws(lambda p: stats.beta(1, b).logpdf(p).sum(1), draws, bounds={0: (0, 1)})
    assert ev.verdict[0] == "another method"


# ---------------------------------------------------------------------------------------------------------
# Refusals


def held(name):
    """draws with one entry or column replaced."""
    draws = GOOD.copy()
    if name == "nan":
        draws[1, 7, 1] = np.nan
    elif name == "constant":
        draws[..., 1] = 0.3
    elif name == "whole":
        draws[..., 1] = draws[..., 1].round()
    else:
        draws[..., 1] = 2 * draws[..., 0]
    return draws


@pytest.mark.parametrize(
    ("log_density", "draws", "options", "message"),
    [
        (3, GOOD, {}, "log_density: expected a function of points, got 3 (int). Pass"),
        (normal, "draws.csv", {}, "draws: expected a tensor, a numpy array or a DataFrame, got a str. Read"),
        (normal, GOOD[0, :, 0], {}, "draws: expected shape (chains, draws, dim) or (draws, dim), got (1000,). A single"),
        (normal, GOOD[..., 0], {}, "got shape (1, 4, 1000), which is 1 chains of 4 draws. Draw more."),
        (normal, GOOD.swapaxes(0, 1), {}, "no more chains than draws in each, got shape (1000, 4, 2)"),
        (normal, {"a": GOOD[0, :, 0]}, {}, "draws['a']: expected shape (chains, draws, …), got (1000,). Keep the chains"),
        (normal, {"a": GOOD, "b": GOOD[:, :500]}, {}, "draws: expected as many chains and draws of every variable, got"),
        (normal, held("nan"), {}, "got column 1 NaN or infinite at 1 of 4000 draws, first nan at chain 1, draw 7. Look"),
        (normal, held("constant"), {}, "draws: expected draws that move, got column 1 constant at 4000 of 4000"),
        (normal, held("whole"), {}, "draws: expected draws of continuous parameters, got column 1 whole numbers"),
        (normal, held("copied"), {}, "draws: expected draws that fill their space, got column 1 constant, or a linear"),
        (normal, np.random.default_rng(0).normal(size=(2, 26, 50)), {}, "draws: expected at least 104 to fit 50 dimensions"),
        (normal, GOOD, {"bounds": {0: (0, 9)}}, "draws: expected draws between their bounds, got column 0 on or beyond"),
        (normal, GOOD, {"bounds": {0: (9, 0)}}, "bounds: expected a pair (low, high), low < high, got (9, 0)"),
        (normal, GOOD, {"bounds": [(0, 9)]}, "bounds: expected a dict, got [(0, 9)] (list). Pass"),
        (normal, GOOD[[0, 1, 2, 1]], {}, "draws: expected chains of their own, got two chains that are the same. Give"),
        (normal, GOOD, {"bounds": {"mu": (0, 1)}}, "bounds: expected keys among 0, 1, got 'mu'. Use"),
        (normal, GOOD, {"variables": ["a"]}, "variables: expected draws with names, got a ndarray. Select"),
        (normal, {"a": GOOD}, {"variables": ["b"]}, "variables: expected names among 'a', got 'b'. Pass"),
        (normal, GOOD, {"measure": "mas"}, "measure: expected one of 'density', 'mass', 'unscored', got 'mas'"),
        (normal, GOOD, {"measure": 3}, "measure: expected one of"),
        (normal, GOOD, {"seed": -1}, "seed: expected a whole number ≥ 0"),
        (lambda u: u @ np.ones(3), GOOD, {}, "log_density: expected a function of an array of shape (8, 2), float64, got ValueError"),
        (lambda u: normal(u).sum(), GOOD, {}, "expected a real number for each of 8 points, shape (8,), got shape ()"),
        (lambda u: normal(u - u.mean(0)), GOOD, {}, "log_density: expected the same number for a point whenever it is"),
        (lambda u: normal(u) + np.random.default_rng().random(len(u)), GOOD, {}, "the same number for a point"),
        (lambda u: normal(u[:, :1]), GOOD, {}, "depends on every dimension of the draws, got the same values whatever column 1"),
        (lambda u: np.where(u[:, 0] > 2, np.nan, normal(u)), GOOD, {}, "log_density: expected finite numbers at the draws, got NaN or −∞"),
        (lambda u: np.where(u[:, 0] > 2, -np.inf, normal(u)), GOOD, {}, "Check that the columns are in the order"),
        (lambda u: np.where(u[:, 0] > 2, np.inf, normal(u)), GOOD, {}, "log_density: expected a density that is finite everywhere, got +∞"),
    ],
)  # fmt: skip
def test_refused(log_density, draws, options, message):
    with pytest.raises((ValueError, TypeError), match=re.escape(message)) as raised:
        from_draws(log_density, draws, **options)
    assert re.fullmatch(r"\S+: expected .+, got .+\. .+\.", str(raised.value), re.DOTALL)
