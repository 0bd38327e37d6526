"""Tiles and their seeds: where the randomness of an evaluation comes from.

An evaluation of ``num_samples`` draws for N rows is cut into tiles of rows × samples. A tile's noise
follows from (seed, tile) alone, so the answer does not depend on which tile came first, on who computed
it, or on what ran before; and the global generator is left as it was found.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import torch

from pyrovae import checks

# Measured (benchmarks/tiles.py): tiles of about this many numbers keep a Pyro call's overhead small
# and its temporaries near the cache.
_ELEMENTS_PER_TILE = 1 << 20
_SAMPLES_PER_TILE = 128
# Narrower pairs are treated as this wide: beside the numbers of a layer, a row keeps its largest weights.
_NARROWEST = 32


@dataclass(frozen=True)
class Tile:
    """One block of an evaluation: which rows, which samples, and its place in the grid of blocks."""

    rows: slice
    samples: slice
    index: tuple[int, int]

    @property
    def num_samples(self) -> int:
        return self.samples.stop - self.samples.start


def tile_shape(widest: int, num_samples: int) -> tuple[int, int]:
    """(rows, samples) of a tile, from the widest layer of the pair and the samples asked for, and nothing else.

    Few samples make tall tiles, many samples make short ones: either way a tile holds about the same
    amount of work, and a row is encoded once for up to 128 samples.
    """
    samples = _SAMPLES_PER_TILE
    if num_samples < samples:
        samples = num_samples
    elif num_samples % samples:  # one that leaves no narrow tile over, where there is one
        samples = next((n for n in range(samples, samples // 2, -1) if num_samples % n == 0), samples)
    return max(1, _ELEMENTS_PER_TILE // numbers(widest, 1, samples)), samples


def numbers(widest: int, num_rows: int, num_samples: int) -> int:
    """Numbers in the widest layer of a tile."""
    return max(widest, _NARROWEST) * num_rows * num_samples


def tiles(num_rows: int, num_samples: int, shape: tuple[int, int]) -> Iterator[list[Tile]]:
    """The tiles of an evaluation: for every block of rows, the list of its blocks of samples."""
    height, width = checks.integer("tile", shape[0]), checks.integer("tile", shape[1])
    for i, row in enumerate(range(0, num_rows, height)):
        rows = slice(row, min(row + height, num_rows))
        yield [
            Tile(rows, slice(sample, min(sample + width, num_samples)), (i, j))
            for j, sample in enumerate(range(0, num_samples, width))
        ]


class Stream(IntEnum):
    """What a stream of noise is for: the same seed gives each use its own."""

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
    EPOCH = 13
    IDENTITY = 14
    REACH = 15


def derive(seed: int, stream: Stream, *keys: int) -> int:
    """A 63-bit seed from a seed, a stream and keys; different ones give independent noise.

    torch's generator for the CPU uses 32 bits of it: among 10 000 tiles two share their noise with
    probability 1 %, and then those two alone.
    """
    checks.integer("seed", seed, minimum=0)
    # As spawn_key, not as entropy: SeedSequence pads entropy with zeros, so (1,) and (1, 0) would agree.
    words = np.random.SeedSequence(seed, spawn_key=(stream, *keys)).generate_state(2, np.uint32)
    return int(words[0]) << 31 | int(words[1]) >> 1


@contextmanager
def seeded(seed: int, device: torch.device | None = None) -> Iterator[None]:
    """Run a block with torch's generators seeded, and put them back as they were.

    Pyro's distributions draw from torch's global generator and take no other; so the global one is
    borrowed for the length of the block.
    """
    devices = [device] if device is not None and device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.default_generator.manual_seed(seed)
        if devices:
            torch.cuda.manual_seed(seed)
        yield
