"""PyroMCMC: MCMC for any Bayesian Pyro model, with the evidence of training rows and log P of held-out rows."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cached_property
from itertools import zip_longest
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from pyrovae import arguments, checkpoints, identity, noise
from pyrovae.baselines.base import Fitted
from pyrovae.baselines.mcmc.chains import run_nuts
from pyrovae.chain_diagnostics import Checks, check, frame_of, row_ess, series_ess
from pyrovae.diagnostics import Accumulator
from pyrovae.evidence.from_draws import beyond_numbers, by_bridge
from pyrovae.evidence.result import Columns, LogEvidence, about, given_of, judge, verdicts
from pyrovae.pair import Batch, Latents
from pyrovae.pair.globals import BayesianModel
from pyrovae.refusals import bad_type, bad_value, failure
from pyrovae.rows import Source, read_in_double
from pyrovae.turns import takes_turns

if TYPE_CHECKING:
    import pandas as pd

#: With fewer draws, no result is reliable.
_FEWEST = 100
#: Most numbers of a deterministic site in all draws: 4 GiB of float64.
_MOST_NUMBERS = 1 << 29


class PyroMCMC(Fitted):
    """θ ~ P(θ | rows) of any Pyro model by NUTS: P(rows) by bridge sampling, P(x_n | rows) by averaging over θ.

    The model is called as ``model(x)``, or as ``model(x, offset=…)`` if it is fitted to
    ``{"x": rows, "offset": …}``. It samples its latents and observes x. Everything is computed in float64, so
    tensors and networks that the model uses must be, too: ``.double()``. Latents of priors in float32, such as those of
    ``PyroSample``, are cast. Entries that are not observed need ``.mask(observed)`` on the distribution, not ``obs_mask``.
    The model decides which methods are available:

    * ``fit`` and ``marginal_likelihood`` need continuous latents. ``compare_evidence`` also needs observed sites
      that hold columns of x.
    * ``log_evidence`` and ``sample`` need rows that are independent given the latents that they share. A new row is
      then scored by log (1/S) Σ_s P(x_n | θ_s). The observed sites must be in a plate of size ``len(x)``, and
      latents outside it. Latents of single rows (the schools of eight schools) and rows that depend on each other
      (a time series) raise an error with the reason.

    NUTS (Hoffman and Gelman 2014) follows the gradient of the log joint. The log joint is traced from Pyro once, and
    compiled if the steps would take longer than compiling. With the extra ``pyrovae[nuts]``, nutpie runs the chains.
    Pyro's NUTS runs them without the extra, for fewer than 20 warm-up steps, and for models that read values in
    Python, which cannot be traced. Both sample the same posterior, with different draws for one seed. Chains run one
    after the other. Each has its own start and noise from the seed. Three checks follow: rank-normalised split R-hat
    (at most 1.01), the effective sample size in bulk and tails (at least 400; Vehtari et al. 2021) and divergences
    (none). If one fails, ``problems`` says which, and no number computed from the chains gets the verdict "trust".
    No check detects a mode that no chain has visited.

    The draws are of the model as it was in ``fit``. Methods that run the model again first compare its log joint at some
    draws with that of ``fit``. If it differs, because a tensor or weight that the model reads has changed, they raise an error.

    Args:
        model: a Pyro model.
        num_samples: draws per chain.
        warmup_steps: steps per chain that adapt step size and mass, and are discarded.
        num_chains: number of chains; with only one, R-hat compares its halves.
        target_accept_prob: closer to 1 takes smaller steps, which removes a few divergences.
        full_mass: whether the mass matrix has correlations, for strongly correlated posteriors. Pyro's NUTS adapts a
            dense matrix; nutpie adapts a diagonal one and the directions that differ most from it.
        max_tree_depth: a draw takes at most 2^max_tree_depth steps.
        seed: of the chains.
        progress: whether to show progress and the remaining time.

    After ``fit``: ``posterior``, the draws by site in the model's own space, shape (chains, draws, ...);
    ``diagnostics``, a frame; ``divergences``; ``problems``; ``converged``.

    Raises:
        TypeError: ``model`` is not callable.
        ValueError: there are fewer than 100 draws in all.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def coin(x):
        ...     p = pyro.sample("p", dist.Beta(1.0, 1.0))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("x", dist.Bernoulli(p), obs=x)
        >>> x = torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0])
        >>> mcmc = PyroMCMC(coin, num_samples=100, warmup_steps=50, num_chains=2).fit(x)
        >>> evidence = mcmc.marginal_likelihood()  # exactly log B(4, 3) = −log 60
        >>> abs(evidence.total + math.log(60)) < 6 * evidence.mean_mcse < 0.5
        True
        >>> ev = mcmc.log_evidence(torch.ones(1))  # exactly log 4/7
        >>> abs(ev.mean - math.log(4 / 7)) < 6 * ev.mean_mcse < 0.5
        True
    """

    posterior: Latents
    divergences: int
    #: Failed checks of the chains, in words; empty if none failed.
    problems: tuple[str, ...]
    #: Hashes of the rows that the model was fitted to, shape (rows, 2), by ``identity.row_hashes``.
    seen: np.ndarray
    #: Names of the columns that the model was fitted to, by the name of each frame among the rows.
    names: Mapping[str, tuple[str, ...]] = MappingProxyType({})

    derived: ClassVar[tuple[str, ...]] = ("_joint", "diagnostics", "_lost")

    _batch: Batch
    _joint: BayesianModel | None = None
    _draws: Tensor  # (chains, draws, dim), unconstrained
    _at_draws: Tensor | None = None  # the log joint at ``_some(_draws)``; files of earlier versions lack it

    def __init__(
        self,
        model: Callable[..., Any],
        *,
        num_samples: int = 1000,
        warmup_steps: int = 500,
        num_chains: int = 4,
        target_accept_prob: float = 0.8,
        full_mass: bool = False,
        max_tree_depth: int = 10,
        seed: int = 0,
        progress: bool = False,
    ) -> None:
        if not callable(model):
            raise bad_type("model", "a callable with Pyro statements", repr(model), "Pass a function.")
        self.model = model
        self.num_samples = arguments.integer("num_samples", num_samples)
        self.warmup_steps = arguments.integer("warmup_steps", warmup_steps)
        self.num_chains = arguments.integer("num_chains", num_chains)
        self.target_accept_prob = arguments.positive("target_accept_prob", target_accept_prob)
        if self.target_accept_prob >= 1:
            raise bad_value(
                "target_accept_prob", "a probability below 1", f"{target_accept_prob:g}", "Pass 0.8, or 0.95."
            )
        self.full_mass = arguments.boolean("full_mass", full_mass)
        self.max_tree_depth = arguments.integer("max_tree_depth", max_tree_depth)
        self.seed = arguments.integer("seed", seed, minimum=0)
        self.progress = arguments.boolean("progress", progress)
        total = self.num_samples * self.num_chains
        if total < _FEWEST:
            raise bad_value(
                "num_samples",
                f"at least {_FEWEST} draws in all chains together, for reliable results",
                str(total),
                f"Pass num_samples={-(-_FEWEST // self.num_chains)} or more.",
            )

    @takes_turns
    def fit(self, x: Any) -> Self:
        """Run the chains on rows, or on a mapping with rows under "x", and return self. After an error, nothing has changed.

        Raises:
            ValueError: the model has no latents or discrete ones, does not observe x, or has ``pyro.param``
                statements.
            ValueError: values are off the likelihood's support, or no start has finite density.
        """
        batch, source = read_in_double(x)
        batch = {name: value.clone() for name, value in batch.items()}  # the user may change theirs
        joint = self._joint_of(batch)
        draws, divergences = run_nuts(
            joint,
            num_chains=self.num_chains,
            warmup_steps=self.warmup_steps,
            num_samples=self.num_samples,
            seed=self.seed,
            progress=self.progress,
            target_accept_prob=self.target_accept_prob,
            full_mass=self.full_mass,
            max_tree_depth=self.max_tree_depth,
        )
        latents, at_draws = joint.latents(draws.flatten(0, 1)), joint.log_joints(_some(draws))
        for kept in ("diagnostics", "_lost"):
            self.__dict__.pop(kept, None)
        self._batch, self._joint, self._draws, self.divergences = batch, joint, draws, divergences
        self._at_draws = at_draws
        self.posterior = {name: value.unflatten(0, draws.shape[:2]) for name, value in latents.items()}
        self.seen, self.names = identity.row_hashes(source.exact), dict(source.names)
        self._fingerprint = identity.fingerprint(source.exact, names=source.names.get("x"))
        self._r_hat, self._ess, self.problems = check(draws, joint.site_names, divergences)
        return self

    def _joint_of(self, batch: Batch) -> BayesianModel:
        """Return the model of rows as a function of one vector."""
        with noise.seeded(noise.derive(self.seed, noise.Stream.INSPECT)):
            return BayesianModel(self.model, batch)

    def _derive(self) -> None:
        if "_batch" in vars(self):
            self._joint = self._joint_of(self._batch)
            if "model" not in self.derived:  # the user's code, which may have changed
                came = self._other_latents(self._joint) or self._other_density(self._joint)
                if came is not None:
                    fix = "Load into the same code, or fit this model. Nothing was changed."
                    raise bad_value("into", "the model that was saved", came, fix)
            if self._at_draws is None:
                self._at_draws = self._joint.log_joints(_some(self._draws))

    def _require_same(self) -> BayesianModel:
        """Return the fitted model; raise ``ValueError`` if it has changed since, for its draws are then of another.

        The user's code may read tensors, modules and other objects, which may change at any time.
        """
        joint = self._require_fit()
        came = self._other_density(joint)
        if came is not None:
            fix = "Its draws are of the model as it was: fit again, or restore the values that it reads."
            raise bad_value("model", "the model that was fitted", came, fix)
        return joint

    def _other_latents(self, joint: BayesianModel) -> str | None:
        """Return how a model's latents differ from the kept ones, by name, order and shape; None if they do not."""
        saved = [f"{name!r} of shape {tuple(value.shape[2:])}" for name, value in self.posterior.items()]
        here = [f"{name!r} of shape {tuple(shape)}" for name, shape in joint.shapes.items()]
        for number, (name, before) in enumerate(zip_longest(here, saved, fillvalue="missing"), start=1):
            if name != before:
                return f"one whose latent number {number} is {name}, was {before}"
        if joint.dim != self._draws.shape[-1]:
            return f"one of {joint.dim} unconstrained parameters; {self._draws.shape[-1]} were saved"
        return None

    def _other_density(self, joint: BayesianModel) -> str | None:
        """Return how a model's log joint at some kept draws differs from that of ``fit``; None if it does not."""
        if self._at_draws is None:
            return None
        try:
            now = joint.log_joints(_some(self._draws))
        except Exception as error:  # the user's code may fail in any way
            return f"one that fails on the fitted rows at a kept draw ({failure(error)})"
        tolerance = checkpoints.rounding(torch.float64)
        same = torch.isclose(now, self._at_draws, rtol=tolerance, atol=tolerance, equal_nan=True)
        if bool(same.all()):
            return None
        a, b = float(now[~same][0]), float(self._at_draws[~same][0])
        return f"one whose log P(x, latents) at a kept draw is {a:.12g}, was {b:.12g}"

    @takes_turns
    def log_likelihood(self, x: Any) -> Tensor:
        """Return log P(x_n | θ_s) of rows under every draw, shape (chains, draws, rows), float64, in nats.

        Raises:
            ValueError: as ``log_evidence``.
        """
        joint, (batch, _) = self._require_same(), self._like_fitted(x)
        parts = list(joint.log_likelihood(batch, self._draws.flatten(0, 1)))
        return torch.cat(parts, dim=1).unflatten(0, self._draws.shape[:2])

    @takes_turns
    def deterministic(self) -> Latents:
        """Return the values of ``pyro.deterministic`` statements at every draw by name, shape (chains, draws, ...).

        Latents that ``poutine.reparam`` computes from others are among them. They are computed on the training rows. A site
        of more than 2²⁹ numbers in all is left out, with a warning.
        """
        joint = self._require_same()
        found, left_out = joint.deterministic(self._draws.flatten(0, 1), _MOST_NUMBERS)
        for name, numbers in left_out.items():
            warnings.warn(
                f"deterministic site {name!r} is left out: expected at most {_MOST_NUMBERS} numbers, got {numbers}. "
                "Compute it from some draws in .posterior.",
                stacklevel=3,
            )
        return {name: value.unflatten(0, self._draws.shape[:2]) for name, value in found.items()}

    @takes_turns
    def marginal_likelihood(self, *, warp: bool = False) -> LogEvidence:
        """Return log P(training rows), all together, by bridge sampling: one number in nats, with its error.

        Args:
            warp: whether to make the posterior symmetric before the bridge (warp-3), which helps skewed
                posteriors and doubles the evaluations. See ``evidence.from_draws``, which does the work.

        Returns:
            One entry with target "evidence" and kind "estimate". The verdict is that of ``evidence.from_draws``; it is
            "trust" only if the chains have no ``problems``.
        """
        joint = self._require_same()
        checks = Checks(self._r_hat, self._ess, self.problems)

        def log_joints(u: Tensor) -> Tensor:
            """Return log joints, NaN where a latent underflows to a bound of infinite density."""
            return joint.log_joints(u).nan_to_num(nan=math.nan, posinf=math.nan, neginf=-math.inf)

        seed = noise.derive(self.seed, noise.Stream.WEIGHTS)
        return LogEvidence(
            **by_bridge(
                log_joints,
                self._draws,
                checks,
                names=joint.site_names,
                warp=warp,
                seed=seed,
                lost=self._lost,
            ),
            measure=joint.measure,
            given=_given_together(joint),
            own_totals=joint.own_totals,
            fingerprint=self._fingerprint,
            seed=self.seed,
        )

    @takes_turns
    def log_evidence(self, x: Any) -> LogEvidence:
        """Return log P(x_n | training rows) of each row by itself, new or not, in nats, averaged over the posterior.

        The estimate is log (1/S) Σ_s P(x_n | θ_s). A row's error is sd / (mean · √ESS) of P(x_n | θ_s) (delta
        method). ESS is the effective sample size of this series. The bias is −½ of the squared error. All rows share
        the draws. The error of their mean (``shared_mcse``) therefore comes from the series mean_n P(x_n | θ_s) /
        P̄(x_n), by the same method. A row's k-hat is that of the P(x_n | θ_s).

        Raises:
            ValueError: rows cannot be scored separately, with the reason; or columns differ from the fitted ones.
        """
        joint = self._require_same()
        batch, source = self._like_fitted(x)
        flat = self._draws.flatten(0, 1)
        blocks = []
        shared = torch.zeros(len(flat), dtype=torch.float64)
        for log_likelihood in joint.log_likelihood(batch, flat):
            columns, ratio = self._average(log_likelihood)
            blocks.append(columns)
            shared += (ratio - 1).sum(dim=1) / len(batch["x"])
        columns = Columns.cat(blocks)
        found = columns.numpy()
        error = float(shared.std()) / math.sqrt(series_ess(shared.unflatten(0, self._draws.shape[:2])))
        verdict, reasons = judge(verdicts(found["pareto_k"], found["ess"]), columns)
        if self.problems:
            verdict = np.where(verdict == "trust", "more samples", verdict)
        if self._lost:
            verdict = np.full(len(verdict), "another method")
        name, count = type(self).__name__, len(verdict)
        return LogEvidence(
            **found,
            kind=np.full(count, "estimate"),
            verdict=verdict,
            reasons=(*self._lost, *self.problems, *reasons),
            method=name,
            answered_by=np.full(count, name),
            num_samples=len(flat),
            seed=self.seed,
            tile=None,
            parameters="posterior-averaged",
            measure=joint.rows.measure,
            given=given_of(batch),
            own_totals=joint.own_totals,
            **about(source, self),
            shared_mcse=error if np.isfinite(found["estimate"]).all() else math.inf,
        )

    @takes_turns
    def sample(self, num_rows: int, seed: int = 0) -> Tensor:
        """Return rows from the posterior predictive, each with its own draw of θ, shape (num_rows, ...), float64.

        Columns that the model does not observe, and values beside the rows, come from random training rows.

        Raises:
            ValueError: as ``log_evidence``; also if the model observes other values than columns of x.
        """
        arguments.integer("num_rows", num_rows)
        joint = self._require_same()
        flat = self._draws.flatten(0, 1)
        with noise.seeded(noise.derive(seed, noise.Stream.SAMPLE)):
            return joint.simulate(flat[torch.randint(len(flat), (num_rows,))])

    @property
    def converged(self) -> bool:
        """Whether the chains passed all checks, so that there are no ``problems``."""
        self._require_fit()
        return not self.problems

    @cached_property
    def diagnostics(self) -> pd.DataFrame:
        """One line per parameter of the model: mean, sd, mcse_mean, ess_bulk, ess_tail, r_hat; by arviz.

        R-hat and effective sample sizes are NaN for a parameter that is constant by construction, such as the zeros of a
        triangular matrix.
        """
        joint = self._require_fit()
        return frame_of(self.posterior, joint.labels)

    @cached_property
    def _lost(self) -> tuple[str, ...]:
        """In which latents the draws reach a bound so often that mass beyond the last number is lost, in words."""
        joint = self._require_fit()
        return beyond_numbers(self.posterior, joint.bounds, joint.simplexes)

    def summary(self) -> str:
        """Return a text on the fit and on the checks of the chains."""
        joint = self._require_fit()
        lines = [
            f"{type(self).__name__}, {joint.dim} parameters, {len(joint.batch['x'])} rows; {self.num_chains} chains "
            f"of {self.num_samples} draws after {self.warmup_steps} of warm-up, posterior-averaged",
            f"R-hat at most {self._r_hat:.3f}, effective sample size at least {self._ess:.0f}, "
            f"{self.divergences} divergences: {'not ' if self.problems else ''}converged",
        ]
        return "\n".join([*lines, *self._lost, *self.problems])

    def __repr__(self) -> str:
        if self._joint is None:
            return f"<{type(self).__name__}, not fitted>"
        return f"<{self.summary().splitlines()[0]}>"

    # -----------------------------------------------------------------------------------------------------

    def _average(self, log_likelihood: Tensor) -> tuple[Columns, Tensor]:
        """Return the columns of some rows from log P(x_n | θ_s), shape (draws, rows), and P(x_n | θ_s) / P̄(x_n)."""
        found = Columns.of_weights(Accumulator.of(log_likelihood), torch.float64, len(log_likelihood))
        possible = torch.isfinite(found.estimate)  # under some draw
        ratio = torch.where(possible, (log_likelihood - found.estimate).exp(), 1.0)
        ess = row_ess(ratio.unflatten(0, self._draws.shape[:2]))
        squared = torch.where(possible, ratio.var(dim=0), math.inf) / ess
        tail_error = found.tail_error * (len(log_likelihood) / ess).sqrt()
        return replace(found, mcse=squared.sqrt(), bias=-0.5 * squared, ess=ess, tail_error=tail_error), ratio

    def _like_fitted(self, x: Any) -> tuple[Batch, Source]:
        """Return rows as a batch and as passed; raise ``ValueError`` unless their columns and names are the fitted ones."""
        fitted = self._require_fit().batch
        batch, source = read_in_double(x, self.names)
        for name in fitted.keys() | batch.keys():
            if name not in batch or name not in fitted or batch[name].shape[1:] != fitted[name].shape[1:]:
                shapes = [str({n: tuple(v.shape[1:]) for n, v in sorted(b.items())}) for b in (fitted, batch)]
                raise bad_value(
                    "x",
                    f"rows of the shape that was fitted, {shapes[0]}",
                    shapes[1],
                    "Pass the same columns.",
                )
        return batch, source

    def _require_fit(self) -> BayesianModel:
        if self._joint is None:
            raise self._not_fitted()
        return self._joint


def _some(draws: Tensor) -> Tensor:
    """Return the first and last draw of every chain, shape (2 · chains, dim)."""
    return draws[:, [0, -1]].flatten(0, 1)


def _given_together(joint: BayesianModel) -> dict[str, str]:
    """Return digests of the values that all rows together were scored given, and of cells that are conditions only."""
    given = given_of(joint.batch)
    if "unscored in part" in joint.measure:
        given["left-out cells of x"] = identity.digest(joint.together.left_out.double())
    return given
