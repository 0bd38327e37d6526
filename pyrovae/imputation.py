"""impute() draws the missing cells of rows from P(x_mis | x_obs), and tells which rows' draws can be trusted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from pyrovae import arguments, frames
from pyrovae.evaluation import Evaluation
from pyrovae.evidence.draws import Draws, resample
from pyrovae.evidence.posterior import undisturbed
from pyrovae.evidence.result import LogEvidence
from pyrovae.evidence.run import Run
from pyrovae.evidence.sampled import METHODS, answers, of_empty_rows, on_simulated, prepare
from pyrovae.model import VAE, LatentVariableModel
from pyrovae.noise import Stream, derive
from pyrovae.refusals import bad_type, bad_value, failure
from pyrovae.rows import as_passed, copied, filled, joined
from pyrovae.turns import takes_turns

if TYPE_CHECKING:
    import pandas as pd

    from pyrovae.tables import Table

__all__ = ["METHODS", "Imputation", "impute"]

# Effective draws of z for every imputation, so that imputations of a row seldom share one.
_ESS_PER_DRAW = 10
# Rows simulated from the model, and the fewest of them that the method must trust. All tests together raise a false alarm
# in one of a thousand models.
_SIMULATED, _FEWEST, _FALSE_ALARM = 200, 50, 1e-3
_FEWEST_IN_COLUMN = 20
#: The points of ``Imputation.point``.
POINTS = ("mean", "median", "mode")


@dataclass(frozen=True, eq=False)
class Imputation:
    """Draws of the missing cells of rows, from P(x_mis | x_obs).

    Cells are in the order of the rows, and within a row of its flattened columns.

    Attributes:
        draws: shape (imputations, missing cells), float64.
        rows, columns: the row and the column of each missing cell, shape (missing cells,), counted from 0; columns of a
            table are counted among ``names``.
        verdict: shape (rows,), each "trust", "more samples", "another method" or "unchecked". A row is "trust" only if
            log P of its observed cells is. It must also have at least ten effective draws of z for each imputation. And
            true cells of simulated rows must have uniform ranks among the method's draws. Rows without missing cells and
            draws of a closed form are "trust".
        ess: effective draws of z, shape (rows,); NaN if z was not sampled.
        answered_by: shape (rows,), the method whose draws of z were used; "exact" if none were needed.
        reasons: why rows are not trusted, in words.
        measure: for every column, whether log P measures it by "mass" or "density".
        names: the columns' names, if x was a frame; numbers among them are strings.
        index: of the rows, if x was a frame or a series.
        table: of a VAE made by ``for_table`` whose x was a frame. Draws and points are then codes; rows and ``to_frame``
            have the values in the frame's types. None otherwise.
    """

    draws: np.ndarray
    rows: np.ndarray
    columns: np.ndarray
    verdict: np.ndarray
    ess: np.ndarray
    answered_by: np.ndarray
    reasons: tuple[str, ...]
    measure: tuple[str, ...]
    names: tuple[str, ...] | None
    index: Any
    _passed: Any = field(repr=False)
    _observed: Tensor | None = field(repr=False)
    table: Table | None = None

    def __len__(self) -> int:
        """Return the number of imputations."""
        return len(self.draws)

    @property
    def completed(self) -> list[Any]:
        """The rows as they were passed, once for each imputation, with its draws in the missing cells.

        They are copies of the rows at the call of ``impute``. A frame keeps its index, its columns and their types, but
        decimals and numbers in columns of objects become float64. Observed cells are unchanged.
        """
        return [self._filled(values) for values in self.draws]

    def _filled(self, values: np.ndarray, rounded: bool = True) -> Any:
        if self._observed is None:
            return copied(self._passed)
        if self.table is None:
            return filled(self._passed, self._observed, values)
        return self.table.filled(self._passed, ~self._observed.cpu().numpy(), values, rounded)

    def point(self, kind: str = "mean") -> Any:
        """Return the rows as they were passed, with the "mean", "median" or "mode" in the missing cells.

        Columns of a table that have levels without an order get the mode.
        """
        arguments.choice("kind", kind, POINTS)
        values = np.where(self._unordered[self.columns], self.mode, getattr(self, kind))
        if np.isnan(values).any():
            odd = np.flatnonzero(np.isnan(values))
            raise bad_value(
                "kind",
                "a point that every missing cell has",
                f"{kind!r}, which {len(odd)} cells lack, first in column {self.columns[odd[0]]}, a density",
                "Pass kind='median'.",
            )
        return self._filled(values, rounded=kind != "mean")

    @property
    def _unordered(self) -> np.ndarray:
        """Whether a column's codes have no order, shape (columns,)."""
        columns = () if self.table is None else self.table.columns
        unordered = [column.levels is not None and column.family != "ordinal" for column in columns]
        return np.array(unordered or [False] * len(self.measure))

    @cached_property
    def mean(self) -> np.ndarray:
        """The mean of the draws, shape (missing cells,). Its Monte-Carlo variance is that of the draws, divided by their number."""
        return self.draws.mean(axis=0)

    @cached_property
    def median(self) -> np.ndarray:
        """The median of the draws, shape (missing cells,); of an even number, the mean of the two in the middle.

        If log P is a mass, it is the one of the two that is nearer to the mean of the draws. If none is nearer, it is the
        lower. So it is a drawn value.
        """
        ordered = np.sort(self.draws, axis=0)
        low, high = ordered[(len(ordered) - 1) // 2], ordered[len(ordered) // 2]
        drawn = np.where(high - self.mean < self.mean - low, high, low)
        return np.where(self._of_mass[self.columns], drawn, low + (high - low) / 2)

    @property
    def _of_mass(self) -> np.ndarray:
        return np.array([kind == "mass" for kind in self.measure], dtype=bool)

    @cached_property
    def mode(self) -> np.ndarray:
        """The most frequent value, the smallest one if several are, shape (missing cells,); NaN where log P is a density."""
        ordered = np.sort(self.draws, axis=0)
        place = np.arange(len(ordered))[:, None]
        new = np.ones(ordered.shape, dtype=bool)
        new[1:] = ordered[1:] != ordered[:-1]
        count = place - np.maximum.accumulate(np.where(new, place, 0), axis=0)
        found = np.take_along_axis(ordered, count.argmax(axis=0)[None], axis=0)[0]
        return np.where(self._of_mass[self.columns], found, np.nan)

    def interval(self, coverage: float = 0.9) -> tuple[np.ndarray, np.ndarray]:
        """Return the ends of the central interval of the draws, each of shape (missing cells,).

        They are quantiles of the draws at (1 ± coverage) / 2, interpolated as if draw k of m were at probability k/(m + 1).
        A new draw then lies below each with that probability. With too few draws, the ends are the smallest and the largest
        draw; 20 draws are enough for coverages up to 0.904.
        """
        share = arguments.positive("coverage", coverage)
        if share >= 1:
            raise bad_value("coverage", "a number between 0 and 1", str(coverage), "Pass 0.9.")
        ends = np.quantile(self.draws, [(1 - share) / 2, (1 + share) / 2], axis=0, method="weibull")
        return ends[0], ends[1]

    def to_frame(self, coverage: float = 0.9) -> pd.DataFrame:
        """Return one line per missing cell: row, column, mean, median, mode, low and high of the interval, verdict.

        ``row`` and ``column`` are labels of the frame that was passed, or numbers from 0.
        Cells of levels without an order have a mode alone.
        """
        import pandas as pd

        low, high = self.interval(coverage)
        ordered = {"mean": self.mean, "median": self.median, "mode": self.mode, "low": low, "high": high}
        found = {
            name: values if name == "mode" else np.where(self._unordered[self.columns], np.nan, values)
            for name, values in ordered.items()
        }
        return pd.DataFrame(
            {
                "row": self.rows if self.index is None else self.index[self.rows],
                "column": self._labels[self.columns],
                **{name: self._decoded(values, name != "mean") for name, values in found.items()},
                "verdict": self.verdict[self.rows],
            }
        )

    @property
    def _labels(self) -> Any:
        """The labels of the columns in the frame that was passed; of other rows the model's names, or numbers from 0."""
        if self.table is not None:
            return frames.own_labels(self.table.names)
        labels = getattr(self._passed, "columns", self.names)
        return frames.own_labels(range(len(self.measure)) if labels is None else labels)

    def _decoded(self, codes: np.ndarray, rounded: bool) -> np.ndarray:
        """Return numbers of the missing cells; of a table the values of their columns; shape (missing cells,)."""
        if self.table is None:
            return codes
        found = np.empty(len(codes), dtype=object)
        for number, column in enumerate(self.table.columns):
            here = self.columns == number
            found[here] = column.decode(codes[here], rounded=rounded).to_numpy(dtype=object)
        return found

    def summary(self) -> str:
        """Return a short text: how many cells were drawn, by what, and how many rows are trusted."""
        holed = np.unique(self.rows)
        words, counts = np.unique(self.verdict[holed], return_counts=True)
        by, of = np.unique(self.answered_by[holed], return_counts=True)
        lines = [
            f"{len(self.draws)} draws of {len(self.rows)} missing cells in {len(holed)} of {len(self.verdict)} rows",
            f"rows with missing cells by verdict: {', '.join(f'{w} {c}' for w, c in zip(words, counts, strict=True)) or 'none'}",
            f"by method: {', '.join(f'{w} {c}' for w, c in zip(by, of, strict=True)) or 'none'}",
        ]
        return "\n".join([*lines, *(f"not trusted: {reason}" for reason in self.reasons)])

    def __str__(self) -> str:
        return self.summary()


@takes_turns
def impute(
    model: Any,
    x: Any,
    num_imputations: int = 20,
    *,
    method: str = "auto",
    num_samples: int = 2000,
    seed: int = 0,
    noise: str = "index",
    check: bool = True,
    progress: bool = False,
) -> Imputation:
    """Return draws of the missing cells of rows, from P(x_mis | x_obs).

    For a pair, z is drawn from P(z | x_obs) by importance resampling. Each imputation chooses one of K draws from a
    proposal q, with probability ∝ P(x_obs, z_k) / q(z_k). Then x_mis ~ P(x_mis | z). Entries of z that a mask leaves out are
    drawn from the model, given the latents before them. Analyse each completed copy, and combine the results by Rubin's rules.
    They include the uncertainty of the missing cells, but not of the fitted parameters. A baseline with ``draw_missing`` draws exactly.

    Args:
        model: a ``VAE``, a ``LatentVariableModel``, or a fitted baseline that takes missing cells.
        x: rows on dim 0, in any form that ``log_evidence`` takes; missing cells are NaN, None or NA.
        num_imputations: draws of every missing cell.
        method: whose draws of z to use. "importance": the encoder's; "refined": those of posteriors fitted to each row;
            "auto": the encoder's, and the fitted ones for rows that the encoder's do not answer. With discrete latents, "auto"
            uses all values of z, or draws for every value of the discrete ones, as in ``log_evidence``.
        num_samples: K, draws of z a row, at least 100.
        seed: a row's draws depend on the seed and its key, and not on the other rows. With "auto", the choice between the
            two methods may depend on the check, and so on all of ``x``.
        noise: the key of a row's draws: its "index" in ``x`` or its "content".
        check: try the method on rows simulated from the model with the masks of ``x``. ``evidence.check`` checks log P. A
            second check ranks the true values of missing cells among the imputations; the ranks are uniform if the draws are
            right. False leaves both out; no row is then "trust".
        progress: show a bar, or plain lines if there is no terminal. "auto" has another for rows that it answers again.

    ``method``, ``num_samples``, ``noise``, ``check`` and ``progress`` apply to pairs.

    Returns:
        An ``Imputation``. A row without missing cells is returned unchanged. A row without an observed cell gets draws of
        P(x).

    Raises:
        TypeError, ValueError: an option, the rows or the model cannot be used. A column of x is not drawn given z, or the
            model also reads x outside its observed sites.

    Rubin (1987); Mattei and Frellsen (2019) for importance resampling in a VAE; Cook, Gelman and Rubin (2006) for ranks.

    Example:
        >>> import torch, pyrovae as pv
        >>> x = torch.tensor([[1.0, torch.nan, 0.0], [0.0, 1.0, 1.0]])
        >>> found = impute(pv.VAE.mlp(3, latent_dim=2), x, num_imputations=5, check=False)
        >>> len(found.completed), found.completed[0].shape
        (5, torch.Size([2, 3]))
    """
    arguments.integer("num_imputations", num_imputations)
    arguments.integer("seed", seed, minimum=0)
    x = joined(x, "x")
    _, passed = as_passed(x)
    if isinstance(model, LatentVariableModel):
        run = prepare(model, x, method, num_samples, seed, check, noise, progress=progress)
        return _of_pair(run, passed, num_imputations, method)
    if isinstance(model, type) or not hasattr(model, "draw_missing"):
        raise bad_type(
            "model",
            "a VAE, a LatentVariableModel or a baseline that takes missing cells",
            f"a {type(model).__name__}",
            "Fit a baseline with draw_missing, such as PPCA, or wrap a Pyro model and guide: LatentVariableModel(model, guide).",
        )
    drawn, source, measure = model._completed(x, num_imputations, seed)
    observed = source.observed
    cells, names, index = _cells(observed), source.names.get("x"), source.index
    draws = drawn.flatten(2)[:, *cells.T] if observed is not None else drawn.new_empty(num_imputations, 0)
    count = len(source.exact)
    return Imputation(
        draws.numpy(),
        cells[:, 0].numpy(),
        cells[:, 1].numpy(),
        np.full(count, "trust"),
        np.full(count, np.nan),
        np.full(count, "exact"),
        (),
        measure,
        names,
        index,
        copied(passed),
        observed,
    )


def _cells(observed: Tensor | None) -> Tensor:
    """Return the row and the flattened column of every missing cell, shape (missing cells, 2)."""
    if observed is None:
        return torch.empty(0, 2, dtype=torch.long)
    return (~observed.cpu()).reshape(len(observed), -1).nonzero()


def _of_pair(run: Run, passed: Any, num_draws: int, method: str) -> Imputation:
    whole, source = run.whole, run.whole.source
    if source is None:
        raise RuntimeError("rows of the user have a source")
    count, cells = len(whole), _cells(source.observed)
    draws = torch.empty(num_draws, len(cells), dtype=torch.float64)
    verdict, answered_by = np.full(count, "trust", dtype="<U14"), np.full(count, "exact", dtype="<U14")
    ess, reasons = np.full(count, np.nan), list[str]()
    if len(cells):
        missing = ~whole.batch["observed"].cpu().reshape(count, -1)
        place = torch.full(missing.shape, -1).masked_scatter(missing, torch.arange(len(cells)))

        def store(evaluation: Evaluation, rows: slice, completed: Tensor) -> None:
            here = place[evaluation.numbers[rows].cpu()]
            draws[:, here[here >= 0]] = completed.flatten(2)[:, here >= 0].double().cpu()

        with undisturbed(whole, Stream.IMPUTE, rows=slice(0, 1)):
            some = whole.part(slice(0, 4))
            whole.model.check_replicable(some, "Use such a model with log_evidence only.")
        holed = missing.any(dim=1).nonzero()[:, 0].to(whole.numbers.device)
        need = _ESS_PER_DRAW * num_draws
        keep = _completing(num_draws, store)
        found = answers(run, method, holed, keep, lambda evidence: evidence.ess < need)
        again = found[1][1] if len(found) > 1 else holed[:0]
        for here, rows, evidence in found:
            numbers = rows.cpu().numpy()
            kept = here is found[-1][0] or ~torch.isin(rows, again).cpu().numpy()
            words, why = _judged(here, evidence, num_draws, np.broadcast_to(kept, len(rows)))
            verdict[numbers], ess[numbers], answered_by[numbers] = words, evidence.ess, evidence.answered_by
            reasons += why
        for of_prior in of_empty_rows(whole):
            keep(of_prior)
    return Imputation(
        draws.numpy(),
        cells[:, 0].numpy(),
        cells[:, 1].numpy(),
        verdict,
        ess,
        answered_by,
        tuple(reasons),
        whole.structure.measure,
        source.names.get("x"),
        source.index,
        copied(passed),
        source.observed,
        run.evaluation.pair.table
        if isinstance(run.evaluation.pair, VAE) and hasattr(passed, "columns")
        else None,
    )


#: Gets the completed rows of a block, shape (draws, rows, *row).
Store = Callable[[Evaluation, slice, Tensor], None]


def _completing(num_draws: int, store: Store) -> Callable[[Draws], None]:
    """Return the function that draws z from the weighted draws of a block, then the missing cells."""

    def keep(draws: Draws) -> None:
        evaluation, rows = draws.evaluation, draws.rows
        with undisturbed(evaluation, Stream.IMPUTE, rows=rows) as drawn:
            latents = draws.chosen(resample(draws.log_weights, num_draws, drawn))
            store(evaluation, rows, evaluation.model.complete(evaluation.part(rows), latents, drawn))

    return keep


def _judged(
    run: Run, evidence: LogEvidence, num_draws: int, kept: np.ndarray
) -> tuple[np.ndarray, list[str]]:
    """Return the verdicts on imputed rows, and why some of those that are ``kept`` are not trusted."""
    need = _ESS_PER_DRAW * num_draws
    few = (evidence.ess < need) & np.isin(evidence.verdict, ("trust", "unchecked"))
    verdict = np.where(few, "more samples", evidence.verdict)
    reasons: list[str] = []
    if (kept & ~np.isin(evidence.verdict, ("trust", "unchecked"))).any():
        reasons += evidence.reasons
        if evidence.check is not None and not evidence.check.passed:
            reasons.append(evidence.check.summary())
    if (kept & few).any():
        reasons.append(
            f"{int((kept & few).sum())} rows have fewer than {need} effective draws of z, ten for each imputation: "
            "pass more num_samples"
        )
    drawn = kept & (verdict == "trust") & (evidence.kind != "exact")
    if drawn.any():
        passed, why = _ranks(run, num_draws)
        if not passed:
            reasons.append(why)
            verdict = np.where(drawn, "unchecked" if passed is None else "another method", verdict)
    return verdict, [f"{evidence.method}: {reason}" for reason in reasons]


def _ranks(run: Run, num_draws: int) -> tuple[bool | None, str]:
    """Return whether missing cells of rows simulated from the model have uniform ranks among their imputations.

    None if too few simulated rows are trusted to tell. The smallest p-value is multiplied by the number of tests (Bonferroni).
    """
    seed = derive(run.evaluation.seed, Stream.IMPUTE, 1)
    kept: list[Tensor] = []
    try:
        rows, found = on_simulated(
            run, _SIMULATED, seed, _completing(num_draws, lambda *block: kept.append(block[2]))
        )
    except Exception as error:  # the user's model may be unable to run on rows that it simulates
        return None, f"rows cannot be simulated from the model: {failure(error)}"
    sound = (found.verdict == "trust") & (found.ess >= _ESS_PER_DRAW * num_draws)
    if sound.sum() < _FEWEST:
        return None, (
            f"{int(sound.sum())} of {len(sound)} rows simulated from the model have a trusted log P and ten effective draws "
            f"of z for each imputation; {_FEWEST} are needed to try the imputations"
        )
    drawn = torch.cat(kept, dim=1).flatten(2).double().cpu().numpy()[:, sound]
    truth = rows.complete.flatten(1).double().cpu().numpy()[sound]
    holes = (~rows.batch["observed"]).flatten(1).cpu().numpy()[sound]
    smallest, tests = uniform_ranks(drawn, truth, holes, np.random.default_rng(seed))
    if smallest * tests < _FALSE_ALARM:
        return False, (
            f"the ranks of missing cells among their imputations are not uniform on {int(sound.sum())} rows simulated from the "
            f"model: p = {min(1.0, smallest * tests):.2g}, corrected for {tests} tests"
        )
    return True, ""


def uniform_ranks(
    draws: np.ndarray, truth: np.ndarray, holes: np.ndarray, generator: np.random.Generator
) -> tuple[float, int]:
    """Return the smallest p-value of tests that ranks are uniform, and the number of tests.

    The rank of x among m draws is (#{draws < x} + v (#{draws = x} + 1)) / (m + 1) with v ~ U(0, 1). It is uniform if x and
    the draws are exchangeable, for masses and densities. Kolmogorov–Smirnov tests have one rank u per row, since cells of a
    row depend on each other. One test is of a missing cell chosen at random, one of a sum of all missing cells with random
    signs. Each column that enough rows lack has a test, too. Each test is done for u and for |2u − 1|, which shows draws
    that are too narrow or too wide.

    Args:
        draws: shape (draws, rows, columns).
        truth, holes: shape (rows, columns); ``holes`` are the missing cells, at least one a row.
    """
    from scipy.stats import kstest

    def ranks(among: np.ndarray, true: np.ndarray) -> np.ndarray:
        below, equal = (among < true).sum(axis=0), (among == true).sum(axis=0)
        return (below + generator.random(true.shape) * (equal + 1)) / (len(among) + 1)

    by_cell = ranks(draws, truth)
    chosen = np.where(holes, generator.random(holes.shape), -1).argmax(axis=1)
    both = np.concatenate([draws, truth[None]])  # in which the true cell is one of equals
    lacks, spread = holes.any(axis=0), np.ones(holes.shape[1])
    spread[lacks] = both[..., lacks].std(
        axis=(0, 1), where=np.broadcast_to(holes[:, lacks], both[..., lacks].shape)
    )
    signs = np.where(holes, generator.choice([-1.0, 1.0], holes.shape), 0.0) / np.where(
        spread > 0, spread, 1.0
    )
    sums: Sequence[np.ndarray] = [
        by_cell[np.arange(len(truth)), chosen],
        ranks((draws * signs).sum(axis=2), (truth * signs).sum(axis=1)),
        *(by_cell[holes[:, d], d] for d in np.flatnonzero(holes.sum(axis=0) >= _FEWEST_IN_COLUMN)),
    ]
    found = [kstest(each, "uniform").pvalue for u in sums for each in (u, np.abs(2 * u - 1))]
    return float(min(found)), len(found)
