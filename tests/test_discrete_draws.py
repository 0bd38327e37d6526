"""Draws kept beside log P(x) of pairs with discrete latents: embed, impute, outliers and to_arviz against sums."""

from functools import cache

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from rates import SEED, Z

import pyrovae as pv
from pyrovae.convert import to_arviz

MEANS = (-2.0, 2.0)


def cells_of(fn, observed):
    return (fn if observed is None else fn.mask(observed)).to_event(1)


@cache
def pair_of(beside):
    """Two classes of three normal columns; beside them a factor z of all columns, if asked for. The guide reads column 0 alone."""

    def model(x, observed=None):
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Bernoulli(torch.tensor(0.5)))
            z = pyro.sample("z", dist.Normal(torch.tensor(0.0), 1.0)) if beside else 0.0
            mean = (4 * c - 2 + z)[..., None].expand(*c.shape, 3)
            pyro.sample("x", cells_of(dist.Normal(mean, 1.0), observed), obs=x)

    def guide(x, observed=None):
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Bernoulli(logits=3 * x[..., 0]))
            if beside:
                pyro.sample("z", dist.Normal((x.sum(-1) - 12 * c + 6) / 4, 0.6))

    return pv.LatentVariableModel(model, guide)


def log_masses(x, beside, columns=(0, 1, 2)):
    """log P(c, x_columns), (2, rows)."""
    size = len(columns)
    spread = torch.eye(size, dtype=torch.float64) + float(beside)
    rows = x[:, list(columns)].double()
    each = [
        torch.distributions.MultivariateNormal(torch.full((size,), mean).double(), spread) for mean in MEANS
    ]
    return torch.stack([one.log_prob(rows) for one in each]) - np.log(2)


@pytest.fixture(scope="module")
def rows():
    generator = torch.Generator().manual_seed(SEED)
    x = (torch.rand(15, 1, generator=generator) < 0.5) * 4.0 - 2 + torch.randn(15, 3, generator=generator)
    return torch.cat(
        [x, torch.tensor([[-4.0, 3.0, 2.8]])]
    )  # the last has an odd cell, which the guide believes


@pytest.mark.parametrize("beside", [False, True])
def test_embed_and_to_arviz_have_the_posterior_of_the_class(rows, beside):
    exact = log_masses(rows, beside).softmax(dim=0)[1].numpy()
    found = pv.embed(pair_of(beside), rows, method="auto", num_samples=2000)
    assert set(found["verdict"]) == {"trust"}
    np.testing.assert_allclose(found["c"], exact, atol=0.02 if beside else 1e-5)
    data = to_arviz(pair_of(beside), rows, num_draws=2000, num_samples=2000, method="auto", predictive=False)
    assert set(data.constant_data["verdict"].values.tolist()) == {"trust"}
    share = data.posterior["c"].values[0].mean(axis=0)
    # Draws are resampled from as many, which doubles their variance.
    error = np.sqrt(2 * exact * (1 - exact) / 2000) + 1e-3
    assert (np.abs(share - exact) <= Z * error).all()


@pytest.mark.statistical
@pytest.mark.parametrize("beside", [False, True])
def test_imputations_have_both_classes(rows, beside):
    """E[x_2 | x_0, x_1] = Σ_c P(c | x_0, x_1) E[x_2 | c, x_0, x_1]."""
    holed = rows[-1:].repeat(40, 1)
    share = log_masses(holed[:1], beside, (0, 1)).softmax(dim=0)[:, 0].numpy()
    pull = (
        float(beside) * np.array([(holed[0, :2].numpy() - mean).sum() / 3 for mean in MEANS])
        if beside
        else 0.0
    )
    exact = float((share * (np.array(MEANS) + pull)).sum())
    holed[:, 2] = torch.nan
    found = pv.impute(pair_of(beside), holed, 100, num_samples=2000, seed=SEED)
    assert set(found.verdict) == {"trust"}
    means = found.point("mean")[:, 2]  # rows have draws of their own
    assert abs(float(means.mean()) - exact) <= Z * float(means.std()) / 40**0.5


@pytest.mark.parametrize("beside", [False, True])
def test_outliers_have_the_sums(rows, beside):
    pair, every = pair_of(beside), log_masses(rows, beside).logsumexp(dim=0)
    scores = pv.outliers(pair, rows)
    assert set(scores["verdict"]) == {"trust"}
    assert (np.abs(scores["score"] + every.numpy()) <= Z * scores["error"] + 1e-4).all()
    cells = pv.outliers(pair, rows, cells=True)
    sound = cells["verdict"].to_numpy() == "trust"
    assert sound.mean() > 0.9
    rest = [
        log_masses(rows, beside, [d for d in range(3) if d != column]).logsumexp(dim=0) for column in range(3)
    ]
    exact = torch.stack([every - each for each in rest], dim=1).flatten().numpy()
    apart = np.abs(cells["log_p"] - exact)
    assert (apart <= Z * cells["error"] + 0.01)[sound].all()


RATES = torch.tensor([[0.0, 0.0, 0.5], [2.0, 3.0, 0.5]])


def occupancy(impossible=0.5):
    """An absent species is never counted in columns 0 and 1."""
    rates = RATES.clone()
    rates[:, 2] = impossible

    def model(x, observed=None):
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Bernoulli(torch.tensor(0.01)))
            pyro.sample("x", cells_of(dist.Poisson(rates[c.long()]), observed), obs=x)

    def guide(x, observed=None):
        with pyro.plate("data", len(x)):
            pyro.sample("c", dist.Bernoulli(0.01 + 0.98 * (x[..., :2].sum(-1) > 0).float()))

    return pv.LatentVariableModel(model, guide)


def test_a_cell_that_alone_excludes_a_class_is_the_oddest():
    """Row (2, 0, 0): P(x_0 = 2 | rest) is that of a present species that was not counted in column 1."""
    x = torch.tensor([[0.0, 0.0, 1.0]] * 20 + [[2.0, 0.0, 0.0], [0.0, 3.0, 1.0], [2.0, 3.0, 0.0]])
    found = pv.outliers(occupancy(), x)
    assert found["oddest"].iloc[20:22].tolist() == [0, 1]
    assert set(found["cell_verdict"]) == {"trust"}
    poisson = torch.distributions.Poisson(RATES[1, :2].double())
    present = 0.01 * poisson.log_prob(torch.zeros(2, 2).double()).exp()[0]  # P(present, no count in column d)
    share = present / (0.99 + present)
    exact = share.flip(0).log() + poisson.log_prob(torch.tensor([2.0, 3.0]).double())
    np.testing.assert_allclose(found["log_p"].iloc[20:22], exact, atol=1e-5)


def test_a_row_of_probability_zero_names_the_impossible_cell():
    x = torch.tensor([[0.0, 0.0, 0.0], [2.0, 3.0, 0.0], [2.0, 3.0, 1.0]])
    pair = occupancy(impossible=0.0)
    found = pv.outliers(pair, x)
    assert (found["score"].iloc[2], found["oddest"].iloc[2], found["log_p"].iloc[2]) == (np.inf, 2, -np.inf)
    cells = pv.outliers(pair, x, cells=True)
    assert len(cells) == 9
    assert cells["log_p"].iloc[6:8].isna().all()  # given what cannot be
    given = pv.log_evidence(pair, x, given=[0, 2])
    assert np.isnan(given.estimate[2])
    assert given.verdict[2] != "trust"


def test_a_guide_without_a_class_is_not_trusted_by_to_arviz():
    """Its draws are all of one class, and their weights are even."""

    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("c", dist.Bernoulli(torch.tensor(0.5)))
            pyro.sample("x", dist.Normal(torch.zeros(2), 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("c", dist.Bernoulli(torch.tensor(1e-6)))

    pair, x = pv.LatentVariableModel(model, guide), torch.randn(20, 2)
    data = to_arviz(pair, x, num_draws=200, num_samples=400, seed=SEED)
    assert set(data.constant_data["verdict"].values.tolist()) == {"another method"}
    unchecked = to_arviz(pair, x, num_draws=200, num_samples=400, seed=SEED, check=False)
    assert set(unchecked.constant_data["verdict"].values.tolist()) == {"unchecked"}
    data = to_arviz(pair, x, num_draws=200, num_samples=400, seed=SEED, method="auto", predictive=False)
    assert 0.3 < float(data.posterior["c"].values.mean()) < 0.7


def test_rows_without_a_cell_have_draws_of_the_prior_in_to_arviz():
    """All of them: the guide's draws, N(3, 0.2²), have no weight to correct them."""

    def model(x, observed=None):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.tensor(0.0), 1.0))
            pyro.sample("x", cells_of(dist.Normal(z[..., None].expand(*z.shape, 2), 1.0), observed), obs=x)

    def guide(x, observed=None):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.0 * x.sum(-1) + 3.0, 0.2))

    pair, x = pv.LatentVariableModel(model, guide), torch.full((3, 2), torch.nan)
    data = to_arviz(pair, x, num_draws=400, num_samples=1000, seed=SEED, predictive=False)
    z = data.posterior["z"].values[0]
    assert (np.abs(z.mean(axis=0)) < Z * (2 / 400) ** 0.5).all()
    assert (np.abs(z.std(axis=0) - 1) < Z * (1 / 400) ** 0.5).all()
