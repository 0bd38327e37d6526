"""The sections of a report: each computes its part and fills in text, figures and tables."""

from __future__ import annotations

import base64
import io
import math
import platform
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pyrovae import frames, plots
from pyrovae.comparison import compare
from pyrovae.comparison.predictive import subset
from pyrovae.diagnosis import activity, diagnose
from pyrovae.embedding import embed
from pyrovae.evaluation import Evaluation
from pyrovae.evidence import METHODS, LogEvidence
from pyrovae.evidence.posterior import undisturbed
from pyrovae.evidence.result import fingerprint_of
from pyrovae.imputation import impute
from pyrovae.model import VAE
from pyrovae.noise import Stream
from pyrovae.outlying import outliers
from pyrovae.pages import Grid
from pyrovae.pair import parameters_digest
from pyrovae.progress import Progress
from pyrovae.refusals import Refused, RefusedType, bad_value
from pyrovae.reporting.baselines import MOST_LEVELS, baselines
from pyrovae.reporting.contents import Contents, some
from pyrovae.rows import as_passed, without
from pyrovae.training import History

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

# Rows for the parts that take long, or that show single rows.
_SEARCHED, _COMPLETED, _SHOWN, _DIAGNOSED, _FITTED = 100, 50, 10, 500, 5000
# Columns that are drawn, and the caption and size of the picture of one.
_PANELS, _PANEL = 9, ("", 2.3, 1.8)
_OWN = "this model"  # the name of the reported model among baselines
_PIXELS = 1.4  # CSS pixels on a page for each pixel of a figure of 72 dpi


@dataclass(frozen=True)
class Picture:
    """A figure as a data URL, with its size in CSS pixels."""

    data: str
    width: int
    height: int
    caption: str


@dataclass
class Section:
    """One part of the report."""

    title: str
    text: list[str] = field(default_factory=list)
    figures: list[Picture] = field(default_factory=list)
    grids: list[Grid] = field(default_factory=list)
    code: str = ""

    @contextmanager
    def picture(self, caption: str, width: float = 3.5, height: float = 2.6) -> Iterator[Axes]:
        """Yield axes to draw into, in the style of ``plots``; then add the figure, with two pixels a CSS pixel."""
        from matplotlib import rc_context
        from matplotlib.figure import Figure

        with rc_context(plots.STYLE):
            figure = Figure(figsize=(width, height), layout="constrained")
            yield figure.subplots()
            stream = io.BytesIO()
            figure.savefig(stream, format="png", dpi=2 * 72 * _PIXELS)
        data = base64.b64encode(stream.getvalue()).decode()
        wide, high = (round(72 * _PIXELS * side) for side in (width, height))
        self.figures.append(Picture(f"data:image/png;base64,{data}", wide, high, caption))


def sections(report: Contents, call: str, progress: bool = False) -> list[Section]:
    """Return the sections, in order. One that cannot be made says why in words; each has the warnings of its part."""
    parts = {
        "Data and families": _data,
        "Training": _training,
        "log P(x)": _log_evidence,
        "Check of the method on this model": _check,
        "Comparison with baselines": _comparison,
        "Columns of the data and of simulated rows": _predictive,
        "Latent space": _latent,
        **({"Missing cells": _imputed} if report.missing else {"Reconstructions": _reconstructed}),
        "Least likely rows": _outliers,
        "Diagnosis": _diagnosis,
        "How to repeat this report": _provenance,
    }
    found = []
    with Progress("report", len(parts), "section", show=progress) as done:
        for title, fill in parts.items():
            section = Section(title)
            with warnings.catch_warnings(record=True) as warned:
                warnings.simplefilter("always")
                try:
                    fill(report, section)
                except (Refused, RefusedType, FloatingPointError) as reason:
                    section.text.append(f"Not available: {reason}")
            section.text += [
                f"Warning: {text}" for text in dict.fromkeys(str(each.message) for each in warned)
            ]
            found.append(section)
            done.advance()
    found[-1].code = call
    return found


def _data(report: Contents, section: Section) -> None:
    model, data = report.model, report.data
    cells = (
        f" {int(data.isna().to_numpy().sum())} of {data.size} cells are missing." if report.missing else ""
    )
    section.text.append(f"{len(data)} rows of {data.shape[1]} columns.{cells}")
    if isinstance(model, VAE):
        parts = [type(part).__name__ for part in (model.prior, model.likelihood, model.encoder)]
        section.text.append(f"Prior {parts[0]}, likelihood {parts[1]}, encoder {parts[2]}.")
    section.text.append(f"{sum(p.numel() for p in model.parameters())} parameters.")
    given = list(report.evidence.given)
    if given:
        section.text.append(f"All numbers are given {', '.join(given)}, which are not scored.")
    summary = data.describe(include="all").T
    shown = ("count", "unique", "top", "mean", "std", "min", "50%", "max")
    summary = (
        summary[[name for name in shown if name in summary]]
        .rename(columns={"50%": "median"})
        .set_axis(frames.own_labels(data.columns).rename("column"), axis=0)
    )
    summary.insert(0, "P is a", list(report.evidence.measure))
    if isinstance(model, VAE) and model.table is not None:
        summary.insert(0, "family", [column.family for column in model.table.columns])
        summary["why"] = [column.why for column in model.table.columns]
        for name, why in model.table.left_out.items():
            section.text.append(f"Column {name!r} is left out: {why}.")
    section.grids.append(Grid.of(summary, most=_SHOWN if len(summary) > MOST_LEVELS else MOST_LEVELS))


def _training(report: Contents, section: Section) -> None:
    history = None if report.model.fitted is None else History(**report.model.fitted.history)
    if history is None or not history.records:
        section.text.append("Not available: the model has no record of a fit by pyrovae.")
        return
    last = history.frame.iloc[-1]
    held = f", {last['validation_elbo']:.3f} on validation rows" if "validation_elbo" in last else ""
    section.text.append(f"{len(history)} epochs in {history.way} steps; stopped: {history.stopped}.")
    section.text.append(f"The last ELBO is {last['elbo']:.3f} nats a row in training{held}.")
    if history.best_epoch:
        section.text.append(f"The model has the weights of epoch {history.best_epoch}.")
    with section.picture("ELBO = reconstruction − rate, by epoch.") as ax:
        plots.training_curves(history, ax=ax)


def _log_evidence(report: Contents, section: Section) -> None:
    section.text += report.evidence.summary().splitlines()
    try:
        method = METHODS[report.method]
        of_model: LogEvidence | None = method(report.model, report.simulated, seed=report.seed, check=False)
    except Refused as reason:
        of_model = None
        section.text.append(f"No simulated rows: {reason}")
    with section.picture("log P(x) of the rows and of rows simulated from the model.") as ax:
        plots.log_evidence(report.evidence, of_model, ax=ax)
    if not np.isnan(report.evidence.pareto_k).all():
        with section.picture("k-hat of the rows. Rows above the line are not trusted.") as ax:
            plots.pareto_k(report.evidence, ax=ax)


def _check(report: Contents, section: Section) -> None:
    check = report.evidence.check
    if check is None:
        reason = "no row's weights allow trust, or the method is exact"
        section.text.append(f"The method was not tried on simulated rows: {reason}.")
        return
    section.text += check.summary().splitlines()
    section.text.append(
        "Rows simulated from the model come with an exact draw of their posterior. A trusted row is missed if this draw "
        "weighs more than all draws of the method together."
    )
    if np.isfinite(check.log_odds).any():
        with section.picture("The weight of the exact draw among those of the method.") as ax:
            plots.check(check, ax=ax)


def _comparison(report: Contents, section: Section) -> None:
    kept, total = np.flatnonzero(report.compared), as_passed(report.train)[1].shape[0]
    count = min(total, _FITTED)
    if not count:
        raise bad_value("x", "two rows, one of which baselines are fitted to", "one", "Pass train.")
    here = some(report.x, kept)
    scored = Evaluation.prepare(report.model, here, 1, report.seed).source
    own = subset(report.evidence, report.compared)
    if scored is not None:
        own = replace(own, fingerprint=fingerprint_of(scored, report.model))
    scores = {_OWN: own}
    section.text.append(
        f"Baselines are fitted to {count} {report.whose}, and all are compared on {len(kept)}."
    )
    for name, score in baselines(report, some(report.train, report.drawn(total, count)), here):
        if isinstance(score, Refused):
            section.text.append(f"{name}: not available: {score}")
        else:
            scores[name] = score
    if len(scores) == 1:
        return
    seen = {name: score.seen for name, score in scores.items()}
    if seen.pop(_OWN) > max(seen.values()):
        section.text.append(
            f"The model was fitted to {own.seen} of the rows compared. It has an advantage over the baselines."
        )
    table = compare(scores, training_rows=True)
    report.tiles.append(_standing(table))
    section.grids.append(Grid.of(table.short(), "log P(x), nats a row ± standard error over rows."))
    with section.picture("The best model is at the top.", height=2.2) as ax:
        plots.compare(table, ax=ax)


def _standing(table: pd.DataFrame) -> tuple[str, str, str]:
    """Return the name, the value and the note of the tile on the place of the reported model among the baselines."""
    place = list(table.index).index(_OWN)
    line = table.iloc[place or 1]  # the differences of all lines are to the best
    distance = f"{-line['elpd_diff']:.2f} ± {line['dse']:.2f} nats a row"
    note = f"{distance} behind {table.index[0]}" if place else f"best by {distance}, over {table.index[1]}"
    return f"place of the model among {len(table)}", str(place + 1), note


def _predictive(report: Contents, section: Section) -> None:
    data, made = report.data, report.frame(report.simulated.complete)
    found = plots.column_distances(data, made)
    beyond, compared = int((found["distance"] > found["by_chance"]).sum()), found["distance"].count()
    section.text.append(
        f"Distances are between 0 and 1. {beyond} of {compared} columns are farther from {len(made)} simulated rows than two "
        "samples of one distribution are in 95 % of cases."
    )
    caption = ""
    for share in (0.5, 0.9):
        inside = [_inside(data[name], made[name], share) for name in found.index]
        if not np.isnan(inside).all():
            found[f"in the model's {share:.0%}"] = inside
            caption = (
                "The share of the data in a central interval of the model should be that of the interval."
            )
    worst = found.sort_values("distance", ascending=False, kind="stable")
    section.grids.append(Grid.of(worst, caption))
    for name in worst.index[:_PANELS]:
        with section.picture(*_PANEL) as ax:
            plots.predictive(data, made, [name], ax=ax)


def _latent(report: Contents, section: Section) -> None:
    codes = embed(report.model, report.x, seed=report.seed)
    section.text.append("Each point is the encoder's mean of a row's latent code.")
    with section.picture("Rows in the latent space.", height=3.0) as ax:
        color = None if report.color is None else report.color.set_axis(codes.index)
        plots.latent(codes, color, ax=ax)


def _imputed(report: Contents, section: Section) -> None:
    holed = (
        (~report.evaluation.batch["observed"])
        .flatten(1)
        .any(dim=1)
        .nonzero()[:, 0]
        .cpu()
        .numpy()[:_COMPLETED]
    )
    found = impute(report.model, some(report.x, holed), method=report.method_of_draws, seed=report.seed)
    section.text.append(f"Draws for the first {len(holed)} rows with missing cells.")
    section.text += found.summary().splitlines()
    section.grids.append(
        Grid.of(found.to_frame(), "Missing cells, with 90 % intervals.", _SHOWN, index=False)
    )
    names = report.names if found.table is None else found.table.names
    # A column may be observed only in rows without missing cells.
    beside, rows = as_passed(report.x)
    rows = without(rows, beside["observed"]) if "observed" in beside else rows
    for number in np.argsort(-np.bincount(found.columns), kind="stable")[:_PANELS]:
        if number in found.columns:
            with section.picture(*_PANEL) as ax:
                plots.imputation(found, [names[number]], x=rows, ax=ax)


def _reconstructed(report: Contents, section: Section) -> None:
    model, batch = report.model, report.evaluation.batch
    few = 20 if report.image_shape else 4
    first = report.evaluation.of_rows(torch.arange(min(few, len(batch["x"]))), report.seed, 1)
    section.text.append("Means of P(x | z) for z drawn from the encoder.")
    if isinstance(model, VAE):
        rebuilt = model.reconstruct(some(report.x, first.numbers.cpu().numpy()), seed=report.seed)
    else:
        with undisturbed(first, Stream.RECONSTRUCT) as drawn:
            latents, _ = first.model.propose(first.batch, 100, drawn)
            first.model.check_replicable(first.batch, "Use a model whose rows are drawn given z.")
            rebuilt = first.model.replicate(first.batch, latents, drawn.branch()).mean(dim=0)
    if report.image_shape is not None:
        with section.picture("Rows, and their reconstructions below them.", width=5.0) as ax:
            plots.reconstructions(first.batch["x"], rebuilt, report.image_shape, ax=ax)
        return
    import pandas as pd

    rebuilt = rebuilt if isinstance(rebuilt, pd.DataFrame) else report.frame(rebuilt)
    pairs = {"row": report.data.iloc[: len(rebuilt), :_SHOWN], "reconstruction": rebuilt.iloc[:, :_SHOWN]}
    both = pd.concat({name: each.reset_index(drop=True).astype(object) for name, each in pairs.items()})
    both = both.swaplevel().sort_index(level=0, sort_remaining=False, kind="stable")
    section.grids.append(Grid.of(both.rename_axis(["row", "values"])))


def _outliers(report: Contents, section: Section) -> None:
    lowest = np.argsort(report.evidence.estimate, kind="stable")
    others = np.sort(lowest[_SHOWN:])[: _SEARCHED - _SHOWN]
    searched = np.sort(np.r_[lowest[:_SHOWN], others])
    found = outliers(report.model, some(report.x, searched), method=report.method_of_draws, seed=report.seed)
    worst = found["score"].to_numpy().argsort(kind="stable")[::-1][:_SHOWN]
    data = report.data.iloc[searched[worst]]
    labels = getattr(as_passed(report.x)[1], "columns", report.names)
    columns = {str(label): i for i, label in enumerate(labels)}
    odd = found.iloc[worst][["score", "error", "verdict", "oddest", "below", "cell_verdict"]].copy()
    if report.evidence.index is None:
        odd = odd.set_axis(searched[worst], axis=0).rename_axis("row")
    places = [columns.get(str(label)) for label in odd["oddest"]]
    held: list[Any] = [None if place is None else data.iloc[i, place] for i, place in enumerate(places)]
    odd.insert(4, "its value", [value.item() if hasattr(value, "item") else value for value in held])
    odd = odd.rename(columns={"score": "−log P(x)", "below": "nats below the column's median"})
    section.text.append(
        f"Cells are compared by log P(cell | the row's other cells) among {len(searched)} rows. The oddest cell of a row lies "
        "farthest below the median of its column."
    )
    section.grids.append(Grid.of(odd))


def _diagnosis(report: Contents, section: Section) -> None:
    few = some(report.x, report.drawn(len(report.evaluation), _DIAGNOSED))
    found = diagnose(report.model, few, seed=report.seed)
    active = activity(found)
    report.tiles.append(("diagnosis", found.verdict, active))
    section.text += [f"{found.verdict}: {active}.", *map(str, found.findings)]
    section.text.append(
        f"ELBO {found.elbo:.3f} = reconstruction {found.reconstruction:.3f} − rate {found.rate:.3f}; inference gap "
        f"{found.inference_gap:.3f} ± {found.inference_gap_se:.3f}, by {found.gap_method}; mutual information "
        f"{found.mutual_information:.3f}; KL(q(z) ‖ P(z)) {found.prior_gap:.3f}; all in nats a row."
    )
    with section.picture("KL(Q ‖ P) of each latent dimension.") as ax:
        plots.diagnosis(found, ax=ax)
    if found.columns is not None:
        ranked = found.columns.sort_values("share", ascending=False, kind="stable")
        section.grids.append(Grid.of(ranked, "How strongly each column moves z.", _SHOWN))


def _provenance(report: Contents, section: Section) -> None:
    import pyrovae

    names = ("torch", "pyro-ppl", "numpy", "scipy", "pandas", "scikit-learn", "matplotlib")
    versions = [("pyrovae", pyrovae.__version__), ("Python", platform.python_version())]
    versions += [(name, version(name)) for name in names]
    hashes = [
        ("parameters of the model, sha256", parameters_digest(report.model)),
        ("rows scored here, sha256", report.evidence.fingerprint.sha256),
        *((f"{name} beside the rows, sha256", digest) for name, digest in report.evidence.given.items()),
        ("seed of all noise", str(report.seed)),
    ]
    if report.model.fitted is not None:
        hashes.append(("rows of the last fit, sha256", report.model.fitted.fingerprint))
        hashes.append(("rows fitted to", str(report.model.fitted.rows)))
    section.text.append(
        "The same model, rows and versions give the same numbers on the same machine and threads."
    )
    section.grids += [
        Grid(("what", "value"), tuple(hashes)),
        Grid(("package", "version"), tuple(versions)),
    ]


def _inside(data: pd.Series, made: pd.Series, share: float) -> float:
    """Return the share of a column of numbers in the central interval of simulated ones; NaN for levels."""
    kinds = {getattr(each.dtype, "kind", "O") for each in (data, made)}
    if not kinds <= {"i", "u", "f"} or len(np.unique(made)) <= MOST_LEVELS:
        return math.nan
    known = data.dropna().to_numpy(dtype=np.float64)
    low, high = np.quantile(made.to_numpy(dtype=np.float64), [(1 - share) / 2, (1 + share) / 2])
    return float(((known >= low) & (known <= high)).mean()) if len(known) else math.nan
