"""Doubts about training rows: text that is dates or numbers, and words or numbers that stand for missing cells."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np

from pyrovae.tables import dates, text_numbers
from pyrovae.tables.columns import sort_of
from pyrovae.tables.text_numbers import MISSING, MOSTLY

if TYPE_CHECKING:
    import pandas as pd

# "none" may be a level, such as of pain.
_MARKERS = (MISSING - {"none"}) | {"?", "-", "--", ".", "n.a."}
_WITH_UNIT = r"[+-]?\d+(?:\.\d+)?(\s?[^\d\s.,;:/+-]\D{0,9})"  # such as 70.1 kg
# Letters directly after whole numbers may belong to a name, such as 12B. These are units.
_UNITS = {"%", "kg", "mg", "km", "cm", "mm", "ml", "€", "$", "£"}
_FEWEST_WITH_UNIT, _FEWEST = 5, 20  # different cells, and rows; fewer could be chance
# Numbers that often stand for missing cells, such as 99, -998, 77 or 99.9. They are doubted if the others span less than their
# distance. Other numbers are doubted if the others span less than a fifth of it.
_CODE, _FAR, _FARTHER = re.compile(r"9+[6-9]|([789])\1+|6{3,}|99+\.9+"), 1, 5
_FEWEST_OTHERS = 5  # different numbers, to call another one far
_MOST_CODES, _TIMES = 3, 3  # different numbers at an end, and cells that hold one
_MOST_USUAL = 6  # the same of those that often stand for missing cells, also in more than half of the cells


def of(name: Any, cells: pd.Series) -> str | None:
    """Return what a column of the training rows holds that may not be meant, and what to do; None if there is nothing."""
    held, sort = cells.dropna(), sort_of(cells)
    found = (
        _of_labels(name, held) if sort == "label" else _of_numbers(name, held) if sort == "number" else None
    )
    return None if found is None else f"df[{name!r}] has {found}"


def _of_labels(name: Any, held: pd.Series) -> str | None:
    import pandas as pd

    column, text = f"df[{name!r}]", held.astype(str)
    seen = text.str.strip()
    levels = set(seen.str.lower())
    missing = seen.str.lower().isin(_MARKERS - ({"-"} if "+" in levels else set()))
    markers, rest = sorted(set(text[missing])), seen[~missing]
    keep = f'Pass families={{{name!r}: "categorical"}} to keep labels without this warning.'
    if not hasattr(held, "cat") and len(rest):
        if (meanings := dates.of_text(name, text, rest)) is not None:
            return f"{meanings} {keep}"
        if (first := text_numbers.first_in_text(text[~missing])) is not None:
            return f"labels that look like numbers, first {first!r}.{_fix_of_numbers(column, first, seen, rest)} {keep}"
        if (unit := _unit(rest)) is not None:
            bare = f"{column}.str.strip()" if (text != seen).any() else column
            lost = _lost(seen.str.removesuffix(unit), seen, rest)
            fix = f'{lost} Pass pandas.to_numeric({bare}.str.removesuffix({unit!r}), errors="coerce") in its place.'
            first = rest[rest.str.endswith(unit)].iloc[0]
            return f"labels that are numbers with a unit, first {first!r}.{fix} {keep}"
    if markers and len(rest):
        fix, lost = f"{column}.mask({column}.isin({markers}))", ""
        if pd.to_numeric(rest, errors="coerce").notna().mean() >= MOSTLY:
            fix += f', or pandas.to_numeric({column}, errors="coerce") for numbers,'
            lost = _lost(rest, rest, rest, "The second code")
        return f"{markers[0]!r} among its labels.{lost} If such cells are missing, pass {fix} in its place. {keep}"
    once = int((text.value_counts() == 1).sum())
    if len(text) >= _FEWEST and len(text) / 2 < once < len(text) and not hasattr(held, "cat"):
        came = f"{once} labels that occur once, in {len(text)} rows"
        return f"{came}. Merge rare labels, or leave the column out by families={{{name!r}: None}}. {keep}"
    return None


def _fix_of_numbers(column: str, first: str, seen: pd.Series, rest: pd.Series) -> str:
    import pandas as pd

    if pd.isna(pd.to_numeric(first, errors="coerce")):
        return " " + text_numbers.ADVICE.format("point")
    lost = _lost(seen, seen, rest)
    return f'{lost} Write pandas.to_numeric({column}, errors="coerce") in its place to make them numbers.'


def _lost(bare: pd.Series, seen: pd.Series, rest: pd.Series, code: str = "The code") -> str:
    """Return a sentence on the cells ``seen`` that are lost if their ``bare`` text is read as numbers; "" if there are none."""
    import pandas as pd

    lost = pd.to_numeric(bare, errors="coerce").isna() & (seen != "")
    return text_numbers.lost_in_words(seen[lost], rest, code)


def _unit(rest: pd.Series) -> str | None:
    """Return the unit after nearly all numbers, with the space before it."""
    units = rest.str.extract(f"^{_WITH_UNIT}$", expand=False).value_counts()
    if not len(units) or units.iloc[0] < MOSTLY * len(rest) or rest.nunique() < _FEWEST_WITH_UNIT:
        return None
    unit = str(units.index[0])
    return (
        unit
        if unit[0].isspace() or unit.lower() in _UNITS or rest.str.contains(".", regex=False).any()
        else None
    )


def _of_numbers(name: Any, held: pd.Series) -> str | None:
    values, times = np.unique(held.to_numpy(dtype=np.float64), return_counts=True)
    low = high = 0
    for _ in range(2):  # a code at one end is beyond the range of the others at the other end
        high = _isolated(values[low:], times[low:])
        low = _isolated(-values[: len(values) - high][::-1], times[: len(values) - high][::-1])
    if not low + high:
        return None
    inner = slice(low, len(values) - high)
    codes, others, count = np.delete(values, inner), values[inner], np.delete(times, inner).sum()
    shown = [int(code) if code.is_integer() else code for code in codes.tolist()]
    column = f"df[{name!r}]"
    if held.isin(shown).sum() != count:  # decimals are equal to few floats
        column = f"pandas.to_numeric({column})"
    fix = f"{column}.mask({column}.isin({shown}))"
    return (
        f"{', '.join(f'{code:g}' for code in shown)} in {count} rows, far from all other numbers, {others[0]:g} to "
        f"{others[-1]:g}. If such cells are missing, pass {fix} in its place. Pass a family or a resolution of the column to "
        "keep them without this warning."
    )


def _isolated(values: np.ndarray, times: np.ndarray) -> int:
    """Return how many of the largest values are repeated and far from all others; 0 if none are.

    Those that are no usual codes are at most three, and in fewer than half of the cells.
    """
    for count in range(1, min(_MOST_USUAL, len(values) - 2) + 1):
        codes, others = values[-count:], values[:-count]
        usual = all(_CODE.fullmatch(_spelled(abs(code))) for code in codes) and not _are_prices(codes, others)
        factor = _FAR if usual else _FARTHER if len(others) >= _FEWEST_OTHERS else np.inf
        few = usual or (count <= _MOST_CODES and 2 * times[-count:].sum() < times.sum())
        repeated = times[-count:].min() >= _TIMES
        if repeated and few and (codes != 0).all() and codes[0] - others[-1] > factor * np.ptp(others):
            return count
    return 0


def _are_prices(codes: np.ndarray, others: np.ndarray) -> bool:
    """Return whether numbers such as 99.99 are beside others that mostly end in 9, too."""
    some = [_spelled(abs(other)) for other in others[:: max(1, len(others) // 50)]]
    return bool(codes[-1] % 1) and 2 * sum(spelled.endswith("9") for spelled in some) > len(some)


def _spelled(size: float) -> str:
    """Return a number in the digits that float32 keeps, or all of a whole one."""
    return f"{size:.0f}" if size.is_integer() else f"{size:.7g}"
