"""Priors, encoders and their networks against exact answers; statistical tolerances come from tests/rates.py.

Every registered prior and encoder is in the contract tests: one that is not listed here fails the first of them.
"""

import copy
import math
import sys

import families
import pyro.distributions as dist
import pytest
import torch
from oracles import LinearGaussian
from rates import SEED, Z
from torch import nn

import pyrovae as pv
from pyrovae import encoders, flows, likelihoods, networks, priors
from pyrovae.registry import rebuild

DTYPES = [torch.float32, torch.float64]
LATENT, COLUMNS, ROWS = 2, 3, 3
DRAWS = 20_000


def shaken(module, by=0.3):
    """The module with noise on every parameter: nothing is at its start, where much is zero or one."""
    for parameter in module.parameters():
        parameter.data += by * torch.randn_like(parameter)
    return module


def encoder(name, latent_dim=LATENT):
    family = encoders.REGISTRY[name]
    network = pv.MLP(COLUMNS, (8,), family.outputs(latent_dim), activation="tanh")
    return shaken(family(network), by=0.1)


def vamp_prior(latent_dim):
    prior = priors.VampPrior(encoder("full_rank_normal", latent_dim), torch.randn(4, COLUMNS))
    prior.kept = prior.encoder  # registered, so that a prior without its VAE follows .double()
    return prior


PRIORS = families.PRIORS | {
    "gaussian_mixture": lambda latent_dim: priors.GaussianMixture(latent_dim, num_components=4),
    "vamp_prior": vamp_prior,
}


def prior(name, latent_dim=LATENT, dtype=torch.float64):
    torch.manual_seed(SEED)
    built = PRIORS[name](latent_dim)
    return shaken(built, by=0.1 if name == "flow" else 0.3).to(dtype)


def posterior(name, latent_dim=LATENT, dtype=torch.float64):
    """Q(z | x) of an encoder for ``ROWS`` rows."""
    torch.manual_seed(SEED)
    return encoder(name, latent_dim).to(dtype)(torch.randn(ROWS, COLUMNS, dtype=dtype))


#: Every distribution over z that the package makes: the priors', of batch shape (), and the encoders'.
DISTRIBUTIONS = [pytest.param(prior, name, id=f"prior-{name}") for name in PRIORS] + [
    pytest.param(posterior, name, id=f"encoder-{name}") for name in encoders.REGISTRY
]


def distribution(build, name, latent_dim=LATENT, dtype=torch.float64):
    built = build(name, latent_dim, dtype)
    return built() if build is prior else built


def test_every_registered_prior_is_here():
    assert PRIORS.keys() == priors.REGISTRY.keys()


# ---------------------------------------------------------------------------------------------------------
# The contract


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("latent_dim", [1, 3])
@pytest.mark.parametrize(("build", "name"), DISTRIBUTIONS)
def test_shapes_dtype_and_expansion(build, name, latent_dim, dtype):
    fn = distribution(build, name, latent_dim, dtype)
    assert fn.batch_shape == (() if build is prior else (ROWS,))
    assert fn.event_shape == (latent_dim,)
    z = fn.sample((5, 1, 1))
    assert z.dtype == fn.log_prob(z).dtype == dtype
    assert z.shape == (5, 1, 1, *fn.batch_shape, latent_dim)
    wider = fn.expand((2, ROWS))
    assert wider.batch_shape == (2, ROWS)
    assert wider.sample((4,)).shape == (4, 2, ROWS, latent_dim)
    assert wider.rsample().shape == (2, ROWS, latent_dim) if fn.has_rsample else build is prior
    z = wider.sample()
    torch.testing.assert_close(wider.log_prob(z), fn.log_prob(z.clone()), rtol=1e-4, atol=1e-4)
    assert fn.support is dist.constraints.real_vector or fn.support.base_constraint is dist.constraints.real


@pytest.mark.statistical
@pytest.mark.parametrize(("build", "name"), DISTRIBUTIONS)
def test_log_prob_integrates_to_one_and_agrees_with_the_samples(build, name):
    """∫ p = 1, and p's moments and entropy by importance from a wide Student t are those of p's own draws.

    The smallest error seen in each is 6.1 of its standard errors: in the integral 0.02 to 0.05 at 20 000 draws.
    """
    fn = distribution(build, name)
    wide = dist.StudentT(3.0, torch.zeros(LATENT, dtype=torch.float64), 3.0).to_event(1)
    with torch.no_grad():
        z, own = wide.sample((DRAWS, *fn.batch_shape)), fn.sample((DRAWS,))
        weights = (fn.log_prob(z) - wide.log_prob(z)).exp()
        assert (abs(weights.mean(0) - 1) <= Z * weights.std(0) / DRAWS**0.5).all()
        weighted, drawn = weights[..., None] * _moments(fn, z), _moments(fn, own)
        se = ((weighted.var(0) + drawn.var(0)) / DRAWS).sqrt()
        assert (abs(weighted.mean(0) - drawn.mean(0)) <= Z * se).all()


def _moments(fn, z):
    """z_i, z_i z_j and log p, on the last dim."""
    products = (z[..., :, None] * z[..., None, :]).flatten(-2)
    return torch.cat([z, products, fn.log_prob(z)[..., None]], dim=-1)


@pytest.mark.parametrize("name", PRIORS)
def test_gradients_reach_every_parameter_of_a_prior(name):
    """And z: methods that move it, and encoders, follow the prior's gradient."""
    built, z = prior(name), torch.randn(7, LATENT, dtype=torch.float64, requires_grad=True)
    built().log_prob(z).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in [z, *built.parameters()])


@pytest.mark.parametrize("name", encoders.REGISTRY)
def test_gradients_reach_every_parameter_of_an_encoder(name):
    """Through the draws alone, and through log Q at given z alone."""
    torch.manual_seed(SEED)
    built, x = encoder(name).double(), torch.randn(ROWS, COLUMNS, dtype=torch.float64)
    given = torch.randn(ROWS, LATENT, dtype=torch.float64)
    for value in (built(x).rsample().square().sum(), built(x).log_prob(given).sum()):
        built.zero_grad()
        value.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in built.parameters())


# ---------------------------------------------------------------------------------------------------------
# Densities against what they are by definition


@pytest.mark.parametrize("dtype", DTYPES)
def test_gaussian_priors_are_their_normals(dtype):
    standard, learned = prior("standard_normal", dtype=dtype), prior("gaussian", dtype=dtype)
    z = torch.randn(5, LATENT, dtype=dtype)
    for built, loc, scale in ((standard, 0.0, 1.0), (learned, learned.loc, learned.log_scale.exp())):
        expected = torch.distributions.Normal(loc, scale).log_prob(z).sum(-1)
        torch.testing.assert_close(built().log_prob(z), expected)
    torch.testing.assert_close(
        priors.Gaussian(LATENT).to(dtype)().log_prob(z), priors.StandardNormal(LATENT).to(dtype)().log_prob(z)
    )


def test_gaussian_mixture_is_the_sum_of_its_components():
    built = prior("gaussian_mixture")
    z = torch.randn(5, LATENT, dtype=torch.float64)
    weights = built.logits.softmax(0)
    expected = sum(
        w * torch.distributions.Normal(m, s.exp()).log_prob(z).sum(-1).exp()
        for w, m, s in zip(weights, built.loc, built.log_scale, strict=True)
    ).log()
    torch.testing.assert_close(built().log_prob(z), expected)


def test_vamp_prior_is_the_mean_of_the_encoder_at_its_pseudo_inputs():
    built = prior("vamp_prior")
    z = torch.randn(5, LATENT, dtype=torch.float64)
    each = torch.stack([built.encoder(u[None]).log_prob(z) for u in built.pseudo_inputs])
    torch.testing.assert_close(built().log_prob(z), each.logsumexp(0) - math.log(4))


def test_full_rank_normal_is_its_triangle():
    torch.manual_seed(SEED)
    outputs = torch.randn(1, encoders.FullRankNormal.outputs(3), dtype=torch.float64)
    q = encoders.FullRankNormal(nn.Identity())(outputs)
    a, b, c, *rest = outputs[0].tolist()
    tril = [[math.exp(rest[0]), 0, 0], [rest[3], math.exp(rest[1]), 0], [rest[4], rest[5], math.exp(rest[2])]]
    torch.testing.assert_close(q.mean, torch.tensor([[a, b, c]], dtype=torch.float64))
    torch.testing.assert_close(q.scale_tril[0], torch.tensor(tril, dtype=torch.float64))


@pytest.mark.parametrize("latent_dim", [1, 3])
def test_flows_change_variables(latent_dim):
    """log P(z) = log N(ε) − log |∂z/∂ε|, the Jacobian by autograd; of own draws as of a copy of them."""
    fn = prior("flow", latent_dim)()
    q = posterior("flow", latent_dim)
    one_row = flows.NormalizingFlow(
        dist.Normal(q.base.base_dist.loc[0], q.base.base_dist.scale[0]).to_event(1), _first_row(latent_dim)
    )
    for flow in (fn, one_row):
        noise = flow.base.sample()
        jacobian = torch.autograd.functional.jacobian(flow.transform, noise)
        expected = flow.base.log_prob(noise) - torch.linalg.slogdet(jacobian).logabsdet
        torch.testing.assert_close(flow.log_prob(flow.transform(noise)), expected, rtol=0, atol=1e-9)
    for flow in (fn, q):
        z = flow.rsample((100,))
        torch.testing.assert_close(flow.log_prob(z), flow.log_prob(z.clone()), rtol=0, atol=1e-9)


def _first_row(latent_dim):
    """The transformation of ``posterior("flow")`` for its first row alone."""
    torch.manual_seed(SEED)
    built = encoder("flow", latent_dim).double()
    features = built.network(torch.randn(ROWS, COLUMNS, dtype=torch.float64))[:, 2 * latent_dim :]
    return built.transform(features[0])


def test_a_draw_without_gradients_has_a_log_prob_with_them():
    """What a flow remembers of its own draws must not cut the graph of log Q."""
    torch.manual_seed(SEED)
    built = encoder("flow").double()
    q = built(torch.randn(ROWS, COLUMNS, dtype=torch.float64))
    z = q.sample()
    grads = []
    for value in (z, z.clone()):
        built.zero_grad()
        q.log_prob(value).sum().backward(retain_graph=True)
        grads.append(torch.cat([p.grad.flatten() for p in built.parameters()]))
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_inverse_autoregressive_flow_finds_its_draws_back(dtype):
    """Entry by entry through 2 × 16 of them: in float32, too, log Q of given z is good to 1e-3 nats."""
    q = posterior("flow", 16, dtype)
    z = q.rsample((200,))
    error = (q.log_prob(z) - q.log_prob(z.clone())).abs().max()
    assert error < (1e-3 if dtype == torch.float32 else 1e-9)


# ---------------------------------------------------------------------------------------------------------
# Inside a VAE


def vae_of(prior_name, encoder_name):
    torch.manual_seed(SEED)
    q = encoder(encoder_name)
    p = (
        priors.VampPrior(q, torch.randn(4, COLUMNS))
        if prior_name == "vamp_prior"
        else PRIORS[prior_name](LATENT)
    )
    decoder = pv.MLP(LATENT, (4,), COLUMNS, activation="tanh")
    return shaken(pv.VAE(p, likelihoods.Gaussian(decoder, scale="shared"), q), by=0.1).double()


PAIRS = [(name, "diagonal_normal") for name in PRIORS] + [
    ("standard_normal", name) for name in encoders.REGISTRY
]


@pytest.mark.statistical
@pytest.mark.parametrize(("prior_name", "encoder_name"), sorted(set(PAIRS)))
def test_the_evidence_methods_agree(prior_name, encoder_name):
    """With a dense grid, within 6.1 of their errors where they ask to be trusted, and always within a nat.

    The encoder is a random one, so that only methods that look beyond it can be held to that.
    """
    vae = vae_of(prior_name, encoder_name)
    x = vae.sample(2, seed=SEED)
    truth = _on_a_grid(vae, x)
    for method, options in {"refined": {"num_samples": 500, "num_starts": 2}, "auto": {}}.items():
        ev = pv.log_evidence(vae, x, method=method, seed=SEED, check=False, **options)
        error = abs(ev.estimate - truth)
        assert (error < 1).all(), method
        assert (error <= Z * ev.mcse + abs(ev.bias))[ev.verdict == "unchecked"].all(), method
    ev = pv.log_evidence(vae, x, num_samples=100, check=False)
    assert ev.measure == ("density",) * COLUMNS


def _on_a_grid(vae, x):
    """log P(x) by the trapezoidal rule on [−12, 12]²."""
    axis = torch.linspace(-12, 12, 321, dtype=torch.float64)
    z = torch.cartesian_prod(axis, axis)
    with vae.evaluating():
        log_joint = vae.prior().log_prob(z) + vae.likelihood(z).log_prob(x[:, None])
    return (log_joint.logsumexp(1) + 2 * math.log(24 / 320)).numpy()


@pytest.mark.parametrize(("prior_name", "encoder_name"), sorted(set(PAIRS)))
def test_every_part_trains(prior_name, encoder_name):
    vae = vae_of(prior_name, encoder_name)
    x = vae.sample(20)
    before = {name: p.detach().clone() for name, p in vae.named_parameters()}
    pv.fit(vae, x, epochs=2, batch_size=10, lr=1e-2)
    assert all(not torch.equal(p, before[name]) for name, p in vae.named_parameters())


@pytest.mark.statistical
def test_full_rank_normal_reaches_the_exact_posterior():
    """On a linear-Gaussian model log P(x) − ELBO goes below 0.01 nats; a diagonal Gaussian cannot get below 0.22.

    The 0.01 includes 6.1 standard errors of the ELBO.
    """
    oracle = LinearGaussian(
        torch.tensor([[1.6, 0.9], [0.6, 1.4], [0.3, 0.6]]), torch.tensor([1.0, 0.0, -1.0]), 1.0
    )
    decoder = pv.MLP(2, (), 3)
    decoder.layers[0].weight.data, decoder.layers[0].bias.data = oracle.loadings, oracle.loc
    decoder.requires_grad_(False)
    precision = oracle.precision()
    assert 0.5 * float(precision.diagonal().log().sum() - torch.logdet(precision)) > 0.22
    x = oracle.sample(500, seed=SEED)
    torch.manual_seed(SEED)
    q = encoders.FullRankNormal(pv.MLP(3, (), encoders.FullRankNormal.outputs(2)))
    vae = pv.VAE(priors.StandardNormal(2), likelihoods.Gaussian(decoder, scale=oracle.sigma), q)
    # The exponential of a log-scale that starts too large gives gradients which Adam remembers for long.
    pv.fit(vae, x, epochs=60, batch_size=50, lr=0.05, clip_norm=1.0, seed=SEED, scheduler=decay(0.93))
    gap = oracle.log_prob(x).double() - torch.as_tensor(pv.elbo(vae, x, num_samples=200, seed=SEED).estimate)
    se = float(gap.std()) / len(gap) ** 0.5
    assert float(gap.mean()) + Z * se < 0.01
    assert float(gap.mean()) > -Z * se


def decay(rate):
    return lambda optimizer: torch.optim.lr_scheduler.ExponentialLR(optimizer, rate)


def clusters(num_rows, seed):
    """Four clusters of standard deviation 0.3 at the corners of a square with sides of 6."""
    generator = torch.Generator().manual_seed(seed)
    corners = torch.tensor([[-3.0, -3.0], [-3.0, 3.0], [3.0, -3.0], [3.0, 3.0]])
    label = torch.randint(4, (num_rows,), generator=generator)
    return corners[label] + 0.3 * torch.randn(num_rows, 2, generator=generator)


@pytest.mark.statistical
@pytest.mark.parametrize("name", ["gaussian_mixture", "vamp_prior", "flow"])
def test_a_flexible_prior_beats_the_standard_normal_on_clusters(name):
    """Under a linear decoder, on 200 held-out rows, by more than 6.1 standard errors of the paired difference.

    The standard normal's P(x) is then a Gaussian, whose best is known: the training rows' mean and covariance.
    """
    train, held_out = clusters(400, SEED), clusters(200, SEED + 10_000)
    standard = torch.distributions.MultivariateNormal(train.mean(0), train.T.cov()).log_prob(held_out)
    torch.manual_seed(SEED)
    q = encoders.DiagonalNormal(pv.MLP(2, (16,), 4))
    p = {
        "gaussian_mixture": lambda: priors.GaussianMixture(2),
        "vamp_prior": lambda: priors.VampPrior(q, train[:20]),
        "flow": lambda: priors.Flow(2),
    }[name]()
    vae = pv.VAE(p, likelihoods.Gaussian(pv.MLP(2, (), 2), scale=0.3), q)
    # A mixture comes near the clusters late; the others lead by 60 standard errors after 30 epochs.
    epochs, rate = (60, 0.97) if name == "gaussian_mixture" else (30, 0.94)
    pv.fit(vae, train, epochs=epochs, batch_size=50, lr=0.02, seed=SEED, scheduler=decay(rate))
    # a lower bound in expectation: it takes nothing from the standard normal
    difference = (
        pv.log_evidence(vae, held_out, num_samples=500, seed=SEED, check=False).estimate - standard.numpy()
    )
    assert difference.mean() > Z * difference.std() / len(difference) ** 0.5


class Bend(nn.Module):
    """x = z_1² − z_2."""

    in_features, out_features = 2, 1

    def forward(self, z):
        return z[:, :1] ** 2 - z[:, 1:]


@pytest.mark.statistical
def test_a_flow_encoder_beats_a_diagonal_normal_where_the_posterior_is_bent():
    """z ~ N(0, I), x = z_1² − z_2 + 0.3 ε: z lies along a parabola. ELBOs against log P(x) by a dense grid.

    The flow's ELBO is higher by more than 6.1 standard errors of the paired difference, and none is above log P(x).
    """
    generator = torch.Generator().manual_seed(SEED)
    z = torch.randn(500, 2, generator=generator)
    x = Bend()(z) + 0.3 * torch.randn(500, 1, generator=generator)
    bounds = {}
    for name in ("diagonal_normal", "flow"):
        torch.manual_seed(SEED)
        family = encoders.REGISTRY[name]
        q = family(pv.MLP(1, (32,), family.outputs(2)))
        vae = pv.VAE(priors.StandardNormal(2), likelihoods.Gaussian(Bend(), scale=0.3), q)
        pv.fit(vae, x, epochs=60, batch_size=50, lr=0.01, seed=SEED, scheduler=decay(0.97))
        bounds[name] = torch.as_tensor(pv.elbo(vae, x, num_samples=100, seed=SEED).estimate)
    difference = bounds["flow"] - bounds["diagonal_normal"]
    assert float(difference.mean()) > Z * float(difference.std()) / len(x) ** 0.5
    gap = _log_p_of_bend(x.double()) - bounds["flow"]
    assert float(gap.mean()) > -Z * float(gap.std()) / len(x) ** 0.5


def _log_p_of_bend(x):
    """log ∫ N(z_1; 0, 1) N(x; z_1², 1 + 0.3²) dz_1: z_2 and the noise are Gaussian, together."""
    grid = torch.linspace(-8, 8, 4001, dtype=torch.float64)
    log_joint = dist.Normal(0.0, 1.0).log_prob(grid) + dist.Normal(grid**2, 1.09**0.5).log_prob(x)
    return log_joint.logsumexp(1) + math.log(16 / 4000)


def test_a_vamp_prior_shares_the_encoder_of_its_vae():
    """Once in parameters and state; the encoder learns through the prior, too; a copy shares its own."""
    vae = vae_of("vamp_prior", "diagonal_normal").float()
    assert [name for name in vae.state_dict() if name.startswith("prior")] == ["prior.pseudo_inputs"]
    assert len({p.data_ptr() for p in vae.parameters()}) == len(list(vae.parameters()))
    twin = copy.deepcopy(vae)
    assert twin.prior.encoder is twin.encoder is not vae.encoder
    double = twin.double()
    assert double.prior().sample().dtype == torch.float64
    vae.prior().log_prob(torch.zeros(LATENT)).backward()
    assert all(p.grad is not None for p in vae.encoder.parameters())
    rows = torch.zeros(4, COLUMNS)
    kept = priors.VampPrior(vae.encoder, rows)
    kept.pseudo_inputs.data += 1
    assert (rows == 0).all()


@pytest.mark.parametrize("prior_name", ["standard_normal", "gaussian", "gaussian_mixture", "flow"])
@pytest.mark.parametrize("encoder_name", encoders.REGISTRY)
def test_parts_by_name(prior_name, encoder_name):
    vae = pv.VAE.mlp(5, 2, hidden_dims=(4,), prior=prior_name, encoder=encoder_name)
    assert type(vae.prior) is priors.REGISTRY[prior_name]
    assert type(vae.encoder) is encoders.REGISTRY[encoder_name]


# ---------------------------------------------------------------------------------------------------------
# Rebuilding


@pytest.mark.parametrize("name", PRIORS)
def test_a_prior_is_rebuilt_from_its_arguments(name):
    built = prior(name)
    memo = {}
    again = rebuild(built, memo).double()
    if name == "vamp_prior":
        again.kept = memo[id(built.encoder)]
        assert again.encoder is again.kept
        again = again.double()
    again.load_state_dict(built.state_dict())
    z = torch.randn(5, LATENT, dtype=torch.float64)
    assert type(again) is type(built)
    assert torch.equal(again().log_prob(z), built().log_prob(z))


@pytest.mark.parametrize("name", encoders.REGISTRY)
def test_an_encoder_is_rebuilt_from_its_arguments(name):
    torch.manual_seed(SEED)
    built = encoder(name)
    again = rebuild(built)
    assert again.network is not built.network
    x, z = torch.randn(ROWS, COLUMNS), torch.randn(ROWS, LATENT)
    assert not torch.equal(again(x).log_prob(z), built(x).log_prob(z))
    again.load_state_dict(built.state_dict())
    assert torch.equal(again(x).log_prob(z), built(x).log_prob(z))


@pytest.mark.parametrize(
    "build",
    [
        lambda: likelihoods.Gaussian(pv.MLP(2, (4,), 6, activation="tanh"), scale="decoder"),
        lambda: likelihoods.Gaussian(nn.Sequential(pv.MLP(2, (4,), 3)), "per_dimension"),
        lambda: likelihoods.Bernoulli(network=networks.ConvDecoder(2, (1, 3, 1), channels=(2,))),
    ],
)
def test_a_likelihood_is_rebuilt_from_its_arguments(build):
    built = shaken(build())
    again = rebuild(built)
    again.load_state_dict(built.state_dict())
    z = torch.randn(5, 2)
    x = built(z).sample()
    assert torch.equal(again(z).log_prob(x), built(z).log_prob(x))


def test_shared_parts_are_rebuilt_once():
    vae, memo = vae_of("vamp_prior", "flow"), {}
    again = pv.VAE(*(rebuild(part, memo) for part in (vae.prior, vae.likelihood, vae.encoder))).double()
    again.load_state_dict(vae.state_dict())
    x = vae.sample(4)
    ours, theirs = (pv.log_evidence(model, x, num_samples=20, check=False).estimate for model in (vae, again))
    assert (ours == theirs).all()


def test_a_subclass_records_its_own_arguments_or_none():
    """What a base class was called with does not rebuild a subclass."""

    class Narrow(encoders.DiagonalNormal):
        def __init__(self, data_dim):
            super().__init__(pv.MLP(data_dim, (), 2))

    assert "arguments" not in vars(Narrow(3))
    assert rebuild(Narrow(3)).network.in_features == 3
    assert priors.GaussianMixture(2, num_components=3).arguments == {"latent_dim": 2, "num_components": 3}


# ---------------------------------------------------------------------------------------------------------
# Networks


def test_layers_of_a_normalised_mlp():
    network = pv.MLP(3, (5,), 2, normalization="layer", dropout=0.5)
    assert [type(layer).__name__ for layer in network.layers] == [
        "Linear",
        "LayerNorm",
        "ReLU",
        "Dropout",
        "Linear",
    ]
    assert [type(layer).__name__ for layer in pv.MLP(3, (5,), 2, normalization="batch").layers] == [
        "Linear",
        "BatchNorm1d",
        "ReLU",
        "Linear",
    ]


def test_a_shortcut_adds_a_linear_map_that_is_zero_before_training():
    network, x = pv.MLP(3, (5,), 2, shortcut=True), torch.randn(4, 3)
    torch.testing.assert_close(network(x), network.layers(x))
    weight = network.shortcut.weight
    torch.nn.init.normal_(weight)
    torch.testing.assert_close(network(x), network.layers(x) + x @ weight.T)
    assert "shortcut" not in str(pv.MLP(3, (5,), 2))


@pytest.mark.parametrize("normalization", networks.NORMALIZATIONS)
def test_normalisation_and_dropout_are_off_at_evaluation(normalization):
    """Training rows depend on their minibatch and on dropout. log P(x) of a row does not, and training continues after it."""
    torch.manual_seed(SEED)

    def network(*sizes):
        return pv.MLP(*sizes, normalization=normalization, dropout=0.3)

    q = encoders.DiagonalNormal(network(COLUMNS, (8,), 2 * LATENT))
    vae = pv.VAE(priors.StandardNormal(LATENT), likelihoods.Gaussian(network(LATENT, (8,), COLUMNS)), q)
    x = torch.randn(40, COLUMNS)
    assert not torch.equal(q(x).mean, q(x).mean)
    pv.fit(vae, x, epochs=2, batch_size=10)
    assert vae.training
    with vae.evaluating():
        assert torch.equal(q(x).mean, q(x).mean)
        torch.testing.assert_close(q(x[:1]).mean, q(x).mean[:1])
    assert len(pv.log_evidence(vae, x, num_samples=20, check=False)) == 40


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 7, 5), (2, 1, 1)])
@pytest.mark.parametrize("channels", [(), (4,), (6, 4, 3)])
def test_convolutions_keep_the_shape_of_images(shape, channels):
    torch.manual_seed(SEED)
    down, up = (
        networks.ConvEncoder(shape, 5, channels),
        networks.ConvDecoder(5, shape, channels=channels, flat=False),
    )
    images = torch.randn(2, *shape)
    rows = down(images)
    assert rows.shape == (2, down.out_features)
    assert torch.equal(rows, down(images.flatten(1)))
    assert up(rows).shape == images.shape
    assert up.out_features == math.prod(shape)


def test_a_decoder_of_images_puts_the_kinds_of_outputs_where_likelihoods_look_for_them():
    """All of the first kind, then all of the second, on the last dim: of flat rows as of images."""
    flat, image = (
        networks.ConvDecoder(2, (3, 4, 5), outputs_per_dimension=2, channels=(6,), flat=flat)
        for flat in (True, False)
    )
    image.load_state_dict(flat.state_dict())
    z = torch.randn(7, 2)
    for rows, images in zip(flat(z).chunk(2, dim=-1), image(z).chunk(2, dim=-1), strict=True):
        assert images.shape == (7, 3, 4, 5)
        assert torch.equal(rows, images.flatten(1))
    assert flat.out_features == image.out_features == 2 * 60


@pytest.mark.parametrize("flat", [True, False])
def test_a_convolutional_vae(flat):
    torch.manual_seed(SEED)
    vae = pv.VAE(
        priors.StandardNormal(LATENT),
        likelihoods.Gaussian(
            networks.ConvDecoder(LATENT, (1, 6, 5), outputs_per_dimension=2, channels=(4,), flat=flat),
            scale="decoder",
        ),
        encoders.FullRankNormal(
            networks.ConvEncoder((1, 6, 5), encoders.FullRankNormal.outputs(LATENT), channels=(4,))
        ),
    )
    x = vae.sample(12)
    assert x.shape == ((12, 30) if flat else (12, 1, 6, 5))
    pv.fit(vae, x, epochs=1, batch_size=5)
    assert pv.log_evidence(vae, x, num_samples=20, check=False).measure == ("density",) * 30


# ---------------------------------------------------------------------------------------------------------
# Mistakes


def test_zuko_is_asked_for_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "zuko", None)
    with pytest.raises(ImportError, match=r"pip install 'pyrovae\[flows\]'"):
        priors.Flow(2)
    with pytest.raises(ImportError, match=r"pip install 'pyrovae\[flows\]'"):
        encoders.Flow(pv.MLP(3, (), encoders.Flow.outputs(2)))


def test_zuko_leaves_the_checks_of_distributions_on(monkeypatch):
    """zuko 1.6 switches them off as it is imported."""
    for name in [name for name in sys.modules if name.split(".")[0] == "zuko"]:
        monkeypatch.delitem(sys.modules, name)
    flows.zuko()
    with pytest.raises(ValueError, match="scale"):
        torch.distributions.Normal(0.0, -1.0)


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: priors.Gaussian(0), ValueError, "latent_dim: expected a whole number ≥ 1"),
        (lambda: priors.GaussianMixture(2, 0), ValueError, "num_components: expected a whole number ≥ 1"),
        (lambda: priors.VampPrior(None, torch.zeros(2, 3)), TypeError, "encoder: expected a torch module"),
        (
            lambda: priors.VampPrior(encoder("diagonal_normal"), torch.full((2, 3), math.nan)),
            ValueError,
            "pseudo_inputs: expected finite numbers",
        ),
        (
            lambda: pv.VAE(
                priors.VampPrior(encoder("diagonal_normal"), torch.zeros(2, 3)),
                likelihoods.Gaussian(pv.MLP(2, (), 3)),
                encoder("diagonal_normal"),
            ),
            ValueError,
            "prior: expected a VampPrior made of the VAE's own encoder",
        ),
        (lambda: priors.Flow(2, num_transforms=0), ValueError, "num_transforms: expected a whole number ≥ 1"),
        (lambda: priors.Flow(2, hidden_dims=8), TypeError, "hidden_dims: expected a sequence of widths"),
        (
            lambda: encoders.FullRankNormal(pv.MLP(3, (), 6))(torch.zeros(2, 3)),
            ValueError,
            r"network: expected latent_dim · \(latent_dim \+ 3\) / 2 outputs.* got 6",
        ),
        (
            lambda: encoders.Flow(nn.Identity()),
            ValueError,
            "network: expected 2 · latent_dim .16 outputs.*Identity without out_features".replace(
                ".16", r"\+ 16"
            ),
        ),
        (
            lambda: encoders.Flow(pv.MLP(3, (), 17)),
            ValueError,
            r"network: expected 2 · latent_dim \+ 16.* got 17",
        ),
        (
            lambda: pv.VAE(
                priors.StandardNormal(3),
                likelihoods.Gaussian(pv.MLP(3, (), 3)),
                encoders.FullRankNormal(pv.MLP(3, (), 5)),
            ),
            ValueError,
            "encoder: expected a network with 9 outputs for 3 latent dimensions, got 5",
        ),
        (
            lambda: pv.VAE.mlp(3, 2, prior="vamp_prior"),
            ValueError,
            "prior: expected one of 'standard_normal'",
        ),
        (
            lambda: pv.VAE.mlp(3, 2, encoder="normal"),
            ValueError,
            "encoder: expected one of 'diagonal_normal'",
        ),
        (
            lambda: pv.MLP(3, (), 2, normalization="group"),
            ValueError,
            "normalization: expected one of 'none'",
        ),
        (lambda: pv.MLP(3, (), 2, dropout=1.0), ValueError, "dropout: expected a share of the units"),
        (
            lambda: networks.ConvEncoder((28, 28), 2),
            ValueError,
            r"in_shape: expected \(channels, height, width\)",
        ),
        (
            lambda: networks.ConvEncoder((1, 4, 4), 2)(torch.zeros(3, 15)),
            ValueError,
            "x: expected rows of width 16, got rows of width 15",
        ),
        (lambda: networks.ConvDecoder(2, (1, 0, 4)), ValueError, "out_shape: expected a whole number ≥ 1"),
    ],
)
def test_mistakes_are_refused(build, error, message):
    with pytest.raises(error, match=message):
        build()
