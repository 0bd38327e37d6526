"""Figures of comparisons, of a diagnosis and of the latent space."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any

import numpy as np

from pyrovae import frames
from pyrovae.diagnosis import Diagnosis, activity
from pyrovae.plots import drawing
from pyrovae.plots.drawing import BLACK, BLUE, GREY, MOST_BARS
from pyrovae.refusals import bad_value
from pyrovae.rows import as_tensor, read, row_labels
from pyrovae.tables.columns import sort_of

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

_MOST_LEVELS = 12
_MISSING = "missing"
_OF_MISSING: dict[str, Any] = {"color": GREY, "marker": "d"}


def compare(table: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Draw a comparison, best model at the top: each number ± its error, and ± the error of its difference to the best.

    A hollow mark is a model's number; its bar is the error of the difference to the best. Models whose hollow bar
    reaches the dotted line are not clearly worse. With ``by``, each label has a group of lines with its own dotted line.

    Args:
        table: what ``compare`` or ``compare_evidence`` returns.
        ax: as in ``training_curves``.
    """
    total = hasattr(table, "columns") and "log_evidence" in table
    value, error, paired = ("log_evidence", "mcse", "mcse_diff") if total else ("elpd", "se", "dse")
    drawing.check_frame("table", table, (value, error, paired), "what compare returns")
    groups = [(None, table)]
    if table.index.nlevels > 1:
        groups = [(label, table.loc[label]) for label in table.index.unique(level=0)]
    ticks: list[tuple[float, str]] = []
    height = max(1.6, 0.8 + 0.3 * (len(table) + len(groups)))
    with drawing.axes(ax, height) as ax:
        place = 0.0
        for label, lines in groups:
            if label is not None:
                ticks.append((place, f"{label}:"))
                place -= 1
            places = place - np.arange(len(lines))
            ax.errorbar(lines[value], places, xerr=lines[error], fmt="o", color=BLACK, capsize=2)
            others = lines[paired].to_numpy() > 0
            centres, beside = lines[value][others], places[others] - 0.25
            hollow: dict[str, Any] = {"markerfacecolor": "white", "capsize": 2, "color": BLUE}
            ax.errorbar(centres, beside, xerr=lines[paired][others], fmt="^", **hollow)
            ax.vlines(lines[value].iloc[0], places[-1] - 0.5, places[0] + 0.4, color=BLACK, linestyle=":")
            ticks += zip(places, (textwrap.fill(str(name), 22) for name in lines.index), strict=True)
            place = places[-1] - 1.0
        ax.set_yticks(*zip(*ticks, strict=True))
        ax.errorbar([], [], xerr=[], fmt="o", color=BLACK, capsize=2, label=f"{value} ± {error}")
        ax.errorbar([], [], xerr=[], fmt="^", label="± error of the difference", **hollow)
        unit = "nats for all rows" if total else "nats a row"
        ax.set(xlabel=f"log P(x), {unit}", ylim=(place + 0.4, 0.6))
        drawing.legend(ax, 0.24 / height, "lower left")
    return ax


def diagnosis(found: Diagnosis, *, ax: Axes | None = None) -> Axes:
    """Draw the rate KL(Q ‖ P) of every latent dimension, the largest first, under the verdict. Inactive dimensions are grey.

    Args:
        found: what ``diagnose`` returns.
        ax: as in ``training_curves``.
    """
    frame = drawing.instance("found", found, Diagnosis).dimensions
    frame = frame.sort_values("rate", ascending=False, kind="stable")
    with drawing.axes(ax) as ax:
        active = frame["active"].to_numpy()
        for these, colour, label in ((active, BLUE, "active"), (~active, GREY, "inactive")):
            if these.any():
                ax.bar(np.flatnonzero(these), frame["rate"][these], color=colour, label=label)
        if len(frame) <= MOST_BARS:
            ax.set_xticks(range(len(frame)), [str(name) for name in frame.index], rotation=90)
        ax.set(xlabel="latent dimension, in the order of its rate", ylabel="rate, nats a row")
        drawing.title(ax, f"{found.verdict}: {activity(found)}")
        ax.legend()
    return ax


def latent(z: Any, color: Any = None, *, ax: Axes | None = None) -> Axes:
    """Draw the rows in the space of the latent code, coloured by a label or a number of each row.

    With more than two dimensions, the axes are the first two principal components of the codes. With one dimension,
    the code is drawn against its row.

    Args:
        z: codes, shape (rows, dimensions): an array, or a frame such as ``embed`` returns, whose ``_sd`` columns and
            ``verdict`` are left out. In a frame, NaN is a latent that the row lacks. Rows with NaN are left out. With more
            than two dimensions, dimensions with NaN are left out instead, if one without NaN remains. The title says how
            many.
        color: a label, a number or a date for each row, shape (rows,). A series is aligned by the index of ``z``. More than
            twelve different numbers or dates get a colour bar. Of more than twelve labels, the rarest are drawn as "other".
            Levels of a pandas category keep their order. Rows without a label are "missing".
        ax: as in ``training_curves``.
    """
    index, names = frames.index(z), None
    if hasattr(z, "columns"):
        beside = () if "verdict_sd" in z.columns else ("verdict",)
        kept = [name for name in z.columns if not str(name).endswith("_sd") and name not in beside]
        z, names = z[kept], [str(name) for name in kept]
    codes, names, has, title = _codes(z, names)
    if codes.shape[1] > 2:
        codes = codes - codes.mean(axis=0)
        left, spread, _ = np.linalg.svd(codes, full_matrices=False)
        codes, shares = np.zeros((len(codes), 2)), np.zeros(2)
        scores, parts = (left * spread)[:, :2], spread[:2] ** 2 / max((spread**2).sum(), 1e-300)
        codes[:, : len(parts)], shares[: len(parts)] = scores, parts  # one row has one component
        names = [f"principal component {k + 1} ({shares[k]:.0%} of variance)" for k in (0, 1)]
    elif codes.shape[1] == 1:
        codes, names = np.c_[np.flatnonzero(has), codes], ["row", names[0]]
    labels = None if color is None else row_labels("color", color, index, len(has))[has]
    dates = labels is not None and sort_of(labels) == "date" and labels.nunique() > _MOST_LEVELS
    if labels is not None:
        labels = _days(labels) if dates else _numbers(labels)
    with drawing.axes(ax, 3.0) as ax:
        small: dict[str, Any] = {"s": 8 if len(codes) < 1000 else 3, "linewidths": 0}
        name = str(getattr(color, "name", None) or "")
        if labels is None:
            ax.scatter(codes[:, 0], codes[:, 1], color=BLUE, **small)
        elif labels.dtype.kind in "iuf" and labels.nunique() > _MOST_LEVELS:
            there = labels.notna().to_numpy()
            numbers = labels[there].astype(float)
            drawn = ax.scatter(codes[there, 0], codes[there, 1], c=numbers, cmap="viridis", **small)
            drawing.as_written(
                ax.figure.colorbar(drawn, ax=ax, label=name, **_ticks_of_days() if dates else {}).ax
            )
            if not there.all():
                ax.scatter(codes[~there, 0], codes[~there, 1], label=_MISSING, **_OF_MISSING, **small)
                drawing.legend(ax)
        else:
            for level, (these, style) in _levels(labels).items():
                ax.scatter(codes[these, 0], codes[these, 1], label=level, **style, **small)
            ax.legend(title=name, loc="center left", bbox_to_anchor=(1.0, 0.5), markerscale=2)
        ax.set(xlabel=names[0], ylabel=names[1])
        if title:
            drawing.title(ax, title)
    return ax


def _codes(z: Any, names: list[str] | None) -> tuple[np.ndarray, list[str], np.ndarray, str]:
    """Return the codes to draw, the names of their dimensions, which rows have them, and how many are left out, in words."""
    if names is None:
        values, observed = as_tensor(z, dtype=None, argument="z").flatten(1), None
        names = [f"z_{number}" for number in range(values.shape[1])]
    else:
        batch = read(z, dtype=None, argument="z", missing=True)[0]
        values, observed = batch["x"], batch.get("observed")
    codes = values.cpu().double().numpy()
    held = np.ones(codes.shape, dtype=bool) if observed is None else observed.cpu().numpy()
    drawn = np.asarray(held.all(axis=0) if codes.shape[1] > 2 else held.any(axis=0))
    drawn = drawn if drawn.any() else np.asarray(held.any(axis=0))
    has = np.asarray(held[:, drawn].all(axis=1))
    if not (drawn.any() and has.any()):
        raise bad_value(
            "z", "a row that has every latent", "only rows that lack one", "Pass columns that some rows have."
        )
    left = {"dimensions": ~drawn, "rows": ~has}
    title = "; ".join(
        f"{gone.sum()} of {len(gone)} {what} with NaN left out" for what, gone in left.items() if gone.any()
    )
    return codes[has][:, drawn], [names[number] for number in np.flatnonzero(drawn)], has, title


def _numbers(labels: pd.Series) -> pd.Series:
    """Return labels that are numbers in columns of objects, beside missing ones, as float64; others unchanged."""
    if sort_of(labels) != "number" or (labels.dtype.kind in "iuf" and isinstance(labels.dtype, np.dtype)):
        return labels
    return labels.dropna().astype(np.float64).reindex(labels.index)


def _days(labels: pd.Series) -> pd.Series:
    """Return dates, times or periods as the numbers of days that matplotlib's axes of dates have, by UTC; NaN if missing."""
    import pandas as pd
    from matplotlib.dates import date2num

    starts = labels.map(lambda each: each.to_timestamp() if isinstance(each, pd.Period) else each)
    found = pd.to_datetime(starts, utc=True).dt.tz_localize(None)
    return pd.Series(date2num(found), labels.index).where(found.notna())


def _ticks_of_days() -> dict[str, Any]:
    """Return the arguments of a colour bar whose numbers are days."""
    from matplotlib.dates import AutoDateFormatter, AutoDateLocator

    places = AutoDateLocator()
    return {"ticks": places, "format": AutoDateFormatter(places)}


def _levels(labels: pd.Series) -> dict[str, tuple[np.ndarray, dict[str, Any]]]:
    """Return which rows have each label, and its colour and mark.

    The rarest of many labels are "other", and rows without a label are "missing", both in grey.
    """
    import pandas as pd

    numbers = labels.dtype.kind in "iuf"
    values = labels if numbers else labels.astype(object).map(str, na_action="ignore")
    if isinstance(labels.dtype, pd.CategoricalDtype):
        levels = pd.Index(dict.fromkeys(map(str, labels.cat.categories)), dtype=object)
    else:
        levels = pd.Index(np.unique(values.dropna()))
    which = levels.get_indexer(pd.Index(values))
    counts = np.bincount(which[which >= 0], minlength=len(levels))
    kept = np.sort(np.argsort(-counts, kind="stable")[: min(_MOST_LEVELS, np.count_nonzero(counts))])
    words = [f"{levels[code]:g}" if numbers else levels[code] for code in kept]
    if len(set(words)) < len(words):  # numbers that differ beyond six digits
        words = [str(levels[code]) for code in kept]
    found = {
        word: (which == code, drawing.mark(i)) for i, (word, code) in enumerate(zip(words, kept, strict=True))
    }
    missing = which < 0
    for word, rest, style in (
        ("other", ~np.isin(which, kept) & ~missing, {"color": GREY, "marker": "."}),
        (_MISSING, missing, _OF_MISSING),
    ):
        if rest.any():
            found[word] = rest | found.pop(word, (rest, {}))[0], style  # and a label of this name
    return found
