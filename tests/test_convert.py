"""to_arviz(), to_elpd(): the draws are the posterior's, the names the data's, and arviz takes them."""

import math
from dataclasses import dataclass, replace

import arviz as az
import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray
from arvizs import MODERN
from matplotlib import pyplot
from oracles import LinearGaussian
from pairs import PAIRS
from pyro import poutine
from pyro.infer.reparam import LocScaleReparam
from rates import SEED, close
from test_imputation import CENTRES, some_left_out

import pyrovae as pv
from pyrovae import baselines, identity
from pyrovae.chain_diagnostics import chain_ess, chain_mcse, chain_rhat
from pyrovae.convert import stacking_weights, to_arviz, to_elpd
from pyrovae.evidence.draws import resample
from pyrovae.row_noise import RowNoise

ORACLE = LinearGaussian.random(2, 3)
X = ORACLE.sample(60, seed=SEED)


def arrays(data, *path):
    group, name = path
    return torch.from_numpy(np.asarray(data[group][name].values)).double()


@pytest.fixture(scope="module")
def converted():
    return to_arviz(ORACLE.pair(widen=1.4), X, num_draws=500, num_samples=2000, seed=SEED)


def agree(found, exact):
    """Numbers of rows, (rows, …), with errors of their own and no other: their mean difference is none."""
    difference = (found - exact).mean(dim=tuple(range(1, found.dim()))) if found.dim() > 1 else found - exact
    return close(float(difference.mean()), 0.0, float(difference.std()) / len(difference) ** 0.5)


@pytest.mark.statistical
def test_posterior_draws_are_the_posteriors_and_not_the_encoders(converted):
    z = arrays(converted, "posterior", "z")[0]
    exact = ORACLE.posterior(X)
    assert converted.posterior["z"].dims == ("chain", "draw", "row", "z_dim_0")
    assert z.shape == (500, 60, 2)
    assert agree(z.mean(dim=0), exact.mean)
    assert agree(z.var(dim=0), exact.variance)  # the encoder's is 1.96 times that


@pytest.mark.statistical
def test_prior_draws_are_the_priors(converted):
    z = arrays(converted, "prior", "z")[0]
    assert z.shape == (500, 60, 2)
    assert agree(z.mean(dim=0), torch.zeros(60, 2))
    assert agree(z.var(dim=0), torch.ones(60, 2))


@pytest.mark.statistical
def test_replicated_rows_are_from_the_predictive_distributions(converted):
    w, variance = ORACLE.loadings, ORACLE.sigma**2
    exact = ORACLE.posterior(X)
    for group, mean, covariance in (
        ("posterior_predictive", exact.mean @ w.T + ORACLE.loc, w @ exact.covariance_matrix[0] @ w.T),
        ("prior_predictive", ORACLE.loc.expand(60, 3), w @ w.T),
    ):
        x = arrays(converted, group, "x")[0]
        assert converted[group]["x"].dims == ("chain", "draw", "row", "column")
        assert agree(x.mean(dim=0), mean)
        assert agree(x.var(dim=0), (covariance.diagonal() + variance).expand(60, 3))


def test_conditional_terms_are_of_these_draws_and_these_rows(converted):
    z = arrays(converted, "posterior", "z")[0]
    expected = dist.Normal(z @ ORACLE.loadings.T + ORACLE.loc, ORACLE.sigma).log_prob(X).sum(dim=-1)
    torch.testing.assert_close(arrays(converted, "log_likelihood_given_z", "x")[0], expected)
    np.testing.assert_array_equal(converted.observed_data["x"].values, X.numpy())


def test_loo_does_not_find_the_conditional_terms(converted):
    with pytest.raises(TypeError, match="log likelihood not found"):
        az.loo(converted)


def test_constants_say_how_far_to_believe_the_draws(converted):
    evidence = pv.log_evidence(ORACLE.pair(widen=1.4), X, num_samples=2000, seed=SEED)
    constants = converted.constant_data
    for name, values in (("log_evidence", evidence.estimate), ("mcse", evidence.mcse), ("ess", evidence.ess)):
        np.testing.assert_array_equal(constants[name].values, values)
    np.testing.assert_array_equal(constants["pareto_k"].values, evidence.pareto_k)
    np.testing.assert_array_equal(constants["verdict"].values, evidence.verdict)


def test_same_seed_same_bits_and_the_global_generator_stays():
    pair, before = ORACLE.pair(widen=1.2), torch.random.get_rng_state()
    first, again, other = (to_arviz(pair, X[:9], num_draws=20, num_samples=60, seed=s) for s in (1, 1, 2))
    assert torch.equal(before, torch.random.get_rng_state())
    for group in ("posterior", "prior", "posterior_predictive", "prior_predictive"):
        for name in first[group].data_vars:
            np.testing.assert_array_equal(first[group][name], again[group][name])
            assert not np.array_equal(first[group][name], other[group][name])


@pytest.mark.statistical
def test_blocks_of_rows_keep_their_order():
    """Tiles of few rows and few samples: every row's draws are its own, and so are the replicates."""
    x = X[:20]
    data = to_arviz(ORACLE.pair(1.1), x, num_draws=300, num_samples=300, seed=SEED, tile=(7, 128))
    assert agree(arrays(data, "posterior", "z")[0].mean(dim=0), ORACLE.posterior(x).mean)
    mean = ORACLE.posterior(x).mean @ ORACLE.loadings.T + ORACLE.loc
    replicated = arrays(data, "posterior_predictive", "x")[0].mean(dim=0)
    assert agree(replicated, mean)
    # row by row, too: rows out of order would be far off
    assert float((replicated - mean).abs().max()) < 0.5 < float((replicated - mean.flip(0)).abs().max())


def test_a_frame_names_rows_and_columns():
    frame = pd.DataFrame(X[:5].numpy(), columns=["height", "weight", "age"], index=list("abcde"))
    data = to_arviz(ORACLE.pair(), frame, num_draws=4, num_samples=30)
    for group in ("posterior_predictive", "prior_predictive", "observed_data"):
        assert list(data[group]["column"].values) == ["height", "weight", "age"]
        assert list(data[group]["row"].values) == list("abcde")
    assert list(data.posterior["row"].values) == list("abcde")
    assert list(data.constant_data["pareto_k"]["row"].values) == list("abcde")
    np.testing.assert_array_equal(data.observed_data["x"].sel(column="age"), X[:5, 2].float())


def test_an_index_that_names_no_row_gives_way_to_numbers():
    frame = pd.DataFrame(X[:3].numpy(), index=[7, 7, 8])
    data = to_arviz(ORACLE.pair(), frame, num_draws=4, num_samples=30, predictive=False)
    assert list(data.posterior["row"].values) == [0, 1, 2]


@pytest.mark.statistical
def test_replicated_missing_cells_are_from_the_model():
    pair, x = some_left_out("chained")
    data = to_arviz(pair, x, num_draws=200, num_samples=1000, seed=SEED)
    missing = x.isnan().numpy()
    for group in ("posterior_predictive", "prior_predictive"):
        apart = (data[group]["x"].values[0] - CENTRES.numpy())[:, missing]
        for each, exact in ((apart, 0.0), (apart**2, 1.5)):
            by_cell = each.mean(axis=0)
            assert close(by_cell.mean(), exact, by_cell.std() / math.sqrt(by_cell.size))


@pytest.mark.parametrize("name", PAIRS)
def test_every_pair_converts(name, unchecked):
    case = PAIRS[name]()
    data = to_arviz(case.pair, case.x, num_draws=12, num_samples=40, seed=SEED, predictive=False)
    evidence = pv.log_evidence(case.pair, case.x, num_samples=40, seed=SEED, check=False)
    np.testing.assert_array_equal(data.constant_data["log_evidence"], evidence.estimate)
    for variable in data.posterior.data_vars.values():
        assert variable.dims[:3] == ("chain", "draw", "row")
        assert variable.sizes["row"] == len(case.x)
    assert set(data.posterior.data_vars) == set(data.prior.data_vars)
    assert data.log_likelihood_given_z["x"].shape == (1, 12, len(case.x))


@pytest.mark.statistical
def test_latents_in_inner_plates():
    case = PAIRS["columns_inside"]()
    data = to_arviz(case.pair, case.x, num_draws=9, num_samples=100)
    assert data.posterior["z"].dims == ("chain", "draw", "row")
    assert data.posterior["u"].dims == ("chain", "draw", "row", "u_dim_0")
    u = arrays(data, "posterior", "u")[0]
    expected = dist.Normal(u, 0.8).log_prob(case.x.double()).sum(-1)
    torch.testing.assert_close(arrays(data, "log_likelihood_given_z", "x")[0], expected, atol=1e-5, rtol=1e-5)
    x = arrays(data, "posterior_predictive", "x")[0]
    residual = (x - u) / 0.8
    assert close(float(residual.mean()), 0.0, residual.numel() ** -0.5)
    assert close(float((residual**2).mean()), 1.0, (2 / residual.numel()) ** 0.5)


def test_images_keep_their_shape():
    case = PAIRS["convolutional"]()
    data = to_arviz(case.pair, case.x, num_draws=5, num_samples=30)
    assert data.posterior_predictive["x"].dims == ("chain", "draw", "row", "x_dim_0", "x_dim_1", "x_dim_2")
    assert data.posterior_predictive["x"].shape == (1, 5, 7, 1, 4, 4)


def test_columns_of_several_sites_are_put_back_in_their_places():
    case = PAIRS["column_slices"]()
    x = to_arviz(case.pair, case.x, num_draws=5, num_samples=30).posterior_predictive["x"].values
    assert set(np.unique(x[..., 1:])) == {0, 1}
    assert len(np.unique(x[..., 0])) == x[..., 0].size


def offset_pair():
    def model(x, offset):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Poisson((0.1 * z + offset).exp()), obs=x)

    def guide(x, offset):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros_like(offset), 1.0))

    return pv.LatentVariableModel(model, guide)


def test_what_goes_with_the_rows_comes_along():
    offset = torch.tensor([0.0, 5.0, 0.0, 5.0, 3.0])
    batch = {"x": torch.tensor([1.0, 150.0, 0.0, 140.0, 21.0]), "offset": offset}
    data = to_arviz(offset_pair(), batch, num_draws=40, num_samples=60)
    np.testing.assert_array_equal(data.constant_data["offset"], offset)
    assert data.observed_data["x"].dims == ("row",)
    means = data.prior_predictive["x"].mean(("chain", "draw")).values
    assert np.all(means[[1, 3]] > 20 * means[[0, 2]])


def test_rows_that_cannot_be_replicated_are_refused_with_the_mend():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("a", dist.Normal(z, 1.0), obs=x[:, 0])
            pyro.sample("b", dist.Normal(z + x[:, 0], 1.0), obs=x[:, 1])

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.5 * x[:, 0], 0.8))

    pair = pv.LatentVariableModel(model, guide)
    with pytest.raises(ValueError, match=r"site 'b', which also depends on x\. Pass predictive=False"):
        to_arviz(pair, X[:, :2], num_draws=3, num_samples=30)
    case = PAIRS["masked_cells"]()
    with pytest.raises(ValueError, match=r"columns that are unscored in part\. Pass predictive=False"):
        to_arviz(case.pair, case.x, num_draws=3, num_samples=30)
    assert "posterior_predictive" not in to_arviz(
        pair, X[:, :2], num_draws=3, num_samples=30, predictive=False
    )


@pytest.mark.statistical
def test_draws_are_chosen_by_their_weights_alone():
    log_weights = torch.tensor([[0.0, -torch.inf, -1e4], [-torch.inf, -torch.inf, -1e4 - 1]]).double()
    chosen = resample(log_weights, 10_000, RowNoise(SEED, torch.arange(3)))
    assert not chosen[:, 0].any()
    share = 1 / (1 + np.e)
    assert close(float(chosen[:, 2].double().mean()), share, (share * (1 - share) / 1e4) ** 0.5)
    assert set(chosen[:, 1].tolist()) == {0, 1}  # where P(x) = 0 as far as was seen, any is as good


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_draws": 10**8}, "num_draws: expected at most 536870912 numbers.*predictive=False"),
        ({"num_draws": 0}, "num_draws: expected a whole number"),
        ({"predictive": 1}, "predictive: expected True or False"),
    ],
)
def test_options_are_checked_before_anything_runs(options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        to_arviz(ORACLE.pair(), X, **options)


def test_what_has_no_draws_is_refused():
    with pytest.raises(TypeError, match=r"model: expected a VAE.*a PPCA.*to_elpd"):
        to_arviz(baselines.PPCA(1).fit(X), X)


# ---------------------------------------------------------------------------------------------------------
# Chains


@dataclass
class Chains:
    """What an MCMC baseline has, for μ of x_n ~ N(μ, 1) with a flat prior: draws of N(x̄, 1/N)."""

    x: torch.Tensor

    def __post_init__(self):
        generator = torch.Generator().manual_seed(SEED)
        noise = torch.randn(4, 1000, generator=generator, dtype=torch.float64)
        self.posterior = {
            "mu": self.x.mean() + noise / len(self.x) ** 0.5,
            "pair": torch.stack([noise, -noise], dim=-1),
        }

    def log_likelihood(self, x):
        return dist.Normal(self.posterior["mu"][..., None], 1.0).log_prob(x)


def test_loo_of_chains_is_the_exact_one():
    x = torch.randn(40, generator=torch.Generator().manual_seed(SEED), dtype=torch.float64)
    data = to_arviz(Chains(x), x)
    assert data.posterior["mu"].dims == ("chain", "draw")
    assert data.posterior["pair"].dims == ("chain", "draw", "pair_dim_0")
    assert data.log_likelihood["x"].shape == (4, 1000, 40)
    others = (x.sum() - x) / 39
    exact = dist.Normal(others, (1 + 1 / 39) ** 0.5).log_prob(x).numpy()
    loo = az.loo(data, pointwise=True)
    # of 4000 draws, importance weights and densities that vary by a few per cent
    np.testing.assert_allclose((loo.elpd_i if MODERN else loo.loo_i).values, exact, atol=0.02)
    assert float(az.rhat(data)["mu"]) < 1.02
    assert "mu" in az.summary(data, var_names=["mu"]).index


def test_loo_is_of_the_rows_that_were_fitted():
    chains = Chains(X[:, 0])
    chains.seen = identity.row_hashes(X[:, 0])
    to_arviz(chains, X[:, 0])
    with pytest.raises(ValueError, match="x: expected the rows that the baseline was fitted to"):
        to_arviz(chains, X[:, 0].flip(0))


@pytest.mark.parametrize("vectorises", [True, False])
def test_deterministic_statements_are_in_the_posterior(vectorises, monkeypatch):
    def model(x):
        with poutine.reparam(config={"moved": LocScaleReparam(0.0)}):
            moved = pyro.sample("moved", dist.Normal(torch.tensor(1.0), 2.0))
        scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
        if not vectorises:
            float(scale.detach())
        pyro.deterministic("variance", scale**2)
        pyro.deterministic("constant", torch.tensor([1.0, 2.0]), event_dim=1)
        with pyro.plate("data", len(x)):
            error = pyro.deterministic("error", x - moved)
            pyro.sample("x", dist.Normal(x - error, scale), obs=x)

    x = X[:5, 0].double()
    fitted = baselines.PyroMCMC(model, num_samples=50, warmup_steps=50, num_chains=2).fit(x)
    posterior = to_arviz(fitted, x).posterior
    assert set(posterior.data_vars) == {
        "moved_decentered", "scale", "moved", "variance", "constant", "error",
    }  # fmt: skip
    moved = 1 + 2 * posterior["moved_decentered"].values
    np.testing.assert_allclose(posterior["moved"].values, moved, rtol=1e-12)
    np.testing.assert_allclose(posterior["variance"].values, posterior["scale"].values ** 2, rtol=1e-12)
    np.testing.assert_array_equal(posterior["constant"].values, np.broadcast_to([1.0, 2.0], (2, 50, 2)))
    np.testing.assert_allclose(posterior["error"].values, x.numpy() - moved[..., None], rtol=1e-12)
    assert posterior["error"].dims == ("chain", "draw", "error_dim_0")
    monkeypatch.setattr("pyrovae.baselines.mcmc.pyro_mcmc._MOST_NUMBERS", 499)
    with pytest.warns(UserWarning, match="'error' is left out: expected at most 499 numbers, got 500"):
        assert set(fitted.deterministic()) == {"moved", "variance", "constant"}


def test_tail_counts_the_slower_of_both_tails():
    """Draws above 0 move slowly, those below are independent."""
    generator = np.random.default_rng(SEED)
    slow, fast = generator.normal(size=(2, 4, 1000))
    for t in range(1, 1000):
        slow[:, t] = 0.95 * slow[:, t - 1] + (1 - 0.95**2) ** 0.5 * slow[:, t]
    series = np.where(slow > 0, slow, -abs(fast))
    low, high = (float(az.ess(series, method="quantile", prob=p)) for p in (0.05, 0.95))
    assert chain_ess(series, "tail") == high < low
    assert chain_ess(series, "bulk") == float(az.ess(series, method="bulk"))
    assert chain_rhat(series) == float(az.rhat(series))
    assert chain_mcse(series) == pytest.approx(series.std(ddof=1) / chain_ess(series, "mean") ** 0.5)


# ---------------------------------------------------------------------------------------------------------
# arviz takes them; arviz 0.23 calls matplotlib and pandas in ways that their newest versions warn of, and arviz 1.x
# advises another plot for zeros and ones

calls_arviz = pytest.mark.filterwarnings(
    "ignore:Passing a dict or None as alias_mapping",
    "ignore:The inplace keyword in DataFrame.sort_values",
    "ignore:Variables x in .* look binary",
)


@pytest.fixture(scope="module")
def vae():
    torch.manual_seed(0)
    return pv.VAE.mlp(4, latent_dim=2, hidden_dims=(8,))


@pytest.fixture(scope="module")
def rows():
    return (torch.rand(50, 4, generator=torch.Generator().manual_seed(1)) < 0.4).float()


@calls_arviz
def test_arviz_plots_a_converted_vae(vae, rows):
    data = to_arviz(vae, rows, num_draws=30, num_samples=100)
    if MODERN:
        assert az.plot_ppc_dist(data, num_samples=5) is not None
        assert az.plot_ppc_dist(data, group="prior_predictive", num_samples=5) is not None
        assert az.plot_dist(data, var_names=["z"], coords={"row": [0]}) is not None
    else:
        assert az.plot_ppc(data, num_pp_samples=5) is not None
        assert az.plot_ppc(data, group="prior", num_pp_samples=5) is not None
        assert az.plot_posterior(data, var_names=["z"], coords={"row": [0]}) is not None
    pyplot.close("all")


def test_a_converted_vae_survives_the_disk(vae, rows, tmp_path):
    pytest.importorskip("h5netcdf")
    data = to_arviz(vae, rows, num_draws=5, num_samples=50)
    data.to_netcdf(str(tmp_path / "vae.nc"), engine="h5netcdf")
    loaded = az.from_netcdf(str(tmp_path / "vae.nc"), engine="h5netcdf")
    np.testing.assert_array_equal(loaded.posterior["z"], data.posterior["z"])
    np.testing.assert_array_equal(loaded.constant_data["verdict"], data.constant_data["verdict"])
    assert loaded.posterior.attrs["seed"] == 0


@calls_arviz
def test_elpd_compares_as_compare_does(vae, rows):
    independent = baselines.IndependentBernoulli().fit(rows[:25])
    scores = {
        "VAE": pv.log_evidence(vae, rows, num_samples=500, check=False),
        "independent": independent.log_evidence(rows),
    }
    ours = pv.compare(scores)
    options = {"round_to": "none"} if MODERN else {"ic": "loo"}
    theirs = az.compare({name: to_elpd(score) for name, score in scores.items()}, **options)
    assert list(ours.index) == list(theirs.index)
    last = ours.index[-1]
    np.testing.assert_allclose(theirs["elpd" if MODERN else "elpd_loo"], 50 * ours["elpd"])
    sign = 1 if MODERN else -1
    np.testing.assert_allclose(theirs.loc[last, "elpd_diff"], sign * 50 * ours.loc[last, "elpd_diff"])
    # arviz divides by N where we divide by N − 1
    np.testing.assert_allclose(theirs.loc[last, "dse"], (50 * 49) ** 0.5 * ours.loc[last, "dse"])
    np.testing.assert_allclose(theirs["se"], (50 * 49) ** 0.5 * ours["se"])
    assert not (theirs.loc["independent", "diag_elpd"] if MODERN else theirs.loc["independent", "warning"])
    assert az.plot_compare(theirs) is not None
    pyplot.close("all")


@calls_arviz
def test_elpd_says_what_it_is(vae, rows):
    evidence = pv.log_evidence(vae, rows, num_samples=200, check=False)
    elpd = to_elpd(evidence)
    total, pointwise, p = (
        (elpd.elpd, elpd.elpd_i, elpd.p) if MODERN else (elpd.elpd_loo, elpd.loo_i, elpd.p_loo)
    )
    assert total == evidence.total
    np.testing.assert_array_equal(pointwise.values, evidence.estimate)
    np.testing.assert_array_equal(elpd.pareto_k.values, evidence.pareto_k)
    assert pointwise.dims == elpd.pareto_k.dims == ("row",)
    quantity = pointwise.attrs["quantity"] if MODERN else elpd["quantity"]
    assert quantity == "log P(x_n) of held-out rows, plug-in, by importance: lower bound"
    assert np.isnan(p)
    assert elpd.scale == "log"
    assert elpd.warning == bool((evidence.verdict != "trust").any())
    assert f"{evidence.total:.2f}" in str(elpd)
    assert az.plot_khat(elpd, **({} if MODERN else {"show_bins": True, "show_hlines": True})) is not None
    pyplot.close("all")


def test_a_doubtful_row_raises_the_warning(vae, rows):
    evidence = pv.log_evidence(vae, rows, num_samples=200, check=False)
    evidence.verdict[:] = "trust"
    assert not to_elpd(evidence).warning
    evidence.verdict[3] = "another method"
    assert to_elpd(evidence).warning


def test_only_predictive_scores_become_an_elpd(vae, rows):
    evidence = pv.log_evidence(vae, rows, num_samples=50, check=False)
    with pytest.raises(TypeError, match="evidence: expected a LogEvidence, got a VAE"):
        to_elpd(vae)
    object.__setattr__(evidence, "target", "evidence")
    with pytest.raises(
        ValueError, match=r"evidence: expected predictive scores.*the evidence of a training set"
    ):
        to_elpd(evidence)


# ---------------------------------------------------------------------------------------------------------
# arviz 1.x


def test_the_container_is_that_of_the_installed_arviz(vae, rows):
    data = to_arviz(vae, rows, num_draws=6, num_samples=40)
    assert isinstance(data, xarray.DataTree if MODERN else az.InferenceData)
    predicted = ["prior_predictive", "posterior_predictive", "observed_data", "constant_data"]
    found = list(data.children) if MODERN else data.groups()
    assert sorted(found) == sorted(["prior", "posterior", "log_likelihood_given_z", *predicted])


@pytest.mark.skipif(not MODERN, reason="arviz 0.x has one kind of results")
def test_held_out_scores_do_not_compare_with_loo(vae, rows):
    """arviz 1.0 to 1.2 take a kind with the fields, later ones have it as the class's."""
    scores = to_elpd(pv.log_evidence(vae, rows, num_samples=50, check=False))
    x = torch.randn(50, generator=torch.Generator().manual_seed(SEED), dtype=torch.float64)
    loo = az.loo(to_arviz(Chains(x), x), pointwise=True)
    assert scores.kind in ("held_out", None)
    with pytest.raises(ValueError, match="incompatible"):
        az.compare({"VAE": scores, "chains": loo})


def test_stacking_weights_are_not_rounded():
    """Where only one of two models explains each row, w is its share of the rows: 37 of 64."""
    x = torch.eye(64)
    evidence = baselines.IndependentBernoulli().fit(x).log_evidence(x)
    wins = np.arange(64) < 37
    scores = {
        "more": replace(evidence, estimate=np.where(wins, -900.0, -940.0)),
        "fewer": replace(evidence, estimate=np.where(wins, -940.0, -900.0)),
    }
    weights = stacking_weights(scores)
    assert weights == pytest.approx({"more": 37 / 64, "fewer": 27 / 64}, abs=1e-4)
