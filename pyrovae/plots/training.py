"""The figure of a fit."""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING

import numpy as np

from pyrovae.plots import drawing
from pyrovae.plots.drawing import BLACK, BLUE, GREEN, RED
from pyrovae.training import History

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

# The first epochs, whose values are cut off, as a share of all.
_FIRST = 0.1
# Marks for a single epoch, of which a line shows nothing, by the style of the line.
_MARKERS = {"-": "o", ":": "s"}


def training_curves(history: History | pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Draw the ELBO of every epoch and its parts, in nats a row: ELBO = reconstruction − rate.

    The rate has axes of its own, below the others. Both axes span the values after the first tenth of the epochs, so that
    the first ones do not hide whether the fit has converged.

    Args:
        history: what ``fit`` returns, or its ``frame``.
        ax: axes to draw into; None makes a new figure.
    """
    from matplotlib.ticker import FixedLocator, MaxNLocator

    frame = history.frame if isinstance(history, History) else history
    drawing.check_frame("history", frame, ("epoch", "elbo", "rate", "reconstruction"), "fit's history")
    epochs, first = frame["epoch"], int(_FIRST * len(frame))
    with drawing.axes(ax, 3.2) as ax:
        below = _split(ax)
        for axes, names in (
            (ax, {"reconstruction": BLUE, "elbo": RED}),
            (below, {"rate": GREEN}),
        ):
            for (name, colour), (start, line) in product(names.items(), (("", "-"), ("validation_", ":"))):
                if start + name in frame:
                    marker = _MARKERS[line] if len(frame) == 1 else ""
                    label = "" if start or name == "rate" else {"elbo": "ELBO"}.get(name, name)
                    axes.plot(epochs, frame[start + name], line + marker, color=colour, label=label)
            late = [np.asarray(curve.get_ydata())[first:] for curve in axes.get_lines()]
            known = drawing.finite(np.concatenate(late))
            if len(known) and np.ptp(known) > 0:
                axes.set_ylim(known.min() - 0.05 * np.ptp(known), known.max() + 0.1 * np.ptp(known))
        if "validation_elbo" in frame:
            ax.plot([], [], f":{_MARKERS[':']}" if len(frame) == 1 else ":", color=BLACK, label="validation")
        ax.set_ylabel("nats a row")
        ax.tick_params(labelbottom=False)
        below.xaxis.set_major_locator(
            FixedLocator(epochs.tolist()) if len(frame) == 1 else MaxNLocator(6, integer=True)
        )
        below.set(xlabel="epoch", ylabel="rate,\nnats a row")
        ax.legend(loc="best")
    return ax


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
