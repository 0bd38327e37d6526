"""Tiles cover every draw once; seeds are independent; the global generator is left alone."""

import numpy as np
import pytest
import torch

from pyrovae import noise
from pyrovae.noise import Stream


@pytest.mark.parametrize(
    ("num_rows", "num_samples", "shape"),
    [(1, 1, (1, 1)), (7, 10, (3, 4)), (6, 8, (3, 4)), (5, 3, (100, 100))],
)
def test_tiles_cover_every_draw_once(num_rows, num_samples, shape):
    counts = np.zeros((num_samples, num_rows), int)
    for block in noise.tiles(num_rows, num_samples, shape):
        for tile in block:
            counts[tile.samples, tile.rows] += 1
            assert tile.num_samples == tile.samples.stop - tile.samples.start
            assert tile.rows == block[0].rows
    assert (counts == 1).all()


def test_tile_shape_follows_from_shapes():
    assert noise.tile_shape(784, 5000) == noise.tile_shape(784, 10**6)
    rows, samples = noise.tile_shape(784, 1)
    assert samples == 1
    assert rows > 1000
    assert noise.tile_shape(10**9, 5000)[0] == 1


def test_different_keys_give_different_noise():
    seeds = {
        noise.derive(seed, stream, *keys)
        for seed in (0, 1)
        for stream in Stream
        for keys in [(), (0,), (0, 0), (0, 1), (1, 0), (1,)]
    }
    assert len(seeds) == 2 * len(Stream) * 6


def test_seeded_borrows_the_generator_and_gives_it_back():
    state = torch.random.get_rng_state()
    with noise.seeded(5):
        first = torch.randn(3)
    assert torch.equal(torch.random.get_rng_state(), state)
    with noise.seeded(5):
        assert torch.equal(torch.randn(3), first)
    with pytest.raises(KeyError), noise.seeded(6):
        raise KeyError
    assert torch.equal(torch.random.get_rng_state(), state)
