"""Splits of rows into three parts, and the random numbers of data sets."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Generator, Tensor

from pyrovae import noise


class Split(NamedTuple):
    """Rows to fit on, validation rows for early stopping, and test rows; each (rows, columns) or (rows,)."""

    train: Tensor
    validation: Tensor
    test: Tensor


def generator_of(seed: int) -> Generator:
    """Return the generator of a data set's split and dequantisation."""
    return torch.Generator().manual_seed(noise.derive(seed, noise.Stream.DATA))


def split(rows: Tensor, validation: int, test: int) -> Split:
    """Split rows in their order: the last are the test rows, those before them validation, the rest training."""
    return Split(*rows.split([len(rows) - validation - test, validation, test]))


def dequantised(levels: Tensor, generator: Generator) -> Tensor:
    """Return level + u with u uniform on [0, 1), kept below the next level even if float32 would round up to it."""
    below = torch.nextafter(levels + 1, levels)
    return torch.minimum(levels + torch.rand(levels.shape, generator=generator), below)
