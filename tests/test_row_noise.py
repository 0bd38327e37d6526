"""Noise that belongs to the row: its distribution, and numbers that depend on nothing but the row."""

import math
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import sklearn.base
import sklearn.utils.estimator_checks
import sklearn.utils.validation
import torch
from pairs import PAIRS
from scipy import stats
from torch.distributions import constraints

import pyrovae as pv
from pyrovae import noise
from pyrovae.pair import drawing, inspect
from pyrovae.pair.drawing import Source, replaced
from pyrovae.row_noise import RowNoise

SEED = noise.derive(11, noise.Stream.TILE)
#: Every statistic below stands at a false-alarm rate of 1e-6.
RARE = 1e-6
Z = stats.norm.isf(RARE / 2)


def made(first=0, rows=500, seed=SEED):
    return RowNoise(seed, torch.arange(rows), first)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_normal_and_uniform_numbers_have_their_distributions(dtype):
    """Kolmogorov–Smirnov on 400 000 numbers sees distances above 0.0043; moments up to the fourth."""
    drawn = made()
    z, u = drawn.normal(100, 8, dtype=dtype), drawn.uniform(100, 8, dtype=dtype)
    assert z.shape == u.shape == (100, 500, 8)
    assert z.dtype == u.dtype == dtype
    assert float(u.min()) > 0
    assert float(u.max()) < 1
    for values, name in ((z, "norm"), (u, "uniform")):
        assert stats.kstest(values.double().flatten().numpy(), name).pvalue > RARE
    z, count = z.double(), z.numel()
    for power, expected, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs(float((z**power).mean()) - expected) < Z * math.sqrt(variance / count)


def test_neighbouring_samples_rows_and_places_are_uncorrelated():
    """Correlations of the numbers and of their squares, over 400 000 pairs each: above 0.008 they are seen."""
    z = made().normal(100, 8, dtype=torch.float32).double()
    for values in (z, (z**2 - 1) / math.sqrt(2)):
        pairs = [
            (values[:-1], values[1:]),
            (values[:, :-1], values[:, 1:]),
            (values[..., :-1], values[..., 1:]),
            (values[..., :4], values[..., 4:]),  # the cosines and sines of the same radii
        ]
        for a, b in pairs:
            assert abs(float((a * b).mean())) < Z / math.sqrt(a.numel())


def test_seeds_and_calls_are_independent():
    drawn = made()
    first, second = (drawn.normal(100, 8, dtype=torch.float32).double() for _ in range(2))
    other = made(seed=noise.derive(12, noise.Stream.TILE)).normal(100, 8, dtype=torch.float32).double()
    for a, b in ((first, second), (first, other)):
        assert abs(float((a * b).mean())) < Z / math.sqrt(a.numel())


def test_a_part_is_made_by_itself():
    whole = made().normal(60, 3, dtype=torch.float64)
    part = RowNoise(SEED, torch.tensor([450, 3]), first=17).normal(20, 3, dtype=torch.float64)
    assert torch.equal(part, whole[17:37, [450, 3]])


@pytest.mark.parametrize("shape", [0.05, 0.5, 1.0, 2.5, 40.0])
def test_gamma_variables_have_their_distribution(shape):
    drawn = made().gamma(torch.full((100, 500), shape, dtype=torch.float64))
    assert stats.kstest(drawn.flatten().numpy(), "gamma", (shape,)).pvalue > RARE


@pytest.mark.parametrize("rate", [1e-3, 0.7, 30.0, 1e6])
def test_poisson_counts_have_their_distribution(rate):
    """A count and a uniform number within its step make a uniform number."""
    source = Source(made(), 100, (100, 500), 1, False)
    with replaced(source, []):
        drawn = torch.poisson(torch.full((100, 500), rate, dtype=torch.float64)).flatten().numpy()
    within = (
        made(seed=noise.derive(13, noise.Stream.TILE)).uniform(100, dtype=torch.float64).flatten().numpy()
    )
    place = stats.poisson.cdf(drawn - 1, rate) + within * stats.poisson.pmf(drawn, rate)
    assert stats.kstest(place, "uniform").pvalue > RARE


@pytest.mark.parametrize("rate", [0.0, 1e-12, 0.05, 0.99, 1.0, 30.0, 4e3, 9e4, 2e5])
def test_poisson_counts_are_quantiles_at_uniform_numbers(rate):
    """The smallest count k with P(X ≤ k) ≥ u, in the tails too; off by one where a quantile of large rates is rounded."""
    u = made().uniform(100, dtype=torch.float64)
    u[0, :5] = torch.tensor([2.0**-53, 1e-12, 1e-6, 1 - 1e-6, 1 - 1e-12], dtype=torch.float64)
    source = Source(made(), 100, (100, 500), 1, False)
    source.uniform = lambda size, dtype: u
    with replaced(source, []):
        counts = torch.poisson(torch.full((100, 500), rate, dtype=torch.float64)).numpy()
    u = u.numpy()
    off = (stats.poisson.cdf(counts, rate) < u * (1 - 1e-9)) | (
        stats.poisson.cdf(counts - 1, rate) > u * (1 + 1e-9)
    )
    assert off.sum() <= (5 if rate > 1e5 else 0)


def test_poisson_counts_beyond_whole_floats_end():
    rate = torch.tensor([[0.0, 1e12, 1e20, 1e300]], dtype=torch.float64)
    with replaced(Source(made(rows=4), 1, (1, 4), 1, False), []):
        drawn = torch.poisson(rate)
    assert ((drawn - rate).abs() <= 10 * rate.sqrt() + rate * 1e-15).all()


# ---------------------------------------------------------------------------------------------------------
# Sites


SITES = {
    "normal": dist.Normal(1.0, 2.0),
    "laplace": dist.Laplace(0.0, 1.0),
    "log normal": dist.LogNormal(0.0, 0.5),
    "student t": dist.StudentT(5.0, 0.0, 1.0),
    "gamma": dist.Gamma(0.7, 2.0),
    "beta": dist.Beta(0.5, 3.0),
    "exponential": dist.Exponential(2.0),
    "half cauchy": dist.HalfCauchy(1.0),
    "uniform": dist.Uniform(-1.0, 3.0),
    "bernoulli": dist.Bernoulli(0.3),
    "categorical": dist.Categorical(torch.tensor([0.2, 0.0, 0.5, 0.3])),
    "poisson": dist.Poisson(2.0),
    "binomial": dist.Binomial(7, torch.tensor(0.3)),
    "gamma poisson": dist.GammaPoisson(0.7, 0.4),
}
COUNTS = ("poisson", "binomial", "gamma poisson")
#: Draws in the two layouts of a pair: a call for many samples, or the rows repeated.
LAYOUTS = ("together", "repeated")


def pair_of(fn, layout):
    """A model and guide with one latent a row, of a family, and a second one beside it."""

    def sample(x):
        z = pyro.sample("z", fn)
        pyro.sample("w", dist.Normal(0.0, 1.0))
        # reshape refuses a plate of particles
        return z.reshape(len(x)) if layout == "repeated" else z

    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(sample(x).to(x.dtype), 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            sample(x)

    return pv.LatentVariableModel(model, guide)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", SITES)
def test_sites_draw_from_their_distributions_row_by_row(name, layout):
    fn, x = SITES[name], torch.linspace(0, 1, 40)
    pair = pair_of(fn, layout)
    model = inspect(pair, {"x": x})
    assert model.keyed
    assert model.structure.vectorised["guide"] == (layout == "together")
    rows = torch.arange(40)
    latents, _ = model.propose({"x": x}, 500, RowNoise(SEED, rows))
    z = model.rows_second("z", latents["z"])
    if name in ("bernoulli", "categorical"):
        counts = torch.bincount(z.flatten().long(), minlength=2).numpy()
        probs = getattr(fn, "probs", None)
        probs = np.array([1 - probs, probs]) if name == "bernoulli" else probs.numpy()
        assert (counts[probs == 0] == 0).all()
        assert stats.chisquare(counts[probs > 0], len(z.flatten()) * probs[probs > 0]).pvalue > RARE
    elif name in COUNTS:
        last = int(getattr(fn, "total_count", 11))
        probs = fn.log_prob(torch.arange(last + 1.0)).exp().double().numpy()
        counts = np.bincount(z.flatten().long().numpy().clip(max=last + 1), minlength=last + 2)
        if name == "binomial":
            assert counts[-1] == 0
        else:
            probs = np.append(probs, 1 - probs.sum())
        expected = probs / probs.sum() * z.numel()
        assert stats.chisquare(counts[: len(probs)], expected).pvalue > RARE
    else:
        of_torch = fn.sample((20_000,)).numpy()
        assert stats.ks_2samp(z.flatten().numpy(), of_torch).pvalue > RARE
    some = torch.tensor([7, 31])
    fewer, _ = model.propose({"x": x[some]}, 3, RowNoise(SEED, rows[some], first=40))
    torch.testing.assert_close(model.rows_second("z", fewer["z"]), z[40:43, some])
    # The next site's draws stay, however often a sampler rejects.
    w = model.rows_second("w", latents["w"])
    torch.testing.assert_close(model.rows_second("w", fewer["w"]), w[40:43, some])


@pytest.mark.parametrize("trials", [3, 10**6])
def test_binomial_counts_are_quantiles_at_uniform_numbers(trials):
    source = Source(made(), 100, (100, 500), 1, False)
    prob = torch.linspace(0, 1, 500, dtype=torch.float64).expand(100, 500)
    with replaced(source, []):
        drawn = torch.binomial(torch.full((), float(trials), dtype=torch.float64), prob).numpy()
    u = Source(made(), 100, (100, 500), 1, False).uniform((100, 500), torch.float64).numpy()
    below, at = (stats.binom.cdf(drawn - step, trials, prob.numpy()) for step in (1, 0))
    assert ((below < u * (1 + 1e-9)) & (u <= at * (1 + 1e-9))).all()


def test_one_vector_of_weights_is_no_matrix_of_rows():
    missed = []
    with replaced(Source(made(rows=2), 1, (1, 2), 1, False), missed):
        drawn = torch.multinomial(torch.tensor([0.1, 0.2, 0.3, 0.4]), 1, True)
    assert drawn.shape == (1,)
    assert missed


@pytest.mark.parametrize("layout", LAYOUTS)
def test_columns_of_categories_are_drawn_row_by_row(layout):
    """torch flattens rows and columns of categories to the rows of one matrix."""
    probs = torch.tensor([[0.2, 0.0, 0.5, 0.3], [0.7, 0.1, 0.1, 0.1], [0.0, 0.0, 0.5, 0.5]])
    shape = (50, 40) if layout == "together" else (50 * 40,)
    source = Source(made(rows=40), 50, shape, len(shape) - 1, layout == "repeated")
    fn, missed = dist.Categorical(probs).expand((*shape, 3)), []
    with replaced(source, missed):
        drawn = fn.sample().view(50, 40, 3)
    assert not missed
    for column, expected in enumerate(probs.numpy()):
        counts = torch.bincount(drawn[..., column].flatten(), minlength=4).numpy()
        assert (counts[expected == 0] == 0).all()
        assert stats.chisquare(counts[expected > 0], 2000 * expected[expected > 0]).pvalue > RARE
    assert stats.chi2_contingency(pd.crosstab(drawn[..., 0].flatten(), drawn[..., 1].flatten())).pvalue > RARE
    some = RowNoise(SEED, torch.tensor([7, 31]), first=20)
    shape = (3, 2) if layout == "together" else (3 * 2,)
    with replaced(Source(some, 3, shape, len(shape) - 1, layout == "repeated"), []):
        fewer = dist.Categorical(probs).expand((*shape, 3)).sample().view(3, 2, 3)
    assert torch.equal(fewer, drawn[20:23, [7, 31]])


def test_a_drawn_poisson_zero_has_no_sign():
    """The search starts at a rounded quantile, which is −0.0 at rates just above 1."""
    source = SimpleNamespace(uniform=lambda shape, dtype: torch.rand(shape, dtype=dtype))
    drawn = drawing._poisson(source, torch.full((2000,), 1.5))
    assert (drawn == 0).any()
    assert not drawn.signbit().any()


#: Samplers of two independent normal numbers with one location, shape (..., 1), and two scales, shape (..., 2).
SAMPLERS = {
    "scales alone broadcast the location": torch.normal,
    "location without scales": lambda loc, scale: scale * torch.normal(0 * loc.expand_as(scale)) + loc,
    "scale of another dtype": lambda loc, scale: torch.normal(loc, scale.double()),
    "one scale": lambda loc, scale: loc + scale * torch.normal(torch.zeros_like(scale), 1 + 0 * loc),
    "complex": lambda loc, scale: (
        loc + 2**0.5 * scale * torch.view_as_real(torch.randn(loc.shape[:-1], dtype=torch.complex64))
    ),
}


@pytest.mark.parametrize("name", SAMPLERS)
def test_samplers_of_a_users_own_draw_independent_numbers(name):
    """Every entry of what an operation returns has a number of its own, whatever its arguments' shapes."""

    class Own(dist.TorchDistribution):
        arg_constraints: ClassVar = {}
        support = constraints.real_vector

        def __init__(self, loc, scale):
            self.loc, self.scale = loc, scale
            super().__init__(scale.shape[:-1], scale.shape[-1:], validate_args=False)

        def expand(self, batch_shape, _instance=None):
            return Own(self.loc.expand(*batch_shape, 1), self.scale.expand(*batch_shape, 2))

        def sample(self, sample_shape=()):
            shape = self._extended_shape(sample_shape)
            return SAMPLERS[name](self.loc.expand(*shape[:-1], 1), self.scale.expand(shape))

        def log_prob(self, value):
            return dist.Normal(self.loc, self.scale).log_prob(value).sum(-1)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", Own(x[:, :1] * 0 + 0.5, torch.tensor([0.8, 1.6]).expand(len(x), 2)))

    x = torch.randn(40, 2, generator=torch.Generator().manual_seed(0))
    rowwise = inspect(pv.LatentVariableModel(model, guide), {"x": x})
    latents, _ = rowwise.propose({"x": x}, 500, RowNoise(SEED, torch.arange(40)))
    z = rowwise.rows_second("z", latents["z"]).reshape(-1, 2)
    assert z.dtype == torch.float32
    assert stats.ks_1samp(z[:, 0].numpy(), stats.norm(0.5, 0.8).cdf).pvalue > RARE
    assert stats.ks_1samp(z[:, 1].numpy(), stats.norm(0.5, 1.6).cdf).pvalue > RARE
    assert stats.pearsonr(*z.T.numpy()).pvalue > RARE


def test_draws_that_cannot_be_keyed_are_named():
    """An angle is drawn by torch's generator: the result says so."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.VonMises(x.new_tensor(0.4), 2.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.VonMises(torch.full_like(x, 0.4), 2.0))

    ev = pv.log_evidence(
        pv.LatentVariableModel(model, guide), torch.tensor([1.0, 2.5]), num_samples=50, check=False
    )
    assert ev.noise == "tile"


# ---------------------------------------------------------------------------------------------------------
# Methods

OPTIONS = {
    "importance": {"num_samples": 150},
    "jackknife": {"num_samples": 40},
    "refined": {"num_samples": 200},
    "annealed": {"num_samples": 8, "num_temperatures": 20},
    "quadrature": {"tolerance": 0.1},
    "auto": {"max_cost": 2000, "target_mcse": 0.01},
}
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}
#: float32 for two: auto calls the others.
CASES = pytest.mark.parametrize(
    ("method", "dtype"),
    [(method, torch.float64) for method in OPTIONS]
    + [(method, torch.float32) for method in ("importance", "auto")],
    ids=str,
)


def scored(method, dtype, rows, **options):
    """A nonlinear VAE with an encoder that is not fitted, on rows some of which lie far out."""
    with noise.seeded(3):
        vae = pv.VAE.mlp(5, latent_dim=2, likelihood="gaussian", hidden_dims=(6,))
    x = 1.5 * torch.randn(12, 5, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    if method != "quadrature":
        options["compile"] = False
    return pv.log_evidence(
        vae.to(dtype), x.to(dtype)[rows], method=method, seed=2, **OPTIONS[method], check=False, **options
    )


def agree(a, b, dtype):
    scale = np.maximum(1, np.abs(a.estimate))
    np.testing.assert_array_less(np.abs(a.estimate - b.estimate) / scale, TOLERANCE[dtype])
    np.testing.assert_allclose(a.mcse, b.mcse, atol=10 * TOLERANCE[dtype])


@CASES
def test_rows_have_their_numbers_in_any_order_and_alone(method, dtype):
    every = torch.arange(12)
    whole = scored(method, dtype, every, noise="content")
    assert whole.noise == "content"
    for rows in (every.flip(0), every[[5, 2, 11]], every[[8]]):
        part = scored(method, dtype, rows, noise="content")
        order = rows.numpy()
        np.testing.assert_allclose(
            part.estimate, whole.estimate[order], rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype]
        )
        if dtype == torch.float64:
            assert (part.verdict == whole.verdict[order]).all()
            assert (part.answered_by == whole.answered_by[order]).all()


@CASES
def test_rows_have_their_numbers_whatever_the_tile(method, dtype):
    every = torch.arange(12)
    whole = scored(method, dtype, every)
    assert whole.noise == "index"
    height = {"quadrature": 700, "auto": 130, "annealed": 3}.get(method, 13)
    agree(whole, scored(method, dtype, every, tile=(5, height)), dtype)


def masked():
    """A latent that some rows lack, and a gamma latent."""

    def sample(x, lacks, shape):
        with pyro.poutine.mask(mask=~lacks):
            a = pyro.sample("a", dist.Normal(0.0, 1.0).expand(x.shape))
        b = pyro.sample("b", dist.Gamma(torch.full_like(x, shape), 2.0))
        return torch.where(lacks, torch.zeros_like(a), a) + b

    def model(x, lacks):
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(sample(x, lacks, 2.0), 0.5), obs=x)

    def guide(x, lacks):
        with pyro.plate("data", len(x)):
            sample(x, lacks, 1.5)

    return pv.LatentVariableModel(model, guide)


@pytest.mark.parametrize("method", ["importance", "refined", "annealed", "auto"])
def test_rows_that_lack_a_latent_and_rejections_leave_other_rows_alone(method):
    x = {
        "x": torch.tensor([-1.0, 0.2, 0.4, 1.1], dtype=torch.float64),
        "lacks": torch.tensor([False, False, False, True]),
    }
    whole, part = (
        pv.log_evidence(
            masked(), rows, method=method, noise="content", compile=False, check=False, **OPTIONS[method]
        )
        for rows in (x, {name: value[:3] for name, value in x.items()})
    )
    assert whole.noise == "content"
    np.testing.assert_allclose(part.estimate, whole.estimate[:3], rtol=1e-9)


def test_equal_rows_share_their_noise_and_the_error_says_so():
    vae, x = pv.VAE.mlp(3, 1), torch.ones(50, 3)
    same = pv.log_evidence(vae, x, num_samples=50, noise="content", check=False)
    assert np.ptp(same.estimate) < 1e-5
    assert same.mean_mcse == pytest.approx(float(same.mcse[0]), rel=1e-3)
    own = pv.log_evidence(vae, x, num_samples=50, check=False)
    assert own.mean_mcse == pytest.approx(float(np.sqrt((own.mcse**2).sum())) / 50)


@pytest.mark.parametrize("copies", [1, 2, 3])
def test_errors_of_repeated_rows_are_those_of_one_set_times_the_copies(copies):
    """Noise by content gives copies one error. Totals of c copies are c times that of one set, and so are all errors."""
    x = 3 * torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
    vae = pv.VAE.mlp(3, 1, "gaussian")
    once, every = (
        pv.log_evidence(vae, rows, method="importance", num_samples=100, noise="content", check=False)
        for rows in (x, x.repeat(copies, 1))
    )
    assert once.mean_tail_error == pytest.approx(float(np.sqrt((once.tail_error**2).sum())) / 40) != 0
    for name in ("mean_mcse", "mean_tail_error", "mean_interval"):
        assert getattr(every, name) == pytest.approx(getattr(once, name)), name
    assert np.ptp(every.total_interval) == pytest.approx(copies * np.ptp(once.total_interval))


def test_the_error_given_cells_counts_the_noise_that_rows_share_by_them():
    """All rows have one given cell, so log P of it has one error; the rest differ, and so do the errors of whole rows."""
    x = 3 * torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
    x[:, 0] = 1.0
    vae = pv.VAE.mlp(3, 1, "gaussian", missing=True)
    options = {"method": "importance", "num_samples": 100, "noise": "content", "check": False}
    rest, whole = (pv.log_evidence(vae, x, **options, **given) for given in ({"given": [0]}, {}))
    of_given = (
        rest.mcse**2 - whole.mcse**2
    )  # squares of mcse and tail error of log P(x_given), the same in all rows
    np.testing.assert_allclose(of_given, of_given[0], rtol=1e-3)
    assert whole.shared_mcse is None
    assert rest.mean_mcse**2 == pytest.approx(whole.mean_mcse**2 + of_given[0], rel=1e-3)
    assert rest.mean_tail_error == pytest.approx(whole.mean_tail_error)


def test_rows_are_simulated_beside_deterministic_sites():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            mean = pyro.deterministic("mean", 2 * z)
            pyro.sample("x", dist.Normal(mean, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.4 * x, 0.5))

    sw = pv.evidence.sandwich(pv.LatentVariableModel(model, guide), torch.randn(6), num_temperatures=20)
    assert np.isfinite(sw.gap).all()


@pytest.mark.parametrize("name", PAIRS)
def test_every_pair_of_the_contract_has_noise_by_row(name):
    case = PAIRS[name]()
    weights = pv.log_weights(case.pair, case.x, 5, seed=1, noise="content")
    order = torch.arange(len(case.x)).flip(0)
    backwards = pv.log_weights(case.pair, case.x[order], 5, seed=1, noise="content", tile=(2, 3))
    tolerance = 1e-9 if case.x.dtype == torch.float64 else 1e-4
    torch.testing.assert_close(backwards, weights[:, order], rtol=tolerance, atol=tolerance)


def test_the_elbo_is_the_rows_own():
    vae, x = pv.VAE.mlp(5, latent_dim=2), (torch.arange(40).view(8, 5) % 3 == 0).float()
    whole = pv.elbo(vae, x, seed=5, noise="content")
    part = pv.elbo(vae, x[2:4], seed=5, noise="content", tile=(1, 7))
    np.testing.assert_allclose(part.estimate, whole.estimate[2:4], rtol=1e-5)


def test_graphs_draw_the_same_noise():
    """A compiled tile has the numbers of one that Pyro runs."""
    vae, x = pv.VAE.mlp(5, latent_dim=3), (torch.arange(40).view(8, 5) % 3 == 0).float()
    if pv.tracing.why_not_compiled(x.device) is not None:
        pytest.skip("no C++ compiler")
    plain, graph = (pv.log_weights(vae, x, 130, seed=5, compile=compile) for compile in (False, True))
    torch.testing.assert_close(graph, plain, rtol=1e-4, atol=1e-4)


def test_gaps_and_convergence_by_content():
    """In another order, a row has the same gaps, and the means over all rows are the same."""
    torch.manual_seed(0)
    vae = pv.VAE.mlp(4, 2, hidden_dims=(6,)).double()
    x = (torch.rand(9, 4) < 0.5).double().unique(dim=0)
    order = torch.randperm(len(x))
    whole, moved = (
        pv.evidence.gaps(vae, rows, num_samples=100, noise="content", tile=tile, check=False)
        for rows, tile in ((x, (3, 40)), (x[order], (2, 40)))
    )
    for name in whole.columns.drop("verdict"):
        np.testing.assert_allclose(moved[name], whole[name].to_numpy()[order], rtol=1e-9, atol=1e-9)
    curves = [
        pv.evidence.convergence(vae, rows, (10, 50), noise="content", tile=(2, 25), check=False)
        for rows in (x, x[order])
    ]
    np.testing.assert_allclose(curves[0], curves[1], rtol=1e-9)


def test_the_key_is_one_of_two():
    with pytest.raises(ValueError, match="noise: expected one of 'index', 'content'"):
        pv.log_evidence(pv.VAE.mlp(3, 1), torch.ones(2, 3), noise="tile", check=False)


class Density(sklearn.base.BaseEstimator):
    """A prototype of a scikit-learn estimator whose scores are log P(x)."""

    def fit(self, X, y=None):
        X = sklearn.utils.validation.validate_data(self, X, dtype=np.float64)
        with noise.seeded(0):
            self.vae_ = pv.VAE.mlp(X.shape[1], 2, "gaussian", hidden_dims=(4,), standardize=True).double()
        pv.fit(self.vae_, X, epochs=2, batch_size=32, seed=0, compile=False)
        return self

    def score_samples(self, X):
        X = sklearn.utils.validation.validate_data(self, X, dtype=np.float64, reset=False)
        return pv.log_evidence(self.vae_, X, num_samples=100, noise="content", check=False).estimate


@pytest.mark.parametrize(
    "check",
    [
        sklearn.utils.estimator_checks.check_methods_sample_order_invariance,
        sklearn.utils.estimator_checks.check_methods_subset_invariance,
    ],
)
def test_scikit_learns_checks_of_order_and_subsets_pass(check):
    check("Density", Density())
