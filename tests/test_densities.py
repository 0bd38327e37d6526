"""densities.mismatch: draws of guide, prior and likelihood that have another density than log_prob states are found.

A test has a false-alarm rate of 10⁻⁹, so sound densities pass with any seed.
"""

import contextlib
import math

import pyro
import pyro.distributions as dist
import pyro.distributions.transforms as T
import pytest
import torch

import pyrovae as pv
from pyrovae.evaluation import Evaluation
from pyrovae.evidence.densities import ROWS, _tied, mismatch
from pyrovae.evidence.overlap import Overlap
from pyrovae.evidence.simulated import Supply
from pyrovae.refusals import Refused

NEED_OPTIONS = {"binomial", "categorical", "ordinal", "discretized_logistic"}


class Off(dist.Normal):
    """A normal distribution whose draws are wider or shifted, or whose log_prob lacks a constant."""

    def __init__(self, loc, scale, wider=1.0, moved=0.0, constant=0.0, validate_args=None):
        self.wider, self.moved, self.constant = wider, moved, constant
        super().__init__(loc, scale, validate_args=validate_args)

    def expand(self, shape, _instance=None):
        return Off(self.loc.expand(shape), self.scale.expand(shape), self.wider, self.moved, self.constant)

    def rsample(self, sample_shape=()):
        standard = super().rsample(torch.Size(sample_shape)) - self.loc
        return self.loc + self.moved * self.scale + self.wider * standard

    sample = rsample

    def log_prob(self, value):
        return super().log_prob(value) + self.constant


class Turn(dist.Uniform):
    """Angles in one turn, with a density that goes on beyond it, as that of every periodic distribution of torch."""

    support = torch.distributions.constraints.real

    def expand(self, shape, _instance=None):
        return Turn(self.low.expand(shape), self.high.expand(shape))

    def log_prob(self, value):
        return -(self.high - self.low).log() + torch.zeros_like(value)


class Doubled(T.AffineTransform):
    """z = 2 e, without its log-determinant."""

    def __init__(self):
        super().__init__(0.0, 2.0)

    def log_abs_det_jacobian(self, x, y):
        return torch.zeros_like(x)


class Moved(T.LowerCholeskyAffine):
    """A transform whose log-determinant is too high by a constant."""

    def __init__(self, loc, tril, constant):
        super().__init__(loc, tril)
        self.constant = constant

    def log_abs_det_jacobian(self, x, y):
        return super().log_abs_det_jacobian(x, y) + self.constant


def pair(make_guide, make_prior=None, dim=2, dtype=torch.float64):
    """z ~ prior, x ~ N(first entry of z, 1); ``make_guide`` gets the rows."""
    make_prior = make_prior or (
        lambda: dist.Normal(torch.zeros(dim, dtype=dtype), torch.ones(dim, dtype=dtype)).to_event(1)
    )

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", make_prior())
            pyro.sample(
                "x",
                dist.Normal(
                    z.reshape(*z.shape[: z.dim() - make_prior().event_dim], -1)[..., :1], 1.0
                ).to_event(1),
                obs=x,
            )

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", make_guide(x))

    return pv.LatentVariableModel(model, guide)


def found_in(made, dtype=torch.float64, seed=0, columns=1, x=None):
    x = torch.linspace(-2, 2, 16, dtype=dtype)[:, None].expand(-1, columns).abs().round() if x is None else x
    rows = Supply(Evaluation.prepare(made, x, 1, seed), 32).take(ROWS, 0)
    return mismatch(Evaluation.prepare(made, rows, 1, seed))


@pytest.mark.parametrize("dim", [1, 20])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "fault", [{"wider": 2.0}, {"wider": 0.5}, {"moved": 0.5}, {"constant": 0.3}, {"constant": -5.0}]
)
@pytest.mark.parametrize("part", ["guide", "prior"])
def test_draws_of_another_density_are_found(part, fault, dtype, dim):
    one = torch.ones(dim, dtype=dtype)
    if "constant" in fault:
        fault = {"constant": fault["constant"] / dim}

    def off(x=None):
        loc = torch.zeros(dim, dtype=dtype) if x is None else x.expand(-1, dim) / 2
        return Off(loc, one, **fault).to_event(1)

    def sound(x):
        return dist.Normal(x.expand(-1, dim) / 2, one).to_event(1)

    found = found_in(
        pair(off if part == "guide" else sound, None if part == "guide" else off, dim, dtype), dtype
    )
    assert found is not None
    assert f"draws of the {part} " in found


@pytest.mark.parametrize("constant", [-3.0, 3.0])
@pytest.mark.parametrize("dim", [11, 60])
def test_a_constant_among_correlated_latents_is_found(dim, constant):
    """A path with the correlation 0.95 from step to step; independent normals hardly overlap it."""
    steps = torch.arange(dim).double()
    tril = torch.linalg.cholesky(0.95 ** (steps[:, None] - steps).abs())

    def guide(x):
        base = dist.Normal(torch.zeros(len(x), dim).double(), 1.0).to_event(1)
        return dist.TransformedDistribution(base, [Moved(torch.zeros(dim).double(), tril, constant)])

    found = found_in(pair(guide, lambda: dist.MultivariateNormal(torch.zeros(dim).double(), scale_tril=tril)))
    assert f" {abs(constant):.0f} nats too {'low' if constant > 0 else 'high'} " in found


@pytest.mark.parametrize("constant", [-2.0, -0.5, 0.5, 2.0])
def test_a_missing_constant_is_measured(constant):
    one = torch.ones(2, dtype=torch.float64)
    found = found_in(pair(lambda x: Off(x.expand(-1, 2) / 2, one, constant=constant / 2).to_event(1)))
    way = "high" if constant > 0 else "low"
    assert f" nats too {way} " in found
    # Guide and Gaussian nearly agree, so the standard error is below 0.01 nats.
    assert abs(float(found.split("which is ")[1].split(" ")[0]) - abs(constant)) < 0.06


def test_a_transform_without_its_log_determinant_is_found():
    def guide(x):
        base = dist.Normal(x.expand(-1, 2) / 4, torch.full((2,), 0.4, dtype=torch.float64))
        return dist.TransformedDistribution(base, [Doubled()]).to_event(1)

    assert "guide" in found_in(pair(guide))


class Clusters(dist.MixtureSameFamily):
    """Ten clusters with places of standard deviation 5 in every dimension; log_prob lacks a constant."""

    def __init__(self, dim, constant=0.0, shape=()):
        self.dim, self.constant = dim, constant
        places = 5 * torch.randn(10, dim, generator=torch.Generator().manual_seed(1)).double()
        each = dist.Normal(places.expand(*shape, 10, dim), 1.0).to_event(1)
        super().__init__(dist.Categorical(torch.ones(*shape, 10).double() / 10), each)

    def expand(self, shape, _instance=None):
        return Clusters(self.dim, self.constant, shape)

    def log_prob(self, value):
        return super().log_prob(value) + self.constant


@pytest.mark.parametrize(("dim", "constant"), [(8, -1.0), (16, math.log(10))])
def test_a_constant_of_separated_clusters_is_found(dim, constant):
    """One Gaussian overlaps with 10⁻⁵ of the clusters, mixtures with 0.4 in four rows; three standard errors are 0.2 nats."""
    assert found_in(pair(lambda x: _normal(dim), lambda: Clusters(dim))) is None
    found = found_in(pair(lambda x: _normal(dim), lambda: Clusters(dim, constant)))
    assert "draws of the prior " in found
    assert abs(float(found.split("which is ")[1].split(" ")[0]) - abs(constant)) < 0.3


def _normal(dim, scale=1.0):
    return dist.Normal(torch.zeros(dim).double(), scale).to_event(1)


SOUND = {
    "a heavy tail": lambda: dist.StudentT(1.2, torch.zeros(2).double(), 1.0).to_event(1),
    "Cauchy": lambda: dist.Cauchy(torch.zeros(2).double(), 1.0).to_event(1),
    "mass at a bound": lambda: dist.Beta(torch.full((2,), 0.05).double(), 0.05).to_event(1),
    "a bounded density": lambda: dist.Uniform(torch.zeros(2).double(), 1.0).to_event(1),
    "a simplex": lambda: dist.Dirichlet(torch.full((5,), 0.4).double()),
    "angles": lambda: dist.VonMises(torch.full((2,), 3.0).double(), 0.1).to_event(1),
    "angles without bounds": lambda: Turn(torch.zeros(2).double(), 2 * math.pi).to_event(1),
    "two modes": lambda: dist.MixtureSameFamily(
        dist.Categorical(torch.tensor([0.9, 0.1]).double()),
        dist.Normal(
            torch.tensor([[-10.0], [10.0]]).double(), torch.tensor([[1.0], [0.01]]).double()
        ).to_event(1),
    ),
    "a narrow ridge": lambda: dist.MultivariateNormal(
        torch.zeros(6).double(), 1e-4 * torch.eye(6).double() + torch.ones(6, 6).double()
    ),
    "positive": lambda: dist.LogNormal(torch.zeros(2).double(), 2.0).to_event(1),
    "ordered": lambda: dist.TransformedDistribution(_normal(3), [T.OrderedTransform()]),
    "many dimensions": lambda: _normal(60),
    "a small scale": lambda: _normal(2, 1e-30),
}


@pytest.mark.parametrize("name", SOUND)
def test_sound_densities_pass(name):
    make = SOUND[name]
    assert found_in(pair(lambda x: make(), make)) is None


def test_bounds_that_rounding_reaches_are_not_tested():
    """In float32, a tenth of the draws of Beta(0.05, 0.05) round onto 1."""
    make = lambda: dist.Beta(torch.full((2,), 0.05), 0.05).to_event(1)  # noqa: E731
    assert found_in(pair(lambda x: make(), make), torch.float32) is None


def observing(make, columns):
    """z ~ N(0, 1), x given z by ``make(z)``, and the prior for a guide."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(1).double(), 1.0).to_event(1))
            pyro.sample("x", make(z).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(1).double(), 1.0).to_event(1))

    return pv.LatentVariableModel(model, guide)


class Uneven(dist.Poisson):
    """A Poisson distribution whose log_prob is e^0.2 times too high."""

    def expand(self, shape, _instance=None):
        return Uneven(self.rate.expand(shape))

    def log_prob(self, value):
        return super().log_prob(value) + 0.2


@pytest.mark.parametrize("columns", [1, 100])
@pytest.mark.parametrize(
    "make",
    [
        lambda one, z: Off(z * one, one, wider=2.0),
        lambda one, z: Off(z * one, one, moved=0.5),
        lambda one, z: Off(z * one, one, constant=-0.3),
        lambda one, z: Uneven((z * one).exp()),
        lambda one, z: dist.TransformedDistribution(dist.Normal(z * one, one), [Doubled()]),
    ],
)
def test_likelihoods_whose_draws_have_another_density_are_found(make, columns):
    one = torch.ones(columns).double()
    assert "likelihood" in found_in(observing(lambda z: make(one, z), columns), columns=columns)


def test_a_small_fault_of_every_column_is_found_in_their_sum():
    """A hundredth of a nat in each of 200 columns makes log P(x) 2 nats too high."""
    one = torch.ones(200).double()
    found = found_in(observing(lambda z: Off(z * one, one, constant=0.01), 200), columns=200)
    assert "draws of the likelihood do" in found
    assert " nats too high on average" in found
    # The standard error of the sum is 0.05 nats: 200 columns, 256 draws of ten rows, and an overlap of 0.95.
    assert abs(float(found.split("which is ")[1].split(" ")[0]) - 2.0) < 0.35


class Lacking(dist.TorchDistribution):
    """A distribution whose log_prob lacks a constant."""

    arg_constraints = {}  # noqa: RUF012

    def __init__(self, base, constant):
        self.base, self.constant = base, constant
        super().__init__(base.batch_shape, base.event_shape, validate_args=False)

    @property
    def support(self):
        return self.base.support

    def expand(self, shape, _instance=None):
        return Lacking(self.base.expand(shape), self.constant)

    def sample(self, sample_shape=()):
        return self.base.sample(torch.Size(sample_shape))

    def log_prob(self, value):
        return self.base.log_prob(value) + self.constant


def _far_modes(one, z):
    places = torch.stack([z * one, z * one + 1000], dim=-1)
    return dist.MixtureSameFamily(dist.Categorical(torch.ones(2).double() / 2), dist.Normal(places, 1.0))


WIDE = {
    "negative binomial counts of a million": lambda one, z: dist.GammaPoisson(one, 1e-6 * (-z).exp()),
    "Poisson counts of 10⁸": lambda one, z: dist.Poisson(1e8 * one * z.exp()),
    "a log-normal of seven decades": lambda one, z: dist.LogNormal(z * one, 5.0),
    "two far modes": _far_modes,
}


@pytest.mark.parametrize("constant", [-10.0, -0.3, 0.3])
@pytest.mark.parametrize("name", WIDE)
def test_constants_of_wide_columns_are_measured(name, constant):
    """Intervals of 16 draws overlap with 0.7 to 0.9 of the density; six standard errors are 0.03 to 0.05 nats."""
    one = torch.ones(1).double()
    x = 1 + torch.arange(16.0).double()[:, None] % 2
    found = found_in(observing(lambda z: Lacking(WIDE[name](one, z), constant), 1), x=x)
    assert "draws of the likelihood" in found
    assert f" nats too {'high' if constant > 0 else 'low'} on average" in found
    assert abs(float(found.split("which is ")[1].split(" ")[0]) - abs(constant)) < 0.08


class Doubles(dist.Poisson):
    """Twice a Poisson count. The formula of log_prob has a value at odd numbers, too."""

    def expand(self, shape, _instance=None):
        return Doubles(self.rate.expand(shape))

    def sample(self, sample_shape=()):
        return 2 * super().sample(torch.Size(sample_shape))

    def log_prob(self, value):
        return super().log_prob(value / 2)


class Halves(Doubles):
    """Half a Poisson count; log_prob uses the next whole count, so that it has a value everywhere."""

    def expand(self, shape, _instance=None):
        return Halves(self.rate.expand(shape))

    def sample(self, sample_shape=()):
        return super().sample(sample_shape) / 4

    def log_prob(self, value):
        return dist.Poisson(self.rate).log_prob((2 * value).round())


LIKELIHOODS = {
    **WIDE,
    "even counts": lambda one, z: Doubles(20 * one * z.exp()),
    "half counts": lambda one, z: Halves(20 * one * z.exp()),
    "normal": lambda one, z: dist.Normal(z * one, 1e-3),
    "Student's t": lambda one, z: dist.StudentT(1.1 * one, z, 1.0),
    "gamma": lambda one, z: dist.Gamma(0.2 * one, z.exp()),
    "beta at its bounds": lambda one, z: dist.Beta(0.05 * one, 0.05 * z.exp()),
    "counts": lambda one, z: dist.Poisson(50 * one * z.exp()),
    "rare ones": lambda one, z: dist.Bernoulli(logits=z - 6 * one),
    "two modes": lambda one, z: dist.MixtureSameFamily(
        dist.Categorical(torch.tensor([0.99, 0.01]).double()),
        dist.Normal(torch.stack([z * one, z * one + 30], dim=-1), torch.tensor([1.0, 1e-4]).double()),
    ),
    "angles": lambda one, z: dist.VonMises(z * one + 3, 0.5),
}


@pytest.mark.parametrize("columns", [1, 30])
@pytest.mark.parametrize("name", LIKELIHOODS)
def test_sound_likelihoods_pass(name, columns):
    one = torch.ones(columns).double()
    made = observing(lambda z: LIKELIHOODS[name](one, z), columns)
    x = (torch.arange(16.0).double()[:, None] % 2).expand(-1, columns)
    x = 0.25 + x / 2 if name.startswith(("beta", "gamma", "a log-normal")) else x
    rows = Supply(Evaluation.prepare(made, x, 1, 0), 32).take(ROWS, 0)
    assert mismatch(Evaluation.prepare(made, rows, 1, 0)) is None


class Saturated(dist.Normal):
    """min(y, bound) for a normal y: a density below the bound, and the mass of all above at it."""

    def __init__(self, loc, scale, bound, validate_args=None):
        self.bound = bound
        super().__init__(loc, scale, validate_args=validate_args)

    def expand(self, shape, _instance=None):
        return Saturated(self.loc.expand(shape), self.scale.expand(shape), self.bound)

    def sample(self, sample_shape=()):
        return super().sample(torch.Size(sample_shape)).clamp(max=self.bound)

    def log_prob(self, value):
        above = torch.special.log_ndtr((self.loc - self.bound) / self.scale)
        return torch.where(value >= self.bound, above, super().log_prob(value))


@pytest.mark.parametrize(("columns", "bound"), [(200, 2.0), (3000, 2.7), (2, 0.0), (2, -1.0)])
def test_a_mass_beside_a_density_is_not_tested(columns, bound):
    """2 % of the cells of 200 columns are at the bound: each row alone seldom has two of one column. Below 0, most are."""
    one = torch.ones(columns).double()
    made = observing(lambda z: Saturated(0.3 * z * one, one, bound), columns)
    assert found_in(made, columns=columns) is None


class WithTie(Off):
    """A normal distribution whose log_prob lacks a constant; two draws of its first column have one value."""

    def expand(self, shape, _instance=None):
        return WithTie(self.loc.expand(shape), self.scale.expand(shape), constant=self.constant)

    def sample(self, sample_shape=()):
        drawn = super().rsample(sample_shape)
        if len(drawn) > ROWS:
            drawn[ROWS, 0] = drawn[0, 0]
        return drawn


@pytest.mark.parametrize("columns", [1, 30])
def test_a_chance_tie_does_not_hide_a_column(columns):
    """In float32, 12 % of the sets of 16 times 512 uniform numbers have two equal ones in a row."""
    one = torch.ones(columns)
    made = observing(lambda z: WithTie(z.float() * one, one, constant=0.5), columns)
    found = found_in(made, torch.float32, columns=columns)
    assert "draws of the likelihood" in found


@pytest.mark.parametrize("columns", [1, 30])
def test_ties_of_uniform_numbers_are_those_of_chance(columns):
    """Each has a false-alarm rate of 10⁻⁹; a mass of 1 % has 70 ties in every set."""
    torch.manual_seed(0)
    for _ in range(30):
        for x in (
            torch.rand(512, ROWS, columns),
            torch.randn(512, ROWS, columns),
            1 + torch.rand(512, ROWS, columns),
        ):
            assert not _tied(x).any()
            mass = x.clone()
            mass[torch.rand(512, ROWS) < 0.01, 0] = 0.25
            assert _tied(mass)[0]


def test_columns_that_depend_on_others_are_not_tested():
    """b ~ N(z, 1 + 2 a) in 50 columns: draws of b given the a of one draw would be scored given that of another.

    A is 1 so seldom that the rows to simulate from do not show that b reads it.
    """

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(1).double(), 1.0).to_event(1))
            a = pyro.sample("a", dist.Bernoulli(torch.tensor(0.02).double()), obs=x[..., 0])
            b = dist.Normal(z.expand(*z.shape[:-1], 50), (1 + 2 * a)[..., None])
            pyro.sample("b", b.to_event(1), obs=x[..., 1:])

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x[..., 1:].mean(-1, keepdim=True), 0.2).to_event(1))

    made, tested = pv.LatentVariableModel(model, guide), 0
    for seed in range(10):
        with contextlib.suppress(Refused):  # rows that show it
            assert not found_in(made, seed=seed, x=torch.zeros(16, 51).double())
            tested += 1
    assert tested >= 3


class Unscaled(dist.Normal):
    """A normal distribution whose log_prob lacks −log(scale)."""

    def expand(self, shape, _instance=None):
        return Unscaled(self.loc.expand(shape), self.scale.expand(shape))

    def log_prob(self, value):
        return super().log_prob(value) + self.scale.log()


@pytest.mark.parametrize(("columns", "steps"), [(1, 0.3), (10, 0.1), (100, 0.03), (100, -0.03)], ids=str)
def test_a_scale_that_is_forgotten_is_found_though_it_cancels_over_rows(columns, steps):
    """Scales exp(± 0.03 z) of 100 columns: log P(x | z) lacks 3 z, or terms that cancel over columns, too."""
    one = torch.ones(columns).double()
    sign = one.clone() if steps > 0 else (one.cumsum(0) % 2) * 2 - 1
    made = observing(lambda z: Unscaled(0.2 * z * one, (abs(steps) * sign * z).exp()), columns)
    assert "draws of the likelihood" in found_in(made, columns=columns)


def test_a_fault_of_one_column_that_cancels_over_rows_is_found():
    """log q is 0.15 nats too high in even rows of column 29, and too low in odd ones; r has another mean than q."""
    torch.manual_seed(0)
    q, r = (
        dist.Normal(torch.zeros(16, 100).double(), 1.0),
        dist.Normal(torch.full((16, 100), 0.5).double(), 1.0),
    )
    wrong = torch.zeros(16, 100).double()
    wrong[:, 29] = 0.15 * (-1.0) ** torch.arange(16)

    def log_ratio(x):
        return r.log_prob(x) - q.log_prob(x) - wrong

    found = Overlap.of(
        log_ratio(q.sample((256,))), log_ratio(r.sample((256,))), torch.ones(16, 100).bool()
    ).fault()
    assert (found.signed, found.column) == (False, 29)
    assert abs(found.nats - 0.15) < 0.05


@pytest.mark.parametrize("apart", [5.0, 20.0, 60.0])
@pytest.mark.parametrize("shape", [(16, 1), (4, 200)])
def test_densities_that_hardly_overlap_are_no_fault(shape, apart):
    torch.manual_seed(0)
    q, r = dist.Normal(torch.zeros(shape).double(), 1.0), dist.Normal(torch.full(shape, apart).double(), 1.0)
    own, other = (r.log_prob(x) - q.log_prob(x) for x in (q.sample((256,)), r.sample((256,))))
    assert Overlap.of(own, other, torch.ones(shape).bool()).fault() is None


class Ring(dist.TorchDistribution):
    """Uniform between circles of radius 0.6 and 1: a support without a bijection.

    Its log_prob lacks a constant, and is a number elsewhere.
    """

    arg_constraints = {}  # noqa: RUF012
    has_rsample = False

    class _Support(torch.distributions.constraints.Constraint):
        event_dim = 1

        def check(self, value):
            return (value.norm(dim=-1) - 0.8).abs() < 0.2

    support = _Support()

    def __init__(self, shape, constant):
        self.constant = constant
        super().__init__(torch.Size(shape), torch.Size((2,)), validate_args=False)

    def expand(self, shape, _instance=None):
        return type(self)(torch.Size(shape), self.constant)

    def sample(self, sample_shape=()):
        shape = (*sample_shape, *self.batch_shape)
        radius, turn = torch.rand(2, *shape).double()
        angle = 2 * math.pi * turn
        return (0.36 + 0.64 * radius).sqrt()[..., None] * torch.stack([angle.cos(), angle.sin()], dim=-1)

    def log_prob(self, value):
        return self.constant - math.log(0.64 * math.pi) + 0 * value[..., 0]


class Circle(Ring):
    """Uniform on the unit circle, in the plane: its two numbers have no density together."""

    class _Support(torch.distributions.constraints.Constraint):
        event_dim = 1

        def check(self, value):
            return (value.norm(dim=-1) - 1).abs() < 1e-6

    support = _Support()

    def sample(self, sample_shape=()):
        drawn = super().sample(sample_shape)
        return drawn / drawn.norm(dim=-1, keepdim=True)


class Below(dist.Uniform):
    """A uniform distribution whose log_prob lacks a constant."""

    def __init__(self, low, high, constant, validate_args=None):
        self.constant = constant
        super().__init__(low, high, validate_args=validate_args)

    def expand(self, shape, _instance=None):
        return Below(self.low.expand(shape), self.high.expand(shape), self.constant)

    def log_prob(self, value):
        return super().log_prob(value) + self.constant


def _number_first(x, constant):
    k = pyro.sample("k", dist.Bernoulli(logits=x))
    return pyro.sample("z", Off(x + 2 * k, torch.ones_like(x), constant=constant))


def _number_last(x, constant):
    z = pyro.sample("z", Off(x, torch.ones_like(x), constant=constant))
    return z + pyro.sample("k", dist.Poisson(z.exp()))


def _moving_bound(x, constant):
    top = pyro.sample("top", dist.Gamma(3 * torch.ones_like(x), x.exp()))
    return pyro.sample("z", Below(0 * top, top, constant))


UNMOVED = {
    "a discrete latent first": _number_first,
    "a discrete latent last": _number_last,
    "a bound that another latent moves": _moving_bound,
    "a ring": lambda x, constant: pyro.sample("z", Ring((len(x),), constant))[..., 0],
}


def _found_in_unmoved(draw, part, constant):
    def model(x):
        with pyro.plate("data", len(x)):
            z = draw(torch.zeros(len(x)).double(), constant if part == "prior" else 0.0)
            pyro.sample("x", dist.Normal(z[..., None], 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            draw(x[:, 0] / 4, constant if part == "guide" else 0.0)

    return found_in(pv.LatentVariableModel(model, guide))


@pytest.mark.parametrize("part", ["guide", "prior"])
@pytest.mark.parametrize("name", UNMOVED)
def test_latents_that_cannot_be_moved_are_tested(name, part):
    """Normals and uniform densities overlap so well with the Gaussian that the constant is measured."""
    assert _found_in_unmoved(UNMOVED[name], part, 0.0) is None
    found = _found_in_unmoved(UNMOVED[name], part, 0.7)
    assert f"draws of the {part} " in found
    assert abs(float(found.split("which is ")[1].split(" ")[0]) - 0.7) < 0.2


def test_latents_on_a_circle_are_not_tested():
    """Draws of the Gaussian beside the circle would be scored, as if these had a density."""
    circle = lambda x, constant: pyro.sample("z", Circle((len(x),), constant))[..., 0]  # noqa: E731
    assert _found_in_unmoved(circle, "guide", 0.0) is None


class Stretched(T.AffineTransform):
    """An affine transform without its log-determinant."""

    def log_abs_det_jacobian(self, x, y):
        return torch.zeros_like(x)


def test_a_log_determinant_that_cancels_over_rows_is_found():
    """A guide's scale exp(± 0.3) by row: the error of log Q is 0.3 nats in every row, and 0 on average."""

    def guide(x):
        sign = torch.where(x > 0, 1.0, -1.0)
        base = dist.Normal(x / 2, 0.7)
        return dist.TransformedDistribution(
            base, [Stretched(torch.zeros_like(x), (0.3 * sign).exp())]
        ).to_event(1)

    found = found_in(pair(guide, dim=1))
    assert "draws of the guide" in found
    assert abs(float(found.split("which is ")[1].split(" ")[0]) - 0.3) < 0.06


@pytest.mark.parametrize("name", sorted(set(pv.likelihoods.REGISTRY) - NEED_OPTIONS))
def test_the_likelihoods_of_the_package_pass(name):
    torch.manual_seed(0)
    vae = pv.VAE.mlp(6, latent_dim=2, hidden_dims=(8,), likelihood=name)
    x = torch.randint(0, 2, (20, 6)).float()
    x = 0.25 + x / 2 if name in ("beta", "gamma", "log_normal", "continuous_bernoulli") else x
    rows = Supply(Evaluation.prepare(vae, x, 1, 0), 32).take(ROWS, 0)
    assert mismatch(Evaluation.prepare(vae, rows, 1, 0)) is None


def test_rare_draws_are_no_difference():
    """The means agree, but one consists of rare ones: of 4096 draws, none or one has an entry, in 91 % of the cases."""
    rare, small = torch.full((2, 256, 16, 1), math.inf).double()
    sound = torch.ones(16, 1).bool()
    small[:] = -math.log(1e-4)
    assert Overlap.of(-rare, small, sound).fault() is None
    half, quarter = torch.tensor([0.5, 0.25]).double().log()[:, None, None, None].expand(-1, 256, 16, 1)
    found = Overlap.of(half, -quarter, sound).fault()
    assert found.signed
    assert found.nats == pytest.approx(-math.log(2))


def test_no_row_is_trusted_where_draws_and_density_differ():
    """The guide's draws are four times too wide; importance sampling was 1.07 nats too low on average, and trusted."""
    x = torch.linspace(-2, 2, 30, dtype=torch.float64)[:, None]
    one = torch.ones(1, dtype=torch.float64)

    def made(wider):
        return pair(lambda x: Off(x / 2, math.sqrt(0.5) * one, wider).to_event(1), dim=1)

    for method in ("importance", "auto"):
        wrong = pv.log_evidence(made(4.0), x, method=method)
        assert not (wrong.verdict == "trust").any()
        assert wrong.check.passed is False
        assert "draws of the guide" in str(wrong.check)
        assert (pv.log_evidence(made(1.0), x, method=method).verdict == "trust").all()


def test_quadrature_does_not_use_the_density_of_the_guide():
    """log P(x) is that of N(0, 2), as with a guide whose log_prob is right."""
    x = torch.linspace(-2, 2, 10, dtype=torch.float64)[:, None]
    one = torch.ones(1, dtype=torch.float64)
    made = pair(lambda x: Off(x / 2, math.sqrt(0.5) * one, constant=0.3).to_event(1), dim=1)
    found = pv.log_evidence(made, x, method="quadrature")
    assert (found.verdict == "trust").all()
    exact = dist.Normal(0.0, math.sqrt(2.0)).log_prob(x)[:, 0].numpy()
    assert found.estimate == pytest.approx(exact, abs=1e-4)
    assert pv.log_evidence(made, x, method="importance").check.passed is False
