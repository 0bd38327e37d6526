"""One column of a table: the values of a frame as codes for the column's family, and back."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pyrovae.frames import are_decimals, wide_enough
from pyrovae.likelihoods.mixed import family_of
from pyrovae.refusals import Refused, bad_value
from pyrovae.rounding import beyond_whole

if TYPE_CHECKING:
    import pandas as pd

WORDS = {
    "number": "numbers",
    "bool": "booleans",
    "label": "strings or categories",
    "date": "dates",
    "time": "times",
    "duration": "durations",
}


@dataclass(frozen=True)
class Column:
    """One column of a table.

    Attributes:
        name: in the frame.
        sort: "number", "bool" or "label".
        dtype: of pandas, as a string; ``sample`` and ``reconstruct`` return it.
        family: a name in ``likelihoods.REGISTRY`` or ``likelihoods.mixed.TABLES``.
        options: of the family.
        why: the reason for the family.
        levels: the values of the training rows, in the order of their codes 0, 1, …; None for numbers.
        categories, ordered: of a pandas category; else None and False.
        resolution: the step to which numbers were recorded; codes count steps. None if none was given.
        loc, scale: mean and standard deviation of the training rows' codes, or of their logarithms if the family
            standardises these. For families that standardise neither, they are the unit of the decoder's first
            output.
        bounds: of the decoder's first output in these units. They correspond to the
            smallest and the largest number of the training rows; None is no bound.
        feature: the encoder's input, as in ``networks.Features``.
        feature_loc, feature_scale: its mean and standard deviation over the training rows.
    """

    name: Any
    sort: str
    dtype: str
    family: str
    options: dict[str, Any]
    why: str
    levels: tuple[Any, ...] | None = None
    categories: tuple[Any, ...] | None = None
    ordered: bool = False
    resolution: float | None = None
    loc: float = 0.0
    scale: float = 1.0
    bounds: tuple[float | None, float | None] = (None, None)
    feature: str | int = "identity"
    feature_loc: float = 0.0
    feature_scale: float = 1.0

    def encode(self, values: pd.Series, argument: str) -> np.ndarray:
        """Return the codes of a frame's column, float64, NaN in missing cells; raise ``ValueError`` for values without a code."""
        import pandas as pd

        at = np.flatnonzero(values.notna())
        found = np.full(len(values), np.nan)
        sort = sort_of(values) if len(at) else self.sort
        if sort != self.sort:
            each = (i for i in at if sort_of(values.iloc[[i]].astype(object)) != self.sort)
            row = next(each, at[0])  # a category of numbers has no odd cell
            came = f"{WORDS.get(sort, sort)} of dtype {values.dtype}, first {unwrapped(values.iloc[row])!r} in row {row}"
            expected = f"{WORDS[self.sort]}, as in the training rows"
            raise refused(argument, self.name, expected, came, "Convert the column to the type it had.")
        if self.levels is None:
            numbers = numbers_of(argument, self.name, values.iloc[at], at)
            step = self.resolution
            found[at] = (
                numbers if step is None else steps_of(argument, self.name, numbers, step, at, values.dtype)
            )
            return found
        held = values.iloc[at].astype(object).to_numpy()
        codes = pd.Index(self.levels, dtype=object).get_indexer(pd.Index(held, dtype=object))
        if held.size and not isinstance(self.levels[0], str):  # True == 1
            of_booleans = isinstance(self.levels[0], bool)
            alike = [isinstance(value, bool | np.bool_) == of_booleans for value in held]
            codes = np.where(alike, codes, -1)
        if self.sort == "number" and any(float(level) % 1 for level in self.levels):
            codes = self._nearest(held, codes, values.dtype)
        new = np.flatnonzero(codes < 0)
        if len(new):
            raise refused(
                argument,
                self.name,
                f"levels of the training rows, {some(self.levels)}",
                f"{len(new)} cells with others, first {held[new[0]]!r} in row {at[new[0]]}",
                "Leave these cells missing (None), or merge the level into one that was there.",
            )
        found[at] = codes
        return found

    def _nearest(self, held: np.ndarray, codes: np.ndarray, dtype: Any) -> np.ndarray:
        """Return codes with those of numbers that are levels but for the rounding of the types, such as of float32."""
        levels = np.array(self.levels, dtype=np.float64)
        new = np.flatnonzero(codes < 0)
        numbers = held[new].astype(np.float64)[:, None]
        rounding = 4 * max(_rounding_of(dtype), _rounding_of(self.dtype)) * np.abs(levels)
        same = np.abs(numbers - levels) <= rounding
        codes[new] = np.where(same.sum(axis=1) == 1, same.argmax(axis=1), -1)
        return codes

    def decode(self, codes: np.ndarray, index: Any = None, rounded: bool = True) -> pd.Series:
        """Return codes as a column in its own type. If not ``rounded``, as for means, numbers stay float64."""
        import pandas as pd

        index = pd.RangeIndex(len(codes)) if index is None else index
        missing = np.isnan(codes)
        if self.levels is not None:
            levels = np.empty(len(self.levels), dtype=object)
            levels[:] = self.levels
            at = np.where(missing, 0, np.round(codes)).astype(int).clip(0, len(levels) - 1)
            held: Any = np.where(missing, None, levels[at])
        elif self.resolution is not None:
            held = self._of_steps(_whole(codes) if rounded else codes, self.resolution)
        else:
            held = _whole(codes) if rounded and family_of(self.family).takes == "counts" else codes
        if self.categories is not None:
            kind: Any = pd.CategoricalDtype(list(self.categories), ordered=self.ordered)
            return pd.Series(pd.Categorical(list(held), dtype=kind), index=index)
        if self.sort == "number" and self.levels is None:
            found = pd.Series(np.asarray(held, dtype=np.float64), index=index)
            return _typed(found, self.dtype) if rounded else found
        if self.sort == "number":
            return self._of_levels(held, missing, index)
        lost = missing.any() and self.dtype == "bool"  # a boolean array holds no missing cell
        return pd.Series(held, index=index, dtype=object).astype(object if lost else self.dtype)

    def values(self, codes: np.ndarray) -> np.ndarray:
        """Return numbers that are equal for equal cells, whatever the codes: of levels of text, a hash."""
        if self.levels is not None:
            held = _to_digits(np.array([_number_of(level) for level in self.levels]))
            return held[np.round(codes).astype(int).clip(0, len(held) - 1)]
        return codes if self.resolution is None else _to_digits(self._of_steps(codes, self.resolution))

    def _of_steps(self, steps: np.ndarray, step: float) -> np.ndarray:
        per = round(1 / step)  # 3 / 10 is 0.3, and 3 * 0.1 is not
        return steps / per if per > 0 and abs(per * step - 1) < 1e-9 else steps * step

    def _of_levels(self, held: np.ndarray, missing: np.ndarray, index: Any) -> pd.Series:
        """Return levels that are numbers as a column of their type, without float64 between, which would round long ones."""
        import pandas as pd

        kind: Any = pd.api.types.pandas_dtype(self.dtype)
        if missing.any() and isinstance(kind, np.dtype) and kind.kind in "iu":
            long = kind.itemsize == 8 and beyond_whole(np.array(self.levels, dtype=object)).any()
            kind = ("UInt64" if kind.kind == "u" else "Int64") if long else np.float64
        return pd.Series(held, index=index, dtype=object).astype(kind)

    def lacked_by(self, held: pd.Series) -> bool:
        """Return whether the type of a frame's column cannot hold some value of the training rows, or their fractions."""
        kind = getattr(held.dtype, "kind", "O")
        if hasattr(held, "cat"):
            return self.levels is None or bool(set(self.levels) - set(held.cat.categories))
        if held.dtype == np.dtype(object):
            return False
        if self.sort != "number":
            return kind not in ("b" if self.sort == "bool" else "OU")  # "U" of Arrow's strings
        if kind not in "iuf":
            return True
        if self.levels is not None:
            number = np.dtype(getattr(held.dtype, "numpy_dtype", held.dtype)).type
            return not all(_is(number, level) for level in self.levels)
        return kind in "iu" and not self._is_whole

    @property
    def _is_whole(self) -> bool:
        """Whether the column's numbers are whole: counts, numbers of an integer type, or multiples of a whole step."""
        from pandas.api.types import pandas_dtype

        step = self.resolution
        counts = family_of(self.family).takes == "counts" if step is None else float(step).is_integer()
        return counts or getattr(pandas_dtype(self.dtype), "kind", "O") in "iub"


def numbers_of(argument: str, name: Any, values: pd.Series, at: np.ndarray) -> np.ndarray:
    """Return numbers as float64; raise ``ValueError`` for infinite ones, and for whole numbers that it may not hold.

    ``at`` are their rows.
    """
    large = np.flatnonzero(np.asarray(beyond_whole(values), dtype=bool))
    if len(large):
        few = f"{len(large)} others, first in row {at[large[0]]}"
        fix = (
            f"Subtract a constant first, or leave the column out of training by families={{{name!r}: None}}."
        )
        raise refused(argument, name, "whole numbers between -2^53 and 2^53", few, fix)
    found = values.to_numpy(dtype=np.float64)
    endless = np.flatnonzero(np.isinf(found))
    if len(endless):
        came = f"{len(endless)} that are infinite, first {found[endless[0]]:g} in row {at[endless[0]]}"
        fix = "Pass NaN if these cells are missing, or drop those rows."
        raise refused(argument, name, "finite numbers, or NaN in missing cells", came, fix)
    return found


def steps_of(
    argument: str, name: Any, numbers: np.ndarray, resolution: float, at: np.ndarray, dtype: Any
) -> np.ndarray:
    """Return how many steps numbers are from 0; raise ``ValueError`` unless all are whole, up to their type's rounding.

    ``at`` are their rows.
    """
    steps = numbers / resolution
    odd = np.flatnonzero(between_steps(steps, dtype))
    if len(odd):
        came = f"{len(odd)} others, first {numbers[odd[0]]:g} in row {at[odd[0]]}"
        fix = "Give a finer resolution, or round the column."
        raise refused(argument, name, f"whole multiples of the resolution {resolution:g}", came, fix)
    return np.round(steps)


def between_steps(steps: np.ndarray, dtype: Any) -> np.ndarray:
    """Return which numbers of steps are not whole, up to the rounding of their type."""
    rounding = 4 * _rounding_of(dtype)
    return np.abs(steps - np.round(steps)) > np.clip(rounding * np.abs(steps), 1e-6, 0.1)


def _rounding_of(dtype: Any) -> float:
    """Return the relative rounding of a type of numbers; that of float64 for types that are no floats."""
    from pandas.api.types import pandas_dtype

    held: Any = pandas_dtype(dtype)
    kind = np.dtype(getattr(held, "numpy_dtype", held if isinstance(held, np.dtype) else np.float64))
    return float(np.finfo(kind if kind.kind == "f" else np.float64).eps)


def _whole(numbers: Any) -> Any:
    """Return numbers rounded to whole ones; a zero has no sign."""
    return numbers.round() + 0.0


def _typed(numbers: pd.Series, dtype: str) -> pd.Series:
    """Return numbers in a type; in a wider one if it cannot hold them."""
    import pandas as pd

    kind: Any = pd.api.types.pandas_dtype(dtype)
    missing, nullable = numbers.isna(), not isinstance(kind, np.dtype)
    if kind.kind in "iu":
        numbers = _whole(numbers)
    if kind.kind in "iuf":
        kind = wide_enough(pd.Series([], dtype=kind), numbers[~missing].to_numpy()).dtype
    if kind.kind in "iu" and missing.any() and not nullable:
        kind = np.dtype(np.float64)
    return (numbers.astype("Float64") if nullable else numbers).astype(kind)


def _number_of(level: Any) -> float:
    """Return a level as a number; a hash between 0 and 1, which float32 holds, for text and for numbers float64 may not hold."""
    if isinstance(level, float) or (not isinstance(level, str) and abs(level) <= 2.0**53):
        return float(level)
    return int(hashlib.sha256(repr(level).encode()).hexdigest()[:6], 16) / 2.0**24


def _to_digits(numbers: np.ndarray) -> np.ndarray:
    """Return numbers rounded to 15 digits, which undoes the rounding of products such as 3 · 0.3.

    Whole numbers and those that float32 holds are unchanged. So are all if the rounding would make two of them equal.
    """
    different, places = np.unique(numbers, return_inverse=True)
    with np.errstate(over="ignore"):
        held = different == different.astype(np.float32)
    held |= (different == np.round(different)) & (np.abs(different) <= 2.0**53)
    near = different.copy()
    near[~held] = [float(f"{number:.15g}") for number in different[~held]]
    return (near if len(np.unique(near)) == len(different) else different)[places]


def _is(number: Any, value: Any) -> bool:
    """Return whether a type of NumPy has a number."""
    try:
        with np.errstate(over="ignore"):
            return bool(number(value) == value)
    except OverflowError:
        return False


def sort_of(values: pd.Series) -> str:
    """Return what a column holds: "number", "bool", "label", "date", "time", "duration", "empty", or pandas' name for a mixture."""
    from pandas.api import types

    if isinstance(values.dtype, types.CategoricalDtype):
        return "label"
    kind = types.infer_dtype(values, skipna=True)
    if kind in ("integer", "floating", "mixed-integer-float", "decimal", "integer-na"):
        return "number"
    if kind.startswith("timedelta"):
        return "duration"
    if kind.startswith(("date", "period")):
        return "date"
    if kind.startswith("mixed") and are_decimals(values):  # decimals beside other numbers
        return "number"
    return {"boolean": "bool", "string": "label"}.get(kind, kind)


def refused(argument: str, name: Any, expected: str, came: str, fix: str) -> Refused:
    """Return the error for a column of an argument that holds frames."""
    return bad_value(f"{argument}[{name!r}]", expected, came, fix)


def unwrapped(value: Any) -> Any:
    """Return a scalar of NumPy as Python's own; other values unchanged."""
    return value.item() if isinstance(value, np.generic) else value


def some(levels: tuple[Any, ...]) -> str:
    """Return the first ten levels in words, and how many more there are."""
    return ", ".join(map(repr, levels[:10])) + (f" and {len(levels) - 10} more" if len(levels) > 10 else "")
