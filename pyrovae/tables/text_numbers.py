"""Columns of text that look like numbers: with signs of percent or currency, separators of thousands, or spaces."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

#: Such as 1,234.5 or 1,5 or 12% or $3.
_MARKED = r"[+-]?[$€£¥]?\s?(?:\d{1,3}(?:[.,'’ \u00a0\u202f]\d{3})+|\d+)(?:[.,]\d+)?\s?[%‰$€£¥]?"
#: Words in cells of text that are missing, in small letters.
MISSING = {"", "na", "n/a", "#n/a", "nan", "null", "none", "<na>"}
DATE, LIKE_A_DATE = r"\d{4}-\d{2}(?:-\d{2}.*)?", r"\d{1,4}([-/.])\d{1,2}\1\d{1,4}(?:[ T].*)?"
MANY_DIGITS = r"[+-]?\d{19,}"  # whole numbers beyond those of 64 bits
_NAMED = 3
MOSTLY = 0.9  # the share of numbers from which another cell is likely to mean a missing one
#: What to write, with the name of the decimal mark.
ADVICE = (
    "Write numbers without separators of thousands, signs of percent or currency, and with decimals after a {}, to make "
    "them numbers."
)


def first_marked(seen: pd.Series, numbers: pd.Series) -> Any:
    """Return the label of the first cell that is a number with such marks, if most cells are numbers; else None.

    ``seen`` are cells without spaces around them, and ``numbers`` the same as numbers, NaN where they are none.
    """
    marked = numbers.isna() & seen.str.fullmatch(_MARKED)
    return marked.idxmax() if marked.any() and (numbers.notna() | marked).mean() >= MOSTLY else None


def first_in_text(values: pd.Series) -> str | None:
    """Return the first cell of text to make a number of, if most cells look like numbers; None for other columns.

    Whole numbers alone, such as "7", may be labels, and so are those with leading zeros or very many digits.
    """
    import pandas as pd

    text = values.dropna().reset_index(drop=True).astype(str)
    seen = text.str.strip()
    if seen.str.match(r"[+-]?0\d").any() or seen.str.fullmatch(MANY_DIGITS).any():
        return None
    numbers = pd.to_numeric(seen, errors="coerce")
    first = first_marked(seen, numbers)
    if first is None:
        written = numbers.notna() & ~text.str.fullmatch(r"\d+")
        first = written.idxmax() if written.any() and numbers.notna().mean() >= MOSTLY else None
    return None if first is None else str(text[first])


def lost_in_words(lost: pd.Series, rest: pd.Series, code: str = "The code") -> str:
    """Return a sentence on the cells that advised ``code`` makes missing; "" if there are none.

    Cells of ``rest``, which do not mean a missing one, come first.
    """
    if not len(lost):
        return ""
    held = set(rest)
    named = sorted(set(lost), key=lambda cell: (cell not in held, cell))
    cells = ", ".join(map(repr, named[:_NAMED])) + ", …" * (len(named) > _NAMED)
    return f" {code} makes these cells missing, {len(lost)} in all: {cells}."
