"""HTML from the templates of this package. Every value is escaped."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import jinja2
    import pandas as pd


@dataclass(frozen=True)
class Grid:
    """A table as text.

    Attributes:
        head: the titles of the columns.
        lines: the cells of each line.
        caption: a sentence above the table.
    """

    head: tuple[str, ...]
    lines: tuple[tuple[str, ...], ...]
    caption: str = ""

    @classmethod
    def of(cls, frame: pd.DataFrame, caption: str = "", most: int = 20, index: bool = True) -> Grid:
        """Return the first lines of a frame with every column, and in the caption how many lines are left out."""
        shown = frame.head(most)
        rest = len(frame) - len(shown)
        caption += f" {rest} more lines are not shown." * (rest > 0)
        labels = range(shown.index.nlevels if index else 0)
        names = ["index" if name is None else name for name in shown.index.names[: len(labels)]]
        head = tuple(str(name) for name in [*names, *shown.columns])
        plain = shown.astype(object).where(shown.notna(), None)  # pandas.NA has no truth value
        parts = [
            *(shown.index.get_level_values(level) for level in labels),
            *(plain.iloc[:, i] for i in range(shown.shape[1])),
        ]
        return cls(head, tuple(tuple(map(cell, line)) for line in zip(*parts, strict=True)), caption.strip())


def cell(value: Any) -> str:
    """Return a value as the text of a cell: numbers with four digits, missing values as a dash.

    Example:
        >>> cell(-1234.5678), cell(0.12345), cell(float("nan")), cell(("a", "b")), cell(True)
        ('−1234.57', '0.1235', '–', 'a, b', 'yes')
    """
    if value is None or value != value:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        if not math.isfinite(value):
            return "∞" if value > 0 else "−∞"
        digits = 2 if abs(value) >= 100 else 4
        text = f"{value:.{digits}f}".rstrip("0").rstrip(".") if 1e-3 <= abs(value) < 1e7 else f"{value:.3g}"
        return text.replace("-", "−")
    if isinstance(value, tuple | list):
        return ", ".join(map(str, value[:8])) + ", …" * (len(value) > 8)
    return str(value)


@functools.cache
def _environment() -> jinja2.Environment:
    import jinja2

    loader = jinja2.PackageLoader("pyrovae")
    return jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )


def render(template: str, **values: Any) -> str:
    """Return a template of ``pyrovae/templates`` filled with values, each of which is escaped."""
    return _environment().get_template(template).render(**values)


def summary(title: str, lines: Iterable[str], *grids: Grid) -> str:
    """Return the HTML of an object in a notebook: a title, lines of text and tables."""
    return render("summary.html", title=title, lines=list(lines), grids=grids)
