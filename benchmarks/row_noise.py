"""Cost of noise that is keyed by rows: nanoseconds a number beside torch's generator, and its share of a draw.

    python benchmarks/row_noise.py

Prints, for a small and an MNIST-sized VAE, the time of one standard normal number by ``RowNoise`` and by ``torch.randn``,
in tiles of the evaluation's own shape; the time of one draw of log P(x) on the compiled graph; and how much of that draw the
keyed noise costs beyond torch's. All are medians over rounds that alternate.
"""

from __future__ import annotations

import argparse
import statistics

import torch
from harness import seconds

import pyrovae as pv
from pyrovae import noise
from pyrovae.row_noise import RowNoise

ROWS, DRAWS = 1000, 1000
MODELS = {"64-64-8": (64, (64,), 8), "784-200-200-50": (784, (200, 200), 50)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    print(f"{'model':16s} {'keyed, ns':>10s} {'torch, ns':>10s} {'a draw, ns':>11s} {'extra share':>12s}")
    for name, (width, hidden, latent_dim) in MODELS.items():
        with noise.seeded(0):
            vae = pv.VAE.mlp(width, latent_dim, hidden_dims=hidden)
            x = torch.bernoulli(torch.full((ROWS, width), 0.3))
        height, samples = noise.tile_shape(max(width, *hidden), DRAWS)
        rows = min(height, ROWS)
        keyed = RowNoise(noise.derive(0, noise.Stream.TILE), torch.arange(rows))
        numbers = samples * rows * latent_dim

        def draw(keyed: RowNoise = keyed, samples: int = samples, dim: int = latent_dim) -> object:
            return [keyed.normal(samples, dim, dtype=torch.float32) for _ in range(20)]

        def by_torch(shape: tuple[int, ...] = (samples, rows, latent_dim)) -> object:
            return [torch.randn(shape) for _ in range(20)]

        def evaluate(vae: pv.VAE = vae, x: torch.Tensor = x) -> object:
            return pv.log_evidence(vae, x, num_samples=DRAWS, compile=True, check=False)

        evaluate()  # compiles
        taken = [(seconds(draw), seconds(by_torch), seconds(evaluate)) for _ in range(rounds)]
        own, other = (
            statistics.median(each) / 20 / numbers * 1e9 for each in list(zip(*taken, strict=True))[:2]
        )
        whole = statistics.median(each[2] for each in taken) / (ROWS * DRAWS) * 1e9
        share = latent_dim * (own - other) / whole
        print(f"{name:16s} {own:10.2f} {other:10.2f} {whole:11.0f} {share:12.1%}")


if __name__ == "__main__":
    main()
