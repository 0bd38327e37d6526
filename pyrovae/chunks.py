"""Rows in chunks: an iterable of arrays, frames, dicts or tuples with names, such as a list or a DataLoader."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from pyrovae import frames
from pyrovae.rounding import beyond_whole


class Unreadable(Exception):
    """Raised for chunks that cannot be read as rows; it holds the parts of the error message."""

    def __init__(self, place: str, expected: str, came: str, fix: str) -> None:
        super().__init__(came)
        self.place, self.expected, self.came, self.fix = place, expected, came, fix


class NoRows(Unreadable):
    """Raised for a chunk of a kind that holds no rows."""


def several(x: Any) -> bool:
    """Return whether x is an iterable of arrays, and not one array or a list of numbers."""
    one = isinstance(
        x,
        Tensor | torch.nn.Module | np.ndarray | Mapping | Set | range | str | bytes | bytearray | memoryview,
    ) or any(
        hasattr(x, name)
        for name in ("to_numpy", "toarray", "to_pandas", "compute", "__array__", "read", "_fields")
    )
    if one or not isinstance(x, Iterable):
        return False
    if not isinstance(x, list | tuple):
        return True
    # A list of numbers is rows that are not an array yet; a list of arrays is chunks.
    first = x[0] if x else 0.0
    if isinstance(first, list | tuple) and first:
        first = first[0]
    return not isinstance(first, int | float | str | list | tuple)


def plain(x: Any) -> Any:
    """Return named tuples as dicts, frames of other libraries as pandas frames and sparse matrices as CSR, also in dicts."""
    if isinstance(x, tuple) and hasattr(x, "_fields"):
        x = dict(zip(x._fields, x, strict=True))
    if hasattr(x, "tocsr"):  # before mappings, because scipy's DOK matrices are some
        return x.tocsr()
    return (
        {name: plain(value) for name, value in x.items()} if isinstance(x, Mapping) else frames.as_pandas(x)
    )


def each(x: Iterable[Any]) -> Iterator[Any]:
    """Yield the chunks of x in turn, each ``plain``.

    Raises:
        Unreadable: x is an iterator, which can be iterated only once.
        Unreadable: a chunk is a tuple without names, such as (rows, labels).
        Unreadable: a chunk has one dimension, which may be a row or a column, unless x is a DataLoader of batches.
    """
    if isinstance(x, Iterator):
        raise Unreadable(
            "",
            "chunks that can be iterated again",
            f"a {type(x).__name__}, which is used up after the first pass",
            "Pass a list, a DataLoader, or an object whose __iter__ starts from the beginning.",
        )
    for number, chunk in enumerate(x):
        if not (isinstance(chunk, list | tuple) and chunk) or hasattr(chunk, "_fields"):
            found = plain(chunk)
        elif len(chunk) == 1:  # a DataLoader puts every batch into a list of one
            found = plain(chunk[0])
        else:
            raise NoRows(
                f"[{number}]",
                "an array of rows, or a dict with them",
                f"a {type(chunk).__name__} of {len(chunk)}, such as (rows, labels)",
                "Leave the labels out, TensorDataset(rows), or name the parts: let the dataset return namedtuples with a "
                'field x, or the collate_fn return {"x": rows, "offset": …}.',
            )
        if not _in_batches(x):
            _require_rows(found, number)
        yield found


def _in_batches(x: Any) -> bool:
    """Return whether x is a DataLoader that makes batches, so that what it yields is no single row."""
    return isinstance(x, DataLoader) and x.batch_sampler is not None


def _require_rows(chunk: Any, number: int) -> None:
    """Raise ``Unreadable`` for a chunk with one dimension: it may be one row, or several rows of one column."""
    named = isinstance(chunk, Mapping)
    rows = chunk.get("x") if named else chunk
    shape = tuple(getattr(rows, "shape", ()))
    if len(shape) != 1:
        return
    if named:
        row, column = "value[None] for every value", "the joined column"
    elif hasattr(rows, "iloc"):
        row, column = "pandas.DataFrame(list(x))", "pandas.concat(list(x))"
    else:
        package, join = ("torch", "cat") if isinstance(rows, Tensor) else ("numpy", "concatenate")
        row, column = f"{package}.stack(list(x))", f"{package}.{join}(list(x))"
    raise Unreadable(
        f"[{number}]" + ("['x']" if named else ""),
        "a chunk of shape (rows, columns)",
        f"shape {shape}, which may be one row or one column",
        f"Pass {row} if each chunk is a row, {column} if each is a part of one column.",
    )


def joined(x: Iterable[Any]) -> Any:
    """Return all chunks as one array, frame or dict of these.

    Raises:
        Unreadable: as ``each``; no chunks; chunks whose names, kinds or shapes differ.
    """
    parts = list(each(x))
    if not parts:
        raise Unreadable("", "at least one chunk of rows", "none", "Pass some rows.")
    if not any(isinstance(part, Mapping) for part in parts):
        return _one(parts, "")
    names = set(parts[0]) if isinstance(parts[0], Mapping) else set()
    for number, part in enumerate(parts):
        if not isinstance(part, Mapping) or set(part) != names:
            came = f"{sorted(map(str, part))}" if isinstance(part, Mapping) else f"a {type(part).__name__}"
            raise Unreadable(
                f"[{number}]", f"a dict with {sorted(map(str, names))}, as x[0]", came, "Name them alike."
            )
    return {name: _one([part[name] for part in parts], f"[{name!r}]") for name in parts[0]}


def _one(parts: Sequence[Any], place: str) -> Any:
    """Return arrays of one kind as one array."""
    for number, part in enumerate(parts):
        if not len(getattr(part, "shape", ())):
            came = f"a {type(part).__name__}"
            raise NoRows(f"[{number}]{place}", "an array of rows", came, "Pass arrays with rows on dim 0.")
        if hasattr(part, "columns") and list(part.columns) != list(parts[0].columns):
            raise Unreadable(
                f"[{number}]{place}",
                f"a frame with the columns {list(parts[0].columns)}, as x[0]",
                f"one with {list(part.columns)}",
                "Pass chunks with the same columns in the same order.",
            )
    shapes = [tuple(part.shape)[1:] for part in parts]
    for number, (part, shape) in enumerate(zip(parts, shapes, strict=True)):
        if type(part) is not type(parts[0]) or shape != shapes[0]:
            raise Unreadable(
                f"[{number}]{place}",
                f"a {type(parts[0]).__name__} with rows of shape {shapes[0]}, as x[0]",
                f"a {type(part).__name__} with rows of shape {shape}",
                "Pass chunks of one kind and shape.",
            )
    if hasattr(parts[0], "isetitem"):
        parts = frames.alike(parts)
    _require_exact(parts, place)
    if isinstance(parts[0], Tensor):
        if {_kind(part) for part in parts} >= {"f", "i"}:  # torch would round whole numbers to float32
            parts = [part.double() for part in parts]
        return torch.cat(list(parts))
    if hasattr(parts[0], "tocsr"):
        from scipy.sparse import vstack

        return vstack(parts, format="csr")
    if hasattr(parts[0], "iloc"):
        import pandas as pd

        return pd.concat(parts)
    if isinstance(parts[0], np.ma.MaskedArray):
        found: np.ndarray = np.ma.concatenate(parts)
        return found
    return np.concatenate([np.asarray(part) for part in parts])


def _require_exact(parts: Sequence[Any], place: str) -> None:
    """Raise an error if joining rounds whole numbers beyond 2^53, because other chunks have other numbers in their place."""
    frame = hasattr(parts[0], "iloc") and hasattr(parts[0], "columns")
    for column in range(parts[0].shape[1]) if frame else (None,):
        held = [
            part.data if hasattr(part, "tocsr") else part if column is None else part.iloc[:, column]
            for part in parts
        ]
        kinds = {_kind(each) for each in held}
        of_numpy = all(isinstance(each.dtype, np.dtype) for each in held)
        mixed = kinds >= {"i", "u"} and not (
            of_numpy and np.result_type(*(each.dtype for each in held)).kind in "iu"
        )
        if not (kinds <= set("biuf") and (mixed or kinds >= {"f"})):
            continue
        for number, each in enumerate(held):
            if _kind(each) in "iu" and bool(beyond_whole(each).any()):
                raise Unreadable(
                    f"[{number}]{place}" + ("" if column is None else f"[{parts[0].columns[column]!r}]"),
                    "whole numbers between -2^53 and 2^53, because other chunks have other numbers there",
                    "others",
                    "Pass all chunks in one type, or subtract a constant first.",
                )


def _kind(values: Any) -> str:
    """Return the letter of NumPy for the kind of an array's or a series' numbers; "O" for all others."""
    if isinstance(values, Tensor):
        return "f" if values.is_floating_point() else "b" if values.dtype == torch.bool else "i"
    return getattr(getattr(values, "dtype", None), "kind", "O")
