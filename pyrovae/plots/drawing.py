"""The style of figures, the axes that they are drawn into, and checks of what is drawn."""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from pyrovae.refusals import bad_type, bad_value, shown

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

T = TypeVar("T")

#: Colours of Okabe and Ito (2008), black first.
COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442")
BLACK, BLUE, RED, GREEN = COLOURS[:4]
GREY, _MARKS = "#999999", "o^sDvPX*"
#: matplotlib's settings for figures of one column of a page, 89 mm wide.
STYLE: dict[Any, Any] = {
    "font.size": 8.0,
    "axes.titlesize": 8.0,
    "axes.labelsize": 8.0,
    "legend.fontsize": 7.0,
    "legend.frameon": False,
    "xtick.labelsize": 7.0,
    "ytick.labelsize": 7.0,
    "lines.linewidth": 1.2,
    "lines.markersize": 3.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "figure.dpi": 150.0,
}
WIDTH, HEIGHT = 3.5, 2.6  # inches
MOST_BARS, _BINS = 12, 30
# Width in points of the sample beside a name in a legend; fewest characters of a line of the name.
_HANDLE, _FEWEST = 28.0, 8
# Extremes in fewer entries than the first share are cut off at an end, because they would flatten the rest. They are kept
# if the axis is longer by at most the second share of its length.
EXTREMES, _LONGER = 0.01, 0.5


@contextmanager
def axes(ax: Any, height: float = HEIGHT) -> Iterator[Axes]:
    """Yield the axes to draw into, within ``STYLE``: those given, or those of a new figure."""
    from matplotlib import pyplot, rc_context
    from matplotlib.axes import Axes

    if ax is not None and not isinstance(ax, Axes):
        fix = "Pass matplotlib.figure.Figure().subplots(), or leave it out for a new figure."
        raise bad_type("ax", "matplotlib axes or None", shown(ax), fix)
    with rc_context(STYLE):
        if ax is None:
            ax = pyplot.figure(figsize=(WIDTH, height), layout="constrained").add_subplot()
        yield ax
        as_written(ax)


def as_written(ax: Axes) -> None:
    """Show dollar signs of names as they are; matplotlib reads text between two of them as mathematics."""
    from matplotlib.text import Text
    from matplotlib.ticker import FuncFormatter

    found = [ax.title, ax.xaxis.label, ax.yaxis.label, *ax.texts]
    legend = ax.get_legend()
    found += [] if legend is None else legend.findobj(Text)
    for axis in (ax.xaxis, ax.yaxis):
        if isinstance(axis.get_major_formatter(), FuncFormatter):  # the names of ticks
            found += [tick.label1 for tick in axis.get_major_ticks()]
    for text in found:
        text.set_parse_math(False)


def legend(ax: Axes, share: float = 0.09, loc: Any = "upper left", title: str | None = None) -> None:
    """Add a legend above or below everything drawn, with room for it: a share of the height for each of its lines.

    Names that are wider than the axes are broken into lines.
    """
    from matplotlib import rcParams

    handles, names = ax.get_legend_handles_labels()
    points, size = 72 * ax.bbox.width / ax.figure.dpi - _HANDLE, rcParams["legend.fontsize"]
    labels = [_broken(name, points, size) for name in names]
    lines = sum(label.count("\n") + 1 for label in labels) + (title is not None)
    low, high = ax.get_ylim()
    room = (high - low) * share * lines / max(1 - share * lines, 0.2)
    ax.set_ylim((low, high + room) if loc.startswith("upper") else (low - room, high))
    ax.legend(handles, labels, loc=loc, title=title, borderaxespad=0.2)


def title(ax: Axes, name: str, ending: str = "") -> None:
    """Set a title in at most two lines, no wider than the axes: a name, cut if it is too long, and an ending."""
    from matplotlib import rcParams

    points, size = 72 * ax.bbox.width / ax.figure.dpi, rcParams["axes.titlesize"]
    found = _broken(name + ending, points, size)
    if found.count("\n") > 1:
        first, *others = _broken(name, points, size).split("\n")
        found = f"{first}\n{_cut(' '.join(others), ending, points, size)}"
    ax.set_title(found)


def _cut(name: str, ending: str, points: float, size: Any) -> str:
    """Return a name and an ending in one line. If it is too long, the end of the name is cut, and then that of the ending."""
    most = int(points)  # no character is narrower than a point
    lines = itertools.chain(
        [name + ending] if len(name) <= most else [],
        (f"{name[:n].rstrip()}…{ending}" for n in range(min(len(name), most) if name else -1, -1, -1)),
        (f"{ending[:n].rstrip()}…" for n in range(min(len(ending), most), -1, -1)),
    )
    return next(line for line in lines if _width(line, size) <= points or line == "…")


def _broken(name: str, points: float, size: Any) -> str:
    """Return a name in lines that are at most so wide, in a font size."""
    most = min(len(name), int(points))  # no character is narrower than a point
    for length in range(max(most, _FEWEST), _FEWEST - 1, -1):
        lines = textwrap.wrap(name, length)
        if all(_width(line, size) <= points for line in lines):
            break
    return "\n".join(lines)


def _width(line: str, size: Any) -> float:
    """Return the width of a line in points, in a font size."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    return text_to_path.get_text_width_height_descent(line, FontProperties(size=size), ismath=False)[0]


def histograms(ax: Axes, values: Sequence[np.ndarray], labels: Sequence[str]) -> None:
    """Draw histograms with common bins: the first filled, the second as a line.

    The axis may leave out extremes. A line below it then counts them and gives the range of all values.
    """
    from matplotlib import rcParams

    everything = np.concatenate(values)  # log P of impossible rows is −∞
    pooled = finite(everything)
    least, most = (pooled.min(), pooled.max()) if len(pooled) else (0.0, 1.0)
    low, high = np.quantile(pooled, [EXTREMES / 2, 1 - EXTREMES / 2]) if len(pooled) else (0.0, 1.0)
    room = _LONGER * (high - low)
    low, high = least if least >= low - room else low, most if most <= high + room else high
    edges = np.linspace(low, high, _BINS + 1) if low < high else np.array([low - 0.5, low + 0.5])
    if low < high and (pooled == np.rint(pooled)).all():  # bins of as many whole numbers each
        first, last = np.floor(low), np.ceil(high)
        step = max(1.0, np.ceil((last - first) / _BINS))
        edges = first - 0.5 + step * np.arange((last - first) // step + 2)
    for each, label, filled in zip(values, labels, (True, False), strict=False):
        counts, _ = np.histogram(each, edges)
        style: dict[str, Any] = {"color": "#BBBBBB"} if filled else {"color": BLUE, "linewidth": 1.2}
        ax.stairs(counts / max(len(each), 1), edges, fill=filled, label=label, **style)
    gone = [int(((each < edges[0]) | (each > edges[-1])).sum()) for each in values]
    if any(gone):
        whose = ", ".join(f"{count} of {label}" for count, label in zip(gone, labels, strict=True) if count)
        words = f"beyond the axis: {whose}; all lie from {everything.min():.4g} to {everything.max():.4g}"
        points, size = 72 * ax.bbox.width / ax.figure.dpi, rcParams["axes.labelsize"]
        ax.set_xlabel("\n".join(filter(None, [ax.get_xlabel(), _broken(words, points, size)])))


def finite(values: np.ndarray) -> np.ndarray:
    """Return the finite values."""
    return values[np.isfinite(values)]


def mark(number: int, first: int = 0) -> dict[str, Any]:
    """Return the colour and the mark of one of several kinds of points; ``first`` is the colour of number 0."""
    return {"color": COLOURS[first + number % 7], "marker": _MARKS[number % len(_MARKS)]}


def instance(argument: str, value: Any, kind: type[T]) -> T:
    """Return ``value`` if it is of a kind; raise ``TypeError`` otherwise."""
    if not isinstance(value, kind):
        raise bad_type(argument, f"a {kind.__name__}", shown(value), "Pass what the library returned.")
    return value


def check_frame(argument: str, frame: pd.DataFrame, columns: Sequence[str], source: str) -> None:
    """Raise unless a frame has rows and these columns; ``source`` says what returns such a frame."""
    import pandas as pd

    if not isinstance(frame, pd.DataFrame):
        raise bad_type(argument, f"a DataFrame, {source}", shown(frame), "Pass that.")
    missing = [column for column in columns if column not in frame]
    if missing or not len(frame):
        came = f"one without {', '.join(missing)}" if missing else "one without lines"
        raise bad_value(argument, f"a DataFrame with {', '.join(columns)}", came, f"Pass {source}.")
