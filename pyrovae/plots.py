"""Figures: functions that draw frames and arrays into matplotlib axes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pyrovae import arguments
from pyrovae.diagnostics import k_threshold
from pyrovae.evidence.result import LogEvidence
from pyrovae.refusals import bad_type, bad_value, shown
from pyrovae.rows import as_tensor

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes


def training_curves(axes: Axes, frame: pd.DataFrame, title: str = "") -> None:
    """Draw the ELBO of every epoch and its parts, rate and reconstruction, in nats a row."""
    _check(axes, title)
    _check_frame("frame", frame, ("epoch", "elbo", "rate", "reconstruction"), "fit's history.frame")
    for column, style in (("reconstruction", "C0"), ("elbo", "C1"), ("rate", "C2")):
        axes.plot(frame["epoch"], frame[column], style, label=column)
        if f"validation_{column}" in frame:
            axes.plot(frame["epoch"], frame[f"validation_{column}"], style, linestyle=":")
    axes.set(xlabel="epoch", ylabel="nats a row", title=title)
    if "validation_elbo" in frame:
        axes.plot([], [], "k:", label="validation")
    axes.legend(fontsize="small")


def image_grid(
    axes: Axes,
    rows: Any,
    shape: tuple[int, int],
    columns: int,
    title: str = "",
    limits: tuple[float, float] | None = None,
) -> None:
    """Draw rows as grey images in a grid with ``columns`` images a line.

    ``rows`` has shape (rows, height · width). ``limits`` are the values drawn white and black; None means the extremes.
    """
    _check(axes, title)
    arguments.integer("columns", columns)
    if not isinstance(shape, tuple | list) or len(shape) != 2:
        raise bad_type("shape", "(height, width)", shown(shape), "Pass two whole numbers.")
    height, width = (arguments.integer("shape", side) for side in shape)
    flat = as_tensor(rows, dtype=None, argument="rows").flatten(1)
    pixels = flat.shape[1:].numel()
    if flat.dim() != 2 or pixels % (height * width):
        raise bad_value(
            "rows",
            f"rows of {height} × {width} pixels, or of several such images",
            f"rows of {pixels} numbers",
            "Pass the shape of one image as shape.",
        )
    if limits is not None:
        _check_limits(limits)
    images = flat.cpu().double().numpy().reshape(-1, height, width)
    lines = -(-len(images) // columns)
    # one pixel of white between images
    canvas = np.full((lines * (height + 1) - 1, columns * (width + 1) - 1), np.nan)
    for index, image in enumerate(images):
        top, left = index // columns * (height + 1), index % columns * (width + 1)
        canvas[top : top + height, left : left + width] = image
    low, high = limits or (np.nanmin(canvas), np.nanmax(canvas))
    axes.imshow(canvas, cmap="gray_r", interpolation="nearest", vmin=low, vmax=high)
    axes.set(title=title)
    axes.axis("off")


def pareto_k(axes: Axes, evidences: Sequence[tuple[str, LogEvidence]], title: str = "") -> None:
    """Draw k-hat of every row, sorted, one curve a model. Rows above the line are not trusted."""
    _check(axes, title)
    for entry in evidences if isinstance(evidences, Sequence) and len(evidences) else [evidences]:
        if not (isinstance(entry, tuple | list) and len(entry) == 2 and isinstance(entry[1], LogEvidence)):
            raise bad_type(
                "evidences",
                "pairs of a name and a LogEvidence",
                shown(entry),
                'Pass [("VAE", log_evidence(vae, x))].',
            )
    for label, evidence in evidences:
        ordered = np.sort(evidence.pareto_k)
        axes.plot(np.arange(1, len(ordered) + 1), ordered, ".", markersize=3, label=label)
    limit = k_threshold(max(evidence.num_samples for _, evidence in evidences) or 5000)
    axes.axhline(limit, color="k", linewidth=1, label=f"trusted up to {limit:.2f}")
    # A few rows far above the line would flatten the rest, and none of them is trusted either way.
    every = np.concatenate([evidence.pareto_k for _, evidence in evidences])
    top = (
        max(1.0, float(np.nanquantile(every[np.isfinite(every)], 0.99))) if np.isfinite(every).any() else 1.0
    )
    axes.set_ylim(top=1.1 * top)
    axes.set(xlabel="row, sorted", ylabel="k-hat", title=title)
    axes.legend(fontsize="small")


def plot_compare(axes: Axes, table: pd.DataFrame, title: str = "") -> None:
    """Draw the result of ``compare``: each model's elpd ± its error over rows, and ± the paired error of the difference.

    The best model is at the top. A hollow mark is the best model's elpd plus the difference to it, and its bar the error
    of that difference. Models whose bar reaches the dotted line are not clearly worse than the best.
    """
    _check(axes, title)
    _check_frame("table", table, ("elpd", "se", "dse"), "what compare returns")
    places = np.arange(len(table))[::-1]
    axes.errorbar(table["elpd"], places, xerr=table["se"], fmt="ko", capsize=3, label="elpd ± se")
    others = table["dse"].to_numpy() > 0
    axes.errorbar(
        table["elpd"][others],
        places[others] - 0.2,
        xerr=table["dse"][others],
        fmt="C0^",
        markerfacecolor="none",
        capsize=3,
        label="± error of the difference",
    )
    axes.axvline(table["elpd"].iloc[0], color="k", linestyle=":", linewidth=1)
    axes.set_yticks(places, [str(name) for name in table.index])
    axes.set(xlabel="log P(x), nats a row", title=title, ylim=(-0.7, len(table) - 0.3))
    axes.legend(fontsize="small")


def convergence(axes: Axes, frame: pd.DataFrame, title: str = "") -> None:
    """Draw the result of ``evidence.convergence``: the lower bound rising with K, and estimates beside it."""
    _check(axes, title)
    _check_frame(
        "frame",
        frame,
        ("num_samples", "elbo", "lower_bound", "mcse", "bias", "jackknife", "pareto_smoothed"),
        "what evidence.convergence returns",
    )
    draws, bound = frame["num_samples"], frame["lower_bound"]
    low, high = bound - 1.96 * frame["mcse"], bound - frame["bias"] + 1.96 * frame["mcse"]
    axes.fill_between(draws, low, high, color="C0", alpha=0.2, label="95 %, with the bias")
    axes.plot(draws, bound, "C0o-", markersize=3, label="lower bound")
    axes.plot(draws, frame["jackknife"], "C1s--", markersize=3, label="jackknife")
    axes.plot(draws, frame["pareto_smoothed"], "C2^--", markersize=3, label="Pareto smoothed")
    axes.axhline(frame["elbo"].iloc[-1], color="k", linestyle=":", linewidth=1, label="ELBO")
    axes.set(xlabel="draws a row, K", ylabel="log P(x), nats a row", xscale="log", title=title)
    axes.legend(fontsize="small")


def _check(axes: Axes, title: str) -> None:
    from matplotlib.axes import Axes

    if not isinstance(axes, Axes):
        raise bad_type("axes", "matplotlib axes", shown(axes), "Pass matplotlib.figure.Figure().subplots().")
    if not isinstance(title, str):
        raise bad_type("title", "a string", shown(title), "Pass one, or leave it out.")


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
