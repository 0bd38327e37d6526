"""diagnose(): numbers against closed forms, and the right words on three seeds each."""

import copy
import math
import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from oracles import LinearGaussian
from pairs import PAIRS
from rates import SEED, Z, close

import pyrovae as pv
from pyrovae import encoders, likelihoods, priors
from pyrovae.demo import Overconfident
from pyrovae.diagnosis import _healthy, diagnose
from pyrovae.evaluation import Evaluation
from pyrovae.noise import Stream
from pyrovae.pair import posterior_moments
from pyrovae.refusals import Refused

ORACLE = LinearGaussian.random(3, 6)
X = ORACLE.sample(150, seed=SEED)


def rates(mean, variance):
    """KL(N(mean, variance) ‖ N(0, 1)) of every dimension, averaged over rows."""
    return 0.5 * (mean**2 + variance - 1 - variance.log()).mean(dim=0)


# ---------------------------------------------------------------------------------------------------------
# Closed forms


@pytest.fixture(scope="module")
def mean_field():
    return diagnose(ORACLE.mean_field_pair(), X, num_samples=1000, seed=SEED)


def test_a_factorised_posterior_is_exact_by_dimension(mean_field):
    mean, variance = ORACLE.posterior(X).mean, 1 / ORACLE.precision().diagonal()
    frame = mean_field.dimensions
    assert list(frame.index) == ["z[0]", "z[1]", "z[2]"]
    assert set(frame["kind"]) == {"exact"}
    np.testing.assert_allclose(frame["rate"], rates(mean, variance), rtol=1e-5)
    np.testing.assert_allclose(frame["variance_of_mean"], mean.var(dim=0), rtol=1e-5)
    assert mean_field.active_units == 3


@pytest.mark.statistical
def test_the_halves_of_the_elbo_and_of_the_rate_add_up(mean_field):
    bound = pv.elbo(
        ORACLE.mean_field_pair(), X, num_samples=100, seed=SEED, tile=mean_field.log_evidence.tile
    )
    assert mean_field.elbo == bound.mean
    assert mean_field.reconstruction - mean_field.rate == pytest.approx(mean_field.elbo)
    error = mean_field.mutual_information_mcse + mean_field.prior_gap_mcse
    total = mean_field.mutual_information + mean_field.prior_gap
    assert abs(total - mean_field.dimensions["rate"].sum()) < Z * error


@pytest.mark.statistical
def test_the_inference_gap_is_what_the_family_misses(mean_field):
    precision = ORACLE.precision()
    exact = 0.5 * float(precision.diagonal().log().sum() - torch.logdet(precision))
    slack = 2 * abs(mean_field.log_evidence.mean_bias)  # of a lower bound
    assert abs(mean_field.inference_gap - exact) < Z * mean_field.inference_gap_se + slack
    assert exact > 3 * (Z * mean_field.inference_gap_se + slack)  # or the line above said nothing


def test_a_full_posterior_has_no_gap_and_marginal_rates():
    found = diagnose(ORACLE.pair(), X, num_samples=100, seed=SEED)
    exact = ORACLE.posterior(X)
    assert set(found.dimensions["kind"]) == {"marginal"}
    np.testing.assert_allclose(found.dimensions["rate"], rates(exact.mean, exact.variance), rtol=1e-5)
    np.testing.assert_allclose(found.dimensions["variance_of_mean"], exact.mean.var(dim=0), rtol=1e-5)
    assert abs(found.inference_gap) < 1e-4
    assert found.verdict == "healthy"
    assert "do not sum to the rate" in str(found)


@pytest.mark.statistical
def test_information_of_few_rows_is_that_of_the_mixture_on_a_grid():
    """q(z) is a mixture of five Gaussians: its entropy and its KL from the prior, by a dense grid."""
    oracle = LinearGaussian(torch.tensor([[1.5]], dtype=torch.float64), torch.zeros(1).double(), 0.8)
    x = torch.tensor([[-2.0], [-0.5], [0.1], [0.3], [4.0]], dtype=torch.float64)
    found = diagnose(oracle.pair(), x, num_samples=100, seed=SEED)
    posterior = oracle.posterior(x)
    rows = dist.Normal(posterior.mean[:, 0], posterior.variance[:, 0].sqrt())
    z = torch.linspace(-8, 8, 40_001, dtype=torch.float64)
    log_q = rows.log_prob(z[:, None]).logsumexp(dim=1) - math.log(5)
    q, step = log_q.exp(), float(z[1] - z[0])
    information = float(-(q * log_q).sum() * step - rows.entropy().mean())
    gap = float((q * (log_q - dist.Normal(0.0, 1.0).log_prob(z))).sum() * step)
    assert found.information_rows == 5
    assert close(found.mutual_information, information, found.mutual_information_mcse)
    assert close(found.prior_gap, gap, found.prior_gap_mcse)
    assert found.mutual_information_mcse < 0.05 * information
    assert found.prior_gap_mcse < 0.2 * gap


@pytest.mark.statistical
def test_information_of_many_rows_is_the_channels():
    """Rows from the model under its exact posterior: I(x; z) = ½ log |I + WᵀW/σ²|, and q(z) is the prior."""
    oracle = replace(ORACLE, loadings=0.4 * ORACLE.loadings[:, :1])
    found = diagnose(oracle.pair(), oracle.sample(1500, seed=SEED), num_samples=100, seed=SEED)
    exact = 0.5 * float(torch.logdet(oracle.precision()))
    # With N rows q(z) is off by 1/N of its variance over them; to first order that many nats too little.
    bias = math.exp(2 * exact) / 1500
    assert abs(found.mutual_information - exact) < Z * found.mutual_information_mcse + bias
    assert abs(found.prior_gap) < Z * found.prior_gap_mcse + bias
    assert exact > 0.4


def test_more_rows_than_are_held_against_each_other_are_sampled(monkeypatch):
    monkeypatch.setattr("pyrovae.diagnosis._MOST_ROWS", 40)
    found = diagnose(ORACLE.pair(), X, num_samples=100, seed=SEED)
    assert found.information_rows == 40
    assert found.mutual_information < math.log(40)


def test_what_few_rows_cannot_show_is_said():
    found = diagnose(ORACLE.pair(), X[:12], num_samples=100, seed=SEED)
    assert found.mutual_information <= math.log(12)
    assert any("How the rest of the rate splits cannot be determined" in str(f) for f in found.findings)
    assert found.verdict == "healthy"


def test_means_that_are_estimates_do_not_make_a_dimension_active():
    """A latent without closed-form moments that ignores x: its estimated means vary, its true ones do not."""

    class Hidden(dist.Normal):
        """A Normal that does not tell its moments."""

        @property
        def mean(self):
            raise NotImplementedError

        @property
        def variance(self):
            raise NotImplementedError

    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x.new_zeros(4), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(x.new_zeros(6), 2.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", Hidden(x.new_zeros(len(x), 4), x.new_ones(4)).to_event(1))

    found = diagnose(pv.LatentVariableModel(model, guide), X.float(), num_samples=100, seed=SEED)
    assert found.active_units == 0
    assert found.verdict == "collapsed"


# ---------------------------------------------------------------------------------------------------------
# Any pair


@pytest.mark.statistical
@pytest.mark.parametrize("name", [name for name in PAIRS if name != "mixture"])  # whose latent is discrete
def test_every_pair_is_diagnosed(name):
    case = PAIRS[name]()
    found = diagnose(case.pair, case.x, num_samples=100, seed=SEED)
    error = found.mutual_information_mcse + found.prior_gap_mcse
    bound = pv.elbo(case.pair, case.x, num_samples=400, seed=SEED + 1)
    spread = float(bound.mcse.max()) * 2
    assert abs(found.mutual_information + found.prior_gap - bound.rate.mean()) < Z * (error + spread)
    assert found.mutual_information <= math.log(len(case.x)) + Z * found.mutual_information_mcse
    assert str(found)


@pytest.mark.statistical
def test_conditional_rates_of_a_hierarchy_sum_to_the_rate():
    case = PAIRS["hierarchical"]()
    found = diagnose(case.pair, case.x.repeat(60, 1), num_samples=200, seed=SEED)
    assert list(found.dimensions.index) == ["z2", "z1"]
    assert set(found.dimensions["kind"]) == {"sampled"}
    # 64 and 100 draws of log Q − log P for each of 420 rows
    spread = pv.log_weights(case.pair, case.x, num_samples=400).std().item()
    error = spread * (1 / 64 + 1 / 100) ** 0.5 / 420**0.5
    assert close(found.dimensions["rate"].sum(), found.rate, error)
    assert error < 0.05 * found.rate


def test_every_latent_is_flattened_under_its_name():
    case = PAIRS["independent_sites"]()
    frame = diagnose(case.pair, case.x, num_samples=100).dimensions
    assert list(frame.index) == ["level", "slopes[0]", "slopes[1]"]
    assert list(frame["kind"]) == ["exact", "marginal", "marginal"]
    case = PAIRS["columns_inside"]()
    assert list(diagnose(case.pair, case.x, num_samples=100).dimensions.index) == [
        "z",
        "u[0]",
        "u[1]",
        "u[2]",
    ]


def test_a_discrete_latent_is_refused():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(0.5 * x.new_ones(())))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Bernoulli(torch.sigmoid(x - 0.5)))

    with pytest.raises(ValueError, match="the discrete latent 'z'"):
        diagnose(pv.LatentVariableModel(model, guide), X[:, 0].float(), num_samples=100)


@pytest.mark.parametrize("num_samples", [10, 99])
def test_too_few_draws_are_refused(num_samples):
    with pytest.raises(ValueError, match="num_samples: expected a whole number ≥ 100"):
        diagnose(ORACLE.pair(), X, num_samples=num_samples)


def test_flows_are_diagnosed_by_their_moments():
    torch.manual_seed(0)
    vae = pv.VAE(
        priors.Flow(2, num_transforms=1, hidden_dims=(4,)),
        likelihoods.Bernoulli(pv.MLP(2, (4,), 5)),
        encoders.Flow(pv.MLP(5, (4,), encoders.Flow.outputs(2)), num_transforms=1, hidden_dims=(4,)),
    )
    found = diagnose(vae, torch.bernoulli(torch.full((30, 5), 0.5)), num_samples=100)
    assert set(found.dimensions["kind"]) == {"marginal"}
    assert np.isfinite(found.dimensions["rate"]).all()


def test_same_seed_same_numbers_and_the_global_generator_stays():
    before = torch.random.get_rng_state()
    first, again, other = (str(diagnose(ORACLE.mean_field_pair(), X, 100, seed=s)) for s in (1, 1, 2))
    assert torch.equal(before, torch.random.get_rng_state())
    assert first == again != other


# ---------------------------------------------------------------------------------------------------------
# Words, on three seeds each


def rows_with_structure(seed):
    """A curved sheet in eight columns, with a little noise."""
    generator = torch.Generator().manual_seed(seed)
    z, w = torch.randn(300, 2, generator=generator), torch.randn(2, 8, generator=generator)
    return 2 * torch.tanh(z @ w) + 0.5 * torch.randn(300, 8, generator=generator)


def trained(x, seed, scale, epochs):
    torch.manual_seed(seed)
    vae = pv.VAE.mlp(8, latent_dim=2, likelihood="gaussian", hidden_dims=(16,), scale=scale)
    pv.fit(vae, x, epochs=epochs, batch_size=50, lr=1e-2, seed=seed)
    return vae


SEEDS = [SEED, SEED + 1]


@pytest.fixture(scope="module", params=SEEDS)
def healthy(request):
    x = rows_with_structure(request.param)
    return trained(x, request.param, 0.5, epochs=60), x


def words(found):
    return " ".join(str(finding) for finding in found.findings)


def test_a_healthy_vae_is_called_healthy(healthy):
    vae, x = healthy
    found = diagnose(vae, x, num_samples=200)
    assert (found.verdict, found.active_units) == ("healthy", 2)
    assert found.findings[0].remedy == ""
    assert str(found.findings[0]).startswith(
        "The code uses 2 dimensions, and the encoder finds it: the inference gap is "
    )
    assert str(_healthy(SimpleNamespace(active_units=1, inference_gap=0.1))).startswith(
        "The code uses 1 dimension, and"
    )


@pytest.mark.parametrize("seed", SEEDS)
def test_a_vae_trained_into_collapse_is_called_collapsed(seed):
    """The rows have structure, but the noise that the decoder has to put on them drowns it."""
    x = rows_with_structure(seed)
    found = diagnose(trained(x, seed, 10.0, epochs=15), x, num_samples=200)
    assert found.verdict == "collapsed"
    assert "The code carries no information about x" in words(found)
    assert "kl_warmup" in words(found)


def test_a_collapse_with_active_dimensions_does_not_contradict_itself():
    """z ~ N(0, 1), x | z ~ N(w z, 1), w = 0.16: the means vary by w² / (1 + w²) = 0.025, the rate is ½ log(1 + w²) = 0.0126."""
    w = 0.16

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(w * z, 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(w * x / (1 + w**2), (1 + w**2) ** -0.5).to_event(1))

    x = (1 + w**2) ** 0.5 * torch.randn(400, 1, generator=torch.Generator().manual_seed(0))
    found = diagnose(pv.LatentVariableModel(model, guide), x, num_samples=100)
    assert (found.verdict, found.active_units) == ("collapsed", 1)
    said = f"collapsed: rate {found.rate:.3f} nats a row, though the mean of z varies in 1 of 1 latent dimensions"
    assert str(found).startswith(said)
    assert pv.plots.diagnosis(found).get_title().replace("\n", " ") == said
    assert "almost no information about x: 0.01" in words(found)
    assert "Active dimensions: 1. Their means vary over rows" in words(found)
    assert "baselines.IndependentGaussian or PPCA)" in words(found)
    assert "Bernoulli" not in words(found)


@pytest.mark.parametrize("seed", SEEDS)
def test_nothing_to_tell_is_named_as_a_reason_for_collapse(seed):
    x = torch.randn(300, 8, generator=torch.Generator().manual_seed(seed))
    found = diagnose(trained(x, seed, 1.0, epochs=20), x, num_samples=200)
    assert found.verdict == "collapsed"
    assert "Either the decoder's biases already describe x" in words(found)


def test_an_overconfident_encoder_is_called_poor(healthy):
    vae, x = healthy
    spoiled = copy.deepcopy(vae)
    spoiled.encoder = Overconfident(spoiled.encoder, factor=0.25)
    found = diagnose(spoiled, x, num_samples=200)
    assert found.verdict == "poor encoder"
    assert found.gap_method == "refined on 64 rows"
    assert 'method="auto"' in words(found)


def test_an_encoder_with_perturbed_weights_is_called_poor(healthy):
    vae, x = healthy
    spoiled = copy.deepcopy(vae)
    with torch.no_grad():
        for parameter in spoiled.encoder.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape))
    found = diagnose(spoiled, x, num_samples=200)
    assert found.verdict == "poor encoder"
    assert "Learn the prior" not in words(found)  # that q(z) is off is the encoder's doing


def test_an_encoder_that_ignores_x_is_poor_and_not_a_collapse(healthy):
    """No rate and no active dimension, as in a collapse; but the decoder uses z."""
    vae, x = healthy
    spoiled = copy.deepcopy(vae)
    last = [m for m in spoiled.encoder.modules() if isinstance(m, torch.nn.Linear)][-1]
    with torch.no_grad():
        last.weight.zero_()
        last.bias.zero_()
    found = diagnose(spoiled, x, num_samples=200)
    assert (found.verdict, found.active_units) == ("poor encoder", 0)
    assert "ignores x, though the decoder uses z" in words(found)
    assert "The code carries no information about x" not in words(found)


def linear(latent_dim, columns, seed, rows=8):
    oracle = LinearGaussian.random(latent_dim, columns, seed=seed)
    precision = oracle.precision()
    gap = 0.5 * float(precision.diagonal().log().sum() - torch.logdet(precision))
    return oracle, oracle.sample(rows, seed=seed + 1), gap


@pytest.mark.statistical
def test_a_gap_of_many_nats_is_poor_over_any_number_of_dimensions(unchecked):
    """The best mean-field encoder of 50 correlated dimensions: 7 nats off, 0.15 a dimension, and no row believed."""
    oracle, x, exact = linear(50, 100, SEED, rows=3)
    found = diagnose(oracle.mean_field_pair(), x, num_samples=100, seed=SEED)
    assert exact > 5
    assert close(found.inference_gap, exact, found.inference_gap_se + 0.05)
    assert found.active_units == 50
    assert found.verdict == "poor encoder"
    assert "healthy" not in str(found)


@pytest.mark.parametrize(("latent_dim", "columns"), [(3, 12), (20, 200)])
def test_a_good_encoder_is_healthy_over_any_number_of_dimensions(latent_dim, columns, unchecked):
    """Posteriors that nearly factorise, under the best mean-field encoder; and the exact one."""
    oracle, x, exact = linear(latent_dim, columns, SEED)
    assert exact < 0.5
    for pair in (oracle.mean_field_pair(), oracle.pair()):
        assert diagnose(pair, x, num_samples=100, seed=SEED).verdict == "healthy"


def test_a_gap_that_no_method_knows_is_not_healthy(monkeypatch, healthy):
    """Where nothing can be refined, importance weights alone say how large the gap is, and too small a number."""
    vae, x = healthy
    spoiled = copy.deepcopy(vae)
    spoiled.encoder = Overconfident(spoiled.encoder, factor=0.25)

    def refuse(*_, **__):
        raise Refused("no method can move in this space")

    monkeypatch.setattr("pyrovae.diagnosis.refined", refuse)
    found = diagnose(spoiled, x, num_samples=200)
    assert (found.verdict, found.gap_method) == ("poor encoder", "importance")
    assert "is at least" in words(found)


@pytest.mark.parametrize("seed", SEEDS)
def test_codes_away_from_the_prior_are_called_a_mismatch(seed):
    """The exact posterior, of rows that are not from the model: nothing is wrong but the prior."""
    weak = LinearGaussian(0.5 * ORACLE.loadings[:, :1], ORACLE.loc, 0.7)
    found = diagnose(weak.pair(), weak.sample(200, seed=seed) + 6 * weak.loadings[:, 0], num_samples=100)
    assert found.verdict == "mismatched prior"
    assert "priors.VampPrior" in words(found)


def test_unused_dimensions_beside_used_ones_are_pruning():
    wide = replace(ORACLE, loadings=torch.cat([ORACLE.loadings[:, :1], torch.zeros(6, 2).double()], dim=1))
    found = diagnose(wide.mean_field_pair(), wide.sample(100, seed=SEED), num_samples=100)
    assert (found.verdict, found.active_units) == ("healthy", 1)
    assert "2 of 3 latent dimensions are unused" in words(found)


# ---------------------------------------------------------------------------------------------------------
# Units of z, and moments that do not exist

WEIGHTS = torch.tensor(
    [1.0, 0.06]
)  # the means have shares w² / (1 + w²) of the prior's variance: 0.5 and 0.0036


def in_unit(unit, prior):
    """Two dimensions of a linear Gaussian model with the posterior as its guide, and z in a unit; and 300 rows."""

    def model(x):
        with pyro.plate("data", len(x)):
            zero, one = x.new_zeros(len(x), 2), x.new_ones(2)
            if prior == "parent":  # of the first: z = u + e with variances 0.36 and 0.64
                parent = pyro.sample("u", dist.Normal(zero[:, 0], 0.6 * unit))
                first, scale = torch.stack([parent, zero[:, 0]], -1), unit * torch.tensor([0.8, 1.0])
                fn = dist.Normal(first, scale)
            elif prior == "no closed form":
                affine = dist.transforms.AffineTransform(0.0, unit)
                fn = dist.TransformedDistribution(dist.Normal(zero, one), [affine])
            else:
                fn = dist.Normal(zero, unit)
            z = pyro.sample("z", fn.to_event(1)) / unit
            pyro.sample("x", dist.Normal(WEIGHTS * z, 1.0).to_event(1), obs=x)

    def guide(x):
        precision = 1 + WEIGHTS**2
        with pyro.plate("data", len(x)):
            z = pyro.sample(
                "z", dist.Normal(unit * WEIGHTS * x / precision, unit * precision**-0.5).to_event(1)
            )
            if prior == "parent":
                pyro.sample("u", dist.Normal(0.36 * z[..., 0], 0.48 * unit))

    x = (1 + WEIGHTS**2).sqrt() * torch.randn(300, 2, generator=torch.Generator().manual_seed(SEED))
    return pv.LatentVariableModel(model, guide), x


@pytest.mark.parametrize("prior", ["closed form", "no closed form", "parent"])
@pytest.mark.parametrize("unit", [0.01, 1.0, 100.0])
def test_the_unit_of_z_changes_no_verdict(unit, prior, unchecked):
    pair, x = in_unit(unit, prior)
    found = diagnose(pair, x, num_samples=100, seed=SEED)
    frame = found.dimensions.loc[["z[0]", "z[1]"]]
    mean = unit * WEIGHTS * x / (1 + WEIGHTS**2)
    np.testing.assert_allclose(frame["variance_of_mean"], mean.var(dim=0), rtol=1e-4)
    assert list(frame["active"]) == [True, False]
    assert found.verdict == "healthy"


@pytest.mark.statistical
@pytest.mark.parametrize("prior", ["closed form", "no closed form", "parent"])
def test_the_variance_of_the_prior_is_that_over_all_its_draws(prior):
    """64 draws for 300 rows have an error of √(2 / 19 200) = 1 %."""
    evaluation = Evaluation.prepare(*in_unit(3.0, prior), 100, SEED, None)
    rows = slice(0, 300)
    drawn = evaluation.noise(Stream.DIAGNOSE, rows=rows)
    found = posterior_moments(evaluation.model, evaluation.part(rows), 64, drawn)["z"].prior_variance
    np.testing.assert_allclose(
        found.mean(dim=0), [9.0, 9.0], rtol=1e-6 if prior == "closed form" else 0.01 * Z
    )


def test_probabilities_of_many_topics_are_active(unchecked):
    """Each has a prior variance of 0.001; the exact posterior is the guide, and z has 19 nats of rate."""

    def model(x):
        with pyro.plate("data", len(x)):
            probs = pyro.sample("z", dist.Dirichlet(x.new_ones(30)))
            pyro.sample("x", dist.Multinomial(100, probs=probs), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Dirichlet(1 + x))

    torch.manual_seed(SEED)
    x = dist.Multinomial(100, probs=dist.Dirichlet(torch.ones(30)).sample((60,))).sample()
    found = diagnose(pv.LatentVariableModel(model, guide), x, num_samples=100, seed=SEED)
    assert (found.verdict, found.active_units) == ("healthy", 30)


def test_information_in_many_dimensions_is_no_collapse(unchecked):
    """Of 40 dimensions, none is active: their shares are w² / (1 + w²) = 0.007. The rate is 40 · ½ log(1 + w²) = 0.14."""
    w = 0.007**0.5
    oracle = LinearGaussian(w * torch.eye(40).double(), torch.zeros(40).double(), 1.0)
    found = diagnose(oracle.mean_field_pair(), oracle.sample(100, seed=SEED), num_samples=100, seed=SEED)
    assert found.rate == pytest.approx(20 * math.log(1 + w**2), rel=0.15)
    assert (found.verdict, found.active_units) == ("healthy", 0)
    assert "no dimension's mean is known to vary" in words(found)
    assert "unused" not in words(found)


WITHOUT_MEAN = {
    "Cauchy": lambda at: dist.Cauchy(at, 0.3),
    "some rows": lambda at: dist.StudentT(torch.where(at > 0, 3.0, 1.0), at, 0.3),
}


@pytest.mark.parametrize("name", WITHOUT_MEAN)
@pytest.mark.parametrize("used", [True, False])
def test_the_rate_tells_whether_a_latent_without_a_mean_is_used(name, used, unchecked):
    def model(x):
        with pyro.plate("data", len(x)), pyro.poutine.mask(mask=x > -1):
            z = pyro.sample("z", dist.Cauchy(torch.zeros_like(x), 0.3))
            with pyro.poutine.mask(mask=torch.ones_like(x, dtype=torch.bool)):
                pyro.sample("x", dist.StudentT(1.0, z if used else 0.0, 0.3), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)), pyro.poutine.mask(mask=x > -1):
            pyro.sample("z", WITHOUT_MEAN[name](x if used else torch.zeros_like(x)))

    x = torch.linspace(-2, 2, 50)
    found = diagnose(pv.LatentVariableModel(model, guide), x, num_samples=200, seed=SEED)
    assert np.isnan(found.dimensions.loc["z", "variance_of_mean"])
    assert bool(found.dimensions.loc["z", "active"]) == used == (found.rate > 0.1)
    assert "ignores x" not in words(found)
    assert (found.verdict == "collapsed") == (not used)
    assert "variance of mean" in str(found)


def test_one_row_has_no_variance_over_rows(unchecked):
    found = diagnose(ORACLE.mean_field_pair(), X[:1], num_samples=100, seed=SEED)
    assert found.dimensions["variance_of_mean"].isna().all()
    assert found.verdict == "healthy"
    assert list(found.dimensions["active"]) == list(found.dimensions["rate"] > 0.1)


# ---------------------------------------------------------------------------------------------------------
# The panel


def test_the_panel_fits_a_terminal_and_says_what_the_numbers_say(mean_field):
    panel = str(mean_field)
    assert repr(mean_field) == panel
    assert all(len(line) <= 88 for line in panel.splitlines())
    assert panel.startswith(f"{mean_field.verdict}: 3 of 3 latent dimensions active")
    for value in (mean_field.elbo, mean_field.rate, mean_field.mutual_information, mean_field.inference_gap):
        assert f"{value:.3f}" in panel
    assert "~" not in panel


def test_the_panel_of_many_dimensions_shows_the_largest():
    torch.manual_seed(0)
    vae = pv.VAE.mlp(6, latent_dim=20, hidden_dims=(8,))
    panel = str(diagnose(vae, torch.bernoulli(torch.full((9, 6), 0.5)), num_samples=100))
    assert re.search(r"and 8 more, \d of them active, rate [\d.]+ in all", panel)
    assert len(panel.splitlines()) < 40


def test_quantiles_of_k_hat_bear_infinities_and_unknowns():
    found = diagnose(ORACLE.pair(), X[:5], num_samples=100)
    found.log_evidence.pareto_k[:] = [-np.inf, 0.1, 0.2, np.inf, np.nan]
    assert found.pareto_k() == {"5%": -np.inf, "50%": 0.1, "95%": np.inf, "max": np.inf}
    found.log_evidence.pareto_k[:] = np.nan
    assert all(np.isnan(value) for value in found.pareto_k().values())
