"""save() and load(): every family and baseline bit for bit, the user's own pairs, and refusals that touch nothing."""

import functools
import itertools
import json
import pickle
import warnings
from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pairs import PAIRS
from pyro.distributions import constraints
from pyro.infer import SVI, RenyiELBO, Trace_ELBO, TraceGraph_ELBO
from test_likelihoods import LIKELIHOODS
from torch import nn

import pyrovae as pv
from pyrovae import baselines, encoders, identity, likelihoods, networks, priors, saving, storage
from pyrovae.refusals import Refused
from pyrovae.saving import load, save

LATENT, COLUMNS = 2, 3
DTYPES = [torch.float32, torch.float64]


def shaken(module):
    """The module with noise on every parameter: nothing is where its constructor put it."""
    for parameter in module.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return module


#: Flows that are quick to build.
SMALL = {"flow": {"num_transforms": 1, "hidden_dims": (4,)}}


def vae(likelihood="bernoulli", options=None, prior="standard_normal", encoder="diagonal_normal"):
    options, family, guide = options or {}, likelihoods.REGISTRY[likelihood], encoders.REGISTRY[encoder]
    width = family.outputs_per_dimension(**options) * COLUMNS
    q = guide(pv.MLP(COLUMNS, (4,), guide.outputs(LATENT), activation="tanh"), **SMALL.get(encoder, {}))
    if prior == "vamp_prior":
        p = priors.VampPrior(q, np.zeros((4, COLUMNS)))
    else:
        p = priors.REGISTRY[prior](LATENT, **SMALL.get(prior, {}))
    return shaken(pv.VAE(p, family(pv.MLP(LATENT, (4,), width), **options), q))


def bits(pair):
    """Every parameter and buffer as name, dtype, shape and bytes; and whether it is frozen."""
    return {
        name: (
            tensor.dtype,
            tensor.shape,
            tensor.requires_grad,
            tensor.detach().contiguous().numpy().tobytes(),
        )
        for name, tensor in [*pair.named_parameters(), *pair.named_buffers()]
    }


def log_weight_bits(pair, x):
    return pv.log_weights(pair, x, num_samples=3, seed=1).numpy().tobytes()


# ---------------------------------------------------------------------------------------------------------
# VAEs


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("encoder", encoders.REGISTRY)
@pytest.mark.parametrize("prior", priors.REGISTRY)
def test_every_family_with_every_other(tmp_path, prior, encoder, dtype):
    for likelihood, options in dict(LIKELIHOODS).items():
        model = vae(likelihood, options, prior, encoder).to(dtype)
        save(model, tmp_path / "vae")
        again = load(tmp_path / "vae")
        assert bits(again) == bits(model), likelihood
        assert [type(m) for m in again.modules()] == [type(m) for m in model.modules()]


@pytest.mark.parametrize(("number", "likelihood"), list(enumerate(dict(LIKELIHOODS).items())))
def test_the_same_log_evidence_to_the_bit(tmp_path, number, likelihood):
    """Every likelihood, with priors, encoders and dtypes in turn."""
    both = list(itertools.product(priors.REGISTRY, encoders.REGISTRY))
    model = vae(*likelihood, *both[number % len(both)]).to(DTYPES[number % 2])
    x = model.sample(4, seed=number)
    before = pv.log_evidence(model, x, num_samples=20, check=False)
    save(model, tmp_path / "vae")
    again = load(tmp_path / "vae")
    after = pv.log_evidence(again, x, num_samples=20, check=False)
    assert before.estimate.tobytes() == after.estimate.tobytes()
    assert before.mcse.tobytes() == after.mcse.tobytes()
    assert str(again) == str(model)


def test_what_is_shared_stays_shared(tmp_path):
    model = vae(prior="vamp_prior")
    save(model, tmp_path / "vae")
    again = load(tmp_path / "vae")
    assert again.prior.encoder is again.encoder
    assert len(list(again.parameters())) == len(list(model.parameters()))
    scaled = pv.VAE.mlp(COLUMNS, LATENT, "gaussian", hidden_dims=(4,), standardize=True)
    pv.fit(scaled, 5 + 3 * torch.randn(20, COLUMNS), epochs=1)
    save(scaled, tmp_path / "vae")
    again = load(tmp_path / "vae")
    assert bits(again) == bits(scaled)
    assert again.encoder.standardize is again.likelihood.standardize
    both = pv.MLP(2, (), 4)  # one network in two places
    tied = pv.VAE(
        priors.StandardNormal(2), likelihoods.Gaussian(both, scale="decoder"), encoders.DiagonalNormal(both)
    )
    save(tied, tmp_path / "vae")
    again = load(tmp_path / "vae")
    assert again.encoder.network is again.likelihood.network


def layers():
    """A convolutional VAE from torch's own layers, as users write it."""
    decoder = nn.Sequential(
        nn.Linear(2, 8, bias=False), nn.LeakyReLU(0.2), nn.Unflatten(1, (2, 2, 2)),
        nn.ConvTranspose2d(2, 1, kernel_size=(2, 2), stride=2),
    )  # fmt: skip
    encoder = nn.Sequential()
    encoder.add_module("conv", nn.Conv2d(1, 2, 3, padding="same", groups=1))
    encoder.add_module("norm", nn.BatchNorm2d(2, momentum=0.3))
    encoder.add_module("rest", nn.Sequential(nn.Softplus(beta=2), nn.Dropout(0.25), nn.Flatten()))
    encoder.add_module("last", nn.Linear(32, 4))
    return pv.VAE(priors.StandardNormal(2), likelihoods.Bernoulli(decoder), encoders.DiagonalNormal(encoder))


@pytest.mark.parametrize(
    "build",
    [
        layers,
        lambda: pv.VAE(
            priors.Gaussian(2),
            likelihoods.Bernoulli(pv.ConvDecoder(2, (1, 4, 4), channels=(3,), flat=False)),
            encoders.FullRankNormal(pv.ConvEncoder([1, 4, 4], 5, channels=[3])),
        ),
        lambda: pv.VAE.mlp(16, 2, hidden_dims=(5, 4), activation="gelu", prior="gaussian"),
        lambda: pv.VAE(
            priors.GaussianMixture(num_components=np.int64(3), latent_dim=2),
            likelihoods.Bernoulli(pv.MLP(2, [4], 16, normalization="layer", shortcut=True)),
            encoders.Flow(
                pv.MLP(16, (4,), 20, normalization="batch", dropout=0.5), num_transforms=1, hidden_dims=(4,)
            ),
        ),
    ],
)
def test_networks_modes_and_frozen_parts(tmp_path, build):
    model = shaken(build())
    x = (torch.rand(12, *model.sample(1).shape[1:]) < 0.5).float()
    pv.fit(model, x, epochs=1, batch_size=6)  # running means, too
    model.encoder.eval()
    next(model.likelihood.parameters()).requires_grad_(False)
    save(model, tmp_path / "vae")
    again = load(tmp_path / "vae")
    assert str(again) == str(model)
    assert bits(again) == bits(model)
    assert [m.training for m in again.modules()] == [m.training for m in model.modules()]
    assert log_weight_bits(again, x) == log_weight_bits(model, x)
    first, second = (pv.fit(m, x, epochs=1, batch_size=6, seed=3) for m in (model, again))
    assert [r["loss"] for r in first.records] == [r["loss"] for r in second.records]
    assert bits(again) == bits(model)


def test_what_fit_left_comes_back(tmp_path):
    model, x = vae(), (torch.rand(10, COLUMNS) < 0.5).float()
    history = pv.fit(model, x, epochs=2)
    history.records[0]["loss"] = float("nan")
    save(model, tmp_path / "vae")
    fitted = load(tmp_path / "vae").fitted
    assert fitted.rows == 10
    assert fitted.fingerprint == model.fitted.fingerprint
    assert torch.equal(fitted.spread, model.fitted.spread)
    assert fitted.seen.tolist() == identity.row_hashes(x).tolist()
    assert fitted.seen.dtype == np.uint64
    assert repr(fitted.history) == repr(vars(history))
    assert storage.read(tmp_path / "vae")[1]["versions"].keys() >= {
        "pyrovae",
        "torch",
        "pyro",
        "python",
        "platform",
    }
    fresh = vae()
    save(fresh, tmp_path / "vae")
    assert load(tmp_path / "vae", into=model) is model
    assert model.fitted is None


def test_neither_model_nor_generator_is_touched(tmp_path):
    model = vae(prior="gaussian_mixture", encoder="flow")
    before, state = bits(model), torch.random.get_rng_state()
    save(model, tmp_path / "vae")
    assert torch.equal(state, torch.random.get_rng_state())
    again = load(tmp_path / "vae")
    assert torch.equal(state, torch.random.get_rng_state())
    assert before == bits(model)
    assert len(pyro.get_param_store()) == 0
    shaken(again)  # memory of its own
    assert before == bits(model) == bits(load(tmp_path / "vae"))


def test_after_plain_svi(tmp_path):
    model, x = vae(), (torch.rand(10, COLUMNS) < 0.5).float()
    svi = SVI(model.model, model.guide, pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO())
    svi.step(x)
    save(model, tmp_path / "vae")
    assert log_weight_bits(load(tmp_path / "vae"), x) == log_weight_bits(model, x)


def test_a_copy_of_a_vae_that_has_run(tmp_path):
    import copy

    model, x = vae(), (torch.rand(10, COLUMNS) < 0.5).float()
    pv.fit(model, x, epochs=1)
    other = copy.deepcopy(model)
    other.likelihood = likelihoods.Bernoulli(pv.MLP(LATENT, (4,), COLUMNS))
    model.likelihood = likelihoods.Bernoulli(pv.MLP(LATENT, (4,), COLUMNS))
    for replaced in (model, other):
        save(replaced, tmp_path / "vae")
        assert bits(load(tmp_path / "vae")) == {
            name: value for name, value in bits(replaced).items() if "declared" not in name
        }


class Own(nn.Module):
    """A network of the user's own."""

    def __init__(self, width=8):
        super().__init__()
        self.out_features = 4
        self.layers = nn.Sequential(nn.Linear(COLUMNS, width), nn.Tanh(), nn.Linear(width, 4))
        self.register_buffer("shift", torch.randn(COLUMNS))

    def forward(self, x):
        return self.layers(x - self.shift)


def own(width=8, dtype=torch.float32, likelihood=likelihoods.Gaussian, **options):
    network = pv.MLP(LATENT, (4,), COLUMNS)
    parts = priors.StandardNormal(LATENT), likelihood(network, **options), encoders.DiagonalNormal(Own(width))
    return pv.VAE(*parts).to(dtype)


class OwnLikelihood(likelihoods.Bernoulli):
    """A family of the user's own, registered nowhere."""


def replaced_activation():
    model = vae()
    model.encoder.network.layers[1] = nn.ReLU()  # where the arguments say tanh
    return model


def other_scale():
    model = vae("gaussian")
    model.likelihood.scale = 2.0
    return model


def tied():
    model = vae()
    model.likelihood.network.layers[2].bias = nn.Parameter(torch.zeros(3))
    model.prior.register_parameter("more", nn.Parameter(torch.zeros(2)))
    return model


def hooked():
    model = vae()
    model.encoder.network.register_forward_hook(lambda module, inputs, outputs: 2 * outputs)
    return model


def patched():
    model = vae()
    model.encoder.network.forward = lambda x: torch.zeros(len(x), 4)
    return model


def shared_afterwards():
    network = pv.MLP(2, (), 4)
    model = pv.VAE(
        priors.StandardNormal(2),
        likelihoods.Gaussian(pv.MLP(2, (), 4), scale="decoder"),
        encoders.DiagonalNormal(network),
    )
    model.likelihood.network.layers[0].weight = network.layers[0].weight
    return model


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (own, "encoder.network, a Own, which is in no registry"),
        (lambda: vae_of(OwnLikelihood), "likelihood, a OwnLikelihood, which is in no registry"),
        (replaced_activation, r"pair:encoder.network.layers.1, which was changed after"),
        (other_scale, "pair:likelihood, which was changed after"),
        (tied, "pair:prior.more, which was changed after"),
        (hooked, "pair:encoder.network, which was changed after"),
        (patched, "pair:encoder.network, which was changed after"),
        (shared_afterwards, "network.layers.0.weight, which was changed after"),
    ],
)
def test_what_names_cannot_say_is_loaded_into_an_instance(tmp_path, build, reason):
    """Never a model of the same shapes that computes something else."""
    model, other = build(), build()
    save(model, tmp_path / "vae")
    with pytest.raises(ValueError, match=rf"{reason}.*pv.load\(path, into=model\)"):
        load(tmp_path / "vae")
    shaken(model)
    save(model, tmp_path / "vae")
    assert load(tmp_path / "vae", into=other) is other
    assert bits(other) == bits(model)


def vae_of(family):
    network = encoders.DiagonalNormal(pv.MLP(COLUMNS, (), 2 * LATENT))
    return pv.VAE(priors.StandardNormal(LATENT), family(pv.MLP(LATENT, (), COLUMNS)), network)


def test_arguments_that_are_code_are_not_saved(tmp_path):
    @networks.REGISTRY.register("with_code")
    class WithCode(pv.MLP):
        def __init__(self, width, function):
            super().__init__(LATENT, (), width)
            self.function = function

    try:
        network = WithCode(COLUMNS, torch.tanh)
        model = pv.VAE(
            priors.StandardNormal(LATENT),
            likelihoods.Bernoulli(network),
            encoders.DiagonalNormal(pv.MLP(COLUMNS, (), 2 * LATENT)),
        )
        save(model, tmp_path / "vae")
        with pytest.raises(ValueError, match=r"likelihood.network.function, a builtin.*, which is code"):
            load(tmp_path / "vae")
        model.likelihood.network.arguments["function"] = model.likelihood.network.function = None
        save(model, tmp_path / "vae")
        assert type(load(tmp_path / "vae").likelihood.network) is WithCode
    finally:
        del networks.REGISTRY["with_code"]
    with pytest.raises(
        ValueError, match=r"a part of the class 'networks/with_code'.*Import the code that registers"
    ):
        load(tmp_path / "vae")


def test_names_in_a_file_lead_to_registries_only(tmp_path):
    save(vae(), tmp_path / "vae")
    arrays, meta = storage.read(tmp_path / "vae")
    for name in (
        "os/system",
        "builtins/eval",
        "networks/../os",
        "torch/Module",
        "torch/functional",
        "system",
        "/",
    ):
        meta["architecture"]["modules"][0] = {
            "class": name,
            "arguments": {"command": {"value": "touch executed"}},
        }
        storage.write(tmp_path / "vae", arrays, meta)
        with pytest.raises(ValueError, match="a model with all parts in a registry"):
            load(tmp_path / "vae")


# ---------------------------------------------------------------------------------------------------------
# The user's own pairs


@pytest.mark.parametrize("name", PAIRS)
def test_pairs_are_loaded_into_an_instance_of_themselves(tmp_path, name):
    """Into one that has not run, whose parameter store is still empty, and into one that has."""
    case, other = PAIRS[name](), PAIRS[name]().pair
    pv.log_weights(case.pair, case.x, num_samples=1)
    for factor in (1.05, 0.95):
        for parameter in case.pair.parameters():
            parameter.data = factor * parameter.data
        save(case.pair, tmp_path / "pair")
        assert load(tmp_path / "pair", into=other) is other
        assert log_weight_bits(other, case.x) == log_weight_bits(case.pair, case.x)
        assert bits(other).keys() == bits(case.pair).keys()
        save(other, tmp_path / "again")
        files = [storage.read(tmp_path / file) for file in ("pair", "again")]
        assert files[0][1] == files[1][1]
    with pytest.raises(ValueError, match=r"a LatentVariableModel, which is made of code.*into=model"):
        load(tmp_path / "pair")


@pytest.mark.parametrize("loss", [TraceGraph_ELBO(), RenyiELBO(num_particles=2), Trace_ELBO()])
def test_pairs_are_loaded_whatever_objective_they_were_fitted_by(loss, tmp_path):
    """Objectives that call backward() themselves need a parameter statement, which declares no parameter."""

    def made():
        def model(x):
            weight = pyro.param("weight", torch.ones(2, 6))
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
                pyro.sample("x", dist.Normal(z @ weight, 0.5).to_event(1), obs=x)

        def guide(x):
            loc = pyro.param("loc", torch.zeros(2))
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(loc, 0.5).to_event(1))

        return pv.LatentVariableModel(model, guide)

    x = torch.randn(50, 6, generator=torch.Generator().manual_seed(0))
    pair, other = made(), made()
    pv.fit(pair, x, epochs=2, loss=loss, compile=False)
    assert set(pair.stored) == {"weight", "loc"}
    assert [name for name, _ in pair.named_parameters()] == ["declared.loc", "declared.weight"]
    save(pair, tmp_path / "pair")
    load(tmp_path / "pair", into=other)
    assert log_weight_bits(other, x) == log_weight_bits(pair, x)


def test_averages_of_an_objective_are_no_parameters(tmp_path):
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.decoder, self.encoder = nn.Linear(3, 6), nn.Linear(6, 3)

        def model(self, x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Bernoulli(torch.full((3,), 0.4)).to_event(1))
                pyro.sample("x", dist.Normal(self.decoder(z), 1.0).to_event(1), obs=x)

        def guide(self, x):
            infer = {"baseline": {"use_decaying_avg_baseline": True}}
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Bernoulli(logits=self.encoder(x)).to_event(1), infer=infer)

    held = Pair()
    pair, x = pv.LatentVariableModel(held.model, held.guide), torch.randn(50, 6)
    names = [name for name, _ in pair.named_parameters()]
    pv.fit(pair, x, epochs=3, loss=TraceGraph_ELBO())
    assert [name for name, _ in pair.named_parameters()] == names
    assert not pair.stored


CONSTRAINTS = [
    (constraints.real, 0.3),
    (constraints.positive, 0.3),
    (constraints.unit_interval, 0.3),
    (constraints.interval(-1.0, 2.0), 0.3),
    (constraints.greater_than(-1), 0.3),
    (constraints.less_than(torch.tensor(2.0)), 0.3),
    (constraints.softplus_positive, 0.3),
    (constraints.real_vector, [0.3, 0.2]),
    (constraints.simplex, [0.3, 0.7]),
    (constraints.ordered_vector, [0.3, 0.7]),
    (constraints.positive_definite, [[1.0, 0.1], [0.1, 2.0]]),
    (constraints.corr_cholesky, [[1.0, 0.0], [0.6, 0.8]]),
    (constraints.independent(constraints.unit_interval, 1), [0.3, 0.2]),
]


def declaring(constraint, value, name="theta"):
    """A pair in plain functions with one parameter."""

    def model(x):
        theta = pyro.param(name, torch.tensor(value), constraint=constraint)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z + theta.sum(), 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, 0.8))

    return pv.LatentVariableModel(model, guide)


@pytest.mark.parametrize(("constraint", "value"), CONSTRAINTS, ids=lambda value: str(value)[:30])
def test_constrained_parameters_fill_a_fresh_pair(tmp_path, constraint, value):
    x = torch.randn(4)
    pair, other = (declaring(constraint, value) for _ in range(2))
    pv.log_weights(pair, x, num_samples=1)
    (theta,) = pair.parameters()
    theta.data += 0.4
    save(pair, tmp_path / "pair")
    load(tmp_path / "pair", into=other)
    assert log_weight_bits(other, x) == log_weight_bits(pair, x)
    assert bits(other) == bits(pair)


def test_a_constraint_without_a_name_needs_a_pair_that_has_run(tmp_path):
    bounds = constraints.interval(torch.zeros(2), torch.tensor([1.0, 2.0]))
    x = torch.randn(4)
    pair, other = (declaring(bounds, [0.3, 0.4]) for _ in range(2))
    pv.log_weights(pair, x, num_samples=1)
    shaken(pair)
    save(pair, tmp_path / "pair")
    with pytest.raises(
        ValueError, match="into: expected a pair that has declared 'theta', got one that has not run"
    ):
        load(tmp_path / "pair", into=other)
    assert bits(other) == {}
    pv.log_weights(other, x, num_samples=1)
    load(tmp_path / "pair", into=other)
    assert bits(other) == bits(pair)


def test_a_module_that_can_not_be_found_needs_a_pair_that_has_run(tmp_path):
    """In a plain object: pyro.module would not write what a fresh store holds into it."""

    class Plain:
        def __init__(self):
            self.decoder = nn.Linear(1, 1)

        def model(self, x):
            pyro.module("decoder", self.decoder)
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                pyro.sample("x", dist.Normal(self.decoder(z[..., None])[..., 0], 1.0), obs=x)

        def guide(self, x):
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(x / 2, 0.8))

    def build():
        plain = Plain()
        return pv.LatentVariableModel(plain.model, plain.guide)

    x = torch.randn(4)
    pair, other = build(), build()
    pv.log_weights(pair, x, num_samples=1)
    save(pair, tmp_path / "pair")
    with pytest.raises(
        ValueError, match=r"expected a pair that has declared 'decoder\$\$\$weight'.*Run it once"
    ):
        load(tmp_path / "pair", into=other)
    pv.log_weights(other, x, num_samples=1)
    load(tmp_path / "pair", into=other)
    assert log_weight_bits(other, x) == log_weight_bits(pair, x)


def test_buffers_of_modules_in_plain_functions(tmp_path):
    def build():
        norm = nn.BatchNorm1d(1)

        def model(x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                pyro.sample("x", dist.Normal(z, 1.0), obs=x)

        def guide(x):
            pyro.module("norm", norm)
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(norm(x[:, None])[:, 0], 0.8))

        return pv.LatentVariableModel(model, guide), norm

    x = 3 + torch.randn(20)
    (pair, norm), (other, fresh) = build(), build()
    pv.fit(pair, x, epochs=2)
    norm.eval()
    save(pair, tmp_path / "pair")
    load(tmp_path / "pair", into=other)
    assert torch.equal(fresh.running_mean, norm.running_mean)
    assert int(fresh.num_batches_tracked) == int(norm.num_batches_tracked)
    assert not fresh.training
    assert log_weight_bits(other, x) == log_weight_bits(pair, x)


# ---------------------------------------------------------------------------------------------------------
# Refusals touch nothing


def run(pair):
    pv.log_weights(pair, torch.randn(4), num_samples=1)
    return pair


@pytest.mark.parametrize(
    ("saved", "into", "error", "message"),
    [
        (own, lambda: own(width=7), ValueError, r"layers.0.*\(8|'out_features', 8|shape \(8"),
        (own, lambda: own(dtype=torch.float64), ValueError, "torch.float32, got .*torch.float64"),
        (
            own,
            vae,
            ValueError,
            "into: expected the .* parameters and buffers that were saved, got .* missing",
        ),
        (own, lambda: own(likelihood=likelihoods.Laplace), ValueError, "likelihoods/gaussian.*got .*laplace"),
        (own, lambda: own(scale=2.0), ValueError, "'scale', 2.0"),
        (own, lambda: baselines.PPCA(2), TypeError, "into: expected a pair.*got a PPCA"),
        (lambda: baselines.PPCA(2), own, TypeError, "into: expected a baseline.*got a VAE"),
        (
            vae,
            lambda: vae(prior="gaussian"),
            ValueError,
            "first 'pair:prior.loc'|first 'pair:prior.log_scale'",
        ),
        (
            lambda: run(declaring(constraints.positive, 0.3)),
            lambda: run(declaring(constraints.unit_interval, 0.3)),
            ValueError,
            "'theta' with the constraint .*greater_than.*, got the constraint .*interval",
        ),
        (
            lambda: run(declaring(constraints.positive, 0.3)),
            lambda: run(declaring(constraints.positive, 0.3, name="other")),
            ValueError,
            "first 'store:theta'; 1 more, first 'store:other'",
        ),
        (
            lambda: run(declaring(constraints.real, [0.3, 0.4])),
            lambda: run(declaring(constraints.real, [0.3])),
            ValueError,
            r"store:theta of shape \(2,\), torch.float32, got \(1,\)",
        ),
        (
            lambda: declaring(constraints.real, 0.3),
            lambda: run(declaring(constraints.real, 0.3)),
            ValueError,
            "1 more, first 'store:theta'",
        ),
    ],
)
def test_another_instance_is_refused_and_left_as_it_was(tmp_path, saved, into, error, message):
    save(saved(), tmp_path / "file")
    model = into()
    before = bits(model) if isinstance(model, nn.Module) else dict(vars(model))
    with pytest.raises(error, match=message):
        load(tmp_path / "file", into=model)
    assert before == (bits(model) if isinstance(model, nn.Module) else dict(vars(model)))


def test_two_saved_tensors_never_become_one(tmp_path):
    def build(tied):
        model = own()
        first, _, last = model.encoder.network.layers
        first.extra, last.extra = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.ones(2))
        if tied:
            last.extra = first.extra
        return model

    save(build(tied=False), tmp_path / "vae")
    with pytest.raises(ValueError, match=r"layers.0.extra and .*layers.2.extra as two tensors, got one"):
        load(tmp_path / "vae", into=build(tied=True))
    save(build(tied=True), tmp_path / "vae")
    load(tmp_path / "vae", into=build(tied=True))


def test_an_interrupted_load_changes_nothing(tmp_path, monkeypatch):
    model, other = own(), own()
    save(model, tmp_path / "vae")
    before, real, calls = bits(other), torch.Tensor.copy_, []

    def interrupted(self, *arguments):
        calls.append(self)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(self, *arguments)

    monkeypatch.setattr(torch.Tensor, "copy_", interrupted)
    with pytest.raises(KeyboardInterrupt):
        load(tmp_path / "vae", into=other)
    monkeypatch.undo()
    assert len(calls) > 4
    assert bits(other) == before


def test_damaged_and_foreign_files_touch_nothing(tmp_path):
    model = own()
    save(model, tmp_path / "vae")
    content, before = (tmp_path / "vae").read_bytes(), bits(model)
    shaken(model)
    changed = bits(model)
    assert changed != before
    marker = tmp_path / "executed"
    for damaged in (
        content[:-1],
        content[:-8] + bytes(8),
        content.replace(b"torch/Tanh", b"torch/ReLU", 1),
        pickle.dumps(Payload(marker)),
    ):
        (tmp_path / "vae").write_bytes(damaged)
        with pytest.raises(ValueError, match="whole and unchanged"):
            load(tmp_path / "vae", into=model)
    torch.save(Payload(marker), tmp_path / "vae")
    with pytest.raises(ValueError, match="whole and unchanged"):
        load(tmp_path / "vae", into=model)
    assert not marker.exists()
    assert bits(model) == changed


class Payload:
    """Pickled, it makes a file when it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


@pytest.mark.parametrize(
    "change",
    [
        lambda meta: meta.pop("architecture"),
        lambda meta: meta.pop("tensors"),
        lambda meta: meta["tensors"].append("nowhere"),
        lambda meta: meta.update(modules={}),
        lambda meta: meta["architecture"]["parts"].update(prior=77),
        lambda meta: meta["architecture"]["modules"][0].update(arguments={"unknown": {"value": 1}}),
        lambda meta: meta["architecture"]["modules"][0].update(arguments=None),
        lambda meta: meta.update(fitted={"tensor": "nowhere"}),
        lambda meta: meta.update(kind="checkpoint"),
        lambda meta: meta.pop("kind"),
    ],
)
def test_whole_files_of_other_content_are_refused(tmp_path, change):
    save(vae(), tmp_path / "vae")
    arrays, meta = storage.read(tmp_path / "vae")
    change(meta)
    storage.write(tmp_path / "vae", arrays, meta)
    with pytest.raises(ValueError, match=r"^(path|into|latent_dim): expected"):
        load(tmp_path / "vae")


@pytest.mark.parametrize(
    "packed",
    [
        "nowhere",
        "dependent",  # a constraint of torch's that pyro.param does not take
        "__doc__",
        ["nowhere", 1.0],
        ["greater_than", "nowhere"],
        ["greater_than", [["real"]]],
        ["interval", 0.0],
        ["independent", "nowhere", 1],
        ["independent", "real", 0.5],
        [],
        3,
    ],
    ids=str,
)
def test_a_forged_constraint_is_refused_and_nothing_changed(tmp_path, packed):
    save(run(declaring(constraints.positive, 0.3)), tmp_path / "pair")
    arrays, meta = storage.read(tmp_path / "pair")
    assert meta["constraints"] == {"theta": ["greater_than", 0.0]}
    meta["constraints"]["theta"] = packed
    storage.write(tmp_path / "pair", arrays, meta)
    fresh = declaring(constraints.positive, 0.3)
    message = "missing 1 required" if packed == ["interval", 0.0] else "constraints that pyro.param takes"
    with pytest.raises(Refused, match=rf"^path: expected .*{message}.*Nothing was changed"):
        load(tmp_path / "pair", into=fresh)
    assert not fresh.stored
    assert not list(fresh.parameters())


def nested(path, place, depth):
    """Put lists in lists into the JSON of a saved file, deeper than ``storage.write`` would, under a digest that fits."""
    arrays, meta = storage.read(path)
    storage.write(path, arrays, meta | {place: "HERE"})
    content = path.read_bytes()
    header = content[8 : 8 + int.from_bytes(content[:8], "little")].rstrip(b" ")
    about = json.loads(json.loads(header)["__metadata__"]["pyrovae"])
    header = header.replace(b'\\"HERE\\"', b"[" * depth + b"]" * depth)
    header = header.replace(about["sha256"].encode(), b"0" * 64)
    header += b" " * (-len(header) % 8)
    body = content[8 + int.from_bytes(content[:8], "little") :]
    content = len(header).to_bytes(8, "little") + header + body
    path.write_bytes(
        content.replace(b"0" * 64, storage._digest(content, content.index(b"0" * 64)).encode(), 1)
    )


@pytest.mark.parametrize("depth", [1, 3, 900, 100_000])
@pytest.mark.parametrize("place", ["kind", "architecture", "tensors", "modules", "fitted"])
def test_deeply_nested_json_is_refused(tmp_path, place, depth):
    save(vae(), tmp_path / "vae")
    nested(tmp_path / "vae", place, depth)
    if depth < 900:  # the forgery is one that the digest does not tell
        assert storage.read(tmp_path / "vae")[1][place] == json.loads("[" * depth + "]" * depth)
    with pytest.raises(Refused, match=r"^(path|into): expected"):
        load(tmp_path / "vae")


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (
            lambda path: save(nn.Linear(1, 1), path),
            "model: expected a VAE, a LatentVariableModel or a baseline",
        ),
        (lambda path: save(PAIRS["plain_functions"]().pair.model, path), "got a function. Wrap a Pyro model"),
    ],
)
def test_mistakes_are_refused(tmp_path, act, message):
    with pytest.raises(TypeError, match=message):
        act(tmp_path / "file")
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------------------------------------------------
# Baselines

#: Constructor arguments where there are no defaults.
ARGUMENTS = {
    "ppca": {"latent_dim": 1},
    "factor_analysis": {"latent_dim": 1},
    "gaussian_mixture": {"num_components": 2, "num_starts": 1, "covariance": "diag"},
    "bernoulli_mixture": {"num_components": 2, "num_starts": 1},
    "latent_class": {"num_classes": 2, "num_starts": 1},
    # short trees: what is saved need not have converged
    "bayesian_pca": {
        "latent_dim": 1,
        "num_samples": 50,
        "warmup_steps": 20,
        "num_chains": 2,
        "max_tree_depth": 2,
    },
    "normal_inverse_gamma": {"loc": [0.5, 0.2, 0.1]},
}


def fitted(name):
    """A baseline fitted to rows on its support, and rows."""
    generator = torch.Generator().manual_seed(0)
    family = baselines.REGISTRY[name]
    x = torch.randn(60, COLUMNS, generator=generator, dtype=torch.float64)
    baseline = family(**ARGUMENTS.get(name, {}))
    for rows in (x, (x > 0).double(), (3 + 2 * x).clamp(min=0).round()):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return baseline.fit(rows), rows
        except ValueError:
            continue
    raise AssertionError(name)


@pytest.mark.parametrize("name", baselines.REGISTRY)
def test_every_baseline(tmp_path, name):
    baseline, x = fitted(name)
    save(baseline, tmp_path / "baseline")
    for again in (
        load(tmp_path / "baseline"),
        load(tmp_path / "baseline", into=type(baseline)(**ARGUMENTS.get(name, {}))),
    ):
        assert type(again) is type(baseline)
        assert vars(again).keys() - {*again.derived} == vars(baseline).keys() - {*again.derived}
        assert repr(again) == repr(baseline)
        assert again.log_evidence(x).estimate.tobytes() == baseline.log_evidence(x).estimate.tobytes()
        assert torch.equal(again.sample(5), baseline.sample(5))


def test_chains_of_a_model_of_one_s_own(tmp_path):
    def coin(x):
        p = pyro.sample("p", dist.Beta(1.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Bernoulli(p), obs=x)

    options = {"num_samples": 60, "warmup_steps": 40, "num_chains": 2}
    x = torch.tensor([1.0, 0.0, 1.0, 1.0])
    mcmc = baselines.PyroMCMC(coin, **options).fit(x)
    mcmc.save(tmp_path / "mcmc")
    with pytest.raises(ValueError, match=r"whose model is code.*into=baseline"):
        load(tmp_path / "mcmc")
    again = load(tmp_path / "mcmc", into=baselines.PyroMCMC(coin, **options))
    assert torch.equal(again.posterior["p"], mcmc.posterior["p"])
    assert again.summary() == mcmc.summary()
    assert again.diagnostics.equals(mcmc.diagnostics)
    assert again.marginal_likelihood().total == mcmc.marginal_likelihood().total
    np.testing.assert_array_equal(again.log_evidence(x).estimate, mcmc.log_evidence(x).estimate)


def heights(scale, more=False, normal=True):
    """Chains of a mean whose prior has a scale; the likelihood may be another, and there may be another latent."""

    def model(x):
        mean = pyro.sample("mean", dist.Normal(0.0, scale))
        if more:
            pyro.sample("other", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mean, 1.0) if normal else dist.StudentT(4.0, mean, 1.0), obs=x)

    return baselines.PyroMCMC(model, num_samples=60, warmup_steps=40, num_chains=2)


def test_draws_are_loaded_into_their_own_model_only(tmp_path):
    """The log joint of μ is log N(μ; 0, s²) + Σ_n log N(x_n; μ, 1)."""
    x = torch.randn(30, generator=torch.Generator().manual_seed(0)).double()
    mcmc = heights(3.0).fit(x)
    mcmc.save(tmp_path / "mcmc")
    first = mcmc.posterior["mean"][0, 0]
    rest = dist.Normal(first, 1.0).log_prob(x).sum()
    now, was = (float(dist.Normal(0.0, scale).log_prob(first) + rest) for scale in (0.2, 3.0))
    for other, message in (
        (
            heights(0.2),
            rf"into: expected the model that was saved, got .* is {str(now)[:8]}\d+, was {str(was)[:8]}\d+",
        ),
        (heights(3.0, normal=False), r"log P\(x, latents\) at a kept draw is"),
        (heights(3.0, more=True), r"one whose latent number 2 is 'other' of shape \(\), was missing"),
    ):
        before = dict(vars(other))
        with pytest.raises(ValueError, match=message):
            load(tmp_path / "mcmc", into=other)
        assert vars(other) == before
    again = load(tmp_path / "mcmc", into=heights(3.0))
    assert torch.equal(again.posterior["mean"], mcmc.posterior["mean"])


def test_draws_of_earlier_versions_load(tmp_path):
    """Their files hold no log joint to compare."""
    mcmc = heights(3.0).fit(torch.arange(5.0))
    del mcmc._at_draws
    mcmc.save(tmp_path / "mcmc")
    again = load(tmp_path / "mcmc", into=heights(3.0))
    assert again.marginal_likelihood().total == mcmc.marginal_likelihood().total
    assert again._at_draws.shape == (4,)  # later changes of the model are found
    with pytest.raises(ValueError, match="latent number 2 is 'other'"):
        load(tmp_path / "mcmc", into=heights(3.0, more=True))


def total(sample):
    """Chains of two numbers whose sum is observed. Their roles, and thus the log joint, are alike."""

    def model(x):
        mean = sum(sample())
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mean, 1.0), obs=x)

    return baselines.PyroMCMC(model, num_samples=60, warmup_steps=40, num_chains=2)


@functools.cache
def numbers(*names):
    return lambda: [pyro.sample(name, dist.Normal(0.0, 3.0)) for name in names]


@functools.cache
def vector(*shape):
    return lambda: pyro.sample("w", dist.Normal(0.0, 3.0).expand(shape).to_event()).flatten()


def simplex(size):
    return lambda: pyro.sample("w", dist.Dirichlet(torch.ones(size)))


@functools.cache
def total_of_five(sample):
    return total(sample).fit(torch.arange(5.0))


@pytest.mark.parametrize(
    ("saved", "now", "message"),
    [
        (numbers("a", "b"), numbers("b", "a"), r"1 is 'b' of shape \(\), was 'a' of shape \(\)"),
        (numbers("a", "b"), numbers("a", "c"), r"2 is 'c' of shape \(\), was 'b' of shape \(\)"),
        (numbers("a", "b"), vector(2), r"1 is 'w' of shape \(2,\), was 'a' of shape \(\)"),
        (vector(2), numbers("w", "b"), r"1 is 'w' of shape \(\), was 'w' of shape \(2,\)"),
        (vector(2), vector(2, 1), r"1 is 'w' of shape \(2, 1\), was 'w' of shape \(2,\)"),
        (numbers("a", "b"), numbers("a"), r"2 is missing, was 'b' of shape \(\)"),
        (vector(2), simplex(2), "of 1 unconstrained parameters; 2 were saved"),
    ],
    ids=["exchanged", "renamed", "merged", "split", "reshaped", "dropped", "constrained"],
)
def test_draws_are_loaded_into_the_same_latents_only(saved, now, message, tmp_path):
    mcmc, other = total_of_five(saved), total(now)
    mcmc.save(tmp_path / "mcmc")
    before = dict(vars(other))
    with pytest.raises(
        ValueError, match=rf"^into: expected the model that was saved, got one .*{message}\. .*Nothing was"
    ):
        load(tmp_path / "mcmc", into=other)
    assert vars(other) == before
    again = load(tmp_path / "mcmc", into=total(saved))
    assert again.diagnostics.equals(mcmc.diagnostics)


@pytest.mark.parametrize("cls", [baselines.PPCA, baselines.FactorAnalysis])
def test_a_baseline_fitted_to_missing_cells_scores_the_same_bits(cls, tmp_path):
    """It is loaded in another memory layout than svd returns, in which sums round otherwise."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(60, 3, generator=generator) @ torch.randn(3, 9, generator=generator)
    x = (x + torch.randn(60, 9, generator=generator)).double()
    x[torch.rand(x.shape, generator=generator) < 0.1] = torch.nan
    baseline = cls(3).fit(x)
    baseline.save(tmp_path / "baseline")
    again = load(tmp_path / "baseline")
    assert again.loadings.stride() == baseline.loadings.stride()
    assert np.array_equal(again.log_evidence(x).estimate, baseline.log_evidence(x).estimate)


def test_a_baseline_not_yet_fitted(tmp_path):
    save(baselines.PPCA(2), tmp_path / "baseline")
    again = load(tmp_path / "baseline")
    assert again.latent_dim == 2
    filled, _ = fitted("ppca")
    with pytest.raises(ValueError, match=r"into: expected .*2.*, got .*1"):
        load(tmp_path / "baseline", into=filled)
    save(baselines.PPCA(1), tmp_path / "baseline")
    load(tmp_path / "baseline", into=filled)
    with pytest.raises(ValueError, match="Call PPCA"):
        filled.log_evidence(torch.zeros(1, 3))


class OwnBaseline(baselines.PPCA):
    """A baseline of the user's own, with code among its arguments."""

    derived = ("factors",)

    def __init__(self, transform, **options):
        super().__init__(**options)
        self.transform = transform

    def _fit(self, rows):
        super()._fit(rows)
        self._derive()

    def _derive(self):
        if hasattr(self, "loadings"):
            self.factors = {id(self): self.transform(self.loadings)}


def test_a_baseline_of_ones_own(tmp_path):
    x = torch.randn(20, 3, dtype=torch.float64)
    baseline = OwnBaseline(torch.tanh, latent_dim=1).fit(x)
    save(baseline, tmp_path / "baseline")
    with pytest.raises(ValueError, match=r"a OwnBaseline, whose transform is code.*into=baseline"):
        load(tmp_path / "baseline")
    again = load(tmp_path / "baseline", into=OwnBaseline(torch.tanh, latent_dim=1))
    assert again.log_evidence(x).estimate.tobytes() == baseline.log_evidence(x).estimate.tobytes()
    with pytest.raises(ValueError, match="into: expected OwnBaseline, got ppca"):
        load(tmp_path / "baseline", into=baselines.PPCA(1))
    baseline.code = torch.tanh
    content = (tmp_path / "baseline").read_bytes()
    with pytest.raises(TypeError, match=r"state\['code'\]: expected a number"):
        save(baseline, tmp_path / "baseline")
    assert (tmp_path / "baseline").read_bytes() == content


def test_nothing_here_unpickles_or_imports_by_name():
    for module in (saving, storage):
        source = Path(module.__file__).read_text()
        assert not any(
            word in source for word in ("torch.load", "import pickle", "importlib", "eval(", "exec(")
        )


def test_a_model_saves_itself(tmp_path):
    vae = pv.VAE.mlp(3, 1, hidden_dims=(2,))
    vae.save(tmp_path / "vae")
    again = pv.load(tmp_path / "vae")
    assert all(torch.equal(p, q) for p, q in zip(vae.parameters(), again.parameters(), strict=True))
    baseline = pv.baselines.PPCA(1).fit(torch.randn(9, 3))
    baseline.save(tmp_path / "ppca")
    assert torch.equal(pv.load(tmp_path / "ppca").loadings, baseline.loadings)


def test_a_fresh_pair_of_other_names_is_refused_when_it_runs(tmp_path):
    save(run(declaring(constraints.positive, 0.3)), tmp_path / "pair")
    other = declaring(constraints.positive, 0.3, name="other")
    load(tmp_path / "pair", into=other)
    for _ in range(2):
        with pytest.raises(ValueError, match=r"names that were in the file.*first 'other'"):
            run(other)
