"""check() tries a method on rows simulated from the model itself, whose exact posterior draws are known."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from pyrovae import arguments, identity, noise
from pyrovae.evaluation import Evaluation
from pyrovae.evidence.densities import ROWS, mismatch
from pyrovae.evidence.result import HEAVIEST, LogEvidence
from pyrovae.evidence.simulated import Supply
from pyrovae.model import LatentVariableModel
from pyrovae.noise import Stream, derive
from pyrovae.pair import behaviour, parameters_digest, probe
from pyrovae.refusals import failure
from pyrovae.turns import takes_turns

# With none missed, 64 trusted rows decide; with one or two missed, four times as many in all do.
_AT_ONCE, _LONGER, _MOST_MISSED = 64, 4, 2
_MOST_SIMULATED = 8  # times the number of rows
# At each of up to eight looks, one of ten thousand sets has more exact draws among the heaviest than allowed, by chance.
_BY_CHANCE, _SUSPICIOUS = 1e-4, 0.02
_MOST_KEPT = 16  # checks of one pair

Estimator = Callable[..., LogEvidence]
#: A row whose log P(x) is too low by this many nats lacks a share 1 − exp(−0.5) of its mass.
LOW = 0.5


@dataclass(frozen=True, eq=False)
class Check:
    """How a method did on rows simulated from the model.

    A simulated row comes with an exact draw z* of its posterior. The method answers the row without it. A row is missed
    if it is trusted and z* weighs more than all of the method's draws together. The method has then not found the
    posterior's mass.

    z* should seldom be among the heaviest draws, those with 5 % of the weight. With many draws, this should happen in 5 %
    of the rows. For fewer draws, the expected rate follows from the weights of each row. A higher rate means that trusted
    rows lack a part of the posterior that each of them seldom visits.

    Attributes:
        method: the estimator's name.
        trusted: simulated rows that the method trusts.
        missed: trusted rows that it missed.
        heaviest: trusted rows in which z* is heavier than draws with 95 % of the weight.
        simulated: simulated rows that it answered.
        passed: whether the method may be trusted on this model; None if it trusts too few simulated rows to tell.
        reason: why ``passed`` is not True, in words; None if it is.
        log_odds: for every simulated row, log of the weight of z* over the sum of all other weights, shape
            (simulated,).
        beyond: how many of the ``compared`` rows are farther from their nearest simulated row than any of a thousand
            simulated rows is from its own.
        compared: how many rows of x were compared with the simulated rows.
        lowest, highest: the smallest and the largest log P(x) among the simulated rows that were answered, in nats.
    """

    method: str
    trusted: int
    missed: int
    heaviest: int
    simulated: int
    passed: bool | None
    reason: str | None
    log_odds: np.ndarray = field(repr=False)
    beyond: int
    compared: int
    lowest: float = -math.inf
    highest: float = math.inf

    @property
    def share_low(self) -> float:
        """The largest share of trusted rows whose log P may be half a nat or more too low, because no draw reached a part.

        At 95 % confidence (Clopper and Pearson 1934).

        It holds for rows like the simulated ones.
        """
        from scipy.stats import beta

        if not self.trusted:
            return 1.0
        rate = float(beta.ppf(0.95, self.missed + 1, max(self.trusted - self.missed, 1e-9)))
        return min(1.0, rate / (1 - math.exp(-LOW)))

    @property
    def word(self) -> str:
        """The verdict on rows that the method trusts."""
        return {True: "trust", False: "another method", None: "unchecked"}[self.passed]

    def summary(self) -> str:
        """Return the outcome in a line or two."""
        found = f"{self.missed} of {self.trusted} trusted rows missed among {self.simulated} simulated from the model"
        if self.passed:
            line = f"check of {self.method!r}: {found}; log P may be {LOW:g} nats or more too low, because no draw reached a part of the posterior, in at most {self.share_low:.0%} of trusted rows"
        else:
            line = f"check of {self.method!r}: {self.reason}"
        if self.beyond:
            line += f"\n{self.beyond} of {self.compared} rows lie beyond all rows simulated from the model, which say little about them"
        return line

    def __str__(self) -> str:
        return self.summary()


#: The checks of a pair, by all that they depend on.
_CHECKS: weakref.WeakKeyDictionary[LatentVariableModel, dict[Hashable, Check]] = weakref.WeakKeyDictionary()


#: In a block of ``once``, the checks made in it.
_MADE: ContextVar[dict[str, Check] | None] = ContextVar("_MADE", default=None)


@contextmanager
def once() -> Iterator[dict[str, Check]]:
    """Run a block about one model, in which each method is checked on the first rows that it trusts and on no others.

    Yields the checks by method. A method in the dict is not checked again.
    """
    made: dict[str, Check] = {}
    token = _MADE.set(made)
    try:
        yield made
    finally:
        _MADE.reset(token)


@takes_turns
def check(
    pair: LatentVariableModel,
    x: Any,
    method: str = "auto",
    num_rows: int = _AT_ONCE,
    seed: int = 0,
    **options: Any,
) -> Check:
    """Try a method on rows simulated from the model, and count those that it trusts and yet misses.

    Half of the simulated rows are plain draws of P(x). The others are chosen from 20 000 draws to resemble rows of x. The
    choice uses x alone, so z* is still an exact draw of P(z | x). All are simulated given the values beside rows of x.

    w* is the weight of z* under the method's own proposal, and w_k are the weights of the method's draws. A trusted row is
    missed if w* > Σ_k w_k. The check passes if none of ``num_rows`` trusted rows is missed, half of them of each kind. If
    one or two are missed, it continues to four times as many rows, of which at most two may be missed. The check fails, too,
    if w* is among the heaviest weights, 5 % of the sum, in more trusted rows than chance allows. If this count is only
    suspicious, it also continues to four times as many rows. The method answers at most eight times ``num_rows`` rows. If it
    trusts too few of them, ``passed`` is None. The check fails, too, if draws of the guide, the prior or the likelihood do
    not have the density of their ``log_prob``. A missing log-determinant is an example.

    Args:
        pair: a ``VAE`` or any ``LatentVariableModel``.
        x: rows on dim 0, in any form that ``log_evidence`` takes.
        method: one of ``evidence.METHODS`` but "exact".
        num_rows: trusted rows that decide, at least 8. Draws may lack a part of the posterior, so that log P is half a
            nat or more too low. With 64, this holds for at most 12 % of trusted rows, and with 1024 for less than 1 %.
        seed: of simulated rows and of the method's noise.
        options: the method's own, as for ``log_evidence``, except ``progress``, ``checkpoint`` and
            ``executor``.

    Returns:
        A ``Check``. ``passed`` is also None if rows cannot be simulated, because a site reads columns of x that it does
        not sample.

    Raises:
        TypeError, ValueError: an option, the rows or the pair cannot be used.

    Example:
        >>> import torch, pyrovae as pv
        >>> vae = pv.VAE.mlp(6, latent_dim=2, hidden_dims=(8,))
        >>> found = pv.evidence.check(vae, torch.ones(4, 6), "importance", num_samples=200)
        >>> found.missed <= found.trusted <= found.simulated
        True
    """
    from pyrovae.evidence import METHODS

    arguments.choice("method", method, tuple(name for name in METHODS if name != "exact"))
    arguments.options(
        f"method {method!r}",
        METHODS[method],
        options,
        taken=("pair", "x", "seed", "progress", "checkpoint", "executor", "check"),
    )
    arguments.integer("num_rows", num_rows, minimum=8)
    template = Evaluation.prepare(pair, x, 1, seed)
    # On a row of x, wrong options raise an error; on a simulated row they would be taken for a fault of the model.
    METHODS[method](pair, template.part(slice(0, 1)), seed=seed, check=False, **options)
    return _try(template, METHODS[method], num_rows, options)


def judged_by_check(
    verdict: np.ndarray, evaluation: Evaluation, estimator: Estimator | None, options: Mapping[str, Any]
) -> tuple[np.ndarray, Check | None]:
    """Return the verdicts that are left after the check, shape (rows,), and the check; None if no row is trusted before.

    Without an estimator no check is made, and rows that would be trusted are unchecked. A check is kept with the pair and
    made once for the same model, rows, method and options.
    """
    if not (verdict == "trust").any():
        return verdict, None
    if estimator is None:
        return np.where(verdict == "trust", "unchecked", verdict), None
    made = _kept(evaluation, estimator, options)
    return np.where(verdict == "trust", made.word, verdict), made


def _kept(evaluation: Evaluation, estimator: Estimator, options: Mapping[str, Any]) -> Check:
    """Return the check that is kept with the pair or in a block of ``once``, made now if there is none."""
    # The same tiles as ``check`` has, for pairs whose noise depends on them.
    tile = noise.tile_shape(evaluation.structure.widest, 1)
    template = replace(evaluation, num_samples=1, tile=tile, runner=None)
    known: dict[Any, Check] | None = _MADE.get()
    key: Any = estimator.__name__
    if known is None:
        known, key = _CHECKS.setdefault(evaluation.pair, {}), _key(template, estimator, options)
    if key in known:
        return known[key]
    while len(known) >= _MOST_KEPT:
        del known[next(iter(known))]
    made = _try(template, estimator, _AT_ONCE, options)
    if made.simulated:  # one that failed is made again
        known[key] = made
    return made


def _key(template: Evaluation, estimator: Estimator, options: Mapping[str, Any]) -> Hashable:
    """Return what the outcome of a check depends on: the pair's numbers and what it computes, the rows, the method."""
    rows = probe(template.structure, template.batch)
    terms = behaviour(template.model, rows, template.seed)
    return (
        estimator.__name__,
        repr(sorted(options.items())),
        template.seed,
        *identity.digests(template.batch).items(),
        parameters_digest(template.pair),
        *(identity.digest(term) for term in terms.values()),
    )


def _try(template: Evaluation, estimator: Estimator, num_rows: int, options: Mapping[str, Any]) -> Check:
    try:
        return _count(template, estimator, num_rows, options)
    except Exception as error:  # the user's model may be unable to run on rows that it simulates
        reason = f"the method cannot be tried on rows simulated from the model: {failure(error)}"
    return Check(estimator.__name__, 0, 0, 0, 0, None, reason, np.empty(0), 0, 0)


def _count(template: Evaluation, estimator: Estimator, num_rows: int, options: Mapping[str, Any]) -> Check:
    """Return the check of simulated rows, ``num_rows`` after ``num_rows``, until they decide."""
    from scipy.stats import binom

    supply = Supply(template, _MOST_SIMULATED * num_rows)
    found: list[LogEvidence] = []
    wanted, mismatched = num_rows, None
    while True:
        rows = supply.take(num_rows, len(found))
        if not found:
            some = rows.only(torch.arange(min(ROWS, num_rows), device=template.numbers.device))
            # Quadrature takes the place of its grid from the guide, and no density.
            guide = estimator.__name__ != "quadrature"
            mismatched = mismatch(Evaluation.prepare(template.pair, some, 1, template.seed), guide)
        seed = derive(template.seed, Stream.CHECK, len(found))
        found.append(estimator(template.pair, rows, seed=seed, **options))
        # A closed form leaves no mass out.
        log_odds = _all(found, "log_odds", -math.inf)
        trusted = np.concatenate([each.verdict == "trust" for each in found])
        plain = np.arange(len(trusted)) % num_rows < num_rows - num_rows // 2
        in_halves = (int(trusted[plain].sum()), int(trusted[~plain].sum()))
        count, missed = int(trusted.sum()), int((trusted & ~(log_odds <= 0)).sum())
        excess = np.nan_to_num(_all(found, "excess", 0.0))[trusted]
        heaviest = int((excess > 0).sum())
        # Trials of unequal probabilities have lighter tails than those of one, their mean (Hoeffding 1956).
        expected = heaviest - float(excess.sum())
        rate = min(max(expected / max(count, 1), 0.0), 1.0)
        often = heaviest > max(binom.isf(_BY_CHANCE, count, rate), expected + 1)
        if missed or heaviest > binom.isf(_SUSPICIOUS, count, rate):
            wanted = _LONGER * num_rows
        enough = min(in_halves) >= wanted // 2 or len(log_odds) >= _MOST_SIMULATED * num_rows
        if missed > _MOST_MISSED or often or enough or mismatched is not None:
            break
    fault = mismatched or _fault(missed, count, (heaviest, expected) if often else None)
    too_few = None
    if min(in_halves) < wanted // 2:
        too_few = (
            f"the method trusts {in_halves[0]} plain rows and {in_halves[1]} like rows of x of {len(log_odds)} simulated from "
            f"the model, and missed {missed}: too few to try it on them, {wanted // 2} of each are needed"
        )
    passed = False if fault else None if too_few else True
    beyond, compared = supply.beyond()
    estimates = np.concatenate([each.estimate for each in found])
    return Check(
        estimator.__name__,
        count,
        missed,
        heaviest,
        len(log_odds),
        passed,
        fault or too_few,
        log_odds,
        beyond,
        compared,
        float(estimates.min()),
        float(estimates.max()),
    )


def _fault(missed: int, count: int, heavy: tuple[int, float] | None) -> str | None:
    """Return what is wrong with a method on the rows that it trusts.

    ``heavy`` holds the number of heavy exact draws and the number expected, if there are too many.
    """
    if missed > _MOST_MISSED:
        return f"the method missed the posterior of {missed} of {count} rows that it trusts, simulated from the model"
    if heavy is not None:
        return (
            f"in {heavy[0]} of {count} rows that the method trusts, simulated from the model, the exact draw is heavier than "
            f"draws with {1 - HEAVIEST:.0%} of the weight; {heavy[1]:.0f} are expected"
        )
    return None


def _all(found: list[LogEvidence], name: str, known: float) -> np.ndarray:
    """Return a column of several results, with a value for results in closed form, which lack it."""
    columns = [getattr(each, name) for each in found]
    return np.concatenate(
        [np.full(len(e), known) if c is None else c for e, c in zip(found, columns, strict=True)]
    )
