"""scikit-learn estimators of a VAE: densities, means of latents, imputations and outliers; and of every baseline.

Estimators follow scikit-learn's conventions for parameters, arrays, frames and tags. They compute in float64. The noise of
a row is keyed by its content, so its number does not depend on the other rows or on their order. The fitted model is
``model_``, which every function of ``pyrovae`` takes. NaN is a missing cell. No estimator takes sample weights, because
``fit`` of a pair has none.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd
import torch
from sklearn.base import (
    BaseEstimator,
    ClassNamePrefixFeaturesOutMixin,
    DensityMixin,
    OneToOneFeatureMixin,
    OutlierMixin,
    TransformerMixin,
)
from sklearn.impute import MissingIndicator
from sklearn.utils import check_array, check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data
from torch.distributions import constraints

from pyrovae import arguments, baselines, embedding, evidence, frames, imputation, likelihoods
from pyrovae.arrays import as_numpy
from pyrovae.baselines.base import ClosedForm
from pyrovae.evidence import LogEvidence, log_evidence
from pyrovae.model import VAE
from pyrovae.noise import Stream, derive, seeded, shuffled
from pyrovae.refusals import Refused, RefusedType, bad_type, bad_value, shown
from pyrovae.rounding import beyond_whole
from pyrovae.rows import leaving_cells
from pyrovae.saving import load, save
from pyrovae.training import History, fit
from pyrovae.turns import takes_turns

__all__ = ["BaselineDensity", "VAEDensity", "VAEImputer", "VAEOutlier", "VAETransformer"]

#: The baselines whose log P(x) has a closed form, by name. A regression scores one column given the others.
_CLOSED = {
    name: found
    for name, found in baselines.REGISTRY.items()
    if issubclass(found, ClosedForm) and found is not baselines.BayesianLinearRegression
}


#: What errors of the library say to pass, and what its estimators take in its place.
_IN_ESTIMATORS = (
    (r"^x(?=[:\[])", "X"),
    (r"^kind(?=:)", "strategy"),
    (r"Pass kind=", "Pass strategy="),
    (r"Drop those columns", "Drop those columns, as VarianceThreshold does"),
    (r'fit VAE\.mlp\(…, (\S+), (\w+)="shared"\)', r'pass \1 and likelihood_options={"\2": "shared"}'),
    (r"build the model with (?=standardize=True)", "pass "),
    (r"Pass num_categories to the baseline", 'Pass options={"num_categories": …}'),
)


@contextmanager
def _in_estimators() -> Iterator[None]:
    """Give the errors of the library the words of its estimators."""
    try:
        yield
    except (Refused, RefusedType) as error:
        message = str(error)
        for pattern, words in _IN_ESTIMATORS:
            message = re.sub(pattern, words, message)
        error.args = (message,)
        raise


class _Estimator(BaseEstimator):
    """Base of all estimators: checks rows, and pickles the fitted model as the bytes of its saved file."""

    model_: Any

    def _rows(self, X: Any, fitting: bool = False) -> np.ndarray:
        """Return rows as float64, shape (rows, columns); check or set the columns' number and names."""
        if fitting:
            self.__dict__.pop("evidence_", None)  # of the model before this fit
        else:
            check_is_fitted(self)
        missing = self.__sklearn_tags__().input_tags.allow_nan
        if isinstance(X, list | tuple) and any(np.ma.isMaskedArray(row) for row in X):
            X = np.ma.stack(list(X))
        if np.ma.isMaskedArray(X):  # scikit-learn reads what is below a mask
            X = as_numpy(frames.numbers(X) if missing else X, "X")
        elif hasattr(X, "columns"):  # scikit-learn reads no pd.NA among objects
            X = frames.numbers(X)
        labels = frames.labels(X)
        _require_exact(X)
        found: np.ndarray = validate_data(
            self,
            X,
            reset=fitting,
            dtype=np.float64,
            ensure_all_finite="allow-nan" if missing else True,
            ensure_min_samples=2 if fitting else 1,
        )
        if fitting:
            self._labels = labels
            return found
        # scikit-learn compares labels that are strings only. Columns of an array are 0, 1, ….
        numbers = tuple(map(str, range(found.shape[1])))
        known = numbers if self._labels is None and sorted(labels or ()) == sorted(numbers) else self._labels
        if labels is not None and known not in (None, labels):
            came, fix = frames.difference(labels, known), "Pass the columns in the order of fit."
            raise bad_value("X", "the columns that the estimator was fitted to", came, fix)
        return found

    def _named(self, rows: np.ndarray, kept: Any = slice(None)) -> Any:
        """Return rows as a frame if ``fit`` got names; the model then takes frames of these columns only."""
        names = getattr(self, "feature_names_in_", None)
        return rows if names is None else pd.DataFrame(rows, columns=names[kept])

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "model_")

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = dict(super().__getstate__())
        if "model_" in state:
            with tempfile.TemporaryDirectory() as folder:
                save(state["model_"], Path(folder) / "model")
                state["model_"] = (Path(folder) / "model").read_bytes()
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        if "model_" in state:
            with tempfile.TemporaryDirectory() as folder:
                (Path(folder) / "model").write_bytes(state["model_"])
                state = {**state, "model_": load(Path(folder) / "model")}
        super().__setstate__(state)


@dataclass(eq=False, repr=False, kw_only=True)
class _VAE(_Estimator):
    """Base of the estimators that fit a VAE; ``VAEDensity`` documents the parameters."""

    likelihood: str = "gaussian"
    latent_dim: int = 8
    hidden_dims: Sequence[int] = (128,)
    likelihood_options: Mapping[str, Any] | None = None
    standardize: bool = True
    epochs: int = 100
    batch_size: int = 128
    lr: float = 1e-3
    random_state: Any = None
    early_stopping: bool = False
    validation_fraction: float = 0.1
    n_iter_no_change: int = 10

    def fit(self, X: Any, y: Any = None) -> Self:
        """Fit a VAE to rows, shape (rows, columns), and return self; ``y`` is ignored."""
        return self._fit(self._named(self._rows(X, fitting=True)))

    @takes_turns
    def _fit(self, rows: Any) -> Self:
        arguments.choice("likelihood", self.likelihood, tuple(likelihoods.REGISTRY))
        if not isinstance(self.likelihood_options, Mapping | None):
            fix = 'Pass {"scale": "shared"}, or leave it out.'
            raise bad_type("likelihood_options", "a dict or None", shown(self.likelihood_options), fix)
        options = self._options()
        arguments.options(
            self.likelihood,
            likelihoods.REGISTRY[self.likelihood],
            options,
            taken=("network", "standardize"),
            example='likelihood_options={{"{}": …}}',
        )
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        with seeded(derive(seed, Stream.WEIGHTS)):
            model = VAE.mlp(
                rows.shape[1],
                self.latent_dim,
                self.likelihood,
                self.hidden_dims,
                standardize=self.standardize,
                missing=bool(np.isnan(np.asarray(rows)).any()),
                **options,
            ).double()
        fitting: dict[str, Any] = {"epochs": self.epochs, "batch_size": self.batch_size, "lr": self.lr}
        if arguments.boolean("early_stopping", self.early_stopping):
            fitting["patience"] = arguments.integer("n_iter_no_change", self.n_iter_no_change)
            rows, fitting["validation"] = self._split(rows, seed)
        with _in_estimators():
            fit(model, rows, seed=seed, **fitting)
        self.model_, self.seed_ = model, seed
        return self

    def _split(self, rows: Any, seed: int) -> tuple[Any, Any]:
        """Return rows to fit and rows that stop the fit, drawn by the seed."""
        share = arguments.positive("validation_fraction", self.validation_fraction)
        if share >= 1:
            fix = "Pass 0.1."
            raise bad_value(
                "validation_fraction", "a share between 0 and 1", repr(self.validation_fraction), fix
            )
        held = max(1, round(share * len(rows)))
        if len(rows) - held < 2:
            came, fix = f"{held} of {len(rows)}", "Pass a smaller share, or more rows."
            raise bad_value("validation_fraction", "a share that leaves two rows to fit", came, fix)
        order = shuffled(len(rows), seed).numpy()
        observed = torch.from_numpy(~np.isnan(np.asarray(rows, dtype=float)))
        few = leaving_cells(order[:held], observed)
        if not len(few):
            came, fix = "columns with too few cells for that", "Leave early_stopping out."
            raise bad_value("X", "two observed cells of every column beside the rows held out", came, fix)
        taken = getattr(rows, "iloc", rows)
        return taken[order[~np.isin(order, few)]], taken[few]

    def _options(self) -> Mapping[str, Any]:
        """Return the family's options; by default a scale or concentration is learned for each column."""
        if self.likelihood_options is not None:
            return self.likelihood_options
        spread = getattr(likelihoods.REGISTRY.get(self.likelihood), "spread_name", None)
        return {} if spread is None else {spread: "per_dimension"}

    @property
    def history_(self) -> History:
        """The losses of the fit, epoch by epoch."""
        check_is_fitted(self)
        return History(**self.model_.fitted.history)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        family = likelihoods.REGISTRY.get(self.likelihood) if isinstance(self.likelihood, str) else None
        tags.input_tags.positive_only = family is not None and family.takes != "numbers"
        return tags


class _Scores(_Estimator):
    """log P(x) of rows under the fitted model."""

    evidence_: LogEvidence

    def log_evidence(self, X: Any) -> LogEvidence:
        """Return log P(x) of every row with its error and verdict; so ``pyrovae.compare`` takes the estimator, too.

        It has the index of X if X is a frame.
        """
        rows = self._rows(X)  # which raises for an estimator without a fit
        with _in_estimators():
            found = log_evidence(self.model_, rows, **self._evidence_options())
        return replace(found, index=frames.index(X))

    def score_samples(self, X: Any) -> np.ndarray:
        """Return log P(x_n) of every row in nats, shape (rows,); ``evidence_`` then holds errors and verdicts."""
        self.evidence_ = self.log_evidence(X)
        return self.evidence_.estimate.copy()

    def _evidence_options(self) -> dict[str, Any]:
        return {}


@dataclass(eq=False, repr=False, kw_only=True)
class _VAEScores(_Scores, _VAE):
    """log P(x) of rows under a VAE."""

    method: str = "auto"
    num_samples: int | None = None
    check: bool = False

    def fit(self, X: Any, y: Any = None) -> Self:
        """Fit a VAE to rows, shape (rows, columns), and return self; ``y`` is ignored."""
        self._check_options()
        return super().fit(X, y)

    def _check_options(self) -> None:
        arguments.choice("method", self.method, tuple(evidence.METHODS))
        arguments.boolean("check", self.check)

    def _evidence_options(self) -> dict[str, Any]:
        self._check_options()
        options: dict[str, Any] = {"method": self.method}
        if self.num_samples is not None:
            options["num_samples"] = self.num_samples
        if self.method != "exact":
            options |= {"seed": self.seed_, "noise": "content", "check": self.check}
        return options


class _Density(DensityMixin, _Scores):
    """Adds the mean of log P(x), and draws."""

    def score(self, X: Any, y: Any = None) -> float:
        """Return the mean of log P(x_n) over the rows, in nats; ``evidence_`` then holds errors and verdicts."""
        return float(self.score_samples(X).mean())

    def sample(self, n_samples: int = 1, random_state: Any = None) -> np.ndarray:
        """Return independent rows drawn from P(x), shape (n_samples, columns), float64."""
        check_is_fitted(self)
        seed = int(check_random_state(random_state).randint(2**31 - 1))
        drawn: np.ndarray = self.model_.sample(n_samples, seed=seed).double().numpy()
        return drawn


class VAEDensity(_Density, _VAEScores):
    """The density or mass P(x) = ∫ P(x | z) P(z) dz of a variational autoencoder.

    ``score_samples`` returns log P(x) in nats, in the units of x; with missing cells log P of the observed cells. It is an
    estimate by ``method``. ``evidence_`` has the errors and verdicts of the rows that were scored last.

    Args:
        likelihood: a family's name in ``likelihoods.REGISTRY``.
        latent_dim: entries of z.
        hidden_dims: hidden widths of the encoder; the decoder has them in reverse order. With () both are linear.
        likelihood_options: the family's own options, such as {"scale": "shared"}. None learns a scale or a concentration for
            each column if the family has one.
        standardize: whether networks see standardised rows; see ``VAE.mlp``.
        epochs, batch_size, lr: as in ``pyrovae.fit``.
        random_state: an int, a RandomState or None, for the weights, the fit and the noise of scores. An int gives the same
            fit every time.
        early_stopping: whether to hold out rows, stop when their ELBO no longer gets better, and keep the best weights.
        validation_fraction, n_iter_no_change: for early stopping. The first is the share of rows held out, drawn by
            ``random_state``. The second is the epochs without a better ELBO after which the fit stops.
        method: one of ``evidence.METHODS``.
        num_samples: draws per row, for methods that take them; None leaves the method's own default.
        check: whether scores also try the method on rows simulated from the model. It costs seconds a call. Without it, no
            row's verdict is "trust"; a row whose weights show nothing wrong is "unchecked".

    Attributes:
        model_: the fitted ``VAE``, in float64.
        history_: the ``History`` of the fit.
        evidence_: the ``LogEvidence`` of the last ``score_samples`` or ``score``.
        seed_: the seed of the fit and of scores, drawn from ``random_state``.
        n_features_in_, feature_names_in_: as in scikit-learn.

    Raises:
        TypeError, ValueError: from ``fit`` and the methods, for rows or parameters that cannot be used. Examples are
            values off the family's support, infinite values, a constant column of a density, and a column without an
            observed cell.

    Kingma and Welling (2014).

    Example:
        >>> X = np.random.default_rng(0).normal(size=(50, 3))
        >>> density = VAEDensity(latent_dim=1, hidden_dims=(8,), epochs=2, random_state=0).fit(X)
        >>> density.score_samples(X).shape, density.sample(4, random_state=0).shape
        ((50,), (4, 3))
    """

    def fit(
        self, X: Any, y: Any = None
    ) -> Self:  # here, because Python's own errors name the class that defines it
        """Fit a VAE to rows, shape (rows, columns), and return self; ``y`` is ignored."""
        return super().fit(X, y)


@dataclass(eq=False, repr=False, kw_only=True)
class VAEOutlier(OutlierMixin, _VAEScores):
    """Outliers: the rows with the smallest log P(x) under a VAE.

    A row is an outlier, −1, if log P(x) < ``offset_``, and otherwise 1. ``pyrovae.outliers(detector.model_, X)`` names the cell that makes
    a row odd. The VAE is fitted to all rows, outliers included. Rows with more missing cells have larger log P on average.

    Args:
        contamination: the share of training rows that are outliers, in (0, 0.5]. ``offset_`` is that quantile of their log P.

    The other arguments and the attributes are those of ``VAEDensity``. After ``fit``, ``evidence_`` describes the training
    rows. ``predict`` and ``decision_function`` leave it unchanged.

    Example:
        >>> X = np.random.default_rng(0).normal(size=(50, 3))
        >>> labels = VAEOutlier(latent_dim=1, hidden_dims=(8,), epochs=2, random_state=0).fit_predict(X)
        >>> int((labels == -1).sum())
        5
    """

    contamination: float = 0.1

    def fit(self, X: Any, y: Any = None) -> Self:
        """Fit a VAE and the offset to rows, shape (rows, columns), and return self; ``y`` is ignored."""
        expected = "a share in (0, 0.5]"
        share = arguments.number("contamination", self.contamination, expected)
        if not 0 < share <= 0.5:
            raise bad_value("contamination", expected, repr(share), "Pass 0.1.")
        super().fit(X)
        self.offset_ = float(np.percentile(self.score_samples(X), 100 * share))
        return self

    def decision_function(self, X: Any) -> np.ndarray:
        """Return log P(x_n) − ``offset_`` in nats, shape (rows,); negative for outliers."""
        shifted: np.ndarray = self.log_evidence(X).estimate - self.offset_
        return shifted

    def predict(self, X: Any) -> np.ndarray:
        """Return −1 for outliers and 1 for other rows, shape (rows,)."""
        return np.where(self.decision_function(X) < 0, -1, 1)

    def fit_predict(self, X: Any, y: Any = None) -> np.ndarray:
        """Fit to rows and return the labels of the same rows, which are scored once."""
        found = self.fit(X).evidence_.estimate
        return np.where(found < self.offset_, -1, 1)


@dataclass(eq=False, repr=False, kw_only=True)
class VAETransformer(ClassNamePrefixFeaturesOutMixin, TransformerMixin, _VAE):
    """The mean of z for each row, by default the encoder's: columns for the next step of a pipeline.

    Args:
        method: how ``pyrovae.embed`` computes the mean. "encoder": the mean of Q(z | x), but as "auto" for
            rows with missing cells. "refined", "importance" and "auto": the mean of P(z | x).

    The other arguments and the attributes are those of ``VAEDensity``. ``pyrovae.embed(transformer.model_, X)`` also returns standard deviations.

    Example:
        >>> X = np.random.default_rng(0).normal(size=(50, 3))
        >>> codes = VAETransformer(latent_dim=2, hidden_dims=(8,), epochs=2, random_state=0).fit_transform(X)
        >>> codes.shape
        (50, 2)
    """

    method: str = "encoder"

    def transform(self, X: Any) -> np.ndarray:
        """Return the mean of z for each row, by ``method``, shape (rows, latent_dim)."""
        rows = self._rows(X)
        holed, found = np.isnan(rows).any(axis=1), np.empty((len(rows), self._n_features_out))
        # An encoder tells little of rows with missing cells unless it was trained on many of them.
        for some, method in (
            (~holed, self.method),
            (holed, "auto" if self.method == "encoder" else self.method),
        ):
            if some.any():
                frame = embedding.embed(
                    self.model_, rows[some], method=method, seed=self.seed_, noise="content", check=False
                )
                found[some] = frame.iloc[:, : self._n_features_out].to_numpy(dtype=np.float64)
        return found

    @takes_turns
    def inverse_transform(self, X: Any) -> np.ndarray:
        """Return the mean of P(x | z) in the units of x, shape (rows, columns), for z of shape (rows, latent_dim)."""
        check_is_fitted(self)
        codes = check_array(X, dtype=np.float64)
        width = self._n_features_out
        if codes.shape[1] != width:
            fix = "Pass what transform returned."
            raise bad_value("X", f"{width} columns, one an entry of z", str(codes.shape[1]), fix)
        with self.model_.evaluating():
            mean: np.ndarray = self.model_.likelihood(torch.from_numpy(codes)).mean.numpy()
        return mean

    @property
    def _n_features_out(self) -> int:
        return int(self.model_.prior.latent_dim)


@dataclass(eq=False, repr=False, kw_only=True)
class VAEImputer(OneToOneFeatureMixin, TransformerMixin, _VAE):
    """Fills missing cells by draws from P(x_mis | x_obs) under a VAE; observed cells are unchanged.

    Columns without an observed cell in ``fit`` are not part of the VAE. ``pyrovae.impute(imputer.model_, X)``
    returns several completed copies of rows, intervals, and a verdict for each row.

    Args:
        strategy: the "mean", "median" or "mode" of the draws of a cell. "mode" is for families of masses.
        sample_posterior: fill each cell with one draw instead. Further draws need an imputer with another ``random_state``.
        num_imputations: draws of every cell, for ``strategy``.
        method, num_samples: as in ``pyrovae.impute``.
        add_indicator: append columns that say where cells were missing, for columns that lacked cells in ``fit``.
        keep_empty_features: keep columns without an observed cell in ``fit``, with 0 in their missing cells, instead of
            dropping them.

    The other arguments and the attributes are those of ``VAEDensity``.

    Example:
        >>> X = np.random.default_rng(0).normal(size=(50, 3))
        >>> X[::7, 1] = np.nan
        >>> imputer = VAEImputer(latent_dim=1, hidden_dims=(8,), epochs=2, random_state=0)
        >>> bool(np.isnan(imputer.fit_transform(X)).any())
        False
    """

    method: str = "auto"
    num_samples: int = 1000
    num_imputations: int = 20
    strategy: str = "mean"
    sample_posterior: bool = False
    add_indicator: bool = False
    keep_empty_features: bool = False

    def fit(self, X: Any, y: Any = None) -> Self:
        """Fit a VAE to the observed cells of rows, shape (rows, columns), and return self; ``y`` is ignored."""
        arguments.choice("method", self.method, imputation.METHODS)
        arguments.choice("strategy", self.strategy, imputation.POINTS)
        for name in ("sample_posterior", "add_indicator", "keep_empty_features"):
            arguments.boolean(name, getattr(self, name))
        rows = self._rows(X, fitting=True)
        self.indicator_ = MissingIndicator(features="missing-only", error_on_new=False).fit(rows)
        self._modelled = ~np.isnan(rows).all(axis=0)
        if not self._modelled.any():
            raise bad_value("X", "an observed cell", "none", "Pass rows with numbers.")
        return self._fit(self._named(rows[:, self._modelled], self._modelled))

    def transform(self, X: Any) -> np.ndarray:
        """Return the rows with their missing cells filled, then the indicator's columns; float64."""
        rows = self._rows(X)
        found, marks = rows.copy(), self.indicator_.transform(rows) if self.add_indicator else None
        found[:, ~self._modelled] = np.nan_to_num(rows[:, ~self._modelled])
        found[:, self._modelled] = self._filled(rows[:, self._modelled])
        if not self.keep_empty_features:
            found = found[:, self._modelled]
        return found if marks is None else np.hstack([found, marks])

    def _filled(self, rows: np.ndarray) -> np.ndarray:
        if not np.isnan(rows).any():
            return rows
        with _in_estimators():
            found = imputation.impute(
                self.model_,
                rows,
                1 if self.sample_posterior else self.num_imputations,
                method=self.method,
                num_samples=self.num_samples,
                seed=self.seed_,
                check=False,
                noise="content",
            )
            filled: np.ndarray = found.completed[0] if self.sample_posterior else found.point(self.strategy)
        return filled

    def get_feature_names_out(self, input_features: Any = None) -> np.ndarray:
        """Return the names of the columns that ``transform`` returns."""
        names: np.ndarray = super().get_feature_names_out(input_features)
        kept = names if self.keep_empty_features else names[self._modelled]
        marks = self.indicator_.get_feature_names_out(names) if self.add_indicator else []
        return np.concatenate([kept, marks]).astype(object)


@dataclass(eq=False, repr=False)
class BaselineDensity(_Density):
    """The density or mass P(x) of a baseline, with exact log P(x).

    Args:
        baseline: a name in ``baselines.REGISTRY`` of a baseline whose log P(x) has a closed form.
        options: of the baseline's constructor, such as {"latent_dim": 2}.

    Attributes:
        model_: the fitted baseline.
        evidence_: the ``LogEvidence`` of the last ``score_samples`` or ``score``.

    Example:
        >>> X = np.random.default_rng(0).normal(size=(50, 3))
        >>> float(BaselineDensity("full_gaussian").fit(X).score_samples(np.zeros((1, 3))).round(1)[0])
        -2.6
    """

    baseline: str = "full_gaussian"
    options: Mapping[str, Any] | None = None

    def fit(self, X: Any, y: Any = None) -> Self:
        """Fit the baseline to rows, shape (rows, columns), and return self; ``y`` is ignored."""
        found = _CLOSED[arguments.choice("baseline", self.baseline, tuple(_CLOSED))]
        rows = self._rows(X, fitting=True)
        options = {} if self.options is None else self.options
        example = f'BaselineDensity("{self.baseline}", {{{{"{{}}": 2}}}})'
        arguments.options(self.baseline, found, options, taken=(), example=example)
        with _in_estimators():
            self.model_ = found(**options).fit(self._named(rows))
        return self

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        if self.baseline in _CLOSED:
            found = _CLOSED[self.baseline]
            tags.input_tags.allow_nan = found.takes_missing
            tags.input_tags.positive_only = found.support is not constraints.real
        return tags


def _require_exact(X: Any) -> None:
    """Raise ``ValueError`` for whole numbers that scikit-learn would round to float64 unseen."""
    if hasattr(X, "iloc") and hasattr(X, "columns"):
        columns = [X.iloc[:, column] for column in range(X.shape[1])]
    else:
        try:
            columns = [np.asarray(X)]
        except ValueError:  # of ragged lists, which scikit-learn refuses
            return
    for column, values in enumerate(columns):
        beyond = beyond_whole(values)  # NA in missing cells
        large = np.argwhere(np.asarray(beyond.fillna(False) if hasattr(beyond, "fillna") else beyond))
        if len(large):
            place = f"row {large[0][0]}" + (f", column {column}" if len(columns) > 1 else "")
            came = f"{len(large)} others, first in {place}"
            raise bad_value("X", "whole numbers between -2^53 and 2^53", came, "Subtract a constant first.")
