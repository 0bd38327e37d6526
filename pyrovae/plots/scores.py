"""Figures of log P(x) and of what says whether to trust it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pyrovae.diagnosis import Diagnosis
from pyrovae.diagnostics import k_threshold
from pyrovae.evidence.check import Check
from pyrovae.evidence.result import LogEvidence
from pyrovae.plots import drawing
from pyrovae.plots.drawing import BLACK, BLUE, EXTREMES, GREEN, GREY, RED
from pyrovae.refusals import bad_type, bad_value, shown

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes


def log_evidence(
    evidence: LogEvidence, simulated: LogEvidence | None = None, *, ax: Axes | None = None
) -> Axes:
    """Draw the histogram of log P(x_n) over the rows, beside that of rows simulated from the model.

    Rows of the data that lie left of all simulated ones are less probable than the model expects of any row. The evidence
    of a training set is one number for all its rows, drawn as a point with its 95 % interval.

    Args:
        evidence: what ``log_evidence`` or ``marginal_likelihood`` returns.
        simulated: the ``LogEvidence`` of simulated rows, such as ``pv.log_evidence(vae, vae.sample(500))``; None
            leaves them out. If x has missing cells, simulated rows need the same ones: with fewer cells, log P is another
            number. Pass ``vae.sample(len(x)).mask(x.isna().to_numpy())`` for a frame, and
            ``torch.where(x.isnan(), torch.nan, vae.sample(len(x)))`` for a tensor.
        ax: as in ``training_curves``.

    The legend says how many cells of a row are observed on average, if some are missing.

    Raises:
        TypeError, ValueError: an argument is no ``LogEvidence``; rows have missing cells on one side only; one side is the
            evidence of a training set.
    """
    found = {"rows": drawing.instance("evidence", evidence, LogEvidence)}
    if simulated is not None and "evidence" in (evidence.target, getattr(simulated, "target", None)):
        raise bad_value(
            "simulated",
            "log P of single rows, beside log P of single rows",
            "the evidence of a training set, one number for all its rows, on one side or both",
            "Leave simulated out.",
        )
    if evidence.target == "evidence":
        return _together(evidence, ax)
    if simulated is not None:
        found["simulated rows"] = drawing.instance("simulated", simulated, LogEvidence)
    _require_masks_alike(list(found.values()))
    values = [score.estimate[~np.isnan(score.estimate)] for score in found.values()]
    units = "nats, given what was given" if evidence.given else "nats"
    with drawing.axes(ax) as ax:
        ax.set(xlabel=f"log P(x) of a row, {units}", ylabel="share of rows")
        drawing.histograms(
            ax, values, [f"{name} ({len(each)}{_cells(each)})" for name, each in found.items()]
        )
        for value, colour in zip(values, (BLACK, BLUE), strict=False):
            if len(drawing.finite(value)) == len(value) > 0:
                ax.axvline(value.mean(), color=colour, linestyle=":", linewidth=1)
        ax.plot([], [], ":", color=GREY, label="mean")
        drawing.legend(ax)
    return ax


def _holed(score: LogEvidence) -> bool:
    """Return whether rows of a score have missing cells."""
    return score.observed is not None and bool((score.observed < len(score.measure)).any())


def _cells(score: LogEvidence) -> str:
    """Return how many cells of a row are observed on average, in words; "" if none is missing."""
    if score.observed is None or not _holed(score):
        return ""
    return f", {score.observed.mean():.3g} of {len(score.measure)} cells"


def _require_masks_alike(scores: Sequence[LogEvidence]) -> None:
    """Raise ``ValueError`` if some rows have missing cells and the others were scored without a mask."""
    if any(map(_holed, scores)) and any(score.observed is None for score in scores):
        said = ["missing cells" if _holed(score) else "none" for score in scores]
        came = f"{said[0]} in the rows and {said[1]} in simulated ones"
        fix = "Pass simulated rows without missing cells, such as vae.sample(len(x))."
        if _holed(scores[0]):
            fix = "Hide the cells that x lacks: vae.sample(len(x)).mask(x.isna().to_numpy()) for a frame of rows."
        raise bad_value("simulated", "rows with as many observed cells as the rows", came, fix)


def _together(evidence: LogEvidence, ax: Axes | None) -> Axes:
    """Draw the evidence of a training set as a point with its 95 % interval."""
    rows = len(evidence.fingerprint)
    whose = f"{rows} rows" if rows else "all rows"
    units = "nats, given what was given" if evidence.given else "nats"
    with drawing.axes(ax) as ax:
        ax.plot(evidence.estimate, [0.0], "o", color=BLACK, label=f"evidence of {whose}")
        ax.plot(evidence.mean_interval, [0.0, 0.0], "-", color=BLACK, label="95 % interval")
        ax.set(xlabel=f"log P(x) of {whose} together, {units}", yticks=[], ylim=(-1.0, 1.0))
        ax.spines["left"].set_visible(False)
        ax.locator_params(axis="x", nbins=4)
        ax.ticklabel_format(axis="x", useOffset=False)
        drawing.legend(ax)
    return ax


def pareto_k(evidences: Any, *, ax: Axes | None = None) -> Axes:
    """Draw k-hat of every row's importance weights, sorted. Rows above the line are not trusted.

    Args:
        evidences: a ``LogEvidence``, a ``Diagnosis``, a dict of ``LogEvidence``s by the names of their models, or pairs of
            a name and one. The legend counts the rows of each that are on or below the line.
        ax: as in ``training_curves``.
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
    every = drawing.finite(np.concatenate([evidence.pareto_k for _, evidence in evidences]))
    with drawing.axes(ax) as ax:
        for number, (name, evidence) in enumerate(evidences):
            known = np.sort(evidence.pareto_k[~np.isnan(evidence.pareto_k)])
            below = f"{int((known <= limit).sum())} of {len(known)}" if len(known) else "no draws"
            style = drawing.mark(number, first=1) | {"linestyle": "none", "markersize": 2}
            ax.plot(np.arange(1, len(known) + 1), known, label=f"{name}: {below}", **style)
        ax.axhline(limit, color=BLACK, linewidth=1)
        if len(every):
            ax.set_ylim(top=1.1 * max(1.0, float(np.quantile(every, 1 - EXTREMES))))
        ax.set(xlabel="row, in the order of its k-hat", ylabel="k-hat")
        drawing.legend(ax, title=f"rows up to {limit:.2f}, the line")
    return ax


def convergence(frame: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Draw the result of ``evidence.convergence``: the lower bound rising with K, and estimates beside it.

    Args:
        frame: what ``evidence.convergence`` returns.
        ax: as in ``training_curves``.
    """
    needed = ("num_samples", "elbo", "lower_bound", "mcse", "bias", "jackknife", "pareto_smoothed")
    drawing.check_frame("frame", frame, needed, "what evidence.convergence returns")
    draws, bound = frame["num_samples"], frame["lower_bound"]
    low, high = bound - 1.96 * frame["mcse"], bound - frame["bias"] + 1.96 * frame["mcse"]
    with drawing.axes(ax) as ax:
        ax.fill_between(draws, low, high, color=BLUE, alpha=0.2, linewidth=0, label="95 %, with the bias")
        ax.plot(draws, bound, "o-", color=BLUE, label="lower bound")
        ax.plot(draws, frame["jackknife"], "s--", color=RED, label="jackknife")
        ax.plot(draws, frame["pareto_smoothed"], "^:", color=GREEN, label="Pareto smoothed")
        ax.axhline(frame["elbo"].iloc[-1], color=BLACK, linestyle="-.", linewidth=1, label="ELBO")
        ax.set(xlabel="draws a row, K", ylabel="log P(x), nats a row", xscale="log")
        ax.set_xticks(draws, [f"{count:g}" for count in draws])
        ax.minorticks_off()
        ax.legend()
    return ax


def check(found: Check | LogEvidence, *, ax: Axes | None = None) -> Axes:
    """Draw how a method did on rows simulated from the model: the weight of each row's exact draw of its posterior.

    Rows right of the line are missed: this draw weighs more than all of the method's draws together.

    Args:
        found: what ``evidence.check`` returns, or a ``LogEvidence`` with a ``check``.
        ax: as in ``training_curves``.
    """
    if isinstance(found, LogEvidence) and found.check is not None:
        found = found.check
    fix = "Pass evidence.check(pair, x), or a LogEvidence whose check is not None."
    if not isinstance(found, Check):
        raise bad_type("found", "a Check, or a LogEvidence with one", shown(found), fix)
    known = drawing.finite(found.log_odds)
    if not len(known):
        came = f"one without weights: {found.reason or 'its answers are closed forms'}"
        raise bad_value("found", "a check of sampled rows", came, fix)
    with drawing.axes(ax) as ax:
        ax.set(xlabel="log of weight of exact draw / all others, nats", ylabel="share of rows")
        drawing.histograms(ax, [known], [f"{found.simulated} simulated rows"])
        label = f"missed right of this: {found.missed} of {found.trusted} trusted"
        ax.axvline(0.0, color=RED, linewidth=1, label=label)
        drawing.legend(ax)
    return ax
