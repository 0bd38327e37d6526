"""One training step, which reads and changes nothing but its state."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from pyro.infer import ELBO
from torch import Tensor, nn

from pyrovae import noise
from pyrovae.model import LatentVariableModel
from pyrovae.pair import Batch, RowModel, left_as_found, loss
from pyrovae.refusals import bad_value
from pyrovae.tracing import Gradients, StepLoss, take_step, trace_gradients

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


@dataclass
class State:
    """Everything that a step reads and changes: a pair's parameters and buffers, and the optimizer's moments."""

    pair: LatentVariableModel
    optimizer: torch.optim.Optimizer
    objective: ELBO
    num_rows: int
    clip_norm: float | None
    #: Whether rows are probabilities, from which every step draws zeros and ones.
    binarize: bool = False
    #: The parameters that the optimizer updates.
    parameters: list[nn.Parameter] = field(init=False)
    #: The modules' buffers, found once because a search through closures is slow.
    buffers: list[tuple[dict[str, Tensor | None], str]] = field(init=False)
    #: The objective's decaying averages over steps, by name; see ``pair.loss``.
    averages: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        modules = {id(module): module for module in self.pair.every_module()}.values()
        self.buffers = [
            (m._buffers, name) for m in modules for name, b in m._buffers.items() if b is not None
        ]

    @property
    def moved(self) -> int:
        """Return how many numbers the optimizer updates."""
        return sum(parameter.numel() for parameter in self.parameters)

    def loss(
        self,
        batch: Batch,
        kl_weight: float,
        observed_weight: Tensor | float = 1.0,
        averages: dict[str, Tensor] | None = None,
    ) -> Tensor | float:
        """Return the objective on a minibatch, an estimate of the whole data set's, in nats; see ``pair.loss``."""
        rows = self.presented(batch)
        return loss(self.pair, self.objective, rows, self.num_rows, kl_weight, observed_weight, averages)

    def traced(self, shown: Batch, size: int, annealed: bool) -> Gradients:
        """Return the graph of the loss of a minibatch of ``size`` rows."""
        return trace_gradients(
            self.pair, self.loss, shown, size, self.num_rows, self.parameters, annealed, self.objective
        )

    def presented(self, batch: Batch) -> Batch:
        """Return the minibatch as model and guide get it."""
        return batch | {"x": binarized(batch["x"])} if self.binarize else batch


def binarized(x: Tensor) -> Tensor:
    """Return zeros and ones, drawn with the probabilities in x."""
    return (torch.rand_like(x) < x).to(x.dtype)


def step(state: State, batch: Batch, seed: int, kl_weight: float) -> StepLoss:
    """Take one gradient step on a minibatch and return its loss.

    Args:
        state: changed in place: parameters, their buffers, and the optimizer's moments.
        batch: the minibatch.
        seed: of the noise of the step.
        kl_weight: the factor on the latent sites' log-probabilities.

    Raises:
        FloatingPointError: loss or gradient are not finite. After any error, parameters, buffers and moments
            are as before the step.
    """
    with _buffers_as_before_on_error(state):
        value = differentiate(state, batch, seed, kl_weight)
    take_step(state.optimizer)
    return value


def check_dense_gradients(pair: LatentVariableModel) -> None:
    """Raise ``ValueError`` if an embedding of the pair has sparse gradients, which have no norm."""
    for module in pair.every_module():
        if (
            isinstance(module, nn.Embedding | nn.EmbeddingBag)
            and module.sparse
            and module.weight.requires_grad
        ):
            raise bad_value(
                "pair",
                "embeddings with dense gradients",
                repr(module),
                f"Pass sparse=False to {type(module).__name__}.",
            )


def check_one_row(state: State, model: RowModel, batch: Batch, batch_size: int, seed: int) -> None:
    """Raise ``ValueError`` if the pair has BatchNorm and gets a batch of one row. Nothing is changed."""
    if not any(isinstance(module, _BATCH_NORMS) for module in state.pair.every_module()):
        return
    row = {name: value[:1] for name, value in batch.items()}
    found, seeded = left_as_found(state.pair, state.objective), noise.seeded(seed, row["x"].device)
    try:
        with found, seeded, state.pair.fitting(), torch.no_grad():
            latents, _ = model.propose(row, 1)
            model.log_joint(row, latents)
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise bad_value(
            "batch_size" if batch_size == 1 else "x",
            "two rows or more in every batch, because the pair has BatchNorm",
            "a batch of one row",
            "Pass batch_size=2 or more."
            if batch_size == 1
            else "Pass more rows, or chunks of two rows or more; or put BatchNorm into eval() mode.",
        ) from error


def differentiate(state: State, batch: Batch, seed: int, kl_weight: float) -> StepLoss:
    """Store the gradient, clipped, in the parameters' ``.grad`` and return the loss."""
    state.pair.zero_grad(set_to_none=True)
    parameters = state.parameters
    # A number in float64 leaves the dtype of what it multiplies as it is.
    observed_weight = torch.ones((), dtype=torch.float64, device=batch["x"].device, requires_grad=True)
    with noise.seeded(seed, batch["x"].device), state.pair.fitting():
        total = state.loss(batch, kl_weight, observed_weight, state.averages)
        if isinstance(total, Tensor):
            # The loss of one row, so that the learning rate and clip_norm mean the same for any N.
            (total / state.num_rows).backward()
        else:  # the objective ran backward() itself, on the loss of the whole data set
            for parameter in [*parameters, observed_weight]:
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
    return StepLoss(value, 0.0 if observed_weight.grad is None else -float(observed_weight.grad))


@contextmanager
def _buffers_as_before_on_error(state: State) -> Iterator[None]:
    """Run a block and restore the buffers, such as running moments, and the objective's averages if it raises."""
    averages = dict(state.averages)
    before = [
        (buffers, name, buffer, buffer.clone())
        for buffers, name in state.buffers
        if (buffer := buffers[name]) is not None
    ]
    try:
        yield
    except BaseException:
        for buffers, name, buffer, value in before:
            buffers[name] = buffer.copy_(value)
        state.averages = averages
        raise
