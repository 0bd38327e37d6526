"""Cells of text as numbers, booleans and labels, and columns of dates as numbers."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
import pandas as pd

from pyrovae.refusals import bad_value
from pyrovae.tables import Column, Table

_MISSING = {"", "na", "n/a", "#n/a", "nan", "null", "none", "<na>"}
_DATE = r"\d{1,4}([-/.])\d{1,2}\1\d{1,4}(?:[ T].*)?"
#: What a column of dates may be replaced by: a number under the name "column.part".
PARTS = ("days", "year", "month", "day", "dayofweek", "hour")


def of_text(rows: list[list[str]], names: list[str]) -> pd.DataFrame:
    """Return rows of text as a frame, with None in missing cells: empty, NA, NaN, null or None, in any case."""
    frame = pd.DataFrame(rows, columns=names, dtype=object)
    return frame.mask(frame.apply(lambda column: column.str.strip().str.lower().isin(_MISSING)), None)


def typed(frame: pd.DataFrame, table: Table | None, text: bool, decimal_comma: bool) -> pd.DataFrame:
    """Return a frame whose columns are what the model's table says; without a table, what their cells are.

    Args:
        frame: rows of a file.
        table: of the model, or None. Its columns "name.part" are taken from columns of dates, see ``with_dates``.
        text: whether the cells are text.
        decimal_comma: whether 1,5 is a number.
    """
    known = {} if table is None else {column.name: column for column in table.columns}
    if table is not None:
        named = [name.rpartition(".") for name in known if isinstance(name, str) and name not in frame]
        parts = [(name, part) for name, _, part in named if part in PARTS and name in frame]
        frame = with_dates(frame, parts, {*known, *table.left_out})
    if not text:
        return frame
    cells = [name for name in frame if frame[name].dtype == object]
    return frame.assign(**{name: _typed(frame[name], known.get(name), decimal_comma) for name in cells})


def _typed(text: pd.Series, column: Column | None, decimal_comma: bool) -> pd.Series:
    """Return a column of text as numbers, booleans or labels."""
    seen = text.dropna()
    if column is not None and column.sort == "label":
        levels = {str(level): level for level in column.levels or ()}
        return text.map(lambda cell: levels.get(cell, cell), na_action="ignore")
    if (column is None or column.sort == "bool") and len(seen) and set(seen.str.lower()) <= {"true", "false"}:
        return text.str.lower().map({"true": True, "false": False}).astype("boolean")
    numbers = pd.to_numeric(seen.str.replace(",", ".") if decimal_comma else seen, errors="coerce")
    if column is not None:  # the table refuses what is left as text
        return numbers.astype(object).where(numbers.notna(), seen).reindex(text.index).infer_objects()
    if numbers.isna().any() or seen.str.match(r"[+-]?0\d").any():  # 01 is a label
        return text
    whole = numbers.dtype.kind == "i" and len(seen)
    return numbers.astype("Int64" if whole else "float64").reindex(text.index)


def with_dates(
    frame: pd.DataFrame, parts: Collection[tuple[str, str]], kept: Collection[Any]
) -> pd.DataFrame:
    """Return a frame with a number "name.part" for each part of a column of dates, without the dates that are not ``kept``.

    ``days`` counts days from 1970-01-01, with decimals if there are times. Times with a zone are converted to UTC.

    Raises:
        ValueError: a cell that is no date in ISO 8601.
    """
    made = dict[str, Any]()
    for name, part in parts:
        dates = pd.to_datetime(frame[name], format="ISO8601", errors="coerce", utc=True).dt.tz_localize(None)
        odd = np.flatnonzero(dates.isna() & frame[name].notna())
        if len(odd):
            came = f"{len(odd)} others, first {frame[name].iloc[odd[0]]!r} in row {odd[0]}"
            fix = "Write them so, or drop the column."
            raise bad_value(name, "dates in ISO 8601, such as 2026-11-29", came, fix)
        days = (dates - pd.Timestamp("1970-01-01")) / pd.Timedelta("1D")
        made[f"{name}.{part}"] = (days if part == "days" else getattr(dates.dt, part)).astype("float64")
    replaced = {name for name, _ in parts}.difference(kept)
    return frame.drop(columns=list(replaced)).assign(**made)


def dates(frame: pd.DataFrame) -> list[Any]:
    """Return the names of columns that hold dates, as such or as text."""
    found = []
    for name in frame:
        seen = frame[name].dropna()
        kind = pd.api.types.infer_dtype(seen)
        text = kind == "string" and seen.str.fullmatch(_DATE).all()
        if text or kind.startswith(("date", "time", "period")):
            found.append(name)
    return found
