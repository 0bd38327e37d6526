"""Cells of text as numbers, booleans and labels, and columns of dates as numbers."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

import numpy as np
import pandas as pd
from pandas.api.types import is_integer_dtype

from pyrovae.cli.main import log
from pyrovae.refusals import bad_value
from pyrovae.tables import Column, Table, text_numbers

_TIME = r"\d{2}(?::?\d{2}(?::?\d{2}(?:[.,]\d+)?)?)?\s?(?:Z|[+-]\d{2}(?::?\d{2})?)?"
_ISO = re.compile(rf"\d{{4}}|\d{{4}}-\d{{2}}|(?:\d{{4}}-\d{{2}}-\d{{2}}|\d{{8}})(?:[T ]{_TIME})?")
#: What a column of dates may be replaced by: a number under the name "column.part".
PARTS = ("days", "year", "month", "day", "dayofweek", "hour")


def typed(
    frame: pd.DataFrame,
    table: Table | None,
    parts: Collection[tuple[str, str]] = (),
    kept: Collection[str] = (),
    dropped: Collection[str] = (),
    *,
    text: bool,
    decimal_comma: bool,
    start: int,
) -> pd.DataFrame:
    """Return a frame whose columns are what the model's table says; without a table, what their cells are.

    Cells of text that are empty, NA, N/A, NaN, null or None, in any case, are missing unless they are levels of the table.

    Args:
        frame: rows of a file.
        table: of the model, or None. Its columns "name.part" are taken from columns of dates, see ``with_dates``.
        parts, kept: as ``with_dates`` takes them, if there is no table.
        dropped: columns that are not modelled, if there is no table. There are no warnings of them.
        text: whether the cells are text.
        decimal_comma: whether 1,5 is a number.
        start: the number of the first row, for messages.

    Raises:
        ValueError: as ``with_dates``; numbers whose separators may stand for thousands.
    """
    index, frame = frame.index, frame.reset_index(drop=True)  # labels of rows may repeat
    known = {} if table is None else {column.name: column for column in table.columns}
    if text:
        frame = frame.apply(lambda cells: _present(cells, known.get(cells.name)))
    if table is not None:
        kept = {*known, *table.left_out}
        named = [(*str(name).rpartition(".")[::2], name in known) for name in kept if name not in frame]
        named = [each for each in named if each[1] in PARTS and each[0] in frame]
        parts = [(name, part) for name, part, modelled in named if modelled]
        frame = frame.drop(
            columns=list({name for name, _, modelled in named if not modelled}.difference(kept))
        )
    frame = with_dates(frame, parts, kept, start)
    if text:
        for name in [name for name in frame if frame[name].dtype == object]:
            warns = table is None and name not in dropped
            frame[name] = _typed(frame[name], known.get(name), decimal_comma, start, warns)
    for name, column in known.items():  # Parquet holds categories of numbers and booleans as these
        if column.sort == "label" and name in frame and frame[name].dtype.kind in "biuf":
            frame[name] = _categories(frame[name], column.levels or ())
    return frame.set_axis(index, axis=0)


def _present(cells: pd.Series, column: Column | None) -> pd.Series:
    """Return cells of text with None where one is missing: a word for it that is no level of the model's column."""
    levels = {str(level) for level in (column.levels if column is not None and column.levels else ())}
    missing = cells.str.strip().str.lower().isin(text_numbers.MISSING) & ~cells.isin(levels)
    return cells.mask(missing, None)


def _typed(text: pd.Series, column: Column | None, decimal_comma: bool, start: int, warns: bool) -> pd.Series:
    """Return a column of text as numbers, booleans or labels.

    If it ``warns``, the column is modelled and has no family yet, so warn of labels that look like numbers.
    """
    if column is not None and column.sort == "label":
        return _labels(text, column.levels or ())
    seen = text.dropna().str.strip()
    if (column is None or column.sort == "bool") and len(seen) and set(seen.str.lower()) <= {"true", "false"}:
        return seen.str.lower().map({"true": True, "false": False}).astype("boolean").reindex(text.index)
    grouped = _thousands(seen) if decimal_comma and (warns or column is not None) else None
    if grouped is not None:
        row, cell = grouped
        came = f"{cell!r} in row {start + row}, whose dot may separate thousands"
        decimal = "" if "," in cell else f", or {cell.replace('.', ',', 1)} if it is a decimal"
        fix = f"Write {cell.replace('.', '')}{decimal}."
        raise bad_value(
            f"column {str(text.name)!r}", "numbers with decimal commas between semicolons", came, fix
        )
    numbers = pd.to_numeric(seen.str.replace(",", ".") if decimal_comma else seen, errors="coerce")
    if (
        column is not None
        and is_integer_dtype(column.dtype)
        and (numbers % 1 == 0).all()
        and (abs(numbers) < 2.0**63).all()
    ):
        return numbers.astype("Int64").reindex(text.index)
    if column is not None:  # the table refuses what is left as text
        return numbers.astype(object).where(numbers.notna(), seen).reindex(text.index).infer_objects()
    odd = numbers.index[numbers.isna()]
    leading_zeros = seen.str.match(r"[+-]?0\d").any()  # 01 is a label
    first = text_numbers.first_marked(seen, numbers) if warns else None
    if first is not None:
        fix = text_numbers.ADVICE.format("comma" if decimal_comma else "point")
        log.warning("%s has labels: %r in row %d. %s", text.name, seen[first], start + first, fix)
    elif warns and len(odd) and not leading_zeros and 1 - len(odd) / len(seen) >= text_numbers.MOSTLY:
        found = (
            f"{len(odd)} of {len(seen)} cells are no numbers, first {seen[odd[0]]!r} in row {start + odd[0]}"
        )
        log.warning("%s has labels: %s. Empty such cells to make them missing.", text.name, found)
    if len(odd) or leading_zeros:
        return text
    if numbers.dtype.kind != "i" and seen.str.fullmatch(text_numbers.MANY_DIGITS).any():
        return text  # numbers of such accounts or barcodes are labels
    whole = numbers.dtype.kind == "i" and len(seen)
    return numbers.astype("Int64" if whole else "float64").reindex(text.index)


def _labels(text: pd.Series, levels: tuple[Any, ...]) -> pd.Series:
    """Return cells as the levels that they spell. Levels that are no strings need a categorical to be labels."""
    if all(isinstance(level, str) for level in levels):
        return text
    spelled = {str(level): level for level in levels}
    return _categories(
        pd.Series([spelled.get(cell, cell) for cell in text], index=text.index, dtype=object), levels
    )


def _categories(cells: pd.Series, levels: tuple[Any, ...]) -> pd.Series:
    """Return cells as a categorical of the levels, then of what else there is."""
    others = [cell for cell in cells.dropna().unique() if cell not in levels]
    return cells.astype(object).astype(pd.CategoricalDtype(pd.Index([*levels, *others], dtype=object)))


def _thousands(seen: pd.Series) -> tuple[int, str] | None:
    """Return the row and the text of the first number with dots between thousands, if most cells are such numbers.

    A cell with a dot elsewhere, such as 0.25, shows that the dot stands before decimals.
    """
    found = seen.str.fullmatch(r"[+-]?[1-9]\d{0,2}(?:\.\d{3})+(?:,\d+)?")
    if 2 * found.sum() <= len(seen) or seen[~found].str.contains(".", regex=False).any():
        return None
    return int(found.idxmax()), str(seen[found.idxmax()])


def with_dates(
    frame: pd.DataFrame, parts: Collection[tuple[str, str]], kept: Collection[Any], start: int = 0
) -> pd.DataFrame:
    """Return a frame with a number "name.part" for each part of a column of dates, without the dates that are not ``kept``.

    ``days`` counts days from 1970-01-01, with decimals if there are times. Times with a zone are converted to UTC. A whole
    year is its first day. ``start`` is the number of the first row, for messages.

    Raises:
        ValueError: no such column; a column "name.part" in the file; a cell that is no date in ISO 8601.
    """
    made = dict[str, Any]()
    for name, part in parts:
        if name not in frame:
            raise bad_value("--date", f"a column, {list(frame.columns)}", repr(name), "Name one of these.")
        dates = _parsed(frame[name])
        odd = np.flatnonzero(dates.isna() & frame[name].notna())
        if len(odd):
            came = f"{len(odd)} others, first {_spelled(frame[name].iloc[odd[0]])!r} in row {start + odd[0]}"
            fix = "Write them so, or drop the column."
            raise bad_value(f"column {name!r}", "dates in ISO 8601, such as 2026-11-29, or years", came, fix)
        if f"{name}.{part}" in frame:
            expected = f"no column {name}.{part} in the file, which this number would replace"
            raise bad_value(
                f"--date {name}", expected, "one", "Rename the column of the file, or take another part."
            )
        days = (dates - pd.Timestamp("1970-01-01")) / pd.Timedelta("1D")
        made[f"{name}.{part}"] = (days if part == "days" else getattr(dates.dt, part)).astype("float64")
    replaced = {name for name, _ in parts}.difference(kept)
    return frame.drop(columns=list(replaced)).assign(**made)


def _parsed(cells: pd.Series) -> pd.Series:
    """Return cells as dates and times in UTC; NaT if one is missing or not in ISO 8601."""
    spelled = [None if pd.isna(cell) else _spelled(cell) for cell in cells]
    iso = [cell if cell is not None and _ISO.fullmatch(cell) else None for cell in spelled]
    found = pd.Series(iso, cells.index, dtype=object)
    return pd.to_datetime(found, format="ISO8601", errors="coerce", utc=True).dt.tz_localize(None)


def _spelled(cell: Any) -> str:
    """Return a date or a year as text."""
    return str(int(cell)) if isinstance(cell, float) and cell.is_integer() else str(cell).strip()


def dates(frame: pd.DataFrame, chosen: Collection[Any] = ()) -> list[Any]:
    """Return the names of columns that hold dates, as such or as text in ISO 8601; warn of text like other dates.

    Columns that are ``chosen``, to leave out or for a family, are not considered.
    """
    found = []
    for name in frame.columns.difference(list(chosen), sort=False):
        seen = frame[name].dropna()
        kind = pd.api.types.infer_dtype(seen)
        text = seen.str.strip() if kind == "string" else seen[:0].astype(str)
        dated = len(text) and text.str.fullmatch(text_numbers.DATE).all() and _parsed(text).notna().all()
        if dated or kind.startswith(("date", "period")):
            found.append(name)
        elif len(text) and text.str.fullmatch(text_numbers.LIKE_A_DATE).all():
            fix = "Write dates in ISO 8601, such as 2026-11-29, to make them numbers."
            log.warning("%s has labels, first %r. %s", name, seen.iloc[0], fix)
    return found
