"""Log densities are −∞ off the support, against SciPy; and which supports cover which."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from rates import SEED
from scipy import special, stats

import pyrovae as pv
from pyrovae import supports

AT = torch.tensor([-7.0, -0.5, 0.0, 0.3, 0.9, 1.0, 2.5, 4.0])
T = dist.transforms

#: Distributions over single numbers, each with SciPy's log density.
KNOWN = {
    "normal": (dist.Normal(0.5, 2.0), stats.norm(0.5, 2.0).logpdf),
    "exponential": (dist.Exponential(1.5), stats.expon(scale=1 / 1.5).logpdf),
    "gamma": (dist.Gamma(3.0, 2.0), stats.gamma(3.0, scale=0.5).logpdf),
    "uniform": (dist.Uniform(-1.0, 3.0), stats.uniform(-1.0, 4.0).logpdf),
    "log-normal": (dist.LogNormal(0.0, 1.0), stats.lognorm(1.0).logpdf),
    "beta": (dist.Beta(2.0, 3.0), stats.beta(2.0, 3.0).logpdf),
    "half-normal": (dist.HalfNormal(2.0), stats.halfnorm(scale=2.0).logpdf),
    "pareto": (dist.Pareto(1.0, 3.0), stats.pareto(3.0).logpdf),
    "shifted exponential": (
        dist.TransformedDistribution(dist.Exponential(1.0), [T.AffineTransform(-1.0, 2.0)]),
        stats.expon(loc=-1.0, scale=2.0).logpdf,
    ),
    "mirrored gamma": (
        dist.TransformedDistribution(dist.Gamma(3.0, 2.0), [T.AffineTransform(0.0, -1.0)]),
        lambda x: stats.gamma(3.0, scale=0.5).logpdf(-x),
    ),
    "scaled logistic of a normal": (
        dist.TransformedDistribution(
            dist.Normal(0.0, 1.0), [T.SigmoidTransform(), T.AffineTransform(-1.0, 3.0)]
        ),
        lambda x: np.where(
            (x > -1) & (x < 2),
            stats.norm.logpdf(special.logit(np.clip((x + 1) / 3, 1e-6, 1 - 1e-6)))
            - np.log(np.clip((x + 1) * (2 - x) / 3, 1e-12, None)),
            -np.inf,
        ),
    ),
    "mixture of gammas and nothing below": (
        dist.MixtureSameFamily(
            dist.Categorical(torch.tensor([0.3, 0.7])), dist.Gamma(torch.tensor([2.0, 5.0]), 1.0)
        ),
        lambda x: np.log(0.3 * stats.gamma(2.0).pdf(x) + 0.7 * stats.gamma(5.0).pdf(x)),
    ),
    "mixture of intervals": (
        dist.MixtureSameFamily(
            dist.Categorical(torch.tensor([0.5, 0.5])),
            dist.Uniform(torch.tensor([-1.0, 2.0]), torch.tensor([0.5, 3.0])),
        ),
        lambda x: np.log(0.5 * stats.uniform(-1, 1.5).pdf(x) + 0.5 * stats.uniform(2, 1).pdf(x)),
    ),
    "angle": (
        dist.VonMises(0.5, 2.0),
        lambda x: np.where(np.abs(x) <= np.pi, stats.vonmises(2.0, 0.5).logpdf(x), -np.inf),
    ),
}
#: Where torch's intervals and SciPy's disagree about an end point, or a density is infinite.
ENDS = {"uniform": [3.0], "beta": [0.0, 1.0], "gamma": [0.0], "mixture of intervals": []}


@pytest.mark.parametrize("validate", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", KNOWN)
def test_log_density_is_scipys_everywhere(name, dtype, validate):
    fn, known = KNOWN[name]
    at = torch.tensor([value for value in AT.tolist() if value not in ENDS.get(name, [])], dtype=dtype)
    with np.errstate(divide="ignore"):
        expected = known(at.numpy())
    fn = fn.expand(at.shape)
    fn._validate_args = validate
    np.testing.assert_allclose(supports.log_prob(fn, at), expected, rtol=1e-5, atol=1e-5)


def test_events_are_impossible_where_an_entry_is():
    fn = dist.Exponential(torch.ones(3, 2)).to_event(1)
    value = torch.tensor([[1.0, 2.0], [1.0, -2.0], [0.5, 0.5]])
    np.testing.assert_allclose(supports.log_prob(fn, value), [-3.0, -math.inf, -1.0], rtol=1e-6)


def test_a_category_beyond_the_last_is_impossible():
    fn = dist.Categorical(torch.tensor([0.25, 0.75]))
    assert supports.log_prob(fn, torch.tensor([1, 5])).exp().tolist() == [0.75, 0.0]


def test_masked_entries_stay_out():
    fn = dist.Exponential(torch.ones(2)).mask(torch.tensor([True, False]))
    assert supports.log_prob(fn, torch.tensor([-1.0, -1.0])).tolist() == [-math.inf, 0.0]


REAL, POSITIVE, UNIT = dist.Normal(0.0, 1.0), dist.Gamma(1.0, 1.0), dist.Beta(1.0, 1.0)
SHIFTED = KNOWN["shifted exponential"][0]


@pytest.mark.parametrize(
    ("proposal", "target", "covers"),
    [
        (REAL, REAL, True),
        (dist.StudentT(3.0), REAL, True),
        (
            dist.MultivariateNormal(torch.zeros(2), torch.eye(2)),
            dist.Normal(torch.zeros(2), 1.0).to_event(1),
            True,
        ),
        (dist.LogNormal(0.0, 1.0), POSITIVE, True),
        (dist.TransformedDistribution(REAL, [T.SigmoidTransform()]), UNIT, True),
        (UNIT, dist.Uniform(0.0, 1.0), True),
        (dist.Dirichlet(torch.ones(3)), dist.LogisticNormal(torch.zeros(2), torch.ones(2)), True),
        (
            dist.TransformedDistribution(REAL, [T.SigmoidTransform(), T.AffineTransform(0.0, 4.0)]),
            REAL,
            False,
        ),
        (dist.TransformedDistribution(REAL, [T.TanhTransform(), T.AffineTransform(0.0, 3.0)]), REAL, False),
        (dist.TransformedDistribution(REAL, [T.ExpTransform(), T.AffineTransform(-1.0, 1.0)]), REAL, False),
        (dist.TransformedDistribution(REAL, [T.AffineTransform(-1.0, 2.0)]), REAL, True),
        (
            dist.TransformedDistribution(REAL, [T.AffineTransform(-1.0, 2.0), T.ExpTransform()]),
            POSITIVE,
            True,
        ),
        (POSITIVE, REAL, False),
        (UNIT, POSITIVE, False),
        (dist.Uniform(torch.zeros(2), torch.tensor([1.0, 2.0])), REAL, False),
        (SHIFTED, REAL, False),
        (KNOWN["mixture of intervals"][0], REAL, False),
        (dist.Categorical(torch.ones(3)), dist.Categorical(torch.ones(3)), False),
    ],
)
def test_supports_that_cover_others_are_known(proposal, target, covers):
    assert supports.same_reach(proposal, target) is covers


# --- supports of latents


@pytest.mark.parametrize(
    ("fn", "expected"),
    [
        (
            dist.TransformedDistribution(
                dist.Normal(0.0, 1.0), [T.SigmoidTransform(), T.AffineTransform(2.0, 3.0)]
            ),
            (2, 5),
        ),
        (dist.TransformedDistribution(dist.Beta(2.0, 3.0), [T.AffineTransform(1.0, -2.0)]), (-1, 1)),
        (dist.TransformedDistribution(dist.Gamma(3.0, 2.0), [T.AffineTransform(0.0, -1.0)]), (-math.inf, 0)),
        (
            dist.TransformedDistribution(
                dist.Exponential(1.0), [T.AffineTransform(1.0, 2.0), T.AffineTransform(1.0, 0.5)]
            ),
            (1.5, math.inf),
        ),
        (
            dist.TransformedDistribution(dist.Normal(0.0, 1.0), [T.AffineTransform(2.0, 3.0)]),
            (-math.inf, math.inf),
        ),
        (
            dist.TransformedDistribution(
                dist.Normal(0.0, 1.0),
                [T.ComposeTransform([T.SigmoidTransform(), T.AffineTransform(2.0, 3.0)])],
            ),
            (2, 5),
        ),
        (dist.Gumbel(0.0, 1.0), (-math.inf, math.inf)),
        (dist.Beta(2.0, 3.0), (0, 1)),
    ],
)
def test_affine_transforms_move_the_bounds(fn, expected):
    """torch calls the support real, whatever is moved."""
    assert supports.bounds(supports.support(fn.expand([2]).to_event(1))) == expected
    if math.isfinite(sum(expected)):
        z = fn.sample((1000,))
        assert supports.support(fn).check(z).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("low", "high"), [(0.0, 1.0), (-1.0, 1.0), (2.0, 5.0), (0.0, math.inf), (-3.0, math.inf)]
)
def test_where_a_transform_saturates_is_at_the_edge(low, high, dtype):
    """torch's logistic function ends two numbers below 1, and its exponential function at 0 and ∞."""
    constraint = (
        dist.constraints.greater_than(low) if math.isinf(high) else dist.constraints.interval(low, high)
    )
    u = torch.tensor(
        [-1e3, -200.0 if low == 0 and dtype == torch.float64 else -60.0, 3.0, 60.0, 1e3], dtype=dtype
    )
    z = torch.distributions.biject_to(constraint)(u)
    z = z.clamp(*supports.inner_bounds((low, high), dtype))
    found = supports.at_edge(z, (low, high))
    upper = math.isfinite(high)
    assert found[0]
    assert not found[2]
    assert found[3] == upper
    assert found[4]
    columns = supports.at_edge(z, (torch.full_like(z, low), torch.full_like(z, high)))
    assert torch.equal(found, columns)


def uniform(low, high):
    """z ~ Uniform(low, high) and x ~ N(z, 0.25), in two columns; an unbounded guide, and log P(x)."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Uniform(low, high).to_event(1))
            pyro.sample("x", dist.Normal(z, 0.5).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x, 0.5).to_event(1))

    noise = torch.Generator().manual_seed(0)
    x = low + (high - low) * torch.rand(30, 2, generator=noise) + 0.5 * torch.randn(30, 2, generator=noise)
    rows, ends = x.double().numpy(), (low.double().numpy(), high.double().numpy())
    inside = special.ndtr((ends[1] - rows) / 0.5) - special.ndtr((ends[0] - rows) / 0.5)
    return pv.LatentVariableModel(model, guide), x, (np.log(inside) - np.log(ends[1] - ends[0])).sum(1)


@pytest.mark.statistical
@pytest.mark.parametrize("method", ["refined", "annealed", "importance", "auto"])
@pytest.mark.parametrize(
    "high", [torch.ones(2), torch.tensor([1.0, 3.0])], ids=["equal bounds", "bounds by column"]
)
def test_draws_beyond_bounds_that_are_tensors_have_no_density(method, high):
    """A draw of the guide off the support was moved to its edge, where it counted: up to 2.7 nats too high.

    An error of five standard errors and 0.02 nats has a probability below 1e-4 in any of the 30 rows.
    """
    pair, x, exact = uniform(-torch.ones(2), high)
    found = pv.log_evidence(pair, x, method=method, seed=SEED, check=False)
    sound = found.pareto_k < 0.5
    assert sound.sum() > 15
    assert (np.abs(found.estimate - exact) <= 5 * np.hypot(found.mcse, found.tail_error) + 0.02)[sound].all()


@pytest.mark.parametrize("method", ["importance", "jackknife"])
@pytest.mark.parametrize("repeated", [False, True], ids=["plate", "repeated rows"])
@pytest.mark.parametrize("composed", [False, True], ids=["steps", "composed"])
@pytest.mark.parametrize(
    ("low", "spread"),
    [([0.0, 10.0], 6.0), ([1000.0, 1.0], 3.5), ([5e4, 5e4], 2.0)],
    ids=["near", "one far", "far"],
)
def test_draws_that_round_onto_bounds_by_column_weigh_nothing(low, spread, composed, repeated, method):
    """Their log density is that of a number beside them: rows were up to 1500 nats too high, and some trusted.

    An error of five standard errors and 0.1 nats has a probability below 1e-4 in any of the 20 rows.
    """
    low, width = torch.tensor(low), torch.tensor([1.0, 1.001])
    steps = [T.SigmoidTransform(), T.AffineTransform(low, width)]

    def shaped(x):  # which a plate of particles does not allow
        return x.reshape(len(x), 2) if repeated else x

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Uniform(low, low + width).to_event(1))
            pyro.sample("x", dist.Normal(shaped(z), 0.5).to_event(1), obs=x)

    def guide(x):
        start = dist.Normal(torch.logit(((x - low) / width).clamp(0.05, 0.95)), spread)
        fn = dist.TransformedDistribution(start, [T.ComposeTransform(steps)] if composed else steps)
        with pyro.plate("data", len(x)):
            shaped(pyro.sample("z", fn.to_event(1)))

    noise = torch.Generator().manual_seed(0)
    x = low + width * torch.rand(20, 2, generator=noise) + 0.5 * torch.randn(20, 2, generator=noise)
    rows, ends = x.double().numpy(), (low.double().numpy(), (low + width).double().numpy())
    inside = special.ndtr((ends[1] - rows) / 0.5) - special.ndtr((ends[0] - rows) / 0.5)
    exact = (np.log(inside) - np.log(ends[1] - ends[0])).sum(1)
    pair = pv.LatentVariableModel(model, guide)
    found = pv.log_evidence(pair, x, method=method, num_samples=5000, seed=SEED, check=False)
    assert (np.abs(found.estimate - exact) <= 5 * np.hypot(found.mcse, found.tail_error) + 0.1).all()


def narrow_beta(x):
    """z ~ Beta(0.05, 0.05), much of which rounds to 0 and 1, and a binomial x of 3 draws."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Beta(torch.full((2,), 0.05), 0.05).to_event(1))
        pyro.sample("x", dist.Binomial(3, probs=z).to_event(1), obs=x)


def wide_beta(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Beta(0.3 + x, 3.3 - x).to_event(1))


def test_mass_at_a_bound_is_not_trusted():
    """Chains that start or end where z rounds onto a bound have wrong densities there."""
    draws = np.random.default_rng(0)
    x = torch.tensor(draws.binomial(3, draws.beta(0.05, 0.05, (30, 2)))).float()
    pair = pv.LatentVariableModel(narrow_beta, wide_beta)
    at = x.double().numpy()
    exact = (
        special.gammaln(4) - special.gammaln(at + 1) - special.gammaln(4 - at)
        + special.betaln(0.05 + at, 3.05 - at) - special.betaln(0.05, 0.05)
    ).sum(1)  # fmt: skip
    found = pv.log_evidence(pair, x, method="annealed", num_temperatures=100, check=False)
    off = np.abs(found.estimate - exact) > 0.3
    assert off.any()
    assert set(found.verdict[off]) == {"another method"}
    assert any("round onto a bound" in reason for reason in found.reasons)
    assert set(pv.evidence.sandwich(pair, x, num_temperatures=50).verdict) == {"another method"}


@pytest.mark.parametrize("of_guide", [2, 3])
def test_a_sampler_that_has_another_density_is_refused(of_guide):
    """Of torch's LKJCholesky(3, 1), the squared correlations have the mean 0.3 instead of 0.25."""

    def model(x):
        with pyro.plate("data", len(x)):
            lower = pyro.sample("L", dist.LKJCholesky(of_guide, 1.0))
            pyro.sample("x", dist.Normal(lower[..., 1, :1], 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("L", dist.LKJCholesky(of_guide, torch.tensor(1.5)).expand([len(x)]))

    pair = pv.LatentVariableModel(model, guide)
    if of_guide == 2:
        assert pv.log_evidence(pair, torch.randn(5, 1), num_samples=100, check=False).estimate.shape == (5,)
        return
    with pytest.raises(
        ValueError, match=r"guide: .* got 'L', an LKJCholesky of 3 dimensions, whose draws in torch"
    ):
        pv.log_evidence(pair, torch.randn(5, 1), num_samples=100, check=False)

    def other(x):
        with pyro.plate("data", len(x)):
            normal = dist.Normal(torch.zeros(3), 1.0).expand([len(x), 3]).to_event(1)
            pyro.sample("L", dist.TransformedDistribution(normal, [T.CorrCholeskyTransform()]))

    pair = pv.LatentVariableModel(model, other)
    assert torch.isfinite(torch.as_tensor(pv.elbo(pair, torch.randn(5, 1), num_samples=10).mean))
    with pytest.raises(ValueError, match=r"model: .* got 'L', an LKJCholesky of 3 dimensions"):
        pv.log_evidence(pair, torch.randn(5, 1), num_samples=100)


def test_bounds_of_mixed_sign_or_of_other_latents_stay_real():
    """Scales of both signs give each entry a bound on another side; other latents give bounds that change."""
    mixed = dist.TransformedDistribution(
        dist.HalfNormal(torch.ones(2)), [T.AffineTransform(0.0, torch.tensor([1.0, -1.0]))]
    )
    zero = dist.TransformedDistribution(
        dist.HalfNormal(torch.ones(2)), [T.AffineTransform(0.0, torch.zeros(2))]
    )
    assert supports.support(mixed) is dist.constraints.real
    assert supports.support(zero) is dist.constraints.real

    def model(x):
        with pyro.plate("data", len(x)):
            m = pyro.sample("m", dist.Normal(0.0, 1.0))
            z = pyro.sample(
                "z", dist.TransformedDistribution(dist.Exponential(1.0), [T.AffineTransform(m, 1.0)])
            )
            pyro.sample("x", dist.Normal(z[..., None], 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            m = pyro.sample("m", dist.Normal(0.5 * x[:, 0], 0.8))
            pyro.sample("z", dist.TransformedDistribution(dist.Exponential(1.0), [T.AffineTransform(m, 1.0)]))

    # x ~ N(m + e, 1) with m ~ N(0, 1) and e ~ Exponential(1): a normal of variance 2 and an exponential.
    x = torch.tensor([[-1.0], [0.5], [2.0]])
    exact = stats.exponnorm(1 / math.sqrt(2), loc=0.0, scale=math.sqrt(2)).logpdf(x[:, 0].double().numpy())
    found = pv.log_evidence(
        pv.LatentVariableModel(model, guide), x, method="refined", num_samples=4000, seed=SEED, check=False
    )
    np.testing.assert_allclose(found.estimate, exact, atol=0.1)


@pytest.mark.parametrize(("low", "sd"), [(-1000.0, 1e-3), (-1e6, 0.1)])
def test_precise_draws_near_the_bound_of_a_wide_prior_count(low, sd):
    """The draws of an unbounded guide are as fine as float32 near 0, however far away the other bound is."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Uniform(low, 0.0))
            pyro.sample("x", dist.Normal(z[..., None], sd).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x[:, 0], sd))

    x = torch.tensor([[-0.5], [-2.0], [-5.0]]) * sd
    exact = special.log_ndtr(-x[:, 0].double().numpy() / sd) - math.log(-low)
    found = pv.log_evidence(pv.LatentVariableModel(model, guide), x, num_samples=4000, seed=SEED, check=False)
    np.testing.assert_allclose(found.estimate, exact, atol=0.06)


def test_scaled_bounds_at_zero_are_at_the_edge():
    fn = dist.TransformedDistribution(dist.Beta(0.02, 1.0), [T.AffineTransform(0.0, 5.0)])
    z, scale = fn.sample((4000,)), dist.Beta(0.02, 1.0).sample((4000,))
    found = supports.at_edge(z, supports.bounds(supports.support(fn))).float().mean()
    plain = supports.at_edge(scale, (0.0, 1.0)).float().mean()
    assert plain > 0.1
    assert abs(found - plain) < 0.05
    fn = dist.TransformedDistribution(dist.Beta(0.02, 1.0), [T.AffineTransform(0.1, 0.3)])
    z = 0.1 + 0.3 * dist.Beta(torch.tensor(0.02).double(), 1.0).sample((4000,))
    assert supports.at_edge(z, supports.bounds(supports.support(fn))).float().mean() > 0.1


def test_a_support_with_tensors_is_named_in_one_line():
    low, high = torch.tensor([0.0, 3.0]), torch.tensor([1.0, 5.0])

    def model(x):
        with pyro.plate("data", len(x)):
            parts = dist.Uniform(low.expand(len(x), 2), high)
            z = pyro.sample("z", dist.MixtureSameFamily(dist.Categorical(torch.ones(len(x), 2)), parts))
            pyro.sample("x", dist.Normal(z[..., None], 0.8).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x[:, 0], 1.2))

    with pytest.raises(
        ValueError, match=r"latent 'z' on MixtureSameFamilyConstraint, which has no bijection"
    ):
        pv.log_evidence(pv.LatentVariableModel(model, guide), torch.randn(20, 1), method="refined")


def test_bounds_on_the_other_side_in_some_rows_are_not_known():
    """A half-line whose side a scale by row chooses: no draw is at a bound, and none is an error."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_tensor(0.0), 2.0))
            pyro.sample("x", dist.Normal(z[..., None], torch.ones(2)).to_event(1), obs=x)

    def guide(x):
        side = torch.where(x[:, 0] > 0, 1.0, -1.0)
        start = dist.Gamma(torch.full_like(side, 2.0), 1.0)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.TransformedDistribution(start, [T.AffineTransform(0 * side, side)]))

    x = torch.rand(600, 2, generator=torch.Generator().manual_seed(0)) + 0.5
    x[317] = -1.0
    found = pv.log_evidence(pv.LatentVariableModel(model, guide), x, num_samples=200, seed=SEED, check=False)
    assert np.isfinite(found.estimate).all()


def test_masked_entries_at_a_bound_weigh_as_others():
    """s ~ Gamma(0.01), most of which rounds to zero, is masked in all rows, in model and guide."""

    def latents(x):
        pyro.sample("s", dist.Gamma(torch.full((len(x),), 0.01), 1.0).mask(x[:, 0] > 9))
        return pyro.sample("z", dist.Normal(x.new_tensor(0.0), 1.0))

    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(latents(x)[..., None], torch.ones(2)).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("s", dist.Gamma(torch.full((len(x),), 0.01), 1.0).mask(x[:, 0] > 9))
            pyro.sample("z", dist.Normal(x.mean(-1) * 2 / 3, 0.6))

    x = torch.tensor([[-1.0, 0.5], [-0.3, 0.1]])
    exact = dist.MultivariateNormal(torch.zeros(2), torch.ones(2, 2) + torch.eye(2)).log_prob(x)
    found = pv.log_evidence(pv.LatentVariableModel(model, guide), x, num_samples=5000, seed=SEED, check=False)
    np.testing.assert_allclose(found.estimate, exact, atol=0.01)
    assert not found.reasons


def test_moves_by_row_are_checked_too():
    """x − m_n ~ Exp(1) has density exp(m_n − x) above m_n, which differs by row, and 0 below it."""
    move = dist.transforms.AffineTransform(torch.tensor([1.0, 2.0]), 1.0)
    fn = dist.TransformedDistribution(dist.Exponential(torch.ones(2)), [move])
    found = supports.log_prob(fn, torch.tensor([0.5, 3.0]), checked=True)
    assert found.tolist() == [-math.inf, -1.0]


def test_a_prior_off_its_declared_support_is_named_as_a_cause():
    """A normal prior that declares positive values: their logarithms, in which "auto" searches, are NaN."""

    class Positive(dist.Normal):
        support = dist.constraints.positive

        def expand(self, batch_shape, _instance=None):
            return Positive(self.loc.expand(batch_shape), self.scale.expand(batch_shape), validate_args=False)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", Positive(torch.zeros(()), 1.0, validate_args=False))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, 0.7))

    x = torch.randn(40, generator=torch.Generator().manual_seed(SEED))
    with pytest.raises(ValueError, match=r"log weights below \+∞.* off the support that it declares"):
        pv.log_evidence(pv.LatentVariableModel(model, guide), x, method="auto")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_where_a_broken_stick_has_no_digits_is_at_the_edge(dtype):
    """A share z of what is left of the stick is lost at 0, and its rest at z = 1, but 1 − z keeps its digits near z = 0."""
    u = torch.tensor([[-60, -60], [-60, 0], [-20, 3], [60, 0], [0, 60], [-800, 0], [-60, 60]], dtype=dtype)
    p = torch.distributions.biject_to(dist.constraints.simplex)(u)
    lost = [[], [], [], [0], [1], [0], [1]]
    expected = torch.tensor([[place in each for place in range(3)] for each in lost])
    assert torch.equal(supports.at_simplex_edge(p), expected)
    assert p[3, 1] + p[3, 2] == torch.finfo(dtype).eps
