"""What the checks on the data cost: their share of an evaluation of 1000 rows with 1000 draws each.

    python benchmarks/checks.py

Prints, for a small and an MNIST-sized VAE, the seconds of the checks that run on every row of an evaluation, those of
the whole evaluation on its compiled graph, and their ratio: medians over rounds that alternate. The checks: model and
guide once on every row, some rows scored alone, which columns a site holds, and whether a site reads what it scores.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from unittest import mock

import torch
from harness import seconds

import pyrovae as pv
from pyrovae.evaluation import Evaluation
from pyrovae.pair import inspection

ROWS, DRAWS = 1000, 1000
MODELS = {"64-64-8": (64, (64,), 8), "784-200-200-50": (784, (200, 200), 50)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=9)
    rounds = parser.parse_args().rounds
    print(f"{'model':16s} {'checks, ms':>10s} {'evaluation, ms':>15s} {'share':>7s}")
    for name, (width, hidden, latent_dim) in MODELS.items():
        torch.manual_seed(0)
        vae = pv.VAE.mlp(width, latent_dim, hidden_dims=hidden)
        x = torch.bernoulli(torch.full((ROWS, width), 0.3))

        def prepare(vae: pv.VAE = vae, x: torch.Tensor = x) -> object:
            return Evaluation.prepare(vae, x, DRAWS, 0)

        held = {"x": list(range(width))}

        def without(prepare: Callable[[], object] = prepare, held: dict[str, list[int]] = held) -> object:
            with (
                mock.patch.object(inspection, "check_rows", lambda model, *rest: model),
                mock.patch.object(inspection, "_check_order"),
                mock.patch.object(inspection, "columns_held", return_value=held),
            ):
                return prepare()

        def evaluate(vae: pv.VAE = vae, x: torch.Tensor = x) -> object:
            return pv.log_evidence(vae, x, num_samples=DRAWS, check=False)

        evaluate()  # compiles
        taken = [(seconds(prepare), seconds(without), seconds(evaluate)) for _ in range(rounds)]
        checks = statistics.median(a - b for a, b, _ in taken)
        whole = statistics.median(c for *_, c in taken)
        share = statistics.median((a - b) / c for a, b, c in taken)
        print(f"{name:16s} {1e3 * checks:10.1f} {1e3 * whole:15.0f} {share:7.1%}")


if __name__ == "__main__":
    main()
