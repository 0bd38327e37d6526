"""Base classes of the baselines, which check that a baseline is fitted and rows keep their width; the registry."""

from __future__ import annotations

import os
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any, ClassVar, Self, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Distribution, constraints

from pyrovae import arguments, identity, noise
from pyrovae.baselines.observed import Mixture, Patterns
from pyrovae.entries import all_dense, check_sizes, on_support
from pyrovae.evidence.result import LogEvidence, about
from pyrovae.likelihoods.base import off_support
from pyrovae.pair.drawing import Source as NoiseSource
from pyrovae.pair.drawing import replaced
from pyrovae.refusals import Refused, bad_value
from pyrovae.rounding import blocks
from pyrovae.row_noise import RowNoise
from pyrovae.rows import Source, check_columns_observed, complete, joined, read_in_double, restored
from pyrovae.sparse import SparseRows
from pyrovae.turns import takes_turns

#: Baselines by their class name in snake case; the contract tests cover every ``ClosedForm`` among them.
REGISTRY: dict[str, type[Fitted]] = {}

B = TypeVar("B", bound="Fitted")


def register(name: str) -> Callable[[type[B]], type[B]]:
    """Return a class decorator that puts a baseline into ``REGISTRY`` under ``name``."""

    def add(cls: type[B]) -> type[B]:
        REGISTRY[name] = cls
        return cls

    return add


class Fitted:
    """Base of objects whose fit can be saved: the constructor's arguments, under their own names, and all attributes.

    Attributes are numbers, strings, tensors, arrays, and tuples, lists and dicts of them. Others are ``derived``.
    """

    #: Attributes that ``_derive`` computes from the others after loading, and that are not saved.
    derived: ClassVar[tuple[str, ...]] = ()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the object into one file, for ``pyrovae.load``; see ``pyrovae.save``."""
        from pyrovae.saving import save

        save(self, path)

    def _derive(self) -> None:
        """Compute the attributes in ``derived`` from the others, after loading."""

    @contextmanager
    def _unchanged_on_error(self) -> Iterator[None]:
        """Run a block; if it raises, give the object the attributes that it had."""
        before = dict(vars(self))
        try:
            yield
        except BaseException:
            vars(self).clear()
            vars(self).update(before)
            raise

    def _not_fitted(self) -> Refused:
        name = type(self).__name__
        return bad_value(name, "a fitted baseline", "one that was not", f"Call {name}(…).fit(x_train) first.")


class Baseline(Fitted, ABC):
    """A model that is fitted to rows and then returns log P(x) of other rows.

    ``x`` has rows on dim 0: a tensor, an array, a DataFrame, or a mapping with such rows under "x". A baseline
    ignores the other entries of a mapping, except a mask "observed" if it takes missing cells. It computes in
    float64, on rows flattened to shape (rows, columns).

    Missing cells are NaN, and None and NA in frames. An ``Incomplete`` baseline takes them; others raise an error.

    To add a baseline: write ``_fit``, ``_score``, ``_sample`` and ``summary``. If log P(x) has a closed form, see
    ``ClosedForm``. If ``_fit`` raises, the baseline stays as before.
    """

    #: The values that a column may hold, and the family that an error names for them.
    support: ClassVar[constraints.Constraint] = constraints.real
    family: ClassVar[str] = "Gaussian"
    #: Whether rows may have missing cells; see ``Incomplete``.
    takes_missing: ClassVar[bool] = False
    #: Whether ``_fit`` and ``_score`` go through sparse rows in parts; others get dense rows.
    fits_sparse: ClassVar[bool] = False
    scores_sparse: ClassVar[bool] = False

    #: Hashes of the fitted rows, shape (rows, 2), by ``identity.row_hashes``.
    seen: np.ndarray
    #: Names of the fitted columns, if the rows were a DataFrame.
    names: Mapping[str, tuple[str, ...]] = MappingProxyType({})

    _width: int | None = None
    _fingerprint: identity.Fingerprint

    @takes_turns
    def fit(self, x: Any) -> Self:
        """Fit to rows, shape (rows, columns), and return self. After an error, nothing has changed.

        With missing cells, an ``Incomplete`` baseline maximises the likelihood of the observed cells.
        """
        rows, mask, source = self._rows(x, None, fitting=True)
        rows = rows if self.fits_sparse else all_dense(rows, f"{type(self).__name__}.fit")
        with self._unchanged_on_error():
            self._width, self.names = rows.shape[1], dict(source.names)
            self._fit(*_to_fit(rows, mask, source.names.get("x")))
            self._lay_out()
            self._fingerprint = identity.fingerprint(source.exact, source.observed, source.names.get("x"))
            self.seen = identity.row_hashes(source.exact, source.observed)
        return self

    def _lay_out(self) -> None:
        """Put fitted tensors into the memory layout in which they are loaded, because sums round by layout."""
        turned = {n: v for n, v in vars(self).items() if isinstance(v, Tensor) and not v.is_contiguous()}
        if turned:
            vars(self).update({name: value.contiguous() for name, value in turned.items()})
            self._derive()

    @takes_turns
    def log_evidence(self, x: Any) -> LogEvidence:
        """Return log P(x_n) of each row separately, in nats, for rows of shape (rows, columns).

        With missing cells, an ``Incomplete`` baseline returns log P of each row's observed cells.
        """
        rows, mask, source = self._like_fitted(x, sparse=self.scores_sparse)
        return self._score(rows, about(source, self), *mask)

    def _like_fitted(self, x: Any, sparse: bool = False) -> tuple[Tensor, tuple[Tensor, ...], Source]:
        """Return ``_rows`` of rows that have the fitted columns; dense, unless ``sparse``."""
        width = self._require_fit()
        rows, mask, source = self._rows(x, self.names)
        if rows.shape[1] != width:
            raise bad_value(
                "x",
                f"rows of width {width}, as in fit",
                f"width {rows.shape[1]}",
                "Pass the same columns.",
            )
        return rows if sparse else all_dense(rows, type(self).__name__), mask, source

    @takes_turns
    def sample(self, num_rows: int, seed: int = 0) -> Tensor:
        """Return independent rows from the fitted model, shape (num_rows, columns), float64."""
        arguments.integer("num_rows", num_rows)
        self._require_fit()
        with noise.seeded(noise.derive(seed, noise.Stream.SAMPLE)):
            return self._sample(num_rows)

    @property
    def num_parameters(self) -> float:
        """How many free numbers were fitted; NaN if they were integrated out or grow with the rows."""
        return float("nan")

    @abstractmethod
    def summary(self) -> str:
        """Return one line that says what was fitted."""

    @abstractmethod
    def _fit(self, rows: Tensor) -> None:
        """Fit to checked rows, shape (rows, columns), float64."""

    @abstractmethod
    def _score(self, rows: Tensor, source: dict[str, Any], *mask: Tensor) -> LogEvidence:
        """Return log P of checked rows, shape (rows, columns), float64. ``source`` holds fields of ``LogEvidence``.

        ``mask`` is empty for complete rows; else it is the boolean mask of observed cells, shape (rows, columns).
        """

    @abstractmethod
    def _sample(self, num_rows: int) -> Tensor:
        """Return rows, shape (num_rows, columns), float64, drawn from torch's global generator. The caller seeds it."""

    def __repr__(self) -> str:
        return f"<{self.summary()}>" if self._width is not None else f"<{type(self).__name__}, not fitted>"

    def _rows(
        self, x: Any, names: Mapping[str, tuple[str, ...]] | None, fitting: bool = False
    ) -> tuple[Tensor, tuple[Tensor, ...], Source]:
        """Return checked rows as float64, shape (rows, columns), the mask, and the rows as they were passed.

        Sparse rows stay sparse.

        The mask is empty for complete rows; else it is one boolean tensor, shape (rows, columns), True where a cell is
        observed. Missing cells are 0.
        """
        x = joined(x, "x")
        if isinstance(x, Mapping):
            if "x" not in x:
                raise bad_value(
                    "x", 'a mapping with rows under "x"', f"the keys {list(x)}", 'Pass {"x": rows}.'
                )
            x = x if self.takes_missing else complete(x, type(self).__name__)
            mask = x.get("observed")
            x = {"x": x["x"]} if mask is None else {"x": x["x"], "observed": mask}
        batch, source = read_in_double(x, names, self.takes_missing)
        # Contiguous, so that equal numbers give equal bits in any memory layout.
        flat = (
            batch[name].flatten(1) if batch[name].dim() > 1 else batch[name][:, None]
            for name in ("x", "observed")
            if name in batch
        )
        rows, *mask = (each if isinstance(each, SparseRows) else each.contiguous() for each in flat)
        checked = restored(rows, mask[0] if mask else None)
        columns = list(range(rows.shape[1]))
        held = source.names.get("x")
        on_support("x", checked, columns, self.support, self.family, off_support(self.family), held)
        if self.support is constraints.real:
            check_sizes(checked, source.names.get("x"), spread=fitting)
        return rows, tuple(mask), source

    def _require_fit(self) -> int:
        """Return the width of the fitted rows; raises ``ValueError`` before a fit."""
        if self._width is None:
            raise self._not_fitted()
        return self._width


class ClosedForm(Baseline):
    """A baseline whose log P(x) has a closed form after the fit: exact, without sampling.

    To add one: write ``_fit``, ``_log_prob``, ``_sample`` and ``summary``, and set ``measure`` and ``parameters``.
    """

    scores_sparse = True
    #: Whether log P(x) is a "mass" or a "density".
    measure: ClassVar[str]
    #: "plug-in" (fitted values) or "posterior-averaged".
    parameters: ClassVar[str] = "plug-in"

    @abstractmethod
    def _log_prob(self, rows: Tensor) -> Tensor:
        """Return log P of checked rows, shape (rows,)."""

    def _measures(self, columns: int) -> tuple[str, ...]:
        """Return for every column what the number measures."""
        return (self.measure,) * columns

    def _score(self, rows: Tensor, source: dict[str, Any], *mask: Tensor) -> LogEvidence:
        if isinstance(rows, SparseRows):
            log_prob = torch.cat([self._log_prob(block) for _, block in blocks(rows)])
        else:
            log_prob = self._log_prob(rows, *mask)
        if mask:
            log_prob = log_prob.masked_fill(~mask[0].any(dim=1), 0.0)
        impossible = torch.nonzero(log_prob == -torch.inf).flatten()
        if len(impossible) and self.support is constraints.real:
            raise bad_value(
                "x",
                "rows whose log P(x) is above -1e308",
                f"{len(impossible)} below it, first row {int(impossible[0])}",
                "They lie too far from the training rows: drop them, or fit on rows like them.",
            )
        if len(impossible):
            raise bad_value(
                "x",
                f"rows that are possible under the fitted {type(self).__name__}",
                f"{len(impossible)} of probability 0, first row {int(impossible[0])}",
                "They hold values that no training row has: fit on rows that have them, or use a baseline with a "
                "prior over values (pseudo_count > 0, IndependentBernoulli, DirichletCategorical).",
            )
        return LogEvidence.exact(
            log_prob.numpy(),
            measure=self._measures(rows.shape[1]),
            method=type(self).__name__,
            parameters=self.parameters,
            **source,
        )


class Incomplete(ClosedForm):
    """A closed form that takes missing cells: log P(x_obs), with the missing cells summed or integrated out.

        log P(x_obs) = log ∫ P(x_obs, x_mis) dx_mis

    ``fit`` maximises Σ_n log P(x_n,obs), which ignores why cells are missing. This is right if the probability that a
    cell is missing depends on observed cells only (missing at random; Rubin 1976; Little and Rubin 2019). A row
    without an observed cell has log P = 0 and leaves the fit unchanged.

    To add one: let ``_fit`` and ``_log_prob`` take the mask of observed cells, and write ``_draw``. The mask is None for
    complete rows. For independent columns see ``Columnwise``; for Gaussians see ``baselines.observed``.
    """

    takes_missing = True

    #: Σ_n log P(x_n,obs) / N at each step of a fit to rows with missing cells, in nats a row. The units are those of the
    #: fit's own standardised columns. It never falls. Empty if no cell was missing.
    history: tuple[float, ...] = ()
    #: Whether the last fit reached its maximum.
    converged: bool = True
    max_iter: int

    def _warn_unconverged(self) -> None:
        """Warn of a fit that stopped at ``max_iter`` steps before the maximum. Its log P(x) is still exact."""
        if not self.converged:
            warnings.warn(
                f"{type(self).__name__} has not converged in {self.max_iter} steps: its log P(x) is exact for the present "
                "parameters, which are not yet the best. Raise max_iter.",
                stacklevel=5,
            )

    @property
    def _state(self) -> str:
        return "" if self.converged else ", not converged"

    @takes_turns
    def draw_missing(self, x: Any, num_draws: int = 1, seed: int = 0) -> Tensor:
        """Return rows whose missing cells are drawn from P(x_mis | x_obs), shape (draws, rows, columns), float64.

        Draws are exact and independent. Observed cells are unchanged. Parameters that were fitted are plugged in;
        parameters that were integrated out are averaged over their posterior.

        Args:
            x: rows, shape (rows, columns), with NaN in missing cells.
            num_draws: how many times each row is completed.
            seed: of the draws. A row's draws depend on the seed and its number in ``x``, and not on the other rows.

        Raises:
            ValueError: the baseline is not fitted; rows are those that ``log_evidence`` refuses.

        Rubin (1987).

        Example:
            >>> import torch
            >>> from pyrovae import baselines
            >>> fitted = baselines.IndependentGaussian().fit(torch.tensor([[0.0, 1.0], [2.0, 7.0]]))
            >>> fitted.draw_missing(torch.tensor([[1.0, torch.nan]]), num_draws=3)[:, 0, 0].tolist()
            [1.0, 1.0, 1.0]
        """
        arguments.integer("num_draws", num_draws)
        return self._completed(x, num_draws, seed)[0]

    def _completed(self, x: Any, num_draws: int, seed: int) -> tuple[Tensor, Source, tuple[str, ...]]:
        """Return ``draw_missing``, the rows as they were passed, and what log P measures of each column."""
        noise_seed = noise.derive(seed, noise.Stream.IMPUTE)
        rows, mask, source = self._like_fitted(x)
        self._log_prob(rows, *mask)  # raises for values that no training row has
        drawn = rows.expand(num_draws, -1, -1).clone()
        if mask:
            holed = (~mask[0]).any(dim=1).nonzero()[:, 0]
            made = self._by_row(rows[holed], mask[0][holed], num_draws, RowNoise(noise_seed, holed))
            drawn[:, holed] = torch.where(mask[0][holed], rows[holed], made)
        return drawn, source, self._measures(rows.shape[1])

    def _by_row(self, rows: Tensor, observed: Tensor, num_draws: int, row_noise: RowNoise) -> Tensor:
        """Return ``_draw`` with the noise of each row; rows are drawn one by one if an operation cannot take it."""
        missed: list[str] = []
        source = NoiseSource(row_noise.branch(), num_draws, (num_draws, len(rows)), 1, False)
        with noise.seeded(row_noise.seed), replaced(source, missed):
            drawn = self._draw(rows, observed, num_draws)
        if not missed:
            return drawn
        parts = []
        for row, own in zip(torch.arange(len(rows)).split(1), row_noise.each(), strict=True):
            with noise.seeded(own.seed):
                parts.append(self._draw(rows[row], observed[row], num_draws))
        return torch.cat(parts, dim=1)

    @abstractmethod
    def _fit(self, rows: Tensor, observed: Tensor | None = None) -> None:
        """Fit to rows, shape (rows, columns), in which every column and every row has an observed cell."""

    @abstractmethod
    def _log_prob(self, rows: Tensor, observed: Tensor | None = None) -> Tensor:
        """Return log P of the observed cells, shape (rows,)."""

    @abstractmethod
    def _draw(self, rows: Tensor, observed: Tensor, num_draws: int) -> Tensor:
        """Return draws of the missing cells, shape (draws, rows, columns), by torch's random operations.

        An operation may draw for all draws and rows at once, with a result of shape (draws, rows, ...) or
        (draws · rows, ...). The caller then keys the noise by row. The caller ignores values at observed cells.
        """


class Columnwise(Incomplete):
    """Independent columns. To add one: write ``_fit``, ``_log_probs``, ``_sample`` and ``summary``."""

    @abstractmethod
    def _log_probs(self, rows: Tensor) -> Tensor:
        """Return log P of every cell, shape (rows, columns)."""

    def _log_prob(self, rows: Tensor, observed: Tensor | None = None) -> Tensor:
        found = self._log_probs(rows)
        return (found if observed is None else found.masked_fill(~observed, 0.0)).sum(dim=1)

    def _draw(self, rows: Tensor, observed: Tensor, num_draws: int) -> Tensor:
        return self._sample(num_draws * len(rows)).unflatten(0, (num_draws, len(rows)))


class Distributed(ClosedForm):
    """A closed form that is one of torch's distributions. To add one: write ``_fit``, ``_distribution``, ``summary``."""

    @abstractmethod
    def _distribution(self) -> Distribution:
        """Return the fitted distribution of a row, batch shape () and event shape (columns,)."""

    def _log_prob(self, rows: Tensor) -> Tensor:
        return self._distribution().log_prob(rows)

    def _sample(self, num_rows: int) -> Tensor:
        return self._distribution().sample((num_rows,))


class Conjugate(ClosedForm):
    """A baseline whose parameters are integrated out in closed form: predictive and evidence are both exact.

    ``log_evidence(x)`` is the posterior predictive log P(x_n | training rows) of each row separately.
    ``marginal_likelihood()`` is log P(training rows), jointly. To add one: write the methods of ``ClosedForm``
    and ``_log_marginal``.
    """

    parameters = "posterior-averaged"

    @takes_turns
    def marginal_likelihood(self) -> LogEvidence:
        """Return log P(training rows | prior), the exact evidence of the training set: one number, in nats.

        It equals the sum of each row's predictive given the rows before it, in any order. Its one entry has
        target "evidence". It ranks models of one training set and is not a predictive score.

        Raises:
            ValueError: the baseline is not fitted.
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
        """Return the joint log P of the fitted rows."""


class Gaussian(Distributed, Incomplete):
    """A Gaussian, or a mixture of them. To add one: write the methods of ``Distributed`` and ``_components``."""

    @abstractmethod
    def _components(self) -> Mixture:
        """Return weights (components,), means (components, columns) and covariances (components, columns, columns)."""

    def _log_prob(self, rows: Tensor, observed: Tensor | None = None) -> Tensor:
        if observed is None:
            return super()._log_prob(rows)
        return Patterns(rows, observed).log_joint(*self._components()).logsumexp(dim=1)

    def _draw(self, rows: Tensor, observed: Tensor, num_draws: int) -> Tensor:
        return Patterns(rows, observed).draw(*self._components(), num_draws)


def _to_fit(rows: Tensor, mask: tuple[Tensor, ...], names: tuple[str, ...] | None) -> tuple[Tensor, ...]:
    """Return the arguments of ``_fit``: the rows that have an observed cell and, if any cell is missing, their mask.

    Raises:
        ValueError: a column without an observed cell.
    """
    if not mask:
        return (rows,)
    check_columns_observed(mask[0].any(dim=0), len(rows), names)
    kept = mask[0].any(dim=1)
    rows, observed = rows[kept], mask[0][kept]
    return (rows,) if bool(observed.all()) else (rows, observed)
