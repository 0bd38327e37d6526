"""The contract of priors, likelihoods and encoders, over the registries × shapes × dtypes."""

import re

import pytest
import torch
from torch import nn

import pyrovae as pv
from pyrovae import encoders, likelihoods, priors

DTYPES = [torch.float32, torch.float64]
SHAPES = [(), (3,), (2, 3)]
LATENT, COLUMNS = 2, 3

#: Every family with each of its options.
LIKELIHOODS = [
    ("bernoulli", {}),
    ("gaussian", {}),
    ("gaussian", {"scale": 0.3}),
    ("gaussian", {"scale": "shared"}),
    ("gaussian", {"scale": "per_dimension"}),
    ("gaussian", {"scale": "decoder"}),
]


def likelihood(name, options, dtype=torch.float32):
    torch.manual_seed(0)
    family = likelihoods.REGISTRY[name]
    width = family.outputs_per_dimension(**options) * COLUMNS
    return family(pv.MLP(LATENT, (5,), width), **options).to(dtype)


def snake_case(name):
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()


@pytest.mark.parametrize("registry", [priors.REGISTRY, likelihoods.REGISTRY, encoders.REGISTRY])
def test_registered_under_the_class_name_in_snake_case(registry):
    assert all(name == snake_case(family.__name__) for name, family in registry.items())


def test_every_registered_likelihood_is_in_the_contract_tests():
    assert {name for name, _ in LIKELIHOODS} == likelihoods.REGISTRY.keys()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("name", "options"), LIKELIHOODS)
def test_likelihood_shapes(name, options, shape, dtype):
    fn = likelihood(name, options, dtype)(torch.randn(*shape, LATENT, dtype=dtype))
    assert fn.batch_shape == shape
    assert fn.event_shape == (COLUMNS,)
    x = fn.sample()
    assert x.dtype == dtype
    assert fn.log_prob(x).shape == shape
    assert fn.mean.shape == (*shape, COLUMNS)


@pytest.mark.parametrize(("name", "options"), LIKELIHOODS)
def test_leading_dims_are_batch_dims(name, options):
    """One call with many z is many calls with one."""
    family = likelihood(name, options, torch.float64)
    z = torch.randn(4, 5, LATENT, dtype=torch.float64)
    x = family(z).sample()
    together = family(z).log_prob(x)
    each = torch.stack([torch.stack([family(z[i, j]).log_prob(x[i, j]) for j in range(5)]) for i in range(4)])
    torch.testing.assert_close(together, each, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("name", "options"), LIKELIHOODS)
def test_mass_or_density_is_one_in_all(name, options):
    """One column at a time: the mass sums, the density integrates to 1."""
    fn = likelihood(name, options, torch.float64)(torch.zeros(LATENT, dtype=torch.float64)).base_dist
    if fn.support.is_discrete:
        values, width = torch.tensor([0.0, 1.0], dtype=torch.float64), 1.0
    else:
        values = torch.linspace(-40, 40, 400_001, dtype=torch.float64)
        width = float(values[1] - values[0])
    total = fn.log_prob(values[:, None]).exp().sum(0) * width
    torch.testing.assert_close(total, torch.ones(COLUMNS, dtype=torch.float64), rtol=0, atol=1e-9)


@pytest.mark.parametrize(("name", "options"), LIKELIHOODS)
def test_gradients_reach_every_parameter(name, options):
    family = likelihood(name, options)
    fn = family(torch.randn(4, LATENT))
    fn.log_prob(fn.sample()).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in family.parameters())


@pytest.mark.parametrize("logit", [-100.0, 100.0])
def test_bernoulli_is_safe_at_extreme_logits(logit):
    """log_prob and its gradient stay finite and right where sigmoid saturates."""
    logits = torch.full((1, COLUMNS), logit, requires_grad=True)
    fn = likelihoods.Bernoulli(nn.Identity()).distribution(logits)
    x = torch.tensor([[0.0, 1.0, 1.0]])
    fn.log_prob(x).sum().backward()
    expected = -torch.relu(logits.detach()) + x * logits.detach()
    torch.testing.assert_close(fn.log_prob(x), expected)
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize(("name", "options"), LIKELIHOODS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_family_fits_and_is_evaluated(name, options, dtype):
    torch.manual_seed(0)
    vae = pv.VAE.mlp(COLUMNS, LATENT, likelihood=name, hidden_dims=(4,), **options).to(dtype)
    x = vae.sample(20)
    pv.fit(vae, x, epochs=1, batch_size=8)
    ev = pv.log_evidence(vae, x, num_samples=30)
    expected = "mass" if vae.likelihood(torch.zeros(LATENT, dtype=dtype)).support.is_discrete else "density"
    assert ev.measure == (expected,) * COLUMNS


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", priors.REGISTRY)
def test_prior_shapes(name, dtype):
    fn = priors.REGISTRY[name](LATENT).to(dtype)()
    assert fn.batch_shape == ()
    assert fn.event_shape == (LATENT,)
    assert fn.sample((4,)).dtype == dtype
    torch.testing.assert_close(
        fn.log_prob(torch.zeros(LATENT, dtype=dtype)),
        torch.tensor(-LATENT / 2 * 1.8378770664093453, dtype=dtype),
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", encoders.REGISTRY)
def test_encoder_shapes(name, dtype):
    family = encoders.REGISTRY[name]
    fn = family(pv.MLP(COLUMNS, (4,), family.outputs_per_latent * LATENT)).to(dtype)(
        torch.zeros(7, COLUMNS, dtype=dtype)
    )
    assert fn.batch_shape == (7,)
    assert fn.event_shape == (LATENT,)
    assert fn.has_rsample
    assert fn.rsample().dtype == dtype


def test_mlp_layers():
    network = pv.MLP(3, (5, 4), 2, activation="tanh")
    assert [type(layer).__name__ for layer in network.layers] == [
        "Linear",
        "Tanh",
        "Linear",
        "Tanh",
        "Linear",
    ]
    assert [type(layer).__name__ for layer in pv.MLP(3, (), 2).layers] == ["Linear"]
