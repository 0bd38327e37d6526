"""Two stochastic layers, by Burda, Grosse and Salakhutdinov (2016): plain Pyro, and pyrovae around it.

The rows are fixed-binarized MNIST where it is at hand ($PYROVAE_DATA), else scikit-learn's digits.

python examples/two_stochastic_layers.py [--rows 50000] [--epochs 30]
"""

import argparse
import functools

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import nn

import pyrovae as pv


def hidden(inputs, width):
    """Two layers of tanh units."""
    return nn.Sequential(nn.Linear(inputs, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh())


class Gaussian(nn.Module):
    """Normal with mean and log-variance linear in the hidden units."""

    def __init__(self, inputs, width, outputs):
        super().__init__()
        self.hidden = hidden(inputs, width)
        self.loc = nn.Linear(width, outputs)
        self.log_variance = nn.Linear(width, outputs)

    def forward(self, inputs):
        units = self.hidden(inputs)
        return dist.Normal(self.loc(units), (self.log_variance(units) / 2).exp()).to_event(1)


class TwoLayers(nn.Module):
    """The guide goes up, x – 200 – 200 → h1 (100) – 100 – 100 → h2 (50); the model comes down the same way."""

    def __init__(self, x):
        super().__init__()
        columns = x.shape[1]
        self.h1_given_x = Gaussian(columns, 200, 100)
        self.h2_given_h1 = Gaussian(100, 100, 50)
        self.h1_given_h2 = Gaussian(50, 100, 100)
        self.x_given_h1 = nn.Sequential(hidden(100, 200), nn.Linear(200, columns))
        for layer in self.modules():  # as in the paper: Glorot's weights, and pixels that begin at their mean
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)
        self.x_given_h1[-1].bias.data = torch.logit(x.mean(dim=0), eps=1e-3)

    def model(self, x):
        pyro.module("two_layers", self)
        with pyro.plate("data", len(x)):
            h2 = pyro.sample("h2", dist.Normal(x.new_zeros(50), 1.0).to_event(1))
            h1 = pyro.sample("h1", self.h1_given_h2(h2))
            pyro.sample("x", dist.Bernoulli(logits=self.x_given_h1(h1)).to_event(1), obs=x)

    def guide(self, x):
        pyro.module("two_layers", self)
        with pyro.plate("data", len(x)):
            h1 = pyro.sample("h1", self.h1_given_x(x))
            pyro.sample("h2", self.h2_given_h1(h1))


@torch.no_grad()
def what_each_layer_does(net, x):
    """For h1 and h2: its part of the rate, nats a row, and how many units move with x."""
    up = poutine.trace(net.guide).get_trace(x)
    down = poutine.trace(poutine.replay(net.model, trace=up)).get_trace(x)
    up.compute_log_prob()
    down.compute_log_prob()
    # Burda's active units: Var_x(E[u | x]) > 0.01, the mean of h2 averaged over draws of h1.
    h1 = net.h1_given_x(x)
    means = {"h1": h1.mean, "h2": torch.stack([net.h2_given_h1(h1.sample()).mean for _ in range(50)]).mean(0)}
    for site, mean in means.items():
        rate = (up.nodes[site]["log_prob"] - down.nodes[site]["log_prob"]).mean()
        active = int((mean.var(dim=0) > 0.01).sum())
        print(f"{site}: rate {rate:.1f} nats a row, {active} of {mean.shape[1]} units active")


def main(rows=1000, epochs=4, batch_size=20):
    try:
        data = pv.datasets.binarized_mnist(download=False)
    except FileNotFoundError:
        data = pv.datasets.digits("binary")
    train, test = data.train[:rows], data.test[:100]

    torch.manual_seed(0)
    net = TwoLayers(train)
    pair = pv.LatentVariableModel(net.model, net.guide)
    adam = functools.partial(torch.optim.Adam, eps=1e-4)  # lr and ε of the paper
    history = pv.fit(pair, train, epochs=epochs, batch_size=batch_size, lr=1e-3, optimizer=adam)
    print(history.frame[["epoch", "elbo", "rate", "reconstruction"]].tail(3).round(2).to_string(index=False))
    what_each_layer_does(net, test)
    print(pv.log_evidence(pair, test, num_samples=500))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1000, help="training rows")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--batch-size", type=int, default=20)
    main(**vars(parser.parse_args()))
