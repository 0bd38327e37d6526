"""Several training steps as one graph that can be compiled and called."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx

from pyrovae.pair import Batch
from pyrovae.sparse import SparseRows
from pyrovae.tracing.compiling import compile_graph
from pyrovae.tracing.drawing import Noise, Untraceable
from pyrovae.tracing.gradients import Gradients
from pyrovae.tracing.rewriting import rewrite
from pyrovae.tracing.updates import UPDATES, Outside, take_step


class StepLoss(NamedTuple):
    """The loss of a minibatch and its reconstruction, estimates for the whole data set in nats a row.

    The reconstruction is the mean of log P(x | z) over draws of the guide, if the objective is a sum over sites.
    """

    total: float
    reconstruction: float


class NotFinite(FloatingPointError):
    """A loss or gradient is not finite.

    Attributes:
        losses: of the earlier steps of the same call, which have been taken; later steps have not.
    """

    def __init__(self, what: str, losses: list[StepLoss]) -> None:
        super().__init__(what)
        self.losses = losses


class TracedSteps:
    """Training steps in one call, one for each entry of ``sizes``.

    Args:
        graphs: the loss and gradients of a minibatch, by its number of rows.
        optimizer: of the parameters that a call changes. If its update is ``inside``, the moments from its first
            step have to exist. A call changes these in place, so that ``state_dict()`` and schedulers see the same
            state as after eager steps.
        data: all rows, under "x", and values aligned with them.
        sizes: the number of rows of each step.
        clip_norm: bound on the norm of the gradient, in nats a row.
        annealed: whether the KL weight is an input; otherwise it is 1.
        inside: whether the optimizer's update is part of the graph; see ``updates_inside``. Otherwise the optimizer
            steps after the call, and the call has one step only.
        compiled: whether inductor compiles the graph; otherwise it runs operation by operation.
        noise: of the steps, if it is not that of the graphs' own draws.

    Raises:
        Untraceable: the steps cannot be traced, or not compiled on this machine.
    """

    def __init__(
        self,
        graphs: Mapping[int, Gradients],
        optimizer: torch.optim.Optimizer,
        data: Batch,
        sizes: Sequence[int],
        *,
        clip_norm: float | None = None,
        annealed: bool = False,
        inside: bool = True,
        compiled: bool = True,
        noise: Noise | None = None,
    ) -> None:
        self._optimizer, self._inside = optimizer, inside
        if len({tuple(map(id, graph.moving)) for graph in graphs.values()}) > 1:
            raise Untraceable("which parameters have a gradient depends on the number of rows")
        self._moving = graphs[sizes[0]].moving
        kind = UPDATES[type(optimizer)] if inside else Outside
        self._updates = [kind(optimizer, group, self._moving) for group in optimizer.param_groups]
        self._noise = noise or Noise([graphs[size].draws for size in sizes], data["x"].device)
        tensors = {id(t): t for graph in graphs.values() for t in [*graph.tensors, *graph.moving]}
        held = [*tensors.values(), *(m for update in self._updates for m in update.moments)]
        place = {id(tensor): number for number, tensor in enumerate(held)}

        self._dtype = data["x"].dtype
        width = 1 + sum(update.width for update in self._updates)
        rows = torch.zeros(sum(sizes), dtype=torch.long, device=data["x"].device)
        numbers = torch.ones(len(sizes), width, dtype=self._dtype, device=data["x"].device)
        # A graph cannot take rows from sparse ones: they are copied into memory of a call's size first.
        self._data, self._copied = data, any(isinstance(value, SparseRows) for value in data.values())
        if self._copied:
            data = {
                name: value[:1].expand(len(rows), *value.shape[1:]).clone() for name, value in data.items()
            }
        self._columns, self._at = list(data.values()), torch.arange(len(rows), device=rows.device)
        self._inputs = [*(t.detach() for t in held), *self._columns, *self._noise.flat]

        graph = fx.Graph()
        tracer = fx.proxy.GraphAppendingTracer(graph)
        inputs = [fx.Proxy(graph.placeholder(f"input_{i}"), tracer) for i in range(len(self._inputs) + 2)]
        outputs = self._steps(graphs, sizes, inputs, place, len(data), clip_norm, annealed)
        graph.output(tuple(output.node for output in outputs))
        module = fx.GraphModule({}, graph)
        self._call: Callable[..., Sequence[Tensor]] = module
        if compiled:
            rewrite(module)
            self._call = compile_graph(module, [*self._inputs, rows, numbers])

    def _steps(
        self,
        graphs: Mapping[int, Gradients],
        sizes: Sequence[int],
        inputs: list[Any],
        place: dict[int, int],
        num_columns: int,
        clip_norm: float | None,
        annealed: bool,
    ) -> list[Any]:
        """Build the steps' operations, with proxies for tensors.

        Returns losses, reconstructions and gradient norms, (steps, 3), and the gradients if the optimizer is outside.
        """
        columns = inputs[len(place) :][:num_columns]
        drawn = inputs[len(place) + num_columns : -2]
        rows, numbers = inputs[-2:]

        def of(tensor: Tensor) -> Any:
            return inputs[place[id(tensor)]]

        reports: list[Any] = []
        gradients: list[Any] = []
        fine, start = None, 0
        for step, size in enumerate(sizes):
            graph = graphs[size]
            batch = rows[start : start + size]
            start += size
            old = {id(t): of(t).clone() for t in graph.changed}
            loss, *gradients = _insert(
                graph.module,
                [
                    *(column[batch] for column in columns),
                    *([numbers[step, 0]] if annealed else []),
                    *map(of, graph.tensors),
                    *self._noise.views(drawn, step),
                ],
            )
            norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g) for g in gradients]))
            # A step that is not finite changes nothing, and neither do the steps after it.
            finite = torch.isfinite(loss[0]) & torch.isfinite(norm)
            fine = finite if fine is None else fine & finite
            for tensor in graph.changed:
                of(tensor).copy_(torch.where(fine, of(tensor), old[id(tensor)]))
            if clip_norm is not None:
                factor = (clip_norm / (norm + 1e-6)).clamp(max=1.0)
                gradients = [gradient * factor for gradient in gradients]
            gradient_of = dict(zip(map(id, graph.moving), gradients, strict=True))
            first = 1
            for update in self._updates:
                mine = [numbers[step, first + i] for i in range(update.width)]
                first += update.width
                for parameter, moments in update.places:
                    now = [of(parameter), *map(of, moments)]
                    then = update.apply(gradient_of[id(parameter)], now, mine)
                    for before, after in zip(now, then, strict=True):
                        before.copy_(torch.where(fine, after, before))
            reports.append(torch.cat([loss, norm[None]]))
        return [torch.stack(reports), *([] if self._inside else gradients)]

    def run(self, rows: Tensor, seeds: Sequence[int], kl_weights: Sequence[float]) -> list[StepLoss]:
        """Take the steps and return their losses.

        Args:
            rows: indices of the rows, first step first, shape (sum of sizes,).
            seeds: of each step's noise.
            kl_weights: of each step.

        Raises:
            NotFinite: a loss or gradient is not finite. Parameters, buffers and moments are as before that step.
        """
        numbers = [
            [weight, *(number for update in self._updates for number in update.numbers(ahead))]
            for ahead, weight in enumerate(kl_weights, start=1)
        ]
        outputs = self._outputs(rows, seeds, numbers)
        reports = outputs[0].tolist()
        losses = [StepLoss(total, reconstruction) for total, reconstruction, _ in reports]
        for step, (total, _, norm) in enumerate(reports):
            if not (math.isfinite(total) and math.isfinite(norm)):
                what = f"loss is {total}" if not math.isfinite(total) else f"gradient norm is {norm}"
                raise NotFinite(what, losses[:step])
        if not self._inside:
            for parameter, gradient in zip(self._moving, outputs[1:], strict=True):
                parameter.grad = gradient
            take_step(self._optimizer)
        return losses

    def differentiate(
        self, rows: Tensor, seeds: Sequence[int], kl_weights: Sequence[float]
    ) -> tuple[Tensor, Sequence[Tensor]]:
        """Return loss, reconstruction and gradient norm, (1, 3), and the gradients. The optimizer must be outside."""
        reports, *gradients = self._outputs(rows, seeds, [[weight] for weight in kl_weights])
        return reports, gradients

    def _outputs(
        self, rows: Tensor, seeds: Sequence[int], numbers: Sequence[Sequence[float]]
    ) -> Sequence[Tensor]:
        """Draw the noise and call the graph."""
        self._noise.draw(seeds)
        if self._copied:
            for column, value in zip(self._columns, self._data.values(), strict=True):
                column.copy_(value[rows])
            rows = self._at
        with torch.no_grad():
            return self._call(
                *self._inputs, rows, torch.tensor(numbers, dtype=self._dtype, device=rows.device)
            )


def _insert(module: fx.GraphModule, arguments: list[Any]) -> list[Any]:
    """Copy a graph into the one that the arguments' proxies belong to, and return the copy's outputs."""
    tracer = arguments[0].tracer
    inputs = [node for node in module.graph.nodes if node.op == "placeholder"]
    values = dict(zip(inputs, (argument.node for argument in arguments), strict=True))
    return [fx.Proxy(node, tracer) for node in tracer.graph.graph_copy(module.graph, values)]


def batch_sizes(num_rows: int, batch_size: int) -> list[int]:
    """Return the number of rows of every batch of an epoch. A last batch of one row is joined to the one before it.

    A single row has no variance, which BatchNorm divides by.
    Example:
        >>> batch_sizes(22, 10), batch_sizes(21, 10), batch_sizes(2, 1)
        ([10, 10, 2], [10, 11], [1, 1])
    """
    whole, last = divmod(num_rows, batch_size)
    if whole and last == 1:
        return [batch_size] * (whole - 1) + [batch_size + 1]
    return [batch_size] * whole + [last] * bool(last)


def calls(num_rows: int, batch_size: int, several: bool = True) -> list[tuple[int, ...]]:
    """Return the steps of an epoch as calls, each the sizes of its batches. There are at most two kinds of calls.

    Args:
        num_rows: rows of the data set.
        batch_size: rows of every step but the last.
        several: whether a call may take several steps.

    Example:
        >>> calls(100, 10)
        [(10, 10, 10, 10, 10), (10, 10, 10, 10, 10)]
        >>> calls(95, 20)
        [(20, 20, 20, 20), (15,)]
    """
    sizes = batch_sizes(num_rows, batch_size)
    whole = sizes.count(batch_size)
    rest = tuple(sizes[whole:])
    if not several:
        return [(size,) for size in sizes]
    # With four steps a call, the overhead of calls is small; another number is used if it leaves no remainder.
    number = next((k for k in (4, 5, 6, 3) if whole % k == 0), 4)
    over = (batch_size,) * (whole % number) + rest
    return [(batch_size,) * number] * (whole // number) + [over] * bool(over)
