"""The loss of a minibatch and its gradients as a graph of tensor operations, traced from Pyro once."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from pyrovae import noise
from pyrovae.model import LatentVariableModel
from pyrovae.pair import Batch
from pyrovae.python_values import values_of_call
from pyrovae.tracing.drawing import Noise, Untraceable
from pyrovae.tracing.graphs import Graph, agree, only_torch_draws, trace, untraceable

# Why a trace does not hold, if the first call differs, the second one after it, or what eval() mode computes after both.
_DIFFERENT = (
    "with other rows and noise it does not compute what the trace computes",
    "a call changes what the next one computes, by Python objects that a trace would fix",
    "a call changes what eval() mode computes, by Python objects that a trace would fix",
)


@dataclass(frozen=True)
class Gradients(Graph):
    """The loss and the gradients of one minibatch as a graph.

    Its inputs are the batch and, if annealed, the KL weight. It returns the loss and its reconstruction, in nats a row,
    shape (2,), and the gradients of ``moving``, the parameters that have one.

    Attributes:
        check: raises ``Untraceable`` if two calls of Pyro, which begin with the present state, differ from two of
            the graph. They may differ in loss, gradient or buffer, or in the log-probabilities of the pair
            afterwards, in ``eval()`` mode. They differ if a call changes what the trace holds as a constant.
    """

    moving: list[nn.Parameter]
    check: Callable[[], None]


def trace_gradients(
    pair: LatentVariableModel,
    loss: Callable[[Batch, float, Tensor], Any],
    data: Batch,
    size: int,
    num_rows: int,
    parameters: list[nn.Parameter],
    annealed: bool,
    objective: object = None,
) -> Gradients:
    """Return the graph of a minibatch's loss.

    Args:
        pair: model and guide.
        loss: takes a minibatch, a KL weight and a weight of the observed sites. It returns an estimate of the data
            set's loss, as Pyro's objectives do. The estimate is a tensor, or a number if they ran ``backward()``
            themselves.
        data: rows to trace and check with.
        size: of the minibatch.
        num_rows: of the data set.
        parameters: those that may have gradients.
        annealed: whether the KL weight is an input; otherwise it is 1.
        objective: what ``loss`` calls beside the pair, whose Python values must not change either.

    Raises:
        Untraceable: the loss cannot be traced.
    """
    moving: list[nn.Parameter] = []
    device, dtype = data["x"].device, data["x"].dtype

    def gradients(batch: Batch, weight: float) -> list[Tensor]:
        pair.zero_grad(set_to_none=True)  # an objective that runs backward() itself adds to it
        total, reconstruction, found = _differentiate(loss, batch, weight, num_rows, parameters)
        moving[:] = [p for p, gradient in zip(parameters, found, strict=True) if gradient is not None]
        return [torch.stack([total, reconstruction]), *(each for each in found if each is not None)]

    def traced(*inputs: Tensor) -> list[Tensor]:
        batch = dict(zip(data, inputs, strict=False))
        return gradients(batch, _Weight(inputs[-1]) if annealed else 1.0)

    first, last = (
        {name: column[part] for name, column in data.items()} for part in (slice(size), slice(-size, None))
    )
    weight = 0.5 if annealed else 1.0
    weights = [torch.full((), weight, dtype=dtype, device=device)] if annealed else []

    def by_graph(batch: Batch, step: int) -> list[Tensor]:
        with torch.no_grad():
            return [*graph.module(*batch.values(), *weights, *graph.tensors, *drawn.targets[step])]

    def evaluated() -> list[Tensor]:
        with pair.evaluating(), torch.enable_grad():  # the objective may run backward() itself
            return [_differentiate(loss, last, 1.0, num_rows, [])[0]]

    def check() -> None:
        if any(parameter._post_accumulate_grad_hooks for parameter in parameters):
            raise Untraceable("hooks on the gradients of parameters")
        with untraceable(), _as_before(pair, 1, device, objective, graph.tensors):
            expected = _returned(pair, device, [partial(gradients, last, weight)] * 2, evaluated, objective)
        drawn.draw([1, 2])
        with untraceable(), _as_before(pair, 1, device, objective):
            came = _returned(pair, device, [partial(by_graph, last, step) for step in (0, 1)], evaluated)
        _check_same(came, expected, pair.coarsest or dtype)

    read: list[Tensor] = []
    with untraceable(), _as_before(pair, 0, device, objective, read):
        graph = trace(traced, [*first.values(), *weights])
        read += graph.tensors
    _check_changed(pair, graph)
    drawn = Noise([graph.draws] * 2, device)
    found = Gradients(graph.module, graph.tensors, graph.changed, graph.draws, [*moving], check)
    check()
    return found


def _returned(
    pair: LatentVariableModel,
    device: torch.device,
    calls: Sequence[Callable[[], list[Tensor]]],
    evaluated: Callable[[], list[Tensor]],
    objective: object = None,
) -> list[list[Tensor]]:
    """Return what two calls in a row and an evaluation after them return and leave in the buffers.

    Raises:
        Untraceable: the second call changes a Python value of pair or objective. The first one may fill caches.
    """
    found = []
    for number, call in enumerate([*calls, evaluated]):
        values = values_of_call(pair, objective) if number == 1 else None
        with noise.seeded(1 + number, device):  # the trace has seed 0
            found.append(call() + _changing(pair))
        if values is not None and (changed := values.changed()) is not None:
            raise Untraceable(
                f"Python values change from call to call, such as {changed}, which a trace would fix if the loss reads it; "
                "a module's buffer, changed in place, keeps the trace"
            )
    return found


def _check_same(came: list[list[Tensor]], expected: list[list[Tensor]], dtype: torch.dtype) -> None:
    """Raise ``Untraceable`` if calls of a graph and of Pyro return other numbers, up to rounding in ``dtype``."""
    for one, two, what in zip(came, expected, _DIFFERENT, strict=True):
        if not agree(one, two, math.sqrt(torch.finfo(dtype).eps)):
            raise Untraceable(what)


def _check_changed(pair: LatentVariableModel, graph: Graph) -> None:
    """Raise ``Untraceable`` if a graph changes tensors that are not buffers."""
    buffers = {id(buffer) for module in pair.every_module() for buffer in module.buffers()}
    if {*map(id, graph.changed)} - buffers:
        raise Untraceable("it changes a tensor that is not a buffer of a module")


def _differentiate(
    loss: Callable[[Batch, float, Tensor], Any],
    batch: Batch,
    weight: float,
    num_rows: int,
    parameters: list[nn.Parameter],
) -> tuple[Tensor, Tensor, list[Tensor | None]]:
    """Return loss and reconstruction, in nats a row, and the gradient of each parameter, None without one."""
    observed_weight = batch["x"].new_ones((), dtype=torch.float64).requires_grad_()
    total = loss(batch, weight, observed_weight) / num_rows
    reached = [*parameters, observed_weight]
    if isinstance(total, Tensor) and total.requires_grad:
        found: list[Tensor | None] = [*torch.autograd.grad(total, reached, allow_unused=True)]
    else:  # the objective ran backward() itself
        found = [None if p.grad is None else p.grad / num_rows for p in reached]
    last = found.pop()
    total = torch.as_tensor(total, dtype=batch["x"].dtype).detach()
    return total, torch.zeros_like(total) if last is None else -last.to(total.dtype), found


def _changing(pair: LatentVariableModel) -> list[Tensor]:
    """Return copies of the pair's buffers, to compare what a call makes of them."""
    buffers = {id(buffer): buffer for module in pair.every_module() for buffer in module.buffers()}.values()
    return [
        (torch.view_as_real(buffer) if buffer.is_complex() else buffer).to(torch.float64, copy=True)
        for buffer in buffers
        if buffer.numel() and buffer.layout == torch.strided
    ]


@contextmanager
def _as_before(
    pair: LatentVariableModel,
    seed: int,
    device: torch.device,
    objective: object,
    read: Sequence[Tensor] = (),
) -> Iterator[None]:
    """Run a block as a training step with noise from a seed, and leave pair and objective as they were.

    Raises:
        Untraceable: the block replaced a parameter, a buffer or another tensor that a trace ``read``, or drew random
            numbers outside torch.
    """
    pair.zero_grad(set_to_none=True)
    values = values_of_call(pair, objective)
    try:
        with noise.seeded(seed, device), pair.fitting(), only_torch_draws():
            yield
    finally:
        pair.zero_grad(set_to_none=True)
        replaced = values.replaced(read)
        values.restore()
    if replaced is not None:
        raise Untraceable(f"{replaced} is replaced at every call instead of changed in place")


class _Weight(float):
    """A KL weight that multiplies as a tensor."""

    tensor: Tensor

    def __new__(cls, tensor: Tensor) -> _Weight:
        self = super().__new__(cls, math.nan)
        self.tensor = tensor
        return self

    def __rmul__(self, scale: Any) -> Any:
        return scale * self.tensor
