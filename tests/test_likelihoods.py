"""The contract of likelihoods: every registered family × options × shapes × dtypes, and the extremes."""

import families
import numpy as np
import pyro.distributions as dist
import pytest
import torch
from rates import SEED, Z
from scipy import stats
from torch import nn
from torch.distributions import biject_to

import pyrovae as pv
from pyrovae import distributions, likelihoods
from pyrovae.registry import rebuild

DTYPES = [torch.float32, torch.float64]
SHAPES = [(), (3,), (2, 3)]
LATENT, COLUMNS = 2, 3

#: Every family with each of its options.
LIKELIHOODS = [(name, options) for name, every in families.LIKELIHOODS.items() for options in every]
every_likelihood = pytest.mark.parametrize(
    ("name", "options"),
    LIKELIHOODS,
    ids=["-".join([name, *map(str, options.values())]) for name, options in LIKELIHOODS],
)


def likelihood(name, options, dtype=torch.float32, hidden=(5,)):
    torch.manual_seed(0)
    family = likelihoods.REGISTRY[name]
    width = family.outputs_per_dimension(**options) * COLUMNS
    return family(pv.MLP(LATENT, hidden, width), **options).to(dtype)


def one(fn):
    """A distribution over columns as one over each column."""
    return fn.base_dist


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@every_likelihood
def test_shapes(name, options, shape, dtype):
    fn = likelihood(name, options, dtype)(torch.randn(*shape, LATENT, dtype=dtype))
    assert fn.batch_shape == shape
    assert fn.event_shape == (COLUMNS,)
    x = fn.sample()
    assert x.dtype == dtype
    assert fn.log_prob(x).shape == shape
    assert fn.mean.shape == (*shape, COLUMNS)
    assert fn.expand((4, *shape)).log_prob(x).shape == (4, *shape)


@every_likelihood
def test_leading_dims_are_batch_dims(name, options):
    """One call with many z is many calls with one."""
    family = likelihood(name, options, torch.float64)
    z = torch.randn(4, 5, LATENT, dtype=torch.float64)
    x = family(z).sample()
    together = family(z).log_prob(x)
    each = torch.stack([torch.stack([family(z[i, j]).log_prob(x[i, j]) for j in range(5)]) for i in range(4)])
    torch.testing.assert_close(together, each, rtol=0, atol=1e-12)


@every_likelihood
def test_mass_or_density_is_one_in_all(name, options):
    """One column at a time: the mass sums, the density integrates to 1, and so does its mean."""
    fn = one(likelihood(name, options, torch.float64)(torch.zeros(LATENT, dtype=torch.float64)))
    support = fn.support
    if support.is_discrete:
        values, log_cell = torch.arange(3000, dtype=torch.float64)[:, None], 0.0
        if hasattr(support, "upper_bound"):
            values = values[: int(torch.as_tensor(support.upper_bound).max()) + 1]
        elif name == "bernoulli":
            values = values[:2]
    else:
        # through the line, and there through sinh, whose ends reach every tail
        v = torch.linspace(-9, 9, 200_001, dtype=torch.float64)[:, None]
        to_support = biject_to(support)
        u = torch.sinh(v)
        values = to_support(u)
        inside = u.isfinite()
        if name == "beta":
            inside = (values > 1e-300) & (values < 1 - 1e-15)
        elif name in ("log_normal", "gamma"):
            inside = (values > 1e-300) & (values < 1e300)
        u, v = u[inside][:, None], v[inside][:, None]
        values = to_support(u)
        log_cell = to_support.log_abs_det_jacobian(u, values) + torch.cosh(v).log() + np.log(9e-5)
    weights = (fn.log_prob(values.expand(-1, COLUMNS)) + log_cell).exp()
    torch.testing.assert_close(weights.sum(0), torch.ones(COLUMNS, dtype=torch.float64), rtol=0, atol=1e-6)
    torch.testing.assert_close((weights * values).sum(0), fn.mean.expand(COLUMNS), rtol=1e-4, atol=1e-4)


#: The distribution of a column for given decoder outputs, and scipy's.
SCIPY = {
    "bernoulli": ({}, [0.7], lambda o: stats.bernoulli(1 / (1 + np.exp(-o)))),
    "gaussian": ({"scale": "decoder"}, [0.4, -0.3], lambda o, s: stats.norm(o, np.exp(s))),
    "laplace": ({"scale": "decoder"}, [0.4, -0.3], lambda o, s: stats.laplace(o, np.exp(s))),
    "student_t": ({"scale": "decoder"}, [0.4, -0.3], lambda o, s: stats.t(5, o, np.exp(s))),
    "log_normal": ({"scale": "decoder"}, [0.4, -0.3], lambda o, s: stats.lognorm(np.exp(s), 0, np.exp(o))),
    "gamma": (
        {"concentration": "decoder"},
        [0.4, 0.9],
        lambda m, a: stats.gamma(np.exp(a), scale=np.exp(m - a)),
    ),
    "beta": (
        {"concentration": "decoder"},
        [0.4, 0.9],
        lambda m, c: stats.beta(np.exp(c) / (1 + np.exp(-m)), np.exp(c) / (1 + np.exp(m))),
    ),
    "poisson": ({}, [1.2], lambda m: stats.poisson(np.exp(m))),
    "negative_binomial": (
        {"concentration": "decoder"},
        [1.2, 0.5],
        lambda m, r: stats.nbinom(np.exp(r), 1 / (1 + np.exp(m - r))),
    ),
    "binomial": ({"total_count": 7}, [0.4], lambda o: stats.binom(7, 1 / (1 + np.exp(-o)))),
    "continuous_bernoulli": ({}, [-1.3], lambda o: stats.truncexpon(-o, scale=-1 / o)),
}


@pytest.mark.parametrize("name", SCIPY)
def test_log_prob_is_scipys(name):
    options, outputs, reference = SCIPY[name]
    family = likelihoods.REGISTRY[name](nn.Identity(), **options).double()
    fn = family(torch.tensor(outputs, dtype=torch.float64))
    fn = one(fn) if fn.event_shape else fn
    torch.manual_seed(1)
    x = fn.sample((50,))
    expected = reference(*outputs)
    log_prob = expected.logpmf if fn.support.is_discrete else expected.logpdf
    np.testing.assert_allclose(fn.log_prob(x).detach(), log_prob(x.numpy()), rtol=1e-8, atol=1e-9)


@every_likelihood
def test_links_invert_means(name, options):
    """Of a discretized logistic, they invert the location. Families that standardise, and levels, have none."""
    cls = likelihoods.REGISTRY[name]
    kinds = cls.outputs_per_dimension(**options)
    family = cls(pv.MLP(1, (), kinds), **options).double()
    if cls.standardizes or cls.takes == "levels":
        assert family.link(0.5) is None
        return
    high = {"binomial": 7, "discretized_logistic": 8}.get(name, 1 if cls.takes == "bounded" else np.inf)
    assert family.link(0.0) == -np.inf
    assert high == np.inf or family.link(float(high)) == np.inf
    more = [-1e3] if name == "zero_inflated_negative_binomial" else []
    for location in min(high, 1e3) * np.array([1e-6, 0.01, 0.4995, 0.5, 0.77, 1 - 1e-6]):
        outputs = [family.link(location), *[0.3] * (kinds - 1 - len(more)), *more]
        fn = family.distribution(torch.tensor([outputs], dtype=torch.float64))
        found = fn.loc if name == "discretized_logistic" else fn.mean
        np.testing.assert_allclose(found.item(), location, rtol=1e-7)


@pytest.mark.statistical
@every_likelihood
def test_samples_have_the_mean_they_say(name, options):
    """20 000 samples a column; the smallest bias seen is Z standard errors of their mean."""
    fn = likelihood(name, options, torch.float64)(torch.zeros(LATENT, dtype=torch.float64))
    torch.manual_seed(SEED)
    x = fn.sample((20_000,))
    se = x.std(dim=0) / 20_000**0.5
    assert ((x.mean(dim=0) - fn.mean).abs() <= Z * se).all()
    assert fn.support.check(x).all()


@every_likelihood
def test_gradients_reach_every_parameter(name, options):
    family = likelihood(name, options)
    fn = family(torch.randn(4, LATENT))
    fn.log_prob(fn.sample()).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in family.parameters())


#: Decoder outputs and values that training comes by, for every family: |logit| = 100, scales of 1e-6, counts of 1e6.
EXTREMES = {
    "bernoulli": ({}, [[-100.0], [100.0]], [0.0, 1.0]),
    "continuous_bernoulli": ({}, [[-100.0], [100.0], [0.0], [1e-5]], [0.0, 0.3, 1.0]),
    "gaussian": ({"scale": 1e-6}, [[0.0], [100.0]], [0.0, 1.0]),
    "laplace": ({"scale": 1e-6}, [[0.0], [100.0]], [0.0, 1.0]),
    "student_t": ({"scale": 1e-6}, [[0.0], [100.0]], [0.0, 1.0]),
    "log_normal": ({"scale": 1e-6}, [[0.0], [20.0]], [1.0, 1e6]),
    "gamma": ({"concentration": "decoder"}, [[10.0, 14.0], [-10.0, -10.0]], [1e-6, 1.0, 1e6]),
    "beta": ({"concentration": "decoder"}, [[100.0, 0.0], [-100.0, 14.0]], [1e-6, 0.5, 0.999]),
    "poisson": ({}, [[13.8], [-100.0], [20.0]], [0.0, 1e6]),
    "negative_binomial": ({"concentration": "decoder"}, [[13.8, 14.0], [-100.0, -10.0]], [0.0, 1e6]),
    "zero_inflated_negative_binomial": (
        {"concentration": "decoder"},
        [[13.8, 14.0, -100.0], [-20.0, -10.0, 100.0]],
        [0.0, 1e6],
    ),
    "binomial": ({"total_count": 1_000_000}, [[-100.0], [100.0], [0.0]], [0.0, 5e5, 1e6]),
    "categorical": ({"num_categories": 3}, [[-100.0, 100.0, 0.0]], [0.0, 1.0, 2.0]),
    "ordinal": ({"num_levels": 4}, [[-100.0], [100.0]], [0.0, 1.0, 3.0]),
    "discretized_logistic": ({"levels": 256, "scale": 1e-6}, [[-1.0], [0.3], [100.0]], [0.0, 128.0, 255.0]),
}


def test_every_family_is_tried_at_its_extremes():
    assert EXTREMES.keys() == likelihoods.REGISTRY.keys()


@pytest.mark.parametrize("name", EXTREMES)
def test_safe_and_right_at_the_extremes(name):
    """log_prob and gradients are finite, and float32 says what float64 says."""
    options, outputs, values = EXTREMES[name]
    network = nn.Identity()
    network.out_features = likelihoods.REGISTRY[name].outputs_per_dimension(**options)
    found = {}
    for dtype in DTYPES:
        family = likelihoods.REGISTRY[name](network, **options).to(dtype)
        parameters = torch.tensor(outputs, dtype=dtype, requires_grad=True)
        fn = family.distribution(parameters.double()) if family.in_double else family.distribution(parameters)
        fn = distributions.InDouble(fn, dtype) if family.in_double else fn
        x = torch.tensor(values, dtype=dtype)
        log_prob = torch.stack([fn.log_prob(v) for v in x])
        assert log_prob.isfinite().all()
        (gradient,) = torch.autograd.grad(log_prob.sum(), parameters)
        assert gradient.isfinite().all()
        found[dtype] = log_prob.detach().double()
    torch.testing.assert_close(*found.values(), rtol=1e-4, atol=1e-3)


@every_likelihood
def test_every_family_fits_and_is_evaluated(name, options):
    torch.manual_seed(0)
    vae = pv.VAE.mlp(COLUMNS, LATENT, likelihood=name, hidden_dims=(4,), **options)
    x = vae.sample(20)
    pv.fit(vae, x, epochs=1, batch_size=8)
    ev = pv.log_evidence(vae, x, num_samples=30, check=False)
    expected = "mass" if vae.likelihood(torch.zeros(LATENT)).support.is_discrete else "density"
    assert ev.measure == (expected,) * COLUMNS


def narrow(name, options):
    """A VAE of one latent whose encoder sees next to nothing of x: an encoder on raw counts runs away."""
    torch.manual_seed(0)
    vae = pv.VAE.mlp(COLUMNS, 1, likelihood=name, hidden_dims=(6,), **options).double()
    with torch.no_grad():
        vae.encoder.network.layers[0].weight.mul_(1e-3)
    return vae


@pytest.mark.statistical
@every_likelihood
def test_log_evidence_against_a_dense_grid(name, options):
    """One latent: ``quadrature`` to 1e-3 on two rows, ``importance`` within its error on six."""
    vae = narrow(name, options)
    x = vae.sample(6, seed=1)
    z = torch.linspace(-9, 9, 2001, dtype=torch.float64)
    with torch.no_grad():
        log_joint = vae.likelihood(z[:, None, None]).log_prob(x) + dist.Normal(0.0, 1.0).log_prob(z)[:, None]
    truth = (torch.logsumexp(log_joint, dim=0) + torch.log(z[1] - z[0])).numpy()
    grid = pv.log_evidence(vae, x[:2], method="quadrature", check=False)
    np.testing.assert_allclose(grid.estimate, truth[:2], rtol=0, atol=1e-3)
    ev = pv.log_evidence(vae, x, num_samples=2000, seed=SEED, check=False)
    assert (np.abs(ev.estimate - truth) <= Z * ev.mcse - ev.bias + 1e-6).all()


OFF = {"bernoulli": 0.5, "continuous_bernoulli": 1.5, "log_normal": -1.0, "gamma": -1.0, "beta": 1.5}


@every_likelihood
def test_values_off_the_support_are_refused_by_the_family_s_name(name, options):
    vae = pv.VAE.mlp(COLUMNS, 1, likelihood=name, hidden_dims=(4,), **options)
    x = vae.sample(6)
    if name in ("gaussian", "laplace", "student_t"):
        x[2, 1] = torch.inf
        with pytest.raises(ValueError, match=r"row 2, column 1"):
            pv.log_evidence(vae, x, check=False)
        return
    x[2, 1] = OFF.get(name, -1.0)
    with pytest.raises(ValueError, match=r"support of \w+ .*got 1 off it.*row 2, column 1"):
        pv.log_evidence(vae, x, check=False)


def test_start_from_the_marginals_of_observed_cells():
    """Half of the cells are missing: the means are those of the others."""
    x = torch.tensor([[0.0, torch.nan], [torch.nan, 1.0], [1.0, torch.nan], [torch.nan, 3.0]])
    family = likelihoods.Poisson(pv.MLP(1, (), 2))
    family.start_from(x)
    torch.testing.assert_close(family.network.layers[-1].bias.exp(), torch.tensor([0.5, 2.0]))
    x[:, 1] = torch.nan
    with pytest.raises(ValueError, match=r"an observed cell in every column, got 1 column\(s\) without any"):
        family.start_from(x)


@every_likelihood
def test_start_from_the_marginals(name, options):
    """Where z tells nothing, the mean is the columns' mean."""
    torch.manual_seed(SEED)
    x = likelihood(name, options)(2 * torch.randn(2000, LATENT)).sample()
    family = likelihood(name, options, hidden=())
    with torch.no_grad():
        family.network.layers[-1].weight.zero_()
    family.start_from(x)
    mean = family(torch.zeros(LATENT)).mean
    if name == "ordinal":  # the levels' shares, each but for the hundredth that is spread over all
        share = one(family(torch.zeros(LATENT))).probs.T
        expected = torch.stack([(x == k).float().mean(0) for k in range(options["num_levels"])])
        torch.testing.assert_close(share, expected, rtol=0, atol=0.02)
    elif name == "log_normal":
        loc = one(family(torch.zeros(LATENT))).base_dist.loc
        torch.testing.assert_close(loc, x.log().mean(0), rtol=1e-3, atol=1e-3)
    else:
        # a few zeros are taken off; the open ends pull the mean of a logistic inwards
        ratio = {"zero_inflated_negative_binomial": 0.06, "discretized_logistic": 0.1}.get(name, 0.02)
        torch.testing.assert_close(mean, x.mean(0), rtol=ratio, atol=0.02)


@pytest.mark.parametrize("dtype", DTYPES)
@every_likelihood
def test_rebuilt_from_its_recorded_arguments(name, options, dtype):
    family = likelihood(name, options, dtype)
    again = rebuild(family).to(dtype)
    assert again is not family
    assert all(again.arguments[option] == value for option, value in options.items())
    again.load_state_dict(family.state_dict())
    z = torch.randn(4, LATENT, dtype=dtype)
    x = family(z).sample()
    assert torch.equal(again(z).log_prob(x), family(z).log_prob(x))


@every_likelihood
def test_images_are_scored_as_their_flattened_rows(name, options):
    """Rows of three dims: the same parameters, the same numbers."""
    torch.manual_seed(0)
    family = likelihoods.REGISTRY[name]
    kinds = family.outputs_per_dimension(**options)
    network = nn.Linear(LATENT, kinds * COLUMNS)
    flat = family(network, **options)
    images = family(nn.Sequential(network, Columns(kinds)), **options)
    images.load_state_dict({key.replace("network.", "network.0."): v for key, v in flat.state_dict().items()})
    z = torch.randn(4, LATENT)
    x = flat(z).sample()
    torch.testing.assert_close(images(z).log_prob(x.view(4, 1, COLUMNS, 1)), flat(z).log_prob(x))


class Columns(nn.Module):
    """(batch, kinds · columns) → (batch, 1, columns, kinds): an image one pixel wide, the kinds on the last dim."""

    out_features = property(lambda self: self.kinds * COLUMNS)

    def __init__(self, kinds):
        super().__init__()
        self.kinds = kinds

    def forward(self, outputs):
        return outputs.unflatten(1, (self.kinds, COLUMNS)).mT[:, None]


def test_start_needs_a_bias_to_set():
    family = likelihoods.Bernoulli(nn.Linear(2, 3, bias=False))
    with pytest.raises(ValueError, match="bias of 3 outputs"):
        family.start_from(torch.ones(4, 3))


@pytest.mark.parametrize("standardize", [False, True])
@pytest.mark.parametrize(
    ("name", "edge", "other"),
    [
        ("log_normal", 0.0, "gaussian"),
        ("gamma", 0.0, "gaussian"),
        ("beta", 0.0, "continuous_bernoulli"),
        ("beta", 1.0, "continuous_bernoulli"),
    ],
)
def test_a_family_that_can_t_take_the_data_is_named_before_its_scale(name, edge, other, standardize):
    """At the edge the density is 0 or +∞: no scale of the columns is to blame."""
    vae = pv.VAE.mlp(3, 1, name, hidden_dims=(4,), standardize=standardize)
    before = {key: value.clone() for key, value in vae.state_dict().items()}
    x = torch.rand(20, 3).clamp(0.01, 0.99)
    x[7, 1] = edge
    family = likelihoods.REGISTRY[name].__name__
    for call in (pv.fit, pv.log_evidence, lambda _, x: pv.swap(x, 1, [name], epochs=1)):
        with pytest.raises(
            ValueError,
            match=rf"^x: expected values on the support of {family} .*got 1 off it, first {edge:g} at row .*\"{other}\"",
        ):
            call(vae, x)
    assert all(torch.equal(value, before[key]) for key, value in vae.state_dict().items())


def test_an_exponential_takes_zeros():
    vae = pv.VAE.mlp(1, 1, "gamma", hidden_dims=(4,), concentration=1.0)
    assert np.isfinite(pv.log_evidence(vae, torch.zeros(5, 1), num_samples=10, check=False).estimate).all()


def test_hints_name_families_that_are_here():
    """By the likelihood's name and by its distribution's, as it stands in a Pyro model of one's own."""
    vae = pv.VAE.mlp(4, latent_dim=1, likelihood="discretized_logistic", levels=16)
    with pytest.raises(ValueError, match="multiply shares by levels − 1, or raise levels"):
        pv.fit(vae, torch.tensor([[0, 0.2, 0.4, 1]] * 5), epochs=1)
    assert likelihoods.base.off_support("Levels") == likelihoods.Ordinal.off_support
    assert likelihoods.base.off_support("Cauchy") == likelihoods.Likelihood.off_support
    for name, family in likelihoods.REGISTRY.items():
        text = likelihoods.base.off_support(family.__name__)
        assert text == family.off_support
        assert "model of your own" not in text
        named = text.split('"')[1::2]
        assert set(named) <= likelihoods.REGISTRY.keys() - {name}
    for name in ("bernoulli", "beta", "log_normal", "poisson", "binomial", "categorical"):
        assert likelihoods.REGISTRY[name].off_support != likelihoods.Likelihood.off_support
