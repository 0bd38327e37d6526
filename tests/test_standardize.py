"""Scaling inside the model: log P(x) stays a density of the x that was passed."""

import numpy as np
import pytest
import torch
from scipy import stats

import pyrovae as pv
from pyrovae import encoders, likelihoods, priors
from pyrovae.networks import Standardize
from pyrovae.registry import rebuild

SCALES, LOCS = torch.tensor([0.01, 1.0, 100.0]), torch.tensor([0.0, -3.0, 1000.0])
FAMILIES = ["gaussian", "laplace", "student_t", "log_normal"]


def rows(positive=False):
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(200, 1, generator=generator)
    x = (z + 0.5 * torch.randn(200, 3, generator=generator)) * SCALES + LOCS
    return (x / SCALES / 10).exp() * SCALES if positive else x


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("scale", [0.5, "shared", "per_dimension", "decoder"])
def test_log_evidence_is_that_of_standardised_rows_and_the_jacobian(name, scale):
    """The same weights on rows standardised by hand: log P(x) differs by the logarithm of the scales."""
    x = rows(positive=name == "log_normal")
    torch.manual_seed(0)
    inside = pv.VAE.mlp(3, 1, name, hidden_dims=(8,), scale=scale, standardize=True).double()
    x = x.double()
    pv.fit(inside, x, epochs=2)
    scaling = inside.encoder.standardize
    torch.manual_seed(0)
    outside = pv.VAE.mlp(3, 1, name, hidden_dims=(8,), scale=scale).double()
    state = {key: value for key, value in inside.state_dict().items() if "standardize" not in key}
    outside.load_state_dict(state)
    if name == "log_normal":
        by_hand = ((x.log() - scaling.loc) / scaling.scale).exp()
        jacobian = (by_hand.log() - x.log() - scaling.scale.log()).sum(1)
        outside.encoder.standardize = Standardize(3, log=True).double()
    else:
        by_hand = (x - scaling.loc) / scaling.scale
        jacobian = -scaling.scale.log().sum()
    evidence = pv.log_evidence(inside, x, num_samples=50, check=False).estimate
    expected = pv.log_evidence(outside, by_hand, num_samples=50, check=False).estimate + jacobian.numpy()
    np.testing.assert_allclose(evidence, expected, rtol=0, atol=1e-8)


def test_the_density_integrates_to_one_in_x_s_own_units():
    torch.manual_seed(0)
    x = rows()[:, 2:]
    vae = pv.VAE.mlp(1, 1, "gaussian", hidden_dims=(4,), scale="shared", standardize=True).double()
    pv.fit(vae, x.double(), epochs=3)
    grid = torch.linspace(-1000, 3000, 401, dtype=torch.float64)[:, None]
    ev = pv.log_evidence(vae, grid, method="quadrature", check=False)
    assert np.exp(ev.estimate).sum() * 10.0 == pytest.approx(1.0, abs=1e-4)


def test_a_linear_model_reaches_ppca_whatever_the_units():
    """Where plain networks fail: columns of size 0.01 and 1000. The exact log P(x) of a linear decoder."""
    x = rows()
    torch.manual_seed(0)
    vae = pv.VAE.mlp(3, 1, "gaussian", hidden_dims=(), scale="per_dimension", standardize=True)
    pv.fit(vae, x, epochs=150, lr=1e-2, batch_size=200)
    ev = pv.log_evidence(vae, x, method="exact")
    covariance = np.cov(x.numpy().T, bias=True)
    full = stats.multivariate_normal(x.numpy().mean(0), covariance, allow_singular=True).logpdf(x.numpy())
    assert abs(ev.mean - full.mean()) < 0.1  # a factor model of three columns is a full Gaussian


def test_bits_per_dim():
    vae = pv.VAE.mlp(4, 1, hidden_dims=(4,))
    ev = pv.log_evidence(vae, torch.ones(5, 4), num_samples=20, check=False)
    assert ev.bits_per_dim == pytest.approx(-ev.mean / 4 / np.log(2))


def test_it_is_learned_once_from_the_first_rows_and_only_after_the_checks():
    x = rows()
    vae = pv.VAE.mlp(3, 1, "gaussian", hidden_dims=(4,), standardize=True)
    scaling = vae.encoder.standardize
    assert scaling is vae.likelihood.standardize
    with pytest.raises(ValueError, match="epochs"):
        pv.fit(vae, x, epochs=0)
    with pytest.raises(ValueError, match="validation"):
        pv.fit(vae, x, epochs=1, validation=x[:, :2])
    assert not scaling.learned
    pv.fit(vae, x, epochs=1)
    np.testing.assert_allclose(scaling.loc, x.mean(0), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(scaling.scale, x.std(0, correction=0), rtol=1e-5)
    before = scaling.loc.clone()
    pv.fit(vae, 2 * x, epochs=1)
    assert torch.equal(scaling.loc, before)


def test_rows_too_large_for_the_networks_name_the_mend():
    torch.manual_seed(0)
    vae = pv.VAE.mlp(3, 1, "gaussian", hidden_dims=(16,), scale="shared")
    with pytest.raises(ValueError, match="standardize=True"):
        pv.fit(vae, rows() * 1e4, epochs=1)


def test_masses_standardise_what_the_encoder_sees():
    x = torch.poisson(torch.full((50, 3), 1000.0), generator=torch.Generator().manual_seed(0))
    vae = pv.VAE.mlp(3, 1, "poisson", hidden_dims=(4,), standardize=True)
    pv.fit(vae, x, epochs=1)
    assert not hasattr(vae.likelihood, "standardize")
    assert vae.encoder.standardize(x).mean(0).abs().max() < 1e-4


def test_a_column_of_one_value_keeps_its_units():
    scaling = Standardize(2)
    scaling.learn(torch.tensor([[1.0, 5.0], [3.0, 5.0]]))
    assert scaling.scale.tolist() == [1.0, 1.0]
    assert scaling(torch.tensor([[3.0, 5.0]])).tolist() == [[1.0, 0.0]]


def test_the_wrong_units_are_refused():
    with pytest.raises(
        ValueError, match=r"standardize: expected a Standardize of log x, the quantity that LogNormal models"
    ):
        likelihoods.LogNormal(pv.MLP(1, (), 3), standardize=Standardize(3))
    with pytest.raises(ValueError, match=r"a Standardize of x, the quantity that Gaussian models"):
        likelihoods.Gaussian(pv.MLP(1, (), 3), standardize=Standardize(3, log=True))
    with pytest.raises(TypeError, match="standardize: expected True or False"):
        pv.VAE.mlp(3, 1, "gaussian", standardize="yes")


def test_images_and_rebuilding():
    scaling = Standardize(16)
    vae = pv.VAE(
        priors.StandardNormal(2),
        likelihoods.Gaussian(
            pv.ConvDecoder(2, (1, 4, 4), channels=(3,), flat=False), scale="shared", standardize=scaling
        ),
        encoders.DiagonalNormal(pv.ConvEncoder((1, 4, 4), 4, channels=(3,)), standardize=scaling),
    )
    x = 50 + 10 * torch.randn(30, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    pv.fit(vae, x, epochs=1)
    assert pv.log_evidence(vae, x, num_samples=20, check=False).measure == ("density",) * 16
    memo = {}
    likelihood, encoder = rebuild(vae.likelihood, memo), rebuild(vae.encoder, memo)
    assert likelihood.standardize is encoder.standardize
    likelihood.load_state_dict(vae.likelihood.state_dict())
    assert torch.equal(encoder.standardize.loc, scaling.loc)


@pytest.mark.parametrize("scale", [1.0, "shared", "per_dimension"])
def test_a_column_that_hardly_varies_is_refused(scale):
    """Its own standard deviation is a scale that shrinks to nothing, and the density runs off."""
    x = torch.randn(500, 3, generator=torch.Generator().manual_seed(0))
    x[:, 2] = 0.1
    x[:3, 2] += 1e-6
    vae = pv.VAE.mlp(3, 1, "gaussian", hidden_dims=(4,), scale=scale, standardize=True)
    with pytest.raises(ValueError, match="columns that vary"):
        pv.fit(vae, x, epochs=1)
