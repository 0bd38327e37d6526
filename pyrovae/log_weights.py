"""Log importance weights log P(x_n, z_sn) − log Q(z_sn | x_n), and their mean, the ELBO."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyrovae import threads
from pyrovae.evaluation import Evaluation
from pyrovae.model import LatentVariableModel
from pyrovae.refusals import bad_value
from pyrovae.turns import takes_turns


@takes_turns
def log_weights(
    pair: LatentVariableModel,
    x: Any,
    num_samples: int = 100,
    seed: int = 0,
    tile: tuple[int, int] | None = None,
    compile: str | bool = "auto",
    noise: str = "index",
) -> Tensor:
    """Return log importance weights of every row: log P(x_n, z_sn) − log Q(z_sn | x_n), z_sn ~ Q(z | x_n).

    The mean of a column is the ELBO of that row; its log-mean-exp is the importance-weighted log P(x_n).

    Args:
        pair: a ``VAE`` or any ``LatentVariableModel``.
        x: rows on dim 0; tensor, numpy array or DataFrame. A dict holds the rows under "x" and values aligned
            with them under other names; model and guide get these as keywords. Rows in a ``numpy.memmap`` of
            the pair's dtype stay on disk; rows of another dtype are cast as a whole.
        num_samples: S, draws per row.
        seed: the same seed gives the same numbers; with the same tile, bit for bit.
        tile: (rows, samples) computed at once; None chooses it from the shapes.
        compile: False runs guide and model by Pyro for every tile. True runs them once, under torch's tracer,
            and compiles their computation: several times as fast after some 10 seconds, and equal up to
            rounding. "auto" compiles if it can and the work ahead takes longer than that, judged by the shapes
            alone. Compiling needs a C++ compiler. Compiled graphs are kept with the pair.
        noise: the key of a row's noise beside ``seed``: its "index" in x, or its "content". With "content", a
            row has the same number in any order and selection of rows.

    Returns:
        Tensor of shape (samples, rows), float64, in nats.

    Raises:
        TypeError, ValueError: an option, the rows or the pair cannot be used; see ``pyrovae.pair.inspect``. The
            matrix does not fit into memory, or ``compile=True`` and the pair cannot be traced.

    Burda, Grosse and Salakhutdinov (2016).

    Example:
        >>> import torch
        >>> from pyrovae import VAE
        >>> log_weights(VAE.mlp(6, latent_dim=2), torch.ones(4, 6), num_samples=10).shape
        torch.Size([10, 4])
    """
    evaluation = Evaluation.prepare(pair, x, num_samples, seed, tile, compile=compile, noise=noise)
    shape = num_samples, len(evaluation)
    try:
        matrix = torch.empty(shape, dtype=torch.float64, device=evaluation.batch["x"].device)
    except (RuntimeError, MemoryError) as error:
        raise bad_value(
            "num_samples",
            "a matrix of shape (samples, rows) that fits into memory",
            f"{shape[0]} × {shape[1]} numbers, {math.prod(shape) * 8 / 1e9:.3g} GB",
            "Use log_evidence, which keeps no matrix, or pass fewer.",
        ) from error
    with threads.using(evaluation.threads):
        for block in evaluation.tiles():
            for part in block:
                matrix[part.samples, part.rows] = evaluation.terms(part).log_weights
    return matrix


@dataclass(frozen=True)
class ELBOEstimate:
    """The evidence lower bound of every row, split in two: estimate = reconstruction − rate.

    Draws that rounding put onto a bound of their support are left out; a row without other draws is NaN.

    Attributes:
        estimate: E_Q[log P(x, z) − log Q(z | x)], shape (rows,), in nats.
        rate: KL(Q ‖ P) = E_Q[log Q(z | x) − log P(z)], shape (rows,), in nats.
        reconstruction: E_Q[log P(x | z)], shape (rows,), in nats.
        mcse: Monte-Carlo standard error of ``estimate``, shape (rows,); NaN for one sample, or if a draw has
            log P(x, z) = −∞.
    """

    estimate: np.ndarray
    rate: np.ndarray
    reconstruction: np.ndarray
    mcse: np.ndarray

    @property
    def mean(self) -> float:
        """Mean ELBO over the rows, in nats per row."""
        return float(self.estimate.mean())

    @classmethod
    def cat(cls, parts: Sequence[ELBOEstimate]) -> ELBOEstimate:
        """Return the bounds of the rows of several parts together."""
        columns = ("estimate", "rate", "reconstruction", "mcse")
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in columns))


@takes_turns
def elbo(
    pair: LatentVariableModel,
    x: Any,
    num_samples: int = 100,
    seed: int = 0,
    tile: tuple[int, int] | None = None,
    compile: str | bool = "auto",
    noise: str = "index",
) -> ELBOEstimate:
    """Return the evidence lower bound of every row and its two terms, by Monte Carlo.

    ELBO(x) = E_Q[log P(x | z)] − KL(Q(z | x) ‖ P(z)) ≤ log P(x).

    Arguments and errors as in ``log_weights``. Kingma and Welling (2014).

    Example:
        >>> import torch
        >>> from pyrovae import VAE
        >>> bound = elbo(VAE.mlp(6, latent_dim=2), torch.ones(4, 6))
        >>> bound.estimate.shape
        (4,)
    """
    return elbo_of(Evaluation.prepare(pair, x, num_samples, seed, tile, compile=compile, noise=noise))


def elbo_of(evaluation: Evaluation) -> ELBOEstimate:
    """Return ``elbo`` of a prepared evaluation."""
    with threads.using(evaluation.threads):
        return _elbo_of(evaluation)


def _elbo_of(evaluation: Evaluation) -> ELBOEstimate:
    reconstruction, rate, mcse = (torch.empty(len(evaluation), dtype=torch.float64) for _ in range(3))
    for block in evaluation.tiles():
        rows = block[0].rows
        count, sum_r, sum_k, mean_w, deviations = torch.zeros(
            5, rows.stop - rows.start, dtype=torch.float64, device=evaluation.batch["x"].device
        )
        for tile in block:
            terms = evaluation.terms(tile)
            kept = ~terms.lost
            r, k, w = (
                torch.where(kept, term, 0.0)
                for term in (terms.likelihood, terms.proposal - terms.prior, terms.log_weights)
            )
            n = kept.sum(dim=0)
            sum_r, sum_k = sum_r + r.sum(dim=0), sum_k + k.sum(dim=0)
            # Squared deviations, merged tile by tile (Chan, Golub and LeVeque 1983).
            mean = w.sum(dim=0) / n.clamp(min=1)
            shift = torch.where(n > 0, mean - mean_w, 0.0)
            within = torch.where(kept, (w - mean) ** 2, 0.0).sum(dim=0)
            deviations = deviations + within + shift**2 * count * n / (count + n).clamp(min=1)
            mean_w = mean_w + shift * n / (count + n).clamp(min=1)
            count = count + n
        reconstruction[rows], rate[rows] = sum_r / count, sum_k / count
        mcse[rows] = (deviations / (count * (count - 1))).sqrt()
    return ELBOEstimate((reconstruction - rate).numpy(), rate.numpy(), reconstruction.numpy(), mcse.numpy())
