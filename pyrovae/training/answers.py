"""FitAnswers of a fit, checked on resuming: the numbers that pair, loss and schedules compute."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from pyro.infer import ELBO
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from pyrovae import identity, noise
from pyrovae.checkpoints import Answers, rounding
from pyrovae.pair import Batch, RowModel, behaviour, left_as_found, probe
from pyrovae.precision import products
from pyrovae.training.step import State, differentiate

# A unit whose input rounds to the other side of a kink moves gradients by more than rounding.
_GRADIENT = 1e-3


@dataclass(frozen=True)
class FitAnswers:
    """The pair and the loss of a fit, identified by what they compute with their present weights.

    Attributes:
        state: the pair and its objective.
        model: the pair, and what inspection found.
        rows: some of the training rows, as model and guide get them.
        minibatch: some of the training rows, before binarization, for one step.
        seed: of the noise.
    """

    state: State
    model: RowModel
    rows: Batch
    minibatch: Batch
    seed: int

    @classmethod
    def of(
        cls, state: State, model: RowModel, batch: Batch, given: Batch, batch_size: int, seed: int
    ) -> FitAnswers:
        """Return the object, from the rows as model and guide get them and as they were given."""
        some = probe(model.structure, given)
        each = math.ceil(len(some["x"]) / batch_size)
        minibatch = {name: value[::each] for name, value in some.items()}
        return cls(state, model, probe(model.structure, batch), minibatch, seed)

    def now(self) -> Answers:
        """Return the pair's terms in ``eval()`` mode and a step's loss, gradient and buffers. Nothing is changed."""
        tolerance = rounding(self.rows["x"].dtype)
        with products("highest"):
            terms = behaviour(self.model, self.rows, self.seed)
            loss, gradient, buffers = self._step()
        return {
            **{name: (term, tolerance) for name, term in terms.items()},
            "the loss of a step": (loss, tolerance),
            "the gradient of a step": (gradient, _GRADIENT),
            "what a step makes of the buffers": (buffers, tolerance),
        }

    def _step(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return the loss of a step in nats a row, the gradient's summary and the buffers' moments after the step.

        The summary of the gradient is the logarithm of its norm, then each parameter's norm and sum as shares of
        that norm. A buffer's moments are root mean square and mean, as of BatchNorm's running statistics.
        """
        state, key = self.state, noise.derive(self.seed, noise.Stream.IDENTITY, 0)
        found = torch.full((len(state.parameters), 2), torch.nan, dtype=torch.float64)
        loss = torch.tensor(torch.nan, dtype=torch.float64)
        buffers = torch.full((len(state.buffers), 2), torch.nan, dtype=torch.float64)
        averages, state.averages = state.averages, {}  # they are of another number of rows
        with left_as_found(state.pair, state.objective):
            try:
                loss = torch.tensor(differentiate(state, self.minibatch, key, 1.0).total, dtype=torch.float64)
                for shares, parameter in zip(found, state.parameters, strict=True):
                    gradient = parameter.grad if parameter.grad is not None else torch.zeros_like(parameter)
                    shares[0] = float(gradient.norm())
                    shares[1] = float(gradient.sum()) / gradient.numel() ** 0.5
                for moments, (held, name) in zip(buffers, state.buffers, strict=True):
                    if (buffer := held[name]) is not None:
                        moments[0] = float(buffer.double().square().mean().sqrt())
                        moments[1] = float(buffer.double().mean())
            except Exception:  # a step that fails leaves NaN, before and after
                pass
            finally:
                state.averages = averages
                state.pair.zero_grad(set_to_none=True)
        norm = found[:, 0].norm().clamp(min=1e-30)
        return loss, torch.cat([norm.log()[None], (found / norm).flatten()]), buffers


def described(thing: Any, epochs: int) -> list[str]:
    """Return a description of an unused loss or scheduler: its class, its numbers and its functions' values."""
    return [type(thing).__qualname__, repr(_plain(thing, epochs))]


def described_optimizer(optimizer: torch.optim.Optimizer) -> list[str]:
    """Return a description of an unused optimizer: its class, its defaults, its groups' options and sizes."""
    groups = [
        {name: len(value) if name == "params" else value for name, value in group.items()}
        for group in optimizer.param_groups
    ]
    return [type(optimizer).__qualname__, repr(optimizer.defaults), repr(groups)]


def _plain(value: Any, epochs: int) -> Any:
    """Return the numbers and strings in a value, with functions of the epoch replaced by a digest of their values."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Tensor):
        return identity.digest(value.detach().cpu().double())
    if isinstance(value, Mapping):
        return {str(name): _plain(item, epochs) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, epochs) for item in value]
    if isinstance(value, ELBO):
        return {name: _plain(item, epochs) for name, item in vars(value).items() if not name.startswith("_")}
    if isinstance(value, LRScheduler | ReduceLROnPlateau):
        return {name: _plain(item, epochs) for name, item in vars(value).items() if name != "optimizer"}
    return _returned(value, epochs) if callable(value) else type(value).__qualname__


def _returned(function: Callable[[int], Any], epochs: int) -> str:
    """Return a sha256 of what a function of the epoch returns, over all epochs."""
    try:
        # 0 comes last, so that a function that changes the model for an epoch leaves it set to the first.
        values = [float(function(epoch)) for epoch in (*range(1, epochs + 1), 0)]
    except Exception:  # not a function of the epoch
        return "a function"
    return hashlib.sha256(repr(values).encode()).hexdigest()
