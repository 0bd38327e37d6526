"""embed(): moments of Q(z | x) and of P(z | x) against closed forms, the columns' names, and what is refused."""

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from oracles import LinearGaussian
from pairs import PAIRS
from rates import SEED, Z
from test_missing_pairs import NAN, GammaPoisson

import pyrovae as pv
from pyrovae import baselines
from pyrovae.refusals import Refused

ORACLE = LinearGaussian.random(2, 4)
X = ORACLE.sample(6, seed=SEED)
NAMES = ["z_0", "z_1", "z_0_sd", "z_1_sd"]


def moments(posterior):
    return torch.cat([posterior.mean, posterior.stddev], dim=1).numpy()


def test_moments_of_a_gaussian_guide_are_exact_and_rows_keep_their_index():
    frame = pd.DataFrame(X.numpy(), index=list("abcdef"))
    found = pv.embed(ORACLE.pair(), frame)
    assert found.columns.tolist() == NAMES
    assert found.index.tolist() == list("abcdef")
    np.testing.assert_allclose(found, moments(ORACLE.posterior(X)), rtol=1e-6)
    pd.testing.assert_frame_equal(
        pv.embed(ORACLE.pair(), [X[:2], X[2:]]), found.set_axis(range(6)), check_names=False
    )


@pytest.mark.statistical
@pytest.mark.parametrize("method", ["importance", "refined"])
def test_weighted_draws_have_the_moments_of_the_posterior(method):
    """A guide twice as wide as the posterior; errors of a mean and of a standard deviation are below 1.5 sd/√500."""
    options = {"method": method, "num_samples": 1000, "seed": SEED, "check": False}
    found = pv.embed(ORACLE.pair(widen=2.0), X, noise="content", **options)
    assert set(found.pop("verdict")) == {"unchecked"}
    exact = moments(ORACLE.posterior(X))
    assert np.abs(found - exact).to_numpy().max() < Z * 1.5 * exact[:, 2:].max() / 500**0.5
    again = pv.embed(ORACLE.pair(widen=2.0), X.flip(0), noise="content", **options)
    np.testing.assert_allclose(again[NAMES].to_numpy()[::-1], found, rtol=1e-9)


@pytest.mark.statistical
def test_a_latent_drawn_after_another_gets_its_marginal_moments():
    """z1 ~ N(0.7 x, 0.7), then z2 ~ N(0.3 (z1_0 − z1_1), 0.7): Var z2 = 0.49 (1 + 2 · 0.3²)."""
    case = PAIRS["indexed_hierarchy"]()
    found = pv.embed(case.pair, case.x, num_samples=2000, seed=SEED)
    first = 0.7 * case.x.numpy()
    np.testing.assert_allclose(found[["z1_0", "z1_1"]], first, rtol=1e-5)
    np.testing.assert_allclose(found[["z1_0_sd", "z1_1_sd"]], 0.7, rtol=1e-5)
    spread = 0.7 * (1 + 2 * 0.3**2) ** 0.5
    between = 0.7 * 0.3 * 2**0.5  # of the means given z1, the part that the draws estimate
    assert np.abs(found["z2"] - 0.3 * (first[:, 0] - first[:, 1])).max() < Z * between / 2000**0.5
    assert np.abs(found["z2_sd"] - spread).max() < Z * between**2 / spread / 2000**0.5


@pytest.mark.statistical
def test_missing_cells_positive_latents_and_rows_without_a_cell():
    """z ~ Gamma(2, 1) and Poisson counts; the guide is log-normal, without a closed form."""

    def guide(x, observed=None):
        with pyro.plate("data", len(x)):
            log_mean = torch.log((2 + x.sum(-1)) / 3)
            base = dist.Normal(log_mean, torch.full_like(log_mean, 0.5))
            pyro.sample("z", dist.TransformedDistribution(base, dist.transforms.ExpTransform()))

    x = GammaPoisson.x[:3].clone()
    x[1, 1:] = x[2] = NAN
    pair = pv.LatentVariableModel(GammaPoisson.model, guide)
    posterior = GammaPoisson.posterior(x.nan_to_num(0.0), ~x.isnan())
    options = {"num_samples": 4000, "seed": SEED}
    found = pv.embed(pair, x, method="importance", check=False, **options)
    apart = np.abs(found[["z", "z_sd"]] - torch.stack([posterior.mean, posterior.stddev], dim=1).numpy())
    assert (apart.to_numpy() < Z * 2 * posterior.stddev.numpy()[:, None] / 1000**0.5).all()
    assert found["verdict"].iloc[2] == "trust"
    drawn = pv.embed(pair, x, **options)
    mean = (2 + x.nansum(-1).numpy()) / 3 * np.exp(0.125)
    assert (np.abs(drawn["z"] - mean) < Z * mean * np.expm1(0.25) ** 0.5 / 4000**0.5).all()


def test_entries_that_a_row_lacks_are_nan_and_plates_are_numbered():
    def model(x, held):
        with pyro.plate("data", len(x), dim=-2), pyro.plate("times", 2, dim=-1):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1).mask(held))
            pyro.sample("x", dist.Normal(z.sum(-1), 1.0).mask(held), obs=x)

    def guide(x, held):
        with pyro.plate("data", len(x), dim=-2), pyro.plate("times", 2, dim=-1):
            loc = torch.stack([x, -x], dim=-1)
            pyro.sample("z", dist.Normal(loc, 0.5).to_event(1).mask(held))

    x, held = torch.randn(3, 2), torch.tensor([[True, True], [True, False], [False, False]])
    pair = pv.LatentVariableModel(model, guide)
    found = pv.embed(pair, {"x": x, "held": held})
    assert found.columns.tolist()[:4] == ["z_0_0", "z_0_1", "z_1_0", "z_1_1"]
    expected = torch.stack([x, -x], dim=-1).where(held[..., None], torch.tensor(NAN)).flatten(1)
    np.testing.assert_allclose(found.iloc[:, :4], expected)
    weighed = pv.embed(pair, {"x": x, "held": held}, method="importance", num_samples=100, check=False)
    assert weighed.iloc[:, :8].isna().equals(found.isna())


def test_baselines_of_factors_have_exact_moments():
    fitted = baselines.PPCA(2).fit(ORACLE.sample(50))
    known = LinearGaussian(fitted.loadings, fitted.loc, fitted.noise_variance**0.5)
    np.testing.assert_allclose(pv.embed(fitted, X), moments(known.posterior(X)), rtol=1e-8)
    x = X.clone()
    x[0, 1:] = NAN
    part = LinearGaussian(fitted.loadings[:1], fitted.loc[:1], known.sigma)
    np.testing.assert_allclose(pv.embed(fitted, x)[:1], moments(part.posterior(x[:1, :1])), rtol=1e-8)


def test_what_has_no_moments_is_refused():
    case = PAIRS["mixture"]()
    with pytest.raises(Refused, match="'component', labels or angles of a Categorical"):
        pv.embed(case.pair, case.x)
    with pytest.raises(TypeError, match="Fit PPCA or FactorAnalysis"):
        pv.embed(baselines.FullGaussian().fit(X), X)

    def named(*names):
        def part(x):
            with pyro.plate("data", len(x)):
                for name in names:
                    z = pyro.sample(name, dist.Normal(x.new_zeros(len(x)), 1.0))
                pyro.sample("x", dist.Normal(z, 1.0), obs=x) if part is model else None

        return part

    model = named("z", "z_sd")
    with pytest.raises(Refused, match="two columns 'z_sd'"):
        pv.embed(pv.LatentVariableModel(model, named("z", "z_sd")), torch.randn(3))


def test_moments_that_do_not_exist_are_not_trusted():
    """z half-Cauchy and x ~ N(0, z²): the posterior's density falls as z⁻³, so it has a mean and no variance."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.HalfCauchy(torch.ones(())))
            pyro.sample("x", dist.Normal(0.0, z[..., None]).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.LogNormal(torch.log(x.abs().mean(-1) + 0.3) + 0.3, 1.0))

    pair, x = pv.LatentVariableModel(model, guide), torch.tensor([[1.0], [0.5], [2.0]]).repeat(20, 1)
    for method in ("importance", "refined"):
        verdict = pv.embed(pair, x, method=method, num_samples=10_000)["verdict"]
        assert (verdict == "trust").mean() < 0.25
