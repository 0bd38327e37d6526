"""LogEvidence holds log P(x) of every row, with its error and a verdict on whether to trust it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from pyrovae import identity, pages
from pyrovae.diagnostics import Accumulator, k_threshold
from pyrovae.evaluation import Evaluation
from pyrovae.pair import Batch
from pyrovae.rows import Source

if TYPE_CHECKING:
    import pandas as pd

    from pyrovae.evidence.check import Check

KINDS = ("exact", "lower bound", "upper bound", "estimate")
VERDICTS = ("trust", "more samples", "another method", "unchecked")

# Two-sided 95 % of a normal distribution.
_Z95 = 1.959963984540054
#: Largest share of draws that may round onto a bound of their support. Such draws weigh nothing, so the
#: estimate misses the mass around them.
MOST_LOST = 0.01
# Beta posteriors of shape 0.02 and 0.1 have 10 to 50 times as much mass beyond the last number as its weight says.
_MASS_BEYOND = 10.0
# With fewer effective draws, the estimate of the error is unreliable. Of 64 annealed chains, 11 to 15 effective ones were trusted with a small
# k-hat in rows that were up to ten standard errors off.
_FEWEST_EFFECTIVE = 25


def verdicts(pareto_k: np.ndarray, num_samples: int | np.ndarray) -> np.ndarray:
    """Return a verdict on each importance-weighted row, shape (rows,), from its k-hat and its number of draws K.

    The verdict is "trust" if k-hat is at most min(1 − 1/log10 K, 0.7). It is "more samples" if k-hat is at
    most 0.7, or NaN because K is too small to fit a tail. It is "another method" above 0.7, because the
    weights then converge too slowly for more draws to help (Vehtari et al. 2024). The Monte-Carlo error alone
    cannot replace k-hat: it is small if the draws miss the large weights. A small k-hat is not sufficient
    either: a guide that covers one of two distant modes has one.
    """
    with np.errstate(invalid="ignore"):
        believed = pareto_k <= np.vectorize(k_threshold, otypes=[float])(num_samples)
        hopeless = pareto_k > 0.7
    return np.array(VERDICTS)[np.where(hopeless, 2, np.where(believed, 0, 1))]


_ORDER = np.array(["trust", "unchecked", "more samples", "another method"])


def worse(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return the worse of two verdicts, entry by entry: "trust", "unchecked", "more samples", "another method"."""
    return _ORDER[np.maximum(_rank(one), _rank(other))]


def worst(verdict: np.ndarray) -> np.ndarray:
    """Return the worst verdict of every row, (rows,), of (rows, columns)."""
    return _ORDER[_rank(verdict).max(axis=1)]


def _rank(verdict: np.ndarray) -> np.ndarray:
    found = verdict[..., None] == _ORDER
    if not found.any(axis=-1).all():
        raise RuntimeError(f"no verdicts: {set(np.unique(verdict)) - set(_ORDER)}")
    return found.argmax(axis=-1)


#: The heaviest draws hold this share of the weight; see ``Check``.
HEAVIEST = 0.05
#: An upper end of an interval from which on it is shown as infinite, in nats.
_UNBOUNDED = 1e6
_MISSED = "the posterior has mass where no draws were made"
#: A reason that more than one method reports.
CUT_OFF = "the guide has density 0 where P(x, z) > 0, so its draws miss part of log P(x)"


def judge(
    verdict: np.ndarray, columns: Columns, findings: Mapping[str, Tensor] | None = None
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return the verdicts and the reasons in words; a row with a reason gets "another method" whatever its k-hat.

    A row with fewer than 25 effective draws is at best "more samples". ``findings`` maps each reason to the rows that it applies to, a boolean tensor of shape (rows,).
    """
    few = (columns.ess < _FEWEST_EFFECTIVE).cpu().numpy()
    verdict = np.where(few & (verdict == "trust"), "more samples", verdict)
    known = {
        "P(x, z) is 0 at every draw": torch.isneginf(columns.estimate),
        f"more than {MOST_LOST:.0%} of the draws round onto a bound of their support": columns.lost
        > MOST_LOST,
        _MISSED: columns.missed > 0,
        **(findings or {}),
    }
    reasons = []
    for words, rows in known.items():
        if bool(rows.any()):
            count, first = int(rows.sum()), int(rows.int().argmax())
            reasons.append(f"{words}: {count} row{'s' * (count > 1)}, first row {first}")
            verdict = np.where(rows.cpu().numpy(), "another method", verdict)
    return verdict, tuple(reasons)


def lost_at_bounds(at_bounds: Tensor, weights: Accumulator) -> Tensor:
    """Return the share of log P(x_n) that rounding onto bounds may change, (rows,).

    ``at_bounds`` is the log of the sum of the weights of draws there, (rows,). The density is cut off at a bound, so the mass
    is several times what these weights say.
    """
    share = (at_bounds - weights.log_mean_exp()).exp() / weights.num_samples
    return (_MASS_BEYOND * share).nan_to_num(0.0)


def _same(word: str, num_rows: int) -> np.ndarray:
    """Return one word for every row, shape (rows,): a read-only array that stores the word once."""
    return np.broadcast_to(np.array(word), (num_rows,))


def given_of(batch: Batch) -> dict[str, str]:
    """Return a sha256 of each value that was given with the rows, by name. The fingerprint covers which cells are missing."""
    return {
        name: identity.digest(value.double())
        for name, value in batch.items()
        if name not in ("x", "observed")
    }


def fingerprint_of(source: Source, model: Any) -> identity.Fingerprint:
    """Return the fingerprint of the rows of a model; of one with a table, also of the values that its codes stand for."""
    table, names = getattr(model, "table", None), source.names.get("x")
    found = identity.fingerprint(source.exact, source.observed, names)
    if table is None:
        return found
    values = table.values(source.exact, source.observed)
    same = torch.equal(values, source.exact)
    return replace(found, values=found if same else identity.fingerprint(values, source.observed, names))


def about(source: Source | None, model: Any) -> dict[str, Any]:
    """Return the fields of a ``LogEvidence`` on its rows: fingerprint, index, number of rows the model was fitted to."""
    if source is None:
        raise RuntimeError("an evaluation of a subset of another's rows has no fingerprint")
    fitted = getattr(model, "seen", None)
    rows = identity.Seen(np.zeros(len(source.exact), dtype=bool))
    if fitted is not None:
        rows = identity.seen(identity.row_hashes(source.exact, source.observed), fitted)
    observed = None
    if source.observed is not None:
        observed = source.observed.reshape(len(source.exact), -1).sum(dim=1).cpu().numpy()
        rows = identity.Seen(rows.matches & (observed > 0), rows.chance)  # rows without a cell are all equal
    return {
        "fingerprint": fingerprint_of(source, model),
        "observed": observed,
        "seen": rows.number,
        "index": source.index,
        "_seen": rows,
    }


def frame_of(columns: Mapping[str, Any], index: Any) -> pd.DataFrame:
    """Return a frame with one line per row of x and with the index of x, if x had one."""
    import pandas as pd

    found = pd.DataFrame(columns, index=index)
    return found.rename_axis("row") if index is None else found


def _shared_mcse(mcse: np.ndarray, groups: np.ndarray, answered_by: np.ndarray) -> float:
    """Return the Monte-Carlo standard error of the mean if rows of one group share their noise."""
    grid = answered_by == "quadrature"
    return (_of_sum(mcse[~grid], groups[~grid]) + float(mcse[grid].sum())) / len(mcse)


def _of_sum(errors: np.ndarray, groups: np.ndarray) -> float:
    """Return the error of a sum over rows, whose errors are common within a group and independent between groups."""
    each = np.bincount(groups, weights=errors)
    return float(np.sqrt((each**2).sum()))


def _interval(estimate: Any, mcse: Any, bias: Any, tail_error: Any) -> tuple[Any, Any]:
    """Return estimate ± 1.96 · mcse, widened by the bias on the side of the true value, and upwards by the tail."""
    low, high = _Z95 * mcse, _Z95 * np.hypot(mcse, tail_error)
    with np.errstate(invalid="ignore"):  # of an estimate of −∞
        return estimate - low - np.maximum(bias, 0.0), estimate + high - np.minimum(bias, 0.0)


@dataclass(frozen=True)
class Columns:
    """The numbers of a ``LogEvidence`` on some rows, each float64 of shape (rows,).

    ``tail_error`` is the error by weights that were too rare to be drawn. ``lost`` is the share of draws that rounding put
    onto a bound of their support. ``missed`` is 1 if the proposals have little density at a point that matters. ``log_odds``
    is log of the weight of the row's exact draw over the sum of all other weights. ``excess`` is whether that draw is among
    the heaviest, minus the probability of that by chance. Both are NaN for rows of the user.
    """

    estimate: Tensor
    mcse: Tensor
    bias: Tensor
    ess: Tensor
    pareto_k: Tensor
    cost: Tensor
    tail_error: Tensor
    lost: Tensor
    missed: Tensor
    log_odds: Tensor
    excess: Tensor

    @classmethod
    def of_weights(
        cls, weights: Accumulator, dtype: torch.dtype, cost: int, lost: Tensor | float = 0.0
    ) -> Columns:
        """Return the log-mean-exp of a block's weights, which were computed in ``dtype``, and its diagnostics."""
        estimate = weights.log_mean_exp()
        rounding = resolution(dtype, estimate)
        return cls(
            estimate,
            weights.mcse(),
            weights.bias(),
            weights.ess(),
            weights.pareto_k(rounding),
            torch.full_like(estimate, cost),
            weights.tail_error(rounding),
            torch.zeros_like(estimate) + lost,
            torch.zeros_like(estimate),
            torch.full_like(estimate, math.nan),
            torch.full_like(estimate, math.nan),
        )

    @classmethod
    def without_draws(cls, estimate: Tensor, error: Tensor, cost: Tensor) -> Columns:
        """Return the columns of a sum over a grid or over all z, which has no weights; each argument (rows,)."""
        zero, unknown = torch.zeros_like(estimate), torch.full_like(estimate, math.nan)
        return cls(estimate, error, zero, unknown, unknown, cost, zero, zero, zero, unknown, unknown)

    def beside(
        self, log_weight: Tensor | None, num_samples: int, weights: Accumulator | None = None
    ) -> Columns:
        """Return the columns with the exact draw's log weight, (rows,), compared to those of all ``num_samples`` draws.

        A weight that is not a number, as of a draw off the proposal's support, counts as infinite.
        """
        if log_weight is None:
            return self
        log_weight = log_weight.nan_to_num(nan=math.inf, posinf=math.inf, neginf=-math.inf)
        odds = log_weight - (self.estimate + math.log(num_samples))
        excess = self.excess if weights is None else weights.excess_of_heaviest(log_weight, HEAVIEST)
        return replace(self, log_odds=odds, excess=excess)

    @classmethod
    def cat(cls, blocks: Sequence[Columns]) -> Columns:
        """Return the columns of several blocks of rows, concatenated."""
        return cls(*(torch.cat([getattr(block, f.name) for block in blocks]) for f in fields(cls)))

    def also_missed(self, rows: Tensor) -> Columns:
        """Return the columns with ``missed`` set in some more rows, a boolean tensor of shape (rows,)."""
        return replace(self, missed=torch.where(rows, 1.0, self.missed))

    def of_rows(self, rows: Tensor) -> Columns:
        """Return the columns of some of the rows."""
        return Columns(*(each[rows] for each in vars(self).values()))

    def numpy(self) -> dict[str, Any]:
        """Return the columns that a ``LogEvidence`` has, by name, as numpy arrays."""
        return {
            f.name: getattr(self, f.name).cpu().numpy()
            for f in fields(self)
            if f.name not in ("lost", "missed", "log_odds", "excess")
        }


def resolution(dtype: torch.dtype, level: Tensor) -> Tensor:
    """Return the difference of log weights about ``level`` that is rounding: k-hat must not fit a tail to it."""
    return 16 * torch.finfo(dtype).eps * level.abs().clamp(min=1)


@dataclass(frozen=True, eq=False)
class LogEvidence:
    """log P(x_n) of every row, in nats, with its error and a verdict on whether to trust it.

    Attributes:
        estimate: log P(x_n), shape (rows,).
        mcse: its Monte-Carlo standard error, shape (rows,); NaN with a single draw.
        bias: its first-order bias, shape (rows,); negative if the estimate is too low on average.
        tail_error: the error by weights that were too rare to be drawn, in nats, shape (rows,); it widens the interval
            upwards. It is 0 if nothing was sampled, or too little to fit a tail.
        ess: effective sample size, shape (rows,); NaN if nothing was sampled.
        pareto_k: k-hat of the weights' tail, shape (rows,); NaN if nothing or too little was sampled.
        kind: shape (rows,), each "exact", "lower bound", "upper bound" or "estimate". A lower bound holds in
            expectation over the noise.
        verdict: shape (rows,), each "trust", "more samples", "another method" or "unchecked". The weights that were drawn
            carry no information on a mode that the guide never visits. So a row is "trust" only if the method also
            passed on rows simulated from the model, or is exact. It is "unchecked" if its weights show nothing wrong
            and the method was not tried.
        measure: one entry per column of x: "mass" or "density". "transformed" means that a function of the
            column is scored. "unscored" means that the number leaves the column out; "unscored in part", that it does so
            for some rows. "pseudo-likelihood" means that the score is given values computed from the columns themselves
            and so does not sum to 1. A mass and a density cannot be compared.
        method: the estimator's name.
        answered_by: shape (rows,), the method that computed each row; "auto" chooses it row by row.
        cost: shape (rows,), decoder evaluations per row, pilots included; a gradient counts three.
        num_samples: draws per row; 0 if nothing was sampled or if rows differ in it.
        seed, tile: together with x and the pair, they reproduce the numbers bit for bit.
        check: how the method did on rows simulated from the model; None if it was not tried, for example because no row's
            weights allow trust.
        observed: how many cells of each row are observed, shape (rows,); None if none is missing. With missing cells, the
            estimate is log P of the observed cells, and 0 for a row without any.
        log_odds: for simulated rows, log of the exact draw's weight over the sum of all other weights, shape (rows,);
            else None.
        excess: for simulated rows, 1 if the exact draw is among the heaviest, else 0, minus the probability of this by
            chance. The heaviest draws have 5 % of the weight. NaN if there are no draws.
        noise: the key of a row's noise beside the seed: its "index" in x or its "content". It is the "tile"
            if the pair's draws cannot be made row by row, and None if nothing is drawn.
        fingerprint: of the rows. Comparisons require the same rows; columns with names may be in another order.
        target: "predictive" (rows given the fitted model) or "evidence" (one number per training set).
        parameters: "plug-in" (fitted values) or "posterior-averaged".
        target_mcse: the requested error, in nats; None if none was requested.
        given: sha256 of each value that the rows were scored with, such as an offset, by name.
        own_totals: names of the given values that are totals of the row itself. The likelihood is conditional
            on them, as a multinomial is, so the number is log P(x | total). The entry is "the row's own total"
            if the model takes the total from x. Such numbers rank only among numbers given the same totals.
        seen: how many of the rows the model was fitted to, as far as this is known.
        index: of the rows, if x was a frame or a series; else None.
        shared_mcse: the Monte-Carlo standard error of the mean if the rows share their noise, for example if
            the same posterior draws score all of them. None if every row has noise of its own.
        uncompiled: why a part of the work was not traced or not compiled, if ``compile`` asked for it or it
            would have been faster. None otherwise. Blocks loaded from a checkpoint do not count.
        reasons: why rows are not trusted in spite of a good k-hat, each with the number of rows and the first.
    """

    estimate: np.ndarray
    mcse: np.ndarray
    bias: np.ndarray
    ess: np.ndarray
    pareto_k: np.ndarray
    kind: np.ndarray
    verdict: np.ndarray
    measure: tuple[str, ...]
    method: str
    answered_by: np.ndarray
    cost: np.ndarray
    num_samples: int
    seed: int | None
    tile: tuple[int, int] | None
    fingerprint: identity.Fingerprint
    target: str = "predictive"
    parameters: str = "plug-in"
    target_mcse: float | None = None
    given: Mapping[str, str] = field(default_factory=dict)
    own_totals: tuple[str, ...] = ()
    seen: int = 0
    index: Any = None
    shared_mcse: float | None = None
    uncompiled: str | None = None
    reasons: tuple[str, ...] = ()
    noise: str | None = None
    check: Check | None = None
    observed: np.ndarray | None = None
    tail_error: np.ndarray | float = field(default=0.0, repr=False)
    log_odds: np.ndarray | None = field(default=None, repr=False)
    excess: np.ndarray | None = field(default=None, repr=False)
    _seen: identity.Seen | None = field(default=None, repr=False)
    # A number for the noise of each row, (rows,); None if all rows have their own or, with ``shared_mcse``, one.
    _groups: np.ndarray | None = field(default=None, repr=False)

    @classmethod
    def of(
        cls,
        columns: Columns,
        evaluation: Evaluation,
        *,
        method: str,
        kind: str | np.ndarray,
        verdict: np.ndarray,
        answered_by: np.ndarray | None = None,
        num_samples: int = 0,
        target_mcse: float | None = None,
        reasons: tuple[str, ...] = (),
    ) -> LogEvidence:
        """Return the ``LogEvidence`` of an evaluation from an estimator's columns."""
        names = _same(method, len(evaluation)) if answered_by is None else answered_by
        found, groups = columns.numpy(), None
        if evaluation.keyed_by == "content":
            groups = np.unique(evaluation.keys.cpu().numpy(), return_inverse=True)[1]
        return cls(
            **found,
            kind=_same(kind, len(evaluation)) if isinstance(kind, str) else kind,
            verdict=verdict,
            measure=evaluation.structure.measure,
            method=method,
            answered_by=names,
            num_samples=num_samples,
            seed=evaluation.seed,
            tile=evaluation.tile,
            **about(evaluation.source, evaluation.pair),
            target_mcse=target_mcse,
            given=given_of(evaluation.batch),
            own_totals=evaluation.structure.own_totals,
            uncompiled=None if evaluation.runner is None else evaluation.runner.reason,
            reasons=reasons,
            noise=evaluation.keyed_by,
            log_odds=None if evaluation.simulated is None else columns.log_odds.cpu().numpy(),
            excess=None if evaluation.simulated is None else columns.excess.cpu().numpy(),
            shared_mcse=None
            if groups is None or not evaluation.repeats
            else _shared_mcse(found["mcse"], groups, names),
            _groups=groups,
        )

    @classmethod
    def exact(cls, estimate: np.ndarray, *, method: str, **fields: Any) -> LogEvidence:
        """Return a ``LogEvidence`` of rows whose log P(x) is known in closed form: no error, nothing sampled.

        ``fields`` are the others: at least ``measure`` and ``fingerprint``.
        """
        estimate = np.asarray(estimate, dtype=np.float64)
        zero, unknown = np.zeros_like(estimate), np.full_like(estimate, np.nan)
        return cls(
            estimate=estimate,
            mcse=zero,
            bias=zero,
            ess=unknown,
            pareto_k=unknown,
            kind=np.full(estimate.shape, "exact"),
            verdict=np.full(estimate.shape, "trust"),
            method=method,
            answered_by=np.full(estimate.shape, method),
            cost=zero,
            num_samples=0,
            seed=None,
            tile=None,
            **fields,
        )

    def __len__(self) -> int:
        return len(self.estimate)

    @property
    def checked(self) -> str:
        """How the method did on simulated rows: "passed", "failed" or "unchecked"; "exempt" if it needs no such check.

        Sums and closed forms are exempt. So are posteriors drawn by MCMC, which has its own diagnostics, and results
        in which no row's weights allow trust.
        """
        if self.check is None:
            return "unchecked" if (self.verdict == "unchecked").any() else "exempt"
        return {True: "passed", False: "failed", None: "unchecked"}[self.check.passed]

    @property
    def settled(self) -> np.ndarray:
        """Whether the verdict is "trust" and the error within ``target_mcse``, if one was requested; shape (rows,).

        The error is √(mcse² + tail_error²), as in ``interval``.
        """
        error = np.hypot(self.mcse, self.tail_error)
        within = error <= (math.inf if self.target_mcse is None else self.target_mcse)
        return (self.verdict == "trust") & within

    @property
    def mean(self) -> float:
        """Mean log P(x_n) over the rows, in nats per row."""
        return float(self.estimate.mean())

    @property
    def total(self) -> float:
        """Sum of log P(x_n) over the rows, in nats."""
        return float(self.estimate.sum())

    @property
    def mean_mcse(self) -> float:
        """Monte-Carlo standard error of ``mean``, in nats per row: ``shared_mcse`` if set, else that of independent rows.

        Quadrature errors are not random and may all have one sign, so they are summed.
        """
        if self.shared_mcse is not None:
            return self.shared_mcse
        grid = self.answered_by == "quadrature"
        noise = np.sqrt((self.mcse[~grid] ** 2).sum())
        return float((noise + self.mcse[grid].sum()) / len(self))

    @property
    def mean_bias(self) -> float:
        """First-order bias of ``mean``, in nats per row; biases of rows do not average out."""
        return float(self.bias.mean())

    @property
    def mean_tail_error(self) -> float:
        """Error of ``mean`` by weights that were too rare to be drawn; those of rows with common noise are summed."""
        groups = self._groups
        if groups is None:
            groups = np.arange(len(self)) if self.shared_mcse is None else np.zeros(len(self), dtype=int)
        return _of_sum(np.broadcast_to(self.tail_error, len(self)), groups) / len(self)

    def error_beside(self, other: LogEvidence) -> float:
        """Return the error of the difference to the mean of another score, from all that ``mean_interval`` counts.

        These are √(mcse² + tail_error²) of both, as if independent, and the difference of their biases.
        """
        sides = ((each.mean_mcse, each.mean_tail_error) for each in (self, other))
        return math.hypot(*(part for side in sides for part in side), self.mean_bias - other.mean_bias)

    @property
    def interval(self) -> tuple[np.ndarray, np.ndarray]:
        """95 % interval of every row's log P(x_n), each end of shape (rows,), in nats; see ``mean_interval``."""
        return _interval(self.estimate, self.mcse, self.bias, self.tail_error)

    @property
    def mean_interval(self) -> tuple[float, float]:
        """95 % interval of the mean log P(x_n), in nats per row.

        The bias is usually negative. The interval then reaches from mean − 1.96 · mcse to mean − bias + 1.96
        · √(mcse² + tail_error²). A positive bias lowers the lower end instead. The interval covers Monte-Carlo error
        only; ``compare``'s ``se`` covers how much the mean would vary with other rows.
        """
        low, high = _interval(self.mean, self.mean_mcse, self.mean_bias, self.mean_tail_error)
        return float(low), float(high)

    @property
    def total_interval(self) -> tuple[float, float]:
        """95 % interval of the summed log P(x_n), in nats; see ``mean_interval``."""
        low, high = self.mean_interval
        return low * len(self), high * len(self)

    @property
    def bits_per_dim(self) -> float:
        """−mean / (scored columns · log 2): bits per dimension of x; for a density they depend on the columns' units.

        If cells are missing, it is −total / (observed cells · log 2): bits per observed cell. It is NaN if the rows are not
        known or no cell is observed. With separate rows, it is also NaN if a column is "unscored in part", or unscored
        where cells are missing.
        """
        if self.target == "predictive" and "unscored in part" in self.measure:
            return math.nan
        if self.observed is not None and "unscored" in self.measure:
            return math.nan  # how many observed cells are scored is not kept
        if self.observed is not None:
            cells = int(self.observed.sum())
            return -self.total / (cells * math.log(2)) if cells else math.nan
        rows = len(self.fingerprint) if self.target == "evidence" else 1
        columns = sum(measure != "unscored" for measure in self.measure)
        entries = rows * columns - (self.fingerprint.missing if self.target == "evidence" else 0)
        return -self.mean / (entries * math.log(2)) if entries else math.nan

    def to_frame(self) -> pd.DataFrame:
        """Return one line per row of x: estimate, mcse, bias, ess, pareto_k, kind, verdict, settled, answered_by, cost.

        The frame has the index of x. If cells are missing, it also has ``observed``, the number of observed cells.
        """
        numbers = ("estimate", "mcse", "bias", "ess", "pareto_k")
        more = () if self.observed is None else ("observed",)
        columns = (*numbers, "kind", "verdict", "settled", "answered_by", "cost", *more)
        frame = frame_of({name: getattr(self, name) for name in columns}, self.index)
        return frame if self.target == "predictive" else frame.rename_axis("training set")

    def counts(self) -> dict[str, int]:
        """Return the number of rows with each verdict."""
        return {verdict: int((self.verdict == verdict).sum()) for verdict in VERDICTS}

    def summary(self) -> str:
        """Return a short text to publish: the mean with its interval, the method, the rows by verdict."""
        low, high = self.mean_interval
        interval = (
            "no error bar from one draw"
            if math.isnan(low)
            else f"95 % interval {low:.3f} to {f'{high:.3f}' if high < _UNBOUNDED else '∞'}"
        )
        kinds = ", ".join(kind for kind in KINDS if (self.kind == kind).any())
        together = self.target == "evidence"
        draws = f", {self.num_samples} draws{'' if together else ' a row'}" if self.num_samples else ""
        rows = ", ".join(f"{verdict} {count}" for verdict, count in self.counts().items() if count)
        by, counts = np.unique(self.answered_by, return_counts=True)
        methods = ", ".join(f"{name} {count}" for name, count in zip(by, counts, strict=True))
        known = f"log P(x) = {self.total:.3f} nats for all {len(self.fingerprint)} rows together"
        lines = [
            f"{known if len(self.fingerprint) else f'log Z = {self.total:.3f} nats'} ({interval})"
            if together
            else f"log P(x) = {self.mean:.3f} nats a row over {len(self)} row{'s' * (len(self) != 1)} ({interval})",
            f"{self.method}{draws}: {kinds}, {self.parameters}",
            f"verdict: {self.verdict[0]}" if together else f"rows by verdict: {rows}",
        ]
        lines += [f"not trusted: {reason}" for reason in self.reasons]
        if self.check is not None:
            lines.append(self.check.summary())
            for word, beyond in (
                ("less", self.estimate < self.check.lowest),
                ("more", self.estimate > self.check.highest),
            ):
                if count := int(beyond.sum()):
                    lines.append(
                        f"{count} {'row is' if count == 1 else 'rows are'} {word} probable than all {self.check.simulated} rows "
                        "simulated for the check"
                    )
        if self.given:
            lines.append(f"given {', '.join(self.given)}")
        if self.own_totals:
            lines.append(
                f"conditional on {', '.join(self.own_totals)}, a total of x: ranks only among numbers given the same"
            )
        if self.uncompiled is not None:
            lines.append(f"not compiled, or not all of it: {self.uncompiled}")
        if "pseudo-likelihood" in self.measure:
            lines.append(
                "a pseudo-likelihood: scored given values computed from x, it does not sum to 1 and is never ranked"
            )
        if self.target_mcse is not None:
            lines += [
                f"rows settled to {self.target_mcse:g} nats: {int(self.settled.sum())} of {len(self)}",
                f"rows by method: {methods}; {self.cost.mean():.0f} decoder evaluations a row",
            ]
        return "\n".join(lines)

    def __str__(self) -> str:
        return self.summary()

    def _repr_html_(self) -> str:
        """Return the summary and the first rows, with all their columns, for notebooks."""
        first, *lines = self.summary().splitlines()
        return pages.summary(first, lines, pages.Grid.of(self.to_frame(), most=5))
