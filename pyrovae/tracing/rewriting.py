"""Rewrites of graphs before compilation, for speed that the compiler does not find itself."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import fx
from torch.nn.functional import binary_cross_entropy_with_logits

aten = torch.ops.aten

_SLICES = 8  # of a row; their factors share a logarithm
_LANES = 16  # numbers that a processor handles at once


def rewrite(module: fx.GraphModule) -> None:
    """Replace some operations by faster ones with the same values up to rounding.

    Gradients in the graph were computed before and stay unchanged.
    """
    _sum_bernoulli_masses(module)
    _add_biases_afterwards(module)
    module.recompile()


def _add_biases_afterwards(module: fx.GraphModule) -> None:
    """Move the addition of a layer's bias from before the matrix product into the pass after it."""
    graph = module.graph
    for node in list(graph.nodes):
        if node.target is aten.addmm.default and not node.kwargs:
            bias, *factors = node.args
            with graph.inserting_before(node):
                product = graph.call_function(aten.mm.default, tuple(factors))
                # The compiler would turn a sum back into one operation, so the bias is negated and subtracted.
                minus = graph.call_function(aten.neg.default, (bias,))
                node.replace_all_uses_with(graph.call_function(aten.sub.Tensor, (product, minus)))
            graph.erase_node(node)


def _sum_bernoulli_masses(module: fx.GraphModule) -> None:
    """Replace sums of Bernoulli masses over columns by one logarithm for several columns.

    log Bernoulli(x; l) = x l − max(l, 0) − log(1 + exp(−|l|)), and the last term's logarithm takes most of the
    time. A sum of logarithms is the logarithm of a product, whose factors are between 1 and 2.
    """
    graph = module.graph
    tracer = fx.proxy.GraphAppendingTracer(graph)
    for node in list(graph.nodes):
        path = _summed(node)
        if path is None:
            continue
        *between, last = path
        shape = next((n.args[1] for n in between if n.target is aten.view.default), None)
        columns = between[-1].meta["tensor_meta"].shape[-1]
        with graph.inserting_before(last):
            logits, x = (fx.Proxy(argument, tracer) for argument in node.args[:2])
            if shape is not None:
                logits, x = logits.reshape(shape), x.reshape(shape)
            found = _log_mass(logits, x, columns).node
        last.replace_all_uses_with(found)
        for dead in reversed([node, *path]):
            graph.erase_node(dead)


def _summed(node: fx.Node) -> list[fx.Node] | None:
    """Return the nodes from a cross-entropy to the sum of its negative over the last dim; None if others use it."""
    if node.target is not aten.binary_cross_entropy_with_logits.default or tuple(node.args[2:]) != (
        None,
        None,
        0,
    ):
        return None
    path: list[fx.Node] = []
    for target in (aten.neg.default, aten.view.default, aten.sum.dim_IntList):
        users = list((path[-1] if path else node).users)
        if len(users) != 1:
            return None
        if users[0].target is target:
            path.append(users[0])
        elif target is not aten.view.default:
            return None
    return path if path[-1].args[1:] == ([-1],) and not path[-1].kwargs else None


def _log_mass(logits: Any, x: Any, columns: int) -> Any:
    """Return Σ_d log Bernoulli(x_d; l_d) over the last dim, of tensors or proxies."""
    width = columns // (_SLICES * _LANES) * _LANES
    starts = range(0, _SLICES * width, width) if width else ()
    pieces = [(logits[..., start : start + width], x[..., start : start + width]) for start in starts]
    terms = []
    if pieces:
        linear = sum(b * a - a.clamp(min=0) for a, b in pieces)
        product: Any = math.prod(1 + torch.exp(-a.abs()) for a, _ in pieces)
        terms.append((linear - product.log()).sum(-1))
    if _SLICES * width < columns:
        rest = slice(_SLICES * width, None)
        masses = binary_cross_entropy_with_logits(logits[..., rest], x[..., rest], reduction="none")
        terms.append(-masses.sum(-1))
    return sum(terms)
