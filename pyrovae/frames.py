"""Column names and row indices of DataFrames, without importing pandas."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from decimal import Decimal
from typing import Any

import numpy as np

from pyrovae.rounding import WHOLE, beyond_whole

_OBJECTS = np.dtype(object)
# pandas' types of the same numbers beside missing values, which keep all digits.
_NULLABLE = {np.dtype("int64"): "Int64", np.dtype("uint64"): "UInt64"}


def names(x: Any) -> tuple[str, ...] | None:
    """Return the names of a frame's columns, or of a series with a name; None if there are none.

    Columns that are numbered 0, 1, … in order have no names, because pandas numbers the columns of frames made from
    arrays. Unlike in scikit-learn, names of several levels count, and so do other numbers.
    """
    if not hasattr(x, "to_numpy"):
        return None
    columns = getattr(x, "columns", None)
    found = list(columns) if columns is not None else [getattr(x, "name", None)]
    if found == [None] or found == list(range(len(found))) or (columns is None and _is_number(found[0])):
        return None
    return _words(found)


def labels(x: Any) -> tuple[str, ...] | None:
    """Return the labels of a frame's columns, numbers too; None for other values."""
    return _words(list(x.columns)) if hasattr(x, "to_numpy") and hasattr(x, "columns") else None


def are_numbers(names: tuple[str, ...] | None) -> bool:
    """Return whether all names of columns are numbers."""
    try:
        return [float(name) for name in names or ()] != []
    except ValueError:
        return False


def own_labels(labels: Any) -> Any:
    """Return labels of columns as they are, in a pandas index of one level, whose entries can be taken by number."""
    import pandas as pd

    return pd.Index(list(labels), tupleize_cols=False)


def _words(labels: list[Any]) -> tuple[str, ...]:
    """Return labels as strings. The numbers 0, 1, … in any order are "0", "1", …, also if they are floats or booleans."""
    if all(map(_is_number, labels)) and set(labels) == set(range(len(labels))):
        labels = [int(label) for label in labels]
    return tuple(
        str.__str__(label) if isinstance(label, str) else str(label) for label in labels
    )  # numpy's, too


def _is_number(name: Any) -> bool:
    return isinstance(name, int | float | np.number | np.bool_) and not isinstance(name, str)


def as_pandas(x: Any) -> Any:
    """Return a frame or column of another library, such as polars or pyarrow, by its ``to_pandas``; others unchanged.

    In frames of pandas, signalling NaN of Python's decimals become NaN.
    """
    if isinstance(x, type):
        return x
    if not hasattr(x, "to_pandas"):
        return _without_signals(x) if hasattr(x, "iloc") else x
    try:  # Arrow's whole numbers beside missing ones, which would become float64
        found = x.to_pandas(integer_object_nulls=True)
    except TypeError:
        return x.to_pandas()
    for column, kind in enumerate(found.dtypes if hasattr(found, "columns") else ()):
        held = found.iloc[:, column]
        if kind == _OBJECTS and held.notna().any() and held.dropna().map(type).eq(int).all():
            found.isetitem(column, held.astype("Int64" if held.max() < 2**63 else "UInt64"))
    return found


def _without_signals(x: Any) -> Any:
    """Return a frame or series with NaN for Python's signalling NaN, of which pandas cannot say that it is missing."""
    if not hasattr(x, "columns"):
        odd = x.dtype == _OBJECTS and any(isinstance(value, Decimal) and value.is_snan() for value in x)
        return x.map(lambda v: np.nan if isinstance(v, Decimal) and v.is_snan() else v) if odd else x
    return _by_column(x, lambda kind: kind == _OBJECTS, _without_signals)


def _by_column(x: Any, chosen: Callable[[Any], bool], change: Callable[[Any], Any]) -> Any:
    """Return a frame with columns of chosen types changed; the frame itself if ``change`` returns every column as it is."""
    found = x
    for column in (i for i, kind in enumerate(x.dtypes) if chosen(kind)):
        held = x.iloc[:, column]
        new = change(held)
        if new is not held:
            found = x.copy(deep=False) if found is x else found
            found.isetitem(column, new)
    return found


def whole(value: Any) -> Any:
    """Return a frame or series of whole numbers or booleans as an array of their own type; other values unchanged."""
    if not hasattr(value, "to_numpy"):
        return value
    dtypes: Any = getattr(value, "dtypes", None)
    if hasattr(dtypes, "items"):
        whole_numbers = len(dtypes) and all(getattr(t, "kind", "O") in "biu" for t in dtypes)
        if not whole_numbers or value.isna().to_numpy().any():  # nullable columns may have missing values
            return value
        # Without a dtype, pandas turns numbers beside booleans into objects.
        kinds = ["?" if t.kind == "b" else f"{t.kind}{getattr(t, 'itemsize', 8)}" for t in dtypes]
        array = value.to_numpy(dtype=np.result_type(*kinds))
    else:
        array = value.to_numpy()
    return array if isinstance(array, np.ndarray) and array.dtype.kind in "biu" else value


def objects(x: Any) -> np.ndarray | None:
    """Return a frame, series or array of objects as an array; None for other values and for masked arrays."""
    held = x.to_numpy() if hasattr(x, "to_numpy") and not isinstance(x, type) else x
    plain = isinstance(held, np.ndarray) and not isinstance(held, np.ma.MaskedArray)
    return held if plain and held.dtype == _OBJECTS else None


def numbers(x: Any) -> Any:
    """Return a frame or series whose columns of numbers and missing cells, such as None, have a type of numbers.

    Decimals become float64, as in ``from_decimals``. Columns of other objects are unchanged. A series with missing cells
    and masked numbers of NumPy become arrays of float64 with NaN, except whole numbers that float64 cannot hold.
    """
    if isinstance(x, np.ma.MaskedArray) and np.ma.is_masked(x) and x.dtype.kind in "biuf":
        held: Any = x.astype(np.float64 if x.dtype.kind != "f" else x.dtype)
        return held.filled(np.nan) if x.dtype.kind == "f" or bool((abs(held) < WHOLE).all()) else x
    if not hasattr(x, "convert_dtypes"):
        return x
    x = from_decimals(x)
    if not hasattr(x, "columns"):
        found = _typed(x) if x.dtype == _OBJECTS else x
        if getattr(found.dtype, "kind", "O") not in "biuf" or not found.isna().any():
            return x
        if found.dtype.kind in "iu" and bool(beyond_whole(found).any()):
            return found
        return found.to_numpy(dtype=np.float64, na_value=np.nan)
    return _by_column(x, lambda kind: kind == _OBJECTS, _of_numbers)


def _of_numbers(objects: Any) -> Any:
    found = _typed(objects)
    return found if getattr(found.dtype, "kind", "O") in "biuf" else objects


def from_decimals(x: Any) -> Any:
    """Return a frame or series with Python's and Arrow's decimals as the nearest numbers of float64, NaN if missing.

    Columns with numbers that float64 may not hold, see ``beyond_whole``, are unchanged. So are other columns and values.
    """
    if not hasattr(x, "isetitem"):
        return _from_decimals(x) if hasattr(x, "iloc") else x
    return _by_column(x, lambda kind: kind == _OBJECTS or _of_arrow(kind), _from_decimals)


def _from_decimals(held: Any) -> Any:
    if not are_decimals(held) or bool(np.any(beyond_whole(held))):
        return held
    return _in_double(held)


def _in_double(held: Any) -> Any:
    """Return a series of numbers as float64, NaN if missing. Arrow's own cast of decimals is not to the nearest number."""
    return held.astype(object).where(held.notna(), np.nan).astype(np.float64)


def are_decimals(held: Any) -> bool:
    """Return whether a series holds decimals of Arrow, or of Python with or without other numbers and missing cells."""
    if held.dtype != _OBJECTS:
        return _of_arrow(held.dtype)
    found = held.dropna()
    return any(isinstance(value, Decimal) for value in found) and _are_numbers(found)


def _are_numbers(values: Any) -> bool:
    kinds = Decimal | int | float | np.integer | np.floating
    return all(isinstance(value, kinds) and not isinstance(value, bool) for value in values)


def _of_arrow(kind: Any) -> bool:
    return str(kind).startswith("decimal")


def _typed(objects: Any) -> Any:
    """Return a series of objects in the type that fits; pandas' own choice would round long whole numbers beside missing ones."""
    whole = np.array([isinstance(value, int | np.integer) for value in objects], dtype=bool)
    if objects.isna().all():
        return objects.astype("Float64")
    if not (whole & beyond_whole(objects)).any():
        found = objects.convert_dtypes()
        mixed = found.dtype == _OBJECTS and _are_numbers(objects.dropna())
        return _in_double(objects) if mixed and not beyond_whole(objects).any() else found
    if (objects.isna().to_numpy() | whole).all():
        for kind in ("Int64", "UInt64"):
            with suppress(OverflowError):
                return objects.astype(kind)
    return objects


def dense(x: Any) -> Any:
    """Return a frame whose sparse columns are dense, and whose dictionaries of Arrow are pandas' categories; others unchanged."""
    return _by_column(x, lambda kind: True, _dense)


def _dense(held: Any) -> Any:
    if hasattr(held.dtype, "fill_value"):
        return held.sparse.to_dense()
    if str(held.dtype).startswith("dictionary"):
        return held.array.__arrow_array__().to_pandas().set_axis(held.index)
    return held


def alike(parts: Sequence[Any]) -> list[Any]:
    """Return frames with the same columns, to be joined: booleans and decimals beside numbers in other frames are numbers.

    Booleans become 0 and 1, decimals float64. pandas would join them as objects of several types.
    """
    found = list(parts)
    for column in range(parts[0].shape[1]):
        held = [part.iloc[:, column] for part in parts]
        types = {str(each.dtype) for each in held}
        if len(types) == 1 and types != {"object"}:
            continue
        new = [_typed(each) if each.dtype == _OBJECTS else each for each in map(from_decimals, held)]
        kinds = {getattr(each.dtype, "kind", "O") for each in new if each.notna().any()}
        if not (kinds & set("iuf") and kinds <= set("biuf")):
            continue
        for number, (before, each) in enumerate(zip(held, new, strict=True)):
            if each.dtype.kind == "b":
                each = each.astype("uint8" if isinstance(each.dtype, np.dtype) else "UInt8")
            elif not are_decimals(before):
                continue
            found[number] = found[number].copy(deep=False)
            found[number].isetitem(column, each)
    return found


def nullable(x: Any) -> Any:
    """Return a frame or series whose whole numbers of 64 bits have a type with missing values."""
    if not hasattr(x, "columns"):
        return x.astype(_NULLABLE.get(x.dtype, x.dtype))
    return _by_column(x, _NULLABLE.__contains__, nullable)


def wide_enough(held: Any, values: np.ndarray) -> Any:
    """Return a column of numbers in its own type, or in a wider one of its kind if that cannot hold the values."""
    kind = np.dtype(getattr(held.dtype, "numpy_dtype", held.dtype))
    wide = wider(kind, values)
    if wide == kind:
        return held
    name = wide.name
    if not isinstance(held.dtype, np.dtype):
        name = (
            f"{name}[pyarrow]"
            if "pyarrow" in str(held.dtype)
            else name.replace("uint", "UInt").replace("int", "Int").replace("float", "Float")
        )
    return held.astype(name)


def fractions(kind: Any) -> str:
    """Return the name of the type of fractions beside a type of whole numbers: NumPy's, Arrow's or pandas' own."""
    if isinstance(kind, np.dtype):
        return "float64"
    return "double[pyarrow]" if "pyarrow" in str(kind) else "Float64"


def wider(kind: np.dtype, values: np.ndarray) -> np.dtype:
    """Return a NumPy type of numbers, or a wider one of its kind if it cannot hold the values."""
    if kind.kind == "b":
        return kind if np.isin(values, (0, 1)).all() else np.dtype(np.int64)
    if not len(values) or kind.kind not in "iuf":
        return kind
    if kind.kind == "f":
        with np.errstate(over="ignore"):
            changed = values.astype(kind) != values
        whole = values == np.rint(values)
        lost = changed & (whole | (np.abs(values) > np.finfo(kind).max))
        return np.dtype(np.float64) if lost.any() else kind
    low, high = values.min(), values.max()
    if _holds(kind, low, high):
        return kind
    sign = "int" if kind.kind == "i" or low < 0 else "uint"
    types = (np.dtype(f"{sign}{bits}") for bits in (8, 16, 32, 64))
    return np.result_type(
        kind, next((each for each in types if _holds(each, low, high)), np.dtype(np.float64))
    )


def _holds(kind: np.dtype, low: float, high: float) -> bool:
    """Return whether a type of whole numbers has all of those from ``low`` to ``high``."""
    limits = np.iinfo(kind)
    return int(limits.min) <= int(low) and int(high) <= int(limits.max)


def filled(x: Any, missing: np.ndarray, values: np.ndarray) -> Any:
    """Return a copy of a frame with values, (cells,), where ``missing``, (rows, columns), by row and then by column.

    Columns keep their types. A column whose type cannot hold its values becomes a wider one, or one of float64. So do numbers
    of Python objects and decimals, but objects of booleans stay booleans if their values are 0 and 1.
    """
    found, into = x.copy(), np.empty(missing.shape)
    into[missing] = values
    for column in np.flatnonzero(missing.any(axis=0)):
        holes = missing[:, column]
        new, held = into[holes, column], x.iloc[:, column]
        held = held.sparse.to_dense() if hasattr(held, "sparse") else held
        held = held.copy()  # a dense column may share the memory of the sparse one
        if getattr(held.dtype, "kind", "O") == "O":
            held = _one_type(held, new)
        kind = getattr(held.dtype, "kind", "O")
        if kind == "b" and np.isin(new, (0, 1)).all():
            new = new.astype(bool)
        elif kind in "iu" and (new == np.rint(new)).all():
            held = wide_enough(held, new)
            new = new.astype(np.dtype(getattr(held.dtype, "numpy_dtype", held.dtype)))
        elif kind in "biu":
            held = held.astype(fractions(held.dtype))
        elif kind == "f":
            held = wide_enough(held, new)
        if isinstance(held.dtype, np.dtype):
            new = new.astype(bool) if held.dtype == _OBJECTS else new.astype(held.dtype)
        held[holes] = new
        found.isetitem(column, held)
    return found


def _one_type(held: Any, new: np.ndarray) -> Any:
    """Return objects or decimals as float64, for new numbers beside them; booleans as objects if the new ones are 0 and 1."""
    if are_decimals(held):
        return _in_double(held)
    found = _typed(held) if held.dtype == _OBJECTS else held
    kind = getattr(found.dtype, "kind", "O")
    if kind == "b" and np.isin(new, (0, 1)).all():
        return held
    return _in_double(found) if kind in "biuf" else held


def difference(came: tuple[str, ...], expected: tuple[str, ...]) -> str:
    """Return the first difference between the names that came and the expected ones, in words."""
    for column, (here, there) in enumerate(zip(came, expected, strict=False)):
        if here != there:
            return f"{here!r} instead of {there!r} in column {column}"
    if len(came) > len(expected):
        return f"{len(came)} columns instead of {len(expected)}, first {came[len(expected)]!r} more"
    return f"{len(came)} columns instead of {len(expected)}, {expected[len(came)]!r} missing"


def index(x: Any) -> Any:
    """Return the index of a frame's or series's rows, or None."""
    found = getattr(x, "index", None) if hasattr(x, "to_numpy") else None
    return found if hasattr(found, "get_indexer") else None


class Misaligned(Exception):
    """The reason, in words, why a frame or series cannot be aligned with an index."""


def aligned(value: Any, rows: Any) -> Any:
    """Return a frame or series in the order of the index ``rows``; values without an index unchanged.

    Raises:
        Misaligned: the index does not hold the same labels, or not each of them once.
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
