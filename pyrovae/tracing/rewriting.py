"""Rewrites of graphs before compilation, for speed that the compiler does not find itself."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, fx
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
    for node in list(graph.nodes):
        path = _summed(node)
        if path is None:
            continue
        *between, last = path
        shape = next((n.args[1] for n in between if n.target is aten.view.default), None)
        with graph.inserting_before(last):
            found = graph.call_function(_log_mass, (node.args[0], node.args[1], shape))
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


def _log_mass(logits: Tensor, x: Tensor, shape: Sequence[int] | None) -> Tensor:
    """Return Σ_d log Bernoulli(x_d; l_d) over the last dim."""
    if shape is not None:
        logits, x = logits.reshape(shape), x.reshape(shape)
    columns = logits.shape[-1]
    width = columns // (_SLICES * _LANES) * _LANES
    sliced = _SLICES * width
    total = torch.zeros((), dtype=logits.dtype, device=logits.device)
    if width:
        pieces = list(
            zip(logits[..., :sliced].split(width, -1), x[..., :sliced].split(width, -1), strict=True)
        )
        linear = sum(b * a - a.clamp(min=0) for a, b in pieces)
        product = torch.ones((), dtype=logits.dtype, device=logits.device)
        for a, _ in pieces:
            product = product * (1 + torch.exp(-a.abs()))
        total = total + (linear - product.log()).sum(-1)
    if sliced < columns:
        rest = binary_cross_entropy_with_logits(logits[..., sliced:], x[..., sliced:], reduction="none")
        total = total - rest.sum(-1)
    return total
