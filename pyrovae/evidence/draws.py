"""Draws of z with importance weights, kept beside an answer, and draws of P(z | x) chosen from them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from pyrovae.evaluation import Evaluation, Terms
from pyrovae.pair import Latents
from pyrovae.row_noise import RowNoise, interval_of


@dataclass(frozen=True)
class Draws:
    """Draws of z for a block of rows, and the terms of their weights.

    Attributes:
        evaluation: of the rows.
        rows: the block.
        latents: the draws, in the layout of ``RowModel``.
        terms: log P(x_n | z), log P(z) and log q(z), shape (samples, rows), for the density q that z was drawn from.
    """

    evaluation: Evaluation
    rows: slice
    latents: Latents
    terms: Terms

    @property
    def log_weights(self) -> Tensor:
        """log P(x_n, z) − log q(z), (samples, rows)."""
        return self.terms.log_weights

    @classmethod
    def cat(cls, evaluation: Evaluation, rows: slice, parts: Sequence[tuple[Latents, Terms]]) -> Draws:
        """Return the draws of several tiles of one block together."""
        names = evaluation.structure.latents
        latents = {name: torch.cat([part[name] for part, _ in parts]) for name in names}
        return cls(evaluation, rows, latents, Terms.cat([terms for _, terms in parts]))

    @classmethod
    def joined(cls, evaluation: Evaluation, rows: slice, parts: Sequence[Draws], order: Tensor) -> Draws:
        """Return the draws of parts of a block's rows together; ``order`` are the places of the block's rows in the parts."""
        model = evaluation.model
        latents = {
            name: model.rows_back(
                name,
                torch.cat([model.rows_second(name, part.latents[name]) for part in parts], dim=1)[:, order],
            )
            for name in evaluation.structure.latents
        }
        terms = (
            torch.cat([getattr(part.terms, field.name) for part in parts], dim=1)[:, order]
            for field in fields(Terms)
        )
        return cls(evaluation, rows, latents, Terms(*terms))

    def chosen(self, draws: Tensor) -> Latents:
        """Return the draws of every row with the given numbers, (some, rows), in the layout of ``RowModel``."""
        model, every = self.evaluation.model, torch.arange(draws.shape[1], device=draws.device)
        return {
            name: model.rows_back(name, model.rows_second(name, z)[draws, every])
            for name, z in self.latents.items()
        }


#: Gets the draws of each block of rows.
Keep = Callable[[Draws], None]


def normalised(log_weights: Tensor) -> Tensor:
    """Return weights that sum to one over dim 0, float64; equal ones for a row with P(x_n, z) = 0 at every draw."""
    impossible = torch.isneginf(log_weights).all(dim=0)
    return torch.softmax(torch.where(impossible, 0.0, log_weights), dim=0).double()


def resample(log_weights: Tensor, num_draws: int, row_noise: RowNoise) -> Tensor:
    """Return numbers of draws chosen with probability ∝ their weights, (num_draws, rows), from (samples, rows).

    Rubin (1987).
    """
    ends = normalised(log_weights).cumsum(dim=0).T  # (rows, samples)
    return interval_of(row_noise.uniform(num_draws, dtype=torch.float64).T, ends).T
