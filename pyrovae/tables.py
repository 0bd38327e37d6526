"""Tables: the columns of a pandas frame as numbers that a likelihood can score, and back in the frame's own types."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from pyrovae import arguments, frames
from pyrovae.likelihoods import REGISTRY, suggest
from pyrovae.likelihoods.mixed import family_of
from pyrovae.refusals import Refused, bad_type, bad_value, shown
from pyrovae.rows import joined

if TYPE_CHECKING:
    import pandas as pd

_COUNTS = ("poisson", "negative_binomial", "zero_inflated_negative_binomial")
_LEVELS = ("bernoulli", "categorical", "ordinal")
_FROM_ZERO = (*_COUNTS, "rounded_log_normal")
_POSITIVE = ("log_normal", "gamma")
# A column is constant if its values differ by less than this share of the largest one.
_SAME = 1e-9
# A column of whole numbers is numbered like an id if at least so many rows hold consecutive numbers, each once.
_FEWEST_IDS = 20
# Larger whole numbers are not counted one by one.
_MOST_COUNTED = 2**24
_BY_FAMILIES = "left out by families"
_WORDS = {"number": "numbers", "bool": "booleans", "label": "strings or categories", "date": "dates"}


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
        loc, scale: of the training rows in standard units of the family: mean and standard deviation of codes or of
            their logarithms.
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
    feature: str | int = "identity"
    feature_loc: float = 0.0
    feature_scale: float = 1.0


class Table:
    """The columns of a frame: how each becomes a number that its family scores, and back.

    Args:
        columns: that are modelled.
        left_out: the reasons why other columns of the training rows are left out, by name. Frames may have them or not.

    Example:
        >>> import pandas as pd
        >>> frame = pd.DataFrame({"age": [31.5, 40.2, 22.9], "member": [True, False, None]})
        >>> table = Table.of(frame)
        >>> table.encode(frame)[:, 1].tolist()
        [1.0, 0.0, nan]
        >>> table.decode(table.encode(frame))["member"].tolist()
        [True, False, None]
    """

    def __init__(self, columns: tuple[Column, ...], left_out: Mapping[Any, str]) -> None:
        self.columns, self.left_out = tuple(columns), dict(left_out)

    @classmethod
    def of(
        cls,
        x: Any,
        families: Mapping[Any, Any] | None = None,
        resolution: Mapping[Any, float] | None = None,
    ) -> Table:
        """Return the table of some training rows; see ``VAE.for_table`` for the arguments and the errors."""
        frame = _frame(x, "df")
        families = _by_name("families", families, frame)
        resolution = _by_name("resolution", resolution, frame)
        columns, left_out = [], {}
        for name in frame.columns:
            given = families.get(name, "")
            if given is None:
                left_out[name] = _BY_FAMILIES
                continue
            found = _column(name, frame[name], given, resolution.get(name))
            if isinstance(found, str):
                left_out[name] = found
            else:
                columns.append(found)
        if not columns:
            raise bad_value("df", "a column that varies", f"{left_out}", "Pass other columns.")
        return cls(tuple(columns), left_out)

    @property
    def names(self) -> list[Any]:
        """The names of the modelled columns."""
        return [column.name for column in self.columns]

    def warn_left_out(self) -> None:
        """Warn of columns that are left out without having been named in ``families``."""
        found = [f"{name!r} ({why})" for name, why in self.left_out.items() if why != _BY_FAMILIES]
        if found:
            warnings.warn(
                f"These columns are left out: {', '.join(found)}. Pass families={{name: None}} to leave a column out "
                "without this warning, or name a family.",
                stacklevel=4,
            )

    def summary(self) -> pd.DataFrame:
        """Return a frame with a line for each column: its family, its levels and the reason; left-out columns last."""
        import pandas as pd

        lines: list[Any] = [(c.name, c.family, c.levels, c.resolution, c.why) for c in self.columns]
        lines += [(name, None, None, None, why) for name, why in self.left_out.items()]
        return pd.DataFrame(lines, columns=["column", "family", "levels", "resolution", "why"])

    def record(self) -> dict[str, Any]:
        """Return the table as plain data, for files; ``Table.from_record`` inverts it."""
        return {
            "columns": [asdict(column) for column in self.columns],
            "left_out": list(self.left_out.items()),
        }

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Table:
        """Return the table of a ``record``."""
        return cls(tuple(Column(**column) for column in record["columns"]), dict(record["left_out"]))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Table) and self.record() == other.record()

    __hash__ = None  # type: ignore[assignment]  # as for every class with __eq__

    # -----------------------------------------------------------------------------------------------------
    # Frames as codes, and back

    def read(self, x: Any, argument: str = "x") -> Any:
        """Return rows with frames as frames of codes: ``x``, ``x["x"]``, or chunks of either; arrays of codes unchanged.

        Raises:
            TypeError, ValueError: as ``encode``; an array of another width; a mask of another shape than its frame.
        """
        x = self.arranged(x, argument)
        if isinstance(x, Mapping):
            return {**x, "x": self.read(x["x"], argument)} if "x" in x else x
        if _is_frame(x):
            return self._coded(x, argument)
        shape = tuple(getattr(x, "shape", ()))
        if len(shape) != 2 or shape[1] != len(self.columns):
            raise bad_value(
                argument,
                f"a frame with the columns {self.names}, or codes of shape (rows, {len(self.columns)})",
                f"shape {shape}" if shape else shown(x),
                "Pass the frame, or vae.table.encode(frame).",
            )
        return x

    def arranged(self, x: Any, argument: str = "x") -> Any:
        """Return rows in frames with the modelled columns alone, in the table's order, and a mask beside them likewise.

        Chunks are joined. Codes in arrays are returned as they are.
        """
        x = joined(x, argument)
        if not isinstance(x, Mapping):
            return self._selected(x, argument) if _is_frame(x) else x
        if "x" not in x or not _is_frame(x["x"]):
            return x
        frame, found = _frame(x["x"], argument), dict(x)
        found["x"] = self._selected(frame, argument)
        if "observed" in x:
            found["observed"] = self._mask(x["observed"], frame)
        return found

    def _selected(self, x: Any, argument: str) -> pd.DataFrame:
        frame = _frame(x, argument)
        missing = [name for name in self.names if name not in frame.columns]
        more = [name for name in frame.columns if name not in {*self.names, *self.left_out}]
        if missing or more:
            came = [f"none named {', '.join(map(repr, missing))}"] * bool(missing)
            came += [f"{', '.join(map(repr, more))}, which the training rows did not have"] * bool(more)
            fix = "Rename, add or drop these columns."
            raise bad_value(argument, f"the columns {self.names}", "; ".join(came), fix)
        return frame[self.names]

    def _mask(self, mask: Any, frame: pd.DataFrame) -> Any:
        """Return the modelled columns of a mask: by their names in a frame, by their places in ``frame`` in an array."""
        if _is_frame(mask):
            missing = [name for name in self.names if name not in mask.columns]
            if missing:
                fix = "Name them as in x."
                raise bad_value("observed", f"the columns {self.names}", f"none named {missing[0]!r}", fix)
            return mask[self.names]
        shape = tuple(getattr(mask, "shape", ()))
        if shape != frame.shape:
            came = f"shape {shape}" if shape else shown(mask)
            fix = "Pass a boolean for every cell of the frame."
            raise bad_value("observed", f"the shape of the frame, {frame.shape}", came, fix)
        return mask[:, [frame.columns.get_loc(name) for name in self.names]]

    def encode(self, x: Any, argument: str = "x") -> np.ndarray:
        """Return the codes of a frame, shape (rows, columns), float64, in the table's order; NaN in missing cells.

        Numbers are their own codes, or the number of steps where a resolution was given. Levels are numbered from 0. Every
        function that takes the frame takes these codes, too.

        Raises:
            TypeError: not a frame.
            ValueError: columns are missing or more, have other types, or hold levels that the training rows do not.
        """
        return np.array(self._coded(self._selected(x, argument), argument))

    def _coded(self, frame: pd.DataFrame, argument: str) -> pd.DataFrame:
        """Return the codes of an arranged frame, with the names of the columns and its index."""
        import pandas as pd

        codes = {i: _codes(c, frame[c.name], argument) for i, c in enumerate(self.columns)}
        return pd.DataFrame(codes, index=frame.index).set_axis(self.names, axis=1)

    def decode(self, codes: Any, like: Any = None) -> pd.DataFrame:
        """Return codes, shape (rows, columns), as a frame in the types of the training rows; NaN becomes a missing cell.

        Codes of levels and of whole-number families are rounded. So are numbers in integer columns. An integer or boolean
        column with a missing cell gets float64 or object, as in pandas.

        Args:
            codes: a tensor, array or frame.
            like: a frame of as many rows, which gives the index, the order of the columns and the columns left out.

        Example:
            >>> import pandas as pd
            >>> table = Table.of(pd.DataFrame({"size": ["S", "L", "S"]}))
            >>> table.decode([[1.0], [0.0]])["size"].tolist()
            ['S', 'L']
        """
        import pandas as pd

        array = codes.detach().cpu().numpy() if isinstance(codes, Tensor) else np.asarray(codes)
        array = array.astype(np.float64)
        if array.ndim != 2 or array.shape[1] != len(self.columns):
            raise bad_value(
                "codes", f"shape (rows, {len(self.columns)})", f"shape {array.shape}", "Pass a code a column."
            )
        index = None if like is None else like.index
        found = {i: _values(c, array[:, i], index) for i, c in enumerate(self.columns)}
        frame = pd.DataFrame(found, index=index).set_axis(self.names, axis=1)
        if like is None:
            return frame
        for name in like.columns:
            if name in self.left_out:
                frame[name] = like[name]
        return frame[list(like.columns)]

    def values(self, number: int, codes: np.ndarray, rounded: bool = True) -> pd.Series:
        """Return codes of one column, by its number among those modelled, as a column in its own type.

        Without ``rounded``, such as for means, numbers that are no whole steps or counts stay as they are, in float64.
        """
        return _values(self.columns[number], codes, None, rounded)

    def filled(
        self, x: pd.DataFrame, missing: np.ndarray, codes: np.ndarray, rounded: bool = True
    ) -> pd.DataFrame:
        """Return a copy of a frame with ``codes``, (cells,), decoded, in its missing cells, by row and then by column.

        ``missing`` has shape (rows, modelled columns), in the table's order. Observed cells keep their values. A column keeps
        its type if that can hold every value of the training rows, and otherwise has theirs, whatever the codes are.
        """
        found, into = _frame(x, "x").copy(), np.full(missing.shape, np.nan)
        into[missing] = codes
        for number in map(int, np.flatnonzero(missing.any(axis=0))):
            column, holes = self.columns[number], missing[:, number]
            held, new = found[column.name], self.values(number, into[holes, number], rounded)
            whole = held.astype(object)
            whole[holes] = new.astype(object).to_numpy()
            kind = new.dtype if _lacks(held, column) else held.dtype
            if kind == held.dtype and not rounded and getattr(kind, "kind", "O") in "iu":
                kind = "Float64"
            found[column.name] = whole.astype(kind)
        return found

    # -----------------------------------------------------------------------------------------------------
    # Modules

    def groups(self) -> list[dict[str, Any]]:
        """Return the groups of columns of one family and its options, as ``likelihoods.mixed.Mixed`` takes them."""
        found: dict[str, dict[str, Any]] = {}
        for number, column in enumerate(self.columns):
            key = f"{column.family} {sorted(column.options.items())}"
            group = found.setdefault(key, {"family": column.family, "options": column.options, "columns": []})
            group["columns"].append(number)
            if family_of(column.family).standardizes:
                group.setdefault("loc", []).append(column.loc)
                group.setdefault("scale", []).append(column.scale)
        return list(found.values())

    def features(self) -> dict[str, list[Any]]:
        """Return the arguments of ``networks.Features``."""
        return {
            "kinds": [column.feature for column in self.columns],
            "loc": [column.feature_loc for column in self.columns],
            "scale": [column.feature_scale for column in self.columns],
        }


def _lacks(held: pd.Series, column: Column) -> bool:
    """Return whether a column's type cannot hold some value of the training rows."""
    if column.levels is None:
        return False
    if hasattr(held, "cat"):
        return bool(set(column.levels) - set(held.cat.categories))
    return column.sort != "number" and getattr(held.dtype, "kind", "O") in "iuf"  # no cell was observed


def _is_frame(x: Any) -> bool:
    frame = hasattr(x, "to_pandas") or (hasattr(x, "to_numpy") and hasattr(x, "columns"))
    return frame and not isinstance(x, type)


def _frame(x: Any, argument: str) -> pd.DataFrame:
    """Return a frame of pandas, from one of another library if it converts itself; raise for anything else."""
    x = frames.as_pandas(x)
    if not (_is_frame(x) and hasattr(x, "iloc")):
        raise bad_type(argument, "a pandas DataFrame", f"a {type(x).__name__}", "Pass pandas.DataFrame(x).")
    if not len(x) or not len(x.columns):
        raise bad_value(argument, "at least one row and one column", f"shape {x.shape}", "Pass some rows.")
    twice = x.columns[x.columns.duplicated()]
    if len(twice):
        raise bad_value(
            argument, "one column of each name", f"{twice[0]!r} more than once", "Rename the columns."
        )
    return x


def _by_name(argument: str, value: Mapping[Any, Any] | None, frame: pd.DataFrame) -> dict[Any, Any]:
    """Return a dict by the names of columns; raise for other names or other types."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise bad_type(argument, "a dict by the names of columns", shown(value), 'Pass {"column": …}.')
    for name in value:
        if name not in frame.columns:
            raise bad_value(
                argument, f"names of columns, {list(frame.columns)}", repr(name), "Use one of these names."
            )
    return dict(value)


def _refused(argument: str, name: Any, expected: str, came: str, fix: str) -> Refused:
    return bad_value(f"{argument}[{name!r}]", expected, came, fix)


def _sort(values: pd.Series) -> str:
    """Return what a column holds: "number", "bool", "label", "date", "empty", or pandas' name for a mixture."""
    from pandas.api import types

    if isinstance(values.dtype, types.CategoricalDtype):
        return "label"
    kind = types.infer_dtype(values, skipna=True)
    if kind in ("integer", "floating", "mixed-integer-float", "decimal", "integer-na"):
        return "number"
    if kind.startswith(("date", "timedelta", "period", "time")):
        return "date"
    return {"boolean": "bool", "string": "label"}.get(kind, kind)


# ---------------------------------------------------------------------------------------------------------
# Codes


def _codes(column: Column, values: pd.Series, argument: str) -> np.ndarray:
    """Return the codes of a column, float64, NaN in missing cells; raise ``ValueError`` for what the training rows lack."""
    import pandas as pd

    at = np.flatnonzero(values.notna())
    found = np.full(len(values), np.nan)
    sort = _sort(values) if len(at) else column.sort
    if sort != column.sort:
        each = (i for i in at if _sort(values.iloc[[i]].astype(object)) != column.sort)
        row = next(each, at[0])  # a category of numbers has no odd cell
        came = f"{_WORDS.get(sort, sort)} of dtype {values.dtype}, first {_plain(values.iloc[row])!r} in row {row}"
        expected = f"{_WORDS[column.sort]}, as in the training rows"
        raise _refused(argument, column.name, expected, came, "Convert the column to the type it had.")
    if column.levels is None:
        numbers = values.iloc[at].to_numpy(dtype=np.float64)
        step = column.resolution
        found[at] = (
            numbers if step is None else _steps(argument, column.name, numbers, step, at, values.dtype)
        )
        return found
    held = values.iloc[at].astype(object).to_numpy()
    codes = pd.Index(column.levels, dtype=object).get_indexer(pd.Index(held, dtype=object))
    if held.size and isinstance(column.levels[0], bool):  # True == 1
        codes = np.where([isinstance(value, bool | np.bool_) for value in held], codes, -1)
    new = np.flatnonzero(codes < 0)
    if len(new):
        raise _refused(
            argument,
            column.name,
            f"levels of the training rows, {_some(column.levels)}",
            f"{len(new)} cells with others, first {held[new[0]]!r} in row {at[new[0]]}",
            "Leave these cells missing (None), or merge the level into one that was there.",
        )
    found[at] = codes
    return found


def _steps(
    argument: str, name: Any, numbers: np.ndarray, resolution: float, at: np.ndarray, dtype: Any
) -> np.ndarray:
    """Return how many steps numbers are from 0; raise ``ValueError`` unless all are whole, up to their type's rounding.

    ``at`` are their rows.
    """
    steps = numbers / resolution
    rounding = 4 * np.finfo(np.float32 if str(dtype).lower() == "float32" else np.float64).eps
    odd = np.flatnonzero(np.abs(steps - np.round(steps)) > np.clip(rounding * np.abs(steps), 1e-6, 0.1))
    if len(odd):
        came = f"{len(odd)} others, first {numbers[odd[0]]:g} in row {at[odd[0]]}"
        fix = "Give a finer resolution, or round the column."
        raise _refused(argument, name, f"whole multiples of the resolution {resolution:g}", came, fix)
    return np.round(steps)


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def _some(levels: tuple[Any, ...]) -> str:
    return ", ".join(map(repr, levels[:10])) + (f" and {len(levels) - 10} more" if len(levels) > 10 else "")


def _values(column: Column, codes: np.ndarray, index: Any, rounded: bool = True) -> pd.Series:
    """Return the values of codes as a column in its own type; in float64 if they are numbers and not ``rounded``."""
    import pandas as pd

    index = pd.RangeIndex(len(codes)) if index is None else index
    missing = np.isnan(codes)
    if column.levels is not None:
        levels = np.empty(len(column.levels), dtype=object)
        levels[:] = column.levels
        at = np.where(missing, 0, np.round(codes)).astype(int).clip(0, len(levels) - 1)
        held: Any = np.where(missing, None, levels[at])
    elif column.resolution is not None:
        per = round(1 / column.resolution)  # 3 / 10 is 0.3, and 3 * 0.1 is not
        whole = per > 0 and abs(per * column.resolution - 1) < 1e-9
        steps = np.round(codes) if rounded else codes
        held = steps / per if whole else steps * column.resolution
    else:
        held = np.round(codes) if rounded and column.family in _COUNTS else codes
    if column.categories is not None:
        kind: Any = pd.CategoricalDtype(list(column.categories), ordered=column.ordered)
        return pd.Series(pd.Categorical(list(held), dtype=kind), index=index)
    if column.sort == "number" and not rounded and column.levels is None:
        return pd.Series(np.asarray(held, dtype=np.float64), index=index)
    if column.sort == "number":
        return _as_numbers(np.asarray(held, dtype=np.float64), column.dtype, index)
    lost = missing.any() and column.dtype == "bool"  # a boolean array holds no missing cell
    return pd.Series(held, index=index, dtype=object).astype(object if lost else column.dtype)


def _as_numbers(numbers: np.ndarray, dtype: str, index: Any) -> pd.Series:
    """Return numbers as a column of a dtype; of a wider one if it cannot hold them."""
    import pandas as pd

    kind: Any = pd.api.types.pandas_dtype(dtype)
    missing, nullable = np.isnan(numbers), not isinstance(kind, np.dtype)
    if kind.kind in "iu":
        numbers, limits = np.round(numbers), np.iinfo(getattr(kind, "numpy_dtype", kind))
        held = numbers[~missing]
        if missing.any() and not nullable:
            kind = np.dtype(np.float64)
        elif len(held) and (held.min() < limits.min or held.max() > limits.max):
            kind = "Int64" if nullable else np.dtype(np.int64)
    found = pd.Series(numbers, index=index)
    if nullable:
        found = found.astype("Float64")
    return found.astype(kind)


# ---------------------------------------------------------------------------------------------------------
# Columns of training rows


def _column(name: Any, values: pd.Series, given: Any, resolution: float | None) -> Column | str:
    """Return a column of the training rows, or the reason why it is left out; raise if it cannot be used."""
    at, sort = np.flatnonzero(values.notna()), _sort(values)
    out = f"families={{{name!r}: None}}"
    if not len(at):
        raise _refused("df", name, "an observed cell", "none", f"Drop the column, or leave it out by {out}.")
    if sort not in _WORDS or sort == "date":
        fix = f"Convert the column to one of these, or leave it out by {out}."
        if sort == "date":
            days = f"(df[{name!r}] - df[{name!r}].min()).dt.days"
            fix = f"Choose a meaning: days as a number, {days}; a part, such as .dt.month; or leave it out by {out}."
        came = f"{_WORDS.get(sort, sort)} of dtype {values.dtype}, first {_plain(values.iloc[at[0]])!r}"
        raise _refused("df", name, "numbers, booleans, strings or categories", came, fix)
    family, options = given if isinstance(given, tuple) and len(given) == 2 else (given, {})
    if not isinstance(options, dict):
        raise bad_type(
            f"families[{name!r}]", "a dict of options after the name", shown(options), 'Pass {"scale": 1.0}.'
        )
    if family != "":
        arguments.choice(f"families[{name!r}]", family, tuple(REGISTRY))
        set_here = ("network", "standardize", "offset", "num_categories", "num_levels")
        arguments.options(family, REGISTRY[family], options, taken=set_here)
    made: dict[str, Any] = {"name": name, "sort": sort, "dtype": str(values.dtype), "why": "given"}
    if hasattr(values, "cat"):
        made |= {"dtype": "category", "categories": tuple(values.cat.categories)}
        made["ordered"] = bool(values.cat.ordered)
    if resolution is not None:
        resolution = arguments.positive(f"resolution[{name!r}]", resolution)
        if sort != "number" or family not in ("", "gaussian", "log_normal"):
            came = f"{family or _WORDS[sort]}"
            expected = "a column of numbers, gaussian or log_normal"
            raise _refused("resolution", name, expected, came, "Leave the resolution out.")
    if sort == "number" and family not in _LEVELS:
        return _numbers(made, values.iloc[at].to_numpy(dtype=np.float64), at, family, options, resolution)
    return _levels(made, list(values.iloc[at].astype(object)), family)


def _levels(made: dict[str, Any], held: list[Any], family: str) -> Column | str:
    """Return a column of levels, or the reason why it is left out."""
    name, ordered, distinct = made["name"], made.get("ordered", False), set(held)
    known = made["categories"] if "categories" in made else sorted(distinct)
    levels = [level for level in known if level in distinct]
    if len(levels) == 1:
        return f"constant: {levels[0]!r} in every row"
    if len(levels) == len(held) and made["sort"] == "label" and not ordered and not family:
        return f"like an id: {len(levels)} rows, and all values differ"
    plain = [_plain(level) for level in levels]
    odd = [level for level in plain if type(level) not in (str, int, float, bool)]
    if odd:
        expected = "levels that are strings, numbers or booleans"
        raise _refused("df", name, expected, shown(odd[0]), "Convert the column by .astype(str).")
    if not family:
        family = "bernoulli" if len(levels) == 2 else "ordinal" if ordered else "categorical"
        made = made | {"why": f"{len(levels)} levels" + (", ordered" if ordered else "")}
    unordered = made["sort"] == "label" and not ordered
    if (
        family not in _LEVELS
        or (family == "bernoulli" and len(levels) > 2)
        or (family == "ordinal" and unordered)
    ):
        raise _refused(
            "families",
            name,
            "'categorical', 'bernoulli' for two levels, or 'ordinal' for numbers and ordered categories",
            f"{family!r} for {len(levels)} levels, {_some(tuple(plain))}",
            "Name one of these. df[column].astype(pandas.CategoricalDtype(levels, ordered=True)) orders levels.",
        )
    counted = {"categorical": "num_categories", "ordinal": "num_levels"}.get(family)
    return Column(
        **made,
        family=family,
        options={counted: len(levels)} if counted else {},
        levels=tuple(plain),
        feature=len(levels) if family == "categorical" else "identity",
        **_unit("feature_", np.array([levels.index(value) for value in held], dtype=np.float64)),
    )


def _numbers(
    made: dict[str, Any],
    held: np.ndarray,
    at: np.ndarray,
    family: str,
    options: dict[str, Any],
    resolution: float | None,
) -> Column | str:
    """Return a column of numbers, or the reason why it is left out; ``at`` are the rows of the observed cells."""
    name, endless = made["name"], np.flatnonzero(~np.isfinite(held))
    if len(endless):
        came = f"{len(endless)} that are infinite, first in row {at[endless[0]]}"
        raise _refused(
            "df", name, "finite numbers, or NaN in missing cells", came, "Pass NaN in these cells."
        )
    if np.ptp(held) <= _SAME * np.abs(held).max():
        return f"constant: {held[0]:g} in every row"
    if resolution is None and not family:
        values, whole = np.unique(held), bool((held == np.round(held)).all())
        if whole and len(values) == len(held) >= _FEWEST_IDS and np.ptp(held) == len(held) - 1:
            return f"like an id: {len(held)} rows with consecutive numbers"
        if whole and len(values) == 2:
            return _levels(made, list(held), "")
        family, resolution, made["why"] = _suggested(held, whole)
    codes = held
    if resolution is not None:
        codes = _steps("df", name, held, resolution, at, made["dtype"])
        if np.ptp(codes) == 0:
            came, fix = f"{resolution:g}, in which all are {codes[0]:g}", "Give a finer one."
            raise _refused("resolution", name, "a step in which the numbers differ", came, fix)
        log = family == "log_normal"
        if not family:
            # Far from zero, both are alike.
            log = codes.min() > 0 and _fits(np.log(codes)) - np.log(codes).sum() > _fits(codes) + 1
            made = {**made, "why": f"recorded to {resolution:g}"} if made["why"] == "given" else made
        family = "rounded_log_normal" if log else "rounded_gaussian"
    least = 0 if family in _FROM_ZERO else np.nextafter(0, 1) if family in _POSITIVE else -np.inf
    if codes.min() < least:
        few = f"{int((codes < least).sum())} others, first {held[codes < least][0]:g} in row {at[codes < least][0]}"
        raise _refused("df", name, f"numbers that {family!r} can score", few, 'Use "gaussian" for it.')
    spread = getattr(family_of(family), "spread_name", None)
    feature = "log1p" if family in _FROM_ZERO else "log" if family in _POSITIVE else "identity"
    seen_by = np.log(codes) if feature == "log" else np.log1p(codes) if feature == "log1p" else codes
    own = codes
    if family_of(family).standardizes == "log x":
        own = np.log(codes.clip(min=0.5) if resolution else codes)
    return Column(
        **made,
        family=family,
        options={spread: "per_dimension", **options} if spread else options,
        resolution=resolution,
        feature=feature,
        **_unit("", own),
        **_unit("feature_", seen_by),
    )


def _suggested(held: np.ndarray, whole: bool) -> tuple[str, float | None, str]:
    """Return the family of a column of numbers, a resolution if it needs one, and the reason."""
    if whole and held.max() > _MOST_COUNTED:
        return "", 1.0, f"whole, up to {held.max():.2g}: the mass of an interval of 1"
    ratio = held.var() / max(held.mean(), 1e-300)
    # Counts vary at least as much as their mean, even given z. That is too much for years or ages.
    if whole and (held.min() < 0 or ratio < (20 if held.mean() > 10 else 1)):
        why = "down to negative numbers" if held.min() < 0 else f"variance {ratio:.2g} times the mean"
        return "", 1.0, f"whole, {why}: the mass of an interval of 1"
    lines = suggest(held[:, None])
    if whole:
        lines = lines[lines["family"].isin(_COUNTS)]
    return lines["family"].iloc[0], None, lines["why"].iloc[0]


def _fits(values: np.ndarray) -> float:
    """Return the largest Gaussian log-likelihood of values, up to a constant."""
    return -len(values) * math.log(max(values.std(), 1e-300))


def _unit(prefix: str, values: np.ndarray) -> dict[str, Any]:
    """Return mean and standard deviation; the latter is at least the rounding of the largest value."""
    scale = max(float(values.std()), _SAME * float(np.abs(values).max()))
    return {f"{prefix}loc": float(values.mean()), f"{prefix}scale": scale if scale > 0 else 1.0}
