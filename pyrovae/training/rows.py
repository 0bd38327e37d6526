"""The rows that a fit uses: one array, or one chunk at a time if memory does not hold all."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyrovae import chunks, identity, noise, tracing
from pyrovae.entries import within
from pyrovae.evaluation import Names, inspect_rows, read_rows
from pyrovae.model import LatentVariableModel
from pyrovae.pair import Batch, RowModel, check_supports
from pyrovae.refusals import bad_value
from pyrovae.rows import Source, check_columns_observed, unreadable
from pyrovae.training.step import binarized


class Chunks:
    """The data passed to ``fit``, as chunks of rows that can be iterated repeatedly. An array is one chunk.

    Raises:
        ValueError: x is an iterator, which can be iterated only once.
    """

    def __init__(self, x: Any) -> None:
        #: Whether x is an iterable of arrays, such as a list of tensors or a DataLoader.
        self.several = chunks.several(x)
        self._x = x if self.several else [x]
        next(iter(self), None)  # which refuses an iterator

    def __iter__(self) -> Iterator[Any]:
        if not self.several:
            yield from self._x
            return
        try:
            yield from (chunk for chunk in chunks.each(self._x) if not _is_empty(chunk))
        except chunks.Unreadable as reason:
            raise unreadable("x", reason) from None

    def first(self) -> Any:
        """Return the first chunk.

        Raises:
            ValueError: there is none.
        """
        for chunk in self:
            return chunk
        raise bad_value("x", "at least one chunk of rows", "none", "Pass some rows.")


def _is_empty(chunk: Any) -> bool:
    """Return whether a chunk has columns and no rows, as a part of a split may. Evaluations join it without effect."""
    rows = chunk.get("x") if isinstance(chunk, Mapping) else chunk
    shape = tuple(getattr(rows, "shape", ()))
    return len(shape) > 1 and shape[0] == 0


class Reader:
    """Reads the rows of a fit: checks each chunk and returns it as a batch.

    Args:
        pair: model and guide.
        x: the rows as they were passed to ``fit``.
        seed: of the fit.
        binarize: whether rows are probabilities, from which zeros and ones are drawn.

    Attributes:
        first: the rows, or their first chunk, as a batch.
        source: the same rows as they were passed.

    Raises:
        TypeError, ValueError: the first chunk cannot be used.
    """

    def __init__(self, pair: LatentVariableModel, x: Any, seed: int, binarize: bool) -> None:
        self._pair, self._seed, self._binarize = pair, seed, binarize
        self._chunks = Chunks(x)
        self._argument = "x[0]" if self._chunks.several else "x"
        self.first, self.source = self._read_first()

    def _read_first(self) -> tuple[Batch, Source]:
        return self._read(self._chunks.first(), self._argument)

    def _read(self, chunk: Any, argument: str, names: Names | None = None) -> tuple[Batch, Source]:
        """Return checked rows as a batch, and the rows as they were passed."""
        batch, source = read_rows(self._pair, chunk, argument, names)
        if self._binarize:
            within(argument, batch["x"], 0, 1, "Divide grey levels by the highest: x / 255.")
        return batch, source

    def presented(self, batch: Batch) -> Batch:
        """Return rows as model and guide get them. With ``binarize``, the draw is always the same."""
        if not self._binarize:
            return batch
        with noise.seeded(noise.derive(self._seed, noise.Stream.DATA), batch["x"].device):
            return batch | {"x": binarized(batch["x"])}

    def inspect(self) -> RowModel:
        """Inspect the pair on the first chunk, which is read again if the pair's dtype is known only then."""
        shown = self.presented(self.first), self.source
        known = self._pair.dtype
        again, model = inspect_rows(self._pair, shown, self._read_first, self._seed, self._argument)
        if self._pair.dtype != known:
            self.first, self.source = again
        return model

    def rows(self, model: RowModel, digests: bool) -> Rows:
        """Return all rows, each chunk checked."""
        if not self._chunks.several:
            return Rows([self.first], lambda batch, _: (batch, self.source), digests)

        def read(chunk: Any, argument: str) -> tuple[Batch, Source]:
            batch, source = self._read(chunk, argument, self.source.names)
            check_supports(model.structure, self.presented(batch), argument, source.names.get("x"))
            return batch, source

        return Rows(self._chunks, read, digests)


def with_mask(batch: Batch) -> Batch:
    """Return a batch with the mask of its observed cells; chunks without a missing cell come without one."""
    return (
        batch if "observed" in batch else batch | {"observed": torch.ones_like(batch["x"], dtype=torch.bool)}
    )


def _counts(batch: Batch) -> Tensor:
    """Return how many observed cells each column of a batch has, in the shape of a row."""
    observed, x = batch.get("observed"), batch["x"]
    return torch.full(x.shape[1:], float(len(x))) if observed is None else observed.sum(dim=0).cpu().float()


class Rows:
    """The rows of a fit.

    Args:
        chunks: the chunks in order, each an array or a dict of arrays; iterated repeatedly.
        prepare: takes a chunk and its name for errors; checks it and returns a batch and its rows as passed.
        digests: whether to compute digests, which only checkpoints need.

    Attributes:
        data: the rows of the loaded chunk. ``load`` copies another chunk into the same memory.
        lengths: the number of rows of every chunk.
        hashes: of all rows, shape (rows, 2), as ``identity.row_hashes`` returns them.
        digests: of every chunk, by the names in it.
        names: of columns, by the names in a chunk; see ``rows.Source``.

    Raises:
        TypeError, ValueError: see ``prepare``; chunks differ in more than their rows.
    """

    def __init__(
        self,
        chunks: Iterable[Any],
        prepare: Callable[[Any, str], tuple[Batch, Source]],
        digests: bool,
    ) -> None:
        self._chunks, self._prepare = chunks, prepare
        self.lengths: list[int] = []
        self.digests: list[dict[str, str]] = []
        hashes: list[np.ndarray] = []
        first: Batch = {}
        self.names: Names = {}
        seen, masked = torch.zeros(()), False
        for batch, source in self._each():
            first, self.names = first or batch, self.names or source.names
            self._check_alike(batch, first, len(self.lengths))
            masked = masked or "observed" in batch
            seen = seen + _counts(batch)
            self.lengths.append(len(batch["x"]))
            if digests:
                self.digests.append(identity.digests(batch))
            hashes.append(identity.row_hashes(source.exact, source.observed))
        check_columns_observed(seen > 0, sum(self.lengths), self.names.get("x"))
        if masked:
            first = with_mask(first)
        self.hashes = np.concatenate(hashes)
        self.data, self._at_hand = first, 0
        if len(self.lengths) > 1:  # separate memory, into which chunks are copied
            longest = max(self.lengths)
            self.data = {name: value.new_zeros(longest, *value.shape[1:]) for name, value in first.items()}
            self._at_hand = -1
        self._coming: Iterator[tuple[Batch, Source]] = iter(())
        self._next = len(self.lengths)  # the number of the next chunk

    def __len__(self) -> int:
        return sum(self.lengths)

    def steps(self, batch_size: int) -> int:
        """Return the number of steps in an epoch."""
        return len(self.sizes(batch_size))

    def sizes(self, batch_size: int) -> list[int]:
        """Return the sizes of an epoch's batches."""
        return [size for length in self.lengths for size in tracing.batch_sizes(length, batch_size)]

    def start(self, chunk: int) -> int:
        """Return the number of a chunk's first row among all rows."""
        return sum(self.lengths[:chunk])

    def shown(self, size: int) -> Batch:
        """Return the rows at hand, ``size`` at least, to trace a step with."""
        if (
            len(self.lengths) > 1 and size <= self.lengths[0]
        ):  # memory for longer chunks is empty behind the first's rows
            return {name: column[: self.lengths[0]] for name, column in self.data.items()}
        return self.data

    def minibatches(self, size: int, seed: int, epoch: int) -> list[tuple[int, Tensor]]:
        """Return an epoch's minibatches in random order within each chunk: the chunk and indices of rows in it."""
        found = []
        for chunk, length in enumerate(self.lengths):
            keys = (epoch, chunk) if chunk else (epoch,)
            generator = torch.Generator().manual_seed(noise.derive(seed, noise.Stream.ROW_ORDER, *keys))
            sizes = tracing.batch_sizes(length, size)
            found += [(chunk, rows) for rows in torch.randperm(length, generator=generator).split(sizes)]
        return found

    def load(self, chunk: int) -> None:
        """Load a chunk into ``data``."""
        if chunk == self._at_hand:
            return
        if self._next > chunk:
            self._coming, self._next = self._each(), 0
        batch: Batch = {}
        while self._next <= chunk:
            batch = next(self._coming, ({}, None))[0]
            came, expected = len(batch.get("x", ())), self.lengths[self._next]
            if came != expected:
                raise bad_value(
                    "x",
                    f"{expected} rows in chunk {self._next}, as in the first pass",
                    str(came),
                    "Pass an iterable that returns chunks of the same sizes in every pass.",
                )
            self._next += 1
        self._check_alike(batch, self.data, chunk)
        if self.digests and self.digests[chunk] != identity.digests(batch):
            raise bad_value(
                "x",
                "chunks that are the same in every pass, because the fit has a checkpoint or several ranks",
                f"other rows in chunk {chunk}",
                "Pass chunks in a fixed order, because fit shuffles within each; or leave the checkpoint out.",
            )
        for name, value in (with_mask(batch) if "observed" in self.data else batch).items():
            self.data[name][: len(value)] = value
        self._at_hand = chunk

    def _each(self) -> Iterator[tuple[Batch, Source]]:
        for number, chunk in enumerate(self._chunks):
            yield self._prepare(chunk, f"x[{number}]")

    def _check_alike(self, batch: Batch, first: Batch, chunk: int) -> None:
        described, expected = (
            {name: (tuple(v.shape[1:]), v.dtype) for name, v in b.items() if name != "observed"}
            for b in (batch, first)
        )
        if described != expected:
            raise bad_value(
                "x",
                f"chunks that differ only in their rows: {expected}",
                f"{described} in chunk {chunk}",
                "Convert the chunks to the same columns, names and types.",
            )
