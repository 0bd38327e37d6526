"""Figures of one panel for each column of the data, and how far columns are from simulated ones."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pyrovae import frames
from pyrovae.imputation import Imputation
from pyrovae.plots import drawing
from pyrovae.plots.drawing import BLUE, GREY, MOST_BARS, STYLE, WIDTH
from pyrovae.refusals import bad_type, bad_value, shown
from pyrovae.rows import as_passed, joined
from pyrovae.tables.columns import sort_of

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

_MOST_PANELS = 9


def predictive(x: Any, simulated: Any, columns: Sequence[Any] | None = None, *, ax: Any = None) -> np.ndarray:
    """Draw the distribution of each column of the data beside that of rows simulated from the model.

    Titles give the distance of the two distributions, as in ``column_distances``.

    Args:
        x: rows of the data, shape (rows, columns): a tensor, an array or a frame. Missing cells are left out.
        simulated: simulated rows, such as ``vae.sample(len(x))``, with the same columns. If only one of the two has
            column names, as with a frame and a tensor, columns are matched by position.
        columns: names or numbers of columns; None draws the nine with the largest distance, in their order.
        ax: an axes for each column; None makes a new figure.

    Returns:
        An array of axes, shape (columns,).
    """
    x, simulated = joined(x, "x"), joined(simulated, "simulated")
    real, drawn = _both(x, simulated)
    distances = column_distances(x, simulated)["distance"]
    names = _chosen(columns, list(real), distances.to_numpy())
    endings = {name: f": {distances[name]:.2f}".replace("nan", "no cells") for name in names}
    return _panels(endings, real, drawn, ("data", "simulated"), _orders(list(real), x, simulated), ax)


def imputation(
    found: Imputation, columns: Sequence[Any] | None = None, *, x: Any = None, ax: Any = None
) -> np.ndarray:
    """Draw the distribution of the observed cells of each column beside that of the draws of its missing cells.

    The two may differ: cells may be missing more often where their values are large. The other columns can predict this.

    Args:
        found: what ``impute`` returns.
        columns: names or numbers of columns; None draws the nine with most missing cells, in their order.
        x: rows whose observed cells are drawn, with the columns of the completed ones; None draws those of the rows of
            ``found``. If a column is observed in rows without missing cells only, pass all rows.
        ax: an axes for each column; None makes a new figure.

    Returns:
        An array of axes, shape (columns,).
    """
    if not len(drawing.instance("found", found, Imputation).rows):
        raise bad_value("found", "a missing cell", "none", "Pass rows with missing cells to impute.")
    rows = found.completed
    completed = [_columns("found", each) for each in rows]
    known = list(completed[0]) if found.table is None else found.table.names
    missing = {known[number]: found.rows[found.columns == number] for number in np.unique(found.columns)}
    names = _chosen(columns, list(missing), np.array([len(cells) for cells in missing.values()]))
    endings = {name: f": {len(missing[name])} missing" for name in names}
    if x is None:
        real = {name: np.delete(completed[0][name], missing[name]) for name in names}
    else:
        real = _columns("x", joined(x, "x"))
        if real.keys() != completed[0].keys():
            came = f"{len(real)} columns for {len(completed[0])}"
            came = came if len(real) != len(completed[0]) else "columns of other names"
            raise bad_value("x", "the columns of the completed rows", came, "Pass rows of the same model.")
    drawn = {name: np.concatenate([each[name][missing[name]] for each in completed]) for name in names}
    orders = _orders(list(completed[0]), rows[0])
    for column in () if found.table is None else found.table.columns:
        orders.setdefault(column.name, [str(level) for level in column.categories or ()])
    return _panels(endings, real, drawn, ("observed", "drawn"), orders, ax)


def column_distances(x: Any, simulated: Any) -> pd.DataFrame:
    """Return how far the distribution of each column lies from that of simulated rows, between 0 and 1.

    For numbers, the ``distance`` is the largest difference of the two distribution functions (Kolmogorov and Smirnov).
    For other values, it is the largest difference of the probabilities of any set of values (total variation).
    ``by_chance`` is the distance that two samples of one continuous distribution exceed with probability 5 %. Both are NaN
    for a column without an observed cell in one of the two.

    Args:
        x, simulated: as in ``predictive``.

    Example:
        >>> column_distances(np.array([[0.0], [1.0]]), np.array([[0.0], [3.0]]))["distance"].tolist()
        [0.5]
    """
    import pandas as pd

    real, drawn = _both(x, simulated)
    names, found = list(real), []
    for name, values in real.items():
        counts = np.array([len(values), len(drawn[name])])
        chance = min(1.358 * (1 / counts).sum() ** 0.5, 1.0) if counts.all() else math.nan
        found.append({"distance": _distance(values, drawn[name]), "by_chance": chance})
    return pd.DataFrame(found, index=frames.own_labels(names).rename("column"))


def _both(x: Any, simulated: Any) -> tuple[dict[Any, np.ndarray], dict[Any, np.ndarray]]:
    """Return ``_columns`` of both, under the names of x; raise ``ValueError`` unless they are of the same columns."""
    real, drawn = _columns("x", x), _columns("simulated", simulated)
    if list(real) == list(drawn):
        return real, drawn
    came, positions = "columns of other names", list(range(len(real)))
    if len(real) != len(drawn):
        came = f"{len(drawn)} columns for {len(real)}"
    elif positions in (list(real), list(drawn)):
        drawn = dict(zip(real, drawn.values(), strict=True))
        real, drawn = (
            {name: _truth_as_numbers(each) for name, each in rows.items()} for rows in (real, drawn)
        )
        odd = [
            name
            for name, each in real.items()
            if len(each) and len(drawn[name]) and each.dtype.kind != drawn[name].dtype.kind
        ]
        if not odd:
            return real, drawn
        came = f"numbers for text, or text for numbers, in column {odd[0]!r}"
    raise bad_value("simulated", "the columns of x", came, "Simulate rows of the model of x.")


def _truth_as_numbers(values: np.ndarray) -> np.ndarray:
    """Return booleans of a frame as 0 and 1, as arrays and tensors have them; other values unchanged."""
    return values.astype(np.float64) if all(isinstance(each, bool | np.bool_) for each in values) else values


def _distance(one: np.ndarray, other: np.ndarray) -> float:
    if not len(one) or not len(other):
        return math.nan
    values, numbers = _alike([one, other])
    levels = np.unique(np.concatenate(values))
    counts = [np.bincount(np.searchsorted(levels, each), minlength=len(levels)) for each in values]
    difference = counts[0] / len(one) - counts[1] / len(other)
    return float(abs(difference.cumsum()).max() if numbers else abs(difference).sum() / 2)


def _alike(values: Sequence[np.ndarray]) -> tuple[list[np.ndarray], bool]:
    """Return values of one column as text, unless all are numbers; and whether they are."""
    numbers = all(each.dtype.kind == "f" for each in values if len(each))
    return [each.astype(np.float64 if numbers else str) for each in values], numbers


def _orders(names: Sequence[Any], *parts: Any) -> dict[Any, list[str]]:
    """Return the levels of pandas categories in their order, as text, by the names of columns at their positions."""
    import pandas as pd

    found = dict[Any, list[str]]()
    for rows in (as_passed(part)[1] for part in parts):
        for name, dtype in zip(names, rows.dtypes if isinstance(rows, pd.DataFrame) else (), strict=False):
            if isinstance(dtype, pd.CategoricalDtype):
                found.setdefault(name, [str(level) for level in dtype.categories])
    return found


def _columns(argument: str, x: Any) -> dict[Any, np.ndarray]:
    """Return the observed values of each column by its name or number: float64, or objects such as strings."""
    import pandas as pd

    rows = as_passed(x, argument)[1]
    if isinstance(rows, pd.DataFrame):
        if not rows.columns.is_unique:
            came = f"{rows.columns[rows.columns.duplicated()][0]!r} more than once"
            raise bad_value(argument, "one column of each name", came, "Rename the columns.")
        numbers = rows.select_dtypes("number").columns
        observed = {name: rows[name].dropna() for name in rows.columns}
        return {
            name: cells.to_numpy(
                dtype=np.float64 if name in numbers or sort_of(cells) == "number" else object
            )
            for name, cells in observed.items()
        }
    array = rows.detach().cpu().numpy() if hasattr(rows, "detach") else rows
    numbers = isinstance(array, np.ndarray) and array.dtype.kind in "biuf"
    if not numbers or array.ndim < 2 or not array.size:
        expected = "rows of several columns: a tensor, an array of numbers or a frame"
        raise bad_type(argument, expected, shown(x), "Pass rows of shape (rows, columns).")
    flat = array.reshape(len(array), -1).astype(np.float64)
    return {column: values[~np.isnan(values)] for column, values in enumerate(flat.T)}


def _chosen(columns: Any, names: list[Any], order: np.ndarray) -> list[Any]:
    """Return the columns that were asked for, or those of the largest numbers in ``order``."""
    if columns is None:
        largest = np.argsort(-order, kind="stable")[:_MOST_PANELS]
        return [names[number] for number in sorted(largest)]
    if isinstance(columns, str | bytes) or not isinstance(columns, Sequence) or not len(columns):
        raise bad_type("columns", "a list of columns", shown(columns), "Pass a list of names or numbers.")
    odd = [column for column in columns if isinstance(column, list | dict | set) or column not in names]
    if odd:
        few = ", ".join(map(repr, names[:_MOST_PANELS])) + (", …" if len(names) > _MOST_PANELS else "")
        raise bad_value("columns", f"columns of {few}", shown(odd[0]), "Name columns that can be drawn.")
    return list(columns)


def _panels(
    endings: Mapping[Any, str],
    one: Mapping[Any, np.ndarray],
    other: Mapping[Any, np.ndarray],
    labels: tuple[str, str],
    orders: Mapping[Any, Sequence[str]],
    ax: Any,
) -> np.ndarray:
    """Draw two distributions of each column that has an ending of its title, and a legend in each figure.

    ``orders`` has the levels of columns in their order, as text.
    """
    from matplotlib import pyplot, rc_context

    if ax is None:
        wide, lines = min(len(endings), 3), -(-len(endings) // 3)
        size = max(WIDTH, 2.0 * wide), 0.3 + 1.6 * lines
        with rc_context(STYLE):
            ax = pyplot.figure(figsize=size, layout="constrained").subplots(lines, wide, squeeze=False)
    given = np.asarray(ax, dtype=object).ravel()
    if len(given) < len(endings):
        fix = "Pass figure.subplots(…), or leave it out for a new figure."
        raise bad_type("ax", f"axes for each of {len(endings)} columns", shown(ax), fix)
    figures = list[Any]()
    for each, (name, ending) in zip(given, endings.items(), strict=False):
        with drawing.axes(each) as panel:
            _panel(panel, [one[name], other[name]], labels, orders.get(name, ()))
            drawing.title(panel, str(name), ending)
            if panel.figure not in figures:
                drawing.legend(panel, 0.2)
                panel.set_ylabel("share")
                figures.append(panel.figure)
    for rest in given[len(endings) :]:
        rest.axis("off")
    return given[: len(endings)]


def _panel(ax: Axes, values: Sequence[np.ndarray], labels: Sequence[str], order: Sequence[str] = ()) -> None:
    """Draw bars of levels or of few numbers, and otherwise histograms. Levels that are not in ``order`` come last."""
    values, numbers = _alike(values)
    levels, counts = np.unique(np.concatenate(values), return_counts=True)
    if not len(levels):
        ax.text(0.5, 0.5, "no observed cell", ha="center", va="center", transform=ax.transAxes)
    if numbers and len(levels) > MOST_BARS:
        drawing.histograms(ax, values, labels)
        return
    place = {level: number for number, level in enumerate(order)}
    by_place = np.argsort([place.get(str(level), len(place)) for level in levels], kind="stable")
    most = np.sort(np.argsort(-counts[by_place], kind="stable")[:MOST_BARS])
    levels = levels[by_place[most]]
    for each, label, colour, side in zip(values, labels, (GREY, BLUE), (-0.2, 0.2), strict=True):
        shares = [(each == level).mean() if len(each) else 0.0 for level in levels]
        ax.bar(np.arange(len(levels)) + side, shares, 0.4, color=colour, label=label)
    words = [f"{level:g}" if numbers else str(level) for level in levels]
    words = [word if len(word) <= 9 else f"{word[:8]}…" for word in words]
    tilted = len(words) > 4 or max(map(len, words), default=0) > 5
    ax.set_xticks(range(len(levels)), words, rotation=90 if tilted else 0)
