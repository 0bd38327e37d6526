"""What every baseline shares: it is fitted before it answers, and rows keep their width."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Self

import torch
from torch import Tensor
from torch.distributions import Distribution

from pyrovae import checks, noise
from pyrovae.evidence.result import LogEvidence


class Baseline(ABC):
    """A model of rows whose log P(x) is known in closed form once it is fitted.

    Works in float64. To add one: ``_fit``, ``_distribution``, ``_log_prob``, ``summary`` and the two labels.
    """

    #: Whether log P(x) is a "mass" or a "density".
    measure: str
    #: "plug-in" (fitted values) or "posterior-averaged".
    parameters: str

    _width: int | None = None

    def fit(self, x: Any) -> Self:
        """Fit to rows, shape (rows, columns); returns self."""
        rows = self._rows(x)
        self._fit(rows)
        self._width = rows.shape[1]
        return self

    def log_evidence(self, x: Any) -> LogEvidence:
        """Exact log P(x_n) of rows, shape (rows, columns), in nats a row."""
        rows = self._rows(x)
        self._require_fit()
        if rows.shape[1] != self._width:
            raise checks.bad_value(
                "x",
                f"rows of width {self._width}, as in fit",
                f"width {rows.shape[1]}",
                "Pass the same columns.",
            )
        return LogEvidence.exact(
            self._log_prob(rows).numpy(),
            measure=(self.measure,) * rows.shape[1],
            method=type(self).__name__,
            fingerprint=checks.fingerprint(rows),
            parameters=self.parameters,
        )

    def sample(self, num_rows: int, seed: int = 0) -> Tensor:
        """Rows from the fitted model, shape (num_rows, columns), float64."""
        checks.integer("num_rows", num_rows)
        self._require_fit()
        with noise.seeded(noise.derive(seed, noise.Stream.SAMPLE)):
            return self._distribution().sample((num_rows,))

    @abstractmethod
    def summary(self) -> str:
        """One line: what was fitted."""

    @abstractmethod
    def _fit(self, rows: Tensor) -> None:
        """Fit to checked rows, shape (rows, columns), float64."""

    @abstractmethod
    def _distribution(self) -> Distribution:
        """The fitted distribution of a row, batch and event shape together (columns,)."""

    @abstractmethod
    def _log_prob(self, rows: Tensor) -> Tensor:
        """log P of checked rows, shape (rows,)."""

    def __repr__(self) -> str:
        return f"<{self.summary()}>" if self._width is not None else f"<{type(self).__name__}, not fitted>"

    def _rows(self, x: Any) -> Tensor:
        if isinstance(x, Tensor) and x.is_floating_point():
            x = x.double()
        rows = checks.rows(x, dtype=torch.float64)
        return rows.flatten(1) if rows.dim() > 1 else rows[:, None]

    def _require_fit(self) -> None:
        if self._width is None:
            name = type(self).__name__
            raise checks.bad_value(
                name, "a fitted baseline", "one that was not", f"Call {name}(…).fit(x_train) first."
            )
