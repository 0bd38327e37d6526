"""Figures of what the library returns. Each function draws into ``ax``, or into a new figure, and returns the axes.

Every figure is made in ``STYLE``, in colours that the colour-blind can tell apart. matplotlib's own settings stay as they
are. ``docs/figures.md`` shows all figures.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np

from pyrovae import arguments, frames
from pyrovae.diagnosis import Diagnosis
from pyrovae.diagnostics import k_threshold
from pyrovae.evidence.check import Check
from pyrovae.evidence.result import LogEvidence
from pyrovae.imputation import Imputation
from pyrovae.refusals import bad_type, bad_value, shown
from pyrovae.rows import as_passed, as_tensor, row_labels
from pyrovae.training import History

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

#: Colours of Okabe and Ito (2008), black first.
COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442")
_BLACK, _BLUE, _RED, _GREEN = COLOURS[:4]
_GREY, _MARKS = "#999999", "o^sDvPX*"
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
_WIDTH, _HEIGHT = 3.5, 2.6  # inches
_MOST_PANELS, _MOST_LEVELS, _MOST_BARS, _BINS = 9, 12, 12, 30
# Training curves and k-hat: extremes in fewer entries than this share are cut off, so that they do not flatten the rest.
_EXTREMES = 0.1, 0.01


@contextmanager
def _drawing(ax: Any, title: Any, height: float = _HEIGHT) -> Iterator[Axes]:
    """Yield the axes to draw into, within ``STYLE``: those given, or those of a new figure; then set the title."""
    from matplotlib import pyplot, rc_context
    from matplotlib.axes import Axes

    if ax is not None and not isinstance(ax, Axes):
        fix = "Pass matplotlib.figure.Figure().subplots(), or leave it out for a new figure."
        raise bad_type("ax", "matplotlib axes or None", shown(ax), fix)
    if not isinstance(title, str):
        raise bad_type("title", "a string", shown(title), "Pass one, or leave it out.")
    with rc_context(STYLE):
        if ax is None:
            ax = pyplot.figure(figsize=(_WIDTH, height), layout="constrained").add_subplot()
        yield ax
        ax.set_title(title)
        _as_written(ax)


def _as_written(ax: Axes) -> None:
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


def _split(ax: Axes) -> Axes:
    """Shorten axes and return new ones in the room below them, with the same horizontal axis."""
    place = ax.get_subplotspec()
    if place is not None:
        parts = place.subgridspec(2, 1, height_ratios=(7, 3), hspace=0.1)
        ax.set_subplotspec(parts[0])
        return ax.figure.add_subplot(parts[1], sharex=ax)
    box = ax.get_position()
    ax.set_position((box.x0, box.y0 + 0.35 * box.height, box.width, 0.65 * box.height))
    return ax.figure.add_axes((box.x0, box.y0, box.width, 0.3 * box.height), sharex=ax)


def _legend(ax: Axes, share: float = 0.09, loc: Any = "upper left", title: str | None = None) -> None:
    """Add a legend above or below everything drawn, with room for it: a share of the height for each of its lines."""
    lines = len(ax.get_legend_handles_labels()[0]) + (title is not None)
    low, high = ax.get_ylim()
    room = (high - low) * share * lines / max(1 - share * lines, 0.2)
    ax.set_ylim((low, high + room) if loc.startswith("upper") else (low - room, high))
    ax.legend(loc=loc, title=title, borderaxespad=0.2)


# ---------------------------------------------------------------------------------------------------------
# Training


def training_curves(history: History | pd.DataFrame, *, ax: Axes | None = None, title: str = "") -> Axes:
    """Draw the ELBO of every epoch and its parts, in nats a row: ELBO = reconstruction − rate.

    The rate has axes of its own, below the others. Both axes span the values after the first tenth of the epochs, so that
    the first ones do not hide whether the fit has converged.

    Args:
        history: what ``fit`` returns, or its ``frame``.
        ax: axes to draw into; None makes a new figure.
        title: of the axes.
    """
    frame = history.frame if isinstance(history, History) else history
    _check_frame("history", frame, ("epoch", "elbo", "rate", "reconstruction"), "fit's history")
    epochs, first = frame["epoch"], int(_EXTREMES[0] * len(frame))
    with _drawing(ax, title, 3.2) as ax:
        below = _split(ax)
        for axes, names in ((ax, {"reconstruction": _BLUE, "elbo": _RED}), (below, {"rate": _GREEN})):
            for (name, colour), (start, line) in product(names.items(), (("", "-"), ("validation_", ":"))):
                if start + name in frame:
                    label = "" if start or name == "rate" else {"elbo": "ELBO"}.get(name, name)
                    axes.plot(epochs, frame[start + name], line, color=colour, label=label)
            late = [np.asarray(curve.get_ydata())[first:] for curve in axes.get_lines()]
            known = _finite(np.concatenate(late))
            if len(known) and np.ptp(known) > 0:
                axes.set_ylim(known.min() - 0.05 * np.ptp(known), known.max() + 0.1 * np.ptp(known))
        if "validation_elbo" in frame:
            ax.plot([], [], ":", color=_BLACK, label="validation")
        ax.set_ylabel("nats a row")
        ax.tick_params(labelbottom=False)
        below.set(xlabel="epoch", ylabel="rate,\nnats a row")
        ax.legend(loc="best")
    return ax


# ---------------------------------------------------------------------------------------------------------
# Images


def image_grid(
    rows: Any,
    shape: tuple[int, int],
    columns: int = 10,
    *,
    limits: tuple[float, float] | None = None,
    ax: Axes | None = None,
    title: str = "",
) -> Axes:
    """Draw rows as grey images in a grid.

    Args:
        rows: shape (rows, height · width).
        shape: (height, width) of one image, in pixels.
        columns: images in a line.
        limits: the values drawn white and black; None takes the extremes.
        ax, title: as in ``training_curves``.
    """
    images = _images("rows", rows, shape)
    return _grid([images], arguments.integer("columns", columns), limits, ax, title)


def reconstructions(
    x: Any,
    reconstructed: Any,
    shape: tuple[int, int],
    columns: int = 10,
    *,
    limits: tuple[float, float] | None = None,
    ax: Axes | None = None,
    title: str = "",
) -> Axes:
    """Draw rows as grey images with their reconstructions below them.

    Args:
        x, reconstructed: as many rows of each, shape (rows, height · width), such as ``x`` and ``vae.reconstruct(x)``.
        shape, columns, limits: as in ``image_grid``.
        ax, title: as in ``training_curves``.
    """
    pairs = [_images("x", x, shape), _images("reconstructed", reconstructed, shape)]
    if len(pairs[0]) != len(pairs[1]):
        came = f"{len(pairs[1])} for {len(pairs[0])} rows"
        raise bad_value("reconstructed", "a reconstruction for every row", came, "Pass as many.")
    columns = arguments.integer("columns", columns)
    return _grid(pairs, columns, limits, ax, title, ("row", "reconstruction"))


def _images(argument: str, rows: Any, shape: Any) -> np.ndarray:
    """Return rows as images, (images, height, width)."""
    height, width = arguments.image_shape("shape", shape)
    flat = as_tensor(rows, dtype=None, argument=argument).flatten(1)
    pixels = flat.shape[1:].numel()
    if flat.dim() != 2 or pixels % (height * width):
        raise bad_value(
            argument,
            f"rows of {height} × {width} pixels, or of several such images",
            f"rows of {pixels} numbers",
            "Pass the shape of one image as shape.",
        )
    return flat.cpu().double().numpy().reshape(-1, height, width)


def _grid(
    kinds: list[np.ndarray],
    columns: int,
    limits: tuple[float, float] | None,
    ax: Axes | None,
    title: str,
    labels: tuple[str, ...] = (),
) -> Axes:
    """Draw a line of each kind of images, and below it the next images; one white pixel between images."""
    if limits is not None:
        _check_limits(limits)
    count, height, width = kinds[0].shape
    columns = min(columns, count)
    lines = -(-count // columns) * len(kinds)
    canvas = np.full((lines * (height + 1) - 1, columns * (width + 1) - 1), np.nan)
    for kind, images in enumerate(kinds):
        for index, image in enumerate(images):
            line = index // columns * len(kinds) + kind
            top, left = line * (height + 1), index % columns * (width + 1)
            canvas[top : top + height, left : left + width] = image
    low, high = limits or (np.nanmin(canvas), np.nanmax(canvas))
    with _drawing(ax, title, _WIDTH * canvas.shape[0] / canvas.shape[1] + 0.3) as ax:
        ax.imshow(canvas, cmap="gray_r", interpolation="nearest", vmin=low, vmax=high)
        ax.spines[:].set_visible(False)
        places = [line * (height + 1) + height / 2 - 0.5 for line in range(lines)] if labels else []
        ax.set_yticks(places, [labels[line % len(kinds)] for line in range(len(places))])
        ax.set_xticks([])
        ax.tick_params(length=0)
    return ax


# ---------------------------------------------------------------------------------------------------------
# log P(x)


def log_evidence(
    evidence: LogEvidence, simulated: LogEvidence | None = None, *, ax: Axes | None = None, title: str = ""
) -> Axes:
    """Draw the histogram of log P(x_n) over the rows, beside that of rows simulated from the model.

    Rows of the data that lie left of all simulated ones are less probable than the model expects of any row.

    Args:
        evidence: what ``log_evidence`` returns.
        simulated: the same of simulated rows, such as ``pv.log_evidence(vae, vae.sample(500))``; None leaves them out.
        ax, title: as in ``training_curves``.
    """
    found = {"rows": _a(LogEvidence, "evidence", evidence)}
    if simulated is not None:
        found["simulated rows"] = _a(LogEvidence, "simulated", simulated)
    values = [_finite(score.estimate) for score in found.values()]
    units = "nats, given what was given" if evidence.given else "nats"
    with _drawing(ax, title) as ax:
        _histograms(ax, values, [f"{name} ({len(score)})" for name, score in found.items()])
        for value, colour in zip(values, (_BLACK, _BLUE), strict=False):
            if len(value):
                ax.axvline(value.mean(), color=colour, linestyle=":", linewidth=1)
        ax.plot([], [], ":", color=_GREY, label="mean")
        ax.set(xlabel=f"log P(x) of a row, {units}", ylabel="share of rows")
        _legend(ax)
    return ax


def pareto_k(evidences: Any, *, ax: Axes | None = None, title: str = "") -> Axes:
    """Draw k-hat of every row's importance weights, sorted. Rows above the line are not trusted.

    Args:
        evidences: a ``LogEvidence``, a ``Diagnosis``, a dict of ``LogEvidence``s by the names of their models, or pairs of
            a name and one. The legend counts the rows of each that are not above the line.
        ax, title: as in ``training_curves``.
    """
    if isinstance(evidences, Diagnosis):
        evidences = {"encoder": evidences.log_evidence}
    if isinstance(evidences, LogEvidence):
        evidences = {evidences.method: evidences}
    if isinstance(evidences, Mapping):
        evidences = list(evidences.items())
    for entry in evidences if isinstance(evidences, Sequence) and len(evidences) else [evidences]:
        if not (isinstance(entry, tuple | list) and len(entry) == 2 and isinstance(entry[1], LogEvidence)):
            expected = "a LogEvidence, or a dict of them by the names of models"
            raise bad_type("evidences", expected, shown(entry), 'Pass {"VAE": log_evidence(vae, x)}.')
    limit = k_threshold(max(evidence.num_samples for _, evidence in evidences) or 5000)
    every = _finite(np.concatenate([evidence.pareto_k for _, evidence in evidences]))
    with _drawing(ax, title) as ax:
        for number, (name, evidence) in enumerate(evidences):
            known = np.sort(evidence.pareto_k[~np.isnan(evidence.pareto_k)])
            below = f"{int((known <= limit).sum())} of {len(known)}" if len(known) else "no draws"
            style: dict[str, Any] = {"color": COLOURS[1 + number % 7], "marker": _MARKS[number % len(_MARKS)]}
            places = np.arange(1, len(known) + 1)
            ax.plot(places, known, linestyle="none", markersize=2, label=f"{name}: {below}", **style)
        ax.axhline(limit, color=_BLACK, linewidth=1)
        if len(every):
            ax.set_ylim(top=1.1 * max(1.0, float(np.quantile(every, 1 - _EXTREMES[1]))))
        ax.set(xlabel="row, in the order of its k-hat", ylabel="k-hat")
        _legend(ax, title=f"rows up to {limit:.2f}, the line")
    return ax


def convergence(frame: pd.DataFrame, *, ax: Axes | None = None, title: str = "") -> Axes:
    """Draw the result of ``evidence.convergence``: the lower bound rising with K, and estimates beside it.

    Args:
        frame: what ``evidence.convergence`` returns.
        ax, title: as in ``training_curves``.
    """
    needed = ("num_samples", "elbo", "lower_bound", "mcse", "bias", "jackknife", "pareto_smoothed")
    _check_frame("frame", frame, needed, "what evidence.convergence returns")
    draws, bound = frame["num_samples"], frame["lower_bound"]
    low, high = bound - 1.96 * frame["mcse"], bound - frame["bias"] + 1.96 * frame["mcse"]
    with _drawing(ax, title) as ax:
        ax.fill_between(draws, low, high, color=_BLUE, alpha=0.2, linewidth=0, label="95 %, with the bias")
        ax.plot(draws, bound, "o-", color=_BLUE, label="lower bound")
        ax.plot(draws, frame["jackknife"], "s--", color=_RED, label="jackknife")
        ax.plot(draws, frame["pareto_smoothed"], "^:", color=_GREEN, label="Pareto smoothed")
        ax.axhline(frame["elbo"].iloc[-1], color=_BLACK, linestyle="-.", linewidth=1, label="ELBO")
        ax.set(xlabel="draws a row, K", ylabel="log P(x), nats a row", xscale="log")
        ax.set_xticks(draws, [f"{count:g}" for count in draws])
        ax.minorticks_off()
        ax.legend()
    return ax


def check(found: Check | LogEvidence, *, ax: Axes | None = None, title: str = "") -> Axes:
    """Draw how a method did on rows simulated from the model: the weight of each row's exact draw of its posterior.

    A row is missed if this draw weighs more than all of the method's draws together, right of the line.

    Args:
        found: what ``evidence.check`` returns, or a ``LogEvidence`` with a ``check``.
        ax, title: as in ``training_curves``.
    """
    if isinstance(found, LogEvidence) and found.check is not None:
        found = found.check
    fix = "Pass evidence.check(pair, x), or a LogEvidence whose check is not None."
    if not isinstance(found, Check):
        raise bad_type("found", "a Check, or a LogEvidence with one", shown(found), fix)
    known = _finite(found.log_odds)
    if not len(known):
        came = f"one without weights: {found.reason or 'its answers are closed forms'}"
        raise bad_value("found", "a check of sampled rows", came, fix)
    with _drawing(ax, title) as ax:
        _histograms(ax, [known], [f"{found.simulated} simulated rows"])
        ax.axvline(
            0.0,
            color=_RED,
            linewidth=1,
            label=f"missed right of this: {found.missed} of {found.trusted} trusted",
        )
        ax.set(xlabel="log of weight of exact draw / all others, nats", ylabel="share of rows")
        _legend(ax)
    return ax


# ---------------------------------------------------------------------------------------------------------
# Models


def compare(table: pd.DataFrame, *, ax: Axes | None = None, title: str = "") -> Axes:
    """Draw a comparison: each model's number ± its error, the best at the top, and ± the error of the difference to it.

    A hollow mark is a model's number with the error of its difference to the best as the bar. Models whose hollow bar
    reaches the dotted line are not clearly worse. With ``by``, each label has a group of lines with its own dotted line.

    Args:
        table: what ``compare`` or ``compare_evidence`` returns.
        ax, title: as in ``training_curves``.
    """
    total = hasattr(table, "columns") and "log_evidence" in table
    value, error, paired = ("log_evidence", "mcse", "mcse_diff") if total else ("elpd", "se", "dse")
    _check_frame("table", table, (value, error, paired), "what compare returns")
    groups = [(None, table)]
    if table.index.nlevels > 1:
        groups = [(label, table.loc[label]) for label in table.index.unique(level=0)]
    ticks: list[tuple[float, str]] = []
    height = max(1.6, 0.8 + 0.3 * (len(table) + len(groups)))
    with _drawing(ax, title, height) as ax:
        place = 0.0
        for label, lines in groups:
            if label is not None:
                ticks.append((place, f"{label}:"))
                place -= 1
            places = place - np.arange(len(lines))
            ax.errorbar(lines[value], places, xerr=lines[error], fmt="o", color=_BLACK, capsize=2)
            others = lines[paired].to_numpy() > 0
            centres, beside = lines[value][others], places[others] - 0.25
            hollow: dict[str, Any] = {"markerfacecolor": "white", "capsize": 2, "color": _BLUE}
            ax.errorbar(centres, beside, xerr=lines[paired][others], fmt="^", **hollow)
            ax.vlines(lines[value].iloc[0], places[-1] - 0.5, places[0] + 0.4, color=_BLACK, linestyle=":")
            ticks += [
                (at, textwrap.fill(str(name), 22)) for at, name in zip(places, lines.index, strict=True)
            ]
            place = places[-1] - 1.0
        ax.set_yticks(*zip(*ticks, strict=True))
        ax.errorbar([], [], xerr=[], fmt="o", color=_BLACK, capsize=2, label=f"{value} ± {error}")
        ax.errorbar([], [], xerr=[], fmt="^", label="± error of the difference", **hollow)
        unit = "nats for all rows" if total else "nats a row"
        ax.set(xlabel=f"log P(x), {unit}", ylim=(place + 0.4, 0.6))
        _legend(ax, 0.24 / height, "lower left")
    return ax


plot_compare = compare


def diagnosis(found: Diagnosis, *, ax: Axes | None = None, title: str = "") -> Axes:
    """Draw the rate KL(Q ‖ P) of every latent dimension, the largest first. Inactive dimensions are grey.

    Args:
        found: what ``diagnose`` returns.
        ax, title: as in ``training_curves``; without a title, the verdict is the title.
    """
    frame = _a(Diagnosis, "found", found).dimensions.sort_values("rate", ascending=False, kind="stable")
    verdict = f"{found.verdict}: {found.active_units} of {len(frame)} dimensions active"
    with _drawing(ax, verdict if title == "" else title) as ax:
        active = frame["active"].to_numpy()
        for these, colour, label in ((active, _BLUE, "active"), (~active, _GREY, "inactive")):
            if these.any():
                ax.bar(np.flatnonzero(these), frame["rate"][these], color=colour, label=label)
        if len(frame) <= _MOST_BARS:
            ax.set_xticks(range(len(frame)), [str(name) for name in frame.index], rotation=90)
        ax.set(xlabel="latent dimension, in the order of its rate", ylabel="rate, nats a row")
        ax.legend()
    return ax


def latent(z: Any, color: Any = None, *, ax: Axes | None = None, title: str = "") -> Axes:
    """Draw the rows in the space of the latent code, coloured by a label or a number of each row.

    Above two dimensions, the axes are the first two principal components of the codes. With one dimension, the code is
    drawn against its row.

    Args:
        z: codes, shape (rows, dimensions): an array, or a frame such as ``embed`` returns, whose ``_sd`` columns are left
            out.
        color: a label or a number for each row, shape (rows,). A series is aligned by the index of ``z``. More than twelve
            different numbers get a colour bar; of more than twelve labels, the rarest are drawn as "other".
        ax, title: as in ``training_curves``.
    """
    index = frames.index(z)
    if hasattr(z, "columns"):
        z = z[[name for name in z.columns if not str(name).endswith("_sd")]]
    codes = as_tensor(z, dtype=None, argument="z").flatten(1).cpu().double().numpy()
    names = [f"z_{number}" for number in range(codes.shape[1])]
    if codes.shape[1] > 2:
        codes = codes - codes.mean(axis=0)
        left, spread, _ = np.linalg.svd(codes, full_matrices=False)
        codes, shares = (left * spread)[:, :2], spread**2 / max((spread**2).sum(), 1e-300)
        names = [f"principal component {k + 1} ({shares[k]:.0%} of variance)" for k in (0, 1)]
    elif codes.shape[1] == 1:
        codes, names = np.c_[np.arange(len(codes)), codes], ["row", names[0]]
    labels = None if color is None else row_labels("color", color, index, len(codes))
    with _drawing(ax, title, 3.0) as ax:
        small: dict[str, Any] = {"s": 8 if len(codes) < 1000 else 3, "linewidths": 0}
        name = str(getattr(color, "name", None) or "")
        if labels is None:
            ax.scatter(codes[:, 0], codes[:, 1], color=_BLUE, **small)
        elif labels.dtype.kind in "iuf" and len(np.unique(labels)) > _MOST_LEVELS:
            drawn = ax.scatter(codes[:, 0], codes[:, 1], c=labels.astype(float), cmap="viridis", **small)
            _as_written(ax.figure.colorbar(drawn, ax=ax, label=name).ax)
        else:
            for level, (these, style) in _levels(labels).items():
                ax.scatter(codes[these, 0], codes[these, 1], label=level, **style, **small)
            ax.legend(title=name, loc="center left", bbox_to_anchor=(1.0, 0.5), markerscale=2)
        ax.set(xlabel=names[0], ylabel=names[1])
    return ax


def _levels(labels: np.ndarray) -> dict[str, tuple[np.ndarray, dict[str, Any]]]:
    """Return which rows have each label, and its colour and mark; the rarest of many labels are "other", in grey."""
    words = np.array([f"{label:g}" if isinstance(label, float) else str(label) for label in labels.tolist()])
    levels, counts = np.unique(words, return_counts=True)
    order = (
        np.argsort([float(level) for level in levels]) if labels.dtype.kind in "iuf" else range(len(levels))
    )
    kept = set(levels[np.argsort(-counts, kind="stable")[:_MOST_LEVELS]])
    shown_levels = [levels[i] for i in order if levels[i] in kept]
    found = {
        str(level): (words == level, {"color": COLOURS[i % 7], "marker": _MARKS[i % len(_MARKS)]})
        for i, level in enumerate(shown_levels)
    }
    rest = ~np.isin(words, list(kept))
    return found | ({"other": (rest, {"color": _GREY, "marker": "."})} if rest.any() else {})


# ---------------------------------------------------------------------------------------------------------
# Column by column


def predictive(x: Any, simulated: Any, columns: Sequence[Any] | None = None, *, ax: Any = None) -> np.ndarray:
    """Draw the distribution of each column of the data beside that of rows simulated from the model.

    Titles have the distance of the two, as in ``column_distances``.

    Args:
        x: rows of the data, shape (rows, columns): a tensor, an array or a frame. Missing cells are left out.
        simulated: simulated rows, such as ``vae.sample(len(x))``, with the same columns.
        columns: names or numbers of columns; None draws the nine with the largest distance, in their order.
        ax: an axes for each column; None makes a new figure.

    Returns:
        An array of axes, shape (columns,).
    """
    real, drawn = _columns("x", x), _columns("simulated", simulated)
    distances = column_distances(x, simulated)["distance"]
    names = _chosen(columns, list(real), distances.to_numpy())
    titles = {name: f"{name}: {distances[name]:.2f}" for name in names}
    return _panels(names, titles, real, drawn, ("data", "simulated"), ax)


def imputation(found: Imputation, columns: Sequence[Any] | None = None, *, ax: Any = None) -> np.ndarray:
    """Draw the distribution of the observed cells of each column beside that of the draws of its missing cells.

    The two may differ: cells may be missing more often where their values are large. The other columns can predict this.

    Args:
        found: what ``impute`` returns.
        columns: names or numbers of columns; None draws the nine with most missing cells, in their order.
        ax: an axes for each column; None makes a new figure.

    Returns:
        An array of axes, shape (columns,).
    """
    if not len(_a(Imputation, "found", found).rows):
        raise bad_value("found", "a missing cell", "none", "Pass rows with missing cells to impute.")
    completed = [_columns("found", rows) for rows in found.completed]
    known = list(completed[0]) if found.table is None else found.table.names
    missing = {known[number]: found.rows[found.columns == number] for number in np.unique(found.columns)}
    names = _chosen(columns, list(missing), np.array([len(rows) for rows in missing.values()]))
    titles = {name: f"{name}: {len(missing[name])} missing" for name in names}
    real = {name: np.delete(completed[0][name], missing[name]) for name in names}
    drawn = {name: np.concatenate([each[name][missing[name]] for each in completed]) for name in names}
    return _panels(names, titles, real, drawn, ("observed", "drawn"), ax)


def column_distances(x: Any, simulated: Any) -> pd.DataFrame:
    """Return how far the distribution of each column lies from that of simulated rows, between 0 and 1.

    Of numbers, the ``distance`` is the largest difference of the two distribution functions (Kolmogorov and Smirnov). Of
    other values, it is the largest difference of the probabilities of any set of them (total variation). ``by_chance`` is
    the distance that two samples of one continuous distribution exceed with probability 5 %.

    Args:
        x, simulated: as in ``predictive``.

    Example:
        >>> column_distances(np.array([[0.0], [1.0]]), np.array([[0.0], [3.0]]))["distance"].tolist()
        [0.5]
    """
    import pandas as pd

    real, drawn = _columns("x", x), _columns("simulated", simulated)
    if list(real) != list(drawn):
        came = (
            f"{len(drawn)} columns for {len(real)}" if len(real) != len(drawn) else "columns of other names"
        )
        raise bad_value("simulated", "the columns of x", came, "Simulate rows of the model of x.")
    found = {}
    for name, values in real.items():
        counts = len(values), len(drawn[name])
        chance = 1.358 * (sum(counts) / max(counts[0] * counts[1], 1)) ** 0.5
        found[name] = {"distance": _distance(values, drawn[name]), "by_chance": min(chance, 1.0)}
    return pd.DataFrame.from_dict(found, orient="index").rename_axis("column")


def _distance(one: np.ndarray, other: np.ndarray) -> float:
    if not len(one) or not len(other):
        return 0.0
    numbers = one.dtype.kind == other.dtype.kind == "f"
    levels = np.unique(np.concatenate([one, other] if numbers else [one.astype(str), other.astype(str)]))
    shares = [
        np.bincount(np.searchsorted(levels, v if numbers else v.astype(str)), minlength=len(levels)) / len(v)
        for v in (one, other)
    ]
    difference = shares[0] - shares[1]
    return float(abs(difference.cumsum()).max() if numbers else abs(difference).sum() / 2)


def _columns(argument: str, x: Any) -> dict[Any, np.ndarray]:
    """Return the observed values of each column by its name or number: float64, or objects such as strings."""
    import pandas as pd

    rows = as_passed(x, argument)[1]
    if isinstance(rows, pd.DataFrame):
        held = {name: rows[name].dropna() for name in rows.columns}
        numbers = {
            name: pd.api.types.is_numeric_dtype(v) and not pd.api.types.is_bool_dtype(v)
            for name, v in held.items()
        }
        return {n: v.to_numpy(dtype=np.float64 if numbers[n] else object) for n, v in held.items()}
    array = rows.detach().cpu().numpy() if hasattr(rows, "detach") else rows
    if (
        not isinstance(array, np.ndarray)
        or array.ndim < 2
        or array.dtype.kind not in "biuf"
        or not array.size
    ):
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
    names: list[Any],
    titles: Mapping[Any, str],
    one: Mapping[Any, np.ndarray],
    other: Mapping[Any, np.ndarray],
    labels: tuple[str, str],
    ax: Any,
) -> np.ndarray:
    """Draw two distributions of each column: bars of levels or of few numbers, and histograms."""
    from matplotlib import pyplot, rc_context
    from matplotlib.axes import Axes

    given = None if ax is None else np.atleast_1d(np.asarray(ax, dtype=object)).ravel()
    if given is not None and (len(given) < len(names) or not all(isinstance(each, Axes) for each in given)):
        expected = f"axes for each of {len(names)} columns"
        raise bad_type(
            "ax", expected, shown(ax), "Pass figure.subplots(…), or leave it out for a new figure."
        )
    with rc_context(STYLE):
        if given is None:
            wide = min(len(names), 3)
            lines = -(-len(names) // wide)
            figure = pyplot.figure(figsize=(max(_WIDTH, 2.0 * wide), 0.3 + 1.6 * lines), layout="constrained")
            given = figure.subplots(lines, wide, squeeze=False).ravel()
        for each, name in zip(given, names, strict=False):
            _panel(each, [one[name], other[name]], labels)
            each.set_title(titles[name])
        for rest in given[len(names) :]:
            rest.axis("off")
        for first in {each.figure: each for each in given[len(names) - 1 :: -1]}.values():
            _legend(first, 0.2)
            first.set_ylabel("share")
        for each in given[: len(names)]:
            _as_written(each)
    return given[: len(names)]


def _panel(ax: Axes, values: Sequence[np.ndarray], labels: Sequence[str]) -> None:
    numbers = all(each.dtype.kind == "f" for each in values)
    pooled = np.concatenate([each if numbers else each.astype(str) for each in values])
    levels, counts = np.unique(pooled, return_counts=True)
    if numbers and len(levels) > _MOST_BARS:
        _histograms(ax, values, labels)
        return
    levels = np.sort(levels[np.argsort(-counts, kind="stable")[:_MOST_BARS]])
    for number, (each, label, colour) in enumerate(zip(values, labels, (_GREY, _BLUE), strict=True)):
        held = each if numbers else each.astype(str)
        shares = [(held == level).mean() if len(held) else 0.0 for level in levels]
        ax.bar(np.arange(len(levels)) + 0.4 * (number - 0.5), shares, 0.4, color=colour, label=label)
    words = [f"{level:g}" if numbers else str(level) for level in levels]
    words = [word if len(word) <= 9 else f"{word[:8]}…" for word in words]
    tilted = len(words) > 4 or max(map(len, words)) > 5
    ax.set_xticks(range(len(levels)), words, rotation=90 if tilted else 0)


def _histograms(ax: Axes, values: Sequence[np.ndarray], labels: Sequence[str]) -> None:
    """Draw histograms with common bins: the first filled, the second as a line. Extremes are in the outer bins."""
    pooled = np.concatenate(values)
    low, high = np.quantile(pooled, [_EXTREMES[1] / 2, 1 - _EXTREMES[1] / 2]) if len(pooled) else (0.0, 1.0)
    edges = np.linspace(low, high, _BINS + 1) if low < high else np.array([low - 0.5, low + 0.5])
    if low < high and (pooled == np.rint(pooled)).all():  # bins of as many whole numbers each
        first, last = np.floor(low), np.ceil(high)
        step = max(1.0, np.ceil((last - first) / _BINS))
        edges = first - 0.5 + step * np.arange((last - first) // step + 2)
    for each, label, filled in zip(values, labels, (True, False), strict=False):
        counts, _ = np.histogram(each.clip(low, high), edges)
        style: dict[str, Any] = {"color": "#BBBBBB"} if filled else {"color": _BLUE, "linewidth": 1.2}
        ax.stairs(counts / max(len(each), 1), edges, fill=filled, label=label, **style)


# ---------------------------------------------------------------------------------------------------------
# Arguments


def _finite(values: np.ndarray) -> np.ndarray:
    return values[np.isfinite(values)]


def _a(kind: type, argument: str, value: Any) -> Any:
    """Return ``value`` if it is of a kind; raise ``TypeError`` otherwise."""
    if not isinstance(value, kind):
        raise bad_type(argument, f"a {kind.__name__}", shown(value), "Pass what the library returned.")
    return value


def _check_frame(argument: str, frame: pd.DataFrame, columns: Sequence[str], source: str) -> None:
    import pandas as pd

    if not isinstance(frame, pd.DataFrame):
        raise bad_type(argument, f"a DataFrame, {source}", shown(frame), "Pass that.")
    missing = [column for column in columns if column not in frame]
    if missing or not len(frame):
        came = f"one without {', '.join(missing)}" if missing else "one without lines"
        raise bad_value(argument, f"a DataFrame with {', '.join(columns)}", came, f"Pass {source}.")


def _check_limits(limits: tuple[float, float]) -> None:
    if not isinstance(limits, tuple | list) or len(limits) != 2:
        raise bad_type("limits", "a pair (white, black)", shown(limits), "Pass two numbers.")
    white, black = (arguments.number("limits", limit) for limit in limits)
    if white >= black:
        raise bad_value("limits", "white below black", f"{white:g} and {black:g}", "Swap them.")
