"""Bidirectional Monte Carlo: log P(x) between a lower and an upper bound, on rows whose z is known."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from pyrovae import checks, noise
from pyrovae.evidence.annealed import STARTS, Moves, Path, accumulate
from pyrovae.evidence.exact import linear_gaussian
from pyrovae.evidence.posterior import Encoder, Posterior, Prior, undisturbed
from pyrovae.evidence.result import frame_of
from pyrovae.log_weights import Evaluation
from pyrovae.model import LatentVariableModel
from pyrovae.noise import Stream
from pyrovae.pair import simulate
from pyrovae.progress import Progress
from pyrovae.turns import takes_turns

if TYPE_CHECKING:
    import pandas as pd

ROWS = ("simulated", "real")


@dataclass(frozen=True)
class Sandwich:
    """Bounds on log P(x_n) from both sides, in nats; each of shape (rows,), float64.

    Attributes:
        lower, upper: bounds in expectation over their noise; a row's own pair may cross within its errors.
        lower_mcse, upper_mcse: Monte-Carlo standard errors. The upper one is given z_n: its chains all
            start at the one exact draw, and another draw would move them together.
        verdict: "trust" where the gap is within ``tolerance``, and not below zero by more than that; else
            "another method".
        rows: "simulated" or "real": whose rows these are. A gap on simulated rows says how well the
            annealing works on rows of the model's own making, and nothing about any real row.
        x: the rows.
        tolerance: the gap, in nats, up to which a row is trusted.
        seed: with the pair and x's shape, it gives the same bits again.
        index: of real rows that are a frame or a series; else None.
    """

    lower: np.ndarray
    upper: np.ndarray
    lower_mcse: np.ndarray
    upper_mcse: np.ndarray
    verdict: np.ndarray
    rows: str
    x: Tensor
    tolerance: float
    seed: int
    index: Any = None

    @property
    def gap(self) -> np.ndarray:
        """upper − lower, shape (rows,), in nats; its expectation is not below zero."""
        return self.upper - self.lower

    def to_frame(self) -> pd.DataFrame:
        """One line a row: lower, upper, gap, lower_mcse, upper_mcse, verdict."""
        names = ("lower", "upper", "gap", "lower_mcse", "upper_mcse", "verdict")
        return frame_of({name: getattr(self, name) for name in names}, self.index)

    def summary(self) -> str:
        """The mean bounds and their gap with its error, and on whose rows."""
        count = len(self.gap)
        error = self.gap.std(ddof=1) / math.sqrt(count) if count > 1 else math.nan  # over rows
        trusted = int((self.verdict == "trust").sum())
        return (
            f"log P(x) between {self.lower.mean():.3f} and {self.upper.mean():.3f} nats a row\n"
            f"gap {self.gap.mean():.4f} ± {error:.4f} on {count} {self.rows} rows, "
            f"{trusted} of them within {self.tolerance:g}"
        )

    def __str__(self) -> str:
        return self.summary()


@takes_turns
def sandwich(
    pair: LatentVariableModel,
    x: Any,
    num_rows: int = 64,
    seed: int = 0,
    num_samples: int = 64,
    num_temperatures: int = 300,
    start: str = "encoder",
    rows: str = "simulated",
    tolerance: float = 0.5,
    progress: bool = False,
) -> Sandwich:
    """Lower and upper bounds of log P(x_n) by annealing towards the posterior, and back from it.

    Bidirectional Monte Carlo (Grosse, Ghahramani and Adams 2015; Wu et al. 2017). Rows are simulated from
    the model, x_n ~ P(x | z_n) with z_n ~ P(z), so that z_n is an exact draw of P(z | x_n). Chains from the
    start to the posterior give the lower bound, chains from z_n back to the start the upper one:

        E[log mean_k w_k] ≤ log P(x_n) ≤ E[−log mean_k 1/w'_k].

    Args:
        pair: a ``VAE`` or any ``LatentVariableModel`` with continuous latents.
        x: rows on dim 0, for their shape and whatever is aligned with them.
        num_rows: rows to simulate; or how many of ``x`` at most, from the first on, where they are real.
        seed: the same seed gives the same bits.
        num_samples: chains a row in each direction.
        num_temperatures, start: as in ``annealed``.
        rows: "simulated"; or "real" for the rows of x themselves, where a closed form gives their posterior
            (``evidence.exact``).
        tolerance: the gap, in nats, up to which a row's verdict is "trust".
        progress: show a bar, or plain lines where there is no terminal.

    Raises:
        TypeError, ValueError: see ``annealed``; a model whose rows can't be simulated, or real rows of a
            pair that is not linear-Gaussian.

    Example:
        >>> import torch
        >>> from pyrovae import VAE
        >>> vae = VAE.mlp(6, latent_dim=2)
        >>> sandwich(vae, torch.ones(4, 6), num_rows=8, num_temperatures=20).gap.shape
        (8,)
    """
    checks.integer("num_rows", num_rows)
    checks.integer("num_temperatures", num_temperatures, minimum=2)
    checks.integer("num_samples", num_samples, minimum=2)
    checks.choice("start", start, STARTS)
    checks.choice("rows", rows, ROWS)
    checks.positive("tolerance", tolerance)
    checks.boolean("progress", progress)
    evaluation, index = Evaluation.prepare(pair, x, num_samples, seed), None
    if rows == "real":
        index = None if evaluation.source is None else evaluation.source.index
        z, evaluation = _known_posterior(evaluation, num_rows)
    else:
        z, evaluation = _simulated(evaluation, num_rows)
    blocks = []
    with Progress("sandwich", len(evaluation), "rows", progress) as bar:
        for number, block in enumerate(evaluation.blocks()):
            with undisturbed(evaluation, Stream.PILOT, number):
                posterior = Posterior(evaluation, block)
                path = Path(posterior, Encoder(posterior) if start == "encoder" else Prior(posterior))
                moves = path.tune(num_temperatures)
            forward = accumulate(evaluation, posterior, number, 0, partial(path.forward, moves))
            backward = accumulate(
                evaluation, posterior, number, 1, partial(_inverse, path, moves, z[:, block])
            )
            blocks.append(
                torch.stack(
                    [
                        forward.log_mean_exp(),
                        -backward.log_mean_exp(),
                        forward.mcse(),
                        backward.mcse(),
                    ]
                )
            )
            bar.advance(posterior.num_rows)
    lower, upper, lower_mcse, upper_mcse = torch.cat(blocks, dim=1).cpu().numpy()
    return Sandwich(
        lower=lower,
        upper=upper,
        lower_mcse=lower_mcse,
        upper_mcse=upper_mcse,
        verdict=np.where(np.abs(upper - lower) <= tolerance, "trust", "another method"),
        rows=rows,
        x=evaluation.batch["x"],
        tolerance=tolerance,
        seed=seed,
        index=None if index is None else index[: len(evaluation)],
    )


def _inverse(path: Path, moves: Moves, z: Tensor, num_chains: int) -> Tensor:
    """Log weights whose exponentials have the expectation 1/P(x_n), of chains that start at z."""
    return -path.backward(moves, z.expand(num_chains, -1, -1))


def _simulated(evaluation: Evaluation, num_rows: int) -> tuple[Tensor, Evaluation]:
    """Rows of the model's own making, and the vectors u they were made from, (1, rows, dim)."""
    index = torch.arange(num_rows, device=evaluation.batch["x"].device) % len(evaluation)
    template = evaluation.of_rows(index, evaluation.seed, evaluation.num_samples)
    with (
        evaluation.pair.evaluating(),
        noise.seeded(noise.derive(evaluation.seed, Stream.SIMULATE), evaluation.batch["x"].device),
    ):
        latents, batch = simulate(evaluation.pair, evaluation.structure, template.batch)
    made = dataclasses.replace(template, batch=batch)
    with undisturbed(made, Stream.SIMULATE):
        return Posterior(made).flatten(latents), made


def _known_posterior(evaluation: Evaluation, num_rows: int) -> tuple[Tensor, Evaluation]:
    """The first rows of x, and an exact draw of each one's posterior, (1, rows, dim)."""
    x = evaluation.batch["x"][:num_rows]
    known = linear_gaussian(evaluation.pair, x)
    index = torch.arange(len(x), device=x.device)
    with noise.seeded(noise.derive(evaluation.seed, Stream.SIMULATE), x.device):
        z = known.posterior(x.flatten(1).double()).sample()[None]
    return z.to(evaluation.dtype), evaluation.of_rows(index, evaluation.seed, evaluation.num_samples)
