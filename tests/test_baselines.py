"""Baselines against scikit-learn, scipy and closed forms; that fits are maxima; and what they refuse."""

import itertools
import math

import families
import numpy as np
import pandas as pd
import pytest
import torch
from oracles import LinearGaussian, two_blocks
from rates import Z
from scipy import integrate, stats
from scipy.special import betaln
from sklearn.decomposition import PCA
from sklearn.mixture import GaussianMixture as SklearnMixture
from sklearn.neighbors import KernelDensity as SklearnKernels
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal, constraints

import pyrovae as pv
from pyrovae import baselines, identity
from pyrovae.baselines.base import REGISTRY, Baseline, ClosedForm, Conjugate

GENERATOR = torch.Generator().manual_seed(0)
#: Rows of each kind, (40, 4), float64: on a new baseline's ``support`` the contract tests find theirs.
REAL = torch.randn(40, 4, generator=GENERATOR, dtype=torch.float64) @ torch.randn(
    4, 4, generator=GENERATOR, dtype=torch.float64
)
COUNTS = torch.poisson(torch.full((40, 4), 2.0, dtype=torch.float64), generator=GENERATOR)
BINARY = (torch.rand(40, 4, generator=GENERATOR) < 0.4).double()
ROWS = {constraints.real: REAL, constraints.nonnegative_integer: COUNTS, constraints.boolean: BINARY}
EVERY = {name: cls for name, cls in REGISTRY.items() if issubclass(cls, ClosedForm)}
CONJUGATE = {name: cls for name, cls in EVERY.items() if issubclass(cls, Conjugate)}


def build(cls):
    return cls(**families.required(cls))


def refused(message, call):
    with pytest.raises(ValueError, match=message):
        call()


# --- the contract, over the registry


def test_the_registry_holds_every_closed_form_baseline():
    public = [getattr(baselines, name) for name in baselines.__all__]
    closed = [cls for cls in public if isinstance(cls, type) and issubclass(cls, ClosedForm)]
    assert set(closed) == set(EVERY.values())
    assert all(name.replace("_", "") == cls.__name__.lower() for name, cls in REGISTRY.items())


@pytest.mark.parametrize("name", EVERY)
def test_contract(name):
    cls = EVERY[name]
    baseline, x = build(cls), ROWS[cls.support]
    assert isinstance(baseline, Baseline)
    assert repr(baseline) == f"<{cls.__name__}, not fitted>"
    for call in (lambda: baseline.log_evidence(x), lambda: baseline.sample(2), baseline.summary):
        refused(f"{cls.__name__}: expected a fitted baseline", call)
    assert baseline.fit(x) is baseline
    ev = baseline.log_evidence(x)
    assert ev.estimate.shape == (40,)
    assert (ev.kind == "exact").all()
    assert (ev.verdict == "trust").all()
    assert ev.mean_interval == (ev.mean, ev.mean)
    assert (ev.target, ev.method, ev.parameters) == ("predictive", cls.__name__, cls.parameters)
    assert ev.measure[-1] == cls.measure
    assert ev.fingerprint == identity.fingerprint(x)
    np.testing.assert_array_equal(baseline.seen, identity.row_hashes(x))
    np.testing.assert_allclose(baseline.log_evidence(x[3:4]).estimate, ev.estimate[3:4], rtol=0, atol=1e-10)
    samples = baseline.sample(5, seed=1)
    assert samples.shape == (5, 4)
    assert samples.dtype == torch.float64
    assert torch.equal(samples, baseline.sample(5, seed=1))
    assert not torch.equal(samples, baseline.sample(5, seed=2))
    assert cls.support.check(samples).all()
    summary = baseline.summary()
    assert summary.startswith(cls.__name__)
    assert "\n" not in summary
    assert repr(baseline) == f"<{summary}>"
    refused("x: expected rows of width 4, as in fit, got width 3", lambda: baseline.log_evidence(x[:, :3]))
    refused("num_rows: expected a whole number ≥ 1", lambda: baseline.sample(0))


@pytest.mark.parametrize("name", EVERY)
def test_rows_of_any_kind_give_the_same_numbers(name):
    cls = EVERY[name]
    x = ROWS[cls.support].float()
    expected = build(cls).fit(x).log_evidence(x)
    kinds = [x.double(), x.numpy(), x.double().numpy(), pd.DataFrame(x.numpy()), {"x": x, "mask": None}]
    if cls.support is not constraints.real:
        kinds += [x.long(), x.int().numpy()]
    for kind in kinds:
        again = build(cls).fit(kind).log_evidence(kind)
        np.testing.assert_array_equal(again.estimate, expected.estimate)
        assert again.fingerprint == expected.fingerprint
    refused(
        r'x: expected a mapping with rows under "x", got the keys \[\'y\'\]', lambda: build(cls).fit({"y": x})
    )


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("kind", [torch.Tensor.clone, torch.Tensor.numpy], ids=["tensor", "array"])
def test_rows_that_change_after_the_fit_change_nothing(name, kind):
    x = ROWS[EVERY[name].support].clone()
    rows = kind(x.clone())
    baseline = build(EVERY[name]).fit(rows)
    expected, drawn = baseline.log_evidence(x).estimate, baseline.sample(5, seed=1)
    rows *= 0
    np.testing.assert_array_equal(baseline.log_evidence(x).estimate, expected)
    assert torch.equal(baseline.sample(5, seed=1), drawn)


@pytest.mark.parametrize("name", EVERY)
def test_a_refused_fit_changes_nothing(name):
    cls = EVERY[name]
    x = ROWS[cls.support]
    baseline = build(cls).fit(x)
    before, seen = baseline.log_evidence(x).estimate, baseline.seen
    refused("x: expected finite numbers", lambda: baseline.fit(x.index_fill(1, torch.tensor([2]), math.inf)))
    fit = baseline._fit

    def breaks_at_its_end(rows):
        fit(rows)
        raise RuntimeError

    baseline._fit = breaks_at_its_end
    with pytest.raises(RuntimeError):
        baseline.fit(x[:30].flip(1))
    np.testing.assert_array_equal(baseline.log_evidence(x).estimate, before)
    assert baseline.seen is seen
    fresh = build(cls)
    fresh._fit = breaks_at_its_end.__get__(fresh)
    with pytest.raises((RuntimeError, TypeError)):
        fresh.fit(x)
    refused("a fitted baseline", lambda: fresh.log_evidence(x))


@pytest.mark.parametrize("name", [name for name, cls in EVERY.items() if cls.support is not constraints.real])
def test_values_off_the_support_are_refused_by_column(name):
    cls = EVERY[name]
    x = ROWS[cls.support].clone()
    fitted = build(cls).fit(x)
    x[1, 2] = 0.5
    for call in (fitted.fit, fitted.log_evidence):
        refused(rf"support of {cls.family} .*1 off it, first 0.5 at row 1, column 2", lambda c=call: c(x))


@pytest.mark.parametrize(
    "name", [name for name, cls in EVERY.items() if cls.measure == "density" and name not in CONJUGATE]
)
def test_densities_follow_a_change_of_units(name):
    """log p of c·x is log p of x − D log c: nothing is floored in x's own units (conjugate priors are given in them)."""
    cls, c = EVERY[name], 2.0**-24  # a power of two, which rounds nothing
    one, other = build(cls).fit(REAL), build(cls).fit(c * REAL)
    expected = one.log_evidence(REAL).estimate - 4 * math.log(c)
    np.testing.assert_allclose(other.log_evidence(c * REAL).estimate, expected, rtol=0, atol=1e-6)


def everything(baseline, x):
    """Sets of rows that each fill the plane with two columns, shape (rows, 2), and the area of a row.

    Where x is real, these are three shifts of one grid. The mean of sums over all shifts is the integral, and for a density
    without kinks or jumps each sum equals it: the range of the sums is the error of a grid.
    """
    if baseline.family == "Categorical":
        axes = [torch.arange(int(k) + 1.0) for k in x.amax(dim=0)]
    elif baseline.support is constraints.boolean:
        axes = [torch.arange(2.0)] * 2
    elif baseline.support is constraints.nonnegative_integer:
        axes = [torch.arange(60.0)] * 2
    else:
        axes = [torch.linspace(-30, 30, 301, dtype=torch.float64)] * 2
    rows = torch.cartesian_prod(*axes).double()
    return ([rows + 0.2 * n / 3 for n in range(3)], 0.04) if baseline.measure == "density" else ([rows], 1.0)


@pytest.mark.statistical
@pytest.mark.parametrize("name", [name for name in EVERY if name != "bayesian_linear_regression"])
def test_probabilities_sum_to_one_and_samples_agree_with_them(name):
    """Σ P(x) = 1 over all x; and E_P of x_0, x_1, x_0², x_1², x_0 x_1 by that sum, and by samples."""
    cls, n = EVERY[name], 20_000
    x = ROWS[cls.support][:, :2]
    baseline = build(cls).fit(x)
    grids, area = everything(baseline, x)
    each = [np.exp(baseline.log_evidence(grid).estimate) * area for grid in grids]
    sums = [p.sum() for p in each]
    assert np.mean(sums) == pytest.approx(1, abs=1e-8 + max(sums) - min(sums))
    grid, p = torch.cat(grids), np.concatenate(each) / len(grids)

    def moments(rows):
        first, second = rows.numpy().T
        return np.stack([first, second, first**2, second**2, first * second], axis=1)

    samples = moments(baseline.sample(n, seed=1))
    error = samples.mean(axis=0) - p @ moments(grid)
    assert (np.abs(error) <= Z * samples.std(axis=0) / math.sqrt(n)).all()


# --- fits are maxima


def gain(log_likelihood, *parameters):
    """Nats a row that L-BFGS adds to a fit, from where it ended; log_likelihood takes the parameters, unconstrained."""
    parameters = [p.clone().contiguous().requires_grad_() for p in parameters]
    start = log_likelihood(*parameters).item()
    optimizer = torch.optim.LBFGS(
        parameters, max_iter=300, tolerance_grad=1e-12, tolerance_change=1e-15, line_search_fn="strong_wolfe"
    )

    def closure():
        optimizer.zero_grad()
        loss = -log_likelihood(*parameters)
        loss.backward()
        return loss

    optimizer.step(closure)
    return log_likelihood(*parameters).item() - start


def test_gain_sees_what_is_no_maximum():
    assert gain(lambda m: -((REAL[:, 0] - m) ** 2).mean(), REAL[:, 0].mean()) < 1e-12
    assert gain(lambda m: -((REAL[:, 0] - m) ** 2).mean(), REAL[:, 0].mean() + 1e-2) > 5e-5


def test_full_gaussian_is_the_maximum_and_scipys_density():
    fitted = baselines.FullGaussian().fit(REAL)
    oracle = stats.multivariate_normal(fitted.loc.numpy(), fitted.covariance.numpy())
    np.testing.assert_allclose(
        fitted.log_evidence(REAL).estimate, oracle.logpdf(REAL.numpy()), rtol=0, atol=1e-8
    )

    def log_likelihood(loc, factor):
        return MultivariateNormal(loc, scale_tril=factor.tril()).log_prob(REAL).mean()

    factor = torch.linalg.cholesky(fitted.covariance)
    assert log_likelihood(fitted.loc, factor).item() == pytest.approx(
        fitted.log_evidence(REAL).mean, abs=1e-10
    )
    assert gain(log_likelihood, fitted.loc, factor) < 1e-10


def test_independent_gaussian_is_scipys_fit():
    fitted = baselines.IndependentGaussian().fit(REAL)
    by_column = [stats.norm(*stats.norm.fit(column)).logpdf(column) for column in REAL.T.numpy()]
    np.testing.assert_allclose(fitted.log_evidence(REAL).estimate, sum(by_column), rtol=0, atol=1e-10)


@pytest.mark.parametrize("latent_dim", [1, 2])
def test_factor_analysis_is_the_maximum_and_scipys_density(latent_dim):
    noise = torch.tensor([0.3, 0.5, 1.0, 2.0, 0.7, 0.4], dtype=torch.float64)
    z = torch.randn(300, latent_dim, generator=GENERATOR, dtype=torch.float64)
    w = torch.randn(latent_dim, 6, generator=GENERATOR, dtype=torch.float64)
    x = 10.0 + z @ w + noise * torch.randn(300, 6, generator=GENERATOR, dtype=torch.float64)
    fitted = baselines.FactorAnalysis(latent_dim).fit(x)
    assert fitted.converged
    covariance = fitted.loadings @ fitted.loadings.T + fitted.noise_variance.diag()
    oracle = stats.multivariate_normal(fitted.loc.numpy(), covariance.numpy())
    np.testing.assert_allclose(fitted.log_evidence(x).estimate, oracle.logpdf(x.numpy()), rtol=0, atol=1e-8)

    def log_likelihood(loc, loadings, log_noise):
        full = loadings @ loadings.T + log_noise.exp().diag()
        return MultivariateNormal(loc, full).log_prob(x).mean()

    assert gain(log_likelihood, fitted.loc, fitted.loadings, fitted.noise_variance.log()) < 1e-6


def test_factor_analysis_at_the_edge_is_the_maximum_too():
    """A Heywood case: one ψ tends to 0, and no other ψ does better than the fit's."""
    correlation = torch.tensor([[1.0, 0.8, 0.8], [0.8, 1.0, 0.4], [0.8, 0.4, 1.0]], dtype=torch.float64)
    # One factor would need w_0² = 0.8 · 0.8 / 0.4 > 1; rows that have these correlations exactly:
    root = torch.linalg.cholesky(correlation)
    x = torch.cat([root.T, -root.T])
    fitted = baselines.FactorAnalysis(1).fit(x)
    assert fitted.converged
    share = fitted.noise_variance / x.var(dim=0)
    assert float(share[0]) < 1e-6
    assert float(share[1:].min()) > 0.1
    best = fitted.log_evidence(x).mean

    def log_likelihood(loadings, log_noise):
        noise = torch.cat([fitted.noise_variance[:1], log_noise.exp()])
        return MultivariateNormal(fitted.loc, loadings @ loadings.T + noise.diag()).log_prob(x).mean()

    assert gain(log_likelihood, fitted.loadings, fitted.noise_variance[1:].log()) < 1e-9
    fitted.noise_variance[0] = 0.05
    assert fitted.log_evidence(x).mean < best


def test_factor_analysis_finds_the_higher_of_two_maxima():
    x, expected = two_blocks()
    fitted = baselines.FactorAnalysis(1).fit(x)
    assert fitted.converged
    assert fitted.log_evidence(x).mean == pytest.approx(expected, abs=1e-6)


def test_factor_analysis_accepts_columns_that_nearly_repeat_others():
    """One factor of three columns has as many parameters as their covariance, so it fits these rows exactly."""
    loadings, noise = torch.tensor([[1.0, 1.0, 0.6]]).double().T, torch.tensor([5e-9, 5e-9, 0.64]).double()
    z = torch.randn(200, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    z = z - z.mean(dim=0)
    white = torch.linalg.solve_triangular(torch.linalg.cholesky(z.T @ z / 200), z.T, upper=False)
    x = 3.0 + (torch.linalg.cholesky(loadings @ loadings.T + noise.diag()) @ white).T
    fitted, full = baselines.FactorAnalysis(1).fit(x), baselines.FullGaussian().fit(x)
    np.testing.assert_allclose(fitted.noise_variance, noise, rtol=1e-5)
    assert fitted.log_evidence(x).mean == pytest.approx(full.log_evidence(x).mean, abs=1e-9)
    x[:60, 2] = torch.nan
    fitted, full = baselines.FactorAnalysis(1).fit(x), baselines.FullGaussian().fit(x)
    assert fitted.log_evidence(x).mean == pytest.approx(full.log_evidence(x).mean, abs=0.02)


def two_clouds():
    shift = torch.tensor([3.0, -3.0, 0.0, 1.0], dtype=torch.float64)
    return torch.cat([REAL, REAL.flip(0) * 0.5 + shift])


@pytest.mark.parametrize("covariance", ["full", "tied", "diag", "spherical"])
def test_gaussian_mixture_is_a_maximum_and_scikit_learns_density(covariance):
    x = two_clouds()
    fitted = baselines.GaussianMixture(2, covariance).fit(x)
    assert fitted.converged
    oracle = SklearnMixture(2)
    oracle.weights_, oracle.means_ = fitted.weights.numpy(), fitted.loc.numpy()
    oracle.precisions_cholesky_ = np.linalg.inv(torch.linalg.cholesky(fitted.covariances).numpy()).swapaxes(
        1, 2
    )
    np.testing.assert_allclose(
        fitted.log_evidence(x).estimate, oracle.score_samples(x.numpy()), rtol=0, atol=1e-8
    )

    def log_likelihood(logits, loc, raw):
        if covariance in ("full", "tied"):
            normal = MultivariateNormal(loc, scale_tril=raw.tril().expand(2, 4, 4))
        else:
            normal = MultivariateNormal(loc, torch.diag_embed(raw.exp().expand(2, 4)))
        return MixtureSameFamily(Categorical(logits=logits), normal).log_prob(x).mean()

    sigma = fitted.covariances
    raw = {
        "full": lambda: torch.linalg.cholesky(sigma),
        "tied": lambda: torch.linalg.cholesky(sigma[:1]),
        "diag": lambda: sigma.diagonal(dim1=1, dim2=2).log(),
        "spherical": lambda: sigma[:, :1, 0].log(),
    }[covariance]()
    at_fit = log_likelihood(fitted.weights.log(), fitted.loc, raw).item()
    assert at_fit == pytest.approx(fitted.log_evidence(x).mean, abs=1e-9)
    assert gain(log_likelihood, fitted.weights.log(), fitted.loc, raw) < 1e-6


def test_gaussian_mixture_keeps_the_best_of_its_starts():
    """The first of several starts is that of one: several are never worse, and sometimes better."""
    x = two_clouds()
    gains = []
    for seed in range(4):
        one, many = (
            baselines.GaussianMixture(4, "tied", num_starts=n, seed=seed).fit(x).log_evidence(x).mean
            for n in (1, 4)
        )
        gains.append(many - one)
    assert min(gains) >= 0
    assert max(gains) > 1e-4


def negative_binomial(mean, concentration, n=400):
    rate = torch.distributions.Gamma(concentration, concentration / mean).sample((n,))
    return torch.poisson(rate).double()


def test_negative_binomial_is_the_maximum_and_scipys_mass():
    torch.manual_seed(1)
    x = torch.stack(
        [negative_binomial(m, r) for m, r in [(0.3, 0.2), (4.0, 1.5), (900.0, 3.0), (5e4, 0.7)]], 1
    )
    fitted = baselines.IndependentNegativeBinomial().fit(x)
    assert fitted.concentration.isfinite().all()
    r, m = fitted.concentration.numpy(), fitted.loc.numpy()
    oracle = stats.nbinom(r, r / (r + m)).logpmf(x.numpy()).sum(axis=1)
    np.testing.assert_allclose(fitted.log_evidence(x).estimate, oracle, rtol=1e-12, atol=1e-8)

    def log_likelihood(log_m, log_r):
        mass = torch.distributions.NegativeBinomial(log_r.exp(), logits=log_m - log_r)
        return mass.log_prob(x).sum(dim=1).mean()

    assert gain(log_likelihood, fitted.loc.log(), fitted.concentration.log()) < 1e-9


def test_negative_binomial_of_columns_that_are_not_spread_is_poisson():
    """Variance no larger than the mean, constant columns and zeros: the likelihood's limit, r = ∞, is Poisson."""
    even = torch.arange(40).remainder(2).double() + 3
    x = torch.stack([even, torch.full((40,), 3.0).double(), torch.zeros(40).double()], dim=1)
    fitted, poisson = baselines.IndependentNegativeBinomial().fit(x), baselines.IndependentPoisson().fit(x)
    assert fitted.concentration.isinf().all()
    np.testing.assert_array_equal(fitted.log_evidence(x).estimate, poisson.log_evidence(x).estimate)
    r = torch.logspace(0, 4, 30, dtype=torch.float64)
    logits = even.mean().log() - r.log()
    curve = [
        torch.distributions.NegativeBinomial(a, logits=b).log_prob(even).sum()
        for a, b in zip(r, logits, strict=True)
    ]
    assert (torch.stack(curve).diff() > -1e-6).all()
    assert torch.equal(fitted.sample(50)[:, 2], torch.zeros(50).double())


def test_negative_binomial_barely_spread_is_found_too():
    """A histogram of NB(mean 3, r = 300), whose variance is 1.01 times the mean: r is found, and is the best."""
    counts = stats.nbinom(300, 300 / 303).pmf(np.arange(16)) * 1e5
    column = torch.from_numpy(np.repeat(np.arange(16), counts.round().astype(int))).double()
    fitted = baselines.IndependentNegativeBinomial().fit(column)
    r = fitted.concentration
    assert 250 < float(r[0]) < 350
    assert (
        fitted.log_evidence(column).mean
        >= baselines.IndependentPoisson().fit(column).log_evidence(column).mean
    )
    for factor in (0.9, 1.1):
        worse = stats.nbinom(factor * r.item(), (factor * r / (factor * r + fitted.loc)).item()).logpmf(
            column
        )
        assert worse.mean() <= fitted.log_evidence(column).mean + 1e-13


def test_poisson_is_scipys():
    fitted = baselines.IndependentPoisson().fit(COUNTS)
    oracle = stats.poisson(COUNTS.numpy().mean(axis=0)).logpmf(COUNTS.numpy()).sum(axis=1)
    np.testing.assert_allclose(fitted.log_evidence(COUNTS).estimate, oracle, rtol=0, atol=1e-10)


# --- latent classes


def labels(n=300):
    """Two classes of rows over columns of 3, 2 and 4 categories."""
    tables = [
        [[0.8, 0.1, 0.1], [0.1, 0.2, 0.7]],
        [[0.9, 0.1], [0.3, 0.7]],
        [[0.4, 0.3, 0.2, 0.1], [0.1, 0.1, 0.1, 0.7]],
    ]
    generator = torch.Generator().manual_seed(3)
    chosen = (torch.rand(n, generator=generator) < 0.4).long()
    drawn = [torch.multinomial(torch.tensor(t)[chosen], 1, generator=generator) for t in tables]
    return torch.cat(drawn, dim=1).double()


@pytest.mark.parametrize("pseudo_count", [0.0, 1.0])
def test_latent_class_is_a_maximum_that_em_climbs_to(pseudo_count):
    x = labels()
    fitted = baselines.LatentClass(2, pseudo_count=pseudo_count, num_starts=3).fit(x)
    assert fitted.converged
    assert [p.shape for p in fitted.probabilities] == [(2, 3), (2, 2), (2, 4)]
    assert (np.diff(fitted.history) > -1e-12).all()
    assert fitted.history[-1] - fitted.history[0] > 1e-3

    def mixture(weights, tables):
        """By hand: log Σ_c π_c Π_d θ_cd[x_d], and the pseudo-counts' term."""
        joint = weights.log() + sum(t[:, x[:, d].long()].T.log() for d, t in enumerate(tables))
        return joint.logsumexp(dim=1), pseudo_count * sum(t.log().sum() for t in tables) / len(x)

    rows, prior = mixture(fitted.weights, fitted.probabilities)
    np.testing.assert_allclose(fitted.log_evidence(x).estimate, rows, rtol=0, atol=1e-10)
    assert float(rows.mean() + prior) == pytest.approx(fitted.history[-1], abs=1e-10)

    def objective(weights, *tables):
        rows, prior = mixture(weights.softmax(0), [t.softmax(1) for t in tables])
        return rows.mean() + prior

    logs = [t.clamp(min=1e-12).log() for t in fitted.probabilities]
    assert gain(objective, fitted.weights.log(), *logs) < 1e-6


def test_latent_class_goes_on_from_its_best_start():
    """Where it goes on from is no worse than what any start alone had come to."""
    x = labels()
    many = baselines.LatentClass(5, num_starts=4)
    many.fit(x)
    scouts = [many._climb(x, many._start(x, start), 30)[1][-1] for start in range(4)]
    assert max(scouts) - min(scouts) > 1e-4
    assert max(scouts) in many.history


def test_bernoulli_mixture_is_scipys_mass_and_latent_class_of_two_categories():
    x = (torch.rand(200, 5, generator=GENERATOR) < torch.rand(200, 1, generator=GENERATOR)).double()
    fitted = baselines.BernoulliMixture(3).fit(x)
    by_class = stats.bernoulli(fitted.probabilities.numpy()[None]).logpmf(x.numpy()[:, None]).sum(axis=2)
    oracle = np.log(np.exp(by_class) @ fitted.weights.numpy())
    np.testing.assert_allclose(fitted.log_evidence(x).estimate, oracle, rtol=0, atol=1e-10)
    other = baselines.LatentClass(3, 2).fit(x)
    np.testing.assert_array_equal(fitted.log_evidence(x).estimate, other.log_evidence(x).estimate)
    assert (fitted.weights.diff() <= 0).all()
    everything = torch.tensor(list(itertools.product([0.0, 1.0], repeat=5)))
    assert np.exp(fitted.log_evidence(everything).estimate).sum() == pytest.approx(1, abs=1e-12)


def test_one_class_is_independent_columns():
    """With one class, pseudo-counts 1 give Laplace's rule, which is IndependentBernoulli's Beta(1, 1)."""
    one = baselines.BernoulliMixture(1).fit(BINARY).log_evidence(BINARY).estimate
    np.testing.assert_allclose(
        one, baselines.IndependentBernoulli().fit(BINARY).log_evidence(BINARY).estimate, atol=1e-12
    )
    three = baselines.LatentClass(1, 9).fit(COUNTS).log_evidence(COUNTS).estimate
    np.testing.assert_allclose(
        three, baselines.DirichletCategorical(1.0, 9).fit(COUNTS).log_evidence(COUNTS).estimate, atol=1e-12
    )


def test_more_classes_than_rows_and_more_rows_than_a_block(monkeypatch):
    few = baselines.LatentClass(7).fit(labels(3))
    assert np.isfinite(few.log_evidence(labels(3)).estimate).all()
    whole = baselines.LatentClass(2).fit(labels()).log_evidence(labels()).estimate
    monkeypatch.setattr("pyrovae.baselines.latent_class._BLOCK", 64)
    blocks = baselines.LatentClass(2).fit(labels()).log_evidence(labels()).estimate
    np.testing.assert_allclose(whole, blocks, rtol=0, atol=1e-8)


@pytest.mark.parametrize(
    "baseline",
    [
        baselines.LatentClass(2, max_iter=1),
        baselines.GaussianMixture(2, max_iter=1),
        baselines.FactorAnalysis(1, max_iter=1),
    ],
    ids=lambda baseline: type(baseline).__name__,
)
def test_a_fit_that_has_not_converged_says_so(baseline):
    x = labels() if isinstance(baseline, baselines.LatentClass) else REAL
    with pytest.warns(UserWarning, match=r"has not converged in 1 steps.*Raise max_iter") as caught:
        baseline.fit(x)
    assert caught[0].filename == __file__
    assert not baseline.converged
    assert "not converged" in baseline.summary()


# --- kernel density


@pytest.mark.parametrize("bandwidth", [0.7, "scott", "silverman", "cross_validation"])
def test_kernel_density_is_scikit_learns(bandwidth):
    """scikit-learn has one bandwidth for all columns: on columns divided by theirs, 1; log P moves by Σ log h."""
    x, new = REAL[:25], REAL[25:]
    fitted = baselines.KernelDensity(bandwidth).fit(x)
    h = fitted.bandwidths.numpy()
    oracle = SklearnKernels(bandwidth=1.0, rtol=1e-12).fit(x.numpy() / h).score_samples(new.numpy() / h)
    np.testing.assert_allclose(fitted.log_evidence(new).estimate, oracle - np.log(h).sum(), rtol=0, atol=1e-8)


def test_kernel_density_rules_are_scipys_in_one_column():
    x = REAL[:, :1]
    for rule in ("scott", "silverman"):
        fitted = baselines.KernelDensity(rule).fit(x)
        oracle = stats.gaussian_kde(x[:, 0].numpy(), rule)
        np.testing.assert_allclose(
            fitted.log_evidence(x).estimate, oracle.logpdf(x[:, 0].numpy()), atol=1e-10
        )
    factors = baselines.KernelDensity("scott").fit(REAL).bandwidths / REAL.std(dim=0)
    np.testing.assert_allclose(factors, 40 ** (-1 / 8), rtol=1e-12)
    factors = baselines.KernelDensity("silverman").fit(REAL).bandwidths / REAL.std(dim=0)
    np.testing.assert_allclose(factors, (40 * 6 / 4) ** (-1 / 8), rtol=1e-12)


def test_cross_validated_bandwidth_is_the_best_by_leaving_rows_out():
    def left_out(bandwidths):
        """Fit to all rows but one, score that one."""
        scores = []
        for i in range(len(REAL)):
            kernels = baselines.KernelDensity(1.0).fit(torch.cat([REAL[:i], REAL[i + 1 :]]) / bandwidths)
            scores.append(
                kernels.log_evidence(REAL[i : i + 1] / bandwidths).mean - float(bandwidths.log().sum())
            )
        return np.mean(scores)

    h = baselines.KernelDensity().fit(REAL).bandwidths
    np.testing.assert_allclose((h / REAL.std(dim=0)).diff(), 0, atol=1e-12)
    best = left_out(h)
    for factor in (0.5, 0.97, 1.03, 2.0):
        assert left_out(factor * h) < best


# --- PPCA


def test_ppca_formula_is_scikit_learns_at_its_own_parameters():
    """scikit-learn divides by N − 1; there, formula and library agree to 1e-8."""
    x = LinearGaussian.random(3, 8).sample(60)
    pca = PCA(3).fit(x.numpy())
    ppca = baselines.PPCA(3)
    ppca._width = 8
    ppca.loc = torch.from_numpy(pca.mean_)
    ppca.noise_variance = float(pca.noise_variance_)
    ppca.loadings = torch.from_numpy(
        pca.components_.T * np.sqrt(pca.explained_variance_ - pca.noise_variance_)
    )
    np.testing.assert_allclose(ppca.log_evidence(x).estimate, pca.score_samples(x.numpy()), rtol=0, atol=1e-8)


def test_ppca_is_the_maximum_of_the_likelihood():
    """Closed form of the maximum, 1/N: −N/2 (D log 2π + Σ log λ + (D − L) log σ² + D)."""
    x = LinearGaussian.random(3, 8).sample(60)
    ppca = baselines.PPCA(3).fit(x)
    eigenvalues = torch.linalg.eigvalsh(torch.cov(x.T, correction=0)).flip(0)
    kept, residual = eigenvalues[:3], eigenvalues[3:].mean()
    expected = -0.5 * (8 * np.log(2 * np.pi) + kept.log().sum() + 5 * residual.log() + 8)
    assert ppca.log_evidence(x).mean == pytest.approx(float(expected), abs=1e-10)
    at_sklearns = x.shape[0] / (x.shape[0] - 1)
    worse = baselines.PPCA(3).fit(x)
    worse.loadings, worse.noise_variance = (
        worse.loadings * at_sklearns**0.5,
        worse.noise_variance * at_sklearns,
    )
    assert worse.log_evidence(x).mean < ppca.log_evidence(x).mean


def test_ppca_with_fewer_rows_than_columns_is_the_maximum_too():
    """The eigenvalues that scikit-learn does not return are zero, and are discarded ones all the same."""
    x = torch.randn(20, 60, dtype=torch.float64)
    ppca = baselines.PPCA(3).fit(x)
    eigenvalues = torch.linalg.eigvalsh(torch.cov(x.T, correction=0)).flip(0)
    assert ppca.noise_variance == pytest.approx(float(eigenvalues[3:].mean()), rel=1e-9)


def test_ppca_density_is_the_oracles():
    oracle = LinearGaussian.random(3, 8)
    ppca = baselines.PPCA(3)
    ppca._width, ppca.loc, ppca.loadings, ppca.noise_variance = (
        8,
        oracle.loc,
        oracle.loadings,
        oracle.sigma**2,
    )
    x = oracle.sample(20)
    np.testing.assert_allclose(ppca.log_evidence(x).estimate, oracle.log_prob(x), rtol=0, atol=1e-10)


# --- conjugate: evidence and predictive


def by_hand(name, rows):
    """The same baseline, fitted to some rows; categories are those of all rows."""
    return DIRICHLET().fit(rows) if name == "dirichlet_categorical" else build(CONJUGATE[name]).fit(rows)


def DIRICHLET():
    return baselines.DirichletCategorical(0.5, [int(k) + 1 for k in COUNTS.amax(dim=0)])


@pytest.mark.parametrize("name", CONJUGATE)
def test_evidence_is_the_chain_of_predictives(name):
    """log P(x_1 … x_N) = log P(x_1) + Σ log P(x_{n+1} | x_1 … x_n), exactly, in any order."""
    x = ROWS[CONJUGATE[name].support]
    whole = by_hand(name, x).marginal_likelihood()
    assert len(whole) == 1
    assert (whole.target, whole.kind[0], whole.parameters) == ("evidence", "exact", "posterior-averaged")
    assert whole.fingerprint == identity.fingerprint(x)
    assert whole.measure == by_hand(name, x).log_evidence(x).measure
    for order in (torch.arange(40), torch.arange(40).flip(0)):
        rows = x[order]
        chain = by_hand(name, rows[:1]).marginal_likelihood().total
        chain += sum(by_hand(name, rows[:n]).log_evidence(rows[n : n + 1]).total for n in range(1, 40))
        assert chain == pytest.approx(whole.total, abs=1e-9)


@pytest.mark.parametrize("name", CONJUGATE)
def test_evidence_needs_a_fit_and_never_ranks_among_predictives(name):
    cls = CONJUGATE[name]
    x = ROWS[cls.support]
    refused("a fitted baseline", build(cls).marginal_likelihood)
    fitted = build(cls).fit(x)
    with pytest.raises(ValueError, match=r"models: expected"):
        pv.compare({"a": fitted.marginal_likelihood(), "b": fitted}, x, check=False)


@pytest.mark.parametrize(("a", "b"), [(1.0, 1.0), (0.5, 2.0), (0.1, 0.3)])
def test_independent_bernoulli_is_the_ratio_of_evidences(a, b):
    """P(x | training) = P(training and x) / P(training), each a product of Beta functions."""
    train, new = BINARY, (torch.rand(5, 4) < 0.5).double()
    fitted = baselines.IndependentBernoulli(a, b).fit(train)

    def evidence(rows):
        ones = rows.sum(0).numpy()
        return (betaln(a + ones, b + len(rows) - ones) - betaln(a, b)).sum()

    expected = [evidence(torch.cat([train, row[None]])) - evidence(train) for row in new]
    np.testing.assert_allclose(fitted.log_evidence(new).estimate, expected, rtol=0, atol=1e-10)
    assert fitted.marginal_likelihood().total == pytest.approx(evidence(train), abs=1e-10)


def test_dirichlet_evidence_is_scipys_multinomial():
    """With the sequences of equal counts: Dirichlet-multinomial mass over the multinomial coefficient."""
    x = COUNTS[:, :1]
    k = int(x.max()) + 1
    counts = np.bincount(x[:, 0].long(), minlength=k)
    sequences = stats.multinomial(40, np.full(k, 1 / k)).logpmf(counts) + 40 * math.log(k)
    expected = stats.dirichlet_multinomial(np.full(k, 0.5), 40).logpmf(counts) - sequences
    assert baselines.DirichletCategorical(0.5).fit(x).marginal_likelihood().total == pytest.approx(
        expected, abs=1e-8
    )


def test_normal_inverse_gamma_evidence_and_predictive_by_quadrature():
    """∫∫ Π N(x_n; μ, σ²) N(μ; loc, σ²/kappa) InvGamma(σ²; alpha, beta) dμ dσ²: μ by its Gaussian, σ² on a grid."""
    loc, kappa, alpha, beta = 0.3, 0.7, 1.6, 2.2

    def evidence(column):
        n = len(column)
        covariance = np.eye(n) + np.ones((n, n)) / kappa  # of the rows given σ², in units of it
        prior = stats.invgamma(alpha, scale=beta)
        centred = column - loc
        quadratic = centred @ np.linalg.solve(covariance, centred)
        constant = -0.5 * (n * math.log(2 * math.pi) + np.linalg.slogdet(covariance)[1])

        def integrand(log_s):
            s = math.exp(log_s)
            return math.exp(constant - 0.5 * n * log_s - 0.5 * quadratic / s + prior.logpdf(s) + log_s + 10)

        return math.log(integrate.quad(integrand, -8, 12, epsabs=0, epsrel=1e-11, limit=500)[0]) - 10

    x = REAL[:6, :2]
    fitted = baselines.NormalInverseGamma(loc, kappa, alpha, [beta, beta]).fit(x)
    expected = [evidence(column) for column in x.T.numpy()]
    assert fitted.marginal_likelihood().total == pytest.approx(sum(expected), abs=1e-8)
    with_new = [evidence(np.append(column, 0.5)) for column in x.T.numpy()]
    predictive = fitted.log_evidence(torch.full((1, 2), 0.5)).total
    assert predictive == pytest.approx(sum(with_new) - sum(expected), abs=1e-8)


@pytest.mark.parametrize("intercept", [True, False])
def test_linear_regression_is_a_multivariate_t(intercept):
    """All responses together: t(2 alpha; 0, beta/alpha (I + ΦΦᵀ/precision)), scipy's; and the same of further ones."""
    precision, alpha, beta = 0.4, 1.7, 2.3
    x, new = REAL[:20], REAL[20:23]
    fitted = baselines.BayesianLinearRegression(precision, alpha, beta, intercept).fit(x)

    def evidence(rows):
        phi = rows[:, :-1].numpy()
        phi = np.hstack([phi, np.ones((len(phi), 1))]) if intercept else phi
        shape = beta / alpha * (np.eye(len(phi)) + phi @ phi.T / precision)
        return stats.multivariate_t(np.zeros(len(phi)), shape, df=2 * alpha).logpdf(rows[:, -1].numpy())

    assert fitted.marginal_likelihood().total == pytest.approx(evidence(x), abs=1e-9)
    expected = [evidence(torch.cat([x, row[None]])) - evidence(x) for row in new]
    np.testing.assert_allclose(fitted.log_evidence(new).estimate, expected, rtol=0, atol=1e-9)
    assert fitted.log_evidence(new).measure == ("unscored",) * 3 + ("density",)


@pytest.mark.statistical
def test_linear_regression_samples_its_predictive():
    """Each covariate row is a training row; (y − m·φ)/scale of the samples is Student's t: its quartile, at Z."""
    fitted = baselines.BayesianLinearRegression().fit(REAL)
    samples = fitted.sample(4000, seed=5)
    known = {tuple(row) for row in REAL[:, :-1].tolist()}
    assert {tuple(row) for row in samples[:, :-1].tolist()} <= known
    features, response = fitted._split(samples)
    predictive = fitted._predictive(features)
    quantile = stats.t(2 * fitted.alpha_n).cdf(((response - predictive.loc) / predictive.scale).numpy())
    for level in (0.1, 0.5, 0.9):
        assert abs((quantile < level).mean() - level) < Z * math.sqrt(level * (1 - level) / 4000)


# --- what has no density, or no mass

SAME = torch.randn(30, 1, dtype=torch.float64).expand(30, 5)
STUCK = torch.cat([REAL, torch.full((40, 1), 2.0)], dim=1)
TWICE = torch.cat([REAL, REAL[:, :1]], dim=1)


@pytest.mark.parametrize(
    ("baseline", "x", "message"),
    [
        (baselines.PPCA(4), REAL, r"latent_dim: expected fewer than the 4 columns.*latent_dim=3 or less\.$"),
        (baselines.PPCA(1), REAL[:, :1], r"latent_dim: expected fewer than the 1 columns.* Use FullGaussian"),
        (baselines.PPCA(1), REAL[:1], r"latent_dim: .* the 1 rows of x, got 1\. Pass three rows or more"),
        (
            baselines.PPCA(3),
            torch.randn(3, 8),
            r"latent_dim: expected fewer than the 8 columns and the 3 rows.* Pass latent_dim=1 or less",
        ),
        (baselines.PPCA(2), SAME, "x: expected rows that fill more than 2 dimensions"),
        (
            baselines.FactorAnalysis(4),
            REAL,
            r"latent_dim: expected fewer than the 4 columns.*latent_dim=3 or less",
        ),
        (
            baselines.FactorAnalysis(1),
            REAL[:, :1],
            "latent_dim: expected fewer than the 1 columns.* Use FullGaussian",
        ),
        (
            baselines.FactorAnalysis(1),
            REAL[:2],
            r"latent_dim: .* rows of x less one, got 1\. Pass three rows or more",
        ),
        (
            baselines.FactorAnalysis(2),
            torch.randn(3, 8),
            r"latent_dim: .* the 3 rows of x less one.*=1 or less",
        ),
        (
            baselines.FactorAnalysis(1),
            TWICE,
            r"x: expected columns with noise that 1 factors do not explain.* \+∞.*PPCA",
        ),
        (baselines.FullGaussian(), REAL[:4], "x: expected more rows than its 4 columns, got 4 rows"),
        (baselines.FullGaussian(), TWICE, "x: expected columns that are linearly independent"),
        (
            baselines.GaussianMixture(2),
            TWICE,
            r"x: expected rows on which 2 components each have variance .*covariance=",
        ),
        (
            baselines.GaussianMixture(9),
            REAL[:9],
            r"x: expected rows on which 9 components each have variance",
        ),
        (baselines.GaussianMixture(9), REAL[:8], "x: expected at least as many rows as the 9 components"),
        (
            baselines.GaussianMixture(1, "spherical"),
            STUCK[:, 4:],
            r"their variance is learned, got 1 constant",
        ),
        *(
            (
                build(EVERY[name]),
                STUCK,
                r"columns that vary, .* 1 constant column\(s\), first column 4 \(value 2\)",
            )
            for name in (
                "full_gaussian",
                "independent_gaussian",
                "factor_analysis",
                "gaussian_mixture",
                "kernel_density",
            )
        ),
        (baselines.KernelDensity(), REAL.repeat(2, 1), "x: expected rows of which some are not repeated"),
        (baselines.BayesianLinearRegression(), REAL[:, :1], "x: expected covariates, and the response"),
        (
            baselines.NormalInverseGamma(loc=[0.0, 1.0]),
            REAL,
            "loc: expected a number, or one for each of the 4",
        ),
        (baselines.LatentClass(2, 3), COUNTS, "x: expected categories 0 … 2 in column 1, got"),
        (
            baselines.DirichletCategorical(1.0, [9, 9]),
            COUNTS,
            "num_categories: expected one for each of the 4",
        ),
    ],
)
def test_what_has_no_density_or_mass_is_refused(baseline, x, message):
    refused(message, lambda: baseline.fit(x))
    assert baseline._width is None


def test_a_shared_variance_bears_constant_columns():
    for baseline in (
        baselines.GaussianMixture(1, "spherical"),
        baselines.PPCA(1),
        baselines.KernelDensity(0.5),
    ):
        assert np.isfinite(baseline.fit(STUCK).log_evidence(STUCK).estimate).all()


@pytest.mark.parametrize(
    ("baseline", "train", "new"),
    [
        (baselines.IndependentPoisson(), [[0, 1]], [[0, 1], [1, 1]]),
        (baselines.IndependentNegativeBinomial(), [[0, 1], [0, 9]], [[0, 1], [1, 1]]),
        (baselines.BernoulliMixture(2, pseudo_count=0), [[0, 1], [0, 0]], [[0, 1], [1, 1]]),
        (baselines.LatentClass(2, 3, pseudo_count=0), [[0, 1], [0, 0]], [[0, 1], [2, 1]]),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Baseline) else "",
)
def test_impossible_rows_are_refused_and_the_prior_named(baseline, train, new):
    fitted = baseline.fit(torch.tensor(train))
    assert np.isfinite(fitted.log_evidence(torch.tensor(new[:1])).estimate).all()
    refused(
        "x: expected rows that are possible under .* got 1 of probability 0, first row 1.*pseudo_count > 0",
        lambda: fitted.log_evidence(torch.tensor(new)),
    )


def test_a_category_that_training_rows_lack():
    """Beyond K it is refused; within K the prior gives it a/(a K + N), pseudo-counts alike."""
    train, new = torch.tensor([[0], [1], [1]]), torch.tensor([[2]])
    for baseline in (baselines.DirichletCategorical(), baselines.LatentClass(1)):
        fitted = baseline.fit(train)
        refused(
            "expected categories 0 … 1 in column 0, got 1 .*num_categories",
            lambda f=fitted: f.log_evidence(new),
        )
        named = baseline.fit(pd.DataFrame(train.numpy(), columns=["age"]))
        frame = pd.DataFrame(new.numpy(), columns=["age"])
        refused("0 … 1 in column 'age', got 1 .* column 'age'", lambda f=named, x=frame: f.log_evidence(x))
    for baseline in (baselines.DirichletCategorical(1.0, 3), baselines.LatentClass(1, 3)):
        assert baseline.fit(train).log_evidence(new).total == pytest.approx(math.log(1 / 6), abs=1e-12)


def test_independent_bernoulli_refuses_grey():
    grey = torch.zeros(3, 4)
    grey[1, 2] = 0.5
    refused(
        r"support of Bernoulli.*1 off it, first 0.5 at row 1, column 2.*ContinuousBernoulli",
        lambda: baselines.IndependentBernoulli().fit(grey),
    )


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: baselines.IndependentBernoulli(a=0.0), "a: expected a finite number > 0"),
        (lambda: baselines.NormalInverseGamma(beta=[1.0, 0.0]), "beta: expected a finite number > 0"),
        (
            lambda: baselines.NormalInverseGamma(loc=math.nan).fit(REAL),
            "loc: expected a finite number, got nan",
        ),
        (lambda: baselines.DirichletCategorical(-1.0), "concentration: expected a finite number > 0"),
        (
            lambda: baselines.BayesianLinearRegression(precision=0.0),
            "precision: expected a finite number > 0",
        ),
        (lambda: baselines.KernelDensity(0.0), "bandwidth: expected a finite number > 0"),
        (lambda: baselines.KernelDensity("wide"), "bandwidth: expected one of 'scott', 'silverman'"),
        (lambda: baselines.GaussianMixture(2, "round"), "covariance: expected one of 'full', 'tied'"),
        (lambda: baselines.LatentClass(2, pseudo_count=-1.0), "pseudo_count: expected a finite number ≥ 0"),
        (lambda: baselines.LatentClass(0), "num_classes: expected a whole number ≥ 1"),
    ],
)
def test_arguments_are_checked_where_they_are_given(build, message):
    refused(message, build)


def test_float32_rows_have_the_vaes_fingerprint():
    x = torch.randn(9, 6)
    vae = pv.VAE.mlp(6, 2, likelihood="gaussian")
    assert (
        baselines.PPCA(2).fit(x).log_evidence(x).fingerprint
        == pv.log_evidence(vae, x, num_samples=2, check=False).fingerprint
    )


@pytest.mark.parametrize("kind", [np.asarray, pd.DataFrame, torch.as_tensor])
@pytest.mark.parametrize(
    "name", [name for name, cls in REGISTRY.items() if not getattr(cls, "takes_missing", False)]
)
def test_a_mask_is_refused_by_baselines_of_complete_rows(name, kind):
    """Otherwise what lies below the mask is scored."""
    hidden = np.ones((30, 2), dtype=bool)
    hidden[4, 1] = False
    if name == "pyro_mcmc":
        pytest.skip("its model is the user's")
    baseline = REGISTRY[name](*[1] * (name == "bayesian_pca"))
    rows = kind(np.random.default_rng(0).normal(size=(30, 2)))
    with pytest.raises(
        ValueError, match=r"observed: expected no hidden cells, .* got 1, first at row 4, column 1"
    ):
        baseline.fit({"x": rows, "observed": kind(hidden)})


def test_a_mask_that_hides_nothing_changes_nothing():
    rows = np.random.default_rng(0).normal(size=(30, 2))
    whole = baselines.KernelDensity().fit(rows)
    found = whole.log_evidence({"x": rows, "observed": np.ones((30, 2), dtype=bool)})
    np.testing.assert_array_equal(found.estimate, whole.log_evidence(rows).estimate)
    hidden = {"x": rows, "observed": rows > -1e9}
    hidden["observed"][0, 0] = False
    with pytest.raises(ValueError, match="because KernelDensity takes complete rows, got 1, first at row 0"):
        whole.log_evidence(hidden)


def test_bits_count_the_scored_columns():
    rows = torch.randn(40, 3, dtype=torch.float64)
    fitted = baselines.BayesianLinearRegression().fit(rows)
    found = fitted.log_evidence(rows + 0.1)
    assert found.bits_per_dim == pytest.approx(-found.mean / math.log(2))
    together = fitted.marginal_likelihood()
    assert together.bits_per_dim == pytest.approx(-together.total / 40 / math.log(2))
