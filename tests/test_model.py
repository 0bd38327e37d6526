"""The declaration: parts, widths, copies, sampling, and the VAE as a Pyro pair."""

import copy

import pyro
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from torch import nn

import pyrovae as pv
from pyrovae import encoders, likelihoods, priors


def vae(**options):
    return pv.VAE.mlp(6, latent_dim=2, hidden_dims=(8,), **options)


def test_mlp_is_the_long_form():
    torch.manual_seed(1)
    short = pv.VAE.mlp(7, latent_dim=3, likelihood="gaussian", hidden_dims=(5, 4), scale="decoder")
    torch.manual_seed(1)
    long = pv.VAE(
        prior=priors.StandardNormal(3),
        likelihood=likelihoods.Gaussian(pv.MLP(3, (4, 5), 14), scale="decoder"),
        encoder=encoders.DiagonalNormal(pv.MLP(7, (5, 4), 6)),
    )
    assert [p.shape for p in short.parameters()] == [p.shape for p in long.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(short.parameters(), long.parameters(), strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_samples_and_reconstructions(dtype):
    model = vae(likelihood="gaussian").to(dtype)
    rows = model.sample(5, seed=3)
    assert rows.shape == (5, 6)
    assert rows.dtype == dtype
    assert torch.equal(rows, model.sample(5, seed=3))
    assert not torch.equal(rows, model.sample(5, seed=4))
    state = torch.random.get_rng_state()
    assert model.reconstruct(rows).shape == rows.shape
    assert torch.equal(torch.random.get_rng_state(), state)


def test_samples_are_from_the_prior_through_the_likelihood():
    """W = 2, z ~ N(0, 1), unit noise: variance 5. 6.1 standard errors of it at 40 000 rows are 0.22."""
    model = pv.VAE(
        priors.StandardNormal(1),
        likelihoods.Gaussian(pv.MLP(1, (), 1)),
        encoders.DiagonalNormal(pv.MLP(1, (), 2)),
    )
    with torch.no_grad():
        model.likelihood.network.layers[0].weight.fill_(2.0)
        model.likelihood.network.layers[0].bias.fill_(1.0)
    rows = model.sample(40_000)
    assert abs(float(rows.mean()) - 1) < 6.1 * (5 / 40_000) ** 0.5
    assert abs(float(rows.var()) - 5) < 6.1 * 5 * (2 / 40_000) ** 0.5


def test_images_keep_their_shape():
    """Decoders with convolutions see (batch, latent); rows of any shape are one event."""
    decoder = nn.Sequential(
        nn.Linear(2, 4 * 4), nn.Unflatten(1, (1, 4, 4)), nn.ConvTranspose2d(1, 1, 3, padding=1)
    )
    encoder = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 4))
    model = pv.VAE(priors.StandardNormal(2), likelihoods.Bernoulli(decoder), encoders.DiagonalNormal(encoder))
    x = (torch.rand(5, 1, 4, 4) < 0.5).float()
    assert model.sample(3).shape == (3, 1, 4, 4)
    ev = pv.log_evidence(model, x, num_samples=50, check=False)
    assert ev.measure == ("mass",) * 16
    pv.fit(model, x, epochs=1)


def test_an_encoder_with_two_heads():
    """The width of a network is what it says itself, not what its last layer has."""

    class TwoHeads(nn.Module):
        def __init__(self):
            super().__init__()
            self.loc, self.log_scale = nn.Linear(6, 2), nn.Linear(6, 2)

        def forward(self, x):
            return torch.cat([self.loc(x), self.log_scale(x)], dim=-1)

    model = pv.VAE(
        priors.StandardNormal(2), likelihoods.Bernoulli(pv.MLP(2, (), 6)), encoders.DiagonalNormal(TwoHeads())
    )
    assert len(pv.log_evidence(model, torch.ones(4, 6), num_samples=5, check=False)) == 4


def test_plain_svi_trains_it():
    """PITFALLS 13 and 14: SVI moves the VAE's own weights; two VAEs and a copy never collide."""
    x = (torch.rand(20, 6) < 0.5).float()
    first, second = vae(), vae()
    third = copy.deepcopy(second)
    untouched = [p.detach().clone() for p in third.parameters()]
    for model in (first, second):
        before = [p.detach().clone() for p in model.parameters()]
        svi = SVI(model.model, model.guide, pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO())
        for _ in range(3):
            svi.step(x)
        assert all(not torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))
    assert all(torch.equal(p, q) for p, q in zip(third.parameters(), untouched, strict=True))
    assert len(pyro.get_param_store()) == 2 * len(untouched)


def test_wrapping_methods_finds_every_parameter():
    model = vae()
    pair = pv.LatentVariableModel(model.model, model.guide)
    assert {id(p) for p in pair.parameters()} == {id(p) for p in model.parameters()}


def test_double_and_state_dict():
    model = vae().double()
    x = torch.ones(4, 6, dtype=torch.float64)
    assert pv.log_evidence(model, x, num_samples=5, check=False).estimate.shape == (4,)
    other = vae(likelihood="bernoulli").double()
    other.load_state_dict(model.state_dict())
    first, second = (pv.log_evidence(m, x, num_samples=5, check=False).estimate for m in (model, other))
    assert (first == second).all()


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (
            lambda: pv.VAE.mlp(6, 2, likelihood="binomia"),
            ValueError,
            "likelihood: expected one of 'gaussian'",
        ),
        (
            lambda: pv.VAE.mlp(6, 2, likelihood="binomial"),
            TypeError,
            "total_count: expected binomial with a value for it, got none",
        ),
        (lambda: pv.VAE.mlp(0, 2), ValueError, "data_dim: expected a whole number ≥ 1, got 0"),
        (lambda: pv.VAE.mlp(6, 2, activation="relo"), ValueError, "activation: expected one of"),
        (
            lambda: vae(likelihood="gaussian", scale="learned"),
            ValueError,
            "scale: expected a number > 0, 'shared'",
        ),
        (lambda: vae(likelihood="gaussian", scale=0.0), ValueError, "scale: expected a finite number > 0"),
        (
            lambda: pv.VAE(priors.StandardNormal(2), None, None),
            TypeError,
            "likelihood: expected a torch module",
        ),
        (
            lambda: pv.VAE(
                priors.StandardNormal(3),
                likelihoods.Bernoulli(pv.MLP(3, (), 6)),
                encoders.DiagonalNormal(pv.MLP(6, (), 4)),
            ),
            ValueError,
            "encoder: expected a network with 6 outputs for 3 latent dimensions, got 4",
        ),
        (
            lambda: likelihoods.Gaussian(pv.MLP(2, (), 5), scale="decoder"),
            ValueError,
            "network: expected an output width that is a multiple of 2",
        ),
        (lambda: likelihoods.Gaussian(nn.Identity(), scale="per_dimension"), ValueError, "out_features"),
        (lambda: vae().sample(0), ValueError, "num_rows: expected a whole number ≥ 1"),
        (
            lambda: vae().reconstruct(torch.ones(2, 5)),
            ValueError,
            "x: expected rows of width 6, got rows of width 5",
        ),
        (
            lambda: pv.log_evidence(vae(), torch.ones(2, 5), check=False),
            ValueError,
            r"^x: expected rows of width 6.*for this width\.$",
        ),
        (
            lambda: pv.log_evidence(vae(), torch.full((3, 6), 0.5), check=False),
            ValueError,
            "ContinuousBernoulli",
        ),
    ],
)
def test_mistakes_are_refused(build, error, message):
    with pytest.raises(error, match=message):
        build()
