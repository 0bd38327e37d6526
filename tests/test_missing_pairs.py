"""Missing cells in VAEs and Pyro pairs: log P(x_obs) by closed forms and sums, fits of the bound on it, and what is refused."""

import itertools
import math

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from rates import SEED, Z
from scipy import special, stats
from test_likelihoods import LIKELIHOODS, every_likelihood
from torch.distributions import biject_to

import pyrovae as pv
from pyrovae import baselines, likelihoods
from pyrovae.evaluation import Evaluation
from pyrovae.evidence.exact import linear_gaussian
from pyrovae.evidence.nearby import Pool
from pyrovae.evidence.simulated import simulated
from pyrovae.likelihoods.base import of_observed
from pyrovae.training import traced
from pyrovae.training.rows import Reader

NAN = math.nan
GENERATOR = torch.Generator().manual_seed(5)
#: Every pattern of 4 columns, (16, 4), True where a cell is observed; the last row has none.
PATTERNS = torch.tensor(list(itertools.product([True, False], repeat=4)))
OPTIONS = {
    "importance": {"num_samples": 1000, "seed": SEED},
    "jackknife": {"num_samples": 1000, "seed": SEED},
    "annealed": {"num_samples": 16, "num_temperatures": 40, "compile": False, "seed": SEED},
    "refined": {"num_samples": 300, "compile": False, "seed": SEED},
    "quadrature": {},
    "auto": {"compile": False, "seed": SEED},
}


def holed(x, observed=PATTERNS):
    return x.masked_fill(~observed, NAN)


def score(model, x, method="importance", **options):
    return pv.log_evidence(model, x, method=method, **options)


# --- models whose log P(x_obs) is known for every pattern


class GammaPoisson:
    """z ~ Gamma(2, 1), x_d ~ Poisson(z): a negative multinomial, whatever cells are left out."""

    x = torch.tensor([[3.0, 0.0, 2.0, 5.0]], dtype=torch.float64).expand(16, 4)

    @staticmethod
    def model(x, observed=None):
        observed = torch.ones_like(x, dtype=torch.bool) if observed is None else observed
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Gamma(x.new_tensor(2.0), 1.0))
            pyro.sample(
                "x", dist.Poisson(z[..., None]).expand([*z.shape, 4]).mask(observed).to_event(1), obs=x
            )

    @staticmethod
    def posterior(x, observed):
        return dist.Gamma(2.0 + x.sum(-1), 1.0 + observed.sum(-1).to(x))

    @staticmethod
    def exact(x, observed):
        s, n = x.sum(-1), observed.sum(-1).to(x)
        terms = torch.lgamma(2 + s) - (torch.lgamma(x + 1) * observed).sum(-1) - (2 + s) * (1 + n).log()
        return terms - math.lgamma(2)


class BetaBernoulli:
    """z ~ Beta(2, 3), x_d ~ Bernoulli(z)."""

    x = torch.tensor([[1.0, 0.0, 1.0, 1.0]], dtype=torch.float64).expand(16, 4)

    @staticmethod
    def model(x, observed=None):
        observed = torch.ones_like(x, dtype=torch.bool) if observed is None else observed
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Beta(x.new_tensor(2.0), 3.0))
            fn = dist.Bernoulli(z[..., None]).expand([*z.shape, 4])
            pyro.sample("x", fn.mask(observed).to_event(1), obs=x)

    @staticmethod
    def posterior(x, observed):
        ones = x.sum(-1)
        return dist.Beta(2.0 + ones, 3.0 + observed.sum(-1) - ones)

    @staticmethod
    def exact(x, observed):
        ones, n = x.sum(-1).numpy(), observed.sum(-1).numpy()
        return torch.from_numpy(special.betaln(2 + ones, 3 + n - ones) - special.betaln(2, 3))


class Mixture:
    """z one of three classes, x_d ~ N(m_zd, 1): the latent is summed."""

    x = torch.tensor([[0.5, -1.0, 2.0, 0.0]], dtype=torch.float64).expand(16, 4)
    weights = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    means = torch.tensor(
        [[0.0, 1.0, 2.0, 3.0], [2.0, -2.0, 0.0, 1.0], [-1.0, 0.0, 1.0, -3.0]], dtype=torch.float64
    )

    @classmethod
    def model(cls, x, observed=None):
        observed = torch.ones_like(x, dtype=torch.bool) if observed is None else observed
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(cls.weights))
            pyro.sample("x", dist.Normal(cls.means[z], 1.0).mask(observed).to_event(1), obs=x)

    @classmethod
    def joint(cls, x, observed):
        each = dist.Normal(cls.means, 1.0).log_prob(x[:, None]) * observed[:, None]
        return cls.weights.log() + each.sum(-1)

    @classmethod
    def posterior(cls, x, observed):
        return dist.Categorical(logits=cls.joint(x, observed))

    @classmethod
    def exact(cls, x, observed):
        return cls.joint(x, observed).logsumexp(-1)


class Guide:
    """The exact posterior of the observed cells."""

    def __init__(self, form):
        self.form = form

    def __call__(self, x, observed=None):
        observed = torch.ones_like(x, dtype=torch.bool) if observed is None else observed
        with pyro.plate("data", len(x)):
            pyro.sample("z", self.form.posterior(x, observed))


@pytest.mark.parametrize("form", [GammaPoisson, BetaBernoulli, Mixture])
def test_the_exact_posterior_weighs_every_pattern_by_its_closed_form(form):
    """All weights of a row are then equal: one draw gives log P(x_obs) without an error."""
    pair = pv.LatentVariableModel(form.model, Guide(form))
    filled = form.x * PATTERNS
    found = score(pair, holed(form.x), num_samples=2, compile=False, check=False)
    np.testing.assert_allclose(found.estimate, form.exact(filled, PATTERNS), rtol=0, atol=1e-10)
    assert set(found.measure) == {"density" if form is Mixture else "mass"}
    complete = score(pair, form.x[:1], num_samples=2, compile=False, check=False)
    assert complete.estimate[0] == pytest.approx(found.estimate[0], abs=1e-12)


def prior_guide(x):
    """It takes no mask, and ignores x."""
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Gamma(x.new_tensor(3.0), 1.2))


@pytest.mark.statistical
@pytest.mark.parametrize("method", OPTIONS)
def test_methods_agree_with_the_closed_form_within_their_error(method):
    pair = pv.LatentVariableModel(GammaPoisson.model, prior_guide)
    found = score(pair, holed(GammaPoisson.x), method, check=False, **OPTIONS[method])
    exact = GammaPoisson.exact(GammaPoisson.x * PATTERNS, PATTERNS).numpy()
    error = np.abs(found.estimate - exact)
    np.testing.assert_array_less(error, Z * found.mcse + np.abs(found.bias) + found.tail_error + 1e-3)
    assert found.estimate[-1] == 0.0
    assert found.observed.tolist() == PATTERNS.sum(1).tolist()


@pytest.fixture(scope="module")
def linear():
    """A VAE whose log P(x_obs) is Gaussian, with rows simulated from it."""
    torch.manual_seed(3)
    vae = pv.VAE.mlp(4, 2, "gaussian", (), scale="per_dimension", encoder="full_rank_normal", missing=True)
    return vae, vae.sample(16, seed=1)


def gaussian_marginals(vae, x, observed=PATTERNS):
    known = linear_gaussian(vae, x)
    covariance = (known.loadings @ known.loadings.T + (known.scale**2).diag()).numpy()
    return [
        stats.multivariate_normal(known.loc.numpy()[o], covariance[np.ix_(o, o)]).logpdf(row[o])
        if o.any()
        else 0.0
        for row, o in zip(x.double().numpy(), observed.numpy(), strict=True)
    ]


def test_a_linear_vae_has_scipys_marginals(linear):
    vae, x = linear
    for method in ("exact", "auto"):
        found = score(vae, holed(x), method, **({} if method == "exact" else {"check": False}))
        np.testing.assert_allclose(found.estimate, gaussian_marginals(vae, x), rtol=0, atol=1e-10)
    known = linear_gaussian(vae, x)
    rows = x.double() * PATTERNS
    some = known.posterior(rows, PATTERNS)
    complete = known.posterior(rows[:1])
    torch.testing.assert_close(some.mean[:1], complete.mean)
    torch.testing.assert_close(some.covariance_matrix[:1], complete.covariance_matrix.expand(1, 2, 2))
    torch.testing.assert_close(some.mean[-1], torch.zeros(2, dtype=torch.float64))


def test_a_grid_finds_the_marginals(linear):
    vae, x = linear
    found = score(vae, holed(x)[12:], "quadrature", check=False)
    exact = gaussian_marginals(vae, x)[12:]
    np.testing.assert_array_less(np.abs(found.estimate - exact), found.mcse + 1e-6)


@pytest.mark.statistical
def test_bounds_hold_the_marginals(linear):
    vae, x = linear
    exact = np.mean(gaussian_marginals(vae, x))
    bounds = pv.evidence.sandwich(vae, holed(x), rows="real", num_samples=16, num_temperatures=40, seed=SEED)
    lower_se, upper_se = (np.sqrt((e**2).sum()) / 16 for e in (bounds.lower_mcse, bounds.upper_mcse))
    assert bounds.lower.mean() - Z * lower_se <= exact <= bounds.upper.mean() + Z * upper_se
    assert bounds.gap.mean() < 0.5


def test_a_row_without_a_cell_scores_zero_without_a_draw(linear):
    vae, x = linear
    found = score(vae, torch.full((2, 4), NAN), num_samples=10, check=False)
    for name, value in {"estimate": 0, "mcse": 0, "bias": 0, "cost": 0, "tail_error": 0}.items():
        assert (np.asarray(getattr(found, name)) == value).all(), name
    assert found.settled.all()
    assert (found.kind == "exact").all()
    beside = score(vae, holed(x), num_samples=10, check=False)
    alone = score(vae, holed(x)[:-1], num_samples=10, check=False)
    np.testing.assert_array_equal(beside.estimate[:-1], alone.estimate)
    assert (beside.verdict[-1], beside.answered_by[-1], beside.cost[-1]) == ("trust", "exact", 0)


# --- the likelihoods


@every_likelihood
def test_every_pattern_is_the_sum_over_its_first_missing_cell(name, options):
    """P(x_obs | z) = Σ P(x_obs, x_d | z), from rows without a cell to complete ones: all sums over missing cells."""
    torch.manual_seed(0)
    family = likelihoods.REGISTRY[name]
    network = pv.MLP(2, (5,), family.outputs_per_dimension(**options) * 4)
    fn = family(network, **options).double()(torch.randn(1, 2, dtype=torch.float64))
    x = fn.sample()
    x = x.clamp(1e-3, 1 - 1e-3) if name == "beta" else x
    support = fn.base_dist.support
    grid, log_cell = torch.arange(3000, dtype=torch.float64), torch.zeros(1)
    if hasattr(support, "upper_bound") and support.is_discrete:
        grid = grid[: int(torch.as_tensor(support.upper_bound).max()) + 1]
    elif name == "bernoulli":
        grid = grid[:2]
    elif not support.is_discrete:
        v = torch.linspace(-5, 5, 20_001, dtype=torch.float64)
        to_support = biject_to(support)
        grid, u = to_support(v.sinh()), v.sinh()
        log_cell = to_support.log_abs_det_jacobian(u, grid) + v.cosh().log() + math.log(5e-4)
        inside = (grid > 1e-300) & (grid < 1 - 1e-15 if name == "beta" else grid.isfinite())
        if name in ("beta", "log_normal", "gamma"):
            grid, log_cell = grid[inside], log_cell[inside]
    tolerance = 1e-10 if support.is_discrete else 1e-5

    def log_p(rows, observed):
        masked, filled = of_observed(fn, rows, observed)
        return masked.log_prob(filled).detach()

    for pattern in PATTERNS[1:]:
        column = int((~pattern).int().argmax())
        rows = x.expand(len(grid), 4).clone()
        rows[:, column] = grid
        more = pattern.clone()
        more[column] = True
        total = (log_p(rows, more.expand(len(grid), 4)) + log_cell).logsumexp(0)
        # Any number may lie in a missing cell, even one off the support.
        there = log_p(torch.where(pattern, x, -7.5), pattern[None])
        assert float(there) == pytest.approx(float(total), abs=tolerance)
    assert float(log_p(x, PATTERNS[-1:])) == 0.0


@pytest.mark.parametrize("name", likelihoods.REGISTRY)
def test_every_family_fits_and_scores_rows_with_missing_cells(name):
    options = next(o for n, o in LIKELIHOODS if n == name)
    torch.manual_seed(0)
    vae = pv.VAE.mlp(4, 1, name, (4,), missing=True, **options)
    x = vae.sample(32, seed=1)
    x = x.clamp(1e-3, 1 - 1e-3) if name == "beta" else x
    rows = holed(x, PATTERNS.repeat(2, 1))
    history = pv.fit(vae, rows, epochs=2, lr=1e-3)
    assert np.isfinite(history.frame["reconstruction"]).all()
    found = score(vae, rows, num_samples=50, check=False, compile=False)
    assert np.isfinite(found.estimate).all()
    assert found.estimate[15] == 0.0


# --- bits


def test_what_a_missing_cell_holds_never_matters():
    torch.manual_seed(0)
    vae = pv.VAE.mlp(4, 1, "gamma", (4,), standardize=True, missing=True)
    x = vae.sample(16, seed=1)
    rows = {
        "NaN": holed(x),
        "array": holed(x).numpy(),
        "None": pd.DataFrame(
            [
                [v if o else None for v, o in zip(*z, strict=True)]
                for z in zip(x.tolist(), PATTERNS.tolist(), strict=True)
            ],
            dtype=object,
        ),
        "NA": pd.DataFrame(holed(x).double().numpy()).astype("Float64"),
        "mask": {"x": x, "observed": PATTERNS},
        "mask of infinities": {"x": torch.where(PATTERNS, x, math.inf), "observed": PATTERNS},
        "frame and mask": {
            "x": pd.DataFrame(x.numpy()),
            "observed": pd.DataFrame(PATTERNS.numpy()).iloc[::-1],
        },
    }
    pv.fit(vae, rows["mask"], epochs=1)
    found = {
        kind: score(vae, each, num_samples=20, check=False, noise="content", compile=False)
        for kind, each in rows.items()
    }
    for kind, each in found.items():
        np.testing.assert_array_equal(each.estimate, found["NaN"].estimate, err_msg=kind)
        assert each.fingerprint == found["NaN"].fingerprint
        assert each.seen == 15  # a row without a cell equals every other
    order = torch.randperm(16, generator=GENERATOR)
    for some in (order, torch.tensor([5]), torch.tensor([0])):
        alone = score(vae, rows["NaN"][some], num_samples=20, check=False, noise="content", compile=False)
        np.testing.assert_allclose(alone.estimate, found["NaN"].estimate[some.numpy()], rtol=0, atol=1e-5)


def test_two_fits_differ_in_nothing_if_their_fills_do():
    x = torch.randn(64, 4, generator=GENERATOR)
    observed = torch.rand(64, 4, generator=GENERATOR) < 0.7
    tensors = []
    for fill in (0.0, 1e9):
        torch.manual_seed(0)
        vae = pv.VAE.mlp(4, 1, "gaussian", (4,), standardize=True)
        pv.fit(vae, {"x": torch.where(observed, x, fill), "observed": observed}, epochs=2)
        tensors.append(torch.cat([value.flatten() for value in vae.state_dict().values()]))
    assert torch.equal(*tensors)
    mean = torch.where(observed, x, 0.0).double().sum(0) / observed.sum(0)
    torch.testing.assert_close(vae.encoder.standardize.loc.double(), mean, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(
        vae.fitted.spread, torch.tensor(np.nanstd(holed(x, observed).double().numpy(), axis=0))
    )


# --- fits


def test_a_fit_to_half_of_the_cells_approaches_the_best_log_p():
    """The maximum of a linear VAE with one scale is that of PPCA, which EM reaches by closed forms."""
    x = torch.randn(300, 1, generator=GENERATOR) @ torch.tensor([[1.0, -1.0, 2.0, 0.5]])
    x = x + 0.5 * torch.randn(300, 4, generator=GENERATOR)
    rows = holed(x, torch.rand(300, 4, generator=GENERATOR) < 0.5)
    torch.manual_seed(0)
    vae = pv.VAE.mlp(4, 1, "gaussian", (), scale="shared", missing=True)
    vae.encoder.network = pv.MLP(8, (32,), 2)
    history = pv.fit(vae, rows, epochs=60, lr=3e-2, batch_size=100)
    best = baselines.PPCA(1).fit(rows).log_evidence(rows).mean
    found = score(vae, rows, "auto").mean
    assert history.frame["elbo"].iloc[-10:].mean() < found <= best + 1e-6
    assert best - found < 0.02
    table = pv.compare({"vae": vae, "ppca": baselines.PPCA(1).fit(rows)}, rows, training_rows=True)
    assert table.loc["ppca", "elpd"] == pytest.approx(best)


def test_traced_steps_and_chunks_take_the_mask(monkeypatch, tmp_path):
    x = torch.randn(60, 4, generator=GENERATOR)
    observed = torch.rand(60, 4, generator=GENERATOR) < 0.7
    observed[:30] = True  # the first chunk has no missing cell

    def fitted(rows, **options):
        torch.manual_seed(0)
        vae = pv.VAE.mlp(4, 1, "gaussian", (4,), missing=True)
        history = pv.fit(vae, rows, epochs=3, batch_size=30, validation=holed(x, observed), **options)
        return vae, history

    rows = holed(x, observed)
    eager, history = fitted([rows[:30], rows[30:]], compile=False)
    reader = Reader(eager, [rows[:30], rows[30:]], 0, False)
    held = reader.rows(reader.inspect(), False)
    for number, part in enumerate((observed[:30], observed[30:])):
        held.load(number)
        assert torch.equal(held.data["observed"], part)
    monkeypatch.setattr(traced, "_TRACING_PAYS", 1)
    other, again = fitted([rows[:30], rows[30:]])
    assert (history.way, again.way) == ("eager", "traced")
    np.testing.assert_allclose(again.frame["validation_elbo"], history.frame["validation_elbo"], atol=1e-5)
    for p, q in zip(eager.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-5)
    eager.save(tmp_path / "vae")
    loaded = pv.load(tmp_path / "vae")
    np.testing.assert_array_equal(pv.elbo(loaded, rows).estimate, pv.elbo(eager, rows).estimate)


def test_an_encoder_gets_zeros_and_the_mask(linear):
    vae, x = linear
    network = vae.encoder.network
    seen = []
    handle = network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    vae.encode(torch.where(PATTERNS, x, 9.0), PATTERNS)
    vae.encode(x)
    handle.remove()
    assert torch.equal(seen[0], torch.cat([x * PATTERNS, PATTERNS.float()], dim=1))
    assert torch.equal(seen[1], torch.cat([x, torch.ones_like(x)], dim=1))


# --- simulated rows


def test_simulated_rows_have_the_masks_of_x(linear):
    vae, x = linear
    template = Evaluation.prepare(vae, holed(x), 1, 0)
    index = torch.arange(15).repeat(2)
    made = simulated(template, index)
    assert torch.equal(made.batch["observed"], PATTERNS[index])
    assert bool((made.batch["x"][~PATTERNS[index]] == 0).all())
    assert bool((made.batch["x"][PATTERNS[index]] != 0).all())


def test_near_pairs_are_near_in_the_observed_cells(linear):
    vae, x = linear
    complete, missing = (Evaluation.prepare(vae, rows, 1, 0) for rows in (x, holed(x)))
    pools = Pool(complete), Pool(missing)
    assert torch.equal(pools[0]._points, pools[1]._points)
    near = [pool.near(each.batch) for pool, each in zip(pools, (complete, missing), strict=True)]
    assert torch.equal(near[0][:, 0], near[1][:, 0])  # the complete row
    # A row with one cell has the pairs nearest in that cell.
    row = int((PATTERNS.sum(1) == 1).int().argmax())
    column = int(PATTERNS[row].int().argmax())
    pool = pools[1]
    apart = (pool._rows[:, column] - x[row, column]).abs()
    expected = pool._u[apart.topk(16, largest=False).indices]
    torch.testing.assert_close(near[1][:16, row].sort(0).values, expected.sort(0).values)


def test_the_check_tries_rows_with_missing_cells(linear):
    vae, x = linear
    found = score(vae, holed(x), "refined", num_samples=200, compile=False)
    assert found.check.passed
    assert (found.verdict == "trust").mean() > 0.9


def test_replicates_and_observations_go_to_arviz(linear):
    vae, x = linear
    data = pv.convert.to_arviz(vae, holed(x), num_draws=4)
    observed = data["observed_data"]["x"].to_numpy()
    assert np.array_equal(np.isnan(observed), ~PATTERNS.numpy())
    assert np.isfinite(data["posterior_predictive"]["x"].to_numpy()).all()


# --- pairs of the user


def by_obs_mask(x, observed):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(x.new_zeros(len(x)), 1.0))
        with pyro.plate("columns", 4, dim=-2):
            pyro.sample("x", dist.Normal(z, 1.0), obs=x.T, obs_mask=observed.T)


def guide_of_obs_mask(x, observed):
    n = observed.sum(-1)
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(x.sum(-1) / (1 + n), (1.0 + n) ** -0.5))
        with pyro.plate("columns", 4, dim=-2), poutine.mask(mask=~observed.T):
            pyro.sample("x_unobserved", dist.Normal(z, 1.0))


def test_obs_mask_and_a_mask_without_a_default_are_taken():
    pair = pv.LatentVariableModel(by_obs_mask, guide_of_obs_mask)
    x = torch.tensor([[0.5, -1.0, 2.0, 0.0]], dtype=torch.float64).expand(16, 4)
    n, s = PATTERNS.sum(1), (x * PATTERNS).sum(1)
    exact = -0.5 * (n * math.log(2 * math.pi) + (1 + n).log() + (x**2 * PATTERNS).sum(1) - s**2 / (1 + n))
    found = score(pair, holed(x), num_samples=4, compile=False, check=False)
    np.testing.assert_allclose(found.estimate, exact, rtol=0, atol=1e-6)
    assert set(found.measure) == {"density"}
    complete = score(pair, x[:1], num_samples=4, compile=False, check=False)
    assert complete.estimate[0] == pytest.approx(float(exact[0]), abs=1e-6)


def test_context_beside_missing_cells_is_judged_without_the_mask():
    """The number of observed cells is context, as the mask is; the total of the observed cells is not."""

    def model(x, offset, observed=None):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(len(x)), 1.0))
            fn = dist.Normal((z + 0.1 * offset)[..., None], 1.0).expand([*z.shape, 4])
            pyro.sample("x", (fn if observed is None else fn.mask(observed)).to_event(1), obs=x)

    def guide(x, offset):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x.new_zeros(len(x)), 1.0))

    pair = pv.LatentVariableModel(model, guide)
    x = torch.randn(64, 4, generator=GENERATOR)
    observed = PATTERNS.repeat(4, 1)
    for offset, measure in (
        (observed.sum(1).float(), "density"),
        ((x * observed).sum(1), "pseudo-likelihood"),
    ):
        found = score(
            pair, {"x": holed(x, observed), "offset": offset}, num_samples=3, check=False, compile=False
        )
        assert set(found.measure) == {measure}
        assert list(found.given) == ["offset"]


# --- refused


def ignoring(x, observed=None):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(x.new_zeros(len(x)), 1.0))
        pyro.sample("x", dist.Normal(z[..., None], 1.0).expand([*z.shape, 4]).to_event(1), obs=x)


def leaking(x, observed=None):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.1 * x[:, 0], 1.0))
        fn = dist.Normal(z[..., None], 1.0).expand([*z.shape, 4])
        pyro.sample("x", (fn if observed is None else fn.mask(observed)).to_event(1), obs=x)


def plain(x):
    ignoring(x)


def normal_guide(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x.new_zeros(len(x)), 1.0))


class Multinomial(torch.nn.Module):
    def forward(self, z):
        return dist.Multinomial(10, logits=z @ torch.ones(1, 4))


def joint_vae():
    encoder = pv.encoders.DiagonalNormal(pv.MLP(4, (), 2))
    return pv.VAE(pv.priors.StandardNormal(1), Multinomial(), encoder)


X = torch.randn(16, 4, generator=GENERATOR)


@pytest.mark.parametrize(
    ("pair", "x", "message"),
    [
        (pv.LatentVariableModel(ignoring, normal_guide), holed(X), r"site 'x', whose log-probability changes with .* in 15 rows, first row 1"),
        (pv.LatentVariableModel(plain, normal_guide), holed(X), r"x: expected finite numbers, got 32 that are NaN .* row 1, column 3"),
        (joint_vae(), holed(torch.ones(16, 4)), r"x: expected rows without missing cells, because Multinomial .* 32 missing cells, first at row 1, column 3"),
        (pv.VAE.mlp(4, 1, "gaussian", (2,)), torch.where(X > 1, math.inf, holed(X)), r"or NaN in missing cells, got \d+ that are infinite, first inf"),
        (pv.VAE.mlp(4, 1, "gaussian", (2,)), {"x": X, "observed": PATTERNS[:, :3]}, r"observed: expected booleans of the shape of the rows, \(16, 4\).*\(16, 3\)"),
        (pv.VAE.mlp(4, 1, "gaussian", (2,)), {"x": X, "observed": PATTERNS.float()}, r"observed: expected booleans .* got torch.float32"),
        (pv.VAE.mlp(4, 1, "poisson", (2,)), holed(torch.ones(16, 4)).masked_fill(PATTERNS & (X > 1), -1.0), r"values on the support of Poisson .* first -1"),
        (pv.VAE.mlp(3, 1, "gaussian", (2,), missing=True), holed(X), "rows of width 3"),
    ],
)  # fmt: skip
def test_rows_and_pairs_without_a_log_p_of_the_observed_cells_are_refused(pair, x, message):
    with pytest.raises((ValueError, TypeError), match=message):
        score(pair, x, num_samples=2, check=False)


def test_a_prior_that_reads_missing_cells_is_refused():
    with pytest.raises(ValueError, match=r"^model: .* site 'z', whose log-probability changes"):
        score(pv.LatentVariableModel(leaking, normal_guide), holed(X), num_samples=2, check=False)


def test_a_column_that_is_never_observed_is_refused_in_a_fit_and_scored():
    frame = pd.DataFrame(X.numpy(), columns=list("abcd"))
    frame["c"] = NAN
    vae = pv.VAE.mlp(4, 1, "gaussian", (2,))
    with pytest.raises(ValueError, match=r"an observed cell in every column, got 1 .* first column 'c'"):
        pv.fit(vae, frame, epochs=1)
    assert vae.fitted is None
    assert np.isfinite(score(vae, frame, num_samples=2, check=False).estimate).all()


def test_a_mask_in_a_frame_has_the_columns_of_the_rows():
    torch.manual_seed(SEED)
    x = pd.DataFrame(np.random.default_rng(SEED).normal(size=(6, 3)), columns=list("abc"))
    observed = x.notna()
    observed.loc[1, "a"] = False
    vae = pv.VAE.mlp(3, 1, "gaussian", hidden_dims=(3,))
    right = score(vae, {"x": x, "observed": observed}, num_samples=5, check=False)
    assert right.fingerprint == score(vae, x.where(observed), num_samples=5, check=False).fingerprint
    for mask in (observed[["c", "b", "a"]], observed.rename(columns={"c": "d"})):
        for call in (lambda m: score(vae, m, check=False), baselines.PPCA(1).fit):
            with pytest.raises(ValueError, match="observed: expected the columns of x, by name"):
                call({"x": x, "observed": mask})


def test_a_total_of_the_whole_row_is_seen_beside_a_few_missing_cells():
    """It is a function of the complete rows, though not of what is left of the others."""
    generator = torch.Generator().manual_seed(SEED)
    x = torch.poisson(3 * torch.rand(100, 4, generator=generator) + 1, generator=generator)
    vae = pv.VAE.mlp(4, 1, "poisson", hidden_dims=(3,), offset=True)
    hidden = holed(x, torch.rand(x.shape, generator=generator) < 0.98)
    for offset, measure in ((x.sum(1).log(), "pseudo-likelihood"), (x.new_ones(100).uniform_(), "mass")):
        ev = score(vae, {"x": hidden, "offset": offset}, num_samples=5, check=False)
        assert set(ev.measure) == {measure}


def test_a_first_chunk_without_a_column_does_not_standardise_it():
    x = torch.randn(20, 3, generator=torch.Generator().manual_seed(SEED))
    empty = x.clone()
    empty[:, 1] = NAN
    vae = pv.VAE.mlp(3, 1, "gaussian", hidden_dims=(3,), standardize=True)
    with pytest.raises(ValueError, match=r"in the first chunk.*got 1 column.*first column 1"):
        pv.fit(vae, [empty, x], epochs=1, compile=False)
    assert len(pv.fit(vae, [x, empty], epochs=1, compile=False)) == 1


def test_a_mask_that_is_ignored_is_found_where_all_that_is_seen_of_a_column_is_zero():
    def model(x, observed=None):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            pyro.sample("x", dist.Poisson(z.exp()[..., None]).expand([*z.shape, 2]).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0).expand([len(x)]))

    x = torch.tensor([[0.0, NAN], [0.0, 0.0], [0.0, 0.0]])
    with pytest.raises(
        ValueError, match="site 'x', whose log-probability changes with the value in a missing"
    ):
        score(pv.LatentVariableModel(model, guide), x, check=False)


def test_a_masked_mixture_refuses_missing_cells_by_name():
    family = dist.MaskedMixture(torch.ones(2, dtype=torch.bool), dist.Normal(0.0, 1.0), dist.Normal(0.0, 2.0))
    with pytest.raises(ValueError, match="MaskedMixture is joint over the columns"):
        of_observed(family.to_event(1), torch.zeros(1, 2), torch.tensor([[True, False]]))
