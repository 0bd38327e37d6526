"""What is found on the rows of an evaluation themselves, however few of them show it."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

import pyrovae as pv
from pyrovae.pair import inspect


def guide(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))


def moved_by(statistic):
    """A model whose location moves with something of the batch, a number or one for each row."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            loc = z[..., None] + 0.3 * statistic(x)[..., None]
            pyro.sample("x", dist.Normal(loc.expand(*z.shape, 3), 1.0).to_event(1), obs=x)

    return model


def guided_by(statistic):
    def its_guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.3 * statistic(x) + torch.zeros(len(x)), 1.0))

    return its_guide


OF_THE_BATCH = {
    "mean": lambda x: x.mean(),
    "maximum": lambda x: x.max(),
    "minimum": lambda x: x.min(),
    "median": lambda x: x.median(),
    "standard deviation": lambda x: x.std(unbiased=False),
    "count": lambda x: torch.tensor(float(len(x))),
    "place": lambda x: torch.arange(len(x)) / 10,
    "rank": lambda x: x[:, 0].argsort().argsort() / 10,
    "the first row": lambda x: x[0, 0] + 0 * x[:, 0],
    "the row before": lambda x: x[:, 0].roll(1),
    "how many are above 5": lambda x: (x > 5).sum().float(),
    "how many equal it": lambda x: (x[:, :1].round() == x[:, 0].round()).float().sum(1),
    "quantile": lambda x: x.flatten().kthvalue(max(1, int(0.9 * x.numel()))).values,
}
TILES = [(300, 50), (10, 50), None]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("part", ["model", "guide"])
@pytest.mark.parametrize("name", OF_THE_BATCH)
def test_rows_that_depend_on_others_are_refused(name, part, seed):
    x = 1 + 5 * torch.rand(300, 3, generator=torch.Generator().manual_seed(seed))
    statistic = OF_THE_BATCH[name]
    pair = pv.LatentVariableModel(
        moved_by(statistic) if part == "model" else moved_by(lambda x: x.new_zeros(())),
        guided_by(statistic) if part == "guide" else guide,
    )
    for tile in TILES:
        with pytest.raises(
            ValueError, match=rf"^{part}: expected rows whose log-probability does not depend on the rest"
        ):
            pv.log_evidence(pair, x, num_samples=100, tile=tile, compile=False, check=False)


@pytest.mark.parametrize(
    "prior", [dist.Bernoulli(0.5), dist.Poisson(2.0), dist.Geometric(0.5), dist.Beta(2.0, 2.0)]
)
@pytest.mark.parametrize("name", ["maximum", "mean", "place", "how many equal it"])
def test_rows_that_depend_on_others_are_refused_whatever_the_latents(name, prior):
    statistic = OF_THE_BATCH[name]

    def sampled(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", prior.expand([len(x)]))

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", prior.expand([len(x)]))
            loc = z[..., None] + 0.3 * statistic(x)[..., None]
            pyro.sample("x", dist.Poisson(loc.abs().expand(*z.shape, 3) + 1).to_event(1), obs=x)

    x = torch.randint(0, 9, (200, 3), generator=torch.Generator().manual_seed(0)).float()
    with pytest.raises(ValueError, match="does not depend on the rest of the batch"):
        pv.log_evidence(pv.LatentVariableModel(model, sampled), x, num_samples=50, compile=False, check=False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1.0, 1e-3])
@pytest.mark.parametrize("size", [1.0, 100.0])
def test_rounding_is_no_dependence(size, scale, dtype):
    """Wide products round differently in batches of one and of many; a small scale makes that many nats."""
    torch.manual_seed(0)
    vae = pv.VAE.mlp(300, 20, "gaussian", hidden_dims=(400, 400), scale=scale).to(dtype)
    x = size * torch.rand(400, 300, dtype=dtype)
    pv.elbo(vae, x, num_samples=1)


def test_rounding_of_large_means_is_no_dependence():
    """z − W x rounds by 1e-6 where W x is 10. Rounding x and z by one factor changes it less, because it scales both.

    Some processors round products of few rows in another way. Here they do on every processor, by ten roundings.
    """
    x = torch.randn(200, 6, generator=torch.Generator().manual_seed(0))
    decoder = torch.nn.Linear(2, 6)
    for seed in range(10):
        torch.manual_seed(seed)
        # Columns that rounding changes up and down in turns belong to different latents.
        weight = (6 * torch.rand(3, 2)[:, None] * torch.eye(2)).reshape(6, 2)

        def model(x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
                pyro.sample("x", dist.Normal(decoder(z), 0.5).to_event(1), obs=x)

        def narrow(x, weight=weight):
            rounding = 10 * torch.finfo(x.dtype).eps if len(x) < 4 else 0.0
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(x @ weight * (1 + rounding), math.exp(-8)).to_event(1))

        pv.elbo(pv.LatentVariableModel(model, narrow), x, num_samples=1)


@pytest.mark.parametrize("seed", range(6))
def test_unscaled_counts_are_no_dependence(seed):
    """Counts of 300 in an encoder that starts out for size one: tiny scales, and rounding of 1e10 nats."""
    torch.manual_seed(seed)
    x = torch.poisson(torch.tensor([0.1, 5.0, 300.0, 300.0]).expand(100, 4))
    inspect(pv.VAE.mlp(4, 1, "negative_binomial", hidden_dims=(4,)), {"x": x})


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("method", ["importance", "auto"])
@pytest.mark.parametrize("row", [0, 100, 299])
def test_a_row_that_networks_overflow_on_is_named(row, method, sign):
    """The logarithm of the encoder's scale is ±1e22."""
    network = torch.nn.Linear(3, 2)
    torch.nn.init.constant_(network.weight, sign)
    likelihood = pv.likelihoods.Gaussian(pv.MLP(1, (4,), 3))
    vae = pv.VAE(pv.priors.StandardNormal(1), likelihood, pv.encoders.DiagonalNormal(network))
    x = torch.randn(300, 3, generator=torch.Generator().manual_seed(0))
    x[row, 1] = 1e22
    with pytest.raises(ValueError, match=rf"^x: expected .*row {row}\b"):
        pv.log_evidence(vae, x, method=method, check=False)


def test_a_far_row_that_networks_take_costs_the_others_nothing():
    torch.manual_seed(0)
    vae = pv.VAE.mlp(3, 1, "gaussian", hidden_dims=(4,))
    x = torch.randn(30, 3)
    before = pv.log_evidence(vae, x, num_samples=100, check=False).estimate
    x[4, 1] = 1e3
    after = pv.log_evidence(vae, x, num_samples=100, check=False)
    assert after.estimate[4] < -1e4
    others = np.arange(30) != 4
    np.testing.assert_allclose(after.estimate[others], before[others], rtol=1e-5)


def test_a_value_off_a_site_that_holds_no_column_is_named():
    """Observed logarithms of x: the support is of them, and row 250 is below."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            pyro.sample("x", dist.Exponential(z.exp()), obs=x.log())

    x = 1 + torch.rand(300, generator=torch.Generator().manual_seed(0))
    x[250] = 0.5
    with pytest.raises(ValueError, match=r"site 'x' can score.*1 rows or more with others, first row 250"):
        pv.log_evidence(pv.LatentVariableModel(model, guide), x, num_samples=10, check=False)


class Mixed(torch.nn.Module):
    """A pair of which one network computes in float32 and one in float64."""

    def __init__(self, coarse, of_batch=0.0):
        super().__init__()
        torch.manual_seed(0)
        wide = [torch.nn.Linear(6, 64), torch.nn.Tanh(), torch.nn.Linear(64, 2)]
        self.decoder, self.encoder = torch.nn.Linear(2, 6), torch.nn.Sequential(*wide)
        self.of_batch = of_batch
        (self.encoder if coarse == "decoder" else self.decoder).double()

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            loc = self.decoder(z.to(self.decoder.weight.dtype)).double()
            pyro.sample("x", dist.Normal(loc, 0.5).to_event(1), obs=x)

    def guide(self, x):
        loc = self.encoder(x.to(self.encoder[0].weight.dtype)).double() + self.of_batch * x.mean()
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, 0.05).to_event(1))


@pytest.mark.parametrize("coarse", ["encoder", "decoder"])
def test_rows_agree_up_to_the_rounding_of_the_coarsest_network(coarse):
    """Whichever network comes first."""
    x = torch.randn(300, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    held = Mixed(coarse)
    pair = pv.LatentVariableModel(held.model, held.guide)
    assert pair.coarsest == torch.float32
    if coarse == "encoder":
        assert pair.dtype == torch.float64  # which rows are read in
        pv.log_weights(pair, x, num_samples=2)
        pv.fit(pair, x, epochs=1)
        other = Mixed(coarse, of_batch=1e-2)
        with pytest.raises(ValueError, match="log-probability does not depend on the rest of the batch"):
            pv.log_weights(pv.LatentVariableModel(other.model, other.guide), x, num_samples=2)
    assert pv.LatentVariableModel(held.double().model, held.guide).coarsest == torch.float64
