"""The table of a frame: its modelled columns, the columns left out, and frames as rows of codes."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from pyrovae import frames
from pyrovae.refusals import bad_type, bad_value, shown
from pyrovae.rows import hidden, joined
from pyrovae.tables import doubts
from pyrovae.tables.columns import Column
from pyrovae.tables.training_rows import column_of, determined, in_masses, repeated

if TYPE_CHECKING:
    import pandas as pd

_MOST_SHOWN = 5  # levels in a summary
_OF_SERIES = "Pass x.to_frame().T of a row, or x.to_frame() of a column."
_BY_FAMILIES = "left out by families"
_DETERMINED = "an exact affine function of"


class Table:
    """The columns of a frame: how each becomes a number that its family scores, and back.

    Args:
        columns: the modelled columns.
        left_out: the reasons why other columns of the training rows are left out, by name. Frames may have these
            columns or not.

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
        odd = [name for name in frame.columns if not _can_be_saved(name)]
        if odd:
            fix = "Rename the columns: df.columns = [str(name) for name in df.columns]."
            expected = "labels that are strings, numbers, booleans or tuples of these"
            raise bad_value("df.columns", expected, f"{odd[0]!r} ({type(odd[0]).__name__})", fix)
        families = _by_name("families", families, frame)
        resolution = _by_name("resolution", resolution, frame)
        columns, left_out = list[Column](), {}
        for name in frame.columns:
            given = families.get(name, "")
            if given is None:
                left_out[name] = _BY_FAMILIES
                continue
            found = column_of(name, frame[name], given, resolution.get(name))
            if isinstance(found, str):
                left_out[name] = found
            else:
                columns.append(found)
        if not columns:
            came = "; ".join(f"{name!r}: {why}" for name, why in left_out.items())
            raise bad_value("df", "a column that varies", came, "Pass other columns.")
        table = cls(tuple(columns), left_out)
        for number, others in determined(columns, table.encode(frame)).items():
            note = f"{_DETERMINED} {', '.join(repr(columns[other].name) for other in others)}"
            columns[number] = replace(columns[number], why=f"{columns[number].why}; {note}")
        return cls(tuple(columns), left_out)

    @property
    def names(self) -> list[Any]:
        """The names of the modelled columns."""
        return [column.name for column in self.columns]

    def warn_left_out(self) -> None:
        """Warn of columns that are left out although ``families`` does not name them."""
        found = [f"{name!r} ({why})" for name, why in self.left_out.items() if why != _BY_FAMILIES]
        if found:
            warnings.warn(
                f"These columns are left out: {', '.join(found)}. Pass families={{name: None}} to leave a column out "
                "without this warning, or name a family.",
                stacklevel=4,
            )

    def warn_unbounded(self, x: Any) -> None:
        """Warn of columns whose density can grow without bound: affine functions of others, and those with a repeated number."""
        frame = _frame(x, "df")
        for column, codes in zip(self.columns, self.encode(frame, "df").T, strict=True):
            name, many = column.name, repeated(column, codes)
            cells = f"df[{name!r}]"
            if _DETERMINED in column.why:
                found = f"is {_DETERMINED} {column.why.rpartition(_DETERMINED)[2].strip()}"
            elif many is not None:
                found = f"has {many[0]:g} in {many[1]:.0%} of its cells, and its density's spread is learned"
            else:
                continue
            fix = f"Leave it out by families={{{name!r}: None}}, or {in_masses(column, codes)}"
            if many is not None:
                same, new = f"{cells} == {many[0]!r}", f"df[{f'{name} is {many[0]:g}'!r}]"
                known = f"({same}).where({cells}.notna())" if np.isnan(codes).any() else same
                fix += f"; or make two columns: {new} = {known}; {cells} = {cells}.mask({same})"
            warnings.warn(
                f"{cells} {found}. Its density can grow without bound, and log P(x) with the epochs. {fix}.",
                stacklevel=4,
            )

    def warn_of_doubts(self, x: Any) -> None:
        """Warn of what columns of the training rows hold that may not be meant, if neither family nor resolution was given."""
        frame = _frame(x, "df")
        chosen = {column.name for column in self.columns if column.why.startswith(("given", "recorded to"))}
        chosen |= {name for name, why in self.left_out.items() if why == _BY_FAMILIES}
        for name in frame.columns:
            found = None if name in chosen else doubts.of(name, frame[name])
            if found is not None:
                warnings.warn(found, stacklevel=4)

    def summary(self) -> pd.DataFrame:
        """Return a frame with a line for each column: its family, its levels and the reason; left-out columns last."""
        import pandas as pd

        lines: list[Any] = [(c.name, c.family, _few(c.levels), c.resolution, c.why) for c in self.columns]
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
        """Return rows with frames replaced by frames of codes, in ``x``, ``x["x"]``, or chunks of either; arrays of codes unchanged.

        Raises:
            TypeError, ValueError: as ``encode``; an array of another width; a mask of another shape than its frame.
        """
        x = self.arranged(x, argument)
        if isinstance(x, Mapping):
            if "x" not in x:
                return x
            rows = x["x"]
            if "observed" in x and _is_frame(rows):
                rows = hidden(rows, x["observed"])
            return {**x, "x": self.read(rows, argument)}
        if _is_frame(x):
            return self._coded(x, argument)
        shape = tuple(getattr(x, "shape", ()))
        if len(shape) != 2 or shape[1] != len(self.columns):
            raise bad_value(
                argument,
                f"a frame with the columns {self.names}, or codes of shape (rows, {len(self.columns)})",
                f"shape {shape}" if shape else shown(x),
                _OF_SERIES if hasattr(x, "to_frame") else "Pass the frame, or vae.table.encode(frame).",
            )
        return x

    def arranged(self, x: Any, argument: str = "x") -> Any:
        """Return rows in frames with the modelled columns alone, in the table's order, and a mask beside them likewise.

        Chunks are joined. Codes in arrays are returned as they are; a mask beside them that is a frame becomes an array.
        """
        x = joined(x, argument)
        if not isinstance(x, Mapping):
            return self._selected(x, argument) if _is_frame(x) else x
        if "x" not in x:
            return x
        if not _is_frame(x["x"]):
            mask = x.get("observed")
            return {**x, "observed": self._mask_of_codes(mask)} if _is_frame(mask) else x
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
        return self._by_place(frame)

    def _by_place(self, frame: pd.DataFrame) -> pd.DataFrame:
        """Return the modelled columns. Names that are booleans would select rows."""
        return frame.iloc[:, [frame.columns.get_loc(name) for name in self.names]]

    def _mask(self, mask: Any, frame: pd.DataFrame) -> Any:
        """Return the modelled columns of a mask: by their names in a frame, by their places in ``frame`` in an array."""
        if _is_frame(mask):
            missing = [name for name in self.names if name not in mask.columns]
            if missing:
                fix = "Name them as in x."
                raise bad_value("observed", f"the columns {self.names}", f"none named {missing[0]!r}", fix)
            return self._by_place(mask)
        shape = tuple(getattr(mask, "shape", ()))
        if shape != frame.shape:
            came = f"shape {shape}" if shape else shown(mask)
            fix = "Pass a boolean for every cell of the frame."
            raise bad_value("observed", f"the shape of the frame, {frame.shape}", came, fix)
        return mask[:, [frame.columns.get_loc(name) for name in self.names]]

    def _mask_of_codes(self, mask: Any) -> np.ndarray:
        """Return a mask beside codes, a frame, as an array in the table's order: by name, or by place if numbered 0, 1, …."""
        numbered = frames.names(mask) is None and not frames.are_numbers(tuple(map(str, self.names)))
        return (mask if numbered else self._mask(mask, mask)).to_numpy()

    def encode(self, x: Any, argument: str = "x") -> np.ndarray:
        """Return the codes of a frame, shape (rows, columns), float64, in the table's order; NaN in missing cells.

        Numbers are their own codes, or the number of steps where a resolution was given. Levels are numbered from 0. Every
        function that takes the frame takes these codes, too.

        Raises:
            TypeError: not a frame.
            ValueError: columns are missing or extra, have other types, or hold levels that the training rows do
                not.
        """
        return np.array(self._coded(self._selected(x, argument), argument))

    def _coded(self, frame: pd.DataFrame, argument: str) -> pd.DataFrame:
        """Return the codes of an arranged frame, with the names of the columns and its index."""
        import pandas as pd

        codes = {i: c.encode(frame[c.name], argument) for i, c in enumerate(self.columns)}
        return pd.DataFrame(codes, index=frame.index).set_axis(self._labels(), axis=1)

    def values(self, codes: Tensor, observed: Tensor | None) -> Tensor:
        """Return numbers, float64, that are equal for equal cells of frames, whatever the codes of a table; 0 in missing cells."""
        found = np.stack(
            [c.values(each) for c, each in zip(self.columns, codes.cpu().double().numpy().T, strict=True)],
            axis=1,
        )
        values = torch.from_numpy(found).to(codes.device)
        return values if observed is None else values.where(observed, 0.0)

    def decode(self, codes: Any, index: Any = None) -> pd.DataFrame:
        """Return codes, shape (rows, columns), as a frame in the types of the training rows; NaN becomes a missing cell.

        Codes of levels and of whole-number families are rounded. So are numbers in integer columns. An integer or boolean
        column with a missing cell gets float64 or object, as in pandas.

        Args:
            codes: a tensor, array or frame.
            index: of the frame; None numbers the rows.

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
        found = {i: c.decode(array[:, i], index) for i, c in enumerate(self.columns)}
        return pd.DataFrame(found, index=index).set_axis(self._labels(), axis=1)

    def _labels(self) -> Any:
        """Return the names as labels of columns, of several levels if the frame had such."""
        import pandas as pd

        several = all(isinstance(name, tuple) for name in self.names)
        return pd.MultiIndex.from_tuples(self.names) if several else self.names

    def filled(
        self, x: pd.DataFrame, missing: np.ndarray, codes: np.ndarray, rounded: bool = True
    ) -> pd.DataFrame:
        """Return a copy of a frame whose missing cells hold the decoded ``codes``, (cells,), by row and then by column.

        ``missing`` has shape (rows, modelled columns), in the table's order. A column keeps its type if this can hold every
        value of the training rows; otherwise it gets their type. Whole numbers become floats if the training rows had
        fractions, and a wider type if ``codes`` need it. Numbers of Python objects and decimals become floats.
        """
        found, into = _frame(x, "x").copy(), np.full(missing.shape, np.nan)
        into[missing] = codes
        for number in map(int, np.flatnonzero(missing.any(axis=0))):
            column, holes = self.columns[number], missing[:, number]
            held, new = found[column.name], column.decode(into[holes, number], rounded=rounded)
            whole = held.astype(object)
            if str(held.dtype).startswith("decimal"):  # Arrow's own cast is not to the nearest number
                held = whole.map(float, na_action="ignore").astype("double[pyarrow]")
                whole = held.astype(object)
            whole[holes] = new.astype(object).to_numpy()
            kind = getattr(held.dtype, "kind", "O")
            numbers = kind in "iufO" and column.sort == "number" and column.levels is None
            into_type: Any = held.dtype
            if held.dtype == np.dtype(object) and (numbers or frames.are_decimals(held)):
                into_type = "float64"
            elif kind in "iu" and numbers and (column.lacked_by(held) or not rounded):
                into_type = frames.fractions(held.dtype)
            elif column.lacked_by(held):
                into_type = new.dtype
            elif numbers:
                into_type = frames.wide_enough(held, new.to_numpy(np.float64)).dtype
            found[column.name] = whole.astype(into_type)
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
            group.setdefault("bounds", []).append(list(column.bounds))
            if column.levels is None:
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


def _few(levels: tuple[Any, ...] | None) -> str | None:
    """Return levels in words, the first three of many."""
    if levels is None:
        return None
    words = [f"{level:g}" if isinstance(level, float) else str(level) for level in levels]
    return ", ".join(words if len(words) <= _MOST_SHOWN else [*words[:3], f"… {len(words)} levels"])


def _is_frame(x: Any) -> bool:
    frame = hasattr(x, "to_pandas") or (hasattr(x, "to_numpy") and hasattr(x, "columns"))
    return frame and not isinstance(x, type)


def _can_be_saved(label: Any) -> bool:
    """Return whether a column's label can be written into a file and is found again by it, which NaN is not."""
    if isinstance(label, tuple):
        return all(map(_can_be_saved, label))
    return isinstance(label, str | int | float | np.number | np.bool_) and label == label


def _frame(x: Any, argument: str) -> pd.DataFrame:
    """Return a frame of pandas, from one of another library if it converts itself; raise for anything else."""
    x = frames.as_pandas(x)
    if not (_is_frame(x) and hasattr(x, "iloc")):
        fix = _OF_SERIES if hasattr(x, "to_frame") else "Pass pandas.DataFrame(x)."
        raise bad_type(argument, "a pandas DataFrame", f"a {type(x).__name__}", fix)
    if not len(x) or not len(x.columns):
        raise bad_value(argument, "at least one row and one column", f"shape {x.shape}", "Pass some rows.")
    twice = x.columns[x.columns.duplicated()]
    if len(twice):
        raise bad_value(
            argument, "one column of each name", f"{twice[0]!r} more than once", "Rename the columns."
        )
    return frames.dense(x)


def _by_name(argument: str, value: Mapping[Any, Any] | None, frame: pd.DataFrame) -> dict[Any, Any]:
    """Return a dict by the names of columns; raise for other names or other types."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise bad_type(argument, "a dict by the names of columns", shown(value), 'Pass {"column": …}.')
    for name in value:
        if name not in list(frame.columns):  # the first level of several is no name
            raise bad_value(
                argument, f"names of columns, {list(frame.columns)}", repr(name), "Use one of these names."
            )
    return dict(value)
