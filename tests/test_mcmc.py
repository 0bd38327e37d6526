"""PyroMCMC, its bridge and BayesianPCA against closed forms and reference draws; and what they refuse."""

import _thread
import copy
import functools
import math
import re
import signal
import sys

import arviz
import numpy as np
import posteriordb
import pyro
import pyro.distributions as dist
import pytest
import torch
from conjugate import CASES, coins
from oracles import LinearGaussian
from pyro import poutine
from pyro.infer.reparam import HaarReparam, LocScaleReparam
from pyro.nn import PyroModule, PyroSample
from rates import SEED, Z, close

import pyrovae as pv
from pyrovae import baselines, noise
from pyrovae.baselines.mcmc import chains, native
from pyrovae.baselines.mcmc.chains import traced, with_gradient
from pyrovae.evidence.bridge import bridge
from pyrovae.pair.globals import BayesianModel
from pyrovae.progress import Progress
from pyrovae.tracing import TracedDensity, Untraceable

QUICK = {"num_samples": 150, "warmup_steps": 100, "num_chains": 2, "seed": SEED}


@pytest.fixture(params=["nutpie", "pyro"])
def sampler(request, monkeypatch):
    """Each of the two samplers; Pyro's runs where nutpie is not installed."""
    if request.param == "nutpie":
        pytest.importorskip("nutpie")
    else:
        monkeypatch.setitem(sys.modules, "nutpie", None)
    return request.param


@functools.cache
def fitted(name, sampler="nutpie"):
    """A conjugate model's chains. ``sampler`` is what the test's fixture of that name has installed."""
    return baselines.PyroMCMC(CASES[name].model, **QUICK).fit(CASES[name].x)


# ---------------------------------------------------------------------------------------------------------
# The bridge by itself, on independent draws


def gaussian(dim, seed):
    """A normal density on ``dim`` dimensions, unnormalised; 1000 draws of it in 4 chains; its log evidence."""
    generator = torch.Generator().manual_seed(seed)
    root = torch.randn(dim, dim, generator=generator, dtype=torch.float64) / dim**0.5
    tril = torch.linalg.cholesky(root @ root.T + torch.eye(dim, dtype=torch.float64))
    draws = torch.randn(1000, dim, generator=generator, dtype=torch.float64) @ tril.T

    def log_target(u):
        return -0.5 * torch.linalg.solve_triangular(tril, u.mT, upper=False).square().sum(0)

    truth = dim / 2 * math.log(2 * math.pi) + float(tril.diagonal().log().sum())
    return log_target, draws.unflatten(0, (4, 250)), truth


@pytest.mark.statistical
@pytest.mark.parametrize("warp", [False, True])
def test_bridge_at_50_dimensions(warp):
    """RMSE below 0.05 nats from 1000 draws; unbiased; and the error it reports is the error it has.

    The standard error of a variance over R replications is sqrt(2/R) of it.
    """
    replications = 40
    errors, reported = [], []
    for replication in range(replications):
        log_target, draws, truth = gaussian(50, 1000 * SEED + replication)
        found = bridge(log_target, draws, warp=warp, seed=10**6 + 1000 * SEED + replication)
        errors.append(found.log_evidence - truth)
        reported.append(found.error)
    errors, reported = np.array(errors), np.array(reported)
    assert (errors**2).mean() ** 0.5 < 0.05
    assert close(errors.mean(), 0.0, errors.std(ddof=1) / replications**0.5)
    spread = (2 / replications) ** 0.5
    assert abs(((errors / reported) ** 2).mean() - 1) < Z * spread


@pytest.mark.statistical
def test_warp_helps_with_skew():
    """Gamma(2) on the log scale, five independent ones: exactly 0, the logarithm of Γ(2)⁵."""
    generator = torch.Generator().manual_seed(SEED)
    # a Gamma(2) is the sum of two exponentials
    u = -torch.rand(4, 500, 5, 2, generator=generator, dtype=torch.float64).log().sum(-1)
    u = u.log()

    def log_target(u):
        return (2 * u - u.exp()).sum(-1)

    plain, warped = bridge(log_target, u), bridge(log_target, u, warp=True)
    for found in (plain, warped):
        assert close(found.log_evidence, 0.0, found.error)
    assert warped.error < plain.error


def test_bridge_says_when_nothing_overlaps():
    """Two modes at ±12 in each of 30 dimensions: the normal proposal falls between them all, the error says so."""
    generator = torch.Generator().manual_seed(SEED)
    shape = (4, 200, 30)
    side = torch.randint(0, 2, shape, generator=generator).double() * 2 - 1
    draws = 12 * side + torch.randn(shape, generator=generator, dtype=torch.float64)

    def log_target(u):
        return torch.logaddexp(-((u - 12) ** 2) / 2, -((u + 12) ** 2) / 2).sum(-1)

    assert bridge(log_target, draws).error > 1


def test_bridge_refuses():
    with pytest.raises(ValueError, match=r"draws: expected shape \(chains, draws, dim\)"):
        bridge(lambda u: u.sum(-1), torch.randn(100, 2))
    with pytest.raises(ValueError, match="at least 24 to fit 10 dimensions, got 20"):
        bridge(lambda u: u.sum(-1), torch.randn(2, 10, 10))
    with pytest.raises(ValueError, match="draws that fill their space"):
        bridge(lambda u: u.sum(-1), torch.randn(2, 100, 1).expand(2, 100, 3))


# ---------------------------------------------------------------------------------------------------------
# Closed forms


@pytest.mark.statistical
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("warp", [False, True])
def test_evidence_of_conjugate_models(name, warp):
    ev = fitted(name).marginal_likelihood(warp=warp)
    assert len(ev) == 1
    assert ev.target == "evidence"
    assert ev.kind[0] == "estimate"
    assert ev.mcse[0] < 0.05
    assert close(ev.total, CASES[name].log_evidence, float(ev.mcse[0]))


@pytest.mark.statistical
@pytest.mark.parametrize("name", ["Beta-Bernoulli", "normal-inverse-gamma"])
def test_predictive_of_conjugate_models(name):
    """Each row's log P(x_n | training) is a ratio of exact evidences."""
    case = CASES[name]
    rows = case.x[:7]
    ev = fitted(name).log_evidence(rows)
    exact = np.array([case.predictive(row[None]) for row in rows])
    assert (np.abs(ev.estimate - ev.bias - exact) < Z * ev.mcse + 1e-12).all()
    assert close(ev.mean - ev.mean_bias, exact.mean(), ev.mean_mcse)
    assert ev.target == "predictive"
    assert ev.parameters == "posterior-averaged"
    assert set(ev.measure) == {"mass" if name == "Beta-Bernoulli" else "density"}


def test_error_of_the_mean_is_joint():
    """The rows share their draws: 200 copies of a row have the row's own error, not 1/√200 of it."""
    mcmc, row = fitted("normal-inverse-gamma"), torch.full((200,), 2.5)
    ev = mcmc.log_evidence(row)
    assert ev.mean_mcse == pytest.approx(float(ev.mcse[0]), rel=0.2)
    assert ev.mean_mcse == ev.shared_mcse


def test_rows_of_no_probability_have_no_verdict_to_trust():
    def narrow(x):
        width = pyro.sample("width", dist.Uniform(1.0, 2.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(0.0, width), obs=x)

    mcmc = baselines.PyroMCMC(narrow, num_samples=60, warmup_steps=40, num_chains=2).fit(torch.randn(10))
    ev = mcmc.log_evidence(torch.tensor([0.0, 1e200], dtype=torch.float64))
    assert ev.verdict[1] != "trust"
    assert ev.mean == -math.inf
    assert math.isinf(ev.mean_mcse)
    assert np.isfinite(ev.estimate[0])


def test_row_errors_are_arvizs():
    """mcse of a row, by hand from the log-likelihoods and arviz's own effective number."""
    mcmc = fitted("normal-inverse-gamma")
    ev = mcmc.log_evidence(torch.tensor([1.7, 3.0]))
    sigma = mcmc.posterior["precision"] ** -0.5
    for n, value in enumerate((1.7, 3.0)):
        density = torch.distributions.Normal(mcmc.posterior["mu"], sigma).log_prob(torch.tensor(value)).exp()
        assert ev.estimate[n] == pytest.approx(float(density.mean().log()), abs=1e-10)
        ess = float(arviz.ess(density.numpy(), method="mean"))
        assert ev.mcse[n] == pytest.approx(float(density.std() / density.mean()) / ess**0.5, rel=0.15)


@pytest.mark.statistical
def test_sample_is_the_posterior_predictive():
    """Means of 600 rows of coins; P(x_d = 1) is the exact predictive."""
    x = CASES["Beta-Bernoulli"].x
    mcmc = fitted("Beta-Bernoulli")
    rows = mcmc.sample(600, seed=SEED)
    p = (1 + x.sum(0)) / (3 + len(x))
    assert rows.shape == (600, 3)
    assert torch.equal(rows[:5], mcmc.sample(600, seed=SEED)[:5])
    for column in range(3):
        assert close(
            float(rows[:, column].mean()), float(p[column]), float((p * (1 - p))[column] / 600) ** 0.5
        )


@pytest.mark.statistical
def test_both_samplers_give_the_exact_evidence(sampler):
    mcmc = fitted("normal-inverse-gamma", sampler)
    ev = mcmc.marginal_likelihood()
    assert close(ev.total, CASES["normal-inverse-gamma"].log_evidence, float(ev.mcse[0]))
    assert mcmc.posterior["mu"].shape == (2, QUICK["num_samples"])


# ---------------------------------------------------------------------------------------------------------
# posteriordb


def check_means(draws, reference):
    """BayesianModel means against the reference's, within the Monte-Carlo error of both."""
    for name, values in reference.items():
        se = math.hypot(*(float(arviz.mcse(v, method="mean")) for v in (draws[name], values)))
        assert close(draws[name].mean(), values.mean(), se), name


@functools.cache
def eight_schools():
    options = QUICK | {"num_samples": 400, "target_accept_prob": 0.9}
    return baselines.PyroMCMC(posteriordb.eight_schools, **options).fit(SCHOOLS)


@pytest.mark.statistical
def test_eight_schools():
    """Latents of single rows: fitted, with an evidence; new schools are refused."""
    reference = posteriordb.reference("eight_schools-eight_schools_noncentered")
    assert all(torch.equal(SCHOOLS[name], column) for name, column in reference.x.items())
    mcmc = copy.copy(eight_schools())
    mu, tau = mcmc.posterior["mu"], mcmc.posterior["tau"]
    theta = mu[..., None] + tau[..., None] * mcmc.posterior["theta_trans"]
    draws = {"mu": mu.numpy(), "tau": tau.numpy()}
    draws |= {f"theta[{j + 1}]": theta[..., j].numpy() for j in range(8)}
    check_means(draws, reference.draws)
    ev = mcmc.marginal_likelihood()
    assert abs(ev.total - reference.log_evidence["normalised"]) < 0.05
    assert ev.given.keys() == {"sigma"}
    with pytest.raises(ValueError, match="latent 'theta_trans', which changes with the number of rows"):
        mcmc.log_evidence(reference.x)
    # The same draws serve the Stan program's density, which is half of the normalised one everywhere.
    mcmc._joint = BayesianModel(posteriordb.as_written(posteriordb.eight_schools), mcmc._joint.batch)
    mcmc._at_draws = None  # those of the other density
    assert abs(mcmc.marginal_likelihood().total - reference.log_evidence["as_written"]) < 0.05


@pytest.mark.statistical
def test_autoregression():
    """Rows that feel each other: fitted, with an evidence; a row by itself has no log P."""
    reference = posteriordb.reference("arK-arK")
    mcmc = baselines.PyroMCMC(posteriordb.autoregression, full_mass=True, **QUICK).fit(reference.x)
    draws = {"alpha": mcmc.posterior["alpha"].numpy(), "sigma": mcmc.posterior["sigma"].numpy()}
    draws |= {f"beta[{k + 1}]": mcmc.posterior["beta"][..., k].numpy() for k in range(5)}
    check_means(draws, reference.draws)
    assert abs(mcmc.marginal_likelihood().total - reference.log_evidence["normalised"]) < 0.05
    with pytest.raises(ValueError, match="rows that are independent given the latents that they share"):
        mcmc.log_evidence(reference.x)
    mcmc._joint = BayesianModel(posteriordb.as_written(posteriordb.autoregression), mcmc._joint.batch)
    mcmc._at_draws = None  # those of the other density
    assert abs(mcmc.marginal_likelihood().total - reference.log_evidence["as_written"]) < 0.05


# ---------------------------------------------------------------------------------------------------------
# Evidences of one training set

SCHOOLS = {
    "x": torch.tensor([28.0, 8, -3, 7, -1, 1, 18, 12], dtype=torch.float64),
    "sigma": torch.tensor([15.0, 10, 16, 11, 9, 11, 10, 18], dtype=torch.float64),
}


def pooled(x, sigma):
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    with pyro.plate("schools", len(x)):
        pyro.sample("y", dist.Normal(mu, sigma), obs=x)


def schools_evidence(tau):
    """log P(y | τ) with μ ~ N(0, 5) integrated out, in closed form."""
    covariance = 25.0 + torch.diag_embed(SCHOOLS["sigma"] ** 2 + tau[..., None] ** 2)
    return dist.MultivariateNormal(torch.zeros(8).double(), covariance).log_prob(SCHOOLS["x"])


@pytest.mark.statistical
def test_pooled_and_hierarchical_schools_are_compared():
    """τ ~ half-Cauchy(5) by quadrature: substituted by its quantiles, 5 tan(π q / 2), the prior is uniform."""
    q = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    hierarchical = float(torch.logsumexp(schools_evidence(5 * torch.tan(math.pi / 2 * q)), 0)) - math.log(
        len(q)
    )
    one = float(schools_evidence(torch.zeros(1).double()))
    table = pv.compare_evidence(
        {
            "hierarchical": eight_schools(),
            "pooled": baselines.PyroMCMC(pooled, **QUICK).fit(SCHOOLS),
        }
    )
    factor = table["log_bayes_factor"]
    assert close(factor["pooled"] - factor["hierarchical"], one - hierarchical, table["mcse_diff"].max())
    assert table["mcse_diff"].max() < 0.05


def test_the_evidence_of_a_training_set_is_no_row_s():
    ev = fitted("Beta-Bernoulli").marginal_likelihood()
    first, second, third, *_ = str(ev).splitlines()
    assert first.startswith(f"log P(x) = {ev.total:.3f} nats for all 20 rows together (95 % interval")
    assert second == "bridge, 300 draws: estimate, posterior-averaged"
    assert third == f"verdict: {ev.verdict[0]}"
    assert "row" not in ev.to_frame().index.name
    assert ev.bits_per_dim == pytest.approx(-ev.total / (20 * 3 * math.log(2)))


def _mu():
    return pyro.sample("mu", dist.Normal(0.0, 1.0))


def hierarchy(x):
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z[:, None], 1.0).expand([len(x), 3]).to_event(1), obs=x)


def process(x):
    """A Gaussian process: one event of all rows."""
    length, time = pyro.sample("length", dist.LogNormal(0.0, 1.0)), torch.arange(float(len(x)))
    kernel = torch.exp(-(((time[:, None] - time) / length) ** 2) / 2) + 0.1 * torch.eye(len(x))
    pyro.sample("x", dist.MultivariateNormal(torch.zeros(len(x)), kernel), obs=x[:, 0])


def regressed(x):
    pyro.sample("x", dist.Normal(x[:, :2].sum(1) * _mu(), 1.0).to_event(1), obs=x[:, 2])


def bits_and_numbers(x):
    """Of both kinds, the bits cast to bool and back."""
    z = pyro.sample("z", dist.Normal(_mu(), 1.0).expand([len(x)]).to_event(1))
    pyro.sample("bits", dist.Bernoulli(logits=z).to_event(1), obs=(x[:, 0] > 0).bool().double())
    pyro.sample("rest", dist.Normal(z[:, None], 1.0).expand([len(x), 2]).to_event(2), obs=x[:, 1:])


def after(x, lag=1):
    """An autoregression, given the first rows."""
    pyro.sample("x", dist.Normal(_mu() * x[:-lag, 0], 1.0).to_event(1), obs=x[lag:, 0])


def chain_of_bits(x):
    """A column chooses the probability of its next one: rows that index."""
    p = pyro.sample("p", dist.Beta(1.0, 1.0).expand([2]).to_event(1))
    pyro.sample("first", dist.Bernoulli(0.5), obs=x[0, 0])
    with pyro.plate("times", len(x) - 1):
        pyro.sample("x", dist.Bernoulli(p[x[:-1, 0].long()]), obs=x[1:, 0])


def from_the_last(x):
    with pyro.plate("times", len(x)):
        pyro.sample("x", dist.Normal(_mu() * torch.cat([x[1:, 0], torch.zeros(1)]), 1.0), obs=x[:, 0])


def states(x):
    """Latents one by one that read the row before."""
    state = pyro.sample("start", dist.Normal(0.0, 1.0))
    for time in range(len(x)):
        state = pyro.sample(f"z{time}", dist.Normal(state + (x[time - 1, 0] if time else 0.0), 1.0))
        pyro.sample(f"x{time}", dist.Normal(state, 1.0), obs=x[time, 0])


def each_other_s_past(x):
    """Two columns, each on the other's last row; the second on the first."""
    mu, last = _mu(), torch.cat([torch.zeros(1, 3), x[:-1]])
    with pyro.plate("times", len(x)):
        pyro.sample("a", dist.Normal(mu * last[:, 1], 1.0), obs=x[:, 0])
        pyro.sample("b", dist.Normal(mu * last[:, 0] + x[:, 0], 1.0), obs=x[:, 1])


def last_column_first(x):
    mu = _mu()
    with pyro.plate("rows", len(x)):
        pyro.sample("b", dist.Normal(mu * x[:, 0], 1.0), obs=x[:, 1])
        pyro.sample("a", dist.Normal(mu, 1.0), obs=x[:, 0])


def masked(x):
    with pyro.plate("rows", len(x)):
        pyro.sample("x", dist.Normal(_mu(), 1.0).mask(torch.arange(len(x)) > 2), obs=x[:, 0])


def of_itself(x):
    with pyro.plate("rows", len(x)):
        pyro.sample("x", dist.Normal(_mu() * x[:, 0], 1.0), obs=x[:, 0])


def of_both_sides(x):
    """Each row on those before and after: a product of conditionals is no density."""
    padded = torch.cat([torch.zeros(1), x[:, 0], torch.zeros(1)])
    with pyro.plate("rows", len(x)):
        pyro.sample("x", dist.Normal(_mu() * (padded[2:] + padded[:-2]), 1.0), obs=x[:, 0])


def of_each_other(x):
    mu = _mu()
    with pyro.plate("rows", len(x)):
        pyro.sample("a", dist.Normal(mu * x[:, 1], 1.0), obs=x[:, 0])
        pyro.sample("b", dist.Normal(mu * x[:, 0], 1.0), obs=x[:, 1])


def prior_from_the_largest(x):
    top = pyro.sample("top", dist.Uniform(0.0, x[:, 0].max() + 1))
    with pyro.plate("rows", len(x)):
        pyro.sample("x", dist.Normal(top, 1.0), obs=x[:, 0])


def squares(x):
    with pyro.plate("rows", len(x)):
        pyro.sample("x", dist.Gamma(_mu().exp(), 1.0), obs=x[:, 0] ** 2 + 1)


def twice(x):
    mu = _mu()
    with pyro.plate("rows", len(x)):
        pyro.sample("x", dist.Normal(mu, 1.0), obs=x[:, 0])
        pyro.sample("again", dist.Normal(mu, 1.0), obs=x[:, 0])


def with_a_factor(x):
    pyro.factor("half", torch.tensor(-0.7))
    hierarchy(x)


@poutine.reparam(config={"mu": LocScaleReparam(0.0)})
def decentred(x):
    with pyro.plate("rows", len(x)):
        pyro.sample("x", dist.Normal(_mu()[..., None], 1.0).expand([len(x), 3]).to_event(1), obs=x)


@poutine.reparam(config={"z": HaarReparam(dim=-1)})
def wavelets(x):
    z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    with pyro.plate("rows", len(x)):
        pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)


@poutine.reparam(config={"x": LocScaleReparam(0.0)})
def reparameterised_data(x):
    with pyro.plate("rows", len(x)):
        pyro.sample("x", dist.Normal(_mu(), 2.0), obs=x[:, 0])


UNSCORED, PART = ("unscored",), ("unscored in part",)


@pytest.mark.parametrize(
    ("model", "measure", "left_out"),
    [
        (hierarchy, ("density",) * 3, 0),
        *((reparameterised, ("density",) * 3, 0) for reparameterised in (decentred, wavelets)),
        (process, ("density", *UNSCORED * 2), 36),
        (regressed, (*UNSCORED * 2, "density"), 36),
        (bits_and_numbers, ("mass", "density", "density"), 0),
        (after, (*PART, *UNSCORED * 2), 37),
        (functools.partial(after, lag=4), (*PART, *UNSCORED * 2), 40),
        (chain_of_bits, ("mass", *UNSCORED * 2), 36),
        (from_the_last, ("density", *UNSCORED * 2), 36),
        (states, ("density", *UNSCORED * 2), 36),
        (each_other_s_past, ("density", "density", *UNSCORED), 18),
        (last_column_first, ("density", "density", *UNSCORED), 18),
        (masked, (*PART, *UNSCORED * 2), 39),
        *((wrong, ("pseudo-likelihood",) * 3, None) for wrong in (of_itself, of_both_sides, of_each_other)),
        (prior_from_the_largest, ("pseudo-likelihood",) * 3, None),
        *(
            (wrong, ("transformed",) * 3, None)
            for wrong in (squares, twice, with_a_factor, reparameterised_data)
        ),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
@pytest.mark.parametrize("bits", [False, True])
def test_what_all_rows_together_measure(model, measure, left_out, bits):
    """By the cells that sites hold; of bits, where most cells look alike."""
    x = torch.randn(18, 3, generator=torch.Generator().manual_seed(SEED), dtype=torch.float64)
    if bits or model in (chain_of_bits, bits_and_numbers):
        x[:, 0] = (x[:, 0] > 0).double()
    together = BayesianModel(model, {"x": x}).together
    assert together.measure == measure
    assert left_out is None or int(together.left_out.sum()) == left_out


def quick(model, x):
    return baselines.PyroMCMC(model, num_samples=100, warmup_steps=5, num_chains=1, max_tree_depth=2).fit(x)


def test_evidences_of_other_cells_are_not_compared():
    """Autoregressions given one and given four rows; a mass and a density; a model that reads what it scores."""
    x = torch.randn(18, 1, generator=torch.Generator().manual_seed(SEED), dtype=torch.float64)
    one, four, back = (quick(m, x) for m in (after, functools.partial(after, lag=4), from_the_last))
    assert len(pv.compare_evidence({"one": one, "same": one})) == 2
    with pytest.raises(ValueError, match="the same left-out cells of x as 'one', got 'four' given another"):
        pv.compare_evidence({"one": one, "four": four})
    with pytest.raises(
        ValueError, match=r"'one', in which 1 column\(s\) are unscored in part.*the same cells"
    ):
        pv.compare_evidence({"back": back, "one": one})
    with pytest.raises(ValueError, match=r"1 column\(s\) are pseudo-likelihood.*reads what it scores"):
        pv.compare_evidence({"back": back, "itself": quick(of_itself, x)})
    x = (x > 0).double()
    with pytest.raises(ValueError, match="a density under 'back' and a mass under 'bits'"):
        pv.compare_evidence({"back": quick(from_the_last, x), "bits": quick(chain_of_bits, x)})


# ---------------------------------------------------------------------------------------------------------
# BayesianPCA


@functools.cache
def bayesian_pca():
    oracle = LinearGaussian.random(1, 3)
    options = QUICK | {"num_samples": 100, "warmup_steps": 60, "full_mass": True}
    return oracle, baselines.BayesianPCA(1, loadings_scale=1.5, **options).fit(
        oracle.sample(60, seed=SEED + 1)
    )


@pytest.mark.slow
def test_bayesian_pca_scores_near_ppca():
    """On rows of its own kind: the two differ by what averaging over 7 parameters is worth, about 7 / 2·60 nats."""
    oracle, mcmc = bayesian_pca()
    test = oracle.sample(400, seed=SEED + 2)
    ppca = baselines.PPCA(1).fit(oracle.sample(60, seed=SEED + 1)).log_evidence(test)
    ev = mcmc.log_evidence(test)
    assert abs(ev.mean - ppca.mean) < 0.1
    assert ev.mean < float(oracle.log_prob(test).mean())  # the truth is best
    table = pv.compare({"Bayesian": ev, "PPCA": ppca})
    assert table.loc["Bayesian", "parameters"] == "posterior-averaged"
    assert mcmc.sample(3).shape == (3, 3)


@pytest.mark.statistical
def test_bayesian_pca_is_identified():
    """Lower triangular in its own order with a positive diagonal; nearly the true W Wᵀ; chains that agree."""
    oracle, mcmc = bayesian_pca()
    w = mcmc.loadings
    assert (w[:, :, mcmc._order[0]] > 0).all()
    assert mcmc._r_hat < 1.1
    common = (w @ w.mT).flatten(0, 1)
    truth = oracle.loadings @ oracle.loadings.T
    # posterior means of the diagonal within six posterior standard deviations of the truth
    assert ((common.mean(0) - truth).abs() < Z * common.std(0)).all()


@pytest.mark.statistical
def test_triangular_loadings_have_the_prior_of_full_ones():
    """L = 2, 3 columns: W Wᵀ from the model's prior against W of independent normal entries, means and variances."""
    pca, n = baselines.BayesianPCA(2, loadings_scale=1.5, **QUICK), 4000
    sites = pyro.poutine.trace(pca._model).get_trace(torch.zeros(1, 3)).nodes
    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        squares, below = (sites[name]["fn"].sample((n,)) for name in ("squares", "below"))
        full = 1.5 * torch.randn(n, 3, 2)
    w = pca._loadings(squares.sqrt(), below, 3)
    assert (w[:, 0, 1] == 0).all()
    for power in (1, 2):
        ours, theirs = (w @ w.mT) ** power, (full @ full.mT) ** power
        se = ((ours.var(0) + theirs.var(0)) / n).sqrt()
        assert ((ours.mean(0) - theirs.mean(0)).abs() < Z * se).all()


def test_order_of_columns_does_not_change_the_density():
    """P(x | W) with columns permuted, and W with them."""
    pca = baselines.BayesianPCA(2, **QUICK)
    x = torch.randn(20, 4, dtype=torch.float64) * torch.tensor([0.1, 1.0, 3.0, 0.2])
    pca._order = torch.tensor([2, 1, 0, 3])
    values = torch.tensor([1.0, 2.0], dtype=torch.float64), torch.arange(5.0, dtype=torch.float64)
    w = pca._loadings(*values, 4)
    assert w[2, 1] == 0  # the first in order
    assert w[2, 0] == 1
    assert w[1, 1] == 2
    assert BayesianModel(pca._model, {"x": x}).dim == 4 + 2 + 5 + 1


# ---------------------------------------------------------------------------------------------------------
# The chains


def test_rows_that_change_after_the_fit_change_nothing():
    x = CASES["Beta-Bernoulli"].x.double().clone()
    mcmc = baselines.PyroMCMC(coins, **QUICK | {"num_samples": 60, "warmup_steps": 30}).fit(x)
    expected = mcmc.marginal_likelihood().total
    x *= 0
    assert mcmc.marginal_likelihood().total == expected


class Shifted(PyroModule):
    """Rows around a mean that is moved by all that a model may read: a tensor, a dict, a buffer and a weight."""

    def __init__(self):
        super().__init__()
        self.tensor, self.mapping, self.fails = torch.zeros(2).double(), {"shift": 0.0}, False
        self.register_buffer("moved", torch.zeros(2).double())
        self.layer = torch.nn.Linear(1, 2, dtype=torch.float64).requires_grad_(False)
        self.layer.weight.fill_(0.0)
        self.layer.bias.fill_(0.0)

    def forward(self, x):
        mean = pyro.sample("mean", dist.Normal(torch.zeros(2), 10.0).to_event(1))
        if self.fails:
            raise RuntimeError("out of order")
        shift = self.tensor + self.mapping["shift"] + self.moved + self.layer(torch.ones(1))
        pyro.deterministic("centre", mean + shift)
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mean + shift, 1.0).to_event(1), obs=x)


CHANGES = {
    "tensor": lambda m, by: m.tensor.add_(by),
    "dict": lambda m, by: m.mapping.update(shift=m.mapping["shift"] + by),
    "buffer": lambda m, by: m.moved.add_(by),
    "weight": lambda m, by: m.layer.bias.add_(by),
}
READERS = {
    "log_evidence": lambda mcmc, x: mcmc.log_evidence(x).mean,
    "compare": lambda mcmc, x: pv.compare({"a": mcmc, "b": baselines.FullGaussian().fit(x)}, x + 1)["elpd"][
        "a"
    ],
    "marginal_likelihood": lambda mcmc, x: mcmc.marginal_likelihood().total,
    "log_likelihood": lambda mcmc, x: float(mcmc.log_likelihood(x).sum()),
    "deterministic": lambda mcmc, x: float(mcmc.deterministic()["centre"].sum()),
    "sample": lambda mcmc, x: float(mcmc.sample(3).sum()),
    "to_arviz": lambda mcmc, x: float(pv.convert.to_arviz(mcmc, x)["log_likelihood"]["x"].sum()),
}


def test_draws_are_not_used_for_a_model_that_changed_after_the_fit():
    """log N(x_n; m + s, 1): at a draw of m, log P(x, m) is known for both shifts s."""
    x = torch.randn(20, 2, generator=torch.Generator().manual_seed(SEED)).double()
    model = Shifted().eval()
    mcmc = baselines.PyroMCMC(model, **QUICK | {"num_samples": 60, "warmup_steps": 30}).fit(x)
    before = {name: read(mcmc, x) for name, read in READERS.items()}
    mean = mcmc.posterior["mean"][0, 0]
    prior = dist.Normal(0.0, 10.0).log_prob(mean).sum()
    now, was = (float(prior + dist.Normal(mean + s, 1.0).log_prob(x).sum()) for s in (0.5, 0.0))
    message = (
        rf"model: expected the model that was fitted, got one whose log P\(x, latents\) at a kept draw is "
        rf"{str(now)[:8]}\d+, was {str(was)[:8]}\d+\. .*fit again"
    )
    for change in CHANGES.values():
        change(model, 0.5)
        for read in READERS.values():
            with pytest.raises(ValueError, match=message):
                read(mcmc, x)
        assert "2 parameters" in mcmc.summary()  # of the draws alone
        change(model, -0.5)
    model.fails = True
    with pytest.raises(ValueError, match=r"got one that fails .*RuntimeError: out of order\)\. .*fit again"):
        mcmc.log_evidence(x)
    model.fails = False
    assert {name: read(mcmc, x) for name, read in READERS.items()} == before
    model.tensor.add_(0.5)
    assert mcmc.fit(x).marginal_likelihood().total != before["marginal_likelihood"]


@pytest.mark.slow
def test_seeds_decide_and_nothing_is_disturbed(sampler):
    x = CASES["Beta-Bernoulli"].x
    state = torch.random.get_rng_state()
    pyro.param("mine", torch.tensor(3.0))
    options = QUICK | {"num_samples": 60, "warmup_steps": 30}
    first, again = (baselines.PyroMCMC(coins, **options).fit(x) for _ in range(2))
    assert torch.equal(first.posterior["p"], again.posterior["p"])
    other = baselines.PyroMCMC(coins, **options | {"seed": SEED + 1}).fit(x)
    assert not torch.equal(first.posterior["p"], other.posterior["p"])
    assert not torch.equal(first.posterior["p"][0], first.posterior["p"][1])
    assert first.marginal_likelihood().total == again.marginal_likelihood().total
    assert torch.equal(state, torch.random.get_rng_state())
    assert list(pyro.get_param_store().keys()) == ["mine"]
    assert torch.get_default_dtype() == torch.float32
    assert torch.distributions.Distribution._validate_args
    # 120 draws are too few to be trusted, and every number says so
    assert not first.converged
    assert re.search(r"effective sample size of \d+, below 400", first.summary())
    assert first.marginal_likelihood().verdict[0] == "more samples"
    assert "trust" not in first.log_evidence(x).verdict


def test_diagnostics_are_arvizs():
    mcmc = fitted("normal-inverse-gamma")
    mu = mcmc.posterior["mu"].numpy()
    line = mcmc.diagnostics.loc["mu"]
    assert line["r_hat"] == pytest.approx(float(arviz.rhat(mu)))
    assert line["ess_bulk"] == pytest.approx(float(arviz.ess(mu)))
    assert line["mean"] == pytest.approx(mu.mean())
    assert list(fitted("Beta-Bernoulli").diagnostics.index) == ["p[0]", "p[1]", "p[2]"]


def test_modes_that_chains_disagree_about_are_not_trusted():
    """Two far modes: chains stay where they start, R-hat sees it."""

    def modes(x):
        place = pyro.sample("place", dist.Normal(0.0, 10.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(place.abs(), 0.05), obs=x)

    mcmc = baselines.PyroMCMC(modes, **QUICK | {"num_chains": 6, "num_samples": 50}).fit(
        torch.full((20,), 1.5)
    )
    assert "R-hat" in mcmc.problems[0]
    assert mcmc.marginal_likelihood().verdict[0] != "trust"
    assert set(mcmc.log_evidence(torch.full((2,), 1.5)).verdict) == {"more samples"}


def test_divergences_are_reported(sampler):
    """A wall of 10⁶ nats at 1, which no gradient announces: steps run into it."""

    def wall(x):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        pyro.factor("wall", -1e6 * (mu > 1).double())
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)

    mcmc = baselines.PyroMCMC(wall, **QUICK | {"num_samples": 50, "warmup_steps": 30}).fit(torch.zeros(1))
    assert mcmc.divergences > 0
    assert any("steps diverged" in problem for problem in mcmc.problems)
    assert mcmc.marginal_likelihood().verdict[0] != "trust"


def normal_chain(density, steps=60, dim=2, **options):
    """A chain of nutpie on a density."""
    pytest.importorskip("nutpie")
    with Progress("NUTS", steps, "steps", show=False) as bar:
        options = {"target_accept_prob": 0.8, "full_mass": False, "max_tree_depth": 10, "bar": bar} | options
        start = torch.full((dim,), 0.1, dtype=torch.float64)
        run = {"warmup_steps": steps // 2, "num_samples": steps // 2, "seed": SEED}
        return native.run_chain(native.nutpie(), density, start, **run | options)


def smooth(u):
    """A standard normal density and its gradient."""
    return -(u**2).sum() / 2, -u


class Failing:
    """The same density, which raises an error at its 31st call."""

    def __init__(self, error):
        self.error, self.calls = error, 0

    def __call__(self, u):
        self.calls += 1
        if self.calls > 30:
            raise self.error
        return smooth(u)


@pytest.mark.parametrize("error", [RuntimeError("the model's own words"), KeyboardInterrupt()])
def test_errors_of_a_density_reach_the_caller(error):
    """They are raised in the sampler's thread. The next chain runs as before."""
    density = Failing(error)
    with pytest.raises(type(error)) as raised:
        normal_chain(density)
    assert raised.value is error
    assert density.calls == 31
    assert normal_chain(smooth)[0].shape == (30, 2)


def test_a_keyboard_interrupt_stops_the_chain():
    calls = 0

    def interrupted(u):
        nonlocal calls
        calls += 1
        if calls == 31:
            _thread.interrupt_main()
        return smooth(u)

    # A process that was started in the background ignores SIGINT.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            normal_chain(interrupted, steps=10**5)
    finally:
        signal.signal(signal.SIGINT, before)
    stopped = calls
    assert stopped < 10**5
    assert normal_chain(smooth)[0].shape == (30, 2)
    assert calls == stopped


def test_errors_of_a_progress_bar_reach_the_caller():
    class Stopped(Progress):
        def advance(self, steps=1, note=""):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        normal_chain(smooth, bar=Stopped("NUTS", 60, "steps", show=False))


def test_options_reach_the_sampler():
    """Trees of depth 1 have 1 or 2 steps: draws move less. A dense mass matrix draws other numbers."""
    shallow, _ = normal_chain(smooth, steps=400, max_tree_depth=1)
    deep, _ = normal_chain(smooth, steps=400)
    strict, _ = normal_chain(smooth, steps=400, target_accept_prob=0.99)
    full, _ = normal_chain(smooth, steps=400, full_mass=True)
    assert not torch.equal(deep, full)
    for less in (shallow, strict):
        assert (less.diff(dim=0) ** 2).mean() < (deep.diff(dim=0) ** 2).mean()


def test_singular_matrices_have_no_density():
    """log |Σ| of a matrix that is not positive definite: torch raises an error, the graph gives NaN."""

    def density(u):
        matrix = torch.eye(2, dtype=torch.float64) + u[0] * torch.ones(2, 2, dtype=torch.float64)
        return -torch.linalg.cholesky(matrix).diagonal().log().sum() - u[0] ** 2

    traced = TracedDensity(lambda u: density(0.05 * u), 1)
    value, gradient = traced(torch.tensor([4.0], dtype=torch.float64))
    assert float(value) == pytest.approx(-0.5 * math.log(1.4) - 0.04)
    assert float(gradient) == pytest.approx(0.05 * (-1 / 1.4 - 0.4))
    assert torch.isnan(traced(torch.tensor([-20.0], dtype=torch.float64))[0])


def test_a_density_is_compiled_where_that_saves_time(monkeypatch):
    """By the size of the graph and the number of calls alone. Without a compiler the graph runs as it is."""
    density = TracedDensity(lambda u: -(u**2).sum() / 2, 3)
    assert not density.pays(1000)
    assert density.pays(10**7)
    assert TracedDensity(lambda u: -(u**2).cos().sum() / 2, 10**6).pays(10**4)
    u = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    value, gradient = density(u)
    assert float(value) == -2.625
    assert torch.equal(gradient, -u)
    monkeypatch.setattr("pyrovae.tracing.densities.why_not_compiled", lambda device: "no compiler")
    with pytest.raises(Untraceable, match="no compiler"):
        density.compile()
    assert float(density(u)[0]) == -2.625


def test_chains_move_after_a_short_warm_up():
    """nutpie finds no step size in 5 steps, so Pyro's NUTS runs; 20 steps are enough for it."""
    x = CASES["Beta-Bernoulli"].x
    for steps in (5, native.FEWEST_STEPS):
        mcmc = baselines.PyroMCMC(coins, num_samples=50, warmup_steps=steps, num_chains=2, seed=SEED).fit(x)
        assert all(len(set(chain)) > 25 for chain in mcmc.posterior["p"][..., 0].tolist())


def test_traced_and_called_agree():
    """The graph that NUTS follows is the model's log joint and gradient; the model that can't be traced is called."""
    joint = BayesianModel(CASES["normal-inverse-gamma"].model, {"x": CASES["normal-inverse-gamma"].x})
    u = torch.tensor([0.3, -0.7], dtype=torch.float64, requires_grad=True)
    with joint.own_settings():
        log_joint = with_gradient(traced(joint))
        (a,), (b,) = (torch.autograd.grad(f(u), u) for f in (log_joint, joint.log_joint))
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
    precision, mu = torch.tensor(0.3).double().exp(), torch.tensor(-0.7).double()
    by_hand = (
        dist.Gamma(2.0, 3.0).log_prob(precision)
        + 0.3
        + dist.Normal(0.5, (0.4 * precision) ** -0.5).log_prob(mu)
    )
    by_hand = by_hand + dist.Normal(mu, precision**-0.5).log_prob(CASES["normal-inverse-gamma"].x).sum()
    assert float(joint.log_joints(u.detach()[None])[0]) == pytest.approx(float(by_hand), abs=1e-6)

    def branching(x):
        p = pyro.sample("p", dist.Beta(1.0, 1.0))
        p = p if p > 0.5 else p * 1.0
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Bernoulli(p), obs=x)

    joint = BayesianModel(branching, {"x": torch.ones(3, dtype=torch.float64)})
    assert traced(joint) is None
    u = torch.tensor([[0.3], [-0.4]], dtype=torch.float64)
    p = torch.sigmoid(u[:, 0])
    torch.testing.assert_close(joint.log_joints(u), 3 * p.log() + (p * (1 - p)).log())
    assert joint.latents(u)["p"].shape == (2,)


def test_supports_that_depend_on_latents_are_followed():
    """b ~ U(0, a), a ~ U(1, 2): the density of (a, b) is 1/a on its triangle, Jacobians and all."""

    def nested(x):
        a = pyro.sample("a", dist.Uniform(1.0, 2.0))
        pyro.sample("b", dist.Uniform(0.0, a))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)

    joint = BayesianModel(nested, {"x": torch.zeros(1, dtype=torch.float64)})
    grid = torch.linspace(-12, 12, 161, dtype=torch.float64)
    u = torch.cartesian_prod(grid, grid)
    total = joint.log_joints(u).exp().sum() * (grid[1] - grid[0]) ** 2
    assert float(total) == pytest.approx((2 * math.pi) ** -0.5, rel=1e-4)


def above(x):
    """x ~ Pareto(low, 2), low ~ Exp(1): P(x, low) is 0 where low is above a row."""
    low = pyro.sample("low", dist.Exponential(1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Pareto(low, 2.0), obs=x)


def below(x):
    """x ~ U(0, top), top ~ U(0, 5): P(x, top) is 0 where top is below a row."""
    top = pyro.sample("top", dist.Uniform(0.0, 5.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Uniform(0.0, top), obs=x)


def shifted(x):
    """x − start ~ Exp(1), start ~ N(0, 1): P(x, start) is 0 where start is above a row."""
    start = pyro.sample("start", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        exponential = dist.Exponential(torch.ones(len(x)))
        pyro.sample(
            "x",
            dist.TransformedDistribution(exponential, [dist.transforms.AffineTransform(start, 1.0)]),
            obs=x,
        )


def below_two(x):
    """x is uniform below top or below 2 top, with equal weights, and top ~ U(0, 5)."""
    top = pyro.sample("top", dist.Uniform(0.0, 5.0))
    with pyro.plate("data", len(x)):
        halves = dist.Uniform(torch.zeros(2).double(), torch.stack([top, 2 * top]))
        pyro.sample("x", dist.MixtureSameFamily(dist.Categorical(torch.ones(2).double()), halves), obs=x)


@pytest.mark.parametrize("seed", range(8))
def test_latents_that_move_the_supports_of_components_are_seen(seed):
    """One draw of top allows all rows with probability 0.7; 50 draws do so in all but one of 10²⁶ cases."""
    with noise.seeded(seed):
        joint = BayesianModel(below_two, {"x": MOVING})
    values = joint.log_joints(torch.tensor([[-4.0], [4.0]], dtype=torch.float64))
    assert torch.isneginf(values[0])
    assert torch.isfinite(values[1])


MOVING = torch.tensor([1.5, 2.0, 3.0, 2.2]).double()


@pytest.mark.parametrize(
    ("model", "transform", "density", "end"),
    [
        (above, torch.exp, lambda v: math.log(8 * 2) + 8 * v.log() - 3 * MOVING.log().sum() - v, 1.5),
        (below, lambda u: 5 * torch.sigmoid(u), lambda v: -4 * v.log() - math.log(5), 3.0),
        (shifted, lambda u: u, lambda v: dist.Normal(0.0, 1.0).log_prob(v) + 4 * v - MOVING.sum(), 1.5),
    ],
    ids=["above", "below", "shifted"],
)
def test_rows_off_a_support_that_latents_move_have_no_density(model, transform, density, end):
    u = torch.linspace(-4, 4, 41, dtype=torch.float64)[:, None].requires_grad_()
    latent = transform(u)
    slope = torch.autograd.grad(latent.sum(), u)[0][:, 0].log()
    latent = latent.detach()[:, 0]
    possible = latent >= end if model is below else latent <= end
    expected = torch.where(possible, density(latent), -math.inf) + slope
    for seed in range(10):
        with noise.seeded(seed):
            joint = BayesianModel(model, {"x": MOVING})  # one draw of the prior decides nothing
        torch.testing.assert_close(joint.log_joints(u.detach()), expected)
    # The latent of a new row that no other latent value allows
    found = torch.cat(list(joint.log_likelihood({"x": torch.tensor([1.0, 9.0]).double()}, u.detach())), dim=1)
    inside = (
        latent[:, None] <= torch.tensor([1.0, 9.0])
        if model is not below
        else latent[:, None] >= torch.tensor([1.0, 9.0])
    )
    assert torch.equal(torch.isfinite(found), inside)


# ---------------------------------------------------------------------------------------------------------
# Refusals


def observe(x, **options):
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(pyro.sample("z", dist.Normal(0.0, 1.0)), 1.0), **options)


ROWS = torch.linspace(-1, 1, 6)


def no_latent(x):
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)


def not_observed(x):
    pyro.sample("mu", dist.Normal(0.0, 1.0))


def from_outside(x):
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(mu, 1.0), obs=torch.arange(6.0))


def discrete(x):
    side = pyro.sample("side", dist.Bernoulli(0.5))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(side, 1.0), obs=x)


def with_parameter(x):
    mu = pyro.sample("mu", dist.Normal(pyro.param("m", torch.tensor(0.0)), 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(mu, 1.0), obs=x)


def scaled(x):
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.poutine.scale(scale=2.0), pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(mu, 1.0), obs=x)


def restless(x):
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(mu + torch.randn(()), 1.0), obs=x)


def off_support(x):
    rate = pyro.sample("rate", dist.Exponential(1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Exponential(rate), obs=x)


DESIGN = torch.ones(len(ROWS), 2)
NETWORK = torch.nn.Linear(2, 1, dtype=torch.float32).requires_grad_(False)


def narrow_design(x):
    w = pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(DESIGN @ w, 1.0), obs=x)


def narrow_network(x):
    w = pyro.sample("w", dist.Normal(torch.zeros(len(x), 2), 1.0).to_event(2))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(NETWORK(w)[:, 0], 1.0), obs=x)


NARROW = dist.Normal(torch.zeros(2), torch.ones(2)).to_event(1)


def narrow_prior(x):
    w = pyro.sample("w", NARROW)
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(DESIGN @ w, 1.0), obs=x)


def partly_observed(x):
    mu = _mu()
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(mu, 1.0), obs=x, obs_mask=torch.arange(len(x)) > 1)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (narrow_design, r"model: expected tensors in float64.*a RuntimeError from it: .*\.double\(\)"),
        (narrow_network, r"model: expected tensors in float64.*a RuntimeError from it: .*\.double\(\)"),
        (
            narrow_prior,
            r"expected tensors in float64.* Write the prior of latent 'w' with tensors in float64",
        ),
        (partly_observed, r"latent 'x_unobserved', got \d+ entries that are masked.*\.mask\(observed\)"),
        (no_latent, "model: expected a latent sample site, got none"),
        (not_observed, "model: expected a site observed with x, got none"),
        (from_outside, "observed site 'x' to hold the rows"),
        (discrete, "continuous latents.*the discrete latent 'side'.*MixtureSameFamily"),
        (with_parameter, "1 parameter.*'m'.*Give it a prior"),
        (scaled, "scale 2.0 at site 'x'"),
        (restless, "the same log-probability.*another at site 'x'"),
        (off_support, "x: expected values that site 'x' can score.*3 off it, the first -1"),
        (
            below,
            "x: expected values that site 'x' can score at some draw.*each of 4000 draws.*off it, the first -1",
        ),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_refused_at_fit(model, message):
    mcmc = baselines.PyroMCMC(model, **QUICK)
    with pytest.raises(ValueError, match=message):
        mcmc.fit(ROWS)
    with pytest.raises(ValueError, match="PyroMCMC: expected a fitted baseline"):
        mcmc.marginal_likelihood()


class BayesianRegression(PyroModule):
    """A module of Pyro's tutorials, whose priors are made outside the model and thus in float32."""

    def __init__(self):
        super().__init__()
        self.linear = PyroModule[torch.nn.Linear](2, 1)
        self.linear.weight = PyroSample(dist.Normal(0.0, 2.0).expand([1, 2]).to_event(2))
        self.linear.bias = PyroSample(dist.Normal(0.0, 1.0).expand([1]).to_event(1))

    def forward(self, x, c):
        mean = self.linear(c)[:, 0]
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mean, 1.0), obs=x)


@pytest.mark.parametrize(
    "module", [BayesianRegression(), BayesianRegression().double()], ids=["as it is", "double"]
)
def test_priors_in_float32_take_part_in_float64(module):
    c = torch.randn(6, 2, generator=torch.Generator().manual_seed(SEED)).double()
    batch = {"x": ROWS.double(), "c": c}
    joint = BayesianModel(module, batch)
    u = torch.tensor([[0.3, -1.2, 0.7], [1.0, 0.1, -0.4]]).double()
    rows = dist.Normal(u[:, :2] @ c.T + u[:, 2:], 1.0).log_prob(batch["x"])
    scales = torch.tensor([2.0, 2.0, 1.0]).double()
    log_joints = rows.sum(1) + dist.Normal(0.0, scales).log_prob(u).sum(1)
    found = joint.log_joints(u)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, log_joints, rtol=1e-7, atol=1e-7)  # a prior's log scale is a float32
    torch.testing.assert_close(torch.cat([*joint.log_likelihood(batch, u)], dim=1), rows)


def test_a_mask_on_the_distribution_leaves_entries_out():
    """In place of obs_mask: the log joint is that of the entries that exist."""

    def model(x, observed):
        mu = _mu()
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mu, 1.0).mask(observed), obs=x)

    observed = torch.arange(6) > 1
    joint = BayesianModel(model, {"x": ROWS.double(), "observed": observed})
    u = torch.tensor([[0.3], [-1.2]]).double()
    expected = dist.Normal(0.0, 1.0).log_prob(u[:, 0]) + dist.Normal(u, 1.0).log_prob(ROWS[observed]).sum(1)
    torch.testing.assert_close(joint.log_joints(u), expected)


def of_the_mean(x):
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(mu + x.mean(), 1.0), obs=x)


def prior_from_rows(x):
    mu = pyro.sample("mu", dist.Normal(x.mean(), 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(mu, 1.0), obs=x)


def jointly(x):
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    pyro.sample("x", dist.Normal(mu, 1.0).expand(x.shape).to_event(1), obs=x)


def of_fixed_size(x):
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("data", 6):
        pyro.sample("x", dist.Normal(mu, torch.ones(6)), obs=x)


def row_latents(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


@pytest.mark.parametrize(
    ("model", "message", "measure"),
    [
        (
            of_the_mean,
            "rows that are independent given.*changes by .* nats without some of the rows",
            "pseudo-likelihood",
        ),
        (prior_from_rows, "rows that are independent given.*changes by .* nats", "pseudo-likelihood"),
        (jointly, "a log-probability for every row, got site 'x', with one for all", "density"),
        (of_fixed_size, "any number of rows.*from it on 5 rows", "density"),
        (row_latents, "latent 'z', which changes with the number of rows.*Integrate it out", "density"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_scoring_is_refused_with_the_reason(model, message, measure):
    """Found out by running the model on the rows it is fitted to; the evidence needs none of it."""
    posterior = BayesianModel(model, {"x": ROWS.double()})
    assert torch.isfinite(posterior.log_joints(torch.zeros(2, posterior.dim, dtype=torch.float64))).all()
    u = torch.zeros(2, posterior.dim, dtype=torch.float64)
    for question in (
        lambda: next(posterior.log_likelihood({"x": ROWS.double()}, u)),
        lambda: posterior.simulate(u),
    ):
        with pytest.raises(ValueError, match=message):
            question()
    assert posterior.measure == (measure,)


def test_a_likelihood_that_broadcasts_over_columns_draws_each():
    def model(x, wide):
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0)).reshape(1, 1)
        with pyro.plate("data", len(x)):
            fn = dist.Normal(mean.expand(len(x), 2 if wide else 1), 1.0)
            pyro.sample("x", fn.to_event(1), obs=x)

    x, drawn = torch.randn(5, 2, dtype=torch.float64), []
    for wide in (False, True):
        joint = BayesianModel(functools.partial(model, wide=wide), {"x": x})
        with noise.seeded(SEED):
            drawn.append(joint.simulate(torch.zeros(3, 1, dtype=torch.float64)))
    assert torch.equal(*drawn)
    assert (drawn[0][:, 0] != drawn[0][:, 1]).all()


def test_columns_that_follow_others_can_be_scored_and_not_sampled():
    def chained(x):
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("first", dist.Normal(a, 1.0), obs=x[:, 0])
            pyro.sample("second", dist.Normal(x[:, 0], 1.0), obs=x[:, 1])

    x = torch.randn(5, 2, dtype=torch.float64)
    joint = BayesianModel(chained, {"x": x})
    u = torch.zeros(3, 1, dtype=torch.float64)
    (scores,) = joint.log_likelihood({"x": x}, u)
    expected = dist.Normal(0.0, 1.0).log_prob(x[:, 0]) + dist.Normal(x[:, 0], 1.0).log_prob(x[:, 1])
    torch.testing.assert_close(scores, expected.expand(3, 5))
    assert joint.measure == ("density", "density")
    with pytest.raises(ValueError, match="columns of x that depend on others only through latents"):
        joint.simulate(u)


def test_other_refusals():
    with pytest.raises(ValueError, match=r"at least 100 draws in all.*got 80.*num_samples=50"):
        baselines.PyroMCMC(coins, num_samples=40, num_chains=2)
    with pytest.raises(TypeError, match="model: expected a callable"):
        baselines.PyroMCMC(3)
    with pytest.raises(ValueError, match="target_accept_prob: expected a probability below 1"):
        baselines.PyroMCMC(coins, target_accept_prob=1.0)
    with pytest.raises(ValueError, match="at least latent_dim=3 columns"):
        baselines.BayesianPCA(3, **QUICK).fit(torch.randn(9, 2))
    mcmc = fitted("Beta-Bernoulli")
    with pytest.raises(ValueError, match="x: expected rows of the shape that was fitted"):
        mcmc.log_evidence(torch.ones(2, 4))
    with pytest.raises(ValueError, match="support of Bernoulli"):
        mcmc.log_evidence(torch.full((2, 3), 0.5))
    assert "not fitted" in repr(baselines.PyroMCMC(coins))
    assert "3 parameters, 20 rows" in repr(mcmc)


@pytest.mark.slow
def test_latents_at_which_a_matrix_is_singular_have_density_zero():
    """r ~ N(0, 1), x ~ N(0, [[1, r], [r, 1]]), which is a density for |r| < 1 only: 32 % of the prior is not."""

    def model(x):
        r = pyro.sample("r", dist.Normal(0.0, 1.0))
        one = torch.ones(())
        covariance = torch.stack([torch.stack([one, r]), torch.stack([r, one])])
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.MultivariateNormal(torch.zeros(2), covariance), obs=x)

    x = torch.randn(12, 2, generator=torch.Generator().manual_seed(SEED), dtype=torch.float64)
    x[:, 1] = 0.5 * x[:, 0] + 0.75**0.5 * x[:, 1]
    mcmc = baselines.PyroMCMC(model, num_samples=100, warmup_steps=80, num_chains=2, seed=SEED).fit(x)
    r = torch.linspace(-1, 1, 4001, dtype=torch.float64)[1:-1]
    quadratic = (x**2).sum(1) - 2 * r[:, None] * x.prod(1)
    terms = (
        -math.log(2 * math.pi) - 0.5 * (1 - r[:, None] ** 2).log() - quadratic / (2 * (1 - r[:, None] ** 2))
    )
    exact = float((terms.sum(1) + dist.Normal(0.0, 1.0).log_prob(r)).logsumexp(0) + math.log(2 / 4000))
    for warp in (False, True):
        ev = mcmc.marginal_likelihood(warp=warp)
        assert ev.mean_mcse < 0.1
        assert close(ev.total, exact, ev.mean_mcse)


def test_mass_beyond_the_last_number_before_a_bound_is_not_trusted():
    """Given 20 ones, p is Beta(21, 0.05), with 14 % between 1 − 2⁻⁵³ and 1: the bridge misses them."""

    def model(x):
        p = pyro.sample("p", dist.Beta(torch.tensor(1.0).double(), torch.tensor(0.05).double()))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Bernoulli(p), obs=x)

    mcmc = baselines.PyroMCMC(model, **QUICK | {"num_samples": 60, "warmup_steps": 60}).fit(
        torch.ones(20).double()
    )
    assert "are the last numbers before a bound" in mcmc.summary()
    for found in (mcmc.marginal_likelihood(), mcmc.log_evidence(torch.ones(3).double())):
        assert (found.verdict == "another method").all()
        assert any(
            "of the draws of 'p' are the last numbers before a bound" in words for words in found.reasons
        )


@pytest.mark.statistical
@pytest.mark.parametrize(
    ("prior", "counts", "lost"),
    [((0.2, 2.0), (0, 5), False), ((0.2, 2.0, 2.0), (0, 5, 0), False), ((5.0, 5.0, 0.05), (3, 2, 0), True)],
)
def test_a_simplex_has_lost_mass_only_if_later_shares_of_the_stick_have_no_digits(prior, counts, lost):
    """p₁ of Dirichlet(0.2, 7) is below 2⁻⁵³ in 0.2 % of draws, and keeps its digits. p₃ ~ Beta(0.05, 15) is in 14 %, and has none."""
    a, n = torch.tensor(prior).double(), torch.tensor(counts).double()

    def model(x):
        p = pyro.sample("p", dist.Dirichlet(a))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Categorical(p), obs=x)

    rows = torch.repeat_interleave(torch.arange(len(a)), torch.tensor(counts)).double()
    mcmc = baselines.PyroMCMC(model, **QUICK | {"num_samples": 500, "target_accept_prob": 0.9}).fit(rows)
    exact = float(
        torch.lgamma(a.sum()) - torch.lgamma((a + n).sum()) + (torch.lgamma(a + n) - torch.lgamma(a)).sum()
    )
    ev = mcmc.marginal_likelihood()
    assert any("are the last numbers before a bound" in words for words in ev.reasons) == lost
    if lost:
        assert ev.verdict[0] == "another method"
    else:
        assert close(ev.total, exact, ev.mean_mcse)


def test_a_density_that_is_infinite_where_a_latent_underflows_is_no_error():
    """Gamma(0.001, 0.001) given 10 zeros: half of its mass is below the smallest number, where its density is infinite."""

    def model(x):
        rate = pyro.sample("rate", dist.Gamma(torch.tensor(0.001).double(), 0.001))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Poisson(rate), obs=x)

    found = baselines.PyroMCMC(model, **QUICK).fit(torch.zeros(10).double()).marginal_likelihood()
    assert found.verdict[0] != "trust"


def test_chains_start_at_the_prior_where_nothing_is_possible_near_zero():
    """x ~ Uniform(0, top) up to 7e5: every log top in (−2, 2) is impossible."""

    def model(x):
        top = pyro.sample("top", dist.LogNormal(torch.tensor(14.0), 0.1))  # in float32, as PyroSample has it
        pyro.sample("none", dist.HalfNormal(torch.ones(0)).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Uniform(0.0, top), obs=x)

    mcmc = baselines.PyroMCMC(model, **QUICK).fit(torch.tensor([1e5, 3e5]).double())
    # The posterior is the prior times top⁻²: its mean is 14 − 2 · 0.1².
    assert abs(float(mcmc.posterior["top"].log().mean()) - 13.98) < 0.05


def vague_top(x):
    """One draw of top from the prior in 200 is above 20."""
    top = pyro.sample("top", dist.Pareto(torch.tensor(0.1).double(), torch.tensor(1.0).double()))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Uniform(0 * top, top, validate_args=False), obs=x)


ROWS_BELOW_TOP = torch.tensor([3.0, 20.0, 11.0]).double()


@pytest.mark.parametrize("seed", range(SEED, SEED + 3))
def test_a_vague_prior_is_searched_for_latents_that_allow_the_rows(seed):
    options = {"num_samples": 50, "warmup_steps": 50, "num_chains": 2, "seed": seed}
    mcmc = baselines.PyroMCMC(vague_top, **options).fit(ROWS_BELOW_TOP)
    assert bool((mcmc.posterior["top"] > 20).all())


def test_chains_start_at_points_of_their_own_after_a_search():
    torch.manual_seed(SEED)
    joint = BayesianModel(vague_top, {"x": ROWS_BELOW_TOP})
    with joint.own_settings():
        starts = chains._search(joint.log_joint, joint, 3)
        assert len(starts) == 3 == len({float(u) for u in starts})
        assert all(bool(joint.log_joint(u).isfinite()) for u in [*starts, joint.first])
