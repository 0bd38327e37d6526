"""compare(): paired, in order, and only what can be compared."""

import dataclasses

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

import pyrovae as pv
from pyrovae import baselines

TRAIN = (torch.rand(200, 5, generator=torch.Generator().manual_seed(0)) < 0.1).float()
X = (torch.rand(40, 5, generator=torch.Generator().manual_seed(1)) < 0.1).float()


def bernoulli_vae():
    torch.manual_seed(0)
    return pv.VAE.mlp(5, latent_dim=2, hidden_dims=(4,))


def independent():
    return baselines.IndependentBernoulli().fit(TRAIN)


def test_differences_are_paired_and_best_comes_first():
    models = {"VAE": bernoulli_vae(), "independent": independent()}
    table = pv.compare(models, X, num_samples=200, seed=3)
    first, second = (
        pv.log_evidence(models["VAE"], X, num_samples=200, seed=3),
        independent().log_evidence(X),
    )
    assert list(table.index) == ["independent", "VAE"]
    difference = first.estimate - second.estimate
    line = table.loc["VAE"]
    assert line["elpd"] == pytest.approx(first.mean)
    assert line["se"] == pytest.approx(first.estimate.std(ddof=1) / 40**0.5)
    assert line["elpd_diff"] == pytest.approx(difference.mean())
    assert line["dse"] == pytest.approx(difference.std(ddof=1) / 40**0.5)
    assert line["dse"] < line["se"] + table.loc["independent", "se"]
    assert line["mcse"] == pytest.approx(first.mean_mcse)
    assert line["mcse_diff"] == pytest.approx(first.mean_mcse)
    assert line["bias"] == pytest.approx(first.mean_bias)
    assert (line["kind"], line["parameters"]) == ("lower bound", "plug-in")
    assert line[["trust", "more samples", "another method"]].sum() == 40
    best = table.loc["independent"]
    assert (best["elpd_diff"], best["dse"], best["mcse"], best["kind"]) == (0, 0, 0, "exact")
    assert table.attrs["unit"] == "nats a row"
    assert table.attrs["measure"] == "mass"


def test_results_computed_before_are_taken_as_they_are():
    ev = pv.log_evidence(bernoulli_vae(), X, num_samples=50)
    table = pv.compare({"now": bernoulli_vae(), "before": ev}, X, num_samples=50)
    np.testing.assert_array_equal(table.loc["now", "elpd"], table.loc["before", "elpd"])
    assert len(pv.compare({"before": ev})) == 1


def refused(message, models, x=None):
    with pytest.raises((ValueError, TypeError), match=message):
        pv.compare(models, x, num_samples=5)


def test_a_mass_never_meets_a_density():
    gaussian = pv.VAE.mlp(5, latent_dim=2, likelihood="gaussian")
    refused(
        r"models: expected all masses or all densities.*in column 0.*different units",
        {"b": bernoulli_vae(), "g": gaussian},
        X,
    )
    refused(
        "models: expected all masses or all densities", {"i": independent(), "p": baselines.PPCA(2).fit(X)}, X
    )


@pytest.mark.parametrize("other", [X[:10], 1 - X, X.flip(0)])
def test_only_the_same_rows_in_the_same_units(other):
    first, second = (pv.log_evidence(bernoulli_vae(), x, num_samples=5) for x in (X, other))
    refused("models: expected all scored on the same rows in the same units", {"a": first, "b": second})


def test_a_transformed_column_has_other_units():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z[..., None], 1.0).to_event(1), obs=x / 255)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    x = torch.randn(12, 3)
    pair = pv.LatentVariableModel(model, guide)
    refused(
        r"in x's own units, got 'scaled', in which 3 column\(s\) are transformed",
        {"scaled": pair, "p": baselines.PPCA(1).fit(x)},
        x,
    )


def test_evidence_of_a_training_set_is_no_predictive_score():
    ev = dataclasses.replace(independent().log_evidence(X), target="evidence")
    refused("predictive scores of held-out rows, got 'a', the evidence of a training set", {"a": ev})


def test_images_and_their_flattened_rows_are_the_same_rows():
    x = X[:, :4].reshape(-1, 1, 2, 2)
    decoder = torch.nn.Sequential(torch.nn.Linear(1, 4), torch.nn.Unflatten(1, (1, 2, 2)))
    encoder = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2))
    vae = pv.VAE(
        pv.priors.StandardNormal(1), pv.likelihoods.Bernoulli(decoder), pv.encoders.DiagonalNormal(encoder)
    )
    assert len(pv.compare({"images": vae, "flat": baselines.IndependentBernoulli().fit(x)}, x)) == 2


def test_models_and_rows_are_needed():
    refused("models: expected a dict", [bernoulli_vae()], X)
    refused("models: expected a dict", {}, X)
    refused("models: expected fitted models, got the class PPCA", {"a": baselines.PPCA}, X)
    refused("x: expected rows to score 'VAE' on, got None", {"VAE": bernoulli_vae()})


def test_swap_fits_a_family_each_and_keeps_masses_from_densities():
    generator = torch.Generator().manual_seed(0)
    x = torch.poisson(torch.rand(150, 3, generator=generator) * 6, generator=generator)
    families = ["poisson", "negative_binomial", ("gaussian", {"scale": "shared"})]
    found = pv.swap(x, 1, families, epochs=3, hidden_dims=(8,))
    assert set(found.models) == {"poisson", "negative_binomial", "gaussian(scale=shared)"}
    assert set(found.masses.index) == {"poisson", "negative_binomial"}
    assert list(found.densities.index) == ["gaussian(scale=shared)"]
    expected = -found.masses["elpd"] / (3 * np.log(2))
    np.testing.assert_allclose(found.masses["bits_per_dim"], expected)
    assert len(found.x_test) == 30
    again = pv.swap(x, 1, families[:1], epochs=3, hidden_dims=(8,))
    assert again.masses.loc["poisson", "elpd"] == found.masses.loc["poisson", "elpd"]
    assert "nats a row over 30 rows" in str(found)


def test_swap_prefers_the_family_the_rows_come_from():
    """Overdispersed counts: the negative binomial beats Poisson by many standard errors."""
    generator = np.random.default_rng(0)
    x = torch.from_numpy(generator.negative_binomial(1.0, 0.1, (600, 4)).astype(np.float32))
    found = pv.swap(x, 1, ["poisson", "negative_binomial"], epochs=40, lr=3e-3, hidden_dims=(16,))
    table = found.masses
    assert table.index[0] == "negative_binomial"
    assert table.loc["poisson", "elpd_diff"] < -6 * table.loc["poisson", "dse"]


def test_swap_refuses_rows_off_a_support_before_anything_is_fitted():
    with pytest.raises(ValueError, match="support of Poisson"):
        pv.swap(torch.randn(40, 2), 1, ["gaussian", "poisson"], epochs=10**9)
    with pytest.raises(TypeError, match="families: expected"):
        pv.swap(torch.randn(40, 2), 1, "gaussian")
