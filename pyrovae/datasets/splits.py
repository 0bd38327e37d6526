"""Rows in three parts, and the randomness that a data set may have of its own."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Generator, Tensor

from pyrovae import noise


class Split(NamedTuple):
    """Rows to fit on, rows to stop by, and rows to score; each of shape (rows, columns), or (rows,)."""

    train: Tensor
    validation: Tensor
    test: Tensor


def generator_of(seed: int) -> Generator:
    """Where a data set's own randomness comes from: its split and its dequantisation."""
    return torch.Generator().manual_seed(noise.derive(seed, noise.Stream.DATA))


def split(rows: Tensor, validation: int, test: int) -> Split:
    """Rows in their order: the last for the test, those before them to stop by, and the rest to fit on."""
    return Split(*rows.split([len(rows) - validation - test, validation, test]))


def dequantised(levels: Tensor, generator: Generator) -> Tensor:
    """level + u with u uniform on [0, 1), and below the next level even where float32 would round up to it."""
    below = torch.nextafter(levels + 1, levels)
    return torch.minimum(levels + torch.rand(levels.shape, generator=generator), below)
