"""report() writes one HTML file on a model and rows: log P(x), its checks, comparisons, figures, odd rows, and how to repeat it."""

from __future__ import annotations

import base64
import copy
import io
import math
import os
import platform
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from pyrovae import arguments, frames, identity, noise, pages, plots
from pyrovae.baselines import (
    PPCA,
    Baseline,
    BernoulliMixture,
    IndependentBernoulli,
    IndependentGaussian,
    IndependentNegativeBinomial,
    IndependentPoisson,
    LatentClass,
)
from pyrovae.comparison import compare
from pyrovae.comparison.predictive import subset
from pyrovae.diagnosis import diagnose
from pyrovae.embedding import embed
from pyrovae.evaluation import Evaluation, Simulated
from pyrovae.evidence import METHODS, LogEvidence, log_evidence
from pyrovae.evidence.posterior import undisturbed
from pyrovae.evidence.result import about
from pyrovae.evidence.simulated import simulated
from pyrovae.imputation import impute
from pyrovae.likelihoods.base import of_observed
from pyrovae.model import VAE, LatentVariableModel
from pyrovae.networks import MLP
from pyrovae.noise import Stream
from pyrovae.outlying import outliers
from pyrovae.pages import Grid
from pyrovae.pair import parameters_digest
from pyrovae.refusals import Refused, RefusedType, bad_type, bad_value, shown
from pyrovae.rows import as_passed, joined, restored, row_labels
from pyrovae.storage import replacing
from pyrovae.training import History, fit
from pyrovae.turns import takes_turns

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure as MatplotlibFigure

__all__ = ["report"]

# Rows for the parts that take long, or that show single rows.
_SIMULATED, _SEARCHED, _COMPLETED, _SHOWN, _DIAGNOSED = 300, 100, 50, 10, 500
# Rows that baselines are fitted to, epochs of the linear one, components of mixtures, most levels of a label.
_FITTED, _EPOCHS, _COMPONENTS, _MOST_LEVELS = 5000, 50, 5, 20
_TITLE = "Report on a model of rows"
_BY_CHANCE = 1e-3  # probability of matches of two sets of rows that is no reason to refuse them
# Columns that are drawn, and the caption and size of the picture of one.
_PANELS, _PANEL = 9, ("", 2.3, 1.8)
_PIXELS = 1.4  # CSS pixels on a page for each pixel of a figure of 72 dpi


@dataclass(frozen=True)
class _Picture:
    data: str
    width: int
    height: int
    caption: str


@dataclass
class _Section:
    """One part of the report."""

    title: str
    text: list[str] = field(default_factory=list)
    figures: list[_Picture] = field(default_factory=list)
    grids: list[Grid] = field(default_factory=list)
    code: str = ""


@takes_turns
def report(
    model: LatentVariableModel,
    x: Any,
    path: str | os.PathLike[str],
    *,
    train: Any = None,
    color: Any = None,
    image_shape: tuple[int, int] | None = None,
    method: str = "auto",
    num_rows: int = 500,
    seed: int = 0,
    title: str = _TITLE,
    command: str | None = None,
    progress: bool = False,
) -> None:
    """Write one HTML file on a model and rows, which needs no network and no other file.

    It holds the data and their families; the training curves; log P(x) with its interval and verdicts; the check of the
    method on the model; a comparison with two baselines; how far simulated rows are from the data, column by column; the
    latent space; reconstructions, or completed cells; the least likely rows and their odd cells; the diagnosis in words;
    versions, seeds and hashes. A part that the model does not allow says why. The same arguments, files and versions give
    the same bytes.

    ``report`` fits the baselines, to rows that it does not score. Rows of real numbers get independent Gaussians and
    PPCA, binary rows independent Bernoullis and a mixture of them, labels latent classes, and counts independent Poissons and
    negative binomials. A table gets independent columns of its families, and its VAE with a linear decoder.

    Args:
        model: a ``VAE`` or any ``LatentVariableModel``.
        x: rows on dim 0, in any form that ``log_evidence`` takes, preferably held out.
        path: of the file, whose folder has to exist. The finished report replaces it in one step.
        train: rows to fit the baselines to, none of them in ``x``. None fits them to the rows of ``x`` that are not compared,
            at least half of them.
        color: a label or a number for each row, which colours the latent space; see ``plots.latent``.
        image_shape: (height, width) of rows that are images.
        method: of ``log_evidence``.
        num_rows: the most rows that are scored. If x has more, ``num_rows`` of them are drawn at random.
        seed: of all noise.
        title: of the page.
        command: the command to show for repeating the report; None shows the call of this function.
        progress: show progress bars.

    Raises:
        TypeError, ValueError: an argument, the rows or the model cannot be used; ``train`` holds rows of ``x``.
        OSError: the file cannot be written. Nothing is computed if its folder is missing or it is a folder.

    Example:
        >>> import pathlib, tempfile, torch, pyrovae as pv
        >>> x = (torch.rand(20, 3, generator=torch.Generator().manual_seed(0)) < 0.5).float()
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder, "report.html")
        ...     report(pv.VAE.mlp(3, 1), x, path, method="importance")
        ...     path.read_text(encoding="utf-8").splitlines()[0]
        '<!DOCTYPE html>'
    """
    target = arguments.path("path", path)
    arguments.choice("method", method, tuple(name for name in METHODS if name != "exact"))
    arguments.integer("num_rows", num_rows, minimum=2)
    arguments.integer("seed", seed, minimum=0)
    arguments.boolean("progress", progress)
    for name, text in (("title", title), ("command", "" if command is None else command)):
        if not isinstance(text, str):
            raise bad_type(name, "a string", shown(text), "Pass one, or leave it out.")
    call = command or _call(path, train, color, image_shape, method, num_rows, seed, title)
    with replacing(target, "a file to write the report to") as file:
        found = _Report(model, x, train, color, image_shape, method, num_rows, seed, progress)
        sections = [found.section(name, make) for name, make in found.parts().items()]
        sections.append(found.provenance(call))
        page = pages.render("report.html", title=title, report=found, sections=sections)
        file.write(page.encode(errors="replace"))  # half of a surrogate pair has no UTF-8


def _call(
    path: Any, train: Any, color: Any, image_shape: Any, method: str, num_rows: int, seed: int, title: str
) -> str:
    """Return the call of ``report`` that makes the same page."""
    named = {"train": train, "color": color}
    given = [f"{name}={name}" for name, value in named.items() if value is not None]
    plain = {"image_shape": image_shape, "method": method, "num_rows": num_rows, "seed": seed, "title": title}
    usual = {"image_shape": None, "title": _TITLE}
    given += [f"{name}={value!r}" for name, value in plain.items() if usual.get(name, ...) != value]
    return f"pyrovae.report({', '.join(['model', 'x', repr(os.fspath(path)), *given])})"


class _Report:
    """The model, the rows that are scored, and what several parts of the report need."""

    def __init__(
        self,
        model: LatentVariableModel,
        x: Any,
        train: Any,
        color: Any,
        image_shape: Any,
        method: str,
        num_rows: int,
        seed: int,
        progress: bool,
    ) -> None:
        """Check the rows, draw those that are scored, and score them."""
        x = joined(x, "x")
        whole = Evaluation.prepare(model, x, 1, seed)
        x, self.total = model.arranged(x), len(whole)
        self.model, self.method, self.seed, self.image_shape = model, method, seed, image_shape
        if image_shape is not None:
            _check_image_shape(image_shape, whole.batch["x"][0].numel())
        if train is not None:
            train = joined(train, "train")
            _check_apart(whole, Evaluation.prepare(model, train, 1, seed, argument="train"))
        with noise.seeded(noise.derive(seed, Stream.DATA)):
            order = torch.randperm(self.total).numpy()
        chosen, few = np.sort(order[:num_rows]), order[: min(num_rows, max(self.total // 2, 1))]
        self.color = None if color is None else _series(color, as_passed(x)[1]).iloc[chosen]
        self.x = _some(x, chosen)
        #: The rows that baselines are fitted to, whose rows these are, and which rows are compared.
        self.train, self.whose, self.compared = train, "rows of train", np.ones(len(chosen), dtype=bool)
        if train is None:
            few = _leaving_cells(few, whole.batch.get("observed"))
            rest = _some(x, np.sort(np.setdiff1d(order, few)))
            self.train, self.whose, self.compared = rest, "other rows of x", np.isin(chosen, few)
        self.evaluation = Evaluation.prepare(model, self.x, 1, seed)
        self.evidence = METHODS[method](model, self.x, seed=seed, progress=progress)
        drawn = f", drawn from {self.total}" if self.total > len(chosen) else ""
        self.about = f"{type(model).__name__}, {len(chosen)} rows{drawn}, {len(self.names)} columns"
        low, high = self.evidence.mean_interval
        trusted = f"{self.evidence.counts()['trust']} of {len(chosen)}"
        #: Names, values and notes of the most important numbers.
        self.tiles = [
            ("log P(x), nats a row", f"{self.evidence.mean:.3f}", f"95 % interval {low:.3f} to {high:.3f}"),
            ("rows trusted", trusted, f"by method {method!r}"),
            ("check of the method", self.evidence.checked, "on rows simulated from the model"),
        ]

    def parts(self) -> dict[str, Callable[[_Section], None]]:
        """Return the parts of the report by their titles, in order; each fills its section."""
        return {
            "Data and families": self._data,
            "Training": self._training,
            "log P(x)": self._log_evidence,
            "Check of the method on this model": self._check,
            "Comparison with baselines": self._comparison,
            "Columns of the data and of simulated rows": self._predictive,
            "Latent space": self._latent,
            "Missing cells" if self.missing else "Reconstructions": self._rows,
            "Least likely rows": self._outliers,
            "Diagnosis": self._diagnosis,
        }

    def section(self, title: str, make: Callable[[_Section], None]) -> _Section:
        """Return a section, with the reason in words if it cannot be made, and with warnings."""
        section = _Section(title)
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            try:
                make(section)
            except (Refused, RefusedType, FloatingPointError) as reason:
                section.text.append(f"Not available: {reason}")
        section.text += [f"Warning: {text}" for text in dict.fromkeys(str(each.message) for each in warned)]
        return section

    # -----------------------------------------------------------------------------------------------------
    # What several parts need

    @cached_property
    def simulated(self) -> Simulated:
        """Rows simulated from the model, given what was beside the rows."""
        count = min(len(self.evaluation), _SIMULATED)
        return simulated(self.evaluation, torch.arange(count, device=self.evaluation.batch["x"].device))

    @property
    def missing(self) -> bool:
        return "observed" in self.evaluation.batch

    @cached_property
    def names(self) -> list[Any]:
        """The names or numbers of the columns of the flattened rows."""
        held = frames.names(as_passed(self.x)[1])
        return list(held) if held else list(range(self.evaluation.batch["x"][0].numel()))

    def frame(self, values: Tensor) -> pd.DataFrame:
        """Return rows of the model as a frame in the units of the data; a missing cell is NaN, None or NA."""
        import pandas as pd

        table = self.model.table if isinstance(self.model, VAE) else None
        flat = values.detach().reshape(len(values), -1).double().cpu()
        return table.decode(flat) if table is not None else pd.DataFrame(flat.numpy(), columns=self.names)

    @property
    def data(self) -> pd.DataFrame:
        """The rows as a frame, with the index of x."""
        batch = self.evaluation.batch
        found = self.frame(restored(batch["x"], batch.get("observed")))
        return found if self.evidence.index is None else found.set_axis(self.evidence.index, axis=0)

    # -----------------------------------------------------------------------------------------------------
    # Foot

    def provenance(self, call: str) -> _Section:
        import pyrovae

        names = ("torch", "pyro-ppl", "numpy", "scipy", "pandas", "scikit-learn", "matplotlib")
        versions = [("pyrovae", pyrovae.__version__), ("Python", platform.python_version())]
        versions += [(name, version(name)) for name in names]
        hashes = [
            ("parameters of the model, sha256", parameters_digest(self.model)),
            ("rows scored here, sha256", self.evidence.fingerprint.sha256),
            *((f"{name} beside the rows, sha256", digest) for name, digest in self.evidence.given.items()),
            ("seed of all noise", str(self.seed)),
        ]
        if self.model.fitted is not None:
            hashes.append(("rows of the last fit, sha256", self.model.fitted.fingerprint))
            hashes.append(("rows fitted to", str(self.model.fitted.rows)))
        return _Section(
            "How to repeat this report",
            [
                "The same model, rows and versions give the same numbers on the same machine and threads.",
            ],
            grids=[
                Grid(("what", "value"), tuple(hashes)),
                Grid(("package", "version"), tuple(versions)),
            ],
            code=call,
        )

    # -----------------------------------------------------------------------------------------------------
    # Parts

    def _data(self, section: _Section) -> None:
        model, data = self.model, self.data
        cells = (
            f"{int(data.isna().to_numpy().sum())} of {data.size} cells are missing." if self.missing else ""
        )
        section.text.append(f"{len(data)} rows of {data.shape[1]} columns. {cells}".strip())
        if isinstance(model, VAE):
            parts = [type(part).__name__ for part in (model.prior, model.likelihood, model.encoder)]
            section.text.append(f"Prior {parts[0]}, likelihood {parts[1]}, encoder {parts[2]}.")
        section.text.append(f"{sum(p.numel() for p in model.parameters())} parameters.")
        given = list(self.evidence.given)
        if given:
            section.text.append(f"All numbers are given {', '.join(given)}, which are not scored.")
        summary = data.describe(include="all").T
        kept = [
            name for name in ("count", "unique", "top", "mean", "std", "min", "50%", "max") if name in summary
        ]
        summary = summary[kept].rename(columns={"50%": "median"}).rename_axis("column")
        summary.insert(0, "P is a", list(self.evidence.measure))
        if isinstance(model, VAE) and model.table is not None:
            known = model.table.summary().set_index("column")
            summary.insert(0, "family", known["family"].reindex(summary.index))
            summary["why"] = known["why"].reindex(summary.index)
            for name, why in model.table.left_out.items():
                section.text.append(f"Column {name!r} is left out: {why}.")
        section.grids.append(Grid.of(summary, most=_SHOWN if len(summary) > _MOST_LEVELS else _MOST_LEVELS))

    def _training(self, section: _Section) -> None:
        history = None if self.model.fitted is None else History(**self.model.fitted.history)
        if history is None or not history.records:
            section.text.append("Not available: the model has no record of a fit by pyrovae.")
            return
        last = history.frame.iloc[-1]
        held = f", {last['validation_elbo']:.3f} on validation rows" if "validation_elbo" in last else ""
        section.text.append(f"{len(history)} epochs in {history.way} steps; stopped: {history.stopped}.")
        section.text.append(f"The last ELBO is {last['elbo']:.3f} nats a row in training{held}.")
        if history.best_epoch:
            section.text.append(f"The model has the weights of epoch {history.best_epoch}.")
        with self._picture(section, "ELBO = reconstruction − rate, by epoch.") as figure:
            plots.training_curves(history, ax=figure.subplots())

    def _log_evidence(self, section: _Section) -> None:
        section.text += self.evidence.summary().splitlines()
        try:
            method = METHODS[self.method]
            of_model: LogEvidence | None = method(self.model, self.simulated, seed=self.seed, check=False)
        except Refused as reason:
            of_model = None
            section.text.append(f"No simulated rows: {reason}")
        with self._picture(section, "log P(x) of the rows and of rows simulated from the model.") as figure:
            plots.log_evidence(self.evidence, of_model, ax=figure.subplots())
        if not np.isnan(self.evidence.pareto_k).all():
            with self._picture(section, "k-hat of the rows. Rows above the line are not trusted.") as figure:
                plots.pareto_k(self.evidence, ax=figure.subplots())

    def _check(self, section: _Section) -> None:
        check = self.evidence.check
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
            with self._picture(section, "The weight of the exact draw among those of the method.") as figure:
                plots.check(check, ax=figure.subplots())

    def _comparison(self, section: _Section) -> None:
        kept, count = np.flatnonzero(self.compared), min(as_passed(self.train)[1].shape[0], _FITTED)
        if not count:
            raise bad_value("x", "two rows, one of which baselines are fitted to", "one", "Pass train.")
        here = _some(self.x, kept)
        scored = Evaluation.prepare(self.model, here, 1, self.seed).source
        own = subset(self.evidence, self.compared)
        if scored is not None:
            own = replace(own, fingerprint=identity.fingerprint(scored.exact, scored.observed))
        scores = {"this model": own}
        section.text.append(
            f"Baselines are fitted to {count} {self.whose}, and all are compared on {len(kept)}."
        )
        for name, score in self._baselines(_some(self.train, np.arange(count)), here):
            if isinstance(score, Refused):
                section.text.append(f"{name}: not available: {score}")
            else:
                scores[name] = score
        if len(scores) == 1:
            return
        seen = {name: score.seen for name, score in scores.items()}
        if seen.pop("this model") > max(seen.values()):
            section.text.append(
                f"The model was fitted to {own.seen} of the rows compared. It has an advantage over the baselines."
            )
        table = compare(scores, training_rows=True)
        lead = table["elpd"].iloc[0] - table["elpd"].iloc[1]
        note = f"by {lead:.2f} ± {table['dse'].iloc[1]:.2f} nats a row"
        self.tiles.append((f"best of {len(scores)}", str(table.index[0]), note))
        section.grids.append(Grid.of(table.short(), "log P(x), nats a row ± standard error over rows."))
        with self._picture(section, "The best model is at the top.", height=2.2) as figure:
            plots.compare(table, ax=figure.subplots())

    def _baselines(self, train: Any, x: Any) -> Iterator[tuple[str, LogEvidence | Refused]]:
        """Yield two fitted baselines' log P of rows, by name, or why there is none: quick ones for the kind of the data."""
        model = self.model
        if isinstance(model, VAE) and model.table is not None:
            yield "independent columns", independent_columns(model, train, x)
            linear = _linear(model, train, self.seed)
            fit(linear, train, epochs=_EPOCHS, lr=1e-2, seed=self.seed)
            yield "linear decoder", log_evidence(linear, x, method="auto", seed=self.seed)
            return
        fitted: dict[str, Baseline]
        values = self.evaluation.batch["x"]
        values = values[restored(values, self.evaluation.batch.get("observed")).isfinite()]
        whole, most = bool((values == values.round()).all()), float(values.max())
        latent_dim = max(1, min(_COMPONENTS, len(self.names) - 1))
        if set(self.evidence.measure) == {"density"}:
            fitted = {"independent Gaussians": IndependentGaussian(), f"PPCA({latent_dim})": PPCA(latent_dim)}
        elif set(self.evidence.measure) != {"mass"} or not whole or float(values.min()) < 0:
            expected = "all densities, all masses of whole numbers from 0 on, or a table"
            raise bad_value("x", expected, "other columns", "Pass baselines of your own to compare.")
        elif most <= 1:
            fitted = {
                "independent Bernoullis": IndependentBernoulli(),
                f"{_COMPONENTS} Bernoulli classes": BernoulliMixture(_COMPONENTS),
            }
        elif most <= _MOST_LEVELS:
            levels = int(most) + 1
            fitted = {
                "independent labels": LatentClass(1, levels),
                f"{_COMPONENTS} latent classes": LatentClass(_COMPONENTS, levels),
            }
        else:
            fitted = {
                "independent Poissons": IndependentPoisson(),
                "negative binomials": IndependentNegativeBinomial(),
            }
        for name, baseline in fitted.items():
            try:
                found: LogEvidence | Refused = log_evidence(baseline.fit(train), x)
            except Refused as reason:  # such as columns with too few cells for it
                found = reason
            yield name, found

    def _predictive(self, section: _Section) -> None:
        data, made = self.data, self.frame(self.simulated.complete)
        found = plots.column_distances(data, made)
        beyond = int((found["distance"] > found["by_chance"]).sum())
        section.text.append(
            f"Distances are between 0 and 1. {beyond} of {len(found)} columns are farther from {len(made)} simulated rows than "
            "two samples of one distribution are in 95 % of cases."
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
            with self._picture(section, *_PANEL) as figure:
                plots.predictive(data, made, [name], ax=figure.subplots())

    def _latent(self, section: _Section) -> None:
        codes = embed(self.model, self.x, seed=self.seed)
        section.text.append("Each point is the posterior mean of a row's latent code, by the encoder.")
        with self._picture(section, "Rows in the latent space.", height=3.0) as figure:
            color = None if self.color is None else self.color.set_axis(codes.index)
            plots.latent(codes, color, ax=figure.subplots())

    def _rows(self, section: _Section) -> None:
        model, batch = self.model, self.evaluation.batch
        if self.missing:
            holed = (~batch["observed"]).flatten(1).any(dim=1).nonzero()[:, 0].cpu().numpy()[:_COMPLETED]
            found = impute(model, _some(self.x, holed), method=self.method_of_draws, seed=self.seed)
            section.text.append(f"Draws for the first {len(holed)} rows with missing cells.")
            section.text += found.summary().splitlines()
            section.grids.append(
                Grid.of(found.to_frame(), "Missing cells, with 90 % intervals.", _SHOWN, index=False)
            )
            names = self.names if found.table is None else found.table.names
            most = np.argsort(-np.bincount(found.columns), kind="stable")[:_PANELS]
            drawn = [names[number] for number in most if number in found.columns]
            with ExitStack() as stack:  # which leaves the picture that it entered last first
                figures = [stack.enter_context(self._picture(section, *_PANEL)) for _ in drawn][::-1]
                plots.imputation(found, drawn, ax=[figure.subplots() for figure in figures])
            return
        few = 20 if self.image_shape else 4
        some = self.evaluation.of_rows(torch.arange(min(few, len(batch["x"]))), self.seed, 1)
        section.text.append("Means of P(x | z) for z drawn from the encoder.")
        if isinstance(model, VAE):
            rebuilt = model.reconstruct(_some(self.x, some.numbers.cpu().numpy()), seed=self.seed)
        else:
            with undisturbed(some, Stream.RECONSTRUCT) as drawn_noise:
                latents, _ = some.model.propose(some.batch, 100, drawn_noise)
                some.model.check_replicable(some.batch, "Use a model whose rows are drawn given z.")
                rebuilt = some.model.replicate(some.batch, latents, drawn_noise.branch()).mean(dim=0)
        if self.image_shape is not None:
            with self._picture(section, "Rows, and their reconstructions below them.", width=5.0) as figure:
                plots.reconstructions(some.batch["x"], rebuilt, self.image_shape, ax=figure.subplots())
            return
        import pandas as pd

        rebuilt = rebuilt if isinstance(rebuilt, pd.DataFrame) else self.frame(rebuilt)
        pairs = [self.data.iloc[: len(rebuilt), :_SHOWN], rebuilt.iloc[:, :_SHOWN]]
        both = pd.concat(
            [each.reset_index(drop=True).astype(object) for each in pairs], keys=["row", "reconstruction"]
        )
        both = both.swaplevel().sort_index(level=0, sort_remaining=False, kind="stable")
        section.grids.append(Grid.of(both.rename_axis(["row", "values"])))

    @property
    def method_of_draws(self) -> str:
        """The method, if it draws z for single rows, else "auto"."""
        return self.method if self.method in ("importance", "refined") else "auto"

    def _outliers(self, section: _Section) -> None:
        lowest = np.argsort(self.evidence.estimate, kind="stable")
        searched = np.sort(
            np.r_[
                lowest[:_SHOWN], np.setdiff1d(np.arange(len(lowest)), lowest[:_SHOWN])[: _SEARCHED - _SHOWN]
            ]
        )
        found = outliers(self.model, _some(self.x, searched), method=self.method_of_draws, seed=self.seed)
        worst = found["score"].to_numpy().argsort(kind="stable")[::-1][:_SHOWN]
        data, columns = self.data.iloc[searched[worst]], {str(name): i for i, name in enumerate(self.names)}
        odd = found.iloc[worst][["score", "error", "verdict", "oddest", "below", "cell_verdict"]].copy()
        if self.evidence.index is None:
            odd = odd.set_axis(searched[worst], axis=0).rename_axis("row")
        held: list[Any] = [
            None if name is None else data.iloc[i, columns[str(name)]] for i, name in enumerate(odd["oddest"])
        ]
        odd.insert(4, "its value", [value.item() if hasattr(value, "item") else value for value in held])
        odd = odd.rename(columns={"score": "−log P(x)", "below": "nats below the column's median"})
        section.text.append(
            f"Cells are compared by log P(cell | the row's other cells) among {len(searched)} rows. The oddest cell of a row lies "
            "farthest below the median of its column."
        )
        section.grids.append(Grid.of(odd))

    def _diagnosis(self, section: _Section) -> None:
        few = _some(self.x, np.arange(min(len(self.evaluation), _DIAGNOSED)))
        found = diagnose(self.model, few, seed=self.seed)
        active = f"{found.active_units} of {len(found.dimensions)} latent dimensions active"
        self.tiles.append(("diagnosis", found.verdict, active))
        section.text += [f"{found.verdict}: {active}.", *map(str, found.findings)]
        section.text.append(
            f"ELBO {found.elbo:.3f} = reconstruction {found.reconstruction:.3f} − rate {found.rate:.3f}; inference gap "
            f"{found.inference_gap:.3f} ± {found.inference_gap_se:.3f}, by {found.gap_method}; mutual information "
            f"{found.mutual_information:.3f}; KL(q(z) ‖ P(z)) {found.prior_gap:.3f}; all in nats a row."
        )
        with self._picture(section, "KL(Q ‖ P) of each latent dimension.") as figure:
            plots.diagnosis(found, ax=figure.subplots())
        if found.columns is not None:
            ranked = found.columns.sort_values("share", ascending=False, kind="stable")
            section.grids.append(Grid.of(ranked, "How strongly each column moves z.", _SHOWN))

    @contextmanager
    def _picture(
        self, section: _Section, caption: str, width: float = 3.5, height: float = 2.6
    ) -> Iterator[MatplotlibFigure]:
        """Yield a figure to draw into, in the style of ``plots``; then add it to the section, with two pixels a CSS pixel."""
        from matplotlib import rc_context
        from matplotlib.figure import Figure

        with rc_context(plots.STYLE):
            figure = Figure(figsize=(width, height), layout="constrained")
            yield figure
            stream = io.BytesIO()
            figure.savefig(stream, format="png", dpi=2 * 72 * _PIXELS)
        data = base64.b64encode(stream.getvalue()).decode()
        wide, high = (round(72 * _PIXELS * side) for side in (width, height))
        section.figures.append(_Picture(f"data:image/png;base64,{data}", wide, high, caption))


def _some(x: Any, numbers: np.ndarray) -> Any:
    """Return some of the rows, with what goes with them."""

    def part(value: Any) -> Any:
        if hasattr(value, "iloc"):
            return value.iloc[numbers]
        return (
            value[torch.from_numpy(numbers).to(value.device)] if isinstance(value, Tensor) else value[numbers]
        )

    beside, rows = as_passed(x)
    return (
        {"x": part(rows), **{name: part(value) for name, value in beside.items()}} if beside else part(rows)
    )


def _leaving_cells(few: np.ndarray, observed: Tensor | None) -> np.ndarray:
    """Return the numbers of some rows, without those that the others need for two observed cells in every column.

    A column with one cell is constant. ``observed`` tells which cells of all rows are observed; None if all are.
    """
    if observed is None:
        return few
    seen = observed.reshape(len(observed), -1).cpu().numpy()
    left = seen.sum(axis=0) - seen[few].sum(axis=0)
    kept = []
    for row in few:
        if (seen[row] & (left < 2)).any():
            left = left + seen[row]
        else:
            kept.append(row)
    return np.array(kept, dtype=few.dtype)


def _series(color: Any, rows: Any) -> pd.Series:
    """Return a label or a number for each row, in the order of the rows."""
    import pandas as pd

    values = row_labels("color", color, frames.index(rows), rows.shape[0])
    return pd.Series(values, name=getattr(color, "name", None))


def _inside(data: pd.Series, made: pd.Series, share: float) -> float:
    """Return the share of a column of numbers in the central interval of simulated ones; NaN for levels."""
    kinds = {getattr(each.dtype, "kind", "O") for each in (data, made)}
    if not kinds <= {"i", "u", "f"} or len(np.unique(made)) <= _MOST_LEVELS:
        return math.nan
    known = data.dropna().to_numpy(dtype=np.float64)
    low, high = np.quantile(made.to_numpy(dtype=np.float64), [(1 - share) / 2, (1 + share) / 2])
    return float(((known >= low) & (known <= high)).mean()) if len(known) else math.nan


def _check_apart(x: Evaluation, train: Evaluation) -> None:
    """Raise ``ValueError`` if rows to fit baselines to are among those to score, beyond what chance explains."""
    hashes = [
        identity.row_hashes(rows.source.exact, rows.source.observed)
        for rows in (x, train)
        if rows.source is not None
    ]
    found = identity.seen(*hashes)
    if found.number and found.by_chance < _BY_CHANCE:
        came = f"{found.number} of the {len(hashes[0])} rows of x, first row {int(found.matches.argmax())}"
        raise bad_value("train", "rows that are not in x", came, "Pass other rows, or leave train out.")


def _check_image_shape(shape: Any, pixels: int) -> None:
    height, width = arguments.image_shape("image_shape", shape)
    if pixels != height * width:
        came = f"{height} × {width}"
        raise bad_value("image_shape", f"the shape of rows of {pixels} pixels", came, "Pass (height, width).")


def _linear(model: VAE, train: Any, seed: int) -> VAE:
    """Return a copy of a table's VAE with a linear decoder that starts at the marginals of ``train``, not fitted."""
    found: Any = copy.deepcopy(model)
    found.fitted = None
    with noise.seeded(noise.derive(seed, Stream.WEIGHTS)):
        network = MLP(found.prior.latent_dim, (), sum(found.likelihood.widths))
    found.likelihood.network = network.to(model.device, model.dtype)
    found.likelihood.start_from(found.table.encode(as_passed(train)[1]))
    return found


def independent_columns(model: VAE, train: Any, x: Any) -> LogEvidence:
    """Return log P of rows under independent columns of a table's families, each with the marginal of ``train``."""
    flat: Any = _linear(model, train, 0)
    evaluation = Evaluation.prepare(flat, x, 1, 0)
    rows = evaluation.batch["x"]
    observed = evaluation.batch.get("observed", torch.ones_like(rows, dtype=torch.bool))
    with flat.evaluating():
        # A linear decoder returns its bias at z = 0.
        fn, rows = of_observed(
            flat.likelihood(rows.new_zeros(len(rows), flat.prior.latent_dim)), rows, observed
        )
        estimate = fn.log_prob(rows).double().cpu().numpy()
    measure, known = evaluation.structure.measure, about(evaluation.source, flat)
    return LogEvidence.exact(estimate, measure=measure, method="independent columns", **known)
