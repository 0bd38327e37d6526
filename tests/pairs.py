"""Pyro pairs as people write them, no two alike, each with rows and the exact log P(x) of a row.

To add one: write a function that returns (model, guide, x, exact) and decorate it with ``@pair``;
every contract test in ``test_pair.py`` then covers it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions import constraints
from pyro.distributions.transforms import HaarTransform
from pyro.infer.reparam import HaarReparam, LocScaleReparam
from pyro.nn import PyroModule, PyroParam
from torch import Tensor, nn

import pyrovae as pv


@dataclass(frozen=True)
class Case:
    """A pair, rows for it, and log P(x_n) of any rows, (rows,), float64, found without the pair."""

    pair: pv.LatentVariableModel
    x: Tensor
    exact: Callable[[Tensor], Tensor]


#: Every pair by the name of its builder.
PAIRS: dict[str, Callable[[], Case]] = {}


def pair(build: Callable[[], tuple]) -> Callable[[], Case]:
    """Register a builder; what it draws is the same every time."""

    @wraps(build)
    def case() -> Case:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model, guide, x, exact = build()
        return Case(pv.LatentVariableModel(model, guide), x, torch.no_grad()(exact))

    PAIRS[build.__name__] = case
    return case


def linear_gaussian(x: Tensor, decode: Callable[[Tensor], Tensor], latent_dim: int, scale: float | Tensor):
    """log P(x) of x = decode(z) + scale · noise, for an affine decode and z ~ N(0, I)."""
    loc = decode(torch.zeros(1, latent_dim, dtype=x.dtype))
    weight = (decode(torch.eye(latent_dim, dtype=x.dtype)) - loc).flatten(1).double()
    loc = loc.flatten().double()
    noise = torch.diag(torch.as_tensor(scale).double().expand(len(loc)) ** 2)
    return dist.MultivariateNormal(loc, weight.T @ weight + noise).log_prob(x.reshape(len(x), -1).double())


def quadrature(log_likelihood: Callable[[Tensor], Tensor]) -> Tensor:
    """log ∫ N(z; 0, 1) P(x given z) dz over a dense grid, from log P(x given z) of shape (grid, rows)."""
    z = torch.linspace(-9, 9, 3001)
    weights = dist.Normal(0.0, 1.0).log_prob(z).double() + torch.log(z[1] - z[0]).double()
    return torch.logsumexp(weights[:, None] + log_likelihood(z[:, None, None]).double(), dim=0)


def affine(in_features: int, out_features: int, weight: list[list[float]]) -> nn.Linear:
    """A linear layer of given weights, without bias at first."""
    layer = nn.Linear(in_features, out_features)
    layer.weight.data[:] = torch.tensor(weight)
    layer.bias.data.zero_()
    return layer


W = torch.tensor([0.8, -0.5, 0.3])


def encoding(scale: float = 0.8) -> Callable[[Tensor], None]:
    """A guide without parameters for one scalar latent that moves the columns by ``W``."""

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x @ W.to(x.dtype) / 2, scale))

    return guide


@pair
def plain_functions():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 0.5), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.8 * x, 0.6))

    return model, guide, torch.randn(7), lambda x: linear_gaussian(x, lambda z: z, 1, 0.5)


@pair
def pyro_param():
    def model(x):
        loc = pyro.param("loc", lambda: torch.tensor([0.5, -0.5, 0.0]))
        scale = pyro.param("scale", torch.tensor(0.7), constraint=constraints.positive)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(loc + z[..., None], scale).to_event(1), obs=x)

    def guide(x):
        slope = pyro.param("slope", torch.tensor(0.25))
        width = pyro.param("width", torch.tensor(0.5), constraint=constraints.positive)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(slope * x.sum(-1), width))

    loc = torch.tensor([0.5, -0.5, 0.0])
    x = loc + torch.randn(7, 1) + 0.7 * torch.randn(7, 3)
    return model, guide, x, lambda x: linear_gaussian(x, lambda z: loc + z, 1, 0.7)


@pair
def pyro_module_statements():
    encoder = affine(3, 2, [[0.4, 0.2, 0.0], [0.0, -0.2, 0.4]])
    decoder = affine(2, 3, [[0.8, 0.0], [0.3, -0.3], [0.0, 0.8]])

    def model(x):
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2).to(x), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(decoder(z), 1.0).to_event(1), obs=x)

    def guide(x):
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(encoder(x), 0.9).to_event(1))

    return model, guide, torch.randn(7, 3), lambda x: linear_gaussian(x, decoder, 2, 1.0)


@pair
def pyro_modules():
    class Model(PyroModule):
        def __init__(self):
            super().__init__()
            self.decoder = affine(1, 3, [[0.8], [-0.5], [0.3]])
            self.scale = PyroParam(torch.tensor([0.5, 1.0, 1.5]), constraint=constraints.positive)

        def forward(self, x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([1]).to_event(1))
                pyro.sample("x", dist.Normal(self.decoder(z), self.scale).to_event(1), obs=x)

    class Guide(PyroModule):
        def __init__(self):
            super().__init__()
            self.encoder = affine(3, 1, [[0.7, -0.1, 0.0]])
            self.width = PyroParam(torch.tensor(0.8), constraint=constraints.positive)

        def forward(self, x):
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(self.encoder(x), self.width).to_event(1))

    model = Model()
    return model, Guide(), torch.randn(7, 3), lambda x: linear_gaussian(x, model.decoder, 1, model.scale)


@pair
def bound_methods():
    """Pyro's VAE tutorial, small."""

    class TutorialVAE(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder = nn.Sequential(nn.Linear(5, 4), nn.Softplus(), nn.Linear(4, 2))
            self.decoder = nn.Sequential(nn.Linear(1, 4), nn.Softplus(), nn.Linear(4, 5))

        def model(self, x):
            pyro.module("decoder", self.decoder)
            with pyro.plate("data", x.shape[0]):
                z_loc = x.new_zeros(torch.Size((x.shape[0], 1)))
                z_scale = x.new_ones(torch.Size((x.shape[0], 1)))
                z = pyro.sample("latent", dist.Normal(z_loc, z_scale).to_event(1))
                pyro.sample("obs", dist.Bernoulli(logits=self.decoder(z)).to_event(1), obs=x)

        def guide(self, x):
            pyro.module("encoder", self.encoder)
            with pyro.plate("data", x.shape[0]):
                z_loc, z_log_scale = self.encoder(x).chunk(2, dim=-1)
                pyro.sample("latent", dist.Normal(z_loc, 0.5 + torch.exp(z_log_scale)).to_event(1))

    vae = TutorialVAE()
    x = torch.bernoulli(torch.full((7, 5), 0.5))

    def exact(x):
        return quadrature(lambda z: dist.Bernoulli(logits=vae.decoder(z)).to_event(1).log_prob(x))

    return vae.model, vae.guide, x, exact


@pair
def differently_named_plates():
    def model(x):
        with pyro.plate("pixels", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("observations", len(x)):
            pyro.sample("x", dist.Normal(z[..., None] * W, 1.0).to_event(1), obs=x)

    return model, encoding(), torch.randn(7, 3), lambda x: linear_gaussian(x, lambda z: z * W, 1, 1.0)


@pair
def columns_inside():
    """Rows at dim -2, columns at dim -1, and a latent in each cell."""

    def plates(x):
        return pyro.plate("rows", len(x), dim=-2), pyro.plate("columns", x.shape[1], dim=-1)

    def model(x):
        rows, columns = plates(x)
        with rows:
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            with columns:
                u = pyro.sample("u", dist.Normal(z, 0.6))
                pyro.sample("x", dist.Normal(u, 0.8), obs=x)

    def guide(x):
        rows, columns = plates(x)
        with rows:
            z = pyro.sample("z", dist.Normal(0.25 * x.sum(-1, keepdim=True), 0.6))
            with columns:
                pyro.sample("u", dist.Normal(0.64 * z + 0.36 * x, 0.6))

    x = torch.randn(7, 1) + torch.randn(7, 3)
    return model, guide, x, lambda x: linear_gaussian(x, lambda z: z.expand(-1, 3), 1, 1.0)


@pair
def columns_outside():
    """The plate of columns left of the plate of rows."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            with pyro.plate("columns", x.shape[1]):
                pyro.sample("x", dist.Normal(W[:, None] * z, 1.0), obs=x.T)

    return model, encoding(), torch.randn(7, 3), lambda x: linear_gaussian(x, lambda z: z * W, 1, 1.0)


@pair
def different_plates_at_different_dims():
    """The latent's rows at dim -1, the observations' rows at dim -2."""

    def model(x):
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("lines", len(x), dim=-2), pyro.plate("columns", x.shape[1], dim=-1):
            pyro.sample("x", dist.Normal(z[:, None] * W, 1.0), obs=x)

    return model, encoding(), torch.randn(7, 3), lambda x: linear_gaussian(x, lambda z: z * W, 1, 1.0)


@pair
def hierarchical():
    """z2 → z1 → x, the guide from x upwards."""

    def model(x):
        slope = pyro.param("slope", torch.tensor(0.8))
        with pyro.plate("data", len(x)):
            z2 = pyro.sample("z2", dist.Normal(0.0, 1.0))
            z1 = pyro.sample("z1", dist.Normal(slope * z2, 0.6))
            pyro.sample("x", dist.Normal(z1[..., None] * W, 1.0).to_event(1), obs=x)

    def guide(x):
        slope = pyro.param("guide_slope", torch.tensor(0.5))
        with pyro.plate("data", len(x)):
            z1 = pyro.sample("z1", dist.Normal(slope * (x @ W.to(x.dtype)), 0.9))
            pyro.sample("z2", dist.Normal(0.8 * z1, 0.8))

    return model, guide, torch.randn(7, 3), lambda x: linear_gaussian(x, lambda z: z * W, 1, 1.0)


@pair
def independent_sites():
    def model(x):
        with pyro.plate("data", len(x)):
            level = pyro.sample("level", dist.Normal(0.0, 1.0))
            slopes = pyro.sample("slopes", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
            loc = level[..., None] + torch.cat([slopes, -slopes.sum(-1, keepdim=True)], dim=-1)
            pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("level", dist.Normal(0.7 * x.mean(-1), 0.6))
            covariance = pyro.param(
                "covariance", 0.7 * torch.eye(2), constraint=constraints.positive_definite
            )
            pyro.sample("slopes", dist.MultivariateNormal(0.5 * x[..., :2] - 0.3 * x[..., 2:], covariance))

    def decode(z):
        return z[:, :1] + torch.cat([z[:, 1:], -z[:, 1:].sum(-1, keepdim=True)], dim=-1)

    return model, guide, torch.randn(7, 3), lambda x: linear_gaussian(x, decode, 3, 1.0)


@pair
def column_slices():
    """A mass and a density, each observed on columns of its own."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("real", dist.Normal(z[..., None], 1.0).to_event(1), obs=x[:, :1])
            pyro.sample("binary", dist.Bernoulli(logits=z[..., None] * W[:2]).to_event(1), obs=x[:, 1:])

    def guide(x):
        slope = pyro.param("slope", torch.tensor([0.4, 0.2, -0.2]))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal((x * slope).sum(-1), 0.9))

    x = torch.cat([torch.randn(7, 1), torch.bernoulli(torch.full((7, 2), 0.5))], dim=1)

    def exact(x):
        return quadrature(
            lambda z: (
                dist.Normal(z, 1.0).log_prob(x[:, :1])[..., 0]
                + dist.Bernoulli(logits=z * W[:2]).to_event(1).log_prob(x[:, 1:])
            )
        )

    return model, guide, x, exact


MISSING = -99.0


@pair
def masked_cells():
    """Missing cells carry a sentinel; each row is scored on the cells it has."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            fn = dist.Normal(z[..., None] * W, 1.0).mask(x != MISSING).to_event(1)
            pyro.sample("x", fn, obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal((torch.where(x == MISSING, 0.0, x) * W).sum(-1) / 2, 0.9))

    x = torch.randn(7, 3)
    x[range(6), [0, 1, 2, 0, 1, 2]] = MISSING

    def exact(x):
        held = [row != MISSING for row in x]
        return torch.cat(
            [
                linear_gaussian(row[None, keep], lambda z, keep=keep: z * W[keep], 1, 1.0)
                for row, keep in zip(x, held, strict=True)
            ]
        )

    return model, guide, x, exact


@pair
def masked_column():
    """``poutine.mask`` leaves one column out."""
    mask = torch.tensor([True, False, True])

    def model(x):
        with pyro.plate("data", len(x), dim=-2):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            with pyro.plate("columns", 3, dim=-1), pyro.poutine.mask(mask=mask):
                pyro.sample("x", dist.Normal(z * W, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-2):
            pyro.sample("z", dist.Normal(0.5 * x[:, :1], 0.9))

    return (
        model,
        guide,
        torch.randn(7, 3),
        lambda x: linear_gaussian(x[:, mask], lambda z: z * W[mask], 1, 1.0),
    )


@pair
def convolutional():
    """Images; a decoder that takes (rows, channels, 1, 1) and nothing else."""
    encoder = nn.Sequential(nn.Conv2d(1, 2, 4), nn.Flatten())
    decoder = nn.ConvTranspose2d(2, 1, 4)

    def model(x):
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2).to(x), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(decoder(z.view(len(x), 2, 1, 1)), 1.0).to_event(3), obs=x)

    def guide(x):
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(encoder(x), 1.0).to_event(1))

    def exact(x):
        return linear_gaussian(x, lambda z: decoder(z[:, :, None, None]), 2, 1.0)

    return model, guide, torch.randn(7, 1, 4, 4), exact


@pair
def indexed_latents():
    """``z[:, 0]`` means another axis once there are dims on the left."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2).to(x), 1.0).to_event(1))
            loc = torch.stack([z[:, 0], z[:, 0] + z[:, 1], z[:, 1]], dim=1)
            pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x)

    def guide(x):
        width = pyro.param("width", torch.tensor([0.8, 0.8]), constraint=constraints.positive)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.3 * x[:, [0, 2]] + 0.25 * x[:, [1]], width).to_event(1))

    weight = torch.tensor([[1.0, 1.0, 0.0], [0.0, 1.0, 1.0]])
    return model, guide, torch.randn(7, 3), lambda x: linear_gaussian(x, lambda z: z @ weight, 2, 1.0)


@pair
def indexed_hierarchy():
    """z2 → z1 → x, where neither part can be called with dims on the left."""

    def model(x):
        with pyro.plate("rows", len(x)):
            z2 = pyro.sample("z2", dist.Normal(0.0, 1.0))
            z1 = pyro.sample("z1", dist.Normal(torch.stack([z2, -z2], dim=1), 0.8).to_event(1))
        with pyro.plate("lines", len(x), dim=-2), pyro.plate("columns", 2, dim=-1):
            pyro.sample("x", dist.Normal(z1, 0.6), obs=x)

    def guide(x):
        slope = pyro.param("slope", torch.tensor(0.3))
        with pyro.plate("rows", len(x)):
            z1 = pyro.sample("z1", dist.Normal(0.7 * x, 0.7).to_event(1))
            pyro.sample("z2", dist.Normal(slope * (z1[:, 0] - z1[:, 1]), 0.7))

    x = torch.randn(7, 2)
    return model, guide, x, lambda x: linear_gaussian(x, lambda z: torch.cat([z, -z], dim=1), 1, 1.0)


@pair
def squeezed_latents():
    """``z.squeeze()`` takes more away where there is one row, or one sample."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(1).to(x), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z.squeeze(), 1.0), obs=x)

    def guide(x):
        slope = pyro.param("slope", torch.tensor(0.4))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(slope * x[:, None], 0.9).to_event(1))

    return model, guide, torch.randn(7), lambda x: linear_gaussian(x, lambda z: z, 1, 1.0)


@pair
def mixture():
    """A discrete latent: which of three components a row is from."""
    weights = torch.tensor([0.5, 0.3, 0.2])
    locs = torch.tensor([[-1.0, 0.0], [1.0, 1.0], [0.0, -1.0]])

    def model(x):
        loc = pyro.param("loc", locs.clone())
        with pyro.plate("data", len(x)):
            z = pyro.sample("component", dist.Categorical(weights))
            pyro.sample("x", dist.Normal(loc[z], 1.0).to_event(1), obs=x)

    def guide(x):
        slopes = pyro.param("slopes", torch.zeros(2, 3))
        with pyro.plate("data", len(x)):
            pyro.sample("component", dist.Categorical(logits=x @ slopes))

    def exact(x):
        log_joint = weights.log() + dist.Normal(locs, 1.0).to_event(1).log_prob(x[:, None])
        return torch.logsumexp(log_joint.double(), dim=-1)

    return model, guide, torch.randn(7, 2), exact


@pair
def counts():
    """A positive latent and counts: Gamma and Poisson, conjugate."""

    def model(x):
        shape = pyro.param("shape", torch.tensor(2.0), constraint=constraints.positive)
        with pyro.plate("data", len(x)):
            rate = pyro.sample("rate", dist.Gamma(shape, 1.0))
            pyro.sample("x", dist.Poisson(rate[..., None].expand(*rate.shape, 3)).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("rate", dist.Gamma(0.8 * (2 + x.sum(-1)), 3.2))

    def exact(x):
        total = 2 + x.double().sum(-1)
        return torch.lgamma(total) - total * torch.tensor(4.0).log() - torch.lgamma(x.double() + 1).sum(-1)

    return model, guide, torch.poisson(torch.full((7, 3), 2.0)), exact


@pair
def sequential_columns():
    """A loop over columns, a site for each."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            for d in pyro.plate("columns", 3):
                pyro.sample(f"x_{d}", dist.Normal(z * W[d], 1.0), obs=x[:, d])

    return model, encoding(), torch.randn(7, 3), lambda x: linear_gaussian(x, lambda z: z * W, 1, 1.0)


@pair
def deterministic_sites():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            loc = pyro.deterministic("loc", z[..., None] * W, event_dim=1)
            pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x)

    return model, encoding(), torch.randn(7, 3), lambda x: linear_gaussian(x, lambda z: z * W, 1, 1.0)


@pair
def decentred_latent():
    """``poutine.reparam`` makes the latent "z" an observed one that is computed from "z_decentered"."""

    @poutine.reparam(config={"z": LocScaleReparam(0.0)})
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(1.0, 2.0))
            pyro.sample("x", dist.Normal(z[..., None] * W, 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z_decentered", dist.Normal((x - W) @ W.to(x.dtype) * 0.4, 0.6))

    return model, guide, torch.randn(7, 3), lambda x: linear_gaussian(x, lambda z: (1 + 2 * z) * W, 1, 1.0)


@pair
def wavelets_of_a_latent():
    """Unlike other reparameterisers, those that keep volumes do not mask what they compute."""

    weight = torch.tensor([[0.8, -0.5, 0.3], [0.2, 0.4, -0.6]])
    haar = HaarTransform(dim=-1)

    @poutine.reparam(config={"z": HaarReparam(dim=-1)})
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.ones(2).to(x), 2.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ weight.to(x.dtype), 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            mean = 1 + (x - weight.sum(0)) @ weight.T.to(x.dtype) * 0.8
            pyro.sample("z_haar", dist.Normal(haar(mean), 1.1).to_event(1))

    def decode(z):
        return (1 + 2 * z) @ weight.to(z.dtype)

    return model, guide, torch.randn(7, 3), lambda x: linear_gaussian(x, decode, 2, 1.0)


@pair
def double_precision():
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(W.clone())
            self.register_buffer("scale", torch.tensor(1.0))

        def model(self, x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(torch.zeros_like(self.scale), self.scale))
                pyro.sample("x", dist.Normal(z[..., None] * self.weight, self.scale).to_event(1), obs=x)

        def guide(self, x):
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(x @ self.weight / 2, 0.8 * self.scale))

    both = Pair().double()
    x = torch.randn(7, 3, dtype=torch.float64)
    return both.model, both.guide, x, lambda x: linear_gaussian(x, lambda z: z * both.weight, 1, 1.0)


class Averaging(nn.Module):
    """A pair with discrete latents, whose gradients need an average over earlier steps if ``averages``."""

    def __init__(self, averages: bool = True):
        super().__init__()
        torch.manual_seed(0)
        self.decoder, self.encoder = nn.Linear(3, 6), nn.Linear(6, 3)
        self.infer = {"baseline": {"use_decaying_avg_baseline": True}} if averages else {}

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(torch.full((3,), 0.4)).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(z)).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Bernoulli(logits=self.encoder(x)).to_event(1), infer=self.infer)
