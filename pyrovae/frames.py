"""What frames know beside their numbers: the names of their columns and the index of their rows. No import of pandas."""

from __future__ import annotations

from typing import Any

import numpy as np


def names(x: Any) -> tuple[str, ...] | None:
    """The names of a frame's columns, or of a series with a name; None where there are none.

    Numbers are no names: they are what a frame has that was made of an array. As in scikit-learn, but names of
    several levels count, and so do names beside numbers.
    """
    if not hasattr(x, "to_numpy"):
        return None
    columns = getattr(x, "columns", None)
    found = list(columns) if columns is not None else [getattr(x, "name", None)]
    if not found or found == [None] or all(_is_number(name) for name in found):
        return None
    return tuple(
        str.__str__(name) if isinstance(name, str) else str(name) for name in found
    )  # numpy's strings, too


def _is_number(name: Any) -> bool:
    return isinstance(name, int | float | np.number | np.bool_) and not isinstance(name, str)


def whole(value: Any) -> Any:
    """A frame or series of whole numbers or booleans as an array of their own type; anything else as it is."""
    if not hasattr(value, "to_numpy"):
        return value
    dtypes: Any = getattr(value, "dtypes", None)
    if hasattr(dtypes, "items"):
        whole_numbers = len(dtypes) and all(getattr(t, "kind", "O") in "biu" for t in dtypes)
        if not whole_numbers or value.isna().to_numpy().any():  # nullable columns may lack some
            return value
        # Without a type pandas makes objects of numbers beside booleans.
        kinds = ["?" if t.kind == "b" else f"{t.kind}{getattr(t, 'itemsize', 8)}" for t in dtypes]
        array = value.to_numpy(dtype=np.result_type(*kinds))
    else:
        array = value.to_numpy()
    return array if isinstance(array, np.ndarray) and array.dtype.kind in "biu" else value


def difference(came: tuple[str, ...], expected: tuple[str, ...]) -> str:
    """In words, the first difference between the names that came and the expected ones."""
    for column, (here, there) in enumerate(zip(came, expected, strict=False)):
        if here != there:
            return f"{here!r} instead of {there!r} in column {column}"
    if len(came) > len(expected):
        return f"{len(came)} columns instead of {len(expected)}, first {came[len(expected)]!r} more"
    return f"{len(came)} columns instead of {len(expected)}, {expected[len(came)]!r} missing"


def index(x: Any) -> Any:
    """The index of a frame's or a series's rows; None where there is none."""
    found = getattr(x, "index", None) if hasattr(x, "to_numpy") else None
    return found if hasattr(found, "get_indexer") else None


class Misaligned(Exception):
    """Why a frame or series can't be brought into the order of an index, in words."""


def aligned(value: Any, rows: Any) -> Any:
    """A frame or series in the order of the index ``rows``; anything without an index as it is.

    Raises:
        Misaligned: an index that does not hold the same labels, or not each of them once.
    """
    own = index(value)
    if own is None or rows is None or own.equals(rows):
        return value
    if not (own.is_unique and rows.is_unique):
        raise Misaligned("an index in another order in which labels repeat")
    missing = rows.difference(own, sort=False)
    if len(missing):
        raise Misaligned(f"an index without {len(missing)} of the labels, first {missing[0]!r}")
    if len(own) > len(rows):
        more = own.difference(rows, sort=False)
        raise Misaligned(f"an index with {len(more)} more labels, first {more[0]!r}")
    return value.iloc[own.get_indexer(rows)]
