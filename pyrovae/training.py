"""fit(): Pyro's stochastic variational inference over minibatches, and its History.

``step`` is the whole of training: a function of (state, batch, noise, learning rates, KL weight) that
reads nothing else and changes nothing but the state. ``fit`` around it draws the minibatches, moves the
learning rate and the KL weight, evaluates, and decides when to stop.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from pyro.infer import (
    ELBO,
    JitTrace_ELBO,
    JitTraceEnum_ELBO,
    JitTraceGraph_ELBO,
    JitTraceMeanField_ELBO,
    RenyiELBO,
    Trace_ELBO,
    TraceEnum_ELBO,
    TraceGraph_ELBO,
    TraceMeanField_ELBO,
    TraceTailAdaptive_ELBO,
)
from pyro.optim import PyroOptim
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from pyrovae import checks, noise
from pyrovae.log_weights import ELBOEstimate, Evaluation, elbo_of, prepare_rows
from pyrovae.model import VAE, LatentVariableModel
from pyrovae.networks import standardizing
from pyrovae.pair import Batch, Structure, check_every_leaf, inspect, loss
from pyrovae.progress import Progress

if TYPE_CHECKING:
    import pandas as pd

# Objectives that are sums over rows and sites: there, scaling a minibatch by N/B gives an unbiased
# estimate for the whole data set, and a KL weight below one gives the annealed bound.
_SUMS = (Trace_ELBO, TraceMeanField_ELBO, TraceGraph_ELBO, TraceEnum_ELBO)
# They trace the first call with torch.jit: N/B of the last, smaller batch and the KL weight would freeze.
_FROZEN = (JitTrace_ELBO, JitTraceMeanField_ELBO, JitTraceGraph_ELBO, JitTraceEnum_ELBO)


@dataclass(repr=False)
class History:
    """What a fit did, epoch by epoch.

    Attributes:
        records: one dict an epoch; see ``frame``.
        stopped: "epochs" (all done), "patience" (no better on the validation rows) or "interrupted".
        best_epoch: the epoch whose weights the model now has, where ``patience`` restored them.
    """

    records: list[dict[str, float]] = field(default_factory=list)
    stopped: str = "epochs"
    best_epoch: int | None = None

    @property
    def frame(self) -> pd.DataFrame:
        """A line an epoch: epoch, loss, elbo, rate, reconstruction, kl_weight, lr, seconds; in nats a row.

        ``loss`` is the objective averaged over the epoch's steps, while the parameters moved; ``elbo`` =
        ``reconstruction`` − ``rate`` is evaluated after it, without KL weight, whatever the objective.
        With validation rows, the same three again as ``validation_…``.
        """
        import pandas as pd

        columns = ["epoch", "loss", "elbo", "rate", "reconstruction", "kl_weight", "lr", "seconds"]
        return pd.DataFrame(self.records, columns=None if self.records else columns)

    def __len__(self) -> int:
        return len(self.records)

    def __repr__(self) -> str:
        if not self.records:
            return f"History(0 epochs, {self.stopped})"
        last = self.records[-1]
        best = f", best epoch {self.best_epoch}" if self.best_epoch else ""
        return (
            f"History({len(self)} epochs, ELBO {last['elbo']:.2f} nats a row, stopped: {self.stopped}{best})"
        )


@dataclass
class State:
    """What a step reads and changes: a pair with its parameters and buffers, and their optimizer's moments."""

    pair: LatentVariableModel
    optimizer: torch.optim.Optimizer
    objective: ELBO
    num_rows: int
    clip_norm: float | None


def step(state: State, batch: Batch, seed: int, learning_rates: Sequence[float], kl_weight: float) -> float:
    """One gradient step on a minibatch; returns its loss, an estimate of the data set's, in nats a row.

    Args:
        state: changed in place: parameters, their buffers, and the optimizer's moments.
        batch: the minibatch.
        seed: the noise of the step.
        learning_rates: one for each of the optimizer's parameter groups.
        kl_weight: what the latent sites' log-probabilities are multiplied by.

    Raises:
        FloatingPointError: a loss or gradient that is not finite; the parameters are as before the step.
    """
    state.pair.zero_grad(set_to_none=True)
    parameters = [p for group in state.optimizer.param_groups for p in group["params"]]
    with noise.seeded(seed, batch["x"].device), state.pair.fitting():
        total = loss(state.pair, state.objective, batch, state.num_rows, kl_weight)
        if isinstance(total, Tensor):
            # A row's worth of the loss: the learning rate and clip_norm mean the same for any N.
            (total / state.num_rows).backward()
        else:  # an objective that ran backward() itself, on the whole data set's loss
            for parameter in parameters:
                if parameter.grad is not None:
                    parameter.grad /= state.num_rows
    value = float(total.detach() if isinstance(total, Tensor) else total) / state.num_rows
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    if not (math.isfinite(value) and math.isfinite(norm)):
        state.pair.zero_grad(set_to_none=True)
        what = f"loss is {value}" if not math.isfinite(value) else f"gradient norm is {float(norm)}"
        raise FloatingPointError(what)
    if state.clip_norm is not None:
        torch.nn.utils.clip_grads_with_norm_(parameters, state.clip_norm, norm)
    for group, rate in zip(state.optimizer.param_groups, learning_rates, strict=True):
        group["lr"] = rate
    state.optimizer.step()
    return value


def fit(
    pair: LatentVariableModel,
    x: Any,
    *,
    epochs: int = 50,
    batch_size: int = 128,
    lr: float = 1e-3,
    seed: int = 0,
    loss: ELBO | None = None,
    optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.Adam,
    scheduler: Callable[[torch.optim.Optimizer], LRScheduler | ReduceLROnPlateau] | None = None,
    num_particles: int = 1,
    kl_warmup: int = 0,
    validation: Any = None,
    patience: int | None = None,
    clip_norm: float | None = None,
    progress: bool = False,
) -> History:
    """Fit model and guide together by stochastic variational inference.

    Minimises Pyro's ``loss`` over minibatches, each scaled by N/B so that it estimates the whole data
    set's without bias. Optimised and reported in nats a row (the data set's loss over N), so that
    ``lr`` and ``clip_norm`` mean the same whatever the number of rows.

    Args:
        pair: a ``VAE`` or any ``LatentVariableModel``; changed in place.
        x: training rows on dim 0; tensor, numpy array or DataFrame. Or a dict with the rows under "x" and
            what is aligned with them under other names, which model and guide are called with as keywords:
            ``{"x": counts, "offset": log_exposure}``. The same goes for every function that takes x.
        epochs: passes over the rows.
        batch_size: rows a step; the last batch of a pass may be smaller and is scaled by its own N/B.
        lr: the optimizer's learning rate.
        seed: of the order of rows and of the steps' noise; the same seed gives the same fit.
        loss: a Pyro ELBO; ``Trace_ELBO(num_particles)`` where None.
        optimizer: a torch optimizer's class, or a ``functools.partial`` of it with more options.
        scheduler: called with the optimizer, returns a torch scheduler, stepped once an epoch
            (``ReduceLROnPlateau`` on the negative validation ELBO, or the training one).
        num_particles: draws a row and step.
        kl_warmup: epochs over which the weight of the latent sites rises linearly to 1.
        validation: rows evaluated after every epoch.
        patience: epochs without a better validation ELBO after which to stop, not counted before the
            warm-up is over; the best weights are then restored.
        clip_norm: bound on the norm of the gradient, in nats a row.
        progress: show a bar, or plain lines where there is no terminal.

    Returns:
        The ``History``. Ctrl-C ends the fit early, keeps what was learned and returns it, too.

    Raises:
        TypeError, ValueError: bad arguments, rows or pair; before anything is touched.
        FloatingPointError: a loss or gradient that is not finite, naming epoch, step and rows; the
            parameters are as before that step.

    Kingma and Welling (2014); Bowman et al. (2016) for the warm-up.

    Example:
        >>> import torch, pyrovae as pv
        >>> vae = pv.VAE.mlp(6, latent_dim=2, hidden_dims=(8,))
        >>> history = pv.fit(vae, torch.ones(20, 6), epochs=3)
        >>> len(history.frame)
        3
    """
    checks.integer("epochs", epochs)
    checks.integer("batch_size", batch_size)
    checks.integer("num_particles", num_particles)
    checks.integer("seed", seed, minimum=0)
    lr = checks.positive("lr", lr)
    if clip_norm is not None:
        checks.positive("clip_norm", clip_norm)
    _check_schedule(epochs, checks.integer("kl_warmup", kl_warmup, minimum=0), patience, validation)
    batch = prepare_rows(pair, x)
    num_rows = len(batch["x"])
    objective = _objective(loss, num_particles, minibatches=batch_size < num_rows, annealed=kl_warmup > 0)
    with standardizing(pair.modules(), batch["x"]):
        structure = inspect(pair, batch, seed)
        _check_objective_fits(objective, structure)
        _check_columns_vary(pair, batch["x"])
        scales = _Scales(pair, batch["x"], seed)
        held_out = None
        if validation is not None:
            held_out = Evaluation.prepare(
                pair, validation, _EPOCH_SAMPLES, seed, structure=structure, argument="validation"
            )
            if held_out.batch["x"].shape[1:] != batch["x"].shape[1:]:
                raise checks.bad_value(
                    "validation",
                    f"rows of shape {tuple(batch['x'].shape[1:])}, as in x",
                    f"shape {tuple(held_out.batch['x'].shape[1:])}",
                    "Pass the same columns.",
                )
        training = Evaluation.prepare(pair, batch, _EPOCH_SAMPLES, seed, structure=structure)
        parameters = [p for p in pair.parameters() if p.requires_grad]
        optimiser = _optimizer(optimizer, parameters, lr)
        state = State(pair, optimiser, objective, num_rows, clip_norm)
        schedule = _scheduler(scheduler, optimiser)
        check_every_leaf(pair, objective, batch, seed)
    history = History()
    steps_an_epoch = math.ceil(num_rows / batch_size)
    best: _Best | None = None
    with Progress("fit", epochs * steps_an_epoch, "steps", progress) as bar:
        try:
            for epoch in range(epochs):
                started = time.monotonic()
                rates = [float(group["lr"]) for group in optimiser.param_groups]
                losses = 0.0
                kl_weight = 1.0
                for number, rows in enumerate(_minibatches(num_rows, batch_size, seed, epoch)):
                    taken = epoch * steps_an_epoch + number
                    if kl_warmup:
                        kl_weight = min(1.0, (taken + 1) / (kl_warmup * steps_an_epoch))
                    minibatch = {name: value[rows] for name, value in batch.items()}
                    step_seed = noise.derive(seed, noise.Stream.STEP, taken)
                    try:
                        value = step(state, minibatch, step_seed, rates, kl_weight)
                    except (FloatingPointError, ValueError) as error:
                        # Parameters of a distribution that ran off are refused by torch before the loss is.
                        if isinstance(error, ValueError) and "satisfy the constraint" not in str(error):
                            raise
                        raise FloatingPointError(_broken(error, epoch, number, rows)) from error
                    losses += value * len(rows) / num_rows
                    bar.advance(note=f"epoch {epoch + 1}/{epochs}, loss {value:.2f}")
                bound = elbo_of(training)
                record: dict[str, float] = {"epoch": epoch + 1, "loss": losses, **_columns(bound)}
                if held_out is not None:
                    record |= _columns(elbo_of(held_out), "validation_")
                record |= {"kl_weight": kl_weight, "lr": rates[0], "seconds": time.monotonic() - started}
                history.records.append(record)
                scales.check()
                score = record.get("validation_elbo", record["elbo"])
                if isinstance(schedule, ReduceLROnPlateau):
                    schedule.step(-score)
                elif schedule is not None:
                    schedule.step()
                if patience is not None and epoch + 1 >= kl_warmup:
                    if best is None or score > best.score:
                        best = _Best.of(pair, epoch + 1, score)
                    elif epoch + 1 - best.epoch >= patience:
                        history.stopped = "patience"
                        break
        except KeyboardInterrupt:
            history.stopped = "interrupted"
        finally:
            pair.zero_grad(set_to_none=True)
    if best is not None:
        best.restore(pair)
        history.best_epoch = best.epoch
    return history


# One draw a row is enough for an epoch's curve: over the rows it averages out.
_EPOCH_SAMPLES = 1


@dataclass(frozen=True)
class _Best:
    """The weights of the best epoch so far, copied."""

    epoch: int
    score: float
    weights: dict[str, Tensor]

    @classmethod
    def of(cls, pair: LatentVariableModel, epoch: int, score: float) -> _Best:
        return cls(epoch, score, {name: value.detach().clone() for name, value in pair.state_dict().items()})

    def restore(self, pair: LatentVariableModel) -> None:
        pair.load_state_dict(self.weights)


def _minibatches(num_rows: int, batch_size: int, seed: int, epoch: int) -> Iterator[Tensor]:
    """Indices of the rows of every minibatch of an epoch, in an order of the epoch's own."""
    generator = torch.Generator().manual_seed(noise.derive(seed, noise.Stream.ROW_ORDER, epoch))
    yield from torch.randperm(num_rows, generator=generator).split(batch_size)


def _columns(bound: ELBOEstimate, prefix: str = "") -> dict[str, float]:
    return {
        f"{prefix}elbo": bound.mean,
        f"{prefix}rate": float(bound.rate.mean()),
        f"{prefix}reconstruction": float(bound.reconstruction.mean()),
    }


def _objective(loss: ELBO | None, num_particles: int, minibatches: bool, annealed: bool) -> ELBO:
    """The loss to minimise; refused where rescaling it would not give a bound."""
    if loss is None:
        return Trace_ELBO(num_particles=num_particles)
    if not isinstance(loss, ELBO):
        raise checks.bad_type(
            "loss",
            "a pyro.infer.ELBO",
            repr(loss),
            "Pass an instance, such as pyro.infer.TraceMeanField_ELBO().",
        )
    name = type(loss).__name__
    if num_particles != 1:
        raise checks.bad_value(
            "num_particles",
            "1 where loss is given",
            str(num_particles),
            f"Say it to the loss: {name}(num_particles={num_particles}).",
        )
    if isinstance(loss, _FROZEN):
        raise checks.bad_value(
            "loss",
            "an objective that reads its scale at every step",
            f"{name}, which freezes N/B and the KL weight of its first call",
            f"Pass {name.removeprefix('Jit')}.",
        )
    if isinstance(loss, _SUMS) and not isinstance(loss, TraceTailAdaptive_ELBO):
        return loss
    if not isinstance(loss, RenyiELBO):
        raise checks.bad_value(
            "loss",
            "Trace_ELBO, TraceMeanField_ELBO, TraceGraph_ELBO or TraceEnum_ELBO, or RenyiELBO on all rows at once",
            f"{name}, which is no bound on log P(x) in nats once it is scaled",
            "Pass one of those.",
        )
    for wanted, what, mend in (
        (minibatches, "minibatches (N/B)", "batch_size=len(x)"),
        (annealed, "a KL weight", "kl_warmup=0"),
    ):
        if wanted:
            raise checks.bad_value(
                "loss",
                f"a sum over rows, because {what} scale its terms",
                f"{name}, which puts the scale inside a logarithm and is no bound then",
                f"Use Trace_ELBO or TraceMeanField_ELBO, or fit with {mend}.",
            )
    return loss


def _check_objective_fits(objective: ELBO, structure: Structure) -> None:
    """What can only be said of an objective once the pair is known."""
    name = type(objective).__name__
    if isinstance(objective, RenyiELBO) and len(structure.plates) > 1:
        raise checks.bad_value(
            "loss",
            f"one plate over the rows, because {name} takes its logarithm plate by plate",
            f"{len(structure.plates)}: {sorted(structure.plates)}",
            "Put z and x into one plate, or use Trace_ELBO.",
        )
    vectorised = objective.vectorize_particles and objective.num_particles > 1
    refusing = [part for part, able in structure.vectorised.items() if not able]
    if vectorised and refusing:
        raise checks.bad_value(
            "loss",
            "vectorize_particles=False for a pair that can't be called with left dims",
            f"vectorize_particles=True and a {refusing[0]} that can't",
            f"Pass {name}(num_particles={objective.num_particles}).",
        )


def _optimizer(
    factory: Callable[..., torch.optim.Optimizer], parameters: list[nn.Parameter], lr: float
) -> torch.optim.Optimizer:
    if not parameters:
        raise checks.bad_value(
            "pair",
            "parameters to fit",
            "none",
            "Declare them with pyro.param or pyro.module, or write the pair as modules.",
        )
    example = "torch.optim.Adam or functools.partial(torch.optim.Adam, eps=1e-4)"
    if isinstance(factory, functools.partial) and "lr" in factory.keywords:
        raise checks.bad_value(
            "optimizer",
            "lr to be said once, to fit",
            f"lr={factory.keywords['lr']} in the partial",
            "Pass fit(lr=…).",
        )
    # Pyro's optimizers are callable, too, but are made of parameters' names and step when called.
    made: Any = None
    if callable(factory) and not isinstance(factory, PyroOptim):
        try:
            made = factory(parameters, lr=lr)
        except TypeError as error:
            raise checks.bad_type(
                "optimizer",
                "a callable of (parameters, lr=…)",
                f"TypeError from it: {error}",
                f"Pass {example}.",
            ) from error
    if not isinstance(made, torch.optim.Optimizer):
        raise checks.bad_type(
            "optimizer", "a torch optimizer's class or a partial of it", repr(factory), f"Pass {example}."
        )
    if isinstance(made, torch.optim.LBFGS):
        raise checks.bad_type(
            "optimizer",
            "one that takes a step from one gradient",
            "LBFGS, which evaluates the loss many times a step on noise that must not change",
            f"Pass {example}.",
        )
    return made


def _scheduler(
    factory: Callable[[torch.optim.Optimizer], LRScheduler | ReduceLROnPlateau] | None,
    optimiser: torch.optim.Optimizer,
) -> LRScheduler | ReduceLROnPlateau | None:
    if factory is None:
        return None
    made = factory(optimiser) if callable(factory) else None
    if not isinstance(made, LRScheduler | ReduceLROnPlateau):
        raise checks.bad_type(
            "scheduler",
            "a callable that takes the optimizer and returns a torch scheduler",
            repr(factory),
            "Pass functools.partial(torch.optim.lr_scheduler.StepLR, step_size=10), say.",
        )
    return made


def _check_schedule(epochs: int, kl_warmup: int, patience: int | None, validation: Any) -> None:
    if kl_warmup >= epochs and kl_warmup:
        raise checks.bad_value(
            "kl_warmup",
            f"fewer epochs than the fit has ({epochs}), so that it ends on the bound itself",
            str(kl_warmup),
            "Shorten the warm-up or train longer.",
        )
    if patience is not None:
        checks.integer("patience", patience)
        if validation is None:
            raise checks.bad_value(
                "validation",
                "rows to judge by, because patience is given",
                "None",
                "Pass rows held out from x.",
            )


def _learns_scale(pair: LatentVariableModel) -> bool:
    return isinstance(pair, VAE) and isinstance(getattr(pair.likelihood, "scale", None), str)


def _check_columns_vary(pair: LatentVariableModel, x: Tensor) -> None:
    """Refuse columns on which a scale that the likelihood learns would shrink to zero."""
    if _learns_scale(pair):
        likelihood: Any = pair.likelihood
        checks.varying_columns("x", x, every=likelihood.learns_scale_per_column)


class _Scales:
    """Watches the scales that a likelihood learns: one that runs to zero takes the density to +∞."""

    def __init__(self, pair: LatentVariableModel, x: Tensor, seed: int) -> None:
        self._learned = _learns_scale(pair)
        if self._learned:
            self._pair: Any = pair
            self._x, self._seed = x[:128], seed
            self._spread = x.flatten(1).std(dim=0, correction=0)
            self._start = self._smallest()

    def check(self) -> None:
        """Refuse to go on where a scale fell below 1e-5 of its column's own spread."""
        if not self._learned:
            return
        scale = self._smallest()
        vanished = (scale < 1e-5 * self._spread) & (scale < self._start)
        if bool(vanished.any()):
            column = int(vanished.int().argmax())
            raise checks.bad_value(
                "x",
                "a density that stays bounded",
                f"a learned scale of {float(scale[column]):.2g} in column {column}, whose spread is "
                f"{float(self._spread[column]):.2g}: log P(x) runs off to +∞",
                "Dequantise whole numbers, drop columns that repeat a value or another column, or fix the scale.",
            )

    def _smallest(self) -> Tensor:
        """The smallest scale of every column over some rows, shape (columns,)."""
        pair = self._pair
        seeded = noise.seeded(noise.derive(self._seed, noise.Stream.INSPECT), self._x.device)
        try:
            with pair.evaluating(), seeded:
                scale = pair.likelihood(pair.encoder(self._x).sample()).base_dist.scale
        except ValueError as error:  # torch's check of the encoder's or the likelihood's parameters
            if "satisfy the constraint" not in str(error):
                raise
            raise checks.bad_value(
                "x",
                "rows of a size that the networks can take",
                str(error).splitlines()[0].removesuffix(", but found invalid values:"),
                "Bring the columns to numbers of size one, or let the model do it: standardize=True.",
            ) from error
        return scale.flatten(1).amin(dim=0)


def _broken(error: Exception, epoch: int, number: int, rows: Tensor) -> str:
    shown = ", ".join(str(int(row)) for row in rows[:8]) + (", …" if len(rows) > 8 else "")
    # Pyro's own error, where parameters ran off before the loss did, goes on for a page.
    reason = str(error).splitlines()[0]
    return checks.refusal(
        "x",
        "a finite loss and gradient",
        f"{reason} at epoch {epoch + 1}, step {number + 1}, rows {shown}",
        "The parameters are as before that step. Lower lr, set clip_norm, or look at those rows and at the scale.",
    )
