"""Noise that belongs to a row: a counter-based generator, keyed by (seed, row, sample, draw).

A row's noise depends neither on other rows, nor on how rows and samples are cut into tiles. Every number is a
hash of its key by 32-bit multiply and xor-shift rounds, so any part can be generated alone and in any order.
Uniform numbers have 23 bits in float32 and 52 in float64. The Box–Muller transform makes normal numbers from them.
A tensor takes 1.7 to 1.8 times as long as with torch's own sequential generator (benchmarks/row_noise.py).

Salmon, Moraes, Dror and Shaw (2011) on counter-based generators; Box and Muller (1958); Marsaglia and Tsang (2000).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import count

import numpy as np
import torch
from torch import Tensor

_FACTORS = (np.uint32(0x7FEB352D), np.uint32(0x846CA68B))
_DTYPES = (torch.float32, torch.float64)
_WIDE, _SEEDS = 0x9E3779B97F4A7C15, (1 << 63) - 1
_STEP = np.uint32(0x9E3779B9)  # odd, so that its multiples differ
_AGAIN = np.uint32(0x85EBCA6B)
_ASIDE = 0xA51DE
_AT_ONCE = 1 << 15  # words, few enough to stay in a core's cache


class RowNoise:
    """Noise for the rows of a block; each call returns new numbers.

    The numbers of a row depend only on its key, the seed, the numbers of the samples and the count of earlier calls.

    Args:
        seed: of 63 bits, as returned by ``noise.derive``.
        rows: the key of each row, shape (rows,), int64.
        first: the number of the first sample.
    """

    def __init__(self, seed: int, rows: Tensor, first: int = 0) -> None:
        self.keys = mixed(seed, rows)
        self.first = torch.tensor([first], device=rows.device)
        self._stem, self._calls = 0, count()

    @classmethod
    def of(cls, keys: Tensor, first: Tensor, stem: int = 0) -> RowNoise:
        """Return noise from the ``keys`` and ``first`` of another one, which may be inputs of a graph."""
        made = cls.__new__(cls)
        made.keys, made.first = keys, first
        made._stem, made._calls = stem, count()
        return made

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def seed(self) -> int:
        """A seed for draws that cannot be keyed by rows, from the first row's key and the first sample's number."""
        return (int(self.keys[0]) ^ (int(self.first) * _WIDE)) & _SEEDS

    def branch(self) -> RowNoise:
        """Return noise that counts as one call here, however many calls are made of it."""
        return RowNoise.of(self.keys, self.first, self._number())

    def aside(self) -> RowNoise:
        """Return noise that counts as no call here, so that later numbers do not depend on whether it is used.

        It is the same each time.
        """
        return RowNoise.of(mixed(_ASIDE, self.keys), self.first, self._stem)

    def of_rows(self, rows: Tensor) -> RowNoise:
        """Return noise for some rows, which counts as one call here; their numbers do not depend on the others."""
        return RowNoise.of(self.keys[rows], self.first, self._number())

    def each(self) -> list[RowNoise]:
        """Return noise for every row by itself; together they count as one call here."""
        number = self._number()
        return [RowNoise.of(self.keys[row : row + 1], self.first, number) for row in range(len(self))]

    def copies(self, count: int) -> RowNoise:
        """Return noise for ``count`` copies of all rows, each with numbers of its own; it counts as one call here."""
        keys = torch.cat([mixed(number, self.keys) for number in range(count)])
        return RowNoise.of(keys, self.first, self._number())

    def uniform(self, num_samples: int, *rest: int, dtype: torch.dtype) -> Tensor:
        """Return uniform numbers on (0, 1), shape (samples, rows, rest...)."""
        drawn = self._draw(torch.ops.pyrovae.uniform, num_samples, rest, dtype)
        # In 16 bits, a number close to 1 would be rounded to it.
        return drawn if dtype in _DTYPES else drawn.clamp(max=1 - torch.finfo(dtype).eps / 2)

    def normal(self, num_samples: int, *rest: int, dtype: torch.dtype) -> Tensor:
        """Return standard normal numbers, shape (samples, rows, rest...)."""
        return self._draw(torch.ops.pyrovae.normal, num_samples, rest, dtype)

    def gamma(self, shape: Tensor) -> Tensor:
        """Return gamma numbers with rate 1 and shapes (samples, rows, rest...), by rejection (Marsaglia and Tsang 2000).

        Rounds go on until every row is accepted, so their number depends on all rows. Call it on a branch. Results are NaN
        for a shape that is not above 0, and infinite for an infinite one.
        """
        size, dtype = shape.shape, shape.dtype
        boost = self.uniform(size[0], *size[2:], dtype=dtype) ** (1 / shape)
        d = torch.where(shape < 1, shape + 1, shape) - 1 / 3
        c = (9 * d).rsqrt()
        possible = torch.isfinite(shape) & (shape > 0)
        found, waiting = torch.where(shape > 0, shape, math.nan), possible
        while bool(waiting.any()):
            x = self.normal(size[0], *size[2:], dtype=dtype)
            v = (1 + c * x) ** 3
            log_u = self.uniform(size[0], *size[2:], dtype=dtype).log()
            accepted = (v > 0) & (log_u < 0.5 * x**2 + d - d * v + d * v.log())
            found = torch.where(waiting & accepted, d * v, found)
            waiting = waiting & ~accepted
        found = torch.where(possible & (shape < 1), found * boost, found)
        return found.clamp(min=torch.finfo(dtype).tiny)

    def _draw(
        self, op: Callable[..., Tensor], num_samples: int, rest: Sequence[int], dtype: torch.dtype
    ) -> Tensor:
        wide = dtype if dtype in _DTYPES else torch.float32
        drawn = op(self.keys, self.first, num_samples, math.prod(rest), self._number(), wide)
        return drawn.reshape(num_samples, len(self.keys), *rest).to(dtype)

    def _number(self) -> int:
        """The number of the next call; those of branches are hashed from their stem."""
        call = next(self._calls)
        return call + 1 if not self._stem else (self._stem * _WIDE + call + 1) & _SEEDS


def mixed(seed: int, rows: Tensor) -> Tensor:
    """Return the keys of rows under a seed, shape (rows,), int64 (the finalizer of SplitMix64)."""
    with np.errstate(over="ignore"):
        z = _unsigned(rows) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(seed)
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            z = (z ^ (z >> np.uint64(shift))) * np.uint64(factor)
        z = (z ^ (z >> np.uint64(31))) + np.uint64(seed >> 1)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z ^= z >> np.uint64(32)
    return torch.from_numpy(z.view(np.int64)).to(rows.device)


def _unsigned(rows: Tensor) -> np.ndarray:
    return rows.cpu().numpy().astype(np.int64, copy=False).view(np.uint64)


# ---------------------------------------------------------------------------------------------------------
# The generator of 32-bit words uses numpy, whose integer operations are twice as fast as torch's. The two operations
# are registered with torch, so that a traced graph holds each as one node.


# Places come first while numbers are made, because the words of all samples and rows are made together. They come last in
# results: with other strides, a compiled draw of a 784–400–50 VAE takes 7 % longer.


def _uniform(
    keys: Tensor, first: Tensor, num_samples: int, size: int, call: int, dtype: torch.dtype
) -> Tensor:
    drawn = torch.empty(size, num_samples * len(keys), dtype=dtype)
    for places, columns, words in _parts(keys, first, num_samples, size, call):
        drawn.numpy()[places, columns] = words.fraction(drawn.numpy().dtype)
    return _places_last(drawn, num_samples, keys)


def _normal(
    keys: Tensor, first: Tensor, num_samples: int, size: int, call: int, dtype: torch.dtype
) -> Tensor:
    pairs = (size + 1) // 2
    drawn = torch.empty(2 * pairs, num_samples * len(keys), dtype=dtype)
    cosines, sines = drawn[:pairs].numpy(), drawn[pairs:].numpy()
    for places, columns, words in _parts(keys, first, num_samples, pairs, call):
        radius, angle = words.fraction(cosines.dtype), words.fraction(cosines.dtype)
        np.log(radius, out=radius)
        radius *= -2
        np.sqrt(radius, out=radius)
        angle *= 2 * math.pi
        here = np.cos(angle, out=cosines[places, columns])
        here *= radius
        here = np.sin(angle, out=sines[places, columns])
        here *= radius
    return _places_last(drawn[:size], num_samples, keys)


def _places_last(drawn: Tensor, num_samples: int, keys: Tensor) -> Tensor:
    """Return a copy of (size, samples · rows) numbers as (samples, rows, size), on the device of the keys."""
    found = drawn.T.clone(memory_format=torch.contiguous_format)
    return found.view(num_samples, len(keys), len(drawn)).to(keys.device)


def _shape(keys: Tensor, first: Tensor, num_samples: int, size: int, call: int, dtype: torch.dtype) -> Tensor:
    return torch.empty(num_samples, len(keys), size, dtype=dtype, device=keys.device)


_LIBRARY = torch.library.Library("pyrovae", "DEF")


def _register(name: str, draw: Callable[..., Tensor]) -> None:
    arguments = "Tensor keys, Tensor first, int num_samples, int size, int call, ScalarType dtype"
    _LIBRARY.define(f"{name}({arguments}) -> Tensor")
    _LIBRARY.impl(name, draw, "CompositeExplicitAutograd")
    torch.library.register_fake(f"pyrovae::{name}", _shape, lib=_LIBRARY)


_register("uniform", _uniform)
_register("normal", _normal)


def _parts(
    keys: Tensor, first: Tensor, num_samples: int, size: int, call: int
) -> Iterator[tuple[slice, slice, _Words]]:
    """Yield words for ``size`` places of every sample and row, in parts that fit the cache, with places and columns."""
    halves = keys.cpu().numpy().view(np.uint32).reshape(-1, 2)
    low, high = halves[:, 0], halves[:, 1]
    samples = (np.arange(num_samples) + int(first)).astype(np.uint32)
    salt = _mixed(np.full_like(samples, call & 0xFFFFFFFF))
    pepper = _mixed(salt + np.uint32(call >> 32))
    key = _mixed(_mixed((samples * _AGAIN + salt)[:, None] + low) ^ high).ravel()
    other = _mixed(_mixed((samples * _AGAIN ^ pepper)[:, None] ^ high) + low).ravel()
    numbers = np.arange(size, dtype=np.uint32)[:, None] * _STEP
    for column in range(0, len(key), _AT_ONCE):
        columns = slice(column, column + _AT_ONCE)
        height = max(1, _AT_ONCE // len(key[columns]))
        for place in range(0, size, height):
            places = slice(place, place + height)
            yield places, columns, _Words(numbers[places], key[columns], other[columns])


class _Words:
    """Words for every place and column, call after call: hashes of the place under each key in turn."""

    def __init__(self, places: np.ndarray, *keys: np.ndarray) -> None:
        self._places, self._keys = places, keys

    def _next(self) -> np.ndarray:
        key, *others = self._keys
        self._keys = (*others, key + _AGAIN)
        return _mixed(self._places + key)

    def fraction(self, dtype: np.dtype) -> np.ndarray:
        """Return numbers in (0, 1), from words used as the bits of a float in [1, 2)."""
        words = self._next()
        if dtype == np.float32:
            words >>= np.uint32(9)
            words |= np.uint32(0x3F800000)
            return np.subtract(words.view(np.float32), np.float32(1 - 2**-24), out=words.view(np.float32))
        wide = words.astype(np.uint64)
        wide <<= np.uint64(20)
        wide ^= self._next()
        wide &= np.uint64((1 << 52) - 1)
        wide |= np.uint64(0x3FF << 52)
        return np.subtract(wide.view(np.float64), 1 - 2**-53, out=wide.view(np.float64))


def _mixed(words: np.ndarray) -> np.ndarray:
    """Apply a bijection of 32-bit words, in place, in which every output bit depends on all input bits."""
    shifted = words >> np.uint32(16)
    words ^= shifted
    words *= _FACTORS[0]
    np.right_shift(words, np.uint32(15), out=shifted)
    words ^= shifted
    words *= _FACTORS[1]
    np.right_shift(words, np.uint32(16), out=shifted)
    words ^= shifted
    return words


def interval_of(share: Tensor, ends: Tensor) -> Tensor:
    """Return which interval each share falls into; the ``ends`` of intervals are cumulated, on the last axis."""
    at = share * ends[..., -1:]
    found = torch.searchsorted(ends.contiguous(), at.contiguous(), right=True)
    return found.clamp(max=ends.shape[-1] - 1)
