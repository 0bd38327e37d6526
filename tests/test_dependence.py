"""A model is a probability of x where its sites depend on earlier columns only: what reads what it scores is refused.

Accepted models over binary columns are enumerated: Σ_x P(x) = 1, up to float32.
"""

import itertools

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

import pyrovae as pv
from pyrovae.pair import inspect

WIDTH = 4
G = torch.Generator().manual_seed(0)
EVERY = torch.tensor(list(itertools.product([0.0, 1.0], repeat=WIDTH)))
DENSE = torch.randn(WIDTH, WIDTH, generator=G)
LOWER = torch.tril(DENSE, -1)
ORDER = torch.tensor([2, 0, 3, 1])
BACK = ORDER.argsort()


def guide(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))


def reading(logits):
    """A Bernoulli model of all columns at once, whose logits are a function of x beside z."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            pyro.sample("x", dist.Bernoulli(logits=logits(x) + z[..., None]).to_event(1), obs=x)

    return model


def shift(x):
    return torch.cat([x.new_zeros(len(x), 1), x[:, :-1]], dim=1)


def loop(read):
    """A site for each column and a latent before it, whose prior reads what ``read`` says of x and t."""

    def model(x):
        with pyro.plate("data", len(x)):
            for t in range(WIDTH):
                z = pyro.sample(f"z{t}", dist.Normal(read(x, t), 1.0))
                pyro.sample(f"x{t}", dist.Bernoulli(logits=z), obs=x[:, t])

    def its_guide(x):
        with pyro.plate("data", len(x)):
            for t in range(WIDTH):
                pyro.sample(f"z{t}", dist.Normal(torch.zeros(len(x)), 1.0))

    return model, its_guide


def vector(read):
    """One latent for each column in a single site, whose prior reads x."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(read(x), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=z).to_event(1), obs=x)

    def its_guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(len(x), WIDTH), 1.0).to_event(1))

    return model, its_guide


def halves(first, second):
    """Two sites, each of two columns, whose logits are functions of x."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            pyro.sample("a", dist.Bernoulli(logits=first(x) + z[..., None]).to_event(1), obs=x[:, :2])
            pyro.sample("b", dist.Bernoulli(logits=second(x) + z[..., None]).to_event(1), obs=x[:, 2:])

    return model, guide


ORDERED = {
    "nothing": (reading(lambda x: 0 * x), guide),
    "columns before": (reading(lambda x: x @ LOWER.T), guide),
    "columns after": (reading(lambda x: x @ LOWER), guide),
    "columns in another order": (reading(lambda x: (x[:, ORDER] @ LOWER.T)[:, BACK]), guide),
    "the column before": (reading(lambda x: 4 * shift(x) - 2), guide),
    "running sums": (reading(lambda x: x.cumsum(1) - x), guide),
    "running extremes": (reading(lambda x: shift(x).cummax(1).values), guide),
    "the other half": halves(lambda x: 0 * x[:, :2], lambda x: x[:, :2]),
    "the other half, against the sites' order": halves(lambda x: x[:, 2:], lambda x: 0 * x[:, 2:]),
    "a prior of the column before": loop(lambda x, t: x[:, t - 1] if t else 0 * x[:, 0]),
    "a prior of all columns before": loop(lambda x, t: x[:, :t].sum(1)),
    "a vector's prior of the columns before": vector(shift),
}

READS_ITSELF = {
    "its own column": (reading(lambda x: 4 * x - 2), guide),
    "one of the columns itself": (reading(lambda x: x * (torch.arange(WIDTH) == 2)), guide),
    "itself where it is large": (reading(lambda x: torch.where(x > 0.5, 3.0, 0.0)), guide),
    "the row's sum": (reading(lambda x: x.sum(1, keepdim=True)), guide),
    "the row's maximum": (reading(lambda x: x.amax(1, keepdim=True)), guide),
    "running sums with its own": (reading(lambda x: x.cumsum(1)), guide),
    "all columns": (reading(lambda x: x @ DENSE.T), guide),
    "all other columns": (reading(lambda x: x @ (DENSE - torch.diag(DENSE.diag())).T), guide),
    "the sum of the others": (reading(lambda x: x.sum(1, keepdim=True) - x), guide),
    "the next column, in a ring": (reading(lambda x: x.roll(1, 1)), guide),
    "each half the other": halves(lambda x: x[:, 2:], lambda x: x[:, :2]),
    "a prior of its own column": loop(lambda x, t: x[:, t]),
    "a prior of the next column, in a ring": loop(lambda x, t: x[:, (t + 1) % WIDTH]),
    "a vector's prior of its own columns": vector(lambda x: x),
    "a vector's prior of the row's mean": vector(lambda x: x.mean(1, keepdim=True).expand_as(x)),
}


@pytest.mark.parametrize("name", ORDERED)
def test_models_with_an_order_are_probabilities(name):
    pair = pv.LatentVariableModel(*ORDERED[name])
    ev = pv.log_evidence(pair, EVERY, num_samples=4000, compile=False, check=False)
    total = np.exp(ev.estimate)
    # a sum of independent estimates, each with its relative error
    assert abs(total.sum() - 1) < 6.1 * np.sqrt(((total * ev.mcse) ** 2).sum()) + 1e-3
    assert set(ev.measure) == {"mass"}


@pytest.mark.parametrize("name", READS_ITSELF)
def test_models_that_read_what_they_score_are_refused(name):
    pair = pv.LatentVariableModel(*READS_ITSELF[name])
    for score in (
        pv.log_evidence,
        pv.elbo,
        lambda p, x: pv.compare({"it": p}, x, check=False),
        pv.evidence.sandwich,
    ):
        with pytest.raises(ValueError, match=r"^model: expected sites that depend on earlier columns"):
            score(pair, EVERY)


@pytest.mark.parametrize("family", ["density", "scale", "transformed"])
def test_densities_that_read_themselves_are_refused(family):
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            loc = z[..., None] + (x if family == "density" else 0 * x)
            scale = 1 + x.abs() if family == "scale" else torch.ones_like(x)
            value = torch.sinh(x) if family == "transformed" else x
            fn = dist.Normal(loc + (x if family == "transformed" else 0 * x), scale)
            pyro.sample("x", fn.to_event(1), obs=value)

    x = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match="distribution of column 0 depends on column 0 itself"):
        pv.log_evidence(pv.LatentVariableModel(model, guide), x, check=False)


def test_columns_that_are_given_and_not_scored_may_be_read():
    """Covariates: y given w, z ~ N(w, 1) and y ~ N(z, 1), so that y ~ N(w, 2)."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x[:, 0], 1.0))
            pyro.sample("y", dist.Normal(z, 1.0), obs=x[:, 1])

    def its_guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal((x[:, 0] + x[:, 1]) / 2, 0.5**0.5))

    x = torch.randn(40, 2, generator=torch.Generator().manual_seed(0))
    ev = pv.log_evidence(pv.LatentVariableModel(model, its_guide), x, num_samples=100, check=False)
    np.testing.assert_allclose(ev.estimate, dist.Normal(x[:, 0], 2**0.5).log_prob(x[:, 1]), atol=1e-4)
    assert ev.measure == ("unscored", "density")


def bayesian(mean):
    def model(x):
        slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mean(x, slope), 1.0).to_event(1), obs=x)

    return model


def test_rows_of_a_bayesian_model_that_reads_them_are_refused():
    x = torch.randn(30, 3, generator=torch.Generator().manual_seed(0))
    faulty = pv.baselines.PyroMCMC(bayesian(lambda x, slope: slope * x), num_samples=30, warmup_steps=20)
    with pytest.raises(ValueError, match="depends on column 0 itself"):
        faulty.fit(x).log_evidence(x)


def test_a_wide_sequential_model_is_looked_at_in_time():
    """300 latents in a single site, whose prior reads the columns before: batched, and accepted."""
    model, its_guide = vector_of(300)
    x = torch.bernoulli(torch.full((40, 300), 0.5), generator=torch.Generator().manual_seed(0))
    assert np.isfinite(pv.elbo(pv.LatentVariableModel(model, its_guide), x, num_samples=2).estimate).all()


def vector_of(width):
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(shift(x), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=z).to_event(1), obs=x)

    def its_guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(len(x), width), 1.0).to_event(1))

    return model, its_guide


@pytest.mark.parametrize("rows", [1, 2, 40])
@pytest.mark.parametrize("code", [0.0, 2.0])
def test_codes_of_a_table_are_not_left(rows, code):
    """An autoregressive model that looks the first column up in a table of three: no other code is tried."""
    table = torch.tensor([-1.0, 0.0, 1.0])

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            pyro.sample("code", dist.Categorical(torch.ones(3)), obs=x[:, 0])
            pyro.sample("x", dist.Normal(z + table[x[:, 0].long()], 1.0), obs=x[:, 1])

    x = torch.stack([torch.full((rows,), code), torch.linspace(-1, 1, rows)], dim=1)
    ev = pv.log_evidence(pv.LatentVariableModel(model, guide), x, num_samples=500, compile=False, check=False)
    exact = dist.Normal(table[int(code)], 2**0.5).log_prob(x[:, 1]).numpy() - np.log(3)
    np.testing.assert_array_less(np.abs(ev.estimate - exact), 6.1 * ev.mcse + np.abs(ev.bias) + 1e-4)
    assert ev.measure == ("mass", "density")


# ---------------------------------------------------------------------------------------------------------
# Which columns a site holds


def kinds(order, alike):
    """Counts, flags and real columns, observed in some order; constant or equal columns where ``alike``."""
    n = 60
    g = torch.Generator().manual_seed(1)
    if alike:
        flag = torch.bernoulli(torch.full((n, 1), 0.5), generator=g)
        counts, flags, reals = flag.expand(n, 3), flag.expand(n, 2), torch.zeros(n, 2)
        counts = torch.cat([counts[:, :2], torch.zeros(n, 1)], dim=1)
        flags = torch.cat([flags[:, :1], torch.zeros(n, 1)], dim=1)
    else:
        counts = torch.poisson(torch.full((n, 3), 0.3), generator=g)
        flags = torch.bernoulli(torch.full((n, 2), 0.1), generator=g)
        reals = torch.randn(n, 2, generator=g)
    x = torch.cat([counts, flags, reals], dim=1)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))[..., None]
            for kind in order:
                if kind == "counts":
                    pyro.sample(
                        "counts",
                        dist.Poisson((z - 1).exp().expand(*z.shape[:-1], 3)).to_event(1),
                        obs=x[:, :3],
                    )
                if kind == "flags":
                    fn = dist.Bernoulli(logits=(z - 1).expand(*z.shape[:-1], 2)).to_event(1)
                    pyro.sample("flags", fn, obs=x[:, 3:5])
                if kind == "reals":
                    fn = dist.Normal(z.expand(*z.shape[:-1], 2), 1.0).to_event(1)
                    pyro.sample("reals", fn, obs=x[:, [6, 5]])

    return model, x


@pytest.mark.parametrize("alike", [False, True])
@pytest.mark.parametrize("order", list(itertools.permutations(["counts", "flags", "reals"])))
def test_columns_of_every_site_are_known(order, alike):
    model, x = kinds(order, alike)
    structure = inspect(pv.LatentVariableModel(model, guide), {"x": x}).structure
    assert structure.columns == {"counts": (0, 1, 2), "flags": (3, 4), "reals": (6, 5)}
    assert structure.measure == ("mass",) * 5 + ("density",) * 2


def test_a_value_off_its_column_is_found_among_columns_alike():
    model, x = kinds(("flags", "reals", "counts"), alike=True)
    x = x.clone()
    x[41, 4] = 2.0
    with pytest.raises(ValueError, match="row 41, column 4"):
        pv.log_evidence(pv.LatentVariableModel(model, guide), x, check=False)


def test_a_column_that_is_changed_in_late_rows_is_no_density_of_it():
    """Clamped at 3 in one row of 300: not the column as it stands."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x.clamp(max=3.0))

    x = torch.randn(300, generator=torch.Generator().manual_seed(0)).clamp(max=2.5)
    pair = pv.LatentVariableModel(model, guide)
    assert pv.log_evidence(pair, x, num_samples=30, check=False).measure == ("density",)
    x[123] = 4.0
    assert pv.log_evidence(pair, x, num_samples=30, check=False).measure == ("transformed",)
