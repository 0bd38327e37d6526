"""Tiles of an evaluation, and the seeds of its noise.

An evaluation of ``num_samples`` draws for N rows is cut into tiles of rows × samples. Each purpose has a seed of its own,
derived from the evaluation's seed; ``row_noise`` makes the numbers. Where torch's generator draws, it is seeded for the
block and left unchanged.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import torch

from pyrovae import arguments

# Tiles of about this many numbers keep a Pyro call's overhead small and its temporaries near the cache
# (benchmarks/tiles.py).
_ELEMENTS_PER_TILE = 1 << 20
_SAMPLES_PER_TILE = 128
# Least width that a pair is treated as having, because a row also stores its largest weights.
_NARROWEST = 32


@dataclass(frozen=True)
class Tile:
    """One tile of an evaluation: its rows and its samples."""

    rows: slice
    samples: slice

    @property
    def num_samples(self) -> int:
        return self.samples.stop - self.samples.start


def tile_shape(widest: int, num_samples: int) -> tuple[int, int]:
    """Return (rows, samples) of a tile, from the widest layer of the pair and the number of samples alone.

    Tiles are tall for few samples and short for many. Each holds about the same amount of work, and a row is
    encoded once for up to 128 samples.
    """
    samples = _SAMPLES_PER_TILE
    if num_samples < samples:
        samples = num_samples
    elif num_samples % samples:  # prefer a width that divides the samples
        samples = next((n for n in range(samples, samples // 2, -1) if num_samples % n == 0), samples)
    return max(1, _ELEMENTS_PER_TILE // numbers(widest, 1, samples)), samples


def numbers(widest: int, num_rows: int, num_samples: int) -> int:
    """Return the numbers in the widest layer of a tile."""
    return max(widest, _NARROWEST) * num_rows * num_samples


def tiles(num_rows: int, num_samples: int, shape: tuple[int, int]) -> Iterator[list[Tile]]:
    """Yield the tiles of an evaluation: for every block of rows, the list of its blocks of samples."""
    height, width = shape
    for row in range(0, num_rows, height):
        rows = slice(row, min(row + height, num_rows))
        yield [
            Tile(rows, slice(sample, min(sample + width, num_samples)))
            for sample in range(0, num_samples, width)
        ]


class Stream(IntEnum):
    """Uses of noise; with the same seed, each use has independent noise."""

    TILE = 0
    ROW_ORDER = 1
    STEP = 2
    SAMPLE = 3
    INSPECT = 4
    RECONSTRUCT = 5
    DATA = 6
    WEIGHTS = 7
    PILOT = 8
    SIMULATE = 9
    LADDER = 10
    CONVERT = 11
    DIAGNOSE = 12
    EXACT = 13
    IDENTITY = 14
    REACH = 15
    CHECK = 16
    STARTS = 17
    ROUNDING = 18
    IMPUTE = 19
    EMBED = 20
    BRIDGE = 21
    DENSITIES = 22
    GIVEN = 23


def derive(seed: int, stream: Stream, *keys: int) -> int:
    """Return a 63-bit seed from a seed, a stream and keys; different ones give independent noise.

    torch's CPU generator uses 32 bits of it: among 10 000 seeds, two agree with a probability of 1 %.
    """
    arguments.integer("seed", seed, minimum=0)
    # Passed as spawn_key, because SeedSequence pads entropy with zeros, so (1,) and (1, 0) would agree.
    words = np.random.SeedSequence(seed, spawn_key=(stream, *keys)).generate_state(2, np.uint32)
    return int(words[0]) << 31 | int(words[1]) >> 1


@contextmanager
def seeded(seed: int, device: torch.device | None = None) -> Iterator[None]:
    """Run a block with torch's generators seeded, and restore their states afterwards.

    Pyro's distributions draw only from torch's global generator, so the block borrows it.
    """
    devices = [device] if device is not None and device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.default_generator.manual_seed(seed)
        if devices:
            torch.cuda.manual_seed(seed)
        yield


def shuffled(number: int, seed: int) -> torch.Tensor:
    """Return the numbers of rows, 0 to ``number`` − 1, in an order drawn by the seed."""
    with seeded(derive(seed, Stream.DATA)):
        return torch.randperm(number)
