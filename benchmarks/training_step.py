"""What does a training step cost: pyrovae's, plain Pyro's, and one written by hand in torch?

The same networks, rows and minibatches for all, Adam throughout, one draw a row. ``pyrovae.training.step``
is what a minibatch costs inside ``fit``; "fit, everything" is a whole ``pv.fit`` divided by its steps, with
the inspection of the pair, the drawing of minibatches and the ELBO of all rows after every epoch, which the
other lines don't have. The ratio is to Pyro as its tutorial has it.

    python benchmarks/training_step.py --json benchmarks/results/training_step.json
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import pyro
import pyro.infer
import pyro.optim
import torch
import torch.nn.functional as F
from harness import Options, Peer, Table, arguments, compare, report
from peers import TutorialVAE, binary_rows, mlp_vae, networks
from torch import Tensor

import pyrovae as pv
from pyrovae import noise
from pyrovae.training import State, step

LEARNING_RATE = 1e-3


@dataclass(frozen=True)
class Size:
    """A VAE and its minibatches; ``epochs`` passes over ``batches`` of them are a run."""

    title: str
    data_dim: int
    hidden_dim: int
    latent_dim: int
    batch_size: int
    batches: int
    epochs: int

    @property
    def num_rows(self) -> int:
        return self.batch_size * self.batches

    def vae(self) -> pv.VAE:
        return mlp_vae(self.data_dim, (self.hidden_dim,), self.latent_dim)


SIZES = (
    Size("small: batch 64, 64-64-8-64-64", 64, 64, 8, batch_size=64, batches=50, epochs=4),
    Size("MNIST-sized: batch 128, 784-400-50-400-784", 784, 400, 50, batch_size=128, batches=50, epochs=4),
)


def by_pyrovae(size: Size, rows: Tensor) -> Callable[[Tensor], float]:
    """A step as ``pv.fit`` takes it; returns the loss in nats a row."""
    vae = size.vae()
    optimizer = torch.optim.Adam(vae.parameters(), lr=LEARNING_RATE)
    state = State(vae, optimizer, pyro.infer.Trace_ELBO(), len(rows), clip_norm=None)
    taken = itertools.count()

    def take(x: Tensor) -> float:
        seed = noise.derive(0, noise.Stream.STEP, next(taken))
        return step(state, {"x": x}, seed, (LEARNING_RATE,), kl_weight=1.0)

    return take


def by_pyro(size: Size, validation: bool) -> Callable[[Tensor], float]:
    """SVI with Trace_ELBO, with Pyro's validation (its default) or without; the loss in nats a row."""
    pair = TutorialVAE(f"{size.title}-{validation}", *networks(size.vae()), size.latent_dim)
    adam = pyro.optim.Adam({"lr": LEARNING_RATE})  # type: ignore[attr-defined]
    svi = pyro.infer.SVI(pair.model, pair.guide, adam, pyro.infer.Trace_ELBO())

    def take(x: Tensor) -> float:
        with pyro.validation_enabled(validation):
            return svi.step(x) / len(x)

    return take


def by_hand(size: Size) -> Callable[[Tensor], float]:
    """A torch loop: the single-draw ELBO with no term in closed form; the loss in nats a row."""
    encoder, decoder = networks(size.vae())
    optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=LEARNING_RATE)

    def take(x: Tensor) -> float:
        loc, log_scale = encoder(x).chunk(2, dim=-1)
        unit = torch.randn_like(loc)
        z = loc + log_scale.exp() * unit
        rate = ((z**2 - unit**2) / 2 - log_scale).sum()  # log Q(z | x) − log P(z)
        loss = (F.binary_cross_entropy_with_logits(decoder(z), x, reduction="sum") + rate) / len(x)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    return take


def measure(size: Size, options: Options) -> Table:
    """The table of one size."""
    rows = binary_rows(size.num_rows, size.data_dim)
    minibatches = rows.split(size.batch_size)
    steps = size.epochs * size.batches
    fitted = size.vae()

    def train(take: Callable[[Tensor], float]) -> Callable[[], float]:
        def run() -> float:
            """Returns the loss of the last epoch."""
            for _ in range(size.epochs):
                losses = [take(x) for x in minibatches]
            return sum(losses) / len(losses)

        return run

    def fit() -> float:
        options = {"epochs": size.epochs, "batch_size": size.batch_size, "lr": LEARNING_RATE}
        return pv.fit(fitted, rows, **options).records[-1]["loss"]

    pyro_reference = "Pyro SVI, Trace_ELBO"
    takes = {
        pyro_reference: by_pyro(size, validation=True),
        "Pyro SVI, validation off": by_pyro(size, validation=False),
        "torch by hand": by_hand(size),
        "pyrovae step": by_pyrovae(size, rows),
    }
    peers = [Peer(name, train(take), steps) for name, take in takes.items()]
    return compare(
        size.title,
        [*peers, Peer("pyrovae fit, everything", fit, steps)],
        options=options,
        reference=pyro_reference,
        unit="ms a step",
        answer="loss, nats a row",
    )


def main() -> None:
    options = Options.of(arguments(__doc__, rounds=15).parse_args())
    tables = []
    for size in SIZES:
        tables.append(measure(size, options))
        print(tables[-1], end="\n\n")
    report(tables, options.json)


if __name__ == "__main__":
    main()
