"""The numbers that dates, times, periods and durations can become, as code. It is tried on the cells before it is shown."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from pyrovae.tables.text_numbers import DATE, LIKE_A_DATE, MOSTLY, lost_in_words

if TYPE_CHECKING:
    import pandas as pd

_LIKE = f"{DATE}|{LIKE_A_DATE}"
_PARTS = re.compile(r"(\d+)([-/.])\d+(?:\2(\d+)(.*))?")
_PADDED = r"\d\d[-/.]\d\d[-/.]\d\d\b.*"  # versions such as 1.2.10 are not
_TIMES = ("%H:%M", "%H:%M:%S", "%H:%M:%S.%f", "%I:%M %p", "%I:%M:%S %p", "%H:%M:%S UTC")
_WORDS = {"%d": "day", "%m": "month", "%y": "year"}
_SHOWN = 20  # cells that suggest formats
_ZONED = r"([T ].*)(?:Z|[+-]\d\d(?::?\d\d)?)$"
_DAY = 'pandas.Timedelta("1D")'


def numbers_of_dates(name: Any, values: pd.Series) -> str | None:
    """Return, in words, the numbers that dates, times, periods or durations can become; None if the code fails on them.

    They don't depend on other rows. Days count from 1970 in UTC. A part is that of the local time.
    """
    import pandas as pd
    from pandas.api.types import infer_dtype

    column, kind = f"df[{name!r}]", infer_dtype(values, skipna=True)
    if kind.startswith("timedelta"):
        return f"days as a number, {column} / {_DAY}"
    if kind == "time":
        seconds = "lambda t: 3600 * t.hour + 60 * t.minute + t.second"
        return f'seconds as a number, {column}.map({seconds}, na_action="ignore")'
    if kind == "period":
        dates = f"pandas.PeriodIndex({column}).to_timestamp()"
        days = f'({dates} - pandas.Timestamp("1970-01-01")) / {_DAY}'
        return f"days as a number, {days}; a part, such as {dates}.month"
    dates = f"pandas.to_datetime({column}, utc=True)"
    try:
        pd.to_datetime(values, utc=True)
        part = dates
        if hasattr(values, "dt"):
            part = column
        elif any(getattr(value, "tzinfo", None) is not None for value in values.dropna()):
            pd.to_datetime(values.map(lambda t: t.replace(tzinfo=None), na_action="ignore"))
            part = f'pandas.to_datetime({column}.map(lambda t: t.replace(tzinfo=None), na_action="ignore"))'
    except (ValueError, TypeError):  # out of bounds, or dates beside times with a zone
        return None
    return _in_words(dates, part)


def _in_words(dates: str, part: str) -> str:
    days = f'({dates} - pandas.Timestamp("1970-01-01", tz="UTC")) / {_DAY}'
    return f"days as a number, {days}; a part, such as {part}.dt.month"


def of_text(name: Any, text: pd.Series, rest: pd.Series) -> str | None:
    """Return, in words, the numbers that text can become; None if no format reads nearly all of ``rest``.

    ``rest`` are the cells without those that mean a missing one, and without spaces around them. The format that reads most
    cells tells whether the day or the month is first. If several do, all are named.
    """
    if rest.str.fullmatch(_LIKE).mean() < MOSTLY:
        return None
    read = {each: int(_read(rest, each).notna().sum()) for each in _formats(rest)}
    most = max(read.values(), default=0)
    if most < MOSTLY * len(rest):
        return None
    best, *others = [each for each, count in read.items() if count == most]
    seen = text.str.strip()
    column = f"df[{name!r}]" + (".str.strip()" if (seen != text).any() else "")
    lost = seen[_read(seen, best).isna() & (seen != "")]
    options = f'format="{best}"' + (', errors="coerce"' if len(lost) else "")
    dates = part = f"pandas.to_datetime({column}, {options}, utc=True)"
    zoned, notes = int(rest.str.extract(_ZONED, expand=False).notna().sum()), lost_in_words(lost, rest)
    if zoned:
        part = f'pandas.to_datetime({column}.str.replace(r"{_ZONED}", r"\\1", regex=True), {options})'
        notes += " Cells without a zone count as UTC." * (zoned < len(rest))
    if "%y" in best:
        notes += " The code reads years as 1969 to 2068."
    if others:
        other = " or ".join(f'format="{each}" if the {_WORDS[each[:2]]} is' for each in others)
        known = " or ".join(f"the {_WORDS[each[:2]]}" for each in (best, *others))
        notes += f" No cell tells whether {known} is first. The code reads the {_WORDS[best[:2]]} first; write {other}."
    first = rest[_read(rest, best).notna()].iloc[0]
    return f"labels that look like dates, first {first!r}.{notes} Choose a meaning: {_in_words(dates, part)}."


def _read(cells: pd.Series, form: str) -> pd.Series:
    import pandas as pd

    return pd.to_datetime(cells, format=form, errors="coerce", utc=True)


def _formats(rest: pd.Series) -> list[str]:
    """Return the formats that may read cells, in the order of preference."""
    padded = rest.str.fullmatch(_PADDED).mean() >= MOSTLY
    found = dict[str, None]()
    for cell in rest[:_SHOWN]:
        parts = _PARTS.fullmatch(cell)
        if parts is None:
            continue
        first, mark, last, time = parts.groups(default="")
        times = _TIMES if time else ("",)
        if len(first) == 4 and not time.endswith("UTC"):
            found |= {"ISO8601": None}
            continue
        if len(first) == 4:
            orders: tuple[str, ...] = ("%Y-%m-%d",)
        else:
            short = "%d-%m-%y", "%m-%d-%y", *(("%y-%m-%d",) if mark == "-" else ())
            orders = short if len(last) == 2 else ("%d-%m-%Y", "%m-%d-%Y")
            if len(last) not in (2, 4) or (len(last) == 2 and mark != "/" and not padded):
                continue
        found |= {(each.replace("-", mark) + time[:1] + of_day): None for each in orders for of_day in times}
    return list(found)
