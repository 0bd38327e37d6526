"""Fits that go on until they have converged, adapted mixtures, and starts from simulated pairs, against exact answers."""

import math
import sys
from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from oracles import LinearGaussian
from rates import SEED, Z, close
from test_check import spike

import pyrovae as pv
from pyrovae import noise
from pyrovae.evaluation import Evaluation
from pyrovae.evidence import gaussians, ladder
from pyrovae.evidence.adaptive import COMPONENTS, Cloud, adapted
from pyrovae.evidence.defensive import _Drawn, _Sums
from pyrovae.evidence.gaussians import (
    PRIOR_DRAWS,
    Hints,
    Starts,
    encoder_start,
    independent_starts,
    search_cost,
)
from pyrovae.evidence.nearby import Pool
from pyrovae.evidence.posterior import Gaussian, Posterior, total, undisturbed
from pyrovae.evidence.result import Columns
from pyrovae.noise import Stream
from pyrovae.pair import DiscreteValues, LogJoint, inspect
from pyrovae.row_noise import RowNoise

# ---------------------------------------------------------------------------------------------------------
# Fits


def far_rows(num_rows, far=6.0):
    """Rows with z ``far`` prior standard deviations out, and a guide that stays within three."""
    oracle = LinearGaussian.random(10, 30)
    generator = torch.Generator().manual_seed(3)
    z, noise = (torch.randn(num_rows, n, generator=generator, dtype=torch.float64) for n in (10, 30))
    x = far * z @ oracle.loadings.T + oracle.loc + oracle.sigma * noise

    def guide(x):
        with pyro.plate("data", len(x)):
            loc = 3 * torch.tanh(oracle.posterior(x).mean / 3)
            pyro.sample("z", dist.Normal(loc, oracle.precision().diagonal().rsqrt()).to_event(1))

    return pv.LatentVariableModel(oracle.model, guide), x, oracle.log_prob(x).numpy()


@pytest.mark.parametrize("method", ["refined", "auto"])
def test_far_rows_are_settled(method):
    """Ten fixed steps of two standard deviations each were 276 nats low on average."""
    pair, x, exact = far_rows(100)
    ev = pv.log_evidence(pair, x, method=method, seed=SEED)
    assert ev.settled.all()
    assert (np.abs(ev.estimate - exact) < Z * 0.05).all()
    assert abs((ev.estimate - exact).mean()) < 0.05


def test_a_narrow_mode_on_a_plateau_is_found():
    """A phase transition: ascents of log P(x, u) end many widths beside the narrow mode, and 76 % of the rows were nats low."""
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))
    from trap_models import SETTINGS

    pair, x, exact = next(each for each in SETTINGS if each.name == "plateau 0.1, 10-D").build(0, 30)
    ev = pv.log_evidence(pair, x, method="refined", seed=SEED, compile=False, check=False)
    # 2 % of the rows are missed; by chance, more than 6 of 30 once in a million times
    assert (np.abs(ev.estimate - exact) > 0.5).sum() <= 6


def test_the_trust_region_grows():
    """Modes are up to 70 standard deviations away: at two of them a step, 12 steps would not do."""
    rows = [
        far_rows(30, far) for far in (0.5, 6.0)
    ]  # the fits of the first rows end before those of the others
    x, exact = torch.cat([x for _, x, _ in rows]), np.concatenate([exact for *_, exact in rows])
    ev = pv.log_evidence(rows[0][0], x, method="refined", num_starts=1, num_steps=12, seed=SEED, check=False)
    assert (np.abs(ev.estimate - exact) < Z * 0.05).mean() > 0.9


def test_a_far_row_costs_the_others_nothing():
    pair, x, _ = far_rows(20)
    near = far_rows(20, far=0.5)[1]
    alone = pv.log_evidence(pair, near, method="refined", num_samples=100, check=False)
    beside = pv.log_evidence(pair, torch.cat([near, x]), method="refined", num_samples=100, check=False)
    np.testing.assert_array_equal(alone.cost, beside.cost[:20])
    np.testing.assert_allclose(alone.estimate, beside.estimate[:20], rtol=0, atol=1e-6)
    assert beside.cost[20:].mean() > 1.2 * alone.cost.mean()


def test_a_fit_makes_at_most_the_steps_it_is_given():
    pair, x, _ = far_rows(4)
    costs = [
        pv.log_evidence(
            pair, x, method="refined", num_samples=100, num_starts=1, num_steps=steps, check=False
        ).cost
        for steps in (1, 2, 200)
    ]
    assert (costs[1] - costs[0] == 60).all()  # a step: gradients, three evaluations each, at 2 · 10 points
    assert (costs[2] > costs[1]).all()


# ---------------------------------------------------------------------------------------------------------
# Adapted mixtures


def cloud_of(dim, rows, freedom):
    generator = torch.Generator().manual_seed(dim)
    loc = 0.5 * torch.randn(rows, COMPONENTS, dim, generator=generator, dtype=torch.float64)
    tril = torch.diag_embed(1.2 + 0.4 * torch.rand(rows, COMPONENTS, dim, generator=generator).double())
    tril = tril + 0.2 * torch.tril(torch.randn(rows, COMPONENTS, dim, dim, generator=generator).double(), -1)
    share = torch.rand(rows, COMPONENTS, generator=generator, dtype=torch.float64)
    share[:, -2:] = 0
    return Cloud(loc, tril, (share / share.sum(-1, keepdim=True)).log(), torch.float64, freedom)


@pytest.mark.parametrize("freedom", [0, 6])
@pytest.mark.parametrize("dim", [1, 3])
def test_the_density_of_a_mixture(dim, freedom):
    cloud = cloud_of(dim, 4, freedom)
    u = torch.randn(50, 4, dim, dtype=torch.float64)
    if freedom:
        # scipy's multivariate t has the shape matrix of ours
        from scipy.stats import multivariate_t

        expected = np.zeros((50, 4))
        for row in range(4):
            for c in range(COMPONENTS):
                shape = (cloud.tril[row, c] @ cloud.tril[row, c].T).numpy()
                density = multivariate_t(cloud.loc[row, c].numpy(), shape, df=freedom).pdf(u[:, row].numpy())
                expected[:, row] += float(cloud.log_share[row, c].exp()) * density
        expected = np.log(expected)
    else:
        parts = torch.distributions.MultivariateNormal(cloud.loc, scale_tril=cloud.tril)
        expected = torch.distributions.MixtureSameFamily(
            torch.distributions.Categorical(logits=cloud.log_share), parts
        ).log_prob(u)
    np.testing.assert_allclose(cloud.log_density(u, u[..., 0]), expected, rtol=0, atol=1e-9)


@pytest.mark.statistical
@pytest.mark.parametrize("freedom", [0, 6])
@pytest.mark.parametrize("dim", [1, 3])
def test_draws_of_a_mixture_follow_its_density(dim, freedom):
    """E[p/q] = 1 for a narrower p, over 4 · 50 000 draws; false alarms as in rates.py."""
    cloud = cloud_of(dim, 4, freedom)
    u = cloud.draw(50_000, RowNoise(SEED + 1, torch.arange(4)))
    p = torch.distributions.Normal(torch.zeros(dim, dtype=torch.float64), 0.8).log_prob(u).sum(-1)
    weight = (p - cloud.log_density(u, p)).exp()
    assert close(float(weight.mean()), 1.0, float(weight.std() / weight.numel() ** 0.5))


def bent(num_rows, wide=1.5, narrow=0.1):
    """z ~ N(0, I₂); x ~ N((z₂ + wide z₁², z₁), diag(narrow², 1)). Given z₁, all is Gaussian: exact on a grid of z₁."""
    generator = torch.Generator().manual_seed(4)
    z, noise = (torch.randn(num_rows, 2, generator=generator, dtype=torch.float64) for _ in range(2))
    scale = torch.tensor([narrow, 1.0], dtype=torch.float64)
    x = torch.stack([z[:, 1] + wide * z[:, 0] ** 2, z[:, 0]], 1) + scale * noise

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            loc = torch.stack([z[..., 1] + wide * z[..., 0] ** 2, z[..., 0]], -1)
            pyro.sample("x", dist.Normal(loc, scale).to_event(1), obs=x)

    def guide(x):
        first = x[:, 1] / 2
        loc = torch.stack([first, (x[:, 0] - wide * first**2).clamp(-3, 3)], -1)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, x.new_tensor([0.5, 0.4])).to_event(1))

    def exact(x):
        t = torch.linspace(-9, 9, 20_001, dtype=torch.float64)
        normal = torch.distributions.Normal
        terms = normal(wide * t**2, math.hypot(1, narrow)).log_prob(x[:, :1])
        terms = terms + normal(t, 1.0).log_prob(x[:, 1:]) + normal(0.0, 1.0).log_prob(t)
        return (torch.logsumexp(terms, dim=1) + (t[1] - t[0]).log()).numpy()

    return pv.LatentVariableModel(model, guide), x, exact(x)


@pytest.mark.statistical
def test_the_bound_of_an_adapted_mixture_holds_in_expectation(monkeypatch):
    """E[exp(estimate)] = P(x): one bent row with 200 noises, all of them answered by an adapted mixture."""
    pair, x, exact = bent(1)
    monkeypatch.setattr(
        ladder, "_TAIL", -math.inf
    )  # no fit is good enough, nor is the mixture: annealed or refined
    monkeypatch.setattr(ladder, "MOST_DIMENSIONS", 0)
    monkeypatch.setattr(ladder, "path_cost", lambda *_: math.inf)
    ev = pv.log_evidence(pair, x.expand(200, -1), method="auto", target_mcse=0.2, seed=SEED, check=False)
    assert set(ev.answered_by) == {"refined"}
    ratio = np.exp(ev.estimate - exact)
    assert close(ratio.mean(), 1.0, ratio.std() / len(ratio) ** 0.5)


def test_adaptation_finds_the_arms_of_a_bent_posterior():
    """Effective draws of 2000 from the mixture, beside those of the Gaussian that it begins with."""
    pair, x, _ = bent(40)
    made = Evaluation.prepare(pair, x, 64, 0)
    with undisturbed(made, Stream.PILOT) as noise:
        posterior = Posterior(made)
        u = posterior.draw_encoder(200, noise).double()
        spread = torch.diag_embed(u.std(dim=0))
        first = Cloud.around([Gaussian(u.mean(dim=0), spread, posterior.dtype)])
        shares = []
        for cloud in (first, adapted(posterior, first, noise)):
            u = cloud.widened(1.2).draw(2000, noise)
            joint = posterior.log_joint(u)
            weight = (
                joint.prior + joint.likelihood - cloud.widened(1.2).log_density(u, joint.prior)
            ).softmax(0)
            shares.append(1 / (weight**2).sum(dim=0) / 2000)
    assert float((shares[1] > shares[0]).double().mean()) > 0.9
    assert float(shares[1].median()) > 2 * float(shares[0].median())


# ---------------------------------------------------------------------------------------------------------
# Starts from simulated pairs


@pytest.mark.parametrize("method", ["refined", "auto"])
@pytest.mark.parametrize("shift", [0.0, 4.0])
def test_a_narrow_component_that_no_draw_meets_is_found(shift, method):
    """Without the pairs every trusted row is 3 or 6 nats low."""
    pair, sample = spike(10, 0.1, shift)
    x = sample(40, narrow=True)
    off = torch.eye(10)[0] * shift
    parts = [
        math.log(weight) + torch.distributions.Normal(loc, scale).log_prob(x).sum(-1)
        for weight, loc, scale in ((0.1, 0.0, 2**0.5), (0.9, off, 1.01**0.5))
    ]
    ev = pv.log_evidence(pair, x, method=method, seed=SEED, check=False)
    error = ev.estimate - torch.logaddexp(*parts).numpy()
    trusted = ev.verdict == "unchecked"
    assert trusted.mean() > 0.8
    assert (np.abs(error[trusted]) > 0.5).sum() <= (1 if method == "auto" else 2)
    assert abs(np.median(error[trusted])) < 0.05


def test_pairs_do_not_depend_on_the_rows():
    oracle = LinearGaussian.random(3, 6)
    x = oracle.sample(9)
    made = [Evaluation.prepare(oracle.pair(), rows, 64, 5) for rows in (x, x[4:])]
    here, there = (Pool(each).near({"x": x[4:]}) for each in made)
    torch.testing.assert_close(here, there)


def test_pairs_moved_to_a_row_lie_in_its_posterior():
    """In a linear Gaussian model the regression is exact: moved pairs scatter like draws of the posterior."""
    oracle = LinearGaussian.random(3, 12)
    x = oracle.sample(300)
    moved = Pool(Evaluation.prepare(oracle.pair(), x, 64, SEED)).near({"x": x})[16:]
    whole = oracle.posterior(x)
    white = torch.linalg.solve_triangular(whole.scale_tril, (moved - whole.mean)[..., None], upper=False)[
        ..., 0
    ]
    assert abs(float(white.mean())) < 0.1
    assert abs(float(white.std()) - 1) < 0.1


def test_pairs_of_wide_rows_cost_little():
    """The regression has as many equations as pairs, not as columns; some simulated rows may be infinite."""
    oracle = LinearGaussian.random(2, 3000)
    pool = Pool(Evaluation.prepare(oracle.pair(), oracle.sample(4), 64, 0))
    assert pool.near({"x": oracle.sample(4)}).shape == (32, 4, 2)


@pytest.mark.parametrize("max_cost", [1000, 1200, 2000])
def test_a_row_is_answered_once(max_cost, monkeypatch):
    """Fits of many rows show a narrow component, and the budget does not allow another fit."""
    pair, sample = spike(3, 0.05, 1.0)
    x = sample(40, narrow=True)
    kept = []
    keep = ladder.Ladder._keep
    monkeypatch.setattr(
        ladder.Ladder,
        "_keep",
        lambda self, rows, *rest: kept.extend(rows.tolist()) or keep(self, rows, *rest),
    )
    ev = pv.log_evidence(pair, x, method="auto", max_cost=max_cost, check=False, compile=False)
    assert sorted(kept) == list(range(40))
    assert (ev.cost <= max_cost).all()


def test_hints_are_about_their_rows():
    oracle = LinearGaussian.random(2, 5)
    x = oracle.sample(6)
    made = Evaluation.prepare(oracle.pair(), x, 64, 0)
    with undisturbed(made, Stream.PILOT) as noise:
        posterior = Posterior(made)
        hints = Hints.at(posterior, posterior.draw_encoder(7, noise))
    expected = oracle.log_prob(x) + oracle.posterior(x).log_prob(hints.u)
    torch.testing.assert_close(hints.log_joint, expected)
    some = hints.of_rows(torch.tensor([4, 1]))
    torch.testing.assert_close(some.log_encoder, oracle.posterior(x[[4, 1]]).log_prob(some.u))


# ---------------------------------------------------------------------------------------------------------
# Many modes


def corners(dim, sd=0.2, wide=False):
    """x = |z| + noise, with the guide at one of 2^dim corners; log P(x) for rows so far out that no corner is cut.

    If it is ``wide``, the guide is as wide as all corners.
    """
    spread = math.sqrt(1 + sd**2)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(dim), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z.abs(), sd).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            own = (0 * x, 1.3) if wide else (x / spread**2, sd / spread)
            pyro.sample("z", dist.Normal(*own).to_event(1))

    def log_prob(x):
        return (torch.distributions.Normal(0.0, spread).log_prob(x) + math.log(2)).sum(-1).numpy()

    return pv.LatentVariableModel(model, guide), log_prob


def test_a_search_that_finds_mostly_new_modes_goes_on():
    """Three starts for each of three rows: at three new modes; twice at one new mode; at known modes and a new one."""
    loc = torch.tensor([[[9.0], [9.0], [0.0]], [[18.0], [9.1], [5.0]], [[27.0], [0.1], [5.1]]])
    starts = Starts(loc, loc[..., 0], torch.ones_like(loc))
    known = torch.tensor([[[0.0], [0.0], [0.0]], [[-9.0], [-9.0], [5.0]]])
    assert gaussians.mostly_new(starts, known).tolist() == [True, False, False]


def test_a_search_costs_what_it_says():
    pair, _ = corners(2)
    evaluation = Evaluation.prepare(pair, torch.full((3, 2), 1.5), 64, 0)
    with undisturbed(evaluation, Stream.PILOT) as noise:
        posterior = Posterior(evaluation)
        before = posterior.cost
        prior, joint = posterior.draw_prior(2 * PRIOR_DRAWS, noise)
        independent_starts(posterior, 2, encoder_start(posterior, prior, noise), prior, total(joint), noise)
    assert posterior.cost - before == search_cost(2) + 1  # and the encoder's mean


def test_chains_reach_modes_that_no_proposal_covers():
    """With a tenth of the chains from the prior, a row has 7 effective ones."""
    pair, log_prob = corners(2)
    x = torch.full((100, 2), 1.5)
    evaluation = Evaluation.prepare(pair, x, 64, SEED)
    made = ladder.Ladder(evaluation, Pool(None), 0.05, 50_000, None)
    loc, tril = x.double() / 1.04, 0.2 * torch.eye(2, dtype=torch.float64).expand(100, 2, 2)
    found = made._anneal(ladder.Fitted(torch.arange(100), [Gaussian(loc, tril, torch.float32)]), 60)
    assert found.ess.mean() > 12
    error = found.estimate.numpy() - log_prob(x)
    assert abs(error.mean()) < 0.15


def test_a_row_with_many_modes_is_not_trusted_without_them():
    """Where the first search found four of 16 modes, 5 to 14 of 16 rows were trusted 1.4 nats low; now 1 of 96."""
    pair, log_prob = corners(4)
    x = torch.cartesian_prod(*[torch.tensor([1.8, 2.6])] * 4)
    ev = pv.log_evidence(pair, x, method="auto", max_cost=4000, seed=SEED, check=False, compile=False)
    low = ev.estimate - log_prob(x) < -0.5
    assert (low & (ev.verdict == "unchecked")).sum() <= 3  # by chance more, once in 10⁵ times


@pytest.mark.parametrize("pairs", [True, False])
def test_fits_that_end_in_different_modes_are_joined_by_those_of_the_others(monkeypatch, pairs):
    """Four fits found two or three of four modes in 13 to 23 of 60 rows, which were up to 0.3 nats low.

    With all modes, the errors are at most 0.02 nats.
    """
    if not pairs:  # simulated pairs show most of the modes that fits miss
        monkeypatch.setattr(Pool, "near", lambda self, batch: None)
    pair, log_prob = corners(2, wide=True)
    x = 1 + torch.rand(60, 2, generator=torch.Generator().manual_seed(SEED))
    options = {"method": "refined", "seed": SEED, "check": False}
    found = pv.log_evidence(pair, x, **options)
    np.testing.assert_allclose(found.estimate, log_prob(x), atol=0.2)
    few = pv.log_evidence(pair, x[:7], **options)
    np.testing.assert_allclose(few.estimate, found.estimate[:7], atol=1e-5)
    moments = pv.embed(pair, x, **options)
    squares = ((x / 1.04) ** 2 + 0.04 / 1.04).double().numpy()
    sampled = moments[["z_0", "z_1"]].to_numpy() ** 2 + moments[["z_0_sd", "z_1_sd"]].to_numpy() ** 2
    np.testing.assert_allclose(sampled, squares, rtol=0.1)  # 6 standard errors


def waves():
    """x = sin 2e + e/5 + noise with e = az + c in two columns, a guide that is far too narrow, 60 rows, and their log P(x).

    A posterior has up to five narrow modes.
    """
    slope, shift = torch.tensor([1.0, 1.5]), torch.tensor([0.5, -0.5])

    def likelihood(z):
        e = slope * z + shift
        return dist.Normal((2 * e).sin() + e / 5, 0.1).to_event(1)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(len(x), 1), 3.0).to_event(1))
            pyro.sample("x", likelihood(z), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x.mean(1, keepdim=True) / 2, 0.1).to_event(1))

    generator = torch.Generator().manual_seed(0)
    z, e = (torch.randn(60, width, generator=generator) for width in (1, 2))
    x = likelihood(3 * z).mean + e / 10
    grid = torch.linspace(-24, 24, 60_001, dtype=torch.float64)[:, None]
    log_joint = dist.Normal(0.0, 3.0).log_prob(grid[:, 0]) + likelihood(grid).log_prob(x.double()[:, None])
    return pv.LatentVariableModel(model, guide), x, log_joint.logsumexp(1).numpy() + math.log(48 / 60_000)


@pytest.mark.parametrize("seed", [1, 7])
def test_fits_that_all_end_in_a_wrong_mode_are_joined_or_not_trusted(seed):
    """Before, 3 rows were 0.3 to 3.3 nats low and not named, with either seed."""
    pair, x, exact = waves()
    ev = pv.log_evidence(pair, x, method="refined", seed=seed, check=False)
    error, named = ev.estimate - exact, ev.verdict == "another method"
    assert error.min() > -0.6
    assert error[~named].min() > -0.25
    assert named.sum() < 15


# ---------------------------------------------------------------------------------------------------------
# A fallback


@pytest.mark.parametrize("dimensions_of_grids", [3, 0])
def test_a_fallback_that_is_below_the_proposals_does_not_answer(monkeypatch, dimensions_of_grids):
    """A grid in two dimensions; chains, where grids serve none."""
    pair, x, exact = bent(3)
    keep, seen = ladder.Ladder._keep_unless_lower, []

    def poor(self, rows, found, level, name, *rest):
        seen.append(name)
        columns = vars(found)
        low = {"estimate": columns["estimate"] - 4240, "mcse": 0 * columns["mcse"]}
        return keep(self, rows, Columns(**{**columns, **low}), level, name, *rest)

    monkeypatch.setattr(ladder, "_TAIL", -math.inf)  # every row comes to the fallback
    monkeypatch.setattr(ladder, "MOST_DIMENSIONS", dimensions_of_grids)
    monkeypatch.setattr(ladder.Ladder, "_keep_unless_lower", poor)
    ev = pv.log_evidence(pair, x, method="auto", check=False)
    assert set(seen) == {"quadrature" if dimensions_of_grids else "annealed"}
    assert (ev.answered_by == "refined").all()
    assert (np.abs(ev.estimate - exact) < 1).all()
    assert (ev.cost <= 50_000).all()


# ---------------------------------------------------------------------------------------------------------
# Mixtures as priors, in plain Pyro


@pytest.mark.parametrize("method", ["refined", "annealed", "quadrature"])
def test_a_mixture_of_normals_may_be_the_prior(method):
    """z ~ ½ N(−2, 1) + ½ N(2, 1), x ~ N(z, 0.5²): log P(x) is that of ½ N(−2, 1.25) + ½ N(2, 1.25)."""
    loc, half = torch.tensor([-2.0, 2.0], dtype=torch.float64), torch.full((2,), 0.5, dtype=torch.float64)

    def model(x):
        with pyro.plate("data", len(x)):
            each = dist.Normal(loc.expand(len(x), 2), torch.ones((), dtype=torch.float64))
            z = pyro.sample("z", dist.MixtureSameFamily(dist.Categorical(half.expand(len(x), 2)), each))
            pyro.sample("x", dist.Normal(z, 0.5), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x, 0.7))

    x = torch.linspace(-4, 4, 9, dtype=torch.float64)
    parts = torch.distributions.Normal(loc, 1.25**0.5).log_prob(x[:, None]) + math.log(0.5)
    ev = pv.log_evidence(pv.LatentVariableModel(model, guide), x, method=method, seed=SEED, check=False)
    error = np.abs(ev.estimate - parts.logsumexp(dim=1).numpy())
    assert (error < Z * ev.mcse + np.abs(ev.bias) + 1e-3).all()
    assert (ev.mcse < 0.1).all()


@pytest.mark.parametrize("method", ["refined", "quadrature"])
def test_a_mixture_of_gammas_may_be_the_prior(method):
    """z > 0 has a mixture prior, x ~ Poisson(z): a mixture of negative binomials."""
    shape, rate = torch.tensor([2.0, 30.0]).double(), torch.tensor([2.0, 3.0]).double()
    half = torch.full((2,), 0.5, dtype=torch.float64)

    def model(x):
        with pyro.plate("data", len(x)):
            each = dist.Gamma(shape.expand(len(x), 2), rate)
            z = pyro.sample("z", dist.MixtureSameFamily(dist.Categorical(half.expand(len(x), 2)), each))
            pyro.sample("x", dist.Poisson(z), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.LogNormal((x + 0.5).log(), 0.8))

    x = torch.tensor([0.0, 1.0, 3.0, 8.0, 14.0], dtype=torch.float64)
    parts = dist.GammaPoisson(shape, rate).log_prob(x[:, None]) + math.log(0.5)
    ev = pv.log_evidence(pv.LatentVariableModel(model, guide), x, method=method, seed=SEED, check=False)
    error = np.abs(ev.estimate - parts.logsumexp(dim=1).numpy())
    assert (error < Z * ev.mcse + np.abs(ev.bias) + 1e-3).all()
    assert (ev.mcse < 0.1).all()


@pytest.mark.parametrize("concentration", [0.3, 2.0])
def test_the_exact_posterior_is_answered_by_importance(concentration):
    """Its weights differ by rounding. A tail fitted to that sent a quarter of the rows to fits, which some lost."""
    prior = torch.full((3,), concentration)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Dirichlet(prior))
            pyro.sample("x", dist.Multinomial(5, z, validate_args=False), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Dirichlet(concentration + x))

    with noise.seeded(3):
        x = dist.Multinomial(5, dist.Dirichlet(prior).sample((40,)), validate_args=False).sample()
    exact = dist.DirichletMultinomial(prior.double(), total_count=5).log_prob(x.double()).numpy()
    ev = pv.log_evidence(pv.LatentVariableModel(model, guide), x, method="auto", seed=SEED, check=False)
    assert (ev.answered_by == "importance").all()
    np.testing.assert_allclose(ev.estimate, exact, atol=0.05)


# ---------------------------------------------------------------------------------------------------------
# Discrete latents beside others


class Classes:
    """c of three classes, or pairs of them, and z ~ N(0, I₂); x ~ N(μ_c + W_c z, 0.5²) in three columns.

    The guide's Q(z | c, x) is exact and its class logits are ``sure`` times the exact ones. ``layout``: a call for many samples,
    or the rows repeated; or z before c, with z from one normal for all classes.
    """

    def __init__(self, sure, layout, sites):
        generator = torch.Generator().manual_seed(3)
        shape = (3,) * sites
        self.mu = 1.5 * torch.randn(*shape, 3, generator=generator)
        self.w = torch.randn(*shape, 2, 3, generator=generator) / 2**0.5
        self.p = torch.softmax(torch.randn(*shape, generator=generator).flatten(), 0)
        self.sure, self.layout, self.sites = sure, layout, sites
        mu, w = self.mu.reshape(-1, 3), self.w.reshape(-1, 2, 3)
        self.marginals = dist.MultivariateNormal(mu, w.mT @ w + 0.25 * torch.eye(3))
        self.covariance = torch.linalg.inv(torch.eye(2) + w @ w.mT / 0.25)
        self.flat_mu, self.flat_w = mu, w
        chosen = torch.multinomial(self.p, 30, True, generator=generator)
        z, e = torch.randn(30, 2, generator=generator), torch.randn(30, 3, generator=generator)
        self.x = mu[chosen] + (z[:, None] @ w[chosen])[:, 0] + 0.5 * e
        self.x[::10, 1] += 3.0

    def log_joint(self, x):
        """log P(x, c), (rows, classes)."""
        return self.marginals.log_prob(x[:, None]) + self.p.log()

    def exact(self):
        marginals = dist.MultivariateNormal(self.flat_mu.double(), self.marginals.covariance_matrix.double())
        joint = marginals.log_prob(self.x.double()[:, None]) + self.p.double().log()
        return joint.logsumexp(1).numpy()

    def classes(self, logits):
        """Sample c, by one site, or by its place in a table of two sites, the second given the first."""
        if self.sites == 1:
            return self.plain(pyro.sample("c", dist.Categorical(logits=logits)))
        table = logits.unflatten(-1, (3, 3))
        first = pyro.sample("c", dist.Categorical(logits=table.logsumexp(-1)))
        row = torch.take_along_dim(
            table.expand(*first.shape, 3, 3), first[..., None, None].expand(*first.shape, 1, 3), -2
        )
        second = pyro.sample("d", dist.Categorical(logits=row[..., 0, :]))
        return self.plain(3 * first + second)

    def plain(self, value):
        return value.reshape(value.shape[-1:]) if self.layout == "repeated rows" else value

    def model(self, x):
        with pyro.plate("data", len(x)):
            c = self.classes(self.p.log())
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            loc = self.flat_mu[c] + (z[..., None, :] @ self.flat_w[c])[..., 0, :]
            pyro.sample("x", dist.Normal(loc, 0.5).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            logits = self.log_joint(x) * self.sure
            if self.layout == "z first":
                pyro.sample("z", dist.Normal(torch.zeros(len(x), 2), 1.2).to_event(1))
                self.classes(logits)
                return
            c = self.classes(logits)
            cov, w = self.covariance[c], self.flat_w[c]
            loc = cov @ (w @ (x - self.flat_mu[c])[..., None]) / 0.25
            pyro.sample("z", dist.MultivariateNormal(loc[..., 0], cov))


@pytest.mark.statistical
@pytest.mark.parametrize(
    ("sure", "sites", "layout"),
    [
        (1.0, 1, "plate"),
        (3.0, 1, "repeated rows"),
        (20.0, 1, "z first"),
        (3.0, 2, "plate"),
        (20.0, 2, "repeated rows"),
    ],
)
def test_no_value_of_a_discrete_latent_is_left_out_by_auto(sure, sites, layout):
    """The guide hardly draws classes that it gives a small probability: 95 % intervals of trusted rows held 28 %."""
    case = Classes(sure, layout, sites)
    pair = pv.LatentVariableModel(case.model, case.guide)
    num_rows = 10 if layout == "z first" else 30  # which takes twenty times as long
    ev = pv.log_evidence(pair, case.x[:num_rows], method="auto", seed=SEED, check=False)
    assert (ev.answered_by == "defensive").all()
    assert (ev.pareto_k < 0.7).mean() >= 0.9
    error = np.abs(ev.estimate - case.exact()[:num_rows])
    assert (error <= Z * np.hypot(ev.mcse, ev.tail_error) + 1e-4).all()


@pytest.mark.statistical
def test_shares_of_values_have_the_errors_that_they_state():
    """One row 200 times: error / mcse has mean 0 ± 0.35 and mean square 1 ± 0.5; the exact draws pass the check."""
    case = Classes(3.0, "plate", 1)
    case.x = case.x[:1].repeat(200, 1)
    pair = pv.LatentVariableModel(case.model, case.guide)
    ev = pv.log_evidence(pair, case.x, method="auto", seed=SEED)
    z = (ev.estimate - case.exact()) / ev.mcse
    assert abs(z.mean()) < Z / 200**0.5
    assert (z**2).mean() < 1 + Z * (2 / 200) ** 0.5
    assert ev.check.passed
    assert (ev.verdict == "trust").all()


@pytest.mark.parametrize("sure", [0.3, 1e-6, 0.0])
def test_rows_without_probability_and_values_that_the_guide_never_draws(sure):
    """c ~ Bernoulli(0.4), z ~ N(0, 1), x ~ Uniform(z + 4 c ± 0.02); the guide gives c = 1 the probability ``sure``."""

    def model(x):
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Bernoulli(x.new_tensor(0.4)))
            z = pyro.sample("z", dist.Normal(x.new_tensor(0.0), 1.0))
            loc = (z + 4 * c)[..., None]
            pyro.sample("x", dist.Uniform(loc - 0.02, loc + 0.02, validate_args=False).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Bernoulli(torch.full_like(x[:, 0], sure)))
            pyro.sample("z", dist.Normal(x.mean(-1) - 4 * c, 0.02))

    x = torch.tensor(
        [[4.0, 4.01], [0.1, 0.11], [0.0, 3.0]]
    )  # two columns more than 0.04 apart are impossible
    ev = pv.log_evidence(pv.LatentVariableModel(model, guide), x, method="auto", seed=SEED, check=False)
    low, high = x.double().max(1).values - 0.02, x.double().min(1).values + 0.02
    normal = dist.Normal(torch.zeros((), dtype=torch.float64), 1.0)
    mass = sum(p * (normal.cdf(high - 4 * c) - normal.cdf(low - 4 * c)) for c, p in ((0, 0.6), (1, 0.4)))
    assert ev.estimate[2] == -math.inf
    error = np.abs(ev.estimate[:2] - (mass[:2] / 0.04**2).log().numpy())
    assert (error <= Z * np.hypot(ev.mcse, ev.tail_error)[:2] + 1e-3).all()


@pytest.mark.parametrize("sure", [0.3, 1e-6, 0.0])
def test_a_rare_value_that_the_guide_never_draws_gets_its_share(sure):
    """c ~ Bernoulli(0.002) moves z ~ N(6 c, 1), which a guide of N(0.9 x̄, 0.4) covers for both; x ~ N(z, 0.5²), twice."""

    def model(x):
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Bernoulli(x.new_tensor(0.002)))
            z = pyro.sample("z", dist.Normal(6 * c, 1.0))
            pyro.sample("x", dist.Normal(z[..., None], torch.full((2,), 0.5)).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("c", dist.Bernoulli(torch.full_like(x[:, 0], sure)))
            pyro.sample("z", dist.Normal(0.9 * x.mean(-1), 0.4))

    x = torch.tensor([[6.0, 6.2], [0.0, 0.3], [3.0, 3.0]])
    covariance = torch.ones(2, 2, dtype=torch.float64) + 0.25 * torch.eye(2)
    parts = [
        math.log(weight)
        + dist.MultivariateNormal(torch.full((2,), loc).double(), covariance).log_prob(x.double())
        for loc, weight in ((0.0, 0.998), (6.0, 0.002))
    ]
    exact = torch.logsumexp(torch.stack(parts), 0).numpy()
    ev = pv.log_evidence(pv.LatentVariableModel(model, guide), x, method="auto", seed=SEED, check=False)
    assert (np.abs(ev.estimate - exact) <= Z * np.hypot(ev.mcse, ev.tail_error) + 1e-3).all()


def two_values(prior, locs, guide_locs, guide_scales, num_rows):
    """c of two values, z ~ N(locs[c], 1), x ~ N(z, 0.3²); the guide knows c, but perhaps not z. Also x and exact log P(x)."""
    prior, locs, guide_locs, guide_scales = map(torch.tensor, (prior, locs, guide_locs, guide_scales))

    def model(x):
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Categorical(prior)).long()
            z = pyro.sample("z", dist.Normal(locs[c], 1.0))
            pyro.sample("x", dist.Normal(z, 0.3), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Categorical(prior)).long()
            mean = (x / 0.09 + locs[c]) / (1 + 1 / 0.09)
            scale = (1 + 1 / 0.09) ** -0.5
            pyro.sample("z", dist.Normal(mean + scale * guide_locs[c], scale * guide_scales[c]))

    generator = torch.Generator().manual_seed(3)
    chosen = torch.multinomial(prior, num_rows, True, generator=generator)
    x = locs[chosen] + 1.09**0.5 * torch.randn(num_rows, generator=generator)
    marginals = dist.Normal(locs.double(), 1.09**0.5).log_prob(x.double()[:, None])
    return pv.LatentVariableModel(model, guide), x, (marginals + prior.log()).logsumexp(1).numpy()


@pytest.mark.statistical
def test_a_value_whose_other_latents_the_guide_misses_is_found_by_the_prior():
    """The guide draws z of value 1 ten standard deviations off: 3 of 30 trusted rows were 0.5 to 2.5 nats low."""
    pair, x, exact = two_values([0.5, 0.5], [0.0, 1.0], [0.0, 10.0], [1.0, 1.0], 24)
    ev = pv.log_evidence(pair, x, method="auto", seed=SEED, check=False)
    assert (ev.answered_by == "defensive").all()
    believed = ev.verdict == "unchecked"
    assert believed.sum() > 5
    assert (np.abs(ev.estimate - exact) < 0.3)[believed].all()


def test_values_whose_weights_spread_differently_have_their_own_tails():
    """Value 0 has equal weights and value 1 a guide three times too wide: k-hat of all draws was above 0.7 in 2 of 60 rows."""
    pair, x, exact = two_values([0.7, 0.3], [-1.0, 1.0], [0.0, 0.0], [1.0, 3.0], 60)
    ev = pv.log_evidence(pair, x, method="auto", seed=SEED, check=False)
    assert (ev.verdict == "unchecked").all()
    assert (np.abs(ev.estimate - exact) <= Z * np.hypot(ev.mcse, ev.tail_error) + 1e-3).all()


@pytest.mark.parametrize(("found", "doubtful"), [(1, True), (100, False)])
def test_a_value_is_doubtful_if_few_draws_of_the_prior_find_what_the_guide_misses(found, doubtful):
    """200 draws of each kind; the guide's have P(x, z) = 1, and ``found`` of the prior's have e⁹, where Q = e⁻⁹⁹ and R = 1."""
    sums, none = _Sums(1, torch.zeros(1)), torch.zeros(200, 1, dtype=torch.float64)
    numbers, far = none.long(), none.clone()
    far[:found] = 9.0
    sums.add(_Drawn(0, numbers, {}, LogJoint(none, none), none, none - 9), none)
    sums.add(_Drawn(1, numbers, {}, LogJoint(far, none), none - 99, none), none)
    level = torch.tensor([9.0 + math.log(found / 400)], dtype=torch.float64)
    assert sums.doubtful(level).tolist() == [doubtful]
    assert sums.doubtful(level + 5).tolist() == [False]  # too little to matter


def test_an_impossible_value_may_have_no_prior_of_the_other_latents():
    """c = 1 has probability 0, and z ~ N(10³⁰, 10⁻³⁰) there, whose density is not a number in float32."""

    def model(x):
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Categorical(torch.tensor([1.0, 0.0]))).long()
            loc, scale = torch.tensor([0.0, 1e30])[c], torch.tensor([1.0, 1e-30])[c]
            z = pyro.sample("z", dist.Normal(loc, scale))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("c", dist.Categorical(torch.tensor([1.0, 0.0])))
            pyro.sample("z", dist.Normal(x / 2, 0.8))

    x = torch.tensor([0.0, 1.0, -2.0])
    ev = pv.log_evidence(pv.LatentVariableModel(model, guide), x, method="auto", seed=SEED, check=False)
    exact = dist.Normal(torch.zeros(3).double(), 2**0.5).log_prob(x.double()).numpy()
    assert (ev.verdict == "unchecked").all()
    assert (np.abs(ev.estimate - exact) <= Z * np.hypot(ev.mcse, ev.tail_error) + 1e-3).all()


def test_values_of_several_sites_are_numbered():
    case = Classes(1.0, "plate", 2)
    model = inspect(pv.LatentVariableModel(case.model, case.guide), {"x": case.x})
    at, _ = model.propose({"x": case.x}, 1)
    values = DiscreteValues.of(model, {"x": case.x}, at, 9)
    assert (len(values), values.names) == (9, ("c", "d"))
    assert DiscreteValues.of(model, {"x": case.x}, at, 8) is None
    numbers = torch.randint(9, (40, len(case.x)), generator=torch.Generator().manual_seed(0))
    held = values.held(numbers)
    assert torch.equal(3 * held["c"] + held["d"], numbers)
    assert torch.equal(values.numbers(held), numbers)


def test_a_discrete_latent_of_many_values_is_left_to_the_guide():
    """With 16 draws a value and 512 draws, 32 values are spread over; 100 are not."""

    def pair(number):
        def model(x):
            with pyro.plate("data", len(x)):
                c = pyro.sample("c", dist.Categorical(torch.ones(number)))
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                pyro.sample("x", dist.Normal((c / number + z)[..., None], 0.5).to_event(1), obs=x)

        def guide(x):
            with pyro.plate("data", len(x)):
                pyro.sample("c", dist.Categorical(torch.ones(len(x), number)))
                pyro.sample("z", dist.Normal(0.7 * x[:, 0], 0.6))

        return pv.LatentVariableModel(model, guide)

    x = torch.tensor([[0.3], [1.0]])
    for number, rung in ((32, "defensive"), (100, "importance")):
        ev = pv.log_evidence(pair(number), x, method="auto", check=False)
        assert (ev.answered_by == rung).all()
