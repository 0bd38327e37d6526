"""Every method of log_evidence against exact answers: what it claims, and when it must not claim it."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from arvizs import psislw
from oracles import CONJUGATE, LinearGaussian, TwoModes
from pairs import PAIRS
from rates import SEED, Z, close

import pyrovae as pv
from pyrovae import diagnostics, evidence
from pyrovae.evaluation import Evaluation
from pyrovae.evidence.annealed import Path
from pyrovae.evidence.jackknife import leave_one_out
from pyrovae.evidence.posterior import Encoder, Posterior, gradients
from pyrovae.noise import Stream
from pyrovae.pair import Coordinates
from pyrovae.row_noise import RowNoise

#: A quick run of every method that takes any pair: what the contract tests ask of it.
QUICK = {name: {"num_samples": 500} for name in pv.evidence.METHODS if name != "exact"} | {
    "importance": {"num_samples": 1000},
    "annealed": {"num_samples": 64, "num_temperatures": 20},
    "refined": {"num_samples": 400, "num_starts": 2},
    "quadrature": {"tolerance": 0.01},
    "auto": {"target_mcse": 0.05},
}
#: The least that can be asked for, where only the bits matter.
LEAST = {
    "importance": {"num_samples": 40},
    "jackknife": {"num_samples": 40},
    "annealed": {"num_samples": 4, "num_temperatures": 4},
    "refined": {"num_samples": 100, "num_starts": 1, "num_steps": 1},
    "auto": {"target_mcse": 0.3},
}
KIND = {"jackknife": "estimate", "quadrature": "estimate"}  # of the others: a lower bound
MOVES = ("annealed", "refined", "quadrature")  # these move z, and can't move a discrete one
DISCRETE = "mixture"
TOO_WIDE = "columns_inside"  # four latent dimensions, one more than a grid can fill


def compatible(ev, truth):
    """Mean and every row within Z of the method's own errors, on the side where the bias is, with the bias."""
    error, rounding = ev.estimate - np.asarray(truth), 1e-6  # sums have no other error
    assert ev.mean_bias - Z * ev.mean_mcse - rounding <= error.mean() <= Z * ev.mean_mcse + rounding
    assert (error >= ev.bias - Z * ev.mcse - rounding).all()
    assert (error <= Z * ev.mcse + rounding).all()


def mean_and_error(values):
    return float(np.mean(values)), float(np.std(values) / len(values) ** 0.5)


# ---------------------------------------------------------------------------------------------------------
# The contract


#: Importance on one pair: test_pair.py asks every pair, with more draws.
EVERY = [
    (method, name)
    for method in QUICK
    for name in ([*PAIRS][:1] if method == "importance" else PAIRS)
    if method != "quadrature" and not (method in MOVES and name == DISCRETE)
]


@pytest.mark.statistical
@pytest.mark.parametrize(("method", "name"), EVERY)
def test_every_method_on_every_pair_is_the_exact_one(method, name):
    case = PAIRS[name]()
    state = torch.random.get_rng_state()
    ev = pv.log_evidence(case.pair, case.x, method=method, check=False, **QUICK[method])
    assert torch.equal(torch.random.get_rng_state(), state)
    compatible(ev, case.exact(case.x).detach())
    for column in ("estimate", "mcse", "bias", "ess", "pareto_k", "cost"):
        assert getattr(ev, column).shape == (len(case.x),)
        assert getattr(ev, column).dtype == np.float64
    summed = ev.answered_by == "exact"
    assert (ev.kind == np.where(summed, "exact", KIND.get(method, "lower bound"))).all()
    assert (ev.cost > 0).all()
    assert ev.method == method
    if method != "auto":
        assert (ev.answered_by == method).all()
        assert ev.num_samples == QUICK[method]["num_samples"]


#: Pairs with three latents, whose grids have a hundred times the points: one row for quadrature.
SPATIAL = ("independent_sites", "indexed_hierarchy")


@pytest.mark.parametrize("name", [name for name in PAIRS if name not in (DISCRETE, TOO_WIDE)])
def test_quadrature_on_every_pair_is_the_exact_one(name):
    case = PAIRS[name]()
    x = case.x[:1] if name in SPATIAL else case.x
    state = torch.random.get_rng_state()
    ev = pv.log_evidence(case.pair, x, method="quadrature", check=False, **QUICK["quadrature"])
    assert torch.equal(torch.random.get_rng_state(), state)
    assert (np.abs(ev.estimate - case.exact(x).detach().numpy()) <= 1e-3 + ev.mcse).all()
    assert (ev.mcse <= 0.01).all()
    assert (ev.verdict == "unchecked").all()
    assert (ev.kind == "estimate").all()
    assert (ev.cost > 0).all()


@pytest.mark.parametrize("name", [name for name in [*PAIRS][::4] if name != DISCRETE])
@pytest.mark.parametrize("method", LEAST)
def test_same_seed_same_bits_other_seed_other_bits(method, name):
    """Noise is keyed below all methods, and test_row_noise.py and test_pair.py ask every pair for it."""
    case = PAIRS[name]()
    first, again, other = (
        pv.log_evidence(case.pair, case.x, method=method, seed=seed, check=False, **LEAST[method]).estimate
        for seed in (7, 7, 8)
    )
    assert np.array_equal(first, again)
    assert (first != other).all()


@pytest.mark.parametrize("method", MOVES)
def test_a_discrete_latent_is_refused_by_name_where_z_has_to_move(method):
    case = PAIRS[DISCRETE]()
    with pytest.raises(ValueError, match=r"discrete latent 'component'.*Use method='auto' of log_evidence"):
        pv.log_evidence(case.pair, case.x, method=method, check=False)


@pytest.mark.parametrize("function", [evidence.gaps, evidence.sandwich])
def test_functions_without_a_method_refuse_a_discrete_latent_with_advice_that_helps(function):
    case = PAIRS[DISCRETE]()
    with pytest.raises(ValueError, match=r"discrete latent 'component'.*Use method='auto' of log_evidence"):
        function(case.pair, case.x)
    assert pv.log_evidence(case.pair, case.x, method="auto").counts()["trust"] == len(case.x)


def test_a_discrete_latent_of_few_values_is_summed_in_auto():
    case = PAIRS[DISCRETE]()
    ev = pv.log_evidence(case.pair, case.x, method="auto")
    assert (ev.answered_by == "exact").all()
    np.testing.assert_allclose(ev.estimate, case.exact(case.x).detach(), atol=1e-4)


@pytest.mark.parametrize("drawn", [False, True])
def test_binomial_latents_are_summed_if_the_values_have_all_mass(drawn):
    """n = 5, or n = 3 + 2 c with c ~ Bernoulli(0.01). The values listed for one draw, up to 3, have a mass below 1."""
    values, p = torch.arange(6.0), torch.tensor(0.4)

    def trials(x):
        if not drawn:
            return 5
        return 3 + 2 * pyro.sample("c", dist.Bernoulli(0.01))

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Binomial(trials(x), p))
            pyro.sample("x", dist.Normal(z[..., None], 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Binomial(3 + 2 * pyro.sample("c", dist.Bernoulli(0.5)) if drawn else 5, p))

    x = torch.tensor([[0.0], [2.5], [7.0]])
    shares = {3: 0.99, 5: 0.01} if drawn else {5: 1.0}
    parts = [
        math.log(share)
        + dist.Binomial(n, p).log_prob(values[: n + 1])
        + dist.Normal(values[: n + 1], 1.0).log_prob(x)
        for n, share in shares.items()
    ]
    exact = torch.cat(parts, dim=1).logsumexp(1).numpy()
    ev = pv.log_evidence(pv.LatentVariableModel(model, guide), x, method="auto", check=False)
    if drawn:
        assert (ev.answered_by == "importance").all()
        compatible(ev, exact)
    else:
        assert (ev.answered_by == "exact").all()
        np.testing.assert_allclose(ev.estimate, exact, atol=1e-5)


# ---------------------------------------------------------------------------------------------------------
# Constrained latents


@pytest.mark.statistical
@pytest.mark.parametrize("name", CONJUGATE)
@pytest.mark.parametrize("method", [method for method in QUICK if method != "quadrature"])
def test_constrained_latents_are_the_exact_one(method, name):
    """A Jacobian forgotten, or put in twice, is nats off here: log dz/du is about log z."""
    case = CONJUGATE[name]()
    ev = pv.log_evidence(case.pair, case.x, method=method, check=False, **QUICK[method])
    compatible(ev, case.log_prob(case.x))


@pytest.mark.parametrize("name", CONJUGATE)
def test_quadrature_over_constrained_latents_is_the_exact_one(name):
    case = CONJUGATE[name]()
    ev = pv.log_evidence(case.pair, case.x, method="quadrature", tolerance=0.01, check=False)
    np.testing.assert_allclose(ev.estimate, case.log_prob(case.x), rtol=0, atol=1e-3)
    assert (ev.verdict == "unchecked").all()


@pytest.mark.statistical
@pytest.mark.parametrize("start", ["both", "encoder", "prior"])
@pytest.mark.parametrize("name", CONJUGATE)
def test_sandwich_over_constrained_latents_holds_the_truth(name, start):
    case = CONJUGATE[name]()
    sw = evidence.sandwich(
        case.pair, case.x, num_rows=300, num_samples=8, num_temperatures=30, start=start, seed=1
    )
    holds(sw, case.log_prob(sw.x))


def holds(sw, truth, most=0.1):
    """Lower ≤ truth ≤ upper in the mean, beyond Z standard errors over the rows, and a gap below ``most``."""
    truth = np.asarray(truth)
    for violation in (sw.lower - truth, truth - sw.upper):
        mean, se = mean_and_error(violation)
        assert mean <= Z * se
    mean, se = mean_and_error(sw.gap)
    assert -Z * se <= mean <= most + Z * se


def several_latents():
    """Real, positive, in an interval, on a simplex, and positive in every column."""

    def model(x):
        with pyro.plate("data", len(x)):
            level = pyro.sample("level", dist.Normal(x.new_zeros(1), 1.0).to_event(1))
            rates = pyro.sample("rates", dist.Gamma(x.new_full((2,), 2.0), 1.0).to_event(1))
            share = pyro.sample("share", dist.Beta(x.new_full((1,), 2.0), 2.0).to_event(1))
            shares = pyro.sample("shares", dist.Dirichlet(x.new_ones(4)))
            loc = level + rates.sum(-1, keepdim=True) * share + shares[..., :3]
            pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x)

    return pv.LatentVariableModel(model, model_prior(model)), torch.randn(5, 3, dtype=torch.float64)


def model_prior(model):
    """The model's own latents as guide."""

    def guide(x):
        with pyro.poutine.block(hide=["x"]):
            model(x)

    return guide


#: For entries that rows lack, which none does here.
NOISE = RowNoise(0, torch.arange(1))
COORDINATES = {
    **{name: lambda build=build: build() for name, build in PAIRS.items() if name != DISCRETE},
    **{f"conjugate, {name}": build for name, build in CONJUGATE.items()},
}


def coordinates_of(pair, x):
    made = Evaluation.prepare(pair, x, 1, seed=0)
    with pair.evaluating():
        latents, _ = made.model.propose(made.batch, 6)
        return Coordinates(made.model, made.batch), latents


@pytest.mark.parametrize("name", COORDINATES)
def test_coordinates_there_and_back(name):
    case = COORDINATES[name]()
    coordinates, latents = coordinates_of(case.pair, case.x)
    u = coordinates.flatten(latents, NOISE)
    assert u.shape == (6, len(case.x), coordinates.dim)
    back, log_det = coordinates.unflatten(u)
    assert list(back) == list(latents)
    for site, value in latents.items():
        torch.testing.assert_close(back[site], value)
    torch.testing.assert_close(coordinates.flatten(back, NOISE), u, rtol=1e-4, atol=1e-4)
    assert log_det.shape == u.shape[:2]
    assert log_det.dtype == torch.float64


@pytest.mark.parametrize("name", [*CONJUGATE, "several"])
def test_log_det_is_autograds(name):
    """log |det ∂z/∂u| of a row and a sample; on a simplex without the last entry, which follows."""
    case = None if name == "several" else CONJUGATE[name]()
    pair, x = several_latents() if case is None else (case.pair, case.x)
    coordinates, latents = coordinates_of(pair, x)
    u = coordinates.flatten(latents, NOISE)
    _, log_det = coordinates.unflatten(u)

    def z(v):
        """The free entries of every latent of sample 2, row 1, as functions of its u."""
        whole = u.clone()
        whole[2, 1] = v
        parts = [value[2, 1] for _, value in sorted(coordinates.unflatten(whole)[0].items())]
        return torch.cat([part[:-1] if math.isclose(part.detach().sum(), 1) else part for part in parts])

    jacobian = torch.autograd.functional.jacobian(z, u[2, 1])
    torch.testing.assert_close(torch.linalg.slogdet(jacobian).logabsdet, log_det[2, 1])


# ---------------------------------------------------------------------------------------------------------
# Sandwich


@pytest.mark.statistical
@pytest.mark.parametrize("start", ["encoder", "prior"])
def test_sandwich_holds_the_truth_of_the_rows_it_made(start):
    oracle = LinearGaussian.random(3, 6)
    sw = evidence.sandwich(
        oracle.mean_field_pair(),
        oracle.sample(4),
        num_rows=400,
        num_samples=8,
        num_temperatures=60,
        start=start,
    )
    assert sw.rows == "simulated"
    assert sw.x.shape == (400, 6)
    assert sw.lower.shape == sw.upper.shape == (400,)
    holds(sw, oracle.log_prob(sw.x))
    # the rows are the model's: their mean log P(x) is minus its entropy
    mean, se = mean_and_error(oracle.log_prob(sw.x).numpy())
    covariance = oracle.loadings @ oracle.loadings.T + oracle.sigma**2 * torch.eye(6)
    entropy = float(dist.MultivariateNormal(oracle.loc, covariance).entropy())
    assert close(mean, -entropy, se)


def test_sandwich_opens_where_chains_are_too_short():
    """A gap is only worth something if a bad annealing shows one."""
    oracle = LinearGaussian.random(5, 10)
    sw = evidence.sandwich(
        oracle.pair(3.0), oracle.sample(4), num_rows=200, num_samples=2, num_temperatures=4
    )
    truth = oracle.log_prob(sw.x).numpy()
    assert (sw.lower - truth).mean() < -0.2
    assert (sw.upper - truth).mean() > 0.2
    assert (sw.verdict == "another method").any()
    assert (sw.verdict[sw.gap > sw.tolerance] == "another method").all()
    assert (sw.verdict[np.abs(sw.gap) <= sw.tolerance] == "trust").all()


@pytest.mark.statistical
def test_sandwich_of_real_rows_where_the_posterior_is_known():
    torch.manual_seed(3)
    vae = pv.VAE.mlp(6, 2, "gaussian", hidden_dims=())
    x = torch.randn(150, 6)
    sw = evidence.sandwich(vae, x, num_rows=120, num_samples=8, num_temperatures=60, rows="real")
    assert sw.rows == "real"
    assert torch.equal(sw.x, x[:120])
    holds(sw, evidence.exact(vae, x[:120]).estimate)


def test_sandwich_same_seed_same_bits_and_a_frame():
    oracle = LinearGaussian.random(2, 4)
    first, again, other = (
        evidence.sandwich(
            oracle.pair(1.2), oracle.sample(3), num_rows=5, num_samples=4, num_temperatures=5, seed=s
        )
        for s in (3, 3, 4)
    )
    for name in ("lower", "upper", "lower_mcse", "upper_mcse"):
        assert np.array_equal(getattr(first, name), getattr(again, name))
        assert getattr(first, name).dtype == np.float64
        assert (getattr(first, name) != getattr(other, name)).all()
    assert torch.equal(first.x, again.x)
    frame = first.to_frame()
    assert list(frame.columns) == ["lower", "upper", "gap", "lower_mcse", "upper_mcse", "verdict"]
    np.testing.assert_array_equal(frame["gap"], first.upper - first.lower)
    assert "5 simulated rows" in str(first)


def linear_gaussian_sandwich(num_rows, rows=5, seed=0, **options):
    oracle = LinearGaussian.random(3, 6)
    options = {"num_samples": 4, "num_temperatures": 10} | options
    return evidence.sandwich(oracle.mean_field_pair(), oracle.sample(rows), num_rows, seed, **options)


@pytest.mark.parametrize(
    ("given", "asked", "simulated"), [(5, None, 5), (70, None, 64), (5, 8, 8), (70, 3, 3), (1, None, 1)]
)
def test_sandwich_simulates_as_many_rows_as_asked(given, asked, simulated):
    """By default as many as were passed, and at most 64."""
    sw = linear_gaussian_sandwich(asked, given)
    assert len(sw.x) == len(sw.gap) == simulated
    assert f"on {simulated} simulated row" in str(sw)


def between(lower, upper, mcse=0.0, rows=40):
    """A sandwich of rows with bounds around some numbers."""
    spread = np.linspace(-1, 1, rows)
    return evidence.Sandwich(
        lower=lower + spread,
        upper=upper + spread,
        lower_mcse=np.full(rows, mcse),
        upper_mcse=np.full(rows, mcse),
        verdict=np.full(rows, "trust"),
        rows="simulated",
        x=torch.zeros(rows, 2),
        tolerance=0.5,
        seed=0,
    )


@pytest.mark.parametrize(("lower", "upper"), [(-9.1, -9.0), (-9.0, -9.1)])
def test_sandwich_names_its_bounds_and_says_where_they_cross(lower, upper):
    """A gap of 0.1 whose error is that of the chains: √2 · 0.3 / √40."""
    sw = between(lower, upper, mcse=0.3)
    error = 0.3 * (2 / 40) ** 0.5
    assert sw.gap_error == pytest.approx(error)
    lines = str(sw).splitlines()
    assert lines[0] == f"log P(x): lower bound {lower:.3f}, upper bound {upper:.3f} nats a row"
    assert lines[1].startswith(f"gap {upper - lower:.4f} ± {error:.4f} on 40 simulated rows")
    assert ("The bounds cross by 1.5 standard errors: noise" in str(sw)) == (upper < lower)


def test_the_error_of_the_gap_is_that_of_its_spread_where_that_is_larger():
    sw = between(0.0, 0.0)
    sw.upper[:] += np.tile([-1.0, 1.0], 20)
    assert sw.gap_error == pytest.approx((1 / 39) ** 0.5)


@pytest.mark.parametrize(("rows", "chains"), [(40, 4), (1, 8)])
def test_bounds_of_a_right_pair_do_not_cross_beyond_noise(rows, chains):
    """A guide that is nearly right, so that the true gap is nearly 0 and half of the gaps are negative."""
    crossed = 0
    for seed in range(20):
        sw = linear_gaussian_sandwich(rows, seed=1000 * SEED + seed, num_samples=chains, num_temperatures=15)
        crossed += sw.gap.mean() < 0
    assert crossed < 20  # by chance once in a million runs


def test_an_exact_guide_leaves_no_gap_but_rounding():
    oracle = LinearGaussian.random(3, 6, dtype=torch.float32)
    sw = evidence.sandwich(
        oracle.pair(), oracle.sample(9), num_samples=4, num_temperatures=10, start="encoder"
    )
    assert abs(float(sw.gap.mean())) < 4 * sw.gap_error < 1e-3


class Larger(dist.Normal):
    """A normal whose draws have another scale than its density."""

    def __init__(self, loc, scale, factor=1.0):
        self.factor = factor
        super().__init__(loc, scale)

    def expand(self, batch_shape, _instance=None):
        return Larger(self.loc.expand(batch_shape), self.scale.expand(batch_shape), self.factor)

    def rsample(self, sample_shape=torch.Size()):  # noqa: B008
        return self.loc + self.factor * (super().rsample(sample_shape) - self.loc)


@pytest.mark.parametrize("rows", [8, 64])
def test_sandwich_refuses_bounds_that_cross(rows):
    """z is drawn from a prior that is wider than the one that is scored: z_n is no draw of the posterior."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", Larger(x.new_zeros(12), x.new_ones(12), 3.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, 1.5).to_event(1))

    with pytest.raises(
        ValueError,
        match=r"pair: expected a lower bound that is above.*a gap of -.* ± .*num_temperatures.*log_prob",
    ):
        evidence.sandwich(
            pv.LatentVariableModel(model, guide),
            torch.zeros(rows, 12),
            num_samples=32,
            num_temperatures=3,
            start="encoder",
        )


def test_small_gaps_among_large_ones_are_not_trusted():
    """A row whose z lies in the broad component has a small gap, though half of its posterior is in the narrow one."""
    scales = torch.tensor([[1.0], [0.1]])

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(5), 1.0).to_event(1))
            centre = z[..., None, :].expand(*z.shape[:-1], 2, 5)
            both = dist.Normal(centre, scales).to_event(1)
            pyro.sample("x", dist.MixtureSameFamily(dist.Categorical(torch.ones(2)), both), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, 0.5**0.5).to_event(1))

    pair = pv.LatentVariableModel(model, guide)
    found = evidence.sandwich(pair, torch.zeros(40, 5), num_samples=16, num_temperatures=60, seed=SEED)
    assert 0 < (np.abs(found.gap) <= found.tolerance).mean() < 0.8
    assert (found.verdict == "another method").all()
    assert "more than a tenth of the rows have larger gaps" in str(found)


def test_sandwich_refuses_real_rows_of_an_unknown_posterior():
    oracle = LinearGaussian.random(2, 4)
    with pytest.raises(ValueError, match="pair: expected a linear-Gaussian VAE"):
        evidence.sandwich(oracle.pair(), oracle.sample(70), rows="real")


@pytest.mark.parametrize("name", ["masked_cells", "masked_column"])
def test_sandwich_refuses_models_whose_rows_it_can_not_make(name):
    case = PAIRS[name]()
    with pytest.raises(
        ValueError, match=r"model: expected every column of x sampled.*Use log_evidence with method"
    ):
        evidence.sandwich(case.pair, case.x)


def test_sandwich_refuses_a_model_that_reads_x_elsewhere():
    """Its observed site is one thing; the latent's prior depends on x, and simulated rows would not know."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(1), 1.0).to_event(1))
            loc = z + 0.5 * x.mean(-1, keepdim=True)
            pyro.sample("x", dist.Normal(loc.expand(*loc.shape[:-1], 3), 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x.new_zeros(1), 1.0).to_event(1))

    with pytest.raises(ValueError, match="model: expected sites that depend on earlier columns of x only"):
        evidence.sandwich(pv.LatentVariableModel(model, guide), torch.randn(4, 3))


# ---------------------------------------------------------------------------------------------------------
# Exact


@pytest.mark.statistical
@pytest.mark.parametrize("scale", [0.4, "shared", "per_dimension"])
def test_a_linear_vae_is_a_multivariate_normal(scale):
    torch.manual_seed(5)
    vae = pv.VAE.mlp(5, 2, "gaussian", hidden_dims=(), scale=scale)
    if scale == "shared":
        sigma = torch.full((5,), 0.6)
        vae.likelihood.log_scale.data.fill_(math.log(0.6))
    elif scale == "per_dimension":
        sigma = torch.tensor([0.3, 0.5, 1.0, 1.5, 2.0])
        vae.likelihood.log_scale.data.copy_(sigma.log())
    else:
        sigma = torch.full((5,), scale)
    x = torch.randn(9, 5)
    with torch.no_grad():
        loc = vae.likelihood(torch.zeros(1, 2)).mean[0].double()
        w = (vae.likelihood(torch.eye(2)).mean.double() - loc).T
    truth = dist.MultivariateNormal(loc, w @ w.T + torch.diag(sigma.double() ** 2)).log_prob(x.double())
    ev = pv.log_evidence(vae, x, method="exact")
    np.testing.assert_allclose(ev.estimate, truth, rtol=0, atol=1e-5)  # of float32 parameters
    assert ev.estimate.dtype == np.float64
    assert (ev.kind == "exact").all()
    assert (ev.mcse == 0).all()
    assert ev.settled.all()
    auto = pv.log_evidence(vae, x, method="auto", check=False)
    np.testing.assert_array_equal(auto.estimate, ev.estimate)
    assert (auto.answered_by == "exact").all()
    assert (auto.cost == 0).all()
    compatible(pv.log_evidence(vae, x, method="importance", num_samples=20_000, check=False), truth)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: pv.VAE.mlp(4, 1, "gaussian", hidden_dims=(3,)), "a decoder without hidden layers"),
        (lambda: pv.VAE.mlp(4, 1, "gaussian", hidden_dims=(), scale="decoder"), "scale does not depend on z"),
        (lambda: pv.VAE.mlp(4, 1, hidden_dims=()), "a Gaussian likelihood"),
        (lambda: LinearGaussian.random(1, 4, dtype=torch.float32).pair(), "a VAE: code in plain Pyro cannot"),
    ],
    ids=["hidden", "decoder scale", "bernoulli", "plain"],
)
def test_what_is_not_linear_gaussian_is_not_exact(build, message):
    x = (torch.randn(6, 4) > 0).float()
    with pytest.raises(ValueError, match=f"pair: expected a linear-Gaussian VAE.*{message}"):
        pv.log_evidence(build(), x, method="exact")


# ---------------------------------------------------------------------------------------------------------
# Two far modes


@pytest.mark.statistical
@pytest.mark.parametrize("others", [None, 4], ids=["one latent", "five latents"])
def test_two_far_modes_fool_importance(others):
    """k-hat is fine, the error is small, and every row is log 2 too low: rows simulated from the model show it."""
    oracle = TwoModes(None if others is None else LinearGaussian.random(others, 8))
    x = oracle.sample(20)
    ev = pv.log_evidence(oracle.pair(), x, num_samples=5000)
    assert (ev.pareto_k < 0.5).all()
    assert ev.check.passed is False
    assert (ev.verdict == "another method").all()
    error = ev.estimate - oracle.log_prob(x).numpy()
    # the modes differ by nothing: z and −z have the same joint density
    assert (np.abs(error + math.log(2)) <= Z * ev.mcse).all()


@pytest.mark.parametrize("method", ["refined", "auto"])
@pytest.mark.parametrize("others", [None, 4], ids=["one latent", "five latents"])
def test_two_far_modes_are_both_found_or_the_row_is_named(others, method):
    """Starts that know nothing of the encoder find the other mode: 99 % of the rows settled are right."""
    oracle = TwoModes(None if others is None else LinearGaussian.random(others, 8))
    x = oracle.sample(100)
    ev = pv.log_evidence(oracle.pair(), x, method=method)
    error = np.abs(ev.estimate - oracle.log_prob(x).numpy())
    assert (error[ev.settled] <= 0.1).mean() >= 0.99
    assert ev.settled.mean() > 0.9  # and hardly a row is left unsettled
    if method == "auto":
        assert (ev.cost <= 50_000).all()


@pytest.mark.statistical
@pytest.mark.parametrize(("start", "share"), [("encoder", 0.5), ("both", 1.0)])
def test_chains_from_the_prior_find_the_mode_that_the_encoder_misses(start, share):
    """From the encoder they reach half of P(x). The mean over 200 rows shows an error of a quarter of P(x)."""
    oracle = TwoModes()
    x = oracle.sample(200)
    ev = evidence.annealed(
        oracle.pair(), x, num_samples=64, num_temperatures=100, start=start, check=False, seed=SEED
    )
    mean, error = mean_and_error(np.exp(ev.estimate - oracle.log_prob(x).numpy()))
    assert abs(mean - share) <= Z * error < 0.25


# ---------------------------------------------------------------------------------------------------------
# Jackknife and Pareto smoothing


def leave_one_out_by_hand(log_weights):
    """K L_K − (K − 1) mean L^(−i) and the jackknife's error, in ordinary precision with extra digits."""
    lw = log_weights.numpy().astype(np.longdouble)
    count = len(lw)
    peak = lw.max(axis=0)
    w = np.exp(lw - peak)
    everything = np.log(w.sum(0) / count)
    others = np.array([np.log(np.delete(w, i, axis=0).sum(0) / (count - 1)) for i in range(count)])
    estimate = peak + count * everything - (count - 1) * others.mean(0)
    error = np.sqrt((count - 1) / count * ((others - others.mean(0)) ** 2).sum(0))
    return estimate.astype(float), error.astype(float)


@pytest.mark.parametrize("spread", [0.1, 1.0, 10.0])
def test_leave_one_out_is_its_formula(spread):
    lw = spread * torch.randn(7, 20, dtype=torch.float64) - 545
    estimate, error = leave_one_out(lw)
    by_hand = leave_one_out_by_hand(lw)
    np.testing.assert_allclose(estimate, by_hand[0], rtol=0, atol=1e-9)
    np.testing.assert_allclose(error, by_hand[1], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("rest", [1e-6, 1e-12, 1e-15, 1e-40])
def test_leave_one_out_of_a_weight_that_outweighs_all_others(rest):
    """Share 1 − 1e-12 and beyond: total − largest cancels; the rest has to be summed by itself."""
    lw = torch.log(rest * torch.tensor([[0.5, 0.2], [0.2, 0.2], [0.3, 0.6]], dtype=torch.float64))
    lw = torch.cat([lw, torch.zeros(1, 2, dtype=torch.float64)])
    estimate, error = leave_one_out(lw)
    by_hand = leave_one_out_by_hand(lw)
    np.testing.assert_allclose(estimate, by_hand[0], rtol=0, atol=1e-9)
    np.testing.assert_allclose(error, by_hand[1], rtol=1e-9)


def test_leave_one_out_with_weights_of_zero():
    """They count as draws: as weights so small that nothing else is seen of them."""
    lw = torch.randn(6, 3, dtype=torch.float64)
    lw[1, 0] = lw[2:4, 1] = -math.inf
    estimate, error = leave_one_out(lw)
    by_hand = leave_one_out_by_hand(lw)
    np.testing.assert_allclose(estimate, by_hand[0], rtol=0, atol=1e-9)
    np.testing.assert_allclose(error, by_hand[1], rtol=1e-9)


def test_leave_one_out_of_constant_weights_changes_nothing():
    estimate, error = leave_one_out(torch.full((5, 2), -3.0, dtype=torch.float64))
    np.testing.assert_allclose(estimate, -3.0, rtol=0, atol=1e-12)
    np.testing.assert_allclose(error, 0.0, atol=1e-12)


@pytest.mark.parametrize("num_samples", [26, 100, 1000, 5001])
@pytest.mark.parametrize("spread", [0.3, 1.0, 3.0])
def test_pareto_smoothing_is_arvizs_on_the_same_weights(num_samples, spread):
    generator = torch.Generator().manual_seed(num_samples)
    lw = spread * torch.randn(num_samples, 4, generator=generator, dtype=torch.float64) - 80
    smoothed, _ = psislw(lw.numpy().T)  # normalised; the smallest weight is not smoothed
    expected = (lw.numpy().T.min(axis=-1) - smoothed.min(axis=-1)) - math.log(num_samples)
    np.testing.assert_allclose(diagnostics.Accumulator.of(lw).smoothed(), expected, rtol=0, atol=1e-6)


def test_pareto_smoothed_importance_is_an_estimate_from_the_same_draws():
    oracle = LinearGaussian.random(3, 10)
    x = oracle.sample(11)
    ev = pv.log_evidence(oracle.pair(1.4), x, num_samples=600, seed=3, pareto_smoothed=True, check=False)
    lw = pv.log_weights(oracle.pair(1.4), x, num_samples=600, seed=3)
    np.testing.assert_allclose(ev.estimate, diagnostics.Accumulator.of(lw).smoothed(), rtol=0, atol=1e-10)
    assert (ev.kind == "estimate").all()
    plain = pv.log_evidence(oracle.pair(1.4), x, num_samples=600, seed=3, check=False)
    assert (ev.estimate != plain.estimate).all()
    np.testing.assert_array_equal(ev.pareto_k, plain.pareto_k)


# ---------------------------------------------------------------------------------------------------------
# Errors of strata


def test_mcse_of_strata_is_the_one_within_them():
    """Two strata of very different level: their difference is no noise, and one error over all would call it so."""
    lw = 0.3 * torch.randn(400, 4, dtype=torch.float64)
    lw[300:] += 2
    weights = diagnostics.Accumulator(400, 4, 3, strata=[0, 0, 1])
    for index, tile in enumerate(lw.split([200, 100, 100])):
        weights.add(index, tile)
    w = lw.exp()
    variance = 300 * w[:300].var(0) + 100 * w[300:].var(0)
    torch.testing.assert_close(weights.mcse(), variance.sqrt() / w.sum(0))
    assert (weights.mcse() < 0.8 * diagnostics.mcse(lw)).all()


# ---------------------------------------------------------------------------------------------------------
# Auto


def test_auto_settles_rows_right_and_cheaply():
    """The best mean-field encoder in 10 dimensions: importance needs more draws than auto spends."""
    oracle = LinearGaussian.random(10, 20)
    x = oracle.sample(200)
    ev = pv.log_evidence(oracle.mean_field_pair(), x, method="auto", target_mcse=0.05)
    error = np.abs(ev.estimate - oracle.log_prob(x).numpy())
    assert ev.settled.mean() > 0.95
    assert (error[ev.settled] <= 0.1).mean() >= 0.99
    assert (ev.mcse[ev.settled] <= 0.05).all()
    assert (ev.cost <= 5000).all()
    assert ev.target_mcse == 0.05
    assert "rows settled to 0.05 nats" in str(ev)


@pytest.mark.statistical
@pytest.mark.parametrize("widen", [1.0, 3.0, 0.4])
@pytest.mark.parametrize("max_cost", [1000, 3000, 20_000])
def test_auto_stays_within_its_cost(max_cost, widen):
    """Whatever the encoder is like; a row that can't be had for it is not settled, or right."""
    oracle = LinearGaussian.random(6, 12)
    x = oracle.sample(12)
    ev = pv.log_evidence(
        oracle.pair(widen), x, method="auto", target_mcse=0.01, max_cost=max_cost, check=False
    )
    assert (ev.cost <= max_cost).all()
    error = np.abs(ev.estimate - oracle.log_prob(x).numpy())
    assert (error[(ev.verdict == "unchecked") & (ev.mcse <= 0.01)] <= Z * 0.01).all()
    assert set(ev.answered_by) <= {"importance", "refined", "annealed"}


@pytest.mark.statistical
def test_auto_of_one_row_and_of_many_agree():
    """Rows are asked one by one: a poor neighbour costs a row nothing but noise."""
    oracle = LinearGaussian.random(2, 5)
    x = oracle.sample(40)
    many = pv.log_evidence(oracle.pair(1.3), x, method="auto", check=False)
    compatible(many, oracle.log_prob(x))
    one = pv.log_evidence(oracle.pair(1.3), x[:1], method="auto", check=False)
    compatible(one, oracle.log_prob(x[:1]))


def test_auto_answers_from_fresh_noise(monkeypatch):
    """A pilot that chose a row for its small error must not be its answer: no two stages of a row share a seed."""
    used = []
    of_rows = Evaluation.of_rows

    def watched(self, rows, seed, num_samples):
        if num_samples > 1:  # simulated pairs have keys of their own
            used.extend((seed, row) for row in self.numbers[rows].tolist())
        return of_rows(self, rows, seed, num_samples)

    monkeypatch.setattr(Evaluation, "of_rows", watched)
    oracle = LinearGaussian.random(3, 6)
    ev = pv.log_evidence(oracle.pair(3.0), oracle.sample(6), method="auto", check=False)
    assert (ev.answered_by == "refined").any()
    assert len(used) > 3 * len(ev)
    assert len(set(used)) == len(used)


# ---------------------------------------------------------------------------------------------------------
# Annealed


def test_step_sizes_are_frozen_in_the_answer(monkeypatch):
    """Tuned by a pilot; a chain whose own acceptance moved them would be no lower bound any more.

    That bias is far below the noise of a quick run, so it is the sizes themselves that are looked at.
    """
    used, tuned = [], []
    move, tune, sweep = Path._move, Path.tune, Path._sweep
    answering = []

    def watched_tune(self, *args):
        moves = tune(self, *args)
        tuned.append(moves.step_sizes.clone())
        return moves

    def watched_sweep(self, *args):
        answering.append(True)
        return sweep(self, *args)

    def watched_move(self, state, momentum, beta, size, noise):
        if answering:
            used.append((beta, size.clone()))
        return move(self, state, momentum, beta, size, noise)

    monkeypatch.setattr(Path, "tune", watched_tune)
    monkeypatch.setattr(Path, "_sweep", watched_sweep)
    monkeypatch.setattr(Path, "_move", watched_move)
    oracle = LinearGaussian.random(3, 6)
    pv.log_evidence(
        oracle.pair(1.5), oracle.sample(4), method="annealed", num_samples=5, num_temperatures=20, check=False
    )
    assert len(tuned) == 1
    assert tuned[0].shape == (19, 4)
    assert [beta for beta, _ in used] == pytest.approx([t / 20 for t in range(1, 20)])
    torch.testing.assert_close(torch.stack([size for _, size in used]), tuned[0], rtol=0, atol=0)


@pytest.mark.statistical
@pytest.mark.parametrize("beta", [0.0, 0.4, 1.0])
def test_a_move_leaves_its_density_alone(beta):
    """From exact draws of f_β and fresh momentum, 30 moves on: mean, variance and momentum as at the start.

    Chains that are independent, so that the standard errors are those of plain draws. Encoder and
    posterior are Gaussian here: f_β is the Gaussian whose precision is their mixture.
    """
    oracle = LinearGaussian.random(2, 4)
    x = oracle.sample(1, seed=1)
    made = Evaluation.prepare(oracle.pair(1.5), x, 1, seed=0)
    mean, covariance = oracle.posterior(x).mean, oracle.posterior(x).covariance_matrix[0]
    covariance = covariance / ((1 - beta) / 1.5**2 + beta)
    chains = 20_000
    torch.manual_seed(SEED)
    with made.pair.evaluating():
        posterior = Posterior(made)
        drawn = made.noise(Stream.PILOT)
        path = Path(posterior, Encoder(posterior), drawn, scale=covariance.diagonal().sqrt()[None])
        draws = dist.MultivariateNormal(mean[0], covariance).sample((chains, 1))
        state, momentum = path._state(draws), torch.randn_like(draws)
        for _ in range(30):
            # a step so long that one move in five is turned down: else the correction would not matter
            state, momentum, acceptance = path._move(
                state, momentum, beta, torch.tensor([1.2], dtype=torch.float64), drawn
            )
    assert 0.5 < float(acceptance) < 0.95
    white = torch.linalg.solve_triangular(
        torch.linalg.cholesky(covariance), (state.u[:, 0] - mean).mT, upper=False
    )
    for values in (*white, *momentum[:, 0].mT):
        assert close(float(values.mean()), 0.0, chains**-0.5)
        assert close(float(values.var()), 1.0, (2 / chains) ** 0.5)
    # momentum and place are independent, and so are the two entries of each
    for first, second in ((white[0], white[1]), (white[0], momentum[:, 0, 0]), (white[1], momentum[:, 0, 1])):
        assert close(float((first * second).mean()), 0.0, chains**-0.5)


# ---------------------------------------------------------------------------------------------------------
# Gaps and convergence


@pytest.mark.statistical
def test_gaps_of_the_best_mean_field_encoder():
    """Approximation ½ (Σ log P_ii − log |P|), the same in every row; amortization none."""
    oracle = LinearGaussian.random(4, 8)
    x = oracle.sample(20)
    frame = evidence.gaps(oracle.mean_field_pair(), x, num_samples=2000, seed=1)
    assert list(frame.index) == list(range(20))
    p = oracle.precision()
    expected = float(0.5 * (p.diagonal().log().sum() - torch.logdet(p)))
    np.testing.assert_allclose(
        frame["approximation"] + frame["amortization"], frame["inference"], rtol=0, atol=1e-9
    )
    np.testing.assert_allclose(
        frame["log_evidence"] - frame["elbo_encoder"], frame["inference"], rtol=0, atol=1e-9
    )
    # A fit of ten steps is not the optimum itself: it may miss a hundredth of the gap.
    slack = 0.01 * expected
    short = expected - frame["approximation"]
    assert (np.abs(short) <= slack + Z * frame["approximation_mcse"]).all()
    assert (np.abs(frame["amortization"]) <= slack + Z * frame["amortization_mcse"]).all()
    assert abs(short.mean()) <= slack + Z * np.linalg.norm(frame["approximation_mcse"]) / 20
    assert (frame["verdict"] == "trust").all()


@pytest.mark.statistical
def test_gaps_of_a_bad_encoder_are_its_amortization():
    """A full-rank family can express the posterior: the whole gap, KL(Q ‖ posterior), is the encoder's."""
    oracle = LinearGaussian.random(3, 8)
    x = oracle.sample(10)
    frame = evidence.gaps(oracle.pair(1.5), x, num_samples=2000, family="full_rank", seed=1)
    kl = 3 * (1.5**2 - 1 - 2 * math.log(1.5)) / 2
    assert (np.abs(frame["amortization"] - kl) <= 0.01 + Z * frame["amortization_mcse"]).all()
    assert (np.abs(frame["approximation"]) <= 0.01 + Z * frame["approximation_mcse"]).all()


@pytest.mark.statistical
def test_convergence_climbs_from_the_elbo():
    oracle = LinearGaussian.random(4, 8)
    x = oracle.sample(30)
    frame = evidence.convergence(oracle.pair(1.5), x, num_samples=(100, 2, 10, 1000), seed=2)
    assert frame["num_samples"].tolist() == [2, 10, 100, 1000]
    truth = float(oracle.log_prob(x).mean())
    bound, mcse = frame["lower_bound"].to_numpy(), frame["mcse"].to_numpy()
    assert frame["elbo"][0] < bound[0] + Z * mcse[0]
    # the same draws, so that the step is less noisy than the two errors together
    assert (np.diff(bound) >= -Z * np.hypot(mcse[1:], mcse[:-1])).all()
    assert (bound <= truth + Z * mcse).all()
    assert close(bound[-1] - frame["bias"].iloc[-1], truth, mcse[-1])
    assert close(frame["jackknife"].iloc[-1], truth, mcse[-1])
    assert close(frame["pareto_smoothed"].iloc[-1], truth, mcse[-1])
    expected = pv.log_evidence(oracle.pair(1.5), x, num_samples=1000, seed=2, check=False)
    assert bound[-1] == pytest.approx(expected.mean, abs=1e-10)


# ---------------------------------------------------------------------------------------------------------
# Refusals


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("jackknife", {"num_samples": 1}, "num_samples: expected a whole number ≥ 2, got 1"),
        ("jackknife", {"pareto_smoothed": True}, "pareto_smoothed: expected an option of method 'jackknife'"),
        ("annealed", {"num_samples": 0}, "num_samples: expected a whole number ≥ 1"),
        ("annealed", {"num_temperatures": 1}, "num_temperatures: expected a whole number ≥ 2"),
        ("annealed", {"num_temperatures": 2.5}, "num_temperatures: expected a whole number"),
        ("annealed", {"start": "x"}, "start: expected one of 'both', 'encoder', 'prior'"),
        ("annealed", {"tile": 5}, "tile: expected a pair"),
        ("refined", {"num_samples": 20}, "num_samples: expected a whole number ≥"),
        ("refined", {"family": "x"}, "family: expected one of 'full_rank', 'mean_field'"),
        ("refined", {"num_starts": 0}, "num_starts: expected a whole number ≥ 1"),
        ("refined", {"num_steps": 0}, "num_steps: expected a whole number ≥ 1"),
        ("refined", {"seed": -1}, "seed: expected a whole number ≥ 0"),
        ("quadrature", {"tolerance": -1}, "tolerance: expected a finite number > 0"),
        ("quadrature", {"tolerance": "x"}, "tolerance: expected a finite number > 0"),
        ("quadrature", {"num_samples": 5}, "num_samples: expected an option of method 'quadrature'"),
        ("exact", {"seed": 0}, "seed: expected an option of method 'exact': none"),
        ("auto", {"target_mcse": 0}, "target_mcse: expected a finite number > 0"),
        ("auto", {"max_cost": 10}, "max_cost: expected a whole number ≥ 1000"),
        ("auto", {"num_samples": 10}, "num_samples: expected an option of method 'auto'"),
        ("importance", {"num_temperatures": 10}, "num_temperatures: expected an option of method"),
    ],
    ids=str,
)
def test_bad_options_are_refused_by_name(method, options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        pv.log_evidence(pv.VAE.mlp(4, 1), torch.ones(3, 4), method=method, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_rows": 0}, "num_rows: expected a whole number ≥ 1"),
        ({"num_samples": 1}, "num_samples: expected a whole number ≥ 2"),
        ({"num_temperatures": 1}, "num_temperatures: expected a whole number ≥ 2"),
        ({"start": "posterior"}, "start: expected one of"),
        ({"rows": "x"}, "rows: expected one of 'simulated', 'real'"),
        ({"tolerance": -1}, "tolerance: expected a finite number > 0"),
    ],
    ids=str,
)
def test_bad_options_of_sandwich_are_refused_by_name(options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        evidence.sandwich(pv.VAE.mlp(4, 1), torch.ones(3, 4), **options)


def test_bad_options_of_gaps_and_convergence_are_refused_by_name():
    vae, x = pv.VAE.mlp(4, 1), torch.ones(3, 4)
    with pytest.raises(ValueError, match="num_samples: expected a whole number ≥"):
        evidence.gaps(vae, x, num_samples=20)
    with pytest.raises(ValueError, match="family: expected one of"):
        evidence.gaps(vae, x, family="x")
    with pytest.raises(TypeError, match="num_samples: expected a sequence"):
        evidence.convergence(vae, x, num_samples=5)
    with pytest.raises(TypeError, match="num_samples: expected a sequence"):
        evidence.convergence(vae, x, num_samples=())
    with pytest.raises(ValueError, match="num_samples: expected a whole number ≥ 2"):
        evidence.convergence(vae, x, num_samples=(1, 10))


def test_quadrature_refuses_four_latent_dimensions():
    case = PAIRS[TOO_WIDE]()
    with pytest.raises(ValueError, match="expected one to 3 latent dimensions for quadrature, got 4"):
        pv.log_evidence(case.pair, case.x, method="quadrature", check=False)
    with pytest.raises(ValueError, match="expected one to 3 latent dimensions for quadrature, got 4"):
        pv.log_evidence(pv.VAE.mlp(6, 4), torch.ones(3, 6), method="quadrature", check=False)


@pytest.mark.parametrize("widen", [1.0, 3.0, 0.4])
def test_auto_honours_a_max_cost_of_1000(widen):
    """The least that is allowed, less than a fit costs."""
    oracle = LinearGaussian.random(6, 12)
    ev = pv.log_evidence(
        oracle.pair(widen), oracle.sample(30), method="auto", target_mcse=0.01, max_cost=1000, check=False
    )
    assert (ev.cost <= 1000).all()


def test_quadrature_is_within_its_own_error_on_two_narrow_modes():
    oracle = TwoModes()
    x = oracle.sample(100)
    ev = pv.log_evidence(oracle.pair(), x, method="quadrature", check=False)
    error = np.abs(ev.estimate - oracle.log_prob(x).numpy())
    assert (error <= ev.mcse + 1e-6)[ev.verdict == "unchecked"].all()


# ---------------------------------------------------------------------------------------------------------
# Densities without a gradient


def normal_model(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def bounded_model(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Uniform(-torch.ones(()), 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def unrelated_model(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Uniform(-torch.ones(()), 1.0))
        pyro.sample("x", dist.Normal(torch.zeros(()), 1.0), obs=x)


def uniform_guide(reach):
    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Uniform(-reach * torch.ones(len(x)), reach))

    return guide


def detached_guide(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", WithoutGradient(x / 2, torch.full((len(x),), 0.8)))


class WithoutGradient(dist.Normal):
    """A density that was computed outside autograd."""

    def log_prob(self, value):
        return super().log_prob(value.detach())


STANDARD = dist.Normal(0.0, 1.0)
FLAT = {
    "a flat guide": (normal_model, uniform_guide(9.0), lambda x: dist.Normal(0.0, 2**0.5).log_prob(x)),
    "a guide outside autograd": (
        normal_model,
        detached_guide,
        lambda x: dist.Normal(0.0, 2**0.5).log_prob(x),
    ),
    "a flat prior and guide": (
        bounded_model,
        uniform_guide(1.0),
        lambda x: (STANDARD.cdf(x + 1) - STANDARD.cdf(x - 1)).log() - math.log(2),
    ),
    "a likelihood that ignores z": (unrelated_model, uniform_guide(1.0), STANDARD.log_prob),
}


@pytest.mark.statistical
@pytest.mark.parametrize("method", ["importance", "annealed", "refined", "quadrature", "auto"])
@pytest.mark.parametrize("name", FLAT)
def test_densities_without_a_gradient_are_weighed_right(name, method):
    model, guide, exact = FLAT[name]
    x = torch.linspace(-2, 2, 8)
    pair = pv.LatentVariableModel(model, guide)
    ev = pv.log_evidence(pair, x, method=method, check=False, **QUICK[method])
    # A bias of log-mean-exp is at most of the order of mcse²; float32 rounds at 1e-5.
    error = np.abs(ev.estimate - exact(x.double()).numpy())
    assert (error < Z * ev.mcse + ev.mcse**2 + np.abs(ev.bias) + 1e-4)[ev.verdict == "unchecked"].all(), error
    assert (ev.verdict == "unchecked").any()


def test_the_gradient_of_what_does_not_depend_on_u_is_zero():
    u = torch.randn(3, 4, 2, dtype=torch.float64)
    constant = torch.ones(3, 4, dtype=torch.float64)
    other = torch.ones((), requires_grad=True)
    values, grads = gradients(lambda u: (u.square().sum(-1), constant, constant * other), u)
    assert torch.equal(grads[0], 2 * u)
    assert not grads[1].any()
    assert not grads[2].any()
    assert torch.equal(values[1], constant)
