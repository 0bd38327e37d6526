"""evidence.check: the code has exact nulls, traps with closed forms are refused, healthy models pass."""

import copy
import dataclasses
import math
import sys

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import scipy.stats
import torch
from oracles import LinearGaussian
from rates import Z

import pyrovae as pv
from pyrovae import evidence
from pyrovae.evaluation import Evaluation
from pyrovae.evidence.nearby import Pool
from pyrovae.evidence.simulated import Supply, simulated

METHODS = {
    "importance": {"num_samples": 40},
    "jackknife": {"num_samples": 40},
    "refined": {"num_samples": 100, "num_starts": 2, "num_steps": 3},
    "annealed": {"num_samples": 4, "num_temperatures": 12},
    "auto": {"target_mcse": 0.2, "max_cost": 3000},
    "quadrature": {"tolerance": 0.01},
}


def gaussian(shift=0.0, scale=1.0):
    """z ~ N(0, I) in two dimensions, x ~ N(z W, 0.5²) in three; the guide's mean and spread are off by choice."""
    weights = torch.tensor([[1.0, -0.5, 0.3], [0.2, 0.8, -1.0]], dtype=torch.float64)
    precision = torch.eye(2, dtype=torch.float64) + weights @ weights.T / 0.25
    tril = torch.linalg.cholesky(torch.linalg.inv(precision))

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2, dtype=torch.float64), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ weights, 0.5).to_event(1), obs=x)

    def guide(x):
        loc = torch.linalg.solve(precision, (x @ weights.T / 0.25).T).T + shift
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.MultivariateNormal(loc, scale_tril=scale * tril))

    marginal = torch.distributions.MultivariateNormal(
        torch.zeros(3, dtype=torch.float64), weights.T @ weights + 0.25 * torch.eye(3, dtype=torch.float64)
    )
    return pv.LatentVariableModel(model, guide), marginal


def spike(latents, spread, shift, weight=0.9):
    """A narrow component that draws of the guide, the posterior of the broad one, do not meet."""
    off = torch.zeros(latents)
    off[0] = shift

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(latents), 1.0).to_event(1))
            scales = torch.stack([torch.ones(latents), torch.full((latents,), spread)])
            each = dist.Independent(dist.Normal(torch.stack([z, z + off], -2), scales), 1)
            shares = dist.Categorical(torch.tensor([1 - weight, weight]))
            pyro.sample("x", dist.MixtureSameFamily(shares, each), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, math.sqrt(0.5)).to_event(1))

    def sample(num_rows, narrow):
        z = torch.randn(num_rows, latents)
        return (
            z + off + spread * torch.randn(num_rows, latents)
            if narrow
            else z + torch.randn(num_rows, latents)
        )

    return pv.LatentVariableModel(model, guide), sample


def rows_of(pair, num_rows, columns, seed=0):
    template = Evaluation.prepare(pair, torch.zeros(3, columns, dtype=torch.float64), 1, seed)
    return simulated(template, torch.arange(num_rows) % 3)


# ---------------------------------------------------------------------------------------------------------
# The code


@pytest.mark.parametrize("guide", [{}, {"shift": 0.4}, {"scale": 0.5}, {"scale": 2.0}])
@pytest.mark.parametrize("method", ["importance", "annealed"])
def test_an_exact_draw_looks_like_one_of_the_methods_own(method, guide):
    """Whatever the guide, among K + 1 draws, with V uniform, Σ of the normalised weights below w* plus V w* is uniform.

    With K = 1, the weight of the only draw is the estimate. Kolmogorov–Smirnov at a false-alarm rate of 1e-6 a case; 3000
    rows show a deviation of the distribution function by 0.05.
    """
    pair, _ = gaussian(**guide)
    options = {"num_temperatures": 6} if method == "annealed" else {}
    ev = pv.log_evidence(pair, rows_of(pair, 3000, 3), method=method, num_samples=1, **options)
    share = 1 / (1 + np.exp(-ev.log_odds))  # of w* in w* + w_1
    random = np.random.default_rng(0)
    # The weights of the exact posterior are equal; rounding must not put them in order.
    first = np.where(np.abs(ev.log_odds) < 1e-9, random.random(len(share)) < 0.5, ev.log_odds > 0)
    uniform = np.where(first, 1 - share, 0.0) + random.random(len(share)) * share
    assert scipy.stats.kstest(uniform, "uniform").pvalue > 1e-6


def test_the_weight_of_a_chain_back_from_an_exact_draw():
    """E[P(x) / w*] = 1 over exact draws and chains. Five standard errors of the mean are 0.03.

    Chains from the prior have rare ratios of several hundred, which the mean of a test cannot hold.
    """
    pair, marginal = gaussian(scale=1.2)
    rows = rows_of(pair, 2000, 3)
    ev = pv.evidence.annealed(pair, rows, num_samples=2, num_temperatures=8, start="encoder")
    log_weight = ev.log_odds + ev.estimate + math.log(2)
    ratio = np.exp(marginal.log_prob(rows.batch["x"]).numpy() - log_weight)
    assert abs(ratio.mean() - 1) < 5 * ratio.std() / math.sqrt(len(ratio))


@pytest.mark.parametrize("method", ["importance", "refined"])
def test_the_frozen_proposal_is_a_density(method):
    """P(x, z) / w*(z) is the proposal's density at z. Over a grid of z for one row x, it sums to one.

    The row is repeated, and noise by content gives all copies one proposal.
    """

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros((), dtype=torch.float64), 1.0))
            pyro.sample("x", dist.Normal(z.exp(), 0.5), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.3 * x, torch.tensor(0.7, dtype=torch.float64)))

    pair = pv.LatentVariableModel(model, guide)
    z = torch.linspace(-12, 12, 4001, dtype=torch.float64)
    x = torch.full_like(z, 1.3)
    made = simulated(Evaluation.prepare(pair, x, 1, 0), torch.arange(len(x)))
    rows = dataclasses.replace(made, batch={"x": x}, exact={"z": z[None]})
    ev = pv.log_evidence(pair, rows, method=method, noise="content", **METHODS[method])
    joint = dist.Normal(0.0, 1.0).log_prob(z) + dist.Normal(z.exp(), 0.5).log_prob(x)
    log_weight = torch.as_tensor(ev.log_odds + ev.estimate) + math.log(ev.num_samples)
    assert float((joint - log_weight).exp().sum() * (z[1] - z[0])) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_answers_never_see_the_exact_draw(method):
    """Other z in its place change nothing but the comparison with it."""
    pair, _ = gaussian(shift=0.5)
    rows = rows_of(pair, 12, 3)
    other = dataclasses.replace(rows, exact={"z": rows.exact["z"] * 0 + 3.0})
    first, second = (pv.log_evidence(pair, each, method=method, **METHODS[method]) for each in (rows, other))
    for name in ("estimate", "mcse", "pareto_k", "cost"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))
    assert (first.log_odds != second.log_odds).all()


@pytest.mark.parametrize("method", METHODS)
def test_rows_of_the_user_have_no_exact_draw(method):
    pair, marginal = gaussian()
    ev = pv.log_evidence(pair, marginal.sample((4,)), method=method, **METHODS[method])
    assert ev.log_odds is None


def test_an_exact_draw_off_the_grid_is_missed():
    pair, _ = gaussian()
    rows = rows_of(pair, 20, 3)
    ev = pv.log_evidence(pair, rows, method="quadrature", tolerance=0.05)
    assert (ev.log_odds < 0).all()
    far = dataclasses.replace(rows, exact={"z": rows.exact["z"] + 100.0})
    ev = pv.log_evidence(pair, far, method="quadrature", tolerance=0.05)
    assert (ev.log_odds == math.inf).all()


def test_simulated_rows_do_not_depend_on_how_many_there_are():
    pair, _ = gaussian()
    few, many = rows_of(pair, 5, 3), rows_of(pair, 40, 3)
    torch.testing.assert_close(few.batch["x"], many.batch["x"][:5], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(few.exact["z"], many.exact["z"][:, :5], rtol=1e-12, atol=1e-12)
    some = many.only(torch.tensor([3, 1]))
    torch.testing.assert_close(some.batch["x"], few.batch["x"][[3, 1]], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(some.exact["z"], few.exact["z"][:, [3, 1]], rtol=1e-12, atol=1e-12)


# ---------------------------------------------------------------------------------------------------------
# Traps and healthy models


@pytest.mark.parametrize(
    ("method", "options", "shift", "seed"),
    [
        ("importance", {"num_samples": 1000}, 0.0, 0),
        ("importance", {"num_samples": 1000}, 4.0, 1),
        ("refined", {}, 4.0, 2),
        ("auto", {}, 4.0, 0),
    ],
)
def test_a_narrow_component_is_refused(method, options, shift, seed, monkeypatch):
    """Starts among simulated pairs find it, so there are none; those that climb the likelihood find it without a shift."""
    monkeypatch.setattr(Pool, "near", lambda *_: None)
    pair, sample = spike(10, 0.1, shift)
    x = sample(12, narrow=True)
    ev = pv.log_evidence(pair, x, method=method, seed=seed, compile=False, **options)
    assert ev.check.passed is False
    assert ev.check.missed > 40
    assert ev.counts()["trust"] == 0
    assert f"missed the posterior of {ev.check.missed} of {ev.check.trusted} rows" in ev.summary()
    plain = pv.log_evidence(pair, x, method=method, seed=seed, compile=False, check=False, **options)
    assert plain.counts()["unchecked"] > 8  # what the check is for
    np.testing.assert_array_equal(plain.estimate, ev.estimate)


@pytest.mark.parametrize("method", ["importance", "refined", "auto", "quadrature", "annealed"])
def test_a_good_guide_passes(method):
    options = {
        "importance": {"num_samples": 500},
        "annealed": {"num_temperatures": 40},
        "quadrature": {"tolerance": 0.05},
    }.get(method, {})
    pair, marginal = gaussian()
    ev = pv.log_evidence(pair, marginal.sample((30,)), method=method, **options)
    assert ev.check.passed
    assert ev.check.missed == 0
    assert ev.check.beyond <= 2  # a row lies beyond with probability 1/1000
    assert ev.check.compared == 30
    assert ev.counts()["trust"] > 25
    assert "0 of 64 trusted rows missed" in ev.summary()


def test_rows_that_resemble_x_show_what_plain_ones_hide():
    """A narrow component of weight 2 %: of rows that all come from it, those chosen to resemble them are missed."""
    pair, sample = spike(50, 0.1, 0.0, weight=0.02)
    x = sample(64, narrow=True)
    supply = Supply(Evaluation.prepare(pair, x, 1, 0), 512)
    rows = supply.take(64, 0)
    ev = pv.log_evidence(pair, rows, num_samples=500, compile=False)
    plain, matched = (ev.log_odds[part] > 0 for part in (slice(32), slice(32, None)))
    assert plain.sum() <= 4
    assert matched.sum() >= 24
    assert len({tuple(row.tolist()) for row in rows.batch["x"]}) == 64


@pytest.mark.parametrize("tail", [1.0, 30.0])
def test_a_heavy_tail_hides_no_columns(tail):
    """The second column is LogNormal, with infinities in float32 at the larger scale. Rows are still chosen by the first."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("a", dist.Normal(z, 0.1), obs=x[:, 0])
            pyro.sample("b", dist.LogNormal(torch.zeros(len(x)), tail), obs=x[:, 1])

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x[:, 0] / 1.01, 0.0995))

    x = torch.stack([torch.linspace(2.5, 3.0, 40), torch.ones(40)], 1)
    supply = Supply(Evaluation.prepare(pv.LatentVariableModel(model, guide), x, 1, 0), 64)
    first = supply.take(64, 0).batch["x"][:, 0]
    assert (first[32:] - 2.75).abs().max() < 0.5
    assert (first[:32] - 2.75).abs().min() > 0.2
    assert supply.beyond() == (0, 40)


def test_too_few_trusted_rows_say_nothing():
    pair, marginal = gaussian(scale=0.02)
    tried = evidence.check(pair, marginal.sample((5,)), "importance", num_rows=8, num_samples=20)
    assert (tried.passed, tried.trusted, tried.missed) == (None, 0, 0)
    assert "too few" in tried.summary()


def test_a_model_whose_rows_cannot_be_simulated_is_unchecked():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("a", dist.Normal(z, 1.0), obs=x[:, 0])

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x[:, 0] / 2, 0.5**0.5))

    pair = pv.LatentVariableModel(model, guide)
    ev = pv.log_evidence(pair, torch.randn(6, 2), num_samples=50)
    assert ev.check.passed is None
    assert ev.counts()["trust"] == 0
    assert "cannot be tried on rows simulated from the model" in ev.summary()


def test_a_model_that_cannot_run_on_its_own_rows_is_unchecked():
    """The number is returned nevertheless."""
    names = torch.randn(3)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Poisson((z + 2).exp()), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(names[x.long()], 1.0))

    pair = pv.LatentVariableModel(model, guide)
    ev = pv.log_evidence(pair, torch.tensor([0.0, 1.0, 2.0, 2.0]), num_samples=2000)
    assert ev.check.passed is None
    assert "IndexError" in ev.check.reason
    assert "trust" not in ev.verdict
    assert np.isfinite(ev.estimate).all()


@pytest.mark.parametrize("method", METHODS)
def test_no_row_is_trusted_without_the_check(method):
    pair, marginal = gaussian()
    x = marginal.sample((20,))
    with_check = evidence.METHODS[method](pair, x, **METHODS[method])
    without = evidence.METHODS[method](pair, x, check=False, **METHODS[method])
    assert without.check is None
    assert "trust" not in without.verdict
    assert with_check.check is None or with_check.check.passed  # four chains are too few for a verdict
    np.testing.assert_array_equal(with_check.estimate, without.estimate)
    trusted = with_check.verdict == "trust"
    np.testing.assert_array_equal(np.where(trusted, "unchecked", with_check.verdict), without.verdict)


def test_a_check_is_made_once_for_a_model_rows_and_method(monkeypatch):
    made = []
    module = sys.modules["pyrovae.evidence.check"]
    count = module._count
    monkeypatch.setattr(module, "_AT_ONCE", 8)
    monkeypatch.setattr(module, "_count", lambda *given: made.append(given) or count(*given))
    pair, x = pv.VAE.mlp(4, 2, hidden_dims=(3,)), torch.ones(6, 4)
    options = {"num_samples": 200, "compile": False}

    def checks(**changed):
        made.clear()
        assert pv.log_evidence(pair, changed.pop("x", x), **options | changed).check is not None
        return len(made)

    assert [checks(), checks()] == [1, 0]
    assert [checks(seed=1), checks(num_samples=300), checks(x=torch.zeros(6, 4)), checks()] == [1, 1, 1, 0]
    with torch.no_grad():
        pair.likelihood.network.layers[-1].bias += 0.5
    assert [checks(), checks()] == [1, 0]
    other = copy.deepcopy(pair)
    forward = type(pair.encoder).forward
    monkeypatch.setattr(type(pair.encoder), "forward", lambda self, x: forward(self, x + 1))
    assert [checks(), checks()] == [1, 0]
    pair = other
    assert [checks(), checks()] == [1, 0]


def test_discrete_latents_and_values_beside_the_rows():
    """z says which of two offsets a count has; the offset of its row is given."""

    def model(x, offset):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(0.3))
            pyro.sample("x", dist.Poisson((offset + 2 * z).exp()), obs=x)

    def guide(x, offset):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Bernoulli(logits=2 * (x.log1p() - offset - 1)))

    pair = pv.LatentVariableModel(model, guide)
    offset = torch.linspace(-1, 1, 20)
    x = {"x": torch.poisson(offset.exp()), "offset": offset}
    tried = evidence.check(pair, x, "importance", num_samples=200)
    assert tried.passed
    rows = Supply(Evaluation.prepare(pair, x, 1, 0), 64).take(16, 0)
    ev = pv.log_evidence(pair, rows, num_samples=5)
    z, given = rows.exact["z"][0], rows.batch["offset"]
    joint = dist.Bernoulli(0.3).log_prob(z) + dist.Poisson((given + 2 * z).exp()).log_prob(rows.batch["x"])
    log_q = dist.Bernoulli(logits=2 * (rows.batch["x"].log1p() - given - 1)).log_prob(z)
    expected = joint - log_q - torch.as_tensor(ev.estimate) - math.log(5)
    np.testing.assert_allclose(ev.log_odds, expected, rtol=1e-5, atol=1e-5)


def test_the_closed_form_needs_no_check():
    vae = pv.VAE.mlp(4, 2, likelihood="gaussian", hidden_dims=())
    x = LinearGaussian.random(2, 4, dtype=torch.float32).sample(10)
    assert pv.log_evidence(vae, x, method="exact").check is None
    assert evidence.check(vae, x, "auto").passed


def two_modes(share, visits, num_samples):
    """Two distant modes; the guide draws the second, which has ``share`` of every row's mass, ``visits`` times in K draws."""
    apart = torch.tensor([-10.0, 10.0], dtype=torch.float64)
    mass = torch.tensor([1 - share, share], dtype=torch.float64)
    seldom = torch.tensor([1 - visits / num_samples, visits / num_samples], dtype=torch.float64)

    def mixture(weights, x):
        each = dist.Normal(apart.expand(len(x), 2), torch.ones((), dtype=torch.float64))
        return dist.MixtureSameFamily(dist.Categorical(weights.expand(len(x), 2)), each)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", mixture(mass, x))
            pyro.sample("x", dist.Bernoulli(0.3 + 0.0 * z), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", mixture(seldom, x))

    return pv.LatentVariableModel(model, guide)


@pytest.mark.statistical
@pytest.mark.parametrize(("share", "visits"), [(0.45, 0.9), (0.45, 1.5), (0.3, 0.7)])
def test_a_mode_that_is_seldom_visited_is_missed(share, visits):
    """Rows that are trusted lack the mode; its weight, if it is drawn, is below that of all others together."""
    x = torch.zeros(40, dtype=torch.float64)
    pair = two_modes(share, visits, 1000)
    ev = pv.log_evidence(pair, x, num_samples=1000, compile=False)
    assert "trust" not in ev.verdict
    assert ev.check.passed is False
    before = pv.log_evidence(pair, x, num_samples=1000, compile=False, check=False)
    low = before.estimate < math.log(0.7) + math.log1p(-share) + 0.1
    assert low[before.verdict == "unchecked"].all()
    good = pv.log_evidence(two_modes(share, share * 1000, 1000), x, num_samples=1000, compile=False)
    assert (good.verdict == "trust").all()


@pytest.mark.statistical
@pytest.mark.parametrize("num_samples", [20, 100, 1000])
def test_the_exact_draw_is_as_heavy_as_the_draws(num_samples):
    """It is among the heaviest as often as by chance, with few draws, too: 3000 rows show a hundredth more."""
    pair, marginal = gaussian(shift=0.3, scale=1.6)
    rows = simulated(Evaluation.prepare(pair, marginal.sample((3000,)), 1, 0), torch.arange(3000))
    ev = pv.log_evidence(pair, rows, num_samples=num_samples, compile=False)
    error = ev.excess.std() / math.sqrt(3000)
    assert abs(ev.excess.mean()) <= Z * error < 0.04
    chance = np.where(ev.excess > 0, 1 - ev.excess, -ev.excess).mean()
    assert 0.03 < chance < (0.3 if num_samples < 1000 else 0.07)


@pytest.mark.parametrize("num_samples", [1000, 5000, 20_000])
@pytest.mark.parametrize("scale", [1.0, 1.03])
def test_even_weights_are_no_fault(num_samples, scale):
    """With many draws of nearly one weight, the heaviest ones that are kept hold less than 5 % of it."""
    pair, marginal = gaussian(scale=scale)
    tried = evidence.check(
        pair, marginal.sample((10,)), "importance", num_rows=16, num_samples=num_samples, compile=False
    )
    assert tried.passed
    assert tried.heaviest < 8


def test_rows_with_a_heavy_tail_are_simulated():
    """A few simulated rows have numbers beyond the largest one."""

    def model(x):
        with pyro.plate("data", len(x)):
            scale = pyro.sample("scale", dist.HalfCauchy(torch.ones((), dtype=torch.float32)))
            pyro.sample("x", dist.Normal(0.0, scale**12), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("scale", dist.LogNormal((x.abs() + 1e-30).log() / 12, 0.3))

    tried = evidence.check(
        pv.LatentVariableModel(model, guide), torch.randn(20), "importance", num_samples=1000, compile=False
    )
    assert tried.simulated > 0


def test_the_order_of_the_rows_does_not_matter():
    pair, marginal = gaussian(scale=1.2)
    x = marginal.sample((300,))
    one, other = (
        evidence.check(pair, rows, "importance", num_rows=16, num_samples=100, compile=False)
        for rows in (x, x.flip(0))
    )
    np.testing.assert_array_equal(one.log_odds, other.log_odds)


def test_both_halves_have_to_be_trusted(monkeypatch):
    """A method that trusts plain rows alone is not passed by them."""
    pair, marginal = gaussian()

    def importance(pair, x, seed, check=True):
        ev = evidence.importance(pair, x, num_samples=200, seed=seed, check=False)
        plain = np.arange(len(ev)) < len(ev) / 2
        return dataclasses.replace(ev, verdict=np.where(plain, "trust", "another method"))

    monkeypatch.setitem(evidence.METHODS, "importance", importance)
    tried = evidence.check(pair, marginal.sample((5,)), "importance", num_rows=8)
    assert (tried.passed, tried.trusted, tried.simulated) == (None, 32, 64)
    assert "4 of each are needed" in tried.reason


# ---------------------------------------------------------------------------------------------------------
# The rule and its promise


@pytest.mark.parametrize(
    ("missed", "expected"),
    [
        ([0], (True, 64, 0)),
        ([1, 0, 0, 0], (True, 256, 1)),
        ([1, 1, 0, 0], (True, 256, 2)),
        ([1, 1, 1], (False, 192, 3)),
        ([0, 5], (True, 64, 0)),
        ([3], (False, 64, 3)),
    ],
)
def test_the_rule(missed, expected, monkeypatch):
    """None of 64 passes; after one or two, two of 256 do."""
    pair, marginal = gaussian()
    turns = iter(missed)

    def importance(pair, x, seed, check=True):
        ev = evidence.importance(pair, x, num_samples=200, seed=seed, check=False)
        if not check:  # on a row of x
            return ev
        count = next(turns)
        odds = np.where(np.arange(64) < count, 1.0, -1.0)
        return dataclasses.replace(ev, verdict=np.full(64, "trust"), log_odds=odds, excess=np.zeros(64))

    monkeypatch.setitem(evidence.METHODS, "importance", importance)
    tried = evidence.check(pair, marginal.sample((5,)), "importance")
    assert (tried.passed, tried.trusted, tried.missed) == expected


def test_the_promise():
    """At most so many rows may be low by half a nat: each of them would be missed with probability 1 − exp(−½)."""
    tried = evidence.Check("auto", 64, 0, 3, 64, True, None, np.zeros(64), 0, 10)
    assert tried.share_low == pytest.approx((1 - 0.05 ** (1 / 64)) / (1 - math.exp(-0.5)))
    assert 0.11 < tried.share_low < 0.12
    assert dataclasses.replace(tried, trusted=1024).share_low < 0.01
    assert dataclasses.replace(tried, trusted=256, missed=2).share_low == pytest.approx(0.0619, abs=1e-3)
    promise = "log P may be 0.5 nats or more too low, because no draw reached a part of the posterior, in at most 12% of"
    assert promise in tried.summary()


def test_rows_beyond_the_simulated_ones_are_counted():
    pair, marginal = gaussian()
    x = marginal.sample((30,))
    x[:4] += 40.0
    assert evidence.check(pair, x, "importance", num_samples=200).beyond == 4


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"method": "exact"}, "^method: expected one of 'importance'"),
        ({"method": "importance", "checkpoint": "a"}, "^checkpoint: expected an option of method"),
        ({"method": "importance", "tolerance": 1}, "^tolerance: expected an option of method"),
        ({"num_rows": 7}, "^num_rows: expected a whole number ≥ 8"),
    ],
)
def test_bad_options_are_refused(options, error):
    pair, marginal = gaussian()
    with pytest.raises((TypeError, ValueError), match=error):
        evidence.check(pair, marginal.sample((5,)), **options)


def test_a_baseline_computes_the_number_itself():
    x = torch.randn(20, 3)
    with pytest.raises(ValueError, match=r"^check: expected no options"):
        pv.log_evidence(pv.baselines.PPCA(1).fit(x), x, check=True)
    with pytest.raises(TypeError, match=r"^check: expected True or False"):
        pv.log_evidence(gaussian()[0], x.double(), check="yes", num_samples=10)


def test_rows_unlike_the_simulated_ones_are_counted():
    pair, marginal = gaussian()
    far = pv.log_evidence(pair, marginal.sample((3,)) + 40, num_samples=200, compile=False)
    assert "3 rows are less probable than all 64 rows simulated for the check" in str(far)
    near = dataclasses.replace(far, estimate=np.full(3, far.check.highest + 0.1))
    assert "3 rows are more probable than all 64 rows simulated for the check" in str(near)
