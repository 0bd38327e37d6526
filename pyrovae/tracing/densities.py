"""A log density of one vector and its gradient as a graph of tensor operations, traced from a function once."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import islice

import torch
from torch import Tensor, fx

from pyrovae.tracing.compiling import compile_graph, why_not_compiled
from pyrovae.tracing.drawing import Untraceable
from pyrovae.tracing.graphs import agree, only_torch_draws, trace, untraceable

aten = torch.ops.aten

#: The graph must agree with the function up to this, relative to the largest number.
_TOLERANCE = 1e-9
#: A tensor of this many numbers takes as long as the overhead of an operation.
_NUMBERS = 5000
#: Seconds to load the compiler and compile a graph, and an operation of it, on a machine that has compiled before.
_COMPILING = 4.0, 0.02
#: Seconds to run an operation that is not compiled, of few numbers.
_RUNNING = 4.5e-6


class TracedDensity:
    """Value and gradient of a log density at u, shape (dim,), float64, without running its Python again.

    The value is NaN where torch raises an error of linear algebra, because a matrix is singular.

    Args:
        density: a function of u that returns one number.
        dim: of u.

    Raises:
        Untraceable: Python reads a value, the function draws noise or changes a tensor, or its values at random u
            differ from the graph's.
    """

    def __init__(self, density: Callable[[Tensor], Tensor], dim: int) -> None:
        with only_torch_draws():
            points = _points(density, dim)

        def both(u: Tensor) -> Sequence[Tensor]:
            gradient, value = torch.func.grad_and_value(density)(u)
            return [value, gradient]

        with untraceable():
            graph = trace(both, [points[0]])
            if graph.draws or graph.changed:
                raise Untraceable("a density that draws noise or changes a tensor")
            _nan_if_singular(graph.module)
            self._tensors = [tensor.detach() for tensor in graph.tensors]
            self._module = graph.module
            self._call: Callable[..., Sequence[Tensor]] = graph.module
            self._expected = [(u, both(u)) for u in points]
        if not self._right():
            raise Untraceable("at other points it does not compute what the trace computes")

    def __call__(self, u: Tensor) -> Sequence[Tensor]:
        """Return log p(u), in nats, and its gradient, shape (dim,)."""
        with torch.no_grad():
            return self._call(u, *self._tensors)

    def pays(self, calls: int) -> bool:
        """Return whether ``calls`` calls take longer than compiling, by the size of the graph alone.

        No clock decides. Compiled numbers differ from others in the last bits, so a seed's draws would depend on it.
        """
        nodes = [node for node in self._module.graph.nodes if node.op == "call_function"]
        metas = [node.meta.get("tensor_meta") for node in nodes]
        work = sum(1 + (meta.shape.numel() / _NUMBERS if hasattr(meta, "shape") else 0) for meta in metas)
        once, each = _COMPILING
        return _RUNNING * work * calls > once + each * len(nodes)

    def compile(self) -> None:
        """Compile the graph.

        Raises:
            Untraceable: it cannot be compiled, or not on this machine; ``self`` is as before.
        """
        unable = why_not_compiled(torch.device("cpu"))
        if unable is not None:
            raise Untraceable(unable)
        before = self._call
        self._call = compile_graph(self._module, [self._expected[0][0], *self._tensors], cpp_wrapper=False)
        with untraceable():
            right = self._right()
        if not right:
            self._call = before
            raise Untraceable("compiled, it does not compute what the trace computes")

    def _right(self) -> bool:
        return all(agree(self(u), expected, _TOLERANCE) for u, expected in self._expected)


def _points(density: Callable[[Tensor], Tensor], dim: int) -> list[Tensor]:
    """Return up to five of fifty random u at which the density is finite; raise ``Untraceable`` if there are not two."""
    generator = torch.Generator().manual_seed(0)
    candidates = torch.randn(50, dim, generator=generator, dtype=torch.float64)
    with untraceable():
        found = list(islice((u for u in candidates if bool(torch.isfinite(density(u)))), 5))
    if len(found) < 2:
        raise Untraceable("a density that is hardly ever finite")
    return found


def _nan_if_singular(module: fx.GraphModule) -> None:
    """Replace errors of linear algebra by NaN as the graph's first result.

    An operation that can raise has an effect, and torch keeps no compiled graph with effects for the next process.
    """
    graph = module.graph
    (output,) = (node for node in graph.nodes if node.op == "output")
    value, *others = output.args[0]
    for node in list(graph.nodes):
        if node.target is aten._linalg_check_errors.default:
            with graph.inserting_before(output):
                solved = graph.call_function(aten.eq.Scalar, (node.args[0], 0))
                everywhere = graph.call_function(aten.all.default, (solved,))
                value = graph.call_function(aten.where.ScalarOther, (everywhere, value, math.nan))
            graph.erase_node(node)
    output.args = ([value, *others],)
    graph.eliminate_dead_code()
    module.recompile()
