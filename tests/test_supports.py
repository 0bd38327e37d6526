"""Log densities are −∞ off the support, against SciPy; and which supports cover which."""

import math

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from scipy import special, stats

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
