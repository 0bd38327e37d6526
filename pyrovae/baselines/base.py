"""What every baseline shares: it is fitted before it answers, and rows keep their width; and their registry."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, ClassVar, Self, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Distribution, constraints

from pyrovae import checks, noise
from pyrovae.evidence.result import LogEvidence, about
from pyrovae.likelihoods.base import off_support
from pyrovae.turns import takes_turns

#: Baselines by their class name in snake case; the contract tests cover every ``ClosedForm`` among them.
REGISTRY: dict[str, type[Fitted]] = {}

B = TypeVar("B", bound="Fitted")


def register(name: str) -> Callable[[type[B]], type[B]]:
    """Class decorator: put a baseline into ``REGISTRY`` under ``name``."""

    def add(cls: type[B]) -> type[B]:
        REGISTRY[name] = cls
        return cls

    return add


class Fitted:
    """What has a fit to save: its constructor's arguments, under their own names, and what else it holds.

    The rest of what is saved are numbers, strings, tensors, arrays, and tuples, lists and dicts of them.
    """

    #: ``baseline.save(path)``: see ``pyrovae.saving``, which puts it here.
    save: Callable[..., None]
    #: Attributes that are made of the others, or of code: not saved, but made again by ``_derive``.
    derived: ClassVar[tuple[str, ...]] = ()

    def _derive(self) -> None:
        """Make what ``derived`` names of the rest of a fit, after it was loaded."""


class Baseline(Fitted, ABC):
    """A model of rows that is fitted, and then has log P(x) of other rows.

    ``x`` has rows on dim 0: a tensor, an array, a DataFrame, or a mapping with such rows under "x", of which a
    baseline uses nothing else. It works in float64, on rows flattened to shape (rows, columns).

    To add one: ``_fit``, ``_score``, ``_sample`` and ``summary``; where log P(x) has a closed form, see
    ``ClosedForm``. A ``_fit`` that raises leaves the baseline as it was.
    """

    #: What values a column may hold, and the family that says so in a refusal.
    support: ClassVar[constraints.Constraint] = constraints.real
    family: ClassVar[str] = "Gaussian"

    #: Hashes of the rows it was fitted to, shape (rows, 2), by ``checks.row_hashes``.
    seen: np.ndarray
    #: Names of the columns it was fitted to, where they were a frame's.
    names: Mapping[str, tuple[str, ...]] = MappingProxyType({})

    _width: int | None = None
    _fingerprint: checks.Fingerprint

    @takes_turns
    def fit(self, x: Any) -> Self:
        """Fit to rows, shape (rows, columns); returns self. Where it raises, nothing has changed."""
        rows, source = self._rows(x, {})
        before = dict(vars(self))
        try:
            self._fit(rows)
            self._width, self.names = rows.shape[1], dict(source.names)
            self._fingerprint = checks.fingerprint(source.exact)
            self.seen = checks.row_hashes(source.exact)
        except BaseException:
            vars(self).clear()
            vars(self).update(before)
            raise
        return self

    @takes_turns
    def log_evidence(self, x: Any) -> LogEvidence:
        """log P(x_n) of rows, shape (rows, columns), each by itself, in nats a row."""
        width = self._require_fit()
        rows, source = self._rows(x, self.names)
        if rows.shape[1] != width:
            raise checks.bad_value(
                "x",
                f"rows of width {width}, as in fit",
                f"width {rows.shape[1]}",
                "Pass the same columns.",
            )
        return self._score(rows, about(source, self))

    @takes_turns
    def sample(self, num_rows: int, seed: int = 0) -> Tensor:
        """Rows from the fitted model, each by itself, shape (num_rows, columns), float64."""
        checks.integer("num_rows", num_rows)
        self._require_fit()
        with noise.seeded(noise.derive(seed, noise.Stream.SAMPLE)):
            return self._sample(num_rows)

    @property
    def num_parameters(self) -> float:
        """How many free numbers were fitted; NaN where they were averaged out, or grow with the rows."""
        return float("nan")

    @abstractmethod
    def summary(self) -> str:
        """One line: what was fitted."""

    @abstractmethod
    def _fit(self, rows: Tensor) -> None:
        """Fit to checked rows, shape (rows, columns), float64."""

    @abstractmethod
    def _score(self, rows: Tensor, source: dict[str, Any]) -> LogEvidence:
        """log P of checked rows, shape (rows, columns), float64; ``source`` is what a ``LogEvidence`` says of them."""

    @abstractmethod
    def _sample(self, num_rows: int) -> Tensor:
        """Rows from torch's global generator, seeded by the caller; shape (num_rows, columns), float64."""

    def __repr__(self) -> str:
        return f"<{self.summary()}>" if self._width is not None else f"<{type(self).__name__}, not fitted>"

    def _rows(self, x: Any, names: Mapping[str, tuple[str, ...]]) -> tuple[Tensor, checks.Source]:
        """Rows of any kind as float64, shape (rows, columns), on the support; and as they came."""
        if isinstance(x, Mapping):
            if "x" not in x:
                raise checks.bad_value(
                    "x", 'a mapping with rows under "x"', f"the keys {list(x)}", 'Pass {"x": rows}.'
                )
            x = x["x"]
        batch, source = checks.read(checks.in_double(x), dtype=torch.float64, names=names)
        rows = batch["x"]
        # Contiguous, so that the same numbers give the same bits however they lay in memory.
        rows = (rows.flatten(1) if rows.dim() > 1 else rows[:, None]).contiguous()
        checks.on_support(
            "x", rows, list(range(rows.shape[1])), self.support, self.family, off_support(self.family)
        )
        return rows, source

    def _require_fit(self) -> int:
        """The width of the rows it was fitted to; raises where there were none."""
        if self._width is None:
            name = type(self).__name__
            raise checks.bad_value(
                name, "a fitted baseline", "one that was not", f"Call {name}(…).fit(x_train) first."
            )
        return self._width


class ClosedForm(Baseline):
    """A baseline whose log P(x) is known in closed form once it is fitted: exact, nothing sampled.

    To add one: ``_fit``, ``_log_prob``, ``_sample``, ``summary`` and the labels ``measure`` and ``parameters``.
    """

    #: Whether log P(x) is a "mass" or a "density".
    measure: ClassVar[str]
    #: "plug-in" (fitted values) or "posterior-averaged".
    parameters: ClassVar[str] = "plug-in"

    @abstractmethod
    def _log_prob(self, rows: Tensor) -> Tensor:
        """log P of checked rows, shape (rows,)."""

    def _measures(self, columns: int) -> tuple[str, ...]:
        """For every column, what the number measures."""
        return (self.measure,) * columns

    def _score(self, rows: Tensor, source: dict[str, Any]) -> LogEvidence:
        log_prob = self._log_prob(rows)
        impossible = torch.nonzero(log_prob == -torch.inf).flatten()
        if len(impossible):
            raise checks.bad_value(
                "x",
                f"rows that are possible under the fitted {type(self).__name__}",
                f"{len(impossible)} of probability 0, first row {int(impossible[0])}",
                "They hold values that no training row has: fit on rows that have them, or use a baseline with a "
                "prior over them (pseudo_count > 0, IndependentBernoulli, DirichletCategorical).",
            )
        return LogEvidence.exact(
            log_prob.numpy(),
            measure=self._measures(rows.shape[1]),
            method=type(self).__name__,
            parameters=self.parameters,
            **source,
        )


class Distributed(ClosedForm):
    """A closed form that is one of torch's distributions. To add one: ``_distribution`` in place of what it is asked."""

    @abstractmethod
    def _distribution(self) -> Distribution:
        """The fitted distribution of a row, batch shape () and event shape (columns,)."""

    def _log_prob(self, rows: Tensor) -> Tensor:
        return self._distribution().log_prob(rows)

    def _sample(self, num_rows: int) -> Tensor:
        return self._distribution().sample((num_rows,))


class Conjugate(ClosedForm):
    """A baseline whose parameters are integrated out in closed form: predictive and evidence are both exact.

    ``log_evidence(x)`` is the posterior predictive log P(x_n | training rows) of each row by itself;
    ``marginal_likelihood()`` is log P(training rows), all together. To add one: as ``ClosedForm``, and
    ``_log_marginal``.
    """

    parameters = "posterior-averaged"

    @takes_turns
    def marginal_likelihood(self) -> LogEvidence:
        """log P(training rows | prior), the evidence of the whole training set: one number, in nats, exact.

        It is the sum of each row's predictive given the rows before it, in any order. Its one entry has
        target "evidence": it ranks models of one training set, and no predictive score.

        Raises:
            ValueError: where nothing was fitted.
        """
        width = self._require_fit()
        return LogEvidence.exact(
            np.array([self._log_marginal()]),
            measure=self._measures(width),
            method=type(self).__name__,
            fingerprint=self._fingerprint,
            target="evidence",
            parameters=self.parameters,
        )

    @abstractmethod
    def _log_marginal(self) -> float:
        """log P of the rows it was fitted to, all together."""


def warn_unconverged(baseline: Baseline, max_iter: int) -> None:
    """Say that a fit stopped at ``max_iter`` steps, short of the maximum; what it has is still scored exactly."""
    warnings.warn(
        f"{type(baseline).__name__} has not converged in {max_iter} steps: its log P(x) is exact for the parameters "
        "reached, which are not yet the best. Raise max_iter.",
        stacklevel=5,
    )
